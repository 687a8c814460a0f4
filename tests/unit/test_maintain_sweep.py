"""What a sweep of the storage may delete, and what it must never."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from infra.errors import InputError
from infra.ledger import Ledger, Row
from infra.storage import Ref, Store, Stored
from tasks._candidate import BundleRef
from tasks._maintain import (
    DAY,
    HOUR,
    MaintainConfig,
    Sweep,
    grouped,
    is_read,
    kept_versions,
    markdown_of,
    plan_sweep,
    remember_uses,
    require_bundle,
    role_of,
    texts_in,
)
from tasks._split import SplitRule
from tasks._versions import ModelVersion, keep_version

NOW = 1_800_000_000.0
OLD, RECENT = NOW - 100 * DAY, NOW - 2 * DAY
NIGHT = DAY + HOUR
"""From one sweep to the next: a little more than the grace period."""
CONFIG = MaintainConfig()
RECORD = "uses/loans/retrain/newest.json"


def stored(**ages: float) -> list[Stored]:
    """Return objects of 10 bytes; in their names, `__` stands for a slash and `_json` for .json."""
    return [
        Stored(name.replace("__", "/").replace("_json", ".json").replace("_arrow", ".arrow"), 10, modified)
        for name, modified in ages.items()
    ]


def names(found: tuple[Stored, ...]) -> list[str]:
    """Return the names of objects."""
    return [one.name for one in found]


def seen_long_ago(objects: list[Stored]) -> dict[str, float]:
    """Return what an earlier sweep would remember if nothing had been referenced then."""
    return {one.name: NOW - 30 * HOUR for one in objects}


def sweep(objects: list[Stored], references: Mapping[str, set[str]], config: MaintainConfig = CONFIG) -> Sweep:
    """Return the sweep of a model that has left a record of its newest run."""
    record = Stored(RECORD, 10, NOW - DAY)
    return plan_sweep([*objects, record], references, "loans", config, NOW, seen=seen_long_ago(objects))


# What is what


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("profiles/ab.json", "entry"),
        ("shards/ab.json", "entry"),
        ("shards/ab.arrow", "content"),
        ("stages/train/ab.json", "entry"),
        ("scores/ab/cd.arrow", "content"),
        ("bundles/ab/model.ubj", "content"),
        ("vocabularies/loans/content/ab.json", "content"),
        ("vocabularies/loans/head-00000001.json", "kept"),
        ("predictions/run/ab.parquet", "content"),
        ("uses/loans/retrain/ab.json", "record"),
        ("uses/churn/retrain/ab.json", "kept"),
        ("timetable/loans/retrain/20260101T000000.json", "record"),
        ("ledger/loans/00000001.json", "kept"),
        ("versions/loans/1.json", "kept"),
        ("runs/loans/ab.json", "kept"),
        ("reports/loans/ab.html", "kept"),
        ("serving/loans/target.json", "kept"),
        ("mlflow.db", "kept"),
        ("stages/train/deeper/ab.json", "kept"),
        ("of-a-later-issue/ab.arrow", "kept"),
        ("maintenance/unreferenced.json", "kept"),
    ],
)
def test_every_object_has_one_role(name: str, role: str) -> None:
    """Only caches, what they point to, and a model's own records can go; what is not known stays."""
    assert role == role_of(name, "loans")


def test_any_text_may_be_a_reference() -> None:
    """Texts are found at any depth, as values and as names, and behind the hash of a cache entry."""
    body = json.dumps({"a": [{"name": "x", "digest": "y", "num_bytes": 1}, "z", None], "k": {"n": True}}).encode()
    expected = {"a", "name", "x", "digest", "y", "num_bytes", "z", "k", "n"}

    assert [expected, expected] == [set(texts_in(body)), set(texts_in(b"0123abcd\n" + body))]
    with pytest.raises(ValueError, match="Expecting value"):
        list(texts_in(b"not json"))


