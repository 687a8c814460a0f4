"""Checkpoints of a training: what it takes to go on after any worker, or all of them, is gone.

They lie in the store under a hash of the job, one object per chunk of rounds and the newest few, until the training is
over. A damaged one is passed over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pydantic import TypeAdapter

from infra.storage import Ref, Store
from tasks._cache import Cache, key_of

CHECKPOINT_VERSION = 1
"""To be raised when the same job comes to train another model."""
KEPT = 2
"""The newest could be damaged; then the one before it counts."""


@dataclass(frozen=True)
class Progress:
    """How far a training is, between two chunks of rounds."""

    num_rounds: int
    """Of this phase."""
    train_curve: tuple[float, ...]
    """Loss by round of the first phase, as the next one."""
    validation_curve: tuple[float, ...]
    num_train_rows: int
    """Of the first phase, in all members, as the next one."""
    num_validation_rows: int
    base_loss: float | None = None
    """Of the trees that are continued, on the validation rows."""
    pilot: Ref | None = None
    """In the second phase: the model of the first, cut to its best round."""

    @property
    def sentence(self) -> str:
        """Return how far that is, for people."""
        phase = "training rows" if self.pilot is None else "all rows"
        return f"round {self.num_rounds:,} on {phase}"


@dataclass(frozen=True)
class Checkpoint:
    """A stored booster, and what else it takes to go on from it."""

    booster: Ref
    progress: Progress


CHECKPOINTS: TypeAdapter[Checkpoint] = TypeAdapter(Checkpoint)


class Checkpoints:
    """The checkpoints of one job."""

    def __init__(self, store: Store, job: object) -> None:
        """Name the job."""
        self._store = store
        self._kind = f"checkpoints/{key_of(job, CHECKPOINT_VERSION)}"
        self._cache = Cache(store, self._kind)

    def keep(self, booster: bytes | Ref, progress: Progress) -> None:
        """Write a checkpoint, the booster first if it is not stored yet; the oldest go."""
        number = f"{int(progress.pilot is not None)}-{progress.num_rounds:08d}"
        if isinstance(booster, bytes):
            booster = self._store.put(f"{self._kind}/{number}.ubj", booster)
        self._cache.keep(number, Checkpoint(booster, progress), CHECKPOINTS)
        for name in self._names()[:-KEPT]:
            self._store.delete(name)
            self._store.delete(name.replace(".json", ".ubj"))

    def newest(self, on_damaged: Callable[[str], None] = lambda _text: None) -> Checkpoint | None:
        """Return the newest checkpoint that is whole; of each one that is not, something is said."""
        for name in reversed(self._names()):
            key = name.rpartition("/")[2].removesuffix(".json")
            found = self._cache.find(key, CHECKPOINTS)
            if found is not None:
                return found
            on_damaged(f"The checkpoint {name} is damaged ({self._cache.why_absent(key)}); the one before it is used.")
        return None

    def clear(self) -> None:
        """Remove all: the training is over."""
        for name in self._store.list(f"{self._kind}/"):
            self._store.delete(name)

    def _names(self) -> list[str]:
        return sorted(name for name in self._store.list(f"{self._kind}/") if name.endswith(".json"))
