"""What a way to compress a model gets, and what it gives.

A training has two phases (see `tasks._xgboost`): the pilot has not learnt from the validation rows, the final model
has, and is shipped. A technique makes both smaller in the same way. What the validation rows say of the small pilot is
what is believed of the small final model.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from infra.bundle.predictor import Predictor
from infra.bundle.schema import Schema
from tasks._learning import LearningJob

# B = rows, F = features.


@dataclass(frozen=True)
class Rows:
    """Encoded rows as models take them."""

    x_BF: NDArray[np.float32]
    """Shape (rows, features): numbers as they are, codes as numbers, NaN where one is missing."""
    label_B: NDArray[np.float32]
    """Shape (rows,): the target, or the number of the class."""
    weight_B: NDArray[np.float32] | None
    """Shape (rows,); None: all alike."""

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.label_B)


@dataclass(frozen=True)
class Uncompressed:
    """A trained model, and rows to compress it with; of very many rows, as many as memory allows."""

    job: LearningJob
    """Of its training: a `TrainingJob` for trees, a `NeuralJob` for networks."""
    pilot: Predictor
    """Its form that has learnt from `train` alone."""
    final: Predictor
    """Its form that has learnt from `train` and `validation`, and would be shipped; the pilot where there is no other.
    Networks have their weights."""
    settings: Mapping[str, Any]
    """Those of train.xgboost, or of train.neural, that it was trained with."""
    parameters: Mapping[str, bool | float | int | str]
    """The same as XGBoost takes them, but for seed and threads; of other families something else."""
    num_rounds: int
    """Rounds of the trees, or epochs."""
    train: Rows
    validation: Rows
    threads: int
    deadline: float = float("inf")
    """When techniques are stopped, in seconds of `time.monotonic`."""

    @property
    def schema(self) -> Schema:
        """Return what the features are, and what the target asks for."""
        return self.job.encoded.schema

    @property
    def seed(self) -> int:
        """Return where all that is random begins."""
        return self.job.seed

    @property
    def seconds_left(self) -> float:
        """Return how long a technique may still work."""
        return self.deadline - time.monotonic()


@dataclass(frozen=True)
class Built:
    """A smaller form of a model, not yet measured."""

    name: str
    """What it is, for people, such as "35 of 300 trees"; no two of a model have the same."""
    pilot: Predictor
    """Made from the pilot; has not learnt from the validation rows, though they may have chosen between a few forms."""
    final: Predictor
    """Made from the final model in the same way, with all rows; this one is shipped."""


class Technique(Protocol):
    """One way to make a model smaller or faster.

    It is pure: the same `Uncompressed` gives the same models. It runs in a process of its own: one that fails, hangs
    or takes its process along costs no more than its own forms.
    """

    name: str
    """In `compress.techniques` and in the report."""
    cost: float
    """The work in trainings of the candidate, roughly; cheap techniques come first."""

    def applies_to(self, given: Uncompressed) -> bool:
        """Return whether the model is of a kind that this can be done to."""

    def build(self, given: Uncompressed) -> Iterator[Built]:
        """Give forms, the cheapest first, each as soon as it is made."""
