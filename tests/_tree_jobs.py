"""A small table, and trees that were trained on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from infra.bundle.schema import Column, Schema
from infra.bundle.vocabulary import Vocabulary
from infra.member import Member
from infra.storage import Store
from tasks import _xgboost
from tasks._candidate import Candidate
from tasks._encode import Encoded, encode_file
from tasks._sample import Sample, SampleRule
from tasks._snapshot import CsvConfig, source_file
from tasks._split import SplitRule
from tasks._train import XGBoostConfig
from tasks._training import TrainingJob

SCHEMA = Schema((Column("x", "numeric"), Column("y", "numeric")), "y", "binary", labels=("0", "1"), hash_columns=("x",))


def trained_trees(folder: Path, num_rows: int = 400, rounds: int = 40) -> tuple[Store, TrainingJob, Candidate]:
    """Train a small model of one feature."""
    store = Store(str(folder / "root"))
    rows = pl.DataFrame({"x": np.random.default_rng(0).normal(size=num_rows)}).with_columns(
        y=(pl.col("x") + pl.Series(np.random.default_rng(1).normal(size=num_rows)) > 0).cast(pl.Int64)
    )
    rows.write_parquet(folder / "rows.parquet")
    file = source_file(str(folder / "rows.parquet"), CsvConfig())
    shard = encode_file(store, file, SCHEMA, Vocabulary(), "shards/0")
    job = TrainingJob(
        model="loans",
        encoded=Encoded(SCHEMA, store.put("vocabulary.json", b"{}"), (shard,), num_new=1),
        files=(file,),
        rule=SplitRule("row", 0.2, 0.25),
        sample=Sample(SampleRule(), 0, 0),
        config=XGBoostConfig(rounds=rounds, early_stopping_rounds=10, learning_rate=0.2, max_depth=3),
        include_validation=True,
        seed=0,
        interval=None,
        threads=1,
        facts={"model": "loans"},
    )
    candidate = _xgboost.train(Member.alone(), store, job).candidate
    assert candidate is not None
    return store, job, candidate
