"""Make the embedding tables of a network smaller."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from infra.bundle.network import Network
from tasks._learning import LearningJob
from tasks._neural.inputs import MAX_CODE
from tasks._neural.job import NeuralJob
from tasks._techniques.int8_network import is_network
from tasks._techniques.technique import Built, Rows, Uncompressed

if TYPE_CHECKING:
    from tasks._techniques._network_parts import Parts

LEAST_SHARE = 0.25
"""Of the bytes, from which tables are worth it."""
NUM_SPECIAL = 2
"""The first rows of a table: of a missing value, and of an unknown one."""
RARE_ROWS = 5
"""A code in fewer training rows has hardly moved from where it began."""


class SmallTables:
    """Rows of 8 bits with a scale each, in memory too; and one row for all rare codes of a feature.

    Rows with a scale each: Guan et al. 2019, section 3 (their uniform quantization, here symmetric). What rare codes
    share is the mean of their rows, weighted by how often they are in the training rows; missing and unknown values
    keep theirs.
    """

    name = "small tables"
    cost = 0.02

    def applies_to(self, given: Uncompressed) -> bool:
        """Return whether tables are a good part of the network."""
        if not (is_network(given) and isinstance(given.job, NeuralJob) and isinstance(given.final, Network)):
            return False
        table_bytes = 4 * given.job.inputs.num_table_rows * given.job.config.embedding
        return table_bytes >= LEAST_SHARE * len(given.final.onnx)

    def build(self, given: Uncompressed) -> Iterator[Built]:
        """Give the network with tables of 8 bits; with rare codes in one row; and with both in whole numbers."""
        from tasks._techniques import _networks  # who lists the techniques does not wait for onnx
        from tasks._techniques._network_graph import float_graph

        both = _networks.both_parts(given)

        def forms() -> Iterator[Built]:
            pilot, final = (Network(float_graph(parts, "float16", has_small_tables=True)) for parts in both)
            yield Built("8-bit tables", pilot, final)
            counts = code_counts(given.train, given.job)
            if any(int(is_rare(count_R).sum()) > 1 for count_R in counts):
                pilot_parts, final_parts = (with_merged_rows(parts, counts) for parts in both)
                yield from _networks.written(given, "rare codes merged", pilot_parts, final_parts)

        yield from _networks.checked(given, forms())


def code_counts(rows: Rows, job: LearningJob) -> list[NDArray[np.int64]]:
    """Return by feature in how many rows each code is, shape (1 + codes,): what is missing first."""
    assert isinstance(job, NeuralJob)
    found = []
    for code in job.inputs.codes:
        codes_B = np.nan_to_num(rows.x_BF[:, code.position], nan=-1).clip(-1, MAX_CODE).astype(np.int64)
        found.append(np.bincount(np.where(codes_B < code.size, codes_B, 0) + 1, minlength=code.size + 1))
    return found


def is_rare(count_R: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which rows of a table are of known codes that few rows have."""
    return (count_R < RARE_ROWS) & (np.arange(len(count_R)) >= NUM_SPECIAL)


def with_merged_rows(parts: Parts, counts: Sequence[NDArray[np.int64]]) -> Parts:
    """Return a network in whose tables the rare codes of a feature have one row, the mean of theirs."""
    tables = []
    for table, count_R in zip(parts.tables, counts, strict=True):
        rare_R = is_rare(count_R)
        if rare_R.sum() < 2:
            tables.append(table)
            continue
        mean_E = np.average(table.rows_RE[rare_R], axis=0, weights=count_R[rare_R] + 1)
        rows_RE = np.concatenate([table.rows_RE[~rare_R], mean_E[None]]).astype(np.float32)
        places = np.where(rare_R, len(rows_RE) - 1, np.cumsum(~rare_R) - 1)
        tables.append(replace(table, rows_RE=rows_RE, places=places))
    return replace(parts, tables=tuple(tables))


TECHNIQUE = SmallTables()
