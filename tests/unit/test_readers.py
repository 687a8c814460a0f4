"""Reading source files into frames."""

from __future__ import annotations

import csv
import gzip
import io
import os
import random
import zipfile
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.errors import InputError
from tasks import _readers
from tasks._readers import count_rows, read_file, read_schema
from tasks._snapshot import CsvConfig, SourceFile, source_file

TYPED = pl.DataFrame(
    {
        "n": [1, 2],
        "city": pl.Series(["Rome", "Oslo"], dtype=pl.Categorical),
        "size": pl.Series(["S", None], dtype=pl.Enum(["S", "M"])),
        "price": [Decimal("1.50"), None],
        "day": [date(2024, 1, 1), date(2024, 1, 2)],
        "at": [datetime(2024, 1, 1, 5), None],
        "ok": [True, False],
        "none": [None, None],
    }
)
READ = {
    "n": [1, 2],
    "city": ["Rome", "Oslo"],
    "size": ["S", None],
    "price": [1.5, None],
    "day": [date(2024, 1, 1), date(2024, 1, 2)],
    "at": [datetime(2024, 1, 1, 5), None],
    "ok": [True, False],
    "none": [None, None],
}


def source(folder: Path, payload: bytes | str, name: str = "a.csv", **settings: Any) -> SourceFile:
    """Write a file and fingerprint it."""
    path = folder / name
    path.write_bytes(payload.encode() if isinstance(payload, str) else payload)
    return source_file(str(path), CsvConfig(**settings))


def rows(folder: Path, payload: bytes | str, name: str = "a.csv", **settings: Any) -> list[tuple[Any, ...]]:
    """Read a file's rows."""
    return read_file(source(folder, payload, name, **settings)).rows()


def json_columns(folder: Path, *lines: str) -> dict[str, list[Any]]:
    """Read a JSON Lines file."""
    return read_file(source(folder, "\n".join(lines), "a.jsonl")).to_dict(as_series=False)


# CSV


@pytest.mark.parametrize(
    "payload",
    [
        "k,größe\n1,x y\n2,\n",
        "k,größe\r\n1,x y\r\n2,\r\n",
        "\ufeffk,größe\n1,x y\n2,",
        "\n\nk,größe\n\n1,x y\n\n2,\n\n\n",
        "\r\nk,größe\r\n1,x y\r\n\r\n2,\r\n\r\n",
        ' k ,"größe"\n 1,\tx y \n2,   \n',
        '"k","größe"\n"1","x y"\n"2",""\n',
        "k;größe\n1;x y\n2;?\n",
        "k\tgröße\n1\tx y\n2\tNULL\n",
        '"k"\t"größe"\n"1"\t"\tx y\t"\n"2"\t" NaN "\n',
        "k,größe\n1,\u00a0x y\n2,\u3000\n",
    ],
)
def test_csv_however_written_reads_the_same(tmp_path: Path, payload: str) -> None:
    """Line ends, byte order mark, blank lines, padding, quotes and delimiters do not change the rows."""
    frame = read_file(source(tmp_path, payload))

    assert {"k": ["1", "2"], "größe": ["x y", None]} == frame.to_dict(as_series=False)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_csv_encoding_with_a_mark_is_read(tmp_path: Path, encoding: str) -> None:
    """A text with a byte order mark needs no setting."""
    assert [("Zoë", "Zürich")] == rows(tmp_path, "naïve,stadt\nZoë,Zürich\n".encode(encoding))


def test_csv_in_a_stated_encoding_is_read(tmp_path: Path) -> None:
    """A stated code page is used as it is."""
    assert [("3 €",)] == rows(tmp_path, "preis\n3 €\n".encode("cp1252"), encoding="cp1252")


def test_csv_quotes_keep_delimiters_and_lines(tmp_path: Path) -> None:
    """Delimiters, line ends and doubled quotes inside quotes belong to the value."""
    text = 'id,note\n1,"a,b"\n2,"c\nd"\n3,"say ""hi"""\n4,"\n e "\n'

    assert [("1", "a,b"), ("2", "c\nd"), ("3", 'say "hi"'), ("4", "e")] == rows(tmp_path, text)


def test_csv_without_quotes_keeps_them(tmp_path: Path) -> None:
    """With data.csv.quote = "" an inch sign is a character like any other."""
    assert [("1", '5" pipe'), ("2", '"x"')] == rows(tmp_path, 'id,part\n1,5" pipe\n2,"x"\n', quote="")


