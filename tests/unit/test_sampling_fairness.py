"""Whether a sample stands for the rows that it was drawn from: what is found, and what is no finding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from infra.bundle.schema import Column, Schema
from infra.errors import InputError
from tasks import _pilot
from tasks._encode import ROW, TARGET
from tasks._fairness import (
    FALSE_ALARM,
    ColumnTest,
    Fairness,
    column_tests,
    holm,
    judged,
    kolmogorov_smirnov,
    population_stability,
)
from tasks._pilot import ORDER, told_apart
from tasks._sample import Sample, SampleRule, check_sample

SCHEMA = Schema(
    columns=(Column("a", "numeric"), Column("b", "numeric"), Column("k", "categorical"), Column("y", "numeric")),
    target="y",
    task="binary",
    labels=("no", "yes"),
)
FAIR = Fairness((ColumnTest("a", 0.001, 0.9, 0.01, 0.8),), 5000, 5000, 1.0, 0.5, 0.01, 1.0)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_pilot, "NUM_THREADS", 1)
        yield


def side(rng: np.random.Generator, num_rows: int) -> pl.DataFrame:
    """Make random rows of one side: two numbers with gaps, a skewed code, a class."""
    gaps = rng.random(num_rows) < 0.1
    return pl.DataFrame(
        {
            "a": pl.Series(np.where(gaps, np.nan, rng.normal(size=num_rows)), dtype=pl.Float32),
            "b": pl.Series(rng.integers(0, 4, num_rows), dtype=pl.Float32),
            "k": pl.Series(np.minimum(rng.zipf(1.5, num_rows), 200) - 2, dtype=pl.Int32),
            TARGET: pl.Series(rng.random(num_rows) < 0.3, dtype=pl.Float32),
            ROW: pl.Series(rng.integers(0, 2**63, num_rows), dtype=pl.UInt64),
            ORDER: rng.random(num_rows),
        }
    )


def two_sides(seed: int, num_rows: int = 1500) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Make two sides of the same kind."""
    rng = np.random.default_rng(seed)
    return side(rng, num_rows), side(rng, num_rows)


def flagged(found: Fairness) -> set[str]:
    """Return the columns that are named as problems."""
    return {test.column for test in found.columns if any(f"column={test.column!r}" in text for text in found.problems)}


# False alarms


@pytest.mark.parametrize("sizes", [(300, 700), (20_000, 20_000), (200, 5000)])
def test_stability_knows_the_size_of_the_sample(sizes: tuple[int, int]) -> None:
    """Under a fair draw p-values are uniform for large and small samples, though the index itself is not alike."""
    rng = np.random.default_rng(0)
    p_values = np.array(
        [population_stability(*(rng.multinomial(n, [0.1] * 10) for n in sizes))[1] for _ in range(2000)]
    )

    np.testing.assert_allclose([np.mean(p_values < q) for q in (0.01, 0.1, 0.5)], [0.01, 0.1, 0.5], atol=0.03)
    assert (p_values < FALSE_ALARM).sum() <= 10


def test_false_alarms_are_as_rare_as_promised() -> None:
    """Over all columns and tests together, fair draws look unlike at the 5% level in at most about 5% of cases."""
    alarms = 0
    for seed in range(100):
        rows = pl.concat(two_sides(seed, 600)).select("a", "b", "k", TARGET)
        found = judged(column_tests(rows, np.arange(1200) < 600, {"k", TARGET}), [], [], (600, 600), 1.0)
        alarms += any(min(t.psi_p_value, t.ks_p_value or 1.0) < 0.05 for t in found.columns)

    assert alarms <= 11


def test_an_adversary_that_sees_nothing_stays_within_its_error() -> None:
    """On fair draws the adversary's AUC is 0.5 but for an error that is at most the one stated."""
    found = [told_apart(*two_sides(seed, 400), SCHEMA) for seed in range(8)]
    scores = np.array([(f.auc - 0.5) / f.auc_error for f in found])

    assert abs(scores.mean()) < 3 / np.sqrt(8)
    assert 0.3 < scores.std() < 1.2
    assert [()] * 8 == [f.problems for f in found]


# Power


@pytest.mark.parametrize("column", ["a", "b", "k", TARGET])
def test_a_shifted_column_is_named(column: str) -> None:
    """A sample that prefers some values of a column is found, in that column and no other."""
    sampled, others = two_sides(1, 4000)
    order = others.get_column(column).fill_nan(None).arg_sort(nulls_last=True)
    better = np.random.default_rng(0).choice(order.to_numpy(), 4000, p=np.linspace(1.8, 0.2, 4000) / 4000)
    shifted = sampled.with_columns(others.get_column(column).gather(better))
    found = told_apart(shifted, others, SCHEMA)

    assert {column} == flagged(found)
    assert found.auc_p_value < FALSE_ALARM


