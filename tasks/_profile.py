"""Profiles: what the columns of a set of rows hold, mergeable so that every row is looked at once.

Everything that needs statistics of the data reads profiles, never rows. The sketches are those of Apache DataSketches:
quantiles by KLL (Karnin, Lang and Liberty 2016), distinct counts by HyperLogLog (Flajolet, Fusy, Gandouet and Meunier
2007), frequent values by the weighted Misra-Gries sketch of Anderson et al. (2017). Moments are merged after Chan,
Golub and LeVeque (1979).

What is counted is exact up to MAX_VALUES distinct values of a column, and its frequent values are up to about
FREQUENT_ITEMS. Beyond that a count is at most FREQUENT_ERROR of the rows too low, a distinct count has a standard
error of DISTINCT_ERROR, and a quantile is within KLL_ERROR of its rank, whatever was merged in whatever order.
"""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import datasketches
import numpy as np
import polars as pl
from datasketches import frequent_strings_sketch, hll_sketch, kll_doubles_sketch
from numpy.typing import NDArray

from infra.bundle.encoder import DATE_FORMATS, FALSE_TEXTS, TRUE_TEXTS, as_datetimes, as_numbers, as_text, read_dates
from tasks._cache import key_of

PROFILE_VERSION = 3
KLL_SIZE = 200
KLL_ERROR = 0.0133
"""Of a single rank, with 99% confidence."""
RUN, THIN = 512, 16
"""Numbers that are sorted together before they are thinned, and of how many one is kept."""
PLACES = (0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15)
"""Which of THIN numbers is kept, run by run: neighbours are far apart, as in van der Corput's sequence."""
THINNED_ROWS = 1 << 15
"""Numbers from which they are thinned."""
MAX_VALUES = 10_000
"""Distinct values of a column that are counted one by one; beyond it sketches count them."""
FREQUENT_LOG_SIZE = 16
FREQUENT_ITEMS = 3 * 2**FREQUENT_LOG_SIZE // 4
"""Values that a sketch of frequent values holds; while there are no more, it is exact."""
FREQUENT_ERROR = 3.5 / 2**FREQUENT_LOG_SIZE
DISTINCT_LOG_SIZE = 13
DISTINCT_ERROR = 1.04 / 2 ** (DISTINCT_LOG_SIZE / 2)
MAX_REAL_VALUES = 100
"""Distinct values from which numbers that are not whole are real ones, which have no frequent values worth keeping."""
EXACT_ROWS = 10_000
"""Rows up to which the distinct values of real numbers are counted; beyond it they are estimated."""
MOSTLY = 0.95
"""The share of a column's values that must be numbers for it to be one of real numbers."""
MIN_EXAMPLES = 20
"""Texts of a source that must all be numbers, or all be none, for it to be an example."""
MAX_STRAYS = 100
"""Distinct texts of a column that are kept for not being what the others are."""
DATE_START = r"^\d{1,4}[-/.]\d"
"""What a date in any of DATE_FORMATS begins with."""
NUM_PROBES = 100
"""Frequent texts that decide which formats of dates are tried on all."""
TIME_UNITS_SECONDS = (1.0, 60.0, 3600.0, 86_400.0)


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
    """Counts of values as text, the most frequent first; none for real numbers, which have too many."""
    is_complete: bool = True
    """Whether `values` has every value."""
    num_distinct: int = 0
    """Distinct values; an estimate once there are more than FREQUENT_ITEMS, or of real numbers more than one part."""
    frequent: str | None = None
    """Sketch of frequent values, base64, once there are more than MAX_VALUES."""
    distinct: str | None = None
    """HyperLogLog sketch of the same values, base64."""
    num_padded: int = 0
    """Texts of digits with a leading zero, as in a zip code."""
    max_length: int = 0
    strays: dict[str, int] = field(default_factory=dict)
    """Counts of texts that read as no number, or as no date, where at least half of a file's do; the most frequent."""
    times: dict[str, int] = field(default_factory=dict)
    """Counts by instant (seconds, or the plain number) for the column that orders the rows."""
    time_unit: float = 0.0
    """What the instants in `times` are rounded down to; 0 where they are exact."""
    examples: dict[str, str] = field(default_factory=dict)
    """By how the values of a source read, "number" or "text", one source of which all are so."""

    @property
    def num_present(self) -> int:
        """Count the values that are not missing."""
        return self.num_rows - self.num_missing

    @property
    def standard_deviation(self) -> float:
        """Return the population standard deviation of the numbers."""
        return float(np.sqrt(self.sum_squares / self.num_numeric)) if self.num_numeric else 0.0

    def most_frequent(self, limit: int) -> dict[str, int]:
        """Return the most frequent values and how often they occur at least, at most about FREQUENT_ITEMS of them."""
        if self.frequent is None or limit <= len(self.values):
            return dict(islice(self.values.items(), limit))
        return dict(_top(frequent_strings_sketch.deserialize(base64.b64decode(self.frequent)))[:limit])

    def quantile(self, ranks: Sequence[float]) -> list[float]:
        """Return approximate quantiles of the numbers; empty where there are none."""
        if self.quantiles is None:
            return []
        sketch = kll_doubles_sketch.deserialize(base64.b64decode(self.quantiles))
        return [float(value) for value in sketch.get_quantiles(list(ranks))]

    def ranks(self, values: Sequence[float]) -> list[float]:
        """Return the approximate share of the numbers that are at most each value, in its order; none where empty."""
        if self.quantiles is None:
            return []
        sketch = kll_doubles_sketch.deserialize(base64.b64decode(self.quantiles))
        return [float(sketch.get_rank(value, True)) for value in values]


