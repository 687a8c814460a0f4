"""What a plan says of each file: what would be done with it, and why."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows import views
from flows.plan import Kept, kept
from infra.storage import Store
from tasks._cache import Cache, key_of
from tasks._jobs import PROFILES
from tasks._parts import Part
from tasks._profile import Profile
from tasks._snapshot import SourceFile

FILE = SourceFile("/data/a.csv", "csv", "d", 9, 1, None, (Part(0, 5, 1, "p"), Part(5, 9, 2, "q")))


def key_at(unit: SourceFile, version: int) -> str:
    """Return the key of a unit under a version of the code."""
    return key_of(unit.key, version)


def looked_up(cache: Cache, version: int) -> Kept:
    """Look up the units of a file for a version of the code."""
    return kept(cache, {unit: key_at(unit, version) for unit in FILE.units}, version, key_at)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """Give an empty cache."""
    return Cache(Store(str(tmp_path)), "profiles")


def test_what_is_missing_is_told_part_by_part(cache: Cache) -> None:
    """Of a file in parts the number of those that are missing is said, and nothing of one that is there."""
    nothing = looked_up(cache, 3).of(FILE)
    cache.keep(key_at(FILE.units[0], 3), Profile(1, {}), PROFILES)
    half = looked_up(cache, 3).of(FILE)
    cache.keep(key_at(FILE.units[1], 3), Profile(1, {}), PROFILES)

    assert (
        "run, 2 of 2 parts: nothing is stored for these inputs",
        "run, 1 of 2 parts: nothing is stored for these inputs",
        "reuse",
    ) == (nothing, half, looked_up(cache, 3).of(FILE))


def test_an_earlier_version_of_the_code_is_named(cache: Cache) -> None:
    """What an earlier version has done is told from what nobody has."""
    for unit in FILE.units:
        cache.keep(key_at(unit, 2), Profile(1, {}), PROFILES)

    assert "run, 2 of 2 parts: done by version 2 of the code, which is now 4" == looked_up(cache, 4).of(FILE)


def test_a_damaged_entry_is_told(cache: Cache) -> None:
    """An entry that is there but is not what was written is no hit."""
    for unit in FILE.units:
        cache.keep(key_at(unit, 1), Profile(1, {}), PROFILES)
        cache.store.put(cache.name(key_at(unit, 1)), b"oops")

    assert "run, 2 of 2 parts: its entry is damaged" == looked_up(cache, 1).of(FILE)


def test_files_are_listed_when_asked_for() -> None:
    """A plan for people is short, unless every file with its keys is asked for."""
    file = {"file": "/data/a.csv", "origin": "new", "profile": "run, why", "encode": "unknown", "keys": ("k1", "k2")}
    stage = {"name": "profile", "action": "run", "why": "1 of 1 files"}
    planned = {"model": "loans", "summary": "work starts at profile", "stages": [stage], "files": [file]}

    assert "loans: work starts at profile\n\n  profile   run     1 of 1 files" == views.plan_text(planned)
    assert (
        "\n\n/data/a.csv: new\n  profile   run, why\n  encode    unknown\n  keys      k1 k2"
        == views.plan_text(planned, with_files=True)[len(views.plan_text(planned)) :]
    )
