"""How much memory this process has had."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")
RESET_PEAK = "5"
M_MMAP_THRESHOLD = -3
"""Of glibc's malloc.h."""
LEAN_BYTES, USUAL_BYTES = 4 << 20, 32 << 20
"""From which size memory is not kept; what is usual grows up to 32 MiB by itself."""


def reset_peak() -> None:
    """Begin to count anew, where the system allows it."""
    with suppress(OSError):
        CLEAR.write_text(RESET_PEAK)


def give_back() -> None:
    """Return memory that was freed to the system, where the C library keeps it for the next who asks (glibc does)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@contextmanager
def lean() -> Iterator[None]:
    """Return memory of more than 4 MiB to the system as soon as it is freed, where the C library can (glibc).

    It keeps what it expects to be asked for again, up to 32 MiB each. Where large arrays come and go all the time that
    doubles a process; to get them anew each time costs time.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None:
        yield
        return
    set_option(M_MMAP_THRESHOLD, LEAN_BYTES)
    try:
        yield
    finally:
        set_option(M_MMAP_THRESHOLD, USUAL_BYTES)


def unload(address: int, num_bytes: int) -> None:
    """Let go of the memory of a mapped file, which is read again when it is looked at; elsewhere nothing happens.

    The address is that of the mapping, where a page begins: memory that is no file's would lose its content.
    """
    if sys.platform == "linux" and address % mmap.PAGESIZE == 0:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(address), ctypes.c_size_t(num_bytes), mmap.MADV_DONTNEED)


def peak_bytes() -> int:
    """Return the largest memory that this process has had since it began, or since `reset_peak`.

    What getrusage tells begins with the memory of the process that this one was forked from. Where there is no /proc
    it is the memory of this moment.
    """
    if not STATUS.exists():
        return int(psutil.Process().memory_info().rss)
    return 1024 * int(next(line.split()[1] for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:")))
