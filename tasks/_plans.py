"""What a plan of a training is: what is asked for, what there is, and what is chosen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from tasks._costs import BASE_BYTES, MIB
from tasks._outcomes import Outcome

Device = Literal["cpu", "cuda"]

MEMORY_SHARE = 0.8
"""Of a worker's limit: from there on Dask pauses it."""


class PlanConfig(BaseModel):
    """Where to train; without a word the planner chooses."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto: a GPU where a worker has one and it is predicted to be faster."
    )
    workers: int | None = Field(
        default=None, ge=1, description="Workers that train together; without it, one unless more are needed."
    )
    memory: Literal["auto", "in_memory", "external"] = Field(
        default="auto",
        description="in_memory: quantized rows stay in memory; external: they are read from disk, page by page; auto: "
        "external only if they do not fit.",
    )


@dataclass(frozen=True)
class Machine:
    """One worker."""

    host: str
    threads: int
    memory_bytes: int = 0
    """Its limit; 0: none is known."""
    gpu_bytes: int = 0
    """Memory of its GPU; 0: it has none."""
    base_bytes: int = BASE_BYTES
    """What its process uses already."""
    host_memory_bytes: int = 0
    """Memory of its host for all workers together; 0: not known."""
    host_threads: int = 0
    """Cores that it may use while the other workers of its host have nothing to do; 0: its own threads only."""

    @property
    def usable_bytes(self) -> float:
        """Return how much a training may use, the process included."""
        return MEMORY_SHARE * self.memory_bytes if self.memory_bytes else math.inf


@dataclass(frozen=True)
class Plan:
    """Where and how a training runs, and what it is predicted to take."""

    device: Device
    members: int
    threads: int
    """Of each member."""
    is_external: bool
    batch_rows: int
    """Most rows of a page of external memory: shards are put together while they fit, larger ones cut. 0: in memory."""
    rows: int
    features: int
    predicted_bytes: int
    """Peak memory of the fullest member's process."""
    predicted_seconds: float
    """If no fit stops early."""
    why: str = ""
    share: float = 1.0
    """Of the training rows; less only in a plan that is proposed, never in one that is made."""
    chosen: tuple[int, ...] = (0,)
    """Positions of the members among the machines."""
    limit_bytes: int = 0
    """The least memory limit of a member; 0: none is known."""
    is_fitting: bool = True
    predicted_gpu_bytes: int = 0
    start_seconds: float = 0.0
    rounds: int = 1
    """Of all fits, if none stops early."""
    memory_factor: float = 1.0
    """By which earlier outcomes have corrected the prediction."""
    seconds_factor: float = 1.0

    @property
    def kind(self) -> str:
        """Return what outcomes are compared by.

        >>> Plan("cpu", 4, 2, True, 1000, 10, 5, 1, 1.0).kind
        'cpu/4/external'
        """
        return f"{self.device}/{self.members}/{'external' if self.is_external else 'in_memory'}"

    @property
    def sentence(self) -> str:
        """Return the plan in one line.

        >>> Plan("cpu", 1, 2, False, 0, 33_192, 14, 360 * 2**20, 8.2, "one worker is enough").sentence
        '1 worker, 2 threads, cpu, in memory: 33,192 rows x 14 features, about 360 MiB and 8 s; one worker is enough'
        """
        where = f"pages of {self.batch_rows:,} rows on disk" if self.is_external else "in memory"
        each = " each" if self.members > 1 else ""
        sampled = f" ({self.share:.0%} of the training rows)" if self.share < 1 else ""
        on = f", {size_text(self.predicted_gpu_bytes)} on the GPU" if self.device == "cuda" else ""
        why = f"; {self.why}" if self.why else ""
        return (
            f"{_plural(self.members, 'worker')}, {_plural(self.threads, 'thread')}{each}, {self.device}, {where}: "
            f"{self.rows:,} rows x {_plural(self.features, 'feature')}{sampled}, "
            f"about {size_text(self.predicted_bytes)}{each}{on} and {duration_text(self.predicted_seconds)}{why}"
        )

    def seconds_of(self, rounds: int) -> float:
        """Return the predicted time of so many rounds; most trainings stop early."""
        per_round = (self.predicted_seconds - self.start_seconds) / max(1, self.rounds)
        return self.start_seconds + rounds * per_round

    def outcome(self, peak_bytes: int, seconds: float, rounds: int, when: str) -> Outcome:
        """Return what is to be kept of a training by this plan that has ended.

        Args:
            peak_bytes: the largest VmHWM of a member.
            seconds: from its first byte read to its last tree.
            rounds: run by all fits together.
            when: the end, ISO 8601 in UTC.
        """
        return Outcome(
            kind=self.kind,
            predicted_bytes=self.predicted_bytes,
            peak_bytes=peak_bytes,
            predicted_seconds=self.seconds_of(rounds),
            seconds=seconds,
            rounds=rounds,
            rows=self.rows,
            features=self.features,
            when=when,
            memory_factor=self.memory_factor,
            seconds_factor=self.seconds_factor,
        )


def size_text(num_bytes: float) -> str:
    """Return a size for people.

    >>> size_text(360 * 2**20), size_text(12.5 * 2**30)
    ('360 MiB', '12.5 GiB')
    """
    return f"{num_bytes / MIB:,.0f} MiB" if num_bytes < 10 * 2**30 else f"{num_bytes / 2**30:,.1f} GiB"


def duration_text(seconds: float) -> str:
    """Return a time for people.

    >>> duration_text(8.2), duration_text(600), duration_text(9000)
    ('8 s', '10 min', '2.5 h')
    """
    if seconds < 120:
        return f"{max(1, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
