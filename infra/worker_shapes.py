"""How large the workers of a cluster are: threads, memory, GPUs. Those of this machine are known before they start."""

# mypy: allow-untyped-calls

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from infra.clusters import MEMORY_FRACTION, ClusterConfig, client_of, config_of, cpu_count, local_shape
from infra.gang import GPU
from infra.gpus import gpus

THIS_MACHINE = "this machine"


@dataclass(frozen=True)
class WorkerShape:
    """What one worker has."""

    host: str
    threads: int
    memory_bytes: int
    """Its limit; 0: it has none."""
    gpu_bytes: int
    """Memory of its GPU; 0: it has none."""
    host_threads: int = 0
    """Cores of its host that it may use while the others there have nothing to do; 0: not known."""
    host_memory_bytes: int = 0
    """Memory of its host for all workers; 0: not known."""


def shapes_of(address: str) -> list[WorkerShape]:
    """Return the workers of an open cluster; those of this machine need not be started for it.

    Raises:
        RunError: the cluster does not answer.
    """
    config = config_of(address)
    return local_shapes(config) if config.address is None else remote_shapes(address)


def local_shapes(config: ClusterConfig) -> list[WorkerShape]:
    """Return the workers that a configuration asks for on this machine."""
    from dask.utils import parse_bytes
    from distributed.system import MEMORY_LIMIT

    cores = cpu_count()
    workers, threads = local_shape(config, cores)
    whole = int(MEMORY_FRACTION * MEMORY_LIMIT)
    memory = int(parse_bytes(config.memory_limit)) if config.memory_limit else whole // workers
    found = gpus()
    return [
        WorkerShape(
            THIS_MACHINE, threads, memory, found[i].memory_bytes if i < len(found) else 0, max(cores, threads), whole
        )
        for i in range(workers)
    ]


def remote_shapes(address: str) -> list[WorkerShape]:
    """Return the workers of a cluster that runs elsewhere; its GPU workers are asked for their GPUs."""
    client = client_of(address)
    workers: dict[str, Any] = client.scheduler_info(n_workers=-1)["workers"]
    tagged = [one for one, worker in workers.items() if worker["resources"].get(GPU)]
    memory = client.run(gpu_bytes_here, workers=tagged) if tagged else {}
    return [
        WorkerShape(
            str(urlsplit(one).hostname), worker["nthreads"], int(worker["memory_limit"] or 0), memory.get(one, 0)
        )
        for one, worker in sorted(workers.items())
    ]


def gpu_bytes_here() -> int:
    """Return the memory of the first GPU that this worker may use."""
    return next((gpu.memory_bytes for gpu in gpus()), 0)
