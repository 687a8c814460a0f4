"""Which rows to train on: what is asked for, which rows a rule draws, and how its thresholds are found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from infra.bundle.schema import Column, Schema
from infra.errors import InputError
from infra.storage import Store
from tasks._encode import GROUP, ROW, TARGET, TIME, row_hash
from tasks._sample import (
    HARD_FLOOR,
    MIN_STRATUM_ROWS,
    Method,
    Sample,
    SampleRule,
    SamplingConfig,
    Strata,
    check_design,
    hardness,
    stratum_column,
)
from tasks._split import TRAIN, SplitRule
from tasks._threshold import (
    add_floats,
    allocation,
    boundary,
    count_floats,
    count_keys,
    key_bins,
    loss_scale,
    quantile_edges,
    stratum_weights,
    thresholds,
    top_keys,
)

SCHEMA = Schema(
    columns=(
        Column("a", "numeric"),
        Column("k", "categorical"),
        Column("t", "datetime", parts=("month",)),
        Column("y", "numeric"),
    ),
    target="y",
    task="binary",
    labels=("no", "yes"),
)
WHOLE = replace(SCHEMA, time="t", group="k")
RULE = SplitRule("row", 0.2, 0.15)
DAY = 86_400.0
METHODS: tuple[Method, ...] = ("uniform", "stratified", "group", "recent")


def shard(seed: int = 0, num_rows: int = 3000) -> pl.DataFrame:
    """Make random rows: a number, a skewed category that is the group, a rare class, an instant of a year."""
    rng = np.random.default_rng(seed)
    group = rng.zipf(1.5, num_rows) % 300
    return pl.DataFrame(
        {
            "a": pl.Series(rng.lognormal(size=num_rows), dtype=pl.Float32),
            "k": pl.Series(rng.integers(-1, 5, num_rows), dtype=pl.Int32),
            TARGET: pl.Series(rng.random(num_rows) < 0.05, dtype=pl.Float32),
            TIME: rng.integers(0, 365, num_rows) * DAY,
            GROUP: row_hash(pl.DataFrame({"g": group}), ("g",)),
            ROW: row_hash(pl.DataFrame({"i": rng.integers(0, 2**40, num_rows)}), ("i",)),
        }
    )


def rule_for(method: Method) -> SampleRule:
    """Return a rule without thresholds yet."""
    strata = Strata(TARGET, 3) if method == "stratified" else None
    return SampleRule(method, strata=strata, half_life=30 * DAY if method == "recent" else 0.0)


def drawn(parts: Sequence[pl.DataFrame], rule: SampleRule, size: int) -> SampleRule:
    """Find the thresholds of a sample as the stage does, over shards."""
    times = [part[TIME] for part in parts if part.height]
    bins = key_bins(rule, (min(t.min() for t in times), max(t.max() for t in times)))  # type: ignore[type-var,arg-type]
    counts = reduce(np.add, [count_keys(part, RULE, rule, bins) for part in parts])
    at = boundary(counts, [int(n) for n in allocation(counts.sum(axis=1), size)])
    limits, sizes = thresholds(counts, at, [top_keys(part, RULE, rule, bins, at) for part in parts])
    weights = stratum_weights(counts.sum(axis=1), sizes) if rule.strata else ()
    return replace(rule, thresholds=limits, weights=weights)


def train(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the training rows."""
    return frame.filter(pl.Series(RULE.sides(frame) == TRAIN))


