"""Leaf values on a grid: few distinct ones, which a packed file holds in few bits, and which every runtime reads."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tasks._techniques._forest import Forest

# B = rows, G = classes, T = trees.

NOISE_SHARE = 0.003
"""Deviation of what rounding adds to a score, over the deviation of the scores: of a model that explains 98% of the
variance the error grows by 0.02%, of others by less."""


def rounded(forest: Forest, margin_BG: NDArray[np.floating]) -> Forest:
    """Return the forest with leaf values that are multiples of one step.

    Rounding moves each leaf by up to half a step, as a uniform variable with a deviation of step / sqrt(12), and a
    row's score by the sum over its class's trees, sqrt(T) times as much if they are independent; the step follows
    from NOISE_SHARE. It is a power of 2, so that products with whole numbers are exact in float32.

    Args:
        forest: The trees.
        margin_BG: Scores before the link of some rows, shape (rows, classes).
    """
    deviation = float(np.std(margin_BG, axis=0).mean())
    trees_per_group = max(1.0, len(forest.trees) / forest.num_groups)
    if not deviation:
        return forest
    step = 2.0 ** np.floor(np.log2(NOISE_SHARE * deviation * np.sqrt(12 / trees_per_group)))
    return forest.with_values([np.round(tree.value_N[tree.leaves_L] / step) * step for tree in forest.trees])
