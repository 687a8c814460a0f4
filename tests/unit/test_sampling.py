"""Which rows to train on, and whether they stand for all of them."""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from infra.bundle.schema import Column, Schema
from infra.errors import InputError
from tasks._encode import ROW, TARGET, row_hash, uniform
from tasks._profile import profile_frame
from tasks._sample import (
    FALSE_ALARM,
    MAX_CODES,
    NEGLIGIBLE,
    NUM_BINS,
    SAMPLE_SALT,
    Sample,
    SampleTest,
    SamplingConfig,
    bin_edges,
    check_sample,
    compare_sample,
    count_bins,
)
from tasks._split import HOLDOUT, TRAIN, SplitRule

SCHEMA = Schema(
    columns=(Column("a", "numeric"), Column("k", "categorical"), Column("y", "numeric")),
    target="y",
    task="binary",
    labels=("no", "yes"),
)
RULE = SplitRule("row", 0.2, 0.15)
N = 8000


def shard(seed: int = 0, num_rows: int = N) -> pl.DataFrame:
    """Make random rows: a number, a category, a class, all independent of the row's hash."""
    rng = np.random.default_rng(seed)
    ids = pl.DataFrame({"i": rng.integers(0, 2**40, num_rows)})
    return pl.DataFrame(
        {
            "a": pl.Series(rng.normal(size=num_rows), dtype=pl.Float32),
            "k": pl.Series(rng.integers(-1, 5, num_rows), dtype=pl.Int32),
            TARGET: pl.Series(rng.integers(0, 2, num_rows), dtype=pl.Float32),
            ROW: row_hash(ids, ("i",)),
        }
    )


def edges_of(frame: pl.DataFrame) -> dict[str, list[float]]:
    """Return the bins of the number, from the profile of the rows."""
    seen = profile_frame(frame.rename({TARGET: "y"}))
    return bin_edges(SCHEMA, seen)


def verdicts(frame: pl.DataFrame, share: float = 0.3) -> dict[str, SampleTest]:
    """Sample rows and test the sample."""
    counts = count_bins(frame, SCHEMA, RULE, Sample(share, 0, 0), edges_of(frame))
    return {test.column: test for test in compare_sample(counts)}


@pytest.mark.parametrize(
    ("settings", "num_rows", "expected"),
    [
        ({}, 1000, 1.0),
        ({"fraction": 0.3}, 1000, 0.3),
        ({"max_rows": 100}, 1000, 0.1),
        ({"max_rows": 5000}, 1000, 1.0),
        ({"fraction": 0.3, "max_rows": 500}, 1000, 0.3),
        ({"fraction": 0.3, "max_rows": 200}, 1000, 0.2),
    ],
)
def test_the_smaller_share_counts(settings: dict[str, Any], num_rows: int, expected: float) -> None:
    """Both limits hold: the share, and the number of rows."""
    assert expected == SamplingConfig(**settings).share(num_rows)


@pytest.mark.parametrize("settings", [{"fraction": 0}, {"fraction": 1.1}, {"max_rows": 99}])
def test_a_sample_of_nothing_is_refused(settings: dict[str, Any]) -> None:
    """A share lies above 0 and up to 1, and fewer than 100 rows are none."""
    with pytest.raises(ValidationError, match=next(iter(settings))):
        SamplingConfig(**settings)


def test_a_full_sample_is_all_rows() -> None:
    """With the whole share every row is chosen, and no hash is needed."""
    assert [True] * 3 == Sample(1.0, 3, 3).chooses(pl.DataFrame({"a": [1, 2, 3]})).tolist()


@pytest.mark.parametrize("share", [0.05, 0.3, 0.8])
def test_a_sample_has_its_share(share: float) -> None:
    """About the share that was asked for is chosen, of training rows as of all."""
    frame = shard()
    chosen = Sample(share, 0, 0).chooses(frame)
    is_train = RULE.sides(frame) == TRAIN

    np.testing.assert_allclose([chosen.mean(), chosen[is_train].mean()], share, atol=0.02)


