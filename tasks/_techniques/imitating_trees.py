"""Few large trees that imitate the model itself, on very many mixed rows.

Where distillation asks for the best small model, this asks for the one that differs least from the large one: what the
equivalence test can prove depends on how far single rows move, not on the mean alone. The teacher is the model; labels
and rows that it has not seen play no part, but for the columns' values. Most rows are mixed from several (see
`distilled_trees`), so that a tree can be large and still not learn single rows by heart; at the end all leaves learn
together. A packed leaf costs a fifth of the bytes of a plain one, and each tree costs time whatever its leaves: hence
few trees of many leaves.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from infra.bundle.predictor import Predictor
from infra.bundle.trees import Trees
from infra.bundle.vocabulary import UNKNOWN
from tasks._techniques._forest import Forest
from tasks._techniques._refit import with_new_leaves
from tasks._techniques._students import Shape, means, student, together
from tasks._techniques.distilled_trees import mixed_rows
from tasks._techniques.technique import Built, Rows, Uncompressed

# B = rows, F = features, G = classes (1 unless multiclass).

SIZES = ((14, 3.5), (10, 2.5))
"""The candidate's rounds over the student's, and the candidate's leaves over the student's, all together."""
LEAST_ROUNDS, LEAST_LEAVES, MOST_LEAVES = 4, 8, 256
RATE_ROUNDS, LEAST_RATE, MOST_RATE = 10.0, 0.2, 0.6
"""The learning rate is the first over the rounds, within the others: few trees have to come as far as many."""
STRENGTH = 2.0
MOST_COPIES = 10
HIDDEN_RATE = 0.003
"""Of the values of mixed rows: of ten features, one row in twenty has some."""
MIXED_VALUES = 3 << 20
"""Of all mixed rows together: rows times features."""


class ImitatingTrees:
    """Few large trees that answer what the model answers."""

    name = "imitating trees"
    cost = 1.5

    def applies_to(self, given: Uncompressed) -> bool:
        """Return whether the model is trees, of which there can be fewer."""
        return isinstance(given.final, Trees) and given.num_rounds > LEAST_ROUNDS

    def build(self, given: Uncompressed) -> Iterator[Built]:
        """Give students, the smallest first."""
        assert isinstance(given.final, Trees)
        forest, seconds = Forest.of(given.final.booster), 0.0
        both = together(given.train, given.validation)
        for rounds_divisor, leaves_divisor in SIZES:
            if seconds > given.seconds_left:
                return
            began = time.monotonic()
            num_rounds = max(LEAST_ROUNDS, round(given.num_rounds / rounds_divisor))
            each = forest.num_leaves / leaves_divisor / num_rounds / forest.num_groups
            rate = float(np.clip(RATE_ROUNDS / num_rounds, LEAST_RATE, MOST_RATE))
            shape = Shape(num_rounds, int(np.clip(each, LEAST_LEAVES, MOST_LEAVES)), rate)
            pilot = imitated(given, given.pilot, given.train, shape)
            final = imitated(given, given.final, both, shape)
            yield Built(f"{num_rounds} imitating rounds of {shape.num_leaves} leaves", pilot, final)
            seconds = time.monotonic() - began


def imitated(given: Uncompressed, model: Predictor, rows: Rows, shape: Shape) -> Trees:
    """Return small trees that answer as a model does, on rows like these."""
    copies = int(np.clip(MIXED_VALUES // max(1, rows.x_BF.size), 1, MOST_COPIES))
    mixed = mixed_rows(rows, np.random.default_rng(given.seed), copies)
    hide_some(mixed.x_BF, [feature.is_categorical for feature in given.schema.features], given.seed)
    # A mixed row counts as much as a row: nobody's label is nearer to the truth than the model's own answer.
    like = np.ones(len(rows), np.float32) if rows.weight_B is None else rows.weight_B
    mixed = replace(mixed, weight_B=np.tile(like, copies))
    lessons = together(rows, mixed)
    said = means(model, lessons.x_BF)
    return Trees(with_new_leaves(given, student(given, lessons, said, shape), lessons, said, STRENGTH))


def hide_some(x_BF: NDArray[np.float32], is_code_F: Sequence[bool], seed: int) -> None:
    """Make some values missing, and of codes as many unknown: where the model sends these is to be imitated too.

    >>> x_BF = np.ones((10_000, 2), np.float32)
    >>> hide_some(x_BF, [False, True], seed=0)
    >>> int(np.isnan(x_BF[:, 0]).sum()) > 10, int((x_BF[:, 1] == UNKNOWN).sum()) > 10
    (True, True)
    """
    rng = np.random.default_rng(seed + 1)
    for feature, is_code in enumerate(is_code_F):
        drawn_B = rng.random(len(x_BF))
        x_BF[drawn_B < HIDDEN_RATE, feature] = np.nan
        if is_code:
            x_BF[drawn_B > 1 - HIDDEN_RATE, feature] = UNKNOWN


TECHNIQUE = ImitatingTrees()
