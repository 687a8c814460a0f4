"""Encoding source files into shards, and the hash that follows a row through files and formats."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from infra.bundle.schema import Column, Schema
from infra.bundle.vocabulary import Vocabulary
from infra.errors import InputError
from infra.storage import DamagedError, Ref, Store
from tasks._encode import (
    GROUP,
    ROW,
    TARGET,
    TIME,
    WEIGHT,
    Coded,
    Encoded,
    Shard,
    check_failures,
    encode_file,
    extended_vocabulary,
    load_shard,
    row_hash,
    shard_frame,
    uniform,
)
from tasks._profile import profile_frame
from tasks._snapshot import CsvConfig, SourceFile, source_file

QUICK = settings(max_examples=30, deadline=None, derandomize=True)
SCHEMA = Schema(
    columns=(
        Column("x", "numeric"),
        Column("city", "categorical"),
        Column("day", "datetime", parts=("month",)),
        Column("w", "numeric"),
        Column("y", "numeric"),
    ),
    target="y",
    task="binary",
    labels=("no", "yes"),
    time="day",
    group="city",
    weight="w",
    hash_columns=("x", "city", "day"),
)
VOCABULARY = Vocabulary({"city": ("Rome", "Oslo")})
ROWS = pl.DataFrame(
    {
        "x": [1.5, None, 3.0],
        "city": ["Oslo", None, "Bern"],
        "day": [date(1970, 1, 2), date(1970, 2, 1), date(1970, 1, 3)],
        "w": [1, 0, 2],
        "y": ["yes", None, "no"],
    }
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Give an empty store."""
    return Store(str(tmp_path / "root"))


