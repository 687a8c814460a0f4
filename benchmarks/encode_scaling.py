"""The feature store on one worker and on two, in turn.

What else runs on the machine takes more from two workers than from one, so the figure is of processor time:
that of this process, which is serial, and of the busiest worker. The ratio of the wall times is shown beside it.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from _feature_store import preprocess
from _record import print_record, progress
from _tables import write_files

from infra.clusters import ClusterConfig, client_of, open_cluster

ROUNDS = 3


def timed(data: Path, folder: Path, num_workers: int) -> tuple[float, float]:
    """Preprocess files, and return processor seconds on the longest path and wall seconds."""
    with open_cluster(ClusterConfig(workers=num_workers, threads_per_worker=1), folder / "scratch") as cluster:
        client = client_of(cluster)
        preprocess(folder / "few", folder / "warm", cluster)  # imports in the workers
        before, serial, start = client.run(time.process_time), time.thread_time(), time.perf_counter()
        preprocess(data, folder / "root", cluster)
        wall, serial = time.perf_counter() - start, time.thread_time() - serial
        after = client.run(time.process_time)
    for name in ("warm", "root"):
        shutil.rmtree(folder / name)
    return serial + max(after[worker] - before[worker] for worker in after), wall


def main() -> None:
    """Run both in turn, and print the medians' ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="Use a quarter of the rows, once.")
    quick = parser.parse_args().quick
    num_files, rounds = (10, 1) if quick else (20, ROUNDS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(folder / "data", num_files * (50_000 if quick else 100_000), num_files)
        write_files(folder / "few", 20_000, 2)
        took: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
        for number in range(rounds):
            for num_workers, times in took.items():
                times.append(timed(folder / "data", folder, num_workers))
            progress(f"round {number + 1}: " + ", ".join(f"{n} workers {t[-1]}" for n, t in took.items()))
    busy, wall = ([statistics.median(pair[i] for pair in took[n]) for n in (1, 2)] for i in (0, 1))
    figures = {"speedup_2_workers": busy[0] / busy[1], "wall_speedup_2_workers": wall[0] / wall[1]}
    print_record("encode_scaling", figures, ["polars", "dask"])


if __name__ == "__main__":
    main()
