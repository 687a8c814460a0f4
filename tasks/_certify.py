"""Prove that a smaller model is as good as the one it was made from.

Two one-sided tests (TOST; Schuirmann 1987, A comparison of the two one-sided tests procedure and the power approach)
on the paired difference of a metric: equivalence is what is proven, not the absence of a proof to the contrary. A
variant is certified if neither "worse by the margin or more" nor "better by the margin or more" can be upheld at
alpha, which is the same as an interval of 1 - 2 alpha inside of the margins. One whose interval reaches beyond the
upper margin alone is certified too: it is better.

One metric hides what another one shows (an AUC any monotone shift of the probabilities), so that gates have to be
passed beside it, each proven at `compress.confidence`. All of them have to hold, hence no correction for their number
(intersection-union test; Berger 1982, Multiparameter hypothesis testing and acceptance sampling).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from infra.bundle.schema import Task
from infra.bundle.vocabulary import Vocabulary
from infra.storage import Ref, Store
from tasks._candidate import BundleRef, load_bundle
from tasks._compress import LOSS_GATE, MAX_TRIES, CompressConfig, Frontier, margin_of
from tasks._decide import PromoteConfig, SliceHarm, slice_harms
from tasks._encode import Encoded
from tasks._evaluate import labels_of, load_scores, score_matrix, slice_columns, weights_of
from tasks._measure import Measured
from tasks._metrics import check_defined, is_higher_better, metrics_of, paired_difference, row_losses

if TYPE_CHECKING:
    import polars as pl

Array = NDArray[Any]
Outcome = Literal["equivalent", "better", "not proven", "worse"]
Fate = Literal["shipped", "refused", "passed over"]

CALIBRATION_TOLERANCE = 0.02
"""How much the expected calibration error may grow."""
DECISION_TOLERANCE = 0.01
"""Share of the rows that may turn from right to wrong, net of those that turn from wrong to right; and by how much the
F1 of a binary model may fall, by which its threshold was chosen."""
MIN_ROWS = 50
"""Rows, of a binary model of the rarer class, below which a normal approximation proves nothing."""
METRIC_RESAMPLES, CALIBRATION_RESAMPLES = 500, 200
CERTIFICATE_FILE = "certificate.json"

_ROOTS = frozenset({"rmse", "rmsle"})
_OF_DECISIONS = frozenset({"accuracy", "f1", "precision", "recall", "f1_macro", "f1_weighted"})


@dataclass(frozen=True)
class Tested:
    """A metric of two models on the same rows, and where their difference lies."""

    metric: str
    candidate: float
    variant: float
    difference: float
    """In the metric's unit; positive where the variant is better, whichever way the metric points."""
    low: float
    """The interval of 1 - 2 alpha."""
    high: float
    margin: float
    p_worse: float
    """Of the test against "worse by the margin or more", by the standard error alone."""
    p_better: float
    """Of the test against "better by the margin or more"."""

    @property
    def outcome(self) -> Outcome:
        """Say where the interval lies."""
        if self.high < -self.margin:
            return "worse"
        if self.low < -self.margin:
            return "not proven"
        return "equivalent" if self.high <= self.margin else "better"

    @property
    def words(self) -> str:
        """Return both values, the difference and its interval."""
        return (
            f"{self.variant:.5g} against {self.candidate:.5g}, difference {self.difference:+.3g}, "
            f"interval [{self.low:+.3g}, {self.high:+.3g}]"
        )

    @property
    def is_not_worse(self) -> bool:
        """Return whether "worse by the margin or more" is refuted."""
        return self.low >= -self.margin


@dataclass(frozen=True)
class Flips:
    """Rows that the two models decide differently, each at its own threshold."""

    to_yes: int
    to_no: int
    to_other: int
    """Of several classes; a binary model has the two above."""
    became_wrong: int
    became_right: int

    @property
    def total(self) -> int:
        """Count them all; one wrong class for another one is neither wrong nor right."""
        return self.to_yes + self.to_no + self.to_other

    def sentence(self, num_rows: int) -> str:
        """Say how many of the rows flip, and to what end."""
        if not self.total:
            return f"None of {num_rows:,} decisions flips."
        ways = f"{self.to_yes:,} from no to yes, {self.to_no:,} from yes to no"
        return (
            f"{self.total:,} of {num_rows:,} decisions flip ({self.total / num_rows:.2%}): "
            f"{'' if self.to_other else ways + '; '}{self.became_wrong:,} become wrong, {self.became_right:,} right."
        )


