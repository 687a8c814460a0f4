"""Choose the rows to train on, and prove that they stand for all of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy.special import chdtrc

from infra.bundle.schema import Schema
from infra.errors import InputError
from tasks._encode import ROW, TARGET, uniform
from tasks._profile import Profile
from tasks._split import TRAIN, SplitRule

SAMPLE_SALT = 2
NUM_BINS = 20
MAX_CODES = 50
FALSE_ALARM = 0.001
"""Chance that a fair sample fails its test, over all columns together (Bonferroni)."""
NEGLIGIBLE = 0.02
"""Total variation distance below which a difference does not matter, however significant."""


class SamplingConfig(BaseModel):
    """How many of the training rows to learn from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fraction: float = Field(default=1.0, gt=0, le=1, description="Share of the training rows to use.")
    max_rows: int | None = Field(default=None, ge=100, description="Use at most about this many training rows.")

    def share(self, num_rows: int) -> float:
        """Return the share of the rows to use."""
        return min(self.fraction, self.max_rows / num_rows if self.max_rows else 1.0)


@dataclass(frozen=True)
class SampleTest:
    """How far one column of the sample is from all training rows."""

    column: str
    distance: float
    """Total variation distance between the two distributions, 0 to 1."""
    p_value: float
    is_fair: bool


@dataclass(frozen=True)
class Sample:
    """Which rows to train on, as a rule over row hashes, and how well they stand for the rest."""

    share: float
    num_rows: int
    num_all: int
    tests: tuple[SampleTest, ...] = ()

    def chooses(self, shard: pl.DataFrame) -> NDArray[np.bool_]:
        """Return which rows of a shard are in the sample, shape (rows,)."""
        if self.share >= 1:
            return np.ones(shard.height, dtype=np.bool_)
        return uniform(shard.get_column(ROW).to_numpy(), SAMPLE_SALT) < self.share


def bin_edges(schema: Schema, seen: Profile) -> dict[str, list[float]]:
    """Return inner bin edges per numeric feature (and the target of a regression) from the profile's quantiles."""
    ranks = [i / NUM_BINS for i in range(1, NUM_BINS)]
    edges = {
        f.name: sorted(set(seen.columns[f.column].quantile(ranks)))
        for f in schema.features
        if not f.is_categorical and f.part is None
    }
    if schema.task == "regression":
        edges[TARGET] = sorted(set(seen.columns[schema.target].quantile(ranks)))
    return edges


def count_bins(
    shard: pl.DataFrame, schema: Schema, rule: SplitRule, sample: Sample, edges: dict[str, list[float]]
) -> dict[str, NDArray[np.int64]]:
    """Count a shard's training rows by column and bin: row 0 the sampled ones, row 1 the others."""
    is_train = rule.sides(shard) == TRAIN
    chosen = sample.chooses(shard)[is_train]
    counted: dict[str, NDArray[np.int64]] = {}
    codes = {f.name for f in schema.features if f.is_categorical}
    for name in [*(f.name for f in schema.features if f.is_categorical or f.name in edges), TARGET]:
        values = shard.get_column(name).to_numpy()[is_train].astype(np.float64)
        if name in edges:
            binned = np.searchsorted(edges[name], values)
            binned = np.where(np.isnan(values), len(edges[name]) + 1, binned)
            size = len(edges[name]) + 2
        else:
            # Missing is -1, unknown 0; rarer codes share the last bin.
            binned = np.minimum(values + (1 if name in codes else 0), MAX_CODES).astype(np.int64)
            size = MAX_CODES + 1
        counted[name] = np.stack([np.bincount(binned[chosen == side], minlength=size) for side in (True, False)])
    return counted


def compare_sample(counts: dict[str, NDArray[np.int64]]) -> tuple[SampleTest, ...]:
    """Compare the sampled rows with the others, column by column: a chi-square test of homogeneity."""
    level = FALSE_ALARM / max(1, len(counts))
    return tuple(_test(name, table, level) for name, table in counts.items())


def _test(name: str, table: NDArray[np.int64], level: float) -> SampleTest:
    table = table[:, table.sum(axis=0) >= 10].astype(np.float64)
    totals = table.sum(axis=1, keepdims=True)
    if table.shape[1] < 2 or not totals.all():
        return SampleTest(name, 0.0, 1.0, is_fair=True)
    expected = totals * table.sum(axis=0) / table.sum()
    statistic = float(((table - expected) ** 2 / expected).sum())
    p_value = float(chdtrc(table.shape[1] - 1, statistic))
    distance = float(np.abs(table / totals - table.sum(axis=0) / table.sum())[0].sum() / 2)
    return SampleTest(name, distance, p_value, is_fair=p_value >= level or distance < NEGLIGIBLE)


def check_sample(sample: Sample) -> None:
    """Raise an InputError that names the columns in which the sample is unlike the training rows."""
    unfair = [test for test in sample.tests if not test.is_fair]
    if unfair:
        worst = max(unfair, key=lambda test: test.distance)
        raise InputError(
            f"A sample has the distribution of all training rows, but got a distance of {worst.distance:.3f} "
            f"in column={worst.column!r} with {sample.num_rows:,} of {sample.num_all:,} rows. "
            "Raise sampling.fraction or sampling.max_rows."
        )
