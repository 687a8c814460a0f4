"""Whether a sample stands for the rows that it was drawn from.

A sample is held against a second draw of the same design, with other random numbers: under any design the rows that
only one of the two has are exchangeable, so that whoever can tell them apart has found a flaw of the draw, and not a
preference of the design. For a uniform sample these are sampled rows and others; for strata with a minimum, for recent
and for hard rows both draws have the same preference, and weights need no test of their own: they follow from the
rule. For whole groups a unit is a group, of which one row counts: rows of a group are alike, and would count as
evidence many times over. At most MAX_UNITS units of each side are looked at, which shows any difference that matters.

Three tests, under one family-wise level: population stability of every column, which under no drift follows
(1/n + 1/m) chi-square(B - 1); Kolmogorov and Smirnov's of every numeric one; and an adversary, a classifier that tries
to tell the two sides apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

MAX_UNITS = 20_000
"""Rows, or groups, of each side that are compared."""
NUM_BINS = 20
MAX_CODES = 50
MIN_BIN_ROWS = 40
"""Of both sides together; bins with fewer share one, as the chi-square law asks for."""
FALSE_ALARM = 0.001
"""Chance that a fair sample fails, over all tests together (Holm 1979)."""
NEGLIGIBLE = 0.02
"""A difference that does not matter, however significant: of distribution functions, or of the AUC from 0.5."""
NEGLIGIBLE_PSI = 0.002
"""The population stability of two shares near one half that differ by 0.02 is 0.0016."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ColumnTest:
    """How far one column of the sample is from the others."""

    column: str
    psi: float
    """Population stability index: sum of (q - p) log(q / p) over bins."""
    psi_p_value: float
    """Corrected for all tests, like the next one."""
    ks: float | None = None
    """Largest distance of the distribution functions; None for categories."""
    ks_p_value: float | None = None


@dataclass(frozen=True)
class Fairness:
    """What a comparison of the sample with a second draw has shown."""

    columns: tuple[ColumnTest, ...]
    num_sampled: int
    """Units (rows, or groups) of the sample that were compared, and of the second draw."""
    num_others: int
    unlike: float
    """Share of the sample that the second draw lacks: a difference of the sample from all rows is smaller by it."""
    auc: float
    """Of the adversary on rows it has not learnt from; 0.5 is chance."""
    auc_error: float
    """Bound of the standard error of a blind adversary's AUC."""
    auc_p_value: float

    @property
    def problems(self) -> tuple[str, ...]:
        """Name what is unlike beyond chance and by more than is negligible, with numbers; the worst columns first."""
        found = [(test.psi, text) for test in self.columns if (text := self._problem(test))]
        texts = [text for _, text in sorted(found, reverse=True)[:5]]
        if self.auc_p_value < FALSE_ALARM and (self.auc - 0.5) * self.unlike >= NEGLIGIBLE:
            texts.append(f"an adversary with AUC {self.auc:.3f} (by chance 0.5 with error {self.auc_error:.3f})")
        return tuple(texts)

    def _problem(self, test: ColumnTest) -> str:
        parts = []
        if test.psi_p_value < FALSE_ALARM and test.psi * self.unlike**2 >= NEGLIGIBLE_PSI:
            parts.append(f"PSI {test.psi:.4f}")
        ks, p_value = (test.ks or 0.0), (1.0 if test.ks_p_value is None else test.ks_p_value)
        if p_value < FALSE_ALARM and ks * self.unlike >= NEGLIGIBLE:
            parts.append(f"KS {ks:.3f}")
        return f"{' and '.join(parts)} in column={test.column!r}" if parts else ""

    def sentence(self, units: str) -> str:
        """Return the result in words; `units` says what was compared."""
        worst = max(self.columns, key=lambda test: test.psi)
        return (
            f"Against a second draw of the same design ({self.num_sampled:,} {units} against {self.num_others:,}): "
            f"largest PSI {worst.psi:.4f} ({worst.column}), adversary's AUC {self.auc:.3f} ± {self.auc_error:.3f}."
        )


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected so that the smallest of all is as rare as one (Holm 1979, step down).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    corrected = np.minimum(1.0, np.maximum.accumulate(np.asarray(p_values)[order] * factors))
    restored = np.empty(len(p_values))
    restored[order] = corrected
    return [float(p) for p in restored]


def column_tests(rows: pl.DataFrame, is_sampled: NDArray[np.bool_], codes: set[str]) -> list[ColumnTest]:
    """Compare the two sides column by column; p-values are not corrected yet.

    Args:
        rows: the columns to compare.
        is_sampled: the side of each row, shape (rows,).
        codes: the columns that hold category codes; the others hold numbers.
    """
    tests = []
    for name in rows.columns:
        values = rows.get_column(name).to_numpy().astype(np.float64)
        binned = _code_bins(values) if name in codes else _quantile_bins(values)
        sides = [np.bincount(binned[is_sampled == side], minlength=MAX_CODES + 1) for side in (True, False)]
        psi, p_value = population_stability(*sides)
        distance = None if name in codes else kolmogorov_smirnov(values[is_sampled], values[~is_sampled])
        tests.append(ColumnTest(name, psi, p_value, *(distance or ())))
    return tests


