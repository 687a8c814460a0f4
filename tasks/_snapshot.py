"""The snapshot: which source files a run reads, each with its fingerprint and the way its text is written.

A file is identified by the BLAKE3 hash of its bytes, never by its name or time, so that a file that was moved, or
written again unchanged, costs nothing. How a CSV file is written is detected from its first mebibyte and becomes
part of its identity: the same bytes read with another delimiter are other rows.
"""

from __future__ import annotations

import codecs
import csv
import glob
import gzip
import io
import json
import os
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal

import charset_normalizer
import pyarrow as pa
from blake3 import blake3
from pydantic import BaseModel, ConfigDict, Field, field_validator

from infra.bundle.schema import Kind
from infra.errors import InputError, RunError, nearest
from infra.objects import MAGIC, S3Object, list_objects
from infra.sources import SCHEME, Source, open_source, size_of
from tasks._parts import TEXT_BYTES, Part, TextDivider, arrow_parts, parquet_parts

NA_VALUES = ("", "?", "NA", "N/A", "n/a", "#N/A", "NaN", "nan", "NULL", "null")
"""Texts that mean "missing". 'None' and '-' are left alone because they are real categories in real data."""

Format = Literal["parquet", "csv", "jsonl", "arrow"]

_PACKED = ("", ".gz", ".zst", ".zip")
FORMATS: dict[str, Format] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    **{suffix + packed: "csv" for suffix in (".csv", ".tsv") for packed in _PACKED},
    **{suffix + packed: "jsonl" for suffix in (".jsonl", ".ndjson") for packed in _PACKED},
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}
"""The format of a file by its suffix."""

