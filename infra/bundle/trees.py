"""Boosted trees, run by XGBoost, which is imported when they are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import xgboost as xgb

SUFFIX = ".ubj"
"""Of XGBoost's own format, which is no pickle."""


@dataclass(frozen=True)
class Trees:
    """A booster as a predictor; see `predictor.Predictor`."""

    booster: xgb.Booster
    family = "xgboost"

    @classmethod
    def load(cls, folder: Path, stem: str = "model") -> Trees:
        """Read trees that `save` wrote."""
        import xgboost as xgb  # a second, which who only reads a configuration should not wait for

        return cls(xgb.Booster(model_file=folder / f"{stem}{SUFFIX}"))

    def save(self, folder: Path, stem: str = "model") -> tuple[str, ...]:
        """Write one file."""
        self.booster.save_model(folder / f"{stem}{SUFFIX}")
        return (f"{stem}{SUFFIX}",)

    @property
    def num_bytes(self) -> int:
        """Return the size of the file."""
        return len(self.booster.save_raw(SUFFIX.removeprefix(".")))

    def scores(self, x_BF: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return scores, shape (rows,) or (rows, classes)."""
        return np.asarray(self.booster.inplace_predict(x_BF, missing=np.nan), dtype=np.float32)

    def spread(self, x_BF: NDArray[np.float32]) -> None:
        """Return None: trees tell no spread."""

    def scored(self, x_BF: NDArray[np.float32]) -> tuple[NDArray[np.float32], None]:
        """Return scores, and None for their spread."""
        return self.scores(x_BF), None

    def use_one_thread(self) -> None:
        """Take the threads from the booster that was loaded; its copies keep theirs."""
        self.booster.set_param({"nthread": 1})