def test_folders_of_other_programs_are_not_read() -> None:
    """Only JSON objects outside of MLflow's, Prefect's and Dask's folders are looked into."""
    candidates = ("new/a.json", "new/a.arrow", "mlflow/1/a.json", "prefect/a.json", "dask/a.json")

    assert ["new/a.json"] == [name for name in (*candidates, "maintenance/unreferenced.json") if is_read(name)]


# What stays


def test_what_the_newest_run_has_used_stays() -> None:
    """An old entry that the newest record names stays with its content; one that no record names goes."""
    objects = stored(shards__a_json=OLD, shards__a_arrow=OLD, shards__b_json=OLD, shards__b_arrow=OLD)
    references = {
        RECORD: {"shards/a.json"},
        "shards/a.json": {"shards/a.arrow"},
        "shards/b.json": {"shards/b.arrow"},
    }
    found = sweep(objects, references)

    assert (["shards/b.json"], ["shards/b.arrow"]) == (names(found.entries), names(found.waiting))


def test_an_older_record_keeps_what_it_names_for_its_time() -> None:
    """Records of the last keep_days hold on to what they name; older ones go, the newest of each flow never."""
    objects = stored(
        stages__train__a_json=OLD,
        stages__train__b_json=OLD,
        stages__train__c_json=OLD,
        uses__loans__retrain__1_json=OLD,
        uses__loans__retrain__2_json=RECENT,
        uses__loans__compress__1_json=OLD,
    )
    references = {
        "uses/loans/retrain/1.json": {"stages/train/a.json"},
        "uses/loans/retrain/2.json": {"stages/train/b.json"},
        "uses/loans/compress/1.json": {"stages/train/c.json"},
    }

    assert ["stages/train/a.json", "uses/loans/retrain/1.json"] == names(sweep(objects, references).entries)


def test_entries_stay_for_keep_days() -> None:
    """An entry that no run names stays until it is keep_days old."""
    objects = stored(profiles__a_json=NOW - 29.9 * DAY, profiles__b_json=NOW - 30.1 * DAY)

    assert ["profiles/b.json"] == names(sweep(objects, {}).entries)


def test_the_records_of_other_models_stay() -> None:
    """In a shared storage a sweep for one model touches neither the records of another nor what they name."""
    objects = stored(
        profiles__a_json=OLD, uses__churn__retrain__1_json=OLD, uses__churn__retrain__2_json=OLD, ledger__churn__1=OLD
    )

    assert () == sweep(objects, {"uses/churn/retrain/1.json": {"profiles/a.json"}}).entries


def test_without_a_record_no_entry_goes() -> None:
    """Where a model has never said what it uses, all entries stay, and a note says so."""
    objects = stored(profiles__a_json=OLD, ledger__churn__00000001_json=OLD, bundles__x__model=OLD)
    found = sweep(objects, {})

    assert ((), ["bundles/x/model"]) == (found.entries, names(found.content))
    assert "no run of churn has left a record" in found.notes[0]


def test_kinds_of_a_later_day_protect() -> None:
    """An object that this version has never heard of stays, and so does what it refers to, in any form."""
    objects = stored(models__later_json=OLD, bundles__a__model=OLD, bundles__b__model=OLD, bundles__c__model=OLD)
    found = sweep(objects, {"models/later.json": {"bundles/a/model", "bundles/b/model"}})

    assert ["bundles/c/model"] == names(found.content)


def test_versions_that_can_be_rolled_back_to_protect_their_bundles() -> None:
    """A version's object stays for ever; its bundle only while the version can be rolled back to."""
    objects = stored(versions__loans__1_json=OLD, versions__loans__2_json=OLD, bundles__1__m=OLD, bundles__2__m=OLD)
    references = {"versions/loans/1.json": {"bundles/1/m"}, "versions/loans/2.json": {"bundles/2/m"}}
    record = Stored(RECORD, 10, NOW)
    found = plan_sweep(
        [*objects, record],
        references,
        "loans",
        CONFIG,
        NOW,
        forgotten={"versions/loans/1.json"},
        seen=seen_long_ago(objects),
    )

    assert ((), ["bundles/1/m"]) == (found.entries, names(found.content))


