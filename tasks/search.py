"""Search: better parameters than the run's own, tried on the workers of the cluster, each trial a run in MLflow."""

from __future__ import annotations

import threading
import uuid
from contextlib import ExitStack
from dataclasses import replace
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any

from infra.bundle import encoder
from infra.clusters import client_of, config_of
from infra.gang import GangShape, run_gang
from infra.pool import Pool, Told
from infra.progress import ask_to_stop
from infra.storage import Store
from infra.tracking import RunStatus
from tasks import _encode, _gang_trial, _sample, _search, _split, _training, _trial
from tasks._cache import code_version, key_of
from tasks._gang_trial import run_gang_trial
from tasks._search import Ladder, SearchConfig, SearchResult, Trial, TrialState, ladder_of
from tasks._train import XGBoostConfig
from tasks._trainer import Failed, Finished, Follower, Reported, Trainer
from tasks._training import TrainingJob
from tasks._trial import KEPT_MEMORY_FRACTION, forget_matrices, run_trial
from tasks.stage import Run, stage
from tasks.train import shape_of

if TYPE_CHECKING:
    from distributed import Client

    from tasks._study import Search

CODE = (_trial, _gang_trial, _search, _training, _encode, _sample, _split, encoder)
LIBRARIES = ("xgboost", "optuna")
DEFAULT_KEPT_BYTES = 2**30
"""What matrices may take on a worker without a limit of memory."""
STATUS: dict[TrialState, RunStatus] = {
    "complete": "FINISHED",
    "pruned": "FINISHED",
    "failed": "FAILED",
    "interrupted": "KILLED",
}


@stage()
def search(run: Run, job: TrainingJob, config: SearchConfig) -> SearchResult:
    """Try parameters until a limit is reached, the job's own first; a search that was killed goes on."""
    study = study_of(run.store, job, config)
    known = study.known()
    if known is None:
        with trainer_of(run, job) as trainer:
            known = study.run(trainer, RunFollower(run))
    run.reporter.noted(known.sentence)
    return known


def known_search(store: Store, job: TrainingJob, config: SearchConfig) -> SearchResult | None:
    """Return what a search would give, if there is nothing left for it to try."""
    return study_of(store, job, config).known()


def study_of(store: Store, job: TrainingJob, config: SearchConfig) -> Search:
    """Return the search of a job, where an earlier one has left it."""
    # A run without a search does not wait for Optuna.
    from infra.journal import StoreJournal
    from tasks._study import Search

    return Search(job.config, config, job_ladder(job), StoreJournal(store, search_key(job, config)))


def job_ladder(job: TrainingJob) -> Ladder:
    """Return the ladder of a job's training rows."""
    return ladder_of(job.sample.num_rows)


def search_key(job: TrainingJob, config: SearchConfig) -> str:
    """Return a hash of all that the loss of a trial depends on, its parameters apart.

    How long to search is no part of it, so that a longer search continues a shorter one; nor are the run's own values
    of the searched parameters, which are tried like others. What limits the rounds is, and the budget, since Optuna
    keeps by how much a trial has missed it.
    """
    return key_of(
        code_version(CODE, LIBRARIES),
        _trial.data_key(job),
        [job.seed, job.config.rounds, job.config.early_stopping_rounds],
        [config.seed, config.max_row_microseconds],
        [job.members, job.device, job.is_external],
    )


def trainer_of(run: Run, job: TrainingJob) -> WorkerTrainer | GangTrainer:
    """Return who trains the trials: the workers side by side where each holds all rows, or else a gang of them."""
    if job.members == 1 and not job.is_external and job.device == "cpu":
        return WorkerTrainer(client_of(run.cluster), run.store, job)
    return GangTrainer(client_of(run.cluster), run.store, job, shape_of(job, config_of(run.cluster)))


class WorkerTrainer(Trainer):
    """Train each trial on a worker of its own, with all its threads: for rows that one worker holds."""

    def __init__(self, client: Client, store: Store, job: TrainingJob) -> None:
        """Start nothing yet."""
        self._client, self._store, self._job = client, store, job
        self._pool = Pool(client)
        self._opened = ExitStack()
        self._workers: dict[int, str] = {}

    def __enter__(self) -> WorkerTrainer:
        """Say that workers are needed."""
        self._opened.enter_context(self._pool)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop what runs, and free the workers' memory."""
        self._opened.close()
        if self._client.status == "running":
            self._client.run(forget_matrices, on_error="ignore")

    def num_idle(self) -> int:
        """Return how many workers have nothing to train."""
        return len(self._pool.idle())

    def expect(self, num_trials: int) -> None:
        """Let a cluster that grows with the work know how much there is."""
        self._pool.expect(num_trials)

    def start(self, number: int, config: XGBoostConfig, share: float) -> None:
        """Train on the worker that has trained the trial before, or else on any idle one."""
        idle = self._pool.idle()
        before = self._workers.get(number)
        worker = before if before in idle else next(iter(idle))
        self._workers[number] = worker
        limit = self._pool.memory_limit(worker)
        kept_bytes = int(KEPT_MEMORY_FRACTION * limit) if limit else DEFAULT_KEPT_BYTES
        job = replace(self._job, threads=idle[worker])
        self._pool.start(number, worker, run_trial, self._store, job, config, share, kept_bytes)

    def stop(self, number: int) -> None:
        """Ask the worker."""
        self._pool.stop(number)

    def wait(self, timeout_seconds: float) -> Reported | Finished | Failed | None:
        """Return what a worker says next."""
        message = self._pool.next(timeout_seconds)
        if message is None:
            return None
        if isinstance(message, Told):
            return Reported(message.job, tuple(message.event["losses"]))
        if message.error is not None:
            return Failed(message.job, message.error)
        return Finished(message.job, message.answer)


