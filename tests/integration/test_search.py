"""A search on real workers: it is killed and goes on, its trials are runs in MLflow, its workers may die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import pytest
from _stoppable import wait_or_die

from infra.bundle.schema import Column, Schema
from infra.clusters import ClusterConfig, client_of, open_cluster
from infra.errors import RunError
from infra.ledger import Ledger
from infra.pool import Ended, Pool, Told
from infra.storage import Store
from infra.tracking import PARENT_TAG, Tracking, default_uri
from tasks._encode import ROW, TARGET, Encoded, Shard, row_hash
from tasks._sample import Sample, SampleRule
from tasks._search import SearchConfig, SearchResult
from tasks._split import SplitRule
from tasks._train import XGBoostConfig
from tasks._training import TrainingJob
from tasks.search import Trees, search
from tasks.stage import Run
from tasks.trials import known_search, study_of

ROOT = Path(__file__).parents[2]
N = 12_000
TRIALS = 10
CONFIG = SearchConfig(trials=TRIALS)
SCHEMA = Schema(
    (Column("x", "numeric"), Column("z", "numeric"), Column("k", "categorical"), Column("y", "numeric")),
    target="y",
    task="binary",
    labels=("no", "yes"),
)


def job_in(folder: Path) -> tuple[Store, TrainingJob]:
    """Put two shards in the store of a folder, and describe a training on them."""
    rng = np.random.default_rng(0)
    x, z, code = rng.normal(size=N), rng.normal(size=N), rng.integers(-1, 4, N)
    rows = pl.DataFrame(
        {
            "x": pl.Series(x, dtype=pl.Float32),
            "z": pl.Series(z, dtype=pl.Float32),
            "k": pl.Series(code, dtype=pl.Int32),
            TARGET: pl.Series(np.sin(3 * x) * z + 0.3 * code + rng.normal(size=N) > 0, dtype=pl.Float32),
            ROW: row_hash(pl.DataFrame({"i": np.arange(N)}), ("i",)),
        }
    )
    store, shards = Store(str(folder / "root")), []
    for i in range(2):
        part = rows.gather_every(2, i)
        part.write_ipc(folder / f"{i}.arrow")
        shards.append(Shard(store.put_file(f"shards/{i}", folder / f"{i}.arrow"), part.height, 0, {}, {}))
    vocabulary = store.put("vocabulary.json", b'{"k": ["a", "b", "c"]}')
    return store, TrainingJob(
        model="loans",
        encoded=Encoded(SCHEMA, vocabulary, tuple(shards), 0),
        files=(),
        rule=SplitRule("row", 0.1, 0.15),
        sample=Sample(SampleRule(), N, N),
        config=XGBoostConfig(rounds=400, learning_rate=0.03),
        include_validation=False,
        seed=0,
        interval=None,
        threads=1,
        facts={},
    )


@contextmanager
def open_run(folder: Path, run_id: str | None = None) -> Iterator[Run]:
    """Open a run on a cluster of two workers."""
    store = Store(str(folder / "root"))
    tracking = Tracking(default_uri(folder), (folder / "artifacts").as_uri(), "loans")
    with open_cluster(ClusterConfig(workers=2, threads_per_worker=1), folder / "scratch") as address:
        run_id = run_id or tracking.start_run("retrain", {})
        yield Run("loans", store, Ledger(store, "loans"), tracking, run_id, address, folder)


def searched(run: Run, job: TrainingJob, config: SearchConfig) -> SearchResult:
    """Search without Prefect."""
    return cast(SearchResult, cast(Any, search).__wrapped__(run, job, config))


def wait_for_trials(store: Store, job: TrainingJob, num_trials: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until another process has finished some trials and runs others."""
    deadline = time.monotonic() + 90
    while len(study_of(store, Trees(job, CONFIG)).trials()) < num_trials:
        assert process.poll() is None and time.monotonic() < deadline, "the search ended before it was killed"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a search that was killed in its midst."""
    folder = tmp_path_factory.mktemp("search")
    store, job = job_in(folder)
    process = subprocess.Popen(
        [sys.executable, __file__, str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for_trials(store, job, 3, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return folder


def test_a_gang_trains_one_trial_at_a_time(tmp_path: Path) -> None:
    """Where the rows are on two workers each trial has both; the losses are about those of one worker."""
    _, job = job_in(tmp_path)
    short = replace(job, config=XGBoostConfig(rounds=60, learning_rate=0.2))
    config = SearchConfig(trials=3)
    with open_run(tmp_path) as run:
        gang = searched(run, replace(short, members=2), config)
        alone = searched(run, short, config)
    first, other = gang.trial(0), alone.trial(0)

    assert [("complete", 1.0)] == [(trial.state, trial.rows_share) for trial in gang.trials[:1]]
    assert first.loss is not None and other.loss is not None
    assert abs(first.loss - other.loss) < 0.01
    assert {len(gang.trials), len(alone.trials)} == {3}
    assert sum(first.fold_losses) / len(first.fold_losses) == pytest.approx(first.loss, rel=1e-4)


def test_a_killed_search_goes_on(killed: Path) -> None:
    """Trials that were done stay as they were, what ran is tried again under new numbers, and nothing is lost.

    Each trial is a run below the search's in MLflow, with its parameters, its losses and how it ended.
    """
    store, job = job_in(killed)
    before = study_of(store, Trees(job, CONFIG))
    done = before.trials()
    assert 3 <= len(done) < TRIALS
    assert known_search(store, Trees(job, CONFIG)) is None
    with open_run(killed) as run:
        result = searched(run, job, CONFIG)
        again = searched(run, job, CONFIG)
        tracking, run_id = run.tracking, run.run_id
    states = Counter(trial.state for trial in result.trials)

    # A trial that began earlier may have been at work when a later one was done.
    assert list(done) == [result.trial(trial.number) for trial in done]
    assert list(range(len(result.trials))) == [trial.number for trial in result.trials]
    assert 1 <= states["interrupted"] <= 2
    assert TRIALS == len(result.trials) - states["interrupted"]
    assert states["pruned"] > 0
    own, best = result.trial(result.own), result.trial(result.best)
    assert (0, "complete") == (own.number, own.state)
    assert best.loss is not None and own.loss is not None and best.loss <= own.loss
    assert (True, result.config, result.trials) == (again.is_reused, again.config, again.trials)
    assert result.config == getattr(known_search(store, Trees(job, CONFIG)), "config", None)

    runs = {trial.number: tracking._client.get_run(trial.run_id) for trial in result.trials}
    statuses = {"complete": "FINISHED", "pruned": "FINISHED", "interrupted": "KILLED"}
    assert [statuses[trial.state] for trial in result.trials] == [runs[t.number].info.status for t in result.trials]
    assert [trial.state.upper() for trial in result.trials] == [
        runs[trial.number].data.tags["evergreen.state"] for trial in result.trials
    ]
    last = max(runs)
    assert (run_id, f"trial {last}") == (runs[last].data.tags[PARENT_TAG], runs[last].info.run_name)
    assert run_id != runs[0].data.tags[PARENT_TAG]
    assert str(own.parameters["max_depth"]) == runs[0].data.params["max_depth"]
    history = tracking._client.get_metric_history(own.run_id, "validation_loss")
    assert min(point.value for point in history) == own.loss == runs[0].data.metrics["loss"]


def test_jobs_report_stop_fail_and_die(tmp_path: Path) -> None:
    """One job at a time is on a worker; it ends when it is told to, and its error or its worker's death is heard."""
    with (
        open_cluster(ClusterConfig(workers=2, threads_per_worker=1), tmp_path) as address,
        Pool(client_of(address)) as pool,
    ):
        first, second = pool.idle()
        pool.start(0, first, wait_or_die, "wait")
        pool.start(1, second, wait_or_die, "fail")
        assert {} == pool.idle()
        heard = heard_of(pool, 1)
        assert [Told, Ended] == [type(message) for message in heard]
        assert "A job works, but got how=fail" in str(cast(Ended, heard[-1]).error)
        assert [second] == list(pool.idle())
        pool.stop(0)
        assert Ended(0, "wait") == heard_of(pool, 0)[-1]
        pool.start(2, second, wait_or_die, "die")
        lost = heard_of(pool, 2)[-1]
        assert isinstance(lost, Ended) and isinstance(lost.error, RunError)
        assert "A worker must survive its task, but got worker=lost for task=wait_or_die" in str(lost.error)
        pool.start(3, first, wait_or_die, "wait")
        pool.stop(3)
        assert Ended(3, "wait") == heard_of(pool, 3)[-1]


_heard: list[Told | Ended] = []


def heard_of(pool: Pool, job: int) -> list[Told | Ended]:
    """Return the messages of a job up to its end; those of others are kept."""
    deadline = time.monotonic() + 60
    while not any(isinstance(message, Ended) and message.job == job for message in _heard):
        assert time.monotonic() < deadline, f"job {job} has not ended"
        if message := pool.next(timeout_seconds=0.5):
            _heard.append(message)
    return [message for message in _heard if message.job == job]


if __name__ == "__main__":
    with open_run(Path(sys.argv[1])) as opened:
        searched(opened, job_in(Path(sys.argv[1]))[1], CONFIG)