SUPPORTED = ".parquet, .pq, .csv, .tsv, .jsonl, .ndjson (text also as .gz, .zst or .zip), .arrow, .feather, .ipc"
SAMPLE_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 22
MAX_CATEGORIES = 10_000
MIN_CATEGORY_ROWS = 2
"""From a value seen but once nothing can be learnt."""
LEAST_PACKED_SHARE = 4
"""A packed text may be this many times as long: a shorter one is not looked through for parts."""
ARROW_FILE = b"ARROW1"
"""What a file in the Arrow file format begins with; the stream format has no index and stays whole."""
_SAMPLE_ROWS = 200
_DELIMITERS = (",", ";", "\t", "|")
_BYTE_ORDER_MARKS = (
    # UTF-32 first: its little-endian mark begins with that of UTF-16.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SIGNATURES = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "Zstandard"),
    (b"PK\x03\x04", "zip or .xlsx"),
    (b"PAR1", "Parquet"),
    (b"ARROW1", "Arrow"),
    (b"\xd0\xcf\x11\xe0", ".xls"),
)
_LIKELY_ENCODINGS = [
    *("cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "koi8_r"),
    *("shift_jis", "euc_jp", "gb18030", "big5", "euc_kr"),
]
"""What charset-normalizer may answer: left free, it takes short Western texts for rare code pages."""


class CsvConfig(BaseModel):
    """How CSV files are written. What is left empty is detected for each file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    delimiter: str | None = Field(
        default=None, description="The character between two fields. Detected among , ; tab and | when empty."
    )
    quote: str | None = Field(
        default=None,
        description="The character around a field that holds a delimiter. Detected among \" and ' when empty; "
        'the empty string "" says that nothing is quoted.',
    )
    encoding: str | None = Field(
        default=None,
        description='How the text is encoded, for example "cp1252". When empty: UTF-8, or what a byte order mark says.',
    )
    na_values: list[str] | None = Field(
        default=None,
        description='Texts that mean a missing value, instead of the default list: "?", "NA", "N/A", "n/a", "#N/A", '
        '"NaN", "nan", "NULL", "null". \'None\' and \'-\' are not in it because they are real categories in real '
        "data. An empty cell is always missing.",
    )

    @field_validator("delimiter", "quote")
    @classmethod
    def _check_character(cls, value: str | None) -> str | None:
        """Refuse what is not one plain character."""
        if value and (len(value) > 1 or not value.isascii() or value in "\r\n"):
            raise InputError(
                f"A delimiter or quote must be one ASCII character, but got value={value!r}. "
                "Leave it empty to have it detected."
            )
        return value

    @field_validator("delimiter")
    @classmethod
    def _check_delimiter(cls, value: str | None) -> str | None:
        """Refuse an empty delimiter, which would mean one column."""
        if value == "":
            raise InputError('A delimiter must be one character, but got delimiter="". Remove it to have it detected.')
        return value

    @field_validator("encoding")
    @classmethod
    def _check_encoding(cls, value: str | None) -> str | None:
        """Refuse an encoding that Python does not know."""
        if value is None:
            return None
        try:
            return codecs.lookup(value).name
        except LookupError:
            known = ["utf-8", "utf-16", "latin-1", *_LIKELY_ENCODINGS]
            raise InputError(
                f'An encoding must be one that Python knows, but got encoding="{value}".{nearest(value, known)} '
                'Write for example data.csv.encoding = "cp1252".'
            ) from None


class DataConfig(BaseModel):
    """Which rows to learn from, and what their columns mean."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str | list[str] = Field(
        description="A file, a folder (searched with its subfolders; names that start with a dot or _ are skipped), "
        'a pattern such as "data/2024-*.csv", or a list of these. '
        "Relative paths start at the folder of the configuration. "
        'On S3 likewise: "s3://bucket/data/", "s3://bucket/data/2024-*.csv", or the address of one object.',
    )
    target: str = Field(description="The column to predict.")
    time: str | None = Field(
        default=None,
        description="The column with a row's time; when set, the most recent rows are held out. "
        "Of dates the parts that come again are features, such as the month; a number, such as a year, is none.",
    )
    group: str | None = Field(
        default=None,
        description="The column whose equal values stay together on one side of a split, such as a customer.",
    )
    weight: str | None = Field(default=None, description="The column with a row's weight in training and in scores.")
    ignore: list[str] = Field(
        default=[], description="Columns to leave out, such as those known only after the target is."
    )
    kinds: dict[str, Kind] = Field(
        default={},
        description="The kind of a column where the inferred one is wrong: numeric, categorical, boolean, datetime, "
        "identifier or ignored.",
    )
    positive: str | None = Field(
        default=None,
        description="The class of a binary target that counts as positive. Empty: yes or true, else the last one.",
    )
    tolerance: float = Field(
        default=0.01,
        ge=0,
        lt=1,
        description="The share of a column's values that may fail to parse before the run stops; "
        "up to it such values count as missing.",
    )
    max_categories: int = Field(
        default=MAX_CATEGORIES,
        ge=1,
        le=40_000,
        description="Values of a column that get a code of their own, the most frequent ones; the others count as "
        "unknown. Codes that were given stay.",
    )
    min_category_rows: int = Field(
        default=MIN_CATEGORY_ROWS, ge=1, description="How many rows must have a value before it gets a code of its own."
    )
    csv: CsvConfig = Field(default=CsvConfig(), description="How CSV files are written; detected when empty.")

    @field_validator("time", mode="before")
    @classmethod
    def _check_time(cls, value: object) -> object:
        """Refuse a time in several columns."""
        if isinstance(value, list):
            raise ValueError("a time is one column; make one of these in the source, such as 2013-03-01 13:00")
        return value


@dataclass(frozen=True)
class Dialect:
    """How a text file is written."""

    delimiter: str = ","
    quote: str | None = '"'
    """None: nothing is quoted."""
    encoding: str = "utf-8"
    na_values: tuple[str, ...] = NA_VALUES
    """An empty cell is missing whether or not it is listed here."""


