"""Encode source files into shards, and the stable hash that decides a row's side of the split."""

from __future__ import annotations

import functools
import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.ipc
from numpy.typing import NDArray

from infra.bundle.encoder import as_numbers, as_text, encode_frame, failures
from infra.bundle.schema import Column, Schema
from infra.bundle.vocabulary import MISSING, UNKNOWN, Vocabulary
from infra.errors import InputError
from infra.memory import unload
from infra.storage import Ref, Store
from tasks._cache import key_of
from tasks._profile import Profile, time_numbers
from tasks._readers import read_file
from tasks._snapshot import MAX_CATEGORIES, MIN_CATEGORY_ROWS, SourceFile

TARGET, WEIGHT, TIME, GROUP, ROW = "__target", "__weight", "__time", "__group", "__row"
"""Columns of a shard beside its features: class code or number (NaN: unlabelled), weight, seconds, two hashes."""
MISSING_HASH = 0x9AE16A3B2F90404F
"""Stands for a missing value: no number has these bits but one of -3e-179."""


@dataclass(frozen=True)
class Shard:
    """The encoded rows of one unit: a source file, or a part of a large one."""

    file: Ref
    num_rows: int
    num_unlabelled: int
    num_failed: dict[str, int]
    """Values by column that could not be read as their kind, and count as missing."""
    failed_example: dict[str, str]


@dataclass(frozen=True)
class Encoded:
    """All shards of a snapshot, in the order of its units."""

    schema: Schema
    vocabulary: Ref
    shards: tuple[Shard, ...]
    num_new: int
    """Files of which this run wrote a shard; those of the others were there."""

    @property
    def key(self) -> str:
        """Return what the content depends on."""
        return key_of(self.schema.to_json(), self.vocabulary.digest, [shard.file.digest for shard in self.shards])

    @property
    def is_reused(self) -> bool:
        """Return whether every shard was there."""
        return self.num_new == 0

    @property
    def num_rows(self) -> int:
        """Count the rows of all shards."""
        return sum(shard.num_rows for shard in self.shards)


def extended_vocabulary(
    known: Vocabulary, schema: Schema, seen: Profile, limit: int = MAX_CATEGORIES, minimum: int = MIN_CATEGORY_ROWS
) -> Vocabulary:
    """Return the vocabulary with the values of new rows appended, the most frequent first.

    Args:
        known: the vocabulary so far, all of which stays.
        schema: which columns have codes.
        seen: the profile of all rows.
        limit: the most codes of a column; the rarer values count as unknown.
        minimum: how often a value occurs before it gets a code.
    """
    fresh: dict[str, list[str]] = {}
    for feature in schema.features:
        if feature.is_categorical:
            # As many as have a code already may be among the most frequent ones.
            counts = seen.columns[feature.column].most_frequent(limit + known.size(feature.column))
            room = max(0, limit - known.size(feature.column) + 1)
            before = set(known.values.get(feature.column, ()))
            new = [value for value, count in counts.items() if count >= minimum and value not in before]
            fresh[feature.column] = new[:room]
    return known.extended(fresh)


def left_out(vocabulary: Vocabulary, schema: Schema, seen: Profile, limit: int) -> list[str]:
    """Say which columns have more values than codes, and what share of their rows have one."""
    lines = []
    for column in (feature.column for feature in schema.features if feature.is_categorical):
        found, known = seen.columns[column], set(vocabulary.values.get(column, ()))
        if found.num_distinct <= limit or len(known) < limit:
            continue
        share = sum(count for value, count in found.values.items() if value in known) / max(1, found.num_present)
        lines.append(
            f"{column!r} has {found.num_distinct:,} values, more than the {limit:,} codes of data.max_categories. "
            f"{share:.1%} of its rows have a value with a code; the others count as unknown."
        )
    return lines


