"""Small boosted trees: how large they are, and how they learn from hard labels, or from means that a teacher gives."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import xgboost as xgb
from numpy.typing import NDArray

from infra.bundle.predictor import Predictor
from infra.bundle.trees import Trees
from tasks._techniques._forest import Forest, quantized
from tasks._techniques._refit import probabilities
from tasks._techniques.technique import Rows, Uncompressed
from tasks._train import XGBoostConfig

# B = rows, F = features, G = classes (1 unless multiclass).

LEAST_LEAVES = 2000
"""Of a candidate that has no trees, the leaves that its students are compared with, times the divisor."""
LEAST_CURVATURE = 1e-6


@dataclass(frozen=True)
class Shape:
    """How large a small model is."""

    num_rounds: int
    num_leaves: int
    """Most leaves of a tree; the leaf with most to gain is split first, so that none is wasted."""
    learning_rate: float

    def settings(self) -> dict[str, float | int | str]:
        """Return the library's parameters; a path may be two splits longer than in a balanced tree."""
        depth = math.ceil(math.log2(self.num_leaves)) + 2
        told = {"max_leaves": self.num_leaves, "max_depth": depth, "learning_rate": self.learning_rate}
        return {**told, "grow_policy": "lossguide"}


def rounds_within(given: Uncompressed, divisor: float, num_leaves: int) -> int:
    """Return how many rounds have, in all, the leaves of the candidate over a divisor."""
    if not isinstance(given.final, Trees):
        return max(1, round(LEAST_LEAVES * 9 / divisor / num_leaves / num_groups(given)))
    forest = Forest.of(given.final.booster)
    return max(1, round(forest.num_leaves / divisor / num_leaves / forest.num_groups))


def num_groups(given: Uncompressed) -> int:
    """Count the classes whose scores trees add up; 1 unless the task is multiclass."""
    return len(given.schema.labels) if given.schema.task == "multiclass" else 1


def bins(given: Uncompressed) -> int:
    """Return how many bins a feature has."""
    return int(given.settings["max_bin"]) if isinstance(given.final, Trees) else XGBoostConfig().max_bin


def library(given: Uncompressed) -> dict[str, bool | float | int | str]:
    """Return the parameters of XGBoost's that a student shares with the candidate, with seed and threads.

    Its trees are grown on the CPU: they are few.
    """
    if isinstance(given.final, Trees):
        known = {name: value for name, value in given.parameters.items() if name != "device"}
    else:
        known = dict(XGBoostConfig().parameters(given.schema.task))
    classes = {"num_class": num_groups(given)} if given.schema.task == "multiclass" else {}
    return {**known, **classes, "seed": given.seed, "nthread": given.threads}


def together(*parts: Rows) -> Rows:
    """Put rows behind one another; where any have weights, others weigh 1."""
    weights = [np.ones(len(rows), np.float32) if rows.weight_B is None else rows.weight_B for rows in parts]
    return Rows(
        np.concatenate([rows.x_BF for rows in parts]),
        np.concatenate([rows.label_B for rows in parts]),
        None if all(rows.weight_B is None for rows in parts) else np.concatenate(weights),
    )


def hard(given: Uncompressed, rows: Rows) -> NDArray[np.float32]:
    """Return what happened, as means of the target: shape (rows, classes)."""
    if given.schema.task != "multiclass":
        return rows.label_B[:, None].astype(np.float32)
    return np.eye(num_groups(given), dtype=np.float32)[rows.label_B.astype(np.intp)]


def means(model: Predictor, x_BF: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a model's scores, shape (rows, classes)."""
    return model.scores(x_BF).reshape(len(x_BF), -1)


def student(given: Uncompressed, rows: Rows, target_BG: NDArray[np.float32], shape: Shape) -> xgb.Booster:
    """Grow a small model on means of the target.

    The library's losses of a binary target and of regression take any mean; of several classes they take labels only,
    so that the slopes of the cross entropy are given here, which is exact, and needs no row for each class.
    """
    parameters = {**library(given), **shape.settings()}
    if target_BG.shape[1] == 1:
        known = Rows(rows.x_BF, target_BG[:, 0], rows.weight_B)
        return xgb.train(parameters, quantized(given.schema, known, bins(given), given.threads), shape.num_rounds)
    weight_B = np.ones(len(rows), np.float32) if rows.weight_B is None else rows.weight_B
    prior_G = np.log(np.maximum(np.average(target_BG, axis=0, weights=weight_B), 1e-6))
    data = quantized(given.schema, rows, bins(given), given.threads)
    data.set_base_margin(np.broadcast_to(prior_G, target_BG.shape).astype(np.float32))

    def slopes(margin_BG: NDArray[np.float32], _: xgb.DMatrix) -> tuple[NDArray[Any], NDArray[Any]]:
        mean_BG = probabilities("multiclass", margin_BG).astype(np.float32)
        curve_BG = np.maximum(2 * mean_BG * (1 - mean_BG), LEAST_CURVATURE)
        return (mean_BG - target_BG) * weight_B[:, None], curve_BG * weight_B[:, None]

    forest = Forest.of(xgb.train(parameters, data, shape.num_rounds, obj=slopes))
    return forest.shifted(prior_G - forest.intercept_G).booster()
