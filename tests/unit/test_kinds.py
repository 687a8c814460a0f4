"""What each column is, and whether new data keeps the champion's schema."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError

from infra.bundle.encoder import failures
from infra.bundle.schema import Column, Schema, Task
from infra.errors import InputError
from tasks._kinds import infer_column, infer_schema, infer_task, schema_changes, schema_text
from tasks._profile import ColumnProfile, merge, profile_frame
from tasks._snapshot import CsvConfig, DataConfig

N = 100
INDEX = range(N)
UNIQUE = "(almost) every row has its own value"
KEY = "whole numbers called like an identifier, some of them repeated"
PADDED = "digits with leading zeros are a code"
CODE = "whole numbers called like a code"
CONFIG = DataConfig(source="data", target="y")


def seen(values: Any, name: str = "c") -> ColumnProfile:
    """Profile one column."""
    return profile_frame(pl.DataFrame({name: pl.Series(values)})).columns[name]


def kind_of(values: Any, name: str = "c") -> tuple[str, str]:
    """Return the inferred kind of a column, and why."""
    column = infer_column(name, seen(values, name), CONFIG)
    return column.kind, column.reason


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        # 2: constant
        ("c", ["x"] * N, ("ignored", "constant: every row has 'x'")),
        ("c", [7] * N, ("ignored", "constant: every row has '7'")),
        ("c", ["yes"] * N, ("ignored", "constant: every row has 'yes'")),
        # 3: words of truth
        ("c", [True, False] * 50, ("boolean", "words of truth: false, true")),
        ("c", ["yes", "no"] * 50, ("boolean", "words of truth: no, yes")),
        ("c", ["Y", None] * 50, ("boolean", "words of truth: Y")),
        ("c", ["1", "0"] * 50, ("boolean", "two values, 0 and 1")),
        ("c", ["yes", "no", "unknown", "no"] * 25, ("categorical", "text, 3 distinct values")),
        # 4: 0 and 1
        ("c", [0, 1] * 50, ("boolean", "two values, 0 and 1")),
        ("c", [0.0, 1.0, None, 1.0] * 25, ("boolean", "two values, 0 and 1")),
        ("c", [1, 2] * 50, ("numeric", "whole numbers, 2 distinct values")),
        # 5: dates
        ("c", [date(2024, 1, 1) + timedelta(i) for i in INDEX], ("datetime", "typed as dates")),
        ("c", [f"2024-{1 + i % 12:02}-01" for i in INDEX], ("datetime", "dates written as %Y-%m-%d")),
        ("c", [f"{1 + i % 28}.12.2024" for i in INDEX], ("datetime", "dates written as %d.%m.%Y")),
        ("c", ["x"] + ["2024-01-01", "2024-01-02"] * 50, ("datetime", "dates written as %Y-%m-%d")),
        ("c", ["x"] * 2 + ["2024-01-01", "2024-01-02"] * 49, ("categorical", "text, 3 distinct values; 98.0% dates")),
        ("c", ["2024-01-01", "2024-01-01 10:00:00"] * 50, ("datetime", "dates written as %Y-%m-%d")),
        # 6: codes
        ("c", [f"{i % 20:05}" for i in INDEX], ("categorical", f"{PADDED}, 20 distinct values")),
        ("zip_code", [94_000 + i for i in INDEX], ("categorical", f"{CODE}, 100 distinct values")),
        ("home_zip", ["94107", "10115"] * 50, ("categorical", f"{CODE}, 2 distinct values")),
        ("zipper", [i % 9 for i in INDEX], ("numeric", "whole numbers, 9 distinct values")),
        ("zip", [1.5, 2.0] * 50, ("numeric", "numbers, 2 distinct values")),
        ("ZipCode", [i % 20 for i in INDEX], ("categorical", f"{CODE}, 20 distinct values")),
        ("homeZip5", [i % 20 for i in INDEX], ("categorical", f"{CODE}, 20 distinct values")),
        ("PhoneNumber", [i % 20 for i in INDEX], ("categorical", f"{CODE}, 20 distinct values")),
        ("NAICS2017", [i % 20 for i in INDEX], ("categorical", f"{CODE}, 20 distinct values")),
        ("status_code", [i % 20 for i in INDEX], ("categorical", f"{CODE}, 20 distinct values")),
        ("lines_of_code", [i % 20 for i in INDEX], ("numeric", "whole numbers, 20 distinct values")),
        ("num_zip_codes", [i % 20 for i in INDEX], ("numeric", "whole numbers, 20 distinct values")),
        ("num_phone", [i % 20 for i in INDEX], ("numeric", "whole numbers, 20 distinct values")),
        ("zip", ["x"] + [f"{i % 20}" for i in range(199)], ("categorical", f"{CODE}, 21 distinct values")),
        # 6: identifiers whose values come again
        ("user_id", [i % 30 for i in INDEX], ("categorical", f"{KEY}, 30 distinct values")),
        ("providerID", [i % 30 for i in INDEX], ("categorical", f"{KEY}, 30 distinct values")),
        ("id_branch", [i % 30 for i in INDEX], ("categorical", f"{KEY}, 30 distinct values")),
        ("ProviderNumber", [10_000 + i % 30 * 7 for i in INDEX], ("categorical", f"{KEY}, 30 distinct values")),
        ("week_number", [1 + i % 30 for i in INDEX], ("numeric", "whole numbers, 30 distinct values")),
        ("NO2", [i % 30 * 7 for i in INDEX], ("numeric", "whole numbers, 30 distinct values")),
        ("price_index", [90 + i % 30 for i in INDEX], ("numeric", "whole numbers, 30 distinct values")),
        ("grid", [i % 30 for i in INDEX], ("numeric", "whole numbers, 30 distinct values")),
        # 7: identifiers
        ("c", INDEX, ("identifier", f"{UNIQUE}, 100 distinct values")),
        ("c", [5 + i for i in reversed(INDEX)], ("identifier", f"{UNIQUE}, 100 distinct values")),
        ("user_id", [i * 7 for i in INDEX], ("identifier", f"{UNIQUE}, 100 distinct values")),
        ("userId", [i * 7 for i in INDEX], ("identifier", f"{UNIQUE}, 100 distinct values")),
        ("userId", [max(i, 5) * 7 for i in INDEX], ("identifier", f"{UNIQUE}, 95 distinct values")),
        ("rowNumber", [i * 7 for i in INDEX], ("identifier", f"{UNIQUE}, 100 distinct values")),
        ("No", [1 + i % 1100 for i in range(2200)], ("identifier", "counts rows from 1 to 1,100, again and again")),
        ("c", [f"u-{i}" for i in INDEX], ("identifier", f"{UNIQUE}, 100 distinct values")),
        ("c", [f"u-{max(i, 5)}" for i in INDEX], ("identifier", f"{UNIQUE}, 95 distinct values")),
        ("c", [f"u-{max(i, 6)}" for i in INDEX], ("categorical", "text, 94 distinct values")),
        ("c", [i * 7 for i in INDEX], ("numeric", "whole numbers, 100 distinct values")),
        ("paid", [i * 7 for i in INDEX], ("numeric", "whole numbers, 100 distinct values")),
        ("c", range(49), ("numeric", "whole numbers, 49 distinct values")),
        # 8: numbers
        ("c", [i % 3 for i in INDEX], ("numeric", "whole numbers, 3 distinct values")),
        ("c", [i / 7 for i in INDEX], ("numeric", "numbers, 100 distinct values")),
        ("c", [str(i / 7) for i in INDEX], ("numeric", "numbers, 100 distinct values")),
        ("c", ["x"] + ["1.5", "2"] * 50, ("numeric", "numbers, 3 distinct values")),
        ("c", ["x"] * 2 + ["1.5", "2"] * 49, ("categorical", "text, 3 distinct values; 98.0% numbers")),
        ("c", ["x"] * 60 + ["1.5", "2"] * 20, ("categorical", "text, 3 distinct values")),
        # 9: free text
        ("c", [f"{i % 60} " + "word " * 40 for i in INDEX], ("ignored", "free text of up to 203 characters")),
        ("c", [f"{i % 3}" + "w" * 300 for i in INDEX], ("categorical", "text, 3 distinct values")),
        # 10: text
        ("c", ["Rome", "Oslo", None, "Bern"] * 25, ("categorical", "text, 3 distinct values")),
    ],
)
def test_a_rule_says_what_a_column_is(name: str, values: Any, expected: tuple[str, str]) -> None:
    """Each rule gives a column its kind, with the reason in words."""
    assert expected == kind_of(values, name)


def test_a_constant_that_is_sometimes_missing_is_kept() -> None:
    """Whether a value is there at all can be learnt from."""
    assert "categorical" == kind_of(["x", None] * 50)[0]


def hint_of(values: Any, name: str = "c", **settings: Any) -> str:
    """Return what could be set for a column."""
    return infer_column(name, seen(values, name), CONFIG.model_copy(update=settings)).hint


NA_LINE = 'data.csv.na_values = ["?", "NA", "N/A", "n/a", "#N/A", "NaN", "nan", "NULL", "null", "none"]'


@pytest.mark.parametrize(
    ("values", "settings", "expected"),
    [
        (
            [f"{i}x" if i < 6 else f"{i / 7}" for i in range(200)],
            {},
            "'c' is text because of 6 values (3.0%) that are no numbers, such as '0x'. "
            'Mend them, or do without them: data.kinds."c" = "numeric" with data.tolerance = 0.03.',
        ),
        (
            ["none"] * 30 + [f"{i / 7}" for i in range(70)],
            {},
            "'c' is text because of 30 values (30.0%) that are no numbers, such as 'none'. "
            'Mend them, or do without them: data.kinds."c" = "numeric" with data.tolerance = 0.3; '
            f"or, if all mean missing: {NA_LINE}.",
        ),
        (
            ["soon"] * 3 + ["2024-01-01"] * 97,
            {"csv": CsvConfig(na_values=["?", "gone"])},
            "'c' is text because of 3 values (3.0%) that are no dates, such as 'soon'. "
            'Mend them, or do without them: data.kinds."c" = "datetime" with data.tolerance = 0.03; '
            'or, if all mean missing: data.csv.na_values = ["?", "gone", "soon"].',
        ),
        (["x", "y"] * 30 + ["1"] * 40, {}, ""),
        (["x"] + ["1.5", "2"] * 50, {}, ""),
        ([f"{i:03}" for i in range(99)] + ["x"], {}, ""),
        (["x"] * 3 + ["1.5", "2"] * 49, {"kinds": {"c": "categorical"}}, ""),
        (["x"] * 3 + ["1.5", "2"] * 49, {"tolerance": 0.03}, ""),
    ],
)
def test_a_column_that_is_nearly_numbers_says_what_is_not(
    values: list[str], settings: dict[str, Any], expected: str
) -> None:
    """A text column of which at least half are numbers or dates names the others, and the lines that leave them out."""
    assert expected == hint_of(values, **settings)


@pytest.mark.parametrize("name", ["zip", "ProviderNumber"])
def test_a_code_is_not_proposed_as_numbers(name: str) -> None:
    """A dirty column that is called like a code gets no hint to make numbers of it."""
    assert ("categorical", "") == (
        kind_of(["1x8"] * 3 + ["101", "207"] * 49, name)[0],
        hint_of(["1x8"] * 3 + ["101", "207"] * 49, name),
    )


@pytest.mark.parametrize("num_words", [0, 1, 2, 4, 6])
@pytest.mark.parametrize("tolerance", [0.0, 0.01, 0.05])
@pytest.mark.parametrize("value", ["1.5", "2024-05-01"])
def test_no_inferred_kind_is_refused_later(num_words: int, tolerance: float, value: str) -> None:
    """A column is inferred as numbers or dates only if the values that are none are within the tolerance."""
    frame = table(c=["x"] * num_words + [value] * (N - num_words))
    schema = schema_of(frame, tolerance=tolerance)
    num_failed = len(failures(frame.get_column("c"), schema.column("c")))

    assert num_failed <= tolerance * N
    assert schema.columns == schema_of(frame, schema, tolerance=tolerance).columns


def test_text_of_nearly_numbers_is_sent_as_text() -> None:
    """A category of which some are numbers has the type text, so that a caller may send the others."""
    schema = schema_of(table(c=["x"] * 3 + ["1.5", "2"] * 48 + ["3"]))

    assert ("categorical", "text") == (schema.column("c").kind, schema.column("c").source_type)


def test_mended_numbers_are_no_break() -> None:
    """A text column that was nearly all numbers may become all numbers, and stays what it is."""
    champion = schema_of(table(c=["x"] * 3 + ["1.5", "2"] * 48 + ["3"]))
    schema = schema_of(table(c=["1.5", "2"] * 50), champion)

    assert ("categorical", champion.column("c").hint) == (schema.column("c").kind, schema.column("c").hint)


def test_hints_are_told_below_the_schema() -> None:
    """What could be set otherwise follows the line that says what was inferred."""
    frame = table(b=["x"] * 3 + ["1.5", "2"] * 48 + ["3"], c=["?!"] * 3 + ["1.5", "2"] * 48 + ["3"])
    first, *others = schema_text(schema_of(frame), "auc").split("\n  ")

    assert ("y is binary", ["'b' is text", "'c' is text"]) == (first[:11], [line[:11] for line in others])


@pytest.mark.parametrize("inherited", [None, Column("c", "numeric")])
def test_a_column_without_values_is_refused(inherited: Column | None) -> None:
    """A column of nulls says that the source is broken: the message offers to leave it out."""
    message = r"""at least one value, but got none in 3 rows of column='c'\. .* data\.ignore = \["c"\]\."""
    with pytest.raises(InputError, match=message):
        infer_column("c", seen([None] * 3), CONFIG, inherited)


def test_a_set_kind_wins() -> None:
    """data.ignore and data.kinds win over every rule, an empty column included, and over the champion."""
    config = CONFIG.model_copy(update={"ignore": ["a"], "kinds": {"b": "categorical"}})
    inherited = Column("b", "numeric")

    assert [("ignored", "listed in data.ignore"), ("categorical", "set in data.kinds")] == [
        (c.kind, c.reason)
        for c in (infer_column("a", seen([None]), config), infer_column("b", seen([1, 2]), config, inherited))
    ]


def test_the_champions_kind_is_kept() -> None:
    """A day on which a text column has two words does not make it boolean."""
    column = infer_column("c", seen(["yes", "no"]), CONFIG, Column("c", "categorical", "text, 9 distinct values"))

    assert ("categorical", "text, 9 distinct values") == (column.kind, column.reason)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 5, None], Column("c", "numeric", "", "integer", True, 1.0, 5.0)),
        ([1.5, 5.0], Column("c", "numeric", "", "number", False, 1.5, 5.0)),
        (["1.5", "5"], Column("c", "numeric", "", "number", False, 1.5, 5.0)),
        (["a", "b", "c"], Column("c", "categorical", "", "text")),
        ([True, False], Column("c", "boolean", "", "boolean", False, 0.0, 1.0)),
        (["03.02.1970", "13.02.1970"], Column("c", "datetime", "", "datetime", date_format="%d.%m.%Y")),
        ([date(1970, 1, 2), date(1970, 1, 3)], Column("c", "datetime", "", "datetime", False, 86400.0, 172_800.0)),
    ],
)
def test_what_is_known_of_a_column(values: Any, expected: Column) -> None:
    """A column keeps its type in the source, its bounds, and the format of its dates."""
    assert expected == replace(infer_column("c", seen(values), CONFIG), reason="")


def test_all_columns_without_values_are_named() -> None:
    """All columns of nulls are named at once, with one line that leaves them out beside what is left out already."""
    frame = table(a=[None] * N, b=[None] * N, c=[None] * N, z=[None] * N)
    message = (
        r"needs at least one value, but got none in 100 rows of column='a', column='c'\. "
        r"Mend the source, or leave the columns out: data\.ignore = \[\"z\", \"a\", \"c\"\]\."
    )
    with pytest.raises(InputError, match=message):
        schema_of(frame, ignore=["z"], kinds={"b": "categorical"})


# The schema of a first model


def table(**columns: Any) -> pl.DataFrame:
    """Make rows with two classes and a number, and what else is given."""
    return pl.DataFrame({"y": ["no", "yes"] * 50, "x": [i % 9 for i in INDEX], **columns})


def schema_of(frame: pl.DataFrame, champion: Schema | None = None, task: Task | None = None, **settings: Any) -> Schema:
    """Infer the schema of rows."""
    config = DataConfig(**{"source": "d", "target": "y", **settings})
    return infer_schema(profile_frame(frame, config.time), config, task, champion)


def test_first_schema() -> None:
    """A first schema has all columns with their kinds and roles; all but target and weight decide a row's side."""
    frame = table(k=["a", "b", "c", None] * 25, w=[0.5, 1.5] * 50, at=[date(2024, 1, 1) + timedelta(i) for i in INDEX])
    schema = schema_of(frame, time="at", weight="w", group="k")
    bounds = (1_704_067_200.0, 1_712_620_800.0)

    assert (
        Schema(
            columns=(
                Column("y", "numeric", "the target", "text"),
                Column("x", "numeric", "whole numbers, 9 distinct values", "integer", False, 0.0, 8.0),
                Column("k", "categorical", "text, 3 distinct values", "text", True),
                Column("w", "numeric", "the weight", "number", False, 0.5, 1.5),
                Column(
                    "at", "datetime", "typed as dates", "datetime", False, *bounds, parts=("month", "day", "weekday")
                ),
            ),
            target="y",
            task="binary",
            labels=("no", "yes"),
            time="at",
            group="k",
            weight="w",
            hash_columns=("x", "k", "at"),
        )
        == schema
    )


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ([date(2024, 1, 1), date(2024, 1, 2)] * 50, ("month", "day", "weekday", "elapsed_days")),
        ([datetime(2024, 1, 1), datetime(2024, 1, 2)] * 50, ("month", "day", "weekday", "hour", "elapsed_days")),
        (["01.02.2024", "13.02.2024"] * 50, ("month", "day", "weekday", "elapsed_days")),
        (["2024-01-01 10:00", "2024-01-01 11:00"] * 50, ("month", "day", "weekday", "hour", "elapsed_days")),
    ],
)
def test_parts_of_a_date(values: Any, parts: tuple[str, ...]) -> None:
    """Dates have an hour only with a clock; days that pass are a feature unless they order the rows."""
    frame = table(at=values)

    assert (parts, parts[:-1]) == (
        schema_of(frame).column("at").parts,
        schema_of(frame, time="at").column("at").parts,
    )