def encode_file(
    store: Store,
    file: SourceFile,
    schema: Schema,
    vocabulary: Vocabulary,
    name: str,
    raw: pl.DataFrame | None = None,
) -> Shard:
    """Write the shard of a file or unit, whose raw rows are given where they have been read already.

    Raises:
        InputError: a label is not one of the schema's classes, or a time is missing.
    """
    raw = read_file(file) if raw is None else raw
    shard = shard_frame(raw, schema, vocabulary, file.path)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shard.arrow"
        # A disk reads them faster as they are than packed; a network does not (docs/log.md has the figures).
        shard.write_ipc(path, compression="uncompressed" if store.is_local else "zstd")
        stored = store.put_file(name, path)
    failed = unread(raw, shard, schema)
    return Shard(
        file=stored,
        num_rows=shard.height,
        num_unlabelled=int(shard.get_column(TARGET).is_nan().sum()),
        num_failed={name: len(values) for name, values in failed.items()},
        failed_example={name: str(values[0])[:80] for name, values in failed.items()},
    )


def unread(raw: pl.DataFrame, shard: pl.DataFrame, schema: Schema) -> dict[str, pl.Series]:
    """Return the raw values by column that could not be read as their kind; no column without any."""
    found = {}
    feature_of = {feature.column: feature for feature in reversed(schema.features)}
    for column in schema.inputs:
        if column.name not in raw.columns:
            continue
        values, encoded = raw.get_column(column.name), shard.get_column(feature_of[column.name].name)
        num_missing = values.null_count() + (int(values.is_nan().sum()) if values.dtype.is_float() else 0)
        is_code = feature_of[column.name].is_categorical
        # Where as many values are missing after encoding as before, nothing is read a second time.
        if num_missing != int(((encoded == MISSING) if is_code else encoded.is_nan()).sum()):
            failed = failures(values, column)
            found.update({column.name: failed} if len(failed) else {})
    return found


def shard_frame(raw: pl.DataFrame, schema: Schema, vocabulary: Vocabulary, path: str) -> pl.DataFrame:
    """Encode raw rows as a shard: the features, and the columns TARGET, WEIGHT, TIME, GROUP and ROW."""
    # A column that came later is missing in the files before it, as it is in the profile.
    needed = {column.name for column in schema.inputs} | {schema.target, *schema.hash_columns}
    needed |= {name for name in (schema.time, schema.group, schema.weight) if name}
    absent = sorted(needed - set(raw.columns))
    raw = raw.with_columns(pl.lit(None, dtype=pl.String).alias(name) for name in absent)
    features = encode_frame(raw, schema, vocabulary)
    coded = {
        feature.column: Coded(features.get_column(feature.name), vocabulary.values.get(feature.column, ()))
        for feature in schema.features
        if feature.is_categorical and raw.schema[feature.column] == pl.String
    }
    roles = {TARGET: _target(raw, schema, path), ROW: pl.Series(row_hash(raw, schema.hash_columns, coded))}
    if schema.weight:
        roles[WEIGHT] = _weight(raw.get_column(schema.weight), path)
    if schema.time:
        roles[TIME] = _time(raw, schema.column(schema.time), path)
    if schema.group:
        roles[GROUP] = pl.Series(row_hash(raw, (schema.group,)))
    return features.with_columns(**roles)


def _target(raw: pl.DataFrame, schema: Schema, path: str) -> pl.Series:
    values = raw.get_column(schema.target)
    if schema.task == "regression":
        return as_numbers(values).cast(pl.Float32).fill_null(float("nan"))
    text = as_text(values)
    codes = Vocabulary({schema.target: schema.labels}).codes(schema.target, text)
    if (codes == UNKNOWN).any():
        wrong = text.filter(codes == UNKNOWN)[0]
        raise InputError(
            f"A label is one of {', '.join(map(repr, schema.labels))}, but got {wrong!r} "
            f"in column {schema.target!r} of {path}. Mend the file."
        )
    return pl.select(pl.when(codes > 0).then(codes.cast(pl.Float32) - 1).otherwise(float("nan"))).to_series()


def _weight(values: pl.Series, path: str) -> pl.Series:
    weights = as_numbers(values)
    if weights.null_count() or (weights < 0).any():
        raise InputError(
            f"A weight is a number of 0 or more in every row, but got others in column {values.name!r} of {path}. "
            "Mend the file, or take data.weight out."
        )
    return weights.cast(pl.Float32)


