"""MLflow's loader of a bundle: nothing is unpickled."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from .model import Bundle

if TYPE_CHECKING:
    import pandas as pd


class BundleModel:
    """A bundle with the interface that `mlflow.pyfunc` asks for."""

    def __init__(self, bundle: Bundle) -> None:
        """Hold a loaded bundle."""
        self.bundle = bundle

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Answer raw rows, shape (rows, input columns); see `Bundle.predict` for the columns that come back."""
        frame = pl.from_pandas(model_input, nan_to_null=True)
        return self.bundle.predict(frame).to_pandas()


def _load_pyfunc(data_path: str) -> BundleModel:
    """Load a bundle for MLflow."""
    return BundleModel(Bundle.load(Path(data_path)))
