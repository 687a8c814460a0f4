"""What a training costs: bytes and seconds, from counts alone.

The formulas follow what XGBoost 3.2 keeps (gradient_index.cc, column_matrix.h, hist_cache.h); their constants were
fitted to measured trainings (docs/log.md, benchmarks/planner.py). Nothing here looks at a row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

MIB = 2**20
BASE_BYTES = 260 * MIB
"""A worker that has loaded Dask, Polars and XGBoost and has done nothing yet."""

FLOAT_BYTES = 4
ROW_POINTER_BYTES, LABEL_BYTES, WEIGHT_BYTES = 8, 4, 4
SPARSE_ROW_BYTES = 8
"""XGBoost keeps the row number of every value as soon as one column is mostly empty."""
HISTOGRAM_BYTES = 16
"""Sum of gradients and of curvatures of a bin, in double precision."""
TRAINING_ROW_BYTES, TRAINING_CLASS_BYTES = 21, 23
"""Of a row that is learnt from: positions, samples; and for each class gradients, scores and their copies."""
VALIDATION_CLASS_BYTES = 8
GANG_HISTOGRAMS = 1.15
"""Members of a gang hold histograms of each other while they add them up."""
PAGES = 3
"""Pages of an external-memory matrix that are mapped at once; it reads ahead."""
EXTERNAL_ROW_BYTES = 16
"""Of a row, held beside the pages."""

READING_BYTES = 30 * MIB
"""Pieces of a shard on their way to XGBoost."""
READING_ROW_BYTES = 40
"""Of a row of the shard that is read: its side, whether it is in the sample, its position."""
SKETCH_LEVEL_ROWS = 8
"""Rows of a level of a quantile sketch for each bin (quantile.h)."""
SKETCH_ENTRY_BYTES = 16
"""Of an entry; each level holds as many as all levels have rows, and one more level is being merged."""
SKETCH_SHARE = 0.6
"""Of the sketches' memory, what the matrix that is filled after them can't use."""
KEPT_SHARE, MAX_KEPT = 0.4, 90 * MIB
"""How much of the memory for reading is neither returned nor of use to the training that follows."""

SKETCH_SECONDS = 1.5e-7
"""Per value, to read it twice, sketch it and find its bin; this and the next three measured on one thread."""
BUILD_SECONDS = 5e-10
"""Per value, level of a tree and class, to add it to a histogram (at the default subsample and colsample_bytree)."""
ROW_SECONDS = 1.5e-8
"""Per row, level and class: gradients, scores, positions and the loss."""
BIN_SECONDS = 1.2e-8
"""Per bin and node: clear, subtract and search a histogram."""
THREADS_EXPONENT, MAX_USEFUL_THREADS = 0.65, 16
"""16 cores are 6 times as fast as one, and more of them hardly help (GBM-perf; not measured here)."""
EXTERNAL_FACTOR = 1.5
"""Pages are read anew for every level of every tree."""
GANG_START_SECONDS, GANG_LEVEL_SECONDS, GANG_BYTES_PER_SECOND = 2.0, 2e-3, 5e8
"""To meet; to wait for each other at each level; to add up histograms."""

GPU_START_SECONDS, GPU_SKETCH_SECONDS, GPU_LEVEL_SECONDS = 3.0, 3e-9, 3e-4
GPU_BUILD_SECONDS = 2.3e-11
"""Per value, level and class: 10 million rows, 100 trees of depth 10 in 3.6 s on an H100 (GBM-perf)."""
GPU_EXTERNAL_FACTOR = 3.0
GPU_CONTEXT_BYTES = 500 * MIB
GPU_HOST_BYTES = 700 * MIB
"""Of a process that uses CUDA. No figure of a GPU here is measured; the first runs correct them."""
GPU_ROW_BYTES = 40
"""Of a row and class: 100 million rows of 13 features took 6 GB on a V100 (GBM-perf)."""


@dataclass(frozen=True)
class Workload:
    """What is to be learnt, in counts."""

    num_train_rows: int
    num_validation_rows: int
    num_numeric: int
    vocabulary_sizes: tuple[int, ...] = ()
    """Codes of each categorical feature."""
    num_classes: int = 1
    """Trees of a round: 1, or the classes of a multiclass model."""
    rounds: int = 2000
    max_depth: int = 6
    max_bin: int = 256
    num_shards: int = 1
    largest_shard_rows: int = 0
    """All rows of that shard, used or not; 0: an even share."""
    has_weights: bool = False
    includes_validation: bool = True
    """A second training follows, on the rows of both sides."""
    missing_share: float = 0.0
    """Of the values; with any at all XGBoost keeps four bytes more of each value."""
    used_share: float = 1.0
    """Of the rows of a shard; the others are held out or not in the sample."""
    has_sparse_feature: bool = False
    """At least one feature is missing in more than 80% of the rows."""

    @property
    def num_rows(self) -> int:
        """Count the rows that are learnt from or stopped by."""
        return self.num_train_rows + self.num_validation_rows

    @property
    def num_features(self) -> int:
        """Count the features."""
        return self.num_numeric + len(self.vocabulary_sizes)

    @property
    def num_values(self) -> int:
        """Count rows times features."""
        return self.num_rows * self.num_features

    @property
    def shard_rows(self) -> int:
        """Return the rows of the largest shard."""
        return max(self.largest_shard_rows, math.ceil(self.num_rows / self.used_share / max(1, self.num_shards)), 1)

    @property
    def total_bins(self) -> int:
        """Return the bins of all features together."""
        return self.num_numeric * self.max_bin + sum(self.vocabulary_sizes)

    @property
    def bin_bytes(self) -> int:
        """Return the bytes of a bin's number; the feature with the most bins decides it for all.

        >>> Workload(1000, 0, num_numeric=3).bin_bytes, Workload(1000, 0, 3, vocabulary_sizes=(5000,)).bin_bytes
        (1, 2)
        """
        most = max((self.max_bin, *(size + 1 for size in self.vocabulary_sizes)))
        return 1 if most <= 2**8 else 2 if most <= 2**16 else 4

    @property
    def value_bytes(self) -> float:
        """Return the bytes of one quantized value: its bin by row and once more by column.

        >>> Workload(1000, 0, num_numeric=3).value_bytes
        2.0
        """
        if self.missing_share == 0 and not self.has_sparse_feature:
            return 2.0 * self.bin_bytes
        sparse = SPARSE_ROW_BYTES if self.has_sparse_feature else 0
        return 4 * (1 - self.missing_share) + self.bin_bytes + 1 / 8 + sparse


def member_share(workload: Workload, members: int) -> float:
    """Return the most of the rows that a member has when shards are dealt, each to whoever has the fewest.

    The last shard goes to a member that had at most the mean of the others (Graham 1969).

    >>> member_share(Workload(900, 100, 5, num_shards=4), 2), member_share(Workload(900, 100, 5, num_shards=1), 2)
    (0.5, 1.0)
    """
    even = 1 / max(1, workload.num_shards)
    largest = min(1.0, max(even, workload.shard_rows * workload.used_share / max(1, workload.num_rows)))
    if members == 1 or workload.num_shards <= members:
        return 1.0 if members == 1 else largest
    is_even = largest <= even * 1.001
    return math.ceil(workload.num_shards / members) * even if is_even else 1 / members + largest * (1 - 1 / members)


def matrix_bytes(workload: Workload, rows: float, page_rows: float = 0) -> float:
    """Return the memory of quantized rows, or of the pages of them that are mapped."""
    value = workload.value_bytes * workload.num_features + ROW_POINTER_BYTES
    labels = LABEL_BYTES + WEIGHT_BYTES * workload.has_weights
    if page_rows:
        return rows * (labels + EXTERNAL_ROW_BYTES) + min(PAGES * page_rows, rows) * value
    return rows * (labels + value)


def sketch_bytes(rows: float, max_bin: int) -> float:
    """Return the memory of one feature's quantile sketch, whose levels are as many as the rows ask for.

    >>> round(sketch_bytes(1_000_000, 256) / MIB, 1), round(sketch_bytes(10_000, 256) / MIB, 1)
    (1.8, 0.2)
    """
    levels, size = 1, SKETCH_LEVEL_ROWS * max_bin
    while 2**levels * levels * size < rows:
        levels += 1
    return min(rows, levels * size) * SKETCH_ENTRY_BYTES * (levels + 1)


def reading_bytes(workload: Workload, side_share: float, page_rows: float = 0) -> float:
    """Return the memory in which shards become a matrix, beside the matrix.

    Args:
        workload: what is learnt.
        side_share: of the rows used, those of the sides that the matrix holds.
        page_rows: rows that are put together before they are handed over.
    """
    sketches = workload.num_numeric * sketch_bytes(workload.num_rows * side_share, workload.max_bin)
    page = page_rows * FLOAT_BYTES * workload.num_features
    return READING_BYTES + SKETCH_SHARE * sketches + workload.shard_rows * READING_ROW_BYTES + page


def training_bytes(workload: Workload, rows: float, reading: float, members: int = 1) -> float:
    """Return the memory in which trees grow, beside the matrix: per row, and histograms of all nodes of one tree."""
    per_row = TRAINING_ROW_BYTES + TRAINING_CLASS_BYTES * workload.num_classes
    nodes = min(2.0**workload.max_depth, max(2.0, rows / 2))
    histograms = nodes * workload.total_bins * HISTOGRAM_BYTES * (GANG_HISTOGRAMS if members > 1 else 1)
    return rows * per_row + histograms + min(KEPT_SHARE * reading, MAX_KEPT)


def cpu_bytes(workload: Workload, share: float, base_bytes: int, page_rows: int = 0, members: int = 1) -> int:
    """Return the peak of a worker that trains on a share of the rows.

    Args:
        workload: what is learnt by all members together.
        share: how much of it this one has.
        base_bytes: the worker's memory before.
        page_rows: rows of a page of an external-memory matrix; 0: in memory.
        members: of its gang.
    """
    train, validation = workload.num_train_rows * share, workload.num_validation_rows * share
    train_share = train / max(1.0, train + validation)
    matrix = matrix_bytes(workload, train + validation, page_rows)
    peaks = [
        matrix_bytes(workload, train, page_rows) + (first := reading_bytes(workload, train_share, page_rows)),
        matrix + reading_bytes(workload, 1 - train_share, page_rows),
        matrix + training_bytes(workload, train, first, members),
    ]
    if workload.includes_validation:
        second = reading_bytes(workload, 1.0, page_rows)
        peaks += [matrix + second, matrix + training_bytes(workload, train + validation, second, members)]
    return int(base_bytes + max(peaks))


def gpu_bytes(workload: Workload, share: float, base_bytes: int, page_rows: int = 0) -> tuple[int, int]:
    """Return the peaks of a worker's own memory and of its GPU's, for a share of the rows.

    In memory the quantized rows are on the GPU; as pages they are in the worker's memory.
    """
    rows = workload.num_rows * share
    values = rows * workload.num_features * workload.bin_bytes
    page = min(PAGES * page_rows, rows) / max(1.0, rows) if page_rows else 1.0
    histograms = 2**workload.max_depth * workload.total_bins * HISTOGRAM_BYTES
    held = values * page + rows * (GPU_ROW_BYTES * workload.num_classes) + histograms
    host = reading_bytes(workload, 1.0, page_rows) + rows * LABEL_BYTES + (values if page_rows else 0)
    return int(base_bytes + GPU_HOST_BYTES + host), int(GPU_CONTEXT_BYTES + held)


def thread_speed(threads: int) -> float:
    """Return how many times as fast as one thread so many are.

    >>> [round(thread_speed(threads), 1) for threads in (1, 2, 4, 16, 64)]
    [1.0, 1.6, 2.5, 6.1, 6.1]
    """
    return float(min(max(1, threads), MAX_USEFUL_THREADS) ** THREADS_EXPONENT)


@dataclass(frozen=True)
class Seconds:
    """Time of a training: once to start and read, and for each round of each of its one or two fits."""

    start: float
    per_round: float

    def of(self, rounds: float) -> float:
        """Return the time of so many rounds."""
        return self.start + self.per_round * rounds


def num_rounds(workload: Workload) -> int:
    """Count the rounds of all fits, if none stops early."""
    return workload.rounds * (2 if workload.includes_validation else 1)


def cpu_seconds(workload: Workload, share: float, speed: float, members: int = 1, is_external: bool = False) -> Seconds:
    """Return the time of a member with a share of the rows, `speed` times as fast as one thread."""
    fits = 2 if workload.includes_validation else 1
    # A fit on the training rows, and one on the rows of both sides.
    rows = share * (workload.num_train_rows if fits == 1 else (workload.num_train_rows + workload.num_rows) / 2)
    trees, depth = workload.num_classes, workload.max_depth
    nodes = min(2.0**depth, max(2.0, rows / 2))
    by_row = rows * depth * (workload.num_features * BUILD_SECONDS + ROW_SECONDS)
    by_bin = nodes * workload.total_bins * BIN_SECONDS
    per_round = trees * (by_row * (EXTERNAL_FACTOR if is_external else 1) + by_bin) / speed
    start = fits * share * workload.num_values * SKETCH_SECONDS / speed
    return _joined(workload, Seconds(start, per_round), members)


def gpu_seconds(workload: Workload, share: float, members: int = 1, is_external: bool = False) -> Seconds:
    """Return the time of a member that has a GPU and a share of the rows."""
    fits = 2 if workload.includes_validation else 1
    values = workload.num_values * share
    built = values * GPU_BUILD_SECONDS * (GPU_EXTERNAL_FACTOR if is_external else 1)
    per_round = workload.num_classes * workload.max_depth * (GPU_LEVEL_SECONDS + built)
    start = GPU_START_SECONDS + fits * values * GPU_SKETCH_SECONDS
    return _joined(workload, Seconds(start, per_round), members)


def _joined(workload: Workload, alone: Seconds, members: int) -> Seconds:
    """Return the time of a member with what it waits for the others: half of the histograms are added up."""
    if members == 1:
        return alone
    summed = 2**workload.max_depth / 2 * workload.total_bins * HISTOGRAM_BYTES / GANG_BYTES_PER_SECOND
    waits = workload.num_classes * (workload.max_depth * GANG_LEVEL_SECONDS + summed)
    return Seconds(alone.start + GANG_START_SECONDS, alone.per_round + waits)
