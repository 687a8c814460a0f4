"""Made-up loan applications: what the demonstration retrains on.

A loan defaults with a probability that this file knows: a logistic function of the applicant, the loan, the branch
and the calendar, with interactions, a season and, from the second year on, a drift. The rows of a month depend on the
seed and the month alone, so a further month is a further file and the earlier ones stay as they are.
"""

from __future__ import annotations

import calendar
import os
import tempfile
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from infra.errors import InputError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

MONTHS_PER_YEAR = 12
NUM_BRANCHES = 40
LATE_PURPOSE_MONTH = 9
"""The month, counted from 1, in which the purpose "green energy" is first offered."""
SEASON = np.array([0.93, 0.88, 1.04, 1.05, 1.08, 1.02, 0.90, 0.82, 1.07, 1.10, 1.12, 0.99])
"""Applications in January to December, relative to the mean month."""
PURPOSES = ("car", "debt consolidation", "education", "home improvement", "medical", "small business", "wedding")
LATE_PURPOSE = "green energy"
PURPOSE_SHARES = (0.24, 0.29, 0.08, 0.16, 0.07, 0.10, 0.06)
PURPOSE_RISK = {"small business": 0.75, "medical": 0.45, "debt consolidation": 0.25, "car": -0.3, LATE_PURPOSE: -0.8}
OWNERSHIPS = ("mortgage", "own", "rent")
OWNERSHIP_RISK = {"mortgage": -0.25, "own": -0.45, "rent": 0.3}
CHANNELS = ("branch", "broker", "phone", "web")
CHANNEL_RISK = {"broker": 0.35, "phone": 0.1}
TERMS = (12, 24, 36, 48, 60)
BASE_RISK = -1.62
"""Logarithm of the odds before any effect; with them about 12% of the loans default."""
CONFIGURATION = """\
model.name = "loan-default"
data.source = "data/*.parquet"
data.target = "defaulted"
data.time = "applied_on"
"""


@dataclass(frozen=True)
class Economy:
    """What changes from month to month."""

    drift: float
    """0 in the first year, then rising to 1 within six months."""
    income_factor: float
    channel_shares: tuple[float, ...]
    """In the order of `CHANNELS`."""
    interest_effect: float
    """Change of the log odds per percentage point of interest."""


@dataclass(frozen=True)
class Branches:
    """Where loans are made; the same for every month of a seed."""

    names: tuple[str, ...]
    regions: tuple[str, ...]
    """First two digits of the zip codes around each branch."""
    shares: Floats
    risks: Floats


def write_demo(
    folder: Path, *, rows: int = 60_000, months: int = 12, start: date = date(2024, 1, 1), seed: int = 7
) -> list[Path]:
    """Write one Parquet file per month below `folder`/data, and a configuration that reads them.

    Files that exist are left as they are. `rows` is the number of rows in twelve months.

    Returns:
        The files of the months asked for, those that were there before included.

    Raises:
        InputError: no month is asked for, or fewer rows than give every month some.
    """
    if months < 1:
        raise InputError(f"A demo needs at least 1 month, but got months={months}. Ask for 12, a year.")
    if rows < 100 * MONTHS_PER_YEAR:
        raise InputError(f"A demo needs at least 1200 rows per year, but got rows={rows}. Ask for 60000.")
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    written = []
    for month in range(1, months + 1):
        first = first_day(start, month)
        path = data / f"applications-{first:%Y-%m}.parquet"
        if not path.exists():
            with tempfile.TemporaryDirectory(prefix=".demo-", dir=data) as temporary:
                partial = Path(temporary) / path.name
                demo_month(month, first, rows=rows, seed=seed).write_parquet(partial)
                os.replace(partial, path)
        written.append(path)
    configuration = folder / "evergreen.toml"
    if not configuration.exists():
        configuration.write_text(CONFIGURATION)
    return written


def first_day(start: date, month: int) -> date:
    """Return the first day of the month counted from 1.

    >>> first_day(date(2024, 11, 1), 3)
    datetime.date(2025, 1, 1)
    """
    years, offset = divmod(start.month - 1 + month - 1, MONTHS_PER_YEAR)
    return date(start.year + years, offset + 1, 1)


