"""`evergreen up` as its user drives it: a folder with two models, its servers, and Prefect's API."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from _drive import CHEAP, CHECKOUT, COMMAND, Ended, Workspace

from infra.processes import free_port

START_SECONDS = 240
RUN_SECONDS = 240
POLL_SECONDS = 0.3
BUSY_ATTEMPTS = 30
PASSWORD = "team:pine needle"
INTERVAL_SECONDS = 6
SLOT_SECONDS = {"PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "3"}
"""How soon a run that waits for another one asks again: 30 s where people wait for runs of minutes."""
SLOW = {"rounds": 50_000, "early_stopping_rounds": 50_000, "learning_rate": 0.0005}
"""Parameters of a training that lasts until it is ended."""


@dataclass
class Platform:
    """A folder with models, and the `evergreen up` that runs them."""

    folder: Path
    ports: dict[str, int]
    options: tuple[str, ...]
    variables: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Return the address of Prefect's pages."""
        return f"http://127.0.0.1:{self.ports['prefect']}"

    @property
    def mlflow(self) -> str:
        """Return the address of MLflow's pages."""
        return f"http://127.0.0.1:{self.ports['mlflow']}"

    @property
    def state(self) -> Path:
        """Return the state folder, which is the models' root as well."""
        return self.folder / ".evergreen"

    @property
    def log(self) -> Path:
        """Return what `evergreen up` prints."""
        return self.folder / "up.log"

    @property
    def environment(self) -> dict[str, str]:
        """Return the whole environment of a command."""
        return {**os.environ, "PYTHONPATH": str(CHECKOUT), "NO_COLOR": "1", **SLOT_SECONDS, **self.variables}

    def command(self, *arguments: str | Path) -> Ended:
        """Run a command in the folder, beside `evergreen up`."""
        place = Workspace(self.folder, self.variables)
        return place.run(COMMAND, *arguments)

    def start(self) -> None:
        """Start `evergreen up` and wait until it has told its links and its timetable runs."""
        arguments = ["--port", str(self.ports["prefect"]), "--mlflow-port", str(self.ports["mlflow"]), *self.options]
        timetable = self.state / "timetable.log"
        before = timetable.stat().st_size if timetable.exists() else 0
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [str(COMMAND), "up", ".", *arguments],
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

        def is_ready() -> bool:
            assert self.process is not None and self.process.poll() is None, self.log.read_text()
            told = timetable.read_bytes()[before:] if timetable.exists() else b""
            return "Ctrl-C" in self.log.read_text() and b"The timetable runs" in told

        wait(is_ready, START_SECONDS, "evergreen up did not start", self.explain)

    def kill(self) -> None:
        """Kill `evergreen up` with SIGKILL, and wait until its children have followed it."""
        assert self.process is not None
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        self.process.wait()
        psutil.wait_procs(children, timeout=60)
        assert [] == [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]

    def end(self) -> None:
        """Stop `evergreen up`, whatever it does."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(90)
            except subprocess.TimeoutExpired:
                self.process.kill()

    def explain(self) -> str:
        """Return what the processes have said, for a failed assertion."""
        logs = [self.log, self.state / "timetable.log", self.state / "prefect" / "server.log"]
        return "\n".join(f"--- {log}\n{log.read_text()[-3000:]}" for log in logs if log.exists())

    def api(self, method: str, path: str, body: Any = None) -> Any:
        """Ask Prefect's API; while its SQLite is locked it answers 503, as its own client knows."""
        for _ in range(BUSY_ATTEMPTS):
            answer = httpx.request(method, f"{self.url}/api{path}", json=body, headers=self.headers, timeout=30)
            if answer.status_code != 503:
                break
            time.sleep(1)
        assert answer.status_code < 300, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def deployment(self, flow: str, model: str) -> dict[str, Any]:
        """Return a deployment."""
        found: dict[str, Any] = self.api("GET", f"/deployments/name/{flow}/{model}")
        return found

    def trigger(self, model: str, changes: dict[str, Any] | None = None, **more: Any) -> str:
        """Start a retrain of one phase as the form does, with keys of [train.xgboost] changed; return the run's id.

        `more` are keys of [train].
        """
        deployment = self.deployment("retrain", model)
        parameters = deployment["parameters"]
        if changes:
            parameters["config"]["train"]["xgboost"].update(changes)
            parameters["config"]["train"].update(include_validation=False, **more)
        run = self.api("POST", f"/deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})
        return str(run["id"])

    def run(self, run_id: str) -> dict[str, Any]:
        """Return a flow run."""
        found: dict[str, Any] = self.api("GET", f"/flow_runs/{run_id}")
        return found

    def runs(self, flow: str, model: str) -> list[dict[str, Any]]:
        """List the runs of a deployment that are not in the future, the oldest first."""
        body = {
            "deployments": {"id": {"any_": [self.deployment(flow, model)["id"]]}},
            "flow_runs": {"state": {"name": {"not_any_": ["Scheduled"]}}},
            "sort": "EXPECTED_START_TIME_DESC",
            "limit": 200,
        }
        found: list[dict[str, Any]] = self.api("POST", "/flow_runs/filter", body)
        return found[::-1]

    def wait_for(self, run_id: str, *states: str, seconds: float = RUN_SECONDS) -> dict[str, Any]:
        """Wait until a run is in one of these states; return it."""
        wait(lambda: self.run(run_id)["state_name"] in states, seconds, f"no {states}", lambda: self.story(run_id))
        return self.run(run_id)

    def story(self, run_id: str) -> str:
        """Return the states of a run and what the processes have said."""
        states = self.api("GET", f"/flow_run_states/?flow_run_id={run_id}")
        return "\n".join([*(f"{state['name']}: {state['message']}" for state in states), self.explain()])

    def stages(self, run_id: str) -> list[tuple[str, str]]:
        """List the stages of a run's last attempt with their states, in the order in which they began."""
        body = {"flow_runs": {"id": {"any_": [run_id]}}, "sort": "EXPECTED_START_TIME_ASC", "limit": 200}
        found = self.api("POST", "/task_runs/filter", body)
        last = max(run["flow_run_run_count"] for run in found)
        return [(run["name"].split()[0], run["state_name"]) for run in found if run["flow_run_run_count"] == last]

    def artifacts(self, run_id: str) -> dict[str, dict[str, Any]]:
        """Return a run's artifacts by their keys."""
        body = {"flow_runs": {"id": {"any_": [run_id]}}, "limit": 200}
        return {artifact["key"]: artifact for artifact in self.api("POST", "/artifacts/filter", body)}

    def process_of(self, run_id: str) -> psutil.Process:
        """Return the process that works on a run, once it has begun."""
        path = self.state / "processes" / f"{run_id}.json"
        wait(path.exists, RUN_SECONDS, f"{run_id} did not begin", lambda: self.story(run_id))
        return psutil.Process(json.loads(path.read_text())["mark"]["pid"])


def wait(is_so: Callable[[], bool], seconds: float, complaint: str, explain: Callable[[], str]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"{complaint} in {seconds:g} s\n{explain()}"
        time.sleep(POLL_SECONDS)


def write_models(folder: Path, port: int) -> None:
    """Write two models: loans with a port to serve on, and tiny, which is retrained every few seconds."""
    made = Workspace(folder, {}).run(COMMAND, "demo", folder / "loans", "--rows", "6000", "--months", "4")
    assert made.code == 0, made.stderr
    config = folder / "loans" / "evergreen.toml"
    text = re.sub(r'name = ".*"', 'name = "loans"', config.read_text())
    config.write_text(
        f"{CHEAP}{text}\n[cluster]\nworkers = 1\n\n[deploy]\nport = {port}\n\n"
        '[schedule]\nretrain = "0 3 * * *"\ntimezone = "Europe/Berlin"\n'
    )
    (folder / "tiny").mkdir()
    rows = [f"{number % 17},{number % 5},{(number * 7) % 17 + (number % 5) * 2}" for number in range(600)]
    (folder / "tiny" / "rows.csv").write_text("\n".join(["width,height,price", *rows]) + "\n")
    (folder / "tiny" / "evergreen.toml").write_text(
        f'{CHEAP}[model]\nname = "tiny"\ntask = "regression"\n\n[data]\nsource = "rows.csv"\ntarget = "price"\n\n'
        "[train.xgboost]\nrounds = 20\n\n[cluster]\nworkers = 1\n\n"
        f'[schedule]\nretrain = "{INTERVAL_SECONDS}s"\n'
    )


def new_platform(folder: Path) -> Platform:
    """Write two models into a folder, with ports of their own."""
    ports = {name: free_port() for name in ("prefect", "mlflow", "loans")}
    write_models(folder, ports["loans"])
    return Platform(folder, ports, (), {})


@contextmanager
def running(platform: Platform) -> Iterator[Platform]:
    """Start a platform, and end it afterwards with all its processes."""
    try:
        platform.start()
        yield platform
    finally:
        platform.end()
