"""Profiles: what the columns of a set of rows hold, mergeable so that every file is looked at once.

Everything that needs statistics of the data reads profiles, never rows. Quantiles come from KLL sketches
(Karnin, Lang and Liberty 2016) of Apache DataSketches, moments are merged after Chan, Golub and LeVeque (1979).
"""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import datasketches
import numpy as np
import polars as pl

from infra.bundle.encoder import DATE_FORMATS, FALSE_TEXTS, TRUE_TEXTS, as_datetimes, as_numbers, as_text, read_dates
from tasks._cache import key_of

PROFILE_VERSION = 2
KLL_SIZE = 200
"""Rank error of about 1.65%, single-sided."""
MAX_VALUES = 10_000
"""Distinct values of a column that are counted one by one; beyond it only the most frequent ones are."""
MAX_STRAYS = 100
"""Distinct texts of a column that are kept for not being what the others are."""
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
    """Distinct values; an estimate or a lower bound once `values` is incomplete in more than one part."""
    num_padded: int = 0
    """Texts of digits with a leading zero, as in a zip code."""
    max_length: int = 0
    strays: dict[str, int] = field(default_factory=dict)
    """Counts of texts that read as no number, or as no date, where at least half of a file's do; the most frequent."""
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
    read = as_numbers(present)
    numbers = read.drop_nulls()
    counts = text.drop_nulls().alias("value").value_counts(sort=True, name="n")
    num_distinct = counts.height
    top = counts.sort(["n", "value"], descending=[True, False]).head(MAX_VALUES)
    is_text = raw.dtype == pl.String
    lowered = present.cast(pl.String).str.to_lowercase() if is_text else None
    dates = _count_dates(present)
    times, unit = _count_times(raw, dates) if is_time else ({}, 0.0)
    # A column of real numbers has no frequent values worth keeping.
    keeps_values = not raw.dtype.is_float() or num_distinct <= 100
    return ColumnProfile(
        dtype=str(raw.dtype.base_type()),
        num_rows=len(raw),
        num_missing=raw.null_count(),
        num_numeric=len(numbers),
        num_integer=int((numbers == numbers.floor()).sum()),
        num_boolean=_count_booleans(raw, lowered),
        dates=dates,
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
        strays=_count_strays(present, read, dates) if is_text else {},
        times=times,
        time_unit=unit,
    )


def _count_strays(present: pl.Series, numbers: pl.Series, dates: dict[str, int]) -> dict[str, int]:
    """Count the texts that are no numbers, or else no dates, where at least half of them are."""
    if len(numbers) - numbers.null_count() >= max(1, len(present) / 2):
        others = present.filter(numbers.is_null())
    elif dates and max(dates.values()) >= len(present) / 2:
        others = present.filter(as_datetimes(present, most_read(dates)).is_null())
    else:
        return {}
    counts = others.alias("value").value_counts(name="n").sort(["n", "value"], descending=[True, False])
    top = counts.head(MAX_STRAYS)
    return dict(zip(top.to_series(0).to_list(), top["n"].to_list(), strict=True))


def most_read(dates: Mapping[str, int]) -> str | None:
    """Return the date format that reads the most values; of equals the first of DATE_FORMATS."""
    order = ("", *DATE_FORMATS)
    return max(dates, key=lambda name: (dates[name], -order.index(name)), default=None)


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


def _count_times(raw: pl.Series, dates: dict[str, int]) -> tuple[dict[str, int], float]:
    """Count rows by instant, dates rounded down to the first unit that leaves at most MAX_VALUES of them."""
    instants = time_numbers(raw, None).drop_nulls()
    for unit in (0.0, *map(float, TIME_UNITS_SECONDS)):
        rounded = instants if unit == 0 else (instants / unit).floor() * unit
        counts = rounded.alias("value").value_counts(name="n").sort("value")
        if counts.height <= MAX_VALUES or not dates:
            break
    keys = (repr(float(value)) for value in counts.to_series(0).to_list())
    return dict(zip(keys, counts["n"].to_list(), strict=True)), unit


def time_numbers(raw: pl.Series, date_format: str | None) -> pl.Series:
    """Return the column that orders the rows as float64: seconds since 1970-01-01, or its own numbers."""
    if raw.dtype.is_numeric():
        return as_numbers(raw)
    if raw.dtype == pl.String and date_format is None:
        date_format = most_read(_count_dates(raw.drop_nulls()))
        if date_format is None:
            return as_numbers(raw)
    return as_datetimes(raw, date_format).dt.epoch("us").cast(pl.Float64) / 1e6


def _sketch(numbers: pl.Series) -> str | None:
    if not len(numbers):
        return None
    sketch = datasketches.kll_doubles_sketch(KLL_SIZE)
    sketch.update(numbers.to_numpy(writable=True))
    return base64.b64encode(sketch.serialize()).decode()