def demo_month(month: int, first: date, *, rows: int, seed: int) -> pl.DataFrame:
    """Return the applications of one month, in the order in which they came in."""
    random = np.random.default_rng([seed, month])
    size = round(rows / MONTHS_PER_YEAR * float(SEASON[first.month - 1]))
    economy = economy_of(month)
    branches = branches_of(seed)
    applicants = _applicants(random, size, first, economy, branches)
    loans = _loans(random, applicants, month, economy)
    frame = applicants.hstack(loans)
    risk = _log_odds(frame, first, economy, branches) + random.normal(0.0, 0.25, size)
    frame = frame.with_columns(
        applicant_id=pl.Series([f"A{month:03d}{number:07d}" for number in range(size)]),
        defaulted=pl.Series((random.random(size) < 1 / (1 + np.exp(-risk))).astype(np.int8)),
    )
    return _with_gaps(random, frame).select(COLUMNS)


def economy_of(month: int) -> Economy:
    """Return what holds in a month: steady for a year, then incomes, channels and the price of risk move.

    >>> economy_of(12).drift, economy_of(15).drift, economy_of(30).drift
    (0.0, 0.5, 1.0)
    """
    drift = float(np.clip((month - MONTHS_PER_YEAR) / 6, 0.0, 1.0))
    before, after = np.array([0.42, 0.18, 0.15, 0.25]), np.array([0.20, 0.27, 0.08, 0.45])
    return Economy(
        drift=drift,
        income_factor=1.0 + 0.18 * drift,
        channel_shares=tuple(before + drift * (after - before)),
        interest_effect=0.27 - 0.27 * drift,
    )


def branches_of(seed: int) -> Branches:
    """Return the branches of a seed."""
    random = np.random.default_rng([seed, 0])
    shares = random.dirichlet(np.full(NUM_BRANCHES, 6.0))
    return Branches(
        names=tuple(f"B{number:02d}" for number in range(1, NUM_BRANCHES + 1)),
        regions=tuple(f"{number:02d}" for number in random.integers(0, 90, NUM_BRANCHES)),
        shares=shares,
        risks=random.normal(0.0, 0.35, NUM_BRANCHES),
    )


def _applicants(
    random: np.random.Generator, size: int, first: date, economy: Economy, branches: Branches
) -> pl.DataFrame:
    """Return who applies, and where and when."""
    branch = random.choice(NUM_BRANCHES, size, p=branches.shares)
    days = np.sort(random.integers(0, calendar.monthrange(first.year, first.month)[1], size))
    age = np.clip(18 + random.gamma(2.6, 9.0, size), 18, 84).astype(np.int64)
    employment = np.round(np.clip(random.beta(1.2, 2.2, size) * (age - 17), 0, 40), 1)
    experience = 0.012 * np.minimum(employment, 25) - 0.0004 * (age - 47) ** 2
    income = np.exp(random.normal(10.55, 0.42, size) + experience) * economy.income_factor
    home = _drawn(random, np.column_stack([30 + age, 4 + 0.6 * (age - 18), 95 - 0.7 * age]))
    since = random.exponential(1500, size).astype(np.int64) + 30
    zips = [f"{branches.regions[b]}{z:03d}" for b, z in zip(branch, random.integers(0, 1000, size), strict=True)]
    return pl.DataFrame(
        {
            "applied_on": [first + timedelta(days=int(day)) for day in days],
            "branch": np.array(branches.names)[branch],
            "zip_code": zips,
            "channel": random.choice(np.array(CHANNELS), size, p=economy.channel_shares),
            "age": age,
            "income": np.round(income, -1),
            "employment_years": employment,
            "home_ownership": np.array(OWNERSHIPS)[home],
            "existing_debt": np.round(income * random.gamma(1.1, 0.22, size), -1),
            "late_payments": np.minimum(random.poisson(random.gamma(0.55, 1.25, size)), 15),
            "has_guarantor": np.where(random.random(size) < np.where(age < 28, 0.3, 0.12), "yes", "no"),
            "customer_since": [first - timedelta(days=int(day)) for day in since],
        }
    )


