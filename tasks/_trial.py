"""Train one trial of a search on one worker.

Trials of a search differ in parameters alone, so a worker keeps the matrices between them: rows are read and put into
bins once for each share of the rows and each number of bins, and not once for each trial.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xgboost as xgb
from numpy.typing import NDArray

from infra.bundle.encoder import matrix
from infra.bundle.trees import Trees
from infra.errors import RunError
from infra.progress import is_stop_requested, report_progress
from infra.storage import Store
from tasks._cache import key_of
from tasks._encode import load_shard
from tasks._learning import data_key
from tasks._measure import median_seconds
from tasks._metrics import row_losses
from tasks._search import NUM_FOLDS, TrialOutcome
from tasks._split import TRAIN, VALIDATION
from tasks._train import XGBoostConfig
from tasks._training import ShardBatches, TrainingJob, library_parameters

REPORT_SECONDS = 0.1
NUM_KEPT = 2
"""Pairs of matrices that a worker keeps."""
KEPT_MEMORY_FRACTION = 0.4
"""Share of a worker's memory that they may take together; the newest pair is kept in any case."""
BYTES_PER_ROW = 24
"""Label, prediction, gradient and hessian, beside the bins."""


@dataclass(frozen=True)
class Matrices:
    """What the trials of one share and one number of bins train on."""

    train: xgb.QuantileDMatrix
    validation: xgb.QuantileDMatrix
    x_BF: np.ndarray
    """A few rows, to time predictions; shape (rows, features)."""

    @property
    def num_bytes(self) -> int:
        """About how much memory they take: a bin is one byte, or two if there are more than 256."""
        return sum(m.num_row() * (2 * m.num_col() + BYTES_PER_ROW) for m in (self.train, self.validation))


