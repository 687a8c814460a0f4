"""A real Postgres server for a test."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from infra.processes import free_port

USER = "nobody"
"""Who runs the server where the tests run as root, which Postgres refuses."""


def postgres_binary(name: str) -> Path | None:
    """Return one of Postgres's programs, of the newest version that is installed."""
    if found := shutil.which(name):
        return Path(found)
    versions = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    return versions[-1] if versions else None


@contextmanager
def postgres(require: Callable[[str, bool], None]) -> Iterator[str]:
    """Yield the address of a new database; the server ends afterwards."""
    initdb, pg_ctl = postgres_binary("initdb"), postgres_binary("pg_ctl")
    require("Postgres", initdb is not None and pg_ctl is not None)
    with TemporaryDirectory(prefix="evergreen-postgres-") as name:
        yield from server(Path(name), str(initdb), str(pg_ctl))


def server(folder: Path, initdb: str, pg_ctl: str) -> Iterator[str]:
    """Run a server in a folder that its user can reach."""
    port, data = free_port(), folder / "data"
    is_root = os.geteuid() == 0
    if is_root:
        shutil.chown(folder, USER)
    run = ["runuser", "-u", USER, "--"] if is_root else []

    def call(*command: str | Path) -> None:
        done = subprocess.run(
            [*run, *map(str, command)], cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False
        )
        assert done.returncode == 0, f"{command}: {done.returncode}"

    call(initdb, "--pgdata", data, "--username", "evergreen", "--auth", "trust", "--no-sync")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
    call(pg_ctl, "--pgdata", data, "--log", folder / "log", "--options", options, "--wait", "start")
    try:
        import psycopg

        address = f"postgresql://evergreen:secret@127.0.0.1:{port}"
        with psycopg.connect(f"{address}/postgres", autocommit=True) as connection:
            connection.execute("CREATE DATABASE evergreen")
        yield f"{address}/evergreen"
    finally:
        call(pg_ctl, "--pgdata", data, "--mode", "fast", "--wait", "stop")
