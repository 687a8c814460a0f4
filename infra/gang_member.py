"""Runs a member of a gang on its worker: tells that it lives, hears when to stop, gives it a process of its own."""

# mypy: allow-untyped-calls

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

from infra.child import ChildLostError, run_in_child
from infra.member import Member, PeerLostError
from infra.progress import listener, listening

HEARTBEAT_SECONDS = 1.0
BEAT, LEFT = "beat", "left"
"""Kinds of messages; everything else is progress."""
PID = "pid"
"""In the first beat: the number of the worker's process."""
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

    def check() -> None:
        if not is_wanted():
            member.stop()
            member.check()

    try:
        return run_in_child(with_pulse, (function, member, args), on_event=tell, check=check)
    except ChildLostError as error:
        raise PeerLostError(
            f"A member must survive its task, but got rank={member.rank} whose process ended with "
            f"code={error.code}. See the worker's log."
        ) from error


def with_pulse(function: Callable[..., Any], member: Member, args: tuple[object, ...]) -> Any:
    """Run a function as a member in its own process, which ends when nobody wants it."""
    tell = listener()
    with pulse(member, tell, lambda: True):
        return function(member, *args)
