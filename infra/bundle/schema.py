"""The schema: which column is what, and which features it becomes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pydantic import TypeAdapter

Kind = Literal["numeric", "categorical", "boolean", "datetime", "identifier", "ignored"]
Task = Literal["binary", "multiclass", "regression"]
DatePart = Literal["year", "month", "day", "weekday", "hour", "elapsed_days"]
ENCODER_VERSION = 2
"""Part of every shard's key; raised when the same row would be encoded differently."""


@dataclass(frozen=True)
class Column:
    """What a source column holds."""

    name: str
    kind: Kind
    reason: str = ""
    """Why it has this kind, in words for the report."""
    source_type: Literal["number", "integer", "text", "boolean", "datetime"] = "number"
    """The type in the source files; what a retyped column is compared with."""
    is_nullable: bool = False
    minimum: float | None = None
    """Smallest value seen; datetimes in seconds since 1970-01-01."""
    maximum: float | None = None
    date_format: str | None = None
    """strptime format of a datetime that is stored as text; None: a datetime type."""
    parts: tuple[DatePart, ...] = ()
    """The features of a datetime column."""
    hint: str = ""
    """What could be set otherwise, in words for whoever runs it."""


@dataclass(frozen=True)
class Feature:
    """One input of the model."""

    name: str
    column: str
    is_categorical: bool
    part: DatePart | None = None


@dataclass(frozen=True)
class Schema:
    """Columns of a model's data, in a fixed order, and the roles that some of them play."""

    columns: tuple[Column, ...]
    target: str
    task: Task
    labels: tuple[str, ...] = ()
    """Class names in the order of their codes; the second one is positive in a binary task. Empty for regression."""
    time: str | None = None
    group: str | None = None
    weight: str | None = None
    hash_columns: tuple[str, ...] = ()
    """The columns whose values decide a row's side of the split; kept for the life of a model."""
    ignored_new: tuple[str, ...] = field(default=())
    """Columns of the data that the schema does not know."""

    @property
    def features(self) -> tuple[Feature, ...]:
        """List the model's inputs in the order of its matrix."""
        listed: list[Feature] = []
        for column in self.columns:
            if column.name in (self.target, self.weight):
                continue
            if column.kind in ("numeric", "boolean"):
                listed.append(Feature(column.name, column.name, is_categorical=False))
            elif column.kind == "categorical":
                listed.append(Feature(column.name, column.name, is_categorical=True))
            elif column.kind == "datetime":
                listed += [
                    Feature(f"{column.name}.{part}", column.name, is_categorical=False, part=part)
                    for part in column.parts
                ]
        return tuple(listed)

    @property
    def inputs(self) -> tuple[Column, ...]:
        """List the source columns that a caller must send to get a prediction."""
        used = {feature.column for feature in self.features}
        return tuple(column for column in self.columns if column.name in used)

    def column(self, name: str) -> Column:
        """Return a column by its name."""
        return next(column for column in self.columns if column.name == name)

    def encoding(self) -> dict[str, Any]:
        """Return what decides how a row is encoded, and nothing else: part of a shard's key."""
        return {
            "columns": [[c.name, c.kind, c.date_format, list(c.parts)] for c in self.inputs],
            "target": [self.target, self.task, list(self.labels)],
            "roles": [self.time, self.group, self.weight],
            "time_format": self.column(self.time).date_format if self.time else None,
            "hash_columns": list(self.hash_columns),
            "version": ENCODER_VERSION,
        }

    def to_json(self) -> str:
        """Return the schema as JSON."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Schema:
        """Read a schema that `to_json` wrote."""
        return _SCHEMA.validate_json(text)


_SCHEMA: TypeAdapter[Schema] = TypeAdapter(Schema)
