"""Score the holdout, and measure a model on it."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from infra.bundle.model import Bundle
from infra.bundle.schema import Schema
from infra.bundle.vocabulary import MISSING, UNKNOWN, Vocabulary
from infra.storage import Ref, Store
from tasks._cache import key_of
from tasks._candidate import BundleRef, load_bundle
from tasks._encode import ROW, TARGET, WEIGHT, Encoded, Shard, load_shard, uniform
from tasks._metrics import SliceScore, calibration_curve, check_defined, metrics_of, row_losses, slice_metrics
from tasks._split import HOLDOUT, SplitRule

LABEL, SCORE = "label", "score"
MAX_SLICES = 20
"""A categorical column with more values than this is no slice."""
MIN_SLICE_ROWS = 50
MAX_HOLDOUT_ROWS = 2_000_000
"""About how many rows judge: an AUC of so many is known to 0.0003 or better."""
HOLDOUT_SALT = 6


@dataclass(frozen=True)
class Slice:
    """One value of one column."""

    column: str
    score: SliceScore


@dataclass(frozen=True)
class Evaluation:
    """How one model does on the holdout of a verdict."""

    bundle: BundleRef
    threshold: float
    metrics: dict[str, float]
    """Every metric that the rows define, that of the verdict among them, and the figures of the model behind them: the
    threshold of a binary one, a regression's interval."""
    num_rows: int
    slices: tuple[Slice, ...]
    slice_metric: str
    calibration: tuple[tuple[float, float, int], ...]
    """(mean predicted, observed, rows) by bin, for a binary model."""
    scores: tuple[Ref, ...]
    """Labels, scores and slice values of the holdout rows, a file per shard."""


def slice_columns(schema: Schema, vocabulary: Vocabulary) -> list[str]:
    """List the features whose values cut the holdout into slices."""
    booleans = [c.name for c in schema.inputs if c.kind == "boolean"]
    return booleans + [
        f.name for f in schema.features if f.is_categorical and 2 < vocabulary.size(f.column) <= MAX_SLICES + 1
    ]


def holdout_share(num_rows: float) -> float:
    """Return how many of about so many held out rows judge.

    >>> holdout_share(1_000), holdout_share(8_000_000)
    (1.0, 0.25)
    """
    return min(1.0, MAX_HOLDOUT_ROWS / max(1.0, num_rows))


def score_shard(
    store: Store,
    bundle: BundleRef,
    shard: Shard,
    inputs: Shard,
    rules: tuple[SplitRule, ...],
    slices: list[str],
    num_classes: int,
    share: float = 1.0,
) -> Ref | None:
    """Write a model's scores of a shard's holdout rows; None where it has none.

    Args:
        store: where shards and bundles are.
        bundle: the model.
        shard: the rows, with their label and what decides their side.
        inputs: the same rows encoded for this model; the same shard but where the encoding has changed.
        rules: a row counts if all of them hold it out: no model of a verdict has trained on a row of its holdout.
        slices: features to keep beside the scores.
        num_classes: classes of a multiclass target, of which an older model may know fewer; 0 otherwise.
        share: how many of these rows are scored, the same ones for every model.
    """
    frame = load_shard(store, shard)
    is_holdout = np.logical_and.reduce([rule.sides(frame) == HOLDOUT for rule in rules])
    if share < 1:
        is_holdout &= uniform(frame.get_column(ROW).to_numpy(), HOLDOUT_SALT) < share
    if not is_holdout.any():
        return None
    chosen = pl.Series(is_holdout)
    features = frame if inputs == shard else load_shard(store, inputs)
    scores = load_bundle(store, bundle).scores(features.filter(chosen))
    if num_classes and scores.shape[1] < num_classes:
        scores = np.pad(scores, ((0, 0), (0, num_classes - scores.shape[1])))
    kept = [TARGET, *(name for name in (WEIGHT,) if name in frame.columns), *slices]
    columns = {f"{SCORE}_{i}": scores[:, i] for i in range(scores.shape[1])} if scores.ndim == 2 else {SCORE: scores}
    table = frame.filter(chosen).select(kept).rename({TARGET: LABEL}).with_columns(**columns)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scores.arrow"
        table.write_ipc(path)
        return store.put_file(f"scores/{bundle.digest}/{key_of(shard.file.digest, list(rules), share)}.arrow", path)


