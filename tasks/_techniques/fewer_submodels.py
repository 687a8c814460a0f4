"""Leave out submodels of a network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from infra.bundle.schema import Task
from infra.bundle.session import INPUT
from tasks._techniques.int8_network import is_network
from tasks._techniques.technique import Built, Rows, Uncompressed

if TYPE_CHECKING:
    from tasks._techniques._network_parts import Parts

SHARES = (0.25, 0.5)
CHOOSING_ROWS = 8192
TINY = 1e-12

Array = NDArray[np.float32]


class FewerSubmodels:
    """The submodels that together are best, a quarter or half of them, and the best one alone.

    They are chosen one after the other, each so that the mean of the scores is best with it (Caruana et al. 2004,
    section 2: ensemble selection, here without repeats; Gorishniy, Kotelnikov and Babenko 2025, section 5.3: a few of
    TabM's submodels are nearly as good as all). Both networks choose on training rows. On validation rows the pilot
    would look better than the final network is, which has no rows left to choose on: its submodels are others.
    """

    name = "fewer submodels"
    cost = 0.02

    def applies_to(self, given: Uncompressed) -> bool:
        """Return whether there are submodels to leave out."""
        from tasks._neural.job import NeuralJob

        if not (is_network(given) and isinstance(given.job, NeuralJob)):
            return False
        return given.job.config.architecture == "tabm-mini" and given.job.config.submodels > 1

    def build(self, given: Uncompressed) -> Iterator[Built]:
        """Give networks of fewer submodels, the fewest first, each with 16-bit weights and in whole numbers."""
        from tasks._techniques import _networks  # who lists the techniques does not wait for onnx

        both = _networks.both_parts(given)
        size = both[0].num_submodels
        chosen = [chosen_submodels(parts, given.train, given.seed) for parts in both]

        def forms() -> Iterator[Built]:
            for num_kept in sorted({1, *(max(1, round(share * size)) for share in SHARES)}):
                pilot, final = (
                    parts.with_submodels(order[:num_kept]) for parts, order in zip(both, chosen, strict=True)
                )
                yield from _networks.written(given, f"{num_kept} of {size} submodels", pilot, final)

        yield from _networks.checked(given, forms())


def chosen_submodels(parts: Parts, rows: Rows, seed: int) -> list[int]:
    """Return all submodels, each the one with which those up to it have the lowest loss on rows."""
    from tasks._techniques._network_graph import float_graph, session_of

    some = np.random.default_rng(seed).permutation(len(rows))[:CHOOSING_ROWS]
    (scores,) = session_of(float_graph(parts, watch=True)).run(["m"], {INPUT: rows.x_BF[some]})
    weight_B = np.ones(len(some), np.float32) if rows.weight_B is None else rows.weight_B[some]
    return greedy(np.asarray(scores, np.float64), parts.task, rows.label_B[some], weight_B)


def greedy(scores: NDArray[np.float64], task: Task, label_B: Array, weight_B: Array) -> list[int]:
    """Return the order in which submodels are taken.

    Args:
        scores: of each submodel, shape (rows, submodels) or (rows, submodels, classes).
        task: what they mean.
        label_B: shape (rows,).
        weight_B: shape (rows,).

    >>> ones = np.ones(2)
    >>> greedy(np.array([[9.0, 0.0, 2.1], [9.0, 2.0, 0.1]]), "regression", np.array([1.0, 1.0]), ones)
    [1, 2, 0]
    """
    if task == "multiclass":  # only the probability of the class that it was counts
        scores = np.take_along_axis(scores, label_B.astype(np.int64)[:, None, None], axis=2)[..., 0]
    elif task == "binary":
        scores = np.where(label_B[:, None] > 0, scores, 1 - scores)
    order: list[int] = []
    left, total_B = list(range(scores.shape[1])), np.zeros(len(scores))
    while left:
        mean_BL = (total_B[:, None] + scores[:, left]) / (len(order) + 1)
        off_BL = (mean_BL - label_B[:, None]) ** 2 if task == "regression" else -np.log(np.maximum(mean_BL, TINY))
        best = left.pop(int(np.argmin(weight_B @ off_BL)))
        order.append(best)
        total_B += scores[:, best]
    return order


TECHNIQUE = FewerSubmodels()
