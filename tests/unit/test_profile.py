"""Profiles: what columns hold, and how profiles of parts become that of the whole."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import date, datetime
from functools import reduce
from typing import Any

import numpy as np
import polars as pl
import pytest
from datasketches import kll_doubles_sketch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import _profile
from tasks._profile import (
    ColumnProfile,
    Profile,
    cut_column,
    merge,
    profile_frame,
    time_numbers,
    total_column,
)

QUICK = settings(max_examples=25, deadline=None, derandomize=True)
MOMENTS = ("mean", "sum_squares")


def profile_of(values: Any, *, is_time: bool = False, **kwargs: Any) -> ColumnProfile:
    """Profile one column."""
    return profile_frame(pl.DataFrame({"c": pl.Series(values, **kwargs)}), "c" if is_time else None).columns["c"]


def exact(profile: Profile) -> dict[str, ColumnProfile]:
    """Return what of a profile is counted, not approximated."""
    return {
        name: replace(column, mean=0.0, sum_squares=0.0, quantiles=None, dates={}, strays={})
        for name, column in profile.columns.items()
    }


def moments(profile: Profile) -> list[float]:
    """Return what of a profile is a rounded sum."""
    return [getattr(column, name) for column in profile.columns.values() for name in MOMENTS]


def test_numbers() -> None:
    """A number column is counted and measured; NaN is missing, as null is."""
    seen = profile_of([1.0, 2.0, 2.0, 4.5, None, float("nan")])

    assert ColumnProfile(
        dtype="Float64",
        num_rows=6,
        num_missing=2,
        num_numeric=4,
        num_integer=3,
        num_boolean=0,
        minimum=1.0,
        maximum=4.5,
        mean=2.375,
        sum_squares=6.6875,
        values={"2": 2, "1": 1, "4.5": 1},
        num_distinct=3,
    ) == replace(seen, quantiles=None)
    assert (4, np.sqrt(6.6875 / 4), [2.0]) == (seen.num_present, seen.standard_deviation, seen.quantile([0.5]))


def test_texts() -> None:
    """A text column is read as everything that it could be."""
    seen = profile_of(["yes", "007", "3", "yes", None, "nan", "2.5"])

    assert ColumnProfile(
        dtype="String",
        num_rows=7,
        num_missing=1,
        num_numeric=3,
        num_integer=2,
        num_boolean=2,
        minimum=2.5,
        maximum=7.0,
        mean=12.5 / 3,
        sum_squares=seen.sum_squares,
        values={"yes": 2, "007": 1, "2.5": 1, "3": 1, "nan": 1},
        num_distinct=5,
        num_padded=1,
        max_length=3,
        strays={"yes": 2, "nan": 1},
    ) == replace(seen, quantiles=None)


def test_a_column_without_values() -> None:
    """A column of nulls has rows, and nothing else."""
    seen = profile_of([None, None], dtype=pl.String)

    assert ColumnProfile("String", 2, 2, 0, 0, 0) == seen
    assert (0.0, []) == (seen.standard_deviation, seen.quantile([0.5]))


@pytest.mark.parametrize(
    ("values", "num_boolean"),
    [([True, False, None], 2), (["Yes", "n", "maybe", None], 2), (["1", "0"], 2), ([1, 0], 0)],
)
def test_booleans_are_counted(values: list[Any], num_boolean: int) -> None:
    """Typed booleans and words of truth are counted; typed numbers are numbers."""
    assert num_boolean == profile_of(values).num_boolean


@pytest.mark.parametrize(
    ("values", "dates"),
    [
        (["2024-01-01", "2024-01-02", "x"], {"%Y-%m-%d": 2}),
        (["13.01.2024"], {"%d.%m.%Y": 1}),
        (["03/02/2024", "03/13/2024"], {"%d/%m/%Y": 1, "%m/%d/%Y": 2}),
        ([date(2024, 1, 1), None], {"": 1}),
        (["2024-01-01", "x", "y"], {}),
        ([20240101], {}),
    ],
)
def test_dates_are_counted_by_format(values: list[Any], dates: dict[str, int]) -> None:
    """Every format that reads at least half of the first values is tried on all."""
    assert dates == profile_of(values).dates


def test_a_datetime_column_is_measured_in_seconds() -> None:
    """Bounds of a datetime column are seconds since 1970."""
    seen = profile_of([datetime(1970, 1, 1), datetime(1970, 1, 1, 0, 1)])

    assert (0.0, 60.0, 30.0) == (seen.minimum, seen.maximum, seen.mean)


def test_many_real_numbers_keep_no_values() -> None:
    """A column of real numbers has no frequent values worth keeping, but its distinct ones are counted."""
    seen = profile_of(np.arange(200) / 7)

    assert ({}, False, 200) == (seen.values, seen.is_complete, seen.num_distinct)


def test_rare_values_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit the most frequent values stay, ties in the order of the alphabet, and it is said so."""
    monkeypatch.setattr(_profile, "MAX_VALUES", 2)
    seen = profile_of(["d", "c", "b", "b", "a"])

    assert ({"b": 2, "a": 1}, False, 4) == (seen.values, seen.is_complete, seen.num_distinct)


