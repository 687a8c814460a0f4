"""Statistics and encoding to files of 35 columns: Evergreen, Dask DataFrame and Polars alone, in turn.

Evergreen makes mergeable profiles (quantiles, distinct and frequent values) and a hash of every row as well, and writes
its shards through to the disk; the others give means, deviations, gaps and category counts. Evergreen and Dask have the
same worker processes of one thread each, Polars has as many threads.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
from _feature_store import preprocess
from _record import print_record, progress
from _tables import LEVELS, NUM_NUMBERS, write_files

from infra.clusters import ClusterConfig, client_of, cpu_count, open_cluster

ROUNDS = 3
NUMBERS = [f"n{index}" for index in range(NUM_NUMBERS)]
TEXTS = [f"c{index}" for index in range(len(LEVELS))]


def encode_partition(part: Any, types: dict[str, Any]) -> Any:
    """Return a partition's numbers as float32, and the codes of its texts."""
    codes = {name: part[name].astype(kind).cat.codes.astype("int32") for name, kind in types.items()}
    return part[[name for name in part if name not in types]].astype("float32").assign(**codes)


def with_dask(data: Path, output: Path) -> float:
    """Run the Dask DataFrame side, and return a mean to compare."""
    import dask
    import dask.dataframe as dd
    import pandas as pd

    with dask.config.set({"dataframe.convert-string": True}):  # texts in Arrow's memory, faster than objects
        rows = dd.read_parquet(data)  # with filesystem="arrow" this release cannot send to_parquet to a worker
        means, _, _, *counts = dask.compute(
            rows[NUMBERS].mean(),
            rows[NUMBERS].std(),
            rows[NUMBERS].count(),
            *(rows[name].value_counts() for name in TEXTS),
        )
        types = {name: pd.CategoricalDtype(found.index) for name, found in zip(TEXTS, counts, strict=True)}
        meta = {**dict.fromkeys(NUMBERS, "float32"), **dict.fromkeys(TEXTS, "int32")}
        encoded = rows.map_partitions(encode_partition, types, meta=meta)
        encoded.to_parquet(output, compression=None, write_index=False)
    return float(means["n1"])


def with_polars(data: Path, output: Path) -> float:
    """Run Polars alone, and return a mean to compare."""
    rows = pl.scan_parquet(data / "*.parquet")
    statistics_of = [
        rows.select(
            pl.col(NUMBERS).mean().name.prefix("mean "),
            pl.col(NUMBERS).std().name.prefix("deviation "),
            pl.col(NUMBERS).null_count().name.prefix("gaps "),
        ),
        *(rows.group_by(name).len().sort("len", descending=True) for name in TEXTS),
    ]
    measured, *counts = pl.collect_all(statistics_of, engine="streaming")
    kinds = {name: pl.Enum(found.get_column(name)) for name, found in zip(TEXTS, counts, strict=True)}
    encoded = rows.select(
        pl.col(NUMBERS).cast(pl.Float32).fill_null(float("nan")),
        *(pl.col(name).cast(kind).to_physical().cast(pl.Int32) for name, kind in kinds.items()),
    )
    encoded.sink_ipc(output / "rows.arrow", compression="uncompressed", mkdir=True)
    return float(measured.item(0, "mean n1"))


def main() -> None:
    """Run all sides in turn, and print the medians' ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="Use a tenth of the rows, once.")
    quick = parser.parse_args().quick
    num_rows, num_files, rounds = (500_000, 4, 1) if quick else (5_000_000, 20, ROUNDS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        progress(f"making {num_rows:,} rows")
        write_files(folder / "data", num_rows, num_files)
        write_files(folder / "few", 20_000, 2)
        with open_cluster(ClusterConfig(workers=cpu_count(), threads_per_worker=1), folder / "scratch") as cluster:
            client_of(cluster)
            sides: dict[str, Callable[[Path, Path], Any]] = {
                "evergreen": lambda data, output: preprocess(data, output, cluster).profile.columns["n1"].mean,
                "dask": with_dask,
                "polars": with_polars,
            }
            for side in sides.values():  # imports, in this process and in the workers
                side(folder / "few", folder / "output")
                shutil.rmtree(folder / "output")
            seconds: dict[str, list[float]] = {side: [] for side in sides}
            for number in range(rounds):
                means = []
                for side, run in sides.items():
                    start = time.perf_counter()
                    means.append(run(folder / "data", folder / "output"))
                    seconds[side].append(time.perf_counter() - start)
                    shutil.rmtree(folder / "output")
                assert max(means) - min(means) < 1e-6, f"the sides agree on the mean of n1, but got {means}"
                progress(
                    f"round {number + 1}: " + ", ".join(f"{side} {took[-1]:.2f} s" for side, took in seconds.items())
                )
    ours, dask, polars = (statistics.median(seconds[side]) for side in sides)
    figures = {
        "speedup_vs_dask_dataframe": dask / ours,
        "time_vs_polars": ours / polars,
        "seconds": ours,
        "rows": num_rows,
    }
    print_record("encode", figures, ["polars", "dask", "pandas", "pyarrow", "datasketches"])


if __name__ == "__main__":
    main()