def row(action: str, version: str) -> Row:
    """Return a row of a ledger."""
    return Row(1, "", action, version, None, "", "", {}, "", None)  # type: ignore[arg-type]


def test_versions_are_kept_by_number_and_by_merit() -> None:
    """The newest versions stay, as many former champions, the last one judged, and those that an alias names."""
    rows = [row("promote", "1"), row("promote", "2"), row("promote", "3"), row("rollback", "1"), row("verdict", "5")]
    versions = [str(number) for number in range(1, 21)]

    assert {"1", "3", "19", "20", "5", "7"} == kept_versions(rows, versions, 2, {"7"})
    assert {"1", "2", "3", "18", "19", "20", "5"} == kept_versions(rows, versions, 3)
    assert set() == kept_versions([], [], 10)


def test_the_champion_and_its_predecessor_always_stay() -> None:
    """However many versions came after them, the champion and the one before it can be gone back to."""
    rows = [row("promote", "1"), row("promote", "2"), *(row("verdict", str(n)) for n in range(3, 60))]

    assert {"1", "2"} <= kept_versions(rows, [str(n) for n in range(1, 60)], 2)


# The grace period


def test_what_is_young_stays() -> None:
    """Within the grace period content needs no reference, and what it refers to stays too."""
    objects = stored(bundles__a__m_json=NOW - 23 * HOUR, bundles__a__part=OLD, bundles__b__m=NOW - 25 * HOUR)
    found = plan_sweep(
        [*objects, Stored(RECORD, 10, NOW)],
        {"bundles/a/m.json": {"bundles/a/part"}},
        "loans",
        CONFIG,
        NOW,
    )

    assert ((), ["bundles/b/m"]) == (found.content, names(found.waiting))


def test_content_goes_in_the_second_night() -> None:
    """Content whose entry goes in one sweep goes in the next one: a run that has just found the entry can end."""
    objects = stored(shards__b_json=OLD, shards__b_arrow=OLD)
    record = Stored(RECORD, 10, NOW)
    references = {"shards/b.json": {"shards/b.arrow"}}
    first = plan_sweep([*objects, record], references, "loans", CONFIG, NOW)
    later = NOW + NIGHT
    second = plan_sweep([objects[1], record], references, "loans", CONFIG, later, seen=first.unreferenced)

    assert (["shards/b.json"], [], ["shards/b.arrow"]) == (
        names(first.entries),
        names(first.content),
        names(first.waiting),
    )
    assert (["shards/b.arrow"], {"shards/b.arrow": NOW}) == (names(second.content), second.unreferenced)


def test_content_that_was_written_again_waits_anew() -> None:
    """A second life of the same content starts its waiting time again."""
    fresh = Stored("shards/b.arrow", 10, NOW - 25 * HOUR)
    found = plan_sweep(
        [fresh, Stored(RECORD, 10, NOW)], {}, "loans", CONFIG, NOW, seen={"shards/b.arrow": NOW - 26 * HOUR}
    )

    assert ((), {"shards/b.arrow": NOW}) == (found.content, found.unreferenced)


def test_content_waits_from_its_last_reference_on() -> None:
    """Content that was unreferenced once, and whose new entry goes now, waits as if it had never been alone."""
    objects = stored(shards__b_json=OLD, shards__b_arrow=OLD - DAY)
    found = sweep(objects, {"shards/b.json": {"shards/b.arrow"}})

    assert ((), {"shards/b.arrow": NOW}) == (found.content, found.unreferenced)


# The size limit