def test_quantiles_are_near() -> None:
    """Quantiles lie within the sketch's rank error."""
    ranks = [0.05, 0.25, 0.5, 0.75, 0.95]
    found = profile_of(np.random.default_rng(0).permutation(20_000)).quantile(ranks)

    np.testing.assert_allclose(np.array(found) / 20_000, ranks, atol=0.03)


@pytest.mark.parametrize("name", ["n", "count", "literal", "", "c"])
@pytest.mark.parametrize("values", [["a", "b"], [1, 2], [1.5, 2.5]])
def test_a_column_may_have_any_name(name: str, values: list[Any]) -> None:
    """No name of a column is special, that of the time column included."""
    seen = profile_frame(pl.DataFrame({name: values}), time=name)

    assert 2 == seen.columns[name].num_distinct


# Merging

CELLS: dict[str, st.SearchStrategy[Any]] = {
    "number": st.none() | st.sampled_from([0.0, -2.0, 0.5, 7.25, 1e6, float("nan")]),
    "whole": st.none() | st.integers(-5, 5),
    "text": st.none() | st.sampled_from(["yes", "no", "007", "3", "x" * 9, "é"]),
    "flag": st.none() | st.booleans(),
    "day": st.none() | st.sampled_from([date(2024, 1, 1), date(2024, 5, 1), date(1969, 12, 31)]),
}
TYPES = {"number": pl.Float64, "whole": pl.Int64, "text": pl.String, "flag": pl.Boolean, "day": pl.Date}


def _frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=TYPES)


FRAMES = st.lists(st.fixed_dictionaries(CELLS), min_size=1, max_size=6).map(_frame)


@QUICK
@given(st.lists(FRAMES, min_size=1, max_size=4))
def test_merged_parts_are_the_whole(parts: list[pl.DataFrame]) -> None:
    """The merged profile of any parts counts and measures what the profile of all rows does."""
    merged = merge(profile_frame(part, "day") for part in parts)
    whole = profile_frame(pl.concat(parts), "day")

    assert (whole.num_rows, exact(whole)) == (merged.num_rows, exact(merged))
    np.testing.assert_allclose(moments(merged), moments(whole), rtol=1e-9, atol=1e-3)


@QUICK
@given(FRAMES, FRAMES, FRAMES)
def test_merging_is_associative(a: pl.DataFrame, b: pl.DataFrame, c: pl.DataFrame) -> None:
    """It does not matter which parts are merged first."""
    x, y, z = (profile_frame(part, "day") for part in (a, b, c))
    left, right = merge([merge([x, y]), z]), merge([x, merge([y, z])])

    assert exact(left) == exact(right)
    np.testing.assert_allclose(moments(left), moments(right), rtol=1e-9, atol=1e-3)


