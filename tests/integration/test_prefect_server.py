"""The Prefect server and the supervisor below it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from infra import prefect_server
from infra.errors import RunError
from infra.prefect_server import (
    Timetable,
    check_server,
    configure_environment,
    embedded_server,
    is_healthy,
    server_environment,
    start,
)
from infra.processes import SupervisedProcess, free_port, start_supervised

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """Give each test an environment of its own, without a server."""
    before = dict(os.environ)
    os.environ.pop("PREFECT_API_URL", None)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return one home for all tests: migrating a new one takes seconds."""
    return tmp_path_factory.mktemp("prefect")


def family(pid: int) -> list[psutil.Process]:
    """Return a process and all below it."""
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


def children() -> set[psutil.Process]:
    """Return this process's children; other tests of the session may have left a resource tracker among them."""
    return set(psutil.Process().children(recursive=True))


def wait_for(condition: Callable[[], bool], seconds: float = 15.0) -> bool:
    """Wait until a condition holds; return whether it does."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def start_shell(script: str, log: Path, grace_seconds: float = 5.0) -> SupervisedProcess:
    """Start a shell script and return once it has said that it is ready."""
    process = start_supervised(["sh", "-c", script], env=os.environ, log=log, grace_seconds=grace_seconds)
    assert wait_for(lambda: "ready" in process.tail())
    return process


@pytest.mark.parametrize("grace_seconds", [0.3, 60.0])
def test_a_killed_parent_leaves_no_child(tmp_path: Path, grace_seconds: float) -> None:
    """When the parent is killed with SIGKILL, the command and what it has started end, a deaf one too, and soon."""
    script = f"""
        import os, time
        from pathlib import Path
        from infra.processes import start_supervised
        command = ["sh", "-c", "trap '' TERM; sleep 60 & echo ready; wait; sleep 60"]
        log = Path({str(tmp_path / "log")!r})
        child = start_supervised(command, env=os.environ, log=log, grace_seconds={grace_seconds})
        while "ready" not in child.tail():
            time.sleep(0.02)
        print(child.pid, flush=True)
        time.sleep(60)
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    with parent:
        members = family(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)

    gone, alive = psutil.wait_procs(members, timeout=10)
    assert (len(members), []) == (len(gone), alive)
    assert len(members) >= 3


def test_stop_ends_the_command_with_sigterm(tmp_path: Path) -> None:
    """A command may end in order, and its exit code is kept."""
    process = start_shell("trap 'echo ended; exit 7' TERM; echo ready; while :; do sleep 0.05; done", tmp_path / "log")
    process.stop()
    process.stop()

    assert (False, 7, "ended") == (process.is_alive(), process.exit_code, process.tail(1))


def test_a_deaf_command_is_killed_after_its_grace(tmp_path: Path) -> None:
    """A command that ignores SIGTERM is killed."""
    process = start_shell("trap '' TERM; echo ready; while :; do sleep 0.05; done", tmp_path / "log", 0.2)
    process.stop()

    assert (False, -signal.SIGKILL) == (process.is_alive(), process.exit_code)


def test_the_supervisor_passes_sigterm_on(tmp_path: Path) -> None:
    """A SIGTERM to the supervisor ends the command."""
    process = start_shell("echo ready; exec sleep 60", tmp_path / "log")
    members = family(process.pid)
    os.kill(process.pid, signal.SIGTERM)
    gone, alive = psutil.wait_procs(members[1:], timeout=10)

    assert (1, []) == (len(gone), alive)
    assert wait_for(lambda: not process.is_alive())


def test_a_command_that_is_not_there_says_so_in_the_log(tmp_path: Path) -> None:
    """A missing command ends with 127 and is named."""
    process = start_supervised(["no-such-command"], env=os.environ, log=tmp_path / "log")

    assert wait_for(lambda: not process.is_alive())
    assert (127, True) == (process.exit_code, "Cannot start no-such-command" in process.tail())
    process.stop()


def test_a_large_log_begins_anew(tmp_path: Path) -> None:
    """Logs are appended to, up to a megabyte."""
    log = tmp_path / "log"
    log.write_text("old\n")
    start_shell("echo ready", log).stop()
    small = log.read_text()
    log.write_bytes(b"x" * 1_000_001)
    start_shell("echo ready", log).stop()

    assert ("old\nready\n", "ready\n") == (small, log.read_text())


