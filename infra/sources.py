"""Sources: a local file, by its path, or an object on S3, as it was listed; both are opened in the same way.

An object can be read anywhere, as a file can: gzip, zip archives and the footers of Parquet need no other code.

    for found in list_objects("s3://bucket/data/*.csv.gz"):
        with open_source(found) as stream:
            first = gzip.GzipFile(fileobj=stream).read(1000)
"""

from __future__ import annotations

import io
import os
from typing import IO, cast

from infra.objects import S3Object, read_range

Source = str | S3Object
"""An absolute path, or an object; `str(source)` names it to people."""

SCHEME = "s3://"
FIRST_BYTES = 1 << 18
MOST_BYTES = 1 << 22
"""How much is asked for at least: each request after the one before it asks for twice as much, up to this."""


def open_source(source: Source) -> IO[bytes]:
    """Open a source for reading; an object is read only as it was listed.

    Raises:
        OSError: there is no such file, or it may not be read.
    """
    return open(source, "rb") if isinstance(source, str) else cast("IO[bytes]", ObjectReader(source))


def size_of(source: Source) -> int:
    """Return the number of bytes of a source; of an object without a request.

    Raises:
        OSError: there is no such file.
    """
    return os.path.getsize(source) if isinstance(source, str) else source.num_bytes


class ObjectReader(io.BufferedIOBase):
    """Reads an object by ranges: what is asked for and, read from front to back, ever more beyond it.

    Its reads raise what `read_range` does, and leaving it raises that again: Polars makes another error of it.
    """

    def __init__(self, found: S3Object) -> None:
        """Take what is read; nothing is asked for yet."""
        self._found = found
        self._position = 0
        self._held, self._start = b"", 0
        self._ahead = FIRST_BYTES
        self._error: Exception | None = None

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()
        if self._error is not None:
            raise self._error

    def readable(self) -> bool:
        """Say yes."""
        return True

    def seekable(self) -> bool:
        """Say yes."""
        return True

    def tell(self) -> int:
        """Return where the next read begins."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position, which costs no request."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._found.num_bytes}[whence]
        if base + offset < 0:
            raise OSError(f"a position before the start: {base + offset}")
        self._position = base + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """Return the next bytes, as many as are asked for, or all that are left."""
        is_rest = size is None or size < 0
        stop = self._found.num_bytes if is_rest else min(self._position + cast("int", size), self._found.num_bytes)
        pieces = []
        while self._position < stop:
            if not self._start <= self._position < self._start + len(self._held):
                self._ask(stop)
            pieces.append(self._held[self._position - self._start : stop - self._start])
            self._position += len(pieces[-1])
        return b"".join(pieces)

    def read1(self, size: int | None = -1) -> bytes:
        """Return the next bytes, as `read` does."""
        return self.read(size)

    def _ask(self, stop: int) -> None:
        """Hold what comes next, up to `stop` at least."""
        if self._position != self._start + len(self._held):
            self._ahead = FIRST_BYTES
        until = min(max(stop, self._position + self._ahead), self._found.num_bytes)
        try:
            self._start, self._held = self._position, read_range(self._found, self._position, until)
        except Exception as error:
            self._error = error
            raise
        self._ahead = min(2 * self._ahead, MOST_BYTES)
