"""Dask: open a cluster, run functions on it, and follow what they do.

One place decides between a cluster that exists and worker processes on this machine, and holds the one client of the
process. A task gets the cluster's address, a string, and asks `client_of` for the client. Worker processes on this
machine start at the first such call: a run whose every stage is cached starts none.

    with open_cluster(ClusterConfig(), scratch) as address:
        sizes = run_on_workers(client_of(address), size_of, files)

Functions and what they return must be small: references travel, rows do not.
"""

# mypy: allow-untyped-calls
# (distributed says that it is typed, but half of its functions are not)

from __future__ import annotations

import itertools
import logging
import os
import textwrap
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from infra.errors import RunError
from infra.progress import listening
from infra.scaling import needing, scale_with_demand, steady
from infra.tls import TlsFiles
from infra.worker_facts import require_same
from infra.worker_memory import PauseWatch, memory_limits, out_of_memory, was_ended_for_memory

if TYPE_CHECKING:
    from distributed import Client, Future

Item = TypeVar("Item")
Answer = TypeVar("Answer")

CONNECT_TIMEOUT_SECONDS = 30.0
WORKERS_TIMEOUT_SECONDS = 600.0
"""How long a cluster that scales from zero may take to have its first worker."""
WATCH_SECONDS = 1.0
MAX_LOCAL_WORKERS = 8
MEMORY_FRACTION = 0.7
"""Share of this machine's memory for its workers; the rest is for this process, the servers and the system."""
MAX_FUNCTION_BYTES = 1_000_000
TASKS_PER_THREAD = 2
"""In flight: one that runs and one that waits, so that no thread is idle and no scheduler is flooded."""
WORKER_PROCESS = "infra.worker_process"
CAPACITY_SECONDS = 2.0
"""How often workers that have joined or left are counted."""

WORKER_ENVIRONMENT = {
    "OMP_WAIT_POLICY": "passive",  # threads that spin between tasks would take the other worker's core
    # Dask asks the C library to return 64 KiB at a time. It then maps every array of NumPy anew, page by page: twice
    # the processor time of a profile. With these, blocks up to 32 MiB are kept, 128 MiB in all.
    "MALLOC_TRIM_THRESHOLD_": str(128 * 2**20),
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
}
"""What the processes of workers on this machine start with, beside their number of threads."""

SETTINGS: dict[str, Any] = {
    "dataframe.convert-string": False,
    "distributed.scheduler.allowed-failures": 2,
    "distributed.scheduler.worker-saturation": 1.0,
    "distributed.scheduler.locks.lease-timeout": "15s",  # after which workers of a killed client's gang are free
    "distributed.scheduler.no-workers-timeout": f"{WORKERS_TIMEOUT_SECONDS:.0f}s",
}