def _time(raw: pl.DataFrame, column: Column, path: str) -> pl.Series:
    instants = time_numbers(raw.get_column(column.name), column.date_format)
    if instants.null_count():
        example = raw.get_column(column.name).filter(instants.is_null())[0]
        raise InputError(
            f"Every row has a time, but got {instants.null_count():,} without (for example {example!r}) "
            f"in column {column.name!r} of {path}. Mend the file, or take data.time out."
        )
    return instants


@dataclass(frozen=True)
class Coded:
    """A text column that has its codes already: each known value is then hashed once."""

    codes: pl.Series
    known: tuple[str, ...]
    """The values, in the order of their codes from 1."""


def row_hash(
    raw: pl.DataFrame, columns: tuple[str, ...], coded: Mapping[str, Coded] = MappingProxyType({})
) -> NDArray[np.uint64]:
    """Return a hash of each row's values in some columns, the same on every machine and in every version.

    A value that reads as a number is hashed as that number, so that CSV and Parquet files of the same rows agree.
    The codes of `coded` make it faster, and change nothing.
    """
    mixed = np.zeros(raw.height, dtype=np.uint64)
    room = np.empty(HASH_CHUNK, dtype=np.uint64)
    for name in columns:
        values_of = raw.get_column(name)
        source: NDArray[Any] = _coded_hash(values_of, coded[name]) if name in coded else _hash_source(values_of)
        is_number = source.dtype == np.float64
        for start in range(0, raw.height, HASH_CHUNK):
            part, rows = source[start : start + HASH_CHUNK], mixed[start : start + HASH_CHUNK]
            spare = room[: len(rows)]
            np.bitwise_xor(rows, _number_bits(part, spare) if is_number else part, out=rows)
            np.multiply(rows, np.uint64(HASH_FACTOR), out=rows)
            np.right_shift(rows, np.uint64(32), out=spare)  # brings down what a product leaves in its upper half
            np.bitwise_xor(rows, spare, out=rows)
    return _mix(mixed)


HASH_FACTOR = 0x9E3779B97F4A7C15
HASH_VERSION = 2
"""Raised when equal rows would have another hash: a model's rows are then divided anew."""
HASH_CHUNK = 1 << 13
"""Rows that are mixed together: what is worked on stays in the processor's cache, three times as fast."""


def _hash_source(values: pl.Series) -> NDArray[np.float64] | NDArray[np.uint64]:
    """Return a column as what is hashed: numbers with NaN for missing, or hashes of texts."""
    if values.dtype == pl.Float32:
        values = values.cast(pl.String)  # as it is written: 0.1, not 0.10000000149
    if values.dtype.is_numeric() or values.dtype == pl.Boolean:
        return _with_nan(values.cast(pl.Float64))
    if isinstance(values.dtype, pl.Datetime):
        values = values.cast(pl.Datetime("us", values.dtype.time_zone))
    texts = as_text(values)
    numbers = as_numbers(texts)
    if numbers.null_count() == texts.null_count():
        return _with_nan(numbers)
    hashes = _number_bits(_with_nan(numbers), np.empty(len(texts), dtype=np.uint64))
    is_other = numbers.is_null() & texts.is_not_null()
    coded = texts.filter(is_other).to_arrow().dictionary_encode()
    known = _text_hash(pl.Series(coded.dictionary, dtype=pl.String))
    hashes[is_other.to_numpy()] = known[coded.indices.to_numpy()]
    return hashes


def _with_nan(numbers: pl.Series) -> NDArray[np.float64]:
    return (numbers.fill_null(float("nan")) if numbers.null_count() else numbers).to_numpy()


def _coded_hash(values: pl.Series, coded: Coded) -> NDArray[np.uint64]:
    """Return the hashes of texts by their codes; those without a code are hashed one by one."""
    hashes: NDArray[np.uint64] = _known_hashes(coded.known)[coded.codes.to_numpy()]
    is_unknown = coded.codes == UNKNOWN
    if is_unknown.any():
        hashes[is_unknown.to_numpy()] = _hash_source(values.filter(is_unknown))
    return hashes


