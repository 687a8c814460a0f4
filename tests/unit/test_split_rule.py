"""Which side of the split a row is on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from infra.bundle.schema import Column, Schema
from infra.errors import InputError
from tasks._encode import GROUP, HASH_VERSION, ROW, TARGET, TIME, row_hash
from tasks._profile import ColumnProfile, profile_frame
from tasks._split import (
    HOLDOUT,
    TRAIN,
    UNLABELLED,
    VALIDATION,
    SideCounts,
    SplitConfig,
    SplitRule,
    add_counts,
    check_reproducible,
    check_sides,
    count_sides,
    make_rule,
    time_cuts,
)

QUICK = settings(max_examples=25, deadline=None, derandomize=True)
BY_ROW = SplitRule("row", 0.2, 0.15, hash_version=HASH_VERSION)
BY_GROUP = SplitRule("group", 0.2, 0.15, column="g", hash_version=HASH_VERSION)
DAY = 86_400.0
SCHEMA = Schema(
    columns=(Column("i", "numeric"), Column("g", "categorical"), Column("at", "datetime"), Column("y", "numeric")),
    target="y",
    task="binary",
    labels=("no", "yes"),
    time="at",
    group="g",
    hash_columns=("i", "g"),
)


def shard(rows: int | Sequence[int], groups: Any = 0, at: Any = 0.0, target: Any = 1.0) -> pl.DataFrame:
    """Make the columns of a shard that decide a row's side."""
    frame = pl.DataFrame({"i": np.arange(rows) if isinstance(rows, int) else list(rows)}).with_columns(
        g=pl.Series(groups) if not np.isscalar(groups) else pl.lit(groups)
    )
    return pl.DataFrame(
        {
            ROW: row_hash(frame, ("i",)),
            GROUP: row_hash(frame, ("g",)),
            TIME: np.full(frame.height, at, dtype=np.float64) if np.isscalar(at) else np.asarray(at, dtype=np.float64),
            TARGET: pl.Series(np.broadcast_to(np.asarray(target, dtype=np.float64), frame.height), dtype=pl.Float32),
        }
    )


def times(values: Any) -> ColumnProfile:
    """Profile the column that orders the rows."""
    return profile_frame(pl.DataFrame({"at": pl.Series(values)}), "at").columns["at"]


# By row


def test_the_side_of_a_row_never_changes() -> None:
    """These rows have been on these sides since version 2 of the hash."""
    assert "TTHHTTTTTTTHTVTTTTTTTVHVHTTHTV" == "".join("TVH"[side] for side in BY_ROW.sides(shard(30)))


