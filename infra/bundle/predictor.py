"""What a bundle asks of its model, whatever the family."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

# B = rows, F = features.


class Predictor(Protocol):
    """A model that scores rows as `encoder.matrix` gives them: float32, codes as numbers, NaN where one is missing."""

    @property
    def family(self) -> str:
        """Return what kind of model it is: xgboost, neural or blend."""

    @property
    def num_bytes(self) -> int:
        """Return the size of the files that `save` writes, all together."""

    def scores(self, x_BF: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return scores, shape (rows,), or (rows, classes) for a multiclass model."""

    def spread(self, x_BF: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """Return how unsure the model is of each row, shape (rows,); None: it does not tell."""

    def scored(self, x_BF: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Return scores and spread, from one run of the model."""

    def save(self, folder: Path, stem: str = ...) -> tuple[str, ...]:
        """Write the model's files into an existing folder, and return their names, which begin with the stem."""

    def use_one_thread(self) -> None:
        """Use one thread for each call from now on, where calls come in parallel."""
