"""What a worker of a cluster that somebody else has started must have in common with this process."""

from __future__ import annotations

import functools
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from infra.errors import RunError

if TYPE_CHECKING:
    from distributed import Client

LIBRARIES = ("dask", "distributed", "cloudpickle", "numpy", "polars", "pyarrow", "xgboost")
PACKAGES = ("infra", "tasks")
"""Whose functions workers run."""
CODE = "evergreen's code"


@dataclass(frozen=True)
class WorkerFacts:
    """One worker's versions, and how its libraries use their threads."""

    versions: Mapping[str, str]
    is_polars_bounded: bool
    is_passive: bool
    """Whether OpenMP's threads sleep while they wait."""


def versions_here() -> dict[str, str]:
    """Return the versions of this process: Python, the libraries that must agree, and a hash of our own code."""
    return {
        "python": ".".join(platform.python_version_tuple()[:2]),
        **{name: _version(name) for name in LIBRARIES},
        CODE: code_digest(),
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


@functools.cache
def code_digest() -> str:
    """Return a hash of the source of the packages that workers run."""
    hasher = blake3()
    root = Path(__file__).parents[1]
    for path in sorted(path for package in PACKAGES for path in (root / package).rglob("*.py")):
        hasher.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return hasher.hexdigest()[:12]


def facts_of_worker(threads: int) -> WorkerFacts:
    """Return the facts of the worker that this runs on, whose libraries are told to be modest if they can be still."""
    if "polars" not in sys.modules:
        os.environ.setdefault("POLARS_MAX_THREADS", str(threads))
    if "xgboost" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    return WorkerFacts(
        versions=versions_here(),
        is_polars_bounded="POLARS_MAX_THREADS" in os.environ,
        is_passive=os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive",
    )


def require_same(client: Client, address: str) -> list[str]:
    """Compare all workers with this process; return what a person should know.

    Raises:
        RunError: a worker, or the scheduler, has other versions, or a worker lacks our code.
    """
    here = versions_here()
    known: Any = client.get_versions()
    scheduler = known["scheduler"]["packages"]
    python = ".".join(scheduler["python"].split(".")[:2])
    found = {name: str(scheduler[name]) for name in ("dask", "distributed")}
    _compare(here, {"python": python, **found}, f"scheduler={address}")
    threads = client.nthreads()
    notes = []
    for worker, facts in client.run(facts_of_worker, max(threads.values(), default=1), on_error="return").items():
        if not isinstance(facts, WorkerFacts):
            raise RunError(
                f"A worker must have the code that it runs, but got worker={worker} without it "
                f"({facts}). Install this version of evergreen there."
            )
        _compare(here, facts.versions, f"worker={worker}")
        if lacks := _lacking(facts, threads.get(worker, 1)):
            notes.append(f"Worker {worker} may keep cores busy for nothing: start it with {' '.join(lacks)}.")
    return notes


def _compare(here: Mapping[str, str], there: Mapping[str, str], who: str) -> None:
    others = [f"{name}={value} instead of {here[name]}" for name, value in there.items() if value != here[name]]
    if others:
        raise RunError(
            f"Client, scheduler and workers must have the same versions, but got {', '.join(others)} on {who}. "
            "Install the same there as here, or run from an installation like theirs."
        )


def _lacking(facts: WorkerFacts, threads: int) -> list[str]:
    """Return the variables that a worker should have been started with."""
    polars = [] if facts.is_polars_bounded else [f"POLARS_MAX_THREADS={threads}"]
    return polars + ([] if facts.is_passive else ["OMP_WAIT_POLICY=passive"])
