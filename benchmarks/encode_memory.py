"""The largest memory of a worker that profiles and encodes, at growing numbers of rows: it is to stay the same."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from _feature_store import preprocess
from _record import print_record, progress
from _tables import write_files

from infra.clusters import ClusterConfig, client_of, cpu_count, open_cluster

ROWS_PER_FILE = 250_000
MILLION = 1_000_000


def peak_bytes() -> int:
    """Return the largest memory that this process has had.

    The operating system's account of a process (ru_maxrss) begins with that of the one it was forked from.
    """
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))


def peak_of_workers(num_rows: int) -> int:
    """Preprocess files of so many rows on new workers, and return the largest memory of one of them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(folder / "data", num_rows, num_rows // ROWS_PER_FILE)
        with open_cluster(ClusterConfig(workers=cpu_count(), threads_per_worker=1), folder / "scratch") as cluster:
            preprocess(folder / "data", folder / "root", cluster)
            peak = max(client_of(cluster).run(peak_bytes).values())
        shutil.rmtree(folder / "root")
    progress(f"{num_rows:,} rows: {peak / 2**20:,.0f} MiB")
    return peak


def main() -> None:
    """Measure each size, and print the largest memory and how it grows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="Use a twentieth of the rows.")
    sizes = (MILLION, 2 * MILLION) if parser.parse_args().quick else (2 * MILLION, 10 * MILLION, 50 * MILLION)
    peaks = [peak_of_workers(num_rows) for num_rows in sizes]
    figures = {
        "peak_worker_bytes": max(peaks),
        "growth_50m_vs_2m": peaks[-1] / peaks[0],
        "rows": sizes[-1],
    }
    print_record("encode_memory", figures, ["polars", "dask", "datasketches"])


if __name__ == "__main__":
    main()
