"""A table that can be learnt, and the job of training on it: what the benchmarks of training share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from infra.bundle.vocabulary import Vocabulary
from infra.clusters import client_of, run_on_workers
from infra.storage import Store
from tasks._encode import Encoded, encode_file, extended_vocabulary
from tasks._fingerprints import known_snapshot
from tasks._jobs import split_job
from tasks._kinds import infer_schema
from tasks._neural.config import NeuralConfig
from tasks._neural.inputs import inputs_of
from tasks._neural.job import NeuralJob
from tasks._profile import merge, profile_frame
from tasks._sample import Sample, SampleRule
from tasks._snapshot import DataConfig, source_file
from tasks._split import SideCounts, SplitConfig, add_counts, make_rule
from tasks._train import XGBoostConfig, validation_share
from tasks._training import TrainingJob
from tasks.encode import encode_units
from tasks.profile import profile_units

MODEL, TARGET = "benchmark", "y"
NUM_CITIES = 40


def write_files(
    folder: Path, num_rows: int, num_files: int, num_features: int = 30, seed: int = 0, missing: float = 0.05
) -> None:
    """Write Parquet files of equal length: numbers, one of them with gaps, one text, and a class that hangs on some."""
    folder.mkdir(parents=True, exist_ok=True)
    size = num_rows // num_files
    for index in range(num_files):
        rng = np.random.default_rng((seed, index))
        x = rng.normal(size=(size, num_features - 1)).astype(np.float32)
        city = rng.integers(0, NUM_CITIES, size)
        signal = x[:, 0] + x[:, 1] * x[:, 2] + np.sin(3 * x[:, 3]) + (city % 7 == 3) + rng.normal(size=size)
        x[rng.random(size) < missing, 1] = np.nan
        columns = {f"n{i}": pl.Series(x[:, i]).fill_nan(None) for i in range(num_features - 1)}
        cities = pl.Series(np.array([f"city {i}" for i in range(NUM_CITIES)])[city])
        pl.DataFrame({**columns, "city": cities, TARGET: (signal > 0.5).astype(np.int8)}).write_parquet(
            folder / f"part-{index:04d}.parquet"
        )


def make_job(
    data: Path, root: Path, cluster: str, config: XGBoostConfig, target: str = TARGET, include_validation: bool = True
) -> tuple[Store, TrainingJob, SideCounts]:
    """Take files to shards, as a retrain does, and return the job of training on them."""
    settings = DataConfig(source=str(data), target=target)
    store = Store(str(root))
    snapshot = known_snapshot(store, MODEL, settings, data)
    seen, _ = profile_units(store, cluster, snapshot, settings.time)
    schema = infer_schema(seen, settings, None, None)
    encoded, _ = encode_units(store, MODEL, cluster, snapshot, schema, seen, settings)
    rule = make_rule(SplitConfig(by="row"), schema, None)
    num_classes = len(schema.labels) if schema.task == "multiclass" else 0
    jobs = [(store, shard, rule, num_classes) for shard in encoded.shards]
    counts = add_counts(run_on_workers(client_of(cluster), split_job, jobs))
    job = TrainingJob(
        model=MODEL,
        encoded=Encoded(schema, encoded.vocabulary, encoded.shards, num_new=0),
        files=snapshot.units[:1],
        rule=rule,
        sample=Sample(SampleRule(), counts.train, counts.train),
        config=config,
        include_validation=include_validation,
        seed=0,
        interval=None,
        threads=0,
        facts={"model": MODEL},
        validation_share=validation_share(counts.validation),
    )
    return store, job, counts


def make_neural_job(data: Path, root: Path, config: NeuralConfig, device: str = "cpu") -> tuple[Store, NeuralJob]:
    """Take files to shards in this process, and return the job of training a network on them."""
    store, settings = Store(str(root)), DataConfig(source=str(data), target=TARGET)
    paths = sorted(data.glob("*.parquet"))
    seen = merge(profile_frame(pl.read_parquet(path), None) for path in paths)
    schema = infer_schema(seen, settings, None, None)
    vocabulary = extended_vocabulary(Vocabulary({}), schema, seen)
    files = tuple(source_file(str(path), settings.csv) for path in paths)
    shards = tuple(encode_file(store, file, schema, vocabulary, f"shards/{i}") for i, file in enumerate(files))
    num_rows = sum(shard.num_rows for shard in shards)
    return store, NeuralJob(
        model=MODEL,
        encoded=Encoded(schema, store.put("vocabulary.json", vocabulary.to_json().encode()), shards, num_new=0),
        files=files[:1],
        rule=make_rule(SplitConfig(by="row"), schema, None),
        sample=Sample(SampleRule(), num_rows, num_rows),
        include_validation=True,
        seed=0,
        interval=None,
        threads=0,
        facts={"model": MODEL},
        device=device,
        config=config,
        inputs=inputs_of(schema, vocabulary, seen, config.bins),
        batch_rows=config.num_batch_rows(num_rows),
        micro_batch_rows=1 << 20,
        window_rows=1 << 40,
        max_epochs=config.num_epochs(num_rows),
    )
