"""Workers that have no memory: those that Dask has ended for it, and those that it lets begin nothing."""

# mypy: allow-untyped-calls

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from infra.errors import RunError

if TYPE_CHECKING:
    from distributed import Client

TOPIC = "worker-restart-memory"
"""Where Dask's nanny says that it ends a worker whose memory has passed the limit."""
HEARD_SECONDS = 1.0
"""How long what a nanny says may take."""
PAUSED_SECONDS = 30.0
"""How long workers may have no memory and nothing to do: Dask pauses one at 80% of its limit, and waits for ever."""
SIZES = ((2**30, "GiB"), (2**20, "MiB"))


def was_ended_for_memory(client: Client, worker: str) -> bool:
    """Tell whether Dask has ended a worker because its memory passed the limit."""
    deadline = time.monotonic() + HEARD_SECONDS
    while client.status == "running":
        if any(event["worker"] == worker for _, event in client.get_events(TOPIC)):
            return True
        if time.monotonic() > deadline:
            break
        time.sleep(HEARD_SECONDS / 10)
    return False


def out_of_memory(what: str, memory_limit: int, is_local: bool) -> RunError:
    """Return the error for a task that needs more memory than its worker may have."""
    return RunError(
        f"A worker must have the memory that its task needs, but got memory_limit={size_of(memory_limit)}, passed by "
        f"{what}. {_what_to_set(is_local)}"
    )


def _what_to_set(is_local: bool) -> str:
    if is_local:
        return "Raise cluster.memory_limit, or have fewer workers or threads: cluster.workers, .threads_per_worker."
    return "Start the workers of that cluster with a larger --memory-limit, or with fewer threads."


def size_of(num_bytes: int) -> str:
    """Return a size for people.

    >>> size_of(400_000_000), size_of(4 * 2**30)
    ('381.5 MiB', '4.0 GiB')
    """
    unit, name = next((one for one in SIZES if num_bytes >= one[0]), SIZES[-1])
    return f"{num_bytes / unit:.1f} {name}"


def memory_limits(client: Client) -> dict[str, int]:
    """Return how much memory each worker may have; those without a limit are left out."""
    workers = _workers(client)
    return {address: int(worker["memory_limit"]) for address, worker in workers.items() if worker["memory_limit"]}


def _workers(client: Client) -> Mapping[str, Any]:
    """Return what the scheduler knows of its workers; nothing if it is gone, which others find."""
    try:
        workers: Mapping[str, Any] = client.scheduler_info(n_workers=-1)["workers"]
    except OSError:
        return {}
    return workers


class PauseWatch:
    """Looks, while nothing ends, for workers that will never begin anything."""

    def __init__(self, client: Client, worker: str | None = None) -> None:
        """Watch one worker, or all."""
        self._client = client
        self._worker = worker
        self._since: float | None = None

    def look(self) -> None:
        """Raise a RunError if the workers have been paused, with nothing to do, for too long."""
        watched = {one: worker for one, worker in _workers(self._client).items() if self._worker in (None, one)}
        if not watched or not all(_is_stuck(worker) for worker in watched.values()):
            self._since = None
            return
        self._since = self._since or time.monotonic()
        if time.monotonic() - self._since < PAUSED_SECONDS:
            return
        address, worker = next(iter(watched.items()))
        raise RunError(
            f"A worker must have memory left for a task, but got memory={size_of(worker['metrics']['memory'])} of "
            f"memory_limit={size_of(worker['memory_limit'])} in use on worker={address}, which does nothing. "
            f"{_what_to_set(self._client.cluster is not None)}"
        )


def _is_stuck(worker: Mapping[str, Any]) -> bool:
    counts = worker["metrics"].get("task_counts", {})
    return worker["status"] == "paused" and not any(counts.get(state) for state in ("executing", "long-running"))
