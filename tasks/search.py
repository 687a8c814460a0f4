"""Search: better parameters of the trees than the run's own, tried on the workers of the cluster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from infra.bundle import encoder
from infra.clusters import ClusterConfig
from infra.gang import GangShape
from tasks import _encode, _gang_trial, _learning, _sample, _search, _space, _split, _training, _trial
from tasks._cache import code_version, key_of
from tasks._gang_trial import run_gang_trial
from tasks._learning import data_key
from tasks._search import Ladder, SearchConfig, SearchResult, ladder_of
from tasks._space import TREES, Space
from tasks._train import XGBoostConfig
from tasks._training import TrainingJob
from tasks._trial import KEPT_MEMORY_FRACTION, forget_matrices, run_trial
from tasks.stage import Run, stage
from tasks.train import shape_of
from tasks.trials import Call, search_of

CODE = (_trial, _gang_trial, _search, _space, _learning, _training, _encode, _sample, _split, encoder)
LIBRARIES = ("xgboost", "optuna")
DEFAULT_KEPT_BYTES = 2**30
"""What matrices may take on a worker without a limit of memory."""


@dataclass(frozen=True)
class Trees:
    """XGBoost, whose parameters are searched; see `tasks.trials.Learner`."""

    job: TrainingJob
    asked: SearchConfig
    label = "trial"

    @property
    def own(self) -> XGBoostConfig:
        """Return the run's own parameters."""
        return self.job.config

    @property
    def space(self) -> Space[XGBoostConfig]:
        """Return what may be tried."""
        return TREES

    @property
    def ladder(self) -> Ladder:
        """Return its rungs; how far a training goes is known when the run's own parameters have."""
        return ladder_of(self.job.sample.num_rows)

    @property
    def key(self) -> str:
        """Return a hash of all that the loss of a trial depends on, its parameters apart."""
        job = self.job
        return key_of(
            code_version(CODE, LIBRARIES),
            data_key(job),
            [job.seed, job.config.rounds, job.config.early_stopping_rounds],
            [self.asked.seed, self.asked.max_row_microseconds],
            [job.members, job.device, job.is_external],
        )

    def gang(self, cluster: ClusterConfig) -> GangShape | None:
        """Return the members of the training, or None where one worker holds all rows."""
        is_alone = self.job.members == 1 and not self.job.is_external and self.job.device == "cpu"
        return None if is_alone else shape_of(self.job, cluster)

    def alone(self, config: XGBoostConfig, share: float, threads: int, memory_limit: int) -> Call:
        """Return how a worker trains a trial; it keeps matrices for the next ones."""
        kept_bytes = int(KEPT_MEMORY_FRACTION * memory_limit) if memory_limit else DEFAULT_KEPT_BYTES
        return run_trial, (replace(self.job, threads=threads), config, share, kept_bytes)

    def together(self, config: XGBoostConfig, share: float, stop_key: str) -> Call:
        """Return how a member of a gang does."""
        return run_gang_trial, (self.job, config, share, stop_key)

    def forget(self) -> Callable[[], None]:
        """Return what frees the memory of a worker's matrices."""
        return forget_matrices


@stage()
def search(run: Run, job: TrainingJob, config: SearchConfig) -> SearchResult[XGBoostConfig]:
    """Try parameters until a limit is reached, the job's own first; a search that was killed goes on."""
    found = search_of(run, Trees(job, config), "search")
    run.reporter.noted(found.sentence)
    return found
