"""A disk of this machine that may be full."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.errors import RunError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""What the system answers when a disk, or a user's share of it, is full."""


class FullDiskError(RunError):
    """Say that a disk has no room for what is written."""

    def __init__(self, folder: str, free_bytes: int, reason: str, next_step: str) -> None:
        """Keep where there is no room, how much is left, what the system says, and what to do."""
        super().__init__(folder, free_bytes, reason, next_step)
        self.folder = folder
        self.free_bytes = free_bytes
        self.reason = reason
        self.next_step = next_step

    def __str__(self) -> str:
        """Return the message."""
        return (
            f"A disk must have room for what is written to it, but got free_bytes={self.free_bytes:,} in "
            f"folder={self.folder} ({self.reason}). {self.next_step}"
        )


@contextmanager
def room_in(folder: Path, next_step: str) -> Iterator[None]:
    """Turn the system's error for a full disk, or a full quota, into a FullDiskError with what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise FullDiskError(str(folder), free_bytes(folder), str(error.strerror), next_step) from error


def free_bytes(folder: Path) -> int:
    """Return the bytes that this user may still write to the disk of a folder, which need not exist yet.

    >>> free_bytes(Path("/nowhere/yet")) == free_bytes(Path("/"))
    True
    """
    there = next(place for place in (folder, *folder.absolute().parents) if os.path.isdir(place))
    return shutil.disk_usage(there).free
