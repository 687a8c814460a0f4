"""Train: candidates, each on a gang of the cluster's workers."""

import itertools
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from infra.bundle.vocabulary import Vocabulary
from infra.clusters import ClusterConfig, client_of, config_of
from infra.gang import GPU, GangShape, run_gang
from infra.storage import Store
from infra.worker_shapes import WorkerShape
from tasks import (
    _boost,
    _candidate,
    _encode,
    _finish,
    _learning,
    _metrics,
    _origin,
    _sample,
    _split,
    _train,
    _training,
    _xgboost,
)
from tasks._candidate import BUNDLE_CODE, Candidate
from tasks._checkpoint import Checkpoints
from tasks._encode import Encoded
from tasks._finish import Trained
from tasks._outcomes import keep_outcome, load_outcomes
from tasks._planner import make_plan
from tasks._plans import Machine, Plan
from tasks._profile import Profile
from tasks._sample import Sample
from tasks._snapshot import Snapshot
from tasks._train import OBJECTIVES, TrainConfig, validation_share
from tasks._training import TrainingJob
from tasks._workload import workload_of
from tasks.split import Split
from tasks.stage import Run, stage

LOG_SECONDS = 5.0
"""Between two batches of losses."""


def machines_of(shapes: Sequence[WorkerShape]) -> list[Machine]:
    """Return workers as the planner knows them."""
    return [
        Machine(
            shape.host,
            shape.threads,
            shape.memory_bytes,
            shape.gpu_bytes,
            host_memory_bytes=shape.host_memory_bytes,
            host_threads=shape.host_threads,
        )
        for shape in shapes
    ]


def plan_training(
    store: Store,
    model: str,
    encoded: Encoded,
    split: Split,
    rows: Sample,
    seen: Profile,
    config: TrainConfig,
    shapes: Sequence[WorkerShape],
) -> Plan:
    """Choose where the training runs, by what earlier ones of this model have taken.

    Raises:
        InputError: the configuration asks for what is not there, or the training fits nowhere.
    """
    vocabulary = Vocabulary.from_json(store.get(encoded.vocabulary).decode())
    work = workload_of(encoded, split.counts, rows, seen, config, vocabulary)
    return make_plan(work, machines_of(shapes), config.plan, load_outcomes(store, model))


def learn_from(run: Run, plan: Plan) -> None:
    """Keep what a training has really taken, if one has run from its first round to its last as it was planned."""
    usage = run.usage
    if usage is None:
        return
    when = datetime.now(UTC).isoformat(timespec="seconds")
    keep_outcome(run.store, run.model, plan.outcome(usage.peak_bytes, usage.seconds, usage.num_rounds, when))


def training_job(
    name: str, snapshot: Snapshot, encoded: Encoded, split: Split, rows: Sample, config: TrainConfig, plan: Plan
) -> TrainingJob:
    """Return all that a worker needs to train; the same inputs give the same job, and so the same model."""
    return TrainingJob(
        model=name,
        encoded=encoded,
        files=snapshot.units[:1],
        rule=split.rule,
        sample=rows,
        config=config.xgboost,
        include_validation=config.include_validation,
        seed=config.seed,
        interval=config.interval,
        threads=plan.threads,
        facts={"model": name, "snapshot": snapshot.fingerprint, "seed": config.seed},
        validation_share=validation_share(split.counts.validation),
        members=plan.members,
        device=plan.device,
        is_external=plan.is_external,
        batch_rows=plan.batch_rows,
        checkpoint_rounds=config.checkpoint_rounds,
    )


