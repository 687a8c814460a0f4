"""Read the body of a request as a frame of raw rows, without pandas.

The forms are those of MLflow's scoring protocol. Every input column of the schema must be sent, in any order; other
columns are ignored; null is a missing value and is allowed everywhere. Rows are counted from 1 in messages.
The frame that comes out is typed by the columns' kinds and gives the same predictions as the untyped one.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import orjson
import polars as pl

from infra.bundle.encoder import as_booleans, as_datetimes, as_numbers, as_text
from infra.bundle.schema import Column, Schema
from infra.errors import InputError, nearest

MISSING_TEXTS = ("", "?", "NA", "N/A", "n/a", "#N/A", "NaN", "nan", "NULL", "null")
"""Cells of a CSV body that are missing values, as in CSV files that a model learns from. JSON has null."""
MAX_SHOWN = 80
Columns = Mapping[str, Sequence[Any]]


def read_json(body: bytes, schema: Schema) -> pl.DataFrame:
    """Read a JSON body with exactly one of the forms in `FORMS`.

    Raises:
        InputError: the body is not JSON, has no rows, lacks a column, or has a value of the wrong type.
    """
    try:
        sent = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InputError(
            f"A body must be valid JSON, but got {error}. Send JSON in UTF-8, with null for a missing value."
        ) from error
    if not isinstance(sent, dict):
        raise InputError(f"A body must be a JSON object, but got {_shown(sent)}. Send one with {_one_of_forms()}.")
    forms = [form for form in FORMS if form in sent]
    if len(forms) != 1:
        raise InputError(
            f"A body has exactly one of {', '.join(FORMS)}, but got {', '.join(forms or map(str, sent)) or 'none'}. "
            f"Send one with {_one_of_forms()}."
        )
    return read_columns(FORMS[forms[0]](forms[0], sent[forms[0]], schema), schema)


def read_csv(body: bytes, schema: Schema) -> pl.DataFrame:
    """Read a CSV body with a header, in UTF-8.

    Raises:
        InputError: as `read_json`.
    """
    try:
        lines = list(csv.reader(io.StringIO(body.decode("utf-8-sig"), newline=""), strict=True))
    except UnicodeDecodeError as error:
        raise InputError(f"A CSV body must be UTF-8, but got {error}. Encode it in UTF-8.") from error
    except csv.Error as error:
        raise InputError(f"A body must be valid CSV, but got {error}. Quote fields as RFC 4180 says.") from error
    rows = [line for line in lines if line]
    return read_columns(_from_table("the CSV body", rows[0] if rows else [], rows[1:], schema), schema)


def read_columns(sent: Columns, schema: Schema) -> pl.DataFrame:
    """Return the input columns as a frame, each as its kind says.

    Args:
        sent: every input column, all of one length.
        schema: what the columns are.

    Raises:
        InputError: a value does not fit its column's kind.
    """
    return pl.DataFrame([READERS[column.kind](sent[column.name], column) for column in schema.inputs])


def _numbers(values: Sequence[Any], column: Column) -> pl.Series:
    try:
        return pl.Series(column.name, values, dtype=pl.Float64)
    except TypeError:
        plain = [float(value) if isinstance(value, (bool, int, float)) else None for value in values]
        read = as_numbers(pl.Series([value if isinstance(value, str) else None for value in values], dtype=pl.String))
        numbers = pl.select(pl.coalesce(pl.Series(plain, dtype=pl.Float64), read)).to_series().alias(column.name)
        return _checked(numbers, values, column, "a number")


def _booleans(values: Sequence[Any], column: Column) -> pl.Series:
    try:
        return pl.Series(column.name, values, dtype=pl.Boolean)
    except TypeError:
        booleans = as_booleans(pl.Series(_texts(values), dtype=pl.String)).cast(pl.Boolean).alias(column.name)
        return _checked(booleans, values, column, "true or false")


def _datetimes(values: Sequence[Any], column: Column) -> pl.Series:
    texts = pl.Series([value if isinstance(value, str) else None for value in values], dtype=pl.String)
    dates = as_datetimes(texts, column.date_format).alias(column.name)
    return _checked(dates, values, column, "a date as 2026-05-31 or 2026-05-31T13:45:00")


def _categories(values: Sequence[Any], column: Column) -> pl.Series:
    try:
        return pl.Series(column.name, values, dtype=pl.String)
    except TypeError:
        return _checked(pl.Series(column.name, _texts(values), dtype=pl.String), values, column, "a text")


READERS: Mapping[str, Callable[[Sequence[Any], Column], pl.Series]] = {
    "numeric": _numbers,
    "boolean": _booleans,
    "datetime": _datetimes,
    "categorical": _categories,
}


def _texts(values: Sequence[Any]) -> list[str | None]:
    """Return values as the texts that `as_text` makes of them; None for what is neither text, number nor boolean."""
    fractions = as_text(pl.Series([v if isinstance(v, float) else None for v in values], dtype=pl.Float64)).to_list()
    return [_text(value, fraction) for value, fraction in zip(values, fractions, strict=True)]


def _text(value: Any, fraction: str | None) -> str | None:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int) else fraction


def _checked(read: pl.Series, values: Sequence[Any], column: Column, wanted: str) -> pl.Series:
    """Return what was read, or refuse the first value that is there and could not be read."""
    if read.null_count() > sum(value is None for value in values):
        row, value = next(
            (row, value)
            for row, (value, is_lost) in enumerate(zip(values, read.is_null(), strict=True), 1)
            if is_lost and value is not None
        )
        raise InputError(
            f"A {column.kind} column takes {wanted}, but got {column.name}={_shown(value)} in row {row}. "
            f"Send {wanted}, or null where it is missing."
        )
    return read


def _from_split(form: str, sent: Any, schema: Schema) -> Columns:
    names = sent.get("columns") if isinstance(sent, dict) else None
    rows = sent.get("data") if isinstance(sent, dict) else None
    is_table = isinstance(names, list) and isinstance(rows, list) and all(isinstance(row, list) for row in rows)
    if not is_table or not all(isinstance(name, str) for name in names or []):
        raise InputError(
            f"{form} has columns, a list of names, and data, a list of rows, but got {_shown(sent)}. "
            f'Send {{"{form}": {{"columns": ["a", "b"], "data": [[1, 2]]}}}}.'
        )
    assert names is not None
    assert rows is not None
    return _from_table(form, names, rows, schema)


def _from_table(form: str, names: list[str], rows: list[list[Any]], schema: Schema) -> Columns:
    """Return the columns of rows below a header; the cells of CSV are cleaned as those of CSV files are."""
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"A column is sent once, but got column={twice!r} twice in {form}. Leave one out.")
    _check_names(names, schema)
    _check_rows(len(rows), form)
    for number, row in enumerate(rows, 1):
        if len(row) != len(names):
            raise InputError(
                f"A row has a value for each of the {len(names)} columns, but got {len(row)} values in row {number} "
                f"of {form}. Send null, or nothing between two commas of CSV, for a missing value."
            )
    columns = dict(zip(names, zip(*rows, strict=True), strict=True))
    if form in FORMS:
        return columns
    return {column.name: _cleaned(columns[column.name]) for column in schema.inputs}


def _cleaned(cells: Sequence[str]) -> list[str | None]:
    stripped = [cell.strip() for cell in cells]
    return [None if cell in MISSING_TEXTS else cell for cell in stripped]


def _from_records(form: str, sent: Any, schema: Schema) -> Columns:
    if not isinstance(sent, list):
        raise InputError(f'{form} is a list of objects, but got {_shown(sent)}. Send {{"{form}": [{{"a": 1}}]}}.')
    _check_rows(len(sent), form)
    for number, row in enumerate(sent, 1):
        if not isinstance(row, dict):
            raise InputError(
                f"{form} names the column of every value, but got {_shown(row)} in row {number}. "
                f'Send objects, {{"{form}": [{{"a": 1, "b": 2}}]}}, or the names once in dataframe_split.'
            )
    try:
        return {column.name: [row[column.name] for row in sent] for column in schema.inputs}
    except KeyError:
        number, row = next((n, row) for n, row in enumerate(sent, 1) if _missing(row, schema))
        raise _missing_error(row, schema, f" in row {number}") from None


def _from_inputs(form: str, sent: Any, schema: Schema) -> Columns:
    if not isinstance(sent, dict):
        return _from_records(form, sent, schema)
    _check_names(sent, schema)
    for name, values in sent.items():
        if not isinstance(values, list):
            raise InputError(
                f"{form} has a list of values for every column, but got {name}={_shown(values)}. "
                f'Send {{"{name}": [...]}}.'
            )
    lengths = {column.name: len(sent[column.name]) for column in schema.inputs}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name}={length}" for name, length in lengths.items())
        raise InputError(f"The columns of {form} have one length, but got {listed}. Send null for a missing value.")
    _check_rows(max(lengths.values()), form)
    return sent


FORMS: Mapping[str, Callable[[str, Any, Schema], Columns]] = {
    "dataframe_split": _from_split,
    "dataframe_records": _from_records,
    "inputs": _from_inputs,
    "instances": _from_records,
}
"""How the rows of each form become columns."""


def _one_of_forms() -> str:
    return '{"dataframe_split": {"columns": [...], "data": [[...]]}} or {"dataframe_records": [{...}]}'


def _missing(names: Collection[str], schema: Schema) -> list[str]:
    return [column.name for column in schema.inputs if column.name not in names]


def _check_names(names: Collection[str], schema: Schema) -> None:
    if _missing(names, schema):
        raise _missing_error(names, schema)


def _missing_error(names: Collection[str], schema: Schema, where: str = "") -> InputError:
    """Return the error for rows that lack a column; unknown columns, else ignored, are named for they may be it."""
    missing = _missing(names, schema)
    known = {column.name for column in schema.columns}
    unknown = [name for name in names if name not in known]
    named = f", and unknown columns {', '.join(map(repr, unknown))}" if unknown else ""
    hint = nearest(unknown[0], missing) if unknown else ""
    return InputError(
        f"Rows have every input column, but got none called {', '.join(map(repr, missing))}{where}{named}.{hint} "
        f"Send the columns {', '.join(column.name for column in schema.inputs)}, with null where a value is missing."
    )


def _check_rows(num_rows: int, form: str) -> None:
    if not num_rows:
        raise InputError(f"A request has at least one row, but got num_rows=0 in {form}. Send a row.")


def _shown(value: Any) -> str:
    """Return a value for a message, cut to a readable length."""
    text = orjson.dumps(value).decode()
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."
