"""Decide from evidence: is the challenger better, as good and fresher, or neither?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from infra.bundle.schema import Task
from infra.bundle.vocabulary import Vocabulary
from infra.errors import InputError, nearest
from infra.storage import Ref, Store
from tasks._evaluate import Evaluation, labels_of, load_scores, score_matrix, slice_values, weights_of
from tasks._metrics import Difference, is_higher_better, metric_names, paired_difference, row_losses

Decision = Literal["PROMOTE", "HOLD", "REJECT"]
TRIVIAL_FLOORS: dict[Task, tuple[str, float]] = {"binary": ("auc", 0.5), "regression": ("r2", 0.0)}
"""What a model that has learnt nothing scores."""


class PromoteConfig(BaseModel):
    """When a new model takes over."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = Field(default=True, description="Off: a verdict is given, and nothing is promoted.")
    confidence: float = Field(default=0.95, gt=0.5, lt=1, description="Confidence of the interval of the difference.")
    margin: float = Field(
        default=0.01,
        ge=0,
        lt=1,
        description="A fresher model may be worse by this share of the champion's error (1 - score, or its loss).",
    )
    floors: dict[str, float] = Field(
        default={}, description="Worst acceptable value by metric, such as auc = 0.75 or rmse = 12."
    )
    slice_margin: float = Field(
        default=0.1, ge=0, description="No slice may be worse by more than this share of its loss, beyond noise."
    )
    min_slice_rows: int = Field(default=200, ge=2, description="Smaller slices are not guarded.")
    min_rows: int = Field(default=100, ge=2, description="Rows that a verdict needs at least.")
    resamples: int = Field(default=500, ge=50, le=10_000, description="Bootstrap resamples.")


@dataclass(frozen=True)
class SliceHarm:
    """A slice on which the challenger is worse beyond noise."""

    column: str
    value: str
    num_rows: int
    challenger: float
    champion: float


@dataclass(frozen=True)
class Comparison:
    """The challenger against the champion on identical rows."""

    differences: tuple[Difference, ...]
    """The metric of the verdict first."""
    harms: tuple[SliceHarm, ...]
    flipped: int | None
    """Rows on which the two models decide differently; None for regression."""


@dataclass(frozen=True)
class Verdict:
    """What is done with a challenger, and why."""

    decision: Decision
    reasons: tuple[str, ...]
    comparison: Comparison | None = None


def compare(
    store: Store,
    task: Task,
    metric: str,
    challenger: Evaluation,
    champion: Evaluation,
    config: PromoteConfig,
    slices: list[str],
    vocabulary: Ref,
) -> Comparison:
    """Compare two models on the rows that both were scored on; runs on a worker."""
    new, old = load_scores(store, challenger.scores), load_scores(store, champion.scores)
    labels, scores, before = labels_of(new), score_matrix(new), score_matrix(old)
    assert np.array_equal(labels, labels_of(old)), "both models are scored on the same rows in the same order"
    weights = weights_of(new)
    thresholds = (challenger.threshold, champion.threshold)
    both = [m for m in challenger.metrics if m in champion.metrics and m in metric_names(task)]
    ordered = [metric, *(m for m in _HEADLINES[task] if m in both and m != metric)]
    differences = [
        paired_difference(
            task,
            name,
            labels,
            scores,
            before,
            weights=weights,
            threshold=thresholds,
            confidence=config.confidence,
            num_resamples=config.resamples,
        )
        for name in ordered
    ]
    words = Vocabulary.from_json(store.get(vocabulary).decode())
    harms = slice_harms(task, challenger.slice_metric, new, (labels, scores, before), config, slices, words)
    return Comparison(tuple(differences), tuple(harms), _flipped(task, scores, before, thresholds))


_HEADLINES: dict[Task, tuple[str, ...]] = {
    "binary": ("auc", "log_loss", "average_precision", "brier"),
    "multiclass": ("log_loss", "accuracy", "f1_macro"),
    "regression": ("rmse", "mae", "r2"),
}


def _flipped(
    task: Task, scores: NDArray[np.float64], before: NDArray[np.float64], thresholds: tuple[float, float]
) -> int | None:
    if task == "regression":
        return None
    if task == "binary":
        return int(((scores >= thresholds[0]) != (before >= thresholds[1])).sum())
    return int((scores.argmax(axis=1) != before.argmax(axis=1)).sum())


def slice_harms(
    task: Task,
    metric: str,
    table: pl.DataFrame,
    rows: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]],
    config: PromoteConfig,
    slices: list[str],
    vocabulary: Vocabulary,
) -> list[SliceHarm]:
    """List the slices on which the challenger loses more than the margin, beyond noise.

    A one-sided paired z-test of the mean row loss at 1 - confidence, divided by the number of slices (Bonferroni).
    """
    from scipy.special import ndtri  # here: who reads a configuration does not wait for it

    labels, scores, before = rows
    new, old = row_losses(task, metric, labels, scores), row_losses(task, metric, labels, before)
    assert new is not None and old is not None, "slices are measured by a mean of row losses"
    parts = []
    for name in slices:
        values = slice_values(table, name, vocabulary)
        for value in np.unique(values):
            chosen = values == value
            if int(chosen.sum()) >= config.min_slice_rows:
                parts.append((name, str(value), chosen))
    harms = []
    for name, value, chosen in parts:
        worse = new[chosen] - old[chosen]
        error = float(worse.std(ddof=1)) / np.sqrt(len(worse))
        bound = float(worse.mean()) - float(ndtri(1 - (1 - config.confidence) / len(parts))) * error
        if bound > 0 and worse.mean() > config.slice_margin * old[chosen].mean():
            harms.append(SliceHarm(name, value, len(worse), float(new[chosen].mean()), float(old[chosen].mean())))
    return harms