class ClusterConfig(BaseModel):
    """Where Dask runs."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    address: str | None = Field(default=None, pattern=r"^(tcp|tls)://.+:\d+$")
    """Address of a Dask scheduler that runs already, such as tcp://10.0.0.5:8786; without it, worker processes are
    started on this machine when the first one is needed."""
    workers: int | None = Field(default=None, ge=1)
    """Worker processes on this machine; without it, one for two cores, at least two where there are two cores."""
    threads_per_worker: int | None = Field(default=None, ge=1)
    """Threads of a worker on this machine; without it, the cores divided by the workers."""
    memory_limit: str | None = Field(default=None, pattern=r"(?i)^\d+(\.\d+)? ?([kmgt]i?)?b$")
    """Memory of one worker on this machine, such as 4GiB; without it, 70% of the memory divided by the workers."""
    min_workers: int | None = Field(default=None, ge=1)
    """Worker processes on this machine that are always there, where max_workers is set; without it, 1."""
    max_workers: int | None = Field(default=None, ge=1)
    """Most worker processes on this machine: they are started as there is work for them, and end when there is none.
    During a training none ends."""
    tls_ca: str | None = None
    """File (PEM) with the authority of a tls:// address. Relative paths start at the folder of the configuration."""
    tls_cert: str | None = None
    """File (PEM) with the certificate by which that cluster knows this process."""
    tls_key: str | None = None
    """File (PEM) with that certificate's key, without a password."""

    training_port: int | None = Field(default=None, ge=1, le=65535)
    """Port of the scheduler's machine at which the members of a training meet, for clusters behind a firewall; without
    it any free one. With it one training of several members runs at a time."""

    @model_validator(mode="after")
    def _check_place(self) -> ClusterConfig:
        here = ("workers", "memory_limit", "min_workers", "max_workers")
        if self.address and (given := [name for name in here if getattr(self, name) is not None]):
            raise ValueError(f"{', '.join(given)} is about workers of this machine; leave it out beside address")
        files = [name for name in ("tls_ca", "tls_cert", "tls_key") if getattr(self, name) is not None]
        is_tls = (self.address or "").startswith("tls://")
        if is_tls and len(files) < 3:
            raise ValueError("a tls:// address needs tls_ca, tls_cert and tls_key beside it")
        if files and not is_tls:
            raise ValueError(f"{', '.join(files)} needs an address that starts with tls://")
        return self

    @model_validator(mode="after")
    def _check_limits(self) -> ClusterConfig:
        if self.max_workers is None:
            if self.min_workers is not None:
                raise ValueError("min_workers needs max_workers beside it")
        elif self.workers is not None:
            raise ValueError("workers is a fixed number; leave it out beside max_workers")
        elif self.max_workers < (self.min_workers or 1):
            raise ValueError("max_workers is at least min_workers")
        return self

    def tls_files(self, base: Path) -> TlsFiles | None:
        """Return the files of a tls:// address, found from a folder; None for other clusters."""
        if self.tls_ca is None or self.tls_cert is None or self.tls_key is None:
            return None
        return TlsFiles(*(base / Path(name).expanduser() for name in (self.tls_ca, self.tls_cert, self.tls_key)))


class LazyCluster:
    """A cluster that is connected to, or started, when its client is first asked for."""

    def __init__(
        self, config: ClusterConfig, scratch: Path, modules: Sequence[str] = (), tls: TlsFiles | None = None
    ) -> None:
        self.config = config
        self.scratch = scratch
        self.on_note: Callable[[str], None] = lambda _text: None
        """Who is told what a person should know of the cluster."""
        self._modules = modules
        self._tls = tls
        self._lock = threading.Lock()
        self._held = ExitStack()
        self._client: Client | None = None

    @property
    def is_started(self) -> bool:
        """Return whether anybody has asked for the client."""
        return self._client is not None

    def start_early(self) -> None:
        """Start in the background; if that fails, the first to ask for the client hears of it."""

        def start() -> None:
            with suppress(RuntimeError, OSError):
                self.client()

        threading.Thread(target=start, name="dask-start", daemon=True).start()

    def client(self) -> Client:
        """Return the client, the same one to every thread.

        Raises:
            RunError: no scheduler answers at the address, it has no worker, or a worker is not like this process.
        """
        with self._lock:
            if self._client is None:
                with ExitStack() as opened:
                    self._client = self._open(opened)
                    self._held = opened.pop_all()
            return self._client

    def _open(self, opened: ExitStack) -> Client:
        import dask
        import distributed  # noqa: F401  its defaults must be there first, or they are taken back with ours

        opened.enter_context(dask.config.set(SETTINGS))
        if self.config.address is None:
            return start_local(self.config, self.scratch, opened, self._modules)
        client = connect(self.config.address, self._tls, opened)
        for note in require_same(client, self.config.address):
            self.on_note(note)
        return client

    def close(self) -> None:
        """Close the client, and end the workers if they were started here."""
        with self._lock:
            self._client = None
            self._held.close()


_open_clusters: dict[str, LazyCluster] = {}
_early: list[LazyCluster] = []
_numbers = itertools.count(1)


@contextmanager
def open_cluster(
    config: ClusterConfig, scratch: Path, base: Path = Path(), on_note: Callable[[str], None] | None = None
) -> Iterator[str]:
    """Yield the address by which `client_of` finds the cluster in this process; close it afterwards.

    Args:
        config: which cluster.
        scratch: a folder on a large disk, for what workers spill.
        base: the folder in which relative paths of the configuration start.
        on_note: is told what a person should know of the cluster.

    Raises:
        InputError: the files of a tls:// address are missing or do not fit.
    """
    if tls := config.tls_files(base):
        tls.check()
    address = config.address or f"local:{next(_numbers)}"
    assert address not in _open_clusters, f"{address} is open already"
    early = next((one for one in _early if (one.config, one.scratch) == (config, scratch)), None)
    cluster = early or LazyCluster(config, scratch, tls=tls)
    cluster.on_note = on_note or cluster.on_note
    _open_clusters[address] = cluster
    try:
        yield address
    finally:
        del _open_clusters[address]
        cluster.close()


