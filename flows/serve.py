"""The timetable: a deployment per flow of every model below a folder, and the process that starts their runs.

    retrain    asked for, on a schedule, or by an event
    predict    asked for, or on a schedule
    maintain   on a schedule

`evergreen up` runs this as a process of its own, with the server's address in its environment:

    python -m flows.serve FOLDER
"""

from __future__ import annotations

import asyncio
import logging
import platform
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import Flow
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags, FlowRunFilter
from prefect.client.schemas.objects import (
    ConcurrencyLimitConfig,
    ConcurrencyLimitStrategy,
    FlowRun,
    State,
    StateType,
)
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.runner import Runner
from prefect.states import AwaitingRetry, Cancelled, Crashed
from prefect.types.entrypoint import EntrypointType
from pydantic import PrivateAttr, TypeAdapter

from flows.deployed import forget_processes, process_of
from flows.maintain import maintain
from flows.models import Model, find_models
from flows.notify import apply_notifications, remove_notifications
from flows.predict import predict
from flows.retrain import retrain
from flows.timetable import DueRun, Timing, collapsed
from infra.errors import InputError
from infra.settings import Settings
from tasks._notify import NotifyConfig

log = logging.getLogger("evergreen")

TAG = "evergreen"
LOOK_SECONDS = 5.0
"""How often files are looked at, overdue runs collapsed and runs of dead processes found."""
UNMARKED_GRACE = timedelta(minutes=2)
"""How long a run that says that it works may be without the mark of its process."""
POLL_SECONDS = 2.0
MAX_RUNS_AT_ONCE = 4
STOPPED = "Runner is shutting down."
"""What Prefect says in a run that it ends because this process ends."""

FLOWS: Mapping[str, tuple[Flow[..., Any], str]] = {
    "retrain": (retrain, "Retrain {model} and put it in production if it is better."),
    "predict": (predict, "Score files with {model}'s champion; every row says which version scored it."),
    "maintain": (maintain, "Remove what no version and no next run of {model} needs."),
}


@dataclass(frozen=True)
class Applied:
    """What this process has told Prefect of one deployment."""

    id: UUID
    fingerprint: str


class ModelDeployment(RunnerDeployment):
    """A flow of one model. What people have changed about its schedules stays until the file's schedule changes.

    Prefect's own `apply` makes schedules anew, and un-pauses them, at every start.
    """

    _timing: Timing | None = PrivateAttr(default=None)
    _known: dict[str, str] = PrivateAttr(default_factory=dict)

    def follow(self, timing: Timing | None, known: dict[str, str]) -> ModelDeployment:
        """Say when the file wants it to run, and which schedules have been applied before."""
        self._timing, self._known = timing, known
        return self

    async def aapply(self, *args: Any, **kwargs: Any) -> UUID:
        """Create or update the deployment, and its schedule where the file's has changed; return its id."""
        deployment_id: UUID = await super().aapply(*args, **kwargs)
        wanted = repr(self._timing) if self._timing else ""
        if self._known.get(self.full_name, "") != wanted:
            async with get_client() as client:
                await replace_schedule(client, deployment_id, self._timing)
            self._known[self.full_name] = wanted
        return deployment_id


async def replace_schedule(client: PrefectClient, deployment_id: UUID, timing: Timing | None) -> None:
    """Make the file's schedule the deployment's only one."""
    for schedule in await client.read_deployment_schedules(deployment_id):
        await client.delete_deployment_schedule(deployment_id, schedule.id)
    if timing is not None:
        await client.create_deployment_schedules(
            deployment_id, [DeploymentScheduleCreate(schedule=prefect_schedule(timing), slug="file")]
        )


def prefect_schedule(timing: Timing) -> CronSchedule | IntervalSchedule:
    """Return a schedule as Prefect has it.

    Raises:
        InputError: the cron line has a field that does not exist.
    """
    try:
        if timing.cron is not None:
            return CronSchedule(cron=timing.cron, timezone=timing.timezone)
        assert timing.every is not None
        return IntervalSchedule(interval=timing.every, timezone=timing.timezone)
    except ValueError as error:
        raise InputError(
            f"A schedule is a cron line that exists, but got {timing.cron!r}. Correct it in [schedule]."
        ) from error


def deployment_of(model: Model, flow: str, known: dict[str, str]) -> ModelDeployment:
    """Return the deployment of one flow of a model, with the file's values in its form."""
    function, sentence = FLOWS[flow]
    config = model.config
    overlap = config.schedule.overlap
    strategy = ConcurrencyLimitStrategy.ENQUEUE if overlap == "queue" else ConcurrencyLimitStrategy.CANCEL_NEW
    parameters: dict[str, Any] = {"config": config.model_dump(mode="json"), "config_path": str(model.path)}
    if flow == "predict" and config.schedule.predict_input and config.schedule.predict_output:
        parameters |= {"source": config.schedule.predict_input, "output": config.schedule.predict_output}
    deployment = ModelDeployment.from_flow(
        function,
        name=config.model.name,
        parameters=parameters,
        description=description_of(model, sentence, flow),
        tags=[TAG, f"model:{config.model.name}"],
        concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=strategy),
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    assert isinstance(deployment, ModelDeployment)
    return deployment.follow(config.schedule.timing(flow), known)


