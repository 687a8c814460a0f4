"""Encode source files into shards, and the stable hash that decides a row's side of the split."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from infra.bundle.encoder import as_numbers, as_text, encode_frame, failures
from infra.bundle.schema import Column, Schema
from infra.bundle.vocabulary import UNKNOWN, Vocabulary
from infra.errors import InputError
from infra.storage import Ref, Store
from tasks._cache import key_of
from tasks._profile import Profile, time_numbers
from tasks._readers import read_file
from tasks._snapshot import SourceFile

TARGET, WEIGHT, TIME, GROUP, ROW = "__target", "__weight", "__time", "__group", "__row"
"""Columns of a shard beside its features: class code or number (NaN: unlabelled), weight, seconds, two hashes."""
MISSING_HASH = 0x9AE16A3B2F90404F
"""Stands for a missing value: no number has these bits but one of -3e-179."""
VOCABULARY_LIMIT = 10_000
"""Values of a column that get a code of their own; the rarer ones count as unknown."""
MINIMUM_COUNT = 2
"""A value seen less often gets no code: nothing can be learnt from it."""


@dataclass(frozen=True)
class Shard:
    """The encoded rows of one source file."""

    file: Ref
    num_rows: int
    num_unlabelled: int
    num_failed: dict[str, int]
    """Values by column that could not be read as their kind, and count as missing."""
    failed_example: dict[str, str]


@dataclass(frozen=True)
class Encoded:
    """All shards of a snapshot, in the order of its files."""

    schema: Schema
    vocabulary: Ref
    shards: tuple[Shard, ...]
    num_new: int
    """Shards that this run wrote; the others were there."""

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


def extended_vocabulary(known: Vocabulary, schema: Schema, seen: Profile) -> Vocabulary:
    """Return the vocabulary with the values of new rows appended, the most frequent first."""
    fresh: dict[str, list[str]] = {}
    for feature in schema.features:
        if feature.is_categorical:
            counts = seen.columns[feature.column].values
            room = max(0, VOCABULARY_LIMIT - known.size(feature.column) + 1)
            before = set(known.values.get(feature.column, ()))
            new = [value for value, count in counts.items() if count >= MINIMUM_COUNT and value not in before]
            fresh[feature.column] = new[:room]
    return known.extended(fresh)


def encode_file(store: Store, file: SourceFile, schema: Schema, vocabulary: Vocabulary, name: str) -> Shard:
    """Write the shard of one source file.

    Raises:
        InputError: a label is not one of the schema's classes, or a time is missing.
    """
    raw = read_file(file)
    shard = shard_frame(raw, schema, vocabulary, file.path)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shard.arrow"
        shard.write_ipc(path, compression="uncompressed")
        stored = store.put_file(name, path)
    present = [column for column in schema.inputs if column.name in raw.columns]
    failed = {column.name: failures(raw.get_column(column.name), column) for column in present}
    return Shard(
        file=stored,
        num_rows=shard.height,
        num_unlabelled=int(shard.get_column(TARGET).is_nan().sum()),
        num_failed={name: len(values) for name, values in failed.items() if len(values)},
        failed_example={name: str(values[0])[:80] for name, values in failed.items() if len(values)},
    )


def shard_frame(raw: pl.DataFrame, schema: Schema, vocabulary: Vocabulary, path: str) -> pl.DataFrame:
    """Encode raw rows as a shard: the features, and the columns TARGET, WEIGHT, TIME, GROUP and ROW."""
    # A column that came later is missing in the files before it, as it is in the profile.
    needed = {column.name for column in schema.inputs} | {schema.target, *schema.hash_columns}
    needed |= {name for name in (schema.time, schema.group, schema.weight) if name}
    absent = sorted(needed - set(raw.columns))
    raw = raw.with_columns(pl.lit(None, dtype=pl.String).alias(name) for name in absent)
    roles = {TARGET: _target(raw, schema, path), ROW: pl.Series(row_hash(raw, schema.hash_columns))}
    if schema.weight:
        roles[WEIGHT] = _weight(raw.get_column(schema.weight), path)
    if schema.time:
        roles[TIME] = _time(raw, schema.column(schema.time), path)
    if schema.group:
        roles[GROUP] = pl.Series(row_hash(raw, (schema.group,)))
    return encode_frame(raw, schema, vocabulary).with_columns(**roles)


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


def row_hash(raw: pl.DataFrame, columns: tuple[str, ...]) -> NDArray[np.uint64]:
    """Return a hash of each row's values in some columns, the same on every machine and in every version.

    A value that reads as a number is hashed as that number, so that CSV and Parquet files of the same rows agree.
    """
    mixed = np.zeros(raw.height, dtype=np.uint64)
    for name in columns:
        mixed = _mix(mixed ^ _mix(_column_hash(raw.get_column(name))))
    return mixed


def _column_hash(values: pl.Series) -> NDArray[np.uint64]:
    if values.dtype == pl.Float32:
        values = values.cast(pl.String)  # as it is written: 0.1, not 0.10000000149
    if values.dtype.is_numeric() or values.dtype == pl.Boolean:
        return _number_hash(values)
    if isinstance(values.dtype, pl.Datetime):
        values = values.cast(pl.Datetime("us", values.dtype.time_zone))
    text = as_text(values)
    lowered = text.str.to_lowercase()
    booleans = pl.when(lowered == "true").then(1.0).when(lowered == "false").then(0.0)
    numbers = pl.select(pl.coalesce(as_numbers(text), booleans)).to_series()
    distinct = text.unique().drop_nulls()
    hashes = [int.from_bytes(hashlib.blake2b(v.encode(), digest_size=8).digest(), "little") for v in distinct]
    coded = text.replace_strict(distinct, pl.Series(hashes, dtype=pl.UInt64), default=None, return_dtype=pl.UInt64)
    return np.where(numbers.is_not_null().to_numpy(), _number_hash(numbers), coded.fill_null(MISSING_HASH).to_numpy())


def _number_hash(values: pl.Series) -> NDArray[np.uint64]:
    numbers = values.cast(pl.Float64).fill_null(float("nan")).to_numpy().copy()
    numbers[np.isnan(numbers)] = np.nan
    numbers += 0.0  # makes one zero of -0.0 and 0.0
    hashes: NDArray[np.uint64] = numbers.view(np.uint64)
    return np.where(np.isnan(numbers), np.uint64(MISSING_HASH), hashes)


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
    """Return a shard's rows, memory-mapped."""
    return pl.read_ipc(store.local(shard.file), columns=columns)
