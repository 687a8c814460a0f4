"""How far a run is, and who hears it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Reporter(Protocol):
    """Who hears how far a run is: a terminal, a log, a page."""

    def started(self, stage: str) -> None:
        """A stage has begun."""

    def advanced(self, stage: str, done: int, total: int, note: str) -> None:
        """A stage has done some of its units of work."""

    def ended(self, stage: str, seconds: float, is_cached: bool) -> None:
        """A stage is over."""

    def noted(self, text: str) -> None:
        """Something was inferred or decided that a person wants to know."""


class SilentReporter:
    """Tell nobody."""

    def started(self, stage: str) -> None:
        """Do nothing."""

    def advanced(self, stage: str, done: int, total: int, note: str) -> None:
        """Do nothing."""

    def ended(self, stage: str, seconds: float, is_cached: bool) -> None:
        """Do nothing."""

    def noted(self, text: str) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class StageTime:
    """How long a stage took, and whether an earlier run had done its work."""

    name: str
    seconds: float
    is_cached: bool


@dataclass(frozen=True)
class Usage:
    """What a training took."""

    peak_bytes: int
    """Largest memory of a member's process."""
    seconds: float
    """From the first byte read to the last tree."""
    num_rounds: int
    """Of all phases."""
