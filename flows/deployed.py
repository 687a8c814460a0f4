"""What a run knows of the deployment that it belongs to: its slot on the schedule, and its process."""

from __future__ import annotations

import platform
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext
from prefect.states import Completed
from pydantic import TypeAdapter, ValidationError

from flows.config import RetrainConfig
from flows.timetable import Claim, needless_because
from infra.services import ProcessMark
from infra.settings import Settings
from infra.storage import Store

SKIPPED = "Skipped"
"""State of a scheduled run whose work another one has done."""


@dataclass(frozen=True)
class RunningProcess:
    """The process of a flow run, so that one that was killed can be told from one that works."""

    host: str
    mark: ProcessMark
    since: datetime
    """When this process took up the run; an earlier attempt had another one."""


CLAIM: TypeAdapter[Claim] = TypeAdapter(Claim)
PROCESS: TypeAdapter[RunningProcess] = TypeAdapter(RunningProcess)


def current_run() -> FlowRun | None:
    """Return the flow run that this code runs in, as Prefect knows it; None outside of one."""
    context = FlowRunContext.get()
    return context.flow_run if context else None


def skipped(flow: str, config: RetrainConfig, config_path: str) -> State[None] | None:
    """Return the end of a scheduled run whose work another one has done, or None where it should go on.

    A run that a person has started, or started again, always goes on.
    """
    run = current_run()
    if run is None or not run.auto_scheduled or run.run_count > 1 or run.expected_start_time is None:
        return None
    store = Store(Settings().locate(config_path).root)
    slot, now = run.expected_start_time.astimezone(UTC), datetime.now(UTC)
    by = needless_because(slot, str(run.id), claims_of(store, config.model.name, flow))
    if by is None and not claim(store, config.model.name, flow, Claim(slot, str(run.id), now)):
        by = next((one for one in claims_of(store, config.model.name, flow) if one.slot == slot), None)
    if by is None:
        return None
    return Completed(
        name=SKIPPED,
        message=f"Due at {slot:%Y-%m-%d %H:%M:%S} UTC; run {by.run_id}, which began at {by.began:%H:%M:%S}, "
        "has seen the same data.",
    )


def claim(store: Store, model: str, flow: str, claimed: Claim) -> bool:
    """Say that a run has begun for its slot; return False where another run has said so before."""
    try:
        store.create(f"{claims_prefix(model, flow)}{claimed.slot:%Y%m%dT%H%M%S.%f}.json", CLAIM.dump_json(claimed))
    except FileExistsError:
        return False
    return True


def claims_of(store: Store, model: str, flow: str) -> list[Claim]:
    """List the scheduled runs of a flow that have begun."""
    return [CLAIM.validate_json(store.get(name)) for name in store.list(claims_prefix(model, flow))]


def claims_prefix(model: str, flow: str) -> str:
    """Return where the claims of a flow are."""
    return f"timetable/{model}/{flow}/"


def leave_mark(state: Path) -> None:
    """Keep the mark of this flow run's process in the state folder.

    It stays after the run: a run that is about to say that it has ended would look lost without it.
    """
    run = current_run()
    if run is not None:
        path = process_path(state, str(run.id))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PROCESS.dump_json(RunningProcess(platform.node(), ProcessMark.own(), datetime.now(UTC))))


def process_path(state: Path, run_id: str) -> Path:
    """Return where the mark of a run's process is."""
    return state / "processes" / f"{run_id}.json"


def process_of(state: Path, run_id: str) -> RunningProcess | None:
    """Return the process that a run has had last."""
    with suppress(FileNotFoundError, ValidationError):
        return PROCESS.validate_json(process_path(state, run_id).read_bytes())
    return None


def forget_processes(state: Path, working: set[str]) -> None:
    """Remove the marks of processes that are gone and whose runs do not say that they work."""
    for path in (state / "processes").glob("*.json"):
        process = process_of(state, path.stem)
        is_gone = process is None or (process.host == platform.node() and not process.mark.is_alive)
        if is_gone and path.stem not in working:
            path.unlink(missing_ok=True)
