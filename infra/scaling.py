"""Workers of this machine that come with the work and go without it.

Dask's own measure of what is needed looks at the tasks that its scheduler knows. `infra.clusters` sends it only a few
at a time, so here those who have the work say how much is left.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from distributed import Client, LocalCluster

INTERVAL_SECONDS = 1.0
IDLE_INTERVALS = 5
"""How many times in a row a worker must be found idle before it ends: stages follow one another."""
SETTLE_SECONDS = 60.0
POLL_SECONDS = 0.01


class Demand:
    """What a cluster is needed for; any thread may say so."""

    def __init__(self, threads_per_worker: int, most: int = 1) -> None:
        """Need nothing yet; there are `most` workers at most."""
        self.threads_per_worker, self.most = threads_per_worker, most
        self._lock = threading.Lock()
        self._left: dict[int, int] = {}
        self._holds = 0
        self.is_scaling = False
        """Whether workers are being started or ended at this moment."""

    @property
    def is_held(self) -> bool:
        """Tell whether somebody needs the workers as they are."""
        return self._holds > 0

    @property
    def workers(self) -> int:
        """How many workers would have something to do.

        >>> demand = Demand(threads_per_worker=2)
        >>> with demand.for_tasks(5) as tell:
        ...     before = demand.workers
        ...     tell(1)
        ...     before, demand.workers
        (3, 1)
        """
        return math.ceil(sum(self._left.values()) / self.threads_per_worker)

    @contextmanager
    def for_tasks(self, num_tasks: int) -> Iterator[Callable[[int], None]]:
        """Need workers for some tasks; yield a function that takes how many are left."""
        key = object()

        def tell(left: int) -> None:
            with self._lock:
                self._left[id(key)] = left

        tell(num_tasks)
        try:
            yield tell
        finally:
            with self._lock:
                del self._left[id(key)]

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the workers as they are meanwhile; what was begun before is over when this begins."""
        with self._lock:
            self._holds += 1
        try:
            deadline = time.monotonic() + SETTLE_SECONDS
            while self.is_scaling and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
            yield
        finally:
            with self._lock:
                self._holds -= 1


_demands: WeakKeyDictionary[Client, Demand] = WeakKeyDictionary()


def scale_with_demand(
    client: Client, cluster: LocalCluster, limits: tuple[int, int], threads: int, on_started: Callable[[], None]
) -> None:
    """Start and end workers of this machine, between two limits, as the users of a client need them.

    `on_started` is called when workers have been started.
    """
    from distributed.deploy.adaptive import Adaptive

    demand = Demand(threads, limits[1])

    class ByDemand(Adaptive):
        """Dask's loop that starts and ends workers, with another measure."""

        async def adapt(self) -> None:
            demand.is_scaling = True
            try:
                await super().adapt()
            finally:
                demand.is_scaling = False

        async def target(self) -> int:
            return len(self.plan) if demand.is_held else demand.workers

        async def scale_up(self, n: Any) -> None:
            await super().scale_up(n)
            await self.cluster
            on_started()

        async def workers_to_close(self, target: int) -> list[Any]:
            # Dask's choice may work still; its tasks would begin again elsewhere.
            chosen = await super().workers_to_close(target)
            assert cluster.scheduler is not None, "it is running"
            busy = {worker.name for worker in cluster.scheduler.workers.values() if worker.processing}
            return [name for name in chosen if name not in busy]

    least, most = limits
    cluster.adapt(
        Adaptive=ByDemand,
        minimum=least,
        maximum=most,
        interval=f"{INTERVAL_SECONDS}s",
        wait_count=IDLE_INTERVALS,
    )
    _demands[client] = demand


@contextmanager
def needing(client: Client, num_tasks: int) -> Iterator[Callable[[int], None]]:
    """Need workers for some tasks; yield a function that takes how many are left. Fixed clusters stay as they are."""
    demand = _demands.get(client)
    if demand is None:
        yield lambda _left: None
        return
    with demand.for_tasks(num_tasks) as tell:
        yield tell


@contextmanager
def steady(client: Client) -> Iterator[None]:
    """Let no worker end meanwhile: for a training, whose workers cannot be replaced."""
    demand = _demands.get(client)
    if demand is None:
        yield
        return
    with demand.held():
        yield


@contextmanager
def grown(client: Client, num_workers: int) -> Iterator[None]:
    """Need so many workers meanwhile, and wait for them for a while; fixed clusters stay as they are."""
    demand = _demands.get(client)
    if demand is None:
        yield
        return
    with demand.for_tasks(num_workers * demand.threads_per_worker):
        deadline = time.monotonic() + SETTLE_SECONDS
        while len(client.nthreads()) < min(num_workers, demand.most) and time.monotonic() < deadline:
            time.sleep(INTERVAL_SECONDS / 10)
        yield
