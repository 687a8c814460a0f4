"""Train one trial of a search for a network's parameters: on one worker, or on a gang where a plan has several members.

A trial has the first phase of a training, with its steps, its order of the rows and its end. On a share of the rows it
takes as many epochs, of as many steps as data of that size have.

What scores a row is the exported graph, which is served, and three to four times as fast as torch is. To export it
takes two seconds, so that it is timed only where a budget asks for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from infra.member import Member
from infra.progress import is_asked_to_stop, is_stop_requested, report_progress
from infra.storage import Store
from tasks._gaps import CHECKED_ROWS
from tasks._measure import median_seconds
from tasks._neural.checkpoint import Progress, Writer
from tasks._neural.collective import agreed, process_group
from tasks._neural.export import exported
from tasks._neural.fit import Fit, Journey, fit_of, require_device
from tasks._neural.job import NeuralJob
from tasks._neural.parallel import require_divisible
from tasks._search import NUM_FOLDS, TrialOutcome

REPORT_SECONDS = 0.1


class AskedToStopError(Exception):
    """A trial is to end with what it has."""


@dataclass
class TrialJourney(Journey):
    """The way of a trial: it tells losses, leaves no checkpoints, and ends when that is asked for."""

    is_asked: Callable[[], bool] = lambda: False
    _losses: list[float] = field(default_factory=list)

    def is_due(self) -> bool:
        """Look, every few steps, whether the trial is to end; a checkpoint is never due."""
        self._end_if_asked()
        return False

    def tell(self, done: int, num_all: int, point: tuple[int, float, float] | None = None) -> None:
        """Report the losses of epochs, some at a time."""
        if point is None:
            return
        self._losses.append(point[2])
        if self.member.is_first and time.monotonic() - self._told_at >= REPORT_SECONDS:
            report_progress({"losses": self._losses})
            self._losses, self._told_at = [], time.monotonic()
        self._end_if_asked()

    def _end_if_asked(self) -> None:
        """Raise an AskedToStopError in all members, if the first one hears that the trial is to end."""
        if agreed(self.member, self.member.is_first and self.is_asked()):
            raise AskedToStopError


def run_trial(store: Store, job: NeuralJob, share: float, is_timed: bool) -> TrialOutcome:
    """Train a network on a share of the training rows until the validation rows no longer gain; runs on a worker.

    It ends early when that is asked for, and returns what it has. Losses are reported as they come.

    Args:
        store: Where the shards are.
        job: The training of the trial's parameters.
        share: Of the training rows; all validation rows judge.
        is_timed: Whether the time to score a row is measured.

    Raises:
        RunError: the loss is not finite.
    """
    return trained(Member.alone(job.threads), store, job, share, is_timed, is_stop_requested)


def run_gang_trial(
    member: Member, store: Store, job: NeuralJob, share: float, is_timed: bool, stop_key: str
) -> TrialOutcome:
    """Train as one of a gang, as `run_trial` does on one worker; the first member alone hears that it is to end."""
    return trained(member, store, job, share, is_timed, lambda: is_asked_to_stop(stop_key))


def trained(
    member: Member, store: Store, job: NeuralJob, share: float, is_timed: bool, is_asked: Callable[[], bool]
) -> TrialOutcome:
    """Train as one of a gang, or as its only member."""
    require_device(job)
    require_divisible(job.inputs, job.config, job.parallelism, member.num_members)
    began, cpu_began = time.perf_counter(), time.process_time()
    torch.set_num_threads(job.threads or member.threads)
    job = sized(job, share)
    is_stopped = False
    with process_group(member, job.device):
        journey = TrialJourney(member, store, job, None, Writer(store, job, member), is_asked=is_asked)
        fit = fit_of(journey, Progress(), share)
        try:
            fit.run(job.max_epochs)
        except AskedToStopError:
            is_stopped = True
        finally:
            journey.writer.close()
        assert fit.judges is not None, "the first phase has validation rows"
        fold_losses = fit.judges.fold_losses(NUM_FOLDS) if share == 1 and not is_stopped else ()
        row_microseconds = row_time(fit) if is_timed else None
        fit.loader.close()
    return TrialOutcome(
        losses=fit.progress.validation_curve,
        row_microseconds=row_microseconds,
        seconds=time.perf_counter() - began,
        cpu_seconds=time.process_time() - cpu_began,
        is_stopped=is_stopped,
        fold_losses=fold_losses,
    )


def sized(job: NeuralJob, share: float) -> NeuralJob:
    """Return the job of a trial on a share of the rows; it compiles nothing, which would take longer than it saves."""
    batch_rows = job.config.num_batch_rows(round(share * job.sample.num_rows)) if share < 1 else job.batch_rows
    return replace(
        job,
        batch_rows=batch_rows,
        micro_batch_rows=min(job.micro_batch_rows, batch_rows),
        config=job.config.model_copy(update={"compile": False}),
    )


def row_time(fit: Fit) -> float | None:
    """Return how long the graph takes that would be served to score one row, in microseconds, on the first member."""
    state = fit.parallel.whole_state()
    if not fit.parallel.member.is_first:
        return None
    rows_BF = fit.loader.rows.read(fit.loader.order.first_pieces(CHECKED_ROWS))
    graph = exported(fit.parallel.shape, fit.parallel.target, state, rows_BF)
    ((row_seconds, _),) = median_seconds([graph], np.ascontiguousarray(rows_BF[:1]))
    return row_seconds * 1e6