@dataclass(frozen=True)
class SourceFile:
    """A source file, the proof of its content, and how to read it."""

    path: str
    """Absolute, or the address of an object on S3."""
    format: Format
    digest: str
    """BLAKE3 of the file's bytes, in hex; of an object "etag-" and its ETag."""
    num_bytes: int
    modified_ns: int
    """Shows that a local file was changed before it was read; not part of any key."""
    dialect: Dialect | None
    """CSV only."""
    parts: tuple[Part, ...] = ()
    """What a large file is divided into; of a unit the one part that it is, of a small file none."""

    @property
    def key(self) -> str:
        """Return what the content of the rows depends on: the bytes, the format, the dialect and, of a unit, the part.

        A part of a text is known by its own bytes, so that it stays known when the file grows.
        """
        facts: list[Any] = [self.digest, self.format, asdict(self.dialect) if self.dialect else None]
        if part := self.part:
            facts = [part.digest, *facts[1:]] if part.digest else [*facts, part.start, part.stop]
        return blake3(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    @property
    def source(self) -> Source:
        """Return what is opened to read the file: of an object none but the one that was listed."""
        if not self.path.startswith(SCHEME):
            return self.path
        return S3Object.recalled(self.path, self.digest, self.num_bytes, self.modified_ns)

    @property
    def part(self) -> Part | None:
        """Return the part that a unit is; None for a whole file."""
        return self.parts[0] if len(self.parts) == 1 else None

    @property
    def units(self) -> tuple[SourceFile, ...]:
        """Return what is worked on at once: the file's parts, or the file as a whole."""
        return tuple(replace(self, parts=(part,)) for part in self.parts) or (self,)

    @property
    def is_packed(self) -> bool:
        """Return whether a unit can be reached only by unpacking all that comes before it."""
        return bool(self.parts) and _is_packed(self.path)


@dataclass(frozen=True)
class Snapshot:
    """The immutable list of source files of one run."""

    files: tuple[SourceFile, ...]
    """Sorted by path."""
    num_read: int = 0
    """Files that had to be read for it; the others were known."""

    @property
    def key(self) -> str:
        """Return what the content depends on."""
        return self.fingerprint

    @property
    def units(self) -> tuple[SourceFile, ...]:
        """Return what is worked on at once, in the order of the files and of their rows."""
        return tuple(unit for file in self.files for unit in file.units)

    @property
    def fingerprint(self) -> str:
        """Return a hash over the sorted keys of the files; paths and times do not matter."""
        return blake3("\n".join(sorted(file.key for file in self.files)).encode()).hexdigest()

    @property
    def num_bytes(self) -> int:
        """Return the size of all files together."""
        return sum(file.num_bytes for file in self.files)


def take_snapshot(config: DataConfig, base: Path) -> Snapshot:
    """Find, fingerprint and inspect the files that `data.source` names, relative to a folder.

    A path that is named twice counts once; two files with the same content are both read.
    Raises InputError if nothing matches, or a file is empty, unreadable, of an unsupported format or, for CSV, in
    an encoding that has to be stated.
    """
    return Snapshot(tuple(source_file(source, config.csv) for source in all_sources(config, base)))


def all_sources(config: DataConfig, base: Path) -> list[Source]:
    """Return the files and objects that `data.source` names, sorted by path or address; nothing is opened."""
    entries = entries_of(config)
    if not entries or "" in entries:
        raise InputError(
            f"data.source must name files, but got source={config.source!r}. Name a file, a folder or a pattern."
        )
    by_path = {str(source): source for entry in entries for source in named_sources(entry, base)}
    return [by_path[path] for path in sorted(by_path)]


def entries_of(config: DataConfig) -> list[str]:
    """Return what `data.source` lists."""
    return [config.source] if isinstance(config.source, str) else config.source


def named_sources(entry: str, base: Path) -> Sequence[Source]:
    """Return what one entry of `data.source` names: objects on S3, or the absolute paths of files."""
    if entry.startswith(SCHEME):
        return _objects(entry)
    if "://" in entry:
        raise InputError(
            f'A source must be a local path or an address that starts with {SCHEME}, but got source="{entry}". '
            "Sync it to a local folder or to S3, and name that."
        )
    pattern = os.path.expanduser(entry)
    path = Path(os.path.abspath(base / pattern))
    if path.is_dir():
        return _folder_files(path)
    if path.exists():
        _check_suffix(path)
        return [str(path)]
    if glob.has_magic(pattern):
        return _pattern_files(pattern, Path(os.path.abspath(base)))
    raise InputError(
        f'A source must exist, but got source="{entry}" (looked in {path.parent}).{_nearest_sibling(path)} '
        "Correct data.source."
    )


def _objects(address: str) -> tuple[S3Object, ...]:
    """List the objects that an address names; of a folder those of a supported format."""
    listed = list_objects(address)
    if MAGIC.search(address) or listed[0].uri == address:
        for one in listed:
            _check_suffix(Path(one.key), one.uri)
        return listed
    found = tuple(one for one in listed if _suffix(Path(one.key)) in FORMATS)
    if not found:
        raise _no_file(address, [one.key for one in listed])
    return found


def _folder_files(folder: Path) -> list[str]:
    """List the supported files below a folder; linked folders are followed once."""
    found: list[str] = []
    skipped: list[str] = []
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith((".", "_")))
        if real in seen:
            continue
        seen.add(real)
        for name in sorted(name for name in names if not name.startswith((".", "_"))):
            path = Path(parent, name)
            # A broken link is kept: opening it will say so, where leaving it out would lose rows in silence.
            regular = path.is_file() or path.is_symlink()
            (found if _suffix(path) in FORMATS and regular else skipped).append(str(path))
    if not found:
        raise _no_file(str(folder), skipped)
    return found


