"""Vocabularies: append-only codes."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.bundle.vocabulary import MISSING, UNKNOWN, Vocabulary

QUICK = settings(max_examples=30, deadline=None, derandomize=True)
TEXTS = st.lists(st.text(max_size=3), max_size=8)


def codes_of(vocabulary: Vocabulary, *values: str | None) -> list[int]:
    """Return the codes of a few values of the column `city`."""
    return vocabulary.codes("city", pl.Series(values, dtype=pl.String)).to_list()


def test_codes_start_at_one() -> None:
    """Known values count from 1, unknown ones are 0, missing ones -1."""
    known = Vocabulary({"city": ("Rome", "", "Oslo")})

    assert [1, 2, 3, UNKNOWN, MISSING] == codes_of(known, "Rome", "", "Oslo", "Bern", None)


@pytest.mark.parametrize("vocabulary", [Vocabulary(), Vocabulary({"city": ()}), Vocabulary({"other": ("Rome",)})])
def test_without_values_all_is_unknown(vocabulary: Vocabulary) -> None:
    """A column of which nothing is known has unknown and missing codes alone."""
    assert ([UNKNOWN, MISSING], 1) == (codes_of(vocabulary, "Rome", None), vocabulary.size("city"))


def test_codes_are_int32() -> None:
    """Codes have one type, whatever is known."""
    texts = pl.Series(["Rome", None], dtype=pl.String)

    assert [pl.Int32, pl.Int32] == [
        v.codes("city", texts).dtype for v in (Vocabulary(), Vocabulary({"city": ("Rome",)}))
    ]


def test_size_counts_the_unknown_code() -> None:
    """The largest code is one less than the size."""
    assert 3 == Vocabulary({"city": ("Rome", "Oslo")}).size("city")


@QUICK
@given(TEXTS, TEXTS, TEXTS)
def test_values_keep_their_codes_for_ever(first: list[str], second: list[str], probe: list[str]) -> None:
    """Whatever is appended, a value that had a code has the same one afterwards."""
    before = Vocabulary().extended({"city": first})
    after = before.extended({"city": second, "other": second})
    old = codes_of(before, *probe)
    new = codes_of(after, *probe)

    assert old == [code if code < before.size("city") else UNKNOWN for code in new]


@QUICK
@given(TEXTS, TEXTS)
def test_each_value_has_one_code(first: list[str], second: list[str]) -> None:
    """Values that come again, in one list or a later one, are not appended twice."""
    values = Vocabulary().extended({"city": first}).extended({"city": second}).values["city"]

    assert list(dict.fromkeys(first + second)) == list(values)


@QUICK
@given(TEXTS, TEXTS)
def test_extending_again_changes_nothing(first: list[str], second: list[str]) -> None:
    """A run that sees the same values again has the same vocabulary."""
    once = Vocabulary().extended({"city": first, "b": second})

    assert once == once.extended({"city": first, "b": second})


def test_extending_leaves_the_original_alone() -> None:
    """A vocabulary is a value: extending returns another one."""
    known = Vocabulary({"city": ("Rome",)})
    known.extended({"city": ["Oslo"]})

    assert Vocabulary({"city": ("Rome",)}) == known


@QUICK
@given(st.dictionaries(st.text(max_size=3), st.lists(st.text(max_size=3), unique=True).map(tuple), max_size=4))
def test_json_round_trip(values: dict[str, tuple[str, ...]]) -> None:
    """A vocabulary read from its own JSON is the same, whatever characters it has."""
    assert Vocabulary(values) == Vocabulary.from_json(Vocabulary(values).to_json())