@contextmanager
def started_early(config: ClusterConfig, scratch: Path, modules: Sequence[str]) -> Iterator[None]:
    """Start workers of this machine in the background, for whoever opens a cluster of this configuration meanwhile.

    `modules` are what the workers import while they have nothing to do.
    """
    cluster = LazyCluster(config, scratch, modules)
    _early.append(cluster)
    cluster.start_early()
    try:
        yield
    finally:
        _early.remove(cluster)
        cluster.close()


def client_of(address: str) -> Client:
    """Return the client of an open cluster, which starts it if nobody has asked before.

    Raises:
        RunError: no scheduler answers at the address, or it has no worker.
    """
    assert address in _open_clusters, f"no cluster is open at {address}; use open_cluster"
    return _open_clusters[address].client()


def config_of(address: str) -> ClusterConfig:
    """Return the configuration of an open cluster."""
    return _open_clusters[address].config


def is_started(address: str) -> bool:
    """Return whether an open cluster has been used."""
    return _open_clusters[address].is_started


def cpu_count() -> int:
    """Return the cores that this process may use: those of its affinity and control group."""
    from dask.system import cpu_count as count

    return int(count())


def local_shape(config: ClusterConfig, cores: int) -> tuple[int, int]:
    """Return the workers, at most, and the threads of each, for a machine with this many cores.

    >>> [local_shape(ClusterConfig(), cores) for cores in (1, 2, 4, 16, 32)]
    [(1, 1), (2, 1), (2, 2), (8, 2), (8, 4)]
    """
    if most := config.workers or config.max_workers:
        return most, config.threads_per_worker or max(1, cores // most)
    if config.threads_per_worker is not None:
        return max(1, cores // config.threads_per_worker), config.threads_per_worker
    workers = min(max(min(cores, 2), cores // 2), MAX_LOCAL_WORKERS)
    return workers, cores // workers


def connect(address: str, tls: TlsFiles | None, opened: ExitStack) -> Client:
    """Return a client of a cluster that runs already and has a worker; what must be closed is put on the stack."""
    from distributed import Client, Security

    security = None
    if tls:
        security = Security(
            tls_ca_file=str(tls.ca), tls_client_cert=str(tls.cert), tls_client_key=str(tls.key), require_encryption=True
        )
    try:
        client = Client(address, timeout=CONNECT_TIMEOUT_SECONDS, security=security)
    except OSError as error:  # TimeoutError is one
        other = " with these cluster.tls_ files" if tls else ""
        raise RunError(
            f"A Dask scheduler must answer at cluster.address{other}, but got cluster.address={address} "
            f"({error}). Start that cluster, or leave cluster.address out to run on this machine."
        ) from error
    opened.callback(client.close)  # not a context: that binds it to this thread
    try:
        client.wait_for_workers(1, timeout=WORKERS_TIMEOUT_SECONDS)
    except TimeoutError as error:
        raise RunError(
            f"A cluster needs at least 1 worker, but got workers=0 at {address} after "
            f"{WORKERS_TIMEOUT_SECONDS:.0f} s. Start workers of that cluster."
        ) from error
    return client


def start_local(config: ClusterConfig, scratch: Path, opened: ExitStack, modules: Sequence[str] = ()) -> Client:
    """Start worker processes on this machine, which import some modules, and return a client of theirs."""
    import dask
    from distributed import Client, LocalCluster
    from distributed.system import MEMORY_LIMIT

    logging.getLogger("distributed").setLevel(logging.ERROR)
    workers, threads = local_shape(config, cpu_count())
    scratch.mkdir(parents=True, exist_ok=True)
    environment = dict.fromkeys(
        ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS"], str(threads)
    )
    environment |= WORKER_ENVIRONMENT
    opened.enter_context(
        dask.config.set(
            {f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in environment.items()},
            temporary_directory=str(scratch),
        )
    )
    before = dict(os.environ)
    opened.callback(restore_environment, before)
    try:
        cluster = LocalCluster(
            n_workers=workers if config.max_workers is None else config.min_workers or 1,
            threads_per_worker=threads,
            memory_limit=config.memory_limit or int(MEMORY_FRACTION * MEMORY_LIMIT / workers),
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            local_directory=str(scratch),
            preload=[WORKER_PROCESS, *modules],
            silence_logs=logging.CRITICAL,  # what matters becomes an exception here
        )
    except RuntimeError as error:
        raise RunError(
            f"Worker processes must start on this machine, but got workers={workers} that ended at once ({error}). "
            "Run it again; if that does not help, lower cluster.workers or free some memory."
        ) from error
    opened.enter_context(cluster)
    restore_environment(before)
    client = Client(cluster)
    opened.callback(client.close)
    if config.max_workers is not None:
        limits = (config.min_workers or 1, config.max_workers)
        scale_with_demand(client, cluster, limits, threads, lambda: restore_environment(before))
    return client


def restore_environment(before: Mapping[str, str]) -> None:
    """Take back what Dask has set in this process to start its workers; other children would inherit it."""
    import dask

    for name in dask.config.get("distributed.nanny.pre-spawn-environ") | {"PYTHONHASHSEED": ""}:
        if name in before:
            os.environ[name] = before[name]
        else:
            os.environ.pop(name, None)


def run_on_workers(
    client: Client,
    function: Callable[[Item], Answer],
    items: Sequence[Item],
    *,
    on_done: Callable[[int, int], None] | None = None,
    describe: Callable[[Item], str] = repr,
) -> list[Answer]:
    """Run a function once per item, on any worker, and return the answers in the order of the items.

    `on_done(done, total)` follows. An item may run twice when its worker dies; the function is idempotent. The first
    error ends it all: what has not begun never does, and the function's own error is raised as it is.

    Raises:
        RunError: an item's workers died, or the cluster was lost.
    """
    check_size(function)
    capacity = Capacity(client)
    watch = PauseWatch(client)
    group = f"{name_of(function)}-{uuid.uuid4().hex}"
    waiting = iter(enumerate(items))
    answers: dict[int, Answer] = {}
    in_flight: dict[Future[Any], int] = {}
    ended: SimpleQueue[Future[Any]] = SimpleQueue()

    def submit() -> None:
        # The scheduler keeps a group's tasks back from busy workers once it has seen two per thread. Until then no more
        # than one per thread is sent: of two on one thread, the innocent one could be blamed for the worker's death.
        threads = capacity.threads()
        is_queued = len(answers) > TASKS_PER_THREAD * threads
        room = threads * (TASKS_PER_THREAD if is_queued else 1) - len(in_flight)
        for index, item in itertools.islice(waiting, max(0, room)):
            future = client.submit(function, item, key=(group, index), pure=False, retries=0)
            in_flight[future] = index
            future.add_done_callback(ended.put)

    with needing(client, len(items)) as tell:
        try:
            while len(answers) < len(items):
                submit()
                try:
                    future = ended.get(timeout=WATCH_SECONDS)
                except Empty:
                    watch.look()
                    continue
                index = in_flight[future]
                answers[index] = answer_of(client, future, f"item={brief(describe(items[index]))}")
                del in_flight[future]
                tell(len(items) - len(answers))
                if on_done is not None:
                    on_done(len(answers), len(items))
        finally:
            cancel(client, list(in_flight))
    return [answers[index] for index in range(len(items))]


def on_one_worker(
    client: Client,
    function: Callable[..., Answer],
    *args: object,
    on_event: Callable[[dict[str, Any]], None] | None = None,
    worker: str | None = None,
) -> Answer:
    """Run a function once, on one worker, and return its answer.

    What it tells `infra.progress.report_progress` reaches `on_event`, in order, on a thread of the client. It is never
    run a second time: when its worker dies, that is an error. `worker` is the address of a certain one.

    Raises:
        RunError: the worker died, or the cluster was lost.
    """
    check_size(function)
    with steady(client):
        threads = threads_of(client)
        if not threads:
            raise lost_cluster("workers=0")
        busy = client.processing()
        address = worker or min(threads, key=lambda one: len(busy.get(one, ())))
        topic = f"progress-{uuid.uuid4().hex}"
        if on_event is not None:
            client.subscribe_topic(topic, lambda stamped: on_event(stamped[1]["event"]))
        future = client.submit(
            run_and_report,
            topic,
            function,
            args,
            key=f"{name_of(function)}-{topic}",
            workers=[address],
            pure=False,
            retries=0,
        )
        try:
            answer: Answer = awaited(client, future, address, f"task={name_of(function)} on worker={address}")
            return answer
        finally:
            cancel(client, [future])
            if on_event is not None:
                client.unsubscribe_topic(topic)


def awaited(client: Client, future: Future[Any], address: str, what: str) -> Any:
    """Return the answer of a task that is on one worker; an error when that worker is lost, or can't begin."""
    limit = memory_limits(client).get(address, 0)
    watch = PauseWatch(client, address)
    ended = threading.Event()
    future.add_done_callback(lambda _: ended.set())
    while not ended.wait(WATCH_SECONDS):
        if address not in threads_of(client) and not future.done():
            raise lost_worker(client, address, limit, what)
        watch.look()
    return answer_of(client, future, what)


class Capacity:
    """The threads of a cluster whose workers come and go."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._threads = 0
        self._counted_at = -CAPACITY_SECONDS

    def threads(self) -> int:
        """Return the number of threads, at least one, counted every few seconds."""
        if time.monotonic() - self._counted_at >= CAPACITY_SECONDS:
            self._threads = max(1, sum(threads_of(self._client).values()))
            self._counted_at = time.monotonic()
        return self._threads


def threads_of(client: Client) -> dict[str, int]:
    """Return the threads of each worker by its address.

    Raises:
        RunError: the scheduler is gone.
    """
    try:
        return dict(client.nthreads())
    except OSError as error:
        raise lost_cluster("workers=unknown") from error


def cancel(client: Client, futures: list[Future[Any]]) -> None:
    """Give up futures; a scheduler that is gone has none."""
    if client.status == "running":
        client.cancel(futures)


def run_and_report(topic: str, function: Callable[..., Answer], args: tuple[object, ...]) -> Answer:
    """Run a function on this worker, with its progress sent to whoever follows the topic."""
    from distributed import get_worker

    worker = get_worker()
    with listening(lambda event: worker.log_event(topic, {"event": event})):
        return function(*args)


def answer_of(client: Client, future: Future[Any], what: str) -> Any:
    """Return a future's answer, or raise its error: the function's own as it is, Dask's as a RunError."""
    from distributed import CancelledError, KilledWorker
    from distributed.scheduler import NoValidWorkerError

    try:
        return future.result()
    except KilledWorker as error:
        raise lost_worker(client, error.last_worker.address, error.last_worker.memory_limit, what) from error
    except (CancelledError, NoValidWorkerError) as error:
        raise lost_cluster(f"state={future.status} for {what}") from error


def lost_cluster(found: str) -> RunError:
    """Return the error for a cluster that ended, or lost all its workers for long."""
    return RunError(
        f"The cluster must stay up during a run, but got {found}. "
        "See the scheduler's log, and start the run again; it goes on from what is done."
    )


def lost_worker(client: Client, address: str, memory_limit: int, what: str) -> RunError:
    """Return the error for a worker that died of its task, mostly for want of memory."""
    if was_ended_for_memory(client, address):
        return out_of_memory(what, memory_limit, is_local=client.cluster is not None)
    return RunError(
        f"A worker must survive its task, but got worker=lost for {what}. "
        "Give each worker more memory with cluster.memory_limit, or have fewer with cluster.workers."
    )


def check_size(function: Callable[..., object]) -> None:
    """Refuse a function that carries data along; data is read where it is used."""
    from distributed.protocol.pickle import dumps

    num_bytes = len(dumps(function))
    assert num_bytes <= MAX_FUNCTION_BYTES, f"{function} carries {num_bytes} bytes; send a reference"


def name_of(function: Callable[..., object]) -> str:
    """Return a function's name, for keys and messages."""
    return str(getattr(function, "__name__", type(function).__name__))


def brief(text: str) -> str:
    """Return a text short enough for a message."""
    return textwrap.shorten(text, 200, placeholder="...")