def _no_file(folder: str, skipped: Sequence[str]) -> InputError:
    """Return the error for a folder in which nothing can be read."""
    others = f" ({len(skipped)} of another kind, such as {Path(skipped[0]).name})" if skipped else ""
    return InputError(
        f'A folder must hold at least one supported file, but got folder="{folder}"{others}. '
        f"Add files that end in {SUPPORTED}."
    )


def _pattern_files(pattern: str, base: Path) -> list[str]:
    """List the files that match a pattern; a name that starts with _ needs a pattern that does, as a dot does."""
    matches = glob.glob(pattern, root_dir=base, recursive=True)
    is_private = any(part.startswith("_") for part in Path(pattern).parts)
    shown = [match for match in matches if is_private or not any(part.startswith("_") for part in Path(match).parts)]
    files = [path for path in (base / match for match in shown) if not path.is_dir()]
    if not files:
        others = f" ({len(matches)} folders or private names match)" if matches else ""
        raise InputError(
            f'A pattern must match at least one file, but got pattern="{pattern}" in folder="{base}"{others}. '
            'Correct data.source; "**/*.csv" searches subfolders.'
        )
    for path in files:
        _check_suffix(path)
    return [os.path.abspath(path) for path in files]


def _suffix(path: Path) -> str:
    """Return the suffix that decides the format, the one before .gz included."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return "".join(suffixes[-2:]) if suffixes and suffixes[-1] in _PACKED else "".join(suffixes[-1:])


def _check_suffix(path: Path, name: str | None = None) -> None:
    """Refuse a file whose format is not supported."""
    suffix = _suffix(path)
    if suffix not in FORMATS:
        raise InputError(
            f'A source file must be of a supported format, but got suffix="{suffix}" of "{name or path}".'
            f"{nearest(suffix, FORMATS)} Convert it to one of {SUPPORTED}, or leave it out of data.source."
        )


def _nearest_sibling(path: Path) -> str:
    """Return a hint with the name that was probably meant."""
    return nearest(path.name, os.listdir(path.parent)) if path.parent.is_dir() else ""


def source_file(source: Source, config: CsvConfig) -> SourceFile:
    """Fingerprint a file or object, and find how it is written and divided.

    An object has its fingerprint from the listing: of a small one no more than its first bytes are read, of a typed
    one its footer, and only a text that is divided as a whole.
    """
    path = str(source)
    format_ = FORMATS[_suffix(Path(path))]
    try:
        is_empty = size_of(source) == 0
        dialect = detect_dialect(source, config) if format_ == "csv" and not is_empty else None
        is_text = format_ in ("csv", "jsonl")
        divider = (
            TextDivider(dialect.quote if dialect else None) if is_text and _is_divisible(source, dialect) else None
        )
        digest, num_bytes, modified_ns = _digest(source, None if _is_packed(path) else divider)
    except OSError as error:
        raise InputError(
            f'A source file must be readable, but got file="{path}" ({error.strerror}). '
            "Check its permissions, or leave it out of data.source."
        ) from error
    if num_bytes == 0:
        raise InputError(
            f'A source file must not be empty, but got num_bytes=0 for "{path}". Write it again, or remove it.'
        )
    parts = _parts(source, format_, divider)
    if dialect and parts:  # the columns of a part are named above the first one
        names = json.dumps(csv_names(source, dialect)).encode()
        parts = tuple(replace(part, digest=blake3(part.digest.encode() + names).hexdigest()) for part in parts)
    return SourceFile(path, format_, digest, num_bytes, modified_ns, dialect, parts)


def _is_packed(path: str) -> bool:
    return Path(path).suffix.lower() in _PACKED[1:]


def _is_divisible(source: Source, dialect: Dialect | None) -> bool:
    """Say whether a text may be divided: its line ends must be single bytes that are part of no other character."""
    is_packed = _is_packed(str(source))
    length = size_of(source) * (LEAST_PACKED_SHARE if is_packed else 1)
    if length < TEXT_BYTES and (is_packed or isinstance(source, S3Object)):  # a local text is read for its hash anyway
        return False
    return dialect is None or not dialect.encoding.replace("_", "-").startswith(("utf-16", "utf-32"))


def _parts(source: Source, format_: Format, divider: TextDivider | None) -> tuple[Part, ...]:
    """Return what a file is divided into; a damaged one into nothing, and reading it will say so."""
    if format_ == "parquet" or (format_ == "arrow" and sample_bytes(source).startswith(ARROW_FILE)):
        try:
            return (parquet_parts if format_ == "parquet" else arrow_parts)(source)
        except (pa.ArrowException, OSError):
            return ()
    if divider is None:
        return ()
    if _is_packed(str(source)):
        with _complete(source), ExitStack() as stack:
            stream = _open_unpacked(source, stack)
            while chunk := stream.read(_CHUNK_BYTES):
                divider.feed(chunk)
    return divider.parts()


def _digest(source: Source, divider: TextDivider | None = None) -> tuple[str, int, int]:
    """Return the fingerprint of a source, its size and its time of change; a divider sees all of its bytes."""
    if isinstance(source, S3Object):
        if divider:
            with open_source(source) as stream:
                while chunk := stream.read(_CHUNK_BYTES):
                    divider.feed(chunk)
        return source.digest, source.num_bytes, source.modified_ns
    hasher = blake3(max_threads=blake3.AUTO)
    with open(source, "rb") as stream:
        before = os.fstat(stream.fileno())
        while chunk := stream.read(_CHUNK_BYTES):
            hasher.update(chunk)
            if divider:
                divider.feed(chunk)
        after = os.fstat(stream.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise changed_error(source)
    return hasher.hexdigest(), after.st_size, after.st_mtime_ns


def changed_error(path: str) -> InputError:
    """Return the error for a file that is being written to."""
    return InputError(
        f'A source file must stay as it is during a run, but got file="{path}", which changed while it was read. '
        "Run again."
    )


def unpacked_bytes(source: Source) -> bytes:
    """Return a file's bytes without its .gz, .zst or .zip wrapping; raises as `sample_bytes` does."""
    with _complete(source), ExitStack() as stack:
        if str(source).lower().endswith(".gz"):  # a third faster than through a stream
            return gzip.decompress(stack.enter_context(open_source(source)).read())
        return _open_unpacked(source, stack).read()


