"""A neural network as an ONNX graph, run by ONNX Runtime, which is imported at the first score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .session import SCORES, SPREAD, answers_of, session_of, usable_threads

GRAPH_SUFFIX, WEIGHTS_SUFFIX = ".onnx", ".safetensors"
CHUNK_ROWS = 65_536
"""Rows of one run: what a network keeps between its layers is many times its input."""


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
        chunks = [answers_of(session, list(names), x_BF[start : start + CHUNK_ROWS]) for start in starts]
        return [np.concatenate(parts) for parts in zip(*chunks, strict=True)]

    def _running(self) -> Any:
        """Return the session of ONNX Runtime; two threads that come first at once make two, and one is dropped."""
        session = self._session
        if session is None:
            session = self._session = session_of(self.onnx, self._num_threads or usable_threads())
        return session
