"""Weights for the subtrees of one level of all trees, most of them 0: what is kept of a forest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xgboost as xgb
from numpy.typing import NDArray
from scipy.sparse import csr_array

from infra.bundle.trees import Trees
from tasks._techniques._forest import Forest, Tree, leaf_ids, margins, matrix_of
from tasks._techniques._lasso import Lasso
from tasks._techniques._refit import MAX_CELLS, evenly, probabilities, with_new_leaves
from tasks._techniques._students import means
from tasks._techniques.technique import Rows, Uncompressed

# B = rows, G = classes (1 unless multiclass), T = trees, N = nodes of a tree, C = subtrees of a level.

LEAST_CURVE = 1e-3
"""Of a row of which the model is sure: it still counts a little."""


@dataclass(frozen=True)
class Aim:
    """Where a smaller forest is to answer as the whole one does; no label is asked."""

    rows: xgb.DMatrix
    curve_BG: NDArray[np.float64]
    """How much a deviation costs: weights times the loss's curvature."""

    @classmethod
    def of(cls, given: Uncompressed, booster: xgb.Booster, rows: Rows, num_trees: int) -> Aim:
        """Aim at a model's answers for some rows, for as many as memory allows."""
        kept = evenly(len(rows), MAX_CELLS // max(1, num_trees))
        part = Rows(rows.x_BF[kept], rows.label_B[kept], None if rows.weight_B is None else rows.weight_B[kept])
        mean_BG = probabilities(given.schema.task, margins(booster, part.x_BF).astype(np.float64))
        is_plain = given.schema.task == "regression"
        curve_BG = np.ones_like(mean_BG) if is_plain else np.maximum(mean_BG * (1 - mean_BG), LEAST_CURVE)
        weight_B = np.ones(len(part)) if part.weight_B is None else part.weight_B
        return cls(matrix_of(given.schema, part, threads=given.threads), curve_BG * weight_B[:, None])


def small_forest(
    given: Uncompressed, model: Trees, rows: Rows, budgets: Sequence[float], strength: float
) -> tuple[Trees, int]:
    """Return a model pruned at one level after the other, with new leaves, and how many trees it has.

    What it aims at are the whole model's own answers, not the labels: these the trees have learnt from, so that the
    detail that fits their noise would seem to be the most useful (measured in docs/log.md).

    Args:
        given: The settings.
        model: The whole model.
        rows: Those that it has learnt from.
        budgets: Leaves that are left after each level, from the roots on.
        strength: Of the refit's penalty.
    """
    forest = Forest.of(model.booster)
    aim = Aim.of(given, model.booster, rows, len(forest.trees))
    for level, budget in enumerate(budgets):
        forest = pruned_at(forest, level, aim, budget)
    refit = with_new_leaves(given, forest.booster(), rows, means(model, rows.x_BF), strength)
    return Trees(refit), len(forest.trees)


def pruned_at(forest: Forest, level: int, aim: Aim, budget: float) -> Forest:
    """Return the forest with the subtrees of a level weighted, so that at most a budget of leaves is left.

    The columns of a lasso are what each subtree adds to a row, less its mean over the rows that reach it; a column
    costs the leaves that are saved without it. A subtree of weight 0 becomes a leaf of that mean: only its detail is
    lost. After "Level-wise Optimization and Pruning" (Devos et al., ICML 2025), where it becomes a leaf of 0.

    Args:
        forest: The trees.
        level: Of the roots of the subtrees; at 0 whole trees are weighted.
        aim: What the forest is to answer.
        budget: Leaves of all trees.
    """
    leaf_BT = leaf_ids(forest.booster(), aim.rows, forest)
    changed = list(forest.trees)
    for group in range(forest.num_groups):
        trees = np.flatnonzero(forest.group_T == group)
        if not len(trees):
            continue
        num_leaves = sum(len(forest.trees[t].leaves_L) for t in trees)
        columns = Columns.of(forest, trees, leaf_BT, level, aim.curve_BG[:, group])
        if not len(columns.cost_C):
            continue
        now_B = columns.x_BC @ np.ones(len(columns.cost_C))
        lasso = Lasso(columns.x_BC, now_B, aim.curve_BG[:, group], columns.cost_C)
        others = num_leaves - columns.cost_C.sum()
        weight_C = lasso.within(max(0.0, budget * num_leaves / forest.num_leaves - others))
        for t in trees:
            changed[t] = columns.applied(forest.trees[t], int(t), weight_C)
    return forest.with_trees(changed, forest.group_T)


@dataclass(frozen=True)
class Columns:
    """The subtrees of a level."""

    x_BC: csr_array
    """What they add to each row, less their mean, shape (rows, subtrees)."""
    cost_C: NDArray[np.float64]
    """Leaves that are saved without them."""
    mean_C: NDArray[np.float64]
    roots: dict[int, list[tuple[int, int]]]
    """By tree: the roots, and which columns these are."""

    @classmethod
    def of(
        cls,
        forest: Forest,
        trees: NDArray[np.intp],
        leaf_BT: NDArray[np.int32],
        level: int,
        curve_B: NDArray[np.float64],
    ) -> Columns:
        """Find the subtrees of some trees, and what they add."""
        roots: dict[int, list[tuple[int, int]]] = {}
        value_BT, column_BT = (np.zeros((len(leaf_BT), len(trees)), kind) for kind in (np.float32, np.int32))
        cost: list[float] = []
        mean: list[float] = []
        for place, t in enumerate(trees):
            tree = forest.trees[t]
            root_N = tree.roots_at(level)
            found = np.unique(root_N[tree.leaves_L])
            found = found[found >= 0]
            number_N = np.zeros(len(root_N), np.int32)
            number_N[found] = np.arange(len(found)) + len(cost)
            root_B = root_N[leaf_BT[:, t]]
            is_below = root_B >= 0
            value_B = np.where(is_below, tree.value_N[leaf_BT[:, t]], 0).astype(np.float64)
            weight_B = np.where(is_below, curve_B, 0.0)
            total_N = np.bincount(np.maximum(root_B, 0), weight_B * value_B, len(root_N))
            mean_N = total_N / np.maximum(np.bincount(np.maximum(root_B, 0), weight_B, len(root_N)), 1e-300)
            value_BT[:, place] = np.where(is_below, value_B - mean_N[root_B], 0)
            column_BT[:, place] = np.where(is_below, number_N[root_B], 0)
            roots[int(t)] = [(int(root), len(cost) + i) for i, root in enumerate(found)]
            left = 1 if level else 0  # of a subtree that is cut off one leaf is left, of a whole tree none
            cost += [float((root_N[tree.leaves_L] == root).sum() - left) for root in found]
            mean += mean_N[found].tolist()
        edges = np.arange(0, value_BT.size + 1, max(1, len(trees)))[: len(leaf_BT) + 1]
        shape = (len(leaf_BT), max(1, len(cost)))
        x_BC = csr_array((value_BT.ravel(), column_BT.ravel(), edges), shape=shape)
        return cls(x_BC, np.asarray(cost), np.asarray(mean), roots)

    def applied(self, tree: Tree, number: int, weight_C: NDArray[np.float64]) -> Tree:
        """Return a tree with its subtrees weighted, and without those of weight 0."""
        value_N, gone = tree.value_N.astype(np.float64), {}
        for root, column in self.roots[number]:
            mean, weight = self.mean_C[column], weight_C[column]
            below = tree.below(root)
            value_N[below] = mean + weight * (value_N[below] - mean)
            if not weight:
                gone[root] = float(mean)
        changed = tree.with_values(value_N[tree.leaves_L])
        return changed.pruned(gone) if gone else changed
