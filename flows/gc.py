"""Collect the garbage of the storage alone: the part of `evergreen maintain` that needs no Prefect."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flows.config import RetrainConfig
from infra.settings import Settings
from infra.storage import Store, Stored
from tasks._collect import look_in, remove, versions_to_keep
from tasks._maintain import FOREIGN, UNREFERENCED, Garbage, kind_of


@dataclass
class KindCount:
    """What becomes of the objects of one kind: numbers and bytes."""

    kind: str
    goes: int = 0
    goes_bytes: int = 0
    waits: int = 0
    """Nothing refers to them, but not for the grace period yet."""
    waits_bytes: int = 0
    stays: int = 0
    stays_bytes: int = 0


@dataclass(frozen=True)
class Collected:
    """What was removed from the storage, or would be, and what stays."""

    model: str
    is_dry_run: bool
    kinds: tuple[KindCount, ...]
    names: tuple[str, ...]
    """What goes."""
    notes: tuple[str, ...]

    @property
    def num_bytes(self) -> int:
        """Return the size of all that goes."""
        return sum(kind.goes_bytes for kind in self.kinds)

    def to_json(self) -> dict[str, Any]:
        """Return the public form."""
        return {**asdict(self), "num_bytes": self.num_bytes}


def collect_garbage(config: RetrainConfig, path: Path, is_dry_run: bool) -> Collected:
    """Remove from the storage what no version and no next run needs; with `is_dry_run`, only say what that is.

    Raises:
        DamagedError: what an object protects can't be read, so that nothing can be removed.
    """
    from flows.workspace import open_tracking
    from tasks.maintain import pinned_versions

    settings, model = Settings(), config.model.name
    places = settings.locate(path)
    store = Store(places.root)
    tracking = open_tracking(settings, places, model)

    def kept() -> dict[str, set[str]]:
        return versions_to_keep(store, model, config.maintain, pinned_versions(tracking, model))

    before = store.inventory()
    found = look_in(store, model, config.maintain, kept(), time.time())
    gone: Sequence[Garbage] = found.garbage
    if not is_dry_run:
        gone = remove(store, model, config.maintain, found, kept(), time.time())
    kinds = counted(before, gone, found.sweep.postponed)
    return Collected(model, is_dry_run, kinds, tuple(one.name for one in gone), found.sweep.notes)


def counted(stored: Iterable[Stored], gone: Sequence[Garbage], waiting: Sequence[Garbage]) -> tuple[KindCount, ...]:
    """Return what becomes of each kind of object, in the order of the kinds' names."""
    counts: dict[str, KindCount] = {}
    by_name = defaultdict(lambda: "stays", {one.name: "waits" for one in waiting} | {one.name: "goes" for one in gone})
    ours = {one.name: (kind_of(one.name), one.num_bytes) for one in stored if _is_ours(one.name)}
    ours |= {one.name: (one.kind, one.num_bytes) for one in gone}
    ours.pop(UNREFERENCED, None)
    for name, (kind, num_bytes) in sorted(ours.items(), key=lambda one: one[1][0]):
        count = counts.setdefault(kind, KindCount(kind))
        what = by_name[name]
        setattr(count, what, getattr(count, what) + 1)
        setattr(count, f"{what}_bytes", getattr(count, f"{what}_bytes") + num_bytes)
    return tuple(counts.values())


def _is_ours(name: str) -> bool:
    """Tell an object from what else lies in a root that is also the state folder: databases, logs, marks of runs."""
    return "/" in name and not name.startswith((*FOREIGN, "processes/"))