def _quantile_bins(values: Array) -> NDArray[np.intp]:
    """Return the bin of each number: about equally many in each, missing ones in the last."""
    is_known = ~np.isnan(values)
    if not is_known.any():
        return np.zeros(len(values), dtype=np.intp)
    edges = np.unique(np.quantile(values[is_known], np.arange(1, NUM_BINS) / NUM_BINS))
    return np.where(is_known, np.searchsorted(edges, values), NUM_BINS).astype(np.intp)


def _code_bins(values: Array) -> NDArray[np.intp]:
    """Return the bin of each code: the most frequent have their own, the others share the last."""
    distinct, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    rank = np.empty(len(distinct), dtype=np.intp)
    rank[np.lexsort((distinct, -counts))] = np.arange(len(distinct))
    return np.minimum(rank, MAX_CODES)[inverse]


def population_stability(sampled: NDArray[np.int64], others: NDArray[np.int64]) -> tuple[float, float]:
    """Return the population stability index of two counts by bin, and its p-value: (0, 1) where there is no evidence.

    The index is sum (q - p) log(q / p). Without drift it follows (1/n + 1/m) chi-square(B - 1) for samples of n and m
    rows, so that no fixed limit such as 0.1 suits all sizes. Bins with few rows are put together, and half a row is
    added to each bin, so that an empty one has a logarithm.

    >>> population_stability(np.array([500, 500]), np.array([5000, 5000]))
    (0.0, 1.0)
    """
    table = np.stack([sampled, others]).astype(np.float64)
    is_rare = table.sum(axis=0) < MIN_BIN_ROWS
    table = np.column_stack([table[:, ~is_rare], table[:, is_rare].sum(axis=1)])
    if table[:, -1].sum() < MIN_BIN_ROWS:
        table = table[:, :-1]
    sizes = table.sum(axis=1)
    if table.shape[1] < 2 or not sizes.all():
        return 0.0, 1.0
    from scipy.special import chdtrc  # here: who reads a configuration does not wait for it

    q, p = (table + 0.5) / (table + 0.5).sum(axis=1, keepdims=True)
    psi = float(((q - p) * np.log(q / p)).sum())
    return psi, float(chdtrc(table.shape[1] - 1, psi / (1 / sizes[0] + 1 / sizes[1])))


def kolmogorov_smirnov(sampled: Array, others: Array) -> tuple[float, float] | None:
    """Return the largest distance of two distribution functions and its p-value; None where one has no numbers.

    Ties make the test cautious.
    """
    from scipy.stats import ks_2samp  # here: it takes a second to import, which who samples nothing need not wait for

    sampled, others = sampled[~np.isnan(sampled)], others[~np.isnan(others)]
    if not len(sampled) or not len(others):
        return None
    found = ks_2samp(sampled, others, method="asymp")
    return float(found.statistic), float(found.pvalue)


def null_error(num_sampled: int, num_others: int) -> float:
    """Return the standard error of an AUC under no difference (Mann and Whitney 1947; Hanley and McNeil 1982 at 0.5).

    >>> round(null_error(1000, 1000), 4)
    0.0129
    """
    return float(np.sqrt((num_sampled + num_others + 1) / (12 * num_sampled * num_others)))


def judged(
    tests: Sequence[ColumnTest],
    aucs: Sequence[float],
    folds: Sequence[tuple[int, int]],
    sizes: tuple[int, int],
    unlike: float,
) -> Fairness:
    """Put all tests together under one family-wise level.

    Args:
        tests: by column, not corrected.
        aucs: of the adversary on each fold that it has not learnt from; none where there were too few units.
        folds: how many units of the two sides each of them holds.
        sizes: how many units of the two sides were compared.
        unlike: share of the sample that the second draw lacks.
    """
    from scipy.special import ndtr  # here: as above

    auc, error, p_value = 0.5, 0.0, 1.0
    if aucs:
        auc = float(np.mean(aucs))
        # The folds' models share rows, so that their AUCs go together: the mean of K has 1.6 times the variance of K
        # independent ones (measured). Whatever the dependence, it has no more than one of them.
        error = float(np.mean([null_error(*fold) for fold in folds]))
        p_value = float(ndtr((0.5 - auc) / error))
    listed = [p_value, *(t.psi_p_value for t in tests), *(t.ks_p_value for t in tests if t.ks_p_value is not None)]
    corrected = iter(holm(listed))
    auc_p_value = next(corrected)
    psi_p_values = [next(corrected) for _ in tests]
    columns = tuple(
        replace(test, psi_p_value=p, ks_p_value=None if test.ks_p_value is None else next(corrected))
        for test, p in zip(tests, psi_p_values, strict=True)
    )
    return Fairness(columns, *sizes, unlike, auc, error, auc_p_value)
