"""What a retrain would do now, and why, found without doing it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flows.config import RetrainConfig
from infra.bundle.schema import Schema
from infra.bundle.vocabulary import Vocabulary
from infra.ledger import Ledger
from infra.settings import Settings
from infra.storage import Store
from tasks._cache import Cache
from tasks._encode import Encoded, extended_vocabulary
from tasks._jobs import PROFILES, SHARDS, profile_key
from tasks._profile import Profile
from tasks._sample import check_design
from tasks._snapshot import Snapshot, take_snapshot
from tasks._versions import ModelVersion, champion_of

LATER = ("split", "sample", "train", "compress")
"""The stages after encode; what follows them depends on the champion and always runs."""
NAMED_FILES = 5
"""How many new files a plan names."""


@dataclass(frozen=True)
class PlannedStage:
    """What one stage would do."""

    name: str
    action: str
    """run, reuse, or unknown: it depends on what an earlier stage finds."""
    why: str


def plan_of(config: RetrainConfig, path: Path) -> dict[str, Any]:
    """Return the plan of a retrain.

    Raises:
        InputError: the input is wrong; the same errors as a retrain would give before it computes anything.
    """
    store = Store(Settings().locate(path).root)
    champion = champion_of(store, Ledger(store, config.model.name), config.model.name)
    snapshot = take_snapshot(config.data, path.resolve().parent)
    stages = [PlannedStage("ingest", "run", f"always looks: {len(snapshot.files)} files, {snapshot.num_bytes:,} bytes")]
    stages += _after_ingest(store, config, snapshot, champion)
    first = next((stage for stage in stages[1:] if stage.action == "run"), None)
    return {
        "model": config.model.name,
        "champion_version": champion.version if champion else None,
        "snapshot": snapshot.fingerprint,
        "summary": f"work starts at {first.name}: {first.why}" if first else "nothing is new, every stage is cached",
        "stages": [asdict(stage) for stage in stages],
    }


def _after_ingest(
    store: Store, config: RetrainConfig, snapshot: Snapshot, champion: ModelVersion | None
) -> list[PlannedStage]:
    from tasks.profile import merged_profile, trained_on

    keys = [profile_key(file, config.data.time) for file in snapshot.files]
    cache = Cache(store, "profiles")
    profiles = {key: cache.find(key, PROFILES) for key in keys}
    looked = _by_file("profile", snapshot, {key: cache.why_absent(key) for key in keys if not profiles[key]}, keys)
    if looked.action == "run":
        return [looked, *_unknown("encode", *LATER, why="depends on what the new files hold")]
    seen = merged_profile(keys, [profile for key in keys if (profile := profiles[key])])
    from tasks._kinds import infer_schema

    before = trained_on(store, champion)
    schema = infer_schema(seen, config.data, config.model.task, before.schema if before else None)
    check_design(config.sampling, schema)
    return [looked, *_after_profile(store, config, snapshot, schema, seen)]


def _after_profile(
    store: Store, config: RetrainConfig, snapshot: Snapshot, schema: Schema, seen: Profile
) -> list[PlannedStage]:
    from tasks.encode import read_head, shard_key

    head = read_head(store, config.model.name)
    if head is None:
        return [
            PlannedStage("encode", "run", "the model has no vocabulary yet"),
            *_unknown(*LATER, why="depends on the shards"),
        ]
    keys = [shard_key(file, schema, head.line) for file in snapshot.files]
    cache = Cache(store, "shards")
    shards = {key: cache.find(key, SHARDS) for key in keys}
    known = Vocabulary.from_json(store.get(head.content).decode())
    encode = _by_file("encode", snapshot, {key: cache.why_absent(key) for key in keys if not shards[key]}, keys)
    if encode.action == "run" or extended_vocabulary(known, schema, seen) != known:
        return [encode, *_unknown(*LATER, why="depends on the shards")]
    encoded = Encoded(schema, head.content, tuple(s for key in keys if (s := shards[key])), num_new=0)
    return [encode, *_after_encode(store, config, snapshot, encoded, seen)]


def _after_encode(
    store: Store, config: RetrainConfig, snapshot: Snapshot, encoded: Encoded, seen: Profile
) -> list[PlannedStage]:
    from tasks.compress import compress
    from tasks.sample import sample
    from tasks.split import split
    from tasks.train import plan_training, train, training_job

    stages: list[PlannedStage] = []

    def look(stage: Any, *args: Any) -> Any:
        found = stage.lookup(store, *args)
        is_missing = isinstance(found, str)
        stages.append(PlannedStage(stage.__name__, *(("run", found) if is_missing else ("reuse", "cached"))))
        return None if is_missing else found

    sides = look(split, encoded, config.split, seen)
    rows = look(sample, encoded, sides, config.sampling) if sides else None
    if sides and rows:
        plan = plan_training(encoded, sides, rows, config.cluster)
        job = training_job(config.model.name, snapshot, encoded, sides, rows, config.train, plan)
        candidate = look(train, job)
        stages[-1] = PlannedStage("train", stages[-1].action, f"{stages[-1].why}; {plan.sentence}")
        if candidate:
            look(compress, job, candidate, config.compress)
    return stages + _unknown(*LATER[len(stages) :], why=f"depends on {stages[-1].name}")


def _by_file(name: str, snapshot: Snapshot, absent: dict[str, str | None], keys: list[str]) -> PlannedStage:
    """Return the plan of a stage that works file by file."""
    new = {Path(file.path).name: absent[key] for file, key in zip(snapshot.files, keys, strict=True) if key in absent}
    if not new:
        return PlannedStage(name, "reuse", f"all {len(snapshot.files)} files are known")
    shown = "; ".join(f"{file}: {why}" for file, why in list(new.items())[:NAMED_FILES])
    more = f"; and {len(new) - NAMED_FILES} more" if len(new) > NAMED_FILES else ""
    return PlannedStage(name, "run", f"{len(new)} of {len(snapshot.files)} files ({shown}{more})")


def _unknown(*names: str, why: str) -> list[PlannedStage]:
    return [PlannedStage(name, "unknown", why) for name in names]
