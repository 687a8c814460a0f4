"""Train one trial of a search on a gang, for rows that one worker does not hold.

Which rows a tree draws depends on the number of members, so losses are compared with those of gangs as large.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import xgboost as xgb
from numpy.typing import NDArray

from infra.bundle.encoder import matrix
from infra.bundle.trees import Trees
from infra.member import Member
from infra.progress import is_asked_to_stop, report_progress
from infra.storage import Store
from tasks._boost import best_round, boosted, communicator, losses
from tasks._encode import load_shard
from tasks._measure import median_seconds
from tasks._search import TrialOutcome
from tasks._split import TRAIN, VALIDATION
from tasks._train import XGBoostConfig
from tasks._training import Matrices, TrainingJob, library_parameters
from tasks._trial import REPORT_SECONDS, fold_sums, require_finite_trial
from tasks._xgboost import device_of, require_device


def run_gang_trial(
    member: Member, store: Store, job: TrainingJob, config: XGBoostConfig, share: float, stop_key: str
) -> TrialOutcome:
    """Train parameters on a share of the training rows, as one of a gang, as `tasks._trial.run_trial` does on one.

    The first member alone hears that the trial is to end, and tells the others between two rounds.
    """
    require_device(job)
    start, cpu_start = time.perf_counter(), time.process_time()
    job = replace(job, config=config)
    parameters = {**library_parameters(job), **device_of(member, job), "nthread": job.threads or member.threads}
    curve: list[float] = []
    told, told_at, is_stopped = 0, time.monotonic(), False
    with communicator(member):
        matrices = Matrices(member, store, job)
        rows = matrices.of(TRAIN, share=share)
        judges = matrices.of(VALIDATION, ref=rows)
        booster = None
        rounds = range(config.rounds)
        for number, booster in boosted(parameters, rows, [judges], rounds, seed=job.seed, chunk=config.rounds):
            member.check()
            curve.append(losses(booster, [(judges, "validation")], number)["validation"])
            require_finite_trial(job, curve[-1])
            is_stopped = _agreed(member, member.is_first and is_asked_to_stop(stop_key))
            if is_stopped or number - best_round(curve) >= config.early_stopping_rounds:
                break
            if member.is_first and time.monotonic() - told_at >= REPORT_SECONDS:
                report_progress({"losses": curve[told:]})
                told, told_at = len(curve), time.monotonic()
        assert booster is not None, "there is at least one round"
        best = booster[: best_round(curve) + 1]
        folds = fold_sums(job, best, judges) if share == 1 and not is_stopped else None
        fold_losses = _ratios(_summed(member, folds)) if folds is not None else ()
    first = load_shard(store, job.encoded.shards[0]).head(1)
    ((row_seconds, _),) = median_seconds([Trees(best)], matrix(first, job.encoded.schema.features))
    return TrialOutcome(
        losses=tuple(curve),
        row_microseconds=row_seconds * 1e6,
        seconds=time.perf_counter() - start,
        cpu_seconds=time.process_time() - cpu_start,
        is_stopped=is_stopped,
        fold_losses=fold_losses,
    )


def _agreed(member: Member, is_stopped: bool) -> bool:
    """Return what the first member says."""
    return bool(xgb.collective.broadcast(is_stopped, 0)) if member.num_members > 1 else is_stopped


def _summed(member: Member, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Add up arrays of all members."""
    if member.num_members == 1:
        return values
    return xgb.collective.allreduce(values.ravel(), xgb.collective.Op.SUM).reshape(values.shape)


def _ratios(sums: NDArray[np.float64]) -> tuple[float, ...]:
    """Return the mean loss of each part as a share of all, from sums of losses and of weights, shape (2, parts)."""
    return tuple(float(loss) for loss in sums[0] * sums.shape[1] / sums[1].sum())
