"""The servers of `evergreen up`, as other processes of this machine find them.

`up` writes one small file into the state folder of every model that it serves. A command that is run by hand beside it
reads the file, and so appears in the same Prefect and the same MLflow; where `up` has ended, however it ended, the file
says nothing.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

import psutil
from pydantic import TypeAdapter, ValidationError

from infra.errors import InputError

FILE = "services.json"
RECORDS = "tracking.json"
"""Says for ever that the runs of a state folder are recorded in another database than its own."""


@dataclass(frozen=True)
class ProcessMark:
    """A process of this machine: its number may be given again, its number and start time not."""

    pid: int
    started: float
    """Seconds since 1970."""

    @classmethod
    def own(cls) -> ProcessMark:
        """Mark the process that asks."""
        return cls(os.getpid(), psutil.Process().create_time())

    @property
    def is_alive(self) -> bool:
        """Return whether this very process still runs; one that only waits to be collected does not."""
        try:
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.started) < 1 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False


@dataclass(frozen=True)
class Services:
    """Where the servers of one `evergreen up` answer."""

    process: ProcessMark
    folder: str
    """What `up` was given."""
    prefect_api_url: str
    prefect_ui_url: str
    mlflow_url: str


SERVICES: TypeAdapter[Services] = TypeAdapter(Services)


def announce(state: Path, services: Services) -> None:
    """Let the commands that use a state folder find the servers."""
    state.mkdir(parents=True, exist_ok=True)
    new = state / f".{FILE}.{os.getpid()}"
    new.write_bytes(SERVICES.dump_json(services))
    new.replace(state / FILE)


def withdraw(state: Path) -> None:
    """Say that the servers have ended."""
    (state / FILE).unlink(missing_ok=True)


def running(state: Path) -> Services | None:
    """Return the servers of a state folder, or None where none run."""
    with contextlib.suppress(FileNotFoundError, ValidationError):
        services = SERVICES.validate_json((state / FILE).read_bytes())
        return services if services.process.is_alive else None
    return None


def record_elsewhere(state: Path) -> None:
    """Note that the runs of a state folder are recorded in a server's database from now on.

    Raises:
        InputError: the folder has a database of its own with runs in it, which would be left behind.
    """
    if is_recorded_elsewhere(state):
        return
    if (state / "mlflow.db").exists():
        raise InputError(
            f"A model's runs are recorded in one place, but got --database and {state / 'mlflow.db'}, which has runs. "
            "Leave --database out, or set EVERGREEN_ROOT to a new folder and begin there."
        )
    state.mkdir(parents=True, exist_ok=True)
    (state / RECORDS).write_text('{"recorded": "server"}\n')


def is_recorded_elsewhere(state: Path) -> bool:
    """Return whether the runs of a state folder are recorded in a server's database."""
    return (state / RECORDS).exists()
