"""Train XGBoost on one worker, shard by shard, in two phases.

A pilot learns from the training rows until the validation rows no longer gain. It tells the number of rounds, and its
scores of the validation rows, on which it has not trained, choose threshold, interval and variant. Then a second
booster learns for as many rounds from the rows of both sides, and is shipped (`train.refit`).
"""

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
from infra.storage import Ref, Store, digest_bytes
from tasks._candidate import Candidate, store_bundle
from tasks._encode import ROW, TARGET, WEIGHT, Encoded, Shard, load_shard, uniform
from tasks._metrics import best_threshold
from tasks._readers import read_file, read_schema
from tasks._sample import Sample
from tasks._snapshot import SourceFile
from tasks._split import TRAIN, VALIDATION, SplitRule
from tasks._train import VALIDATION_SALT, XGBoostConfig

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
    refit: bool
    seed: int
    interval: float | None
    threads: int
    facts: dict[str, Any]
    validation_share: float = 1.0
    """How many of the validation rows stop the training and choose what is chosen on them."""


class ShardBatches(xgb.DataIter):
    """Sides of the split as batches, one per shard; the rows of one shard at a time are in memory."""

    def __init__(self, store: Store, job: TrainingJob, *sides: int) -> None:
        """Name the shards and the sides."""
        self._store, self._job, self._sides = store, job, sides
        self._next = 0
        super().__init__(release_data=True)

    def next(self, input_data: Callable[..., Any]) -> bool:
        """Hand the next batch to XGBoost; False at the end."""
        schema = self._job.encoded.schema
        while self._next < len(self._job.encoded.shards):
            rows = side_rows(self._store, self._job, self._job.encoded.shards[self._next], *self._sides)
            self._next += 1
            if rows.height:
                features = schema.features
                weights = {"weight": rows.get_column(WEIGHT).to_numpy()} if WEIGHT in rows.columns else {}
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


def side_rows(store: Store, job: TrainingJob, shard: Shard, *sides: int) -> pl.DataFrame:
    """Return the rows of a shard that are on these sides.

    With the training side among them they are rows to learn from, and the sample's rule thins them all alike: the
    validation rows weigh no more in a refit than they do in the data. Where rows of the sample count differently,
    WEIGHT says so, times the weight that the data give. To stop a training, validation rows are used as the data have
    them, and of very many as many as are enough.
    """
    frame = load_shard(store, shard)
    chosen = np.isin(job.rule.sides(frame), sides)
    if TRAIN not in sides:
        if job.validation_share < 1:
            chosen &= uniform(frame.get_column(ROW).to_numpy(), VALIDATION_SALT) < job.validation_share
        return frame.filter(pl.Series(chosen))
    is_sampled, weights = job.sample.thinned(store, frame)
    if weights is not None:
        given = frame.get_column(WEIGHT).to_numpy() if WEIGHT in frame.columns else np.float32(1)
        frame = frame.with_columns(pl.Series(WEIGHT, given * weights))
    return frame.filter(pl.Series(chosen & is_sampled))


@dataclass(frozen=True)
class Pilot:
    """The model of the first phase, cut to its best round, and how its training went."""

    booster: xgb.Booster
    train_curve: tuple[float, ...]
    validation_curve: tuple[float, ...]
    num_train_rows: int
    num_validation_rows: int


class _Progress(xgb.callback.TrainingCallback):
    """Report every tenth round, counted over both phases."""

    def __init__(self, done: int, total: int) -> None:
        self._done, self._total = done, total

    def after_iteration(self, model: xgb.Booster, epoch: int, evals_log: dict[str, Any]) -> bool:
        if epoch % 10 == 0:
            event: dict[str, Any] = {"done": self._done + epoch + 1, "total": self._total}
            if "validation" in evals_log:
                event["loss"] = float(next(iter(evals_log["validation"].values()))[-1])
            report_progress(event)
        return False


def train(store: Store, job: TrainingJob) -> Candidate:
    """Train a model and put its bundle into the store; runs on a worker.

    The matrices are built from the shards as a stream, so that memory holds the quantized rows and one shard (about
    1.2 times the raw float32 data). Those of the first phase are gone before that of the second is built.
    """
    parameters = library_parameters(job)
    pilot = train_pilot(store, job)
    num_rounds, num_done = pilot.booster.num_boosted_rounds(), len(pilot.validation_curve)
    booster, num_rows = pilot.booster, pilot.num_train_rows
    if job.refit:
        booster, num_rows = refit(store, job, num_rounds, num_done)
    facts = {**job.facts, "num_train_rows": num_rows}
    bundle = Bundle(job.encoded.schema, job_vocabulary(store, job), booster, facts=facts)
    shipped = store_bundle(store, finished(store, job, bundle, pilot.booster))
    return Candidate(
        family="xgboost",
        bundle=shipped,
        pilot=store_booster(store, pilot.booster) if job.refit else shipped.booster,
        num_rounds=num_rounds,
        max_rounds=job.config.rounds,
        is_stopped=num_done - num_rounds >= job.config.early_stopping_rounds,
        loss=str(parameters["eval_metric"]),
        train_curve=pilot.train_curve,
        validation_curve=pilot.validation_curve,
        importance=importance(booster),
        num_train_rows=pilot.num_train_rows,
        num_validation_rows=pilot.num_validation_rows,
        num_refit_rows=num_rows if job.refit else None,
        parameters=parameters,
    )