def check_floors(task: Task, config: PromoteConfig) -> None:
    """Raise an InputError that names a floor on a metric that the task does not have."""
    for name in config.floors:
        if name not in metric_names(task):
            raise InputError(
                f"promote.floors names metrics of a {task} model, but got {name!r}.{nearest(name, metric_names(task))} "
                f"They are {', '.join(metric_names(task))}."
            )


def broken_floors(task: Task, metrics: dict[str, float], config: PromoteConfig) -> list[str]:
    """List in words the floors that a model does not reach."""
    floors = dict(config.floors)
    name, trivial = TRIVIAL_FLOORS.get(task, ("", 0.0))
    if name:
        floors.setdefault(name, trivial)
    broken = []
    for metric, floor in floors.items():
        value = metrics.get(metric)
        if value is None:
            broken.append(f"{metric} can't be computed on this holdout, so its floor of {floor:g} is not reached.")
        elif (value < floor) if is_higher_better(metric) else (value > floor):
            side = "below" if is_higher_better(metric) else "above"
            broken.append(f"{metric} is {value:.4f}, {side} its floor of {floor:g}.")
        elif metric == name and value == trivial:
            broken.append(f"{metric} is {value:.4f}, what a model scores that has learnt nothing.")
    return broken


def judge(
    task: Task,
    metric: str,
    challenger: Evaluation,
    champion: Evaluation | None,
    comparison: Comparison | None,
    config: PromoteConfig,
    is_fresher: bool,
    withdrawn: str | None = None,
    broken_budgets: tuple[str, ...] = (),
) -> Verdict:
    """Give the verdict.

    Floors come first, and with them the sentences of `broken_budgets`, which no form of the model keeps. Without a
    champion they are all there is. Against one: better means that the interval of the paired difference lies above
    zero; as good means that it lies above the non-inferiority margin, and such a model takes over only if it has seen
    newer data. A slice that is harmed beyond noise holds either.
    The metric of the verdict is among the challenger's: an evaluation without it is refused when it is made.
    """
    broken = (*broken_floors(task, challenger.metrics, config), *broken_budgets)
    if broken:
        return Verdict("REJECT", broken, comparison)
    if challenger.num_rows < config.min_rows:
        few = f"The holdout has {challenger.num_rows} rows, fewer than promote.min_rows = {config.min_rows}."
        return Verdict("HOLD", (few,), comparison)
    if champion is None:
        reached = f"First model: it reaches every floor with {metric} {challenger.metrics[metric]:.4f}."
        return Verdict("PROMOTE", (reached,))
    if champion.bundle.digest == challenger.bundle.digest:
        return Verdict("HOLD", ("The challenger is the champion itself: the same data, configuration and code.",))
    if withdrawn is not None:
        back = f"The challenger is version {withdrawn}, which was rolled back."
        return Verdict("HOLD", (f"{back} evergreen rollback --to {withdrawn} brings it back.",), comparison)
    assert comparison is not None, "two different models have been compared"
    return _judge_difference(comparison, config, is_fresher)


def _judge_difference(comparison: Comparison, config: PromoteConfig, is_fresher: bool) -> Verdict:
    d = comparison.differences[0]
    margin = config.margin * (1 - d.champion if is_higher_better(d.metric) else d.champion)
    words = (
        f"{d.metric} {d.challenger:.4f} against {d.champion:.4f} on {d.num_rows:,} rows: "
        f"improvement {d.improvement:+.4f}, {config.confidence:.0%} interval [{d.low:+.4f}, {d.high:+.4f}]"
    )
    if d.high < -margin:
        return Verdict("REJECT", (f"Worse: {words}.",), comparison)
    harmed = tuple(
        f"Slice {h.column} = {h.value} ({h.num_rows:,} rows) is harmed: "
        f"loss {h.challenger:.4f} against {h.champion:.4f}."
        for h in comparison.harms
    )
    if d.low > 0:
        return Verdict("HOLD" if harmed else "PROMOTE", (f"Better: {words}.", *harmed), comparison)
    if d.low > -margin and is_fresher:
        as_good = f"As good and fresher: {words}, above the margin of {-margin:+.4f}."
        return Verdict("HOLD" if harmed else "PROMOTE", (as_good, *harmed), comparison)
    if d.low > -margin:
        return Verdict("HOLD", (f"As good, and not fresher: {words}.",), comparison)
    return Verdict("HOLD", (f"Not proven: {words}, not above the margin of {-margin:+.4f}.", *harmed), comparison)
