"""From raw rows to a model's inputs."""

from __future__ import annotations

from datetime import date, datetime, timedelta, timezone
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.bundle.encoder import (
    DATE_FORMATS,
    FALSE_TEXTS,
    TRUE_TEXTS,
    as_booleans,
    as_datetimes,
    as_numbers,
    as_text,
    encode_frame,
    failures,
    matrix,
    read_dates,
)
from infra.bundle.errors import InputError
from infra.bundle.schema import Column, Schema
from infra.bundle.vocabulary import Vocabulary

MOMENT = datetime(2024, 3, 22, 14, 5, 6)
DAY = datetime(2024, 3, 22)
SCHEMA = Schema(
    columns=(
        Column("n", "numeric"),
        Column("city", "categorical"),
        Column("ok", "boolean"),
        Column("at", "datetime", parts=("year", "month", "day", "weekday", "hour", "elapsed_days")),
        Column("y", "numeric"),
    ),
    target="y",
    task="binary",
    labels=("0", "1"),
)
VOCABULARY = Vocabulary({"city": ("Rome", "7", "Oslo")})


def encoded(**columns: Any) -> dict[str, list[Any]]:
    """Encode rows of some columns, the others missing; NaN is shown as None."""
    height = len(next(iter(columns.values())))
    rows = {name: columns.get(name, [None] * height) for name in ("n", "city", "ok", "at")}
    return encode_frame(pl.DataFrame(rows), SCHEMA, VOCABULARY).fill_nan(None).to_dict(as_series=False)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pl.Series([3, None]), ["3", None]),
        (pl.Series([3.0, 2.5, float("nan"), -0.0]), ["3", "2.5", None, "0"]),
        (pl.Series([3.0, 0.1], dtype=pl.Float32), ["3", "0.1"]),
        (pl.Series(["3.0", "x", None]), ["3.0", "x", None]),
        (pl.Series([True, False, None]), ["true", "false", None]),
        (pl.Series([None, None]), [None, None]),
        (pl.Series([date(2024, 1, 2)]), ["2024-01-02"]),
    ],
)
def test_as_text(values: pl.Series, expected: list[str | None]) -> None:
    """Values become the text that a caller would send for them; whole numbers have no fraction."""
    assert expected == as_text(values).to_list()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pl.Series(["1", " 2", "1e3", "x", "", "inf", "nan", None]), [1.0, None, 1000.0, None, None, None, None, None]),
        (pl.Series([1.5, float("inf"), float("-inf"), float("nan"), None]), [1.5, None, None, None, None]),
        (pl.Series([True, False, None]), [1.0, 0.0, None]),
        (pl.Series([None], dtype=pl.Null), [None]),
        (pl.Series([datetime(1970, 1, 1, 0, 0, 1), None]), [1.0, None]),
        (pl.Series([date(1970, 1, 2)]), [86_400.0]),
    ],
)
def test_as_numbers(values: pl.Series, expected: list[float | None]) -> None:
    """What reads as a finite number is one, all else is null."""
    assert expected == as_numbers(values).to_list()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (list(TRUE_TEXTS), [1.0] * len(TRUE_TEXTS)),
        (list(FALSE_TEXTS), [0.0] * len(FALSE_TEXTS)),
        (["YES", "No", "True", "maybe", "", "2", None], [1.0, 0.0, 1.0, None, None, None, None]),
        ([True, False, None], [1.0, 0.0, None]),
        ([1, 0, 2, None], [1.0, 0.0, None, None]),
        ([1.0, 0.0, 0.5, float("nan")], [1.0, 0.0, None, None]),
        ([None, None], [None, None]),
    ],
)
def test_as_booleans(values: list[Any], expected: list[float | None]) -> None:
    """Words of truth in any case, and 1 and 0 in any type, are booleans; all else is null."""
    assert expected == as_booleans(pl.Series(values)).to_list()


@pytest.mark.parametrize("date_format", DATE_FORMATS)
def test_each_date_format_is_read(date_format: str) -> None:
    """A date written in a format is read in that format, to the precision that it has."""
    text = MOMENT.strftime(date_format.replace("%.f", ".25"))
    precise = DAY if "%H" not in date_format else MOMENT if "%S" in date_format else MOMENT.replace(second=0)
    expected = precise.replace(microsecond=250_000) if "%.f" in date_format else precise

    assert [expected, None] == as_datetimes(pl.Series([text, "no date"]), date_format).to_list()


@pytest.mark.parametrize("date_format", DATE_FORMATS)
def test_iso_dates_are_read_beside_every_format(date_format: str) -> None:
    """A caller may send ISO dates to a model that learned from dates written otherwise."""
    texts = pl.Series(["2024-03-22", "2024-03-22 14:05:06", "2024-03-22T14:05:06", "2024-03-22T14:05:06Z", None])

    assert [DAY, MOMENT, MOMENT, MOMENT, None] == as_datetimes(texts, date_format).to_list()


def test_the_format_decides_an_ambiguous_date() -> None:
    """The third of February and the second of March are written alike; the format says which it is."""
    text = pl.Series(["02/03/2024"])

    assert ([datetime(2024, 3, 2)], [datetime(2024, 2, 3)], [None]) == (
        as_datetimes(text, "%d/%m/%Y").to_list(),
        as_datetimes(text, "%m/%d/%Y").to_list(),
        as_datetimes(text, None).to_list(),
    )


