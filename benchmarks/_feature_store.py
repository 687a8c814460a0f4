"""The feature store without the rest of a retrain: what the benchmarks of preprocessing run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from _tables import TARGET

from infra.bundle.schema import Schema
from infra.storage import Store
from tasks._encode import Encoded
from tasks._fingerprints import known_snapshot
from tasks._kinds import infer_schema
from tasks._profile import Profile
from tasks._snapshot import DataConfig
from tasks.encode import encode_units
from tasks.profile import profile_units

MODEL = "benchmark"


@dataclass(frozen=True)
class Preprocessed:
    """What a pass over the files has made, and how many of them it read in its three steps."""

    profile: Profile
    schema: Schema
    encoded: Encoded
    num_hashed: int
    num_profiled: int


def files_read(done: Preprocessed) -> int:
    """Return how many files a pass has read in any step."""
    return max(done.num_hashed, done.num_profiled, done.encoded.num_new)


def preprocess(data: Path, root: Path, cluster: str) -> Preprocessed:
    """Take files to a profile, a schema, a vocabulary and shards, as a retrain does."""
    config = DataConfig(source=str(data), target=TARGET)
    store = Store(str(root))
    snapshot = known_snapshot(store, MODEL, config, data)
    seen, num_profiled = profile_units(store, cluster, snapshot, config.time)
    schema = infer_schema(seen, config, None, None)
    encoded, _ = encode_units(store, MODEL, cluster, snapshot, schema, seen, config)
    return Preprocessed(seen, schema, encoded, snapshot.num_read, num_profiled)