@dataclass(frozen=True)
class Certificate:
    """What was proven of a variant, on which rows and on which machine."""

    variant: str
    technique: str
    outcome: Outcome
    reasons: tuple[str, ...]
    """Why it is not certified."""
    test: Tested
    """Of the run's own metric."""
    gates: tuple[Tested, ...]
    """What else must not get worse."""
    alpha: float
    """Of each one-sided test, divided by the number of tries."""
    num_rows: int
    flips: Flips | None
    """None: a regression decides nothing."""
    max_row_difference: float
    """Largest difference of two scores of a row, of several classes the largest of these."""
    p99_row_difference: float
    harms: tuple[SliceHarm, ...]
    machine: str
    candidate_measured: Measured
    variant_measured: Measured

    @property
    def is_proven(self) -> bool:
        """Return whether the variant may be shipped."""
        return self.outcome in ("equivalent", "better")

    @property
    def sentence(self) -> str:
        """Say what was proven, or why not."""
        t = self.test
        words = {
            "equivalent": f"{self.variant} is equivalent to the model as trained",
            "better": f"{self.variant} is no worse than the model as trained, and may be better",
            "not proven": f"{self.variant} is not proven to be as good as the model as trained",
            "worse": f"{self.variant} is worse than the model as trained",
        }[self.outcome]
        if not self.is_proven:
            return " ".join([f"{words}.", *self.reasons])
        return (
            f"{words}: {t.metric} {t.variant:.5g} against {t.candidate:.5g} on {self.num_rows:,} rows, difference "
            f"{t.difference:+.3g}, {1 - 2 * self.alpha:.1%} interval [{t.low:+.3g}, {t.high:+.3g}], "
            f"margin {t.margin:.3g}."
        )

    @property
    def lines(self) -> tuple[str, ...]:
        """Say the rest of what was found: both tests, the gates, the decisions, the scores and the machine."""
        t, (whole, small) = self.test, (self.candidate_measured, self.variant_measured)
        return (
            f"Two one-sided tests of {t.metric}: {_p_text(t.p_worse)} against a loss and {_p_text(t.p_better)} against "
            f"a gain of {t.margin:.3g} or more; alpha is {self.alpha:.3g}.",
            *(f"{gate.metric}: {gate.words}, may get worse by {gate.margin:.3g}." for gate in self.gates),
            *([] if self.flips is None else [self.flips.sentence(self.num_rows)]),
            f"Scores of a row differ by at most {self.max_row_difference:.2g}, of 99 in 100 rows by at most "
            f"{self.p99_row_difference:.2g}.",
            f"On {self.machine}: {small.model_bytes:,} bytes instead of {whole.model_bytes:,}; one row in "
            f"{small.row_p50_us:,.3g} µs instead of {whole.row_p50_us:,.3g} (median); {small.rows_per_second:,.0f} "
            f"rows/s instead of {whole.rows_per_second:,.0f}.",
        )


CERTIFICATES: TypeAdapter[Certificate] = TypeAdapter(Certificate)


@dataclass(frozen=True)
class Certified:
    """What is shipped, and what was proven on the way to it."""

    bundle: BundleRef
    """With its certificate inside, unless it is the candidate."""
    index: int
    """In the frontier's variants."""
    certificates: tuple[Certificate, ...]
    """Of all that were tried, in order; the last is of what is shipped if that is not the candidate."""
    sentence: str

    @property
    def certificate(self) -> Certificate | None:
        """Return that of what is shipped; None: the candidate needs none."""
        return self.certificates[-1] if self.index else None


def certify_first(
    ranking: tuple[int, ...],
    certificate_of: Callable[[int, float], Certificate],
    confidence: float,
    lossless: Collection[int] = (),
) -> tuple[int, tuple[Certificate, ...]]:
    """Return the first variant of a ranking that is certified, else 0, and the certificates of all that were tried.

    The best MAX_TRIES are tried, and then the best that loses nothing, whose certificate is no test.

    Args:
        ranking: variants by number, the best first; 0 is the candidate, which needs no certificate.
        certificate_of: gives the certificate of a variant at an alpha; asked for those alone that are tried.
        confidence: of each one-sided test, if there were one try.
        lossless: those that lose nothing.
    """
    ranking = ranking[: ranking.index(0)]
    sure = next((place for place, index in enumerate(ranking) if index in lossless), len(ranking))
    better = ranking[:sure]
    tries = (*better[:MAX_TRIES], *ranking[sure : sure + 1])
    certificates: list[Certificate] = []
    for index in tries:
        certificates.append(certificate_of(index, round((1 - confidence) / max(1, len(better[:MAX_TRIES])), 12)))
        if certificates[-1].is_proven:
            return index, tuple(certificates)
    return 0, tuple(certificates)


