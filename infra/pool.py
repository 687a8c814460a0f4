"""Jobs on Dask workers that report while they run and can be told to stop, one per worker at a time.

`infra.clusters` runs functions whose number is known and whose answers are all wanted. A search asks for the next job
when one has ended, and has lost interest in some before they end.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from infra.clusters import (
    WATCH_SECONDS,
    Capacity,
    answer_of,
    cancel,
    check_size,
    lost_cluster,
    lost_worker,
    name_of,
    threads_of,
)
from infra.progress import ask_to_stop, forget_stop, is_asked_to_stop, listening, stoppable
from infra.scaling import needing
from infra.worker_memory import PauseWatch, memory_limits

if TYPE_CHECKING:
    from distributed import Client, Future

REMIND_SECONDS = 10.0
"""How long a job that was asked to stop may go on until it is asked again."""


@dataclass(frozen=True)
class Told:
    """What a job reports while it runs."""

    job: int
    event: dict[str, Any]


@dataclass(frozen=True)
class Ended:
    """A job's answer, or the error that it ended with."""

    job: int
    answer: Any = None
    error: Exception | None = None


@dataclass
class _Running:
    future: Future[Any]
    worker: str
    topic: str
    what: str
    asked_at: float | None = None
    """When it was last asked to stop."""


class Pool:
    """The workers of a cluster, each with one job at the most.

    >>> with Pool(client) as pool:                                  # doctest: +SKIP
    ...     pool.start(0, "trial 0", train, store, job)
    ...     message = pool.next(timeout_seconds=1.0)
    """

    def __init__(self, client: Client) -> None:
        """Start nothing yet."""
        self._client = client
        self._messages: SimpleQueue[Told | Ended] = SimpleQueue()
        self._running: dict[int, _Running] = {}
        self._capacity = Capacity(client)
        self._watch = PauseWatch(client)
        self._limits: dict[str, int] = {}
        self._held = ExitStack()
        self._tell: Callable[[int], None] = lambda _left: None

    def __enter__(self) -> Pool:
        """Say that there is work for one worker; `expect` says how much more."""
        self._tell = self._held.enter_context(needing(self._client, 1))
        return self

    def __exit__(self, *_: object) -> None:
        """Tell what still runs to stop, and give it up."""
        for job in list(self._running):
            self.stop(job)
        cancel(self._client, [running.future for running in self._running.values()])
        for running in self._running.values():
            self._client.unsubscribe_topic(running.topic)
        self._running.clear()
        self._held.close()

    def expect(self, num_jobs: int) -> None:
        """Say how many jobs are left, for a cluster that grows with the work."""
        self._tell(num_jobs * max(threads_of(self._client).values(), default=1))

    def idle(self) -> dict[str, int]:
        """Return the workers without a job, with their threads."""
        busy = {running.worker for running in self._running.values()}
        return {worker: threads for worker, threads in threads_of(self._client).items() if worker not in busy}

    def memory_limit(self, worker: str) -> int:
        """Return how much memory a worker may have, in bytes; 0: no limit is set."""
        if worker not in self._limits:
            self._limits = memory_limits(self._client)
        return self._limits.get(worker, 0)

    def start(self, job: int, worker: str, function: Callable[..., Any], *args: object) -> None:
        """Begin a job on an idle worker."""
        check_size(function)
        assert job not in self._running, f"job {job} runs already"
        topic = f"job-{uuid.uuid4().hex}"
        self._client.subscribe_topic(topic, lambda stamped: self._messages.put(Told(job, stamped[1]["event"])))
        future = self._client.submit(
            run_stoppable, topic, function, args, key=f"{name_of(function)}-{topic}", workers=[worker], pure=False,
            retries=0,
        )  # fmt: skip
        self._running[job] = _Running(future, worker, topic, f"task={name_of(function)} on worker={worker}")
        # The scheduler sends what a job has reported before it sends that the job has ended.
        future.add_done_callback(lambda _: self._messages.put(Ended(job)))

    def stop(self, job: int) -> None:
        """Ask a job to end early; it answers with what it has."""
        running = self._running.get(job)
        if running and not running.future.done() and self._client.status == "running":
            running.asked_at = time.monotonic()
            self._client.run(ask_to_stop, running.topic, workers=[running.worker], wait=False, on_error="ignore")

    def next(self, timeout_seconds: float) -> Told | Ended | None:
        """Return what has happened, in its order; None if nothing has for so long.

        Raises:
            RunError: the cluster was lost, or its workers are out of memory and will begin nothing.
        """
        for job, running in self._running.items():
            # A worker that was too busy to listen has not heard it.
            if running.asked_at is not None and time.monotonic() - running.asked_at >= REMIND_SECONDS:
                self.stop(job)
        try:
            message = self._messages.get(timeout=min(timeout_seconds, WATCH_SECONDS))
        except Empty:
            return self._lost()
        if isinstance(message, Told) or message.job not in self._running:
            return message if isinstance(message, Told) and message.job in self._running else None
        running = self._running.pop(message.job)
        self._client.unsubscribe_topic(running.topic)
        if running.future.status == "error":
            error = running.future.exception()
            assert isinstance(error, Exception), "a failed task has an error"
            return Ended(message.job, error=self._explained(error, running))
        return Ended(message.job, answer_of(self._client, running.future, running.what))

    def _explained(self, error: Exception, running: _Running) -> Exception:
        """Return a job's own error as it is, and the death of its worker as ours."""
        from distributed import KilledWorker

        if not isinstance(error, KilledWorker):
            return error
        return lost_worker(self._client, running.worker, self.memory_limit(running.worker), running.what)

    def _lost(self) -> Ended | None:
        """Return a job whose worker is gone: Dask would wait for it to come back."""
        threads = threads_of(self._client)
        if not threads:
            raise lost_cluster("workers=0")
        self._watch.look()
        for job, running in self._running.items():
            if running.worker not in threads and not running.future.done():
                del self._running[job]
                self._client.unsubscribe_topic(running.topic)
                cancel(self._client, [running.future])
                limit = self.memory_limit(running.worker)
                return Ended(job, error=lost_worker(self._client, running.worker, limit, running.what))
        return None


def run_stoppable(topic: str, function: Callable[..., Any], args: tuple[object, ...]) -> Any:
    """Run a function on this worker, with its progress sent to the topic, until it ends or is told to."""
    from distributed import get_worker

    worker = get_worker()
    try:
        with (
            listening(lambda event: worker.log_event(topic, {"event": event})),
            stoppable(lambda: is_asked_to_stop(topic)),
        ):
            return function(*args)
    finally:
        forget_stop(topic)
