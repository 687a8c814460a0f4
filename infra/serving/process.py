"""What runs in the serving process: a socket, the application, and a thread that follows the releases."""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn

from infra.errors import InputError, RunError
from infra.serving.app import build_app
from infra.serving.champion import Champion
from infra.serving.target import ServerReport, remove_report, write_report
from infra.storage import Store

log = logging.getLogger(__name__)
KEEP_ALIVE_SECONDS = 75
"""Longer than the 60 s after which load balancers and clients give up an idle connection."""
DRAIN_SECONDS = 25
"""For requests in flight when the process is asked to end: SIGKILL usually follows 30 s after SIGTERM."""
BACKLOG = 2048
FORMAT = "%(asctime)s %(levelname)s %(message)s"


def run(root: str, model: str, host: str, port: int, poll_seconds: float, max_body_bytes: int) -> None:
    """Serve; see `infra.serving.server.serve`."""
    logging.basicConfig(level=logging.INFO, format=FORMAT)
    store = Store(root)
    champion = Champion(store, model)
    loaded = champion.load()
    with listening(host, port) as listener:
        url = _url(host, listener)
        config = uvicorn.Config(
            build_app(champion, max_body_bytes),
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="off",
            ws="none",
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=DRAIN_SECONDS,
        )
        server = uvicorn.Server(config)
        with ending_on_signals(server), following(champion, store, url, poll_seconds):
            print(f"{model} version {loaded.target.version} answers at {url}", flush=True)
            server.run(sockets=[listener])


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """Listen on an address: from here on callers wait instead of being turned away."""
    if not 0 <= port <= 65_535:
        raise InputError(f"A port is between 0 and 65535, but got port={port}. Choose one of these, 0 for a free one.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named: asyncio sets TCP_NODELAY on no other socket, and answers would wait 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(BACKLOG)
        except OSError as error:
            raise _refused(host, port, error) from error
        yield listener


def _refused(host: str, port: int, error: OSError) -> InputError:
    if error.errno == errno.EADDRINUSE:
        return InputError(
            f"A port must be free, but got port={port}, on which another process listens at {host}. "
            "End that process, or choose another port with --port (0 for a free one)."
        )
    if error.errno == errno.EACCES:
        return InputError(
            f"A port below 1024 needs special rights, but got port={port}. Choose one from 1024 with --port."
        )
    return InputError(
        f"A host must be an address of this machine, but got host={host} ({error.strerror}). "
        "Choose 127.0.0.1, or 0.0.0.0 to be reached from other machines."
    )


def _url(host: str, listener: socket.socket) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"


@contextmanager
def ending_on_signals(server: uvicorn.Server) -> Iterator[None]:
    """Let SIGTERM and SIGINT end the server in order, also before and after it handles them itself.

    uvicorn raises the signal again once it has stopped, and with Python's handlers that would skip what is left to do.
    """

    def end(_signal: int, _frame: FrameType | None) -> None:
        server.should_exit = True

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def following(champion: Champion, store: Store, url: str, poll_seconds: float) -> Iterator[None]:
    """Look for releases in a thread, and report what this process answers with until it ends."""
    ended = threading.Event()
    reported = _report(champion, url)
    write_report(store, champion.model, reported)

    def follow() -> None:
        nonlocal reported
        while not ended.wait(poll_seconds):
            champion.look()
            report = _report(champion, url)
            if report == reported or ended.is_set():
                continue
            try:
                write_report(store, champion.model, report)
                reported = report
            except (RunError, OSError) as error:
                log.warning("The report is not written, and will be tried again: %s", error)

    follower = threading.Thread(target=follow, name="follow-releases", daemon=True)
    follower.start()
    try:
        yield
    finally:
        ended.set()
        follower.join(DRAIN_SECONDS)
        remove_report(store, champion.model, url)


def _report(champion: Champion, url: str) -> ServerReport:
    version = champion.current.target.version if champion.current else None
    return ServerReport(url, os.getpid(), version, champion.refused)