def _loans(random: np.random.Generator, applicants: pl.DataFrame, month: int, economy: Economy) -> pl.DataFrame:
    """Return what they ask for, and the interest that they are offered."""
    size = applicants.height
    purposes, shares = list(PURPOSES), list(PURPOSE_SHARES)
    if month >= LATE_PURPOSE_MONTH:
        purposes, shares = [*purposes, LATE_PURPOSE], [0.92 * share for share in shares] + [0.08]
    purpose = random.choice(np.array(purposes), size, p=shares)
    income = applicants["income"].to_numpy()
    amount = np.clip(income * random.lognormal(-1.25, 0.55, size), 1_000, 150_000)
    wish = np.log(amount / 8_000) + random.normal(0.0, 0.7, size)
    term = np.array(TERMS)[np.digitize(wish, [-0.7, -0.1, 0.4, 1.0])]
    known_risk = 0.45 * np.sqrt(applicants["late_payments"].to_numpy()) + 0.8 * amount / income
    interest = 5.2 + 0.9 * economy.drift + 0.035 * term + 1.9 * known_risk + random.normal(0.0, 1.9, size)
    return pl.DataFrame(
        {
            "purpose": purpose,
            "loan_amount": np.round(amount, -2),
            "term_months": term,
            "interest_rate": np.round(np.clip(interest, 1.9, 24.9), 2),
        }
    )


def _log_odds(frame: pl.DataFrame, first: date, economy: Economy, branches: Branches) -> Floats:
    """Return the logarithm of each loan's odds of default."""
    value = {name: frame[name].to_numpy() for name in frame.columns}
    income, age, late = value["income"], value["age"], value["late_payments"]
    instalment = value["loan_amount"] * (1 / value["term_months"] + value["interest_rate"] / 2_400)
    burden = (instalment * 12 + 0.3 * value["existing_debt"]) / income
    is_rented = value["home_ownership"] == "rent"
    is_business = value["purpose"] == "small business"
    branch_risk = dict(zip(branches.names, branches.risks.tolist(), strict=True))
    season = 0.22 * np.cos(2 * np.pi * (first.month - 1) / MONTHS_PER_YEAR)
    return np.asarray(
        BASE_RISK
        + season
        + 2.7 * np.tanh(2.2 * (burden - 0.45))
        + 1.0 * np.sqrt(late) * (1 + 0.5 * (burden > 0.6))
        + economy.interest_effect * (value["interest_rate"] - 8)
        + 0.0011 * (age - 45.0) ** 2
        - 0.55 * np.tanh(value["employment_years"] / 4)
        - np.where(value["has_guarantor"] == "yes", np.where(age < 30, 1.1, 0.2), 0.0)
        + np.where(is_business & (value["employment_years"] < 2), 0.9, 0.0)
        + np.where(is_rented & (value["term_months"] >= 48), 0.5, 0.0)
        + _effect(value["purpose"], PURPOSE_RISK)
        + _effect(value["home_ownership"], OWNERSHIP_RISK)
        + _effect(value["channel"], CHANNEL_RISK) * (1 + 1.5 * economy.drift)
        + _effect(value["branch"], branch_risk),
        dtype=np.float64,
    )


def _with_gaps(random: np.random.Generator, frame: pl.DataFrame) -> pl.DataFrame:
    """Return the rows as they were written down: some incomes unknown, new customers without a date."""
    draws = pl.DataFrame({"income": random.random(frame.height), "customer": random.random(frame.height)})
    is_online = frame["channel"] == "web"
    return frame.with_columns(
        income=pl.when(draws["income"] >= pl.when(is_online).then(0.11).otherwise(0.04)).then(pl.col("income")),
        customer_since=pl.when(draws["customer"] >= 0.3).then(pl.col("customer_since")),
    )


def _drawn(random: np.random.Generator, weights_NK: Floats) -> Integers:
    """Return one index per row, drawn by the row's own weights, shape (rows, choices)."""
    cumulative_NK = np.cumsum(weights_NK, axis=1)
    draws_N = random.random(len(weights_NK)) * cumulative_NK[:, -1]
    return np.asarray((draws_N[:, None] >= cumulative_NK).sum(axis=1), dtype=np.int64)


def _effect(texts: NDArray[np.object_], effects: dict[str, float]) -> Floats:
    """Return each text's effect; a text without one has none."""
    return np.array([effects.get(text, 0.0) for text in texts], dtype=np.float64)


COLUMNS = (
    "applicant_id",
    "applied_on",
    "branch",
    "zip_code",
    "channel",
    "age",
    "income",
    "employment_years",
    "home_ownership",
    "existing_debt",
    "late_payments",
    "has_guarantor",
    "customer_since",
    "purpose",
    "loan_amount",
    "term_months",
    "interest_rate",
    "defaulted",
)
