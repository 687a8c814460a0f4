"""Prune the trees level by level, then refit the leaves that are left.

After "Compressing Tree Ensembles through Level-wise Optimization and Pruning" (LOP; Devos, Martens, Oruc, Meert,
Blockeel and Davis, ICML 2025): at each level, from the roots on, a lasso weighs the subtrees that begin there, and
those of weight 0 are cut off; at the end all leaves are fitted together.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from infra.bundle.trees import Trees
from tasks._techniques._forest import Forest
from tasks._techniques._levels import small_forest
from tasks._techniques._students import together
from tasks._techniques.technique import Built, Uncompressed

DIVISORS = (16, 8)
"""The candidate's leaves over those of its forms."""
NUM_LEVELS = 5
FIRST_SURPLUS = 2.5
"""Leaves of the trees that are kept at first, over those at the end; each level takes the same share of them."""
STRENGTH = 100.0


class LeafRefit:
    """The model's own trees, fewer and pruned, with new leaves."""

    name = "leaf refit"
    cost = 3.0

    def applies_to(self, given: Uncompressed) -> bool:
        """Return whether the model is trees."""
        return isinstance(given.final, Trees)

    def build(self, given: Uncompressed) -> Iterator[Built]:
        """Give pruned forms, the smallest first."""
        assert isinstance(given.pilot, Trees)
        assert isinstance(given.final, Trees)
        num_leaves, seconds = Forest.of(given.final.booster).num_leaves, 0.0
        both = together(given.train, given.validation)
        for divisor in DIVISORS:
            if seconds > given.seconds_left:
                return
            began = time.monotonic()
            steps = [FIRST_SURPLUS ** (1 - level / (NUM_LEVELS - 1)) for level in range(NUM_LEVELS)]
            budgets = [num_leaves / divisor * surplus for surplus in steps]
            pilot, _ = small_forest(given, given.pilot, given.train, budgets, STRENGTH)
            final, num_trees = small_forest(given, given.final, both, budgets, STRENGTH)
            yield Built(f"{num_trees} trees pruned to 1/{divisor} of the leaves", pilot, final)
            seconds = time.monotonic() - began


TECHNIQUE = LeafRefit()
