"""Turn raw rows into a model's inputs: the same code for training, batch scoring and serving.

Numbers stay raw float32 with NaN for missing; categories become int32 codes (see `vocabulary`); nothing here
depends on statistics of the data.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl
from numpy.typing import NDArray

from .errors import InputError
from .schema import Column, DatePart, Feature, Schema
from .vocabulary import MISSING, Vocabulary

TRUE_TEXTS = ("1", "1.0", "true", "t", "yes", "y", "on")
FALSE_TEXTS = ("0", "0.0", "false", "f", "no", "n", "off")
DATE_FORMATS = (
    "%Y-%m-%d",
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%dT%H:%M:%S%.fZ",
    "%Y-%m-%dT%H:%M:%S%.f%z",
    "%Y-%m-%d %H:%M:%S%.f%z",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%dT%H:%M",
    "%Y/%m/%d",
    "%Y/%m/%d %H:%M:%S",
    "%d.%m.%Y",
    "%d.%m.%Y %H:%M:%S",
    "%d/%m/%Y",
    "%m/%d/%Y",
    "%d/%m/%Y %H:%M:%S",
    "%m/%d/%Y %H:%M:%S",
)
"""Tried in this order; the first that reads every value of a text column is its format."""
NUM_ISO_FORMATS = 8
"""The first formats, which a caller may always send."""
SECONDS_PER_DAY = 86_400
EPOCH_TEXT_TYPES = (pl.String, pl.Categorical, pl.Enum)


def as_text(values: pl.Series) -> pl.Series:
    """Return values as text, whole numbers without a fraction: 3 and 3.0 are one category.

    >>> as_text(pl.Series([3.0, 2.5, None])).to_list()
    ['3', '2.5', None]
    """
    if values.dtype == pl.String:
        return values
    if values.dtype.is_float():
        finite = values.fill_nan(None)
        whole = finite.cast(pl.Int64, strict=False)
        return pl.select(
            pl.when(finite == whole.cast(pl.Float64)).then(whole.cast(pl.String)).otherwise(finite.cast(pl.String))
        ).to_series()
    return values.cast(pl.String)


def as_numbers(values: pl.Series) -> pl.Series:
    """Return values as float64; what is no finite number is null."""
    if values.dtype.is_temporal():
        return as_datetimes(values, None).dt.epoch("us").cast(pl.Float64) / 1e6
    numbers = values.cast(pl.Float64, strict=False)
    if numbers.is_finite().all(ignore_nulls=True):
        return numbers
    return pl.select(pl.when(numbers.is_finite()).then(numbers)).to_series()


def as_booleans(values: pl.Series) -> pl.Series:
    """Return 1.0 for the usual words of truth, 0.0 for those of untruth, null for all else."""
    if values.dtype == pl.Boolean:
        return values.cast(pl.Float64)
    text = as_text(values).str.to_lowercase()
    return pl.select(pl.when(text.is_in(TRUE_TEXTS)).then(1.0).when(text.is_in(FALSE_TEXTS)).then(0.0)).to_series()


def as_datetimes(values: pl.Series, date_format: str | None) -> pl.Series:
    """Return values as microsecond datetimes in UTC; what is no date is null.

    Text is read in the given format and then in the ISO ones, so that a caller may send ISO dates to a model
    that learned from typed ones.
    """
    if values.dtype == pl.Null:
        return values.cast(pl.Datetime("us"))
    if values.dtype.is_temporal():
        if isinstance(values.dtype, pl.Datetime) and values.dtype.time_zone:
            values = values.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
        return values.cast(pl.Datetime("us"))
    if values.dtype.is_numeric():
        return pl.Series(values.name, [None] * len(values), dtype=pl.Datetime("us"))
    formats = ([date_format] if date_format else []) + [f for f in DATE_FORMATS[:NUM_ISO_FORMATS] if f != date_format]
    text = values.cast(pl.String)
    found = read_dates(text, formats[0])
    for other in formats[1:]:
        if found.null_count() == text.null_count():
            break
        found = pl.select(pl.coalesce(found, read_dates(text, other))).to_series()
    return found


def read_dates(text: pl.Series, date_format: str) -> pl.Series:
    """Return text as datetimes in one format; what does not fit is null."""
    if "%H" not in date_format:
        return text.str.to_date(date_format, strict=False).cast(pl.Datetime("us"))
    if "%z" in date_format:
        aware = text.str.to_datetime(date_format, strict=False, time_unit="us", time_zone="UTC")
        return aware.dt.replace_time_zone(None)
    return text.str.to_datetime(date_format, strict=False, time_unit="us")


def parsed(values: pl.Series, column: Column) -> pl.Series:
    """Return a source column as what its kind says: float64, datetime or text; null where that fails."""
    if column.kind == "numeric":
        return as_numbers(values)
    if column.kind == "boolean":
        return as_booleans(values)
    if column.kind == "datetime":
        return as_datetimes(values, column.date_format)
    return as_text(values)


_PARTS: dict[DatePart, Callable[[pl.Series], pl.Series]] = {
    "year": lambda dates: dates.dt.year(),
    "month": lambda dates: dates.dt.month(),
    "day": lambda dates: dates.dt.day(),
    "weekday": lambda dates: dates.dt.weekday(),
    "hour": lambda dates: dates.dt.hour(),
    "elapsed_days": lambda dates: dates.dt.epoch("us").cast(pl.Float64) / 1e6 / SECONDS_PER_DAY,
}


def encode_frame(frame: pl.DataFrame, schema: Schema, vocabulary: Vocabulary) -> pl.DataFrame:
    """Encode raw rows as the model's features.

    Args:
        frame: raw rows; every input column of the schema, in any order; other columns are ignored.
        schema: what the columns are.
        vocabulary: the codes of the categorical ones.

    Returns:
        One column per feature: float32 for numbers (NaN is missing), int32 for codes.

    Raises:
        InputError: a column is missing.
    """
    check_columns(frame, schema)
    by_column: dict[str, list[Feature]] = {}
    for feature in schema.features:
        by_column.setdefault(feature.column, []).append(feature)
    encoded = _encode_typed(frame, schema)
    for name, features in by_column.items():
        if name in encoded:
            continue
        values = parsed(frame.get_column(name), schema.column(name))
        for feature in features:
            encoded[feature.name] = _encode_feature(values, feature, vocabulary)
    return pl.DataFrame({feature.name: encoded[feature.name] for feature in schema.features})


def _encode_typed(frame: pl.DataFrame, schema: Schema) -> dict[str, pl.Series]:
    """Return the features of columns that are numbers already, all of them in one go."""
    names = [c.name for c in schema.inputs if c.kind == "numeric" and frame.schema[c.name] in (pl.Float32, pl.Float64)]
    numbers = frame.lazy().select(pl.col(names).cast(pl.Float32).fill_null(float("nan"))).collect().rechunk()
    # What float32 can't hold is missing: XGBoost refuses to train on infinity.
    infinite = [s.name for s in numbers if s.is_infinite().any()]
    whole = numbers.with_columns(pl.when(pl.col(infinite).is_finite()).then(pl.col(infinite)).otherwise(float("nan")))
    return {series.name: _without_mask(series) for series in (whole if infinite else numbers)}


def _without_mask(values: pl.Series) -> pl.Series:
    """Return values without nulls as such: a mask that says so may be there or not, and is stored."""
    return pl.Series(values.name, values.to_numpy())


def _encode_feature(values: pl.Series, feature: Feature, vocabulary: Vocabulary) -> pl.Series:
    if feature.is_categorical:
        return vocabulary.codes(feature.column, values)
    if feature.part is not None:
        values = _PARTS[feature.part](values)
    numbers = values.cast(pl.Float32, strict=False).fill_null(float("nan"))
    # What float32 can't hold is missing: XGBoost refuses to train on infinity.
    return _without_mask(numbers.set(numbers.is_infinite(), float("nan")) if numbers.is_infinite().any() else numbers)


def check_columns(frame: pl.DataFrame, schema: Schema) -> None:
    """Raise an InputError that names the input columns which the rows lack."""
    missing = [column.name for column in schema.inputs if column.name not in frame.columns]
    if missing:
        raise InputError(
            f"Rows need every input column, but got none called {', '.join(map(repr, missing))}. "
            f"Send the columns {', '.join(column.name for column in schema.inputs)}."
        )


def failures(raw: pl.Series, column: Column) -> pl.Series:
    """Return the raw values that are present and could not be read as the column's kind."""
    if raw.dtype.is_float():
        raw = raw.fill_nan(None)
    return raw.filter(raw.is_not_null() & parsed(raw, column).is_null())


def matrix(
    encoded: pl.DataFrame, features: tuple[Feature, ...], rows: NDArray[np.intp] | None = None
) -> NDArray[np.float32]:
    """Return encoded rows as a float32 matrix, shape (rows, features); missing codes become NaN.

    `rows` are the positions of those that are wanted; without it all are. Nothing else is copied of the others.
    """
    filled = np.empty((encoded.height if rows is None else len(rows), len(features)), dtype=np.float32)
    for index, feature in enumerate(features):
        values = encoded.get_column(feature.name).to_numpy()
        values = values if rows is None else values[rows]
        filled[:, index] = np.where(values == MISSING, np.nan, values) if feature.is_categorical else values
    return filled
