"""Small boosters with numbers and codes, and rows for them."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import xgboost as xgb
from numpy.typing import NDArray

NUM_CODES = 70
"""More than a word has bits, and far more than are split one against the rest."""
OBJECTIVES = {"binary": "binary:logistic", "multiclass": "multi:softprob", "regression": "reg:squarederror"}
TYPES = ["c", "q", "q", "c"]


def rows(num_rows: int, seed: int = 0) -> NDArray[np.float32]:
    """Return rows of many codes, two numbers and three codes, shape (rows, 4), a tenth of it missing."""
    rng = np.random.default_rng(seed)
    columns = rng.integers(0, NUM_CODES, num_rows), *rng.normal(size=(2, num_rows)), rng.integers(0, 3, num_rows)
    x_BF = np.stack(columns, axis=1).astype(np.float32)
    x_BF[rng.random(x_BF.shape) < 0.1] = np.nan
    return x_BF


@cache
def booster(task: str = "binary", rounds: int = 12, **changes: Any) -> xgb.Booster:
    """Train trees of a task."""
    x_BF = rows(600)
    code_B, number_B = np.nan_to_num(x_BF[:, 0]), np.nan_to_num(x_BF[:, 1])
    signal_B = np.sin(code_B * 12.9898) * 3 + number_B + np.random.default_rng(1).normal(size=len(x_BF)) / 4
    targets = {"binary": signal_B > 0.5, "multiclass": np.digitize(signal_B, [-1, 1]), "regression": signal_B * 9}
    classes = {"num_class": 3} if task == "multiclass" else {}
    matrix = xgb.DMatrix(x_BF, targets[task], feature_types=TYPES, enable_categorical=True)
    parameters = {"objective": OBJECTIVES[task], "max_depth": 4, "nthread": 1, "seed": 0, **classes}
    return xgb.train({**parameters, **changes}, matrix, rounds)
