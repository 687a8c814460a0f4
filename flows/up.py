"""`evergreen up`: everything that a person needs on one machine, in one command.

The Prefect server with its pages and schedules, MLflow's pages, the timetable of every evergreen.toml below a folder,
and the serving processes that they ask for. All are children of this process and end with it, however it ends; a
child that ends by itself is started again. What they know is in one state folder, so that a second start takes it up.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from flows.models import Model, find_models
from infra import mlflow_server, prefect_server, services
from infra.database import Database, prepare
from infra.errors import InputError, RunError
from infra.processes import SupervisedProcess, start_supervised
from infra.services import ProcessMark, Services
from infra.serving.target import read_target
from infra.settings import FOLDER, Places, Settings
from infra.storage import Store
from infra.tracking import artifacts_of, default_uri
from tasks._notify import channels_of

HOST = "127.0.0.1"
LOOK_SECONDS = 0.5
MODELS_SECONDS = 5.0
"""How often the files are read again."""
PAUSES_SECONDS = (1.0, 2.0, 5.0, 15.0, 60.0)
"""Before a child that has ended by itself is started again; it begins anew after it ran for the longest of them."""
RUNS_GRACE_SECONDS = 25.0
"""How long the timetable may take to stop its runs."""


@dataclass(frozen=True)
class Ports:
    """Where the servers listen."""

    prefect: int = 4200
    mlflow: int = 5000


@dataclass
class Child:
    """A process that is kept alive."""

    name: str
    launch: Callable[[], SupervisedProcess]
    process: SupervisedProcess
    began: float = field(default_factory=time.monotonic)
    failures: int = 0
    again_at: float | None = None

    def look(self, say: Callable[[str], None]) -> None:
        """Start the process again, after a pause that grows, if it has ended by itself."""
        now = time.monotonic()
        if self.process.is_alive():
            if now - self.began > PAUSES_SECONDS[-1]:
                self.failures = 0
        elif self.again_at is None:
            pause = PAUSES_SECONDS[min(self.failures, len(PAUSES_SECONDS) - 1)]
            self.failures, self.again_at = self.failures + 1, now + pause
            say(
                f"{self.name} has ended with code {self.process.exit_code} and starts again in {pause:g} s; "
                f"see {self.process.log}"
            )
        elif now >= self.again_at:
            self.process, self.began, self.again_at = self.launch(), now, None


def up(place: Path, ports: Ports, database_url: str | None, say: Callable[[str], None]) -> None:
    """Start everything, and keep it running until SIGINT or SIGTERM.

    Raises:
        InputError: there is no model, a file is wrong, a port is taken, or the folder is served already.
        RunError: a server did not start.
    """
    models = find_models(place)
    for model in models:
        channels_of(model.config.notify, os.environ)  # a secret that is not set is told at once
    state = state_of(place)
    with ExitStack() as opened:
        opened.enter_context(only_one(state, place))
        settings = Settings()
        stop = opened.enter_context(asked_to_stop())
        mlflow_places = recording_places(models, settings)
        taken = [(ports.prefect, "--port")] if settings.prefect_api_url is None else []
        num_mlflow = min(1, len(mlflow_places)) if database_url else len(mlflow_places)
        taken += [(ports.mlflow + number, "--mlflow-port") for number in range(num_mlflow)]
        taken += [(m.config.deploy.port, f"deploy.port of {m.path}") for m in models if m.config.deploy.port]
        check_ports(taken)
        database = prepare(database_url) if database_url else None
        say("Starting: 10 to 20 s the first time.")
        platform = Platform(place, state, ports, database, say)
        opened.callback(platform.stop)
        platform.start(models, mlflow_places)
        for line in platform.links(models):
            say(line)
        while not stop():
            platform.look()
            time.sleep(LOOK_SECONDS)
        say("Stopping: runs that work now go on at the next start.")


class Platform:
    """The servers and processes of one folder."""

    def __init__(
        self, place: Path, state: Path, ports: Ports, database: Database | None, say: Callable[[str], None]
    ) -> None:
        self._place, self._state, self._ports, self._database, self._say = place, state, ports, database, say
        self._children: list[Child] = []
        self._serving: dict[str, tuple[int, Child]] = {}
        self._announced: list[Path] = []
        self._models: tuple[Model, ...] = ()
        self._looked = 0.0
        self.api = ""
        self.mlflow: dict[Path, str] = {}

    def start(self, models: tuple[Model, ...], recording: dict[Path, Places]) -> None:
        """Start the servers side by side, then the timetable, then what serves."""
        for state, places in recording.items():
            self._record(state, places)
        self.api = self._start_prefect()
        for url in set(self.mlflow.values()):
            mlflow_server.wait(self._child(f"MLflow {url}").process, url)
        prefect_server.configure_environment(self._state / "prefect", self.api)
        self._announce(models)
        self._start_timetable()
        self._models = models

    def _start_prefect(self) -> str:
        """Start the Prefect server, or use the one that is set; return the address of its API once it answers."""
        home = self._state / "prefect"
        database = self._database.prefect if self._database else None
        timetable = prefect_server.Timetable(self._ports.prefect, HOST, database)
        handle = prefect_server.start(home, Settings().prefect_api_url, timetable=timetable)
        url = handle.wait()

        def launch() -> SupervisedProcess:
            return prefect_server.relaunch(home, timetable)

        if (process := handle.process) is not None:
            self._children.append(Child("The Prefect server", launch, process))
        return url

    def _record(self, state: Path, places: Places) -> None:
        """Have a server show a state folder's runs: one each, or one for all where they share a database."""
        if self._database is not None:
            services.record_elsewhere(state)
            if self.mlflow:
                self.mlflow[state] = next(iter(self.mlflow.values()))
                return
        elif services.is_recorded_elsewhere(state):
            raise InputError(
                f"The runs in {state} are recorded in a Postgres database, but got no --database. Give its address."
            )
        port = self._ports.mlflow + len(self.mlflow)
        url = f"http://{HOST}:{port}"
        artifacts = artifacts_of(Store(places.root))
        state.mkdir(parents=True, exist_ok=True)
        uri = self._database.mlflow if self._database else default_uri(state)
        log = self._state / f"mlflow-{port}.log"

        def launch() -> SupervisedProcess:
            return mlflow_server.start(uri, artifacts, port, log, HOST)

        self._children.append(Child(f"MLflow {url}", launch, launch()))
        self.mlflow[state] = url

    def _start_timetable(self) -> None:
        command = [sys.executable, "-m", "flows.serve", str(self._place.absolute()), str(self._state)]
        environment = {**os.environ, "PREFECT_LOGGING_LEVEL": "INFO", "PYTHONUNBUFFERED": "1"}
        log = self._state / "timetable.log"

        def launch() -> SupervisedProcess:
            return start_supervised(command, env=environment, log=log, grace_seconds=RUNS_GRACE_SECONDS)

        self._children.append(Child("The timetable", launch, launch()))

    def _announce(self, models: tuple[Model, ...]) -> None:
        settings = Settings()
        for model in models:
            state = settings.locate(model.path).state
            mlflow = self.mlflow.get(state)
            if mlflow is not None and state not in self._announced:
                services.announce(state, self._services(mlflow))
                self._announced.append(state)
        services.announce(self._state, self._services(next(iter(self.mlflow.values()), "")))

    def _services(self, mlflow: str) -> Services:
        ui = self.api.removesuffix("/api")
        return Services(ProcessMark.own(), str(self._place.absolute()), self.api, ui, mlflow)

    def look(self) -> None:
        """See that every child runs, and that every model is served that wants to be."""
        if time.monotonic() - self._looked >= MODELS_SECONDS:
            self._looked = time.monotonic()
            with contextlib.suppress(InputError):  # the timetable says it
                self._models = find_models(self._place)
            for model in self._models:
                self._serve(model)
        for child in self._children:
            child.look(self._say)

    def _serve(self, model: Model) -> None:
        """Have a model's serving process run, from its first release on."""
        name, port = model.config.model.name, model.config.deploy.port
        served = self._serving.get(name)
        if served is not None and served[0] != port:
            self._children.remove(served[1])
            served[1].process.stop()
            del self._serving[name]
        if port is None or name in self._serving:
            return
        if read_target(Store(Settings().locate(model.path).root), name) is None:
            return
        command = [sys.executable, "-m", "flows.cli", "serve", str(model.path), "--port", str(port)]
        log = self._state / f"serve-{name}.log"

        def launch() -> SupervisedProcess:
            return start_supervised(command, env=dict(os.environ), log=log)

        child = Child(f"The server of {name}", launch, launch())
        self._children.append(child)
        self._serving[name] = port, child
        self._say(f"Serving     http://{HOST}:{port}  {name}")

    def links(self, models: tuple[Model, ...]) -> Iterator[str]:
        """Tell where everything is."""
        yield f"Prefect     {self.api.removesuffix('/api')}  runs, schedules, reports"
        for state, url in self.mlflow.items():
            yield f"MLflow      {url}  experiments and models ({state})"
        for model in models:
            schedule = model.config.schedule.retrain or "when asked to"
            yield f"Model       {model.config.model.name}  retrains {schedule}  ({model.path})"
        yield f"State       {self._state}"
        yield "Ctrl-C stops it; evergreen status and evergreen down work from another terminal."

    def _child(self, name: str) -> Child:
        return next(child for child in self._children if child.name == name)

    def stop(self) -> None:
        """End the runs first, then what they speak to."""
        for state in (*self._announced, self._state):
            services.withdraw(state)
        for child in reversed(self._children):
            child.process.stop()


