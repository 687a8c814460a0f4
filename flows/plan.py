"""What a retrain would do now, and why, found without doing it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from flows.config import RetrainConfig
from infra.bundle.schema import ENCODER_VERSION
from infra.bundle.vocabulary import Vocabulary
from infra.clusters import open_cluster
from infra.ledger import Ledger
from infra.settings import Settings
from infra.storage import Store
from infra.worker_shapes import WorkerShape, local_shapes, shapes_of
from tasks._cache import Cache, key_of
from tasks._choose import sole
from tasks._encode import Encoded, extended_vocabulary
from tasks._fingerprints import Fingerprints, known_snapshot, load_fingerprints
from tasks._jobs import PROFILES, SHARDS, profile_key
from tasks._outcomes import error_text, load_outcomes
from tasks._profile import PROFILE_VERSION, Profile, merge
from tasks._profile_tree import levels_of
from tasks._sample import Sample, check_design
from tasks._snapshot import Snapshot, SourceFile
from tasks._versions import ModelVersion, champion_of
from tasks.split import Split

LATER = ("split", "sample", "search", "train", "search neural", "train neural", "choose", "compress", "certify")
"""The stages after encode, of which some may be left out; what follows depends on the champion, and runs."""
NAMED_FILES = 5
"""How many new files a plan names."""


@dataclass(frozen=True)
class PlannedStage:
    """What one stage would do."""

    name: str
    action: str
    """run, reuse, or unknown: it depends on what an earlier stage finds."""
    why: str


@dataclass(frozen=True)
class PlannedFile:
    """What would be done with one source file, and why."""

    file: str
    origin: str
    """new, unchanged, changed, or the same as another one."""
    profile: str
    """reuse, or how many of its parts would be profiled and why."""
    encode: str
    """The same for its shards; unknown until all files are profiled."""
    keys: tuple[str, ...]
    """Under which its profiles and, as far as they are known, its shards are stored."""


@dataclass(frozen=True)
class Kept:
    """What of a stage that works unit by unit is stored, and why the rest is not."""

    keys: dict[SourceFile, str]
    absent: dict[SourceFile, str]
    """Units that would be worked on, and why."""

    def of(self, file: SourceFile) -> str:
        """Say what would be done with a file."""
        whys = [self.absent[unit] for unit in file.units if unit in self.absent]
        parts = f"{len(whys)} of {len(file.units)} parts: " if len(file.units) > 1 else ""
        return f"run, {parts}{whys[0]}" if whys else "reuse"


def kept(cache: Cache, keys: dict[SourceFile, str], version: int, key_at: Callable[[SourceFile, int], str]) -> Kept:
    """Look up units; of one that an earlier version of the code has worked on it is said so."""
    absent = {}
    for unit, key in keys.items():
        why = cache.why_absent(key)
        if why is not None:
            before = next((old for old in range(version - 1, 0, -1) if cache.has(key_at(unit, old))), None)
            absent[unit] = f"done by version {before} of the code, which is now {version}" if before else why
    return Kept(keys, absent)


def plan_of(config: RetrainConfig, path: Path) -> dict[str, Any]:
    """Return the plan of a retrain.

    Raises:
        InputError: the input is wrong; the same errors as a retrain would give before it computes anything.
    """
    store = Store(Settings().locate(path).root)
    name, time = config.model.name, config.data.time
    champion = champion_of(store, Ledger(store, name), name)
    known = load_fingerprints(store, name)
    snapshot = known_snapshot(store, name, config.data, path.resolve().parent, remember=False)
    looks = f"always looks: {len(snapshot.files)} files, {snapshot.num_bytes:,} bytes, {snapshot.num_read} to read"
    profiles = kept(
        Cache(store, "profiles"),
        {unit: profile_key(unit, time) for unit in snapshot.units},
        PROFILE_VERSION,
        lambda unit, version: key_of(unit.key, version, time),
    )
    stages = [PlannedStage("ingest", "run", looks), _by_file("profile", snapshot, profiles)]
    shards = Kept({}, {})
    if profiles.absent:
        stages += _unknown("encode", *later_stages(config), why="depends on what the new files hold")
    else:
        base = path.resolve().parent
        shards, later = _after_profile(store, config, base, snapshot, champion, list(profiles.keys.values()))
        stages += later
    first = next((stage for stage in stages[1:] if stage.action == "run"), None)
    return {
        "model": name,
        "champion_version": champion.version if champion else None,
        "snapshot": snapshot.fingerprint,
        "summary": f"work starts at {first.name}: {first.why}" if first else "nothing is new, every stage is cached",
        "stages": [asdict(stage) for stage in stages],
        "files": [asdict(_planned(file, known, profiles, shards)) for file in snapshot.files],
    }


def _planned(file: SourceFile, known: Fingerprints, profiles: Kept, shards: Kept) -> PlannedFile:
    keys = tuple(one.keys[unit] for one in (profiles, shards) for unit in file.units if unit in one.keys)
    encode = shards.of(file) if shards.keys else "unknown"
    return PlannedFile(file.path, known.origin(file), profiles.of(file), encode, keys)


def _after_profile(
    store: Store, config: RetrainConfig, base: Path, snapshot: Snapshot, champion: ModelVersion | None, keys: list[str]
) -> tuple[Kept, list[PlannedStage]]:
    from tasks._continue import kept_schema
    from tasks._kinds import infer_schema
    from tasks.encode import read_head, shard_key
    from tasks.profile import trained_on

    seen = _merged(store, keys)
    before = trained_on(store, champion)
    schema = infer_schema(seen, config.data, config.model.task, before.schema if before else None)
    schema, _ = kept_schema(schema, config.train, champion)
    check_design(config.sampling, schema)
    head = read_head(store, config.model.name)
    if head is None:
        return Kept({}, {}), [
            PlannedStage("encode", "run", "the model has no vocabulary yet"),
            *_unknown(*later_stages(config), why="depends on the shards"),
        ]
    cache = Cache(store, "shards")
    shards = kept(
        cache,
        {unit: shard_key(unit, schema, head.line) for unit in snapshot.units},
        ENCODER_VERSION,
        lambda unit, version: key_of(unit.key, {**schema.encoding(), "version": version}, head.line),
    )
    stage = _by_file("encode", snapshot, shards)
    vocabulary = Vocabulary.from_json(store.get(head.content).decode())
    extended = extended_vocabulary(vocabulary, schema, seen, config.data.max_categories, config.data.min_category_rows)
    found = [cache.find(key, SHARDS) for key in shards.keys.values()]
    if shards.absent or extended != vocabulary:
        return shards, [stage, *_unknown(*later_stages(config), why="depends on the shards")]
    encoded = Encoded(schema, head.content, tuple(shard for shard in found if shard), num_new=0)
    after = _after_encode(store, config, base, snapshot, encoded, seen, champion)
    return shards, [stage, *after]


def _merged(store: Store, keys: list[str]) -> Profile:
    """Return the profile of all units, whether or not it has been merged before."""
    cache = Cache(store, "profiles")
    root = levels_of(keys)[-1][0]
    found = cache.find(root.key, PROFILES)
    return found or replace(merge([cache.get(key, PROFILES) for key in keys]), source=root.key)


class Lookup:
    """Asks stages whether they have their answer already, and notes what they say."""

    def __init__(self, store: Store) -> None:
        """Begin with none."""
        self.store = store
        self.stages: list[PlannedStage] = []

    def ask(self, stage: Any, *args: Any) -> Any:
        """Return a stage's answer, or None if it is to be computed."""
        found = stage.lookup(self.store, *args)
        is_missing = isinstance(found, str)
        action = ("run", found) if is_missing else ("reuse", "cached")
        self.stages.append(PlannedStage(stage.__name__.replace("_", " "), *action))
        return None if is_missing else found

    def add(self, why: str) -> None:
        """Say more of the last stage."""
        last = self.stages[-1]
        self.stages[-1] = replace(last, why=f"{last.why}; {why}")


