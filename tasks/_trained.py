"""What a version was trained from, kept as long as its caches, so that it can be compressed again by itself."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import TypeAdapter

from infra.errors import InputError
from infra.storage import Store
from tasks._cache import Cache
from tasks._candidate import Candidate
from tasks._learning import LearningJob
from tasks._neural.job import NeuralJob
from tasks._training import TrainingJob
from tasks._versions import ModelVersion

KIND = "stages/trained"


@dataclass(frozen=True)
class TrainedTrees:
    """A candidate of trees, with the job that it came of."""

    candidate: Candidate
    metric: str
    job: TrainingJob


@dataclass(frozen=True)
class TrainedNetwork:
    """A candidate that is a network, with the job that it came of."""

    candidate: Candidate
    metric: str
    job: NeuralJob


TREES: TypeAdapter[TrainedTrees] = TypeAdapter(TrainedTrees)
NETWORK: TypeAdapter[TrainedNetwork] = TypeAdapter(TrainedNetwork)


def keep_trained(store: Store, version: ModelVersion, job: LearningJob, candidate: Candidate, metric: str) -> None:
    """Keep what a version came of."""
    cache, key = Cache(store, KIND), f"{version.model}-{version.version}"
    if isinstance(job, NeuralJob):
        cache.keep(f"{key}-network", TrainedNetwork(candidate, metric, job), NETWORK)
    else:
        assert isinstance(job, TrainingJob), "a job is of one of the families"
        cache.keep(f"{key}-trees", TrainedTrees(candidate, metric, job), TREES)


def load_trained(store: Store, version: ModelVersion) -> TrainedTrees | TrainedNetwork:
    """Return what a version came of.

    Raises:
        InputError: it is not kept, or not whole.
    """
    cache, key = Cache(store, KIND), f"{version.model}-{version.version}"
    found = cache.find(f"{key}-trees", TREES) or cache.find(f"{key}-network", NETWORK)
    if found is None:
        raise InputError(
            f"Compressing a version takes the rows and the model that it came of, but got version={version.version} of "
            f"{version.model!r}, for which they are no longer kept. Run evergreen retrain, which compresses as well."
        )
    return found