@pytest.mark.parametrize(
    ("limit", "gone", "kept_bytes"),
    [(60, [], 60), (59, ["1"], 40), (40, ["1"], 40), (39, ["1", "2"], 20), (0, ["1", "2"], 20)],
)
def test_a_size_limit_takes_the_oldest_first(limit: int, gone: list[str], kept_bytes: int) -> None:
    """Above max_bytes entries go before keep_days with their content, the oldest first; the young and the used stay."""
    objects = stored(
        shards__1_json=NOW - 9 * DAY,
        shards__1_arrow=NOW - 9 * DAY,
        shards__2_json=NOW - 8 * DAY,
        shards__2_arrow=NOW - 8 * DAY,
        shards__3_json=NOW - HOUR,
        profiles__4_json=OLD,
    )
    references = {f"shards/{n}.json": {f"shards/{n}.arrow"} for n in "123"} | {RECORD: {"profiles/4.json"}}
    found = sweep(objects, references, replace_limit(limit))

    assert ([f"shards/{n}.json" for n in gone], kept_bytes) == (names(found.entries), found.kept_bytes)
    assert (kept_bytes > limit) == any("more than maintain.max_bytes" in note for note in found.notes)


def replace_limit(limit: int) -> MaintainConfig:
    """Return the default configuration with a size limit."""
    return CONFIG.model_copy(update={"max_bytes": limit})


# Any storage

KINDS = (
    "profiles/{}.json",
    "shards/{}.json",
    "shards/{}.arrow",
    "stages/train/{}.json",
    "bundles/{}/m.json",
    "uses/loans/retrain/{}.json",
    "uses/churn/retrain/{}.json",
    "versions/loans/{}.json",
    "unheard-of/{}.json",
)
AGES = (0.0, 0.2, 0.9, 1.1, 2.0, 15.0, 29.0, 31.0, 60.0)
"""In days; around the grace period, the nights and keep_days."""
NAMES = [kind.format(n) for kind in KINDS for n in range(3)]


@st.composite
def storages(draw: st.DrawFn) -> tuple[list[Stored], dict[str, set[str]], set[str]]:
    """Draw objects of any age that refer to any others, and versions that are forgotten."""
    present = draw(st.lists(st.sampled_from(NAMES), unique=True))
    ages = draw(st.lists(st.sampled_from(AGES), min_size=len(present), max_size=len(present)))
    references = {name: draw(st.sets(st.sampled_from(NAMES), max_size=4)) & set(present) - {name} for name in present}
    forgotten = {name for name in present if name.startswith("versions/") and draw(st.booleans())}
    objects = [Stored(name, 1, NOW - age * DAY) for name, age in zip(present, ages, strict=True)]
    return objects, references, forgotten


def reachable(roots: set[str], references: Mapping[str, set[str]], forgotten: set[str]) -> set[str]:
    """Return what is reached from roots, found by repeating one step until nothing is new."""
    found = set(roots)
    while new := {to for name in found - forgotten for to in references.get(name, set())} - found:
        found |= new
    return found


@settings(max_examples=100, deadline=None, derandomize=True)
@given(storages(), st.sampled_from([None, 0, 3, 8]))
def test_nothing_reachable_is_ever_deleted(
    storage: tuple[list[Stored], dict[str, set[str]], set[str]], limit: int | None
) -> None:
    """In any storage, over many nights, what a kept or young object leads to stays, and all that is left alone goes."""
    objects, references, forgotten = storage
    config, seen = replace_limit(limit) if limit is not None else CONFIG, {}
    for night in range(4):
        now = NOW + night * NIGHT
        newest = max((o for o in objects if o.name.startswith("uses/loans/")), default=None, key=lambda o: o.modified)
        kept = {o.name for o in objects if role_of(o.name, "loans") == "kept" or now - o.modified <= DAY or o == newest}
        safe = reachable(kept, references, forgotten)
        found = plan_sweep(objects, references, "loans", config, now, forgotten=forgotten, seen=seen)
        gone = [*names(found.entries), *names(found.content)]
        # Killed after any number of deletions, no entry names content that is gone, and nothing that stays a gone name.
        for count in range(len(gone) + 1):
            lost, content = set(gone[:count]), set(gone[:count]) & set(names(found.content))
            left = {o.name for o in objects} - lost - forgotten
            held = {name for name in left if role_of(name, "loans") != "content"}
            assert all(references[name].isdisjoint(content) for name in held)
            assert all(references[name].isdisjoint(lost) for name in held - set(gone))

        assert safe.isdisjoint(gone)
        objects, seen = [o for o in objects if o.name not in gone], dict(found.unreferenced)
    if limit is None:
        old = {o.name for o in objects if role_of(o.name, "loans") == "content"}
        held = {o.name for o in objects if role_of(o.name, "loans") != "content"}
        assert old <= reachable(held, references, forgotten)


