"""Open all that a flow works with, and close it whatever happens."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from flows.config import RetrainConfig
from infra.clusters import open_cluster
from infra.ledger import Ledger
from infra.settings import Places, Settings
from infra.storage import Store
from infra.tracking import Tracking, default_uri, git_state
from tasks._reporting import Reporter, SilentReporter
from tasks.stage import Run

LIBRARIES = ("evergreen", "prefect", "mlflow", "dask", "polars", "pyarrow", "xgboost", "numpy")

reporter: ContextVar[Reporter] = ContextVar("reporter", default=SilentReporter())  # noqa: B039  it has no state
"""Who follows the runs of this context; the command line sets it."""


def open_tracking(settings: Settings, places: Places, model: str) -> Tracking:
    """Connect to MLflow: the server that is set, or the database of the state folder."""
    if settings.mlflow_tracking_uri:
        return Tracking(settings.mlflow_tracking_uri, None, model)
    places.state.mkdir(parents=True, exist_ok=True)
    store = Store(places.root)
    artifacts = Path(store.root, "mlflow").as_uri() if store.is_local else f"{store.root}/mlflow"
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
    tags = {"evergreen.flow": kind, "evergreen.model": model, **(git.tags if git else {})}
    run_id = tracking.start_run(f"{kind} {datetime.now(UTC):%Y-%m-%d %H:%M:%S}", tags)
    status = "FAILED"
    try:
        tracking.log_params(run_id, config.model_dump(mode="json"))
        tracking.log_dict(run_id, "config.json", config.model_dump(mode="json"))
        with open_cluster(config.cluster, places.state / "dask") as address:
            yield Run(
                model=model,
                store=store,
                ledger=Ledger(store, model),
                tracking=tracking,
                run_id=run_id,
                cluster=address,
                base=config_path.parent,
                reporter=reporter.get(),
            )
        status = "FINISHED"
    finally:
        tracking.finish(run_id, status)  # type: ignore[arg-type]


def environment(base: Path) -> dict[str, str]:
    """Return the versions and the code that a run depends on."""
    git = git_state(base)
    code = {"git commit": f"{git.commit}{' (with local changes)' if git.is_dirty else ''}"} if git else {}
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}, **code}
