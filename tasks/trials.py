"""Search the parameters of one family: what a family must tell for it, who trains its trials, who hears of them.

The loop is `tasks._study`'s. A family is a `Learner`: trees are one (`tasks.search`), networks another one
(`tasks.search_neural`).
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Protocol

from pydantic import BaseModel

from infra.clusters import ClusterConfig, client_of, config_of
from infra.gang import GangShape, run_gang
from infra.pool import Pool, Told
from infra.progress import ask_to_stop
from infra.storage import Store
from infra.tracking import RunStatus
from tasks._learning import LearningJob
from tasks._search import Ladder, SearchConfig, SearchResult, Trial, TrialOutcome, TrialState
from tasks._space import Config, Space
from tasks._trainer import Failed, Finished, Follower, Reported, Trainer
from tasks.stage import Run

if TYPE_CHECKING:
    from distributed import Client

    from tasks._study import Search

STATUS: dict[TrialState, RunStatus] = {
    "complete": "FINISHED",
    "pruned": "FINISHED",
    "failed": "FAILED",
    "interrupted": "KILLED",
}
Call = tuple[Callable[..., TrialOutcome], tuple[object, ...]]
"""What trains a trial, and what it takes after the store."""


class Learner(Protocol[Config]):
    """A family on the rows of a job: what a search may try of it, and how a trial is trained."""

    @property
    def label(self) -> str:
        """Return what its stage, and the names of its trials, begin or end with."""

    @property
    def job(self) -> LearningJob:
        """Return the training whose parameters are searched."""

    @property
    def asked(self) -> SearchConfig:
        """Return how long it is searched, and by what budget."""

    @property
    def own(self) -> Config:
        """Return the run's own parameters."""

    @property
    def space(self) -> Space[Config]:
        """Return what may be tried."""

    @property
    def ladder(self) -> Ladder:
        """Return its rungs; those of rows are the same for all families."""

    @property
    def key(self) -> str:
        """Return a hash of all that the loss of a trial depends on, its parameters apart.

        How long to search is no part of it, so that a longer search continues a shorter one; nor are the run's own
        values of the searched parameters, which are tried like others. What limits rounds or epochs is, and the
        budget, since Optuna keeps by how much a trial has missed it.
        """

    def gang(self, cluster: ClusterConfig) -> GangShape | None:
        """Return on which workers a trial is trained together; None: on a worker of its own, beside others."""

    def alone(self, config: Config, share: float, threads: int, memory_limit: int) -> Call:
        """Return how a worker trains parameters on a share of the rows; it may have so much memory, 0: any."""

    def together(self, config: Config, share: float, stop_key: str) -> Call:
        """Return how a member of a gang does, which looks whether it is asked to stop under this key."""

    def forget(self) -> Callable[[], None] | None:
        """Return what frees a worker's memory after the search; None: there is nothing to free."""


def search_of(run: Run, learner: Learner[Config], stage: str) -> SearchResult[Config]:
    """Try parameters until a limit is reached, the run's own first; a search that was killed goes on."""
    study = study_of(run.store, learner)
    known = study.known()
    if known is None:
        with trainer_of(run, learner) as trainer:
            known = study.run(trainer, RunFollower(run, stage, learner))
    return known


def known_search(store: Store, learner: Learner[Config]) -> SearchResult[Config] | None:
    """Return what a search would give, if there is nothing left for it to try."""
    return study_of(store, learner).known()


def study_of(store: Store, learner: Learner[Config]) -> Search[Config]:
    """Return the search of a family, where an earlier one has left it."""
    # A run without a search does not wait for Optuna.
    from infra.journal import StoreJournal
    from tasks._study import Search

    return Search(learner.own, learner.space, learner.asked, learner.ladder, StoreJournal(store, learner.key))


def trainer_of(run: Run, learner: Learner[Config]) -> WorkerTrainer[Config] | GangTrainer[Config]:
    """Return who trains the trials: the workers side by side where each holds all rows, or else a gang of them."""
    shape = learner.gang(config_of(run.cluster))
    client = client_of(run.cluster)
    return (
        WorkerTrainer(client, run.store, learner) if shape is None else GangTrainer(client, run.store, learner, shape)
    )


class WorkerTrainer(Trainer[Config], Generic[Config]):
    """Train each trial on a worker of its own, with all its threads: for rows that one worker holds."""

    def __init__(self, client: Client, store: Store, learner: Learner[Config]) -> None:
        """Start nothing yet."""
        self._client, self._store, self._learner = client, store, learner
        self._pool = Pool(client)
        self._opened = ExitStack()
        self._workers: dict[int, str] = {}

    def __enter__(self) -> WorkerTrainer[Config]:
        """Say that workers are needed."""
        self._opened.enter_context(self._pool)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop what runs, and free the workers' memory."""
        self._opened.close()
        forget = self._learner.forget()
        if forget is not None and self._client.status == "running":
            self._client.run(forget, on_error="ignore")

    def num_idle(self) -> int:
        """Return how many workers have nothing to train."""
        return len(self._pool.idle())

    def expect(self, num_trials: int) -> None:
        """Let a cluster that grows with the work know how much there is."""
        self._pool.expect(num_trials)

    def start(self, number: int, config: Config, share: float) -> None:
        """Train on the worker that has trained the trial before, or else on any idle one."""
        idle = self._pool.idle()
        before = self._workers.get(number)
        worker = before if before in idle else next(iter(idle))
        self._workers[number] = worker
        limit = self._pool.memory_limit(worker)
        function, args = self._learner.alone(config, share, idle[worker], limit)
        self._pool.start(number, worker, function, self._store, *args)

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


class GangTrainer(Trainer[Config], Generic[Config]):
    """Train one trial at a time as the plan trains the model: on a gang, from disk, or on a GPU."""

    def __init__(self, client: Client, store: Store, learner: Learner[Config], shape: GangShape) -> None:
        """Start nothing yet."""
        self._client, self._store, self._learner, self._shape = client, store, learner, shape
        self._messages: SimpleQueue[Reported | Finished | Failed] = SimpleQueue()
        self._threads: dict[int, threading.Thread] = {}
        self._keys: dict[int, str] = {}

    def __enter__(self) -> GangTrainer[Config]:
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

    def start(self, number: int, config: Config, share: float) -> None:
        """Train on all members together."""
        key = self._keys[number] = f"trial-{uuid.uuid4().hex}"
        function, args = self._learner.together(config, share, key)

        def follow(event: dict[str, Any]) -> None:
            if "losses" in event:
                self._messages.put(Reported(number, tuple(event["losses"])))

        def train() -> None:
            try:
                answers = run_gang(
                    self._client,
                    self._shape,
                    function,
                    lambda *_: (self._store, *args),
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

    def __init__(self, run: Run, stage: str, learner: Learner[Any]) -> None:
        """Follow a search of this run."""
        self._run, self._stage, self._learner = run, stage, learner

    def began(self, number: int, config: BaseModel) -> str:
        """Open the trial's run."""
        tracking = self._run.tracking
        tags = {"evergreen.trial": str(number), "evergreen.model": self._run.model}
        run_id = tracking.start_run(f"{self._learner.label} {number}", tags, parent=self._run.run_id)
        tracking.log_params(run_id, config.model_dump())
        return run_id

    def ended(self, trial: Trial, losses: tuple[float, ...]) -> None:
        """Write what came out into the trial's run, and end it."""
        if not trial.run_id:
            return
        tracking = self._run.tracking
        metrics = {
            "loss": trial.loss,
            self._learner.space.unit: trial.rounds,
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
        self._run.reporter.advanced(self._stage, done, total, note)
