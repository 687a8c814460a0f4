"""A first look at the source files, before any server or worker process starts: is a name wrong, is a file new?

What it refuses, the stages refuse in the same words; here it costs less than a second instead of the start of all
that a run needs. Files too large or too many for that are left to the stages.
"""

from __future__ import annotations

from pathlib import Path

from infra.objects import S3Object
from infra.sources import Source, size_of
from infra.storage import Store
from tasks._cache import Cache
from tasks._fingerprints import known_snapshot
from tasks._jobs import PROFILES, profile_key
from tasks._kinds import check_names
from tasks._profile_tree import levels_of, missing_of
from tasks._readers import read_schema
from tasks._snapshot import DataConfig, Snapshot, all_sources

MAX_BYTES = 128 * 2**20
MAX_FILES = 500
MAX_OBJECTS = 20
"""Of how many objects on S3 the columns are looked at, a few requests for each."""


def first_look(config: DataConfig, model: str, base: Path, store: Store) -> bool:
    """Return whether something has yet to be profiled; True where it is not looked.

    Raises:
        InputError: a source is absent or unreadable, or data.target or another key names no column.
    """
    sources = all_sources(config, base)
    if len(sources) > MAX_FILES or sum(_size(source) for source in sources) > MAX_BYTES:
        return True
    snapshot = known_snapshot(store, model, config, base)
    levels = levels_of([profile_key(unit, config.time) for unit in snapshot.units])
    profiles = Cache(store, "profiles")
    missing, unknown = missing_of(profiles, levels)
    if not missing[-1]:
        check_names(list(profiles.get(levels[-1][0].key, PROFILES).columns), config)
    elif _is_quick(snapshot):
        check_names(list(dict.fromkeys(name for file in snapshot.files for name in read_schema(file))), config)
    return bool(unknown)


def _size(source: Source) -> int:
    """Return a source's size; of a file that is not there 0, and reading it will say so."""
    return 0 if isinstance(source, str) and not Path(source).exists() else size_of(source)


def _is_quick(snapshot: Snapshot) -> bool:
    """Say whether the columns of all files are soon found; of JSON Lines any line may add one."""
    num_objects = sum(isinstance(file.source, S3Object) for file in snapshot.files)
    return num_objects <= MAX_OBJECTS and all(file.format != "jsonl" for file in snapshot.files)
