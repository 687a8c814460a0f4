"""What a network must know of its features: where numbers lie and are cut into pieces, how many codes there are.

All of it comes from the merged profile and the vocabulary, and becomes a part of the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from infra.bundle.encoder import SECONDS_PER_DAY
from infra.bundle.schema import Column, DatePart, Feature, Schema
from infra.bundle.vocabulary import Vocabulary
from tasks._profile import ColumnProfile, Profile

SMOOTH_LIMIT = 3.0
"""What scaled numbers are bent to stay below."""
LARGEST = float(np.finfo(np.float32).max)
MAX_CODE = 2**24
"""Codes are handed over as float32, which holds whole numbers up to here."""
PART_RANGES: dict[DatePart, tuple[int, int]] = {"month": (1, 12), "day": (1, 31), "weekday": (1, 7), "hour": (0, 23)}
SECONDS_PER_YEAR = 365.2425 * SECONDS_PER_DAY
EPOCH_YEAR = 1970
NUM_QUANTILES = 1000
"""Ranks at which a number's distribution is looked at; of these come its pieces."""


@dataclass(frozen=True)
class NumberInput:
    """A feature that is a number."""

    position: int
    """Of the column in the matrix of features."""
    center: float
    scale: float
    """What is left of the center is multiplied by it."""
    edges: tuple[float, ...]
    """Borders of the pieces, after scaling; at least two, each larger than the one before."""


@dataclass(frozen=True)
class CodeInput:
    """A feature that is a code."""

    position: int
    size: int
    """Codes from 0 to size - 1."""


@dataclass(frozen=True)
class NetworkInputs:
    """All features of a network."""

    numbers: tuple[NumberInput, ...]
    codes: tuple[CodeInput, ...]

    @property
    def num_features(self) -> int:
        """Count the columns of the matrix."""
        return len(self.numbers) + len(self.codes)

    @property
    def num_table_rows(self) -> int:
        """Count the rows of all embedding tables: per feature one for each code, and one for a missing value."""
        return sum(code.size + 1 for code in self.codes)


def inputs_of(schema: Schema, vocabulary: Vocabulary, seen: Profile, num_bins: int) -> NetworkInputs:
    """Return the inputs of a network for rows of a schema.

    Numbers are centred at their median and divided by the distance of their quartiles, or where that is zero by half
    of their range (Holzmüller, Grinsztajn and Steinwart 2024, section 3: robust scaling). Parts of dates count as
    even over what they can be, or over the time that the profile spans.
    """
    numbers, codes = [], []
    for position, feature in enumerate(schema.features):
        if feature.is_categorical:
            codes.append(CodeInput(position, vocabulary.size(feature.column)))
        else:
            values = quantiles_of(feature, schema.column(feature.column), seen.columns.get(feature.column))
            numbers.append(scaled_number(position, values, num_bins))
    return NetworkInputs(tuple(numbers), tuple(codes))


def quantiles_of(feature: Feature, column: Column, seen: ColumnProfile | None) -> list[float]:
    """Return values of a feature, about as many rows between any two, or evenly spread ones."""
    if feature.part in PART_RANGES:
        low, high = PART_RANGES[feature.part]
        return evenly(low, high, high - low)
    if feature.part is not None:
        unit, start = (SECONDS_PER_YEAR, EPOCH_YEAR) if feature.part == "year" else (float(SECONDS_PER_DAY), 0)
        first, last = (start + (at or 0.0) / unit for at in (column.minimum, column.maximum))
        return evenly(first, last, NUM_QUANTILES)
    if column.kind == "boolean":
        return [0.0, 1.0]
    return (seen.quantile(evenly(0, 1, NUM_QUANTILES)) if seen else []) or [0.0, 1.0]


def evenly(low: float, high: float, num_bins: int) -> list[float]:
    """Return the borders of equal pieces of a range.

    >>> evenly(0, 1, 2)
    [0.0, 0.5, 1.0]
    """
    return [float(border) for border in np.linspace(low, high, num_bins + 1)]


def scaled_number(position: int, values: Sequence[float], num_bins: int) -> NumberInput:
    """Return the input of a number with these quantiles, evenly spaced by rank.

    >>> scaled_number(0, [0.0, 10.0, 10.0, 10.0, 90.0], 4).scale
    0.0222...
    """
    # As the network sees them: what float32 can't hold is missing in the matrix.
    found = np.clip(values, -LARGEST, LARGEST).astype(np.float32).astype(np.float64)
    center, low, high = np.quantile(found, [0.5, 0.25, 0.75])
    spread = high - low if high > low else (found[-1] - found[0]) / 2
    scale = min(1 / spread, LARGEST) if spread > 0 else 0.0
    edges = np.unique(smooth((borders_of(found, num_bins) - center) * scale).astype(np.float32).astype(np.float64))
    # Pieces that float32 can hardly tell apart would have infinite slopes.
    edges = edges[np.concatenate([[True], np.diff(edges) > 1e-5])]
    if len(edges) < 2:
        edges = np.array([edges[0], edges[0] + 1])
    return NumberInput(position, float(np.float32(center)), float(scale), tuple(edges.tolist()))


def borders_of(quantiles: np.ndarray, num_bins: int) -> np.ndarray:
    """Return where the pieces of a number end: at every value that it has, or with about as many rows in each.

    A value that makes up more than a piece is a border, and the others share what is left: where most rows have a
    zero, nearly all pieces are for the rest. (Of plain quantiles nearly all would be the zero.)

    >>> borders_of(np.array([0.0] * 90 + [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]), 5).tolist()
    [0.0, 1.0, 3.0, 5.0, 7.0, 9.0]
    """
    values, counts = np.unique(quantiles, return_counts=True)
    if len(values) <= num_bins + 1:
        return np.asarray(values)
    is_frequent = counts > len(quantiles) / num_bins
    others = quantiles[~is_frequent[np.searchsorted(values, quantiles)]]
    ranks = np.linspace(0, 1, num_bins + 1 - np.count_nonzero(is_frequent))
    return np.union1d(values[is_frequent], np.quantile(others, ranks, method="nearest"))


def smooth(scaled: np.ndarray) -> np.ndarray:
    """Bend numbers so that they stay within the limit (as above, section 3: smooth clipping).

    >>> smooth(np.array([0.0, 1e9])).round(3).tolist()
    [0.0, 3.0]
    """
    return np.asarray(scaled / np.sqrt(1 + (scaled / SMOOTH_LIMIT) ** 2))
