"""The session's own rules, checked in small sessions of their own."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

Require = Callable[[str, bool], None]


def test_present_tool_lets_the_test_run(require: Require, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tool that is there is no reason to stop, whatever is required."""
    monkeypatch.setenv("EVERGREEN_TEST_REQUIRE", "all")

    require("Terraform", True)


def test_missing_tool_skips(require: Require, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing tool skips the test and is named."""
    monkeypatch.delenv("EVERGREEN_TEST_REQUIRE", raising=False)

    with pytest.raises(pytest.skip.Exception, match="This test needs Terraform, which is missing here."):
        require("Terraform", False)


def test_missing_tool_fails_where_all_are_required(require: Require, monkeypatch: pytest.MonkeyPatch) -> None:
    """Continuous integration does not pass by skipping."""
    monkeypatch.setenv("EVERGREEN_TEST_REQUIRE", "all")

    with pytest.raises(pytest.fail.Exception, match="needs Terraform.*EVERGREEN_TEST_REQUIRE=all allows no skip."):
        require("Terraform", False)


def test_marker_comes_from_the_path(request: pytest.FixtureRequest) -> None:
    """A test below tests/unit is a unit test."""
    assert ["unit"] == [mark.name for mark in request.node.iter_markers()]


def test_session_touches_no_home() -> None:
    """Prefect's home is temporary, and nothing is reported to anybody."""
    home = Path(os.environ["PREFECT_HOME"])
    quiet = ("DO_NOT_TRACK", "MLFLOW_DISABLE_TELEMETRY", "PREFECT_SERVER_ANALYTICS_ENABLED")

    assert home.is_dir() and Path.home() not in home.parents
    assert ["1", "true", "false"] == [os.environ[variable] for variable in quiet]