def choice_text(frontier: Frontier, index: int, certificates: tuple[Certificate, ...]) -> str:
    """Say what is shipped and why."""
    if index:
        return f"Shipped: {certificates[-1].sentence}"
    if len(certificates) == 1:
        return f"Shipped as trained. {certificates[0].sentence}"
    if certificates:
        names = ", ".join(certificate.variant for certificate in certificates)
        return f"Shipped as trained: none that was tried is proven to be as good ({names})."
    return "Shipped as trained: no smaller form may be." if len(frontier.variants) > 1 else "Shipped as trained."


def fates(frontier: Frontier, certified: Certified) -> tuple[tuple[Fate, str], ...]:
    """Say of each variant what became of it, and why it was refused."""
    tried = {c.variant: c for c in certified.certificates}

    def fate_of(index: int) -> tuple[Fate, str]:
        variant = frontier.variants[index]
        if index == certified.index:
            return "shipped", ""
        if variant.refused:
            return "refused", variant.refused
        if index and variant.name in tried:
            return "refused", " ".join(tried[variant.name].reasons)
        return "passed over", ""

    return tuple(fate_of(index) for index in range(len(frontier.variants)))


def certify_files(
    store: Store,
    frontier: Frontier,
    index: int,
    files: tuple[tuple[Ref, ...], tuple[Ref, ...]],
    encoded: Encoded,
    metric: str,
    config: CompressConfig,
    alpha: float,
) -> Certificate:
    """Certify a variant by the stored scores of the candidate and its own; runs on a worker."""
    pair = (frontier.variants[0], frontier.variants[index])
    vocabulary = Vocabulary.from_json(store.get(encoded.vocabulary).decode())
    return certify(
        encoded.schema.task,
        metric,
        (load_scores(store, files[0]), load_scores(store, files[1])),
        (load_bundle(store, pair[0].bundle).threshold, load_bundle(store, pair[1].bundle).threshold),
        config,
        slice_columns(encoded.schema, vocabulary),
        vocabulary,
        variant=(pair[1].name, pair[1].technique),
        measured=(pair[0].measured, pair[1].measured),
        machine=frontier.machine,
        alpha=alpha,
    )


def certify(
    task: Task,
    metric: str,
    tables: tuple[pl.DataFrame, pl.DataFrame],
    thresholds: tuple[float, float],
    config: CompressConfig,
    slices: list[str],
    vocabulary: Vocabulary,
    *,
    variant: tuple[str, str],
    measured: tuple[Measured, Measured],
    machine: str,
    alpha: float,
) -> Certificate:
    """Test a variant against its candidate on the rows that both were scored on.

    Args:
        task: what the target asks for.
        metric: that of the verdict.
        tables: labels, scores and slice values of candidate and variant, as `tasks._evaluate` writes them.
        thresholds: from which probability candidate and variant say yes.
        config: tolerance, and what slices are guarded.
        slices: the columns whose values are.
        vocabulary: names of their values.
        variant: its name and technique.
        measured: what candidate and variant take on the machine.
        machine: where that was measured.
        alpha: of each one-sided test.

    Raises:
        InputError: the rows do not define the metric.
    """
    labels, (old, new) = labels_of(tables[0]), (score_matrix(table) for table in tables)
    assert np.array_equal(labels, labels_of(tables[1])), "both are scored on the same rows in the same order"
    weights = weights_of(tables[0])
    rows = Pair(task, labels, old, new, np.ones(len(labels)) if weights is None else weights, thresholds)
    check_defined(metric, rows.old_metrics, labels)
    test = rows.tested(metric, margin_of(metric, rows.old_metrics[metric], config.tolerance), alpha)
    # Not divided by the number of tries: what they look for, shifts that the metric hides, is gross.
    gates = rows.gates(metric, config.tolerance, max(alpha, 1 - config.confidence))
    guard = PromoteConfig(
        confidence=config.confidence, slice_margin=config.slice_margin, min_slice_rows=config.min_slice_rows
    )
    sliced = metric if row_losses(task, metric, labels[:1], new[:1]) is not None else _mean_loss(task)
    harms = slice_harms(task, sliced, tables[0], (labels, new, old), guard, slices, vocabulary)
    flips = rows.flips()
    few = [] if rows.num_of_rarer >= MIN_ROWS or rows.is_identical else [_few_text(rows.num_of_rarer)]
    harmed = [
        *_decision_harm(flips, len(labels), config.confidence),
        *rows.f1_harm(config.confidence),
        *map(_harm_text, harms),
    ]
    broken = [gate for gate in (test, *gates) if not gate.is_not_worse]
    outcome = test.outcome
    if few or harmed or broken:
        outcome = "worse" if harmed or any(gate.outcome == "worse" for gate in broken) else "not proven"
    apart = np.abs(new - old) if new.ndim == 1 else np.abs(new - old).max(axis=1)
    return Certificate(
        variant=variant[0],
        technique=variant[1],
        outcome=outcome,
        reasons=(*few, *map(_broken_text, broken), *harmed),
        test=test,
        gates=gates,
        alpha=alpha,
        num_rows=len(labels),
        flips=flips,
        max_row_difference=float(apart.max()),
        p99_row_difference=float(np.quantile(apart, 0.99)),
        harms=tuple(harms),
        machine=machine,
        candidate_measured=measured[0],
        variant_measured=measured[1],
    )


