"""Runs a member of a gang on its worker: tells that it lives, hears when to stop, gives it a process of its own."""

# mypy: allow-untyped-calls

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any
from urllib.parse import urlsplit

from infra.member import Member, PeerLostError
from infra.progress import listening

HEARTBEAT_SECONDS = 1.0
BEAT, LEFT = "beat", "left"
"""Kinds of messages; everything else is progress."""
PID = "pid"
"""In the first beat: the number of the worker's process."""
POLL_SECONDS = 0.2
RUNNING = ("executing", "long-running")
"""States of a Dask task that somebody still wants."""


def run_member(
    topic: str, function: Callable[..., Any], member: Member, args: tuple[object, ...], is_isolated: bool
) -> Any:
    """Run a function as a member, in a thread of this Dask worker or in a process of its own."""
    from distributed import get_worker

    worker = get_worker()
    key = worker.get_current_task()
    member.scratch = worker.local_directory
    member.host = str(urlsplit(worker.address).hostname)

    def tell(event: dict[str, Any]) -> None:
        worker.log_event(topic, {"rank": member.rank, "event": event})

    def is_wanted() -> bool:
        state = worker.state.tasks.get(key)
        return state is not None and state.state in RUNNING

    tell({BEAT: member.rank, PID: os.getpid()})
    try:
        if is_isolated:
            return run_in_process(function, member, args, tell, is_wanted)
        with pulse(member, tell, is_wanted), listening(tell):
            return function(member, *args)
    finally:
        tell({LEFT: member.rank})


@contextmanager
def pulse(member: Member, tell: Callable[[dict[str, Any]], None], is_wanted: Callable[[], bool]) -> Iterator[None]:
    """Tell every second that the member lives; stop it when nobody wants it any more."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(HEARTBEAT_SECONDS):
            if not is_wanted():
                member.stop()
            with suppress(RuntimeError):  # the interpreter is ending
                tell({BEAT: member.rank})

    thread = threading.Thread(target=beat, name=f"gang-pulse-{member.rank}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def run_in_process(
    function: Callable[..., Any],
    member: Member,
    args: tuple[object, ...],
    tell: Callable[[dict[str, Any]], None],
    is_wanted: Callable[[], bool],
) -> Any:
    """Run a function as a member in a new process, which ends with this one.

    It gets the device's memory for itself, gives all of it back at its end, and can be killed whatever it does. Its
    heartbeats are its own: where it hangs they end, although the worker lives.

    Raises:
        PeerLostError: the process died.
    """
    from distributed.protocol.pickle import dumps, loads

    ours, theirs = Pipe()
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "infra.gang_member", str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    theirs.close()
    try:
        ours.send_bytes(dumps((function, member, args)))
        while True:
            if not is_wanted():
                member.stop()
                member.check()
            if not ours.poll(POLL_SECONDS):
                continue
            kind, content = loads(ours.recv_bytes())
            if kind == "event":
                tell(content)
            elif kind == "error":
                raise content
            else:
                return content
    except (EOFError, ConnectionError) as error:
        raise PeerLostError(
            f"A member must survive its task, but got rank={member.rank} whose process ended with "
            f"code={process.wait()}. See the worker's log."
        ) from error
    finally:
        process.kill()
        process.wait()
        ours.close()


def serve_parent(parent: Connection) -> None:
    """Do what the parent sends, and send what comes of it; a parent that is gone ends this process."""
    from distributed.protocol.pickle import dumps, loads

    function, member, args = loads(parent.recv_bytes())
    lock = threading.Lock()

    def send(kind: str, content: object) -> None:
        payload = dumps((kind, content))
        with lock:
            parent.send_bytes(payload)

    def tell(event: dict[str, Any]) -> None:
        send("event", event)

    def watch_parent() -> None:
        with suppress(EOFError, OSError):
            parent.recv_bytes()
        os._exit(1)

    threading.Thread(target=watch_parent, name="gang-parent", daemon=True).start()
    try:
        with pulse(member, tell, lambda: True), listening(tell):
            answer = function(member, *args)
        send("answer", answer)
    except Exception as error:
        send("error", error)


if __name__ == "__main__":
    serve_parent(Connection(int(sys.argv[1])))
