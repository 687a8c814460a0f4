"""When flows run, and which due runs are needless."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.models import find_models
from flows.timetable import Claim, DueRun, ScheduleConfig, Timing, collapsed, needless_because, parse_when
from infra.errors import InputError

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
LEAST = '[model]\nname = "{name}"\n\n[data]\nsource = "data"\ntarget = "y"\n'


def at(minutes: float) -> datetime:
    """Return a moment by its minutes after noon."""
    return NOON + timedelta(minutes=minutes)


@pytest.mark.parametrize(
    ("when", "timing"),
    [
        ("30s", Timing(None, timedelta(seconds=30), "UTC")),
        ("15 m", Timing(None, timedelta(minutes=15), "UTC")),
        ("6h", Timing(None, timedelta(hours=6), "UTC")),
        ("1d", Timing(None, timedelta(days=1), "UTC")),
        ("2w", Timing(None, timedelta(weeks=2), "UTC")),
        (" 0  3 * * mon-fri ", Timing("0 3 * * mon-fri", None, "UTC")),
        ("*/5 8-18/2 1,15 * *", Timing("*/5 8-18/2 1,15 * *", None, "UTC")),
    ],
)
def test_a_schedule_is_a_cron_line_or_an_interval(when: str, timing: Timing) -> None:
    """Both forms are read, with room for spaces."""
    assert timing == parse_when(when, "UTC")


def test_a_schedule_has_a_timing_per_flow() -> None:
    """Each flow has its own line; an empty one runs when asked to; the time zone is shared."""
    schedule = ScheduleConfig(retrain="0 3 * * *", maintain="", timezone="Europe/Berlin")

    assert [Timing("0 3 * * *", None, "Europe/Berlin"), None, None] == [
        schedule.timing(flow) for flow in ("retrain", "predict", "maintain")
    ]


def test_of_overdue_runs_the_latest_stays() -> None:
    """All overdue runs but the latest are needless; those of the future are left alone."""
    runs = [DueRun(name, at(minutes)) for name, minutes in [("c", -1), ("a", -9), ("future", 5), ("b", -5)]]

    assert [DueRun("a", at(-9)), DueRun("b", at(-5))] == list(collapsed(runs, NOON))


@given(st.lists(st.integers(-50, 50)))
def test_collapsing_leaves_one_overdue_run_at_most(minutes: list[int]) -> None:
    """Whatever is due, one overdue run is left, the latest, and a second look finds nothing."""
    runs = [DueRun(str(number), at(one)) for number, one in enumerate(minutes)]
    gone = collapsed(runs, NOON)
    left = [run for run in runs if run not in gone and run.due <= NOON]

    assert min(1, sum(one <= 0 for one in minutes)) == len(left)
    assert all(run.due <= left[0].due for run in gone)
    assert () == collapsed([run for run in runs if run not in gone], NOON)


@pytest.mark.parametrize(
    ("slot", "run", "by"),
    [
        (0, "again", "first"),  # a schedule applied again has made the run twice
        (0, "first", None),  # the run itself, started again
        (2, "late", "first"),  # due before the first began, and so seen by it
        (4, "next", None),  # due while the first worked: its data may be newer
    ],
)
def test_a_run_whose_data_another_has_seen_is_needless(slot: float, run: str, by: str | None) -> None:
    """A run is needless if another has its slot, or began after it was due; never because of itself."""
    found = needless_because(at(slot), run, [Claim(at(0), "first", at(3))])

    assert by == (found.run_id if found else None)


def test_models_are_found_below_a_folder(tmp_path: Path) -> None:
    """Every evergreen.toml counts, but those in hidden folders and environments."""
    for place in ("b", "a/deep", ".hidden", "venv", "node_modules/x"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "evergreen.toml").write_text(LEAST.format(name=place.replace("/", "-").strip(".")))
    (tmp_path / "venv" / "pyvenv.cfg").touch()

    assert ["a-deep", "b"] == [model.config.model.name for model in find_models(tmp_path)]
    assert ["b"] == [model.config.model.name for model in find_models(tmp_path / "b" / "evergreen.toml")]


def test_no_model_and_twins_are_refused(tmp_path: Path) -> None:
    """A folder without a model, and two models of one name, are named with what to do."""
    with pytest.raises(InputError, match=r"but got no evergreen\.toml in .* or below\. Write one"):
        find_models(tmp_path)
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "evergreen.toml").write_text(LEAST.format(name="same"))
    with pytest.raises(InputError, match=r"but got model\.name = 'same' in .*/a/.* and in .*/b/.*\. Change one"):
        find_models(tmp_path)
