"""Which rows to train on: the configuration of a sample, and its rule, which is a function of the row alone.

Every row has a key in every run, drawn from its stable hash, and a sample is the rows whose key reaches a threshold:
no lists of rows travel, equal rows stay together, and a larger sample holds the rows of a smaller one. Keys are those
of Efraimidis and Spirakis (2006, algorithm A-ES), u^(1/w); with equal weights that is u itself. How thresholds are
found is in `tasks._threshold`, how a sample is held against the other rows in `tasks._fairness`, and how many rows are
enough in `tasks._learning_curve`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from infra.bundle.schema import Schema, Task
from infra.errors import InputError, nearest
from infra.storage import Store
from tasks._cache import key_of
from tasks._candidate import BundleRef, load_bundle
from tasks._encode import GROUP, ROW, TARGET, TIME, uniform
from tasks._fairness import Fairness
from tasks._learning_curve import Curve
from tasks._metrics import row_losses

Method = Literal["uniform", "stratified", "group", "recent", "hard"]

SAMPLE_SALT, REDRAW_SALT, PILOT_SALT = 2, 3, 4
"""Of the keys of a sample, of the second draw that it is compared with, and of the rows of pilot models."""
NUM_QUANTILE_STRATA = 10
MAX_STRATA = 200
"""Values of a column that are strata of their own; the rarer ones are one stratum together."""
MIN_STRATUM_ROWS = 100
"""A stratum has this many rows in the sample, where it has them and all such rows are at most half of the sample."""
HARD_FLOOR = 0.2
"""Share of a loss-proportional sample that is drawn uniformly, so that no weight exceeds 1 / floor."""
SECONDS_PER_DAY = 86_400
ROW_LOSS: dict[Task, str] = {"binary": "log_loss", "multiclass": "log_loss", "regression": "rmse"}
"""The metric whose loss per row makes a row hard: minus log likelihood, or the squared error."""


class SamplingConfig(BaseModel):
    """Which of the training rows to learn from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Method = Field(
        default="uniform",
        description="uniform: every row alike; stratified: so many of each class (or of each value of 'by'), rare ones "
        "with a minimum; group: whole groups of data.group; recent: newer rows with a higher chance; hard: rows that a "
        "pilot model gets wrong with a higher chance. Stratified and hard rows carry weights that undo the preference.",
    )
    rows: Annotated[int, Field(ge=100)] | Literal["auto"] | None = Field(
        default=None,
        description="How many training rows to use. auto: as few as a learning curve says are enough. Empty: all.",
    )
    fraction: float = Field(default=1.0, gt=0, le=1, description="Share of the training rows to use at most.")
    by: str | None = Field(
        default=None,
        description="Stratified: the column whose values (numbers: ten quantile bins) are the strata. "
        "Empty: the target.",
    )
    half_life_days: float | None = Field(
        default=None,
        gt=0,
        description="Recent: a row this much older has half the chance, in days, or in the unit of a data.time that "
        "holds plain numbers.",
    )
    tolerance: float = Field(
        default=0.01,
        gt=0,
        lt=1,
        description="Auto: the validation loss may be larger than that of all rows by this share of it.",
    )

    def size(self, num_rows: int) -> int:
        """Return the number of rows that is asked for; auto asks for as many as the fraction allows."""
        allowed = math.floor(self.fraction * num_rows + 1e-9)
        return max(1, min(allowed, self.rows if isinstance(self.rows, int) else num_rows))


def check_design(config: SamplingConfig, schema: Schema) -> None:
    """Raise an InputError if the settings do not go together, or ask for a column that there is not."""
    method = config.method
    if method == "recent" and schema.time is None:
        raise _refused("recent", "a column of time", "data.time=None", "Set data.time")
    if method == "recent" and config.half_life_days is None:
        raise _refused("recent", "a half-life", "sampling.half_life_days=None", "Set it to 30, for example")
    if method == "group" and schema.group is None:
        raise _refused("group", "a column of groups", "data.group=None", "Set data.group")
    if method != "uniform" and config.rows is None and config.fraction == 1:
        raise _refused(method, "a size", "sampling.rows=None", "Set sampling.rows or sampling.fraction")
    for name, owner in (("by", "stratified"), ("half_life_days", "recent")):
        if (value := getattr(config, name)) is not None and method != owner:
            raise InputError(
                f'sampling.{name} goes with sampling.method="{owner}", but got sampling.{name}={value!r} with '
                f'sampling.method="{method}". Take it out, or change the method.'
            )
    if config.rows == "auto" and method in ("recent", "hard"):
        raise InputError(
            'sampling.rows="auto" needs samples that are alike but for their size, those of uniform, stratified and '
            f'group, but got sampling.method="{method}". Set sampling.rows to a number.'
        )
    if method == "stratified":
        stratum_column(config.by, schema)


