"""Train XGBoost on a gang, shard by shard, in two phases.

A pilot learns from the training rows until the validation rows no longer gain. It tells the number of rounds, and its
scores of the validation rows, on which it has not trained, choose threshold, interval and variant. Then a second
booster learns for as many rounds from the rows of both sides, and is shipped (`train.include_validation`).

A training may have a base, the trees of an earlier version: the pilot begins with the scores of its pilot, the second
booster with those of its final trees, and only the new trees are grown here; at the end of a phase they are put behind
those of the base.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import xgboost as xgb

from infra.bundle.model import Bundle
from infra.bundle.trees import Trees, read_booster
from infra.errors import RunError
from infra.gpus import gpus
from infra.member import Member
from infra.memory import peak_bytes, reset_peak
from infra.progress import report_progress
from infra.storage import Ref, Store, digest_bytes
from tasks._boost import best_round, boosted, communicator, joined, losses, total
from tasks._candidate import Candidate, store_bundle
from tasks._checkpoint import Checkpoint, Checkpoints, Progress
from tasks._finish import Trained, finished, job_vocabulary, validation_scores
from tasks._learning import LearningJob
from tasks._metrics import row_losses
from tasks._reporting import Usage
from tasks._sample import ROW_LOSS
from tasks._split import TRAIN, VALIDATION
from tasks._training import Matrices, TrainingJob, library_parameters

CHECKPOINT_SECONDS = 2.0
"""Between two checkpoints at least: what is lost with a member is this, or a chunk of rounds."""
REPORT_SECONDS = 0.5


@dataclass(frozen=True)
class Pilot:
    """The model of the first phase, cut to its best round, and how its training went."""

    booster: xgb.Booster
    train_curve: tuple[float, ...]
    validation_curve: tuple[float, ...]
    num_train_rows: int
    num_validation_rows: int
    base_loss: float | None
    """Of the base, on the validation rows."""


class Journey:
    """Where a training starts, how it tells how far it is, and where it leaves checkpoints."""

    def __init__(self, member: Member, store: Store, job: TrainingJob, start: Checkpoint | None) -> None:
        """Start at a checkpoint, or at the first round."""
        self.member, self.store, self.job, self.start = member, store, job, start
        self.num_rounds = 0
        self._checkpoints = Checkpoints(store, job)
        self._saved_at = self._told_at = time.monotonic()
        self._curve: list[tuple[int, float, float]] = []

    def rounds(
        self, rows: xgb.DMatrix, others: Sequence[xgb.DMatrix], last: int, progress: Progress
    ) -> Iterator[tuple[int, xgb.Booster]]:
        """Grow a booster to a number of rounds, from where the phase was left."""
        job = self.job
        model = self.store.get(self.start.booster) if self.start and progress.num_rounds else None
        for number, booster in boosted(
            self.parameters,
            rows,
            others,
            range(progress.num_rounds, last),
            # The trees of the base have used the seeds before.
            seed=job.seed + math.ceil(job.base_rounds / job.checkpoint_rounds),
            chunk=job.checkpoint_rounds,
            model=model,
        ):
            self.member.check()
            self.num_rounds += 1
            yield number, booster

    @property
    def parameters(self) -> dict[str, float | int | str]:
        """Return the library's parameters, but for the seed."""
        threads = self.job.threads or self.member.threads
        return {**library_parameters(self.job), **device_of(self.member, self.job), "nthread": threads}

    def passed(self, number: int, last: int, booster: xgb.Booster, progress: Callable[[], Progress]) -> None:
        """Leave a checkpoint at the end of a chunk, if the last one is not just there."""
        is_border = (number + 1) % self.job.checkpoint_rounds == 0 and number + 1 < last
        if self.member.is_first and is_border and time.monotonic() - self._saved_at >= CHECKPOINT_SECONDS:
            self.save(bytes(booster.save_raw("ubj")), progress())

    def save(self, booster: bytes | Ref, progress: Progress) -> None:
        """Leave a checkpoint."""
        self._checkpoints.keep(booster, progress)
        self._saved_at = time.monotonic()
        self.member.saved()

    def tell(self, done: int, num_all: int, found: Mapping[str, float] | None = None, is_last: bool = False) -> None:
        """Report how many rounds there are, with the losses of those since the last time; not each by itself."""
        if not self.member.is_first:
            return
        if found is not None:
            self._curve.append((self.job.base_rounds + done - 1, found["train"], found["validation"]))
        if is_last or time.monotonic() - self._told_at >= REPORT_SECONDS:
            self._told_at = time.monotonic()
            report_progress({"done": done, "total": num_all, "curve": self._curve})
            self._curve = []


