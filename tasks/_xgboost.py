"""Train XGBoost on one worker, shard by shard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
import xgboost as xgb
from numpy.typing import NDArray

from infra.bundle.encoder import matrix
from infra.bundle.model import Bundle
from infra.bundle.schema import Schema
from infra.bundle.vocabulary import Vocabulary
from infra.errors import RunError
from infra.progress import report_progress
from infra.storage import Store
from tasks._candidate import Candidate, store_bundle
from tasks._encode import TARGET, WEIGHT, Encoded, Shard, load_shard
from tasks._metrics import best_threshold
from tasks._readers import read_file, read_schema
from tasks._sample import Sample
from tasks._snapshot import SourceFile
from tasks._split import TRAIN, VALIDATION, SplitRule
from tasks._train import XGBoostConfig

NUM_GOLDEN = 20
GOLDEN_SCAN = 200


@dataclass(frozen=True)
class TrainingJob:
    """All that a worker needs to train one model."""

    model: str
    encoded: Encoded
    files: tuple[SourceFile, ...]
    rule: SplitRule
    sample: Sample
    config: XGBoostConfig
    seed: int
    interval: float | None
    threads: int
    facts: dict[str, Any]


class ShardBatches(xgb.DataIter):
    """One side of the split as batches, one per shard; the rows of one shard at a time are in memory."""

    def __init__(self, store: Store, job: TrainingJob, schema: Schema, side: int) -> None:
        """Name the shards and the side."""
        self._store, self._job, self._schema, self._side = store, job, schema, side
        self._next = 0
        super().__init__(release_data=True)

    def next(self, input_data: Callable[..., Any]) -> bool:
        """Hand the next batch to XGBoost; False at the end."""
        while self._next < len(self._job.encoded.shards):
            rows = side_rows(self._store, self._job, self._job.encoded.shards[self._next], self._side)
            self._next += 1
            if rows.height:
                features = self._schema.features
                weights = {"weight": rows.get_column(WEIGHT).to_numpy()} if self._schema.weight else {}
                input_data(
                    data=matrix(rows, features),
                    label=rows.get_column(TARGET).to_numpy(),
                    feature_names=[feature.name for feature in features],
                    feature_types=["c" if feature.is_categorical else "q" for feature in features],
                    **weights,
                )
                return True
        return False

    def reset(self) -> None:
        """Start again from the first shard."""
        self._next = 0


def side_rows(store: Store, job: TrainingJob, shard: Shard, side: int) -> pl.DataFrame:
    """Return the rows of a shard that are on a side; of the training side, the sampled ones."""
    frame = load_shard(store, shard)
    chosen = job.rule.sides(frame) == side
    if side == TRAIN:
        chosen &= job.sample.chooses(frame)
    return frame.filter(pl.Series(chosen))


class _Progress(xgb.callback.TrainingCallback):
    def __init__(self, rounds: int) -> None:
        self._rounds = rounds

    def after_iteration(self, model: xgb.Booster, epoch: int, evals_log: dict[str, Any]) -> bool:
        if epoch % 10 == 0:
            latest = {name: next(iter(log.values()))[-1] for name, log in evals_log.items()}
            report_progress({"done": epoch + 1, "total": self._rounds, "loss": float(latest["validation"])})
        return False


def train(store: Store, job: TrainingJob) -> Candidate:
    """Train a model and put its bundle into the store; runs on a worker.

    The matrix is built from the shards as a stream, so that memory holds the quantized rows and one shard
    (about 1.2 times the raw float32 data). The booster is cut to its best round on the validation rows.
    """
    schema, config = job.encoded.schema, job.config
    train_matrix = xgb.QuantileDMatrix(
        ShardBatches(store, job, schema, TRAIN), max_bin=config.max_bin, nthread=job.threads, enable_categorical=True
    )
    validation_matrix = xgb.QuantileDMatrix(
        ShardBatches(store, job, schema, VALIDATION),
        max_bin=config.max_bin,
        nthread=job.threads,
        enable_categorical=True,
        ref=train_matrix,
    )
    parameters = config.parameters(schema.task)
    if schema.task == "multiclass":
        parameters["num_class"] = len(schema.labels)
    curves: dict[str, dict[str, list[float]]] = {}
    booster = xgb.train(
        {**parameters, "seed": job.seed, "nthread": job.threads},
        train_matrix,
        num_boost_round=config.rounds,
        evals=[(train_matrix, "train"), (validation_matrix, "validation")],
        early_stopping_rounds=config.early_stopping_rounds,
        evals_result=curves,
        verbose_eval=False,
        callbacks=[_Progress(config.rounds)],
    )
    loss = str(parameters["eval_metric"])
    num_rounds = booster.best_iteration + 1
    if not np.isfinite(curves["validation"][loss]).all():
        raise RunError(
            f"A training has a finite loss, but got {loss}=nan on the validation rows. "
            "Look for extreme values of the target, and lower train.xgboost.learning_rate."
        )
    booster = booster[:num_rounds]
    bundle = Bundle(schema, job_vocabulary(store, job), booster, facts=job.facts)
    return Candidate(
        family="xgboost",
        bundle=store_bundle(store, finished(store, job, bundle)),
        num_rounds=num_rounds,
        loss=loss,
        train_curve=tuple(curves["train"][loss]),
        validation_curve=tuple(curves["validation"][loss]),
        importance=importance(booster),
        num_train_rows=train_matrix.num_row(),
        num_validation_rows=validation_matrix.num_row(),
        parameters=parameters,
    )


def job_vocabulary(store: Store, job: TrainingJob) -> Vocabulary:
    """Return the vocabulary of a job's shards, cut to the columns of its schema."""
    whole = Vocabulary.from_json(store.get(job.encoded.vocabulary).decode())
    used = {feature.column for feature in job.encoded.schema.features if feature.is_categorical}
    return Vocabulary({column: values for column, values in whole.values.items() if column in used})