@pytest.mark.parametrize("values", [[2000 + i % 25 for i in INDEX], [f"{i}" for i in INDEX], [i / 7 for i in INDEX]])
def test_a_number_that_orders_the_rows_is_no_feature(values: Any) -> None:
    """A year that orders the rows is no feature, as elapsed days are none, unless data.kinds says so."""
    frame = table(at=values)
    column = schema_of(frame, time="at").column("at")
    named = schema_of(frame, time="at", kinds={"at": "numeric"})

    assert ("ignored", "orders the rows; what is ever larger in newer rows can't be learnt") == (
        column.kind,
        column.reason,
    )
    assert "at" in [feature.name for feature in named.features]


def test_a_champion_loses_a_number_that_orders_the_rows() -> None:
    """Where data.time is set later, the column stops being a feature, and that is told."""
    champion = schema_of(table(at=[2000 + i % 25 for i in INDEX]))
    schema = schema_of(table(at=[2000 + i % 25 for i in INDEX]), champion, time="at")

    assert [
        "'at' is now ignored, was numeric (orders the rows; what is ever larger in newer rows can't be learnt)."
    ] == (schema_changes(schema, champion))


def test_ignored_dates_that_order_the_rows_keep_their_format() -> None:
    """Dates that only order the rows are read in one format in every file."""
    days = [f"{1 + i % 28:02}/{1 + i % 12:02}/2024" for i in INDEX]

    assert "%d/%m/%Y" == schema_of(table(at=days), time="at", kinds={"at": "ignored"}).column("at").date_format