# --- Words -----------------------------------------------------------------------------------------------------------


def _p_text(value: float) -> str:
    """Return a p-value for people.

    >>> _p_text(0.0123), _p_text(3e-20)
    ('p = 0.012', 'p < 1e-09')
    """
    return f"p = {value:.2g}" if value >= 1e-9 else "p < 1e-09"


def _few_text(num_rows: int) -> str:
    return f"A proof needs {MIN_ROWS} rows (of a binary target of each class), but got num_rows={num_rows}."


def _broken_text(test: Tested) -> str:
    sure = "is" if test.outcome == "worse" else "may be"
    return f"{test.metric} {sure} worse by more than {test.margin:.3g}: {test.words}."


def _harm_text(harm: SliceHarm) -> str:
    return (
        f"Slice {harm.column} = {harm.value} ({harm.num_rows:,} rows) is harmed: "
        f"loss {harm.challenger:.4f} against {harm.champion:.4f}."
    )


def _decision_harm(flips: Flips | None, num_rows: int, confidence: float) -> list[str]:
    """Say if too many decisions turn wrong, beyond noise: an exact one-sided sign test of the flips that matter."""
    from scipy.special import bdtrc  # here: who reads a configuration does not wait for it

    if flips is None or flips.became_wrong - flips.became_right <= DECISION_TOLERANCE * num_rows:
        return []
    mattering = flips.became_wrong + flips.became_right
    if bdtrc(flips.became_wrong - 1, mattering, 0.5) > 1 - confidence:
        return []
    return [
        f"{flips.became_wrong:,} decisions become wrong and {flips.became_right:,} right, "
        f"a loss of more than {DECISION_TOLERANCE:.0%} of {num_rows:,} rows."
    ]


# --- Tests -----------------------------------------------------------------------------------------------------------


def _mean_loss(task: Task) -> str:
    return "rmse" if task == "regression" else "log_loss"


