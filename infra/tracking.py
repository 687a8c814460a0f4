"""MLflow: runs, data sets, models and their versions, without an active run.

MLflow's fluent functions keep the active run per thread, so that stages side by side would write into each other's.
Everything here takes a run's id, and the owner of a run ends it. Metrics go in batches: one call with 1,000 costs
about as much as six single ones.

MLflow takes 1.5 s to import and reads its settings then, so the first `Tracking` imports it.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import sqlite3
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import urlencode, urlsplit

from infra.errors import RunError
from infra.mlflow_client import watched, without_password
from infra.storage import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.exceptions import MlflowException
    from mlflow.models import ModelSignature

Element = TypeVar("Element")
Answer = TypeVar("Answer")
RunStatus = Literal["FINISHED", "FAILED", "KILLED"]

MAX_PARAMS_PER_CALL = 100
MAX_PARAM_CHARS = 6000
MAX_METRICS_PER_CALL = 1000
MAX_DIGEST_CHARS = 36
"""MLflow's own limits."""
PARENT_TAG = "mlflow.parentRunId"
"""By which MLflow's pages show a run below another one."""

CONNECT_TIMEOUT_SECONDS = 10.0
SQLITE_TIMEOUT_SECONDS = 20.0
WAL_PAUSE_SECONDS = 0.1
CONTENTION_PAUSES_SECONDS = (0.1, 0.3, 1.0, 3.0)
BUNDLE_PACKAGE = Path(__file__).parent / "bundle"
PACKAGE_NAME = "evergreen_bundle"

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4",  # half a minute; with MLflow's 7, four
    "MLFLOW_SKIP_PIP_REQUIREMENTS_CHECK": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}


@dataclass(frozen=True)
class Version:
    """A version of a registered model."""

    name: str
    version: str
    run_id: str
    tags: Mapping[str, str]
    aliases: tuple[str, ...]
    created_ms: int


@dataclass(frozen=True)
class GitState:
    """The code that runs."""

    commit: str
    is_dirty: bool

    @property
    def tags(self) -> dict[str, str]:
        """The tags of a run of this code."""
        return {"mlflow.source.git.commit": self.commit, "evergreen.git_dirty": json.dumps(self.is_dirty)}