def test_an_impossible_day_is_no_date() -> None:
    """Days that no month has are not moved to the next month."""
    assert [None, None] == read_dates(pl.Series(["2024-02-30", "2023-02-29"]), "%Y-%m-%d").to_list()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pl.Series([date(2024, 3, 22), None]), [DAY, None]),
        (pl.Series([MOMENT]).dt.cast_time_unit("ns"), [MOMENT]),
        (pl.Series([MOMENT.replace(tzinfo=timezone(timedelta(hours=2)))]), [MOMENT - timedelta(hours=2)]),
        (pl.Series([20240322]), [None]),
        (pl.Series([None, None]), [None, None]),
    ],
)
def test_typed_dates(values: pl.Series, expected: list[datetime | None]) -> None:
    """Dates of any type become UTC moments; a number is no date."""
    assert expected == as_datetimes(values, None).to_list()


def test_numbers() -> None:
    """Numbers stay as they are, what is no number is missing."""
    assert [1.5, None, None, 3.0] == encoded(n=["1.5", "x", None, "3"])["n"]


def test_a_number_beyond_float32_is_missing() -> None:
    """A number that float32 cannot hold counts as missing: XGBoost refuses to train on infinity."""
    assert [None, 1.0] == encoded(n=[1e39, 1.0])["n"]


def test_categories() -> None:
    """Known categories have their code, whatever their type; unknown ones are 0 and missing ones -1."""
    assert ([1, 0, -1, 3], [2, 0, -1], [2, 0, -1]) == (
        encoded(city=["Rome", "Bern", None, "Oslo"])["city"],
        encoded(city=[7, 8, None])["city"],
        encoded(city=[7.0, 7.5, float("nan")])["city"],
    )


def test_booleans() -> None:
    """Booleans become 1 and 0, other words are missing."""
    assert [1.0, 0.0, None, None] == encoded(ok=["yes", "FALSE", "maybe", None])["ok"]


def test_dates_become_their_parts() -> None:
    """A date becomes its parts, Monday being 1, and days since 1970."""
    shown = encoded(at=["2024-03-22T12:00:00", None])

    assert {
        "at.year": [2024.0, None],
        "at.month": [3.0, None],
        "at.day": [22.0, None],
        "at.weekday": [5.0, None],
        "at.hour": [12.0, None],
        "at.elapsed_days": [19804.5, None],
    } == {name: values for name, values in shown.items() if name.startswith("at.")}


def test_features_have_their_types_and_order() -> None:
    """Rows become float32 numbers and int32 codes in the schema's order, whatever order and columns they come in."""
    frame = pl.DataFrame({"extra": [1], "at": [MOMENT], "ok": [True], "city": ["Rome"], "n": [1]})

    assert {f.name: pl.Int32 if f.is_categorical else pl.Float32 for f in SCHEMA.features} == dict(
        encode_frame(frame, SCHEMA, VOCABULARY).schema
    )


def test_a_missing_column_is_named() -> None:
    """Rows without an input column are refused with its name and all that are needed."""
    message = r"every input column, but got none called 'city', 'at'\. Send the columns n, city, ok, at\."
    with pytest.raises(InputError, match=message):
        encode_frame(pl.DataFrame({"n": [1], "ok": [1]}), SCHEMA, VOCABULARY)


def test_matrix_turns_missing_codes_into_nan() -> None:
    """The matrix has one column per feature; a missing code becomes NaN, an unknown one stays 0."""
    frame = pl.DataFrame({"n": [None, 2.0], "city": [None, "Bern"], "ok": ["no", None], "at": [None, None]})
    x_BF = matrix(encode_frame(frame, SCHEMA, VOCABULARY), SCHEMA.features)
    nan = np.nan

    assert (np.float32, (2, 9)) == (x_BF.dtype, x_BF.shape)
    np.testing.assert_array_equal([[nan, nan, 0.0, *[nan] * 6], [2.0, 0.0, nan, *[nan] * 6]], x_BF)


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        ("numeric", ["1", "x", None], ["x"]),
        ("numeric", [1.0, float("nan"), None], []),
        ("boolean", ["yes", "maybe", None], ["maybe"]),
        ("datetime", ["2024-01-01", "soon", None], ["soon"]),
        ("categorical", ["a", None], []),
    ],
)
def test_failures(kind: Any, values: list[Any], expected: list[Any]) -> None:
    """Values that are there and do not read as their kind have failed; missing ones, NaN included, have not."""
    assert expected == failures(pl.Series(values), Column("c", kind)).to_list()


ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "n": st.none() | st.floats(allow_infinity=False, allow_nan=False, width=32),
            "city": st.none() | st.sampled_from(["Rome", "Oslo", "Bern"]),
            "ok": st.none() | st.booleans(),
            "at": st.none() | st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1)).map(lambda d: d.isoformat()),
        }
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(ROWS)
def test_a_row_alone_is_encoded_as_in_a_batch(rows: list[dict[str, Any]]) -> None:
    """A row's inputs do not depend on the rows beside it: serving one row equals scoring a file."""
    batch = encode_frame(pl.DataFrame(rows, infer_schema_length=None), SCHEMA, VOCABULARY)
    single = pl.concat([encode_frame(pl.DataFrame([row]), SCHEMA, VOCABULARY) for row in rows])

    assert batch.equals(single)
