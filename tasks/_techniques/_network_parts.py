"""A trained network as arrays, so that it can be cut and written in other ways.

Shape suffixes: B rows, F features, N numbers, C codes, E embedding, D inputs of the first layer, K submodels, W width,
O outputs. The arrays come from the weights that a network is shipped with; what its outputs mean comes from the graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from safetensors.numpy import load

from infra.bundle.network import Network
from infra.bundle.schema import Task
from infra.bundle.session import SCORES
from tasks._neural.inputs import NetworkInputs
from tasks._neural.job import NeuralJob

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Pieces:
    """The embeddings of numbers by piecewise-linear functions; see `tasks._neural.network.InputLayer`."""

    slope_NE: Array
    """Of the linear part."""
    offset_NE: Array
    bins_NBE: Array
    """What each piece adds, the last one of a number always at the end."""
    missing_NE: Array


@dataclass(frozen=True)
class Table:
    """The embeddings of a feature's codes: what is missing first, then unknown, then the known ones."""

    rows_RE: Array
    places: NDArray[np.int64] | None = None
    """Which row each of these has, where some share one; None: their own."""


@dataclass(frozen=True)
class Parts:
    """All that a network knows."""

    inputs: NetworkInputs
    task: Task
    shift: float
    """Of a regression: what the outputs are multiplied by, and this is added."""
    scale: float
    has_spread: bool
    pieces: Pieces | None
    """None: a number is its scaled self and a flag whether it is missing."""
    tables: tuple[Table, ...]
    """Of each code."""
    affine_KD: Array
    """What each submodel multiplies its inputs by."""
    layers: tuple[tuple[Array, Array], ...]
    """Weights, shape (inputs, outputs), and biases of the hidden layers, each followed by a ReLU."""
    head_KWO: Array
    head_KO: Array

    @property
    def num_submodels(self) -> int:
        """Return K."""
        return len(self.head_KWO)

    @property
    def widths(self) -> tuple[int, ...]:
        """Return how many outputs each hidden layer has."""
        return tuple(len(bias) for _, bias in self.layers)

    @property
    def num_expanded(self) -> int:
        """Return how many weights the first layer has if every submodel has its own."""
        return self.affine_KD.size * self.widths[0]

    def with_submodels(self, members: Sequence[int]) -> Parts:
        """Return the network of some submodels alone.

        In tabm-mini these share all but the scales of their inputs and the head (Gorishniy, Kotelnikov and Babenko
        2025, section 3.3), so that each is whole without the others.
        """
        kept = list(members)
        return replace(self, affine_KD=self.affine_KD[kept], head_KWO=self.head_KWO[kept], head_KO=self.head_KO[kept])


def parts_of(job: NeuralJob, network: Network) -> Parts:
    """Return the parts of a network that has its weights."""
    assert network.weights is not None, "given.pilot and given.final have weights"
    task = job.encoded.schema.task
    shift, scale = target_moments(network.onnx) if task == "regression" else (0.0, 1.0)
    return parts_from(load(network.weights), job.inputs, task, shift, scale, job.config.spread)


def parts_from(
    state: Mapping[str, Array], inputs: NetworkInputs, task: Task, shift: float, scale: float, has_spread: bool
) -> Parts:
    """Return the parts that the state of a `tasks._neural.network.Network` has."""
    first, pieces = "layers.0", None
    if f"{first}.missing_NE" in state:
        linear, line = state[f"{first}.pieces.linear.weight"], f"{first}.pieces.linear0"
        pieces = Pieces(state[f"{line}.weight"], state[f"{line}.bias"], linear, state[f"{first}.missing_NE"])
    num_layers = 1 + max(int(name.split(".")[1]) for name in state)
    hidden = [f"layers.{i}.linear" for i in range(1, num_layers - 1)]
    layers = tuple((np.ascontiguousarray(state[f"{name}.weight"].T), state[f"{name}.bias"]) for name in hidden)
    affine_KD = state.get(f"{first}.affine.weight")
    starts = np.cumsum([code.size + 1 for code in inputs.codes])
    tables = np.split(state[f"{first}.table.weight"], starts[:-1]) if inputs.codes else []
    head = f"layers.{num_layers - 1}.linear"
    return Parts(
        inputs=inputs,
        task=task,
        shift=shift,
        scale=scale,
        has_spread=has_spread,
        pieces=pieces,
        tables=tuple(map(Table, tables)),
        affine_KD=np.ones((1, len(layers[0][0])), np.float32) if affine_KD is None else affine_KD,
        layers=layers,
        head_KWO=state[f"{head}.weight"],
        head_KO=state[f"{head}.bias"],
    )


def target_moments(graph: bytes) -> tuple[float, float]:
    """Return what a regression's graph adds to the outputs of its submodels, and before multiplies them by."""
    model = onnx.load_from_string(graph).graph
    constants = {tensor.name: tensor for tensor in model.initializer}
    by_output = {output: node for node in model.node for output in node.output}
    name, found = by_output[SCORES].input[0], {"Add": 0.0, "Mul": 1.0}
    for operator in found:
        node = by_output.get(name)
        if node is None or node.op_type != operator:
            continue  # a shift of zero or a scale of one may have been left out
        (constant,) = (given for given in node.input if given in constants)
        (name,) = (given for given in node.input if given not in constants)
        found[operator] = float(numpy_helper.to_array(constants[constant]).item())
    return found["Add"], found["Mul"]
