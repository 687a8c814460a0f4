"""Ways to make a model smaller or faster: one module each, found by being here.

A module whose name has no underscore in front and that has a `TECHNIQUE` is a technique; see `technique.Technique`.
"""

from __future__ import annotations

import importlib
import pkgutil

from tasks._techniques.technique import Technique


def all_techniques() -> tuple[Technique, ...]:
    """Return every technique, the cheapest first.

    >>> [technique.name for technique in all_techniques()][0]
    'first rounds'
    """
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    found: list[Technique] = [module.TECHNIQUE for module in modules if hasattr(module, "TECHNIQUE")]
    return tuple(sorted(found, key=lambda technique: (technique.cost, technique.name)))
