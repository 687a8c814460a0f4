"""`evergreen up` on SQLite."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from _platform import Platform, new_platform, running
from _up import EndSuite, RunSuite


class TestOnSqlite(EndSuite, RunSuite):
    """The platform as it comes."""

    @pytest.fixture(scope="class")
    def platform(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
        """Give a running platform with two models."""
        with running(new_platform(tmp_path_factory.mktemp("sqlite"))) as platform:
            yield platform
