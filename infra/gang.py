"""Gangs: N members that run one collective job, one per Dask worker, and survive the loss of any of them.

    answers = run_gang(client, GangShape(members=2), boost, args_of, on_event=show)

`boost(member, *args_of(attempt))` runs once per member. When a member is lost (its worker died, it hangs, a
connection broke) the others are stopped, the gang is built again on the workers that remain or come back, and starts
again with the arguments for the next attempt, which name the newest checkpoint. What runs is not known here: XGBoost's
collective and torch.distributed both find their peers by what a meeting tells their members.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import itertools
import os
import random
import signal
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from infra.clusters import cancel, check_size, lost_cluster, name_of
from infra.errors import InputError, RunError
from infra.gang_meeting import OpenMeeting, close_meeting, open_meeting
from infra.gang_member import BEAT, LEFT, PID, run_member
from infra.member import SAVED, Member, PeerLostError, PortTakenError, StoppedError
from infra.scaling import grown, steady
from infra.worker_memory import PauseWatch, memory_limits, out_of_memory, was_ended_for_memory

if TYPE_CHECKING:
    from distributed import Client, Future

Event = dict[str, Any]

WATCH_SECONDS = 0.5
LOOK_SECONDS = 1.0
"""How often the scheduler is asked which workers there are."""
SILENT_SECONDS = 10.0
"""A member that has not been heard for so long hangs; one beats every second, whatever it computes."""
STALL_SECONDS = 1800.0
"""Members that all beat, but of which none has got on for so long, wait for one another."""
BLAME_SECONDS = 3.0
"""How long to look for a lost worker when a collective has failed: the survivors hear of it first."""
LEAVE_SECONDS = 8.0
"""How long a member may take to stop, at its next round or when it hears that others are gone, before its worker is
started anew."""
REJOIN_SECONDS = 20.0
"""How long to wait for a lost worker to come back, before fewer go on."""
WORKERS_SECONDS = 600.0
"""How long to wait for workers that others use, or that have yet to join."""
WAIT_SECONDS = 0.5
RESTART_SECONDS = 30.0
MAX_FRUITLESS = 4
"""Attempts in a row that may fail without a checkpoint in between."""
GPU = "GPU"
"""The resource by which a Dask worker says that it has a GPU."""


@dataclass(frozen=True)
class GangShape:
    """How many members, on which workers."""

    members: int = 1
    least: int = 1
    """With how many it may go on when workers are lost for good."""
    resource: str | None = None
    """Only workers with this resource; without it those that have no GPU come first."""
    is_isolated: bool = False
    """Whether each member has a process of its own, as it must on a GPU."""
    meeting: OpenMeeting | None = None
    """Opens what the members find one another by."""
    port: int | None = None
    """Where that listens, on the scheduler's machine; None: any free port."""


@dataclass
class _Attempt:
    """What is known of a gang that runs."""

    workers: Sequence[str]
    futures: list[Future[Any]]
    limits: Mapping[str, int]
    """How much memory each worker may have."""
    began: float
    heard: dict[int, float] = field(default_factory=dict)
    """When each rank was last heard; those that have not begun are not there."""
    advanced: float = 0.0
    """When any of them last began or got on."""
    left: set[int] = field(default_factory=set)
    pids: dict[int, int] = field(default_factory=dict)
    """Of the workers, on their machines."""
    has_saved: bool = False

    @property
    def here(self) -> set[int]:
        """Return the ranks that have begun and neither answered nor left."""
        answered = {rank for rank, future in enumerate(self.futures) if future.status == "finished"}
        return set(self.heard) - self.left - answered


class _Lost(Exception):
    """Members are gone, or hang; the rest can go on without them."""

    def __init__(self, why: str, hung: Sequence[int] = ()) -> None:
        super().__init__(why)
        self.why, self.hung = why, hung
        self.has_saved = False
        """Whether a checkpoint was written before."""
        self.seconds = 0.0
        """How long it took to stop the others."""