@QUICK
@given(FRAMES)
def test_merging_one_profile_changes_nothing(frame: pl.DataFrame) -> None:
    """A snapshot of one file has that file's profile."""
    assert profile_frame(frame) == merge([profile_frame(frame)])


@pytest.mark.parametrize("num_parts", [2, 17])
def test_merged_quantiles_are_near(num_parts: int) -> None:
    """Quantiles of merged sketches lie within the rank error too, however the rows are ordered."""
    parts = np.array_split(np.arange(20_000.0), num_parts)
    merged = merge(profile_frame(pl.DataFrame({"c": part})) for part in parts)
    ranks = [0.05, 0.5, 0.95]

    np.testing.assert_allclose(np.array(merged.columns["c"].quantile(ranks)) / 20_000, ranks, atol=0.03)


def test_a_column_that_a_part_lacks_is_missing_there() -> None:
    """A column that came later counts as missing in the rows before it."""
    merged = merge([profile_frame(pl.DataFrame({"a": [1, 2]})), profile_frame(pl.DataFrame({"a": [3], "b": [4]}))])

    assert {"a": (3, 0, 3), "b": (3, 2, 1)} == {
        name: (c.num_rows, c.num_missing, c.num_present) for name, c in merged.columns.items()
    }


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (["x"], [1], "String"),
        ([1], ["x"], "String"),
        ([1], [1.5], "Float64"),
        ([None], [1], "Int64"),
        ([1], [None], "Int64"),
        ([None], [None], "Null"),
        ([1], [2], "Int64"),
        ([True], [1], "String"),
        ([date(2024, 1, 1)], [datetime(2024, 1, 1, 1)], "Datetime"),
        ([datetime(2024, 1, 1, 1)], [3], "String"),
    ],
)
def test_merged_type(first: list[Any], second: list[Any], expected: str) -> None:
    """Parts of several types have the type that holds them all."""
    parts = [profile_frame(pl.DataFrame({"c": part})) for part in (first, second)]

    assert [expected, expected] == [merge(parts).columns["c"].dtype, merge(parts[::-1]).columns["c"].dtype]


def test_merged_values_beyond_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts that together have too many values keep the most frequent, and no longer claim to know all."""
    monkeypatch.setattr(_profile, "MAX_VALUES", 2)
    parts = [profile_frame(pl.DataFrame({"c": values})) for values in (["a", "b"], ["b", "c"])]
    merged = merge(parts).columns["c"]

    assert ({"b": 2, "a": 1}, False) == (merged.values, merged.is_complete)


WORDS = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=12)


@QUICK
@given(st.lists(WORDS, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_frequent_values_are_those_of_all_rows(parts: list[list[str]], random: Any) -> None:
    """Beyond the limit the values kept are the most frequent of all rows, however the parts are ordered."""
    with pytest.MonkeyPatch.context() as patch:
        profiles = [profile_frame(pl.DataFrame({"c": part})) for part in parts]
        patch.setattr(_profile, "MAX_VALUES", 3)
        random.shuffle(profiles)
        merged = merge(profiles).columns["c"]
    counts = Counter(word for part in parts for word in part)
    expected = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:3]

    assert (expected, len(counts) <= 3, len(counts)) == (
        list(merged.values.items()),
        merged.is_complete,
        merged.num_distinct,
    )


@QUICK
@given(st.lists(st.tuples(WORDS, st.integers(0, 2)), min_size=1, max_size=6))
def test_totals_may_be_grouped_at_will(parts: list[tuple[list[str], int]]) -> None:
    """Totals of any groups of parts, totalled again and cut once, are the cut total of all parts."""
    profiles = [profile_of(words) for words, _ in parts]
    groups = [[p for p, (_, at) in zip(profiles, parts, strict=True) if at == group] for group in range(3)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_profile, "MAX_VALUES", 3)
        whole = cut_column(total_column(profiles))
        grouped = cut_column(total_column([total_column(group) for group in groups if group]))

    assert whole == grouped


def test_values_that_are_no_numbers_are_kept() -> None:
    """Of a text column that mostly reads as numbers, or as dates, what does not is counted, over all parts."""
    parts = [["1", "2", "x", "?"], ["3", "x", "4.5", "5"]]
    merged = merge(profile_frame(pl.DataFrame({"c": part})) for part in parts).columns["c"]

    assert {"x": 2, "?": 1} == merged.strays
    assert {"soon": 1} == profile_of(["2024-01-01", "soon", "2024-01-02"]).strays
    assert {} == profile_of(["x", "y", "z", "1"]).strays


def test_keys_that_come_again_in_every_file_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that is different in every row of a file, and the same in every file, has the distinct values of one."""
    monkeypatch.setattr(_profile, "MAX_VALUES", 5)
    part = profile_frame(pl.DataFrame({"c": range(40)}))

    assert 40 == merge([part] * 3).columns["c"].num_distinct