def merge(profiles: Iterable[Profile]) -> Profile:
    """Return the profile of all rows together; columns that only some profiles have count as missing elsewhere.

    Column by column, all counts are added up before any is cut, so that the order of the profiles changes nothing.
    Of one column at a time at most MAX_VALUES per profile are held.
    """
    listed = list(profiles)
    assert listed, "there is at least one profile"
    num_rows = sum(profile.num_rows for profile in listed)
    names = dict.fromkeys(name for profile in listed for name in profile.columns)
    merged: dict[str, ColumnProfile] = {}
    for name in names:
        whole = cut_column(total_column([profile.columns[name] for profile in listed if name in profile.columns]))
        absent = num_rows - whole.num_rows
        merged[name] = replace(whole, num_rows=num_rows, num_missing=whole.num_missing + absent)
    return Profile(num_rows, merged)


def total_column(parts: Sequence[ColumnProfile]) -> ColumnProfile:
    """Add up what parts of a column hold, without leaving out a count: totals may be totalled again, in any grouping.

    Where a part was cut before, values and distinct values are estimates, and the grouping counts.
    """
    if len(parts) == 1:
        return parts[0]
    values = _add(part.values for part in parts)
    is_complete = all(part.is_complete for part in parts)
    unit = max(part.time_unit for part in parts)
    num_numeric, mean, sum_squares = _total_moments(parts)
    return ColumnProfile(
        dtype=_common_dtype({part.dtype for part in parts}),
        num_rows=sum(part.num_rows for part in parts),
        num_missing=sum(part.num_missing for part in parts),
        num_numeric=num_numeric,
        num_integer=sum(part.num_integer for part in parts),
        num_boolean=sum(part.num_boolean for part in parts),
        dates=_add(part.dates for part in parts),
        minimum=min((part.minimum for part in parts if part.minimum is not None), default=None),
        maximum=max((part.maximum for part in parts if part.maximum is not None), default=None),
        mean=mean,
        sum_squares=sum_squares,
        quantiles=_merge_sketches([part.quantiles for part in parts if part.quantiles is not None]),
        values=_by_count(values),
        is_complete=is_complete,
        num_distinct=len(values) if is_complete else _estimate_distinct(parts, len(values)),
        num_padded=sum(part.num_padded for part in parts),
        max_length=max(part.max_length for part in parts),
        strays=_by_count(_add(part.strays for part in parts)),
        times=_add(_rounded(part.times, unit) for part in parts),
        time_unit=unit,
    )


def cut_column(whole: ColumnProfile) -> ColumnProfile:
    """Keep the most frequent values, ties in the order of the alphabet, and round instants until few are left."""
    times, unit = whole.times, whole.time_unit
    if whole.dates:
        for unit in (u for u in map(float, TIME_UNITS_SECONDS) if u > whole.time_unit):
            if len(times) <= MAX_VALUES:
                break
            times = _add([_rounded(whole.times, unit)])
    return replace(
        whole,
        values=dict(islice(whole.values.items(), MAX_VALUES)),
        is_complete=whole.is_complete and len(whole.values) <= MAX_VALUES,
        strays=dict(islice(whole.strays.items(), MAX_STRAYS)),
        times=times,
        time_unit=unit if times is not whole.times else whole.time_unit,
    )


def _add(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for part in counts:
        total.update(part)
    return dict(total)


def _by_count(counts: dict[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _total_moments(parts: Sequence[ColumnProfile]) -> tuple[int, float, float]:
    """Return the count, the mean and the sum of squared deviations of the numbers of all parts."""
    number = sum(part.num_numeric for part in parts)
    if not number:
        return 0, 0.0, 0.0
    mean = math.fsum(part.mean * part.num_numeric for part in parts) / number
    between = math.fsum(part.num_numeric * (part.mean - mean) ** 2 for part in parts)
    return number, mean, math.fsum(part.sum_squares for part in parts) + between


def _estimate_distinct(parts: Sequence[ColumnProfile], num_counted: int) -> int:
    """Estimate the distinct values of parts that were cut.

    Where every part has (almost) only different ones, as keys have, they are the sum of the parts', less the share
    that is seen to come again among the values that were kept. Otherwise it is a lower bound.
    """
    if all(part.num_distinct >= 0.95 * part.num_present for part in parts):
        num_kept = sum(len(part.values) for part in parts)
        share = num_counted / num_kept if num_kept else 1.0
        return round(share * sum(part.num_distinct for part in parts))
    return max(num_counted, *(part.num_distinct for part in parts))


def _common_dtype(names: set[str]) -> str:
    """Return the type that holds values of all these types."""
    held = names - {"Null"}
    if len(held) <= 1:
        return next(iter(held), "Null")
    if all(name.startswith(("Int", "UInt")) for name in held):
        return "Int64"
    if all(name.startswith(("Int", "UInt", "Float", "Decimal")) for name in held):
        return "Float64"
    return "Datetime" if held == {"Date", "Datetime"} else "String"


def _merge_sketches(texts: Sequence[str]) -> str | None:
    if len(texts) <= 1:
        return texts[0] if texts else None
    sketch = datasketches.kll_doubles_sketch(KLL_SIZE)
    for text in texts:
        sketch.merge(datasketches.kll_doubles_sketch.deserialize(base64.b64decode(text)))
    return base64.b64encode(sketch.serialize()).decode()


def _rounded(times: Mapping[str, int], unit: float) -> dict[str, int]:
    if not unit:
        return dict(times)
    merged: dict[str, int] = {}
    for instant, count in times.items():
        key = repr(float(instant) // unit * unit)
        merged[key] = merged.get(key, 0) + count
    return merged
