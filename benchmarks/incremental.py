"""The feature store over 60 files, and again with one file more: what the second time costs, and how much it reads."""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from _feature_store import files_read, preprocess
from _record import print_record, progress
from _tables import write_files

from infra.clusters import ClusterConfig, client_of, cpu_count, open_cluster

NUM_FILES = 60
ROUNDS = 3


def settle(folder: Path) -> None:
    """Wait until no file is as young as a file system's clock is coarse: such files would be read again."""
    newest = max(path.stat().st_ctime for path in folder.iterdir())
    time.sleep(max(0.0, newest + 2.5 - time.time()))


def main() -> None:
    """Run both passes in turn, each time on an empty store, and print the medians' ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="Use smaller files, once.")
    quick = parser.parse_args().quick
    rows_per_file, rounds = (20_000, 1) if quick else (100_000, ROUNDS)
    ratios, read = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "data"
        progress(f"making {NUM_FILES} files of {rows_per_file:,} rows")
        write_files(data, NUM_FILES * rows_per_file, NUM_FILES)
        write_files(folder / "few", 20_000, 2)
        with open_cluster(ClusterConfig(workers=cpu_count(), threads_per_worker=1), folder / "scratch") as cluster:
            client_of(cluster)
            preprocess(folder / "few", folder / "warm", cluster)  # imports, in this process and in the workers
            for number in range(rounds):
                root = folder / f"root-{number}"
                settle(data)
                start = time.perf_counter()
                preprocess(data, root, cluster)
                first = time.perf_counter() - start
                write_files(data, rows_per_file, 1, first=NUM_FILES + number)
                settle(data)
                start = time.perf_counter()
                done = preprocess(data, root, cluster)
                second = time.perf_counter() - start
                ratios.append(second / first)
                read.append(files_read(done))
                progress(f"round {number + 1}: first {first:.2f} s, one more file {second:.3f} s, read {read[-1]}")
                shutil.rmtree(root)
                os.remove(data / f"part-{NUM_FILES + number:04d}.parquet")
    figures = {"time_one_new_of_61": statistics.median(ratios), "files_read": max(read)}
    print_record("incremental", figures, ["polars", "dask", "datasketches"])


if __name__ == "__main__":
    main()