def unpacked_parts(source: Source, parts: Sequence[Part]) -> Iterator[bytes]:
    """Yield the bytes of parts of a text, in their order; a packed file is unpacked once for all of them."""
    with ExitStack() as stack:
        with _complete(source):
            stream = _open_unpacked(source, stack)
        position = 0
        for part in parts:
            with _complete(source):
                if _is_packed(str(source)):
                    while position < part.start and (skipped := stream.read(min(_CHUNK_BYTES, part.start - position))):
                        position += len(skipped)
                else:
                    stream.seek(part.start)
                payload = stream.read(part.size)
            if len(payload) != part.size:
                raise changed_error(str(source))
            position = part.stop
            yield payload


def sample_bytes(source: Source) -> bytes:
    """Return the first bytes of a file, without its .gz, .zst or .zip wrapping.

    Raises InputError if the file is damaged or a .zip does not hold exactly one file.
    """
    with _complete(source), ExitStack() as stack:
        return _open_unpacked(source, stack).read(SAMPLE_BYTES)


@contextmanager
def _complete(source: Source) -> Iterator[None]:
    """Say of a file that could not be read or unpacked which one it is."""
    try:
        yield
    except RunError:  # S3 does not answer; that is no property of the file
        raise
    except (OSError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile, pa.ArrowInvalid) as error:
        # RuntimeError: an encrypted .zip, or (NotImplementedError) one with an unknown method.
        raise InputError(
            f'A source file must be complete and readable, but got file="{source}" ({error}). Fetch or write it again.'
        ) from error


