"""How good predictions are, and how sure one can be that one model is better than another.

Every metric is prepared once for its rows (sorted, counted) and then answers for any weights of those rows.
The value of a report and the resamples of an interval therefore come from the same few lines, and a resample
costs one pass over the rows.

All metrics weigh rows; a metric that the rows cannot define (an AUC without negatives) is left out, never NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from infra.errors import InputError, nearest

Array = NDArray[Any]
Task = Literal["binary", "multiclass", "regression"]
Statistic = Callable[[Array], float]
"""A metric of fixed rows as a function of their weights; NaN where the weighted rows do not define it."""
Builder = Callable[[Array, Array, float], Statistic]
"""Labels, predictions and a threshold to a statistic."""

CLIP = 1e-7
"""Probabilities are kept this far from 0 and 1: about float32's precision, so that a model served in float32 and
one served in float64 are charged the same for certainty."""
NUM_CALIBRATION_BINS = 15
MAX_RESAMPLED_ROWS = 100_000
"""Above this the interval is measured on a subset and narrowed to the full number of rows."""

DEFAULT_METRIC: dict[Task, str] = {"binary": "auc", "multiclass": "log_loss", "regression": "rmse"}


# --- Means of rows ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _RowMean:
    """A metric that is a function of the mean of one loss per row."""

    losses: Callable[[Array, Array, float], Array | None]
    """None: the metric does not exist for these rows."""
    finish: Callable[[float], float] = float

    def __call__(self, labels: Array, predictions: Array, threshold: float) -> Statistic:
        """Prepare the metric for these rows."""
        losses = self.losses(labels, predictions, threshold)
        if losses is None:
            return lambda weights: math.nan
        return lambda weights: self.finish(float((weights * losses).sum() / weights.sum()))


def _binary_log_losses(labels: Array, predictions: Array, threshold: float) -> Array:
    """Return minus the logarithm of the probability given to what happened."""
    given = np.where(labels == 1, predictions, 1.0 - predictions)
    return np.asarray(-np.log(np.clip(given, CLIP, 1.0 - CLIP)))


def _multiclass_log_losses(labels: Array, predictions: Array, threshold: float) -> Array:
    """Return minus the logarithm of the probability given to each row's class."""
    given = predictions[np.arange(len(labels)), labels]
    return np.asarray(-np.log(np.clip(given, CLIP, 1.0 - CLIP)))


def _binary_errors(labels: Array, predictions: Array, threshold: float) -> Array:
    """Return 1 for a row on the wrong side of the threshold."""
    return np.asarray((predictions >= threshold) != (labels == 1), dtype=np.float64)


def _multiclass_errors(labels: Array, predictions: Array, threshold: float) -> Array:
    """Return 1 for a row whose most probable class is not its own."""
    return np.asarray(predictions.argmax(axis=1) != labels, dtype=np.float64)


def _squared_errors(labels: Array, predictions: Array, threshold: float) -> Array:
    """Return squared distances; of a binary task they are the terms of the Brier score."""
    return np.asarray((labels - predictions) ** 2)


def _absolute_errors(labels: Array, predictions: Array, threshold: float) -> Array:
    """Return absolute distances."""
    return np.asarray(np.abs(labels - predictions))


def _relative_errors(labels: Array, predictions: Array, threshold: float) -> Array | None:
    """Return distances as shares of the targets; nothing where a target is zero."""
    return None if (labels == 0).any() else np.asarray(np.abs((labels - predictions) / labels))


def _squared_log_errors(labels: Array, predictions: Array, threshold: float) -> Array | None:
    """Return squared distances of log(1 + x); nothing where a target is negative.

    A negative prediction counts as 0, the closest one that a target may be: without this a single one, of a model
    that knows no bound, would take the metric from a run that is judged by it.
    """
    if labels.min() < 0:
        return None
    return np.asarray((np.log1p(labels) - np.log1p(np.maximum(predictions, 0.0))) ** 2)


