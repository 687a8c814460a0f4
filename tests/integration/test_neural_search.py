"""A search for networks on real workers: it is stopped and goes on, side by side or on a gang."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import pytest
from _neural_jobs import CONFIG, job_of, table

from infra.clusters import ClusterConfig, open_cluster
from infra.ledger import Ledger
from infra.tracking import PARENT_TAG, Tracking, default_uri
from tasks._neural.config import NeuralConfig
from tasks._neural.job import NeuralJob
from tasks._reporting import SilentReporter
from tasks._search import SearchConfig, SearchResult
from tasks.search_neural import Networks, search_neural
from tasks.stage import Run
from tasks.trials import known_search

NUM_ROWS = 2000
FAST = CONFIG.model_copy(update={"learning_rate": 0.08, "epochs": 3})
"""Faster than the space has it: in three epochs nothing slower gets as far."""


class Impatient(SilentReporter):
    """Ends the process, as Ctrl-C does, once some trials are done."""

    def advanced(self, stage: str, done: int, total: int, note: str) -> None:
        assert "search neural" == stage
        if done >= 2:
            raise KeyboardInterrupt


@dataclass(frozen=True)
class Place:
    """A run on a cluster of two workers, and a job whose shards are stored."""

    run: Run
    job: NeuralJob


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Open a cluster of two workers."""
    folder = tmp_path_factory.mktemp("search")
    store, job = job_of(folder, table(NUM_ROWS), config=FAST)
    tracking = Tracking(default_uri(folder), (folder / "artifacts").as_uri(), "loans")
    with open_cluster(ClusterConfig(workers=2, threads_per_worker=1), folder / "scratch") as address:
        run_id = tracking.start_run("retrain", {})
        yield Place(Run("loans", store, Ledger(store, "loans"), tracking, run_id, address, folder), job)


def searched(run: Run, job: NeuralJob, trials: int) -> SearchResult[NeuralConfig]:
    """Search without Prefect."""
    function = cast(Any, search_neural).__wrapped__
    return cast(SearchResult[NeuralConfig], function(run, job, planned_as(job), SearchConfig(trials=trials)))


def planned_as(job: NeuralJob) -> Any:
    """Return what plans a network that has no pieces: other parameters change nothing else."""
    return lambda config: (replace(job, config=config), None)


def test_a_search_that_was_stopped_goes_on_and_ends_with_what_is_best(place: Place) -> None:
    """What ran is tried again, and the own parameters stay where none is better; each trial is a run in MLflow."""
    run, job = place.run, place.job
    learner = Networks(job, planned_as(job), SearchConfig(trials=7))
    with pytest.raises(KeyboardInterrupt):
        searched(replace(run, reporter=Impatient()), job, 7)
    assert known_search(run.store, learner) is None
    result = searched(run, job, 7)
    again = known_search(run.store, learner)
    states = Counter(trial.state for trial in result.trials)
    own = result.trial(result.own)

    assert again is not None and (True, result.trials) == (again.is_reused, again.trials)
    assert 7 == len(result.trials) - states["interrupted"]
    assert 1 <= states["interrupted"] <= 2
    assert states["pruned"] > 0
    assert (FAST, 0, 0) == (result.config, result.own, result.best)
    assert ("complete", FAST.learning_rate) == (own.state, own.parameters["learning_rate"])
    runs = {trial.number: run.tracking._client.get_run(trial.run_id) for trial in result.trials}
    assert {(f"neural trial {number}", run.run_id) for number in runs} == {
        (one.info.run_name, one.data.tags[PARENT_TAG]) for one in runs.values()
    }
    assert [trial.state.upper() for trial in result.trials] == [
        runs[trial.number].data.tags["evergreen.state"] for trial in result.trials
    ]
    assert (own.loss, own.rounds) == tuple(runs[0].data.metrics[name] for name in ("loss", "epochs"))
    assert 3 == len(run.tracking._client.get_metric_history(own.run_id, "validation_loss"))


def test_a_gang_trains_one_trial_at_a_time(place: Place) -> None:
    """Where a plan has two members each trial has both, and loses as it does on one of them."""
    gang = searched(place.run, replace(place.job, members=2), 2)
    alone = searched(place.run, place.job, 2)

    assert gang.trial(0).loss == pytest.approx(alone.trial(0).loss, abs=1e-5)
    assert gang.trial(0).fold_losses == pytest.approx(alone.trial(0).fold_losses, abs=1e-4)
    assert 2 == len(gang.trials)
