"""Reading: any source file as a Polars frame, complete or not at all.

A text file is checked more strictly than Polars checks it: Polars pads rows that are too short with nulls and joins
rows when a quote is not closed. Both checks run on the bytes with NumPy, so that they cost a fraction of the parse,
and their errors name the line.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

import numpy as np
import numpy.typing as npt
import orjson
import polars as pl
import pyarrow as pa
from polars.exceptions import PanicException, PolarsError

from infra.errors import InputError, RunError, nearest
from infra.objects import S3Object, polars_options, read_range, require_unchanged
from infra.sources import open_source
from tasks._parts import Part
from tasks._snapshot import (
    ARROW_FILE,
    SAMPLE_BYTES,
    Dialect,
    SourceFile,
    changed_error,
    csv_names,
    decoded,
    encoding_error,
    sample_bytes,
    unpacked_bytes,
    unpacked_parts,
)

_CHUNK_BYTES = 1 << 20
"""How much of a text is looked at together; its intermediate arrays then stay in the processor's cache."""
_LF, _CR = 10, 13
_SPACES = b" \t\x0b\x0c"
_WIDE_SPACES = (b"\xc2\x85", b"\xc2\xa0", b"\xe1\x9a\x80", b"\xe2\x80", b"\xe2\x81\x9f", b"\xe3\x80\x80")
"""The bytes that the characters with Unicode's White_Space property, which Polars strips, begin with."""
_BOM = b"\xef\xbb\xbf"
CLOUD_ERROR = "object-store error"
"""What Polars begins with if not the file is wrong but what lies between."""
_TO_TEXT = (pl.Categorical, pl.Enum, pl.Null)
_TO_FLOAT = (pl.Decimal, pl.Int128, pl.UInt128)
_UNSUPPORTED = (pl.Binary, pl.Object, pl.Duration, pl.Time)


def read_file(file: SourceFile, columns: list[str] | None = None) -> pl.DataFrame:
    """Read the rows of a file or unit; all columns in the file's order, or those asked for in the order asked.

    CSV: every column is String, without surrounding whitespace; empty cells and the dialect's NA values are null,
    blank lines are left out. JSON Lines: numbers, booleans and strings keep their type (integers and floats
    together become floats, other mixtures texts), nested values become the text of their JSON. Parquet and Arrow:
    types are kept, but categories become String and decimals Float64. A column of nulls alone is String.

    Raises InputError if the file was changed since its snapshot, is damaged or ragged, has no rows, lacks a column,
    or one of the columns is binary, nested or a duration.
    """
    with _unchanged(file):
        frame = {"csv": _read_csv, "jsonl": _read_jsonl, "parquet": _read_parquet, "arrow": _read_arrow}[file.format](
            file, columns
        )
    if frame.height == 0 and file.part is None:
        raise InputError(
            f'A source file must hold at least one row, but got num_rows=0 in "{file.path}". '
            "Write it again, or leave it out of data.source."
        )
    return frame


def read_units(units: Sequence[SourceFile]) -> Iterator[pl.DataFrame]:
    """Read units of one file one after the other; a packed text is unpacked once for all of them."""
    if not units[0].is_packed:
        yield from map(read_file, units)
        return
    read = _read_csv if units[0].format == "csv" else _read_jsonl
    with _unchanged(units[0]):
        for unit, payload in zip(
            units, unpacked_parts(units[0].source, [unit.parts[0] for unit in units]), strict=True
        ):
            yield read(unit, None, payload)


def work_orders(units: Sequence[SourceFile]) -> list[tuple[SourceFile, ...]]:
    """Return what to read in one go: each unit by itself, but those of one packed text together.

    Units of a packed text can be reached only by unpacking all that comes before them.
    """
    packed: dict[str, list[SourceFile]] = {}
    for unit in units:
        if unit.is_packed:
            packed.setdefault(unit.path, []).append(unit)
    alone = [(unit,) for unit in units if not unit.is_packed]
    return [*alone, *(tuple(sorted(listed, key=lambda unit: unit.parts[0].start)) for listed in packed.values())]