def _refused(method: str, needed: str, found: str, step: str) -> InputError:
    return InputError(f'sampling.method="{method}" needs {needed}, but got {found}. {step}, or choose another method.')


def stratum_column(by: str | None, schema: Schema) -> tuple[str, bool]:
    """Return the column of a shard whose values are the strata, and whether they are codes.

    Raises:
        InputError: no feature is made of this column one to one.
    """
    if by is None or by == schema.target:
        return TARGET, schema.task != "regression"
    known = {feature.column: feature.is_categorical for feature in schema.features if feature.part is None}
    if by not in known:
        raise InputError(
            f"sampling.by is the target, or a column of numbers or categories that the model uses, but got "
            f"sampling.by={by!r}.{nearest(by, list(known))} Name another column."
        )
    return by, known[by]


@dataclass(frozen=True)
class Strata:
    """What divides rows into strata: codes, or numbers cut at edges. Missing values are the first stratum."""

    column: str
    size: int
    edges: tuple[float, ...] = ()

    def of(self, shard: pl.DataFrame) -> NDArray[np.intp]:
        """Return each row's stratum, shape (rows,)."""
        values = shard.get_column(self.column).to_numpy()
        if self.edges:
            return np.where(np.isnan(values), 0, np.searchsorted(self.edges, values) + 1).astype(np.intp)
        places: NDArray[np.intp] = np.clip(np.nan_to_num(values, nan=-1) + 1, 0, self.size - 1).astype(np.intp)
        return places


@dataclass(frozen=True)
class LossPilot:
    """The model that says how hard a row is, and what makes probabilities of its losses."""

    bundle: BundleRef
    mean_loss: float
    scale: float
    """Probability of a row of mean loss."""
    share: float
    """Share of all rows that is drawn; makes the weights 1 on average."""

    def probabilities(self, store: Store, shard: pl.DataFrame) -> NDArray[np.float64]:
        """Return each row's chance to be drawn, shape (rows,): its loss over the mean, mixed with a uniform floor."""
        return np.minimum(1.0, self.scale * hardness(pilot_losses(store, self.bundle, shard), self.mean_loss))


def pilot_losses(store: Store, bundle: BundleRef, shard: pl.DataFrame) -> NDArray[np.float64]:
    """Return a model's loss of each row, shape (rows,); 0 where there is no label."""
    pilot = load_bundle(store, bundle)
    losses = np.zeros(shard.height)
    labels = shard.get_column(TARGET).to_numpy()
    is_known = ~np.isnan(labels)
    if is_known.any():
        task = pilot.schema.task
        known = labels[is_known] if task == "regression" else labels[is_known].astype(np.int64)
        found = row_losses(task, ROW_LOSS[task], known, pilot.scores(shard.filter(pl.Series(is_known))))
        assert found is not None, "these metrics are means over rows"
        losses[is_known] = found
    return losses


def hardness(losses: NDArray[np.float64], mean_loss: float) -> NDArray[np.float64]:
    """Return what a row's chance is proportional to, 1 on average; never below HARD_FLOOR."""
    return (1 - HARD_FLOOR) * losses / max(mean_loss, 1e-12) + HARD_FLOOR