def test_missing_values_are_those_of_the_dialect(tmp_path: Path) -> None:
    """The default list leaves 'None' and '-'; a stated list replaces it, but an empty cell stays missing."""
    text = "a,b,c\n?,NA,None\n-,,nan\n"

    assert [(None, None, "None"), ("-", None, None)] == rows(tmp_path, text)
    assert [("?", "NA", "None"), (None, None, "nan")] == rows(tmp_path, text, na_values=["-"])


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".zip"])
def test_packed_file_reads_and_a_truncated_one_is_refused(tmp_path: Path, suffix: str) -> None:
    """A packed text reads like the plain one; cut off, it is named instead of giving fewer rows."""
    text = ("a,b\n" + "".join(f"{i},{i * i % 997}\n" for i in range(300_000))).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.csv", text)
    packed = {
        ".gz": gzip.compress(text, 1),
        ".zst": pa.compress(text, codec="zstd", asbytes=True),
        ".zip": buffer.getvalue(),
    }[suffix]
    file = source(tmp_path, packed, "a.csv" + suffix)

    assert (300_000, ("299999", str(299_999**2 % 997))) == (count_rows(file), read_file(file).row(-1))
    with pytest.raises(InputError, match=r'must be complete and readable, but got file=".*/a.csv.+" \(.+\). Fetch or'):
        rows(tmp_path, packed[: len(packed) - 30], "a.csv" + suffix)


@pytest.mark.parametrize(
    ("text", "num_fields", "line"),
    [
        ("a,b,c\n1,2,3\n4,5\n6,7,8\n", 2, 3),
        ("a,b,c\n1,2,3\n4,5,6,7\n", 4, 3),
        ("a,b,c\n1,2,3\n4,5,6,", 4, 3),
        ("\na,b,c\n\n1,2,\n4,5", 2, 5),
        ('a,b,c\n1,"x\ny",\n4,"5"\n', 2, 4),
        ('a,b,c\n1,"x,\ny",3\n4,"5",6,\n', 4, 4),
        ("a,b,c\r\n1,2,3\r\n \r\n", 1, 3),
        ("a,b,c\n1,2\n3,4,5,6\n", 2, 2),
    ],
)
@pytest.mark.parametrize("chunk_bytes", [1, 5, 1 << 20])
def test_ragged_row_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int, text: str, num_fields: int, line: int
) -> None:
    """A row that is too short or too long is named by its line, wherever the file is cut for counting."""
    monkeypatch.setattr(_readers, "_CHUNK_BYTES", chunk_bytes)
    message = (
        f'as many fields as the header, 3, but got num_fields={num_fields} in line {line} of ".*/a.csv". '
        "Correct the line, or set data.csv.delimiter"
    )

    with pytest.raises(InputError, match=message):
        rows(tmp_path, text, delimiter=",")


@pytest.mark.parametrize(
    ("text", "found", "line"),
    [
        ('a,b\n1,"x\n2,y\n', "a quote that is not closed", 2),
        ('a,b\n1,"x\n2,"y"\n3,"z\n', "a quote that is not closed", 2),
        ('a,b\n1,"x"y\n', "a quote that is not closed", 2),
        ('a,b\n1,"p\nq"\n2,5" pipe\n', "a quote inside an unquoted field", 4),
        ('a,b\n1,5" pipe 6"\n', "a quote inside an unquoted field", 2),
        ('a,b\n1, "x"\n', "a quote inside an unquoted field", 2),
    ],
)
@pytest.mark.parametrize("chunk_bytes", [1, 4, 1 << 20])
def test_stray_quote_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int, text: str, found: str, line: int
) -> None:
    """A quote that would swallow or join fields is named by its line."""
    monkeypatch.setattr(_readers, "_CHUNK_BYTES", chunk_bytes)
    message = (
        f'doubled inside it, but got {found} in line {line} of ".*/a.csv". Correct the line, or set data.csv.quote'
    )

    with pytest.raises(InputError, match=message):
        rows(tmp_path, text, delimiter=",")


def test_byte_of_another_encoding_is_refused_with_its_line(tmp_path: Path) -> None:
    """A foreign byte far below the part that detection sees is found when the file is read."""
    text = b"\na,b\n" + b"1,2\n" * 300_000 + "3,Málaga\n".encode("cp1252")

    with pytest.raises(InputError, match=r"in utf-8 throughout, but got byte=0xe1 in line 300003 of .*Set data.csv"):
        rows(tmp_path, text)


def test_byte_outside_the_stated_encoding_is_refused(tmp_path: Path) -> None:
    """A stated encoding is checked as well."""
    with pytest.raises(InputError, match="in ascii throughout, but got byte=0xc3 in line 2"):
        rows(tmp_path, "a\né\n", encoding="ascii")


