"""A trained network as what is shipped: an ONNX graph, and its weights as safetensors, checked against torch."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from infra.bundle.network import Network as Graph
from infra.bundle.session import INPUT, SCORES, SPREAD
from infra.errors import RunError
from tasks._gaps import with_gaps
from tasks._neural.network import Network, NetworkShape, Served, Target

TOLERANCE = 1e-5
"""Largest difference of a score to torch's, over the largest score where that is above 1."""
TRACED_ROWS = 3
MOST_DOUBLED = 1 << 24
"""Parameters of a network that is computed in float64 as well, to know how exact float32 is."""


def exported(shape: NetworkShape, target: Target, state: dict[str, Tensor], rows_BF: NDArray[np.float32]) -> Graph:
    """Return a network as a graph that is equal to it on some rows.

    Args:
        shape: the modules.
        target: what the outputs mean.
        state: all parameters and buffers; it is emptied, as a large network is not kept more often than it must be.
        rows_BF: rows to check on, shape (rows, features); some are changed to hold missing and unknown values.

    Raises:
        RunError: the graph answers differently.
    """
    network = Network(shape, "meta")
    network.load_state_dict({name: value.detach() for name, value in state.items()}, strict=True, assign=True)
    served = Served(network, target, has_spread=True).eval()
    with quiet():
        program = torch.onnx.export(
            served,
            (torch.zeros(TRACED_ROWS, shape.inputs.num_features),),
            dynamo=True,
            input_names=[INPUT],
            output_names=[SCORES, SPREAD],
            dynamic_shapes={"x": {0: torch.export.Dim("rows")}},
            verbose=False,
        )
    assert program is not None, "the exporter returns a program where it writes no file"
    graph = program.model_proto.SerializeToString()
    del program
    found = Graph(graph, save({name: value.contiguous() for name, value in state.items()}))
    state.clear()
    rows_BF = with_gaps(rows_BF)
    known = answers_of(served, rows_BF)
    noise = rounding_of(served, rows_BF, known)
    # The exporter's rules, which live as long as the process, know the last model that they have seen.
    for parameter in network.parameters():
        parameter.data = torch.empty(0)
    require_equal(found, known, rows_BF, noise)
    return found


def check(graph: Graph, served: Served, rows_BF: NDArray[np.float32]) -> None:
    """Raise a RunError if a graph and a network differ on rows."""
    require_equal(graph, answers_of(served, rows_BF), rows_BF)


def answers_of(served: Served, rows_BF: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Return what torch answers: scores and spread."""
    with torch.inference_mode():
        return [part.numpy() for part in served(torch.from_numpy(rows_BF))]


def rounding_of(served: Served, rows_BF: NDArray[np.float32], known: list[NDArray[np.float32]]) -> list[float]:
    """Return how far torch's answers are from its own in float64: of scores and spread, the largest.

    Steep pieces lose digits: z * slope - edge * slope cancels (2e-5 where a piece has a slope of 25,000). Of large
    networks it is taken to be 0, as they would be in memory once more, and twice as large.
    """
    if sum(parameter.numel() for parameter in served.parameters()) > MOST_DOUBLED:
        return [0.0, 0.0]
    double = copy.deepcopy(served).double()
    with torch.inference_mode():
        exact = double(torch.from_numpy(rows_BF).double())
    return [float(np.abs(part.numpy() - ours).max(initial=0.0)) for part, ours in zip(exact, known, strict=True)]


def require_equal(
    graph: Graph, known: list[NDArray[np.float32]], rows_BF: NDArray[np.float32], noise: Sequence[float] = (0.0, 0.0)
) -> None:
    """Raise a RunError if a graph does not give these answers of rows, but for what torch itself is unsure of."""
    for name, ours, theirs, unsure in zip((SCORES, SPREAD), graph.scored(rows_BF), known, noise, strict=True):
        assert ours is not None, "the graph gives both"
        worst = float(np.abs(ours - theirs).max(initial=0.0))
        if not worst <= TOLERANCE * max(1.0, float(np.abs(theirs).max(initial=0.0))) + 2 * unsure:
            raise RunError(
                f"An exported network answers as torch does, to within {TOLERANCE}, but got a difference={worst} of "
                f"the {name} on {len(rows_BF):,} rows. Install the versions of constraints.txt, and train again."
            )


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter's remarks on packages that are not needed from the terminal."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