@dataclass(frozen=True)
class Pair:
    """Two models' scores of the same rows, shape (rows,) or (rows, classes)."""

    task: Task
    labels: Array
    old: Array
    """Of the candidate."""
    new: Array
    """Of the variant."""
    weights: Array
    thresholds: tuple[float, float]

    @property
    def is_identical(self) -> bool:
        """Return whether nothing at all differs."""
        return self.thresholds[0] == self.thresholds[1] and np.array_equal(self.old, self.new)

    @property
    def num_of_rarer(self) -> int:
        """Count the rows, of a binary target those of the rarer class."""
        if self.task != "binary":
            return len(self.labels)
        num_positive = int((self.labels == 1).sum())
        return min(num_positive, len(self.labels) - num_positive)

    @cached_property
    def old_metrics(self) -> dict[str, float]:
        """Return the candidate's metrics."""
        return metrics_of(self.task, self.labels, self.old, weights=self.weights, threshold=self.thresholds[0])

    def tested(self, metric: str, margin: float, alpha: float) -> Tested:
        """Return the two one-sided tests of a metric's difference, by its normal approximation."""
        sign = 1.0 if is_higher_better(metric) else -1.0
        old, new, error = self.difference(metric)
        return two_one_sided(metric, (old, new), sign * (new - old), error, margin, alpha)

    def difference(self, metric: str) -> tuple[float, float, float]:
        """Return a metric of candidate and variant, and the standard error of its difference."""
        if metric == "auc":
            return self._auc_difference()
        losses = [
            row_losses(self.task, metric, self.labels, scores, threshold=threshold)
            for scores, threshold in zip((self.old, self.new), self.thresholds, strict=True)
        ]
        if losses[0] is None or losses[1] is None:
            d = paired_difference(
                self.task,
                metric,
                self.labels,
                self.new,
                self.old,
                weights=self.weights,
                threshold=(self.thresholds[1], self.thresholds[0]),
                num_resamples=METRIC_RESAMPLES,
            )
            old, new, error = d.champion, d.challenger, d.resample_sd
        else:
            old, new, error = _mean_difference(metric, losses[0], losses[1], self.weights)
        if metric in _OF_DECISIONS and not self.is_identical:
            # As if one more row were decided otherwise: without it no flip in few rows would be a certainty (the
            # pseudo-observations of Agresti and Min 2005, Simple improved confidence intervals for matched pairs).
            error = math.hypot(error, 1 / max(1, self.num_of_rarer))
        return old, new, error

    def _auc_difference(self) -> tuple[float, float, float]:
        """Return both AUCs, and the standard error of their difference (DeLong, DeLong and Clarke-Pearson 1988)."""
        positive = self.labels == 1
        w = (self.weights[positive], self.weights[~positive])
        placed = [_placements(positive, scores, self.weights) for scores in (self.old, self.new)]
        old, new = (float(np.average(of_positives, weights=w[0])) for of_positives, _ in placed)
        variance = sum(_variance_of_mean(placed[1][side] - placed[0][side], w[side]) for side in (0, 1))
        return old, new, math.sqrt(variance)

    def gates(self, metric: str, tolerance: float, alpha: float) -> tuple[Tested, ...]:
        """Return what must not get worse beside the metric: losses, and the calibration of probabilities."""
        names = ("rmse", "mae") if self.task == "regression" else ("log_loss",)
        gates = [
            self.tested(name, LOSS_GATE * margin_of(name, self.old_metrics[name], tolerance), alpha)
            for name in names
            if name != metric
        ]
        return tuple(gates if self.task == "regression" else [*gates, self._calibration(alpha)])

    def _calibration(self, alpha: float) -> Tested:
        """Test the calibration error; of several classes that of the class which the candidate decides for.

        The labels' noise makes the interval of its difference wide. It is narrowed by what needs no label: in given
        bins a calibration error moves by no more than the probabilities do on average.
        """
        if self.task == "binary":
            events, old, new = self.labels, self.old, self.new
        else:
            rows, chosen = np.arange(len(self.labels)), self.old.argmax(axis=1)
            events, old, new = (self.labels == chosen).astype(float), self.old[rows, chosen], self.new[rows, chosen]
        d = paired_difference(
            *("binary", "calibration_error", events, new, old),
            weights=self.weights,
            num_resamples=CALIBRATION_RESAMPLES,
        )
        found = two_one_sided(
            d.metric, (d.champion, d.challenger), d.improvement, d.resample_sd, CALIBRATION_TOLERANCE, alpha
        )
        reach = max(abs(found.difference), _mean_distance(old, new, self.weights, alpha))
        return replace(found, low=max(found.low, -reach), high=min(found.high, reach))

    def f1_harm(self, confidence: float) -> list[str]:
        """Say if the F1 of a binary model, each at its own threshold, falls too far, beyond noise (delta method)."""
        if self.task != "binary":
            return []
        actual = (self.labels == 1).astype(float)
        values, influences = [], []
        for scores, threshold in zip((self.old, self.new), self.thresholds, strict=True):
            taken = (scores >= threshold).astype(float)
            hits, either = 2 * actual * taken, actual + taken
            mean = float(np.average(either, weights=self.weights))
            values.append(float(np.average(hits, weights=self.weights)) / mean if mean else 0.0)
            influences.append((hits - values[-1] * either) / mean if mean else np.zeros(len(actual)))
        error = math.sqrt(_variance_of_mean(influences[1] - influences[0], self.weights))
        test = two_one_sided(
            "f1", (values[0], values[1]), values[1] - values[0], error, DECISION_TOLERANCE, 1 - confidence
        )
        if test.difference >= -DECISION_TOLERANCE or test.high >= 0:
            return []
        return [f"F1 at the thresholds falls by more than {DECISION_TOLERANCE:g}: {test.words}."]

    def flips(self) -> Flips | None:
        """Count the rows that are decided differently."""
        if self.task == "regression":
            return None
        if self.task == "binary":
            truth = self.labels == 1
            before, after = self.old >= self.thresholds[0], self.new >= self.thresholds[1]
            changed = (int((~before & after).sum()), int((before & ~after).sum()), 0)
        else:
            truth = self.labels.astype(np.intp)
            before, after = self.old.argmax(axis=1), self.new.argmax(axis=1)
            changed = (0, 0, int((before != after).sum()))
        was_right, is_right = before == truth, after == truth
        return Flips(*changed, int((was_right & ~is_right).sum()), int((~was_right & is_right).sum()))


