"""The forms of a network that answer a row the same whatever rows are beside it.

Served predictions come one row at a time or a few, offline ones by the ten thousand; of one bundle they are equal. A
graph that takes the scale of its activations from the rows of a call, as ONNX Runtime's `quantize_dynamic` writes it,
breaks that.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from infra.bundle.network import Network
from tasks._techniques.technique import Built

TOLERANCE = 1e-5
"""As far as float32 is from itself in another order of addition, over the largest score where that is above 1."""
SIZES = (1, 7, 64)
"""Rows of a call, as far as kernels differ: one row, a few, and whole blocks with a rest."""
CHECKED_ROWS = 2000


def is_row_by_row(network: Network, rows_BF: NDArray[np.float32]) -> bool:
    """Return whether each row has the same scores and spread among all, among a few, and alone."""
    rows_BF = rows_BF[:CHECKED_ROWS]
    known = answers_of(network, rows_BF)
    limit = TOLERANCE * max(1.0, float(np.abs(known).max(initial=0.0)))
    for size in SIZES:
        parts = np.split(rows_BF, range(size, len(rows_BF), size))
        found = np.concatenate([answers_of(network, part_BF) for part_BF in parts])
        if not np.abs(found - known).max(initial=0.0) <= limit:
            return False
    return True


def answers_of(network: Network, rows_BF: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return scores and, where there is one, spread side by side, shape (rows, answers)."""
    scores, spread = network.scored(rows_BF)
    parts = [scores.reshape(len(rows_BF), -1)]
    return np.concatenate(parts if spread is None else [*parts, spread[:, None]], axis=1)


def row_by_row(forms: Iterator[Built], rows_BF: NDArray[np.float32]) -> Iterator[Built]:
    """Give the forms that answer a row the same whatever rows are beside it; others are dropped."""
    for form in forms:
        assert isinstance(form.pilot, Network)
        assert isinstance(form.final, Network)
        if is_row_by_row(form.pilot, rows_BF) and is_row_by_row(form.final, rows_BF):
            yield form
