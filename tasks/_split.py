"""Divide rows into training, validation and holdout by rules that are functions of the row alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from infra.bundle.schema import Schema
from infra.errors import InputError
from tasks._encode import GROUP, HASH_VERSION, ROW, TARGET, TIME, uniform
from tasks._profile import ColumnProfile

SPLIT_SALT = 1
TRAIN, VALIDATION, HOLDOUT, UNLABELLED = 0, 1, 2, -1
By = Literal["row", "time", "group"]
SIDES = ("train", "validation", "holdout")
MAX_NAMED_CLASSES = 20
AMPLE_ROWS = 20
"""Rows of a class from which a split by row puts some on each side."""


class SplitConfig(BaseModel):
    """How to divide the rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    by: By | None = Field(
        default=None,
        description="row: by a stable hash; time: the newest rows are held out; group: equal groups stay together. "
        "Empty: time where data.time is set, else group where data.group is set, else row.",
    )
    holdout_fraction: float = Field(default=0.2, gt=0, lt=1, description="Share of rows held out for the verdict.")
    validation_fraction: float = Field(
        default=0.15, gt=0, lt=1, description="Share of the other rows that stop the training early."
    )

    def kind(self, has_time: bool, has_group: bool) -> By:
        """Return the way to split that is set or follows from the data."""
        return self.by or ("time" if has_time else "group" if has_group else "row")


@dataclass(frozen=True)
class SplitRule:
    """Which side a row is on: a function of the row, stored with every model."""

    by: By
    holdout_fraction: float
    validation_fraction: float
    holdout_from: float = 0.0
    """First instant of the holdout, for a split by time."""
    validation_from: float = 0.0
    column: str | None = None
    """The column of a split by time or by group."""
    hash_columns: tuple[str, ...] = ()
    hash_version: int = 1
    """By which version of the hash of a row rows are divided, unless by time."""

    def sides(self, shard: pl.DataFrame) -> NDArray[np.int8]:
        """Return the side of every row of a shard, shape (rows,): TRAIN, VALIDATION, HOLDOUT or UNLABELLED."""
        if self.by == "time":
            position = shard.get_column(TIME).to_numpy()
            is_holdout, is_validation = position >= self.holdout_from, position >= self.validation_from
        else:
            position = uniform(shard.get_column(GROUP if self.by == "group" else ROW).to_numpy(), SPLIT_SALT)
            is_holdout = position < self.holdout_fraction
            is_validation = position < self.holdout_fraction + self.validation_fraction * (1 - self.holdout_fraction)
        sides = np.where(is_holdout, HOLDOUT, np.where(is_validation, VALIDATION, TRAIN)).astype(np.int8)
        sides[np.isnan(shard.get_column(TARGET).to_numpy())] = UNLABELLED
        return sides

    @property
    def columns(self) -> list[str]:
        """List the shard columns that decide."""
        return [TARGET, {"time": TIME, "group": GROUP, "row": ROW}[self.by]]


@dataclass(frozen=True)
class SideCounts:
    """How many rows are on each side, and of which class."""

    train: int
    validation: int
    holdout: int
    unlabelled: int
    classes: tuple[tuple[int, ...], ...]
    """Rows by side (train, validation, holdout) and class; empty for regression."""


def make_rule(config: SplitConfig, schema: Schema, time: ColumnProfile | None) -> SplitRule:
    """Return the rule of a run; by time, the cuts are instants that leave about the fractions asked for.

    Raises:
        InputError: the split asks for a column that is not configured, or time has too few instants.
    """
    by = config.kind(schema.time is not None, schema.group is not None)
    if (by == "time" and schema.time is None) or (by == "group" and schema.group is None):
        raise InputError(
            f'A split by {by} needs a column, but got none as data.{by}. Set data.{by}, or split.by = "row".'
        )
    cuts = (0.0, 0.0)
    if by == "time":
        assert time is not None, "the profile counts the instants of the time column"
        cuts = time_cuts(time, config)
    column = {"time": schema.time, "group": schema.group, "row": None}[by]
    return SplitRule(
        by, config.holdout_fraction, config.validation_fraction, *cuts, column, schema.hash_columns, HASH_VERSION
    )


def check_reproducible(rule: SplitRule, schema: Schema) -> None:
    """Raise an InputError if rows no longer have what decided the champion's split.

    Then nobody knows which rows the champion has trained on, and no holdout is fair to both.
    """
    column = {"time": schema.time, "group": schema.group, "row": None}[rule.by]
    if column != rule.column:
        raise InputError(
            f"The column that split the champion's rows stays as it was, data.{rule.by} = {rule.column!r}, "
            f"but got data.{rule.by}={column!r}. Set it back, or start a new model under another model.name."
        )
    if rule.by != "time" and rule.hash_version != HASH_VERSION:
        raise InputError(
            "The champion's rows are divided as they were when it was trained, but got a champion of an earlier "
            f"release, hash_version={rule.hash_version} instead of {HASH_VERSION}. "
            "Start a new model under another model.name."
        )


