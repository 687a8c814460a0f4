"""Ways to make a model smaller or faster: one module each, found by being here.

A module whose name has no underscore in front and that has a `TECHNIQUE` is a technique; see `technique.Technique`.
So is what another package registers as an entry point of the group `evergreen.techniques`. A technique is known by its
name with underscores, which is that of its module.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from importlib.metadata import EntryPoint, entry_points
from typing import cast

from tasks._techniques.technique import Technique

GROUP = "evergreen.techniques"
CONTRACT = "technique"
"""The module that says what a technique is, and is none."""


def technique_keys() -> tuple[str, ...]:
    """Return what techniques are known by, without importing them.

    >>> "first_rounds" in technique_keys()
    True
    """
    own = {module.name for module in pkgutil.iter_modules(__path__)}
    own = {name for name in own if not name.startswith("_") and name != CONTRACT}
    return tuple(sorted(own | {point.name for point in _foreign()}))


def load_technique(key: str) -> Technique:
    """Import a technique; what that raises is its own."""
    for point in _foreign():
        if point.name == key:
            return cast(Technique, point.load())
    return cast(Technique, importlib.import_module(f"{__name__}.{key}").TECHNIQUE)


def module_of(key: str) -> str:
    """Return the module of a technique, whose source decides what it makes."""
    return next((point.module for point in _foreign() if point.name == key), f"{__name__}.{key}")


def technique_modules() -> tuple[str, ...]:
    """Return the modules of this package, and those of techniques of others that are to be found."""
    own = sorted(f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__))
    return (*own, *sorted(point.module for point in _foreign() if _is_there(point.module)))


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _foreign() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=GROUP))