@pytest.mark.parametrize("seed", range(150))
def test_csv_agrees_with_the_standard_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Random files read as Python's csv module reads them, apart from stripping and missing values."""
    draw = random.Random(seed)
    monkeypatch.setattr(_readers, "_CHUNK_BYTES", draw.choice([1, 2, 7, 1 << 20]))
    delimiter, line_end, width = draw.choice(",;\t|"), draw.choice(["\n", "\r\n"]), draw.randint(1, 4)
    cells = ["a", "", " p", "q ", "é", "\u00a0n", "\tt", '"q', "a,b;c", "l\nm", "\ne", '""']
    values = [[f"c{i}" for i in range(width)]] + [draw.choices(cells, k=width) for _ in range(draw.randint(1, 8))]
    buffer = io.StringIO(newline="")
    quoting: Literal[0, 1] = csv.QUOTE_ALL if draw.random() < 0.5 else csv.QUOTE_MINIMAL
    writer = csv.writer(buffer, delimiter=delimiter, lineterminator=line_end, quoting=quoting)
    for row in values:
        writer.writerow(row)
        buffer.write(line_end * (draw.random() < 0.1))
    text = buffer.getvalue() if draw.random() < 0.5 else buffer.getvalue().removesuffix(line_end)
    expected = [tuple(cell.strip() or None for cell in row) for row in values[1:]]

    assert expected == rows(tmp_path, text, delimiter=delimiter, quote='"', na_values=[])


# JSON Lines


def test_json_values_keep_their_types(tmp_path: Path) -> None:
    """Numbers, booleans and strings stay what they are; absent keys are missing."""
    lines = ('{"i": 1, "f": 1.5, "b": true, "s": "NA", "z": null}', "", '{"i": 2, "new": "x"}', "  ")
    expected = {
        "i": [1, 2],
        "f": [1.5, None],
        "b": [True, None],
        "s": ["NA", None],
        "z": [None] * 2,
        "new": [None, "x"],
    }

    assert expected == json_columns(tmp_path, *lines)
    schema = read_schema(source(tmp_path, "\ufeff" + "\r\n".join(lines), "b.ndjson"))
    types = {"i": pl.Int64, "f": pl.Float64, "b": pl.Boolean, "s": pl.String, "z": pl.String, "new": pl.String}
    assert types == schema


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["1", "2.5"], [1.0, 2.5]),
        (["1", '"x"'], ["1", "x"]),
        (["1.5", '"x"', "true"], ["1.5", "x", "true"]),
        (["true", "1"], ["true", "1"]),
        (['{"k": [1]}', "null"], ['{"k": [1]}', None]),
        (['{"k": 1}', "[1, 2]", "3"], ['{"k": 1}', "[1, 2]", "3"]),
        (["18446744073709551616", "1"], [18446744073709551616.0, 1.0]),
    ],
)
def test_json_mixtures_have_one_type(tmp_path: Path, values: list[str], expected: list[Any]) -> None:
    """Integers and floats become floats, other mixtures and nested values texts."""
    assert {"x": expected} == json_columns(tmp_path, *(f'{{"x": {value}}}' for value in values))


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b'{"a": 1}\n\n{bad}\n', r'must be a JSON object, but got line 3 of ".*a.jsonl" \(.+\). Correct the line'),
        (b'{"a": 1}\n{"a": 2', "must be a JSON object, but got line 2 of"),
        (b'{"a": 1}\n[2]\n', r"must be a JSON object, but got line 2 of .* \(a list\)"),
        (b'{"a": NaN}\n', "must be a JSON object, but got line 1 of"),
        (b'{"a": "x"}\n{"a": "\xe9"}\n', "utf-8 throughout, but got byte=0xe9 in line 2 of .* Convert it to UTF-8"),
        (b"\n\n", "at least one row, but got num_rows=0"),
    ],
)
def test_bad_json_line_is_refused(tmp_path: Path, payload: bytes, message: str) -> None:
    """A line that is not a JSON object is named by its number."""
    with pytest.raises(InputError, match=message):
        rows(tmp_path, payload, "a.jsonl")


# Parquet and Arrow


def typed(folder: Path, name: str, frame: pl.DataFrame) -> SourceFile:
    """Write a frame in a typed format."""
    path = folder / name
    if name.endswith(".parquet"):
        frame.write_parquet(path)
    elif name.startswith("stream"):
        frame.write_ipc_stream(path)
    else:
        frame.write_ipc(path)
    return source_file(str(path), CsvConfig())


@pytest.mark.parametrize("name", ["[1].parquet", "file.arrow", "stream.arrow"])
def test_typed_file_keeps_its_types(tmp_path: Path, name: str) -> None:
    """Numbers and times stay as they are; categories become texts, decimals floats, nulls alone texts."""
    file = typed(tmp_path, name, TYPED)
    frame = read_file(file)

    assert READ == frame.to_dict(as_series=False)
    assert dict(frame.schema) == read_schema(file)
    assert (2, ["day", "n"]) == (count_rows(file), read_file(file, ["day", "n"]).columns)


