"""Which files of a folder have been hashed, kept beside them so that later processes need not hash them again.

A file counts as the one that was hashed if the file system says so: the same inode, size, time of writing and time of
change, which no program can set. What a disk loses in silence is found when the content is read, for every process
hashes what it reads once; the file is then struck off here, and the next question finds that it is damaged.

The list is a file that processes append to, a line at a time. It may be lost or cut at any moment: files are then
hashed again.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
from contextlib import suppress
from pathlib import Path

FILE = "verified.jsonl"
MAX_WASTE = 4
"""The list is written anew when it has so many times as many lines as files, and is not short."""
SHORT_BYTES = 1 << 20

Identity = tuple[str, int, int, int, int]
"""Hash, inode, size, and the times of writing and of change in nanoseconds."""


class VerifiedFiles:
    """The list of one folder."""

    def __init__(self, root: str) -> None:
        """Name the folder; nothing is read before the first question."""
        self._root = root
        self._path = Path(root, FILE)
        self._files: dict[str, Identity] = {}
        self._num_lines = 0
        self._read_bytes = 0
        self._lock = threading.Lock()

    def has(self, name: str, digest: str) -> bool:
        """Return whether a file is known to have this content, and has not changed since it was hashed."""
        with suppress(OSError), self._lock:
            now = identity(Path(self._root, name), digest)
            if self._files.get(name) != now:
                self._read_on()
            return self._files.get(name) == now
        return False

    def add(self, name: str, digest: str) -> None:
        """Note that a file has just been hashed; that it can't be noted is no error."""
        with suppress(OSError), self._lock:
            now = identity(Path(self._root, name), digest)
            if self._files.get(name) != now:
                self._append([name, *now])

    def strike(self, name: str) -> None:
        """Note that a file is not what it was."""
        with suppress(OSError), self._lock:
            self._append([name])

    def _append(self, entry: list[str | int]) -> None:
        line = json.dumps(entry).encode() + b"\n"
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line)  # one call: lines of several processes do not mix
        finally:
            os.close(descriptor)
        self._take(line)

    def _read_on(self) -> None:
        """Read what other processes have appended since."""
        try:
            size = self._path.stat().st_size
        except FileNotFoundError:
            return
        if size < self._read_bytes:  # it was written anew
            self._files, self._num_lines, self._read_bytes = {}, 0, 0
        if size > self._read_bytes:
            with open(self._path, "rb") as file:
                file.seek(self._read_bytes)
                new = file.read()
            whole = new[: new.rfind(b"\n") + 1]
            self._read_bytes += len(whole)
            for line in whole.splitlines():
                self._take(line)
        if size > SHORT_BYTES and self._num_lines > MAX_WASTE * max(1, len(self._files)):
            self._write_anew()

    def _take(self, line: bytes) -> None:
        self._num_lines += 1
        with suppress(ValueError, TypeError):  # a damaged line says nothing
            name, *facts = json.loads(line)
            self._files.pop(name, None)
            if len(facts) == 5:
                self._files[name] = tuple(facts)

    def _write_anew(self) -> None:
        lines = [json.dumps([name, *facts]) + "\n" for name, facts in self._files.items()]
        temporary = self._path.with_name(f".{FILE}.{secrets.token_hex(8)}.tmp")
        temporary.write_text("".join(lines))
        os.replace(temporary, self._path)
        self._num_lines, self._read_bytes = len(lines), self._path.stat().st_size


def identity(path: Path, digest: str) -> Identity:
    """Return what tells a file apart from what it was before or may become."""
    status = path.stat()
    return digest, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
