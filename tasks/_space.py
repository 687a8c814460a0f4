"""What a search may try of a family: which parameters, and between which values; with the space of the trees."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from pydantic import BaseModel

if TYPE_CHECKING:
    from tasks._train import XGBoostConfig

Config = TypeVar("Config", bound=BaseModel)


@dataclass(frozen=True)
class Dimension:
    """A parameter that is searched, and between which values."""

    name: str
    low: float
    high: float
    is_log: bool = False
    is_integer: bool = False
    is_power: bool = False
    """The values are powers of two: `low` and `high` are the exponents."""
    step: int = 1
    """Of whole numbers: between two of them, from `low`."""
    zero_below: float = -math.inf
    """Positions below it are the value 0, which is more than a border, and has no logarithm."""

    def value(self, position: float) -> float | int:
        """Return the parameter at a position.

        >>> Dimension("max_bin", 6, 9, is_integer=True, is_power=True).value(7)
        128
        >>> Dimension("weight_decay", 1e-5, 0.1, is_log=True, zero_below=1e-4).value(3e-5)
        0.0
        """
        if position < self.zero_below:
            return 0.0
        return 2 ** round(position) if self.is_power else round(position) if self.is_integer else position

    def position(self, value: float) -> float | int:
        """Return where a parameter is, or the nearest position that there is.

        >>> Dimension("max_bin", 6, 9, is_integer=True, is_power=True).position(300)
        8
        >>> Dimension("width", 64, 512, is_integer=True, step=16).position(100)
        96
        """
        position = math.log2(value) if self.is_power else value
        inside = min(max(position, self.low), self.high)
        if not self.is_integer:
            return float(inside)
        return int(self.low + self.step * round((inside - self.low) / self.step))


@dataclass(frozen=True)
class Space(Generic[Config]):
    """All parameters of a family that are searched."""

    dimensions: tuple[Dimension, ...]
    unit: str
    """What a training counts: rounds, or epochs."""
    pace: Callable[[Config], float]
    """Of two trainings the one with twice the pace is as far after half of the rounds."""

    def searched(self, own: Config, positions: Mapping[str, float]) -> Config:
        """Return a run's own parameters with those at some positions of the space."""
        found = {dimension.name: dimension.value(positions[dimension.name]) for dimension in self.dimensions}
        return type(own).model_validate({**own.model_dump(), **found})

    def positions(self, config: Config) -> dict[str, float]:
        """Return where parameters are in the space; what lies outside counts as its border."""
        return {dimension.name: dimension.position(getattr(config, dimension.name)) for dimension in self.dimensions}

    def values(self, config: Config) -> dict[str, float]:
        """Return the parameters that are searched."""
        return {dimension.name: getattr(config, dimension.name) for dimension in self.dimensions}


def learning_rate_of(config: XGBoostConfig) -> float:
    """Return the pace of a booster: with half the learning rate it needs about twice the rounds to get as far."""
    return config.learning_rate


TREES: Space[XGBoostConfig] = Space(
    (
        Dimension("learning_rate", 0.01, 0.3, is_log=True),
        Dimension("max_depth", 3, 12, is_integer=True),
        Dimension("min_child_weight", 0.5, 64.0, is_log=True),
        Dimension("subsample", 0.5, 1.0),
        Dimension("colsample_bytree", 0.4, 1.0),
        Dimension("reg_lambda", 0.05, 50.0, is_log=True),
        # Few values: a worker keeps the matrices of two of them, since rows are put into bins once for all trials.
        Dimension("max_bin", 6, 9, is_integer=True, is_power=True),
    ),
    "rounds",
    learning_rate_of,
)