def finished(store: Store, job: TrainingJob, bundle: Bundle) -> Bundle:
    """Return a bundle with what is chosen on the validation rows, and its golden predictions.

    A binary model gets its threshold, a regression its prediction interval.
    """
    if bundle.schema.task == "binary":
        labels, scores, weights = validation_scores(store, job, bundle)
        bundle = replace(bundle, threshold=best_threshold(labels, scores, weights=weights))
    elif bundle.schema.task == "regression" and job.interval is not None:
        labels, scores, _ = validation_scores(store, job, bundle)
        bundle = replace(bundle, half_width=conformal_half_width(labels - scores, job.interval))
    return bundle.with_golden(golden_rows(job.files, bundle.schema))


def conformal_half_width(residuals: NDArray[Any], share: float) -> float:
    """Return the half-width that holds a share of new rows like these.

    Split conformal prediction (Lei, G'Sell, Rinaldo, Tibshirani and Wasserman 2018, algorithm 2): the
    ceil((n + 1) share)-th smallest absolute residual of rows that the model was not trained on. After drift it
    holds fewer, which the holdout shows.

    >>> conformal_half_width(np.array([1.0, -2.0, 3.0, -4.0]), 0.75)
    4.0
    """
    ordered = np.sort(np.abs(residuals))
    rank = min(len(ordered), int(np.ceil((len(ordered) + 1) * share)))
    return float(ordered[rank - 1])


def validation_scores(
    store: Store, job: TrainingJob, bundle: Bundle
) -> tuple[NDArray[Any], NDArray[np.float32], NDArray[Any] | None]:
    """Return labels, scores and weights (None: all alike) of the validation rows, shape (rows,)."""
    labels, scores, weights = [], [], []
    for shard in job.encoded.shards:
        rows = side_rows(store, job, shard, VALIDATION)
        labels.append(rows.get_column(TARGET).to_numpy())
        scores.append(bundle.scores(rows))
        weights += [rows.get_column(WEIGHT).to_numpy()] if WEIGHT in rows.columns else []
    return np.concatenate(labels), np.concatenate(scores), np.concatenate(weights) if weights else None


def golden_rows(files: Sequence[SourceFile], schema: Schema) -> pl.DataFrame:
    """Return a few raw rows, spread over the first rows of a file, as a caller would send them in JSON."""
    names = [column.name for column in schema.inputs]
    stored = [name for name in names if name in read_schema(files[0])]
    frame = read_file(files[0], columns=stored).head(GOLDEN_SCAN)
    frame = frame.with_columns(pl.lit(None, dtype=pl.String).alias(name) for name in names if name not in stored)
    dates = [n for n in names if frame.schema[n].is_temporal()]
    frame = (
        frame.with_columns(pl.col(dates).cast(pl.Datetime("us")).dt.to_string("%Y-%m-%dT%H:%M:%S%.f"))
        if dates
        else frame
    )
    return frame.gather_every(max(1, frame.height // NUM_GOLDEN)).head(NUM_GOLDEN).select(names)


def importance(booster: xgb.Booster) -> dict[str, float]:
    """Return each feature's share of the total gain, the largest first."""
    gains = {name: float(np.sum(gain)) for name, gain in booster.get_score(importance_type="total_gain").items()}
    total = sum(gains.values()) or 1.0
    return {name: gain / total for name, gain in sorted(gains.items(), key=lambda item: -item[1])}
