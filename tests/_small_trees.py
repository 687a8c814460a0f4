"""Trained trees and rows that are small enough to compress in a moment; not a test module."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import xgboost as xgb

from infra.bundle.schema import Column, Schema, Task
from infra.bundle.trees import Trees
from tasks._techniques._forest import quantized
from tasks._techniques._students import together
from tasks._techniques.technique import Rows, Uncompressed
from tasks._train import XGBoostConfig

CATEGORIES = 5
LABELS: dict[Task, tuple[str, ...]] = {"binary": ("no", "yes"), "multiclass": ("a", "b", "c"), "regression": ()}
COLUMNS = (Column("n", "numeric"), Column("m", "numeric"), Column("city", "categorical"), Column("y", "numeric"))


@dataclass(frozen=True)
class Encoded:
    """What techniques ask of encoded rows."""

    schema: Schema


@dataclass(frozen=True)
class Job:
    """What techniques ask of a job."""

    encoded: Encoded
    seed: int = 0


def rows_of(task: Task, num_rows: int, seed: int = 0, *, is_weighted: bool = False) -> Rows:
    """Draw rows of two numbers, of which some are missing, and a category, with a target that follows from them."""
    rng = np.random.default_rng(seed)
    x_BF = rng.normal(size=(num_rows, 3)).astype(np.float32)
    x_BF[:, 2] = rng.integers(0, CATEGORIES, num_rows)
    signal = np.sin(2 * x_BF[:, 0]) + x_BF[:, 1] + np.isin(x_BF[:, 2], (1, 3)) + rng.normal(size=num_rows) / 2
    x_BF[rng.random((num_rows, 3)) < 0.1] = np.nan
    label = {"regression": signal, "binary": signal > 0, "multiclass": np.digitize(signal, (-0.5, 1.0))}[task]
    weight = rng.uniform(0.5, 2, num_rows).astype(np.float32) if is_weighted else None
    return Rows(x_BF, label.astype(np.float32), weight)


@functools.cache
def uncompressed(task: Task, num_rounds: int = 30, *, is_weighted: bool = False) -> Uncompressed:
    """Train pilot and final model on a few rows."""
    schema = Schema(COLUMNS, target="y", task=task, labels=LABELS[task])
    config = XGBoostConfig(learning_rate=0.2, max_depth=4, max_bin=32)
    classes = {"num_class": 3} if task == "multiclass" else {}
    parameters = {**config.parameters(task), **classes}
    train, validation = (rows_of(task, n, seed, is_weighted=is_weighted) for n, seed in ((250, 1), (120, 2)))
    pilot, final = (
        Trees(xgb.train({**parameters, "nthread": 1}, quantized(schema, rows, 32, 1), num_rounds))
        for rows in (train, together(train, validation))
    )

    return Uncompressed(
        job=Job(Encoded(schema)),  # type: ignore[arg-type]
        settings=config.model_dump(),
        parameters=parameters,
        num_rounds=num_rounds,
        threads=1,
        pilot=pilot,
        final=final,
        train=train,
        validation=validation,
    )