def description_of(model: Model, sentence: str, flow: str) -> str:
    """Return what the page of a deployment says on top."""
    overlap = {
        "queue": "A run that is due while another one works waits for it; of several that wait the latest runs.",
        "skip": "A run that is due while another one works is cancelled.",
    }[model.config.schedule.overlap]
    when = getattr(model.config.schedule, flow)
    timing = f"Scheduled: `{when}` ({model.config.schedule.timezone})." if when else "Not scheduled in the file."
    return "\n\n".join(
        [
            sentence.format(model=f"**{model.config.model.name}**"),
            f"Configuration: `{model.path}`. What is changed in the form of a run applies to that run alone.",
            f"{timing} One run at a time. {overlap}",
        ]
    )


class Timetable:
    """The deployments of a folder, kept in step with its files."""

    def __init__(self, folder: Path, state: Path, runner: Runner) -> None:
        """Take up what an earlier process has applied."""
        self._folder, self._runner = folder, runner
        self._memory = state / "timetable.json"
        self._schedules: dict[str, str] = self._remembered()
        self._applied: dict[str, Applied] = {}
        self._notified: dict[str, NotifyConfig] = {}
        self._complaints: set[str] = set()
        self.models: tuple[Model, ...] = ()

    async def refresh(self) -> None:
        """Look at the files, and tell Prefect what has changed. A file that is broken leaves things as they are."""
        try:
            self.models = find_models(self._folder)
        except InputError as error:
            self._complain(str(error))
            return
        wanted = {}
        for model in self.models:
            for flow in FLOWS:
                deployment = deployment_of(model, flow, self._schedules)
                wanted[deployment.full_name] = deployment
        for name, deployment in wanted.items():
            fingerprint = f"{deployment.parameters}{deployment.description}{deployment.concurrency_limit}"
            before = self._applied.get(name)
            if before is None or before.fingerprint != fingerprint:
                deployment_id = await self._runner.aadd_deployment(deployment)
                self._applied[name] = Applied(deployment_id, fingerprint)
                log.info("%s %s", "Updated" if before else "Ready:", name)
        await self._notify()
        await self._remove({name for name in self._applied if name not in wanted})
        self._remember()

    async def _notify(self) -> None:
        """Have Prefect tell what each model's file asks for."""
        wanted = {model.config.model.name: model.config.notify for model in self.models}
        async with get_client() as client:
            for name, notify in wanted.items():
                if self._notified.get(name) != notify:
                    try:
                        await apply_notifications(client, name, notify)
                    except InputError as error:
                        self._complain(f"{name}: {error}")
                        continue
                    self._notified[name] = notify
            for name in self._notified.keys() - wanted.keys():
                await remove_notifications(client, name)
                del self._notified[name]

    async def _remove(self, names: set[str]) -> None:
        async with get_client() as client:
            for name in names:
                self._schedules.pop(name, None)
                try:
                    await client.delete_deployment(self._applied.pop(name).id)
                except ObjectNotFound:
                    continue
                log.info("Removed %s: its file is gone", name)

    async def remove_strangers(self) -> None:
        """Remove the deployments of an earlier process whose files are gone meanwhile."""
        async with get_client() as client:
            for deployment in await our_deployments(client):
                path = Path(str(deployment.parameters.get("config_path", "")))
                ours = path.is_relative_to(self._folder)
                if ours and deployment.id not in self.ids:
                    flow = str(deployment.entrypoint).rpartition(".")[2]
                    self._schedules.pop(f"{flow}/{deployment.name}", None)
                    await client.delete_deployment(deployment.id)
                    await remove_notifications(client, deployment.name)
                    log.info("Removed %s: %s is gone", deployment.name, path)

    @property
    def ids(self) -> set[UUID]:
        """The deployments that this process runs."""
        return {applied.id for applied in self._applied.values()}

    @property
    def states(self) -> set[Path]:
        """The state folders of the models."""
        settings = Settings()
        return {settings.locate(model.path).state for model in self.models}

    def _complain(self, complaint: str) -> None:
        if complaint not in self._complaints:
            log.error("%s The deployments stay as they are.", complaint)
        self._complaints = {complaint}

    def _remembered(self) -> dict[str, str]:
        try:
            return TypeAdapter(dict[str, str]).validate_json(self._memory.read_bytes())
        except (FileNotFoundError, ValueError):
            return {}

    def _remember(self) -> None:
        new = self._memory.with_suffix(".new")
        new.write_bytes(TypeAdapter(dict[str, str]).dump_json(self._schedules))
        new.replace(self._memory)


async def our_deployments(client: PrefectClient) -> list[DeploymentResponse]:
    """List the deployments that Evergreen has made on this server."""
    return await client.read_deployments(deployment_filter=DeploymentFilter(tags=DeploymentFilterTags(all_=[TAG])))


