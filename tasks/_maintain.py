"""What of the storage nobody needs any more: mark what is reached from what is kept, and name the rest.

An object is one of three. A cache entry or a dated record may be made again or is of no use when it is old. Content
(shards, scores, bundles) is of use only to what refers to it. Everything else, also what this module has never heard
of, stays. A reference is any text in a JSON object that is the name of another object, so that a new kind of object
protects what it refers to without a word here.

Three things make it safe beside a run that works at the same time. Nothing younger than the grace period goes. An
entry goes before its content, and content goes only if a sweep at least the grace period ago has found it
unreferenced already, and nobody has written it since: a run that found an entry just before it was deleted has that
long to end. And a hit in a cache counts only if all that it refers to is there.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from pydantic import BaseModel, ByteSize, ConfigDict, Field

from infra.errors import InputError
from infra.ledger import Ledger, Row
from infra.storage import Store, Stored
from tasks._versions import ModelVersion, list_versions, load_version

Role = Literal["entry", "record", "content", "kept"]

ENTRY = re.compile(
    r"(profiles|shards)/[^/]+\.json|(stages|checkpoints|searches)/[^/]+/[^/]+\.json"
    r"|checkpoints/[^/]+/\d+/part-\d+\.json"
)
RECORD = re.compile(r"(?P<kind>uses|timetable)/(?P<model>[^/]+)/[^/]+/[^/]+\.json")
CONTENT = re.compile(
    r"shards/[^/]+\.arrow|(scores|bundles|pilots|predictions)/.+|vocabularies/[^/]+/content/.+|checkpoints/.+\.ubj"
    r"|checkpoints/[^/]+/\d+/(\.metadata|.+\.distcp)"
)
VERSION = re.compile(r"versions/(?P<model>[^/]+)/((?P<number>\d+)|bundle-[^/]+)\.json")
FOREIGN = ("mlflow/", "prefect/", "dask/")
"""Folders of other programs, where the root is also the state folder; nothing in them is ours to read."""
MUST_BE_READABLE = ("versions/", "serving/", "vocabularies/", "uses/")
"""Objects that protect others: if one can't be read, nobody knows what it protects."""
UNREFERENCED = "maintenance/unreferenced.json"
"""Since when content has been unreferenced, as sweeps have found."""
HOUR, DAY = 3600.0, 86400.0