def _payload(file: SourceFile) -> bytes:
    """Return the unpacked bytes of a text file or unit."""
    return unpacked_bytes(file.source) if file.part is None else next(unpacked_parts(file.source, [file.part]))


def read_schema(file: SourceFile) -> dict[str, pl.DataType]:
    """Return the columns of a file with the types that `read_file` gives them.

    Columns that `read_file` refuses are listed with the type they have in the file. Reads the header or footer
    alone, except for JSON Lines, where any row may add a column.
    """
    with _unchanged(file):
        if file.format == "csv":
            return dict.fromkeys(csv_names(file.source, _dialect(file)), pl.String())
        if file.format == "jsonl":
            return dict(_read_jsonl(file, None).schema)
        raw = _parquet_schema(file, _scan_parquet(file)) if file.format == "parquet" else _arrow_schema(file)
        return {name: _target_type(dtype) for name, dtype in raw.items()}


def count_rows(file: SourceFile) -> int:
    """Return the number of rows of a file; for Parquet from its footer, otherwise by reading one column."""
    if file.format == "parquet":
        with _unchanged(file), _intact(file):
            return int(_scan_parquet(file).select(pl.len()).collect().item())
    if file.format == "jsonl":
        return read_file(file).height
    readable = [name for name, dtype in read_schema(file).items() if not _is_unsupported(dtype)]
    return read_file(file, readable[:1]).height


@contextmanager
def _unchanged(file: SourceFile) -> Iterator[None]:
    """Refuse a file that is not, before and after it is read, the one in the snapshot."""
    _check_unchanged(file)
    try:
        yield
    finally:  # a file that is being written to also looks damaged: this is then the better message
        _check_unchanged(file)


def _check_unchanged(file: SourceFile) -> None:
    """Compare a file's size and time with the snapshot.

    An object is read with the snapshot's ETag in every request, but by Polars, which does not name it.
    """
    source = file.source
    if isinstance(source, S3Object):
        if file.format == "parquet":
            require_unchanged(source)
        return
    try:
        stat = os.stat(file.path)
    except OSError as error:
        raise changed_error(file.path) from error
    if (stat.st_size, stat.st_mtime_ns) != (file.num_bytes, file.modified_ns):
        raise changed_error(file.path)


@contextmanager
def _intact(file: SourceFile) -> Iterator[None]:
    """Say of a file that Polars cannot read which one it is."""
    try:
        yield
    except (PolarsError, PanicException, OSError) as error:
        if isinstance(file.source, S3Object) and str(error).startswith(CLOUD_ERROR):
            raise _no_answer(file.source, error) from error
        raise _damaged(file, error) from error


def _no_answer(source: S3Object, error: BaseException) -> RunError:
    """Return the error for an object that Polars could not read because of S3; raise a better one if boto3 has it."""
    read_range(source, 0, 1)
    reason = " ".join(str(error).split())
    return RunError(
        f"S3 must answer, but got an error on the way to {source} ({reason}). "
        "Start the run again; it goes on from what is done."
    )


def _damaged(file: SourceFile, error: BaseException) -> InputError:
    """Return the error for content that is not what the file's name says."""
    reason = str(error).strip().partition("\n")[0]
    return InputError(
        f'A source file must be valid {file.format}, but got file="{file.path}" ({reason}). Fetch or write it again.'
    )


def _check_columns(file: SourceFile, columns: list[str], known: list[str]) -> None:
    """Refuse a column that the file lacks."""
    for column in columns:
        if column not in known:
            raise InputError(
                f'A column must be in every source file, but got column="{column}", which "{file.path}" lacks.'
                f"{nearest(column, known)} Correct the name, or leave the file out of data.source."
            )


# CSV


@dataclass(frozen=True)
class _Text:
    """The bytes of a CSV file as UTF-8, from its header on."""

    payload: bytes
    first_line: int
    """The line of the file that the payload starts with, from 1."""
    delimiter: int
    quote: int | None
    """None: nothing is quoted, or no quote is in the file."""

    def line(self, position: int) -> int:
        """Return the line of the file that a byte is in."""
        return self.first_line + self.payload.count(b"\n", 0, position)


