"""The feature store without the rest of a retrain: what the benchmarks of preprocessing run."""

from __future__ import annotations

from pathlib import Path

from _tables import TARGET

from infra.storage import Store
from tasks._encode import Encoded
from tasks._fingerprints import known_snapshot
from tasks._kinds import infer_schema
from tasks._profile import Profile
from tasks._snapshot import DataConfig, Snapshot
from tasks.encode import encode_units
from tasks.profile import profile_units

MODEL = "benchmark"


def preprocess(data: Path, root: Path, cluster: str) -> tuple[Snapshot, Profile, Encoded]:
    """Take files to a profile, a schema, a vocabulary and shards, as a retrain does."""
    config = DataConfig(source=str(data), target=TARGET)
    store = Store(str(root))
    snapshot = known_snapshot(store, MODEL, config, data)
    seen, _ = profile_units(store, cluster, snapshot, config.time)
    schema = infer_schema(seen, config, None, None)
    encoded, _ = encode_units(store, MODEL, cluster, snapshot, schema, seen, config)
    return snapshot, seen, encoded