PARTS = {
    "Year": [2013 + i % 5 for i in INDEX],
    "month": [1 + i % 12 for i in INDEX],
    "day": [1 + i % 28 for i in INDEX],
}
IN_PARTS = "'Year', 'month', 'day' and 'hour' look like one time in parts"
ONE_COLUMN = "make one column of them in the source, such as 2013-03-01 13:00, and name it in data.time"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, f"{IN_PARTS}. To hold out the newest rows, {ONE_COLUMN}."),
        ({"time": "Year"}, f'{IN_PARTS}, and data.time = "Year" holds out whole years. For a finer cut {ONE_COLUMN}.'),
        ({"kinds": {"Year": "numeric"}}, ""),
        ({"time": "at"}, ""),
    ],
)
def test_a_time_in_parts_is_seen(settings: dict[str, Any], expected: str) -> None:
    """Columns of year, month, day and hour are recognized, and how to use them as a time is said."""
    frame = table(**PARTS, hour=[i % 24 for i in INDEX], at=[date(2024, 1, 1) + timedelta(i) for i in INDEX])

    assert expected == schema_of(frame if "time" in settings else frame.drop("at"), **settings).column("Year").hint


def test_months_alone_are_no_time_in_parts() -> None:
    """Without a year, or with one that cannot be, nothing is said."""
    frame = table(year=[i % 5 for i in INDEX], month=[1 + i % 12 for i in INDEX])

    assert [""] == list({column.hint for column in schema_of(frame).columns})


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["a", "b"], "binary"),
        ([3.5, 7.25], "binary"),
        (["a", "b", "c"], "multiclass"),
        ([0, 1, 2], "multiclass"),
        (range(20), "multiclass"),
        (range(21), "regression"),
        ([0.5, 1.0, 1.5], "regression"),
        ([str(i / 7) for i in range(30)], "regression"),
    ],
)
def test_the_task_follows_the_target(values: Any, expected: Task) -> None:
    """Two values are a binary target; few whole numbers or texts classes; other numbers a regression."""
    assert expected == infer_task(seen(values))