def source(folder: Path, frame: pl.DataFrame, name: str = "rows.parquet") -> SourceFile:
    """Write rows into a file and fingerprint it."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    frame.write_parquet(path) if path.suffix == ".parquet" else frame.write_csv(path)
    return source_file(str(path), CsvConfig())


def hashes(*values: Any, **kwargs: Any) -> list[int]:
    """Return the hashes of rows of one column."""
    column: list[int] = row_hash(pl.DataFrame({"c": pl.Series(values, **kwargs)}), ("c",)).tolist()
    return column


# The hash of a row


def test_the_hash_of_a_row_never_changes() -> None:
    """Rows have had these hashes since version 2: another value would mix training with holdout rows."""
    frame = pl.DataFrame(
        {"a": [1, 2, None, 3], "b": ["x", "1.5", None, "2024-01-01"], "c": [0.5, -0.0, float("nan"), 1e300]}
    )
    found = row_hash(frame, ("a", "b", "c"))

    assert [
        11571478187900218084,
        1977562056352176432,
        6217535675306804662,
        5814824873998233433,
    ] == found.tolist()
    assert [0.010908721083727868, 0.7290877662172249, 0.6628130660079379, 0.717736601439579] == uniform(
        found, 1
    ).tolist()


@QUICK
@given(st.lists(st.none() | st.integers(-(2**53), 2**53), min_size=1))
def test_whole_numbers_hash_as_their_text(values: list[int | None]) -> None:
    """A CSV and a Parquet file of the same whole numbers have the same row hashes."""
    texts = [None if value is None else str(value) for value in values]

    assert hashes(*texts, dtype=pl.String) == hashes(*values, dtype=pl.Int64)


@QUICK
@given(st.lists(st.none() | st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_real_numbers_hash_as_their_text(values: list[float | None]) -> None:
    """A CSV and a Parquet file of the same real numbers have the same row hashes."""
    numbers = pl.Series(values, dtype=pl.Float64)

    assert hashes(*numbers.cast(pl.String), dtype=pl.String) == hashes(*values, dtype=pl.Float64)


@pytest.mark.parametrize(
    ("typed", "texts"),
    [
        (pl.Series([0.1, 2.0, None], dtype=pl.Float32), ["0.1", "2.0", None]),
        (pl.Series([True, False, None]), ["true", "false", None]),
        (pl.Series([True, False, None]), ["True", "False", None]),
        (pl.Series([True, False, None]), ["1", "0", None]),
        (pl.Series([1, 2]), ["1.0", "2e0"]),
        (pl.Series([date(2024, 1, 2), None]), ["2024-01-02", None]),
        (pl.Series(["a", "b"], dtype=pl.Categorical), ["a", "b"]),
        (pl.Series([None, None]), [None, None]),
    ],
)
def test_typed_values_hash_as_their_text(typed: pl.Series, texts: list[str | None]) -> None:
    """Whatever type a file gives a value, its row hash is that of the text in a CSV file."""
    assert hashes(*texts, dtype=pl.String) == hashes(*typed, dtype=typed.dtype)


def test_missing_is_missing() -> None:
    """Null and NaN, in a number or a text column, are one value; both zeros are, too."""
    assert 1 == len({*hashes(float("nan"), None), *hashes(None, dtype=pl.String), *hashes(None, dtype=pl.Int64)})
    assert 1 == len({*hashes(0.0, -0.0), *hashes("-0.0", "0"), *hashes(0)})


ROW_LISTS = st.lists(
    st.tuples(st.none() | st.integers(1, 6), st.none() | st.sampled_from(["x", "y", "1"])), min_size=1, max_size=8
)


@QUICK
@given(ROW_LISTS, st.randoms(use_true_random=False))
def test_a_rows_hash_depends_on_the_row_alone(rows: list[tuple[Any, Any]], random: Any) -> None:
    """Rows in another order, in other company or with their columns in another order keep their hashes."""
    schema = {"a": pl.Int64, "b": pl.String}
    frame = pl.DataFrame(rows, schema=schema, orient="row")
    order = list(range(len(rows)))
    random.shuffle(order)
    alone = [row_hash(pl.DataFrame([row], schema=schema, orient="row"), ("a", "b"))[0] for row in rows]
    shuffled = frame[order].select("b", "a")

    assert alone == row_hash(frame, ("a", "b")).tolist()
    assert [alone[i] for i in order] == row_hash(shuffled, ("a", "b")).tolist()


@QUICK
@given(ROW_LISTS)
def test_rows_share_a_hash_if_and_only_if_they_are_equal(rows: list[tuple[Any, Any]]) -> None:
    """Equal rows, duplicates, have one hash; different rows have different ones."""
    frame = pl.DataFrame(rows, schema={"a": pl.Int64, "b": pl.String}, orient="row")

    assert len(set(rows)) == len(set(row_hash(frame, ("a", "b")).tolist()))


def test_a_value_counts_in_its_column() -> None:
    """Values that change places between two columns make another row."""
    frame = pl.DataFrame({"a": [1, 2], "b": [2, 1]})

    assert 2 == len(set(row_hash(frame, ("a", "b")).tolist()))


def test_codes_change_no_hash() -> None:
    """A column that has its codes already is hashed as it is without: known, unknown and missing values alike."""
    frame = pl.DataFrame({"city": ["Rome", "Bern", None, "12", "Oslo", "true"], "x": [1.0, 2.0, None, 4.0, 5.0, 6.0]})
    vocabulary = Vocabulary({"city": ("Rome", "Oslo", "12", "true")})
    coded = {"city": Coded(vocabulary.codes("city", frame.get_column("city")), vocabulary.values["city"])}

    assert row_hash(frame, ("x", "city")).tolist() == row_hash(frame, ("x", "city"), coded).tolist()


@pytest.mark.parametrize("salt", [1, 2, 3])
def test_hashes_are_spread_evenly(salt: int) -> None:
    """Even rows that only count up are spread evenly between 0 and 1 (Kolmogorov-Smirnov distance)."""
    numbers = np.sort(uniform(row_hash(pl.DataFrame({"i": np.arange(20_000)}), ("i",)), salt))

    assert float(np.abs(numbers - np.arange(20_000) / 20_000).max()) < 0.015
    assert 0 <= numbers[0] <= numbers[-1] < 1


def test_salts_are_independent() -> None:
    """Which rows are sampled says nothing about which are held out."""
    found = row_hash(pl.DataFrame({"i": np.arange(20_000)}), ("i",))

    assert abs(float(np.corrcoef(uniform(found, 1), uniform(found, 2))[0, 1])) < 0.02


# Shards


def test_a_shard_holds_features_and_roles() -> None:
    """A shard has the encoded features, the class code (NaN: unlabelled), weight, seconds and two hashes."""
    shard = shard_frame(ROWS, SCHEMA, VOCABULARY, "f")
    nan = float("nan")
    expected = pl.DataFrame(
        {
            "x": pl.Series([1.5, nan, 3.0], dtype=pl.Float32),
            "city": pl.Series([2, -1, 0], dtype=pl.Int32),
            "day.month": pl.Series([1, 2, 1], dtype=pl.Float32),
            TARGET: pl.Series([1, nan, 0], dtype=pl.Float32),
            ROW: pl.Series(row_hash(ROWS, ("x", "city", "day"))),
            WEIGHT: pl.Series([1, 0, 2], dtype=pl.Float32),
            TIME: [86_400.0, 31 * 86_400.0, 2 * 86_400.0],
            GROUP: pl.Series(row_hash(ROWS, ("city",))),
        }
    )

    assert_frame_equal(expected, shard, check_exact=True)


def test_without_roles_a_shard_has_target_and_row() -> None:
    """Weight, time and group are there only where they are configured."""
    plain = replace(SCHEMA, time=None, group=None, weight=None)

    assert ["x", "city", "day.month", "w", TARGET, ROW] == shard_frame(ROWS, plain, VOCABULARY, "f").columns


@pytest.mark.parametrize(
    ("task", "labels", "values", "expected"),
    [
        ("binary", ("0", "1"), [1, 0, None], [1.0, 0.0, None]),
        ("binary", ("0", "1"), [1.0, float("nan"), 0.0], [1.0, None, 0.0]),
        ("binary", ("false", "true"), [True, False, None], [1.0, 0.0, None]),
        ("multiclass", ("9", "10", "a"), ["a", "9", "10"], [2.0, 0.0, 1.0]),
        ("regression", (), ["-1.5", None, "2e3"], [-1.5, None, 2000.0]),
        ("regression", (), [float("nan"), 0.0, 1.0], [None, 0.0, 1.0]),
    ],
)
def test_targets(task: Any, labels: tuple[str, ...], values: list[Any], expected: list[float | None]) -> None:
    """A label becomes the code of its class, a number stays one, and what is missing is unlabelled."""
    schema = replace(SCHEMA, task=task, labels=labels)
    shard = shard_frame(ROWS.with_columns(y=pl.Series(values)), schema, VOCABULARY, "f")

    assert expected == shard.get_column(TARGET).fill_nan(None).to_list()


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("y", ["yes", "maybe", None], r"A label is one of 'no', 'yes', but got 'maybe' in column 'y' of f\. Mend the"),
        ("w", [1, -1, 2], r"A weight is a number of 0 or more in every row, but got others in column 'w' of f\. Mend"),
        ("w", [1, None, 2], r"A weight is .*\. Mend the file, or take data\.weight out\."),
        ("w", ["1", "x", "2"], r"A weight is"),
        ("w", [1.0, float("inf"), 2.0], r"A weight is"),
        (
            "day",
            ["1970-01-02", None, "x"],
            r"has a time, but got 2 without \(for example None\) in column 'day' of f\.",
        ),
        ("day", ["1970-01-02", "soon", "1970-01-03"], r"1 without \(for example 'soon'\).* take data\.time out\."),
    ],
)
def test_a_role_without_its_value_is_refused(column: str, values: list[Any], message: str) -> None:
    """An unknown label, a wrong weight and a missing time are named with their column and file."""
    with pytest.raises(InputError, match=message):
        shard_frame(ROWS.with_columns(pl.Series(column, values)), SCHEMA, VOCABULARY, "f")


def test_a_column_that_a_file_lacks_is_missing() -> None:
    """A column that came later counts as missing in the rows before it, as it does in the profile."""
    schema = replace(SCHEMA, group=None)
    lacking = shard_frame(ROWS.drop("city", "x"), schema, VOCABULARY, "f")
    empty = ROWS.with_columns(city=pl.lit(None, dtype=pl.String), x=pl.lit(None, dtype=pl.Float64))

    assert_frame_equal(shard_frame(empty, schema, VOCABULARY, "f"), lacking, check_exact=True)


def test_a_file_without_labels_is_unlabelled() -> None:
    """A file that lacks the target has rows that are not labelled yet; one that lacks weights is refused."""
    shard = shard_frame(ROWS.drop("y"), SCHEMA, VOCABULARY, "f")

    assert [None] * 3 == shard.get_column(TARGET).fill_nan(None).to_list()
    with pytest.raises(InputError, match=r"A weight is a number of 0 or more in every row, .* 'w' of f\."):
        shard_frame(ROWS.drop("w"), SCHEMA, VOCABULARY, "f")


def test_a_shard_of_a_file(tmp_path: Path, store: Store) -> None:
    """A file's shard is stored under its name, and says how many rows, labels and unreadable values there are."""
    frame = ROWS.with_columns(x=pl.Series(["1.5", "x" * 99, None]))
    shard = encode_file(store, source(tmp_path, frame), SCHEMA, VOCABULARY, "shards/a.arrow")

    assert Shard(shard.file, 3, 1, {"x": 1}, {"x": "x" * 80}) == shard
    assert "shards/a.arrow" == shard.file.name
    assert_frame_equal(shard_frame(frame, SCHEMA, VOCABULARY, "f"), load_shard(store, shard), check_exact=True)
    assert [TIME, "x"] == load_shard(store, shard, [TIME, "x"]).columns


