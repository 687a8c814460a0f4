"""The MLflow server: its web pages, and the one writer of its database while it runs."""

from __future__ import annotations

import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from infra.errors import RunError
from infra.processes import SupervisedProcess, start_supervised
from infra.tracking import ENVIRONMENT

START_TIMEOUT_SECONDS = 120.0
POLL_SECONDS = 0.2


def start(store_uri: str, artifacts: str, port: int, log: Path, host: str = "127.0.0.1") -> SupervisedProcess:
    """Start a server and return at once.

    Args:
        store_uri: the database; it may hold a password, and so travels in the environment.
        artifacts: folder or s3:// address for the files of new experiments.
        port: where it listens.
        log: what it writes.
        host: the address that it listens on.
    """
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", host, "--port", str(port)]
    return start_supervised(
        [*command, "--default-artifact-root", artifacts, "--no-serve-artifacts"],
        env={**os.environ, **ENVIRONMENT, "MLFLOW_BACKEND_STORE_URI": store_uri},
        log=log,
    )


def wait(server: SupervisedProcess, url: str) -> None:
    """Return when the server answers.

    Raises:
        RunError: it ended or took too long; with the last lines of its log.
    """
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while server.is_alive() and time.monotonic() < deadline:
        if is_healthy(url):
            return
        time.sleep(POLL_SECONDS)
    found = f"exit_code={server.exit_code}" if not server.is_alive() else f"not ready after {START_TIMEOUT_SECONDS:g} s"
    raise RunError(
        f"The MLflow server must start, but got {found}. Read {server.log}, which ends with:\n{server.tail()}"
    )


def is_healthy(url: str) -> bool:
    """Return whether an MLflow server answers."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