def _dialect(file: SourceFile) -> Dialect:
    """Return the dialect, which every CSV file of a snapshot has."""
    assert file.dialect is not None
    return file.dialect


def _csv_text(file: SourceFile, payload: bytes, num_names: int) -> _Text:
    """Return the bytes of a CSV file or unit as UTF-8, from a header on.

    The byte order mark and the blank lines above a file's own header are left out; a later unit gets a header of
    numbers, for its columns are named in any case.
    """
    dialect = _dialect(file)
    if dialect.encoding not in ("utf-8", "utf-8-sig"):
        payload = decoded(file.path, payload, dialect.encoding, is_complete=True).encode()
    line = 1
    if file.part is None or file.part.start == 0:
        payload = payload.removeprefix(_BOM)
        above = payload[:SAMPLE_BYTES]
        above = above[: len(above) - len(above.lstrip(b"\r\n"))]
        payload, line = payload[len(above) :], 1 + above.count(b"\n")
    else:
        names = dialect.delimiter.join(map(str, range(num_names)))
        payload, line = f"{names}\n".encode() + payload, file.part.line - 1
    quote = ord(dialect.quote) if dialect.quote and dialect.quote.encode() in payload else None
    return _Text(payload, line, ord(dialect.delimiter), quote)


def _read_csv(file: SourceFile, columns: list[str] | None, payload: bytes | None = None) -> pl.DataFrame:
    """Read a CSV file or unit strictly: every row has as many fields as the header, every quote is closed."""
    dialect = _dialect(file)
    names = csv_names(file.source, dialect)
    _check_columns(file, columns or [], names)
    text = _csv_text(file, _payload(file) if payload is None else payload, len(names))
    try:
        # All columns, though fewer are asked for: with fewer, Polars does not see a row that is too long.
        frame = pl.read_csv(text.payload, separator=dialect.delimiter, quote_char=dialect.quote, infer_schema=False)
    except (PolarsError, PanicException) as error:
        _check_text(file, text)
        _check_quotes(file, text)
        _blank_rows(file, text, len(names))
        raise _damaged(file, error) from error
    _check_quotes(file, text)
    if frame.width != len(names):
        raise _damaged(file, ValueError(f"a header of {len(names)} columns reads as {frame.width}"))
    num_records = frame.height + 1
    if _may_be_short(text, frame):
        frame = _without(frame, _blank_rows(file, text, len(names)))
    frame.columns = names
    chosen = names if columns is None else columns
    return frame.select(_cleaned(chosen, dialect.na_values, is_padded=_is_padded(text, num_records)))


def _may_be_short(text: _Text, frame: pl.DataFrame) -> bool:
    """Say whether some row may be blank or too short, by cheap proofs that none is.

    Polars refuses a row that is too long, unless it is the last and its last field is empty, and fills up a short
    one with nulls. So no row is short if the last column has no null, or if the rows together have all delimiters.
    """
    if not frame.height or text.payload[-1] == text.delimiter or frame.width == 1:
        return True
    if not frame.to_series(-1).null_count():
        return False
    return _num_delimiters(text) != (frame.width - 1) * (frame.height + 1)


def _num_delimiters(text: _Text) -> int:
    """Return how many delimiters stand outside of quotes."""
    codes = np.frombuffer(text.payload, dtype=np.uint8)
    if text.quote is None:
        return _count(codes, text.delimiter)
    total, is_quoted = 0, np.uint64(0)
    for start in range(0, len(codes), _CHUNK_BYTES):
        chunk = codes[start : start + _CHUNK_BYTES]
        quoted, is_quoted = _parities(_bits(chunk == text.quote), is_quoted)
        total += int(np.bitwise_count(_bits(chunk == text.delimiter) & ~quoted).sum())
    return total


def _bits(flags: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint64]:
    """Return flags as 64-bit words, the first flag lowest, filled up with zeros."""
    packed = np.packbits(flags, bitorder="little")
    return np.pad(packed, (0, -len(packed) % 8)).view("<u8")


