"""The Prefect server: the one that is given, or a child process that ends with this one.

A run needs one server that all its processes share. Left alone, Prefect forks a server per client process, each with
a 20-second limit; a Dask worker that touches Prefect would fork its own. So one real server is started here and its
address exported. This module does not import Prefect, which reads its settings when it is imported:

    server = start(home)                      # returns at once: 2.5 s to healthy, 7 s on a new home
    ...                                       # work that needs no Prefect
    configure_environment(home, server.wait())
    import prefect                            # here or later, never earlier

Two runs on one home have a server each. They share the database, which SQLite's write-ahead log allows, and start one
after the other under a file lock, because two schema migrations at once would fail. None of the services that would
act twice (scheduler, late runs, triggers) runs, unless asked for.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import os
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from infra.errors import RunError
from infra.processes import SupervisedProcess, free_port, start_supervised

START_TIMEOUT_SECONDS = 120.0
CHECK_TIMEOUT_SECONDS = 5.0
POLL_SECONDS = 0.05

PRIVACY = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_TELEMETRY_ENABLE_RESOURCE_METRICS": "false",
}
"""Nothing is sent anywhere. Prefect needs both of the first two: one is read by the client, one by the server."""

TIMETABLE_SERVICES = (
    "CANCELLATION_CLEANUP",
    "FOREMAN",
    "LATE_RUNS",
    "PAUSE_EXPIRATIONS",
    "SCHEDULER",
    "TRIGGERS",
)
"""Needed by deployments alone; a single run needs none of them."""

WITHOUT_TIMETABLE = {
    **{f"PREFECT_SERVER_SERVICES_{name}_ENABLED": "false" for name in TIMETABLE_SERVICES},
    "PREFECT_SERVER_UI_ENABLED": "false",
}


LAUNCHER = "import gc; gc.set_threshold(50_000, 20, 50); from prefect.cli import app; app()"
"""`python -m prefect`, but with a patient garbage collector: it starts in 1 s less, and is 3 MB larger."""


class Handle:
    """A server that is being started, or one that was there before."""

    def __init__(self, url: str, starting: Future[SupervisedProcess] | None, abandoned: threading.Event) -> None:
        self.url = url
        self._starting = starting
        self._abandoned = abandoned

    def wait(self) -> str:
        """Return the address of the API once it answers.

        Raises:
            RunError: the server ended while it started, took too long, or a given one does not answer.
        """
        if self._starting is None:
            check_server(self.url)
        else:
            self._starting.result()
        return self.url

    @property
    def process(self) -> SupervisedProcess | None:
        """The server's process once it answers; None of one that was there before."""
        return self._starting.result() if self._starting else None

    def stop(self) -> None:
        """End the server if this handle started it, and forget its address. A second call does nothing."""
        self._abandoned.set()
        if self._starting is None:
            return
        if self._starting.exception() is None:
            self._starting.result().stop()
        if os.environ.get("PREFECT_API_URL") == self.url:
            del os.environ["PREFECT_API_URL"]


@contextlib.contextmanager
def embedded_server(home: Path, url: str | None = None) -> Iterator[str]:
    """Yield the address of a Prefect API that answers; end the server afterwards if it was started here."""
    server = start(home, url)
    try:
        yield server.wait()
    finally:
        server.stop()


@dataclass(frozen=True)
class Timetable:
    """What a server needs that people look at and that starts deployments on their schedule."""

    port: int
    host: str = "127.0.0.1"
    database: str | None = None
    """Address of a Postgres database, `postgresql+asyncpg://...`; None: SQLite in the home."""


def start(home: Path, url: str | None = None, *, timetable: Timetable | None = None) -> Handle:
    """Start a server in the background and return at once.

    An address given, or in PREFECT_API_URL, is used instead. `home` holds the database, the log and the results.
    `timetable` adds the web pages and the services that start deployments on their schedule.
    """
    given = url or os.environ.get("PREFECT_API_URL")
    abandoned = threading.Event()
    if given:
        return Handle(given.rstrip("/"), None, abandoned)
    port = timetable.port if timetable else free_port()
    starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefect-server-start")
    starting = starter.submit(launch_server, home, port, timetable, abandoned)
    starter.shutdown(wait=False)
    return Handle(f"http://127.0.0.1:{port}/api", starting, abandoned)


def relaunch(home: Path, timetable: Timetable) -> SupervisedProcess:
    """Start a server again that has ended by itself; return at once."""
    command = server_command(timetable.host, timetable.port)
    return start_supervised(command, env=server_environment(home, timetable), log=home / "server.log")


def configure_environment(home: Path, url: str) -> None:
    """Set what Prefect reads when it is imported, so call this before any `import prefect`.

    Child processes inherit it. What the user has set stays, except for where the server and its files are.
    """
    stay_in(home)
    os.environ["PREFECT_API_URL"] = url
    if password := os.environ.get("PREFECT_SERVER_API_AUTH_STRING"):
        os.environ.setdefault("PREFECT_API_AUTH_STRING", password)
    for name, value in {
        **PRIVACY,
        "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
        "PREFECT_LOGGING_LEVEL": "WARNING",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    }.items():
        os.environ.setdefault(name, value)
    host = urlsplit(url).hostname or ""
    if host == "127.0.0.1":
        known = os.environ.get("NO_PROXY", "")
        if host not in known.split(","):
            os.environ["NO_PROXY"] = f"{known},{host}".strip(",")


