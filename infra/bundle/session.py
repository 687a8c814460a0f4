"""Graphs of ONNX, run by ONNX Runtime, which is imported where the first one is read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError

INPUT, SCORES, SPREAD = "x", "scores", "spread"
"""The names in a graph: float32 (rows, features) in; float32 (rows,) or (rows, classes), and perhaps (rows,), out."""
QUIET = 3
"""ONNX Runtime's severity from which it writes to the terminal: errors."""


def usable_threads() -> int:
    """Return how many threads a run may have: OMP_NUM_THREADS, as for XGBoost, or all cores of the process."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked):
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def session_of(onnx: bytes, num_threads: int) -> Any:
    """Return a session that runs a graph.

    Raises:
        InputError: ONNX Runtime can't read the graph.
    """
    import onnxruntime as ort  # who only trains trees does without it

    options = ort.SessionOptions()
    options.log_severity_level = QUIET
    # A number, as the default asks the machine and not the process, and pins threads to cores.
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    # Idle threads sleep: they'd burn the cores of the others for nothing.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    except _refusals() as error:
        raise InputError(
            f"A model's graph is one that ONNX Runtime {ort.__version__} runs, but got {error}. "
            "Install the version of onnxruntime that it was registered with, or register the model again."
        ) from error


def answers_of(session: Any, names: Sequence[str], x_BF: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Return outputs of a graph.

    Raises:
        ValueError: ONNX Runtime can't run it on these rows.
    """
    try:
        found: list[NDArray[np.float32]] = session.run(names, {INPUT: x_BF})
    except _refusals() as error:
        raise ValueError(
            f"A model's graph runs on every row, but got {error}. "
            "Keep the version in production and register the model again."
        ) from error
    return found


def _refusals() -> tuple[type[Exception], ...]:
    """Return what ONNX Runtime raises about a graph and its rows; these errors have no common base of its own."""
    from onnxruntime.capi.onnxruntime_pybind11_state import (
        Fail,
        InvalidArgument,
        InvalidGraph,
        InvalidProtobuf,
        NotImplemented,
        RuntimeException,
    )

    return Fail, InvalidArgument, InvalidGraph, InvalidProtobuf, NotImplemented, RuntimeException