def _complement(share: float) -> float:
    return 1.0 - share


# --- Orders of rows --------------------------------------------------------------------------------------------------


def _auc(labels: Array, predictions: Array, threshold: float) -> Statistic:
    """Prepare P(a positive scores above a negative), ties counting half (Mann and Whitney, 1947)."""
    positives, negatives = np.flatnonzero(labels == 1), np.flatnonzero(labels != 1)
    positives = positives[np.argsort(predictions[positives], kind="stable")]
    negatives = negatives[np.argsort(predictions[negatives], kind="stable")]
    num_below = np.searchsorted(predictions[negatives], predictions[positives], "left")
    num_up_to = np.searchsorted(predictions[negatives], predictions[positives], "right")

    def area(weights: Array) -> float:
        negative = np.concatenate(([0.0], np.cumsum(weights[negatives])))
        positive = weights[positives]
        num_pairs = positive.sum() * negative[-1]
        wins = (positive * (negative[num_below] + negative[num_up_to])).sum() / 2
        return float(wins / num_pairs) if num_pairs > 0 else math.nan

    return area


def _auc_one_vs_rest(labels: Array, predictions: Array, threshold: float) -> Statistic:
    """Prepare the mean AUC of each class against the others, over the classes that the weighted rows define."""

    def of_class(code: int) -> Statistic:
        return _auc(labels == code, predictions[:, code], threshold)

    codes = range(predictions.shape[1])
    if len(labels) > MAX_RESAMPLED_ROWS:  # asked once: hold the order of one class in memory at a time
        return lambda weights: _mean_of_defined([of_class(code)(weights) for code in codes])
    prepared = [of_class(code) for code in codes]
    return lambda weights: _mean_of_defined([area(weights) for area in prepared])