def chosen(store: Store, frame: pl.DataFrame, rule: SampleRule) -> NDArray[np.bool_]:
    """Return which of the training rows a rule draws."""
    return Sample(rule, 0, 0).chooses(store, train(frame))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Give an empty store, which most rules never look at."""
    return Store(str(tmp_path))


# What is asked for


@pytest.mark.parametrize(
    ("given_settings", "num_rows", "expected"),
    [
        ({}, 1000, 1000),
        ({"fraction": 0.3}, 1000, 300),
        ({"rows": 100}, 1000, 100),
        ({"rows": 5000}, 1000, 1000),
        ({"fraction": 0.3, "rows": 500}, 1000, 300),
        ({"rows": "auto"}, 1000, 1000),
        ({"rows": "auto", "fraction": 0.5}, 1000, 500),
        ({"fraction": 0.001}, 100, 1),
    ],
)
def test_the_smaller_size_counts(given_settings: dict[str, Any], num_rows: int, expected: int) -> None:
    """Both limits hold: the share, and the number of rows."""
    assert expected == SamplingConfig(**given_settings).size(num_rows)


@pytest.mark.parametrize(
    "wrong", [{"fraction": 0}, {"fraction": 1.1}, {"rows": 99}, {"rows": "few"}, {"method": "some"}, {"tolerance": 0}]
)
def test_what_is_no_sample_is_refused(wrong: dict[str, Any]) -> None:
    """A share lies above 0 and up to 1, fewer than 100 rows are none, and methods have names."""
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        SamplingConfig(**wrong)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"method": "recent", "rows": 500, "half_life_days": 30},
            r'"recent" needs a column of time, but got data\.time=None\. Set data\.time, or choose another method\.',
        ),
        ({"method": "group", "rows": 500}, r'"group" needs a column of groups, but got data\.group=None\. Set data'),
        (
            {"by": "k", "rows": 500},
            r"sampling\.by goes with sampling\.method=\"stratified\", but got sampling\.by='k' with sampling\.method="
            r'"uniform"\. Take it out',
        ),
        ({"half_life_days": 3, "rows": 500}, r'half_life_days goes with sampling\.method="recent", but got .*=3\.0'),
        ({"method": "hard"}, r'"hard" needs a size, but got sampling\.rows=None\. Set sampling\.rows or sampling\.f'),
        ({"method": "hard", "rows": "auto"}, r'alike but for their size.*but got sampling\.method="hard"\. Set'),
        (
            {"method": "stratified", "rows": 500, "by": "kk"},
            r"a column of numbers or categories that the model uses, but got sampling\.by='kk'\. Did you mean \"k\"",
        ),
        ({"method": "stratified", "rows": 500, "by": "t"}, r"but got sampling\.by='t'\."),
    ],
)
def test_settings_that_do_not_go_together_are_refused(config: dict[str, Any], message: str) -> None:
    """The message names the settings, what they need and what to set."""
    with pytest.raises(InputError, match=message):
        check_design(SamplingConfig(**config), SCHEMA)


def test_a_recent_sample_needs_a_half_life() -> None:
    """There is no half-life that suits all data."""
    with pytest.raises(InputError, match=r"needs a half-life, but got sampling\.half_life_days=None\. Set it to 30"):
        check_design(SamplingConfig(method="recent", rows=500), WHOLE)


@pytest.mark.parametrize("method", [*METHODS, "hard"])
def test_every_method_can_be_asked_for(method: Method) -> None:
    """With a size and the columns that it needs, each method is accepted."""
    check_design(SamplingConfig(method=method, rows=500, half_life_days=3 if method == "recent" else None), WHOLE)


def test_strata_are_classes_or_values() -> None:
    """Without a column the target's classes are the strata, or bins of a regression's target."""
    regression = replace(SCHEMA, task="regression", labels=())

    assert [(TARGET, True), (TARGET, False), ("k", True), ("a", False)] == [
        stratum_column(None, SCHEMA),
        stratum_column("y", regression),
        stratum_column("k", SCHEMA),
        stratum_column("a", SCHEMA),
    ]


# Which rows


def test_without_a_size_all_rows_are_used(store: Store) -> None:
    """A rule without thresholds draws every row, and needs no hash."""
    assert [True] * 3 == Sample(SampleRule(), 3, 3).chooses(store, pl.DataFrame({"a": [1, 2, 3]})).tolist()


@given(st.integers(0, 5), st.integers(1, 1800))
@settings(max_examples=25, deadline=None)
def test_a_uniform_sample_has_its_size(tmp_path_factory: pytest.TempPathFactory, seed: int, size: int) -> None:
    """Exactly as many rows are drawn as were asked for, of training rows alone."""
    frame = shard(seed)
    store = Store(str(tmp_path_factory.getbasetemp()))

    assert size == int(chosen(store, frame, drawn([frame], SampleRule(), size)).sum())


@pytest.mark.parametrize("method", METHODS)
@given(st.integers(0, 3), st.integers(50, 1500), st.lists(st.integers(0, 3000), max_size=4))
@settings(max_examples=10, deadline=None)
def test_order_and_shards_change_nothing(method: Method, seed: int, size: int, cuts: list[int]) -> None:
    """Reservoirs merge exactly: rows in any order, in any shards, give the same thresholds."""
    frame = shard(seed)
    mixed = frame.sample(fraction=1.0, shuffle=True, seed=seed)
    ends = [0, *sorted(cuts), frame.height]
    parts = [mixed[start:end] for start, end in pairwise(ends)]

    assert drawn([frame], rule_for(method), size) == drawn(parts, rule_for(method), size)


@pytest.mark.parametrize("method", METHODS)
def test_a_larger_sample_holds_a_smaller_one(store: Store, method: Method) -> None:
    """Samples of one method are nested."""
    frame = shard()
    small, large = (chosen(store, frame, drawn([frame], rule_for(method), size)) for size in (400, 900))

    assert (0, True) == (int((small & ~large).sum()), bool(small.any()))


def test_equal_rows_stay_together(store: Store) -> None:
    """Rows that are equal are drawn together or not at all, so that a sample has its size or a little less."""
    frame = pl.concat([shard()] * 3)
    found = chosen(store, frame, drawn([frame], SampleRule(), 500))

    assert 498 == int(found.sum())
    assert [3] == train(frame).filter(pl.Series(found)).get_column(ROW).value_counts()["count"].unique().to_list()


def test_groups_stay_whole(store: Store) -> None:
    """Groups are drawn whole, the sample is not larger than asked for, and the next group would not fit."""
    frame = shard()
    found = chosen(store, frame, drawn([frame], rule_for("group"), 1000))
    groups = train(frame).with_columns(found=found).group_by(GROUP).agg(pl.col("found").mean(), pl.len())
    left_out = groups.filter(pl.col("found") == 0)["len"].max()

    assert {0.0, 1.0} == set(groups["found"])
    assert 1000 - int(left_out) <= int(found.sum()) <= 1000  # type: ignore[call-overload]


def test_a_sample_without_room_for_one_group_is_refused() -> None:
    """If the first group is larger than the sample there is none."""
    frame = shard().with_columns(pl.lit(7, dtype=pl.UInt64).alias(GROUP))
    with pytest.raises(InputError, match=r"at least one group, .* but got num_rows=0: .* Raise sampling\.rows"):
        drawn([frame], rule_for("group"), 100)


def test_strata_have_their_sizes_and_weights(store: Store) -> None:
    """A rare class has its minimum, the sample its size, and weighted sums are those of all rows."""
    frame = shard()
    rule = drawn([frame], rule_for("stratified"), 900)
    (is_in,), weights = rule.draw(store, train(frame))
    labels = train(frame).get_column(TARGET).to_numpy()
    num_rare = int((labels == 1).sum())
    assert weights is not None

    assert [900, min(num_rare, MIN_STRATUM_ROWS)] == [int(is_in.sum()), int(labels[is_in].sum())]
    np.testing.assert_allclose(weights[is_in] @ labels[is_in] / weights[is_in].sum(), labels.mean(), rtol=1e-5)
    np.testing.assert_allclose(weights[is_in].mean(), 1.0, rtol=1e-5)


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=12), st.floats(0.01, 0.99))
def test_an_allocation_adds_up(counts: list[int], share: float) -> None:
    """An allocation has the size, no stratum gives more than it has, and rare ones have the minimum that they can."""
    size = int(share * sum(counts))
    if size < 1:
        return
    found = allocation(np.array(counts), size)
    floor = min(MIN_STRATUM_ROWS, size // (2 * np.count_nonzero(counts)))

    assert size == found.sum()
    assert all(min(count, floor) <= n <= count for count, n in zip(counts, found.tolist(), strict=True))


def test_numbers_are_strata_by_quantile(store: Store) -> None:
    """Bins of a number hold about equally many rows whatever its scale, and missing values have a stratum."""
    values = np.random.default_rng(0).lognormal(sigma=4, size=20_000) * np.array([-1, 1])[np.arange(20_000) % 2]
    edges = quantile_edges(count_floats(values), 10)
    strata = Strata("a", len(edges) + 2, edges)
    found = np.bincount(strata.of(pl.DataFrame({"a": np.append(values, np.nan)})), minlength=strata.size)

    assert (1, 11) == (found[0], len(found))
    np.testing.assert_allclose(found[1:] / 20_000, 0.1, atol=0.01)


@pytest.mark.parametrize("half_life", [10 * DAY, 60 * DAY])
def test_newer_rows_are_drawn_more_often(store: Store, half_life: float) -> None:
    """Of a small sample, rows a half-life older are half as many; the size is exact."""
    frame = shard(num_rows=200_000).with_columns(pl.lit(0.0, dtype=pl.Float32).alias(TARGET))
    rule = drawn([frame], replace(rule_for("recent"), half_life=half_life), 1500)
    found = chosen(store, frame, rule)
    days = train(frame).get_column(TIME).to_numpy()
    means = [
        found[(days >= 365 * DAY - n * half_life) & (days < 365 * DAY - (n - 1) * half_life)].mean() for n in (1, 2)
    ]

    assert 1500 == int(found.sum())
    np.testing.assert_allclose(means[1] / means[0], 0.5, atol=0.08)


def test_a_short_half_life_takes_the_newest_rows(store: Store) -> None:
    """Weights too small for a number are no matter: then the newest rows are drawn, and no others."""
    frame = shard()
    found = chosen(store, frame, drawn([frame], replace(rule_for("recent"), half_life=60.0), 500))
    days = train(frame).get_column(TIME).to_numpy()

    assert 500 == int(found.sum())
    assert days[found].min() >= days[~found].max()


# Hard rows


@given(st.integers(0, 20), st.floats(0.02, 0.9))
@settings(max_examples=25, deadline=None)
def test_chances_of_hard_rows_add_up(seed: int, share: float) -> None:
    """The chances add up to the size, are 1 at most, and by the floor no weight is large."""
    losses, size = np.random.default_rng(seed).exponential(size=4000) ** 2, int(share * 4000)
    mean, scale = loss_scale(add_floats([count_floats(losses[:1500]), count_floats(losses[1500:])]), size)
    chances = np.minimum(1.0, scale * hardness(losses, mean))

    np.testing.assert_allclose(chances.sum(), size, rtol=0.005)
    assert size / 4000 / chances.min() <= 1 / HARD_FLOOR + 1e-9


def test_weights_of_hard_rows_are_unbiased() -> None:
    """A mean over drawn rows, each weighted by one over its chance, is the mean over all rows."""
    rng = np.random.default_rng(0)
    losses = rng.exponential(size=3000) ** 2
    values = losses + rng.normal(size=3000)
    mean, scale = loss_scale(count_floats(losses), 300)
    chances = np.minimum(1.0, scale * hardness(losses, mean))
    is_in = rng.random((2000, 3000)) < chances
    found = (is_in * (values / chances)).sum(axis=1) / 3000
    error = found.std() / math.sqrt(2000)

    assert abs(found.mean() - values.mean()) < 3 * error
    assert error < 0.01


@given(st.lists(st.floats(-(2.0**90), 2.0**90, width=32), min_size=1, max_size=50), st.integers(0, 50))
def test_counts_of_numbers_add_up(values: list[float], cut: int) -> None:
    """The counts of parts are those of the whole, and sums are kept."""
    numbers = np.array(values, dtype=np.float32)
    whole, parts = count_floats(numbers), add_floats([count_floats(numbers[:cut]), count_floats(numbers[cut:])])

    assert (whole.bins.tolist(), whole.counts.tolist()) == (parts.bins.tolist(), parts.counts.tolist())
    np.testing.assert_allclose(whole.sums, parts.sums, rtol=1e-6, atol=1e-30)
