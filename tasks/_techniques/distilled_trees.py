"""Teach a small ensemble what the model would say of rows that it has not seen.

Labels are half what happened, half what a teacher says who has not learnt from the row: one of NUM_FOLDS models with
the candidate's own parameters (out-of-fold labels, as in stacking: Wolpert 1992). To these come rows whose columns are
mixed from several rows, of which nobody knows what happened, and all teachers say their mean: their bag is better than
the model itself, and rows are as many as are wanted (distillation: Bucila, Caruana and Niculescu-Mizil, "Model
compression", KDD 2006). At the end all leaves of the small ensemble learn together.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import xgboost as xgb
from numpy.typing import NDArray

from infra.bundle.predictor import Predictor
from infra.bundle.trees import Trees
from tasks._techniques._forest import quantized
from tasks._techniques._refit import with_new_leaves
from tasks._techniques._students import Shape, bins, hard, library, means, rounds_within, student, together
from tasks._techniques.technique import Built, Rows, Uncompressed

# B = rows, F = features, G = classes (1 unless multiclass).

NUM_FOLDS = 5
SIZES = ((20, 32), (10, 32), (5, 32), (3, 64))
"""The candidate's leaves over the student's, and leaves of a tree. Packed leaves are a fifth as large,
so that it is speed that asks for fewer: few trees, which may have more leaves."""
HARD_SHARE = 0.5
"""Of a label that is what happened; the rest is what a teacher says."""
MIX_RATE = 0.3
"""Share of a mixed row's values that come from other rows."""
MIXED_WEIGHT = 1.5
"""Of all mixed rows together, over that of the others."""
MIXED_ROWS, MOST_COPIES = 250_000, 5
STRENGTH = 30.0
RATE_ROUNDS, LEAST_RATE, MOST_RATE = 7.0, 0.1, 0.5
"""The learning rate is the first over the rounds, within the others: slower than is best without the refit, which finds
the size of the answers, while slower learning finds more different trees."""
TEACHER_SHARE = 0.5
"""Of the time left that teachers may take; where they would need more, the model itself is the teacher."""


@dataclass(frozen=True)
class Lessons:
    """What a student learns from."""

    rows: Rows
    target_BG: NDArray[np.float32]


class DistilledTrees:
    """Few trees that learn from the model, of whatever family it is."""

    name = "distilled trees"
    cost = 5.0

    def applies_to(self, given: Uncompressed) -> bool:
        """Return whether there is anything to teach: always."""
        return True

    def build(self, given: Uncompressed) -> Iterator[Built]:
        """Give students, the smallest first."""
        teachers = teachers_of(given)
        pilot_lessons, final_lessons = lessons(given, teachers, is_final=False), lessons(given, teachers, is_final=True)
        seconds = 0.0
        sizes = {(rounds_within(given, divisor, num_leaves), num_leaves): None for divisor, num_leaves in SIZES}
        for num_rounds, num_leaves in sizes:
            if seconds > given.seconds_left:
                return
            began = time.monotonic()
            rate = float(np.clip(RATE_ROUNDS / num_rounds, LEAST_RATE, MOST_RATE))
            shape = Shape(num_rounds, num_leaves, rate)
            pilot, final = (taught(given, known, shape) for known in (pilot_lessons, final_lessons))
            yield Built(f"{num_rounds} distilled rounds of {num_leaves} leaves", pilot, final)
            seconds = 2 * (time.monotonic() - began)


def taught(given: Uncompressed, known: Lessons, shape: Shape) -> Trees:
    """Return a student after its lessons."""
    booster = student(given, known.rows, known.target_BG, shape)
    return Trees(with_new_leaves(given, booster, known.rows, known.target_BG, STRENGTH))


