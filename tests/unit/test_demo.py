"""The made-up loans: reproducible, believable, learnable and drifting."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import xgboost as xgb
from numpy.typing import NDArray

from infra.errors import InputError
from tasks._demo import COLUMNS, LATE_PURPOSE, write_demo

ROWS = 12_000
"""Per year."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Write two years."""
    return write_demo(tmp_path_factory.mktemp("demo"), rows=ROWS, months=24)


@pytest.fixture(scope="module")
def loans(files: list[Path]) -> pl.DataFrame:
    """Read two years, with the number of the month from 1."""
    frames = [pl.read_parquet(path).with_columns(month=pl.lit(month)) for month, path in enumerate(files, start=1)]
    return pl.concat(frames)


def auc(target: NDArray[np.int8], scores: NDArray[np.float32]) -> float:
    """Return the share of pairs of a default and a repaid loan in which the default scores higher (Mann-Whitney)."""
    ranks = pl.Series(scores).rank().to_numpy()
    num_defaults = int(target.sum())
    wins = ranks[target == 1].sum() - num_defaults * (num_defaults + 1) / 2
    return float(wins / (num_defaults * (len(target) - num_defaults)))


def rate(loans: pl.DataFrame) -> float:
    """Return the share of defaults."""
    return float(loans["defaulted"].to_numpy().mean())


def middle_income(loans: pl.DataFrame) -> float:
    """Return the median of the incomes that are known."""
    return float(np.median(loans["income"].drop_nulls().to_numpy()))


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    """Two demos of one seed are equal byte for byte; another seed gives other rows."""
    for name, seed in (("one", 7), ("two", 7), ("other", 8)):
        write_demo(tmp_path / name, rows=1200, months=2, seed=seed)
    one, two, other = (contents(tmp_path / name) for name in ("one", "two", "other"))

    assert one == two
    assert {"evergreen.toml"} == {name for name in one if one[name] == other[name]}


def test_a_further_month_is_a_further_file(tmp_path: Path) -> None:
    """Asking for one more month adds one file and writes no other one again; a fresh demo of that length is equal."""
    write_demo(tmp_path / "grown", rows=1200, months=2)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "grown").rglob("*") if path.is_file()}
    grown = write_demo(tmp_path / "grown", rows=1200, months=3)
    write_demo(tmp_path / "fresh", rows=1200, months=3)

    assert [f"applications-2024-{month:02d}.parquet" for month in (1, 2, 3)] == [path.name for path in grown]
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert contents(tmp_path / "fresh") == contents(tmp_path / "grown")


def test_configuration_of_the_user_stays(tmp_path: Path) -> None:
    """A configuration that is there is not replaced; a new one names the model, the files, the target and the time."""
    write_demo(tmp_path / "new", rows=1200, months=1)
    (tmp_path / "evergreen.toml").write_text('model.name = "mine"\n')
    write_demo(tmp_path, rows=1200, months=1)

    assert 'model.name = "mine"\n' == (tmp_path / "evergreen.toml").read_text()
    assert [
        'model.name = "loan-default"',
        'data.source = "data/*.parquet"',
        'data.target = "defaulted"',
        'data.time = "applied_on"',
    ] == (tmp_path / "new" / "evergreen.toml").read_text().splitlines()


def test_year_may_start_anywhere(tmp_path: Path) -> None:
    """Months run over the end of the year, and each file holds the days of its month."""
    paths = write_demo(tmp_path, rows=1200, months=3, start=date(2023, 11, 20))
    spans = [pl.read_parquet(path).select(pl.col("applied_on").dt.strftime("%Y-%m").unique()).item() for path in paths]

    assert ["2023-11", "2023-12", "2024-01"] == spans
    assert [f"applications-{span}.parquet" for span in spans] == [path.name for path in paths]


def test_columns_have_their_types(loans: pl.DataFrame) -> None:
    """Each kind of column that the product knows is there, zip codes with leading zeros as text."""
    text, number, integer = pl.String, pl.Float64, pl.Int64

    assert dict(
        zip(
            COLUMNS,
            (
                *(text, pl.Date, text, text, text),
                *(integer, number, number, text, number),
                *(integer, text, pl.Date, text, number),
                *(integer, number, pl.Int8),
            ),
            strict=True,
        )
    ) == dict(loans.drop("month").schema)
    assert loans["applicant_id"].is_unique().all()
    assert {5} == set(loans["zip_code"].str.len_chars()) and loans["zip_code"].str.starts_with("0").any()
    assert (40, [12, 24, 36, 48, 60]) == (loans["branch"].n_unique(), sorted(loans["term_months"].unique()))