def test_a_row_is_sampled_in_every_run() -> None:
    """The same rows are chosen in any order and file, and a larger sample has all rows of a smaller one."""
    frame = shard(num_rows=500)
    small, large = Sample(0.2, 0, 0).chooses(frame), Sample(0.5, 0, 0).chooses(frame)

    assert small[::-1].tolist() == Sample(0.2, 0, 0).chooses(frame.reverse()).tolist()
    assert 0 == int((small & ~large).sum())


# Counting


def test_training_rows_are_counted_by_bin() -> None:
    """Training rows alone are counted, the sampled ones in row 0; missing, unknown and rare codes have their bins."""
    frame = pl.DataFrame(
        {
            "a": pl.Series([0.5, 1.5, 2.5, float("nan"), 9.0], dtype=pl.Float32),
            "k": pl.Series([-1, 0, 1, MAX_CODES + 7, 3], dtype=pl.Int32),
            TARGET: pl.Series([0, 1, 1, 0, 1], dtype=pl.Float32),
            ROW: pl.Series([1, 2, 3, 4, 5], dtype=pl.UInt64),
            "__time": [0.0, 0.0, 0.0, 0.0, 9.0],
        }
    )
    rule = SplitRule("time", 0.2, 0.15, holdout_from=5.0, validation_from=5.0)
    chosen = Sample(0.5, 0, 0).chooses(frame)[:4]
    counts = count_bins(frame, SCHEMA, rule, Sample(0.5, 0, 0), {"a": [1.0, 2.0]})
    found = {name: [np.flatnonzero(side).tolist() for side in table] for name, table in counts.items()}
    bins: dict[str, NDArray[np.int64]] = {
        "a": np.array([0, 1, 2, 3]),
        "k": np.array([0, 1, 2, MAX_CODES]),
        TARGET: np.array([0, 1, 1, 0]),
    }

    assert [True, False] == sorted(set(chosen.tolist()), reverse=True)
    assert {n: [sorted(set(b[chosen].tolist())), sorted(set(b[~chosen].tolist()))] for n, b in bins.items()} == found
    assert {"a": 4, "k": MAX_CODES + 1, TARGET: MAX_CODES + 1} == {name: t.shape[1] for name, t in counts.items()}


def test_counts_of_shards_add_up() -> None:
    """The counts of two shards are those of their rows together."""
    frame = shard(num_rows=600)
    edges, sample = edges_of(frame), Sample(0.4, 0, 0)
    whole = count_bins(frame, SCHEMA, RULE, sample, edges)
    parts = [count_bins(part, SCHEMA, RULE, sample, edges) for part in (frame[:100], frame[100:])]
    added = reduce(lambda x, y: {name: x[name] + y[name] for name in x}, parts)

    assert {n: t.tolist() for n, t in whole.items()} == {n: t.tolist() for n, t in added.items()}


def test_bins_are_quantiles() -> None:
    """A number has bins with about equally many rows; the target of a regression has some too."""
    frame = shard()
    seen = profile_frame(frame.rename({TARGET: "y"}))
    edges = bin_edges(SCHEMA, seen)
    filled = np.bincount(np.searchsorted(edges["a"], frame.get_column("a").to_numpy()), minlength=NUM_BINS)
    regression = Schema(SCHEMA.columns, target="y", task="regression")

    assert (["a"], ["a", TARGET]) == (list(edges), list(bin_edges(regression, seen)))
    np.testing.assert_allclose(filled / N, 1 / NUM_BINS, atol=0.03)


# The test of a sample


def test_a_fair_sample_is_accepted() -> None:
    """Sampling by a hash is fair: of 60 samples none is refused."""
    unfair = [test for seed in range(60) for test in verdicts(shard(seed, 1500)).values() if not test.is_fair]

    assert [] == unfair