class GangTrainer(Trainer):
    """Train one trial at a time as the plan trains the model: on a gang, from disk, or on a GPU."""

    def __init__(self, client: Client, store: Store, job: TrainingJob, shape: GangShape) -> None:
        """Start nothing yet."""
        self._client, self._store, self._job, self._shape = client, store, job, shape
        self._messages: SimpleQueue[Reported | Finished | Failed] = SimpleQueue()
        self._threads: dict[int, threading.Thread] = {}
        self._keys: dict[int, str] = {}

    def __enter__(self) -> GangTrainer:
        """Have nothing to prepare."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop what runs, and wait for it."""
        for number in list(self._threads):
            self.stop(number)
        for thread in self._threads.values():
            thread.join()

    def num_idle(self) -> int:
        """Return 1 if nothing is trained."""
        return int(not self._threads)

    def expect(self, num_trials: int) -> None:
        """Need no more workers for more trials."""

    def start(self, number: int, config: XGBoostConfig, share: float) -> None:
        """Train on all members together."""
        key = self._keys[number] = f"trial-{uuid.uuid4().hex}"

        def follow(event: dict[str, Any]) -> None:
            if "losses" in event:
                self._messages.put(Reported(number, tuple(event["losses"])))

        def train() -> None:
            try:
                answers = run_gang(
                    self._client,
                    self._shape,
                    run_gang_trial,
                    lambda *_: (self._store, self._job, config, share, key),
                    on_event=follow,
                )
                self._messages.put(Finished(number, answers[0]))
            except Exception as error:
                self._messages.put(Failed(number, error))

        self._threads[number] = threading.Thread(target=train, name=key, daemon=True)
        self._threads[number].start()

    def stop(self, number: int) -> None:
        """Ask all workers: whoever is the first member hears of it."""
        if number in self._threads and self._client.status == "running":
            self._client.run(ask_to_stop, self._keys[number], wait=False, on_error="ignore")

    def wait(self, timeout_seconds: float) -> Reported | Finished | Failed | None:
        """Return what the gang says next."""
        try:
            message = self._messages.get(timeout=timeout_seconds)
        except Empty:
            return None
        if not isinstance(message, Reported):
            self._threads.pop(message.number).join()
        return message


class RunFollower(Follower):
    """Show a search in the run: its progress, and each trial as a run below it in MLflow."""

    def __init__(self, run: Run) -> None:
        """Follow a search of this run."""
        self._run = run

    def began(self, number: int, config: XGBoostConfig) -> str:
        """Open the trial's run."""
        tracking = self._run.tracking
        tags = {"evergreen.trial": str(number), "evergreen.model": self._run.model}
        run_id = tracking.start_run(f"trial {number}", tags, parent=self._run.run_id)
        tracking.log_params(run_id, config.model_dump())
        return run_id

    def ended(self, trial: Trial, losses: tuple[float, ...]) -> None:
        """Write what came out into the trial's run, and end it."""
        if not trial.run_id:
            return
        tracking = self._run.tracking
        metrics = {
            "loss": trial.loss,
            "rounds": trial.rounds,
            "rows_share": trial.rows_share,
            "cpu_seconds": trial.cpu_seconds,
            "row_microseconds": trial.row_microseconds,
        }
        tracking.log_series(trial.run_id, {"validation_loss": losses})
        tracking.log_metrics(trial.run_id, {name: value for name, value in metrics.items() if value is not None})
        state = {"evergreen.state": trial.state.upper()}
        tracking.set_tags(trial.run_id, state | ({"evergreen.why": trial.why} if trial.why else {}))
        tracking.finish(trial.run_id, STATUS[trial.state])

    def progressed(self, done: int, total: int, note: str) -> None:
        """Move the stage's bar."""
        self._run.reporter.advanced("search", done, total, note)