def _parities(bits: npt.NDArray[np.uint64], before: np.uint64) -> tuple[npt.NDArray[np.uint64], np.uint64]:
    """Return for each bit whether an odd number is set up to it, and the same after the last one.

    Doubling shifts give the parities inside a word; several times as fast as accumulating byte by byte.
    """
    words = bits.copy()
    for shift in (1, 2, 4, 8, 16, 32):
        words ^= words << np.uint64(shift)
    odd = np.bitwise_xor.accumulate(words >> np.uint64(63)) ^ before
    words ^= np.uint64(0) - np.concatenate([[before], odd[:-1]])
    return words, odd[-1]


def _is_padded(text: _Text, num_records: int) -> bool:
    """Say whether some field may begin or end with whitespace: looking costs less than stripping every value."""
    if not text.payload.isascii() and any(space in text.payload for space in _WIDE_SPACES):
        return True
    codes = np.frombuffer(text.payload, dtype=np.uint8)
    num_lines = _count(codes, _LF) + (codes[-1] != _LF) if text.quote is not None else num_records
    if num_lines > num_records or (text.quote is not None and text.delimiter in _SPACES):
        return True  # a line end, or a delimiter, inside quotes may be at their edge
    if text.payload[-1] in _SPACES + b"\r" or (b"\r" in text.payload and _has_lone_cr(codes)):
        return True
    edges = [text.delimiter, _LF, _CR, *([] if text.quote is None else [text.quote])]
    spaces = [code for code in _SPACES if code != text.delimiter and bytes([code]) in text.payload]
    return any(_touches(codes, code, edges) for code in spaces)


def _has_lone_cr(codes: npt.NDArray[np.uint8]) -> bool:
    """Say whether a carriage return stands elsewhere than before a line feed."""
    return any(bool((codes[positions + 1] != _LF).any()) for positions in _starts(codes, _CR))


def _touches(codes: npt.NDArray[np.uint8], code: int, edges: list[int]) -> bool:
    """Say whether a byte stands next to one of several others."""
    is_edge = np.zeros(256, dtype=np.bool_)
    is_edge[edges] = True
    for positions in _starts(codes, code):
        if is_edge[codes[positions - 1]].any() or is_edge[codes[positions + 1]].any():
            return True
    return False


def _starts(codes: npt.NDArray[np.uint8], code: int) -> Iterator[npt.NDArray[np.intp]]:
    """Return where a byte stands, chunk by chunk, the last byte left out."""
    for start in range(0, len(codes) - 1, _CHUNK_BYTES):
        yield np.flatnonzero(codes[start : min(start + _CHUNK_BYTES, len(codes) - 1)] == code) + start


def _count(codes: npt.NDArray[np.uint8], code: int) -> int:
    """Return how often a byte occurs."""
    chunks = (codes[start : start + _CHUNK_BYTES] for start in range(0, len(codes), _CHUNK_BYTES))
    return sum(int(np.count_nonzero(chunk == code)) for chunk in chunks)


def _without(frame: pl.DataFrame, rows: list[int]) -> pl.DataFrame:
    """Leave out rows by their numbers."""
    if not rows:
        return frame
    kept = np.ones(frame.height, dtype=np.bool_)
    kept[rows] = False
    return frame.filter(pl.Series(kept))


def _cleaned(names: list[str], na_values: tuple[str, ...], *, is_padded: bool) -> pl.Expr:
    """Return the texts of columns without surrounding whitespace, null where they mean "missing"."""
    texts = pl.col(names).str.strip_chars() if is_padded else pl.col(names)
    return pl.when(~texts.is_in(["", *na_values])).then(texts)


def _check_text(file: SourceFile, text: _Text) -> None:
    """Refuse bytes that are not UTF-8, and name their line."""
    try:
        text.payload.decode()
    except UnicodeDecodeError as error:
        above = b"\n" * (text.first_line - 1)
        raise encoding_error(file.path, above + text.payload, len(above) + error.start, "utf-8") from None


