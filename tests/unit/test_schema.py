"""The schema of a model's data."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pydantic import ValidationError

from infra.bundle.errors import nearest
from infra.bundle.schema import Column, Feature, Schema

SCHEMA = Schema(
    columns=(
        Column("id", "identifier"),
        Column("age", "numeric", "numbers", "number", True, 1.5, 99.0),
        Column("city", "categorical", source_type="text"),
        Column("member", "boolean"),
        Column("joined", "datetime", date_format="%d.%m.%Y", parts=("month", "elapsed_days")),
        Column("note", "ignored"),
        Column("w", "numeric"),
        Column("y", "numeric"),
    ),
    target="y",
    task="binary",
    labels=("no", "yes"),
    time="joined",
    group="id",
    weight="w",
    hash_columns=("id", "age"),
    ignored_new=("later",),
)


def test_features_follow_the_columns() -> None:
    """Each kind becomes its features, in the order of the columns; target, weight and identifiers become none."""
    assert (
        Feature("age", "age", is_categorical=False),
        Feature("city", "city", is_categorical=True),
        Feature("member", "member", is_categorical=False),
        Feature("joined.month", "joined", is_categorical=False, part="month"),
        Feature("joined.elapsed_days", "joined", is_categorical=False, part="elapsed_days"),
    ) == SCHEMA.features


def test_inputs_are_what_a_caller_sends() -> None:
    """A caller sends the source columns of the features, and nothing else."""
    assert ["age", "city", "member", "joined"] == [column.name for column in SCHEMA.inputs]


def test_a_datetime_without_parts_is_no_input() -> None:
    """A column that becomes no feature need not be sent."""
    schema = replace(SCHEMA, columns=(Column("at", "datetime"), Column("y", "numeric")))

    assert () == schema.inputs


def test_a_column_is_found_by_its_name() -> None:
    """A column is looked up by name."""
    assert SCHEMA.columns[2] == SCHEMA.column("city")


def test_json_round_trip() -> None:
    """A schema read from its own JSON is the same schema."""
    assert SCHEMA == Schema.from_json(SCHEMA.to_json())


def test_unknown_kind_in_json_is_refused() -> None:
    """JSON with a kind that no version knows does not become a schema."""
    with pytest.raises(ValidationError, match="kind"):
        Schema.from_json(SCHEMA.to_json().replace('"boolean"', '"bool"'))


@pytest.mark.parametrize(
    "other",
    [
        replace(SCHEMA, ignored_new=()),
        replace(
            SCHEMA, columns=tuple(replace(c, reason="why", minimum=0.0, is_nullable=False) for c in SCHEMA.columns)
        ),
        replace(SCHEMA, columns=tuple(c for c in SCHEMA.columns if c.name != "note")),
    ],
)
def test_encoding_ignores_what_changes_no_shard(other: Schema) -> None:
    """Reasons, bounds and unused columns leave every shard valid."""
    assert SCHEMA.encoding() == other.encoding()


def _changed(name: str, **values: object) -> Schema:
    return replace(SCHEMA, columns=tuple(replace(c, **values) if c.name == name else c for c in SCHEMA.columns))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "other",
    [
        _changed("age", kind="categorical"),
        _changed("joined", date_format="%Y-%m-%d"),
        _changed("joined", parts=("month",)),
        replace(SCHEMA, columns=SCHEMA.columns[::-1]),
        replace(SCHEMA, labels=("yes", "no")),
        replace(SCHEMA, task="multiclass"),
        replace(SCHEMA, target="w", weight=None),
        replace(SCHEMA, time=None),
        replace(SCHEMA, group=None),
        replace(SCHEMA, weight=None),
        replace(SCHEMA, hash_columns=("age", "id")),
    ],
)
def test_encoding_tells_what_changes_a_shard(other: Schema) -> None:
    """What would encode a row differently is part of a shard's key."""
    assert SCHEMA.encoding() != other.encoding()


def test_nearest_offers_one_name_or_none() -> None:
    """A hint names the closest valid name, and stays silent when nothing is close."""
    assert (' Did you mean "target"?', "") == (nearest("tarrget", ["time", "target"]), nearest("xyz", ["target"]))
