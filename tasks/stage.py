"""What every stage of a flow shares: its run, its cache, its clock, and its place in the Prefect UI."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Concatenate, ParamSpec, TypeVar, cast, get_type_hints

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed
from prefect.utilities.annotations import opaque
from pydantic import TypeAdapter

from infra.ledger import Ledger
from infra.storage import Store
from infra.tracking import Tracking
from tasks._cache import Cache, code_version, key_of
from tasks._reporting import Reporter, SilentReporter, StageTime, Usage

P = ParamSpec("P")
R = TypeVar("R")


@dataclass
class Run:
    """Where a run works and who follows it: the same for all its stages, never part of a cache key."""

    model: str
    store: Store
    ledger: Ledger
    tracking: Tracking
    run_id: str
    """The MLflow run, which the flow owns and ends."""
    cluster: str
    """Address for `infra.clusters.client_of`."""
    base: Path
    """Folder of the configuration; relative sources start here."""
    reporter: Reporter = field(default_factory=SilentReporter)
    times: list[StageTime] = field(default_factory=list)
    usage: Usage | None = None
    """What the training of this run took, if it was not disturbed."""

    def advance(self, stage: str) -> Callable[[int, int], None]:
        """Return a function that reports how many units of a stage are done."""
        return lambda done, total: self.reporter.advanced(stage, done, total, "")


def stage(
    *, code: tuple[ModuleType | str, ...] = (), libraries: tuple[str, ...] = (), cached: bool = False
) -> Callable[[Callable[Concatenate[Run, P], R]], Callable[Concatenate[Run, P], R]]:
    """Make a function a stage: a Prefect task that is timed, reported and, if asked, cached.

    The cache is ours, over references: its key is a hash of the stage's arguments, of the source of `code` and of
    the versions of `libraries`; a hit counts only if every object that the result refers to is intact. Results are
    JSON. Prefect neither stores results nor keeps them in memory, but shows a hit as the state `Cached`.
    """

    def decorate(function: Callable[Concatenate[Run, P], R]) -> Callable[Concatenate[Run, P], R]:
        name = function.__name__.replace("_", " ")

        def body(run: Run, *args: P.args, **kwargs: P.kwargs) -> R | State[R]:
            run.reporter.started(name)
            start = time.perf_counter()
            if cached:
                result, is_cached = _compute(run, function, (args, kwargs), code, libraries)
            else:
                result = function(run, *args, **kwargs)
                # Stages that work file by file know themselves whether anything was new.
                is_cached = bool(getattr(result, "is_reused", False))
            seconds = time.perf_counter() - start
            run.times.append(StageTime(name, seconds, is_cached))
            run.reporter.ended(name, seconds, is_cached)
            return Completed(name="Cached", message="Served from the cache.", data=result) if is_cached else result

        prefect_task: Any = task(
            name=name, task_run_name=f"{name} " + "{run.model}", cache_policy=NO_CACHE, persist_result=False
        )(body)

        def lookup(store: Store, *args: Any) -> str | R:
            """Return the cached result for these arguments, or why there is none."""
            cache, key, adapter = _entry(store, function, args, {}, code, libraries)
            found = cache.find(key, adapter)
            return found if found is not None else str(cache.why_absent(key))

        @functools.wraps(function)
        def call(run: Run, *args: P.args, **kwargs: P.kwargs) -> R:
            # Opaque: Prefect looks whose result an argument is, but not for futures in each of a profile's values.
            named = {key: opaque(value) for key, value in kwargs.items()}
            answer = prefect_task(opaque(run), *map(opaque, args), **named)
            return answer.result() if isinstance(answer, State) else answer  # type: ignore[no-any-return]

        call.lookup = lookup  # type: ignore[attr-defined]
        return cast("Callable[Concatenate[Run, P], R]", call)

    return decorate


def _entry(
    store: Store,
    function: Callable[..., R],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    code: tuple[ModuleType | str, ...],
    libraries: tuple[str, ...],
) -> tuple[Cache, str, TypeAdapter[R]]:
    """Return where a stage's result is kept, its key, and how it is read."""
    adapter: TypeAdapter[R] = TypeAdapter(get_type_hints(function)["return"])
    key = key_of(code_version(code, libraries), list(args), kwargs)
    return Cache(store, f"stages/{function.__name__}"), key, adapter


def _compute(
    run: Run,
    function: Callable[..., R],
    given: tuple[tuple[Any, ...], dict[str, Any]],
    code: tuple[ModuleType | str, ...],
    libraries: tuple[str, ...],
) -> tuple[R, bool]:
    """Return a stage's result, and whether it came from the cache."""
    cache, key, adapter = _entry(run.store, function, *given, code, libraries)
    found = cache.find(key, adapter)
    if found is not None:
        return found, True
    result = function(run, *given[0], **given[1])
    cache.keep(key, result, adapter)
    return result, False
