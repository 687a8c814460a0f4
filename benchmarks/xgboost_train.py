"""CPU time of training on one worker over that of bare `xgb.train` on the same shards, and how their answers differ.

Both run in one process on one thread, by turns. The bare side has the same rows in the same batches, the same bins and
the same seed for each chunk of rounds; what ours adds are checkpoints, progress and the check for a stop.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import xgboost as xgb
from _record import print_record, progress
from _training import make_job, write_files

from infra.clusters import ClusterConfig, open_cluster
from infra.member import Member
from infra.storage import Store
from tasks import _xgboost
from tasks._checkpoint import Checkpoints
from tasks._split import TRAIN, VALIDATION
from tasks._train import XGBoostConfig
from tasks._training import ShardBatches, TrainingJob, library_parameters

NUM_TURNS = 3


def bare(store: Store, job: TrainingJob) -> xgb.Booster:
    """Train as a script of XGBoost's users does: two matrices, one call."""
    rows = xgb.QuantileDMatrix(ShardBatches(store, job, TRAIN), max_bin=256, nthread=1, enable_categorical=True)
    judges = xgb.QuantileDMatrix(
        ShardBatches(store, job, VALIDATION), max_bin=256, nthread=1, enable_categorical=True, ref=rows
    )
    return xgb.train(
        {**library_parameters(job), "seed": job.seed, "nthread": 1},
        rows,
        job.config.rounds,
        evals=[(rows, "train"), (judges, "validation")],
        early_stopping_rounds=job.config.early_stopping_rounds,
        verbose_eval=False,
    )


def ours(store: Store, job: TrainingJob) -> xgb.Booster:
    """Run the first phase of the train stage, as its only member."""
    Checkpoints(store, job).clear()
    return _xgboost.pilot_of(_xgboost.Journey(Member.alone(), store, job, None)).booster


def cpu_seconds(train: object, store: Store, job: TrainingJob) -> tuple[float, xgb.Booster]:
    """Return the processor time of a training, and its model."""
    began = time.process_time()
    booster = train(store, job)  # type: ignore[operator]
    return time.process_time() - began, booster


def largest_difference(store: Store, job: TrainingJob, first: xgb.Booster, second: xgb.Booster) -> float:
    """Return the largest difference of two models' answers on the validation rows."""
    rows = xgb.QuantileDMatrix(ShardBatches(store, job, VALIDATION), nthread=1, enable_categorical=True)
    last = min(first.num_boosted_rounds(), second.num_boosted_rounds())
    return float(np.abs(first[:last].predict(rows) - second[:last].predict(rows)).max())


def main() -> None:
    """Train by turns, and print the ratio of the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="Use a tenth of the rows.")
    num_rows = 50_000 if parser.parse_args().quick else 500_000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(folder / "data", num_rows, num_files=8)
        with open_cluster(ClusterConfig(workers=1), folder / "scratch") as cluster:
            config = XGBoostConfig(rounds=100, early_stopping_rounds=100)
            store, job, _ = make_job(folder / "data", folder / "root", cluster, config)
        # One seed for all rounds: `xgb.train` knows no chunks.
        job = replace(job, threads=1, checkpoint_rounds=50)
        one_seed = replace(job, checkpoint_rounds=config.rounds)
        taken: dict[str, list[float]] = {"bare": [], "ours": []}
        for turn in range(NUM_TURNS + 1):
            pair = {name: cpu_seconds(train, store, job) for name, train in (("bare", bare), ("ours", ours))}
            if turn:  # the first one loads code
                for side, (seconds, _) in pair.items():
                    taken[side].append(seconds)
                progress(f"bare {taken['bare'][-1]:.2f} s, ours {taken['ours'][-1]:.2f} s")
        difference = largest_difference(store, job, bare(store, one_seed), ours(store, one_seed))
    figures = {
        "cpu_time_vs_bare": statistics.median(taken["ours"]) / statistics.median(taken["bare"]),
        "max_prediction_difference": difference,
        "rows": num_rows,
    }
    print_record("xgboost_train", figures, ["xgboost", "polars"])


if __name__ == "__main__":
    main()
