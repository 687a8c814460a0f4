"""Small models that help to choose a sample: the adversary, the learning curve's, and the one that says what is hard.

All run on a worker, go over the shards one at a time, and keep a bounded number of rows: those that come first by a
hash, so that neither the order of rows nor how they are divided into shards changes anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import xgboost as xgb
from numpy.typing import NDArray

from infra.bundle.encoder import matrix
from infra.bundle.model import Bundle
from infra.bundle.schema import Feature, Schema
from infra.bundle.trees import Trees
from infra.bundle.vocabulary import Vocabulary
from infra.progress import report_progress
from infra.storage import Store
from tasks._candidate import BundleRef, store_bundle
from tasks._encode import ROW, TARGET, WEIGHT, Encoded, load_shard, uniform
from tasks._fairness import MAX_UNITS, Fairness, column_tests, judged
from tasks._learning_curve import MAX_JUDGES, Curve, curve_of, curve_sizes
from tasks._metrics import metrics_of, row_losses
from tasks._sample import PILOT_SALT, REDRAW_SALT, ROW_LOSS, SAMPLE_SALT, SampleRule
from tasks._split import TRAIN, VALIDATION, SplitRule
from tasks._train import XGBoostConfig

ORDER, SIDE = "__order", "__side"
"""Columns of gathered rows: the hash that decides which are kept, and whether a row is of the sample."""
CURVE_MODEL = XGBoostConfig(rounds=300, early_stopping_rounds=10, learning_rate=0.3)
"""Fast learning: a sixth of the rounds of a training; what more rows bring is about the same."""
HARD_MODEL = XGBoostConfig(rounds=60, learning_rate=0.2)
HARD_PILOT_ROWS = 20_000
ADVERSARY = XGBoostConfig(rounds=40, learning_rate=0.3, max_depth=4)
NUM_FOLDS = 3
NUM_THREADS = 0
"""As many as the worker may use."""
MIN_UNITS = 100
"""Of each side, for an adversary."""


@dataclass(frozen=True)
class Rows:
    """Whose rows: the shards, and what divides them."""

    encoded: Encoded
    split: SplitRule
    unit: str = ROW
    """The column of hashes whose equal values stay together."""

    @property
    def schema(self) -> Schema:
        """Return the schema of the rows."""
        return self.encoded.schema


class FirstRows:
    """A reservoir of the rows with the smallest hashes: bounded, and the same whatever order they come in."""

    def __init__(self, size: int, is_unique: bool = False) -> None:
        """Bound the number of rows; `is_unique` keeps one row of each unit."""
        self._size, self._is_unique = size, is_unique
        self._kept: pl.DataFrame | None = None

    def add(self, rows: pl.DataFrame) -> None:
        """Take in more rows, which have the columns ORDER, ROW and TARGET."""
        rows = rows.filter(pl.col(ORDER) <= self._limit(rows.get_column(ORDER).to_numpy()))
        whole = rows if self._kept is None else pl.concat([self._kept, rows])
        whole = whole.sort(ORDER, ROW, TARGET)
        if self._is_unique:
            whole = whole.unique(ORDER, keep="first", maintain_order=True)
        self._kept = whole.head(self._size)

    def _limit(self, order: NDArray[np.float64]) -> float:
        """Return the largest hash that can be among the first, so that only few rows are sorted."""
        order = np.unique(order) if self._is_unique else order
        return float(np.partition(order, self._size - 1)[self._size - 1]) if len(order) > self._size else 1.0

    @property
    def rows(self) -> pl.DataFrame:
        """Return what was kept, by hash."""
        assert self._kept is not None, "there is at least one shard"
        return self._kept


def ordered(rows: pl.DataFrame, unit: str, salt: int) -> pl.DataFrame:
    """Return rows with the column ORDER, by which some are chosen."""
    return rows.with_columns(pl.Series(ORDER, uniform(rows.get_column(unit).to_numpy(), salt)))


def first_rows(store: Store, given: Rows, side: int, size: int) -> pl.DataFrame:
    """Return the first rows of a side by their hash: prefixes of them are nested samples."""
    kept = FirstRows(size)
    for shard in given.encoded.shards:
        frame = load_shard(store, shard)
        rows = frame.filter(pl.Series(given.split.sides(frame) == side))
        kept.add(ordered(rows, given.unit, PILOT_SALT))
    return kept.rows


# --- Models ----------------------------------------------------------------------------------------------------------


def quantized(
    rows: pl.DataFrame, features: Sequence[Feature], labels: NDArray[np.float32], ref: xgb.DMatrix | None = None
) -> xgb.QuantileDMatrix:
    """Return gathered rows as XGBoost takes them."""
    weights = {"weight": rows.get_column(WEIGHT).to_numpy()} if WEIGHT in rows.columns else {}
    return xgb.QuantileDMatrix(
        matrix(rows, tuple(features)),
        label=labels,
        feature_names=[feature.name for feature in features],
        feature_types=["c" if feature.is_categorical else "q" for feature in features],
        enable_categorical=True,
        nthread=NUM_THREADS or None,
        ref=ref,
        **weights,
    )


def grown(
    train: xgb.QuantileDMatrix, schema: Schema, config: XGBoostConfig, judges: xgb.QuantileDMatrix | None = None
) -> xgb.Booster:
    """Train a pilot of the schema's target; with judges until they no longer gain, cut to the best round."""
    classes = {"num_class": len(schema.labels)} if schema.task == "multiclass" else {}
    booster = xgb.train(
        {**config.parameters(schema.task), **classes, "seed": 0, "nthread": NUM_THREADS},
        train,
        num_boost_round=config.rounds,
        evals=[(judges, "validation")] if judges is not None else [],
        early_stopping_rounds=config.early_stopping_rounds if judges is not None else None,
        verbose_eval=False,
    )
    return booster if judges is None else booster[: booster.best_iteration + 1]


