"""A blend: the weighted mean of several models' scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .predictor import Predictor

WEIGHT_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Blend:
    """Models of other families as one predictor; see `predictor.Predictor`."""

    parts: tuple[tuple[float, Predictor], ...]
    """Weights, which sum to 1, and models."""
    family = "blend"

    def __post_init__(self) -> None:
        """Raise an InputError unless the weights are those of a mean."""
        weights = [weight for weight, _ in self.parts]
        if not (all(weight > 0 for weight in weights) and abs(sum(weights) - 1) <= WEIGHT_TOLERANCE):
            raise InputError(
                f"The weights of a blend are above 0 and sum to 1, but got weights={', '.join(map(str, weights))}. "
                "Divide them by their sum, and leave out models without weight."
            )
        assert all(part.family != self.family for _, part in self.parts), "a blend of blends is one blend"

    def save(self, folder: Path, stem: str = "part") -> tuple[str, ...]:
        """Write the files of the parts, which are numbered; who reads them must know the weights and families."""
        return tuple(name for i, (_, part) in enumerate(self.parts) for name in part.save(folder, f"{stem}{i}"))

    @property
    def num_bytes(self) -> int:
        """Return the size of all files."""
        return sum(part.num_bytes for _, part in self.parts)

    def scores(self, x_BF: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the weighted mean of the parts' scores, shape (rows,) or (rows, classes)."""
        return _mean([(weight, part.scores(x_BF)) for weight, part in self.parts])

    def spread(self, x_BF: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """Return the weighted mean of the spreads that parts tell, shape (rows,); None: no part tells one."""
        return _mean_of_told([(weight, part.spread(x_BF)) for weight, part in self.parts])

    def scored(self, x_BF: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Return scores and spread, from one run of each part."""
        answers = [(weight, *part.scored(x_BF)) for weight, part in self.parts]
        scores = _mean([(weight, scores) for weight, scores, _ in answers])
        return scores, _mean_of_told([(weight, spread) for weight, _, spread in answers])

    def use_one_thread(self) -> None:
        """Have every part use one thread."""
        for _, part in self.parts:
            part.use_one_thread()


def _mean(weighted: Sequence[tuple[float, NDArray[np.float32]]]) -> NDArray[np.float32]:
    """Return the weighted mean of arrays of one shape, computed in float64."""
    weights, arrays = zip(*weighted, strict=True)
    return np.average(arrays, axis=0, weights=weights).astype(np.float32)


def _mean_of_told(weighted: Sequence[tuple[float, NDArray[np.float32] | None]]) -> NDArray[np.float32] | None:
    told = [(weight, spread) for weight, spread in weighted if spread is not None]
    return _mean(told) if told else None
