"""How a model came about, kept with its version, and what of it a later training starts from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from infra.storage import Ref

Mode = Literal["fresh", "refit", "continue"]
Family = Literal["xgboost", "neural"]


@dataclass(frozen=True)
class Base:
    """The trees of a version to which a training adds rounds."""

    version: str
    num_rounds: int
    pilot: Ref
    """Where the first phase starts."""
    final: Ref
    """Where the second phase starts; as many rounds as the pilot."""
    num_train_rows: int
    """From which the version's final trees have learnt."""
    generations: int = 0
    """How often the version was continued."""


@dataclass(frozen=True)
class Origin:
    """What it takes to train a model again, or further."""

    settings: dict[str, Any]
    """Those of train.xgboost, or of train.neural; of a model that was continued, those of its last rounds."""
    num_rounds: int
    """Of pilot and final, before compression."""
    pilot: Ref
    """The trees of the first phase, cut to the best round; they have not learnt from the validation rows."""
    final: Ref
    """The trees that went on, before compression."""
    loss: str
    """What the training minimised, in the library's words."""
    validation_loss: float
    """Of the pilot, on the validation rows of its run."""
    features: tuple[str, ...]
    encoding: dict[str, Any]
    """What its rows were encoded by, as `Schema.encoding` says."""
    base: Base | None = None
    """What it has continued itself."""
    refit_of: str | None = None
    """The version that it is a refit of."""
    family: str = "xgboost"
    """What kind of model it is: xgboost, neural or blend."""

    @property
    def generations(self) -> int:
        """Return how often it was continued since it was trained from nothing."""
        return self.base.generations + 1 if self.base else 0