@QUICK
@given(st.lists(st.integers(0, 50), min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_a_row_is_on_one_side_in_every_run(rows: list[int], random: Any) -> None:
    """Duplicates, rows in another order and rows in another file are on the same side."""
    sides = {row: int(BY_ROW.sides(shard([row]))[0]) for row in rows}
    shuffled = rows * 2
    random.shuffle(shuffled)

    assert [sides[row] for row in shuffled] == BY_ROW.sides(shard(shuffled)).tolist()


@pytest.mark.parametrize(("holdout", "validation"), [(0.2, 0.15), (0.5, 0.5), (0.05, 0.1), (0.9, 0.2)])
@pytest.mark.parametrize("by", ["row", "group"])
def test_fractions_are_near_what_was_asked_for(by: Any, holdout: float, validation: float) -> None:
    """Holdout, validation and training sides have about their shares of many rows or groups."""
    rule = SplitRule(by, holdout, validation)
    rows = np.arange(20_000)
    shares = np.bincount(rule.sides(shard(rows, groups=rows)), minlength=3) / 20_000
    rest = 1 - holdout

    np.testing.assert_allclose(shares, [rest * (1 - validation), rest * validation, holdout], atol=0.012)


def test_a_larger_holdout_keeps_the_smaller_one() -> None:
    """Asking for a larger holdout moves rows into it, and none out of it."""
    rows = shard(5000)
    small, large = (replace(BY_ROW, holdout_fraction=f).sides(rows) == HOLDOUT for f in (0.1, 0.3))

    assert 0 == int((small & ~large).sum())


def test_unlabelled_rows_are_on_no_side() -> None:
    """A row without a label neither trains nor judges."""
    assert [UNLABELLED] * 3 == BY_ROW.sides(shard(3, target=np.nan)).tolist()


# By group


@QUICK
@given(st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=30))
def test_a_group_stays_together(groups: list[str]) -> None:
    """All rows of a group are on one side, whatever else is in them and in whichever file they come."""
    sides = BY_GROUP.sides(shard(len(groups), groups=groups))
    alone = {g: int(BY_GROUP.sides(shard([7], groups=[g]))[0]) for g in set(groups)}

    assert [alone[g] for g in groups] == sides.tolist()


# By time


def test_only_newer_rows_are_held_out() -> None:
    """Older rows train, newer ones validate, the newest are held out, each cut belonging to the newer side."""
    rule = SplitRule("time", 0.2, 0.15, holdout_from=8.0, validation_from=6.0, column="at")

    assert [TRAIN, TRAIN, VALIDATION, VALIDATION, HOLDOUT, HOLDOUT] == rule.sides(
        shard(6, at=[0, 5.9, 6, 7.9, 8, 99])
    ).tolist()


INSTANTS = st.lists(st.integers(0, 30), min_size=3, max_size=60).filter(lambda v: len(set(v)) >= 3)


@QUICK
@given(INSTANTS, st.floats(0.05, 0.9), st.floats(0.05, 0.9))
def test_time_cuts_leave_rows_on_every_side(values: list[int], holdout: float, validation: float) -> None:
    """Cuts lie on instants that occur, in order, and every side has rows, however they are distributed."""
    config = SplitConfig(holdout_fraction=holdout, validation_fraction=validation)
    holdout_from, validation_from = time_cuts(times(values), config)
    rule = SplitRule("time", holdout, validation, holdout_from, validation_from, "at")
    sides = rule.sides(shard(len(values), at=values))
    newest = [max((v for v, s in zip(values, sides, strict=True) if s == side), default=None) for side in range(3)]

    assert {holdout_from, validation_from} <= set(values)
    assert newest == sorted(newest)  # None would not sort
    assert min(values) < validation_from < holdout_from <= max(values)


@pytest.mark.parametrize("holdout", [0.1, 0.2, 0.5])
def test_time_cuts_are_near_the_fractions(holdout: float) -> None:
    """Where rows are spread over many instants, the sides have about the shares asked for."""
    values = np.random.default_rng(0).integers(0, 1000, 5000)
    config = SplitConfig(holdout_fraction=holdout, validation_fraction=0.2)
    cuts = time_cuts(times(values), config)
    shares = [float((values >= cut).mean()) for cut in cuts]

    np.testing.assert_allclose(shares, [holdout, holdout + 0.2 * (1 - holdout)], atol=0.005)


def test_dates_are_cut_between_days() -> None:
    """Over more than 60 days a cut is the start of a day, so that no day is on two sides."""
    values = pl.datetime_range(date(2024, 1, 1), date(2024, 4, 9), "7h", eager=True)
    cuts = time_cuts(times(values), SplitConfig(holdout_fraction=0.25, validation_fraction=0.5))

    assert [0.0, 0.0] == [cut % DAY for cut in cuts]


def test_few_days_are_cut_at_instants() -> None:
    """Over fewer days a cut is an instant that occurs."""
    values = pl.datetime_range(date(1970, 1, 1), date(1970, 1, 3), "12h", eager=True)

    assert (4 * DAY / 2, 2 * DAY / 2) == time_cuts(
        times(values), SplitConfig(holdout_fraction=0.2, validation_fraction=0.5)
    )


def test_plain_numbers_order_the_rows() -> None:
    """A year is a time too, and is not rounded to days."""
    values = [2000 + i % 25 for i in range(100)]

    assert (2020.0, 2017.0) == time_cuts(times(values), SplitConfig(holdout_fraction=0.2, validation_fraction=0.15))


@pytest.mark.parametrize("values", [[1, 2, 2, 1], [5] * 9])
def test_too_few_instants_are_refused(values: list[int]) -> None:
    """Three sides need three instants."""
    message = rf"at least 3 different instants, but got {len(set(values))}\. Widen data\.source, or set split\.by"
    with pytest.raises(InputError, match=message):
        time_cuts(times(values), SplitConfig())


# The rule of a run


@pytest.mark.parametrize(
    ("by", "time", "group", "expected"),
    [
        (None, "at", "g", "time"),
        (None, None, "g", "group"),
        (None, None, None, "row"),
        ("row", "at", "g", "row"),
        ("group", "at", "g", "group"),
    ],
)
def test_the_way_to_split(by: Any, time: str | None, group: str | None, expected: str) -> None:
    """What is not set follows from the columns: time first, then group, then rows."""
    schema = replace(SCHEMA, time=time, group=group)
    rule = make_rule(SplitConfig(by=by), schema, times([date(2024, 1, 1) + timedelta(i) for i in range(10)]))

    assert (expected, {"time": "at", "group": "g", "row": None}[expected], ("i", "g")) == (
        rule.by,
        rule.column,
        rule.hash_columns,
    )


def test_a_rule_by_time_has_its_cuts() -> None:
    """The cuts are part of the rule, so that a later run can hold out the same rows."""
    expected = SplitRule("time", 0.2, 0.15, 8.0, 7.0, "at", ("i", "g"), HASH_VERSION)

    assert expected == make_rule(SplitConfig(), SCHEMA, times(range(10)))


@pytest.mark.parametrize("by", ["time", "group"])
def test_a_split_by_an_absent_column_is_refused(by: Any) -> None:
    """A split by time or group needs the column, and says which key sets it."""
    message = rf"A split by {by} needs a column, but got none as data\.{by}\. Set data\.{by}, or split\.by = \"row\"\."
    with pytest.raises(InputError, match=message):
        make_rule(SplitConfig(by=by), replace(SCHEMA, time=None, group=None), None)


@pytest.mark.parametrize("name", ["holdout_fraction", "validation_fraction"])
@pytest.mark.parametrize("value", [0, 1, -0.1])
def test_a_fraction_leaves_both_sides(name: str, value: float) -> None:
    """A side of nothing or of all is no split."""
    with pytest.raises(ValidationError, match=name):
        SplitConfig(**{name: value})  # type: ignore[arg-type]


def test_the_champions_split_is_reproduced() -> None:
    """A champion split by a column that is still there can be judged; by rows it always can."""
    for rule in (BY_ROW, BY_GROUP, replace(BY_GROUP, by="time", column="at", hash_version=1)):
        check_reproducible(rule, SCHEMA)

    with pytest.raises(InputError, match=r"stays as it was, data\.group = 'g', but got data\.group=None\. Set it back"):
        check_reproducible(BY_GROUP, replace(SCHEMA, group=None))
    with pytest.raises(InputError, match=r"data\.group = 'g', but got data\.group='h'\. .* another model\.name"):
        check_reproducible(BY_GROUP, replace(SCHEMA, group="h"))
    with pytest.raises(InputError, match=r"of an earlier release, hash_version=1 instead of 2\. Start a new model"):
        check_reproducible(replace(BY_ROW, hash_version=1), SCHEMA)


@pytest.mark.parametrize(("by", "column"), [("row", ROW), ("time", TIME), ("group", GROUP)])
def test_a_rule_names_the_columns_that_it_reads(by: Any, column: str) -> None:
    """Counting reads two columns of a shard, and decides the same on them alone."""
    rule = SplitRule(by, 0.3, 0.3, 6.0, 3.0, None)
    rows = shard(9, groups=list("abcdefghi"), at=range(9))

    assert [TARGET, column] == rule.columns
    assert rule.sides(rows).tolist() == rule.sides(rows.select(rule.columns)).tolist()


# Counting


def test_sides_are_counted_by_class() -> None:
    """A shard's rows are counted by side and class, unlabelled ones apart."""
    rule = SplitRule("time", 0.2, 0.15, 6.0, 4.0)
    rows = shard(9, at=range(9), target=[0, 1, 1, np.nan, 0, 0, 1, 2, np.nan])

    assert SideCounts(3, 2, 2, 2, ((1, 2, 0), (2, 0, 0), (0, 1, 1))) == count_sides(rows, rule, 3)


@pytest.mark.parametrize("target", [-5.0, 0.5, 1e12])
def test_a_regression_has_no_classes(target: float) -> None:
    """Numbers are counted by side alone, negative and huge ones too."""
    rule = SplitRule("time", 0.2, 0.15, 6.0, 4.0)

    assert SideCounts(4, 2, 3, 0, ()) == count_sides(shard(9, at=range(9), target=target), rule, 0)


def test_counts_of_shards_are_added() -> None:
    """The counts of two shards are the counts of their rows together."""
    rows = shard(200, target=np.arange(200) % 2)
    parts = [count_sides(rows[:50], BY_ROW, 2), count_sides(rows[50:], BY_ROW, 2)]

    assert count_sides(rows, BY_ROW, 2) == add_counts(parts)
    assert SideCounts(2, 4, 6, 8, ()) == add_counts([SideCounts(1, 2, 3, 4, ())] * 2)


@pytest.mark.parametrize(
    ("counts", "labels", "message"),
    [
        (SideCounts(0, 2, 3, 0, ()), (), r"side of a split by row needs rows, but got train=0 of 5 labelled"),
        (SideCounts(9, 0, 3, 0, ()), (), r"got validation=0 of 12 .*Widen data\.source, or change split\.holdout"),
        (SideCounts(900, 200, 0, 5, ()), (), r"but got holdout=0 of 1,100 labelled rows"),
        (
            SideCounts(2, 2, 2, 0, ((1, 1), (1, 1), (0, 2))),
            ("no", "yes"),
            r"Each class needs rows on each side of a split by row, but got none of class 'no' in holdout "
            r"\(2 rows in all\)\. Leave out the rows of rare classes, merge them with others in the source, or add",
        ),
        (
            SideCounts(2, 2, 2, 0, ((1, 1), (2, 0), (0, 2))),
            ("no", "yes"),
            r"class 'no' in holdout \(3 rows in all\), 'yes' in validation \(3 rows in all\)\. Leave",
        ),
        (
            SideCounts(2, 2, 2, 0, ((2, 0, 0, 0), (1, 1, 0, 0), (0, 0, 2, 0))),
            ("a", "b", "c", "d"),
            r"needs rows in the training side of a split by row, but got none of class 'd' \(0 rows in all\), "
            r"'b' \(1 row in all\), 'c' \(2 rows in all\)\. Leave .* or add rows; for a class of 0 rows start a new",
        ),
    ],
)
def test_a_side_that_lacks_rows_or_a_class_is_refused(counts: SideCounts, labels: Any, message: str) -> None:
    """The empty side, or every class that a side lacks, is named with its rows and the next step."""
    with pytest.raises(InputError, match=message):
        check_sides(counts, labels, BY_ROW)


def test_a_class_with_rows_enough_points_to_the_split() -> None:
    """Where a class has many rows, all newer than the training side, a split by rows is proposed."""
    counts = SideCounts(50, 50, 50, 0, ((50, 0, 0), (0, 50, 0), (0, 49, 1)))
    message = r"class 'c' \(1 row in all\), 'b' \(99 rows in all\)\. .* or add rows; for 'b' set split\.by = \"row\"\."
    with pytest.raises(InputError, match=message):
        check_sides(counts, ("a", "b", "c"), SplitRule("time", 0.2, 0.15))


def test_many_rare_classes_are_cut_short() -> None:
    """Of very many classes the rarest are named, and how many more there are."""
    classes = ((0,) * 30, (2,) * 29 + (1,), (0,) * 30)
    labels = tuple(f"c{i}" for i in range(30))
    with pytest.raises(InputError, match=r"class 'c29' \(1 row in all\), 'c0' \(2 .*, and 10 more classes\. Leave"):
        check_sides(SideCounts(1, 59, 1, 0, classes), labels, BY_ROW)


@pytest.mark.parametrize(
    ("counts", "labels"),
    [
        (SideCounts(1, 1, 1, 0, ()), ()),
        (SideCounts(2, 2, 2, 9, ((1, 1), (1, 1), (1, 1))), ("no", "yes")),
        (SideCounts(3, 1, 1, 0, ((1, 1, 1), (1, 0, 0), (0, 1, 0))), ("a", "b", "c")),
    ],
)
def test_sides_that_serve_are_accepted(counts: SideCounts, labels: Any) -> None:
    """Every side has rows, and training has every class; a rare one of several may be absent from small sides."""
    assert None is check_sides(counts, labels, BY_ROW)  # type: ignore[func-returns-value]