def test_a_set_task_wins() -> None:
    """A task that is set is not inferred."""
    frame = table().with_columns(y=pl.Series([i % 5 for i in INDEX]))

    assert [("multiclass", ("0", "1", "2", "3", "4")), ("regression", ())] == [
        (schema_of(frame, task=task).task, schema_of(frame, task=task).labels) for task in (None, "regression")
    ]


@pytest.mark.parametrize(
    ("values", "positive", "expected"),
    [
        ([0, 1], None, ("0", "1")),
        ([1, 2], None, ("1", "2")),
        ([9, 10], None, ("9", "10")),
        (["Yes", "no"], None, ("no", "Yes")),
        ([True, False], None, ("false", "true")),
        (["T", "f"], None, ("f", "T")),
        (["good", "bad"], "bad", ("good", "bad")),
        ([0, 1], "0", ("1", "0")),
    ],
)
def test_the_positive_class_is_the_second(values: Any, positive: str | None, expected: tuple[str, str]) -> None:
    """A word of truth or the larger number is positive, unless data.positive says otherwise."""
    frame = table().with_columns(y=pl.Series(values * 50))

    assert expected == schema_of(frame, positive=positive).labels


def test_classes_are_ordered() -> None:
    """Classes are ordered as numbers first and then as texts."""
    frame = table().with_columns(y=pl.Series(["b", "10", "9", "a"] * 25))

    assert ("9", "10", "a", "b") == schema_of(frame).labels


