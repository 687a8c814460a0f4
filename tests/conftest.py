"""What every test session has in common: its environment, its markers, and how a missing tool is answered."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

KINDS = ("unit", "integration", "e2e", "gpu")
PRIVACY = {"DO_NOT_TRACK": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
PREFECT_HOME = pytest.StashKey[str]()
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


def pytest_configure(config: pytest.Config) -> None:
    """Give the session its environment, before a test module imports Prefect, which reads it then."""
    for variable in list(os.environ):
        is_ours = variable.startswith("EVERGREEN_") and not variable.startswith("EVERGREEN_TEST_")
        if is_ours or variable in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
            del os.environ[variable]
    config.stash[PREFECT_HOME] = tempfile.mkdtemp(prefix="evergreen-prefect-")
    os.environ.update(PRIVACY, PREFECT_HOME=config.stash[PREFECT_HOME])


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the session's Prefect home."""
    shutil.rmtree(config.stash[PREFECT_HOME], ignore_errors=True)


TRAINED = (
    *("test_retrain.py", "test_serving_agreement.py", "test_gc.py", "test_maintain_flow.py", "test_wrong_input.py"),
    "test_modes.py",
)
"""They share trained workspaces, which every process would train for itself."""
LONGEST = (
    *("test_up.py", *TRAINED, "test_up_postgres.py"),
    *("test_s3_root.py", "test_tracking.py", "test_prefect_server.py", "test_notify.py", "test_cluster_limits.py"),
)
"""Begun first, they leave the rest to fill the time. Beside a platform, which waits, is what keeps a core busy."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give all files that share trained workspaces to one process, where files are kept together at all."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            return "trained" if path.rpartition("/")[2] in TRAINED else path

    return Scheduling(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark each test with the folder that it is in; a GPU is never required, so its tests skip without one."""
    tests = config.rootpath / "tests"
    for item in items:
        kind = item.path.relative_to(tests).parts[0] if item.path.is_relative_to(tests) else ""
        if kind in KINDS:
            item.add_marker(kind)
        if item.get_closest_marker("gpu") and not NVIDIA_DRIVER.exists():
            item.add_marker(pytest.mark.skip(reason="This machine has no NVIDIA GPU."))
    order = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


def _require(what: str, present: bool) -> None:
    if present:
        return
    message = f"This test needs {what}, which is missing here."
    if os.environ.get("EVERGREEN_TEST_REQUIRE") == "all":
        pytest.fail(f"{message} EVERGREEN_TEST_REQUIRE=all allows no skip.", pytrace=False)
    pytest.skip(message)


@pytest.fixture(scope="session")
def require() -> Callable[[str, bool], None]:
    """Give `require(what, present)`: skips where a tool is missing, and fails under EVERGREEN_TEST_REQUIRE=all."""
    return _require
