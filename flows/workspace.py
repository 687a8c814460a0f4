"""Open all that a flow works with, and close it whatever happens."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from flows.config import RetrainConfig, changed_keys
from flows.deployed import current_run, leave_mark
from flows.ui import Reporters, UiReporter
from infra.clusters import open_cluster
from infra.errors import InputError
from infra.ledger import Ledger
from infra.services import is_recorded_elsewhere, running
from infra.settings import Places, Settings
from infra.storage import Store
from infra.tracking import Tracking, artifacts_of, default_uri, git_state
from tasks._maintain import remember_uses
from tasks._reporting import Reporter, SilentReporter
from tasks.stage import Run

LIBRARIES = ("evergreen", "prefect", "mlflow", "dask", "polars", "pyarrow", "xgboost", "optuna", "numpy")

reporter: ContextVar[Reporter] = ContextVar("reporter", default=SilentReporter())  # noqa: B039  it has no state
"""Who follows the runs of this context; the command line sets it."""


def open_tracking(settings: Settings, places: Places, model: str) -> Tracking:
    """Connect to MLflow: the server that is set, the one of a running `evergreen up`, or the state folder's database.

    Raises:
        InputError: the runs are recorded in a server's database, and no server is running.
    """
    if settings.mlflow_tracking_uri:
        return Tracking(settings.mlflow_tracking_uri, None, model)
    artifacts = artifacts_of(Store(places.root))
    if (services := running(places.state)) and services.mlflow_url:
        return Tracking(services.mlflow_url, artifacts, model)
    if is_recorded_elsewhere(places.state):
        raise InputError(
            f"The runs of {model!r} are recorded in the database that evergreen up was given, but got no server in "
            f"{places.state}. Start evergreen up --database again, or set MLFLOW_TRACKING_URI."
        )
    places.state.mkdir(parents=True, exist_ok=True)
    return Tracking(default_uri(places.state), artifacts, model)


@contextmanager
def open_run(config: RetrainConfig, config_path: Path, kind: str) -> Iterator[Run]:
    """Yield a run of a flow; it owns the MLflow run, which ends with it."""
    settings = Settings()
    places = settings.locate(config_path)
    store = Store(places.root)
    model = config.model.name
    tracking = open_tracking(settings, places, model)
    git = git_state(config_path.parent)
    changed = changed_keys(config, config_path)
    tags = {"evergreen.flow": kind, "evergreen.model": model, **(git.tags if git else {})}
    tags |= {"evergreen.changed": json.dumps(changed)} if changed else {}
    run_id = tracking.start_run(f"{kind} {datetime.now(UTC):%Y-%m-%d %H:%M:%S}", tags)
    status = "FAILED"
    follower = follower_of(places.state, model)
    try:
        tracking.log_params(run_id, config.model_dump(mode="json"))
        tracking.log_dict(run_id, "config.json", config.model_dump(mode="json"))
        leave_mark(places.state)
        with open_cluster(config.cluster, places.state / "dask", config_path.parent, follower.noted) as address:
            for key, (ours, files) in changed.items():
                follower.noted(f"For this run alone: {key} = {ours!r} (in the file: {files!r}).")
            yield Run(
                model=model,
                store=store,
                ledger=Ledger(store, model),
                tracking=tracking,
                run_id=run_id,
                cluster=address,
                base=config_path.parent,
                reporter=follower,
            )
        remember_uses(store, model, kind, run_id)
        status = "FINISHED"
    finally:
        tracking.finish(run_id, status)  # type: ignore[arg-type]


def follower_of(state: Path, model: str) -> Reporter:
    """Return who follows a run: who has asked to, and the Prefect UI where people can see it."""
    flow_run = current_run()
    if flow_run is None or not (flow_run.deployment_id or running(state)):
        return reporter.get()
    return Reporters([reporter.get(), UiReporter(model)])


def environment(base: Path) -> dict[str, str]:
    """Return the versions and the code that a run depends on."""
    git = git_state(base)
    code = {"git commit": f"{git.commit}{' (with local changes)' if git.is_dirty else ''}"} if git else {}
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}, **code}