def test_missing_targets_are_no_class() -> None:
    """Rows without a label make no class."""
    frame = table().with_columns(y=pl.Series(["no", None, "yes", "no"] * 25))

    assert ("no", "yes") == schema_of(frame).labels


WRONG_TARGETS: list[tuple[Any, Task | None, str]] = [
    ([None] * N, None, r"needs values, but got only missing ones in column='y' of 100 rows\. Name another"),
    (["a"] * N, None, r"two different values, but got only 'a' \(one class, constant\) in .*\. Widen data\.source"),
    (["a", "b", "c", "d"] * 25, "binary", r"two classes, but got 'a', 'b', 'c', 'd' in .*model\.task = \"multiclass\""),
    (
        ["a", "1", "2", "b"] * 25,
        "regression",
        r"holds numbers, but got 50 other values \(50\.0%\), such as 'a', in column='y' of 100 rows\. "
        r"Mend them, or set model\.task = \"multiclass\"\.",
    ),
    (
        [f"c{i}" for i in range(101)],
        None,
        r"at most 100 classes, but got 101, such as 'c0', in column='y' of 101 rows\. "
        r"Group the rare ones in the source, or name another data\.target\.",
    ),
    (
        [f"{i / 7}" for i in range(101)],
        "multiclass",
        r"at most 100 classes, but got 101, such as '.*', in .* Set model\.task = \"regression\", or group",
    ),
]
MIXED = [f"{i / 1000}" for i in range(150)] + [f"{i / 1000}%" for i in range(50)]
WRONG_TARGETS += [
    (
        MIXED,
        task,
        r"numbers or at most 100 classes, but got 75\.0% numbers and 50 other values, such as '0\.0%', 200 distinct "
        r"ones in all, in column='y' of 200 rows\. Mend the others in the source, or do without their rows: "
        r"model\.task = \"regression\" with data\.tolerance = 0\.25\.",
    )
    for task in (None, "regression", "multiclass")
]


