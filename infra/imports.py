"""Imports that take less time: without the garbage collector, and without what nobody here needs."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Collect no garbage meanwhile; what exists afterwards is never looked at again.

    While large libraries are imported the collector looks at all objects again and again, a quarter of the time that
    takes, and frees nothing that matters.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def without(package: str) -> Iterator[None]:
    """Let imports find a package missing, unless it is loaded already."""
    is_loaded = package in sys.modules
    if not is_loaded:
        sys.modules[package] = None  # type: ignore[assignment]  # documented: the import then fails
    try:
        yield
    finally:
        if not is_loaded:
            del sys.modules[package]


def import_xgboost() -> None:
    """Import XGBoost without scikit-learn, now, before anybody does so with it.

    It imports scikit-learn where it is installed, and that imports pandas: 0.9 s and half of the memory of a process
    that needs neither.
    """
    with without("sklearn"):
        import xgboost  # noqa: F401