def _check_quotes(file: SourceFile, text: _Text) -> None:
    r"""Refuse a quote that is neither at the edge of a field nor doubled inside a quoted one.

    Counted from the start, quotes open and close in turns, a doubled one ("") doing both. So an opening one must
    follow a delimiter, a line's start or a quote, and a closing one must precede a delimiter, a line's end or a quote.
    """
    if text.quote is None:
        return
    codes = np.frombuffer(text.payload, dtype=np.uint8)
    last_open, num_seen = -1, 0
    for start in range(0, len(codes), _CHUNK_BYTES):
        quotes = np.flatnonzero(codes[start : start + _CHUNK_BYTES] == text.quote) + start
        opening = quotes[num_seen % 2 :: 2]
        closing = quotes[1 - num_seen % 2 :: 2]
        before = codes[opening - 1]  # at position 0 this is the last byte; put right below
        stray = opening[(opening > 0) & (before != text.delimiter) & (before != _LF) & (before != text.quote)]
        after = codes[np.minimum(closing + 1, len(codes) - 1)]
        at_edge = (after == text.delimiter) | (after == _LF) | (after == _CR) | (after == text.quote)
        unclosed = closing[~at_edge & (closing + 1 < len(codes))]
        if len(unclosed) and (not len(stray) or unclosed[0] < stray[0]):
            opened = opening[opening < unclosed[0]]
            raise _quote_error(file, text.line(int(opened[-1]) if len(opened) else last_open), is_open=True)
        if len(stray):
            raise _quote_error(file, text.line(int(stray[0])), is_open=False)
        last_open = int(opening[-1]) if len(opening) else last_open
        num_seen += len(quotes)
    if num_seen % 2:
        raise _quote_error(file, text.line(last_open), is_open=True)


def _quote_error(file: SourceFile, line: int, *, is_open: bool) -> InputError:
    """Return the error for a quote that is not closed, or should not be there."""
    found = "a quote that is not closed" if is_open else "a quote inside an unquoted field"
    return InputError(
        f"A quote must stand around a whole field and be doubled inside it, but got {found} in line {line} "
        f'of "{file.path}". '
        'Correct the line, or set data.csv.quote = "" if nothing is quoted.'
    )


def _blank_rows(file: SourceFile, text: _Text, width: int) -> list[int]:
    """Return the numbers of the rows below the header that are blank lines; refuse one of another width.

    Delimiters and line ends count where the number of quotes before them is even.
    """
    codes = np.frombuffer(text.payload, dtype=np.uint8)
    num_quotes, open_delimiters, record_start, record = 0, 0, 0, 0
    blank: list[int] = []
    for start in range(0, len(codes), _CHUNK_BYTES):
        chunk = codes[start : start + _CHUNK_BYTES]
        outside: npt.NDArray[np.bool_] | None = None
        if text.quote is not None:
            turns = np.cumsum(chunk == text.quote, dtype=np.uint8) + np.uint8(num_quotes % 2)
            outside = turns % 2 == 0
            num_quotes = int(turns[-1])
        ends = _positions(chunk, _LF, outside) + start
        delimiters = _positions(chunk, text.delimiter, outside) + start
        if start + _CHUNK_BYTES >= len(codes) and codes[-1] != _LF:
            ends = np.append(ends, len(codes))
        if not len(ends):
            open_delimiters += len(delimiters)
            continue
        reached = np.searchsorted(delimiters, ends)
        counts = np.diff(reached, prepend=-open_delimiters)
        starts = np.concatenate([[record_start], ends[:-1] + 1])
        is_blank = (ends == starts) | ((ends == starts + 1) & (codes[np.minimum(starts, len(codes) - 1)] == _CR))
        bad = np.flatnonzero((counts != width - 1) & ~is_blank)
        if len(bad):
            raise _width_error(file, text.line(int(starts[bad[0]])), int(counts[bad[0]]) + 1, width)
        blank += (np.flatnonzero(is_blank) + record - 1).tolist()
        record += len(ends)
        record_start = int(ends[-1]) + 1
        open_delimiters = len(delimiters) - int(reached[-1])
    return blank


def _positions(chunk: npt.NDArray[np.uint8], code: int, outside: npt.NDArray[np.bool_] | None) -> npt.NDArray[np.intp]:
    """Return where a byte stands in a chunk, outside of quotes."""
    found = chunk == code
    return np.flatnonzero(found if outside is None else found & outside)