@pytest.mark.parametrize(("values", "task", "message"), WRONG_TARGETS)
def test_a_target_that_cannot_be_learnt_is_refused(values: Any, task: Task | None, message: str) -> None:
    """A target without values, with one, or with the wrong ones for its task is named, with the next step."""
    frame = pl.DataFrame({"y": pl.Series(values), "x": [i % 9 for i in range(len(values))]})
    with pytest.raises(InputError, match=message):
        schema_of(frame, task=task)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "yy"}, r"data\.target names a column .* 'yy'\. Did you .* The columns are y, xcol\."),
        ({"time": "xcl"}, r"data\.time names a column .* 'xcl'\. Did you mean \"xcol\"\?"),
        ({"group": "abcde"}, r"data\.group names a column of the data, but got 'abcde'\. The columns"),
        ({"weight": "abcde"}, r"data\.weight names a column of the data, but got 'abcde'"),
        ({"ignore": ["xcol", "xcoll"]}, r"data\.ignore names a column of the data, but got 'xcoll'\. Did you"),
        ({"kinds": {"abcde": "numeric"}}, r"data\.kinds names a column of the data, but got 'abcde'"),
        ({"positive": "yess"}, r"data\.positive is .*got 'yess'\. Did you mean \"yes\"\? .*'no', 'yes'\."),
        ({"ignore": ["xcol"]}, r"at least one feature, but got num_features=0 from the columns y, xcol\. Set the"),
    ],
)
def test_a_wrong_name_is_refused(settings: dict[str, Any], message: str) -> None:
    """A name that the data lacks is refused with the key that has it and the nearest column."""
    with pytest.raises(InputError, match=message):
        schema_of(table().rename({"x": "xcol"}), **settings)


def test_all_wrong_names_are_told() -> None:
    """Several wrong names are told at once."""
    message = r"data\.time names .* 'at'\. data\.ignore names .* but got 'xx'\. .*The columns are y, x\."
    with pytest.raises(InputError, match=message):
        schema_of(table(), time="at", ignore=["xx"])


def test_a_time_is_one_column() -> None:
    """A time in several columns is refused with what to do instead."""
    with pytest.raises(ValidationError, match=r"a time is one column; make one of these in the source, such as 2013"):
        DataConfig(source="d", target="y", time=["year", "month"])  # type: ignore[arg-type]


def test_an_unlike_positive_class_is_refused_without_a_guess() -> None:
    """A positive class unlike every value is refused, and no value is suggested."""
    with pytest.raises(InputError, match=r"but got '\?'\. The values are 'no', 'yes'\."):
        schema_of(table(), positive="?")


# New data against the champion

CHAMPION = schema_of(
    table(
        num=[i / 7 for i in INDEX],
        word=["a", "b", "c", "d"] * 25,
        flag=["yes", "no"] * 50,
        day=[f"{1 + i % 28:02}/{1 + i % 12:02}/2024" for i in INDEX],
        code=[f"k-{i}" for i in INDEX],
    )
)
GOOD = {
    "num": [1.5] * 99 + [2.5],
    "word": ["b", "e"] * 50,
    "flag": ["no"] * N,
    "day": ["01/02/2024", "02/03/2024"] * 50,
    "code": [f"m-{i % 3}" for i in INDEX],
}


