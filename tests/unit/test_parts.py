"""Parts of large files: every row in one of them, and all of them what the file is."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from infra.errors import InputError
from tasks import _parts, _snapshot
from tasks._parts import TextDivider
from tasks._readers import read_file, read_units, work_orders
from tasks._snapshot import CsvConfig, SourceFile, source_file

QUICK = settings(max_examples=50, deadline=None, derandomize=True)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Divide files of a few rows."""
    monkeypatch.setattr(_parts, "TEXT_BYTES", 64)
    monkeypatch.setattr(_snapshot, "TEXT_BYTES", 64)
    monkeypatch.setattr(_parts, "TYPED_BYTES", 400)


def written(folder: Path, name: str, payload: bytes) -> SourceFile:
    """Write a file and fingerprint it."""
    path = folder / name
    path.write_bytes(gzip.compress(payload) if path.suffix == ".gz" else payload)
    return source_file(str(path), CsvConfig())


def joined(file: SourceFile) -> pl.DataFrame:
    """Read a file unit by unit."""
    return pl.concat(
        [frame for order in work_orders(file.units) for frame in read_units(order)], how="diagonal_relaxed"
    )


ROWS = pl.DataFrame(
    {"n": range(40), "x": [i / 3 for i in range(40)], "city": ["Rome", None, "São Paulo", 'the "big" one'] * 10}
)
TEXT = ROWS.write_csv().encode()


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_units_of_a_csv_file_are_its_rows(tmp_path: Path, name: str) -> None:
    """What is read unit by unit is what is read as a whole, packed or not."""
    file = written(tmp_path, name, TEXT)

    assert len(file.units) > 5
    assert_frame_equal(read_file(file), joined(file))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_units_of_a_json_lines_file_are_its_rows(tmp_path: Path, name: str) -> None:
    """Lines of JSON are divided as those of CSV are, without a header."""
    file = written(tmp_path, name, ROWS.write_ndjson().encode())

    assert len(file.units) > 5
    assert_frame_equal(read_file(file), joined(file))


@pytest.mark.parametrize("row_group_size", [7, 15, 40])
def test_units_of_a_parquet_file_are_its_rows(tmp_path: Path, row_group_size: int) -> None:
    """Small row groups are joined and large ones cut."""
    ROWS.write_parquet(tmp_path / "a.parquet", row_group_size=row_group_size)
    file = source_file(str(tmp_path / "a.parquet"), CsvConfig())

    assert len(file.units) > 3
    assert_frame_equal(ROWS, joined(file))


def test_units_of_an_arrow_file_are_its_rows(tmp_path: Path) -> None:
    """A file in the Arrow file format is divided by its batches."""
    ROWS.write_ipc(tmp_path / "a.arrow", record_batch_size=10)
    file = source_file(str(tmp_path / "a.arrow"), CsvConfig())

    assert len(file.units) > 3
    assert_frame_equal(ROWS, joined(file))


def test_a_stream_is_not_divided(tmp_path: Path) -> None:
    """The Arrow stream format has no index; it stays whole."""
    ROWS.write_ipc_stream(tmp_path / "a.arrow")

    assert 1 == len(source_file(str(tmp_path / "a.arrow"), CsvConfig()).units)


def test_a_text_of_two_bytes_a_character_is_not_divided(tmp_path: Path) -> None:
    """Where a line end is not one byte, a text stays whole."""
    file = written(tmp_path, "a.csv", TEXT.decode().encode("utf-16"))

    assert 1 == len(file.units)
    assert_frame_equal(read_file(written(tmp_path, "b.csv", TEXT)), read_file(file))


FIELDS = st.text(alphabet='ab,"\n é', max_size=8)


@QUICK
@given(
    st.lists(st.tuples(FIELDS, FIELDS), min_size=2, max_size=30),
    st.integers(1, 80),
    st.integers(1, 50),
)
def test_a_part_ends_where_a_record_does(rows: list[tuple[str, str]], size: int, chunk: int) -> None:
    """Whatever stands in quotes, however the bytes go by: the parts are the text, and each of whole records."""
    payload = pl.DataFrame(rows, schema=["a", "b"], orient="row").write_csv(quote_style="always").encode()
    divider = TextDivider('"', size)
    for start in range(0, len(payload), chunk):
        divider.feed(payload[start : start + chunk])
    parts = divider.parts()

    pieces = [payload[part.start : part.stop] for part in parts] or [payload]
    assert payload == b"".join(pieces)
    assert all(piece.count(b'"') % 2 == 0 and piece.endswith(b"\n") for piece in pieces)
    assert all(part.size >= size for part in parts[:-1])
    assert [1 + payload[: part.start].count(b"\n") for part in parts] == [part.line for part in parts]


