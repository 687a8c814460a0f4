"""Profiles: what the columns of a set of rows hold, mergeable so that every file is looked at once.

Everything that needs statistics of the data reads profiles, never rows. Quantiles come from KLL sketches
(Karnin, Lang and Liberty 2016) of Apache DataSketches, moments are merged after Chan, Golub and LeVeque (1979).
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce

import datasketches
import numpy as np
import polars as pl

from infra.bundle.encoder import DATE_FORMATS, FALSE_TEXTS, TRUE_TEXTS, as_datetimes, as_numbers, as_text, read_dates
from tasks._cache import key_of

PROFILE_VERSION = 1
KLL_SIZE = 200
"""Rank error of about 1.65%, single-sided."""
MAX_VALUES = 10_000
"""Distinct values of a column that are counted one by one; beyond it only the most frequent ones are."""
TIME_UNITS_SECONDS = (1, 60, 3600, 86_400)


@dataclass(frozen=True)
class ColumnProfile:
    """What one column of a set of rows holds."""

    dtype: str
    num_rows: int
    num_missing: int
    num_numeric: int
    """Present values that read as finite numbers; for a datetime column, its instants in seconds."""
    num_integer: int
    num_boolean: int
    dates: dict[str, int] = field(default_factory=dict)
    """Values that read as dates, by format; "" is a column typed as dates."""
    minimum: float | None = None
    maximum: float | None = None
    mean: float = 0.0
    sum_squares: float = 0.0
    """Sum of squared deviations from the mean."""
    quantiles: str | None = None
    """KLL sketch of the numbers, base64."""
    values: dict[str, int] = field(default_factory=dict)
    """Counts of values as text, the most frequent first."""
    is_complete: bool = True
    """Whether `values` has every value."""
    num_distinct: int = 0
    """Distinct values; a lower bound once `values` is incomplete in more than one part."""
    num_padded: int = 0
    """Texts of digits with a leading zero, as in a zip code."""
    max_length: int = 0
    times: dict[str, int] = field(default_factory=dict)
    """Counts by instant (seconds, or the plain number) for the column that orders the rows."""
    time_unit: float = 0.0
    """What the instants in `times` are rounded down to; 0 where they are exact."""

    @property
    def num_present(self) -> int:
        """Count the values that are not missing."""
        return self.num_rows - self.num_missing

    @property
    def standard_deviation(self) -> float:
        """Return the population standard deviation of the numbers."""
        return float(np.sqrt(self.sum_squares / self.num_numeric)) if self.num_numeric else 0.0

    def quantile(self, ranks: Sequence[float]) -> list[float]:
        """Return approximate quantiles of the numbers; empty where there are none."""
        if self.quantiles is None:
            return []
        sketch = datasketches.kll_doubles_sketch.deserialize(base64.b64decode(self.quantiles))
        return [float(value) for value in sketch.get_quantiles(list(ranks))]


@dataclass(frozen=True)
class Profile:
    """What a set of rows holds, by column."""

    num_rows: int
    columns: dict[str, ColumnProfile]
    source: str = ""
    """A hash of what was profiled, where that is known."""

    @property
    def key(self) -> str:
        """Return what the content depends on; sketches are left out, because merging them draws random numbers."""
        return self.source or key_of(
            self.num_rows, {name: replace(column, quantiles=None) for name, column in self.columns.items()}
        )


def profile_frame(frame: pl.DataFrame, time: str | None = None) -> Profile:
    """Profile raw rows; `time` names the column whose instants are counted for a split by time."""
    columns = {name: _profile_column(frame.get_column(name), name == time) for name in frame.columns}
    return Profile(frame.height, columns)


def _profile_column(raw: pl.Series, is_time: bool) -> ColumnProfile:
    if raw.dtype.is_float():
        raw = raw.fill_nan(None)
    text = as_text(raw)
    present = raw.drop_nulls()
    numbers = as_numbers(present).drop_nulls()
    counts = text.drop_nulls().alias("value").value_counts(sort=True, name="n")
    num_distinct = counts.height
    top = counts.sort(["n", "value"], descending=[True, False]).head(MAX_VALUES)
    is_text = raw.dtype == pl.String
    lowered = present.cast(pl.String).str.to_lowercase() if is_text else None
    times, unit = _count_times(raw) if is_time else ({}, 0.0)
    # A column of real numbers has no frequent values worth keeping.
    keeps_values = not raw.dtype.is_float() or num_distinct <= 100
    return ColumnProfile(
        dtype=str(raw.dtype.base_type()),
        num_rows=len(raw),
        num_missing=raw.null_count(),
        num_numeric=len(numbers),
        num_integer=int((numbers == numbers.floor()).sum()),
        num_boolean=_count_booleans(raw, lowered),
        dates=_count_dates(present),
        minimum=_extreme(numbers.min()),
        maximum=_extreme(numbers.max()),
        mean=float(np.mean(numbers.to_numpy())) if len(numbers) else 0.0,
        sum_squares=float(np.var(numbers.to_numpy()) * len(numbers)) if len(numbers) else 0.0,
        quantiles=_sketch(numbers),
        values=dict(zip(top.to_series(0).to_list(), top["n"].to_list(), strict=True)) if keeps_values else {},
        is_complete=keeps_values and num_distinct <= MAX_VALUES,
        num_distinct=num_distinct,
        num_padded=int(present.str.contains(r"^0\d+$").sum()) if is_text else 0,
        max_length=int(present.str.len_chars().cast(pl.Int64).max() or 0) if is_text else 0,  # type: ignore[arg-type]
        times=times,
        time_unit=unit,
    )


def _extreme(value: object) -> float | None:
    return None if value is None else float(value)  # type: ignore[arg-type]


def _count_booleans(raw: pl.Series, lowered: pl.Series | None) -> int:
    if raw.dtype == pl.Boolean:
        return len(raw) - raw.null_count()
    return int(lowered.is_in([*TRUE_TEXTS, *FALSE_TEXTS]).sum()) if lowered is not None else 0


def _count_dates(present: pl.Series) -> dict[str, int]:
    """Count the values that read as dates, by format; a sample decides which formats are tried on all."""
    if present.dtype.is_temporal():
        return {"": len(present)}
    if present.dtype != pl.String or not len(present):
        return {}
    sample = present.head(100)
    likely = [f for f in DATE_FORMATS if read_dates(sample, f).is_not_null().mean() >= 0.5]  # type: ignore[operator]
    return {f: int(read_dates(present, f).is_not_null().sum()) for f in likely}


def _count_times(raw: pl.Series) -> tuple[dict[str, int], float]:
    """Count rows by instant, rounded down to the first unit that leaves at most MAX_VALUES of them."""
    instants = time_numbers(raw, None).drop_nulls()
    is_plain = raw.dtype.is_numeric()
    for unit in (0.0, *map(float, TIME_UNITS_SECONDS)):
        rounded = instants if unit == 0 else (instants / unit).floor() * unit
        counts = rounded.alias("value").value_counts(name="n").sort("value")
        if counts.height <= MAX_VALUES or is_plain:
            break
    keys = (repr(float(value)) for value in counts.to_series(0).to_list())
    return dict(zip(keys, counts["n"].to_list(), strict=True)), unit


def time_numbers(raw: pl.Series, date_format: str | None) -> pl.Series:
    """Return the column that orders the rows as float64: seconds since 1970-01-01, or its own numbers."""
    if raw.dtype.is_numeric():
        return as_numbers(raw)
    if raw.dtype == pl.String and date_format is None:
        formats = _count_dates(raw.drop_nulls())
        if not formats:
            return as_numbers(raw)
        date_format = max(formats, key=lambda name: formats[name])
    return as_datetimes(raw, date_format).dt.epoch("us").cast(pl.Float64) / 1e6


def _sketch(numbers: pl.Series) -> str | None:
    if not len(numbers):
        return None
    sketch = datasketches.kll_doubles_sketch(KLL_SIZE)
    sketch.update(numbers.to_numpy(writable=True))
    return base64.b64encode(sketch.serialize()).decode()


def merge(profiles: Iterable[Profile]) -> Profile:
    """Return the profile of all rows together; columns that only some profiles have count as missing elsewhere."""
    listed = list(profiles)
    assert listed, "there is at least one profile"
    num_rows = sum(profile.num_rows for profile in listed)
    names = dict.fromkeys(name for profile in listed for name in profile.columns)
    merged: dict[str, ColumnProfile] = {}
    for name in names:
        parts = [profile.columns[name] for profile in listed if name in profile.columns]
        whole = reduce(_merge_columns, parts)
        absent = num_rows - whole.num_rows
        merged[name] = replace(whole, num_rows=num_rows, num_missing=whole.num_missing + absent)
    return Profile(num_rows, merged)


def _merge_columns(a: ColumnProfile, b: ColumnProfile) -> ColumnProfile:
    num_numeric = a.num_numeric + b.num_numeric
    shift = b.mean - a.mean
    values = dict(a.values)
    for value, count in b.values.items():
        values[value] = values.get(value, 0) + count
    is_complete = a.is_complete and b.is_complete and len(values) <= MAX_VALUES
    top = sorted(values.items(), key=lambda item: (-item[1], item[0]))[:MAX_VALUES]
    unit = max(a.time_unit, b.time_unit)
    return ColumnProfile(
        dtype=a.dtype if a.dtype == b.dtype else _common_dtype(a.dtype, b.dtype),
        num_rows=a.num_rows + b.num_rows,
        num_missing=a.num_missing + b.num_missing,
        num_numeric=num_numeric,
        num_integer=a.num_integer + b.num_integer,
        num_boolean=a.num_boolean + b.num_boolean,
        dates={f: a.dates.get(f, 0) + b.dates.get(f, 0) for f in dict.fromkeys([*a.dates, *b.dates])},
        minimum=min((m for m in (a.minimum, b.minimum) if m is not None), default=None),
        maximum=max((m for m in (a.maximum, b.maximum) if m is not None), default=None),
        mean=(a.mean * a.num_numeric + b.mean * b.num_numeric) / num_numeric if num_numeric else 0.0,
        sum_squares=a.sum_squares
        + b.sum_squares
        + (shift**2 * a.num_numeric * b.num_numeric / num_numeric if num_numeric else 0.0),
        quantiles=_merge_sketches(a.quantiles, b.quantiles),
        values=dict(top),
        is_complete=is_complete,
        num_distinct=len(values) if is_complete else _merge_distinct(a, b, len(values)),
        num_padded=a.num_padded + b.num_padded,
        max_length=max(a.max_length, b.max_length),
        times=_merge_times(a.times, b.times, unit),
        time_unit=unit,
    )


def _merge_distinct(a: ColumnProfile, b: ColumnProfile, num_counted: int) -> int:
    """Estimate the distinct values of two parts: their sum where both are (almost) all different, as keys are."""
    if all(part.num_distinct >= 0.95 * part.num_present for part in (a, b)):
        return a.num_distinct + b.num_distinct
    return max(a.num_distinct, b.num_distinct, num_counted)


def _common_dtype(a: str, b: str) -> str:
    both = {a, b}
    if "String" in both:
        return "String"
    if both == {"Null"} or "Null" in both:
        return next(iter(both - {"Null"}), "Null")
    return "Float64" if any(name.startswith("Float") for name in both) else a


def _merge_sketches(a: str | None, b: str | None) -> str | None:
    if a is None or b is None:
        return a or b
    sketch = datasketches.kll_doubles_sketch.deserialize(base64.b64decode(a))
    sketch.merge(datasketches.kll_doubles_sketch.deserialize(base64.b64decode(b)))
    return base64.b64encode(sketch.serialize()).decode()


def _merge_times(a: dict[str, int], b: dict[str, int], unit: float) -> dict[str, int]:
    merged: dict[str, int] = {}
    for part in (a, b):
        for instant, count in part.items():
            key = repr(float(instant) // unit * unit) if unit else instant
            merged[key] = merged.get(key, 0) + count
    return merged
