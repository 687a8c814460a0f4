"""When flows run: what `[schedule]` says, and which due runs have become needless.

Everything here is pure; flows/serve.py tells Prefect.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

INTERVAL = re.compile(r"(\d+) ?(s|m|h|d|w)")
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
CRON = re.compile(r"[\d*/,\-#LA-Za-z]+( [\d*/,\-#LA-Za-z]+){4}")
MIN_INTERVAL = timedelta(seconds=5)
WHEN = "A cron line such as '0 3 * * *', or an interval such as '6h' (s, m, h, d, w)."


@dataclass(frozen=True)
class Timing:
    """When a flow runs: by cron or at an interval, one of the two."""

    cron: str | None
    every: timedelta | None
    timezone: str


def parse_when(when: str, timezone: str) -> Timing:
    """Return what a schedule says.

    Raises:
        ValueError: it is neither a cron line nor an interval.

    >>> parse_when("6h", "UTC").every
    datetime.timedelta(seconds=21600)
    >>> parse_when("0 3 * * mon-fri", "Europe/Berlin").cron
    '0 3 * * mon-fri'
    """
    text = " ".join(when.split())
    if found := INTERVAL.fullmatch(text):
        every = timedelta(**{UNITS[found[2]]: int(found[1])})
        if every < MIN_INTERVAL:
            raise ValueError("an interval is 5s or longer")
        return Timing(None, every, timezone)
    if not CRON.fullmatch(text):
        raise ValueError("a cron line of five fields such as '0 3 * * *', or an interval such as '6h'")
    return Timing(text, None, timezone)


class ScheduleConfig(BaseModel):
    """When `evergreen up` runs the flows of this model by itself."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    retrain: str | None = Field(default=None, description=f"When to retrain. {WHEN} Empty: only when asked to.")
    predict: str | None = Field(
        default=None, description=f"When to score predict_input. {WHEN} Empty: only when asked to."
    )
    predict_input: str | None = Field(default=None, description="What is scored: a file, a folder or a pattern.")
    predict_output: str | None = Field(
        default=None, description="Where the answers go: a .parquet or .csv file, written anew each time."
    )
    maintain: str | None = Field(
        default="30 4 * * 0", description=f"When to remove what no version needs any more. {WHEN} Empty: never."
    )
    timezone: str = Field(default="UTC", description="Time zone of the cron lines, such as Europe/Berlin.")
    overlap: Literal["queue", "skip"] = Field(
        default="queue",
        description="A run that is due while one of its kind still runs: queue, it waits; skip, it is cancelled. "
        "Of several that wait only the latest runs.",
    )

    @field_validator("retrain", "predict", "maintain")
    @classmethod
    def _check_when(cls, when: str | None) -> str | None:
        if when:
            parse_when(when, "UTC")
        return when or None

    @field_validator("timezone")
    @classmethod
    def _check_timezone(cls, timezone: str) -> str:
        try:
            ZoneInfo(timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ValueError("a time zone such as Europe/Berlin or UTC") from error
        return timezone

    @model_validator(mode="after")
    def _check_predict(self) -> ScheduleConfig:
        if self.predict and not (self.predict_input and self.predict_output):
            raise ValueError("predict needs predict_input and predict_output beside it")
        return self

    def timing(self, flow: str) -> Timing | None:
        """Return when a flow runs by itself, or None where it does not."""
        when: str | None = getattr(self, flow)
        return parse_when(when, self.timezone) if when else None


@dataclass(frozen=True)
class DueRun:
    """A run that a schedule has made and that has not begun."""

    id: str
    due: datetime


def collapsed(runs: Iterable[DueRun], now: datetime) -> tuple[DueRun, ...]:
    """Return the overdue runs of one deployment that a later overdue one makes needless: all but the latest.

    A retrain reads all the data there is, so that after an outage one run does the work of all that were missed.
    """
    overdue = sorted((run for run in runs if run.due <= now), key=lambda run: (run.due, run.id))
    return tuple(overdue[:-1])


@dataclass(frozen=True)
class Claim:
    """A scheduled run that has begun."""

    slot: datetime
    """When it was due."""
    run_id: str
    began: datetime


def needless_because(slot: datetime, run_id: str, claims: Iterable[Claim]) -> Claim | None:
    """Return the run that has done a scheduled run's work already, or None.

    That is one for the same moment (a schedule that is applied again can make a run twice), or one that began after
    this one was due, and so has seen all that this one would see.
    """
    others = (claim for claim in claims if claim.run_id != run_id)
    return next((claim for claim in others if claim.slot == slot or claim.began >= slot), None)
