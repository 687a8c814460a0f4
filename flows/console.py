"""Show how far a run is: a live display in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from tasks._reporting import Reporter

PLAIN_SECONDS = 5.0
"""How often a long stage prints a line where there is no terminal."""


class PlainReporter:
    """A line when a stage ends, and now and then while a long one runs."""

    def __init__(self, stream: TextIO) -> None:
        """Write to a stream."""
        self._stream = stream
        self._last = time.monotonic()

    def started(self, stage: str) -> None:
        """Remember when the stage began."""
        self._last = time.monotonic()

    def advanced(self, stage: str, done: int, total: int, note: str) -> None:
        """Print a line every few seconds."""
        if time.monotonic() - self._last >= PLAIN_SECONDS:
            self._last = time.monotonic()
            print(f"  {stage}: {done:,} of {total:,} {note}".rstrip(), file=self._stream, flush=True)

    def ended(self, stage: str, seconds: float, is_cached: bool) -> None:
        """Print how long the stage took."""
        print(f"{stage:<10} {seconds:7.1f} s{'  cached' if is_cached else ''}", file=self._stream, flush=True)

    def noted(self, text: str) -> None:
        """Print a line below the stage's."""
        print(f"  {text}", file=self._stream, flush=True)


class LiveReporter:
    """A bar for the running stage, and a line for every one that is over."""

    def __init__(self, progress: Progress) -> None:
        """Draw on a live display."""
        self._progress = progress
        self._bars: dict[str, TaskID] = {}

    def started(self, stage: str) -> None:
        """Add the stage's bar."""
        self._bars[stage] = self._progress.add_task(stage, total=None, note="")

    def advanced(self, stage: str, done: int, total: int, note: str) -> None:
        """Move the bar."""
        self._progress.update(self._bars[stage], completed=done, total=total, note=note)

    def ended(self, stage: str, seconds: float, is_cached: bool) -> None:
        """Replace the bar by a line."""
        self._progress.remove_task(self._bars.pop(stage))
        mark = "[dim]cached[/dim]" if is_cached else ""
        self._progress.console.print(f"[green]✓[/green] {stage:<10} {seconds:7.1f} s {mark}")

    def noted(self, text: str) -> None:
        """Print a line below the stage's."""
        self._progress.console.print(f"  {escape(text)}", style="dim", highlight=False)


@contextmanager
def shown(stream: TextIO | None = None) -> Iterator[Reporter]:
    """Yield a reporter that suits a stream, standard error by default."""
    stream = stream or sys.stderr
    if not stream.isatty():
        yield PlainReporter(stream)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<10}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(file=stream), transient=True) as progress:
        yield LiveReporter(progress)
