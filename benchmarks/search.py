"""A search against the default parameters on held-out rows, and against one that trains every trial to its end."""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import xgboost as xgb
from _record import print_record, progress

from infra.clusters import ClusterConfig, client_of, open_cluster
from infra.journal import StoreJournal
from infra.storage import Store
from tasks._encode import Encoded, load_shard
from tasks._fingerprints import known_snapshot
from tasks._kinds import infer_schema
from tasks._sample import Sample, SampleRule
from tasks._search import Ladder, SearchConfig, SearchResult, Trial, ladder_of, leading, shown
from tasks._snapshot import DataConfig, Snapshot
from tasks._space import TREES
from tasks._split import (
    HOLDOUT,
    TRAIN,
    VALIDATION,
    SideCounts,
    SplitConfig,
    SplitRule,
    add_counts,
    count_sides,
    make_rule,
)
from tasks._study import Search
from tasks._train import XGBoostConfig
from tasks._training import ShardBatches, TrainingJob, library_parameters
from tasks.encode import encode_units
from tasks.profile import profile_units
from tasks.search import Trees
from tasks.trials import WorkerTrainer

MODEL = "benchmark"
NUM_SEEDS = 3
"""Trainings of which the holdout loss is the mean."""


def make_rows(num_rows: int) -> pl.DataFrame:
    """Return rows whose target is a smooth function of some of their numbers and texts, with a third of noise."""
    rng = np.random.default_rng(0)
    numbers = {f"n{i}": rng.normal(size=num_rows) for i in range(20)}
    codes = {f"c{i}": rng.integers(0, levels, num_rows) for i, levels in enumerate((5, 40, 300))}
    effects = {name: rng.normal(size=300)[code] for name, code in codes.items()}
    signal = 2 * np.sin(2 * numbers["n0"]) * numbers["n1"] + numbers["n2"] * numbers["n3"] + numbers["n4"] ** 2
    signal = signal + np.abs(numbers["n5"] + numbers["n6"]) + effects["c0"] + effects["c1"] * numbers["n7"]
    target = signal + 0.5 * effects["c2"] + rng.normal(size=num_rows)
    texts = {name: pl.Series(code).cast(pl.String) for name, code in codes.items()}
    return pl.DataFrame({**numbers, **texts, "y": target}).cast({pl.Float64: pl.Float32})


def job_of(store: Store, cluster: str, data: DataConfig, rounds: int) -> TrainingJob:
    """Take files to a training job, as a retrain does."""
    snapshot: Snapshot = known_snapshot(store, MODEL, data, Path())
    seen, _ = profile_units(store, cluster, snapshot, data.time)
    schema = infer_schema(seen, data, None, None)
    encoded, _ = encode_units(store, MODEL, cluster, snapshot, schema, seen, data)
    rule = make_rule(SplitConfig(), schema, None)
    counts = sides_of(store, encoded, rule)
    return TrainingJob(
        model=MODEL,
        encoded=encoded,
        files=snapshot.units[:1],
        rule=rule,
        sample=Sample(SampleRule(), counts.train, counts.train),
        config=XGBoostConfig(rounds=rounds),
        include_validation=False,
        seed=0,
        interval=None,
        threads=1,
        facts={},
    )


def sides_of(store: Store, encoded: Encoded, rule: SplitRule) -> SideCounts:
    """Count the rows of each side."""
    labels = len(encoded.schema.labels)
    return add_counts([count_sides(load_shard(store, shard, rule.columns), rule, labels) for shard in encoded.shards])


class Watcher:
    """Writes the progress to standard error."""

    def __init__(self, what: str) -> None:
        """Name what is followed."""
        self._what, self._told_at = what, 0.0

    def began(self, number: int, config: XGBoostConfig) -> str:
        """Do nothing."""
        return ""

    def ended(self, trial: Trial, losses: tuple[float, ...]) -> None:
        """Do nothing."""

    def progressed(self, done: int, total: int, note: str) -> None:
        """Say it every few seconds."""
        if time.monotonic() - self._told_at > 5:
            self._told_at = time.monotonic()
            progress(f"{self._what}: {done} of {total} {note}")


