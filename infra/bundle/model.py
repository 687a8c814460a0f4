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

from .encoder import encode_frame, matrix
from .errors import InputError
from .schema import Schema
from .vocabulary import UNKNOWN, Vocabulary

if TYPE_CHECKING:
    import xgboost as xgb

FORMAT = 1
GOLDEN_TOLERANCE = 1e-6
"""Largest difference to a golden prediction: float32 arithmetic on another machine."""
FILES = ("bundle.json", "schema.json", "vocabulary.json", "golden.json", "model.ubj")


@dataclass(frozen=True)
class Bundle:
    """A model with everything that it needs to answer raw rows."""

    schema: Schema
    vocabulary: Vocabulary
    booster: xgb.Booster
    threshold: float = 0.5
    """Probability from which a binary model says yes."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Where the model comes from: name, snapshot, split rule, metrics; JSON."""
    golden: tuple[list[dict[str, Any]], list[list[float]]] = field(default_factory=lambda: ([], []))
    """Raw rows and the scores that they must get, checked before a bundle answers anybody."""
    half_width: float | None = None
    """Half the width of a regression's prediction interval, in the target's unit; None: it gives none."""

    def save(self, folder: Path) -> None:
        """Write the bundle's files into an existing folder."""
        rows, scores = self.golden
        described = {
            "format": FORMAT,
            "threshold": self.threshold,
            "half_width": self.half_width,
            "facts": dict(self.facts),
        }
        (folder / "bundle.json").write_text(json.dumps(described, indent=1, sort_keys=True))
        (folder / "schema.json").write_text(self.schema.to_json())
        (folder / "vocabulary.json").write_text(self.vocabulary.to_json())
        (folder / "golden.json").write_text(json.dumps({"rows": rows, "scores": scores}))
        self.booster.save_model(folder / "model.ubj")

    @classmethod
    def load(cls, folder: Path) -> Bundle:
        """Read a bundle.

        Raises:
            InputError: the folder holds no bundle, or one of a newer format.
        """
        absent = [name for name in FILES if not (folder / name).is_file()]
        if absent:
            raise InputError(
                f"A bundle has the files {', '.join(FILES)}, but got a folder without {', '.join(absent)}: {folder}. "
                "Register the model again with evergreen retrain."
            )
        described = json.loads((folder / "bundle.json").read_text())
        if described["format"] > FORMAT:
            raise InputError(
                f"This version reads bundles up to format {FORMAT}, but got format={described['format']} in {folder}. "
                "Upgrade evergreen."
            )
        golden = json.loads((folder / "golden.json").read_text())
        import xgboost as xgb  # a second, which who only reads a configuration should not wait for

        booster = xgb.Booster(model_file=folder / "model.ubj")
        return cls(
            schema=Schema.from_json((folder / "schema.json").read_text()),
            vocabulary=Vocabulary.from_json((folder / "vocabulary.json").read_text()),
            booster=booster,
            threshold=described["threshold"],
            facts=described["facts"],
            golden=(golden["rows"], golden["scores"]),
            half_width=described["half_width"],
        )

    @property
    def name(self) -> str:
        """Return the name of the model."""
        return str(self.facts.get("model", ""))

    def predict(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Answer raw rows.

        Returns:
            `prediction` (label or number); for a regression with an interval also `prediction_low` and
            `prediction_high`; for a binary model also `probability` of the positive class; for a
            multiclass one `probability_<label>` for every class.
        """
        return self.answer(self.scores(encode_frame(frame, self.schema, self.vocabulary)))

    def scores(self, encoded: pl.DataFrame) -> NDArray[np.float32]:
        """Return scores of encoded rows: shape (rows,), or (rows, classes) for a multiclass model.

        Codes that the model's vocabulary does not have (they came later) count as unknown.
        """
        features = self.schema.features
        x_BF = matrix(encoded, features)
        for index, feature in enumerate(features):
            if feature.is_categorical:
                column = x_BF[:, index]
                column[column >= self.vocabulary.size(feature.column)] = UNKNOWN
        return self.scores_of_matrix(x_BF)

    def scores_of_matrix(self, x_BF: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return scores of a float32 matrix, shape (rows, features)."""
        if not len(x_BF):
            num_outputs = len(self.schema.labels) if self.schema.task == "multiclass" else 0
            return np.empty((0, num_outputs) if num_outputs else (0,), dtype=np.float32)
        return np.asarray(self.booster.inplace_predict(x_BF, missing=np.nan), dtype=np.float32)

    def answer(self, scores: NDArray[np.float32]) -> pl.DataFrame:
        """Return scores as the columns that a caller sees."""
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
        scores = self.scores(encode_frame(golden_frame(rows), self.schema, self.vocabulary))
        golden = (rows, scores.reshape(len(rows), -1).astype(float).tolist())
        return replace(self, golden=golden)

    def check_golden(self) -> None:
        """Raise a ValueError if the bundle no longer gives its golden predictions."""
        rows, expected = self.golden
        if not rows:
            return
        scores = self.scores(encode_frame(golden_frame(rows), self.schema, self.vocabulary)).reshape(len(rows), -1)
        worst = float(np.abs(scores - np.asarray(expected)).max())
        scale = max(1.0, float(np.abs(np.asarray(expected)).max()))
        if not worst <= GOLDEN_TOLERANCE * scale:
            raise ValueError(
                f"A bundle gives its golden predictions to within {GOLDEN_TOLERANCE}, but got a difference={worst}. "
                "Keep the version in production and register the model again."
            )


def golden_frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    """Return rows from JSON as a frame, whatever mixture of types a column has."""
    return pl.DataFrame(rows, infer_schema_length=None, strict=False)
