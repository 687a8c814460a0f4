"""Remove what no version and no next run needs: old caches, deleted MLflow runs, old flow runs, what crashes left.

look -> announce -> clean. A dry run ends after announce.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from prefect import State, flow

from flows.config import RetrainConfig
from flows.deployed import leave_mark, skipped
from flows.workspace import follower_of, open_tracking
from infra.ledger import Ledger
from infra.services import is_recorded_elsewhere, running
from infra.settings import Places, Settings
from infra.storage import Store
from infra.tracking import Tracking, default_uri
from tasks._maintain import Group, grouped
from tasks.maintain import announce, clean, look
from tasks.stage import Run


@dataclass(frozen=True)
class Maintained:
    """What was removed, or would be."""

    model: str
    is_dry_run: bool
    groups: tuple[Group, ...]
    waiting: tuple[Group, ...]
    """What nothing refers to, but not for long enough: a later run removes it."""
    notes: tuple[str, ...]

    @property
    def num_bytes(self) -> int:
        """Return the size of all that was removed."""
        return sum(group.num_bytes for group in self.groups)

    def to_json(self) -> dict[str, Any]:
        """Return the public form."""
        return {**asdict(self), "num_bytes": self.num_bytes}


@flow(name="maintain", flow_run_name="maintain {config.model.name}", persist_result=False)
def maintain(config: RetrainConfig, config_path: str, dry_run: bool = False) -> Maintained | State[None]:
    """Return what was removed; with dry_run, what would be.

    Args:
        config: What stays, and for how long, is in its section maintain.
        config_path: The model's evergreen.toml.
        dry_run: Only show what would be removed.
    """
    if end := skipped("maintain", config, config_path):
        return end
    settings = Settings()
    places = settings.locate(config_path)
    leave_mark(places.state)
    run = run_without_record(config, Path(config_path), settings, places)
    database = database_of(run.tracking, places.state)
    found = look(run, config.maintain, places.state / "dask", database)
    announce(run, found, dry_run)
    removed = found.garbage if dry_run else clean(run, config.maintain, found, database)
    notes = (*found.storage.sweep.notes, *found.notes)
    return Maintained(run.model, dry_run, grouped(removed), grouped(found.storage.sweep.postponed), notes)


def run_without_record(config: RetrainConfig, path: Path, settings: Settings, places: Places) -> Run:
    """Return a run that needs no cluster and that MLflow does not hear of: it is no experiment."""
    store, model = Store(places.root), config.model.name
    return Run(
        model=model,
        store=store,
        ledger=Ledger(store, model),
        tracking=open_tracking(settings, places, model),
        run_id="",
        cluster="",
        base=path.parent,
        reporter=follower_of(places.state, model),
    )


def database_of(tracking: Tracking, state: Path) -> str | None:
    """Return MLflow's own database; None where only the address of its server is known."""
    if urlsplit(tracking.uri).scheme not in ("http", "https"):
        return tracking.uri
    services = running(state)
    if services and services.mlflow_url == tracking.uri and not is_recorded_elsewhere(state):
        return default_uri(state)
    return None
