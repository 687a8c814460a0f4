"""A first look at the source files, before any server or worker process starts: is a name wrong, is a file new?

What it refuses, the stages refuse in the same words; here it costs less than a second instead of the start of all
that a run needs. Files too large or too many for that are left to the stages.
"""

from __future__ import annotations

import os
from pathlib import Path

from infra.storage import Store
from tasks._cache import Cache
from tasks._fingerprints import known_snapshot
from tasks._jobs import PROFILES, profile_key
from tasks._kinds import check_names
from tasks._profile_tree import levels_of, missing_of
from tasks._readers import read_schema
from tasks._snapshot import DataConfig, all_paths

MAX_BYTES = 128 * 2**20
MAX_FILES = 500


def first_look(config: DataConfig, model: str, base: Path, store: Store) -> bool:
    """Return whether something has yet to be profiled; True where it is not looked.

    Raises:
        InputError: a source is absent or unreadable, or data.target or another key names no column.
    """
    paths = all_paths(config, base)
    if len(paths) > MAX_FILES or sum(os.path.getsize(path) for path in paths if os.path.exists(path)) > MAX_BYTES:
        return True
    snapshot = known_snapshot(store, model, config, base)
    levels = levels_of([profile_key(unit, config.time) for unit in snapshot.units])
    profiles = Cache(store, "profiles")
    missing, unknown = missing_of(profiles, levels)
    if not missing[-1]:
        check_names(list(profiles.get(levels[-1][0].key, PROFILES).columns), config)
    elif all(file.format != "jsonl" for file in snapshot.files):  # any of its lines may add a column
        check_names(list(dict.fromkeys(name for file in snapshot.files for name in read_schema(file))), config)
    return bool(unknown)