def test_csv_and_parquet_files_make_the_same_shard(tmp_path: Path, store: Store) -> None:
    """The same rows in another format are the same shard, byte for byte."""
    files = [source(tmp_path, ROWS, name) for name in ("rows.parquet", "rows.csv")]
    shards = [encode_file(store, file, SCHEMA, VOCABULARY, file.format) for file in files]

    assert shards[0].file.digest == shards[1].file.digest


def test_a_file_encoded_again_is_the_same_shard(tmp_path: Path, store: Store) -> None:
    """Encoding is deterministic, and a later vocabulary changes no code of a shard."""
    file = source(tmp_path, ROWS.with_columns(city=pl.Series(["Oslo", "Rome", None])))
    later = VOCABULARY.extended({"city": ["Lima"]})
    shards = [encode_file(store, file, SCHEMA, v, n) for v, n in ((VOCABULARY, "a"), (VOCABULARY, "b"), (later, "c"))]

    assert 1 == len({shard.file.digest for shard in shards})


def test_a_damaged_shard_is_not_read(tmp_path: Path, store: Store) -> None:
    """A shard whose content changed on disk is refused by name."""
    shard = encode_file(store, source(tmp_path, ROWS), SCHEMA, VOCABULARY, "shards/a.arrow")
    path = Path(store.root, shard.file.name)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DamagedError, match=r"shards/a\.arrow"):
        load_shard(store, shard)