# Beside a run


@dataclass
class World:
    """A storage in memory, with a clock, in which runs and sweeps take turns."""

    now: float = NOW
    objects: dict[str, tuple[float, frozenset[str]]] = field(default_factory=dict)
    seen: dict[str, float] = field(default_factory=dict)
    running: list[tuple[float, frozenset[str], str]] = field(default_factory=list)
    plan: tuple[Sweep, dict[str, float]] | None = None
    num_hits: int = 0

    def look(self) -> None:
        """Make the list of a sweep."""
        objects = [Stored(name, 1, modified) for name, (modified, _) in self.objects.items()]
        references = {name: set(refs) & set(self.objects) for name, (_, refs) in self.objects.items()}
        found = plan_sweep(objects, references, "loans", MaintainConfig(keep_days=1), self.now, seen=self.seen)
        self.plan = found, {name: modified for name, (modified, _) in self.objects.items()}

    def clean(self) -> None:
        """Delete what the last list names, but for what was written again."""
        if self.plan is None:
            return
        found, modified = self.plan
        for name in (*names(found.entries), *names(found.content)):
            if name in self.objects and self.objects[name][0] == modified[name]:
                del self.objects[name]
        self.seen, self.plan = dict(found.unreferenced), None

    def begin(self, key: int) -> None:
        """Begin a run: what its entry refers to is verified and used; without that it is written, content first."""
        entry, content = f"shards/{key}.json", frozenset({f"shards/{key}.arrow", f"bundles/{key % 2}/m"})
        if entry in self.objects and content <= self.objects.keys():
            self.num_hits += 1
        else:
            for name in content:
                self.objects[name] = self.now, frozenset()
            self.objects[entry] = self.now, content
        self.running.append((self.now, content, entry))

    def end(self) -> None:
        """End the run that began first: all it has used is there to the end, and it leaves its record."""
        if self.running:
            began, content, entry = self.running.pop(0)
            assert content <= self.objects.keys(), f"a run that began at {began} lost what it works on"
            self.objects[f"uses/loans/retrain/{began}.json"] = self.now, frozenset({entry})

    def wait(self, hours: float) -> None:
        """Let time pass; no run takes longer than the grace period."""
        while self.running and self.now + hours * HOUR - self.running[0][0] > DAY:
            self.end()
        self.now += hours * HOUR


STEPS = st.one_of(
    st.tuples(st.just("begin"), st.integers(0, 3)),
    st.tuples(st.just("end")),
    st.tuples(st.just("look")),
    st.tuples(st.just("clean")),
    st.tuples(st.just("wait"), st.sampled_from([0.1, 5, 20, 30, 60])),
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(STEPS, min_size=10, max_size=80))
def test_no_run_loses_what_it_works_on(steps: list[tuple[object, ...]]) -> None:
    """However runs and the two halves of sweeps take turns, what a run has found or written is there until it ends."""
    world = World()
    for name, *arguments in steps:
        getattr(world, str(name))(*arguments)
    while world.running:
        world.end()

    assert [] == world.running


def test_a_run_that_begins_between_list_and_deletion_is_safe() -> None:
    """A run that finds an old entry after it was listed keeps its content, though the entry goes under it."""
    world = World()
    for step in (("begin", 0), ("end",), ("wait", 60), ("begin", 1), ("end",), ("wait", 60), ("begin", 1), ("end",)):
        getattr(world, step[0])(*step[1:])  # type: ignore[misc]
    world.look()
    assert world.plan is not None
    listed = names(world.plan[0].entries)
    world.begin(0)
    world.clean()
    left = set(world.objects)
    world.wait(0.5)
    world.end()

    assert ("shards/0.json" in listed, "shards/0.json" in left, "shards/0.arrow" in left) == (True, False, True)


