"""What the loop of a search needs: somebody who trains trials, and somebody who hears of them.

It knows no other way to train. One trial per worker, a gang that trains one trial at a time, and a test that only
pretends are the same to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

from pydantic import BaseModel

from tasks._search import Trial, TrialOutcome

Tried = TypeVar("Tried", bound=BaseModel, contravariant=True)
"""Parameters of the family that is searched."""


@dataclass(frozen=True)
class Reported:
    """Losses of the validation rows that a training has come to since it last reported, by round."""

    number: int
    losses: tuple[float, ...]


@dataclass(frozen=True)
class Finished:
    """A training has ended, by itself or because it was told to."""

    number: int
    outcome: TrialOutcome


@dataclass(frozen=True)
class Failed:
    """A training has ended with an error."""

    number: int
    error: Exception


class Trainer(Protocol[Tried]):
    """Where trials are trained: one at a time on each of some workers, or on all of them together."""

    def num_idle(self) -> int:
        """Return how many trainings could begin now."""

    def expect(self, num_trials: int) -> None:
        """Hear how many trials are left, those that run included."""

    def start(self, number: int, config: Tried, share: float) -> None:
        """Begin to train a trial anew, on a share of the training rows."""

    def stop(self, number: int) -> None:
        """Ask a training to end early. It is finished like any other, or may have been already."""

    def wait(self, timeout_seconds: float) -> Reported | Finished | Failed | None:
        """Return what has happened next; None if nothing has for so long."""


class Follower(Protocol):
    """Who hears of trials."""

    def began(self, number: int, config: BaseModel) -> str:
        """A trial begins; return the id of its run."""

    def ended(self, trial: Trial, losses: tuple[float, ...]) -> None:
        """A trial has ended; `losses` are by round, of the highest rung, and empty for those that died before."""

    def progressed(self, done: int, total: int, note: str) -> None:
        """So many trials are done."""
