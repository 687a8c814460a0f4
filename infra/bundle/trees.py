"""Boosted trees, run by XGBoost, which is imported when they are loaded, and for few rows by ONNX Runtime.

XGBoost takes a tenth of a millisecond to begin, and ONNX Runtime a few microseconds; for many rows XGBoost is the
faster one. Both add up the leaves in the same order, so that their margins are equal to the last bit. What makes
scores of margins is run by ONNX Runtime in both cases, as each has its own approximation of the exponential function.
"""

from __future__ import annotations

import lzma
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .session import SCORES, answers_of, session_of

if TYPE_CHECKING:
    import xgboost as xgb

# B = rows, F = features.

SUFFIX = ".ubj"
"""Of XGBoost's own format, which is no pickle."""
COMPACT_SUFFIX = ".ubj.xz"
"""The same, compressed; it is for trees that are no longer trained, and without the statistics of their training."""
SUFFIXES = (SUFFIX, COMPACT_SUFFIX)
GRAPH_SUFFIX = ".onnx.xz"
LINK_SUFFIX = ".link.onnx"
ASKED = [SCORES]


@dataclass(frozen=True)
class Graphs:
    """The same trees for ONNX Runtime."""

    whole: bytes = field(repr=False)
    """From rows to scores; float32 (rows, features) in, (rows,) or (rows, classes) out."""
    link: bytes | None = field(default=None, repr=False)
    """From XGBoost's margins to scores, both of that shape; None: they are the scores."""


@dataclass
class Trees:
    """A booster as a predictor; see `predictor.Predictor`."""

    booster: xgb.Booster
    graphs: Graphs | None = None
    crossover: int = 0
    """Up to so many rows go to ONNX Runtime where there are graphs, more to XGBoost; it is measured."""
    is_compact: bool = False
    """Whether the files are compressed."""
    _session: Any = field(default=None, init=False, repr=False, compare=False)
    _link: Any = field(default=None, init=False, repr=False, compare=False)
    _files: Mapping[str, bytes] | None = field(default=None, init=False, repr=False, compare=False)
    """What `save` writes, by suffix."""
    family = "xgboost"

    @classmethod
    def load(cls, folder: Path, stem: str = "model", crossover: int = 0) -> Trees:
        """Read trees that `save` wrote.

        Raises:
            InputError: a compressed file is damaged.
        """
        packed = folder / f"{stem}{COMPACT_SUFFIX}"
        if not packed.exists():
            return cls(read_booster(folder / f"{stem}{SUFFIX}"))
        files = {COMPACT_SUFFIX: packed.read_bytes()}
        for suffix in (GRAPH_SUFFIX, LINK_SUFFIX):
            if (folder / f"{stem}{suffix}").exists():
                files[suffix] = (folder / f"{stem}{suffix}").read_bytes()
        graphs = None
        if GRAPH_SUFFIX in files:
            graphs = Graphs(unpacked(files[GRAPH_SUFFIX], f"{stem}{GRAPH_SUFFIX}"), files.get(LINK_SUFFIX))
        trees = cls(read_booster(packed), graphs, crossover, is_compact=True)
        trees._files = files
        return trees

    def save(self, folder: Path, stem: str = "model") -> tuple[str, ...]:
        """Write the booster and, where there are any, the graphs."""
        files = {f"{stem}{suffix}": content for suffix, content in self._written().items()}
        for name, content in files.items():
            (folder / name).write_bytes(content)
        return tuple(files)

    @property
    def num_bytes(self) -> int:
        """Return the size of the files."""
        return sum(map(len, self._written().values()))

    def _written(self) -> Mapping[str, bytes]:
        """Return the content of all files by suffix; a booster that may still be changed is asked each time."""
        if not self.is_compact:
            assert self.graphs is None, "graphs come with the compact form"
            return {SUFFIX: bytes(self.booster.save_raw("ubj"))}
        if self._files is None:
            files = {COMPACT_SUFFIX: packed(bytes(self.booster.save_raw("ubj")))}
            if self.graphs is not None:
                files[GRAPH_SUFFIX] = packed(self.graphs.whole)
                if self.graphs.link is not None:
                    files[LINK_SUFFIX] = self.graphs.link
            self._files = files
        return self._files

    def scores(self, x_BF: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return scores, shape (rows,) or (rows, classes)."""
        if len(x_BF) <= self.crossover and self.graphs is not None:
            return answers_of(self._session or self._running(), ASKED, x_BF)[0]
        return self._of_many(x_BF)

    def _of_many(self, x_BF: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what XGBoost answers."""
        kind = "value" if self.graphs is None else "margin"
        found = np.asarray(self.booster.inplace_predict(x_BF, missing=np.nan, predict_type=kind), dtype=np.float32)
        if self.graphs is None or self.graphs.link is None:
            return found
        if self._link is None:
            self._link = session_of(self.graphs.link, 1)
        return answers_of(self._link, ASKED, found)[0]

    def _running(self) -> Any:
        """Return the session; two threads that come first at once make two, and one is dropped.

        It has one thread: several would add up the leaves in another order, and wake up for a few rows.
        """
        assert self.graphs is not None, "who has none does not ask"
        self._session = session = session_of(self.graphs.whole, 1)
        return session

    def spread(self, x_BF: NDArray[np.float32]) -> None:
        """Return None: trees tell no spread."""

    def scored(self, x_BF: NDArray[np.float32]) -> tuple[NDArray[np.float32], None]:
        """Return scores, and None for their spread."""
        return self.scores(x_BF), None

    def use_one_thread(self) -> None:
        """Take the threads from the booster that was loaded; its copies keep theirs."""
        self.booster.set_param({"nthread": 1})


def read_booster(path: Path) -> xgb.Booster:
    """Read a booster from a file, compressed or not.

    Raises:
        InputError: a compressed file is damaged.
    """
    import xgboost as xgb  # a second, which who only reads a configuration should not wait for

    if path.suffix == ".xz":
        return xgb.Booster(model_file=bytearray(unpacked(path.read_bytes(), path.name)))
    return xgb.Booster(model_file=path)


def packed(content: bytes) -> bytes:
    """Return content as an xz file, the same bytes each time."""
    return lzma.compress(content)


def unpacked(content: bytes, name: str) -> bytes:
    """Return what `packed` was given.

    Raises:
        InputError: it is no xz file, or not a whole one.
    """
    try:
        return lzma.decompress(content)
    except lzma.LZMAError as error:
        raise InputError(
            f"A compact model is a whole xz file, but got {error} in {name}. Register the model again."
        ) from error