def test_a_free_port_can_be_bound() -> None:
    """What `free_port` returns can be listened on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", free_port()))


def test_two_servers_start_on_one_new_home_and_leave_nothing(home: Path) -> None:
    """Two runs that start at once on a new home both get a server, whose processes end with it."""
    before = children()
    first, second = start(home), start(home)
    try:
        urls = [first.wait(), second.wait()]
        servers = children() - before

        assert [True, True] == [is_healthy(url) for url in urls]
        assert len(set(urls)) == 2
    finally:
        first.stop()
        second.stop()

    gone, alive = psutil.wait_procs(servers, timeout=10)
    assert (4, []) == (len(gone), alive)


def test_a_flow_run_is_recorded_by_the_server(home: Path) -> None:
    """A flow and its task in another process are known to the server afterwards, the task's state included."""
    program = """
        import asyncio, os, sys
        from prefect import flow, task
        from prefect.client.orchestration import get_client

        @task
        def add(a, b): return a + b

        @flow
        def both(): return add(1, 2)

        async def recorded():
            async with get_client() as client:
                for _ in range(100):
                    states = [run.state_type.value for run in await client.read_task_runs()]
                    if states == ["COMPLETED"]:
                        break
                    await asyncio.sleep(0.1)
                return [run.state_type.value for run in await client.read_flow_runs()], states

        both()
        print(asyncio.run(recorded()))
    """
    with embedded_server(home) as url:
        configure_environment(home, url)
        answer = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True
        )

        assert "(['COMPLETED'], ['COMPLETED'])\n" == answer.stdout
    assert "PREFECT_API_URL" not in os.environ


def test_a_given_server_is_used(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server named in PREFECT_API_URL is used and is not ended; an address that lacks /api is refused."""
    server = start(home)
    try:
        url = server.wait()
        monkeypatch.setenv("PREFECT_API_URL", url)
        with embedded_server(home / "unused") as used:
            pass

        assert (url, True, False) == (used, is_healthy(url), (home / "unused").exists())
        with pytest.raises(RunError, match="it answers 404; the address ends in /api"):
            check_server(url.removesuffix("/api"))
    finally:
        server.stop()


def test_an_unreachable_server_is_named() -> None:
    """A server that does not answer is named, with the next step."""
    url = f"http://127.0.0.1:{free_port()}/api"

    with (
        pytest.raises(
            RunError,
            match=rf"at PREFECT_API_URL, but got PREFECT_API_URL={url} \(.*refused\)\. Start that server, or unset",
        ),
        embedded_server(Path("unused"), url),
    ):
        pass


def test_a_server_that_dies_shows_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that ends while it starts is an error that shows the end of its log."""
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", "nonsense://")

    with (
        pytest.raises(RunError, match=r"(?s)server must start, but got exit_code=\d+\. Read .*server.log, .*\n.*rror"),
        embedded_server(tmp_path),
    ):
        pass


def test_a_server_that_is_too_slow_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is not ready in time is ended, and the time is named."""
    monkeypatch.setattr(prefect_server, "START_TIMEOUT_SECONDS", 0.3)
    before = children()
    server = start(tmp_path)

    with pytest.raises(RunError, match="server must start, but got state=not ready after 0 s"):
        server.wait()
    server.stop()
    assert before == children()


def test_a_start_may_be_abandoned(tmp_path: Path) -> None:
    """Stopping a server that still starts ends it at once."""
    before = children()
    server = start(tmp_path)
    assert wait_for(lambda: children() > before)
    server.stop()

    assert before == children()


def test_the_lock_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start that never gets its turn says so."""
    import fcntl

    monkeypatch.setattr(prefect_server, "START_TIMEOUT_SECONDS", 0.2)
    with (tmp_path / "server.lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        with (
            pytest.raises(RunError, match=r"One Prefect server starts at a time, but got .*server\.lock=locked"),
            embedded_server(tmp_path),
        ):
            pass


def test_a_run_needs_no_timetable(tmp_path: Path) -> None:
    """A run's server neither schedules nor shows pages; one for a timetable does; both keep to themselves."""
    names = ["DO_NOT_TRACK", "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED", "PREFECT_SERVER_UI_ENABLED"]
    found = [[server_environment(tmp_path, asked).get(name) for name in names] for asked in (None, Timetable(4200))]

    assert [["1", "false", "false"], ["1", None, "true"]] == found


def test_the_environment_keeps_what_the_user_has_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is sent anywhere, the server is the given one, and the user's log level stays."""
    monkeypatch.setenv("PREFECT_LOGGING_LEVEL", "DEBUG")
    monkeypatch.setenv("NO_PROXY", "example.com")
    configure_environment(tmp_path, "http://127.0.0.1:4200/api")
    names = [
        "DO_NOT_TRACK",
        "NO_PROXY",
        "PREFECT_API_URL",
        "PREFECT_HOME",
        "PREFECT_LOGGING_LEVEL",
        "PREFECT_SERVER_ANALYTICS_ENABLED",
        "PREFECT_SERVER_EPHEMERAL_ENABLED",
    ]

    assert [
        "1",
        "example.com,127.0.0.1",
        "http://127.0.0.1:4200/api",
        str(tmp_path),
        "DEBUG",
        "false",
        "false",
    ] == [os.environ[name] for name in names]


def test_the_module_does_not_import_prefect() -> None:
    """Prefect reads its settings when it is imported, so this module must not."""
    code = "import sys, infra.prefect_server; print('prefect' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    assert "False\n" == answer.stdout
