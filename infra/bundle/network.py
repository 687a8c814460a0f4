"""A neural network as an ONNX graph, run by ONNX Runtime, which is imported at the first score."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError

GRAPH_SUFFIX, WEIGHTS_SUFFIX = ".onnx", ".safetensors"
INPUT, SCORES, SPREAD = "x", "scores", "spread"
"""The names in the graph: float32 (rows, features) in; float32 (rows,) or (rows, classes), and perhaps (rows,), out."""
CHUNK_ROWS = 65_536
"""Rows of one run: what a network keeps between its layers is many times its input."""
QUIET = 3
"""ONNX Runtime's severity from which it writes to the terminal: errors."""


@dataclass
class Network:
    """A network as a predictor; see `predictor.Predictor`."""

    onnx: bytes = field(repr=False)
    weights: bytes | None = field(default=None, repr=False)
    """The same weights as a training goes on from; not needed to score."""
    _num_threads: int = field(default=0, init=False, repr=False, compare=False)
    """0: all that the process may use."""
    _session: Any = field(default=None, init=False, repr=False, compare=False)
    family = "neural"

    @classmethod
    def load(cls, folder: Path, stem: str = "model") -> Network:
        """Read a network that `save` wrote."""
        weights = folder / f"{stem}{WEIGHTS_SUFFIX}"
        return cls((folder / f"{stem}{GRAPH_SUFFIX}").read_bytes(), weights.read_bytes() if weights.exists() else None)

    def save(self, folder: Path, stem: str = "model") -> tuple[str, ...]:
        """Write the graph, and the weights if there are any."""
        files = {f"{stem}{GRAPH_SUFFIX}": self.onnx}
        if self.weights is not None:
            files[f"{stem}{WEIGHTS_SUFFIX}"] = self.weights
        for name, content in files.items():
            (folder / name).write_bytes(content)
        return tuple(files)

    @property
    def num_bytes(self) -> int:
        """Return the size of the files."""
        return len(self.onnx) + len(self.weights or b"")

    @property
    def num_features(self) -> int | str | None:
        """Return how many numbers a row has in the graph; a text or None where it does not say."""
        (given,) = self._running().get_inputs()
        return given.shape[1] if len(given.shape) == 2 else None

    def scores(self, x_BF: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return scores, shape (rows,) or (rows, classes)."""
        return self._run((SCORES,), x_BF)[0]

    def spread(self, x_BF: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """Return the spread, shape (rows,); None: the graph has no such output."""
        return self._run((SPREAD,), x_BF)[0] if self._has_spread() else None

    def scored(self, x_BF: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Return scores and spread, from one run."""
        if not self._has_spread():
            return self.scores(x_BF), None
        scores, spread = self._run((SCORES, SPREAD), x_BF)
        return scores, spread

    def use_one_thread(self) -> None:
        """Run in the thread of the caller."""
        self._num_threads, self._session = 1, None

    def _has_spread(self) -> bool:
        return any(output.name == SPREAD for output in self._running().get_outputs())

    def _run(self, names: Sequence[str], x_BF: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Return outputs of the graph, computed in chunks, so that memory is bounded."""
        session = self._running()
        starts = range(0, max(1, len(x_BF)), CHUNK_ROWS)
        try:
            chunks = [session.run(list(names), {INPUT: x_BF[start : start + CHUNK_ROWS]}) for start in starts]
        except _refusals() as error:
            raise ValueError(
                f"A network runs on every row, but got {error}. "
                "Keep the version in production and register the model again."
            ) from error
        return [np.concatenate(parts) for parts in zip(*chunks, strict=True)]

    def _running(self) -> Any:
        """Return the session of ONNX Runtime; two threads that come first at once make two, and one is dropped."""
        session = self._session
        if session is None:
            session = self._session = _session_of(self.onnx, self._num_threads or usable_threads())
        return session


def usable_threads() -> int:
    """Return how many threads a run may have: OMP_NUM_THREADS, as for XGBoost, or all cores of the process."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked):
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _session_of(onnx: bytes, num_threads: int) -> Any:
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
            f"A network is a graph that ONNX Runtime {ort.__version__} runs, but got {error}. "
            "Install the version of onnxruntime that it was registered with, or register the model again."
        ) from error


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
