"""What every training has, whatever it trains: which rows it learns from, and under which conditions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from infra.storage import Store
from tasks._cache import key_of
from tasks._encode import ROW, WEIGHT, Encoded, Shard, load_shard, uniform
from tasks._sample import Sample
from tasks._snapshot import SourceFile
from tasks._split import TRAIN, SplitRule
from tasks._train import VALIDATION_SALT

SHARE_SALT = 7
"""For the trials of a search that see a part of the rows."""


@dataclass(frozen=True, kw_only=True)
class LearningJob:
    """What a training of any family must know; equal jobs with equally many members give equal models."""

    model: str
    encoded: Encoded
    files: tuple[SourceFile, ...]
    rule: SplitRule
    sample: Sample
    include_validation: bool
    seed: int
    interval: float | None
    threads: int
    """Of a member; 0: as many as its worker has."""
    facts: dict[str, Any]
    validation_share: float = 1.0
    """How many of the validation rows stop the training and choose what is chosen on them."""
    members: int = 1
    device: str = "cpu"


def data_key(job: LearningJob) -> str:
    """Return what the rows of a job's sides depend on, parameters apart."""
    return key_of(job.encoded, job.rule, job.sample, job.validation_share)


def shares_of(shards: Sequence[Shard], num_members: int) -> list[list[Shard]]:
    """Divide shards among members, so that each has about as many rows; the same for the same shards.

    Each goes to the member with the fewest rows so far. Neighbours, which are alike where files follow in time, so go
    to different members.
    """
    shares: list[list[Shard]] = [[] for _ in range(num_members)]
    sizes = [0] * num_members
    for shard in shards:
        rank = sizes.index(min(sizes))
        shares[rank].append(shard)
        sizes[rank] += shard.num_rows
    return shares


def side_rows(store: Store, job: LearningJob, shard: Shard, *sides: int) -> pl.DataFrame:
    """Return the rows of a shard that are on these sides; see `chosen_rows`."""
    frame = load_shard(store, shard)
    rows, weights = chosen_rows(store, job, frame, *sides)
    if weights is not None:
        frame = frame.with_columns(pl.Series(WEIGHT, weights))
    return frame[rows]


def chosen_rows(
    store: Store, job: LearningJob, frame: pl.DataFrame, *sides: int, share: float = 1.0
) -> tuple[NDArray[np.intp], NDArray[np.float32] | None]:
    """Return which rows of a shard are on these sides, and what every row of it weighs (None: all alike).

    With the training side among them they are rows to learn from, and the sample's rule thins them all alike: the
    validation rows weigh no more in the last phase than they do in the data. Where rows of the sample count
    differently, the weights say so, times those that the data give. To stop a training, validation rows are used as
    the data have them, and of very many as many as are enough.

    A share of less than 1 takes as many of the rows; those of a smaller one are among those of every larger one.
    """
    chosen = np.isin(job.rule.sides(frame), sides)
    weights = frame.get_column(WEIGHT).to_numpy() if WEIGHT in frame.columns else None
    if TRAIN in sides:
        is_sampled, factors = job.sample.thinned(store, frame)
        chosen &= is_sampled
        if factors is not None:
            weights = (factors if weights is None else weights * factors).astype(np.float32)
    elif job.validation_share < 1:
        chosen &= uniform(frame.get_column(ROW).to_numpy(), VALIDATION_SALT) < job.validation_share
    if share < 1:
        chosen &= uniform(frame.get_column(ROW).to_numpy(), SHARE_SALT) < share
    return np.flatnonzero(chosen), weights