def _after_encode(
    store: Store,
    config: RetrainConfig,
    base: Path,
    snapshot: Snapshot,
    encoded: Encoded,
    seen: Profile,
    champion: ModelVersion | None,
) -> list[PlannedStage]:
    from tasks._continue import families_of
    from tasks.sample import sample
    from tasks.split import split

    lookup = Lookup(store)
    sides = lookup.ask(split, encoded, config.split, seen)
    rows = lookup.ask(sample, encoded, sides, config.sampling) if sides else None
    if sides and rows:
        families, _ = families_of(config.train, champion)
        given = (config, snapshot, encoded, sides, rows, seen, champion, _shapes(config, base))
        planned = {"xgboost": _trees, "neural": _network}
        trained = {family: planned[family](lookup, *given) for family in families}
        _after_training(lookup, config, encoded, sides, trained)
    stages = lookup.stages
    left = [name for name in later_stages(config) if name not in {stage.name for stage in stages}]
    return stages + _unknown(*left, why=f"depends on {stages[-1].name}")


def _after_training(
    lookup: Lookup, config: RetrainConfig, encoded: Encoded, sides: Split, trained: dict[Any, tuple[Any, Any]]
) -> None:
    """Ask the stages that follow, if all candidates are known."""
    from tasks.certify import certify
    from tasks.choose import choose
    from tasks.compress import compress

    candidates = tuple(candidate for _, candidate in trained.values())
    if not all(candidates):
        return
    first = next(job for job, _ in trained.values())
    choice = sole(candidates[0])
    if len(candidates) > 1:
        choice = lookup.ask(choose, first, candidates, config.train.ensemble)
    if choice:
        job, _ = trained.get(choice.candidate.family, (first, None))
        metric = config.model.metric_of(encoded.schema.task)
        frontier = lookup.ask(compress, job, choice.candidate, metric, config.compress)
        if frontier:
            lookup.ask(certify, frontier, encoded, (sides.rule,), metric, config.compress)