class Tracking:
    """One experiment of one MLflow server or database."""

    def __init__(self, uri: str, artifacts: str | None, experiment: str) -> None:
        """Connect, and create what is not there yet: the database, the experiment.

        `artifacts` is the folder or s3:// address for the files of a new experiment; None leaves it to the server.

        Raises:
            RunError: the server does not answer, or the database is of another version of MLflow.
        """
        configure_environment()
        self.uri = uri
        if urlsplit(uri).scheme in ("http", "https"):
            check_server(uri)
        elif (database := sqlite_path(uri)) is not None:
            enable_wal(database)
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        try:
            with creation_lock(sqlite_path(uri)):
                self._client = watched(MlflowClient(tracking_uri=uri, registry_uri=uri), uri)
                self.experiment_id = open_experiment(self._client, experiment, artifacts)
        except MlflowException as error:
            raise RunError(
                f"The MLflow store must open, but got tracking_uri={without_password(uri)} ({error.message}). "
                "Correct MLFLOW_TRACKING_URI, or upgrade the store with `mlflow db upgrade`."
            ) from error

    def start_run(self, name: str, tags: Mapping[str, str], parent: str | None = None) -> str:
        """Create a run, below another one if that is named, and return its id; whoever calls this calls `finish`."""
        nested = {PARENT_TAG: parent} if parent else {}
        run = self._client.create_run(self.experiment_id, run_name=name, tags={**tags, **nested})
        return str(run.info.run_id)

    def tags_of_runs(self, key: str, value: str) -> list[dict[str, str]]:
        """Return the tags of all runs of the experiment that have this value of a tag."""
        found: list[dict[str, str]] = []
        token: str | None = ""
        while token is not None:
            page = self._client.search_runs(
                [self.experiment_id], filter_string=f"tags.`{key}` = '{value}'", page_token=token or None
            )
            found += [dict(run.data.tags) for run in page]
            token = page.token or None
        return found

    def finish(self, run_id: str, status: RunStatus) -> None:
        """End a run."""
        self._client.set_terminated(run_id, status)

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run."""
        from mlflow.entities import RunTag

        for batch in batches([RunTag(key, value) for key, value in tags.items()], MAX_PARAMS_PER_CALL):
            self._client.log_batch(run_id, tags=batch)

    def log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        """Log parameters; nested ones as `outer.inner`, values cut at MLflow's limit."""
        from mlflow.entities import Param

        flat = [Param(valid_key(key), text_of(value)[:MAX_PARAM_CHARS]) for key, value in flattened(params)]
        for batch in batches(flat, MAX_PARAMS_PER_CALL):
            self._client.log_batch(run_id, params=batch)

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log metrics of one step."""
        self.log_points(run_id, [(name, value, step) for name, value in metrics.items()])

    def log_series(self, run_id: str, series: Mapping[str, Sequence[float]], first: int = 0) -> None:
        """Log metrics whose values are listed by step, from the first one."""
        self.log_points(
            run_id, [(name, value, step) for name, values in series.items() for step, value in enumerate(values, first)]
        )

    def log_points(self, run_id: str, points: Sequence[tuple[str, float, int]]) -> None:
        """Log values of metrics, each with its name and step."""
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        metrics = [Metric(valid_key(name), float(value), now_ms, step) for name, value, step in points]
        for batch in batches(metrics, MAX_METRICS_PER_CALL):
            self._client.log_batch(run_id, metrics=batch)

    def log_text(self, run_id: str, name: str, text: str) -> None:
        """Log a text as a file of the run; `name` is relative, like `report/index.html`."""
        self._client.log_text(run_id, text, name)

    def log_dict(self, run_id: str, name: str, values: Mapping[str, Any]) -> None:
        """Log values as a JSON file of the run."""
        self.log_text(run_id, name, json.dumps(values, indent=1, ensure_ascii=False))

    def log_bytes(self, run_id: str, name: str, payload: bytes) -> None:
        """Log bytes, such as a rendered figure, as a file of the run."""
        target = PurePosixPath(name)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / target.name
            path.write_bytes(payload)
            self.log_file(run_id, path, str(target.parent))

    def log_file(self, run_id: str, path: Path, folder: str = ".") -> None:
        """Log a file of this machine as a file of the run, in a folder of it."""
        self._client.log_artifact(run_id, str(path), None if folder == "." else folder)

    def log_dataset(
        self,
        run_id: str,
        name: str,
        source: str,
        digest: str,
        context: str,
        *,
        schema: str | None = None,
        profile: str | None = None,
    ) -> None:
        """Link a run to the data it has read.

        Args:
            run_id: The run.
            name: What people call the data.
            source: Folder or address of the data.
            digest: Fingerprint of the content; cut to the 36 characters that MLflow keeps.
            context: What the data was for: training, holdout.
            schema: JSON text.
            profile: JSON text.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        data = Dataset(
            name=name,
            digest=digest[:MAX_DIGEST_CHARS],
            source_type=urlsplit(source).scheme or "local",
            source=json.dumps({"uri": source}),
            schema=schema,
            profile=profile,
        )
        self._client.log_inputs(run_id, [DatasetInput(data, [InputTag("mlflow.data.context", context)])])

    def register(self, run_id: str, name: str, folder: Path, tags: Mapping[str, str]) -> str:
        """Upload a saved model as an output of its run and return its new version's number.

        `folder` is one that `save_pyfunc` wrote. A version is visible only once all its files are there.
        """
        from mlflow.entities import LoggedModelOutput

        assert (folder / "MLmodel").is_file(), f"{folder} is no MLflow model"  # MLflow would upload nothing and go on
        model = self._client.create_logged_model(self.experiment_id, name=name, source_run_id=run_id, tags=dict(tags))
        is_uploaded = False
        try:
            self._client.log_model_artifacts(model.model_id, str(folder))
            is_uploaded = True
        finally:
            self._client.finalize_logged_model(model.model_id, "READY" if is_uploaded else "FAILED")
        self._client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        self._create_registered_model(name)
        # Not `models:/<model_id>`: MLflow looks that up in its global tracking address, not in this client's.
        source = model.artifact_location
        created: ModelVersion = again_on_contention(
            lambda: self._client.create_model_version(
                name, source, run_id=run_id, tags=dict(tags), model_id=model.model_id
            )
        )
        return str(created.version)

    def _create_registered_model(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            again_on_contention(lambda: self._client.create_registered_model(name))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def get_version(self, name: str, version: str) -> Version:
        """Return a version with its tags and aliases."""
        return version_of(self._client.get_model_version(name, version))

    def versions(self, name: str) -> list[Version]:
        """List the versions of a model from the first to the last; none of a model that is not registered."""
        found: list[Version] = []
        token: str | None = ""
        while token is not None:
            page = self._client.search_model_versions(f"name = '{name}'", page_token=token or None)
            found += [version_of(entity) for entity in page]
            token = page.token or None
        aliases: dict[str, list[str]] = {}
        if found:
            for alias, version in self._client.get_registered_model(name).aliases.items():
                aliases.setdefault(str(version), []).append(alias)
        return sorted(
            (Version(**{**vars(v), "aliases": tuple(sorted(aliases.get(v.version, ())))}) for v in found),
            key=lambda v: int(v.version),
        )

    def set_version_tag(self, name: str, version: str, key: str, value: str) -> None:
        """Set a tag of a version."""
        self._client.set_model_version_tag(name, version, key, value)

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Point an alias to a version, in one atomic step; the caller holds the promotion's lock."""
        again_on_contention(lambda: self._client.set_registered_model_alias(name, alias, version))

    def delete_alias(self, name: str, alias: str) -> None:
        """Remove an alias; nothing happens when there is none."""
        again_on_contention(lambda: self._client.delete_registered_model_alias(name, alias))

    def version_by_alias(self, name: str, alias: str) -> str | None:
        """Return the version that an alias points to, or None when the model or the alias does not exist."""
        from mlflow.exceptions import MlflowException

        try:
            return str(self._client.get_model_version_by_alias(name, alias).version)
        except MlflowException as error:
            # An unknown alias of a known model is INVALID_PARAMETER_VALUE, an unknown model RESOURCE_DOES_NOT_EXIST.
            if error.error_code in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"):
                return None
            raise

    def download(self, name: str, version: str, to: Path) -> Path:
        """Copy a version's files into a folder of this machine and return it."""
        from mlflow.artifacts import download_artifacts

        to.mkdir(parents=True, exist_ok=True)
        return Path(
            download_artifacts(
                artifact_uri=self._client.get_model_version_download_uri(name, version),
                dst_path=str(to),
                tracking_uri=self.uri,
            )
        )

    def file_url(self, run_id: str, name: str) -> str | None:
        """Return where a browser finds a file of a run; None where no server shows it."""
        if urlsplit(self.uri).scheme not in ("http", "https"):
            return None
        query = urlencode({"path": name, "run_uuid": run_id})
        return f"{without_password(self.uri).rstrip('/')}/get-artifact?{query}"

    def run_url(self, run_id: str) -> str:
        """Return where a person can see a run: an address, or the database and the command that shows it."""
        page = f"#/experiments/{self.experiment_id}/runs/{run_id}"
        shown = without_password(self.uri)
        if urlsplit(self.uri).scheme in ("http", "https"):
            return f"{shown.rstrip('/')}/{page}"
        return f"{sqlite_path(self.uri) or shown} (mlflow ui --backend-store-uri {shown}, then /{page})"


@dataclass(frozen=True)
class DeletedRun:
    """A run that somebody has deleted, which MLflow keeps until it is purged."""

    run_id: str
    name: str


def deleted_runs(database: str, experiment_id: str, older_than_seconds: float) -> list[DeletedRun]:
    """List the runs of an experiment that were deleted so long ago; `database` is MLflow's own, not a server."""
    from mlflow.entities import ViewType

    client = client_of_database(database)
    # When a run was deleted only this tells; `mlflow gc` asks it too.
    old = set(client._tracking_client.store._get_deleted_runs(older_than=int(older_than_seconds * 1000)))
    found: list[DeletedRun] = []
    token: str | None = ""
    while token is not None:
        page = client.search_runs([experiment_id], run_view_type=ViewType.DELETED_ONLY, page_token=token or None)
        found += [DeletedRun(run.info.run_id, run.info.run_name) for run in page if run.info.run_id in old]
        token = page.token or None
    return found


def purge_run(database: str, tracking_uri: str, run_id: str) -> bool:
    """Remove a deleted run and its files for good; return False if it is gone, or was brought back, meanwhile.

    The steps are those of `mlflow gc`. The command itself, told which runs, would remove every deleted experiment and
    every deleted logged model as well, and a version may have come from one. Files go first: what is left after a
    crash is found again.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    client = client_of_database(database)
    try:
        info = client.get_run(run_id).info
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    if info.lifecycle_stage != "deleted":
        return False
    assert run_id in info.artifact_uri, f"{info.artifact_uri} is no folder of run {run_id} alone"
    files: Any = get_artifact_repository(info.artifact_uri, tracking_uri=tracking_uri)
    files.delete_artifacts()
    again_on_contention(lambda: client._tracking_client.store._hard_delete_run(run_id))
    return True


def client_of_database(database: str) -> MlflowClient:
    """Return a client that works on MLflow's database without a server: no server removes a run for good."""
    from mlflow import MlflowClient

    assert urlsplit(database).scheme not in ("http", "https"), f"{without_password(database)} is no database"
    return MlflowClient(tracking_uri=database, registry_uri=database)


def default_uri(state: Path) -> str:
    """Return the address of the database in a state folder."""
    return f"sqlite:///{state.resolve() / 'mlflow.db'}"


def artifacts_of(store: Store) -> str:
    """Return where the files of runs are whose objects are in a store."""
    return Path(store.root, "mlflow").as_uri() if store.is_local else f"{store.root}/mlflow"


def configure_environment() -> None:
    """Set what MLflow reads when it is imported; what the user has set stays."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def save_pyfunc(
    folder: Path,
    data_path: Path,
    signature: ModelSignature,
    requirements: Sequence[str],
    *,
    package: Path = BUNDLE_PACKAGE,
    package_name: str = PACKAGE_NAME,
) -> None:
    """Write an MLflow model: the data, and a copy of the package whose `pyfunc` module loads it.

    Nothing is pickled, and nothing is inferred: no example is run and no requirement is guessed.
    """
    configure_environment()
    import mlflow.pyfunc

    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*input example was not provided", category=UserWarning)
        code = Path(scratch) / package_name
        shutil.copytree(package, code, ignore=shutil.ignore_patterns("__pycache__"))
        mlflow.pyfunc.save_model(
            str(folder),
            loader_module=f"{package_name}.pyfunc",
            data_path=str(data_path),
            code_paths=[str(code)],
            signature=signature,
            pip_requirements=list(requirements),
        )


def column_signature(inputs: Mapping[str, str], outputs: Mapping[str, str]) -> ModelSignature:
    """Return a model's signature from column names and MLflow types: double, long, string, boolean, datetime."""
    configure_environment()
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    return ModelSignature(
        inputs=Schema([ColSpec(kind, name) for name, kind in inputs.items()]),
        outputs=Schema([ColSpec(kind, name) for name, kind in outputs.items()]),
    )


def git_state(folder: Path) -> GitState | None:
    """Return the commit of a folder's repository and whether files differ from it; None without git or commits."""
    if shutil.which("git") is None:
        return None
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=False)
    if commit.returncode != 0:
        return None
    changes = subprocess.run(["git", "status", "--porcelain"], cwd=folder, capture_output=True, text=True, check=True)
    return GitState(commit.stdout.strip(), bool(changes.stdout.strip()))


