"""Release a version to the serving processes, and see that they take it."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx
from pydantic import BaseModel, ConfigDict, Field

from infra.errors import InputError, RunError
from infra.serving.target import Target, load_target, read_reports, read_target, remove_report, write_target
from infra.storage import Store

POLL_SECONDS = 0.2


class DeployConfig(BaseModel):
    """Where the champion answers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: Literal["local", "none"] = Field(
        default="local", description="local: processes started with evergreen serve; none: nothing is released."
    )
    port: int | None = Field(
        default=None, ge=1, le=65_535, description="Port where evergreen up serves the champion; empty: it does not."
    )
    timeout_seconds: float = Field(default=60.0, gt=0, description="How long a server may take to answer with it.")


@dataclass(frozen=True)
class Deployed:
    """What answers now."""

    version: str | None
    servers: tuple[str, ...]
    """The running servers that answer with it."""


def release(store: Store, target: Target, timeout_seconds: float) -> Deployed:
    """Point the serving processes to a version, and wait until every running one answers with it.

    Raises:
        RunError: the bundle fails its check, or a server refuses it; the version before is released again.
    """
    before = read_target(store, target.model)
    with tempfile.TemporaryDirectory() as folder:
        try:
            load_target(store, target, Path(folder))
        except (InputError, ValueError) as error:
            raise RunError(f"A released bundle passes its check, but got version={target.version}: {error}") from error
    write_target(store, target)
    try:
        return Deployed(target.version, _await_servers(store, target, timeout_seconds))
    except RunError:
        if before is not None:
            write_target(store, before)
        raise


def _await_servers(store: Store, target: Target, timeout_seconds: float) -> tuple[str, ...]:
    """Return the running servers once all of them answer with the target's version."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        alive = [report for report in read_reports(store, target.model) if _is_alive(store, target.model, report.url)]
        refusing = next((r for r in alive if r.refused and r.refused.startswith(f"{target.version}: ")), None)
        if refusing:
            raise RunError(
                f"Every server takes a released version, but got a refusal from {refusing.url} of {refusing.refused}. "
                "The version before goes on answering; see the server's log."
            )
        waiting = [report.url for report in alive if report.version != target.version]
        if not waiting:
            return tuple(report.url for report in alive)
        if time.monotonic() > deadline:
            raise RunError(
                f"Every server answers with a released version within {timeout_seconds:g} s, but got version="
                f"{target.version} not yet at {', '.join(waiting)}. The version before is released again; "
                "see the servers' logs, or raise deploy.timeout_seconds."
            )
        time.sleep(POLL_SECONDS)


def _is_alive(store: Store, model: str, url: str) -> bool:
    """Return whether a server answers; the report of one that was killed is removed."""
    try:
        return httpx.get(f"{url}/ping", timeout=5).status_code < 500
    except httpx.ConnectError:
        remove_report(store, model, url)
        return False
    except httpx.HTTPError:
        return True
