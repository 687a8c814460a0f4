"""A bundle on disk, and predictions from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from .blend import Blend
from .encoder import encode_frame, matrix
from .errors import InputError
from .network import Network
from .predictor import Predictor
from .schema import Schema
from .trees import SUFFIX, Trees
from .vocabulary import UNKNOWN, Vocabulary

if TYPE_CHECKING:
    import xgboost as xgb

FORMAT, FAMILIES_FORMAT, TREES_FORMAT = 3, 2, 1
"""The newest format, for compact trees; that of other families, and that of trees as they are trained: what has read
such bundles so far goes on doing so."""
TOLERANCES = {Trees.family: 1e-6, Network.family: 1e-5}
"""Largest difference to a golden prediction by family: float32 arithmetic on another machine."""
FILES = ("bundle.json", "schema.json", "vocabulary.json", "golden.json")
"""Of every bundle, beside those of its model."""
TREES_FILES = (f"model{SUFFIX}",)
RUNTIME_FILE = "runtime.json"
"""Of bundles whose trees have two runtimes: up to how many rows the one for few of them is asked."""


@dataclass(frozen=True)
class Bundle:
    """A model with everything that it needs to answer raw rows."""

    schema: Schema
    vocabulary: Vocabulary
    predictor: Predictor
    threshold: float = 0.5
    """Probability from which a binary model says yes."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Where the model comes from: name, snapshot, split rule, metrics; JSON."""
    golden: tuple[list[dict[str, Any]], list[list[float]]] = field(default_factory=lambda: ([], []))
    """Raw rows and the scores that they must get, checked before a bundle answers anybody."""
    half_width: float | None = None
    """Half the width of a regression's prediction interval, in the target's unit; None: it gives none."""
    has_spread: bool = False
    """Whether an answer says how unsure the model is; not every model can."""

    def save(self, folder: Path) -> tuple[str, ...]:
        """Write the bundle's files into an existing folder, and return their names."""
        rows, scores = self.golden
        files = self.predictor.save(folder)
        found = crossovers(self.predictor)
        if found:
            (folder / RUNTIME_FILE).write_text(json.dumps({"crossover": found}, sort_keys=True))
            files = (*files, RUNTIME_FILE)
        described: dict[str, Any] = {
            "format": TREES_FORMAT,
            "threshold": self.threshold,
            "half_width": self.half_width,
            "facts": dict(self.facts),
        }
        is_compact = any(isinstance(part, Trees) and part.is_compact for part in parts_of(self.predictor).values())
        if is_compact or self.predictor.family != Trees.family:
            number = FORMAT if is_compact else FAMILIES_FORMAT
            described |= {"format": number, "has_spread": self.has_spread, "files": files}
            described |= describe(self.predictor)
        (folder / "bundle.json").write_text(json.dumps(described, indent=1, sort_keys=True))
        (folder / "schema.json").write_text(self.schema.to_json())
        (folder / "vocabulary.json").write_text(self.vocabulary.to_json())
        (folder / "golden.json").write_text(json.dumps({"rows": rows, "scores": scores}))
        return *FILES, *files

    @classmethod
    def load(cls, folder: Path) -> Bundle:
        """Read a bundle.

        Raises:
            InputError: the folder holds no bundle, one of a newer format, or a network of other features.
        """
        path = folder / "bundle.json"
        described = json.loads(path.read_text()) if path.is_file() else {}
        if described.get("format", FORMAT) > FORMAT:
            raise InputError(
                f"This version reads bundles up to format {FORMAT}, but got format={described['format']} in {folder}. "
                "Upgrade evergreen."
            )
        files = (*FILES, *described.get("files", TREES_FILES))
        absent = [name for name in files if not (folder / name).is_file()]
        if absent:
            raise InputError(
                f"A bundle has the files {', '.join(files)}, but got a folder without {', '.join(absent)}: {folder}. "
                "Register the model again with evergreen retrain."
            )
        golden = json.loads((folder / "golden.json").read_text())
        schema = Schema.from_json((folder / "schema.json").read_text())
        return cls(
            schema=schema,
            vocabulary=Vocabulary.from_json((folder / "vocabulary.json").read_text()),
            predictor=read_predictor(folder, described, len(schema.features)),
            threshold=described["threshold"],
            facts=described["facts"],
            golden=(golden["rows"], golden["scores"]),
            half_width=described["half_width"],
            has_spread=described.get("has_spread", False),
        )

    @property
    def name(self) -> str:
        """Return the name of the model."""
        return str(self.facts.get("model", ""))

    @property
    def families(self) -> tuple[str, ...]:
        """List the families of its models, each once: those of the parts where it is a blend."""
        return tuple(sorted({part.family for part in parts_of(self.predictor).values()}))

    @property
    def has_graphs(self) -> bool:
        """Return whether ONNX Runtime answers, for all rows or for few."""
        parts = parts_of(self.predictor).values()
        return any(part.graphs is not None if isinstance(part, Trees) else True for part in parts)

    @property
    def booster(self) -> xgb.Booster:
        """Return the trees.

        Raises:
            ValueError: the model is of another family.
        """
        if not isinstance(self.predictor, Trees):
            raise ValueError(f"Trees have a booster, but got family={self.predictor.family}. Ask the predictor.")
        return self.predictor.booster

    def predict(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Answer raw rows.

        Returns:
            `prediction` (label or number); for a regression with an interval also `prediction_low` and
            `prediction_high`; for a binary model also `probability` of the positive class; for a
            multiclass one `probability_<label>` for every class; at the end, where the bundle has a spread,
            `prediction_spread`.
        """
        return self.answer(*self.scored(encode_frame(frame, self.schema, self.vocabulary)))

    def scores(self, encoded: pl.DataFrame) -> NDArray[np.float32]:
        """Return scores of encoded rows: shape (rows,), or (rows, classes) for a multiclass model.

        Codes that the model's vocabulary does not have (they came later) count as unknown.
        """
        return self.scores_of_matrix(self._matrix(encoded))

    def scored(self, encoded: pl.DataFrame) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Return scores and spread, shape (rows,), of encoded rows from one run; None where the bundle has no spread.

        Codes count as for `scores`.
        """
        x_BF = self._matrix(encoded)
        if not self.has_spread:
            return self.scores_of_matrix(x_BF), None
        if not len(x_BF):
            return self.scores_of_matrix(x_BF), np.empty(0, dtype=np.float32)
        scores, spread = self.predictor.scored(x_BF)
        assert spread is not None, "has_spread is set only where the model tells one"
        return scores, spread

    def _matrix(self, encoded: pl.DataFrame) -> NDArray[np.float32]:
        features = self.schema.features
        x_BF = matrix(encoded, features)
        for index, feature in enumerate(features):
            if feature.is_categorical:
                column = x_BF[:, index]
                column[column >= self.vocabulary.size(feature.column)] = UNKNOWN
        return x_BF

    def scores_of_matrix(self, x_BF: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return scores of a float32 matrix, shape (rows, features)."""
        if not len(x_BF):
            num_outputs = len(self.schema.labels) if self.schema.task == "multiclass" else 0
            return np.empty((0, num_outputs) if num_outputs else (0,), dtype=np.float32)
        return self.predictor.scores(x_BF)

    def answer(self, scores: NDArray[np.float32], spread: NDArray[np.float32] | None = None) -> pl.DataFrame:
        """Return scores, and their spread if there is one, as the columns that a caller sees."""
        answers = self._answers(scores)
        return answers if spread is None else answers.with_columns(prediction_spread=spread.astype(np.float64))

    def _answers(self, scores: NDArray[np.float32]) -> pl.DataFrame:
        labels = self.schema.labels
        if self.schema.task == "regression":
            numbers = scores.astype(np.float64)
            width = self.half_width
            interval = {} if width is None else {"prediction_low": numbers - width, "prediction_high": numbers + width}
            return pl.DataFrame({"prediction": numbers, **interval})
        if self.schema.task == "binary":
            chosen = (scores >= np.float32(self.threshold)).astype(np.int32)
            return pl.DataFrame({"prediction": np.asarray(labels)[chosen], "probability": scores.astype(np.float64)})
        columns = {f"probability_{label}": scores[:, i].astype(np.float64) for i, label in enumerate(labels)}
        return pl.DataFrame({"prediction": np.asarray(labels)[scores.argmax(axis=1)], **columns})

    def with_golden(self, frame: pl.DataFrame) -> Bundle:
        """Return the bundle with these raw rows, and its own scores of them, as golden predictions."""
        rows = json.loads(frame.write_json())
        scores, _ = self.scored(encode_frame(golden_frame(rows), self.schema, self.vocabulary))
        golden = (rows, scores.reshape(len(rows), -1).astype(float).tolist())
        return replace(self, golden=golden)

    def check_golden(self) -> None:
        """Raise a ValueError if the bundle no longer gives its golden predictions."""
        rows, expected = self.golden
        if not rows:
            return
        encoded = encode_frame(golden_frame(rows), self.schema, self.vocabulary)
        tolerance = max(TOLERANCES[family] for family in self.families)
        # One row alone may take another runtime than all of them.
        found = [self.scored(part)[0].reshape(len(part), -1) for part in (encoded, encoded.head(1))]
        known = np.asarray(expected)
        worst = float(np.max([np.abs(scores - known[: len(scores)]).max() for scores in found]))
        scale = max(1.0, float(np.abs(known).max()))
        if not worst <= tolerance * scale:
            raise ValueError(
                f"A bundle gives its golden predictions to within {tolerance}, but got a difference={worst}. "
                "Keep the version in production and register the model again."
            )


def golden_frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    """Return rows from JSON as a frame, whatever mixture of types a column has."""
    return pl.DataFrame(rows, infer_schema_length=None, strict=False)


def parts_of(predictor: Predictor) -> dict[str, Predictor]:
    """Return the models of which one consists, by the stem of their files' names."""
    if not isinstance(predictor, Blend):
        return {"model": predictor}
    return {f"part{i}": part for i, (_, part) in enumerate(predictor.parts)}


def crossovers(predictor: Predictor) -> dict[str, int]:
    """Return the crossover of all trees that have two runtimes, by stem."""
    parts = parts_of(predictor).items()
    return {stem: part.crossover for stem, part in parts if isinstance(part, Trees) and part.graphs is not None}


def describe(predictor: Predictor) -> dict[str, Any]:
    """Return what `read_predictor` needs to know beside the files, as plain data."""
    if not isinstance(predictor, Blend):
        return {"family": predictor.family}
    parts = [{"family": part.family, "weight": weight} for weight, part in predictor.parts]
    return {"family": predictor.family, "parts": parts}


def read_predictor(folder: Path, described: Mapping[str, Any], num_features: int) -> Predictor:
    """Read the model of a bundle; one that does not name its family is of trees."""
    path = folder / RUNTIME_FILE
    known = json.loads(path.read_text())["crossover"] if path.is_file() else {}
    if described.get("family") != Blend.family:
        return _read_part(folder, described.get("family", Trees.family), "model", num_features, known)
    return Blend(
        tuple(
            (part["weight"], _read_part(folder, part["family"], f"part{i}", num_features, known))
            for i, part in enumerate(described["parts"])
        )
    )


def _read_part(folder: Path, family: str, stem: str, num_features: int, known: Mapping[str, int]) -> Predictor:
    if family == Trees.family:
        return Trees.load(folder, stem, known.get(stem, 0))
    if family != Network.family:
        raise InputError(
            f"This version reads models of the families {', '.join(TOLERANCES)}, but got family={family} in {folder}. "
            "Upgrade evergreen."
        )
    network = Network.load(folder, stem)
    if network.num_features != num_features:
        raise InputError(
            f"A network takes the {num_features} features of its bundle's schema, but got "
            f"num_features={network.num_features} in {stem}.onnx. Register the model again with evergreen retrain."
        )
    return network
