"""Rows to compare two forms of a model on: with values that are missing, far out or unknown."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CHECKED_ROWS = 10_000


def with_gaps(rows_BF: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return rows of which every 7th lacks one value, and every 11th has one that is far out or unknown.

    >>> int(np.isnan(with_gaps(np.zeros((15, 2), np.float32))).sum())  # the first row has a value far out
    2
    """
    found = np.array(rows_BF[:CHECKED_ROWS], dtype=np.float32)
    numbers = np.arange(len(found))
    for every, value in ((7, np.nan), (11, 1e7)):
        rows = numbers[::every]
        found[rows, rows // every % max(1, found.shape[1])] = value
    return found