@dataclass(frozen=True)
class Teachers:
    """Models that have each learnt from all training rows but those of one fold."""

    models: tuple[Trees, ...]
    fold_B: NDArray[np.intp]
    """Of the training rows."""

    def unseen(self, x_BF: NDArray[np.float32]) -> NDArray[np.float32]:
        """Say of each training row what the teacher says who has not learnt from it, shape (rows, classes)."""
        found = means(self.models[0], x_BF)
        for fold, model in enumerate(self.models):
            is_in = self.fold_B == fold
            found[is_in] = means(model, x_BF[is_in])
        return found

    def mean(self, x_BF: NDArray[np.float32]) -> NDArray[np.float32]:
        """Say the mean of all teachers, shape (rows, classes)."""
        total = np.sum([means(model, x_BF) for model in self.models], axis=0, dtype=np.float32)
        return np.asarray(total / len(self.models), np.float32)


def teachers_of(given: Uncompressed) -> Teachers | None:
    """Train the candidate anew without each fold; None where it isn't trees, or there is not the time for it."""
    if not isinstance(given.pilot, Trees):
        return None
    fold_B = np.random.default_rng(given.seed).permutation(len(given.train)) % NUM_FOLDS
    models: list[Trees] = []
    began, most = time.monotonic(), TEACHER_SHARE * given.seconds_left
    for fold in range(NUM_FOLDS):
        rows = some(given.train, fold_B != fold)
        data = quantized(given.schema, rows, bins(given), given.threads)
        models.append(Trees(xgb.train({**library(given), "seed": given.seed + fold}, data, given.num_rounds)))
        if (time.monotonic() - began) / len(models) * NUM_FOLDS > most:
            return None
    return Teachers(tuple(models), fold_B)


def some(rows: Rows, is_in_B: NDArray[np.bool_]) -> Rows:
    """Return the rows of a mask."""
    return Rows(rows.x_BF[is_in_B], rows.label_B[is_in_B], None if rows.weight_B is None else rows.weight_B[is_in_B])


def lessons(given: Uncompressed, teachers: Teachers | None, *, is_final: bool) -> Lessons:
    """Return rows with their labels, and behind them mixed rows; of the final student validation rows are among them.

    Without teachers the training rows have what happened as their label, as the model has learnt from them.
    """
    told = hard(given, given.train)
    if teachers is not None:
        told = HARD_SHARE * told + (1 - HARD_SHARE) * teachers.unseen(given.train.x_BF)
    rows, target_BG = given.train, told
    if is_final:
        unseen = teachers.mean(given.validation.x_BF) if teachers else means(given.pilot, given.validation.x_BF)
        told = HARD_SHARE * hard(given, given.validation) + (1 - HARD_SHARE) * unseen
        rows, target_BG = together(given.train, given.validation), np.concatenate([target_BG, told])
    model = given.final if is_final else given.pilot
    num_copies = int(np.clip(MIXED_ROWS // max(1, len(rows)), 1, MOST_COPIES))
    mixed = mixed_rows(rows, np.random.default_rng(given.seed), num_copies)
    said = said_of(mixed.x_BF, model, teachers)
    return Lessons(together(rows, mixed), np.concatenate([target_BG, said]).astype(np.float32))


def said_of(x_BF: NDArray[np.float32], model: Predictor, teachers: Teachers | None) -> NDArray[np.float32]:
    """Say of mixed rows the mean of all teachers, with the model as one of them, shape (rows, classes)."""
    own = means(model, x_BF)
    if teachers is None:
        return own
    return np.asarray((teachers.mean(x_BF) * NUM_FOLDS + own) / (NUM_FOLDS + 1), np.float32)


def mixed_rows(rows: Rows, rng: np.random.Generator, num_copies: int) -> Rows:
    """Return new rows: each value with MIX_RATE that of another row, so that every column keeps its distribution."""
    x_BF = np.tile(rows.x_BF, (num_copies, 1))
    for feature in range(x_BF.shape[1]):
        is_other = rng.random(len(x_BF)) < MIX_RATE
        x_BF[is_other, feature] = rows.x_BF[rng.integers(0, len(rows), int(is_other.sum())), feature]
    weight_B = np.ones(len(rows), np.float32) if rows.weight_B is None else rows.weight_B
    share = np.float32(MIXED_WEIGHT / num_copies)
    return Rows(x_BF, np.tile(rows.label_B, num_copies), np.tile(weight_B * share, num_copies))


TECHNIQUE = DistilledTrees()