def _width_error(file: SourceFile, line: int, num_fields: int, width: int) -> InputError:
    """Return the error for a row that is too short or too long."""
    return InputError(
        f"A row must have as many fields as the header, {width}, but got num_fields={num_fields} in line {line} "
        f'of "{file.path}". Correct the line, or set data.csv.delimiter and data.csv.quote.'
    )


# JSON Lines


def _read_jsonl(file: SourceFile, columns: list[str] | None, payload: bytes | None = None) -> pl.DataFrame:
    """Read a JSON Lines file or unit with one type per column, found over all of its rows."""
    payload = (_payload(file) if payload is None else payload).removeprefix(_BOM)
    try:
        frame = pl.read_ndjson(payload, infer_schema_length=None)
        nested = [name for name, dtype in frame.schema.items() if dtype.is_nested()]
        if nested:
            frame = pl.read_ndjson(payload, schema={**frame.schema, **dict.fromkeys(nested, pl.String())})
    except (PolarsError, PanicException):
        # A bad line, which this names, or a mixture of types for which Polars has no common one.
        types = _json_types(file, payload)
        with _intact(file):
            frame = pl.read_ndjson(payload, schema=types)
    names = frame.columns if columns is None else columns
    _check_columns(file, names, frame.columns)
    return _supported(file, frame.select(names))


def _json_types(file: SourceFile, payload: bytes) -> dict[str, pl.DataType]:
    """Return the type of each column by its values; refuse a line that is not a JSON object."""
    seen: dict[str, set[type]] = {}
    for number, line in enumerate(io.BytesIO(payload), start=file.part.line if file.part else 1):
        if not line.strip():
            continue
        for name, value in _json_object(file, payload, number, line).items():
            seen.setdefault(name, set()).add(type(value))
    return {name: _json_type(types - {type(None)}) for name, types in seen.items()}


def _json_object(file: SourceFile, payload: bytes, number: int, line: bytes) -> dict[str, object]:
    """Return the object on a line."""
    try:
        value = orjson.loads(line)
        reason = f"a {type(value).__name__}"
    except orjson.JSONDecodeError as error:
        value, reason = None, str(error)
        _check_utf8(file, payload)
    if not isinstance(value, dict):
        raise InputError(
            f'A line of a JSON Lines file must be a JSON object, but got line {number} of "{file.path}" ({reason}). '
            "Correct the line."
        )
    return value


def _check_utf8(file: SourceFile, payload: bytes) -> None:
    """Refuse a text that is not UTF-8."""
    try:
        payload.decode()
    except UnicodeDecodeError as error:
        raise encoding_error(file.path, payload, error.start, "utf-8") from None


def _json_type(types: set[type]) -> pl.DataType:
    """Return the type that holds values of all these Python types."""
    if types == {bool}:
        return pl.Boolean()
    if types and types <= {int, float}:
        return pl.Float64() if float in types else pl.Int64()
    return pl.String()


# Parquet and Arrow


def _scan_parquet(file: SourceFile) -> pl.LazyFrame:
    """Open a Parquet file: this one, whatever its name and folders look like."""
    options = polars_options(file.path) if isinstance(file.source, S3Object) else None
    return pl.scan_parquet(file.path, glob=False, hive_partitioning=False, storage_options=options)


def _parquet_schema(file: SourceFile, rows: pl.LazyFrame) -> dict[str, pl.DataType]:
    """Return a Parquet file's columns and their types in the file; the rows can be read without its footer then."""
    with _intact(file):
        return dict(rows.collect_schema())


def _read_parquet(file: SourceFile, columns: list[str] | None) -> pl.DataFrame:
    """Read columns of a Parquet file."""
    rows = _scan_parquet(file)
    names = _typed_columns(file, columns, _parquet_schema(file, rows))
    rows = rows.select(names)
    with _intact(file):
        frame = (rows.slice(file.part.start, file.part.size) if file.part else rows).collect()
    return _supported(file, frame)