def state_of(place: Path) -> Path:
    """Return the state folder of what is served: EVERGREEN_STATE, or `.evergreen` in the folder."""
    folder = place.absolute().parent if place.is_file() else place.absolute()
    return Settings().state or folder / FOLDER


def recording_places(models: tuple[Model, ...], settings: Settings) -> dict[Path, Places]:
    """Return the state folders whose runs are shown, each once; none where MLFLOW_TRACKING_URI names a server."""
    if settings.mlflow_tracking_uri:
        return {}
    places = [settings.locate(model.path) for model in models]
    return {place.state: place for place in places}


@contextlib.contextmanager
def only_one(state: Path, place: Path) -> Iterator[None]:
    """Hold the lock of a state folder; it is free again when this process ends, however it ends.

    Raises:
        InputError: another process holds it.
    """
    state.mkdir(parents=True, exist_ok=True)
    with (state / "up.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            found = services.running(state)
            where = f"process={found.process.pid} at {found.prefect_ui_url}" if found else "one that starts or stops"
            raise InputError(
                f"A folder is served once, but got {place} with {where}. Use that one, or end it with "
                f"evergreen down {place}."
            ) from error
        yield


def check_ports(wanted: list[tuple[int, str]]) -> None:
    """Refuse ports that are taken, all at once.

    Raises:
        InputError: something listens on one of them, or two services want the same.
    """
    taken = [f"{port} ({option})" for port, option in wanted if not is_free(port)]
    if taken:
        raise InputError(f"The servers need free ports, but got {', '.join(taken)}, taken. Name others.")
    numbers = [port for port, _ in wanted]
    if twice := sorted({port for port in numbers if numbers.count(port) > 1}):
        shown = ", ".join(f"{port} ({option})" for port, option in wanted if port in twice)
        raise InputError(f"Every server has a port of its own, but got {shown}. Change one of them.")


def is_free(port: int) -> bool:
    """Return whether nothing listens on a port of this machine."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


@contextlib.contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether SIGINT or SIGTERM has come."""
    asked = False

    def remember(_signal: int, _frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt  # the second time it is meant
        asked = True

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def down(place: Path, timeout_seconds: float = 120.0) -> Services:
    """End the `evergreen up` of a folder and wait until it has.

    Raises:
        InputError: none runs.
        RunError: it does not end.
    """
    found = running_services(place)
    os.kill(found.process.pid, signal.SIGTERM)
    deadline = time.monotonic() + timeout_seconds
    while found.process.is_alive:
        if time.monotonic() > deadline:
            raise RunError(
                f"evergreen up ends within {timeout_seconds:g} s, but got process={found.process.pid} still there. "
                f"End it with kill -9 {found.process.pid}; its children end with it."
            )
        time.sleep(LOOK_SECONDS)
    return found


def running_services(place: Path) -> Services:
    """Return the servers of a folder.

    Raises:
        InputError: none run.
    """
    found = services.running(state_of(place))
    if found is None:
        raise InputError(
            f"There must be an evergreen up of {place}, but got none running. Start it: evergreen up {place}."
        )
    return found
