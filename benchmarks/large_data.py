"""A whole retrain on many times the memory of its workers: 20 GB of CSV in files of 1 GB, two workers of 2 GB each."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import polars as pl
import psutil
from _record import print_record, progress
from _tables import make_rows, varied

GIGABYTE = 10**9
FILE_BYTES = GIGABYTE
CHUNK_ROWS = 250_000
CONFIG = """\
[model]
name = "large"

[data]
source = "data/*.csv"
target = "label"

[sampling]
rows = {sample}

[train.xgboost]
rounds = 100

[cluster]
workers = 2
threads_per_worker = 1
memory_limit = "2GB"
"""


def labelled(rows: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Return rows with a label that some of their numbers tell, as far as it can be told."""
    noise = pl.Series(np.random.default_rng(seed).normal(size=rows.height))
    score = (pl.col("n2") - 2) / 3 - (pl.col("n3") - 3) / 4 + (pl.col("n5") > 5) + noise
    return rows.with_columns(label=pl.when(score > 0).then(pl.lit("yes")).otherwise(pl.lit("no")))


def write_data(folder: Path, num_bytes: int) -> int:
    """Write CSV files of so many bytes, and return the number of their rows."""
    folder.mkdir()
    rows, num_rows, total, seed = make_rows(CHUNK_ROWS), 0, 0, 0
    while total < num_bytes:
        path = folder / f"part-{total // FILE_BYTES:03d}.csv"
        with open(path, "ab") as file:
            before = file.tell()
            labelled(varied(rows, seed), seed).write_csv(file, include_header=before == 0, float_precision=4)
            total += file.tell() - before
        num_rows, seed = num_rows + CHUNK_ROWS, seed + 1
    return num_rows


class WorkerMemory(threading.Thread):
    """Follows the memory of the worker processes below a process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        """Name the process whose descendants are followed until it ends."""
        super().__init__(daemon=True)
        self._process = process
        self.peak_bytes = 0

    def run(self) -> None:
        """Look every fifth of a second."""
        while self._process.poll() is None:
            try:
                for child in psutil.Process(self._process.pid).children(recursive=True):
                    if any("spawn_main" in part for part in child.cmdline()):
                        self.peak_bytes = max(self.peak_bytes, child.memory_info().rss)
            except psutil.Error:
                pass
            time.sleep(0.2)


def main() -> None:
    """Make the data, retrain, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="Use a hundredth of the data.")
    parser.add_argument("--gigabytes", type=float, default=20.0, help="Size of the data.")
    args = parser.parse_args()
    num_bytes = int((0.2 if args.quick else args.gigabytes) * GIGABYTE)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        progress(f"making {num_bytes / GIGABYTE:.1f} GB")
        num_rows = write_data(folder / "data", num_bytes)
        (folder / "evergreen.toml").write_text(CONFIG.format(sample=min(1_000_000, num_rows // 10)))
        evergreen = str(Path(sys.executable).with_name("evergreen"))
        start = time.perf_counter()
        process = subprocess.Popen(
            [evergreen, "retrain", str(folder / "evergreen.toml"), "--json"], stdout=subprocess.PIPE, text=True
        )
        memory = WorkerMemory(process)
        memory.start()
        output = process.communicate()[0]
        seconds = time.perf_counter() - start
        memory.join()
        assert process.returncode == 0, f"the retrain succeeds, but ended with {process.returncode}"
        outcome = json.loads(output.splitlines()[-1])
    stages = {f"seconds_{stage}": facts["seconds"] for stage, facts in outcome["stages"].items()}
    figures = {
        "data_bytes": num_bytes,
        "rows": outcome["rows"]["total"],
        "peak_worker_bytes": memory.peak_bytes,
        "seconds": seconds,
        "auc": outcome["metrics"]["challenger"]["auc"],
        **stages,
    }
    assert num_rows == figures["rows"], f"every row counts, but got {figures['rows']:,} of {num_rows:,}"
    print_record("large_data", figures, ["polars", "dask", "xgboost"])


if __name__ == "__main__":
    main()
