"""Maintain: find what nobody needs any more, in the storage, on this machine, in MLflow and in Prefect; remove it."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun

from infra.tracking import Tracking, deleted_runs, purge_run
from tasks._collect import StorageFound, look_in, remove, versions_to_keep
from tasks._maintain import DAY, Garbage, MaintainConfig, markdown_of
from tasks._versions import list_versions, load_version
from tasks.stage import Run, stage

PAGE = 200
BATCH = 50
"""How many flow runs Prefect deletes in one call at most."""
ENDED = sorted(state.value for state in TERMINAL_STATES)


@dataclass(frozen=True)
class Found:
    """What a run of this flow has found, before it removes anything."""

    storage: StorageFound
    scratch: tuple[Garbage, ...]
    mlflow: tuple[Garbage, ...]
    prefect: tuple[Garbage, ...]
    notes: tuple[str, ...]

    @property
    def garbage(self) -> tuple[Garbage, ...]:
        """Everything that goes."""
        return (*self.storage.garbage, *self.scratch, *self.mlflow, *self.prefect)


@stage()
def look(run: Run, config: MaintainConfig, scratch: Path, database: str | None) -> Found:
    """List all that may go, and remove nothing.

    Args:
        run: where this runs.
        config: how long things stay.
        scratch: the folder of Dask's workers on this machine.
        database: MLflow's database; None where only its server is known.
    """
    now = time.time()
    kept = versions_kept(run, config)
    notes = (
        ()
        if database
        else ("Runs deleted in MLflow stay: a server does not remove them, and its database is not known here.",)
    )
    return Found(
        storage=look_in(run.store, run.model, config, kept, now),
        scratch=stale_scratch(scratch, now - config.grace_seconds),
        mlflow=old_deleted_runs(run, database, config, kept) if database else (),
        prefect=old_flow_runs(run.model, config),
        notes=notes,
    )


@stage()
def announce(run: Run, found: Found, dry_run: bool) -> None:
    """Show the list in the Prefect UI, and say what it comes to."""
    notes = (*found.storage.sweep.notes, *found.notes)
    text = markdown_of(run.model, found.garbage, found.storage.sweep.postponed, notes, dry_run)
    create_markdown_artifact(text, key=f"maintain-{run.model}", description="A dry run" if dry_run else "Maintenance")
    size = sum(one.num_bytes for one in found.garbage)
    run.reporter.noted(f"{len(found.garbage):,} things of {size:,} bytes {'would go' if dry_run else 'go'}.")
    for note in notes:
        run.reporter.noted(note)


@stage()
def clean(run: Run, config: MaintainConfig, found: Found, database: str | None) -> tuple[Garbage, ...]:
    """Remove what was listed and is still not needed; return what is gone.

    It may be killed anywhere and begun again: entries go before the content that they referred to.
    """
    # Somebody may have rolled back, or retrained, since the list was made.
    gone = remove(run.store, run.model, config, found.storage, versions_kept(run, config), time.time())
    for one in found.scratch:
        shutil.rmtree(one.name, ignore_errors=True)
        if not Path(one.name).exists():
            Path(f"{one.name}.dirlock").unlink(missing_ok=True)
            gone.append(one)
    if database:
        gone += [one for one in found.mlflow if purge_run(database, run.tracking.uri, one.name)]
    deleted = delete_flow_runs([UUID(one.name) for one in found.prefect])
    return (*gone, *(one for one in found.prefect if one.name in deleted))


# The storage


def versions_kept(run: Run, config: MaintainConfig) -> dict[str, set[str]]:
    """Return the versions of every model of the storage that can be rolled back to."""
    return versions_to_keep(run.store, run.model, config, pinned_versions(run.tracking, run.model))


def pinned_versions(tracking: Tracking, model: str) -> set[str]:
    """Return the versions that an alias in MLflow points to: somebody means them."""
    return {version.version for version in tracking.versions(model) if version.aliases}


# This machine


def stale_scratch(folder: Path, before: float) -> tuple[Garbage, ...]:
    """Return the folders of Dask workers that were killed before a moment; a worker that lives holds a lock."""
    return tuple(
        Garbage("scratch", "worker folder", str(path), size, "its worker has ended without removing it")
        for path in sorted(folder.glob("dask-scratch-space*/*"))
        if path.is_dir() and not _is_locked(Path(f"{path}.dirlock"))
        for size, newest in [_extent(path)]
        if newest < before
    )


def _is_locked(path: Path) -> bool:
    with suppress(FileNotFoundError), path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _extent(folder: Path) -> tuple[int, float]:
    """Return the size of a folder's files, and when one was last written."""
    size, newest = 0, folder.stat().st_mtime
    for place, _, files in os.walk(folder):
        for file in files:
            with suppress(FileNotFoundError):
                status = Path(place, file).stat()
                size, newest = size + status.st_size, max(newest, status.st_mtime)
    return size, newest