def learning_curve(store: Store, given: Rows, num_all: int, tolerance: float) -> Curve:
    """Train models of a few nested samples, and choose the size that is enough; runs on a worker."""
    schema = given.schema
    sizes = curve_sizes(num_all, len(schema.features))
    rows = first_rows(store, given, TRAIN, sizes[-1])
    judges = first_rows(store, given, VALIDATION, MAX_JUDGES)
    labels = judges.get_column(TARGET).to_numpy()
    losses = []
    for place, size in enumerate(sizes, 1):
        part = rows.head(size)
        train = quantized(part, schema.features, part.get_column(TARGET).to_numpy())
        judging = quantized(judges, schema.features, labels, ref=train)
        losses.append(_losses(schema, labels, grown(train, schema, CURVE_MODEL, judging).predict(judging)))
        report_progress({"done": place, "total": len(sizes), "rows": size})
    loss = str(CURVE_MODEL.parameters(schema.task)["eval_metric"])
    return curve_of(loss, sizes, np.stack(losses), num_all, tolerance)


def _losses(schema: Schema, labels: NDArray[np.float32], predictions: NDArray[np.float32]) -> NDArray[np.float64]:
    known = labels if schema.task == "regression" else labels.astype(np.int64)
    found = row_losses(schema.task, ROW_LOSS[schema.task], known, predictions)
    assert found is not None, "these metrics are means over rows"
    return found


def train_loss_pilot(store: Store, given: Rows) -> BundleRef:
    """Train the model that says which rows are hard, on a small uniform sample of its own; runs on a worker."""
    schema = given.schema
    rows = first_rows(store, given, TRAIN, HARD_PILOT_ROWS)
    booster = grown(quantized(rows, schema.features, rows.get_column(TARGET).to_numpy()), schema, HARD_MODEL)
    vocabulary = Vocabulary.from_json(store.get(given.encoded.vocabulary).decode())
    return store_bundle(store, Bundle(schema, vocabulary, Trees(booster), facts={"pilot": "hard"}))


# --- The adversary ---------------------------------------------------------------------------------------------------


def compare(store: Store, given: Rows, rule: SampleRule) -> tuple[int, Fairness]:
    """Count a sample's rows, and hold it against a second draw of the same design; runs on a worker."""
    sampled, others = FirstRows(MAX_UNITS, is_unique=True), FirstRows(MAX_UNITS, is_unique=True)
    num_rows = num_unlike = 0
    for place, shard in enumerate(given.encoded.shards, 1):
        frame = load_shard(store, shard)
        rows = frame.filter(pl.Series(given.split.sides(frame) == TRAIN))
        (first, second), _ = rule.draw(store, rows, (SAMPLE_SALT, REDRAW_SALT))
        num_rows += int(first.sum())
        num_unlike += int((first & ~second).sum())
        with_order = ordered(rows, rule.unit, PILOT_SALT)
        sampled.add(with_order.filter(pl.Series(first & ~second)))
        others.add(with_order.filter(pl.Series(second & ~first)))
        report_progress({"done": place, "total": len(given.encoded.shards)})
    return num_rows, told_apart(sampled.rows, others.rows, given.schema, num_unlike / max(1, num_rows))


def told_apart(sampled: pl.DataFrame, others: pl.DataFrame, schema: Schema, unlike: float = 1.0) -> Fairness:
    """Run all tests on gathered rows of the two sides; `unlike` is the share of the sample that the others lack."""
    # One order for both sides, by hash: the folds then depend on the rows alone.
    rows = pl.concat(
        [sampled.with_columns(pl.lit(True).alias(SIDE)), others.with_columns(pl.lit(False).alias(SIDE))]
    ).sort(ORDER, ROW, TARGET)
    is_sampled = rows.get_column(SIDE).to_numpy()
    seen = (*schema.features, Feature(TARGET, schema.target, is_categorical=False))
    codes = {feature.name for feature in seen if feature.is_categorical}
    codes |= {TARGET} if schema.task != "regression" else set()
    tests = column_tests(rows.select(feature.name for feature in seen), is_sampled, codes)
    sizes = (sampled.height, others.height)
    if min(sizes) < MIN_UNITS:
        return judged(tests, [], [], sizes, unlike)
    fold = np.arange(rows.height) % NUM_FOLDS
    aucs = [_adversary(rows, is_sampled, seen, fold == k) for k in range(NUM_FOLDS)]
    held = [(int(is_sampled[fold == k].sum()), int((~is_sampled[fold == k]).sum())) for k in range(NUM_FOLDS)]
    return judged(tests, aucs, held, sizes, unlike)


def _adversary(
    rows: pl.DataFrame, is_sampled: NDArray[np.bool_], seen: tuple[Feature, ...], is_held: NDArray[np.bool_]
) -> float:
    """Return the AUC, on the rows that are held out, of a model that tells sampled rows from others."""
    rows = rows.drop(WEIGHT, strict=False)

    def part(is_in: NDArray[np.bool_], ref: xgb.DMatrix | None = None) -> xgb.QuantileDMatrix:
        return quantized(rows.filter(pl.Series(is_in)), seen, is_sampled[is_in].astype(np.float32), ref)

    train = part(~is_held)
    booster = xgb.train(
        {**ADVERSARY.parameters("binary"), "seed": 0, "nthread": NUM_THREADS},
        train,
        num_boost_round=ADVERSARY.rounds,
        verbose_eval=False,
    )
    return metrics_of("binary", is_sampled[is_held].astype(np.int64), booster.predict(part(is_held, train)))["auc"]
