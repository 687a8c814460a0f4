"""Made-up tables of 35 columns for the benchmarks of the feature store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

NUM_NUMBERS = 30
LEVELS = (5, 50, 500, 2_000, 5_000)
"""Distinct texts of each text column; a few of them are frequent, most are rare."""
MISSING_SHARE = 0.05
TARGET = "n0"


def make_rows(num_rows: int, seed: int = 0) -> pl.DataFrame:
    """Return rows of 30 numbers, a third of them with gaps, and 5 skewed texts."""
    rng = np.random.default_rng(seed)
    columns: dict[str, pl.Series] = {}
    for index in range(NUM_NUMBERS):
        values = pl.Series(rng.normal(index, 1 + index, num_rows))
        if index % 3 == 1:
            gaps = pl.Series(rng.random(num_rows) < MISSING_SHARE)
            values = pl.select(pl.when(~gaps).then(values)).to_series()
        columns[f"n{index}"] = values
    for index, num_levels in enumerate(LEVELS):
        levels = np.array([f"level {index}-{level}" for level in range(num_levels)])
        columns[f"c{index}"] = pl.Series(levels[np.minimum(rng.zipf(1.3, num_rows), num_levels) - 1])
    return pl.DataFrame(columns)


def varied(rows: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Return other rows like these, faster than they can be drawn: numbers are moved, and columns shifted apart."""
    numbers = [
        (pl.col(f"n{index}") + seed / 1_000).gather((pl.int_range(pl.len()) + seed * (index + 1)) % pl.len())
        for index in range(NUM_NUMBERS)
    ]
    return rows.with_columns(numbers)


def write_files(folder: Path, num_rows: int, num_files: int, first: int = 0) -> None:
    """Write rows into Parquet files of equal length."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = make_rows(num_rows // num_files)
    for index in range(first, first + num_files):
        varied(rows, index).write_parquet(folder / f"part-{index:04d}.parquet")
