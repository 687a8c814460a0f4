"""A lasso with weights that are not negative, as sparse as is asked for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

# B = rows, C = columns.

Array = NDArray[np.float64]
NUM_PENALTIES, NUM_STEPS = 14, 80
CONVERGED = 1e-5
"""Change of a weight in a step; a tree that is left as it is has weight 1."""
MOST_SQUARED = 2500
"""Columns up to which the matrix of their products is computed once."""
BLOCK_CELLS = 16_000_000


class Lasso:
    """Minimize sum(curve * (z - x w)^2) / 2 + penalty * sum(cost * w) over w >= 0, where x and z are centred.

    Solved by FISTA (Beck and Teboulle, SIAM J. Imaging Sciences 2009, section 4) with restarts.
    """

    def __init__(self, x_BC: csr_array, z_B: Array, curve_B: Array, cost_C: Array) -> None:
        """Take columns, what they are to add up to, how much each row counts, and what each column costs."""
        self.cost_C = cost_C
        curve_B = curve_B / curve_B.sum()
        mean_C = np.asarray(x_BC.T @ curve_B)
        self._toward_C = np.asarray(x_BC.T @ (curve_B * z_B)) - mean_C * float(curve_B @ z_B)
        self.mean_C = mean_C
        if x_BC.shape[1] <= MOST_SQUARED:
            square_CC = _squared(x_BC, curve_B) - np.outer(mean_C, mean_C)
            self._product: Callable[[Array], Array] = lambda w_C: square_CC @ w_C
        else:
            self._product = lambda w_C: np.asarray(x_BC.T @ (curve_B * (x_BC @ w_C))) - mean_C * float(mean_C @ w_C)
        w_C = np.random.default_rng(0).random(x_BC.shape[1])
        for _ in range(30):  # power iteration for the largest curvature
            w_C = self._product(w_C / max(float(np.linalg.norm(w_C)), 1e-300))
        self._step = 1 / max(1.05 * float(np.linalg.norm(w_C)), 1e-300)

    def weights(self, penalty: float, start_C: Array, num_steps: int = NUM_STEPS) -> Array:
        """Return the weights for a penalty, from weights to begin with."""
        w_C, ahead_C, pace = start_C, start_C, 1.0
        for _ in range(num_steps):
            slope_C = self._product(ahead_C) - self._toward_C + penalty * self.cost_C
            new_C = np.maximum(ahead_C - self._step * slope_C, 0.0)
            if float((ahead_C - new_C) @ (new_C - w_C)) > 0:  # it overshot
                pace = 1.0
            next_pace = (1 + np.sqrt(1 + 4 * pace**2)) / 2
            ahead_C = new_C + (pace - 1) / next_pace * (new_C - w_C)
            is_done = float(np.abs(new_C - w_C).max(initial=0)) <= CONVERGED
            w_C, pace = new_C, next_pace
            if is_done:
                break
        return w_C

    def within(self, budget: float) -> Array:
        """Return weights whose columns cost at most a budget, and hardly less, free of the penalty's pull.

        The penalty is found by bisection; the weights of the columns it leaves are then fitted without it.
        """
        most = float(np.max(self._toward_C / self.cost_C, initial=0.0))
        if most <= 0:
            return np.zeros_like(self.cost_C)
        low, high = np.log(most * 1e-7), np.log(most)
        w_C = found_C = np.zeros_like(self.cost_C)
        for _ in range(NUM_PENALTIES):
            middle = (low + high) / 2
            w_C = self.weights(float(np.exp(middle)), w_C)
            if float(self.cost_C[w_C > 0].sum()) <= budget:
                found_C, high = w_C, middle
            else:
                low = middle
        return self._without_penalty(found_C)

    def _without_penalty(self, start_C: Array) -> Array:
        """Return weights of the columns that have one, fitted further, with no cost for their size."""
        is_kept, w_C = start_C > 0, start_C
        for _ in range(4 * NUM_STEPS):
            slope_C = self._product(w_C) - self._toward_C
            new_C = np.where(is_kept, np.maximum(w_C - self._step * slope_C, 0.0), 0.0)
            is_done, w_C = float(np.abs(new_C - w_C).max(initial=0)) <= CONVERGED, new_C
            if is_done:
                break
        return w_C


def _squared(x_BC: csr_array, curve_B: Array) -> Array:
    """Return the weighted products of all pairs of columns; of few columns block by block, as a dense matrix's."""
    num_rows, num_columns = x_BC.shape
    total_CC = np.zeros((num_columns, num_columns))
    step = max(1, BLOCK_CELLS // max(1, num_columns))
    for start in range(0, num_rows, step):
        part = x_BC[start : start + step].toarray() * np.sqrt(curve_B[start : start + step, None])
        total_CC += part.T @ part
    return total_CC
