"""Data sets with what others have reached on them, and jobs of both families on the same encoded rows.

The real ones lie in a folder with one subfolder each; see docs/log.md for their sources.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from infra.bundle.vocabulary import Vocabulary
from infra.storage import Store
from tasks._demo import demo_month, first_day
from tasks._encode import Encoded, encode_file, extended_vocabulary, load_shard
from tasks._kinds import infer_schema
from tasks._learning import LearningJob, side_rows
from tasks._neural.config import NeuralConfig
from tasks._neural.inputs import inputs_of
from tasks._neural.job import NeuralJob
from tasks._profile import Profile, profile_frame
from tasks._readers import read_file
from tasks._sample import Sample, SampleRule
from tasks._snapshot import DataConfig, source_file
from tasks._split import HOLDOUT, TRAIN, SplitConfig, make_rule
from tasks._train import XGBoostConfig
from tasks._training import TrainingJob

BEIJING_ROWS = 60_000


@dataclass(frozen=True)
class DataSet:
    """A table to learn from."""

    name: str
    target: str
    read: Callable[[Path], pl.DataFrame | Path]
    """Takes the folder of all sets; returns the set's file, or its rows."""
    published: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    """More of its `DataConfig`."""


def file_at(name: str) -> Callable[[Path], Path]:
    """Return what names the file of a set."""
    return lambda folder: folder / name


def read_beijing(folder: Path) -> pl.DataFrame:
    """Return a seventh of the hours of all stations, without the other pollutants, which come with the target."""
    files = sorted((folder / "beijing_air").glob("PRSA_Data_*.csv.gz"))
    parts = [pl.read_csv(path, null_values="NA", infer_schema_length=None) for path in files]
    rows = pl.concat(parts, how="vertical_relaxed").sample(BEIJING_ROWS, seed=0)
    rows = rows.with_columns(at=pl.datetime("year", "month", "day", "hour"))
    others = ["No", "PM10", "SO2", "NO2", "CO", "O3", "year", "month", "day", "hour"]
    return rows.drop(others).filter(pl.col("PM2.5").is_not_null()).sort("at")


def make_loans(num_rows: int) -> Callable[[Path], pl.DataFrame]:
    """Return what makes the demonstration's loans of a year."""

    def made(folder: Path) -> pl.DataFrame:
        start = date(2024, 1, 1)
        months = [demo_month(month, first_day(start, month), rows=num_rows, seed=7) for month in range(1, 13)]
        return pl.concat(months).drop("applicant_id")

    return made


def make_waves(num_rows: int) -> Callable[[Path], pl.DataFrame]:
    """Return what makes rows whose target is a smooth function of numbers and of a text's effect."""

    def made(folder: Path) -> pl.DataFrame:
        rng = np.random.default_rng(0)
        x = rng.normal(size=(num_rows, 8))
        code = rng.integers(0, 12, num_rows)
        effect = rng.normal(size=12)[code]
        y = np.sin(2 * x[:, 0]) * x[:, 1] + x[:, 2] * x[:, 3] + np.abs(x[:, 4] + x[:, 5]) + effect * x[:, 6]
        columns = {f"x{i}": x[:, i] for i in range(8)}
        texts = pl.Series(code).cast(pl.String)
        return pl.DataFrame({**columns, "c": texts, "y": y + 0.5 * rng.normal(size=num_rows)})

    return made


REAL = (
    DataSet(
        "adult",
        "income",
        file_at("adult/adult_train.csv.gz"),
        "log loss 0.283 TabM-mini, 0.275 tuned XGBoost (official test)",
    ),
    DataSet(
        "bank marketing",
        "y",
        file_at("bank_marketing/bank-additional-full.csv.gz"),
        "AUC 0.80 (Moro 2014, rolling)",
        {"ignore": ["duration"]},
    ),
    DataSet(
        "bike sharing",
        "cnt",
        file_at("bike_sharing/hour.csv.gz"),
        "",
        {"time": "dteday", "ignore": ["casual", "registered", "instant"]},
    ),
    DataSet("Beijing air", "PM2.5", read_beijing, "", {"time": "at"}),
    DataSet("connect-4", "target", file_at("connect4/connect_4.tsv.gz"), "accuracy 0.86 XGBoost"),
    DataSet(
        "California housing",
        "MedHouseVal",
        file_at("california_housing/california_housing.parquet"),
        "RMSE 0.4275 TabM-mini, 0.433 XGBoost",
    ),
    DataSet("diamonds", "price", file_at("diamonds/diamonds.csv.gz"), "R2 0.983 TabM"),
)
MADE_UP = (
    DataSet("loans", "defaulted", make_loans(60_000), settings={"time": "applied_on"}),
    DataSet("waves", "y", make_waves(20_000)),
)
QUICK = (
    DataSet("loans", "defaulted", make_loans(8_000), settings={"time": "applied_on"}),
    DataSet("waves", "y", make_waves(3_000)),
)


@dataclass(frozen=True)
class Prepared:
    """A data set's encoded rows, and jobs on them."""

    store: Store
    trees: TrainingJob
    seen: Profile
    vocabulary: Vocabulary

    def network(self, config: NeuralConfig) -> NeuralJob:
        """Return the job of a network on the rows on which the trees learn."""
        schema, num_rows = self.trees.encoded.schema, self.trees.sample.num_rows
        common = {name: getattr(self.trees, name) for name in LearningJob.__dataclass_fields__}
        return NeuralJob(
            **common,
            config=config,
            inputs=inputs_of(schema, self.vocabulary, self.seen, config.bins),
            batch_rows=config.num_batch_rows(num_rows),
            micro_batch_rows=1 << 20,
            window_rows=1 << 40,
            max_epochs=config.num_epochs(num_rows),
        )

    def held_out(self) -> pl.DataFrame:
        """Return the encoded rows that no training sees, with their labels and times."""
        return pl.concat(side_rows(self.store, self.trees, shard, HOLDOUT) for shard in self.trees.encoded.shards)


def prepare(chosen: DataSet, source: Path, folder: Path, seed: int = 0) -> Prepared:
    """Take a data set to jobs, as a retrain does, in this process."""
    found = chosen.read(source)
    if isinstance(found, pl.DataFrame):
        folder.mkdir(parents=True, exist_ok=True)
        found.write_parquet(folder / "rows.parquet")
        found = folder / "rows.parquet"
    data = DataConfig(source=str(found), target=chosen.target, **chosen.settings)
    file = source_file(str(found), data.csv)
    raw = read_file(file)
    seen = profile_frame(raw, data.time)
    schema = infer_schema(seen, data, None, None)
    vocabulary = extended_vocabulary(Vocabulary({}), schema, seen)
    store = Store(str(folder / "root"))
    shard = encode_file(store, file, schema, vocabulary, "shards/0", raw)
    rule = make_rule(SplitConfig(), schema, seen.columns[data.time] if data.time else None)
    num_train = int((rule.sides(load_shard(store, shard, rule.columns)) == TRAIN).sum())
    job = TrainingJob(
        model="benchmark",
        encoded=Encoded(schema, store.put("vocabulary.json", vocabulary.to_json().encode()), (shard,), num_new=1),
        files=(file,),
        rule=rule,
        sample=Sample(SampleRule(), num_train, num_train),
        config=XGBoostConfig(),
        include_validation=False,
        seed=seed,
        interval=None,
        threads=0,
        facts={"model": "benchmark"},
    )
    return Prepared(store, job, seen, vocabulary)