def test_keys_of_several_files_stay_distinct(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that is different in every row of every file is counted as such though its values are not kept."""
    monkeypatch.setattr(_profile, "MAX_VALUES", 5)
    parts = [profile_frame(pl.DataFrame({"c": [f"id-{i}" for i in range(s, s + 40)]})) for s in (0, 40, 80)]

    assert 120 == reduce(lambda a, b: merge([a, b]), parts).columns["c"].num_distinct


# Times


def test_instants_are_counted_exactly() -> None:
    """Few instants are counted one by one."""
    seen = profile_of([date(1970, 1, 3), date(1970, 1, 2), date(1970, 1, 3), None], is_time=True)

    assert ({"86400.0": 1, "172800.0": 2}, 0.0) == (seen.times, seen.time_unit)


def test_many_instants_are_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many instants are rounded down to the first unit that leaves few, and parts of two units to the coarser."""
    monkeypatch.setattr(_profile, "MAX_VALUES", 3)
    minutes = pl.datetime_range(datetime(1970, 1, 1), datetime(1970, 1, 1, 2), "30m", eager=True)
    many = profile_frame(pl.DataFrame({"c": minutes}), "c")
    few = profile_frame(pl.DataFrame({"c": [datetime(1970, 1, 1, 1, 59, 59)]}), "c")
    merged = merge([many, few]).columns["c"]

    assert ({"0.0": 2, "3600.0": 2, "7200.0": 1}, 3600.0) == (many.columns["c"].times, many.columns["c"].time_unit)
    assert ({"0.0": 2, "3600.0": 3, "7200.0": 1}, 3600.0) == (merged.times, merged.time_unit)


def test_merged_instants_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts that together have too many instants round them down further, plain numbers to powers of two."""
    monkeypatch.setattr(_profile, "MAX_VALUES", 3)
    days = [profile_frame(pl.DataFrame({"c": [datetime(1970, 1, 1, h), datetime(1970, 1, 2, h)]}), "c") for h in (1, 2)]
    years = [profile_frame(pl.DataFrame({"c": [f"{y}", f"{y + 1}"]}), "c") for y in (2000, 2002)]

    assert ({"0.0": 2, "86400.0": 2}, 86_400.0) == (
        merge(days).columns["c"].times,
        merge(days).columns["c"].time_unit,
    )
    assert ({"2000.0": 2, "2002.0": 2}, 2.0) == (merge(years).columns["c"].times, merge(years).columns["c"].time_unit)


def test_many_plain_numbers_are_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers that order the rows are bounded too, as text or not: they are rounded down to powers of two."""
    monkeypatch.setattr(_profile, "MAX_VALUES", 3)
    expected = ({"2000.0": 2, "2002.0": 2, "2004.0": 1}, 2.0)

    for values in ([str(2000 + i) for i in range(5)], [2000 + i for i in range(5)]):
        seen = profile_of(values, is_time=True)
        assert expected == (seen.times, seen.time_unit)


@pytest.mark.parametrize(
    ("values", "date_format", "expected"),
    [
        ([2021, 2022, None], None, [2021.0, 2022.0, None]),
        (["2021", "2022"], None, [2021.0, 2022.0]),
        (["01.02.1970", "x"], None, [31 * 86_400.0, None]),
        (["02/01/1970"], None, [86_400.0]),
        (["02/01/1970"], "%m/%d/%Y", [31 * 86_400.0]),
        ([date(1970, 1, 2)], None, [86_400.0]),
        ([datetime(1970, 1, 1, 0, 0, 0, 500_000)], None, [0.5]),
    ],
)
def test_time_numbers(values: list[Any], date_format: str | None, expected: list[float | None]) -> None:
    """What orders the rows is seconds since 1970, or a number of its own such as a year."""
    assert expected == time_numbers(pl.Series(values), date_format).to_list()


# Keys

CHANGES: list[Callable[[pl.DataFrame], pl.DataFrame]] = [
    lambda frame: frame.head(3),
    lambda frame: frame.with_columns(a=pl.lit(1)),
    lambda frame: frame.rename({"a": "b"}),
]


def test_the_key_does_not_depend_on_chance() -> None:
    """Merging sketches draws random numbers; the key of a merged profile is the same every time."""
    parts = [profile_frame(pl.DataFrame({"a": np.random.default_rng(i).normal(size=5000)})) for i in range(4)]

    assert 1 == len({merge(parts).key for _ in range(3)})


@pytest.mark.parametrize("change", CHANGES)
def test_the_key_tells_other_rows(change: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    """Other rows, values or columns are another key."""
    frame = pl.DataFrame({"a": [1, 2, 3, 4]})

    assert profile_frame(frame).key != profile_frame(change(frame)).key


# Sketches


def exact_ranks(values: np.ndarray, found: list[float]) -> np.ndarray:
    """Return the share of the values that are at most each of those found."""
    return np.searchsorted(np.sort(values), found, side="right") / len(values)


SHAPES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "skewed": lambda rng, n: rng.lognormal(0, 3, n),
    "sorted": lambda rng, n: np.sort(rng.normal(size=n)),
    "waves": lambda rng, n: np.sin(np.arange(n) / 7.0) + rng.normal(0, 1e-3, n),
    "few": lambda rng, n: rng.integers(0, 40, n).astype(float) + 0.5,
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_parts", [1, 5])
def test_thinned_quantiles_are_within_the_stated_error(shape: str, num_parts: int) -> None:
    """Many numbers are thinned before they reach the sketch, in whatever order they are: its error stays."""
    values = SHAPES[shape](np.random.default_rng(3), 200_000)
    merged = merge(profile_frame(pl.DataFrame({"c": part})) for part in np.array_split(values, num_parts))
    ranks = np.linspace(0.005, 0.995, 34)
    found = merged.columns["c"].quantile(ranks.tolist())
    at_most = exact_ranks(values, found)
    below = np.searchsorted(np.sort(values), found, side="left") / len(values)

    # Of equal values a quantile has all their ranks.
    assert np.all((below <= ranks + _profile.KLL_ERROR) & (at_most >= ranks - _profile.KLL_ERROR))
    assert 200_000 == kll_doubles_sketch.deserialize(base64.b64decode(merged.columns["c"].quantiles or "")).n


def test_ranks_of_values() -> None:
    """The share of the numbers up to a value is near, and a column without numbers has none."""
    found = profile_of(np.random.default_rng(0).permutation(20_000)).ranks([5_000, 15_000])

    np.testing.assert_allclose(found, [0.25, 0.75], atol=0.03)
    assert [] == profile_of(["a"]).ranks([1.0])


@pytest.mark.parametrize("num_parts", [1, 4])
def test_frequent_values_of_many_are_within_the_stated_error(num_parts: int) -> None:
    """Of more values than a sketch holds, counts are too low by a bounded share of the rows, and never too high."""
    rng = np.random.default_rng(5)
    codes = np.concatenate([rng.integers(0, 120_000, 150_000), np.repeat(np.arange(20), 1_000)])
    rng.shuffle(codes)
    parts = [pl.DataFrame({"c": [f"v{code}" for code in part]}) for part in np.array_split(codes, num_parts)]
    merged = merge(map(profile_frame, parts)).columns["c"]
    truth = Counter(f"v{code}" for code in codes)
    allowed = _profile.FREQUENT_ERROR * len(codes)

    assert {f"v{code}" for code in range(20)} == set(list(merged.values)[:20])
    assert all(truth[value] - allowed <= count <= truth[value] for value, count in merged.values.items())
    assert abs(merged.num_distinct / len(truth) - 1) < 4 * _profile.DISTINCT_ERROR


def test_up_to_the_size_of_a_sketch_counts_are_exact() -> None:
    """Thousands of values beyond those that are listed are still counted one by one."""
    parts = [[f"v{i % n}" for i in range(30_000)] for n in (15_000, 20_000, 25_000)]
    merged = merge(profile_frame(pl.DataFrame({"c": part})) for part in parts).columns["c"]
    truth = Counter(value for part in parts for value in part)
    expected = sorted(truth.items(), key=lambda item: (-item[1], item[0]))

    assert (25_000, False) == (merged.num_distinct, merged.is_complete)
    assert expected[:10_000] == list(merged.values.items())
    assert expected == list(merged.most_frequent(40_000).items())


@QUICK
@given(st.lists(st.one_of(st.none(), st.integers(-3, 3), st.floats(-2, 2)), min_size=1, max_size=40), st.randoms())
def test_the_order_of_rows_changes_nothing(values: list[float | None], random: Any) -> None:
    """A permutation of the rows has the same profile."""
    numbers = [None if value is None else float(value) for value in values]
    shuffled = random.sample(numbers, len(numbers))
    profiles = [profile_frame(pl.DataFrame({"c": pl.Series(one, dtype=pl.Float64)})) for one in (numbers, shuffled)]

    assert exact(profiles[0]) == exact(profiles[1])
    np.testing.assert_allclose(moments(profiles[0]), moments(profiles[1]), rtol=1e-9, atol=1e-9)


def test_the_order_of_many_rows_changes_nothing() -> None:
    """A column is one of real numbers, or of texts, whichever rows come first."""
    rng = np.random.default_rng(1)
    whole = np.concatenate([np.zeros(40_000), rng.integers(0, 90, 20_000), [0.5]])
    texts = [f"{value:.3f}" for value in rng.normal(size=30_000)] + ["n/a?"] * 50
    frame = pl.DataFrame({"few": whole[: len(texts)], "text": texts})
    expected = exact(profile_frame(frame))

    assert "n/a?" in profile_frame(frame).columns["text"].strays
    for seed in range(3):
        assert expected == exact(profile_frame(frame.sample(fraction=1.0, shuffle=True, seed=seed)))


def test_an_example_of_each_way_to_read_a_column_is_kept() -> None:
    """A column that is numbers in one source and texts in another remembers one of each."""
    numbers, texts = [str(i) for i in range(30)], [f"x{i}" for i in range(30)]
    parts = [profile_frame(pl.DataFrame({"c": c}), None, s) for c, s in ((numbers, "b"), (texts, "c"), (numbers, "a"))]

    assert {"number": "a", "text": "c"} == merge(parts).columns["c"].examples
    assert {} == profile_frame(pl.DataFrame({"c": [*numbers, *texts]}), None, "s").columns["c"].examples