class MaintainConfig(BaseModel):
    """What is kept, and for how long."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    keep_days: int = Field(default=30, ge=1, le=3650)
    """Days that cached results stay which the newest run has not used. What it has used always stays."""
    keep_versions: int = Field(default=10, ge=2, le=10_000)
    """How many of the newest versions, and of the newest that were in production, can be rolled back to."""
    grace_hours: int = Field(default=24, ge=1, le=720)
    """Hours that every object stays after it was written or last referred to; must be longer than the longest run."""
    max_bytes: ByteSize | None = None
    """What caches and models may take together: a number of bytes, or a text such as 50GB. When it is more, cached
    results go before keep_days, the oldest first. What versions, the newest run or the grace period need stays, even
    if it is more."""
    mlflow_keep_days: int = Field(default=30, ge=1, le=3650)
    """Days after which runs that a person has deleted in MLflow are removed for good."""
    prefect_keep_days: int = Field(default=90, ge=1, le=3650)
    """Days after which flow runs that have ended are removed from Prefect."""

    @property
    def grace_seconds(self) -> float:
        """The grace period in seconds."""
        return self.grace_hours * HOUR


@dataclass(frozen=True)
class Garbage:
    """One thing that nobody needs any more."""

    place: str
    """Where it is: storage, scratch, mlflow, prefect."""
    kind: str
    name: str
    num_bytes: int
    why: str


@dataclass(frozen=True)
class Sweep:
    """What of the storage goes."""

    entries: tuple[Stored, ...]
    """Cache entries and records: they go at once."""
    content: tuple[Stored, ...]
    """Content that has been unreferenced for the grace period."""
    waiting: tuple[Stored, ...]
    """Content that is unreferenced, but not long enough."""
    unreferenced: Mapping[str, float]
    """What to remember for the next sweep: since when content has been unreferenced, and so what is not removed now."""
    kept_bytes: int
    """Size of the caches and models that stay."""
    notes: tuple[str, ...] = ()
    """What a person should know."""

    @property
    def garbage(self) -> tuple[Garbage, ...]:
        """What goes, in the order in which it goes."""
        return (
            *(_garbage(found, "no run has used it for keep_days, or max_bytes is passed") for found in self.entries),
            *(_garbage(found, "nothing refers to it, for the grace period at least") for found in self.content),
        )

    @property
    def postponed(self) -> tuple[Garbage, ...]:
        """What a later sweep will find."""
        return tuple(
            _garbage(found, "nothing refers to it, but not for the grace period yet") for found in self.waiting
        )


def _garbage(found: Stored, why: str) -> Garbage:
    return Garbage("storage", kind_of(found.name), found.name, found.num_bytes, why)


def kind_of(name: str) -> str:
    """Return what people call the objects that one is of.

    >>> kind_of("stages/train/ab12.json"), kind_of("shards/ab12.arrow"), kind_of("shards/ab12.json")
    ('stages/train', 'shards', 'shards')
    """
    parts = name.split("/")
    return "/".join(parts[:2]) if parts[0] == "stages" else parts[0]


def role_of(name: str, model: str) -> Role:
    """Return how an object is dealt with by a sweep on behalf of a model.

    >>> [role_of(name, "loans") for name in ("profiles/a.json", "bundles/a/model.ubj", "uses/loans/retrain/a.json")]
    ['entry', 'content', 'record']
    >>> [role_of(name, "loans") for name in ("checkpoints/ab/0-00000050.json", "checkpoints/ab/0-00000050.ubj")]
    ['entry', 'content']
    >>> [role_of(name, "loans") for name in ("checkpoints/ab/050/part-00000.json", "checkpoints/ab/050/.metadata")]
    ['entry', 'content']
    >>> [role_of(name, "loans") for name in ("ledger/loans/00000001.json", "uses/churn/retrain/a.json", "novel/a")]
    ['kept', 'kept', 'kept']
    """
    if ENTRY.fullmatch(name):
        return "entry"
    if CONTENT.fullmatch(name):
        return "content"
    record = RECORD.fullmatch(name)
    return "record" if record and record["model"] == model else "kept"


def texts_in(payload: bytes) -> Iterator[str]:
    """Yield every text of a JSON document, names of fields too; a cache entry has its hash on a line before.

    Raises:
        ValueError: it is neither.
    """
    try:
        value = json.loads(payload)
    except ValueError:
        value = json.loads(payload.partition(b"\n")[2])
    rest: list[Any] = [value]
    while rest:
        value = rest.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            rest += value
        elif isinstance(value, dict):
            yield from value
            rest += value.values()


def is_read(name: str) -> bool:
    """Tell whether an object may refer to others."""
    return name.endswith(".json") and not name.startswith(FOREIGN) and name != UNREFERENCED


def models_of(stored: Sequence[Stored]) -> set[str]:
    """Return the models that share the storage."""
    return {found.name.split("/")[1] for found in stored if found.name.startswith(("ledger/", "versions/"))}


def kept_versions(rows: Sequence[Row], versions: Sequence[str], keep: int, pinned: Collection[str] = ()) -> set[str]:
    """Return the versions that can be rolled back to, the champion among them.

    Args:
        rows: the model's ledger.
        versions: its versions from the first to the last.
        keep: how many of the newest ones, and how many of the newest that were in production.
        pinned: further ones.
    """
    champions = [row.version for row in reversed(rows) if row.action != "verdict" and row.version]
    judged = [row.version for row in rows[-1:] if row.version]
    return {*list(dict.fromkeys(champions))[: max(keep, 2)], *versions[-keep:], *judged, *pinned}


def plan_sweep(
    stored: Sequence[Stored],
    references: Mapping[str, Set[str]],
    model: str,
    config: MaintainConfig,
    now: float,
    *,
    forgotten: Set[str] = frozenset(),
    seen: Mapping[str, float] | None = None,
) -> Sweep:
    """Return what of the storage a sweep on behalf of a model may delete.

    Args:
        stored: all objects.
        references: the objects that each one refers to.
        model: whose records and versions grow old; those of other models that share the storage stay.
        config: how long.
        now: seconds since 1970.
        forgotten: objects that stay, but whose references no longer count: versions that nobody can roll back to.
        seen: since when content has been unreferenced, as earlier sweeps have found.
    """
    marks = _Marks(stored, references, model, now - config.grace_seconds, forgotten)
    cut, notes = marks.age_limit(config, now), []
    if unknown := sorted(models_of(stored) - {match["model"] for match in _records(stored) if match["kind"] == "uses"}):
        cut = float("-inf")
        notes.append(
            f"Cached results stay, whatever their age: no run of {', '.join(unknown)} has left a record of what it "
            "uses yet. The next retrain does."
        )
    kept_bytes = marks.kept_bytes(cut)
    if config.max_bytes is not None and kept_bytes > config.max_bytes:
        notes.append(f"What stays has {kept_bytes:,} bytes, more than maintain.max_bytes={config.max_bytes:,}.")
    entries, unreferenced = marks.sweep(cut)
    held = {to for found in entries for to in references.get(found.name, ())}
    since = {found.name: _since(found, {} if found.name in held else seen or {}, now) for found in unreferenced}
    content = tuple(found for found in unreferenced if now - since[found.name] >= config.grace_seconds)
    waiting = tuple(found for found in unreferenced if now - since[found.name] < config.grace_seconds)
    return Sweep(
        entries=entries,
        content=content,
        waiting=waiting,
        unreferenced=since,
        kept_bytes=kept_bytes,
        notes=tuple(notes),
    )


def _since(found: Stored, seen: Mapping[str, float], now: float) -> float:
    """Return since when content is unreferenced; writing it again begins that time anew."""
    before = seen.get(found.name)
    return before if before is not None and found.modified <= before <= now else now


class _Marks:
    """The objects of a storage, and what is reached in it for any age limit."""

    def __init__(
        self,
        stored: Sequence[Stored],
        references: Mapping[str, Set[str]],
        model: str,
        young: float,
        forgotten: Set[str],
    ) -> None:
        self._references, self._forgotten = references, forgotten
        self.young = young
        """Nothing that was written after this moment goes."""
        by_role: dict[Role, list[Stored]] = {"entry": [], "record": [], "content": [], "kept": []}
        for found in stored:
            by_role[role_of(found.name, model)].append(found)
        newest = set(_newest(by_role["record"]))
        self.perishable = [found for found in by_role["entry"] + by_role["record"] if found.name not in newest]
        """What has an age limit, the newest record of each flow not."""
        self._content = by_role["content"]
        self._collectable_bytes = sum(found.num_bytes for found in by_role["entry"] + self._content)
        self._roots = {found.name for found in by_role["kept"]} | newest
        self._roots |= {found.name for found in self._content if found.modified >= young}

    def sweep(self, cut: float) -> tuple[tuple[Stored, ...], tuple[Stored, ...]]:
        """Return the entries and records that go when what is older than `cut` does, and the content left alone."""
        reached = set(self._roots) | {found.name for found in self.perishable if found.modified >= cut}
        rest = list(reached)
        while rest:
            name = rest.pop()
            if name not in self._forgotten:
                new = self._references.get(name, frozenset()) - reached
                reached |= new
                rest += new
        # Entries first: a crash in between leaves no record that names an entry of which nothing is known any more.
        gone = [found for found in self.perishable if found.name not in reached]
        return tuple(gone), tuple(found for found in self._content if found.name not in reached)

    def age_limit(self, config: MaintainConfig, now: float) -> float:
        """Return the moment before which entries go: keep_days ago, or the first later one that meets max_bytes."""
        cut = min(now - config.keep_days * DAY, self.young)
        limit = config.max_bytes
        if limit is None or self.kept_bytes(cut) <= limit:
            return cut
        times = sorted({found.modified for found in self.perishable if cut <= found.modified < self.young})
        cuts = [*times[1:], self.young]
        return cuts[min(bisect_left(cuts, True, key=lambda c: self.kept_bytes(c) <= limit), len(cuts) - 1)]

    def kept_bytes(self, cut: float) -> int:
        """Return the size of caches and content that stay."""
        entries, content = self.sweep(cut)
        gone = sum(found.num_bytes for found in entries if not RECORD.fullmatch(found.name))
        return self._collectable_bytes - gone - sum(found.num_bytes for found in content)


def _records(stored: Sequence[Stored]) -> Iterator[re.Match[str]]:
    return (match for found in stored if (match := RECORD.fullmatch(found.name)))


def _newest(records: Sequence[Stored]) -> Iterator[str]:
    """Yield the newest record of each folder."""
    ordered = sorted(records, key=lambda found: (_folder(found), found.modified, found.name))
    for _, group in groupby(ordered, key=_folder):
        yield list(group)[-1].name


def _folder(found: Stored) -> str:
    return found.name.rpartition("/")[0]


def remember_uses(store: Store, model: str, flow: str, run_id: str) -> None:
    """Write down what a run that has ended well has looked up, so that it stays for the next one."""
    names = sorted(name for name in store.asked if ENTRY.fullmatch(name))
    store.put(f"uses/{model}/{flow}/{run_id}.json", json.dumps({"names": names}).encode())


def require_bundle(store: Store, ledger: Ledger, version: ModelVersion) -> None:
    """Raise an InputError if a version's bundle was removed or is damaged, before anything is changed for its sake."""
    if all(store.is_intact(ref) for ref in version.bundle.files):
        return
    names = set(store.list("bundles/"))
    numbers = list_versions(store, version.model)
    have = [
        number
        for number in numbers
        if number != ledger.champion()
        and {ref.name for ref in load_version(store, version.model, number).bundle.files} <= names
    ]
    raise InputError(
        f"A rollback goes to a version whose bundle is kept, but got version={version.version} of {version.model!r}, "
        f"whose bundle is not there any more. The versions to go back to are {', '.join(have) or 'none'}; "
        "maintain.keep_versions says how many stay."
    )