def test_false_alarms_are_as_rare_as_promised() -> None:
    """Under a fair draw p-values are uniform, so that a false alarm is as rare as its level."""
    rng = np.random.default_rng(0)
    tables = [rng.multinomial([300, 700], [0.1] * 10) for _ in range(2000)]
    p_values = [compare_sample({"c": table})[0].p_value for table in tables]

    np.testing.assert_allclose([np.mean(np.array(p_values) < q) for q in (0.1, 0.5)], [0.1, 0.5], atol=0.03)
    assert sum(p < FALSE_ALARM for p in p_values) <= 8


@pytest.mark.parametrize("column", ["a", "k", TARGET])
def test_a_biased_sample_is_flagged(column: str) -> None:
    """A sample that prefers some values of a column is found, in that column and no other."""
    frame = shard()
    rows = frame.get_column(ROW)
    # Give the largest values the smallest sampling numbers for two rows of five, and leave the others to chance.
    position = uniform(rows.to_numpy(), SAMPLE_SALT)
    biased = np.random.default_rng(1).random(N) < 0.4
    order = np.argsort(-frame.get_column(column).to_numpy()[biased], kind="stable")
    values = frame.get_column(column).to_numpy().copy()
    target = np.flatnonzero(biased)[np.argsort(position[biased])]
    values[target] = frame.get_column(column).to_numpy()[biased][order]
    tests = verdicts(frame.with_columns(pl.Series(column, values)))

    assert {"a": column != "a", "k": column != "k", TARGET: column != TARGET} == {
        n: t.is_fair for n, t in tests.items()
    }
    assert tests[column].distance > NEGLIGIBLE


def test_a_negligible_difference_is_accepted() -> None:
    """With millions of rows the smallest difference is significant; one that does not matter is accepted."""
    table = np.array([[502_000, 498_000], [5_000_000, 5_000_000]])
    (test,) = compare_sample({"c": table})

    assert (True, True, True) == (test.p_value < FALSE_ALARM, test.distance < NEGLIGIBLE, test.is_fair)


@pytest.mark.parametrize("table", [[[50], [50]], [[0, 0], [50, 50]], [[3, 2], [4, 4]], [[0], [0]]])
def test_what_cannot_be_compared_is_fair(table: list[list[int]]) -> None:
    """A constant column, an empty side and bins with few rows prove nothing."""
    assert (SampleTest("c", 0.0, 1.0, is_fair=True),) == compare_sample({"c": np.array(table)})


def test_an_unfair_sample_is_refused() -> None:
    """The message names the worst column, and how many rows were sampled."""
    tests = (
        SampleTest("a", 0.9, 0.5, is_fair=True),
        SampleTest("b", 0.05, 0.0, is_fair=False),
        SampleTest("c", 0.251, 0.0, is_fair=False),
    )
    message = (
        r"has the distribution of all training rows, but got a distance of 0\.251 in column='c' with 1,000 of 5,000 "
        r"rows\. Raise sampling\.fraction or sampling\.max_rows\."
    )
    with pytest.raises(InputError, match=message):
        check_sample(Sample(0.2, 1000, 5000, tests))

    check_sample(Sample(0.2, 1000, 5000, tests[:1]))


def test_holdout_rows_do_not_judge_a_sample() -> None:
    """Only training rows are compared: a holdout of another kind makes no sample unfair."""
    frame = shard()
    is_holdout = pl.Series(RULE.sides(frame) == HOLDOUT)
    moved = frame.with_columns(a=pl.when(is_holdout).then(99.0).otherwise(pl.col("a")).cast(pl.Float32))
    edges, sample = edges_of(frame), Sample(0.3, 0, 0)

    assert {n: t.tolist() for n, t in count_bins(frame, SCHEMA, RULE, sample, edges).items()} == {
        n: t.tolist() for n, t in count_bins(moved, SCHEMA, RULE, sample, edges).items()
    }