def test_kinds_and_parts_are_kept() -> None:
    """New data that would be inferred otherwise has the champion's kinds, labels, and columns that are hashed."""
    frame = table(**GOOD).with_columns(y=pl.Series(["yes", "no"] * 50))
    schema = schema_of(frame, CHAMPION)

    assert {c.name: (c.kind, c.reason) for c in CHAMPION.columns} == {
        c.name: (c.kind, c.reason) for c in schema.columns
    }
    assert (CHAMPION.encoding(), CHAMPION.hash_columns) == (schema.encoding(), schema.hash_columns)
    assert [] == schema_changes(schema, CHAMPION)


def test_other_column_order_decides_the_same_sides() -> None:
    """Files that list their columns in another order keep each row on its side of the split."""
    schema = schema_of(table(**GOOD).select("code", "day", "x", "y", "flag", "num", "word"), CHAMPION)

    assert CHAMPION.hash_columns == schema.hash_columns


def test_an_ambiguous_date_format_is_inherited() -> None:
    """A day on which all dates could have the month first is read as the champion's dates were."""
    frame = table(**{**GOOD, "day": ["01/13/2024", "02/03/2024"] * 50})
    alone = schema_of(frame).column("day").date_format

    assert ("%m/%d/%Y", "%d/%m/%Y") == (alone, CHAMPION.column("day").date_format)
    with pytest.raises(
        InputError, match=r"keeps the type .* but got 50 values that are no dates, such as '.*', in column='day'"
    ):
        schema_of(frame, CHAMPION)


def test_unreadable_dates_are_not_hidden_by_ambiguous_ones() -> None:
    """Dates that two formats can read count once when the readable ones are counted."""
    with pytest.raises(
        InputError, match=r"50 values that are no dates, such as 'soon', in column='day' \(was datetime\)"
    ):
        schema_of(table(**{**GOOD, "day": ["01/02/2024", "soon"] * 50}), CHAMPION)


def test_iso_dates_are_no_break() -> None:
    """A source that changes to ISO dates keeps its type, for the encoder reads them in any case."""
    schema = schema_of(table(**{**GOOD, "day": ["2024-03-01", "2024-03-02"] * 50}), CHAMPION)

    assert "%d/%m/%Y" == schema.column("day").date_format


def test_a_new_column_is_ignored_until_it_is_named() -> None:
    """A column that the champion does not know is told and ignored, even if empty, until data.kinds names it."""
    frame = table(**GOOD, fresh=[i % 5 for i in INDEX], hollow=[None] * N)
    ignored = schema_of(frame, CHAMPION)
    joined = schema_of(frame, CHAMPION, kinds={"fresh": "categorical"}, ignore=["hollow"])

    assert (("fresh", "hollow"), CHAMPION.encoding(), "ignored") == (
        ignored.ignored_new,
        ignored.encoding(),
        ignored.column("fresh").kind,
    )
    assert ((), "categorical", CHAMPION.hash_columns) == (
        joined.ignored_new,
        joined.column("fresh").kind,
        joined.hash_columns,
    )
    assert [
        "New column 'fresh' is ignored until data.kinds names it.",
        "New column 'hollow' is ignored until data.kinds names it.",
    ] == schema_changes(ignored, CHAMPION)
    assert [
        "'fresh' joins as categorical (set in data.kinds).",
        "'hollow' joins as ignored (listed in data.ignore).",
    ] == schema_changes(joined, CHAMPION)


@pytest.mark.parametrize("gone", ["num", "code"])
def test_a_missing_column_is_named(gone: str) -> None:
    """A column that the champion needs, as an input or to find a row's side, must be there."""
    with pytest.raises(InputError, match=rf"keeps the columns of the champion, but got none called '{gone}'\. Bring"):
        schema_of(table(**GOOD).drop(gone), CHAMPION)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        (
            "num",
            ["x", "1.5"] * 50,
            r"50 values that are no numbers, such as 'x', in column='num' \(was number\)\..*kinds\.\"num\"",
        ),
        (
            "flag",
            ["red", "blue", "green", "yes"] * 25,
            r"4 distinct values, such as 'blue', in column='flag' \(was text\)",
        ),
        (
            "day",
            [20240101, 20240102] * 50,
            r"100 values that are no dates, such as '20240101', in column='day' \(was datetime\)",
        ),
        ("word", [i / 7 for i in INDEX], r"values that are all numbers in column='word' \(was text\)"),
        ("word", ["2024-01-01", "2024-01-02"] * 50, r"values that are all datetimes in column='word'"),
        ("num", [None] * N, r"at least one value, but got none in 100 rows of column='num'"),
    ],
)
def test_a_retyped_column_is_refused(name: str, values: Any, message: str) -> None:
    """A column that no longer holds what the champion was trained on is named with both types."""
    with pytest.raises(InputError, match=message):
        schema_of(table(**{**GOOD, name: values}), CHAMPION)