@dataclass(frozen=True)
class Profile:
    """What a set of rows holds, by column."""

    num_rows: int
    columns: dict[str, ColumnProfile]
    source: str = ""
    """A hash of what was profiled, where that is known."""
    parts: tuple[str, ...] = ()
    """Names of the stored profiles that this one was merged from: they stay as long as it does."""

    @property
    def key(self) -> str:
        """Return what the content depends on; quantiles are left out, because merging them draws random numbers."""
        return self.source or key_of(
            self.num_rows, {name: replace(column, quantiles=None) for name, column in self.columns.items()}
        )


def profile_frame(frame: pl.DataFrame, time: str | None = None, source: str = "") -> Profile:
    """Profile raw rows.

    Args:
        frame: the rows.
        time: the column whose instants are counted for a split by time.
        source: what the rows are known by, for messages about columns that are not the same everywhere.
    """
    columns = {name: _profile_column(frame.get_column(name), name == time, source) for name in frame.columns}
    return Profile(frame.height, columns)


@dataclass(frozen=True)
class _Numbers:
    """What the numbers of a column are like, each counted as often as it occurs."""

    num_numeric: int = 0
    num_integer: int = 0
    minimum: float | None = None
    maximum: float | None = None
    mean: float = 0.0
    sum_squares: float = 0.0
    quantiles: str | None = None


@dataclass(frozen=True)
class _Values:
    """Which values a column has, and how often."""

    values: dict[str, int]
    is_complete: bool
    num_distinct: int
    frequent: str | None = None
    distinct: str | None = None


@dataclass(frozen=True)
class _Texts:
    """What the texts of a column read as."""

    num_boolean: int = 0
    dates: dict[str, int] = field(default_factory=dict)
    num_padded: int = 0
    max_length: int = 0
    strays: dict[str, int] = field(default_factory=dict)


def _profile_column(raw: pl.Series, is_time: bool, source: str) -> ColumnProfile:
    present, numbers = _split_numbers(raw)
    counts = _counted(present) if numbers is None else _NO_COUNTS
    measured = _weighed(counts) if numbers is None else _measured(numbers.drop_nulls())
    num_real = _count_reals(numbers, measured) if numbers is not None else 0
    if numbers is not None and num_real > MAX_REAL_VALUES:
        kept = _Values({}, is_complete=False, num_distinct=num_real)
        counts = _counted(present.filter(numbers.is_null())) if present.dtype == pl.String else _NO_COUNTS
    else:
        counts = counts if numbers is None else _counted(present)
        if counts.height > MAX_REAL_VALUES and _is_of_reals(present.dtype, measured, len(present)):
            kept = _Values({}, is_complete=False, num_distinct=counts.height)
        else:
            kept = _values_of(zip(counts.get_column("value"), counts.get_column("n"), strict=True), counts.height)
    texts = _typed(present) if present.dtype != pl.String else _read(counts, present, measured)
    times, unit = _count_times(raw, texts.dates) if is_time else ({}, 0.0)
    return ColumnProfile(
        dtype=str(raw.dtype.base_type()),
        num_rows=len(raw),
        num_missing=len(raw) - len(present),
        times=times,
        time_unit=unit,
        examples=_examples(present, measured, source),
        **vars(measured),
        **vars(kept),
        **vars(texts),
    )


