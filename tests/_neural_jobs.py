"""A small table, and the job of training a network on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from infra.bundle.schema import Task
from infra.bundle.vocabulary import Vocabulary
from infra.storage import Store
from tasks._encode import Encoded, encode_file, extended_vocabulary
from tasks._kinds import infer_schema
from tasks._neural.config import NeuralConfig
from tasks._neural.inputs import inputs_of
from tasks._neural.job import NeuralJob
from tasks._profile import merge, profile_frame
from tasks._sample import Sample, SampleRule
from tasks._snapshot import CsvConfig, DataConfig, source_file
from tasks._split import SplitConfig, make_rule

CONFIG = NeuralConfig(
    architecture="mlp", width=8, blocks=1, embedding=3, bins=4, submodels=3, dropout=0.0, learning_rate=0.02, epochs=4
)
"""So small that a test of it takes no time."""
ENDS = (100, 350)
"""Rows at which the second and third file begin."""
BATCH_ROWS = 64


def table(num_rows: int = 600, task: Task = "binary", seed: int = 0) -> pl.DataFrame:
    """Make rows whose column `row` says which row it is, and whose target can be learnt in part."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=num_rows)
    city = rng.choice(["Rome", "Oslo", "Bern"], num_rows)
    signal = 2 * x + (city == "Rome") + rng.normal(size=num_rows)
    targets = {"binary": signal > 0.5, "multiclass": np.digitize(signal, [-1, 1]), "regression": 100 + signal * 10}
    return pl.DataFrame(
        {
            "row": np.arange(num_rows),
            "x": pl.Series(x).replace(x[3], None),
            "city": pl.Series(city).replace("Bern", None),
            "w": rng.integers(0, 3, num_rows),
            "y": pl.Series(targets[task]).cast(pl.Float64 if task == "regression" else pl.Int64),
        }
    )


def job_of(
    folder: Path, frame: pl.DataFrame, task: Task = "binary", config: NeuralConfig = CONFIG, **settings: Any
) -> tuple[Store, NeuralJob]:
    """Encode rows as three files, and describe the training of a network on them, split by row."""
    folder.mkdir(exist_ok=True)
    store = Store(str(folder / "root"))
    data = DataConfig(source="d", target="y", kinds={"row": "numeric"}, **settings)
    parts = (frame[: ENDS[0]], frame[ENDS[0] : ENDS[1]], frame[ENDS[1] :])
    for i, part in enumerate(parts):
        part.write_parquet(folder / f"{i}.parquet")
    files = tuple(source_file(str(folder / f"{i}.parquet"), CsvConfig()) for i in range(len(parts)))
    seen = merge(profile_frame(part, None) for part in parts)
    schema = infer_schema(seen, data, task, None)
    vocabulary = extended_vocabulary(Vocabulary({}), schema, seen)
    shards = tuple(encode_file(store, file, schema, vocabulary, f"shards/{i}") for i, file in enumerate(files))
    return store, NeuralJob(
        model="loans",
        encoded=Encoded(schema, store.put("vocabulary.json", vocabulary.to_json().encode()), shards, num_new=3),
        files=files,
        rule=make_rule(SplitConfig(by="row"), schema, None),
        sample=Sample(SampleRule(), 0, 0),
        include_validation=True,
        seed=3,
        interval=None,
        threads=1,
        facts={"model": "loans"},
        config=config,
        inputs=inputs_of(schema, vocabulary, seen, config.bins),
        batch_rows=BATCH_ROWS,
        micro_batch_rows=1 << 20,
        window_rows=1 << 40,
        max_epochs=config.epochs or 4,
    )


def with_settings(job: NeuralJob, **settings: Any) -> NeuralJob:
    """Return a job whose network is set otherwise."""
    return replace(job, config=job.config.model_copy(update=settings))