# Failures


def encoded(*failed: int) -> Encoded:
    """Make shards of 100 rows with a number of unreadable values in column `x` each."""
    shards = [
        Shard(Ref(f"s{i}", f"d{i}", 1), 100, 0, {"x": n} if n else {}, {"x": f"bad {i}"} if n else {})
        for i, n in enumerate(failed)
    ]
    return Encoded(SCHEMA, Ref("v", "v", 1), tuple(shards), num_new=len(shards))


def test_too_many_unreadable_values_are_refused() -> None:
    """Above the tolerance over all files, the column, an example and its file are named."""
    message = (
        r"At most 1\.00% of a column may fail to read, but got 3 of 200 values in column='x' as numeric "
        r"\(for example 'bad 1' in /b\.csv\)\. Mend the files, raise data\.tolerance, or set data\.kinds\."
    )
    with pytest.raises(InputError, match=message):
        check_failures(encoded(0, 3), 0.01, ["/a.csv", "/b.csv"])


def test_all_columns_with_unreadable_values_are_named() -> None:
    """Every column above the tolerance is named at once, each with an example."""
    shard = Shard(Ref("s", "d", 1), 100, 0, {"day": 1, "x": 3, "city": 9}, {"day": "a", "x": "b", "city": "c"})
    message = (
        r"but got 9 of 100 values in column='city' as categorical \(for example 'c' in /a\.csv\); "
        r"3 of 100 values in column='x' as numeric \(for example 'b' in /a\.csv\)\. Mend"
    )
    with pytest.raises(InputError, match=message):
        check_failures(Encoded(SCHEMA, Ref("v", "v", 1), (shard,), num_new=1), 0.01, ["/a.csv"])


