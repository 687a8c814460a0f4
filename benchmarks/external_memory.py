"""Training on rows that are four times a worker's memory, and what it costs where they would have fitted.

The worker has a limit at which Dask ends it, of which it uses 290 MiB before it does anything. Rows have 200 features:
what XGBoost keeps of a row beside them, some 60 bytes, stays in memory. The second figure is the CPU time of a size
that fits both ways, by turns. `--quick` trains on as much as the limit.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from _record import print_record, progress
from _training import make_job, write_files

from infra.clusters import ClusterConfig, client_of, open_cluster
from infra.gang import GangShape, run_gang
from infra.storage import Store
from tasks import _xgboost
from tasks._checkpoint import Checkpoints
from tasks._train import XGBoostConfig
from tasks._training import TrainingJob

NUM_FEATURES = 200
ROUNDS = 5
NUM_TURNS = 3
FACTOR, QUICK_FACTOR = 4.2, 1.0
"""Bytes of the rows that are trained on, over the limit."""
HELD_OUT = 0.2
MAX_BIN = 64
"""With 256 bins XGBoost's quantile sketches of 200 features take 600 MB by themselves."""
LIMIT = 1000 * 2**20


def trained(store: Store, job: TrainingJob, cluster: str) -> tuple[float, int]:
    """Train on one worker; return the processor time that it took, and the largest memory."""
    Checkpoints(store, job).clear()
    client = client_of(cluster)
    before = sum(client.run(time.process_time).values())
    (answer,) = run_gang(client, GangShape(1), _xgboost.train, lambda *_: (store, job, None))
    return sum(client.run(time.process_time).values()) - before, answer.usage.peak_bytes


def encoded_job(folder: Path, num_rows: int, num_files: int) -> tuple[Store, TrainingJob, int]:
    """Write rows, encode them on workers without a limit, and return the job and its raw bytes."""
    write_files(folder / "data", num_rows, num_files, NUM_FEATURES)
    with open_cluster(ClusterConfig(), folder / "scratch") as cluster:
        config = XGBoostConfig(rounds=ROUNDS, early_stopping_rounds=ROUNDS, max_bin=MAX_BIN)
        store, job, counts = make_job(folder / "data", folder / "root", cluster, config, include_validation=False)
    return store, replace(job, threads=1), (counts.train + counts.validation) * NUM_FEATURES * 4


def main() -> None:
    """Train what does not fit, then what does in both ways."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="Use a fraction of the rows.")
    is_quick = parser.parse_args().quick
    limit, row = LIMIT, NUM_FEATURES * 4
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        num_rows = int((QUICK_FACTOR if is_quick else FACTOR) * limit / (1 - HELD_OUT) / row)
        store, job, raw = encoded_job(folder / "large", num_rows, max(8, num_rows // 50_000))
        large = replace(job, is_external=True, batch_rows=limit // 20 // row)
        with open_cluster(ClusterConfig(workers=1, memory_limit=f"{limit}B"), folder / "scratch") as cluster:
            seconds, peak = trained(store, large, cluster)
        progress(f"{raw / limit:.1f} times the limit: {seconds:.0f} s, {peak / 2**20:,.0f} of {limit / 2**20:,.0f} MiB")
        store, job, _ = encoded_job(folder / "small", 20_000 if is_quick else 100_000, 8)
        external = replace(job, is_external=True, batch_rows=2_500 if is_quick else 12_500)
        taken: dict[bool, list[float]] = {False: [], True: []}
        with open_cluster(ClusterConfig(workers=1), folder / "scratch") as cluster:
            for _ in range(NUM_TURNS):
                for one in (job, external):
                    taken[one.is_external].append(trained(store, one, cluster)[0])
                progress(f"in memory {taken[False][-1]:.1f} s, on disk {taken[True][-1]:.1f} s of CPU")
    figures = {
        "data_over_memory_limit": raw / limit,
        "peak_over_memory_limit": peak / limit,
        "time_vs_in_memory": statistics.median(taken[True]) / statistics.median(taken[False]),
    }
    print_record("external_memory", figures, ["xgboost", "dask", "polars"])


if __name__ == "__main__":
    main()