def _mean_of_defined(values: list[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan


def _average_precision(labels: Array, predictions: Array, threshold: float) -> Statistic:
    """Prepare the sum of precision times gained recall over all thresholds, without interpolation."""
    order = np.argsort(-predictions, kind="stable")
    positive = (labels[order] == 1).astype(np.float64)
    ends = _ends_of_ties(predictions[order])

    def area(weights: Array) -> float:
        ordered = weights[order]
        found = np.cumsum(ordered * positive)[ends]
        taken = np.cumsum(ordered)[ends]
        if not 0 < found[-1] < taken[-1]:
            return math.nan
        precision = np.divide(found, taken, out=np.zeros_like(found), where=taken > 0)
        gained = found.copy()
        gained[1:] -= found[:-1]  # np.diff, at a third of its time for few rows
        return float((gained * precision).sum() / found[-1])

    return area


def _ends_of_ties(ordered: Array) -> NDArray[np.intp]:
    """Return the last position of each run of equal values."""
    return np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(ordered) - 1)


def _median_absolute_error(labels: Array, predictions: Array, threshold: float) -> Statistic:
    """Prepare the weighted median of absolute errors: the mean of the lower and the upper one."""
    errors = np.abs(labels - predictions)
    order = np.argsort(errors, kind="stable")
    errors = errors[order]

    def median(weights: Array) -> float:
        cumulative = np.cumsum(weights[order])
        half = cumulative[-1] / 2
        lower, upper = np.searchsorted(cumulative, half, "left"), np.searchsorted(cumulative, half, "right")
        return float((errors[lower] + errors[min(upper, len(errors) - 1)]) / 2)

    return median


class _MassBins:
    """Rows by predicted probability in bins of equal weight; tied predictions share a bin."""

    def __init__(self, labels: Array, predictions: Array, num_bins: int) -> None:
        self._order = np.argsort(predictions, kind="stable")
        ordered = predictions[self._order]
        ends = _ends_of_ties(ordered)
        self._starts = np.concatenate(([0], ends[:-1] + 1))
        self._scores = ordered[self._starts]
        self._positive = (labels[self._order] == 1).astype(np.float64)
        self._num_bins = num_bins

    def sums(self, weights: Array) -> tuple[Array, Array, Array]:
        """Return each bin's weight, weighted predictions and weighted positives."""
        ordered = weights[self._order]
        mass = np.add.reduceat(ordered, self._starts)
        positive = np.add.reduceat(ordered * self._positive, self._starts)
        middle = (np.cumsum(mass) - mass / 2) / mass.sum()
        bins = np.minimum((middle * self._num_bins).astype(np.intp), self._num_bins - 1)
        count = partial(np.bincount, bins, minlength=self._num_bins)
        return count(weights=mass), count(weights=mass * self._scores), count(weights=positive)


def _calibration_error(labels: Array, predictions: Array, threshold: float) -> Statistic:
    """Prepare the expected calibration error over bins of equal mass (Nixon et al., 2019, arXiv:1904.01685)."""
    bins = _MassBins(labels, predictions, NUM_CALIBRATION_BINS)

    def error(weights: Array) -> float:
        mass, predicted, positive = bins.sums(weights)
        return float(np.abs(predicted - positive).sum() / mass.sum())

    return error


# --- Counts of rows --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Counted:
    """A binary metric of the hits among the predicted and the actual positives."""

    score: Callable[[float, float, float], float]

    def __call__(self, labels: Array, predictions: Array, threshold: float) -> Statistic:
        """Prepare the metric for these rows."""
        actual = labels == 1
        taken = predictions >= threshold
        hits = actual & taken
        return lambda weights: self.score(
            float(weights[hits].sum()), float(weights[taken].sum()), float(weights[actual].sum())
        )


def _ratio(part: float, whole: float) -> float:
    """Return a share; 0 of nothing, as scikit-learn has it."""
    return part / whole if whole > 0 else 0.0


def _precision(hits: float, taken: float, actual: float) -> float:
    return _ratio(hits, taken)


def _recall(hits: float, taken: float, actual: float) -> float:
    return _ratio(hits, actual)


def _f1(hits: float, taken: float, actual: float) -> float:
    return _ratio(2 * hits, taken + actual)


@dataclass(frozen=True)
class _ClassF1:
    """The mean F1 of the classes, over those that occur in labels or predictions."""

    by_support: bool

    def __call__(self, labels: Array, predictions: Array, threshold: float) -> Statistic:
        """Prepare the metric for these rows."""
        num_classes = predictions.shape[1]
        chosen = predictions.argmax(axis=1)
        hits = chosen == labels

        def score(weights: Array) -> float:
            count = partial(np.bincount, minlength=num_classes)
            actual = count(labels, weights=weights)
            both = actual + count(chosen, weights=weights)
            occurs = both > 0
            f1 = 2 * count(labels[hits], weights=weights[hits])[occurs] / both[occurs]
            return float(np.average(f1, weights=actual[occurs] if self.by_support else None))

        return score


def _r2(labels: Array, predictions: Array, threshold: float) -> Statistic:
    """Prepare 1 - squared errors / squared distances from the weighted mean target."""
    centred = labels - labels.mean()
    errors = (labels - predictions) ** 2
    is_constant = labels.min() == labels.max()

    def share(weights: Array) -> float:
        spread = (weights * centred**2).sum() - (weights * centred).sum() ** 2 / weights.sum()
        return math.nan if is_constant or spread <= 0 else float(1.0 - (weights * errors).sum() / spread)

    return share


_BUILDERS: dict[Task, dict[str, Builder]] = {
    "binary": {
        "auc": _auc,
        "average_precision": _average_precision,
        "log_loss": _RowMean(_binary_log_losses),
        "brier": _RowMean(_squared_errors),
        "accuracy": _RowMean(_binary_errors, _complement),
        "f1": _Counted(_f1),
        "precision": _Counted(_precision),
        "recall": _Counted(_recall),
        "calibration_error": _calibration_error,
    },
    "multiclass": {
        "log_loss": _RowMean(_multiclass_log_losses),
        "accuracy": _RowMean(_multiclass_errors, _complement),
        "f1_macro": _ClassF1(by_support=False),
        "f1_weighted": _ClassF1(by_support=True),
        "auc_ovr_macro": _auc_one_vs_rest,
    },
    "regression": {
        "rmse": _RowMean(_squared_errors, math.sqrt),
        "mae": _RowMean(_absolute_errors),
        "r2": _r2,
        "median_absolute_error": _median_absolute_error,
        "mape": _RowMean(_relative_errors),
        "rmsle": _RowMean(_squared_log_errors, math.sqrt),
    },
}
_NEEDS = {
    "auc": "rows of both classes",
    "average_precision": "rows of both classes",
    "auc_ovr_macro": "rows of at least two classes",
    "r2": "targets that differ",
    "mape": "no target of 0",
    "rmsle": "no target below 0",
}
"""What the rows must be for a metric that some rows leave undefined."""
_LOWER_IS_BETTER = frozenset(
    {"log_loss", "brier", "calibration_error", "rmse", "mae", "median_absolute_error", "mape", "rmsle"}
)


# --- What other modules use ------------------------------------------------------------------------------------------


def metric_names(task: Task) -> tuple[str, ...]:
    """Return the metrics of a task, the most telling first.

    >>> metric_names("multiclass")
    ('log_loss', 'accuracy', 'f1_macro', 'f1_weighted', 'auc_ovr_macro')
    """
    return tuple(_BUILDERS[task])


def is_higher_better(name: str) -> bool:
    """Say whether a larger value of a metric is a better one.

    >>> is_higher_better("auc"), is_higher_better("rmse")
    (True, False)
    """
    known = {metric for builders in _BUILDERS.values() for metric in builders}
    if name not in known:
        raise InputError(_unknown_metric(name, tuple(sorted(known))))
    return name not in _LOWER_IS_BETTER


def gain(name: str, new: float, old: float) -> float | None:
    """Return how much better a value is than another one; None for a figure without a better side.

    >>> gain("rmse", 2.0, 3.0), gain("interval_width", 2.0, 3.0)
    (1.0, None)
    """
    if not any(name in builders for builders in _BUILDERS.values()):
        return None
    return new - old if is_higher_better(name) else old - new


def metrics_of(
    task: Task, labels: Array, predictions: Array, *, weights: Array | None = None, threshold: float = 0.5
) -> dict[str, float]:
    """Return every metric of a task that these rows define.

    labels: (n,) 0/1, class codes, or numbers. predictions: (n,) P(positive), (n, classes) or (n,) numbers.
    A row is predicted positive at `threshold` and above; accuracy, F1, precision and recall are of these. For RMSLE
    a negative prediction counts as 0. Raises InputError for rows that do not fit together.
    """
    rows = _checked(task, labels, predictions, weights)
    values = {
        name: build(rows.labels, rows.predictions, threshold)(rows.weights) for name, build in _BUILDERS[task].items()
    }
    return {name: value for name, value in values.items() if not math.isnan(value)}


def check_defined(metric: str, values: Mapping[str, float], labels: Array) -> None:
    """Raise an InputError if the rows of a verdict do not define its metric; `values` are the metrics that they do."""
    if metric not in values:
        raise InputError(
            f"The metric of a verdict is defined on its holdout, where {metric} needs {_NEEDS.get(metric, 'more rows')}"
            f', but got model.metric="{metric}" with targets from {labels.min():g} to {labels.max():g}. '
            f"Mend the targets, or set model.metric to one of {', '.join(values)}."
        )


def row_losses(
    task: Task, metric: str, labels: Array, predictions: Array, *, threshold: float = 0.5
) -> NDArray[np.float64] | None:
    """Return the loss of each row where the metric is a function of their mean, else None.

    accuracy gives the 0/1 error, rmse the squared error, rmsle the squared error of logarithms.
    None too where the metric does not exist for these rows (mape with a target of zero).
    """
    build = _builder(task, metric)
    if not isinstance(build, _RowMean):
        return None
    rows = _checked(task, labels, predictions, None)
    return build.losses(rows.labels, rows.predictions, threshold)


def best_threshold(labels: Array, predictions: Array, *, weights: Array | None = None) -> float:
    """Return the threshold with the highest F1, midway to the next lower prediction; O(n log n).

    Meant for validation rows: on the rows it is chosen from, its F1 is optimistic.

    >>> best_threshold(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.6, 0.9]))
    0.5
    """
    rows = _checked("binary", labels, predictions, weights)
    total = (rows.weights * rows.labels).sum()
    if total <= 0:
        raise InputError("A threshold needs positive rows, but got num_positives=0. Validate on more rows.")
    order = np.argsort(-rows.predictions, kind="stable")
    scores = rows.predictions[order]
    ends = _ends_of_ties(scores)
    hits = np.cumsum((rows.weights * rows.labels)[order])[ends]
    taken = np.cumsum(rows.weights[order])[ends]
    best = int(np.argmax(2 * hits / (taken + total)))
    score = float(scores[ends[best]])
    below = float(scores[ends[best + 1]]) if best + 1 < len(ends) else score
    middle = (score + below) / 2
    return middle if middle > below else score


def calibration_curve(labels: Array, predictions: Array, num_bins: int = 10) -> list[tuple[float, float, int]]:
    """Return (mean predicted, observed share, rows) of bins with about equally many rows, lowest first."""
    rows = _checked("binary", labels, predictions, None)
    mass, predicted, positive = _MassBins(rows.labels, rows.predictions, num_bins).sums(rows.weights)
    return [(float(p / m), float(o / m), int(m)) for m, p, o in zip(mass, predicted, positive, strict=True) if m > 0]


@dataclass(frozen=True)
class SliceScore:
    """How a model does on the rows that share one value of a column."""

    value: str
    num_rows: int
    score: float | None
    """None: these rows do not define the metric (an AUC of one class)."""


def slice_metrics(
    task: Task,
    metric: str,
    labels: Array,
    predictions: Array,
    slices: Array,
    min_rows: int = 50,
    *,
    weights: Array | None = None,
    threshold: float = 0.5,
) -> list[SliceScore]:
    """Return the metric on each slice of at least `min_rows` rows, the largest first.

    slices: (n,) strings or codes. Two models on the same rows get the same slices in the same order.
    """
    build = _builder(task, metric)
    rows = _checked(task, labels, predictions, weights)
    if len(slices) != len(rows.labels):
        raise InputError(
            f"Slices need one value per row, but got num_slices={len(slices)} for num_rows={len(rows.labels)}. "
            "Pass the column of the same rows."
        )
    keys = np.asarray(slices)
    if keys.dtype == object:  # a missing value does not sort among strings
        keys = np.array([str(value) for value in keys])
    values, codes = np.unique(keys, return_inverse=True)
    order = np.argsort(codes, kind="stable")
    parts = np.split(order, np.cumsum(np.bincount(codes, minlength=len(values)))[:-1])
    scored = [
        SliceScore(str(value), len(part), _defined(_value(build, rows.take(part), threshold)))
        for value, part in zip(values, parts, strict=True)
        if len(part) >= min_rows
    ]
    return sorted(scored, key=lambda score: (-score.num_rows, score.value))


@dataclass(frozen=True)
class Difference:
    """How much better one model is than another on the same rows, and how sure that is."""

    metric: str
    challenger: float
    """The challenger's value of the metric."""
    champion: float
    improvement: float
    """In the metric's unit; positive where the challenger is better, whichever way the metric points."""
    low: float
    """The confidence interval of the improvement."""
    high: float
    confidence: float
    num_rows: int
    num_resamples: int
    """Resamples that define the metric; one that drew a single class does not define an AUC."""
    resample_sd: float
    """Standard error of the improvement."""


def paired_difference(
    task: Task,
    metric: str,
    labels: Array,
    challenger: Array,
    champion: Array,
    *,
    weights: Array | None = None,
    threshold: tuple[float, float] = (0.5, 0.5),
    confidence: float = 0.95,
    num_resamples: int = 500,
    seed: int = 0,
) -> Difference:
    """Return the improvement of the challenger over the champion with a paired bootstrap interval.

    Each resample gives every row a Poisson(1) count, the same for both models, so that what makes rows hard for
    both cancels (Poisson bootstrap: Chamandy, Muralidharan, Najmi and Naidu, 2012, Google; for metrics normalised
    by the total weight it agrees with drawing n of n rows, and needs no index).
    The interval is the percentile interval (Efron and Tibshirani, 1993, An Introduction to the Bootstrap, ch. 13):
    unlike the basic one it follows any monotone change of the metric's scale and never leaves its range, and a
    paired difference is near enough to symmetric that its bias, the weakness of the method, is small.

    Above MAX_RESAMPLED_ROWS rows (for auc_ovr_macro, which sorts once per class, 300,000 / classes but at least
    10,000) the resamples are taken of a seeded subset of m rows; their distances from the subset's own improvement
    are scaled by sqrt(m / n), as standard errors are, and laid around the improvement on all n rows.

    Rows count as independent: repeated rows of one customer make the interval too narrow.
    The same arguments give the same answer. Raises InputError where the rows do not define the metric.
    """
    build = _builder(task, metric)
    _check_resampling(confidence, num_resamples)
    new, old = _checked(task, labels, challenger, weights), _checked(task, labels, champion, weights)
    values = (_value(build, new, threshold[0]), _value(build, old, threshold[1]))
    if math.isnan(sum(values)):
        raise InputError(_undefined(metric, len(new.labels)))
    sign = 1.0 if is_higher_better(metric) else -1.0
    improvement = sign * (values[0] - values[1])

    rng = np.random.default_rng(seed)
    num_rows = len(new.labels)
    num_drawn = min(num_rows, _max_resampled_rows(metric, new.predictions))
    if num_drawn < num_rows:
        subset = np.sort(rng.choice(num_rows, num_drawn, replace=False, shuffle=False))
        new, old = new.take(subset), old.take(subset)
    pair = (
        build(new.labels, new.predictions, threshold[0]),
        build(old.labels, old.predictions, threshold[1]),
    )
    centre = sign * (pair[0](new.weights) - pair[1](new.weights))
    drawn = sign * _resampled(pair, new.weights, num_resamples, rng)
    if len(drawn) < num_resamples / 2 or math.isnan(centre):
        raise InputError(_undefined(metric, num_rows))
    spread = improvement + (drawn - centre) * math.sqrt(num_drawn / num_rows)
    low, high = np.quantile(spread, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Difference(
        metric=metric,
        challenger=values[0],
        champion=values[1],
        improvement=improvement,
        low=float(low),
        high=float(high),
        confidence=confidence,
        num_rows=num_rows,
        num_resamples=len(drawn),
        resample_sd=float(spread.std(ddof=1)),
    )


# --- Inside ----------------------------------------------------------------------------------------------------------


def _resampled(
    pair: tuple[Statistic, Statistic], weights: Array, num_resamples: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return the differences of a pair of statistics over Poisson(1) resamples that define both."""
    differences = np.full(num_resamples, math.nan)
    for index in range(num_resamples):
        counts = rng.poisson(1.0, len(weights)) * weights
        if counts.sum() > 0:
            differences[index] = pair[0](counts) - pair[1](counts)
    return np.asarray(differences[~np.isnan(differences)])


def _max_resampled_rows(metric: str, predictions: Array) -> int:
    return max(10_000, 300_000 // predictions.shape[1]) if metric == "auc_ovr_macro" else MAX_RESAMPLED_ROWS


@dataclass(frozen=True)
class _Rows:
    """Rows that fit together: float64 or code labels, float64 predictions, float64 weights."""

    labels: Array
    predictions: Array
    weights: Array

    def take(self, index: Array) -> _Rows:
        return _Rows(self.labels[index], self.predictions[index], self.weights[index])


def _value(build: Builder, rows: _Rows, threshold: float) -> float:
    return build(rows.labels, rows.predictions, threshold)(rows.weights) if rows.weights.sum() > 0 else math.nan


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value


def _builder(task: Task, metric: str) -> Builder:
    builders: Mapping[str, Builder] = _BUILDERS[task]
    if metric not in builders:
        raise InputError(_unknown_metric(metric, metric_names(task)))
    return builders[metric]


def _unknown_metric(metric: str, known: tuple[str, ...]) -> str:
    return (
        f'A metric is one of {", ".join(known)}, but got metric="{metric}".{nearest(metric, known)} '
        "Choose one that the task has."
    )


def _undefined(metric: str, num_rows: int) -> str:
    return (
        f"An interval of {metric} needs rows that define it (each class several times), but got num_rows={num_rows} "
        "that do not. Hold out more rows."
    )


def _check_resampling(confidence: float, num_resamples: int) -> None:
    if not 0 < confidence < 1:
        raise InputError(f"A confidence lies between 0 and 1, but got confidence={confidence}. Choose 0.95.")
    if num_resamples < 20:
        raise InputError(f"An interval needs at least 20 resamples, but got num_resamples={num_resamples}. Choose 500.")


def _checked(task: Task, labels: Array, predictions: Array, weights: Array | None) -> _Rows:
    """Return the rows in the types that the metrics compute in, or say what does not fit."""
    num_rows = len(labels)
    if num_rows == 0:
        raise InputError("Metrics need at least 1 row, but got num_rows=0. Hold out more rows.")
    rank = 2 if task == "multiclass" else 1
    if predictions.ndim != rank or len(predictions) != num_rows:
        raise InputError(
            f"Predictions of a {task} task have {'one row of class probabilities' if rank == 2 else 'one number'} "
            f"per label, but got shape={predictions.shape} for num_rows={num_rows}. Predict the same rows."
        )
    given = np.ones(num_rows) if weights is None else np.asarray(weights, dtype=np.float64)
    if given.shape != (num_rows,) or not np.isfinite(given).all() or given.min() < 0 or given.sum() <= 0:
        raise InputError(
            "Weights are one finite number >= 0 per row and not all zero, but got weights that are not "
            f"(shape={given.shape} for num_rows={num_rows}). Check the weight column."
        )
    predicted = np.ascontiguousarray(predictions, dtype=np.float64)
    if not np.isfinite(predicted).all():
        raise InputError(
            f"Predictions are finite numbers, but got num_not_finite={int((~np.isfinite(predicted)).sum())}. "
            "Check the model's training log for a diverged loss."
        )
    if task != "regression" and (predicted.min() < -1e-6 or predicted.max() > 1 + 1e-6):
        raise InputError(
            f"Predictions of a {task} task are probabilities, but got values from {predicted.min():g} to "
            f"{predicted.max():g}. Apply the sigmoid or softmax first."
        )
    return _Rows(_checked_labels(task, labels, predicted), predicted, given)


def _checked_labels(task: Task, labels: Array, predictions: Array) -> Array:
    """Return 0.0/1.0, integer codes or finite numbers."""
    numbers = np.asarray(labels, dtype=np.float64)
    if task == "regression":
        if not np.isfinite(numbers).all():
            raise InputError(
                f"Targets are finite numbers, but got num_not_finite={int((~np.isfinite(numbers)).sum())}. "
                "Leave out the rows without a target."
            )
        return numbers
    num_classes = 2 if task == "binary" else predictions.shape[1]
    wrong = ~np.isin(numbers, np.arange(num_classes))
    if wrong.any():
        raise InputError(
            f"Labels of this task are the codes 0 to {num_classes - 1}, but got label={numbers[wrong][0]:g}. "
            "Encode the target with the schema's labels."
        )
    return numbers if task == "binary" else numbers.astype(np.int64)