@pytest.mark.parametrize(("failed", "tolerance"), [((0, 0), 0.0), ((0, 2), 0.01), ((20, 0), 0.1)])
def test_a_few_unreadable_values_are_tolerated(failed: tuple[int, ...], tolerance: float) -> None:
    """Exactly the tolerance, over all files together, is allowed."""
    assert None is check_failures(encoded(*failed), tolerance, ["a", "b"])  # type: ignore[func-returns-value]


def test_a_missing_value_is_no_failure(tmp_path: Path, store: Store) -> None:
    """NaN in a Parquet file is a missing number, and not one that could not be read."""
    frame = ROWS.with_columns(x=pl.Series([float("nan"), None, 1.0]))
    shard = encode_file(store, source(tmp_path, frame), SCHEMA, VOCABULARY, "a")

    assert ({}, {}) == (shard.num_failed, shard.failed_example)


def test_encoded_says_what_it_depends_on() -> None:
    """The key of all shards follows schema, vocabulary and contents, and not where they are or who wrote them."""
    base = encoded(0, 0)
    moved = replace(base, num_new=0, shards=tuple(replace(s, file=replace(s.file, name="x")) for s in base.shards))
    others = [
        replace(base, shards=base.shards[:1]),
        replace(base, schema=replace(SCHEMA, labels=("yes", "no"))),
        replace(base, vocabulary=Ref("v", "w", 1)),
    ]

    assert (200, False, True, True) == (base.num_rows, base.is_reused, moved.is_reused, base.key == moved.key)
    assert 4 == len({base.key, *(other.key for other in others)})


# The vocabulary


def vocabulary_of(known: Vocabulary, values: list[Any], **limits: int) -> tuple[str, ...]:
    """Extend a vocabulary by the values of some rows."""
    seen = profile_frame(
        pl.DataFrame({"city": values, "x": range(len(values)), "day": [date(2024, 1, 1)] * len(values)})
    )
    return extended_vocabulary(known, SCHEMA, seen, **limits).values["city"]


def test_frequent_values_come_first() -> None:
    """New values are appended, the most frequent first; a value that occurs once gets no code."""
    values = ["b", "c", "c", "c", "a", "a", "b", "once", None, "Rome"]

    assert ("Rome", "Oslo", "c", "a", "b") == vocabulary_of(VOCABULARY, values)


def test_a_vocabulary_is_bounded() -> None:
    """Beyond the limit no further value gets a code, however often runs see new ones."""
    first = vocabulary_of(VOCABULARY, ["a", "a", "b", "b", "b"], limit=3)

    assert ("Rome", "Oslo", "b") == first
    assert first == vocabulary_of(Vocabulary({"city": first}), ["z"] * 9, limit=3)
    assert ("Rome", "Oslo", "b") == vocabulary_of(VOCABULARY, ["a", "a", "b", "b", "b"], minimum=3)


def test_only_categories_have_codes() -> None:
    """Columns that are not categorical enter no vocabulary."""
    seen = profile_frame(ROWS)

    assert {"city": ()} == extended_vocabulary(Vocabulary(), SCHEMA, seen).values


def test_a_datetime_hashes_alike_in_every_resolution() -> None:
    """The unit in which a file keeps its times does not move a row to another side."""
    moments = [datetime(2024, 1, 2, 3, 4, 5), None]

    assert 1 == len({tuple(hashes(*moments, dtype=pl.Datetime(unit))) for unit in ("ms", "us", "ns")})
