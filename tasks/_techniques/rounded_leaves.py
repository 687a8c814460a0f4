"""Round leaf values to a grid: the packed files of the same trees are smaller by a fifth to a third."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from infra.bundle.trees import Trees
from tasks._techniques._forest import Forest
from tasks._techniques._rounding import rounded
from tasks._techniques.technique import Built, Uncompressed


class RoundedLeaves:
    """All trees, with leaf values that have few digits; thresholds have few values already, those of the bins."""

    name = "rounded leaves"
    cost = 0.1

    def applies_to(self, given: Uncompressed) -> bool:
        """Return whether there are leaves."""
        return isinstance(given.final, Trees)

    def build(self, given: Uncompressed) -> Iterator[Built]:
        """Give the trees."""
        assert isinstance(given.pilot, Trees)
        assert isinstance(given.final, Trees)
        yield Built("all trees, leaves rounded", *(with_few_digits(given, m) for m in (given.pilot, given.final)))


def with_few_digits(given: Uncompressed, model: Trees) -> Trees:
    """Return trees with leaf values on a grid that follows from their scores of the training rows."""
    margin = model.booster.inplace_predict(given.train.x_BF, missing=np.nan, predict_type="margin")
    return Trees(rounded(Forest.of(model.booster), np.asarray(margin).reshape(len(given.train), -1)).booster())


TECHNIQUE = RoundedLeaves()