# Records, bundles, pages


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Give an empty storage."""
    return Store(str(tmp_path / "root"))


def test_a_record_names_the_entries_that_a_run_has_looked_up(store: Store) -> None:
    """Entries that a run has asked for are in its record, found or missed; other objects are not."""
    ref = store.put("stages/train/a.json", b"{}")
    store.get("stages/train/a.json")
    for name in ("profiles/b.json", "ledger/loans/00000001.json"):
        with pytest.raises(RuntimeError, match="must be there when it is read"):
            store.get(name)
    store.get(replace(ref))
    remember_uses(store, "loans", "retrain", "run-1")

    assert {"names": ["profiles/b.json", "stages/train/a.json"]} == json.loads(
        store.get("uses/loans/retrain/run-1.json")
    )


def test_a_removed_bundle_is_said_before_a_rollback(store: Store) -> None:
    """Going back to a version whose bundle is gone is refused with the versions that are there."""
    ledger = Ledger(store, "loans")
    for number in ("1", "2", "3"):
        ref = store.put(f"bundles/{number}/model.ubj", number.encode())
        version = ModelVersion("loans", number, "run", "", BundleRef((ref,)), RULE, "", (), 1, {})
        keep_version(store, version)
        require_bundle(store, ledger, version)
    ledger.append("promote", version="3", expected=None, run_id="", reason="", details={})
    store.delete("bundles/1/model.ubj")
    gone = replace(version, version="1", bundle=BundleRef((Ref("bundles/1/model.ubj", ref.digest, 1),)))

    with pytest.raises(
        InputError,
        match=r"whose bundle is kept, but got version=1 of 'loans', .* not there any more\. The versions to go back to "
        r"are 2; maintain\.keep_versions says how many stay\.",
    ):
        require_bundle(store, ledger, gone)


RULE = SplitRule(by="row", holdout_fraction=0.2, validation_fraction=0.1)


def test_the_page_names_what_goes_and_why() -> None:
    """The page has numbers and bytes by kind with the reason, the notes, and the first names of each kind."""
    objects = stored(**{f"profiles__{n}_json": OLD for n in range(25)}, bundles__x__m=OLD)
    found = sweep(objects, {})
    page = markdown_of("loans", found.garbage, found.postponed, ["A note."], dry_run=True)

    assert "26 things of 260 bytes: what would be removed." in page
    assert "| storage | profiles | 25 | 250 | no run has used it for keep_days, or max_bytes is passed |" in page
    assert "| storage | bundles | 1 | 10 | nothing refers to it, for the grace period at least |" in page
    assert all(line in page.splitlines() for line in ("- A note.", "- `profiles/0.json`", "- and 5 more"))
    assert [("bundles", 10), ("profiles", 250)] == [(group.kind, group.num_bytes) for group in grouped(found.garbage)]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"keep_days": 0}, "greater than or equal to 1"),
        ({"keep_versions": 1}, "greater than or equal to 2"),
        ({"grace_hours": 0}, "greater than or equal to 1"),
        ({"max_bytes": -1}, "could not parse value and unit"),
        ({"keep_day": 3}, "Extra inputs are not permitted"),
    ],
)
def test_limits_of_the_configuration(values: dict[str, int], message: str) -> None:
    """Values that would remove what is needed are refused, and so are unknown keys."""
    with pytest.raises(ValidationError, match=message):
        MaintainConfig(**values)  # type: ignore[arg-type]


def test_every_setting_is_described() -> None:
    """The form of the Prefect UI says what every setting means."""
    assert [] == [name for name, info in MaintainConfig.model_fields.items() if not info.description]