@dataclass(frozen=True)
class SampleRule:
    """Which rows are in a sample: a function of the row. Without thresholds and pilot all rows are."""

    method: Method = "uniform"
    thresholds: tuple[float, ...] = ()
    """Smallest key that is in the sample, one per stratum."""
    strata: Strata | None = None
    weights: tuple[float, ...] = ()
    """By stratum; none where the rows of all strata count alike."""
    half_life: float = 0.0
    """Of a recent sample, in the unit of TIME."""
    pilot: LossPilot | None = None

    @property
    def is_all(self) -> bool:
        """Return whether every row is in the sample."""
        return not self.thresholds and self.pilot is None

    @property
    def has_weights(self) -> bool:
        """Return whether the rows of the sample count differently."""
        return bool(self.weights) or self.pilot is not None

    @property
    def unit(self) -> str:
        """Return the column of hashes whose equal values are drawn together."""
        return GROUP if self.method == "group" else ROW

    @property
    def columns(self) -> list[str]:
        """List the shard columns that keys and strata are made of."""
        time = [TIME] if self.method == "recent" else []
        return list(dict.fromkeys([self.unit, *time, *([self.strata.column] if self.strata else [])]))

    def keys(self, shard: pl.DataFrame, salt: int = SAMPLE_SALT) -> NDArray[np.float64]:
        """Return each row's key, shape (rows,); the largest ones are drawn.

        For recent rows the weight is w = 2^(-age / half-life), and log w - log(-log u) takes the place of u^(1/w): it
        orders rows alike and does not underflow. The age counts from time 0, which changes no order.
        """
        u = uniform(shard.get_column(self.unit).to_numpy(), salt)
        if self.method != "recent":
            return u
        log_weights = shard.get_column(TIME).to_numpy() * (math.log(2) / self.half_life)
        return np.asarray(log_weights - np.log(-np.log(np.maximum(u, 2.0**-54))))

    def draw(
        self, store: Store, shard: pl.DataFrame, salts: Sequence[int] = (SAMPLE_SALT,)
    ) -> tuple[list[NDArray[np.bool_]], NDArray[np.float32] | None]:
        """Return which rows of a shard are drawn with each salt, and what they then weigh, both of shape (rows,)."""
        if self.is_all:
            return [np.ones(shard.height, dtype=np.bool_) for _ in salts], None
        if self.pilot is not None:
            chances = self.pilot.probabilities(store, shard)
            weights = (self.pilot.share / chances).astype(np.float32)
            return [self.keys(shard, salt) >= 1 - chances for salt in salts], weights
        stratum = self.strata.of(shard) if self.strata else np.zeros(shard.height, dtype=np.intp)
        limits = np.asarray(self.thresholds)[stratum]
        by_stratum = np.asarray(self.weights, dtype=np.float32)[stratum] if self.weights else None
        return [self.keys(shard, salt) >= limits for salt in salts], by_stratum


@dataclass(frozen=True)
class Sample:
    """The rows to train on, how well they stand for the rest, and why there are so many."""

    rule: SampleRule
    num_rows: int
    num_all: int
    fairness: Fairness | None = None
    curve: Curve | None = None

    @property
    def key(self) -> str:
        """Return what a training depends on: which rows, not what was found out about them."""
        return key_of(self.rule)

    @property
    def sentence(self) -> str:
        """Return the sample in words."""
        size = f" {self.curve.sentence}" if self.curve else ""
        if self.rule.is_all:
            return f"All {self.num_all:,} training rows are used.{size}"
        weighted = ", with weights" if self.rule.has_weights else ""
        proof = (
            f" {self.fairness.sentence('groups' if self.rule.method == 'group' else 'rows')}" if self.fairness else ""
        )
        return f"{self.num_rows:,} of {self.num_all:,} training rows ({self.rule.method}{weighted}).{size}{proof}"

    def chooses(self, store: Store, shard: pl.DataFrame) -> NDArray[np.bool_]:
        """Return which rows of a shard are in the sample, shape (rows,)."""
        return self.rule.draw(store, shard)[0][0]

    def thinned(self, store: Store, shard: pl.DataFrame) -> tuple[NDArray[np.bool_], NDArray[np.float32] | None]:
        """Return which rows of a shard are in the sample, and what every row would weigh in it (None: all alike)."""
        (chosen,), weights = self.rule.draw(store, shard)
        return chosen, weights


def check_sample(sample: Sample) -> None:
    """Raise an InputError that names what in the sample is unlike the other rows, and by how much."""
    problems = sample.fairness.problems if sample.fairness else ()
    if problems:
        raise InputError(
            f"A sample has the distribution that its design promises, but got {'; '.join(problems)} with "
            f"{sample.num_rows:,} of {sample.num_all:,} rows. "
            f"{'Look for what the groups' if sample.rule.method == 'group' else 'Look for what equal rows'} have in "
            "common, raise sampling.rows or sampling.fraction, or choose another sampling.method."
        )
