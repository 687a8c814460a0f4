"""The texts of a CSV file as the types that a model's schema knows, where no value is lost by it.

A column is given a type as a whole or not at all: whole numbers, numbers, truth values, dates or datetimes if every
value reads back as what it was, and the text as it stands otherwise. The form of a number is not kept (`3.50` becomes
3.5), its value is: digits with leading zeros, numbers of more digits than a float holds, and times with a zone or
finer than a microsecond stay texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import polars as pl

from infra.bundle.encoder import DATE_FORMATS, NUM_ISO_FORMATS, read_dates
from infra.bundle.schema import Schema

MAX_EXACT_INTEGER = 2**53
PADDED = r"^[+-]?0\d"


@dataclass(frozen=True)
class Typed:
    """What a column of text is read as."""

    type: Literal["integer", "number", "boolean", "datetime"]
    date_format: str | None = None


def typed_columns(rows: pl.DataFrame, schema: Schema) -> dict[str, Typed]:
    """Return the text columns that can be read as what the schema says, with how."""
    found: dict[str, Typed] = {}
    for column in schema.columns:
        if column.name not in rows.columns or rows.schema[column.name] != pl.String:
            continue
        formats = [column.date_format] if column.date_format else list(DATE_FORMATS[:NUM_ISO_FORMATS])
        candidates = {
            "integer": [Typed("integer"), Typed("number")],
            "number": [Typed("number")],
            "boolean": [Typed("boolean")],
            "datetime": [Typed("datetime", one) for one in formats if "Z" not in one and "%z" not in one],
            "text": [],
        }[column.source_type]
        values = rows.get_column(column.name)
        fitting = next((one for one in candidates if _is_lossless(values, one)), None)
        if fitting is not None:
            found[column.name] = fitting
    return found


def read_as(text: pl.Series, typed: Typed) -> pl.Series:
    """Return text as values of a type; null where it is none."""
    if typed.type == "integer":
        return text.cast(pl.Int64, strict=False)
    if typed.type == "number":
        return text.cast(pl.Float64, strict=False)
    if typed.type == "boolean":
        return text.replace_strict({"true": True, "false": False}, default=None, return_dtype=pl.Boolean)
    assert typed.date_format is not None
    dates = read_dates(text, typed.date_format)
    return dates if "%H" in typed.date_format else dates.cast(pl.Date)


def _is_lossless(text: pl.Series, typed: Typed) -> bool:
    """Return whether every value survives."""
    values = read_as(text, typed)
    if values.null_count() != text.null_count():
        return False
    if typed.type == "integer":
        return bool((values.cast(pl.String) == text).all())
    if typed.type == "number":
        is_exact = values.is_finite() & ((values.abs() <= MAX_EXACT_INTEGER) | (values != values.floor()))
        return bool(is_exact.all()) and not text.str.contains(PADDED).any()
    return not (typed.type == "datetime" and text.str.contains(r"\.\d{7}").any())