def open_experiment(client: MlflowClient, name: str, artifacts: str | None) -> str:
    """Return an experiment's id; create it if it does not exist."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(again_on_contention(lambda: client.create_experiment(name, artifact_location=artifacts)))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process was faster
                raise
        found = client.get_experiment_by_name(name)
        assert found is not None
    if found.lifecycle_stage != "active":
        raise RunError(
            f"An experiment must be active, but got experiment={name} deleted. "
            f"Bring it back with `mlflow experiments restore --experiment-id {found.experiment_id}`."
        )
    return str(found.experiment_id)


def again_on_contention(call: Callable[[], Answer]) -> Answer:
    """Return a call's answer; repeat it a few times while other writers are in its way."""
    from mlflow.exceptions import MlflowException

    for pause in CONTENTION_PAUSES_SECONDS:
        try:
            return call()
        except MlflowException as error:
            if not is_contention(error):
                raise
        time.sleep(pause)
    return call()


def is_contention(error: MlflowException) -> bool:
    """Return whether an error says that others wrote at the same time.

    MLflow gives up numbering a version after 3 attempts, and reports a locked database, both in words alone.
    """
    return error.error_code == "TEMPORARILY_UNAVAILABLE" or bool(
        re.search(r"Giving up after \d+ attempts|database is locked", error.message)
    )