def load_scores(store: Store, files: tuple[Ref, ...]) -> pl.DataFrame:
    """Return labels, scores and slice values of all holdout rows."""
    return pl.concat([pl.read_ipc(store.local(file)) for file in files])


def score_matrix(table: pl.DataFrame) -> NDArray[np.float64]:
    """Return the scores of a table, shape (rows,) or (rows, classes)."""
    if SCORE in table.columns:
        return table.get_column(SCORE).to_numpy().astype(np.float64)
    names = [name for name in table.columns if name.startswith(f"{SCORE}_")]
    return table.select(names).to_numpy().astype(np.float64)


def labels_of(table: pl.DataFrame) -> NDArray[np.float64]:
    """Return the labels of a table, shape (rows,)."""
    return table.get_column(LABEL).to_numpy().astype(np.float64)


def weights_of(table: pl.DataFrame) -> NDArray[np.float64] | None:
    """Return the weights of a table, shape (rows,), or None where rows have none."""
    return table.get_column(WEIGHT).to_numpy().astype(np.float64) if WEIGHT in table.columns else None


def measure(
    store: Store, ref: BundleRef, files: tuple[Ref, ...], encoded: Encoded, metric: str, slices: list[str]
) -> Evaluation:
    """Measure a model from its scores of the holdout; runs on a worker.

    Raises:
        InputError: the holdout does not define the metric of the verdict.
    """
    bundle: Bundle = load_bundle(store, ref)
    schema, table = encoded.schema, load_scores(store, files)
    labels, scores = labels_of(table), score_matrix(table)
    weights = weights_of(table)
    metrics = metrics_of(schema.task, labels, scores, weights=weights, threshold=bundle.threshold)
    check_defined(metric, metrics, labels)
    slice_metric = metric if row_losses(schema.task, metric, labels[:1], scores[:1]) is not None else _mean_loss(schema)
    vocabulary = Vocabulary.from_json(store.get(encoded.vocabulary).decode())
    sliced = [
        Slice(name, score)
        for name in slices
        for score in slice_metrics(
            schema.task,
            slice_metric,
            labels,
            scores,
            slice_values(table, name, vocabulary),
            MIN_SLICE_ROWS,
            weights=weights,
        )
    ]
    return Evaluation(
        bundle=ref,
        threshold=bundle.threshold,
        metrics={
            **metrics,
            # Accuracy, F1, precision and recall are those at this threshold.
            **({"threshold": bundle.threshold} if schema.task == "binary" else {}),
            **(interval_metrics(labels - scores, bundle.half_width) if bundle.half_width else {}),
        },
        num_rows=table.height,
        slices=tuple(sliced),
        slice_metric=slice_metric,
        calibration=tuple(calibration_curve(labels, scores)) if schema.task == "binary" else (),
        scores=files,
    )


def interval_metrics(residuals: NDArray[np.float64], half_width: float) -> dict[str, float]:
    """Return the share of rows that a prediction interval holds, and its width."""
    return {"interval_coverage": float((np.abs(residuals) <= half_width).mean()), "interval_width": 2 * half_width}


def _mean_loss(schema: Schema) -> str:
    return "rmse" if schema.task == "regression" else "log_loss"


def slice_values(table: pl.DataFrame, name: str, vocabulary: Vocabulary) -> NDArray[np.str_]:
    """Return the values of a slicing feature as text, shape (rows,)."""
    values = table.get_column(name).to_numpy()
    if table.schema[name].is_float():
        words = {0.0: "no", 1.0: "yes"}
        return np.array([words.get(float(v), "missing") for v in values])
    names = {MISSING: "missing", UNKNOWN: "unknown", **dict(enumerate(vocabulary.values[name], start=1))}
    return np.array([names[int(code)] for code in values])
