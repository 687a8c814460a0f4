"""The product as its user drives it: the `evergreen` command, and a folder with a configuration and data."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from infra.processes import start_supervised

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHECKOUT = Path(__file__).parents[2]
COMMAND = Path(sys.executable).with_name("evergreen")
MODEL = "loan-default"
ROWS_PER_YEAR, MONTHS = 6000, 8
"""Small, and one month short of the one in which a new category appears."""
PROMOTE_IF_FRESHER = ("--set", "promote.margin=0.9", "--set", "promote.slice_margin=9")
"""For a test that needs another champion, whatever few rows say."""
LEAN = ("--set", "cluster.workers=1")
"""Half the processes, where their number makes no difference."""
CHEAP = "compress.enabled = false\n"
"""The first line of configurations whose runs ask for no technique; test_compress.py asks for all."""
PROGRESS = re.compile(r"\w+ +\d+\.\d s(  cached)?|  \S.*")
"""A line of progress where there is no terminal: a stage that has ended, or a note on the one that runs."""
TIMEOUT_SECONDS = 300
READY_SECONDS = 120
POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def answer(self) -> Any:
        """Return what `--json` has printed as the last line."""
        assert self.code == 0, self.stderr
        return json.loads(self.stdout.splitlines()[-1])


@dataclass(frozen=True)
class Workspace:
    """A folder with a configuration, its data, and what was made of them."""

    folder: Path
    variables: dict[str, str]
    """What the commands find in their environment beside the test's own."""

    @property
    def config(self) -> Path:
        """Return the configuration."""
        return self.folder / "evergreen.toml"

    @property
    def data(self) -> Path:
        """Return the folder of the source files."""
        return self.folder / "data"

    @property
    def root(self) -> Path:
        """Return the root of the storage."""
        return Path(self.variables.get("EVERGREEN_ROOT", self.folder / ".evergreen"))

    @property
    def tracking_uri(self) -> str:
        """Return the address of the MLflow database."""
        return f"sqlite:///{self.root / 'mlflow.db'}"

    @property
    def environment(self) -> dict[str, str]:
        """Return the whole environment of a command; the checkout's packages come first."""
        path = f"{COMMAND.parent}{os.pathsep}{os.environ['PATH']}"
        return {**os.environ, "PYTHONPATH": str(CHECKOUT), "PATH": path, **self.variables}

    def evergreen(self, command: str, *arguments: str | Path) -> Ended:
        """Run a command on the configuration."""
        return self.run(COMMAND, command, self.config, *arguments)

    def run(self, *command: str | Path) -> Ended:
        """Run any command in the folder."""
        done = subprocess.run(
            [str(part) for part in command],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    def grow(self, months: int, rows: int = ROWS_PER_YEAR) -> None:
        """Write the demo's months that are not there yet."""
        done = self.run(COMMAND, "demo", self.folder, "--rows", str(rows), "--months", str(months))
        assert done.code == 0, done.stderr
        if CHEAP not in self.config.read_text():
            self.config.write_text(CHEAP + self.config.read_text())

    def stored(self, kind: str) -> dict[str, bytes]:
        """Return the objects of a kind by name."""
        folder = self.root / kind
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def published(self) -> dict[str, Any]:
        """Return all by which others know of a model: versions, bundles, ledger, serving target, MLflow's registry."""
        objects = {
            f"{kind}/{name}": hashlib.sha256(payload).hexdigest()
            for kind in ("versions", "ledger", "serving")
            for name, payload in self.stored(kind).items()
            if "/servers/" not in name  # what a server says of itself
        }
        return {
            **objects,
            "registered": self.query("SELECT name, version FROM model_versions ORDER BY version"),
            "aliases": self.query("SELECT alias, version FROM registered_model_aliases ORDER BY alias"),
        }

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """Ask the MLflow database."""
        with closing(sqlite3.connect(self.root / "mlflow.db")) as connection:
            return connection.execute(statement).fetchall()

    def mlflow(self, scratch: Path) -> MlflowClient:
        """Return a client of a copy of the database: MLflow keeps connections by address, and this place is reused."""
        from mlflow import MlflowClient

        with (
            closing(sqlite3.connect(self.root / "mlflow.db")) as source,
            closing(sqlite3.connect(scratch / "mlflow.db")) as copy,
        ):
            source.backup(copy)
        uri = f"sqlite:///{scratch / 'mlflow.db'}"
        return MlflowClient(tracking_uri=uri, registry_uri=uri)

    @contextmanager
    def serving(self, log: Path) -> Iterator[str]:
        """Yield the address of a running `evergreen serve`."""
        command = [str(COMMAND), "serve", str(self.config), "--port", "0"]
        with answering(command, self.environment, log, re.compile(r"answers at (http://\S+)")) as found:
            yield found[1]


@dataclass(frozen=True)
class State:
    """A workspace as it was at one moment, and the last command that was run in it."""

    workspace: Workspace
    kept: Path
    last: Ended

    @classmethod
    def keep(cls, workspace: Workspace, last: Ended, kept: Path) -> State:
        """Copy a workspace away."""
        shutil.copytree(workspace.folder, kept, symlinks=True)
        return cls(workspace, kept, last)

    def restore(self) -> Workspace:
        """Put the workspace back where it was: MLflow's database holds absolute paths."""
        shutil.rmtree(self.workspace.folder)
        shutil.copytree(self.kept, self.workspace.folder, symlinks=True)
        return self.workspace


@contextmanager
def answering(command: list[str], env: dict[str, str], log: Path, ready: re.Pattern[str]) -> Iterator[re.Match[str]]:
    """Run a server and yield what its log says when it is ready; end it and all its children afterwards."""
    process = start_supervised(command, env=env, log=log)
    deadline = time.monotonic() + READY_SECONDS
    try:
        while (found := ready.search(process.tail())) is None:
            assert process.is_alive() and time.monotonic() < deadline, process.tail()
            time.sleep(POLL_SECONDS)
        yield found
    finally:
        process.stop()


def wait_for_version(url: str, version: str) -> None:
    """Wait until a server answers with a version."""
    deadline = time.monotonic() + READY_SECONDS
    while (found := httpx.get(f"{url}/version").text) != version:
        assert time.monotonic() < deadline, f"{url} answers with version {found}"
        time.sleep(POLL_SECONDS)
