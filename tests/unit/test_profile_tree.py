"""The tree of profiles: a new leaf changes few nodes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.storage import Store
from tasks._cache import Cache, key_of
from tasks._jobs import PROFILES
from tasks._profile import Profile
from tasks._profile_tree import MAX_PARTS, levels_of, missing_of

QUICK = settings(max_examples=30, deadline=None, derandomize=True)
KEYS = [key_of("leaf", i) for i in range(5_000)]


@QUICK
@given(st.integers(1, 5_000))
def test_every_leaf_is_below_the_root_once(num_leaves: int) -> None:
    """Each level holds what the one below it gives, in its order, and the last is one node."""
    below = KEYS[:num_leaves]
    for level in levels_of(below):
        assert below == [part for node in level for part in node.parts]
        assert all(1 <= len(node.parts) <= MAX_PARTS for node in level)
        below = [node.key for node in level]
    assert 1 == len(below)


@pytest.mark.parametrize("place", [0, 2_500, 4_999])
def test_a_new_leaf_changes_few_nodes(place: int) -> None:
    """Wherever a leaf comes, few nodes are new, of the hundreds that there are."""
    old = {node.key for level in levels_of(KEYS) for node in level}
    fresh = [*KEYS[:place], key_of("new"), *KEYS[place:]]
    new = [node.key for level in levels_of(fresh) for node in level if node.key not in old]

    assert len(old) > 100
    assert len(new) <= 10


def test_few_leaves_are_one_node() -> None:
    """As many leaves as a node holds have no level between them and the root."""
    assert [[MAX_PARTS]] == [[len(node.parts) for node in level] for level in levels_of(KEYS[:MAX_PARTS])]


def test_what_is_below_a_stored_node_is_not_looked_at(tmp_path: Path) -> None:
    """Stored nodes stand for their leaves; what is missing is the new leaf and the nodes above it."""
    store = Store(str(tmp_path))
    cache = Cache(store, "profiles")
    for level in levels_of(KEYS[:200]):
        for node in level:
            cache.keep(node.key, Profile(1, {}), PROFILES)
    levels = levels_of(KEYS[:201])
    missing, leaves = missing_of(cache, levels)
    others = {part for node in missing[0] for part in node.parts}

    assert ([], set()) == (missing_of(cache, levels_of(KEYS[:200]))[0][0], missing_of(cache, levels_of(KEYS[:200]))[1])
    assert [1] * len(levels) == [len(nodes) for nodes in missing]
    assert KEYS[200] in leaves
    assert leaves == others, "no leaf is stored here, so those of the node that has changed are missing"