def two_one_sided(
    metric: str, values: tuple[float, float], difference: float, error: float, margin: float, alpha: float
) -> Tested:
    """Return the two one-sided tests of a difference with a standard error; 0 where the models are the same."""
    from scipy.special import ndtr, ndtri  # here: who reads a configuration does not wait for it

    def p_value(distance: float) -> float:
        return float(ndtr(-distance / error)) if error > 0 else float(distance < 0)

    difference += 0.0  # no minus before a zero
    reach = float(ndtri(1 - alpha)) * error
    return Tested(
        metric=metric,
        candidate=values[0],
        variant=values[1],
        difference=difference,
        low=difference - reach,
        high=difference + reach,
        margin=margin,
        p_worse=p_value(margin + difference),
        p_better=p_value(margin - difference),
    )


def _mean_difference(metric: str, old: Array, new: Array, weights: Array) -> tuple[float, float, float]:
    """Return a metric of the means of two models' row losses, and the standard error of its difference.

    Of a root of a mean the delta method: the square root of m moves by 1 / (2 sqrt(m)) of what m moves by.
    """
    means = [float(np.average(losses, weights=weights)) for losses in (old, new)]
    if metric in _ROOTS:
        roots = [math.sqrt(mean) for mean in means]
        old, new = (losses / (2 * root) if root else losses for losses, root in zip((old, new), roots, strict=True))
        return roots[0], roots[1], math.sqrt(_variance_of_mean(new - old, weights))
    values = [1 - mean if is_higher_better(metric) else mean for mean in means]
    return values[0], values[1], math.sqrt(_variance_of_mean(new - old, weights))


def _variance_of_mean(values: Array, weights: Array) -> float:
    """Return the variance of a weighted mean of independent rows, about that mean."""
    num_rows, share = len(values), weights / weights.sum()
    centred = values - float((share * values).sum())
    return float((share**2 * centred**2).sum()) * num_rows / max(1, num_rows - 1)


def _placements(positive: Array, scores: Array, weights: Array) -> tuple[Array, Array]:
    """Return for each positive the share of negatives below it, for each negative that of positives above; ties half.

    Shapes (positives,), (negatives,).
    """

    def share_below(of: Array, others: Array, weights_of_others: Array) -> Array:
        order = np.argsort(others, kind="stable")
        sums = np.concatenate(([0.0], np.cumsum(weights_of_others[order])))
        below = sums[np.searchsorted(others[order], of, "left")]
        up_to = sums[np.searchsorted(others[order], of, "right")]
        return np.asarray((below + up_to) / (2 * sums[-1]))

    above, below = scores[positive], scores[~positive]
    return share_below(above, below, weights[~positive]), 1 - share_below(below, above, weights[positive])


def _mean_distance(old: Array, new: Array, weights: Array, alpha: float) -> float:
    """Return an upper bound, at alpha, of the mean distance of two scores of a row."""
    from scipy.special import ndtri

    apart = np.abs(new - old)
    error = math.sqrt(_variance_of_mean(apart, weights))
    return float(np.average(apart, weights=weights)) + float(ndtri(1 - alpha)) * error
