"""A function in a process of its own, which ends with this one, and can be killed whatever it does."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from infra.errors import RunError
from infra.progress import ProgressSink, listening

POLL_SECONDS = 0.2


class ChildLostError(RunError):
    """The process died before it answered."""

    def __init__(self, code: int) -> None:
        """Name the exit code, negative for a signal."""
        super().__init__(f"A process answers before it ends, but got code={code}. See the log for the reason.")
        self.code = code


def run_in_child(
    function: Callable[..., Any],
    args: tuple[object, ...],
    *,
    on_event: ProgressSink = lambda _event: None,
    check: Callable[[], None] = lambda: None,
    env: Mapping[str, str] | None = None,
) -> Any:
    """Run a function in a new process and return its answer; an error of the function is raised here.

    Args:
        function: from a module that the new process can import.
        args: for the function; they are pickled, as Dask's arguments are.
        on_event: hears what the function tells `infra.progress.report_progress`.
        check: called several times a second; what it raises ends the process, and is raised.
        env: variables beside those of this process.

    Raises:
        ChildLostError: the process died.
    """
    from cloudpickle import dumps, loads

    ours, theirs = Pipe()
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "infra.child", str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        env={**os.environ, **(env or {}), "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    theirs.close()
    try:
        ours.send_bytes(dumps((function, args)))
        while True:
            check()
            if not ours.poll(POLL_SECONDS):
                continue
            kind, content = loads(ours.recv_bytes())
            if kind == "event":
                on_event(content)
            elif kind == "error":
                raise content
            else:
                return content
    except (EOFError, ConnectionError) as error:
        raise ChildLostError(process.wait()) from error
    finally:
        process.kill()
        process.wait()
        ours.close()


def serve_parent(parent: Connection) -> None:
    """Do what the parent sends, and send what comes of it; a parent that is gone ends this process."""
    from cloudpickle import dumps, loads

    function, args = loads(parent.recv_bytes())
    lock = threading.Lock()

    def send(kind: str, content: object) -> None:
        payload = dumps((kind, content))
        with lock:
            parent.send_bytes(payload)

    def watch_parent() -> None:
        with suppress(EOFError, OSError):
            parent.recv_bytes()
        os._exit(1)

    threading.Thread(target=watch_parent, name="parent", daemon=True).start()
    try:
        with listening(lambda event: send("event", event)):
            answer = function(*args)
        send("answer", answer)
    except Exception as error:
        send("error", error)


if __name__ == "__main__":
    serve_parent(Connection(int(sys.argv[1])))