async def runs_in(client: PrefectClient, deployments: set[UUID], *states: StateType) -> list[FlowRun]:
    """List the runs of deployments that are in one of these states."""
    if not deployments:
        return []
    return await client.read_flow_runs(
        deployment_filter=DeploymentFilter.model_validate({"id": {"any_": list(deployments)}}),
        flow_run_filter=FlowRunFilter.model_validate({"state": {"type": {"any_": list(states)}}}),
        limit=200,
    )


async def collapse(client: PrefectClient, deployments: set[UUID]) -> None:
    """Of the overdue runs of each deployment leave the latest, and say so in the others."""
    waiting = await runs_in(client, deployments, StateType.SCHEDULED)
    for deployment in deployments:
        due = [
            DueRun(str(run.id), run.expected_start_time)
            for run in waiting
            if run.deployment_id == deployment
            and run.auto_scheduled
            and run.run_count == 0
            and run.expected_start_time is not None
        ]
        for run in collapsed(due, datetime.now(UTC)):
            message = "A later run of the same schedule is due as well, and sees the same data."
            await client.set_flow_run_state(UUID(run.id), Cancelled(message=message), force=True)
            log.info("Collapsed the run that was due at %s into a later one", run.due)


async def end_dead_runs(client: PrefectClient, deployments: set[UUID], states: set[Path]) -> None:
    """Find runs that say they work while their process is gone, and end them as crashed."""
    working = await runs_in(client, deployments, StateType.RUNNING, StateType.CANCELLING, StateType.PENDING)
    for state in states:
        forget_processes(state, {str(run.id) for run in working})
    for run in working:
        if is_dead(run, states):
            message = "Its process was killed, or its machine lost. Start it again: what was done is cached."
            await client.set_flow_run_state(run.id, Crashed(message=message), force=True)
            log.warning("Run %s has lost its process and is ended as crashed", run.name)


def is_dead(run: FlowRun, states: set[Path]) -> bool:
    """Return whether a run's process is gone; a process of another machine is left alone.

    A run leaves the mark of its process when it begins; one that is only handed out to a process has none yet.
    """
    if run.state is None or run.state.type not in (StateType.RUNNING, StateType.CANCELLING):
        return False
    process = next((found for state in states if (found := process_of(state, str(run.id)))), None)
    if process is not None and (process.since >= run.state.timestamp or run.state.type is StateType.CANCELLING):
        return process.host == platform.node() and not process.mark.is_alive
    return datetime.now(UTC) - run.state.timestamp > UNMARKED_GRACE


async def resume(client: PrefectClient, deployments: set[UUID]) -> None:
    """Start again what ended with an earlier process of this kind: the same runs go on from what is cached."""
    stopped = await runs_in(client, deployments, StateType.CANCELLED)
    lost = await runs_in(client, deployments, StateType.PENDING)  # handed out, but no process began
    for run in [*(run for run in stopped if run.state and run.state.message == STOPPED), *lost]:
        again: State[None] = AwaitingRetry(message="evergreen up has started again.")
        await client.set_flow_run_state(run.id, again, force=True)
        log.info("Run %s goes on", run.name)


async def serve(folder: Path, state: Path) -> None:
    """Keep the timetable of a folder until the process is told to stop."""
    runner = Runner(name="evergreen", pause_on_shutdown=False, limit=MAX_RUNS_AT_ONCE, query_seconds=POLL_SECONDS)
    timetable = Timetable(folder, state, runner)
    await timetable.refresh()
    await timetable.remove_strangers()
    async with get_client() as client:
        await tidy(client, timetable)
        await resume(client, timetable.ids)
        log.info("The timetable runs")
        watching = asyncio.create_task(watch(client, timetable, runner))
        try:
            await runner.start()
        finally:
            watching.cancel()


async def watch(client: PrefectClient, timetable: Timetable, runner: Runner) -> None:
    """Keep files, runs and processes in step. An error of the server is told, and the next look tries again."""
    while not runner.started:
        await asyncio.sleep(0.1)
    # The runner's own handler calls a coroutine without waiting for it, so that its runs would just be killed.
    loop, ending = asyncio.get_running_loop(), set[asyncio.Task[None]]()
    loop.add_signal_handler(signal.SIGTERM, lambda: ending.add(loop.create_task(runner.astop())))
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        for work in (timetable.refresh, partial(tidy, client, timetable)):
            await attempted(work)


async def attempted(work: Callable[[], Any]) -> None:
    """Do something that fails when the server is away for a moment."""
    import httpx
    from prefect.exceptions import PrefectException

    try:
        await work()
    except (httpx.HTTPError, PrefectException, OSError) as error:
        log.warning("The Prefect server does not answer as it should: %s", error)


async def tidy(client: PrefectClient, timetable: Timetable) -> None:
    """End the runs that are dead, and collapse those that are overdue."""
    await end_dead_runs(client, timetable.ids, timetable.states)
    await collapse(client, timetable.ids)


def main() -> None:
    """Run the timetable of the folder that is named, with its memory in the folder named second."""
    log.setLevel(logging.INFO)
    log.addHandler(logging.StreamHandler(sys.stdout))  # Prefect has set up the root logger its own way
    log.propagate = False
    asyncio.run(serve(Path(sys.argv[1]), Path(sys.argv[2])))


if __name__ == "__main__":
    main()
