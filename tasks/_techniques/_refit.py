"""New values for the leaves of trees that keep their splits: one penalized generalized linear model of all leaves."""

from __future__ import annotations

from typing import Any

import numpy as np
import xgboost as xgb
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.sparse import csr_array

from infra.bundle.schema import Task
from tasks._techniques._forest import Forest, leaf_ids, margins, matrix_of
from tasks._techniques._rounding import rounded
from tasks._techniques.technique import Rows, Uncompressed

# B = rows, G = classes (1 unless multiclass), T = trees, L = leaves of all trees.

CLIP = 30.0
"""Scores before the link are kept this far from 0: the exponential of more says nothing."""
MAX_CELLS = 40_000_000
"""Rows times trees of a refit: 8 bytes each, and as many more while they are asked for."""


def probabilities(task: Task, margin_BG: NDArray[np.floating[Any]]) -> NDArray[Any]:
    """Return the mean of the target that scores before the link stand for, shape (rows, classes)."""
    if task == "regression":
        return margin_BG
    if task == "binary":
        return np.asarray(1 / (1 + np.exp(-np.clip(margin_BG, -CLIP, CLIP))))
    raised = np.exp(margin_BG - margin_BG.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def mean_loss(
    task: Task, margin_BG: NDArray[np.float64], target_BG: NDArray[np.floating], weight_B: NDArray[np.float64]
) -> float:
    """Return half the squared error, or the cross entropy; `weight_B` sums to 1."""
    if task == "regression":
        return float(weight_B @ (0.5 * (margin_BG - target_BG) ** 2)[:, 0])
    if task == "binary":
        return float(weight_B @ (np.logaddexp(0, margin_BG) - target_BG * margin_BG)[:, 0])
    top_B = margin_BG.max(axis=1)
    total_B = top_B + np.log(np.exp(margin_BG - top_B[:, None]).sum(axis=1))
    return float(weight_B @ (total_B - (target_BG * margin_BG).sum(axis=1)))


def refitted(
    task: Task,
    forest: Forest,
    leaf_BT: NDArray[np.int32],
    target_BG: NDArray[np.floating],
    weight_B: NDArray[np.floating] | None,
    *,
    strength: float,
    num_steps: int = 50,
) -> Forest:
    """Return the forest with the leaf values that fit targets best.

    All leaves learn together, where boosting fixes each tree before the next ("fully corrective": Johnson and Zhang,
    "Learning nonlinear functions using regularized greedy forest", IEEE TPAMI 2014; as the last step of LOP, ICML
    2025). The penalty is ridge's, not towards 0 but towards the values that are there: a leaf that few rows reach
    keeps its own. L-BFGS on values that are scaled by the curvature of their leaf.

    Args:
        task: Whose loss it is.
        forest: The trees.
        leaf_BT: The node in which each row ends, by tree.
        target_BG: Means of the target; of classes their probabilities.
        weight_B: Of the rows; None: all alike.
        strength: Rows whose curvature the penalty of a leaf is worth, as `reg_lambda`.
        num_steps: Most steps of the solver.
    """
    weight = np.ones(len(leaf_BT)) if weight_B is None else np.asarray(weight_B, np.float64)
    total = weight.sum()
    share_B = weight / total
    groups, starts = forest.num_groups, np.cumsum([0, *(len(tree.leaves_L) for tree in forest.trees)])
    before_L = np.concatenate([tree.value_N[tree.leaves_L] for tree in forest.trees]).astype(np.float64)
    sides = [_leaves_of(forest, leaf_BT, np.flatnonzero(forest.group_T == group), starts) for group in range(groups)]
    intercept_G = forest.intercept_G.astype(np.float64)
    margin_BG = np.stack([x @ before_L for x in sides], axis=1) + intercept_G
    mean_BG = probabilities(task, margin_BG)
    curve_BG = np.ones_like(mean_BG) if task == "regression" else np.maximum(mean_BG * (1 - mean_BG), 1e-6)
    curve_L = np.sum([x.T @ (share_B * curve_BG[:, g]) for g, x in enumerate(sides)], axis=0)
    scale_L = 1 / np.sqrt(curve_L + strength / total)

    def loss(step_L: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        change_L = step_L * scale_L
        scores_BG = margin_BG + np.stack([x @ change_L for x in sides], axis=1)
        slope_BG = (probabilities(task, scores_BG) - target_BG) * share_B[:, None]
        slope_L = np.sum([x.T @ slope_BG[:, g] for g, x in enumerate(sides)], axis=0)
        value = mean_loss(task, scores_BG, target_BG, share_B) + 0.5 * strength / total * float(change_L @ change_L)
        return value, (slope_L + strength / total * change_L) * scale_L

    found = minimize(loss, np.zeros_like(before_L), jac=True, method="L-BFGS-B", options={"maxiter": num_steps})
    after_L = before_L + found.x * scale_L
    return forest.with_values(np.split(after_L, starts[1:-1]))


def _leaves_of(
    forest: Forest, leaf_BT: NDArray[np.int32], trees: NDArray[np.intp], starts: NDArray[np.intp]
) -> csr_array:
    """Return which leaves of some trees a row ends in, shape (rows, leaves of all trees)."""
    columns = np.empty((len(leaf_BT), len(trees)), np.int32)
    for place, number in enumerate(trees):
        tree = forest.trees[number]
        rank_N = np.zeros(len(tree.value_N), np.int32)
        rank_N[tree.leaves_L] = np.arange(len(tree.leaves_L)) + starts[number]
        columns[:, place] = rank_N[leaf_BT[:, number]]
    edges = np.arange(0, columns.size + 1, max(1, len(trees)))[: len(leaf_BT) + 1]
    ones = np.ones(columns.size, np.float32)
    return csr_array((ones, columns.ravel(), edges), shape=(len(leaf_BT), int(starts[-1])))


def with_new_leaves(
    given: Uncompressed, booster: xgb.Booster, rows: Rows, target_BG: NDArray[np.floating], strength: float
) -> xgb.Booster:
    """Return a booster whose leaves were refitted and rounded, on as many rows as memory allows.

    Of too many rows every k-th is used, and the penalty is as much weaker.
    """
    forest = Forest.of(booster)
    kept = evenly(len(rows), MAX_CELLS // max(1, len(forest.trees)))
    weight_B = None if rows.weight_B is None else rows.weight_B[kept]
    part = Rows(rows.x_BF[kept], rows.label_B[kept], weight_B)
    leaf_BT = leaf_ids(booster, matrix_of(given.schema, part, threads=given.threads), forest)
    less = strength * len(kept) / len(rows)
    found = refitted(given.schema.task, forest, leaf_BT, target_BG[kept], weight_B, strength=less)
    return rounded(found, margins(booster, part.x_BF)).booster()


def evenly(num_rows: int, most: int) -> NDArray[np.intp]:
    """Return which rows to use of too many.

    >>> evenly(3, 5).tolist(), evenly(6, 3).tolist()
    ([0, 1, 2], [0, 2, 4])
    """
    return np.unique(np.linspace(0, num_rows, max(1, min(num_rows, most)), endpoint=False).astype(np.intp))