# MLflow and Prefect


def old_deleted_runs(
    run: Run, database: str, config: MaintainConfig, kept: Mapping[str, Collection[str]]
) -> tuple[Garbage, ...]:
    """Return the runs that somebody deleted in MLflow long ago, but for those that a version came from that stays."""
    found = deleted_runs(database, run.tracking.experiment_id, config.mlflow_keep_days * DAY)
    if not found:
        return ()
    origins = {
        load_version(run.store, model, version).run_id
        for model, versions in kept.items()
        for version in set(versions) & set(list_versions(run.store, model))
    }
    why = "it was deleted in MLflow more than mlflow_keep_days ago"
    return tuple(Garbage("mlflow", "deleted run", one.run_id, 0, why) for one in found if one.run_id not in origins)


def old_flow_runs(model: str, config: MaintainConfig) -> tuple[Garbage, ...]:
    """Return the flow runs of a model that ended long ago, whatever way."""
    before = datetime.now(UTC) - timedelta(days=config.prefect_keep_days)
    why = "it ended more than prefect_keep_days ago"
    with get_client(sync_client=True) as client:
        found = {run.id: run for names in _ours(model) for run in _read_flow_runs(client, names, before)}
    return tuple(
        Garbage("prefect", "flow run", str(run.id), 0, why)
        for run in found.values()
        if _is_of(run, model) and (run.end_time or run.expected_start_time or before) < before
    )


def _ours(model: str) -> tuple[dict[str, object], ...]:
    """Return the filters that a model's runs pass: deployments tag theirs, and every flow names its runs."""
    return {"tags": {"all_": [f"model:{model}"]}}, {"name": {"like_": f" {model}"}}


def _is_of(run: FlowRun, model: str) -> bool:
    """Tell whether a run is of this model, and not of one whose name only ends like it."""
    return f"model:{model}" in run.tags or re.fullmatch(rf"[a-z_-]+ {re.escape(model)}", run.name) is not None


def _read_flow_runs(client: SyncPrefectClient, names: Mapping[str, object], before: datetime) -> list[FlowRun]:
    ended = {"state": {"type": {"any_": ENDED}}, "expected_start_time": {"before_": before}}
    found: list[FlowRun] = []
    while True:
        # The client's model of a filter has no defaults that a type checker knows.
        page = client.read_flow_runs(
            flow_run_filter=FlowRunFilter.model_validate({**ended, **names}), limit=PAGE, offset=len(found)
        )
        found += page
        if len(page) < PAGE:
            return found


def delete_flow_runs(ids: Sequence[UUID]) -> set[str]:
    """Delete flow runs with their task runs and logs, if they are still ended; return which are gone."""
    deleted: set[str] = set()
    with get_client(sync_client=True) as client:
        for start in range(0, len(ids), BATCH):
            # One that was started again since it was listed is not ended any more, and the server leaves it.
            chosen = {
                "id": {"any_": [str(one) for one in ids[start : start + BATCH]]},
                "state": {"type": {"any_": ENDED}},
            }
            answer = client.request("POST", "/flow_runs/bulk_delete", json={"flow_runs": chosen, "limit": BATCH})  # type: ignore[arg-type]  # its list of addresses lacks this one
            deleted |= set(answer.json()["deleted"])
    return deleted
