"""Compact trees with two runtimes against the same trees under XGBoost alone: time of any batch, size, loading."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import xgboost as xgb
from _record import print_record, progress
from _sets import MADE_UP, QUICK, REAL, DataSet, prepare
from numpy.typing import NDArray

import infra.lean_xgboost  # noqa: F401  first
from infra.bundle.encoder import matrix
from infra.bundle.trees import Trees
from tasks._onnx_trees import forest_of
from tasks._runtimes import edge_rows, packaged, shortest
from tasks._split import TRAIN
from tasks._training import ShardBatches, library_parameters

BATCH_ROWS = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
SHAPES = ((60, 5), (500, 8))
"""Rounds and depth: of a small model, as compression leaves it, and of a large one."""
QUICK_SHAPES = ((60, 5), (150, 7))
NUM_LOADS = 5
NUM_ALONE = 1000


@dataclass(frozen=True)
class Case:
    """What was measured of one model."""

    name: str
    regret: float
    """Longest time of our choice over that of the better runtime, of all numbers of rows."""
    regret_rows: int
    row_speedup: float
    row_microseconds: float
    bare_row_microseconds: float
    """The same trees under XGBoost alone."""
    size_ratio: float
    load_ratio: float
    load_seconds: float
    crossover: int
    packaging_seconds: float
    row_vs_batch: float
    """Largest difference of a row's score alone to that in a batch."""
    difference: float
    """Largest difference to XGBoost's own score, over the largest score where that is above 1."""


def cases_of(one: DataSet, source: Path, folder: Path, shapes: tuple[tuple[int, int], ...]) -> Iterator[Case]:
    """Train trees of some shapes on a set, package and measure them."""
    prepared = prepare(one, source, folder)
    job, store = prepared.trees, prepared.store
    train = xgb.QuantileDMatrix(ShardBatches(store, job, TRAIN), max_bin=256, nthread=2, enable_categorical=True)
    rows_BF = matrix(prepared.held_out(), job.encoded.schema.features)
    for rounds, depth in shapes:
        parameters = {**library_parameters(job), "max_depth": depth, "nthread": 2, "seed": 0}
        name = f"{one.name}, {rounds} rounds of depth {depth}"
        yield measured(name, xgb.train(parameters, train, rounds), rows_BF)


def measured(name: str, booster: xgb.Booster, rows_BF: NDArray[np.float32]) -> Case:
    """Package trees, and measure them with one thread."""
    start = time.perf_counter()
    found = packaged(Trees(booster), rows_BF)
    packaging_seconds = time.perf_counter() - start
    ours = found.predictor
    assert isinstance(ours, Trees)
    assert ours.graphs is not None, found.notes
    plain = Trees(booster)
    for trees in (plain, ours):
        trees.use_one_thread()
    few, many = (replace(ours, crossover=limit) for limit in (BATCH_ROWS[-1], 0))
    for trees in (few, many, ours, plain):
        trees.scores(rows_BF[:1])  # the first call reads the graphs
    regrets, row_seconds, bare_seconds = [], 0.0, 0.0
    for num_rows in BATCH_ROWS:
        rows = np.resize(rows_BF, (num_rows, rows_BF.shape[1]))
        *both, chosen, bare = shortest([few, many, ours, plain], rows)
        # The choice is one of both: what disturbed only one of two timings of the same calls is no regret.
        chosen = min(chosen, both[num_rows > ours.crossover])
        regrets.append(chosen / min(*both, chosen))
        if num_rows == 1:
            row_seconds, bare_seconds = chosen, bare
    checked = edge_rows(rows_BF, forest_of(booster))
    known, batch = plain.scores(checked), ours.scores(checked)
    alone = np.concatenate([ours.scores(checked[i : i + 1]) for i in range(NUM_ALONE)])
    load_seconds, load_bare = loads(ours, plain, rows_BF[:1])
    return Case(
        name=name,
        regret=max(regrets),
        regret_rows=BATCH_ROWS[int(np.argmax(regrets))],
        row_speedup=bare_seconds / row_seconds,
        row_microseconds=row_seconds * 1e6,
        bare_row_microseconds=bare_seconds * 1e6,
        size_ratio=plain.num_bytes / ours.num_bytes,
        load_ratio=load_seconds / load_bare,
        load_seconds=load_seconds,
        crossover=ours.crossover,
        packaging_seconds=packaging_seconds,
        row_vs_batch=float(np.abs(alone - batch[:NUM_ALONE]).max()),
        difference=float(np.abs(batch - known).max()) / max(1.0, float(np.abs(known).max())),
    )


def loads(ours: Trees, plain: Trees, row: NDArray[np.float32]) -> tuple[float, float]:
    """Return the shortest times to read both from their files and score a row, in turns."""
    found = []
    with tempfile.TemporaryDirectory() as name:
        folders = Path(name, "ours"), Path(name, "plain")
        for trees, folder in zip((ours, plain), folders, strict=True):
            folder.mkdir()
            trees.save(folder)
        for _ in range(NUM_LOADS):
            turn = []
            for folder in folders:
                start = time.perf_counter()
                Trees.load(folder, crossover=ours.crossover).scores(row)
                turn.append(time.perf_counter() - start)
            found.append(turn)
    load_ours, load_plain = np.min(found, axis=0)
    return float(load_ours), float(load_plain)


def figures_of(cases: list[Case]) -> dict[str, float]:
    """Return the worst of all cases; small and large models of the same sets follow one another."""
    small, large = cases[::2], cases[1::2]
    against = [two.bare_row_microseconds / one.row_microseconds for one, two in zip(small, large, strict=True)]
    return {
        "runtime_regret": max(case.regret for case in cases),
        "row_speedup_same_model": min(case.row_speedup for case in cases),
        "row_speedup_small_model": min(case.row_speedup for case in small),
        "row_speedup_small_vs_large": min(against),
        "row_microseconds_small_model": max(case.row_microseconds for case in small),
        "size_ratio": min(case.size_ratio for case in cases),
        "load_time_vs_plain": max(case.load_ratio for case in cases),
        "load_seconds": max(case.load_seconds for case in cases),
        "row_vs_batch_difference": max(case.row_vs_batch for case in cases),
        "difference_to_xgboost": max(case.difference for case in cases),
        "packaging_seconds": max(case.packaging_seconds for case in cases),
        "models": len(cases),
    }


def main() -> None:
    """Measure two models on each set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="Use two small made-up sets.")
    parser.add_argument("--data", type=Path, default=os.environ.get("EVERGREEN_DATA"), help="Folder of the real sets.")
    parser.add_argument("--sets", nargs="+", help="Names of those to take.")
    args = parser.parse_args()
    sets = QUICK if args.quick else REAL if args.data else MADE_UP
    names = [one.name for one in sets]
    if unknown := set(args.sets or []) - set(names):
        sys.exit(f"A set is one of {', '.join(names)}, but got sets={', '.join(sorted(unknown))}. Correct --sets.")
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        for number, one in enumerate(one for one in sets if one.name in (args.sets or names)):
            shapes = QUICK_SHAPES if args.quick else SHAPES
            for case in cases_of(one, Path(args.data or ""), Path(folder) / str(number), shapes):
                cases.append(case)
                progress(str(case))
    print_record("tree_runtimes", figures_of(cases), ["xgboost", "onnxruntime", "onnx"])


if __name__ == "__main__":
    main()