def run_gang(
    client: Client,
    shape: GangShape,
    function: Callable[..., Any],
    args_of: Callable[[int, int], tuple[object, ...]],
    *,
    on_event: Callable[[Event], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> list[Any]:
    """Run a function as a gang, and return the members' answers by rank.

    Args:
        client: of the cluster.
        shape: how many members, on which workers.
        function: `function(member, *args)`; what it tells `infra.progress.report_progress` reaches `on_event` on this
            thread, with the rank of who told it.
        args_of: the arguments for an attempt (0, 1, ...) of so many members; it is called before each.
        on_event: follows the progress.
        on_note: is told of losses, and how it goes on.

    Raises:
        RunError: there are too few workers, a member needs too much memory, or losses recur without a checkpoint.
    """
    check_size(function)
    note = on_note or (lambda _text: None)
    avoided: set[str] = set()
    fruitless = 0
    with grown(client, shape.members), steady(client):
        for attempt in itertools.count():
            with claimed(client, shape, avoided, WORKERS_SECONDS if attempt == 0 else REJOIN_SECONDS) as workers:
                if len(workers) < shape.members:
                    note(f"The gang goes on with {len(workers)} of {shape.members} members.")
                args = args_of(attempt, len(workers))
                try:
                    return _run_once(client, shape, workers, function, args, on_event, avoided)
                except _Lost as lost:
                    fruitless = 0 if lost.has_saved else fruitless + 1
                    if fruitless >= MAX_FRUITLESS:
                        raise RunError(
                            f"A training must get from one checkpoint to the next, but got losses={fruitless} in a "
                            f"row before it did, the last one: {lost.why}. See the workers' logs; lower "
                            "train.checkpoint_rounds if workers come and go faster than that."
                        ) from lost
                    note(f"{lost.why}; the gang is built again ({lost.seconds:.1f} s to stop the others).")
                except PortTakenError:
                    fruitless += 1
                    if shape.port is not None or fruitless >= MAX_FRUITLESS:
                        raise
    raise AssertionError("the attempts have no end")


def _run_once(
    client: Client,
    shape: GangShape,
    workers: Sequence[str],
    function: Callable[..., Any],
    args: tuple[object, ...],
    on_event: Callable[[Event], None] | None,
    avoided: set[str],
) -> list[Any]:
    """Start the members, follow them to the end, and return their answers; leave no member behind."""
    topic = f"gang-{uuid.uuid4().hex}"
    events: SimpleQueue[tuple[int, Event]] = SimpleQueue()
    told: dict[str, Any] = {}
    if len(workers) > 1 and shape.meeting is not None:
        told = open_meeting(client, topic, shape.meeting, len(workers), shape.port)
    threads, limits = _nthreads(client), memory_limits(client)
    client.subscribe_topic(topic, lambda stamped: events.put((stamped[1]["rank"], stamped[1]["event"])))
    attempt = _Attempt(workers, [], limits, time.monotonic())
    hung: Sequence[int] = ()
    try:
        for rank, worker in enumerate(workers):
            member = Member(rank, len(workers), threads.get(worker, 1), told)
            attempt.futures.append(
                client.submit(
                    run_member,
                    topic,
                    function,
                    member,
                    args,
                    shape.is_isolated,
                    key=f"{name_of(function)}-{topic}-{rank}",
                    workers=[worker],
                    resources={shape.resource: 1} if shape.resource else None,
                    pure=False,
                    retries=0,
                    priority=10,
                )
            )
        return _followed(client, attempt, events, on_event)
    except _Lost as lost:
        hung, lost.has_saved, began = lost.hung, attempt.has_saved, time.monotonic()
        avoided |= _cleared(client, attempt, events, hung)
        lost.seconds = time.monotonic() - began
        raise
    finally:
        cancel(client, attempt.futures)
        if client.status == "running":
            avoided |= _cleared(client, attempt, events, ())
            client.unsubscribe_topic(topic)
            close_meeting(client, topic)


def _followed(
    client: Client,
    attempt: _Attempt,
    events: SimpleQueue[tuple[int, Event]],
    on_event: Callable[[Event], None] | None,
) -> list[Any]:
    """Watch the members until all have answered."""
    looked = time.monotonic()
    watches = [PauseWatch(client, worker) for worker in attempt.workers]
    while not all(future.status == "finished" for future in attempt.futures):
        _take(attempt, events, on_event, WATCH_SECONDS)
        if any(future.status in ("error", "cancelled", "lost") for future in attempt.futures):
            _raise_failure(client, attempt)
        if time.monotonic() - looked >= LOOK_SECONDS:
            looked = time.monotonic()
            _require_workers(client, attempt)
            _require_signs(attempt, looked)
            for watch in watches:
                watch.look()
    _take(attempt, events, on_event, 0)
    try:
        return [future.result() for future in attempt.futures]
    except Exception as error:  # a worker that died with its answer
        raise _Lost(f"an answer was lost ({type(error).__name__})") from error


def _take(
    attempt: _Attempt,
    events: SimpleQueue[tuple[int, Event]],
    on_event: Callable[[Event], None] | None,
    seconds: float,
) -> None:
    """Take in what the members tell: wait for the first message, take those that are there."""
    timeout = seconds
    with suppress(Empty):
        while True:
            rank, event = events.get(timeout=timeout) if timeout else events.get_nowait()
            timeout = 0
            if rank not in attempt.heard:
                attempt.advanced = time.monotonic()
            attempt.heard[rank] = time.monotonic()
            if PID in event:
                attempt.pids[rank] = event[PID]
            if LEFT in event:
                attempt.left.add(rank)
            elif SAVED in event:
                attempt.has_saved = True
            elif BEAT not in event:
                attempt.advanced = time.monotonic()
                if on_event is not None:
                    on_event({"rank": rank, **event})


def _require_workers(client: Client, attempt: _Attempt) -> None:
    """Raise _Lost, or an error, if a worker of a member that has not answered is gone."""
    known = _nthreads(client)
    for rank, worker in enumerate(attempt.workers):
        if worker not in known and attempt.futures[rank].status != "finished":
            if was_ended_for_memory(client, worker):
                limit = attempt.limits.get(worker, 0)
                raise out_of_memory(f"rank={rank} of a training on worker={worker}", limit, client.cluster is not None)
            raise _Lost(f"member {rank} was lost with its worker {worker}")


def _require_signs(attempt: _Attempt, now: float) -> None:
    """Raise _Lost if a member has not been heard, or none has got on, for too long."""
    hung = [rank for rank in attempt.here if now - attempt.heard[rank] > SILENT_SECONDS]
    if hung:
        raise _Lost(f"member {', '.join(map(str, hung))} was not heard for {SILENT_SECONDS:.0f} s", hung)
    waiting = [rank for rank in range(len(attempt.workers)) if rank not in attempt.heard]
    if waiting and now - attempt.began > WORKERS_SECONDS:
        raise _Lost(f"member {', '.join(map(str, waiting))} could not begin for {WORKERS_SECONDS:.0f} s", waiting)
    if not waiting and now - attempt.advanced > STALL_SECONDS:
        raise _Lost(f"no member has got on for {STALL_SECONDS:.0f} s")


def _raise_failure(client: Client, attempt: _Attempt) -> None:
    """Raise what a member's failure means: _Lost if others can go on, or its own error.

    Survivors of a lost member fail too, and are heard first; so for a moment a lost worker is looked for.
    """
    from distributed import KilledWorker

    deadline = time.monotonic() + (BLAME_SECONDS if len(attempt.workers) > 1 else 0)
    while True:
        _require_workers(client, attempt)
        errors = [future.exception() for future in attempt.futures if future.status == "error"]
        own = [e for e in errors if not isinstance(e, PeerLostError | StoppedError | KilledWorker)]
        if any(isinstance(error, InputError | RunError) for error in own) or (own and time.monotonic() > deadline):
            raise own[0]
        if time.monotonic() > deadline:
            break
        time.sleep(WATCH_SECONDS / 5)
    raise _Lost(f"a member lost the others ({errors[0]})" if errors else "a member was cancelled")


def _cleared(
    client: Client, attempt: _Attempt, events: SimpleQueue[tuple[int, Event]], hung: Sequence[int]
) -> set[str]:
    """Have all members leave their workers; return the workers that can not be cleared, and must be avoided.

    Who does not leave has its worker started anew: first those that hang, for whom the others may be waiting inside
    their collective.
    """
    cancel(client, attempt.futures)
    avoided = set()
    for ranks, seconds in ((hung, LEAVE_SECONDS / 4), (range(len(attempt.workers)), LEAVE_SECONDS)):
        deadline = time.monotonic() + seconds
        known = _nthreads(client)
        attempt.left.update(rank for rank, worker in enumerate(attempt.workers) if worker not in known)
        while attempt.here.intersection(ranks) and time.monotonic() < deadline:
            _take(attempt, events, None, WATCH_SECONDS / 5)
        stuck = sorted(attempt.here.intersection(ranks))
        if not stuck:
            continue
        if client.cluster is not None:
            _kill(client, attempt, stuck)
        else:
            workers = [attempt.workers[rank] for rank in stuck]
            try:
                client.restart_workers(workers, timeout=RESTART_SECONDS, raise_for_error=False)
            except (ValueError, OSError, TimeoutError):  # without a nanny somebody else must end them
                avoided.update(workers)
        attempt.left.update(attempt.here.intersection(ranks))
    return avoided


def _kill(client: Client, attempt: _Attempt, ranks: Sequence[int]) -> None:
    """Kill workers of this machine, which their nannies start anew; asked to end, a nanny first waits for seconds."""
    for rank in ranks:
        with suppress(OSError, KeyError):
            os.kill(attempt.pids[rank], signal.SIGKILL)
    deadline = time.monotonic() + LEAVE_SECONDS
    dead = {attempt.workers[rank] for rank in ranks}
    while dead.intersection(_nthreads(client)) and time.monotonic() < deadline:
        time.sleep(WATCH_SECONDS / 5)


@contextmanager
def claimed(client: Client, shape: GangShape, avoided: set[str], seconds: float) -> Iterator[list[str]]:
    """Yield workers that no other gang uses, as many as the shape asks for; after a while fewer are enough.

    A claim is a lock at the scheduler, by the worker's address. It is refreshed by this process: those of one that was
    killed end by themselves.
    """
    from distributed import Lock

    began = time.monotonic()
    held: dict[str, Any] = {}
    try:
        while True:
            fit = fitting(client, shape, avoided)
            for worker in fit:
                if len(held) == shape.members:
                    break
                lock = Lock(f"gang-{worker}", scheduler_rpc=client.scheduler, loop=client.loop)
                if lock.acquire(blocking=False):
                    held[worker] = lock
            waited = time.monotonic() - began
            # No worker will join those of this machine, but one that was lost may come back.
            is_hopeless = client.cluster is not None and len(fit) < shape.least and waited > REJOIN_SECONDS
            if len(held) == shape.members or (waited > seconds and len(held) >= shape.least):
                break
            if is_hopeless or waited > max(seconds, WORKERS_SECONDS):
                raise too_few(client, shape, len(held), fit, waited)
            # Two that held some workers each, and waited for those of the other, would wait for ever.
            while held:
                _release(client, held.popitem()[1])
            time.sleep(WAIT_SECONDS * (1 + random.random()))
        yield sorted(held)
    finally:
        for lock in held.values():
            _release(client, lock)


def _release(client: Client, lock: Any) -> None:
    if client.status == "running":
        lock.release()
        lock.refresh_callback.stop()


def fitting(client: Client, shape: GangShape, avoided: set[str]) -> list[str]:
    """Return the workers that may have a member, the best first: those without a GPU for who needs none, idle ones."""
    try:
        workers: Mapping[str, Any] = client.scheduler_info(n_workers=-1)["workers"]
    except OSError as error:
        raise lost_cluster("workers=unknown") from error
    if client.status != "running":
        raise lost_cluster(f"state={client.status}")
    fit = {
        address: worker
        for address, worker in workers.items()
        if address not in avoided
        and worker["status"] in ("running", "paused")
        and (shape.resource is None or worker["resources"].get(shape.resource, 0) >= 1)
    }

    def order(address: str) -> tuple[bool, bool, int, str]:
        worker = fit[address]
        executing = worker["metrics"].get("task_counts", {}).get("executing", 0)
        has_gpu = shape.resource is None and GPU in worker["resources"]
        return has_gpu, worker["status"] == "paused", executing, address

    return sorted(fit, key=order)


def too_few(client: Client, shape: GangShape, found: int, fit: Sequence[str], seconds: float) -> RunError:
    """Return the error for a gang that doesn't come together."""
    kind = f" with the resource {shape.resource}" if shape.resource else ""
    used = f" ({len(fit) - found} more are used by other trainings)" if len(fit) > found else ""
    step = "Raise cluster.workers" if client.cluster is not None else f"Start more workers of that cluster{kind}"
    return RunError(
        f"A gang needs a worker for each of its members{kind}, but got workers={found} for members={shape.members}"
        f" after {seconds:.0f} s{used}. {step}, or lower train.plan.workers."
    )


def _nthreads(client: Client) -> dict[str, int]:
    if client.status != "running":
        raise lost_cluster(f"state={client.status}")
    try:
        return dict(client.nthreads())
    except OSError as error:
        raise lost_cluster("workers=unknown") from error
