"""CPU time of two members over that of `xgboost.dask.train` with two workers, and whether five models are one.

Both run on the same two workers by turns, from Parquet or shards to a model, with as many rounds. The processor time is
that of the workers.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from _record import print_record, progress
from _training import TARGET, make_job, write_files

from infra.clusters import ClusterConfig, client_of, open_cluster
from infra.gang import GangShape, run_gang
from infra.storage import digest_bytes
from tasks import _xgboost
from tasks._boost import Tracker
from tasks._checkpoint import Checkpoints
from tasks._train import XGBoostConfig

NUM_WORKERS = 2
ROUNDS = 100
NUM_TURNS = 5


def cpu_seconds(client: Any, work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the processor time of the workers during some work, and what came of it."""
    before = client.run(time.process_time)
    answer = work()
    after = client.run(time.process_time)
    return sum(after[worker] - before[worker] for worker in before), answer


def main() -> None:
    """Train by turns, and print the ratio of the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="Use a tenth of the rows.")
    num_rows = 100_000 if parser.parse_args().quick else 1_000_000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(folder / "data", num_rows, num_files=8)
        with open_cluster(ClusterConfig(workers=NUM_WORKERS, threads_per_worker=1), folder / "scratch") as cluster:
            client = client_of(cluster)
            config = XGBoostConfig(rounds=ROUNDS, early_stopping_rounds=ROUNDS)
            store, job, counts = make_job(folder / "data", folder / "root", cluster, config, include_validation=False)
            job = replace(job, members=NUM_WORKERS, threads=1)

            def ours() -> str:
                Checkpoints(store, job).clear()
                shape = GangShape(NUM_WORKERS, meeting=Tracker)
                answers = run_gang(client, shape, _xgboost.train, lambda *_: (store, job, None))
                return digest_bytes(store.get(answers[0].candidate.bundle.booster))

            def theirs() -> str:
                import dask.dataframe as dd
                import xgboost.dask as dxgb

                frame = dd.read_parquet(str(folder / "data")).categorize(["city"]).persist()
                train, judges = frame.random_split([1 - counts.validation / num_rows, counts.validation / num_rows])
                rows = dxgb.DaskQuantileDMatrix(
                    client, train.drop(columns=TARGET), train[TARGET], enable_categorical=True
                )
                seen = dxgb.DaskQuantileDMatrix(
                    client, judges.drop(columns=TARGET), judges[TARGET], ref=rows, enable_categorical=True
                )
                parameters = {**config.parameters("binary"), "nthread": 1}
                found = dxgb.train(
                    client, parameters, rows, ROUNDS, evals=[(rows, "train"), (seen, "validation")], verbose_eval=False
                )
                return digest_bytes(bytes(found["booster"].save_raw("ubj")))

            taken: dict[str, list[float]] = {"ours": [], "theirs": []}
            models: dict[str, set[str]] = {"ours": set(), "theirs": set()}
            for turn in range(NUM_TURNS):
                for side, work in (("ours", ours), ("theirs", theirs)):
                    seconds, model = cpu_seconds(client, work)
                    taken[side].append(seconds)
                    models[side].add(model)
                progress(f"turn {turn}: ours {taken['ours'][-1]:.1f} s, xgboost.dask {taken['theirs'][-1]:.1f} s")
    figures = {
        "cpu_time_vs_xgboost_dask": statistics.median(taken["ours"]) / statistics.median(taken["theirs"]),
        "distinct_models_in_5_runs": len(models["ours"]),
        "distinct_models_of_xgboost_dask": len(models["theirs"]),
        "rows": num_rows,
    }
    print_record("xgboost_gang", figures, ["xgboost", "dask", "polars"])


if __name__ == "__main__":
    main()
