"""Collect the garbage of the storage: list it, and remove what is still garbage when it is removed.

`evergreen maintain` and `evergreen gc` both do this, and nothing else deletes.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from infra.ledger import Ledger
from infra.storage import DamagedError, MissingError, Store, Stored
from tasks._maintain import (
    MUST_BE_READABLE,
    UNREFERENCED,
    VERSION,
    Garbage,
    MaintainConfig,
    Sweep,
    is_read,
    kept_versions,
    models_of,
    plan_sweep,
    texts_in,
)
from tasks._versions import list_versions

READERS = 32


@dataclass(frozen=True)
class StorageFound:
    """What may go of the storage."""

    sweep: Sweep
    leftovers: tuple[Stored, ...]
    """What killed writers have left."""

    @property
    def garbage(self) -> tuple[Garbage, ...]:
        """Everything that goes, in the order in which it goes."""
        why = "its writer has not gone on for the grace period"
        leftovers = (
            Garbage("storage", "upload" if found.upload else "temporary file", found.name, found.num_bytes, why)
            for found in self.leftovers
        )
        return (*self.sweep.garbage, *leftovers)


def versions_to_keep(store: Store, model: str, config: MaintainConfig, pinned: Collection[str]) -> dict[str, set[str]]:
    """Return the versions of every model of the storage that can be rolled back to; of other models, all."""
    kept = {name: set(list_versions(store, name)) for name in models_of(store.inventory("versions/"))}
    rows = Ledger(store, model).rows()
    kept[model] = kept_versions(rows, list_versions(store, model), config.keep_versions, pinned)
    return kept


def look_in(
    store: Store, model: str, config: MaintainConfig, kept: Mapping[str, Collection[str]], now: float
) -> StorageFound:
    """Return what may go now; nothing is removed. Errors as `sweep_of`."""
    return StorageFound(
        sweep=sweep_of(store, model, config, kept, now),
        leftovers=tuple(found for found in store.leftovers() if found.modified < now - config.grace_seconds),
    )


def remove(
    store: Store,
    model: str,
    config: MaintainConfig,
    found: StorageFound,
    kept: Mapping[str, Collection[str]],
    now: float,
) -> list[Garbage]:
    """Remove what was listed and is garbage still; return what is gone.

    It may be killed anywhere and begun again: entries go before the content that they referred to.
    """
    again = sweep_of(store, model, config, kept, now)
    gone = [one for one, stored in _both(found.sweep, again) if store.discard(stored)]
    store.put(UNREFERENCED, json.dumps(dict(again.unreferenced)).encode())
    listed = {one.name: one for one in found.garbage if one.kind in ("upload", "temporary file")}
    return gone + [listed[stored.name] for stored in found.leftovers if store.discard(stored)]


def _both(first: Sweep, second: Sweep) -> list[tuple[Garbage, Stored]]:
    """Return what two sweeps agree on, entries before content."""
    names = {one.name: one for one in first.garbage}
    return [(names[found.name], found) for found in (*second.entries, *second.content) if found.name in names]


def sweep_of(
    store: Store, model: str, config: MaintainConfig, kept: Mapping[str, Collection[str]], now: float
) -> Sweep:
    """Return what of the storage may go now.

    Raises:
        DamagedError: what an object protects can't be read, so that nothing can be removed.
    """
    stored = store.inventory()
    names = {found.name for found in stored}
    read = [found.name for found in stored if is_read(found.name)]
    with ThreadPoolExecutor(READERS) as readers:
        payloads = readers.map(lambda name: (name, _payload(store, name)), read)
        references, forgotten = {}, set()
        for name, payload in payloads:
            references[name] = frozenset(_texts(store, name, payload) & names) - {name}
            if is_forgotten(name, payload, kept):
                forgotten.add(name)
    return plan_sweep(stored, references, model, config, now, forgotten=forgotten, seen=_seen(store))


def _payload(store: Store, name: str) -> bytes:
    try:
        return store.get(name)
    except MissingError:  # it was removed since it was listed, as a server's report is
        return b"{}"


def _texts(store: Store, name: str, payload: bytes) -> set[str]:
    try:
        return set(texts_in(payload))
    except ValueError as error:
        if name.startswith(MUST_BE_READABLE):
            next_step = "Restore it, or delete it if it does not matter: nothing is removed before that."
            raise DamagedError(name, store.uri(name), f"text={payload[:40]!r}, which is no JSON,", next_step) from error
        return set()


def is_forgotten(name: str, payload: bytes, kept: Mapping[str, Collection[str]]) -> bool:
    """Tell whether an object describes a version that nobody can roll back to."""
    match = VERSION.fullmatch(name)
    if match is None or match["model"] not in kept:
        return False
    return (match["number"] or json.loads(payload).get("version")) not in kept[match["model"]]


def _seen(store: Store) -> dict[str, float]:
    """Return since when content has been unreferenced, as earlier sweeps have found; nothing where none has."""
    with suppress(MissingError, ValueError):
        return {name: float(since) for name, since in json.loads(store.get(UNREFERENCED)).items()}
    return {}