@dataclass(frozen=True)
class Group:
    """Garbage of one kind, and of one reason."""

    place: str
    kind: str
    why: str
    num_bytes: int
    names: tuple[str, ...]


def grouped(garbage: Sequence[Garbage]) -> tuple[Group, ...]:
    """Return garbage by place, kind and reason."""
    ordered = sorted(garbage, key=lambda one: (one.place, one.kind, one.why, one.name))
    return tuple(
        Group(place, kind, why, sum(one.num_bytes for one in ones), tuple(one.name for one in ones))
        for (place, kind, why), ones in (
            (key, list(group)) for key, group in groupby(ordered, key=lambda one: (one.place, one.kind, one.why))
        )
    )


MAX_NAMES = 20
"""How many names of a group the page shows."""


def markdown_of(
    model: str, garbage: Sequence[Garbage], postponed: Sequence[Garbage], notes: Sequence[str], dry_run: bool
) -> str:
    """Return what people see of a sweep."""
    done = "would be removed" if dry_run else "is removed"
    size = sum(one.num_bytes for one in garbage)
    lines = [f"# Maintenance of {model}", "", f"{len(garbage):,} things of {size:,} bytes: what {done}.", ""]
    lines += _table(grouped(garbage))
    if postponed:
        lines += [
            f"{len(postponed):,} more of {sum(one.num_bytes for one in postponed):,} bytes wait for a later run.",
            "",
            *_table(grouped(postponed)),
        ]
    lines += [f"- {note}" for note in notes]
    for group in grouped(garbage):
        more = len(group.names) - MAX_NAMES
        lines += ["", f"## {group.place}: {group.kind}", "", *(f"- `{name}`" for name in group.names[:MAX_NAMES])]
        lines += [f"- and {more:,} more"] if more > 0 else []
    return "\n".join(lines)


def _table(groups: Sequence[Group]) -> list[str]:
    if not groups:
        return []
    rows = [f"| {g.place} | {g.kind} | {len(g.names):,} | {g.num_bytes:,} | {g.why} |" for g in groups]
    return ["| where | what | number | bytes | why |", "|---|---|---|---|---|", *rows, ""]