@stage(
    cached=True,
    code=(
        _xgboost,
        _boost,
        _training,
        _finish,
        _learning,
        _candidate,
        _encode,
        _metrics,
        _origin,
        _sample,
        _split,
        _train,
        *BUNDLE_CODE,
    ),
    libraries=("xgboost",),
)
def train(run: Run, job: TrainingJob) -> Candidate:
    """Train XGBoost on a gang, in a stream over the shards; one that was interrupted goes on from its checkpoint."""
    checkpoints = Checkpoints(run.store, job)
    attempts: list[tuple[int, bool]] = []
    progress = TrainingProgress(run, OBJECTIVES[job.encoded.schema.task][1], job.base_rounds)

    def args_of(_attempt: int, members: int) -> tuple[object, ...]:
        checkpoint = checkpoints.newest(run.reporter.noted)
        attempts.append((members, checkpoint is None))
        if checkpoint is not None:
            run.reporter.noted(f"Training goes on after {checkpoint.progress.sentence}.")
            progress.take_up(checkpoint.progress.train_curve, checkpoint.progress.validation_curve)
        return run.store, job, checkpoint

    answers: list[Trained] = run_gang(
        client_of(run.cluster),
        shape_of(job, config_of(run.cluster)),
        _xgboost.train,
        args_of,
        on_event=progress.show,
        on_note=run.reporter.noted,
    )
    progress.flush()
    candidate = answers[0].candidate
    assert candidate is not None, "the first member answers with one"
    checkpoints.clear()
    fullest = max(answer.usage.peak_bytes for answer in answers)
    candidate = replace(candidate, peak_bytes=fullest, seconds=answers[0].usage.seconds)
    if attempts == [(job.members, True)]:
        run.usage = replace(answers[0].usage, peak_bytes=fullest)
    run.reporter.noted(candidate.sentence)
    return candidate


def shape_of(job: TrainingJob, cluster: ClusterConfig) -> GangShape:
    """Return on which workers a job's members run, and where they meet."""
    is_gpu = job.device != "cpu"
    # Workers of this machine carry no tags; whether it has a GPU they find out themselves.
    resource = GPU if is_gpu and cluster.address else None
    return GangShape(
        job.members, resource=resource, is_isolated=is_gpu, meeting=_boost.Tracker, port=cluster.training_port
    )


class TrainingProgress:
    """Shows how far a training is: a bar with the loss and the time left, and its losses in MLflow as they come."""

    def __init__(self, run: Run, loss: str, base_rounds: int = 0, stage: str = "train") -> None:
        """Begin now; rounds count on from those of a base."""
        self._run, self._loss, self._stage = run, loss, stage
        self._last: float | None = None
        self._points: list[tuple[str, float, int]] = []
        self._base_rounds = self._next = base_rounds
        """The first round whose losses are not taken in: after a loss some rounds come again."""
        self._logged_at = self._began = time.monotonic()
        self._first: int | None = None

    def take_up(self, train_curve: Sequence[float], validation_curve: Sequence[float]) -> None:
        """Take in the rounds of a training that goes on; the pace is counted anew."""
        self._first = None
        self._add(list(zip(itertools.count(self._base_rounds), train_curve, validation_curve)))

    def _add(self, curve: Sequence[tuple[int, float, float]]) -> None:
        for number, *found in curve:
            if number == self._next:
                self._next += 1
                self._points += [
                    (f"{side}_{self._loss}", loss, number)
                    for side, loss in zip(("train", "validation"), found, strict=True)
                ]

    def show(self, event: dict[str, Any]) -> None:
        """Show an event of the first member."""
        done, num_all = event["done"], event["total"]
        self._add(event["curve"])
        if self._first is None:
            self._began, self._first = time.monotonic(), done
        self._last = event["curve"][-1][2] if event["curve"] else self._last
        # Trees tell losses with every event of the first phase, and none in the second.
        is_again = event.get("phase", 0 if event["curve"] else 1)
        note = "again, on validation rows too" if is_again else "first pass over the rows"
        if not is_again and self._last is not None:
            note = f"validation loss {self._last:.5f}"
        if left := time_left(done - self._first, num_all - done, time.monotonic() - self._began):
            note += f", {left} left at most"
        self._run.reporter.advanced(self._stage, done, num_all, note)
        if time.monotonic() - self._logged_at >= LOG_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Log what is not logged."""
        self._logged_at = time.monotonic()
        self._run.tracking.log_points(self._run.run_id, self._points)
        self._points = []


def time_left(num_done: int, num_left: int, seconds: float) -> str:
    """Return how long the rest takes at the pace so far, for people; nothing while that is not known.

    >>> time_left(100, 300, 60.0), time_left(100, 50, 10.0), time_left(0, 50, 10.0)
    ('3 min', '5 s', '')
    """
    if num_done <= 0 or seconds < 1:
        return ""
    left = seconds / num_done * num_left
    return f"{left / 60:,.0f} min" if left >= 90 else f"{left:.0f} s"