def train(member: Member, store: Store, job: TrainingJob, start: Checkpoint | None = None) -> Trained:
    """Train a model as one of a gang, and put its bundle into the store.

    The matrices are built from the shards as a stream, so that memory holds the quantized rows and one shard (about
    1.2 times the raw float32 data), or of rows that stay on disk a few batches. Those of the first phase are gone
    before that of the second is built.
    """
    require_device(job)
    reset_peak()
    began = time.monotonic()
    journey = Journey(member, store, job, start)
    with communicator(member):
        pilot = pilot_of(journey)
        booster, num_rows = pilot.booster, pilot.num_train_rows
        if job.base is not None and booster.num_boosted_rounds() == job.base_rounds:
            num_rows = job.base.num_train_rows
        stored = start.progress.pilot if start else None
        if job.include_validation:
            if member.is_first and stored is None:
                stored = store_booster(store, pilot.booster)
            booster, num_rows = final_phase(journey, pilot, stored)
    usage = Usage(peak_bytes(), time.monotonic() - began, journey.num_rounds)
    return Trained(usage, candidate_of(store, job, pilot, stored, booster, num_rows) if member.is_first else None)


def device_of(member: Member, job: TrainingJob) -> dict[str, str]:
    """Return which GPU a member uses; those of one machine have one each, if they see the same ones."""
    return {} if job.device == "cpu" else {"device": f"cuda:{member.rank % max(1, len(gpus()))}"}


def require_device(job: TrainingJob) -> None:
    """Raise a RunError if this worker lacks the device of a job; no other one takes its place."""
    if job.device != "cpu" and not gpus():
        build = "" if xgb.build_info()["USE_CUDA"] else "; its xgboost is built without CUDA"
        raise RunError(
            f"A training on a GPU needs one, but got device={job.device} on a worker that has gpus=0{build}. "
            'Give the workers GPUs, or set train.plan.device = "cpu".'
        )


def pilot_of(journey: Journey) -> Pilot:
    """Train on the training rows until the validation rows no longer gain, and cut to the best round."""
    member, store, job, start = journey.member, journey.store, journey.job, journey.start
    state = start.progress if start else None
    if state is not None and state.pilot is not None:
        known = (state.train_curve, state.validation_curve, state.num_train_rows, state.num_validation_rows)
        return Pilot(load_booster(store, state.pilot), *known, state.base_loss)
    rounds = job.max_rounds
    base = load_booster(store, job.base.pilot) if job.base else None
    matrices = Matrices(member, store, job)
    rows = matrices.of(TRAIN, base=base)
    judges = matrices.of(VALIDATION, ref=rows, base=base)
    named = [(rows, "train"), (judges, "validation")]
    if state is None:
        before = losses(xgb.Booster(journey.parameters, cache=[rows, judges]), named, -1) if base else None
        counts = total(member, rows.num_row()), total(member, judges.num_row())
        state = Progress(0, (), (), *counts, base_loss=before["validation"] if before else None)
    curves = {"train": list(state.train_curve), "validation": list(state.validation_curve)}
    best, booster = best_round(state.validation_curve, state.base_loss), None
    for number, booster in journey.rounds(rows, [judges], rounds, state):
        found = losses(booster, named, number)
        for name, loss in found.items():
            curves[name].append(loss)
        require_finite(job, found["validation"])
        least = state.base_loss if best < 0 and state.base_loss is not None else curves["validation"][best]
        best = number if found["validation"] < least else best
        is_done = job.rounds is None and number - best >= job.config.early_stopping_rounds
        # A second phase has at most as many rounds; how many is known when it begins.
        is_last = number + 1 == rounds or is_done
        journey.tell(number + 1, rounds * (2 if job.include_validation else 1), found, is_last)
        if is_last:
            break
        journey.passed(number, rounds, booster, functools.partial(progress_of, state, curves))
    assert booster is not None, "a checkpoint is left before the last round"
    whole = progress_of(state, curves)
    num_kept = rounds if job.rounds is not None else best_round(whole.validation_curve, whole.base_loss) + 1
    return Pilot(
        grown(base, booster, num_kept),
        whole.train_curve,
        whole.validation_curve,
        whole.num_train_rows,
        whole.num_validation_rows,
        whole.base_loss,
    )


def grown(base: xgb.Booster | None, added: xgb.Booster, num_rounds: int) -> xgb.Booster:
    """Return the first of the rounds that were grown, after those of a base; without any the base stays as it is."""
    if base is None:
        return added[:num_rounds]
    return joined(base, added[:num_rounds]) if num_rounds else base


def progress_of(state: Progress, curves: Mapping[str, Sequence[float]]) -> Progress:
    """Return the state of a first phase after the rounds of its curves."""
    return replace(
        state,
        num_rounds=len(curves["train"]),
        train_curve=tuple(curves["train"]),
        validation_curve=tuple(curves["validation"]),
    )