def time_cuts(time: ColumnProfile, config: SplitConfig) -> tuple[float, float]:
    """Return the first instants of the holdout and of the validation window.

    A cut lies on an instant that occurs, rounded to whole days where the rows span more than 60 of them.
    """
    instants = np.array([float(key) for key in time.times])
    counts = np.array(list(time.times.values()), dtype=np.int64)
    is_dates = bool(time.dates)
    if is_dates and instants.max() - instants.min() > 60 * 86_400:
        instants = np.floor(instants / 86_400) * 86_400
    unique, inverse = np.unique(instants, return_inverse=True)
    counts = np.bincount(inverse, weights=counts).astype(np.int64)
    if len(unique) < 3:
        raise InputError(
            f"A split by time needs at least 3 different instants, but got {len(unique)}. "
            'Widen data.source, or set split.by = "row".'
        )
    newer = counts[::-1].cumsum()[::-1] / counts.sum()
    holdout = int(np.clip(np.abs(newer - config.holdout_fraction).argmin(), 2, len(unique) - 1))
    share = config.holdout_fraction + config.validation_fraction * (1 - config.holdout_fraction)
    validation = int(np.clip(np.abs(newer - share).argmin(), 1, holdout - 1))
    return float(unique[holdout]), float(unique[validation])


def count_sides(shard: pl.DataFrame, rule: SplitRule, num_classes: int) -> SideCounts:
    """Count one shard's rows by side and class."""
    sides = rule.sides(shard)
    codes = shard.get_column(TARGET).to_numpy()
    classes = tuple(
        tuple(int(n) for n in np.bincount(codes[sides == side].astype(np.int64), minlength=num_classes))
        for side in ((TRAIN, VALIDATION, HOLDOUT) if num_classes else ())
    )
    train, validation, holdout, unlabelled = (
        int((sides == side).sum()) for side in (TRAIN, VALIDATION, HOLDOUT, UNLABELLED)
    )
    return SideCounts(train, validation, holdout, unlabelled, classes)


def add_counts(parts: list[SideCounts]) -> SideCounts:
    """Return the counts of all shards together."""
    classes = [np.array(part.classes) for part in parts]
    summed = tuple(tuple(int(n) for n in row) for row in np.sum(classes, axis=0)) if parts[0].classes else ()
    return SideCounts(
        train=sum(part.train for part in parts),
        validation=sum(part.validation for part in parts),
        holdout=sum(part.holdout for part in parts),
        unlabelled=sum(part.unlabelled for part in parts),
        classes=summed,
    )


def check_sides(counts: SideCounts, labels: tuple[str, ...], rule: SplitRule) -> None:
    """Raise an InputError that names the side without rows, or the classes that a side lacks."""
    for side in SIDES:
        if getattr(counts, side) == 0:
            raise InputError(
                f"Each side of a split by {rule.by} needs rows, but got {side}=0 of "
                f"{counts.train + counts.validation + counts.holdout:,} labelled rows. "
                "Widen data.source, or change split.holdout_fraction and split.validation_fraction."
            )
    if counts.classes:
        _check_classes(counts, labels, rule)


def _check_classes(counts: SideCounts, labels: tuple[str, ...], rule: SplitRule) -> None:
    # A rare class of many may be absent from the smaller sides; it can't be learnt without training rows.
    is_binary = len(labels) == 2
    needed = SIDES if is_binary else SIDES[:1]
    by_class = zip(labels, zip(*counts.classes, strict=True), strict=True)
    lacking = [
        (sum(rows), label, [side for side, n in zip(SIDES, rows, strict=True) if n == 0 and side in needed])
        for label, rows in by_class
    ]
    rare = sorted(((total, label, sides) for total, label, sides in lacking if sides), key=lambda item: item[0])
    if not rare:
        return
    named = [
        f"{label!r}{' in ' + ' and '.join(sides) if is_binary else ''} ({total:,} row{'s' * (total != 1)} in all)"
        for total, label, sides in rare[:MAX_NAMED_CLASSES]
    ]
    named += [f"and {len(rare) - MAX_NAMED_CLASSES} more classes"] if len(rare) > MAX_NAMED_CLASSES else []
    ample = [repr(label) for total, label, _ in rare if total >= AMPLE_ROWS and rule.by != "row"]
    other = f'; for {", ".join(ample)} set split.by = "row"' if ample else ""
    gone = "; for a class of 0 rows start a new model under another model.name" if rare[0][0] == 0 else ""
    raise InputError(
        f"Each class needs rows {'on each side' if is_binary else 'in the training side'} of a split by {rule.by}, "
        f"but got none of class {', '.join(named)}. "
        f"Leave out the rows of rare classes, merge them with others in the source, or add rows{other}{gone}."
    )