@pytest.mark.parametrize("name", ["a.parquet", "file.arrow", "stream.arrow"])
@pytest.mark.parametrize(
    ("values", "type_"),
    [([b"x"], "Binary"), ([[1]], r"List\(Int64\)"), ([{"k": 1}], "Struct"), ([timedelta(1)], "Duration")],
)
def test_column_that_no_model_takes_is_refused_when_asked_for(
    tmp_path: Path, name: str, values: list[Any], type_: str
) -> None:
    """A binary or nested column stops the run only if it is used."""
    file = typed(tmp_path, name, pl.DataFrame({"bad": values, "n": [1]}))

    assert ([(1,)], 1) == (read_file(file, ["n"]).rows(), count_rows(file))
    with pytest.raises(
        InputError, match=f'or timestamps, but got column="bad" of type {type_}.* in ".*". Add it to data'
    ):
        read_file(file)


@pytest.mark.parametrize("name", ["a.parquet", "file.arrow", "stream.arrow"])
def test_damaged_typed_file_is_refused(tmp_path: Path, name: str) -> None:
    """A file that was cut off, or is something else, is named with its format and what is wrong."""
    payload = Path(typed(tmp_path, name, TYPED).path).read_bytes()
    message = r'must be valid (parquet|arrow), but got file=".*" \(.+\). Fetch or write it again'

    for damaged in (payload[: len(payload) // 2], b"a,b\n1,2\n", payload[: len(payload) - 20]):
        if name == "stream.arrow" and damaged == payload[: len(payload) - 20]:
            continue  # a stream without its end mark still has all of its batches
        with pytest.raises(InputError, match=message):
            rows(tmp_path, damaged, name)


def test_parquet_with_a_column_twice_is_refused(tmp_path: Path) -> None:
    """Two columns of one name cannot be told apart."""
    pq.write_table(pa.table([pa.array([1]), pa.array([2])], names=["a", "a"]), tmp_path / "a.parquet")

    with pytest.raises(InputError, match='must be valid parquet, but got file=".*a.parquet" .*a'):
        read_file(source_file(str(tmp_path / "a.parquet"), CsvConfig()))


# Every format


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet", "file.arrow", "stream.arrow"])
def test_columns_are_chosen_and_ordered(tmp_path: Path, name: str) -> None:
    """Columns come in the order asked; one that the file lacks is named, with the nearest."""
    texts = {"a.csv": "age,pay\n39,1\n", "a.jsonl": '{"age": 39, "pay": 1}\n'}
    frame = pl.DataFrame({"age": [39], "pay": [1]})
    file = source(tmp_path, texts[name], name) if name in texts else typed(tmp_path, name, frame)

    assert (["pay", "age"], 1) == (read_file(file, ["pay", "age"]).columns, count_rows(file))
    assert ["age", "pay"] == list(read_schema(file))
    with pytest.raises(
        InputError, match='every source file, but got column="agee", which ".*" lacks. Did you mean "age"'
    ):
        read_file(file, ["agee"])


@pytest.mark.parametrize("name", ["a.csv", "a.parquet", "file.arrow"])
def test_file_without_rows_is_refused(tmp_path: Path, name: str) -> None:
    """A header alone is not data."""
    empty = pl.DataFrame(schema={"a": pl.Int64, "b": pl.String})
    file = source(tmp_path, "a,b\n\n", name) if name == "a.csv" else typed(tmp_path, name, empty)

    with pytest.raises(InputError, match='at least one row, but got num_rows=0 in ".*". Write it again'):
        read_file(file)


def test_file_that_changed_since_the_snapshot_is_refused(tmp_path: Path) -> None:
    """Another size or time, or no file at all, is a change, and read_schema and count_rows see it too."""
    file = source(tmp_path, "a\n1\n")
    message = 'stay as it is during a run, but got file=".*a.csv", which changed while it was read. Run again'

    os.utime(file.path, ns=(0, file.modified_ns + 1))
    for read in (read_file, read_schema, count_rows):
        with pytest.raises(InputError, match=message):
            read(file)
    os.remove(file.path)
    with pytest.raises(InputError, match=message):
        read_file(file)


def test_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is cut off during the read is called changed, not damaged."""
    file = source(tmp_path, "a,b\n1,2\n")

    def cut(path: str) -> bytes:
        Path(path).write_bytes(b"a,b\n1")
        return b"a,b\n1"

    monkeypatch.setattr(_readers, "unpacked_bytes", cut)

    with pytest.raises(InputError, match="which changed while it was read"):
        read_file(file)
