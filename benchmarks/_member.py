"""One training in a process of its own, for benchmarks/planner.py: prints its memory before, its peak and its times."""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import distributed  # noqa: F401  (a worker has it loaded)
import numpy as np
import polars as pl
import pyarrow as pa
import xgboost as xgb

from infra.bundle.encoder import matrix
from infra.bundle.schema import Feature
from infra.memory import give_back, unload
from tasks._costs import Workload
from tasks._encode import frame_of
from tasks._training import PIECE_VALUES, Batch, paged

TRAIN, VALIDATION, HOLDOUT = 0, 1, 2
SHARES = (0.64, 0.16, 0.2)
TARGET, WEIGHT, HASH, SECONDS = "__target", "__weight", "__row", "__time"


@dataclass(frozen=True)
class Job:
    """What a member is told."""

    workload: Workload
    shard: str
    """The file that stands for each of the shards."""
    folder: str
    threads: int
    batch_rows: int
    """Of a page of external memory; 0: in memory."""

    @property
    def features(self) -> tuple[Feature, ...]:
        """Return the numbers and then the categories."""
        numbers = [Feature(f"n{i}", f"n{i}", is_categorical=False) for i in range(self.workload.num_numeric)]
        codes = [Feature(f"c{i}", f"c{i}", is_categorical=True) for i in range(len(self.workload.vocabulary_sizes))]
        return (*numbers, *codes)


def memory(field: str) -> int:
    """Return VmRSS, or VmHWM, the largest that it has been, of this process in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith(f"{field}:")))


def write_shard(path: Path, workload: Workload) -> None:
    """Write a shard of numbers and codes, and of a target that is hard to learn: trees grow to their full depth."""
    rng, rows = np.random.default_rng(0), workload.shard_rows
    columns: dict[str, Any] = {}
    score = rng.normal(size=rows) * 2
    for index in range(workload.num_numeric):
        values = rng.normal(size=rows).astype(np.float32)
        score += np.sin(values * (index + 1)) + values if index < 8 else 0
        share = 0.9 if workload.has_sparse_feature and index == 0 else workload.missing_share
        values[rng.random(rows) < share] = np.nan
        columns[f"n{index}"] = values
    for index, size in enumerate(workload.vocabulary_sizes):
        columns[f"c{index}"] = rng.integers(1, size, rows).astype(np.int32)
        score += np.sin(columns[f"c{index}"])
    borders = np.quantile(score, np.linspace(0, 1, max(2, workload.num_classes) + 1)[1:-1])
    columns[TARGET] = np.digitize(score, borders).astype(np.float32)
    columns |= {WEIGHT: np.ones(rows, np.float32)} if workload.has_weights else {}
    columns |= {HASH: rng.integers(0, 2**63, rows).astype(np.uint64), SECONDS: rng.random(rows)}
    pl.DataFrame(columns).write_ipc(path, compression="uncompressed")


class Batches(xgb.DataIter):
    """Rows of some sides as the member reads them: in pieces of a mapped file, or in pages of so many rows."""

    def __init__(self, job: Job, name: str, *sides: int) -> None:
        self._job, self._sides = job, sides
        self._batches = self._stream()
        cache = {"cache_prefix": f"{job.folder}/{name}"} if job.batch_rows else {}
        super().__init__(release_data=True, **cache)

    def next(self, input_data: Callable[..., Any]) -> bool:
        batch = next(self._batches, None)
        if batch is None:
            return False
        input_data(
            data=batch.x_BF,
            label=batch.label,
            feature_types=["c" if feature.is_categorical else "q" for feature in self._job.features],
            **({} if batch.weight is None else {"weight": batch.weight}),
        )
        return True

    def reset(self) -> None:
        self._batches = self._stream()

    def _stream(self) -> Iterator[Batch]:
        pieces = (piece for index in range(self._job.workload.num_shards) for piece in self._pieces(index))
        return paged(pieces, self._job.batch_rows) if self._job.batch_rows else pieces

    def _pieces(self, index: int) -> Iterator[Batch]:
        features = self._job.features
        size = max(1, PIECE_VALUES // len(features))
        with pa.memory_map(self._job.shard) as source:
            buffer = source.read_buffer()
            frame = frame_of(buffer, None)
            side = np.random.default_rng(index).choice(3, frame.height, p=SHARES)
            rows = np.flatnonzero(np.isin(side, self._sides))
            label = frame.get_column(TARGET).to_numpy()
            weights = frame.get_column(WEIGHT).to_numpy() if WEIGHT in frame.columns else None
            for start in range(0, len(rows), size):
                part = rows[start : start + size]
                piece = Batch(matrix(frame, features, part), label[part], None if weights is None else weights[part])
                unload(buffer.address, buffer.size)
                yield piece
                del piece


def main() -> None:
    """Train as a member does: on one side until the other is judged, then on both."""
    told = json.loads(sys.argv[1])
    job = Job(**{**told, "workload": Workload(**told["workload"])})
    work, before = job.workload, memory("VmRSS")
    kind = xgb.ExtMemQuantileDMatrix if job.batch_rows else xgb.QuantileDMatrix
    objective = {"objective": "binary:logistic"}
    if work.num_classes > 1:
        objective = {"objective": "multi:softprob", "num_class": work.num_classes}
    grown = {"max_depth": work.max_depth, "subsample": 0.8, "colsample_bytree": 0.8, "min_child_weight": 2.0}
    parameters = {**objective, **grown, "max_bin": work.max_bin, "nthread": job.threads, "tree_method": "hist"}

    def build(name: str, *sides: int, ref: Any = None) -> Any:
        batches = Batches(job, name, *sides)
        made = kind(batches, max_bin=work.max_bin, nthread=job.threads, enable_categorical=True, ref=ref)
        give_back()
        return made

    started = time.process_time()
    train = build("train", TRAIN)
    validation = build("validation", VALIDATION, ref=train)
    read = time.process_time()
    xgb.train(parameters, train, work.rounds, evals=[(train, "t"), (validation, "v")], verbose_eval=False)
    trained = time.process_time()
    if work.includes_validation:
        del train, validation
        gc.collect()
        xgb.train(parameters, build("both", TRAIN, VALIDATION), work.rounds, verbose_eval=False)
    times = {"read": read - started, "trained": trained - read}
    print(json.dumps({"before": before, "peak": memory("VmHWM"), **times}))


if __name__ == "__main__":
    main()