def _open_unpacked(source: Source, stack: ExitStack) -> IO[bytes]:
    """Open a file by its suffix; the stack closes it."""
    suffix = Path(str(source)).suffix.lower()
    packed = stack.enter_context(open_source(source))
    if suffix == ".gz":
        unzipped: IO[bytes] = stack.enter_context(gzip.GzipFile(fileobj=packed))  # type: ignore[arg-type]
        return unzipped
    if suffix == ".zst":
        stream: IO[bytes] = stack.enter_context(pa.input_stream(packed, compression="zstd"))
        return stream
    if suffix == ".zip":
        archive = stack.enter_context(zipfile.ZipFile(packed))
        members = [m for m in archive.infolist() if not m.is_dir() and not m.filename.startswith("__MACOSX/")]
        if len(members) != 1:
            raise InputError(
                f'A .zip must hold exactly one file, but got num_files={len(members)} in "{source}". '
                "Unpack it and name the folder."
            )
        return stack.enter_context(archive.open(members[0]))
    return packed


def detect_dialect(source: Source, config: CsvConfig) -> Dialect:
    """Return how a CSV file is written; what the configuration states is not questioned.

    The delimiter and quote are those under which the most of the first rows have as many fields as the header.
    The header is checked here too, so that its mistakes show before anything is read.
    """
    path, sample = str(source), sample_bytes(source)
    encoding = _encoding(path, sample, config.encoding)
    text = decoded(path, sample, encoding, is_complete=len(sample) < SAMPLE_BYTES).lstrip("\r\n")
    if "\r" in text and "\n" not in text:
        raise InputError(
            f'The lines of a CSV file must end in LF or CRLF, but got line_end=CR in "{path}". '
            "Save it with Unix or Windows line ends."
        )
    first = ("\t", *_DELIMITERS) if ".tsv" in _suffix(Path(path)) else _DELIMITERS
    delimiters = (config.delimiter,) if config.delimiter else first
    quote = _quote(text) if config.quote is None else (config.quote or None)
    delimiter = max(delimiters, key=lambda candidate: _agreement(text, candidate, quote))
    dialect = Dialect(delimiter, quote, encoding, NA_VALUES if config.na_values is None else tuple(config.na_values))
    header(path, text, dialect)
    return dialect


def _encoding(path: str, sample: bytes, stated: str | None) -> str:
    """Return the encoding that is stated, marked by a byte order mark, or UTF-8; binary content is refused."""
    marked = next((name for mark, name in _BYTE_ORDER_MARKS if sample.startswith(mark)), None)
    if stated and not (stated == "utf-8" and marked == "utf-8-sig"):
        return stated
    if marked:
        return marked
    if b"\0" in sample:
        signature = next((f" ({name})" for magic, name in _SIGNATURES if sample.startswith(magic)), "")
        raise InputError(
            f'A CSV file must be text, but got binary content{signature} in "{path}". '
            "Rename it to its real format, convert it, or set data.csv.encoding if it is UTF-16."
        )
    return "utf-8"


