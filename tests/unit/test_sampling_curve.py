"""How many rows are enough, by a learning curve."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tasks import _learning_curve
from tasks._learning_curve import MAX_CURVE_ROWS, Curve, PowerLaw, curve_of, curve_sizes, fit_power_law

SIZES = (2000, 4000, 8000, 16_000, 32_000)


def losses_of(law: PowerLaw, seed: int = 0, noise: float = 0.0, power: float = 1.0) -> NDArray[np.float64]:
    """Return losses of 2,000 validation rows by models of SIZES, whose means follow a law but for noise."""
    rng = np.random.default_rng(seed)
    rows = rng.exponential(size=2000)
    means = law(np.array(SIZES, dtype=np.float64)) * (1 + rng.normal(0, noise, len(SIZES)))
    return np.outer(means ** (1 / power), rows / rows.mean())


def gap(law: PowerLaw, chosen: int, num_all: int) -> float:
    """Return how much larger the true loss of a size is than that of all rows, as a share of it."""
    at = law(np.array([chosen, num_all], dtype=np.float64))
    return float(at[0] / at[1] - 1)


@pytest.fixture
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_learning_curve, "NUM_RESAMPLES", 10)


@given(st.floats(0.1, 1.0), st.floats(0.5, 20.0), st.floats(0.2, 1.0))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.usefixtures("_few_resamples")
def test_the_choice_keeps_to_the_tolerance(a: float, b: float, c: float) -> None:
    """On exact power laws the loss of the chosen size is within tolerance, and a size a fifth smaller is not."""
    law, num_all = PowerLaw(a, b, c), 1_000_000
    found = curve_of("logloss", SIZES, losses_of(law), num_all, 0.02)

    assert gap(law, found.chosen, num_all) <= 0.0205
    assert found.chosen in (SIZES[0], num_all) or gap(law, round(found.chosen * 0.8), num_all) > 0.0195


@pytest.mark.parametrize("seed", [1, 2])
def test_a_scattered_curve_is_read_with_caution(seed: int) -> None:
    """Where the points scatter, the upper end of the band decides: the choice keeps to the tolerance or near it."""
    law = PowerLaw(0.3, 5.0, 0.5)
    exact = curve_of("logloss", SIZES, losses_of(law), 1_000_000, 0.02)
    found = curve_of("logloss", SIZES, losses_of(law, seed, noise=0.01), 1_000_000, 0.02)

    assert gap(law, found.chosen, 1_000_000) <= 0.03
    assert gap(law, exact.chosen, 1_000_000) <= 0.0205


def test_a_flat_curve_needs_few_rows() -> None:
    """Where more rows bring nothing, the smallest size is enough, and the line says so."""
    found = curve_of("logloss", SIZES, losses_of(PowerLaw(0.4, 0.0, 1.0)), 100_000, 0.02)

    assert SIZES[0] == found.chosen
    assert "says that they cost at most 0.00%, within 2.0%." in found.sentence


def test_a_steep_curve_needs_all_rows() -> None:
    """A curve that still falls at its end takes all rows, and the line says why."""
    found = curve_of("rmse", SIZES, losses_of(PowerLaw(0.0, 5.0, 0.3), power=0.5), 50_000, 0.02)

    assert 50_000 == found.chosen
    assert "has not flattened (rmse = " in found.sentence
    assert "fewer would cost more than 2.0%." in found.sentence


def test_rmse_is_the_root_of_squared_errors() -> None:
    """The curve is that of the loss the training minimises, not of its square."""
    law = PowerLaw(0.4, 3.0, 0.5)
    found = curve_of("rmse", SIZES, losses_of(law, power=0.5), 100_000, 0.02)

    np.testing.assert_allclose(found.losses, law(np.array(SIZES, dtype=np.float64)))


def test_the_band_holds_the_curve() -> None:
    """The curve lies in its band, which narrows to nothing at all rows, as a gap to itself has no error."""
    found = curve_of("logloss", SIZES, losses_of(PowerLaw(0.3, 5.0, 0.5), 1, noise=0.01), 200_000, 0.02)
    assert found.fit is not None
    fitted = found.fit(np.array(found.grid, dtype=np.float64))
    low, high = np.array(found.low), np.array(found.high)

    assert (low <= high).all()
    assert (low[:-1] < fitted[:-1]).mean() > 0.9
    np.testing.assert_allclose([low[-1], high[-1]], fitted[-1])


def test_the_same_losses_give_the_same_curve() -> None:
    """The bootstrap draws from a fixed seed."""
    given_losses = losses_of(PowerLaw(0.3, 5.0, 0.5), 2, noise=0.01)

    assert curve_of("logloss", SIZES, given_losses, 90_000, 0.02) == curve_of(
        "logloss", SIZES, given_losses, 90_000, 0.02
    )


@pytest.mark.parametrize(("a", "b", "c"), [(0.3, 40.0, 0.8), (0.0, 2.0, 0.2), (5.0, 0.0, 1.0)])
def test_a_law_is_found_again(a: float, b: float, c: float) -> None:
    """Exact points give their law back, at its limits too; without a slope the exponent means nothing."""
    n = np.array(SIZES, dtype=np.float64)
    found = fit_power_law(n, PowerLaw(a, b, c)(n))

    np.testing.assert_allclose(found(n), PowerLaw(a, b, c)(n), rtol=1e-5)
    assert [] == [x for x in (found.a, found.b) if x < 0]


@pytest.mark.parametrize(
    ("num_rows", "num_features", "expected"),
    [
        (40_000, 10, (1250, 2500, 5000, 10_000, 20_000)),
        (10**9, 10, (6250, 12_500, 25_000, 50_000, MAX_CURVE_ROWS)),
        (10**9, 4000, (625, 1250, 2500, 5000, 10_000)),
    ],
)
def test_sizes_are_bounded(num_rows: int, num_features: int, expected: tuple[int, ...]) -> None:
    """The largest sample has half of the rows, or what fits into bounded memory."""
    assert expected == curve_sizes(num_rows, num_features)


def test_few_rows_have_no_curve() -> None:
    """The line says that there are too few."""
    assert "Too few for a learning curve (sampling.rows = auto), which begins at 20,000." == Curve("").sentence