@functools.lru_cache(maxsize=64)
def _known_hashes(known: tuple[str, ...]) -> NDArray[np.uint64]:
    """Return the hashes of values by their codes, that of a missing one, whose code is -1, at the end."""
    hashes = _text_hash(pl.Series(known, dtype=pl.String))
    return np.concatenate([[np.uint64(0)], hashes, [np.uint64(MISSING_HASH)]])


def _text_hash(distinct: pl.Series) -> NDArray[np.uint64]:
    """Return the hash of each text: that of the number or truth value which it reads as, or of its characters."""
    lowered = distinct.str.to_lowercase()
    booleans = pl.when(lowered == "true").then(1.0).when(lowered == "false").then(0.0)
    numbers = pl.select(pl.coalesce(as_numbers(distinct), booleans)).to_series()
    hashes = np.empty(len(distinct), dtype=np.uint64)
    _number_bits(numbers.fill_null(float("nan")).to_numpy(), hashes)
    is_other = numbers.is_null()
    others = distinct.filter(is_other).to_list()
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in others)
    hashes[is_other.to_numpy()] = np.frombuffer(digests, dtype="<u8")
    return hashes


def _number_bits(numbers: NDArray[np.float64], out: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Write the bits of numbers into `out`, one zero for -0.0 and 0.0, MISSING_HASH for NaN."""
    np.add(numbers, 0.0, out=out.view(np.float64))
    is_missing = np.isnan(numbers)
    if is_missing.any():
        out[is_missing] = MISSING_HASH
    return out


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64 bits: the finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniform(hashes: NDArray[np.uint64], salt: int) -> NDArray[np.float64]:
    """Return a number in [0, 1) for each hash; other salts give independent ones."""
    mixed = _mix(hashes ^ np.uint64(salt * 0x9E3779B9 + 1)) >> np.uint64(11)
    return mixed.astype(np.float64) * 2.0**-53


def check_failures(encoded: Encoded, tolerance: float, paths: list[str]) -> None:
    """Raise an InputError that names the columns in which too many values could not be read."""
    problems = []
    for column in sorted({name for shard in encoded.shards for name in shard.num_failed}):
        failed = sum(shard.num_failed.get(column, 0) for shard in encoded.shards)
        if failed <= tolerance * encoded.num_rows:
            continue
        index = next(i for i, shard in enumerate(encoded.shards) if column in shard.num_failed)
        problems.append(
            f"{failed:,} of {encoded.num_rows:,} values in column={column!r} as {encoded.schema.column(column).kind} "
            f"(for example {encoded.shards[index].failed_example[column]!r} in {paths[index]})"
        )
    if problems:
        raise InputError(
            f"At most {tolerance:.2%} of a column may fail to read, but got {'; '.join(problems)}. "
            "Mend the files, raise data.tolerance, or set data.kinds."
        )


def load_shard(store: Store, shard: Shard, columns: list[str] | None = None) -> pl.DataFrame:
    """Return a shard's rows, memory-mapped: what is not looked at is not read, and nothing is copied."""
    # Polars' own reader copies all of it.
    with pa.memory_map(str(store.local(shard.file))) as source:
        return frame_of(source.read_buffer(), columns)


@contextmanager
def mapped_shard(store: Store, shard: Shard) -> Iterator[tuple[pl.DataFrame, Callable[[], None]]]:
    """Yield a shard's rows, memory-mapped, and a function that lets go of the pages looked at so far."""
    with pa.memory_map(str(store.local(shard.file))) as source:
        buffer = source.read_buffer()
        yield frame_of(buffer, None), lambda: unload(buffer.address, buffer.size)


def frame_of(buffer: pa.Buffer, columns: list[str] | None) -> pl.DataFrame:
    """Return the rows of an Arrow file in memory, without a copy."""
    names = pa.ipc.open_file(buffer).schema.names
    chosen = None if columns is None else [names.index(name) for name in columns]
    options = pa.ipc.IpcReadOptions(included_fields=chosen)
    frame = pl.from_arrow(pa.ipc.open_file(buffer, options=options).read_all(), rechunk=False)
    assert isinstance(frame, pl.DataFrame), "a table becomes a frame"
    return frame if columns is None else frame.select(columns)