def test_a_file_that_grows_is_new_in_its_last_part_alone(tmp_path: Path) -> None:
    """Parts of a text are known by their own bytes: rows that are added leave all earlier ones known."""
    before = written(tmp_path, "a.csv", TEXT)
    after = written(tmp_path, "a.csv", TEXT + b"40,1.5,Oslo\n41,2.5,Oslo\n")
    known = {unit.key for unit in before.units}

    assert [True] * (len(before.units) - 1) == [unit.key in known for unit in after.units[: len(before.units) - 1]]
    assert not any(unit.key in known for unit in after.units[len(before.units) - 1 :])


def test_a_renamed_column_makes_every_part_new(tmp_path: Path) -> None:
    """The same bytes under another header are other rows."""
    before = written(tmp_path, "a.csv", TEXT)
    after = written(tmp_path, "b.csv", TEXT.replace(b"n,x,city", b"m,x,city"))

    assert len(before.units) == len(after.units)
    assert set() == {unit.key for unit in before.units} & {unit.key for unit in after.units}


def test_an_error_in_a_later_part_names_its_line(tmp_path: Path) -> None:
    """A row that is too short is named by its line in the file, not in the part."""
    lines = TEXT.splitlines()
    number = next(i for i in range(30, len(lines)) if lines[i].count(b",") == 2)
    lines[number] = b"1,2"
    file = written(tmp_path, "a.csv", b"\n".join(lines) + b"\n")
    with pytest.raises(InputError, match=rf"got num_fields=2 in line {number + 1} of"):
        joined(file)


def test_a_bad_line_of_json_in_a_later_part_is_named(tmp_path: Path) -> None:
    """A line that is no JSON is named by its number in the file."""
    lines = [json.dumps({"n": i, "city": "Rome"}) for i in range(30)]
    lines[25] = "{oops"
    file = written(tmp_path, "a.jsonl", ("\n".join(lines) + "\n").encode())
    with pytest.raises(InputError, match=r"got line 26 of"):
        joined(file)


def test_a_packed_file_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of a packed file are read together, those of a plain one apart."""
    plain, packed = written(tmp_path, "a.csv", TEXT), written(tmp_path, "b.csv.gz", TEXT)
    opened: list[Any] = []
    real = _snapshot._open_unpacked
    monkeypatch.setattr(_snapshot, "_open_unpacked", lambda *args: (opened.append(args[0]), real(*args))[1])
    orders = work_orders([*plain.units, *packed.units])

    assert [1] * len(plain.units) + [len(packed.units)] == [len(order) for order in orders]
    list(read_units(orders[-1]))
    # Once for its parts, and once for the header of each.
    assert 1 + len(packed.units) == len(opened)


def test_a_file_that_was_cut_is_refused(tmp_path: Path) -> None:
    """A file that is shorter than when it was divided is not what the snapshot says."""
    file = written(tmp_path, "a.csv", TEXT)
    Path(file.path).write_bytes(TEXT[:200])
    with pytest.raises(InputError, match=r"which changed while it was read"):
        joined(file)


@pytest.mark.parametrize("name", ["a.csv.gz", "a.jsonl.gz"])
@pytest.mark.parametrize("share", [0.3, 0.97])
def test_a_packed_file_that_ends_early_is_refused(tmp_path: Path, name: str, share: float) -> None:
    """A packed file that was cut is named, in the snapshot if it is looked through for parts, else when it is read."""
    rng = np.random.default_rng(0)
    frame = pl.DataFrame({"n": rng.normal(size=300), "m": rng.normal(size=300)})
    text = frame.write_ndjson() if "json" in name else frame.write_csv()
    packed = gzip.compress(text.encode())
    (tmp_path / name).write_bytes(packed[: int(share * len(packed))])
    with pytest.raises(InputError, match=rf'must be complete and readable, but got file=".*{name}" .*Fetch or write'):
        joined(source_file(str(tmp_path / name), CsvConfig()))
