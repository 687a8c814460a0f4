"""Peak memory that training takes per worker over the raw bytes of its rows: in memory, on disk, and Dask's way.

Two workers with one thread each hold half of the rows, of which none lacks a value; the last figure is of rows where
one column has gaps, which XGBoost keeps in more than twice the bytes. Each side has workers of its own, and what they
use when they start is taken off. Raw bytes are those of the float32 features of all rows that are trained on; labels
and gradients come on top.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from _record import print_record, progress
from _training import TARGET, make_job, write_files

from infra.clusters import ClusterConfig, client_of, open_cluster
from infra.gang import GangShape, run_gang
from infra.memory import peak_bytes, reset_peak
from infra.storage import Store
from tasks import _xgboost
from tasks._boost import Tracker
from tasks._train import XGBoostConfig
from tasks._training import TrainingJob

NUM_FEATURES = 50
NUM_WORKERS = 2
ROUNDS = 10
BATCHES = 8
"""Into which the rows of a worker are divided on disk."""


def settle() -> int:
    """Return what this worker uses before it does anything, and begin to count anew."""
    import polars
    import psutil
    import xgboost

    assert polars and xgboost, "loaded"
    reset_peak()
    return int(psutil.Process().memory_info().rss)


def growth(client: Any, work: Callable[[], object]) -> int:
    """Return by how much the memory of the fullest worker grows during some work."""
    before = client.run(settle)
    work()
    after = client.run(peak_bytes)
    return max(after[worker] - before[worker] for worker in before)


def on_gang(folder: Path, store: Store, job: TrainingJob) -> int:
    """Train on a gang of new workers."""
    shape = GangShape(NUM_WORKERS, meeting=Tracker)
    with open_cluster(ClusterConfig(workers=NUM_WORKERS, threads_per_worker=1), folder / "scratch") as cluster:
        client = client_of(cluster)
        return growth(client, lambda: run_gang(client, shape, _xgboost.train, lambda *_: (store, job, None)))


def in_dask(folder: Path) -> int:
    """Train as XGBoost's own Dask interface is used: a data frame that is kept, and a matrix of it."""
    import dask.dataframe as dd
    import xgboost.dask as dxgb

    def train(client: Any) -> None:
        frame = dd.read_parquet(str(folder / "data")).drop(columns="city").astype("float32").persist()
        rows = frame.drop(columns=TARGET)
        matrix = dxgb.DaskQuantileDMatrix(client, rows, frame[TARGET])
        config = XGBoostConfig(rounds=ROUNDS)
        dxgb.train(client, {**config.parameters("binary"), "nthread": 1}, matrix, ROUNDS)

    with open_cluster(ClusterConfig(workers=NUM_WORKERS, threads_per_worker=1), folder / "scratch") as cluster:
        client = client_of(cluster)
        return growth(client, lambda: train(client))


def measured(folder: Path, num_rows: int, missing: float) -> dict[str, float]:
    """Train on a table each way; return the peaks over the raw bytes of the rows that each way trains on."""
    write_files(folder / "data", num_rows, num_files=2 * BATCHES, num_features=NUM_FEATURES, missing=missing)
    with open_cluster(ClusterConfig(workers=NUM_WORKERS), folder / "scratch") as cluster:
        config = XGBoostConfig(rounds=ROUNDS, early_stopping_rounds=ROUNDS)
        store, job, counts = make_job(folder / "data", folder / "root", cluster, config)
    used = (counts.train + counts.validation) // NUM_WORKERS
    row = NUM_FEATURES * 4
    job = replace(job, members=NUM_WORKERS, threads=1)
    peaks = {"memory": on_gang(folder, store, job) / (used * row)}
    progress(f"in memory: {peaks['memory']:.2f} of {used * row / 2**20:,.0f} MiB")
    if not missing:
        peaks["disk"] = on_gang(folder, store, replace(job, is_external=True, batch_rows=used // BATCHES)) / (
            used * row
        )
        peaks["dask"] = in_dask(folder) / (num_rows / NUM_WORKERS * row)
        progress(f"on disk: {peaks['disk']:.2f}, in Dask: {peaks['dask']:.2f}")
    return peaks


def main() -> None:
    """Train each way, and print the peaks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="Use a seventh of the rows.")
    num_rows = 600_000 if parser.parse_args().quick else 4_000_000
    with tempfile.TemporaryDirectory() as name:
        dense = measured(Path(name) / "dense", num_rows, missing=0.0)
        shutil.rmtree(Path(name) / "dense")
        gaps = measured(Path(name) / "gaps", num_rows, missing=0.05)
    figures = {
        "peak_vs_raw": dense["memory"],
        "peak_vs_raw_external": dense["disk"] - 1 / BATCHES,
        "dask_matrix_peak_vs_raw": dense["dask"],
        "peak_vs_raw_with_gaps": gaps["memory"],
        "rows": num_rows,
    }
    print_record("xgboost_memory", figures, ["xgboost", "dask", "polars"])


if __name__ == "__main__":
    main()
