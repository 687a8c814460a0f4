"""Small ONNX graphs as networks, and what they answer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET, IR = 17, 9
"""Old enough for every release of ONNX Runtime that is allowed."""
LAST = {"binary": "Sigmoid", "multiclass": "Softmax", "regression": "Identity"}


def graph(weights_FC: NDArray[np.float32], task: str = "binary", has_spread: bool = False) -> bytes:
    """Return a graph that takes what is missing for 0, and gives one linear layer, and its absolute value as spread."""
    constants = {"weights": weights_FC, "zero": np.float32(0), "axis": np.array([1])}
    is_wide = task == "multiclass"
    nodes = [
        helper.make_node("IsNaN", ["x"], ["missing"]),
        helper.make_node("Where", ["missing", "zero", "x"], ["filled"]),
        helper.make_node("MatMul", ["filled", "weights"], ["linear"]),
        helper.make_node(LAST[task], ["linear"], ["scores" if is_wide else "wide"]),
    ]
    outputs = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["rows", "classes"][: 1 + is_wide])]
    if not is_wide:
        nodes.append(helper.make_node("Squeeze", ["wide", "axis"], ["scores"]))
    if has_spread:
        nodes += [
            helper.make_node("Abs", ["linear"], ["far"]),
            helper.make_node("Squeeze", ["far", "axis"], ["spread"]),
        ]
        outputs.append(helper.make_tensor_value_info("spread", TensorProto.FLOAT, ["rows"]))
    made = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", len(weights_FC)])],
        outputs,
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    return bytes(model.SerializeToString())


def weights(num_features: int, num_outputs: int = 1, seed: int = 0) -> NDArray[np.float32]:
    """Return weights of a network, shape (features, outputs)."""
    return np.random.default_rng(seed).normal(size=(num_features, num_outputs)).astype(np.float32) / 10


def linear(x_BF: NDArray[np.float32], weights_FC: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the linear layer of a graph."""
    return np.nan_to_num(x_BF) @ weights_FC