def test_an_adversary_finds_what_no_column_shows() -> None:
    """Columns that are each alike, but go together otherwise, are told apart."""
    sampled, others = two_sides(2, 3000)
    labels = sampled.get_column("a").fill_nan(0) > 0
    joint = sampled.with_columns(labels.cast(pl.Float32).alias(TARGET))
    wanted = others.with_columns((pl.col(ORDER) < labels.mean()).cast(pl.Float32).alias(TARGET))
    found = told_apart(joint, wanted, SCHEMA)

    assert set() == flagged(found)
    assert any("an adversary with AUC 0." in text for text in found.problems)


def test_a_difference_that_does_not_matter_is_accepted() -> None:
    """Neither a significant but small difference counts, nor one of the few rows that the second draw lacks."""
    small = ColumnTest("a", 0.0019, 0.0, 0.019, 0.0)
    large = ColumnTest("a", 0.02, 0.0, 0.1, 0.0)
    found = [
        replace(FAIR, columns=(small,), auc=0.519, auc_p_value=0.0).problems,
        replace(FAIR, columns=(large,), auc=0.6, auc_p_value=0.0, unlike=0.1).problems,
        replace(FAIR, columns=(large,), auc=0.6, auc_p_value=0.0, unlike=0.5).problems,
    ]

    assert [0, 0, 2] == [len(problems) for problems in found]


def test_an_unfair_sample_is_refused() -> None:
    """The message names the worst columns with their numbers, and how many rows were sampled."""
    tests = (ColumnTest("b", 0.05, 0.0), ColumnTest("c", 0.251, 0.0, 0.2, 0.0), ColumnTest("d", 0.3, 0.5, 0.3, 0.4))
    message = (
        r"has the distribution that its design promises, but got PSI 0\.2510 and KS 0\.200 in column='c'; PSI 0\.0500 "
        r"in column='b' with 1,000 of 5,000 rows\. Look for what equal rows have in common, raise sampling\.rows"
    )
    with pytest.raises(InputError, match=message):
        check_sample(Sample(SampleRule(), 1000, 5000, replace(FAIR, columns=tests)))

    check_sample(Sample(SampleRule(), 1000, 5000, FAIR))
    check_sample(Sample(SampleRule(), 5000, 5000))


def test_a_sample_is_described() -> None:
    """A line says how many rows, by which design, and what the comparison has shown."""
    text = Sample(SampleRule("hard", thresholds=(0.5,)), 1000, 5000, FAIR).sentence

    assert text == (
        "1,000 of 5,000 training rows (hard). Against a second draw of the same design (5,000 rows against 5,000): "
        "largest PSI 0.0010 (a), adversary's AUC 0.500 ± 0.010."
    )


# Edges


@pytest.mark.parametrize("table", [[[50], [50]], [[0, 0], [50, 50]], [[3, 2], [4, 4]], [[0], [0]]])
def test_what_cannot_be_compared_is_fair(table: list[list[int]]) -> None:
    """A constant column, an empty side and bins with few rows prove nothing."""
    assert (0.0, 1.0) == population_stability(*map(np.array, table))


def test_rare_bins_are_put_together() -> None:
    """Many rare values count as one, so that each alone raises no alarm and all together do."""
    sampled, others = np.array([5000, *[9] * 60]), np.array([5000, *[1] * 60])

    assert population_stability(np.array([5000, 540]), np.array([5000, 60])) == population_stability(sampled, others)
    assert 1.0 > population_stability(sampled, others)[0] > 0.0


@pytest.mark.parametrize("numbers", [[np.nan], []])
def test_a_column_without_numbers_has_no_distance(numbers: list[float]) -> None:
    """Where one side has no numbers there are no distribution functions to compare."""
    values: NDArray[np.float64] = np.array(numbers, dtype=np.float64)

    assert kolmogorov_smirnov(values, np.arange(5.0)) is None


def test_few_units_are_not_told_apart() -> None:
    """With a handful of groups there is no adversary, and chance alone explains the rest."""
    found = told_apart(*two_sides(3, 20), SCHEMA)

    assert (0.5, 1.0, ()) == (found.auc, found.auc_p_value, found.problems)


def test_holm_keeps_the_order_and_never_lowers_a_p_value() -> None:
    """Corrected p-values are ranked as they were, at least as large, and the smallest times their number."""
    given = np.random.default_rng(0).random(50) / 20
    found = np.array(holm(list(given)))

    assert np.argsort(given, kind="stable").tolist() == np.lexsort((given, found)).tolist()
    assert (found >= given).all()
    assert pytest.approx(50 * given.min()) == found.min()
