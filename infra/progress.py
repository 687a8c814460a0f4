"""Where a stage says how far it is, without knowing who listens, and hears that nobody needs its answer any more.

A stage calls `report_progress({"round": 10})`. Who runs it decides where that goes: nowhere, into a function of the
same process, or over Dask to the process that asked (`infra.clusters.on_one_worker`). Threads do not inherit the
listener; a stage that starts threads reports from its own. A stage that can end early asks `is_stop_requested()`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

ProgressSink = Callable[[dict[str, Any]], None]
_sink: ContextVar[ProgressSink | None] = ContextVar("progress_sink", default=None)
_asked: set[str] = set()
"""Names of jobs of this process that are to end early."""
_is_stopped: ContextVar[Callable[[], bool]] = ContextVar("is_stopped", default=lambda: False)


def report_progress(event: dict[str, Any]) -> None:
    """Tell the listener, if there is one. The event is plain JSON-like data."""
    sink = _sink.get()
    if sink is not None:
        sink(event)


def listener() -> ProgressSink:
    """Return who listens now, for a thread that is started here: it would tell nobody."""
    sink = _sink.get()
    return sink if sink is not None else lambda _event: None


@contextmanager
def listening(sink: ProgressSink) -> Iterator[None]:
    """Send the events of this context to a function.

    >>> heard = []
    >>> with listening(heard.append):
    ...     report_progress({"round": 1})
    >>> heard
    [{'round': 1}]
    """
    token = _sink.set(sink)
    try:
        yield
    finally:
        _sink.reset(token)


def is_stop_requested() -> bool:
    """Return whether whoever runs this stage has asked it to end early."""
    return _is_stopped.get()()


@contextmanager
def stoppable(is_stopped: Callable[[], bool]) -> Iterator[None]:
    """Let a function decide whether the stages of this context are to end early.

    >>> with stoppable(lambda: True):
    ...     is_stop_requested()
    True
    """
    token = _is_stopped.set(is_stopped)
    try:
        yield
    finally:
        _is_stopped.reset(token)


async def ask_to_stop(name: str) -> None:
    """Note that a job of this process is to end early; Dask sends coroutines alone without waiting for an answer."""
    _asked.add(name)


def is_asked_to_stop(name: str) -> bool:
    """Tell whether a job of this process is to end early."""
    return name in _asked


def forget_stop(name: str) -> None:
    """Drop a note: the job has ended."""
    _asked.discard(name)