def _trees(
    lookup: Lookup,
    config: RetrainConfig,
    snapshot: Snapshot,
    encoded: Encoded,
    sides: Split,
    rows: Sample,
    seen: Profile,
    champion: ModelVersion | None,
    shapes: list[WorkerShape],
) -> tuple[Any, Any]:
    """Plan the training of trees; return the job and, where it is known, its candidate."""
    from tasks._continue import started
    from tasks.search import Trees
    from tasks.start import recheck
    from tasks.train import plan_training, train, training_job
    from tasks.trials import known_search

    store, model = lookup.store, config.model.name

    def measured(job: Any, pilot: Any) -> float | None:
        found = recheck.lookup(store, job, pilot)  # type: ignore[attr-defined]
        return found if isinstance(found, float) else None

    plan = plan_training(store, model, encoded, sides, rows, seen, config.train, shapes)
    job = training_job(model, snapshot, encoded, sides, rows, config.train, plan)
    job, kept_of_it = started(store, job, config.train, champion, measured)
    if config.train.search.trials and job.mode == "fresh":
        found = known_search(store, Trees(job, config.train.search))
        if found is None:
            lookup.stages.append(PlannedStage("search", "run", f"trials are left to do; {plan.sentence}"))
            return job, None
        lookup.stages.append(PlannedStage("search", "reuse", found.sentence))
        job = replace(job, config=found.config)
    candidate = lookup.ask(train, job)
    record = error_text(load_outcomes(store, model))
    lookup.add(f"{plan.sentence} ({record}). {kept_of_it or 'All is learnt anew.'}")
    return job, candidate


def _network(
    lookup: Lookup,
    config: RetrainConfig,
    snapshot: Snapshot,
    encoded: Encoded,
    sides: Split,
    rows: Sample,
    seen: Profile,
    champion: ModelVersion | None,
    shapes: list[WorkerShape],
) -> tuple[Any, Any]:
    """Plan the training of a network; return the job and, where it is known, its candidate."""
    from tasks.search_neural import Networks
    from tasks.train_neural import planned_as, restarted_job, train_neural
    from tasks.trials import known_search

    given = (config.model.name, lookup.store, snapshot, encoded, sides, rows, seen)
    job, plan, note = restarted_job(*given, config.train, shapes, champion)
    if config.train.search.trials and job.mode == "fresh":
        planned = planned_as(*given, config.train, shapes)
        found = known_search(lookup.store, Networks(job, planned, config.train.search))
        if found is None:
            lookup.stages.append(PlannedStage("search neural", "run", f"trials are left to do; {plan.sentence}"))
            return job, None
        lookup.stages.append(PlannedStage("search neural", "reuse", found.sentence))
        job, plan = planned(found.config)
    candidate = lookup.ask(train_neural, job)
    lookup.add(f"{plan.sentence}. {note or 'All is learnt anew.'}")
    return job, candidate


def later_stages(config: RetrainConfig) -> tuple[str, ...]:
    """Return the stages after encode that a plan can tell of."""
    has_search = config.train.search.trials and config.train.mode == "fresh"
    families = config.train.families
    wanted = {
        "search": has_search and "xgboost" in families,
        "train": "xgboost" in families,
        "search neural": has_search and "neural" in families,
        "train neural": "neural" in families,
        "choose": len(families) > 1,
    }
    return tuple(name for name in LATER if wanted.get(name, True))


def _shapes(config: RetrainConfig, base: Path) -> list[WorkerShape]:
    """Return the workers that a retrain would have; those of another machine are asked."""
    if config.cluster.address is None:
        return local_shapes(config.cluster)
    with tempfile.TemporaryDirectory() as scratch, open_cluster(config.cluster, Path(scratch), base) as cluster:
        return shapes_of(cluster)


def _by_file(name: str, snapshot: Snapshot, found: Kept) -> PlannedStage:
    """Return the plan of a stage that works unit by unit."""
    new = [file for file in snapshot.files if any(unit in found.absent for unit in file.units)]
    if not new:
        return PlannedStage(name, "reuse", f"all {len(snapshot.files)} files are known")
    shown = "; ".join(f"{Path(file.path).name}: {found.of(file).removeprefix('run, ')}" for file in new[:NAMED_FILES])
    more = f"; and {len(new) - NAMED_FILES} more" if len(new) > NAMED_FILES else ""
    return PlannedStage(name, "run", f"{len(new)} of {len(snapshot.files)} files ({shown}{more})")


def _unknown(*names: str, why: str) -> list[PlannedStage]:
    return [PlannedStage(name, "unknown", why) for name in names]