def test_rows_follow_the_season(loans: pl.DataFrame) -> None:
    """A year has the rows that were asked for, November the most and August the least."""
    counts = dict(loans.filter(pl.col("month") <= 12)["month"].value_counts().iter_rows())

    assert ROWS == sum(counts.values())
    assert (11, 8) == (max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__))


def test_late_category_comes_in_month_nine(loans: pl.DataFrame) -> None:
    """A purpose that nobody has seen before appears in the ninth month and stays."""
    months = loans.filter(purpose=LATE_PURPOSE)["month"].unique().sort().to_list()

    assert list(range(9, 25)) == months


def test_only_two_columns_have_gaps(loans: pl.DataFrame) -> None:
    """Some incomes are missing, and new customers have no date."""
    shares = {name: loans[name].null_count() / loans.height for name in loans.columns if loans[name].null_count()}

    assert {"income": pytest.approx(0.06, abs=0.02), "customer_since": pytest.approx(0.3, abs=0.02)} == shares


def test_default_rate_stays_in_a_band(loans: pl.DataFrame) -> None:
    """About an eighth of the loans of a month default; a winter's more than a summer's."""
    rates = loans.group_by("month").agg(pl.col("defaulted").mean())["defaulted"]
    is_winter = loans["applied_on"].dt.month().is_in([12, 1, 2])
    is_summer = loans["applied_on"].dt.month().is_in([6, 7, 8])

    assert 0.12 == pytest.approx(rate(loans), abs=0.015)
    assert [] == [rate for rate in rates if not 0.07 < rate < 0.18]
    assert rate(loans.filter(is_winter)) > rate(loans.filter(is_summer))


def test_second_year_drifts(loans: pl.DataFrame) -> None:
    """From month 13 on incomes rise and customers move from the branch to the web; before, nothing moves."""
    late = loans.filter(pl.col("month") > 18)
    first, second = loans.filter(pl.col("month") <= 6), loans.filter(pl.col("month").is_between(7, 12))

    assert [1.0, 1.18] == pytest.approx(
        [middle_income(frame) / middle_income(first) for frame in (second, late)], abs=0.03
    )
    assert [0.25, 0.25, 0.45] == pytest.approx(
        [(frame["channel"] == "web").mean() for frame in (first, second, late)], abs=0.03
    )


def test_price_of_risk_changes(loans: pl.DataFrame) -> None:
    """In the first year the interest rate tells defaults apart, in the second it tells far less: concept drift."""
    first, late = loans.filter(pl.col("month") <= 12), loans.filter(pl.col("month") > 18)
    before, after = (auc(year["defaulted"].to_numpy(), year["interest_rate"].to_numpy()) for year in (first, late))

    assert before - after > 0.05


def test_target_is_learnable_forward_in_time(loans: pl.DataFrame) -> None:
    """Trained on ten months, XGBoost ranks the next two at an AUC near 0.8, well below certainty."""
    categories = ("branch", "channel", "home_ownership", "has_guarantor", "purpose")
    inputs = loans.select(
        *(pl.col(name).cast(pl.Categorical).to_physical().cast(pl.Int32) for name in categories),
        *("age", "income", "employment_years", "existing_debt", "late_payments"),
        *("loan_amount", "term_months", "interest_rate"),
    ).to_numpy()
    target = loans["defaulted"].to_numpy()
    past, future = (loans["month"] <= 10).to_numpy(), loans["month"].is_between(11, 12).to_numpy()
    types = ["c"] * len(categories) + ["q"] * (inputs.shape[1] - len(categories))
    train, test = (
        xgb.DMatrix(inputs[side], target[side], feature_types=types, enable_categorical=True) for side in (past, future)
    )
    settings = {"objective": "binary:logistic", "max_depth": 4, "eta": 0.1, "nthread": 1, "seed": 1}

    assert 0.80 == pytest.approx(auc(target[future], xgb.train(settings, train, 100).predict(test)), abs=0.025)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ((12_000, 0), "A demo needs at least 1 month, but got months=0. Ask for 12, a year."),
        ((100, 12), "A demo needs at least 1200 rows per year, but got rows=100. Ask for 60000."),
    ],
)
def test_too_little_is_refused(tmp_path: Path, asked: tuple[int, int], message: str) -> None:
    """A demo without months or with hardly any rows is refused before anything is written."""
    with pytest.raises(InputError, match=message):
        write_demo(tmp_path / "demo", rows=asked[0], months=asked[1])

    assert not (tmp_path / "demo").exists()