def require_finite(job: TrainingJob, loss: float) -> None:
    """Raise a RunError for a loss that is no number."""
    if not np.isfinite(loss):
        name = library_parameters(job)["eval_metric"]
        raise RunError(
            f"A training has a finite loss, but got {name}=nan on the validation rows. "
            "Look for extreme values of the target, and lower train.xgboost.learning_rate."
        )


def final_phase(journey: Journey, pilot: Pilot, stored: Ref | None) -> tuple[xgb.Booster, int]:
    """Train for the pilot's rounds on training and validation rows; return the model and the number of rows.

    Where the pilot added no round to a base, none is added here.
    """
    member, job, start = journey.member, journey.job, journey.start
    rounds, num_done = pilot.booster.num_boosted_rounds() - job.base_rounds, len(pilot.validation_curve)
    base = load_booster(journey.store, job.base.final) if job.base else None
    if job.base is not None and base is not None and not rounds:
        return base, job.base.num_train_rows
    counts = (pilot.num_train_rows, pilot.num_validation_rows, pilot.base_loss)
    state = Progress(0, pilot.train_curve, pilot.validation_curve, *counts, pilot=stored)
    if start is not None and start.progress.pilot is not None:
        state = start.progress
    elif stored is not None:
        journey.save(stored, state)
    matrices = Matrices(member, journey.store, job)
    rows = matrices.of(TRAIN, VALIDATION, base=base)
    num_rows = total(member, rows.num_row())
    booster = None
    for number, booster in journey.rounds(rows, [], rounds, state):
        journey.tell(num_done + number + 1, num_done + rounds, is_last=number + 1 == rounds)
        journey.passed(number, rounds, booster, functools.partial(replace, state, num_rounds=number + 1))
    assert booster is not None, "a checkpoint is left before the last round"
    return grown(base, booster, rounds) if base else booster, num_rows


def candidate_of(
    store: Store, job: TrainingJob, pilot: Pilot, stored: Ref | None, booster: xgb.Booster, num_rows: int
) -> Candidate:
    """Put a trained model into the store as a bundle; `stored` is the pilot, if that is another model."""
    facts = {**job.facts, "num_train_rows": num_rows}
    bundle = Bundle(job.encoded.schema, job_vocabulary(store, job), Trees(booster), facts=facts)
    shipped = store_bundle(store, finished(store, job, bundle, Trees(pilot.booster)))
    num_rounds = pilot.booster.num_boosted_rounds()
    parameters = library_parameters(job)
    is_grown = num_rounds > job.base_rounds
    return Candidate(
        family="xgboost",
        bundle=shipped,
        pilot=stored or shipped.booster,
        num_rounds=num_rounds,
        max_rounds=job.base_rounds + job.max_rounds,
        is_stopped=job.base_rounds + len(pilot.validation_curve) - num_rounds >= job.config.early_stopping_rounds,
        loss=str(parameters["eval_metric"]),
        train_curve=pilot.train_curve,
        validation_curve=pilot.validation_curve,
        importance=importance(booster),
        num_train_rows=pilot.num_train_rows,
        num_validation_rows=pilot.num_validation_rows,
        num_final_rows=num_rows if job.include_validation and is_grown else None,
        parameters=parameters,
        settings=job.config.model_dump(),
        features=tuple(feature.name for feature in job.encoded.schema.features),
        encoding=job.encoded.schema.encoding(),
        base=job.base,
        base_loss=pilot.base_loss,
        refit_of=job.refit_of,
    )


def store_booster(store: Store, booster: xgb.Booster) -> Ref:
    """Put a booster into the store, under the hash of its content."""
    payload = bytes(booster.save_raw("ubj"))
    return store.put(f"pilots/{digest_bytes(payload)[:32]}.ubj", payload)


def load_booster(store: Store, ref: Ref) -> xgb.Booster:
    """Read a booster from the store."""
    return read_booster(store.local(ref))


def pilot_loss(store: Store, job: LearningJob, pilot: Ref, num_rounds: int | None = None) -> float:
    """Return the loss of a pilot, or of its first rounds, on the validation rows of a job."""
    booster = load_booster(store, pilot)
    schema = job.encoded.schema
    bundle = Bundle(schema, job_vocabulary(store, job), Trees(booster[:num_rounds] if num_rounds else booster))
    labels, scores, weights = validation_scores(store, job, bundle)
    known = labels if schema.task == "regression" else labels.astype(np.int64)
    found = row_losses(schema.task, ROW_LOSS[schema.task], known, scores)
    assert found is not None, "these metrics are means over rows"
    mean = float(np.average(found, weights=weights))
    return mean**0.5 if schema.task == "regression" else mean


def importance(booster: xgb.Booster) -> dict[str, float]:
    """Return each feature's share of the total gain, the largest first."""
    gains = {name: float(np.sum(gain)) for name, gain in booster.get_score(importance_type="total_gain").items()}
    total = sum(gains.values()) or 1.0
    return {name: gain / total for name, gain in sorted(gains.items(), key=lambda item: -item[1])}
