"""`evergreen up` with both servers on a real Postgres, and with Prefect's password set."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator

import pytest
from _platform import PASSWORD, Platform, new_platform, running
from _postgres import postgres
from _up import EndSuite


class TestOnPostgres(EndSuite):
    """The platform of a team."""

    @pytest.fixture(scope="class")
    def platform(
        self, tmp_path_factory: pytest.TempPathFactory, require: Callable[[str, bool], None]
    ) -> Iterator[Platform]:
        """Give a running platform with two models."""
        with postgres(require) as url:
            platform = new_platform(tmp_path_factory.mktemp("postgres"))
            platform.options = ("--database", url)
            platform.variables = {"PREFECT_SERVER_API_AUTH_STRING": PASSWORD, "PREFECT_API_AUTH_STRING": PASSWORD}
            platform.headers = {"Authorization": f"Basic {base64.b64encode(PASSWORD.encode()).decode()}"}
            with running(platform):
                yield platform
