"""Search: better parameters of a network than the run's own, by the rules and on the rows of the trees' search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from types import ModuleType

from infra.bundle import encoder
from infra.clusters import ClusterConfig
from infra.errors import InputError
from infra.gang import GangShape
from tasks import _encode, _learning, _sample, _search, _space, _split
from tasks._cache import code_version, key_of
from tasks._learning import data_key
from tasks._neural.config import NeuralConfig
from tasks._neural.job import NeuralJob
from tasks._neural.plan import NetworkPlan
from tasks._neural.space import network_space
from tasks._search import Ladder, SearchConfig, SearchResult, ladder_of
from tasks._space import Space
from tasks.stage import Run, stage
from tasks.train_neural import MODULES, shape_of
from tasks.trials import Call, search_of

CODE: tuple[ModuleType | str, ...] = (
    *(f"tasks._neural.{name}" for name in (*MODULES, "space", "trial")),
    *(_search, _space, _learning, _encode, _sample, _split, encoder),
)
LIBRARIES = ("torch", "tabm", "rtdl_num_embeddings", "optuna")
UNTOLD = ("checkpoint_seconds", "compile", "micro_batch_rows", "recompute", "spread", "window_rows")
"""Settings that change no loss but by rounding."""
EPOCH_SHARES = (1 / 3, 1.0)
"""One rung, later than the first of the trees: between what later and earlier ones cost and lose; see docs/log.md."""

Planned = Callable[[NeuralConfig], tuple[NeuralJob, NetworkPlan]]
"""Returns the job and the plan of a training with other parameters."""


@dataclass(frozen=True)
class Networks:
    """Networks, whose parameters are searched; see `tasks.trials.Learner`."""

    job: NeuralJob
    planned: Planned
    asked: SearchConfig
    label = "neural trial"

    @property
    def own(self) -> NeuralConfig:
        """Return the run's own parameters."""
        return self.job.config

    @cached_property
    def space(self) -> Space[NeuralConfig]:
        """Return what may be tried: what fits the workers divided as the run's own network is."""
        return network_space(self.job, self._fits)

    @property
    def ladder(self) -> Ladder:
        """Return its rungs; the whole way are the epochs in which the learning rate falls, whoever is best before."""
        rows = ladder_of(self.job.sample.num_rows)
        return replace(rows, way=float(self.job.max_epochs), round_shares=EPOCH_SHARES)

    @property
    def key(self) -> str:
        """Return a hash of all that the loss of a trial depends on, its searched parameters apart."""
        job, dimensions = self.job, self.space.dimensions
        left_out = {*UNTOLD, *(dimension.name for dimension in dimensions)}
        return key_of(
            code_version(CODE, LIBRARIES),
            data_key(job),
            [job.seed, job.config.model_dump(mode="json", exclude=left_out), job.batch_rows, job.max_epochs],
            list(dimensions),
            [self.asked.seed, self.asked.max_row_microseconds],
            [job.members, job.parallelism, job.device],
        )

    def gang(self, cluster: ClusterConfig) -> GangShape | None:
        """Return the members of the training, or None where it has a single one on a CPU."""
        return None if self.job.members == 1 and self.job.device == "cpu" else shape_of(self.job, cluster)

    def alone(self, config: NeuralConfig, share: float, threads: int, memory_limit: int) -> Call:
        """Return how a worker trains a trial."""
        from tasks._neural.trial import run_trial  # torch, for those who train networks

        return run_trial, (replace(self._trial_job(config), threads=threads), share, self._is_timed)

    def together(self, config: NeuralConfig, share: float, stop_key: str) -> Call:
        """Return how a member of a gang does."""
        from tasks._neural.trial import run_gang_trial

        return run_gang_trial, (self._trial_job(config), share, self._is_timed, stop_key)

    def forget(self) -> None:
        """Return nothing: a worker keeps no rows."""

    @property
    def _is_timed(self) -> bool:
        return self.asked.max_row_microseconds is not None

    def _trial_job(self, config: NeuralConfig) -> NeuralJob:
        """Return the job of other parameters, on as many members as the run's own."""
        job, _ = self.planned(config)
        return replace(job, members=self.job.members, parallelism=self.job.parallelism)

    def _fits(self, config: NeuralConfig) -> bool:
        try:
            job, _ = self.planned(config)
        except InputError:
            return False
        return job.parallelism == self.job.parallelism


@stage()
def search_neural(run: Run, job: NeuralJob, planned: Planned, config: SearchConfig) -> SearchResult[NeuralConfig]:
    """Try parameters until a limit is reached, the job's own first; a search that was killed goes on."""
    found = search_of(run, Networks(job, planned, config), "search neural")
    run.reporter.noted(f"Network: {found.sentence}")
    return found
