"""The tree in which profiles are merged, so that a new file costs a few merges however many files there are.

Where the leaves are divided into nodes depends on their keys alone, not on their number: after a leaf whose key says
so. A leaf that comes or goes therefore changes its own node, and the nodes above that, and leaves the others as they
are stored (content-defined chunking, Muthitacharoen, Chen and Mazieres 2001).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tasks._cache import Cache, key_of

FAN = 5
"""How many parts a node has on average."""
MIN_PARTS, MAX_PARTS = 2, 2 * FAN


@dataclass(frozen=True)
class Node:
    """A merged profile, and the profiles that it is merged from."""

    key: str
    parts: tuple[str, ...]
    """Their keys, in the order of the source files."""


def levels_of(keys: Sequence[str]) -> list[list[Node]]:
    """Return the nodes over some leaves, level by level from the lowest; the last level is the root alone.

    >>> [[len(node.parts) for node in level] for level in levels_of(["a", "b"])]
    [[2]]
    """
    levels: list[list[Node]] = []
    while not levels or len(keys) > 1:
        levels.append([Node(key_of("merged", parts), parts) for parts in _divided(keys)])
        keys = [node.key for node in levels[-1]]
    return levels


def _divided(keys: Sequence[str]) -> Iterator[tuple[str, ...]]:
    if len(keys) <= MAX_PARTS:
        yield tuple(keys)
        return
    parts: list[str] = []
    for key in keys:
        parts.append(key)
        if len(parts) >= MAX_PARTS or (len(parts) >= MIN_PARTS and int(key[-8:], 16) % FAN == 0):
            yield tuple(parts)
            parts = []
    if parts:
        yield tuple(parts)


def missing_of(cache: Cache, levels: list[list[Node]]) -> tuple[list[list[Node]], set[str]]:
    """Return the nodes that are not stored, level by level from the lowest, and the keys of the leaves that are not.

    What is below a node that is stored is not looked at.
    """
    wanted = {node.key for node in levels[-1]}
    missing: list[list[Node]] = []
    for level in reversed(levels):
        nodes = [node for node in level if node.key in wanted and not cache.has(node.key)]
        missing.insert(0, nodes)
        wanted = {part for node in nodes for part in node.parts}
    return missing, {key for key in wanted if not cache.has(key)}
