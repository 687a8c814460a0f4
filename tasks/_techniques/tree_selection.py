"""Keep few of the trees, with weights from a lasso, and new leaves.

The columns of the lasso are what each tree adds to a row's score ("importance sampled learning ensembles": Friedman and
Popescu, 2003). It asks for the answers of all trees together; labels it does not see, so that the pilot's form has
learnt from no validation row, and the final form, whose trees know all labels, is made in the same way.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from infra.bundle.trees import Trees
from tasks._techniques._forest import Forest
from tasks._techniques._levels import small_forest
from tasks._techniques._students import together
from tasks._techniques.technique import Built, Uncompressed

DIVISORS = (20, 9, 4)
"""The candidate's leaves over those of its forms."""
STRENGTH = 100.0


class TreeSelection:
    """The trees that together come closest to all of them."""

    name = "tree selection"
    cost = 1.0

    def applies_to(self, given: Uncompressed) -> bool:
        """Return whether there are trees to leave out."""
        return isinstance(given.final, Trees) and given.num_rounds > 1

    def build(self, given: Uncompressed) -> Iterator[Built]:
        """Give selections, the smallest first."""
        assert isinstance(given.pilot, Trees)
        assert isinstance(given.final, Trees)
        whole, seconds = Forest.of(given.final.booster), 0.0
        names: set[str] = set()
        both = together(given.train, given.validation)
        for divisor in DIVISORS:
            if seconds > given.seconds_left:
                return
            began, budgets = time.monotonic(), [whole.num_leaves / divisor]
            pilot, _ = small_forest(given, given.pilot, given.train, budgets, STRENGTH)
            final, num_trees = small_forest(given, given.final, both, budgets, STRENGTH)
            name = f"{num_trees} of {len(whole.trees)} trees"
            if name not in names:
                yield Built(name, pilot, final)
            names.add(name)
            seconds = time.monotonic() - began


TECHNIQUE = TreeSelection()
