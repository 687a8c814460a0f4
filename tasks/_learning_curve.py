"""How many rows are enough: a learning curve of a few small models, and where it flattens.

The validation loss falls about as loss(n) = a + b n^-c (Cortes, Jackel, Solla, Vapnik and Denker 1994). It is fitted to
models of a few nested samples, and continued to all rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MIN_ROWS = 20_000
"""With fewer training rows there is nothing to save."""
MAX_CURVE_ROWS = 100_000
MAX_CURVE_VALUES = 40_000_000
"""Numbers (rows by features) of the largest sample of the curve: 160 MB."""
MAX_JUDGES = 20_000
"""Validation rows that judge the points."""
NUM_SIZES = 5
NUM_RESAMPLES = 200
CONFIDENCE = 0.9
"""Of the band; its upper end decides."""
NUM_GRID = 200
WORTHWHILE = 0.9
"""A sample of a larger share than this saves nothing, and all rows are used."""
EXPONENTS = (0.05, 2.0)

Array = NDArray[np.float64]


@dataclass(frozen=True)
class PowerLaw:
    """loss(n) = a + b n^-c."""

    a: float
    b: float
    c: float

    def __call__(self, num_rows: Array) -> Array:
        """Return the loss of models of so many rows."""
        return self.a + self.b * np.asarray(num_rows, dtype=np.float64) ** -self.c


@dataclass(frozen=True)
class Curve:
    """A learning curve: what was measured, what was fitted, and the size that follows."""

    loss: str
    sizes: tuple[int, ...] = ()
    losses: tuple[float, ...] = ()
    fit: PowerLaw | None = None
    """None: there were too few rows for a curve."""
    grid: tuple[int, ...] = ()
    """Sizes up to all rows, and the band of the loss there."""
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    num_all: int = 0
    chosen: int = 0
    gap: float = 0.0
    """By how much the loss of the chosen size is larger than that of all rows, as a share of it: upper end."""
    tolerance: float = 0.0

    @property
    def sentence(self) -> str:
        """Return what was chosen and why, in words."""
        if self.fit is None:
            return f"Too few for a learning curve (sampling.rows = auto), which begins at {MIN_ROWS:,}."
        law = f"{self.loss} = {self.fit.a:.4g} + {self.fit.b:.4g} n^-{self.fit.c:.2f} over {len(self.sizes)} sizes"
        if self.chosen >= self.num_all:
            return f"The learning curve has not flattened ({law}): fewer would cost more than {self.tolerance:.1%}."
        return f"The learning curve ({law}) says that they cost at most {self.gap:.2%}, within {self.tolerance:.1%}."


def curve_sizes(num_rows: int, num_features: int) -> tuple[int, ...]:
    """Return the sizes of the samples that make the curve, each twice as large as the one before."""
    largest = min(num_rows // 2, MAX_CURVE_ROWS, MAX_CURVE_VALUES // num_features)
    return tuple(largest >> shift for shift in reversed(range(NUM_SIZES)))


def fit_power_law(sizes: Array, losses: Array) -> PowerLaw:
    """Return the curve with a >= 0 and b >= 0 of least squared error; for each c the other two are a linear problem.

    >>> n = np.array([1e3, 2e3, 4e3, 8e3])
    >>> law = fit_power_law(n, 0.3 + 2 * n**-0.5)
    >>> round(law.a, 3), round(law.b, 2), round(law.c, 3)
    (0.3, 2.0, 0.5)
    """
    from scipy.optimize import minimize_scalar, nnls  # here: who reads a configuration does not wait for it

    scaled = sizes / sizes[0]

    def solve(c: float) -> tuple[Array, float]:
        found, error = nnls(np.column_stack([np.ones_like(scaled), scaled**-c]), losses)
        return found, float(error)

    best = minimize_scalar(lambda c: solve(c)[1], bounds=EXPONENTS, method="bounded", options={"xatol": 1e-4})
    c = float(best.x)
    (a, b), _ = solve(c)
    return PowerLaw(float(a), float(b * sizes[0] ** c), c)


def curve_of(loss: str, sizes: tuple[int, ...], row_losses: Array, num_all: int, tolerance: float) -> Curve:
    """Fit the curve and choose the smallest size whose loss is, at the band's upper end, within tolerance of all rows'.

    The band is a bootstrap of the validation rows, the same for all sizes as the models are judged on the same rows,
    with the scatter of the points around the curve added: it stands for the luck of one sample of each size.

    Args:
        loss: rmse, whose row losses are squared errors, or another that is a mean over rows.
        sizes: rows of each model.
        row_losses: shape (sizes, validation rows).
        num_all: rows that the curve is continued to.
        tolerance: as a share of the loss of all rows.
    """
    rng = np.random.default_rng(0)
    n = np.asarray(sizes, dtype=np.float64)
    power = 0.5 if loss == "rmse" else 1.0
    losses = row_losses.mean(axis=1) ** power
    fit = fit_power_law(n, losses)
    scatter = float(np.sqrt(((losses - fit(n)) ** 2).sum() / max(1, len(n) - 3)))
    grid = np.unique(np.geomspace(sizes[0], num_all, NUM_GRID).round())
    laws = []
    for _ in range(NUM_RESAMPLES):
        weights = np.asarray(rng.poisson(1.0, row_losses.shape[1]))
        drawn = (row_losses @ weights / max(1, int(weights.sum()))) ** power
        laws.append(fit_power_law(n, drawn + rng.normal(0.0, scatter, len(n))))
    drawn_RG = np.stack([law(grid) for law in laws])
    gaps_RG = drawn_RG / np.maximum(drawn_RG[:, -1:], 1e-12) - 1
    gap = np.quantile(gaps_RG, CONFIDENCE, axis=0)
    place = int(np.argmax(gap <= tolerance))
    is_worthwhile = grid[place] <= WORTHWHILE * num_all
    tail = (1 - CONFIDENCE) / 2
    # Resampled validation rows move all points alike, which says nothing of the gap: the band is of the shape alone.
    low, high = np.quantile((gaps_RG + 1) * float(fit(grid[-1:])[0]), [tail, 1 - tail], axis=0)
    return Curve(
        loss=loss,
        sizes=sizes,
        losses=tuple(map(float, losses)),
        fit=fit,
        grid=tuple(map(int, grid)),
        low=tuple(map(float, low)),
        high=tuple(map(float, high)),
        num_all=num_all,
        chosen=int(grid[place]) if is_worthwhile else num_all,
        gap=float(gap[place]) if is_worthwhile else 0.0,
        tolerance=tolerance,
    )
