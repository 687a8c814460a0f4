"""What all ways to make a network smaller begin with: its parts, and rows to look at it with."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from infra.bundle.network import Network
from infra.errors import RunError
from tasks._neural.job import NeuralJob
from tasks._techniques._network_graph import float_graph, whole_graph, with_odd_values
from tasks._techniques._network_parts import Parts, parts_of
from tasks._techniques._row_by_row import row_by_row
from tasks._techniques.technique import Built, Rows, Uncompressed

SAMPLE_ROWS = 4096
MOST_DIFFERENT = 1e-3
"""Largest difference of a score between the exporter's graph and the one by hand, over the largest score where that
is above 1. Where an edge of a number's pieces is close to the next, both are off by more than 1e-5."""


def both_parts(given: Uncompressed) -> tuple[Parts, Parts]:
    """Return the parts of the pilot and of the final network.

    Raises:
        RunError: a network written from its parts is not the same.
    """
    assert isinstance(given.job, NeuralJob)
    assert isinstance(given.pilot, Network)
    assert isinstance(given.final, Network)
    rows_BF = with_odd_values(sample_of(given.train, given.seed, SAMPLE_ROWS // 4))
    pilot, final = parts_of(given.job, given.pilot), parts_of(given.job, given.final)
    for parts, network in ((pilot, given.pilot), (final, given.final)):
        require_same(Network(float_graph(parts)), network, rows_BF)
    return pilot, final


def require_same(written: Network, network: Network, rows_BF: NDArray[np.float32]) -> None:
    """Raise a RunError if a network that was written from its parts answers otherwise."""
    known = network.scores(rows_BF)
    worst = float(np.abs(written.scores(rows_BF) - known).max(initial=0.0))
    if not worst <= MOST_DIFFERENT * max(1.0, float(np.abs(known).max(initial=0.0))):
        raise RunError(
            f"A network written from its weights answers as its graph does, to within {MOST_DIFFERENT}, but got a "
            f"difference={worst} on {len(rows_BF):,} rows. Leave techniques for networks out of compress.techniques."
        )


def sample_of(rows: Rows, seed: int, num_rows: int = SAMPLE_ROWS) -> NDArray[np.float32]:
    """Return rows in which classes, or small and large targets, have the shares that they have in all.

    They lie evenly in the order of the target; among equal ones in an order that is drawn.
    """
    order = np.random.default_rng(seed).permutation(len(rows))
    order = order[np.argsort(rows.label_B[order], kind="stable")]
    places = np.unique(np.linspace(0, len(rows) - 1, min(num_rows, len(rows))).astype(np.int64))
    return rows.x_BF[order[places]]


def checked(given: Uncompressed, forms: Iterator[Built]) -> Iterator[Built]:
    """Give the forms that answer a row the same whatever rows are beside it; see `_row_by_row`."""
    sample_BF = sample_of(given.train, given.seed, SAMPLE_ROWS // 4)
    rows_BF = np.concatenate([sample_BF, with_odd_values(sample_BF)])
    return row_by_row(forms, np.random.default_rng(given.seed).permutation(rows_BF))


def written(given: Uncompressed, name: str, pilot: Parts, final: Parts) -> Iterator[Built]:
    """Give a network with 16-bit weights, and the same in whole numbers of 8 bits."""
    rows_BF = sample_of(given.train, given.seed)
    forms: dict[str, Callable[[Parts], bytes]] = {
        f"{name}, 16-bit weights": lambda parts: float_graph(parts, "float16"),
        f"{name}, 8-bit": lambda parts: whole_graph(parts, rows_BF),
    }
    for form, write in forms.items():
        yield Built(form, Network(write(pilot)), Network(write(final)))
