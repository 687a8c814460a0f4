"""The target: which version a model's serving processes should answer with.

`deploy` writes it, serving processes look at it, and say in `reports` what they do about it.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from infra.bundle import trees
from infra.bundle.model import Bundle
from infra.imports import import_xgboost
from infra.storage import MissingError, Ref, Store


@dataclass(frozen=True)
class Target:
    """One version, ready to be loaded."""

    model: str
    version: str
    run_id: str
    files: tuple[Ref, ...]
    """The bundle's files."""
    released: str
    """UTC, ISO 8601."""


TARGETS: TypeAdapter[Target] = TypeAdapter(Target)


def target_name(model: str) -> str:
    """Return the name of a model's target object."""
    return f"serving/{model}/target.json"


def write_target(store: Store, target: Target) -> None:
    """Release a version to the serving processes."""
    store.put(target_name(target.model), TARGETS.dump_json(target))


def read_target(store: Store, model: str) -> Target | None:
    """Return the released version, or None before the first release."""
    try:
        return TARGETS.validate_json(store.get(target_name(model)))
    except MissingError:
        return None


def load_target(store: Store, target: Target, folder: Path) -> Bundle:
    """Load a released bundle through an empty folder, every file verified, and check its golden predictions.

    It runs in one thread, as it will for each request.

    Raises:
        RunError: a file is gone or damaged.
        ValueError: the bundle does not give its golden predictions.
    """
    for file in target.files:
        (folder / Path(file.name).name).write_bytes(store.get(file))
    if any(file.name.endswith(trees.SUFFIXES) for file in target.files):
        import_xgboost()
    bundle = Bundle.load(folder)
    # Requests run in parallel; threads within each would wait for one another (5 ms become 30 on 2 cores).
    bundle.predictor.use_one_thread()
    bundle.check_golden()
    return bundle


@dataclass(frozen=True)
class ServerReport:
    """What a serving process says of itself."""

    url: str
    pid: int
    version: str | None
    """The version that it answers with."""
    refused: str | None
    """A version that failed its check, and why; the one before goes on answering."""


REPORTS: TypeAdapter[ServerReport] = TypeAdapter(ServerReport)


def report_name(model: str, url: str) -> str:
    """Return the name of a serving process's report object."""
    safe = url.removeprefix("http://").replace(":", "-").replace("/", "")
    return f"serving/{model}/servers/{safe}.json"


def write_report(store: Store, model: str, report: ServerReport) -> None:
    """Say what this process answers with."""
    store.put(report_name(model, report.url), REPORTS.dump_json(report))


def read_reports(store: Store, model: str) -> list[ServerReport]:
    """List what the serving processes of a model have said."""
    reports = []
    for name in store.list(f"serving/{model}/servers/"):
        with suppress(MissingError):  # it ended just now
            reports.append(REPORTS.validate_json(store.get(name)))
    return reports


def remove_report(store: Store, model: str, url: str) -> None:
    """Withdraw a process's report, as it does when it ends."""
    store.delete(report_name(model, url))