def test_a_retyped_column_may_be_accepted() -> None:
    """data.kinds takes a retyped column in, data.ignore out, and both are told."""
    frame = table(**{**GOOD, "num": ["x", "1.5"] * 50, "word": [i / 7 for i in INDEX]})
    schema = schema_of(frame, CHAMPION, kinds={"num": "categorical"}, ignore=["word"])

    assert [
        "'num' is now categorical, was numeric (set in data.kinds).",
        "'word' is now ignored, was categorical (listed in data.ignore).",
    ] == schema_changes(schema, CHAMPION)


def test_all_retyped_columns_are_named() -> None:
    """All columns that broke the champion's schema are named at once, each with an example of what it holds now."""
    frame = table(**{**GOOD, "num": ["x", "1.5"] * 50, "flag": ["red", "blue", "green", "yes"] * 25})
    message = (
        r"but got 50 values that are no numbers, such as 'x', in column='num' \(was number\); "
        r"4 distinct values, such as 'blue', in column='flag' \(was text\)\. "
        r"Mend the source, or set data\.kinds\.\"num\", data\.kinds\.\"flag\" to the new kind\."
    )
    with pytest.raises(InputError, match=message):
        schema_of(frame, CHAMPION)


def test_a_few_unreadable_values_are_tolerated() -> None:
    """Up to data.tolerance of a column may fail to read."""
    values = ["x", *(["1.5"] * 99)]

    assert "numeric" == schema_of(table(**{**GOOD, "num": values}), CHAMPION).column("num").kind
    with pytest.raises(InputError, match="but got 1 values that are no numbers, such as 'x', in"):
        schema_of(table(**{**GOOD, "num": values}), CHAMPION, tolerance=0.005)


def test_a_new_class_is_appended() -> None:
    """A class that comes later has the next code and is told; one that is gone keeps its code."""
    before = schema_of(table().with_columns(y=pl.Series(["b", "c", "d", "b"] * 25)))
    after = schema_of(table().with_columns(y=pl.Series(["d", "a", "b", "b"] * 25)), before)

    assert ("b", "c", "d", "a") == after.labels
    assert ["New class 'a' of the target."] == schema_changes(after, before)


def test_a_third_class_of_a_binary_model_is_refused() -> None:
    """A binary target does not silently become a multiclass one."""
    frame = table().with_columns(y=pl.Series(["no", "yes", "maybe", "no"] * 25))
    with pytest.raises(InputError, match=r"two classes, but got 'no', 'yes', 'maybe'"):
        schema_of(frame, schema_of(table()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "x"}, r"keeps its target and task, but got 'x' \(multiclass\) after 'y' \(binary\)\. Give the new"),
        ({"task": "multiclass"}, r"keeps its target and task, but got 'y' \(multiclass\) after 'y' \(binary\)"),
    ],
)
def test_another_problem_is_another_model(settings: dict[str, Any], message: str) -> None:
    """A champion is not compared with a model of another target or task."""
    champion = schema_of(table(z=[i % 7 for i in INDEX]))
    with pytest.raises(InputError, match=message):
        schema_of(table(z=[i % 7 for i in INDEX]), champion, **{"task": "multiclass", **settings})


def test_another_positive_class_is_refused() -> None:
    """A champion's positive class cannot be changed by a setting that would then be without effect."""
    with pytest.raises(InputError, match=r"data\.positive"):
        schema_of(table(), schema_of(table()), positive="no")


def test_a_column_that_is_gone_for_good_is_told() -> None:
    """A column that nothing needs may go, and is told."""
    before = schema_of(table(z=[i % 7 for i in INDEX]))
    champion = replace(before, columns=(*before.columns, Column("old", "ignored")))

    assert ["'old' is gone."] == schema_changes(schema_of(table(z=[i % 7 for i in INDEX]), champion), champion)


def test_a_first_schema_has_no_changes() -> None:
    """Without a champion there is nothing to differ from."""
    assert [] == schema_changes(CHAMPION, None)


def test_kinds_are_inferred_from_all_files() -> None:
    """A column is judged by the rows of all files: words in one and numbers in another are categories."""
    parts = [table(c=["1", "2"] * 50), table(c=["1", "x"] * 50)]
    merged = merge(profile_frame(part) for part in parts)

    assert "categorical" == infer_schema(merged, CONFIG, None, None).column("c").kind


def test_the_group_is_no_feature() -> None:
    """The column that groups the rows is no feature, for the groups to come are new; a set kind wins."""
    frame = table(branch=["north", "south"] * 50)
    features = [
        [feature.name for feature in schema_of(frame, group="branch", **settings).features]
        for settings in ({}, {"kinds": {"branch": "categorical"}})
    ]

    assert [False, True] == ["branch" in names for names in features]