def searched(
    store: Store, cluster: str, job: TrainingJob, config: SearchConfig, ladder: Ladder
) -> SearchResult[XGBoostConfig]:
    """Run one search from its beginning."""
    name = "pruned" if ladder.factor > 1 else "whole"
    search = Search(job.config, TREES, config, ladder, StoreJournal(store, name))
    with WorkerTrainer(client_of(cluster), store, Trees(job, config)) as trainer:
        return search.run(trainer, Watcher(name))


def holdout_loss(store: Store, job: TrainingJob, config: XGBoostConfig, threads: int) -> float:
    """Return the loss on the holdout of a model that the validation rows have stopped."""
    job, losses = replace(job, config=config, threads=threads), []
    settings = {"max_bin": config.max_bin, "nthread": threads, "enable_categorical": True}
    train = xgb.QuantileDMatrix(ShardBatches(store, job, TRAIN), **settings)
    held, validation = (
        xgb.QuantileDMatrix(ShardBatches(store, job, side), ref=train, **settings) for side in (HOLDOUT, VALIDATION)
    )
    parameters = library_parameters(job)
    for seed in range(NUM_SEEDS):
        curves: dict[str, dict[str, list[float]]] = {}
        booster = xgb.train(
            {**parameters, "seed": 100 + seed, "nthread": threads},
            train,
            num_boost_round=config.rounds,
            evals=[(held, "holdout"), (validation, "validation")],
            early_stopping_rounds=config.early_stopping_rounds,
            evals_result=curves,
            verbose_eval=False,
        )
        losses.append(curves["holdout"][str(parameters["eval_metric"])][booster.best_iteration])
    return float(np.mean(losses))


def main() -> None:
    """Make or read the data, search twice, and print what both took and gave."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="Use fewer rows and trials.")
    parser.add_argument("--data", nargs="+", help="Files to use instead of made-up rows.")
    parser.add_argument("--target", default="y", help="Their target.")
    parser.add_argument("--ignore", nargs="*", default=[], help="Columns of theirs to leave out.")
    parser.add_argument("--rows", type=int, help="How many rows are made up.")
    parser.add_argument("--trials", type=int, help="Trials of each search.")
    parser.add_argument("--seed", type=int, default=0, help="Another one tries other parameters.")
    args = parser.parse_args()
    num_rows, num_trials = args.rows or (4_000 if args.quick else 100_000), args.trials or (10 if args.quick else 40)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not args.data:
            make_rows(num_rows).write_parquet(folder / "rows.parquet")
        source = [str(Path(path).resolve()) for path in args.data or [folder / "rows.parquet"]]
        data = DataConfig(source=source, target=args.target, ignore=args.ignore)
        store = Store(str(folder / "root"))
        with open_cluster(ClusterConfig(workers=2, threads_per_worker=1), folder / "scratch") as cluster:
            job = job_of(store, cluster, data, 400 if args.quick else 2000)
            ladder = ladder_of(job.sample.num_rows)
            config = SearchConfig(trials=num_trials, seed=args.seed)
            found = searched(store, cluster, job, config, ladder)
            progress(found.sentence)
            whole = searched(store, cluster, job, config, Ladder((1.0,), factor=1))
            progress(whole.sentence)
        before, after, best = (
            holdout_loss(store, job, parameters, threads=1) for parameters in (job.config, found.config, whole.config)
        )
    compute, compute_whole = (sum(trial.cpu_seconds for trial in result.trials) for result in (found, whole))
    loss, loss_whole = (shown(result.trial(leading(result.trials, result.own)).loss) for result in (found, whole))
    figures = {
        "holdout_gain": 1 - after / before,
        "holdout_gain_no_pruning": 1 - best / before,
        "compute_vs_no_pruning": compute / compute_whole,
        "validation_loss_vs_no_pruning": loss / loss_whole,
        "holdout_loss_default": before,
        "holdout_loss_searched": after,
        "trials": num_trials,
        "train_rows": job.sample.num_rows,
        "cpu_seconds": compute,
        "cpu_seconds_per_default": compute / found.trial(found.own).cpu_seconds,
    }
    print_record("search", figures, ["xgboost", "optuna", "dask"])


if __name__ == "__main__":
    main()
