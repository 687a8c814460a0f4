"""What earlier runs computed: found again, or why not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter

from infra.storage import Ref, Store
from tasks import _cache, _split
from tasks._cache import Cache, code_version, key_of
from tasks._snapshot import SourceFile


@dataclass(frozen=True)
class Part:
    """A result that refers to stored objects."""

    files: tuple[Ref, ...]
    by_name: dict[str, Ref]
    maybe: Ref | None
    score: float


@dataclass(frozen=True)
class Keyed:
    """Something that says itself what its content depends on."""

    key: str
    path: str


class Settings(BaseModel):
    """A configuration."""

    rounds: int = 1


PARTS = TypeAdapter(Part)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Give an empty store."""
    return Store(str(tmp_path / "root"))


@pytest.fixture
def kept(store: Store) -> tuple[Cache, Part]:
    """Give a cache with one entry under the key `k`."""
    refs = [store.put(f"data/{i}", str(i).encode()) for i in range(4)]
    part = Part((refs[0], refs[1]), {"a": refs[2]}, refs[3], 0.5)
    cache = Cache(store, "stages/train")
    cache.keep("k", part, PARTS)
    return cache, part


def test_an_entry_is_found(kept: tuple[Cache, Part]) -> None:
    """What was kept is found as it was, and nothing is said against it."""
    cache, part = kept

    assert (part, None) == (cache.find("k", PARTS), cache.why_absent("k"))


def test_an_unknown_key_is_a_miss(kept: tuple[Cache, Part]) -> None:
    """Other inputs have no entry, nor have the same ones in another kind of cache."""
    cache, _ = kept
    other = Cache(cache.store, "stages/compress")

    assert [(None, "nothing is stored for these inputs")] * 2 == [
        (cache.find("other", PARTS), cache.why_absent("other")),
        (other.find("k", PARTS), other.why_absent("k")),
    ]


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("is_deleted", [True, False])
def test_a_broken_reference_is_a_miss(kept: tuple[Cache, Part], index: int, is_deleted: bool) -> None:
    """An entry does not count once an object that it refers to, wherever in it, is gone or changed: it is named."""
    cache, _ = kept
    path = Path(cache.store.root, f"data/{index}")
    path.unlink() if is_deleted else path.write_bytes(b"x")

    assert (None, f"data/{index} is gone or damaged") == (cache.find("k", PARTS), cache.why_absent("k"))


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"", lambda b: b + b" ", lambda b: b"\x00" + b[1:]])
def test_a_damaged_entry_is_a_miss(kept: tuple[Cache, Part], damage: Any) -> None:
    """An entry that was cut off or changed does not count, and this is said."""
    cache, _ = kept
    path = Path(cache.store.root, cache.name("k"))
    path.write_bytes(damage(path.read_bytes()))

    assert (None, "its entry is damaged") == (cache.find("k", PARTS), cache.why_absent("k"))


def test_an_entry_comes_back_with_its_object(kept: tuple[Cache, Part]) -> None:
    """An object that is put back, unchanged, makes its entries count again."""
    cache, part = kept
    path = Path(cache.store.root, "data/1")
    path.write_bytes(b"x")
    missed = cache.find("k", PARTS)
    path.write_bytes(b"1")

    assert (None, part) == (missed, cache.find("k", PARTS))


def test_a_later_entry_replaces_one(kept: tuple[Cache, Part]) -> None:
    """Keeping again under a key replaces the entry."""
    cache, part = kept
    later = replace(part, score=0.7, maybe=None)
    cache.keep("k", later, PARTS)

    assert later == cache.find("k", PARTS)


# Keys

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.dictionaries(st.text(max_size=3), JSON, max_size=4))
def test_the_order_of_names_does_not_matter(value: dict[str, Any]) -> None:
    """Equal values have equal keys, whatever order their names were given in."""
    assert key_of(value) == key_of(dict(reversed(value.items())))


def test_the_key_never_changes() -> None:
    """This key is the same on every machine: an upgrade that changed it would empty every cache."""
    expected = "71bfdc060c5dcce315ffbd84173d1ca6"

    assert expected == key_of("a", {"x": [1, 2.5, None, True]}, Settings(rounds=3), Ref("n", "d", 1))


def test_other_values_have_other_keys() -> None:
    """Values that differ in a type, an order, a place or a name have different keys."""
    values: list[tuple[Any, ...]] = [
        (),
        (None,),
        ("1",),
        (1,),
        (1.5,),
        (True,),
        ([1, 2],),
        ([2, 1],),
        (1, 2),
        ({"a": 1},),
        ({"b": 1},),
        ([{"a": 1}],),
        (Settings(),),
        (Settings(rounds=2),),
        (Ref("a", "b", 1),),
        (Ref("b", "a", 1),),
    ]

    assert len(values) == len({key_of(*value) for value in values})


def test_a_key_of_its_own_wins() -> None:
    """What says itself what its content depends on is known by that: a moved source file is the same input."""
    file = SourceFile("/a/x.csv", "parquet", "digest", 9, 1, None)
    moved = replace(file, path="/b/y.csv", modified_ns=2)

    assert key_of(Keyed("k", "/a")) == key_of(Keyed("k", "/b")) == key_of("k")
    assert key_of(file) == key_of(moved) != key_of(replace(file, digest="other"))


def test_what_is_no_data_has_no_key() -> None:
    """An object that could be anything is a programming error, and not a key by chance."""
    with pytest.raises(AssertionError, match="no part of a cache key: <class 'object'>"):
        key_of(object())


def test_code_is_part_of_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other modules, changed source and other library versions are another version of the code."""
    modules: list[ModuleType] = [_cache, _split]
    versions = [
        code_version(modules, ("numpy",)),
        code_version(modules[:1], ("numpy",)),
        code_version(modules, ()),
        code_version(modules, ("polars",)),
    ]
    monkeypatch.setattr("inspect.getsource", lambda module: f"{module.__name__} edited")

    assert 5 == len({*versions, code_version(modules, ("numpy",))})
