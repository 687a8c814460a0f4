"""Parts: how a large file is divided, so that it spreads over the cluster and no worker holds all of it.

A typed file is divided by rows, at its row groups where they are small enough. A text is divided by bytes, where a
record ends: the quotes before it tell whether a line end is one. A part of a text has a hash of its own, so that a
file that has grown at its end is new in its last part alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from blake3 import blake3

from infra.sources import Source, open_source

TYPED_BYTES = 128 * 2**20
"""About how much memory the rows of one part of a typed file take."""
TEXT_BYTES = 32 * 2**20
"""About how long one part of a text is; as columns of texts it takes three to four times as much memory."""
BYTES_PER_VALUE = 8
BYTES_PER_TEXT = 32
"""What a text takes in memory at the least: 16 bytes for its place, and its characters."""
_LF = 10


@dataclass(frozen=True)
class Part:
    """A range of a file's rows or, of a text, of its unpacked bytes; the end is not in it."""

    start: int
    stop: int
    line: int = 1
    """Of a text: the line that the part begins with, from 1."""
    digest: str = ""
    """Of a text: a hash of the part's bytes and, for CSV, of the names of its columns."""

    @property
    def size(self) -> int:
        """Return the number of rows or bytes."""
        return self.stop - self.start


def parquet_parts(source: Source) -> tuple[Part, ...]:
    """Return the parts of a Parquet file, from its footer alone; none if it is small enough to stay whole."""
    with open_source(source) as stream:
        footer = pa.parquet.read_metadata(stream)
    groups = [footer.row_group(index) for index in range(footer.num_row_groups)]
    return divided_rows([group.num_rows for group in groups], [_memory_of(group) for group in groups])


def _memory_of(group: pa.parquet.RowGroupMetaData) -> int:
    """Return about how much memory a row group takes: a dictionary makes it smaller in the file."""
    total = 0
    for index in range(group.num_columns):
        column = group.column(index)
        is_text = column.physical_type in ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY")
        at_least = (BYTES_PER_TEXT if is_text else BYTES_PER_VALUE) * group.num_rows
        total += max(column.total_uncompressed_size, at_least)
    return total


def arrow_parts(source: Source) -> tuple[Part, ...]:
    """Return the parts of a file in the Arrow file format, by its record batches; none if it stays whole."""
    with open_source(source) as stream, pa.ipc.open_file(pa.PythonFile(stream)) as reader:
        batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
        sizes = [(batch.num_rows, batch.nbytes) for batch in batches]
    return divided_rows([rows for rows, _ in sizes], [num_bytes for _, num_bytes in sizes])


def divided_rows(rows: list[int], num_bytes: list[int]) -> tuple[Part, ...]:
    """Return parts of at most about TYPED_BYTES of groups of rows; none if all are one part.

    Small neighbours are joined, a group that is too large is cut into equal slices.

    >>> divided_rows([10, 10], [100, 100])
    ()
    >>> [(part.start, part.stop) for part in divided_rows([10, 10, 90], [TYPED_BYTES, 1, 3 * TYPED_BYTES])]
    [(0, 10), (10, 20), (20, 50), (50, 80), (80, 110)]
    """
    ends, held, row = {0}, 0, 0
    for count, size in zip(rows, num_bytes, strict=True):
        num_slices = max(1, -(-size // TYPED_BYTES))
        if held and held + size > TYPED_BYTES:
            ends.add(row)
            held = 0
        ends.update(row + count * index // num_slices for index in range(1, num_slices))
        row += count
        if num_slices > 1:
            ends.add(row)
        else:
            held += size
    bounds = sorted(ends | {row})
    return tuple(Part(start, stop) for start, stop in pairwise(bounds)) if len(bounds) > 2 else ()


class TextDivider:
    r"""Divides a text that goes by in chunks.

    >>> divider = TextDivider(quote=None, size=4)
    >>> for chunk in (b"a\nbb", b"b\ncc\n", b"d\n"):
    ...     divider.feed(chunk)
    >>> [(part.start, part.stop, part.line) for part in divider.parts()]
    [(0, 6, 1), (6, 11, 3)]
    """

    def __init__(self, quote: str | None, size: int | None = None) -> None:
        """Take the character within a pair of which a line end ends no record, and the least size of a part."""
        self._quote = ord(quote) if quote else None
        self._size = TEXT_BYTES if size is None else size
        self._parts: list[Part] = []
        self._start, self._line = 0, 1
        self._position, self._num_lines = 0, 0
        self._is_quoted = False
        self._hasher = blake3()

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes."""
        begin = 0
        for end in self._ends(chunk):
            self._take(chunk[begin:end])
            self._close()
            begin = end
        self._take(chunk[begin:])

    def parts(self) -> tuple[Part, ...]:
        """Return the parts, after the last bytes; none if the text is one part."""
        if self._position > self._start:
            self._close()
        return tuple(self._parts) if len(self._parts) > 1 else ()

    def _ends(self, chunk: bytes) -> Iterator[int]:
        """Yield where in a chunk parts end: after the first record's end at which a part is long enough."""
        base = self._position
        codes = np.frombuffer(chunk, dtype=np.uint8)
        before = self._is_quoted
        if self._quote is not None:
            self._is_quoted ^= bool(np.count_nonzero(codes == self._quote) % 2)
        due = max(0, self._start + self._size - base - 1)
        if due >= len(chunk):
            return
        for end in self._record_ends(codes, before):
            if end > due:
                yield end
                due = end + self._size - 1

    def _record_ends(self, codes: np.ndarray[tuple[int], np.dtype[np.uint8]], is_quoted: bool) -> Iterable[int]:
        lines = np.flatnonzero(codes == _LF)
        if self._quote is not None:
            quotes = np.flatnonzero(codes == self._quote)
            lines = lines[(np.searchsorted(quotes, lines) + is_quoted) % 2 == 0]
        return (lines + 1).tolist()

    def _take(self, piece: bytes) -> None:
        self._hasher.update(piece)
        self._position += len(piece)
        self._num_lines += piece.count(b"\n")

    def _close(self) -> None:
        self._parts.append(Part(self._start, self._position, self._line, self._hasher.hexdigest()))
        self._start, self._line = self._position, 1 + self._num_lines
        self._hasher = blake3()
