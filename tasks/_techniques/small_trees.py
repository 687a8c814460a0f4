"""Train a small model on the same labels: the honest baseline of every other technique.

It is well tuned: of a few learning rates the one whose trees leave the least loss on the validation rows, at its best
round. The final model has as many rounds, of all rows.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xgboost as xgb

from infra.bundle.trees import Trees
from tasks._boost import best_round
from tasks._techniques._forest import quantized
from tasks._techniques._students import Shape, bins, library, rounds_within, together
from tasks._techniques.technique import Built, Uncompressed

SIZES = ((30, 16), (16, 32), (10, 32))
"""The candidate's leaves over those of the small model, at least, and leaves of a tree."""
RATES = (0.1, 0.2, 0.4)


class SmallTrees:
    """Few trees that learn faster, from the candidate's rows and labels alone."""

    name = "small trees"
    cost = 0.5

    def applies_to(self, given: Uncompressed) -> bool:
        """Return whether there are validation rows, which tell a good learning rate."""
        return len(given.validation) > 0

    def build(self, given: Uncompressed) -> Iterator[Built]:
        """Give small models, the smallest first."""
        rows = quantized(given.schema, given.train, bins(given), given.threads)
        judges = quantized(given.schema, given.validation, bins(given), given.threads, ref=rows)
        both = quantized(given.schema, together(given.train, given.validation), bins(given), given.threads)
        names: set[str] = set()
        for divisor, num_leaves in SIZES:
            most = rounds_within(given, divisor, num_leaves)
            tried = [(*judged(given, rows, judges, shape), shape) for shape in shapes(most, num_leaves)]
            _, pilot, shape = min(tried, key=lambda one: one[0])
            num_rounds = pilot.num_boosted_rounds()
            name = f"{num_rounds} rounds of {num_leaves} leaves"
            if name in names:
                continue
            names.add(name)
            final = xgb.train({**library(given), **shape.settings()}, both, num_rounds)
            yield Built(name, Trees(pilot), Trees(final))


def shapes(num_rounds: int, num_leaves: int) -> list[Shape]:
    """List small models that differ in their learning rate."""
    return [Shape(num_rounds, num_leaves, rate) for rate in RATES]


def judged(given: Uncompressed, rows: xgb.DMatrix, judges: xgb.DMatrix, shape: Shape) -> tuple[float, xgb.Booster]:
    """Return the least validation loss, and the trees up to there."""
    told: dict[str, dict[str, list[float]]] = {}
    booster = xgb.train(
        {**library(given), **shape.settings()},
        rows,
        shape.num_rounds,
        evals=[(judges, "validation")],
        evals_result=told,
        verbose_eval=False,
    )
    (curve,) = told["validation"].values()
    best = best_round(curve)
    return float(np.nan_to_num(curve[best], nan=np.inf)), booster[: best + 1]


TECHNIQUE = SmallTrees()