@contextlib.contextmanager
def heartbeat_off() -> Iterator[None]:
    """Have flows send no heartbeat: its thread delays a flow's end by up to a second.

    For a flow that ends with its server, where nobody would miss it. No variable of the environment can say this.
    """
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield


def stay_in(home: Path) -> None:
    """Have Prefect keep its files here, not in the user's home. It warns when it can't make a folder with parents."""
    home.mkdir(parents=True, exist_ok=True)
    os.environ["PREFECT_HOME"] = str(home)


def check_server(url: str) -> None:
    """Raise a RunError unless a Prefect API answers at this address, and lets this process in."""
    reason = "it answers, but not like a Prefect API; the address ends in /api"
    try:
        if is_healthy(url):
            check_password(url)
            return
    except urllib.error.HTTPError as error:
        reason = f"it answers {error.code}; the address ends in /api"
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = str(getattr(error, "reason", error))
    raise RunError(
        f"A Prefect server must answer at PREFECT_API_URL, but got PREFECT_API_URL={url} ({reason}). "
        "Start that server, or unset PREFECT_API_URL to run with an embedded one."
    )


def is_healthy(url: str) -> bool:
    """Return whether a Prefect API says that it is well.

    Raises:
        OSError: nothing answers, or with an error; a URLError or HTTPError mostly.
    """
    return ask(url, "health").strip() == b"true"


def check_password(url: str) -> None:
    """Raise a RunError unless a server with a password gets the right one. Its health is open to all."""
    try:
        ask(url, "admin/version")
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise RunError(
                f"A Prefect server with a password needs PREFECT_API_AUTH_STRING, but got {error.code} from {url}. "
                "Set it to user:password."
            ) from error
        raise


def ask(url: str, name: str) -> bytes:
    """Return the first bytes of what an API answers; OSError where it does not."""
    is_local = urlsplit(url).hostname in ("127.0.0.1", "localhost")
    opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if is_local else []))
    request = urllib.request.Request(f"{url.rstrip('/')}/{name}")
    password = os.environ.get("PREFECT_API_AUTH_STRING") or os.environ.get("PREFECT_SERVER_API_AUTH_STRING")
    if password:
        request.add_header("Authorization", f"Basic {base64.b64encode(password.encode()).decode()}")
    with opener.open(request, timeout=CHECK_TIMEOUT_SECONDS) as answer:
        return bytes(answer.read(64))


def launch_server(home: Path, port: int, timetable: Timetable | None, abandoned: threading.Event) -> SupervisedProcess:
    """Start the server's process and return it once it answers.

    Raises:
        RunError: it ended by itself, took too long, or nobody wants it any more.
    """
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    home.mkdir(parents=True, exist_ok=True)
    with start_lock(home / "server.lock", deadline, abandoned):
        host = timetable.host if timetable else "127.0.0.1"
        environment = server_environment(home, timetable)
        server = start_supervised(server_command(host, port), env=environment, log=home / "server.log")
        try:
            wait_until_healthy(server, f"http://127.0.0.1:{port}/api", deadline, abandoned)
        except RunError:
            server.stop()
            raise
    return server


def server_command(host: str, port: int) -> list[str]:
    """Return the command that starts a server in the foreground."""
    return [sys.executable, "-c", LAUNCHER, "server", "start", "--host", host, "--port", str(port)]


def server_environment(home: Path, timetable: Timetable | None) -> dict[str, str]:
    """Return the environment of a server's process."""
    inherited = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    return {
        **inherited,
        **PRIVACY,
        **(timetable_environment(timetable) if timetable else WITHOUT_TIMETABLE),
        "PREFECT_HOME": str(home),
        "PREFECT_LOGGING_LEVEL": "WARNING",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
    }


def timetable_environment(timetable: Timetable) -> dict[str, str]:
    """Return what a server with pages and a timetable reads beside the rest."""
    address = f"http://{timetable.host}:{timetable.port}/api"
    database = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": timetable.database} if timetable.database else {}
    return {
        **database,
        "PREFECT_SERVER_UI_ENABLED": "true",
        "PREFECT_SERVER_UI_API_URL": os.environ.get("PREFECT_SERVER_UI_API_URL", address),
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
    }


@contextlib.contextmanager
def start_lock(path: Path, deadline: float, abandoned: threading.Event) -> Iterator[None]:
    """Hold the lock under which servers of one home start. The kernel frees it when its holder dies."""
    with path.open("a") as file:
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            if abandoned.wait(POLL_SECONDS) or time.monotonic() > deadline:
                raise RunError(
                    f"One Prefect server starts at a time, but got {path}=locked for {START_TIMEOUT_SECONDS:.0f} s. "
                    "Wait for the other run to start, or end it."
                )
        yield


def wait_until_healthy(server: SupervisedProcess, url: str, deadline: float, abandoned: threading.Event) -> None:
    """Return when the server answers.

    Raises:
        RunError: it ended or took too long; with the last lines of its log.
    """
    while server.is_alive():
        with contextlib.suppress(OSError):
            if is_healthy(url):
                return
        if abandoned.wait(POLL_SECONDS) or time.monotonic() > deadline:
            raise RunError(start_failure(f"state=not ready after {START_TIMEOUT_SECONDS:.0f} s", server))
    raise RunError(start_failure(f"exit_code={server.exit_code}", server))


def start_failure(found: str, server: SupervisedProcess) -> str:
    """Return the message of a server that did not start."""
    return (
        f"The embedded Prefect server must start, but got {found}. Read {server.log}, which ends with:\n{server.tail()}"
    )
