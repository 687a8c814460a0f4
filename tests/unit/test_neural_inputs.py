"""What a network learns of its features from the merged profile and the vocabulary."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import datetime
from typing import Any, get_args

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.bundle.encoder import encode_frame, matrix
from infra.bundle.schema import DatePart, Schema
from infra.bundle.vocabulary import Vocabulary
from tasks._encode import extended_vocabulary
from tasks._kinds import infer_schema
from tasks._neural.inputs import (
    LARGEST,
    SMOOTH_LIMIT,
    CodeInput,
    NetworkInputs,
    NumberInput,
    inputs_of,
    scaled_number,
    smooth,
)
from tasks._profile import Profile, merge, profile_frame
from tasks._snapshot import DataConfig

QUICK = settings(max_examples=60, deadline=None, derandomize=True)
BINS = 4


def known(*parts: pl.DataFrame, **settings: Any) -> tuple[Schema, Vocabulary, Profile]:
    """Profile parts of a table, and infer their schema."""
    labelled = [part.with_columns(y=pl.Series([i % 2 for i in range(part.height)])) for part in parts]
    seen = merge(profile_frame(part, None) for part in labelled)
    schema = infer_schema(seen, DataConfig(source="d", target="y", **settings), "binary", None)
    return schema, extended_vocabulary(Vocabulary({}), schema, seen), seen


def number_of(values: pl.Series, num_bins: int = BINS) -> NumberInput:
    """Return the input of a column of numbers."""
    (number,) = inputs_of(*known(pl.DataFrame({"x": values}), kinds={"x": "numeric"}), num_bins).numbers
    return number


def unscaled(number: NumberInput) -> list[float]:
    """Return the edges in the column's own unit."""
    bent = np.array(number.edges)
    return [float(e) for e in number.center + bent / np.sqrt(1 - (bent / SMOOTH_LIMIT) ** 2) / number.scale]


# Numbers


def test_numbers_are_scaled_by_their_quartiles() -> None:
    """A number is centred at its median and divided by the distance of its quartiles."""
    number = number_of(pl.Series(np.arange(101.0)))

    assert (0, 50.0, 1 / 50) == (number.position, number.center, number.scale)


def test_pieces_end_at_quantiles_of_all_parts() -> None:
    """The edges are quantiles of the merged profile, from the least value to the largest."""
    parts = (pl.DataFrame({"x": np.arange(51.0)}), pl.DataFrame({"x": np.arange(51.0, 101)}))
    (number,) = inputs_of(*known(*parts, kinds={"x": "numeric"}), BINS).numbers

    np.testing.assert_allclose(unscaled(number), [0, 25, 50, 75, 100], rtol=1e-5, atol=1e-4)


def test_equal_quartiles_scale_by_half_of_the_range() -> None:
    """Where half of the rows have one value, half of the range takes the place of the quartiles' distance."""
    number = number_of(pl.Series([0.0] * 80 + [8.0] * 20))

    assert (0.0, 0.25) == (number.center, number.scale)


def test_few_distinct_values_have_few_pieces() -> None:
    """A column of three values has two pieces, however many are asked for, and a step at each value."""
    number = number_of(pl.Series([1.0, 2.0, 4.0] * 30), num_bins=32)

    np.testing.assert_allclose(unscaled(number), [1, 2, 4], rtol=1e-5)


def test_a_constant_column_is_zero() -> None:
    """A column of one value is scaled by zero, so that no other value counts, and has one piece all the same."""
    number = number_of(pl.Series([7.0] * 20))

    assert NumberInput(0, 7.0, 0.0, (0.0, 1.0)) == number


def test_a_column_without_values_is_as_between_zero_and_one() -> None:
    """A number that the profile has never seen, or only as missing, is scaled as if from 0 to 1."""
    schema, vocabulary, seen = known(pl.DataFrame({"x": [1.0, 2.0]}))
    unseen = Profile(seen.num_rows, {name: column for name, column in seen.columns.items() if name != "x"})

    assert (
        NumberInput(0, 0.5, 2.0, scaled_number(0, [0.0, 1.0], BINS).edges)
        == inputs_of(schema, vocabulary, unseen, BINS).numbers[0]
    )
    assert (0.5, 2.0) == (number_of(pl.Series([None] * 9, dtype=pl.Float64)).center, 2.0)


def test_a_truth_value_lies_between_zero_and_one() -> None:
    """A boolean column has one piece from 0 to 1, whatever its share of truth."""
    inputs = inputs_of(*known(pl.DataFrame({"ok": [True] + [False] * 99}), kinds={"ok": "boolean"}), BINS)

    assert NetworkInputs((NumberInput(0, 0.5, 2.0, scaled_number(0, [0.0, 1.0], BINS).edges),), ()) == inputs