def _split_numbers(raw: pl.Series) -> tuple[pl.Series, pl.Series | None]:
    """Return the values that are there and, row by row, the numbers that they read as; None for few texts.

    Of texts that come again it is cheaper to read each of them once.
    """
    present = raw.drop_nulls()
    if present.dtype.is_float():
        numbers = present.cast(pl.Float64)
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(numbers.to_numpy().sum()):  # so is every one of them
                return present, numbers
        present = present.filter(present.is_not_nan())
    elif present.dtype == pl.String and len(present):
        probes = present.gather_every(max(1, len(present) // 1_000))
        if probes.n_unique() < len(probes) / 2:
            return present, None
    return present, as_numbers(present)


def _estimated(values: pl.Series) -> int:
    return int(values.approx_n_unique())  # type: ignore[arg-type]


def _measured(numbers: pl.Series) -> _Numbers:
    """Measure numbers without nulls."""
    if not len(numbers):
        return _Numbers()
    values = numbers.to_numpy()
    return _Numbers(
        num_numeric=len(values),
        num_integer=int(np.count_nonzero(values == np.floor(values))),
        minimum=float(values.min()),
        maximum=float(values.max()),
        mean=float(values.mean()),
        sum_squares=float(numbers.var(ddof=0) or 0.0) * len(values),  # type: ignore[arg-type]
        quantiles=_packed(quantile_sketch(values).serialize()),
    )


def quantile_sketch(numbers: NDArray[np.float64]) -> kll_doubles_sketch:
    """Return the KLL sketch of numbers, shape (rows,).

    Of many numbers the first compactions are done here, where the processor sorts short runs side by side, several
    times as fast: of each run in order every THIN-th number is kept, from another place on in each of THIN runs, so
    that all ranks are met alike. The sketch of those is then merged with itself, which gives each its weight and adds
    no error, for of two equal neighbours a compaction keeps one.
    """
    sketch = kll_doubles_sketch(KLL_SIZE)
    block = RUN * THIN
    num_thinned = len(numbers) // block * block if len(numbers) >= THINNED_ROWS else 0
    if num_thinned:
        # What float32 can tell apart is all that a model sees; instants need more.
        short = numbers[:num_thinned].astype(np.float32 if np.abs(numbers).max() < 2**24 else np.float64)
        runs = np.sort(short.reshape(-1, RUN), axis=1).reshape(-1, THIN, RUN // THIN, THIN)
        kept = [runs[:, run, :, place] for run, place in enumerate(PLACES)]
        sketch.update(np.concatenate(kept, dtype=np.float64, axis=None))
        for _ in range(THIN.bit_length() - 1):
            sketch.merge(kll_doubles_sketch.deserialize(sketch.serialize()))
    sketch.update(np.array(numbers[num_thinned:], dtype=np.float64))
    return sketch


def _weighed(counts: pl.DataFrame) -> _Numbers:
    """Measure the numbers among texts that are counted."""
    table = counts.select(number=as_numbers(counts.get_column("value")), n="n").drop_nulls()
    return _measured(pl.Series(np.repeat(table.get_column("number").to_numpy(), table.get_column("n").to_numpy())))


def _is_of_reals(dtype: pl.DataType, measured: _Numbers | ColumnProfile, num_present: int) -> bool:
    """Say whether a column holds real numbers."""
    if not (dtype.is_float() or dtype == pl.String) or measured.num_integer == measured.num_numeric:
        return False
    return measured.num_numeric >= MOSTLY * num_present


def _count_reals(numbers: pl.Series, measured: _Numbers) -> int:
    """Return about how many different numbers a column of real ones has; 0 for any other column.

    Some rows show that there are more than MAX_REAL_VALUES; if they don't, all are counted, so that it does not matter
    which rows they are. How many there are is then estimated from an eighth of the values, chosen by a hash.
    """
    if not _is_of_reals(numbers.dtype, measured, len(numbers)):
        return 0
    present = numbers.drop_nulls() if numbers.null_count() else numbers
    if len(present) <= EXACT_ROWS or present.gather_every(len(present) // 1_000).n_unique() <= MAX_REAL_VALUES:
        return present.n_unique()
    hashes = present.to_numpy().view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    num_distinct = 8 * _estimated(present.filter(pl.Series(hashes < 2**61)))
    return len(present) if num_distinct >= MOSTLY * len(present) else max(num_distinct, MAX_REAL_VALUES + 1)


_NO_COUNTS = pl.DataFrame(schema={"value": pl.String, "n": pl.UInt32})


def _counted(present: pl.Series) -> pl.DataFrame:
    """Count values as text: columns value and n, the most frequent first, ties in the order of the alphabet."""
    counts = present.alias("value").value_counts(name="n")
    texts = as_text(counts.get_column("value")).alias("value")
    table = pl.DataFrame([texts, counts.get_column("n")])
    return table.sort(["n", "value"], descending=[True, False])


def _values_of(items: Iterable[tuple[str, int]], num_distinct: int) -> _Values:
    """Return values and their counts as they are kept: all of them, or the most frequent and sketches of all."""
    if num_distinct <= MAX_VALUES:
        return _Values(dict(items), is_complete=True, num_distinct=num_distinct)
    frequent, distinct = frequent_strings_sketch(FREQUENT_LOG_SIZE), hll_sketch(DISTINCT_LOG_SIZE)
    for value, count in items:
        frequent.update(value, count)
        distinct.update(value)
    return _sketched(frequent, distinct)


def _sketched(frequent: frequent_strings_sketch, distinct: hll_sketch) -> _Values:
    top = _top(frequent)
    is_exact = frequent.get_upper_bound("") == frequent.get_lower_bound("")
    return _Values(
        values=dict(top[:MAX_VALUES]),
        is_complete=False,
        num_distinct=len(top) if is_exact else round(distinct.get_estimate()),
        frequent=_packed(frequent.serialize()),
        distinct=_packed(distinct.serialize_compact()),
    )


def _top(frequent: frequent_strings_sketch) -> list[tuple[str, int]]:
    """Return the values of a sketch with their least counts, the most frequent first."""
    listed = frequent.get_frequent_items(datasketches.frequent_items_error_type.NO_FALSE_NEGATIVES)
    return sorted(((value, low) for value, _, low, _ in listed if low), key=lambda item: (-item[1], item[0]))


def _packed(sketch: bytes) -> str:
    return base64.b64encode(sketch).decode()


def _typed(present: pl.Series) -> _Texts:
    """Return what typed values read as."""
    is_date = present.dtype.is_temporal()
    return _Texts(
        num_boolean=len(present) if present.dtype == pl.Boolean else 0, dates={"": len(present)} if is_date else {}
    )


def _read(counts: pl.DataFrame, present: pl.Series, measured: _Numbers) -> _Texts:
    """Return what counted texts read as; of real numbers only the other texts are counted."""
    texts, n = counts.get_column("value"), counts.get_column("n")
    dates = _count_dates(texts, n)
    words = texts.str.to_lowercase().is_in([*TRUE_TEXTS, *FALSE_TEXTS])
    return _Texts(
        num_boolean=_sum_where(n, words),
        dates=dates,
        num_padded=_sum_where(n, texts.str.contains(r"^0\d+$")),
        max_length=int(texts.str.len_chars().max() or 0),  # type: ignore[arg-type]
        strays=_strays(counts, len(present), measured.num_numeric, dates),
    )


def _sum_where(n: pl.Series, chosen: pl.Series) -> int:
    return int(n.filter(chosen).sum())


def _strays(counts: pl.DataFrame, num_present: int, num_numeric: int, dates: dict[str, int]) -> dict[str, int]:
    """Count the texts that are no numbers, or else no dates, where at least half of them are."""
    texts = counts.get_column("value")
    if num_numeric >= max(1, num_present / 2):
        others = counts.filter(as_numbers(texts).is_null())
    elif dates and max(dates.values()) >= num_present / 2:
        others = counts.filter(as_datetimes(texts, most_read(dates)).is_null())
    else:
        return {}
    top = others.head(MAX_STRAYS)
    return dict(zip(top.get_column("value"), top.get_column("n"), strict=True))


def _examples(present: pl.Series, measured: _Numbers, source: str) -> dict[str, str]:
    """Return how the values of a source read, if they all read alike: a column is the same in every source."""
    if not source or not len(present):
        return {}
    if present.dtype.is_numeric() or (measured.num_numeric == len(present) >= MIN_EXAMPLES):
        return {"number": source}
    is_text = present.dtype == pl.String and measured.num_numeric == 0
    return {"text": source} if is_text and len(present) >= MIN_EXAMPLES else {}


def most_read(dates: Mapping[str, int]) -> str | None:
    """Return the date format that reads the most values; of equals the first of DATE_FORMATS."""
    order = ("", *DATE_FORMATS)
    return max(dates, key=lambda name: (dates[name], -order.index(name)), default=None)


def _count_dates(texts: pl.Series, n: pl.Series) -> dict[str, int]:
    """Count the texts that read as dates, by format; the most frequent decide which formats are tried on all."""
    probes = texts.head(NUM_PROBES)
    if not probes.str.contains(DATE_START).sum() >= max(1, len(probes) / 2):
        return {}
    likely = [f for f in DATE_FORMATS if read_dates(probes, f).is_not_null().mean() >= 0.5]  # type: ignore[operator]
    return {f: _sum_where(n, read_dates(texts, f).is_not_null()) for f in likely}


def _count_times(raw: pl.Series, dates: dict[str, int]) -> tuple[dict[str, int], float]:
    """Count rows by instant, rounded down until at most MAX_VALUES instants are left."""
    instants = time_numbers(raw, None).drop_nulls()
    if not len(instants):
        return {}, 0.0
    low, high = float(instants.min()), float(instants.max())  # type: ignore[arg-type]
    for unit in _time_units(0.0, high - low, is_dates=bool(dates)):
        rounded = instants if unit == 0 else (instants / unit).floor() * unit
        counts = rounded.alias("value").value_counts(name="n").sort("value")
        if counts.height <= MAX_VALUES:
            break
    keys = (repr(float(value)) for value in counts.to_series(0).to_list())
    return dict(zip(keys, counts["n"].to_list(), strict=True)), unit


def _time_units(unit: float, span: float, *, is_dates: bool) -> Iterator[float]:
    """Yield what instants are rounded down to, from a unit on: each one is a multiple of those before it.

    Dates are rounded to seconds, minutes, hours and days, plain numbers to powers of two.
    """
    yield unit
    if is_dates:
        yield from (coarser for coarser in TIME_UNITS_SECONDS if coarser > unit)
    elif span > 0:
        coarser = max(2 * unit, 2.0 ** math.floor(math.log2(span / MAX_VALUES)))
        while coarser <= 2 * span:
            yield coarser
            coarser *= 2


def time_numbers(raw: pl.Series, date_format: str | None) -> pl.Series:
    """Return the column that orders the rows as float64: seconds since 1970-01-01, or its own numbers."""
    if raw.dtype.is_numeric():
        return as_numbers(raw)
    if raw.dtype == pl.String and date_format is None:
        counts = _counted(raw.drop_nulls())
        date_format = most_read(_count_dates(counts.get_column("value"), counts.get_column("n")))
        if date_format is None:
            return as_numbers(raw)
    return as_datetimes(raw, date_format).dt.epoch("us").cast(pl.Float64) / 1e6


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
    values = _total_values(parts)
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
        num_padded=sum(part.num_padded for part in parts),
        max_length=max(part.max_length for part in parts),
        strays=_by_count(_add(part.strays for part in parts)),
        times=_add(_rounded(part.times, unit) for part in parts),
        time_unit=unit,
        examples={
            name: min(part.examples[name] for part in parts if name in part.examples)
            for name in sorted({name for part in parts for name in part.examples})
        },
        **vars(values),
    )


def cut_column(whole: ColumnProfile) -> ColumnProfile:
    """Keep the most frequent values, ties in the order of the alphabet, and round instants until few are left."""
    times, unit = _few_times(whole)
    cut = replace(whole, strays=dict(islice(whole.strays.items(), MAX_STRAYS)), times=times, time_unit=unit)
    dtype = pl.Float64() if whole.dtype.startswith("Float") else pl.String() if whole.dtype == "String" else pl.Int64()
    if len(whole.values) > MAX_REAL_VALUES and _is_of_reals(dtype, whole, whole.num_present):
        return replace(cut, values={}, is_complete=False)
    if len(whole.values) <= MAX_VALUES:
        return cut
    return replace(cut, **vars(_values_of(whole.values.items(), len(whole.values))))


def _few_times(whole: ColumnProfile) -> tuple[dict[str, int], float]:
    times, unit = whole.times, whole.time_unit
    if len(times) <= MAX_VALUES:
        return times, unit
    instants = [float(key) for key in times]
    for unit in _time_units(whole.time_unit, max(instants) - min(instants), is_dates=bool(whole.dates)):
        times = _add([_rounded(whole.times, unit)])
        if len(times) <= MAX_VALUES:
            break
    return times, unit


def _total_values(parts: Sequence[ColumnProfile]) -> _Values:
    """Return the values of all parts: counted one by one, or sketched, or none where a part is of real numbers."""
    if all(part.is_complete for part in parts):
        values = _by_count(_add(part.values for part in parts))
        return _Values(values, is_complete=True, num_distinct=len(values))
    if any(part.frequent is None and not part.is_complete for part in parts):
        return _Values({}, is_complete=False, num_distinct=_estimate_distinct(parts))
    frequent, union = frequent_strings_sketch(FREQUENT_LOG_SIZE), datasketches.hll_union(DISTINCT_LOG_SIZE)
    whole = [part for part in parts if part.frequent is None]
    counted, distinct = _add(part.values for part in whole), hll_sketch(DISTINCT_LOG_SIZE)
    for value, count in _by_count(counted).items():
        frequent.update(value, count)
        distinct.update(value)
    union.update(distinct)
    for part in parts:
        if part.frequent and part.distinct:
            frequent.merge(frequent_strings_sketch.deserialize(base64.b64decode(part.frequent)))
            union.update(hll_sketch.deserialize(base64.b64decode(part.distinct)))
    found = _sketched(frequent, union.get_result(datasketches.HLL_4))
    return replace(found, num_distinct=_plausible_distinct(parts, found.num_distinct))


def _plausible_distinct(parts: Sequence[ColumnProfile], estimate: int) -> int:
    """Return an estimate of distinct values within what the parts allow; that of keys is not off by chance."""
    most, num_present = sum(part.num_distinct for part in parts), sum(part.num_present for part in parts)
    if most == num_present and estimate >= (1 - 3 * DISTINCT_ERROR) * most:
        return most
    return min(most, max(estimate, *(part.num_distinct for part in parts)))


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


def _estimate_distinct(parts: Sequence[ColumnProfile]) -> int:
    """Return how many different real numbers there are: the sum where (almost) all differ, else a lower bound."""
    if all(part.num_distinct >= MOSTLY * part.num_present for part in parts):
        return sum(part.num_distinct for part in parts)
    return max(part.num_distinct for part in parts)


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
    sketch = kll_doubles_sketch(KLL_SIZE)
    for text in texts:
        sketch.merge(kll_doubles_sketch.deserialize(base64.b64decode(text)))
    return _packed(sketch.serialize())


def _rounded(times: Mapping[str, int], unit: float) -> dict[str, int]:
    if not unit:
        return dict(times)
    merged: dict[str, int] = {}
    for instant, count in times.items():
        key = repr(float(instant) // unit * unit)
        merged[key] = merged.get(key, 0) + count
    return merged