def decoded(path: str, payload: bytes, encoding: str, *, is_complete: bool) -> str:
    """Return the text of a file's bytes; where they are not complete, half a character at the end is left out."""
    try:
        return codecs.getincrementaldecoder(encoding)().decode(payload, final=is_complete)
    except UnicodeDecodeError as error:
        raise encoding_error(path, payload, error.start, encoding) from None


def encoding_error(path: str, payload: bytes, position: int, encoding: str) -> InputError:
    """Return the error for a byte that is not in the encoding a text was taken for."""
    line = payload[:position].decode(encoding, errors="replace").count("\n") + 1
    window = payload[max(0, position - SAMPLE_BYTES // 16) : position + SAMPLE_BYTES // 16]
    best = charset_normalizer.from_bytes(window, cp_isolation=_LIKELY_ENCODINGS).best()
    guess = None
    if best:  # a Western text often fits several code pages; cp1252 is the common one
        guess = "cp1252" if "cp1252" in best.could_be_from_charset else best.encoding
    opinion = f"charset-normalizer takes it for {guess}" if guess else "charset-normalizer does not know it"
    step = f'Set data.csv.encoding = "{guess}" if that is right.' if guess else "Set data.csv.encoding."
    if FORMATS[_suffix(Path(path))] != "csv":
        step = "Convert it to UTF-8."
    return InputError(
        f"A text file must be written in {encoding} throughout, but got byte=0x{payload[position]:02x} in line {line} "
        f'of "{path}" ({opinion}). {step}'
    )


def _quote(text: str) -> str:
    """Return the quote of a CSV text: ' if whole fields stand in it, one per row and more than in "."""
    double, single = (
        len(re.findall(rf"(?:^|[,;\t|]){mark}[^{mark}\n]*{mark}(?=[,;\t|\r\n]|$)", text, re.MULTILINE))
        for mark in "\"'"
    )
    return "'" if single > double and single >= text.count("\n") else '"'


def _agreement(text: str, delimiter: str, quote: str | None) -> tuple[float, int]:
    """Return the share, in tenths, of first rows with as many fields as the header, and that number of fields."""
    try:
        rows = list(islice(_rows(text, delimiter, quote), _SAMPLE_ROWS))
    except csv.Error:
        return 0.0, 0
    widths = [len(row) for row in rows if row]
    if not widths or widths[0] < 2:
        return 0.0, 0
    return round(widths.count(widths[0]) / len(widths), 1), widths[0]


def _rows(text: str, delimiter: str, quote: str | None) -> Iterator[list[str]]:
    """Read a CSV text row by row."""
    lines = io.StringIO(text, newline="")
    if quote is None:
        return csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    return csv.reader(lines, delimiter=delimiter, quotechar=quote)


def csv_names(source: Source, dialect: Dialect) -> list[str]:
    """Return the column names of a CSV file, reading no more than its first bytes."""
    path, sample = str(source), sample_bytes(source)
    text = decoded(path, sample, dialect.encoding, is_complete=len(sample) < SAMPLE_BYTES)
    return header(path, text.lstrip("\ufeff\r\n"), dialect)


def header(path: str, text: str, dialect: Dialect) -> list[str]:
    """Return the column names of a CSV text."""
    try:
        fields = next(_rows(text, dialect.delimiter, dialect.quote), [])
    except csv.Error as error:
        raise InputError(
            f'The header of a CSV file must be readable, but got file="{path}" ({error}). '
            "Set data.csv.delimiter and data.csv.quote."
        ) from error
    if not fields:
        raise InputError(f'A CSV file must begin with a header, but got blank lines alone in "{path}". Write it again.')
    return column_names(path, fields)


def column_names(path: str, fields: Iterable[str]) -> list[str]:
    """Return a header's names, stripped; the third column without a name becomes "column_3".

    >>> column_names("a.csv", ["", " age "])
    ['column_1', 'age']
    """
    names = [field.strip() or f"column_{position}" for position, field in enumerate(fields, start=1)]
    first: dict[str, int] = {}
    for position, name in enumerate(names, start=1):
        if first.setdefault(name, position) != position:
            raise InputError(
                f'Column names must be unique, but got column="{name}" at positions {first[name]} and {position} '
                f'of "{path}". Rename one of them.'
            )
    return names
