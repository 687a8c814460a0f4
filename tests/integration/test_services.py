"""How the servers of `evergreen up` are found, and what is refused before they start."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from flows.up import check_ports, only_one
from infra.database import prepare
from infra.errors import InputError, RunError
from infra.processes import free_port
from infra.services import (
    ProcessMark,
    Services,
    announce,
    is_recorded_elsewhere,
    record_elsewhere,
    running,
    withdraw,
)


def services_of(mark: ProcessMark) -> Services:
    """Return servers that belong to a process."""
    return Services(mark, "/models", "http://127.0.0.1:4200/api", "http://127.0.0.1:4200", "http://127.0.0.1:5000")


def test_servers_are_found_while_their_process_runs(tmp_path: Path) -> None:
    """They are found until they are withdrawn; a process that ended, or another one of its number, has none."""
    assert running(tmp_path) is None
    announce(tmp_path / "new", mine := services_of(ProcessMark.own()))
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    announce(tmp_path / "dead", services_of(ProcessMark(child.pid, ProcessMark.own().started)))
    announce(tmp_path / "reused", services_of(ProcessMark(os.getpid(), ProcessMark.own().started - 60)))

    assert [mine, None, None] == [running(tmp_path / name) for name in ("new", "dead", "reused")]
    withdraw(tmp_path / "new")
    assert running(tmp_path / "new") is None


def test_a_damaged_note_is_no_server(tmp_path: Path) -> None:
    """A file that is cut off counts as no server."""
    (tmp_path / "services.json").write_text('{"process": ')

    assert running(tmp_path) is None


def test_runs_are_recorded_in_one_place(tmp_path: Path) -> None:
    """A folder whose runs are in a server's database says so for ever; one with runs of its own refuses."""
    record_elsewhere(tmp_path / "new")
    record_elsewhere(tmp_path / "new")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "mlflow.db").touch()

    assert (True, False) == (is_recorded_elsewhere(tmp_path / "new"), is_recorded_elsewhere(tmp_path / "old"))
    with pytest.raises(InputError, match=r"recorded in one place, but got --database and .*mlflow\.db, which has runs"):
        record_elsewhere(tmp_path / "old")


def test_taken_ports_are_named_all_at_once() -> None:
    """A port that something listens on is named with its option, and so is one that two services want."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"got {port} \(--port\), {port} \(deploy\.port\), taken\. Name others"):
            check_ports([(port, "--port"), (free_port(), "--mlflow-port"), (port, "deploy.port")])
    port = free_port()
    with pytest.raises(InputError, match=rf"a port of its own, but got {port} \(--port\), {port} \(--mlflow-port\)"):
        check_ports([(port, "--port"), (port, "--mlflow-port")])


def test_a_folder_is_served_by_one_process(tmp_path: Path) -> None:
    """A second process that wants the folder is refused; it is free again afterwards."""
    refused = pytest.raises(InputError, match=r"A folder is served once, but got")
    with only_one(tmp_path / "state", tmp_path), refused, only_one(tmp_path / "state", tmp_path):
        pass
    with only_one(tmp_path / "state", tmp_path):
        pass


@pytest.mark.parametrize("url", ["mysql://me@db/evergreen", "postgresql://db", "evergreen"])
def test_an_address_of_another_kind_is_refused(url: str) -> None:
    """A database is a Postgres address with a host and a name."""
    with pytest.raises(InputError, match=r"A database is an address such as postgresql://user:password@host:5432"):
        prepare(url)


def test_a_database_that_does_not_answer_is_named_without_its_password() -> None:
    """The address is shown, the password is not."""
    port = free_port()
    with pytest.raises(RunError, match=rf"--database postgresql://me@127\.0\.0\.1:{port}/evergreen \(") as caught:
        prepare(f"postgresql://me:pine@127.0.0.1:{port}/evergreen")

    assert "pine" not in str(caught.value)
