"""What is known of source files from earlier runs, so that a file that has not changed is not read again.

A file is taken for the one that was hashed if its size, its inode and both of its times are the same, as git does. A
time of change cannot be set by a program. A file that was written within two seconds of being hashed is hashed again:
it may have changed once more within the resolution of its file system's clock. An object on S3 is known by the ETag
and the size that a listing gives for a thousand objects at once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from infra.objects import S3Object, is_named
from infra.sources import SCHEME, Source
from infra.storage import MissingError, Store
from tasks._cache import key_of
from tasks._snapshot import CsvConfig, DataConfig, Snapshot, SourceFile, all_sources, entries_of, source_file

RACY_NS = 2 * 10**9
"""How old a file must be when it is hashed; file systems keep times to 2 s or better."""
OBJECTS_AT_ONCE = 16
"""How many new objects are looked at side by side: most of the time is spent waiting for S3."""


@dataclass(frozen=True)
class Fingerprint:
    """A file as it was when it was hashed."""

    file: SourceFile
    inode: int
    """0 of an object, as is its time of change."""
    changed_ns: int
    hashed_ns: int
    """When it was hashed, by this machine's clock."""
    csv: str
    """Of the settings by which its dialect was detected."""


@dataclass(frozen=True)
class Fingerprints:
    """All files of a model, by their paths."""

    files: dict[str, Fingerprint]

    def find(self, source: Source, csv: CsvConfig) -> SourceFile | None:
        """Return a file that is still what it was."""
        known = self.files.get(str(source))
        if known is None or known.csv != csv_key(known.file, csv):
            return None
        if isinstance(source, S3Object):
            is_listed = (known.file.digest, known.file.num_bytes) == (source.digest, source.num_bytes)
            return known.file if is_listed else None
        try:
            now = os.stat(source)
        except OSError:
            return None
        then = (known.file.num_bytes, known.file.modified_ns, known.inode, known.changed_ns)
        is_same = then == (now.st_size, now.st_mtime_ns, now.st_ino, now.st_ctime_ns)
        is_racy = max(now.st_mtime_ns, now.st_ctime_ns) > known.hashed_ns - RACY_NS
        return known.file if is_same and not is_racy else None

    def origin(self, file: SourceFile) -> str:
        """Say what a file is to earlier runs."""
        before = self.files.get(file.path)
        if before is not None:
            return "unchanged" if before.file.key == file.key else "changed since it was last read"
        other = next((path for path, one in self.files.items() if one.file.key == file.key), None)
        return f"the same as {Path(other).name}" if other else "new"


FINGERPRINTS: TypeAdapter[Fingerprints] = TypeAdapter(Fingerprints)


def csv_key(file: SourceFile, csv: CsvConfig) -> str:
    """Return what a file's dialect depends on beside its bytes."""
    return key_of(csv) if file.format == "csv" else ""


def fingerprints_name(model: str) -> str:
    """Return the name of the object that keeps a model's fingerprints."""
    return f"fingerprints/{model}.json"


def load_fingerprints(store: Store, model: str) -> Fingerprints:
    """Return what is known of a model's files; nothing if there is nothing, or it can't be read."""
    try:
        return FINGERPRINTS.validate_json(store.get(fingerprints_name(model)))
    except (MissingError, ValueError):
        return Fingerprints({})


def known_snapshot(store: Store, model: str, config: DataConfig, base: Path, *, remember: bool = True) -> Snapshot:
    """Take a snapshot in which only new and changed files are read, and remember what was found.

    Raises:
        InputError: as `take_snapshot` does.
    """
    known = load_fingerprints(store, model)
    sources = all_sources(config, base)
    found = {str(source): known.files[str(source)] for source in sources if known.find(source, config.csv)}
    new = [source for source in sources if str(source) not in found]
    found |= {one.file.path: one for one in fingerprinted(new, config.csv)}
    if remember and found != known.files:
        kept = merged(known.files, found, entries_of(config))
        store.put(fingerprints_name(model), FINGERPRINTS.dump_json(Fingerprints(kept)))
    return Snapshot(tuple(found[path].file for path in sorted(found)), num_read=len(new))


def fingerprinted(sources: Sequence[Source], csv: CsvConfig) -> Iterator[Fingerprint]:
    """Yield new files as they are now, one after the other, then new objects, several side by side."""
    yield from (fingerprint(source, csv) for source in sources if isinstance(source, str))
    objects = [source for source in sources if isinstance(source, S3Object)]
    if objects:
        with ThreadPoolExecutor(OBJECTS_AT_ONCE) as pool:
            yield from pool.map(lambda found: fingerprint(found, csv), objects)


def fingerprint(source: Source, csv: CsvConfig) -> Fingerprint:
    """Return a file as it is now."""
    hashed_ns = time.time_ns()
    file = source_file(source, csv)
    state = os.stat(source) if isinstance(source, str) else None
    inode, changed_ns = (state.st_ino, state.st_ctime_ns) if state else (0, 0)
    return Fingerprint(file, inode, changed_ns, hashed_ns, csv_key(file, csv))


def merged(
    known: Mapping[str, Fingerprint], found: Mapping[str, Fingerprint], entries: Sequence[str]
) -> dict[str, Fingerprint]:
    """Return what is known after a run; files that are gone are forgotten, and objects that `entries` would name."""
    others = {path: one for path, one in known.items() if path not in found and _may_be_there(path, entries)}
    return {**others, **found}


def _may_be_there(path: str, entries: Sequence[str]) -> bool:
    """Say whether a file that was not found may exist; nobody is asked about an object of another source."""
    if not path.startswith(SCHEME):
        return os.path.exists(path)
    return not any(is_named(path, entry) for entry in entries)