def test_numbers_beyond_float32_are_at_its_ends() -> None:
    """Numbers that float32 can't hold, or that differ by less than it can tell, give finite centers and scales."""
    huge = number_of(pl.Series([-1e300, 1e300] * 10 + [0.0]))
    tiny = number_of(pl.Series([0.0, 1e-44] * 10))

    assert all(map(math.isfinite, [huge.center, tiny.center]))
    assert 0 < huge.scale < tiny.scale <= LARGEST


@QUICK
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=40))
def test_edges_increase_whatever_the_quantiles(values: list[float]) -> None:
    """Of any quantiles, there are two edges or more, each larger in float32 than the one before, within the limit."""
    number = scaled_number(0, sorted(values), 8)
    edges = np.array(number.edges, np.float32)

    assert len(edges) >= 2
    assert np.all(np.diff(edges) > 0)
    assert np.all(np.abs(edges) <= SMOOTH_LIMIT)
    assert np.isfinite(np.float32([number.center, number.scale, *1 / np.diff(edges)])).all()


@QUICK
@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_pieces_move_with_the_unit(shift: float, factor: float) -> None:
    """The same column in another unit has the same pieces, to within float32."""
    values = np.array([0.0, 1.0, 2.0, 4.0, 8.0])
    moved = scaled_number(0, [float(v) for v in values * factor + shift], 8)

    tolerance = 1e-5 + 4e-7 * abs(shift) / factor
    if tolerance < 0.1:
        np.testing.assert_allclose(moved.edges, scaled_number(0, values, 8).edges, atol=tolerance)


def test_smooth_keeps_small_numbers_and_their_order() -> None:
    """Bending leaves small numbers nearly as they are, keeps the order, and never reaches the limit."""
    values = np.array([-1e30, -10.0, -0.01, 0.0, 0.01, 10.0, 1e30])

    assert sorted(smooth(values).tolist()) == smooth(values).tolist()
    assert SMOOTH_LIMIT == np.abs(smooth(values)).max().round(12)
    np.testing.assert_allclose(smooth(np.array([0.01])), [0.01], rtol=1e-5)


# Dates


def test_parts_of_dates_lie_over_what_they_can_be() -> None:
    """Months go from 1 to 12 and hours from 0 to 23, however few the data have; years and days over their span."""
    days = [datetime(2020, 3, 1), datetime(2021, 3, 1, 12), datetime(2024, 5, 9, 3)]
    schema, vocabulary, seen = known(pl.DataFrame({"at": days}))
    schema = replace(schema, columns=tuple(replace(c, parts=c.parts and get_args(DatePart)) for c in schema.columns))
    parts = [feature.part for feature in schema.features]
    found = dict(zip(parts, inputs_of(schema, vocabulary, seen, BINS).numbers, strict=True))
    borders = {part: [unscaled(number)[0], unscaled(number)[-1]] for part, number in found.items()}
    rows = matrix(encode_frame(pl.DataFrame({"at": days}), schema, vocabulary), schema.features)

    for part, ends in {"month": [1, 12], "day": [1, 31], "weekday": [1, 7], "hour": [0, 23]}.items():
        np.testing.assert_allclose(borders[part], ends, atol=1e-4)
    np.testing.assert_allclose(borders["year"], [2020.16, 2024.35], atol=0.01)
    np.testing.assert_allclose(borders["elapsed_days"], rows[[0, 2], parts.index("elapsed_days")], rtol=1e-5)


# Codes


def test_codes_are_those_of_the_vocabulary() -> None:
    """A categorical feature has the vocabulary's codes, the unknown one included, and a row for a missing value."""
    frame = pl.DataFrame({"x": [0.5 * i for i in range(8)], "city": ["Rome", "Oslo", "Rome", None] * 2})
    inputs = inputs_of(*known(frame), BINS)

    assert (CodeInput(1, 3),) == inputs.codes
    assert (2, 4) == (inputs.num_features, inputs.num_table_rows)


def test_a_column_without_known_values_has_one_code() -> None:
    """A categorical column that the vocabulary lacks has the unknown code alone."""
    schema, _, seen = known(pl.DataFrame({"city": ["Rome", "Oslo", "Rome", None]}))

    assert (CodeInput(0, 1),) == inputs_of(schema, Vocabulary({}), seen, BINS).codes


@pytest.mark.parametrize("num_bins", [2, 32, 1024])
def test_there_are_at_most_as_many_pieces_as_are_asked_for(num_bins: int) -> None:
    """A column of many values has as many pieces as are asked for, or where its sketch holds fewer, as that holds."""
    number = number_of(pl.Series(np.random.default_rng(0).normal(size=5000)), num_bins)

    assert min(num_bins, 400) == min(len(number.edges) - 1, 400)
    assert len(number.edges) - 1 <= num_bins