def version_of(entity: ModelVersion) -> Version:
    """Return MLflow's entity as ours."""
    return Version(
        name=entity.name,
        version=str(entity.version),
        run_id=entity.run_id or "",
        tags=dict(entity.tags),
        aliases=tuple(sorted(entity.aliases)),
        created_ms=int(entity.creation_timestamp),
    )


def check_server(uri: str) -> None:
    """Raise a RunError unless an MLflow server answers; MLflow's own client would try for minutes."""
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=CONNECT_TIMEOUT_SECONDS):
            return
    except urllib.error.HTTPError as error:
        reason = f"it answers {error.code}"
    except (OSError, ValueError) as error:
        reason = str(getattr(error, "reason", error))
    raise RunError(
        f"An MLflow server must answer at the tracking address, but got tracking_uri={without_password(uri)} "
        f"({reason}). Start that server, or unset MLFLOW_TRACKING_URI to use a local database."
    )


def sqlite_path(uri: str) -> Path | None:
    """Return the file of a SQLite address, None of any other.

    >>> sqlite_path("sqlite:////state/mlflow.db")
    PosixPath('/state/mlflow.db')
    """
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def enable_wal(database: Path) -> None:
    """Let readers and a writer work at once: 6 writers take half the time. The setting stays in the file."""
    database.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + SQLITE_TIMEOUT_SECONDS
    while True:
        try:
            with closing(sqlite3.connect(database, timeout=SQLITE_TIMEOUT_SECONDS)) as connection:
                (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
                if mode != "wal":
                    connection.execute("PRAGMA journal_mode=WAL")
                return
        except sqlite3.Error as error:
            # Two that change the mode at once do not wait for one another, whatever the timeout.
            if "locked" in str(error) and time.monotonic() < deadline:
                time.sleep(WAL_PAUSE_SECONDS)
                continue
            raise RunError(
                f"The MLflow database must be a SQLite file, but got {database} ({error}). "
                "Move it away, or name another one in MLFLOW_TRACKING_URI."
            ) from error


@contextmanager
def creation_lock(database: Path | None) -> Iterator[None]:
    """Let one process at a time open a SQLite file: two would both migrate a new one, and one would fail."""
    if database is None:
        yield
        return
    with database.with_name(f"{database.name}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the kernel frees it when its holder dies
        yield


def valid_key(name: str) -> str:
    """Return a parameter's or metric's name with what MLflow refuses replaced.

    >>> valid_key("auc/city=São Paulo")
    'auc/city_São Paulo'
    """
    return re.sub(r"[^\w\-. :/]", "_", name)[:250]


def flattened(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested mappings with their dotted names.

    >>> dict(flattened({"data": {"target": "y"}, "seed": 1}))
    {'data.target': 'y', 'seed': 1}
    """
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def text_of(value: object) -> str:
    """Return a parameter's value as text; all but text itself as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def batches(elements: Sequence[Element], size: int) -> Iterator[Sequence[Element]]:
    """Yield consecutive parts of at most this size."""
    for start in range(0, len(elements), size):
        yield elements[start : start + size]