def _is_arrow_file(file: SourceFile) -> bool:
    """Tell the Arrow file format from the stream format."""
    return sample_bytes(file.source).startswith(ARROW_FILE)


def _arrow_schema(file: SourceFile) -> dict[str, pl.DataType]:
    """Return an Arrow file's columns and their types in the file."""
    with _intact(file), open_source(file.source) as stream:
        if _is_arrow_file(file):
            return dict(pl.read_ipc_schema(stream))
        return dict(pl.read_ipc_stream(_in_memory(file, stream), n_rows=0).schema)


def _read_arrow(file: SourceFile, columns: list[str] | None) -> pl.DataFrame:
    """Read columns of an Arrow file; not memory-mapped, so that a later change of the file cannot change the frame."""
    names = _typed_columns(file, columns, _arrow_schema(file))
    with _intact(file), open_source(file.source) as stream:
        if file.part is not None:
            frame = _read_batches(stream, file.part, names)
        else:
            read = pl.read_ipc if _is_arrow_file(file) else pl.read_ipc_stream
            frame = read(_in_memory(file, stream), columns=names)
    return _supported(file, frame.select(names))


def _in_memory(file: SourceFile, stream: IO[bytes]) -> IO[bytes]:
    """Return an object's content: where Polars reads a stream itself, it makes a panic of an error of S3."""
    return io.BytesIO(stream.read()) if isinstance(file.source, S3Object) else stream


def _read_batches(stream: IO[bytes], part: Part, names: list[str]) -> pl.DataFrame:
    """Read some rows of a file in the Arrow file format, batch by batch.

    Its index does not say how many rows a batch has: of those before the part, the narrowest column is read.
    """
    read, row = [], 0
    source = pa.PythonFile(stream)
    with pa.ipc.open_file(source) as reader, pa.ipc.open_file(source, options=_narrowest(reader.schema)) as narrow:
        for index in range(reader.num_record_batches):
            if row >= part.stop:
                break
            num_rows = narrow.get_batch(index).num_rows
            start, stop = max(part.start - row, 0), min(part.stop - row, num_rows)
            if start < stop:
                read.append(reader.get_batch(index).slice(start, stop - start).select(names))
            row += num_rows
    frame = pl.from_arrow(pa.Table.from_batches(read))
    assert isinstance(frame, pl.DataFrame), "a table is a frame"
    return frame


def _narrowest(schema: pa.Schema) -> pa.ipc.IpcReadOptions:
    """Return what reads the column with the fewest bits in a row; of texts it is not known how many they have."""

    def width(index: int) -> int:
        try:
            return int(schema.field(index).type.bit_width)
        except ValueError:
            return 1 << 10

    return pa.ipc.IpcReadOptions(included_fields=[min(range(len(schema)), key=width)])


def _typed_columns(file: SourceFile, columns: list[str] | None, types: dict[str, pl.DataType]) -> list[str]:
    """Return the columns to read; refuse one that is missing or of a type that no model takes."""
    names = list(types) if columns is None else columns
    _check_columns(file, names, list(types))
    for name in names:
        if _is_unsupported(types[name]):
            raise InputError(
                "A column must hold numbers, texts, booleans, dates or timestamps, "
                f'but got column="{name}" of type {types[name]} in "{file.path}". Add it to data.ignore.'
            )
    return names


def _is_unsupported(dtype: pl.DataType) -> bool:
    """Say whether a column of this type is refused."""
    return dtype.is_nested() or isinstance(dtype, _UNSUPPORTED)


def _target_type(dtype: pl.DataType) -> pl.DataType:
    """Return the type that a column of a typed file is read as."""
    if isinstance(dtype, _TO_TEXT):
        return pl.String()
    return pl.Float64() if isinstance(dtype, _TO_FLOAT) else dtype


def _supported(file: SourceFile, frame: pl.DataFrame) -> pl.DataFrame:
    """Bring every column to the type that `read_schema` promises."""
    casts = {name: _target_type(dtype) for name, dtype in frame.schema.items() if _target_type(dtype) != dtype}
    with _intact(file):
        return frame.cast(casts) if casts else frame  # type: ignore[arg-type]