def library_parameters(job: TrainingJob) -> dict[str, float | int | str]:
    """Return XGBoost's parameters of a job, but for seed and threads."""
    schema = job.encoded.schema
    classes = {"num_class": len(schema.labels)} if schema.task == "multiclass" else {}
    return {**job.config.parameters(schema.task), **classes}


def matrix_of(store: Store, job: TrainingJob, *sides: int, ref: xgb.DMatrix | None = None) -> xgb.QuantileDMatrix:
    """Return the quantized rows of these sides, with the bins of another matrix if one is given."""
    batches = ShardBatches(store, job, *sides)
    return xgb.QuantileDMatrix(
        batches, max_bin=job.config.max_bin, nthread=job.threads, enable_categorical=True, ref=ref
    )


def train_pilot(store: Store, job: TrainingJob) -> Pilot:
    """Train on the training rows until the validation rows no longer gain, and cut to the best round."""
    config, parameters = job.config, library_parameters(job)
    train_matrix = matrix_of(store, job, TRAIN)
    validation_matrix = matrix_of(store, job, VALIDATION, ref=train_matrix)
    curves: dict[str, dict[str, list[float]]] = {}
    booster = xgb.train(
        {**parameters, "seed": job.seed, "nthread": job.threads},
        train_matrix,
        num_boost_round=config.rounds,
        evals=[(train_matrix, "train"), (validation_matrix, "validation")],
        early_stopping_rounds=config.early_stopping_rounds,
        evals_result=curves,
        verbose_eval=False,
        # A second phase has at most as many rounds; how many is known when it begins.
        callbacks=[_Progress(0, config.rounds * (2 if job.refit else 1))],
    )
    loss = str(parameters["eval_metric"])
    if not np.isfinite(curves["validation"][loss]).all():
        raise RunError(
            f"A training has a finite loss, but got {loss}=nan on the validation rows. "
            "Look for extreme values of the target, and lower train.xgboost.learning_rate."
        )
    return Pilot(
        booster=booster[: booster.best_iteration + 1],
        train_curve=tuple(curves["train"][loss]),
        validation_curve=tuple(curves["validation"][loss]),
        num_train_rows=train_matrix.num_row(),
        num_validation_rows=validation_matrix.num_row(),
    )


def refit(store: Store, job: TrainingJob, num_rounds: int, num_done: int) -> tuple[xgb.Booster, int]:
    """Train anew for a number of rounds on training and validation rows; return the model and the number of rows."""
    rows = matrix_of(store, job, TRAIN, VALIDATION)
    booster = xgb.train(
        {**library_parameters(job), "seed": job.seed, "nthread": job.threads},
        rows,
        num_boost_round=num_rounds,
        verbose_eval=False,
        callbacks=[_Progress(num_done, num_done + num_rounds)],
    )
    return booster, rows.num_row()


def store_booster(store: Store, booster: xgb.Booster) -> Ref:
    """Put a booster into the store, under the hash of its content."""
    payload = bytes(booster.save_raw("ubj"))
    return store.put(f"pilots/{digest_bytes(payload)[:32]}.ubj", payload)


def load_booster(store: Store, ref: Ref) -> xgb.Booster:
    """Read a booster from the store."""
    return xgb.Booster(model_file=store.local(ref))


def job_vocabulary(store: Store, job: TrainingJob) -> Vocabulary:
    """Return the vocabulary of a job's shards, cut to the columns of its schema."""
    whole = Vocabulary.from_json(store.get(job.encoded.vocabulary).decode())
    used = {feature.column for feature in job.encoded.schema.features if feature.is_categorical}
    return Vocabulary({column: values for column, values in whole.values.items() if column in used})


def finished(store: Store, job: TrainingJob, bundle: Bundle, pilot: xgb.Booster) -> Bundle:
    """Return a bundle with what is chosen on the validation rows, and its own golden predictions.

    A binary model gets its threshold, a regression its prediction interval. Both come from the scores of `pilot`, the
    same model before it was trained on the validation rows too.
    """
    judged = replace(bundle, booster=pilot)
    if bundle.schema.task == "binary":
        labels, scores, weights = validation_scores(store, job, judged)
        bundle = replace(bundle, threshold=best_threshold(labels, scores, weights=weights))
    elif bundle.schema.task == "regression" and job.interval is not None:
        labels, scores, _ = validation_scores(store, job, judged)
        bundle = replace(bundle, half_width=conformal_half_width(labels - scores, job.interval))
    return bundle.with_golden(golden_rows(job.files, bundle.schema))


def conformal_half_width(residuals: NDArray[Any], share: float) -> float:
    """Return the half-width that holds a share of new rows like these.

    Split conformal prediction (Lei, G'Sell, Rinaldo, Tibshirani and Wasserman 2018, algorithm 2): the
    ceil((n + 1) share)-th smallest absolute residual of rows that the model was not trained on. After a refit the
    promise is that of the pilot, and the shipped model, which has seen more, is as a rule a little closer. After
    drift an interval holds fewer; the holdout shows how many.

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