class KeptMatrices:
    """The newest matrices of this process, in bounded memory; any thread may ask."""

    def __init__(self) -> None:
        """Keep nothing yet."""
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Matrices] = OrderedDict()

    def __len__(self) -> int:
        """Count what is kept."""
        return len(self._kept)

    def get(self, key: str, make: Callable[[], Matrices], max_bytes: int) -> Matrices:
        """Return what is kept under a key, or make it and let go of the oldest until all that is kept fits."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            while len(self._kept) >= NUM_KEPT or (self._kept and 2 * self._num_bytes() > max_bytes):
                self._kept.popitem(last=False)  # before the new ones are built: both would be in memory
            made = self._kept[key] = make()
            while len(self._kept) > 1 and self._num_bytes() > max_bytes:
                self._kept.popitem(last=False)
            return made

    def clear(self) -> None:
        """Let go of all."""
        with self._lock:
            self._kept.clear()

    def _num_bytes(self) -> int:
        return sum(matrices.num_bytes for matrices in self._kept.values())


kept_matrices = KeptMatrices()


def forget_matrices() -> None:
    """Free the memory of this worker after a search."""
    kept_matrices.clear()


class _Followed(xgb.callback.TrainingCallback):
    """Report losses in portions, and end when that is asked for."""

    def __init__(self) -> None:
        self._num_told = 0
        self._told_at = time.monotonic()

    def after_iteration(self, model: xgb.Booster, epoch: int, evals_log: dict[str, Any]) -> bool:
        now = time.monotonic()
        if now - self._told_at >= REPORT_SECONDS:
            losses = next(iter(evals_log["validation"].values()))
            report_progress({"losses": [float(loss) for loss in losses[self._num_told :]]})
            self._num_told, self._told_at = len(losses), now
        return is_stop_requested()


def run_trial(
    store: Store, job: TrainingJob, config: XGBoostConfig, share: float, max_bytes: int = 2**31
) -> TrialOutcome:
    """Train parameters on a share of the training rows until the validation rows no longer gain; runs on a worker.

    It ends early when that is asked for, and returns what it has. Losses are reported as they come.

    Args:
        store: Where the shards are.
        job: The rows, the seed and the threads; its own parameters do not count.
        config: The parameters.
        share: Of the training rows; all validation rows judge.
        max_bytes: What matrices may take that are kept for the next trial.

    Raises:
        RunError: the loss is not finite.
    """
    start, cpu_start = time.perf_counter(), time.process_time()
    job = replace(job, config=config)
    key = key_of(data_key(job), share, config.max_bin, job.threads)
    kept = kept_matrices.get(key, lambda: make_matrices(store, job, share), max_bytes)
    curves: dict[str, dict[str, list[float]]] = {}
    parameters = library_parameters(job)
    booster = xgb.train(
        {**parameters, "seed": job.seed, "nthread": job.threads},
        kept.train,
        num_boost_round=config.rounds,
        evals=[(kept.validation, "validation")],
        early_stopping_rounds=config.early_stopping_rounds,
        evals_result=curves,
        verbose_eval=False,
        callbacks=[_Followed()],
    )
    loss = str(parameters["eval_metric"])
    losses = curves["validation"][loss]
    require_finite_trial(job, *losses)
    best = booster[: losses.index(min(losses)) + 1]
    ((row_seconds, _),) = median_seconds([Trees(best)], kept.x_BF)
    is_stopped = is_stop_requested()
    return TrialOutcome(
        losses=tuple(losses),
        row_microseconds=row_seconds * 1e6,
        seconds=time.perf_counter() - start,
        cpu_seconds=time.process_time() - cpu_start,
        is_stopped=is_stopped,
        fold_losses=fold_losses(job, best, kept.validation) if share == 1 and not is_stopped else (),
    )


def fold_losses(job: TrainingJob, booster: xgb.Booster, rows: xgb.DMatrix) -> tuple[float, ...]:
    """Return a model's loss on NUM_FOLDS parts of some rows; of rmse the square. Their mean is the loss of all rows.

    Rows of a DMatrix keep their order, so that the parts are the same for all models.
    """
    sums = fold_sums(job, booster, rows)
    num_folds = min(NUM_FOLDS, rows.num_row())
    return tuple(float(loss) for loss in sums[0, :num_folds] * num_folds / sums[1].sum())


def fold_sums(job: TrainingJob, booster: xgb.Booster, rows: xgb.DMatrix) -> NDArray[np.float64]:
    """Return the sums of a model's losses and of the weights on parts of some rows, shape (2, NUM_FOLDS)."""
    task = job.encoded.schema.task
    losses = row_losses(task, "rmse" if task == "regression" else "log_loss", rows.get_label(), booster.predict(rows))
    assert losses is not None, "both are means over rows"
    weights = rows.get_weight() if rows.get_weight().size else np.ones(len(losses))
    part = np.arange(len(losses)) % NUM_FOLDS
    return np.stack([np.bincount(part, weights=w, minlength=NUM_FOLDS) for w in (losses * weights, weights)])


def require_finite_trial(job: TrainingJob, *losses: float) -> None:
    """Raise a RunError for a loss that is no number."""
    if not np.isfinite(losses).all():
        raise RunError(
            f"A trial has a finite loss, but got {library_parameters(job)['eval_metric']}=nan on the validation rows. "
            "Look for extreme values of the target, if other trials fail too."
        )


def make_matrices(store: Store, job: TrainingJob, share: float) -> Matrices:
    """Put the rows of both sides into bins."""
    settings: dict[str, Any] = {"max_bin": job.config.max_bin, "nthread": job.threads, "enable_categorical": True}
    train = xgb.QuantileDMatrix(ShardBatches(store, job, TRAIN, share=share), **settings)
    validation = xgb.QuantileDMatrix(ShardBatches(store, job, VALIDATION), ref=train, **settings)
    rows = load_shard(store, job.encoded.shards[0]).head(1)
    return Matrices(train, validation, matrix(rows, job.encoded.schema.features))
