"""Vocabularies: append-only category codes per column.

Code 0 is "unknown", -1 is missing, and a value keeps its code for ever, so that no shard is ever encoded again
because other values came later.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import polars as pl

MISSING = -1
UNKNOWN = 0


@functools.lru_cache(maxsize=64)
def _enum(values: tuple[str, ...]) -> pl.Enum:
    return pl.Enum(pl.Series(values, dtype=pl.String))


@dataclass(frozen=True)
class Vocabulary:
    """The known values of each categorical column, in the order of their codes from 1."""

    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def size(self, column: str) -> int:
        """Return the number of codes of a column, the unknown one included."""
        return len(self.values.get(column, ())) + 1

    def extended(self, fresh: Mapping[str, Iterable[str]]) -> Vocabulary:
        """Return a vocabulary with new values appended, in the order given.

        >>> Vocabulary({"city": ("Rome",)}).extended({"city": ["Oslo", "Rome"]}).values["city"]
        ('Rome', 'Oslo')
        """
        merged = dict(self.values)
        for column, values in fresh.items():
            known = merged.get(column, ())
            seen = set(known)
            merged[column] = known + tuple(v for v in dict.fromkeys(values) if v not in seen)
        return Vocabulary(merged)

    def codes(self, column: str, texts: pl.Series) -> pl.Series:
        """Return the int32 codes of a text column: -1 where it is missing, 0 where the value is unknown."""
        known = self.values.get(column, ())
        if not known:
            return texts.is_null().cast(pl.Int32) * MISSING
        # A cast finds a value twice as fast as a replacement; what the Enum does not have becomes null.
        places = texts.cast(_enum(known), strict=False).to_physical().cast(pl.Int32)
        codes = (places + 1).fill_null(UNKNOWN)
        return codes if not texts.null_count() else codes.set(texts.is_null(), MISSING)

    def to_json(self) -> str:
        """Return the vocabulary as JSON."""
        return json.dumps({column: list(values) for column, values in self.values.items()}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Vocabulary:
        """Read a vocabulary that `to_json` wrote."""
        return cls({column: tuple(values) for column, values in json.loads(text).items()})
