"""The same commands with all objects, or all sources, on S3, which a moto server stands in for."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from _drive import LEAN, Workspace

moto_app = pytest.importorskip("moto.moto_server.werkzeug_app")
serving = pytest.importorskip("werkzeug.serving")
boto3 = pytest.importorskip("boto3")

KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serve S3 with an empty bucket called `models` on a free port of this machine."""
    app = moto_app.DomainDispatcherApplication(moto_app.create_backend_app)
    server = serving.make_server("127.0.0.1", 0, app, threaded=True, request_handler=moto_app.MotoRequestHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3", endpoint_url=address).create_bucket(Bucket="models")
    yield address
    server.shutdown()
    thread.join()


@pytest.fixture(scope="module")
def three_months(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a configuration and data that nothing has been made of."""
    folder = tmp_path_factory.mktemp("months")
    Workspace(folder, {}).grow(3)
    return folder


def test_a_bucket_is_a_root_as_a_folder_is(tmp_path: Path, prefect_api: str, s3: str) -> None:
    """Retrain, retrain from the caches, status and batch scoring work with a root on S3; only databases stay here."""
    variables = {
        **KEYS,
        "AWS_ENDPOINT_URL": s3,
        "MLFLOW_S3_ENDPOINT_URL": s3,
        "EVERGREEN_ROOT": "s3://models/team",
        "PREFECT_API_URL": prefect_api,
    }
    workspace = Workspace(tmp_path, variables)
    workspace.grow(4)
    first = workspace.evergreen("retrain", "--json", *LEAN).answer
    second = workspace.evergreen("retrain", "--json", *LEAN).answer
    status = workspace.evergreen("status", "--json").answer
    scored = workspace.evergreen("predict", workspace.data, tmp_path / "scored.parquet", "--json", *LEAN).answer
    found = boto3.client("s3", endpoint_url=s3).list_objects_v2(Bucket="models")["Contents"]
    kept = {path.name for path in (tmp_path / ".evergreen").iterdir()}

    assert ("PROMOTE", "1") == (first["verdict"]["decision"], first["champion_version"])
    assert ("HOLD", "1", 0) == (second["verdict"]["decision"], second["version"], second["rows"]["new_files"])
    assert ("1", "s3://models/team") == (status["champion_version"], status["root"])
    assert (first["rows"]["total"], "1") == (scored["rows"], scored["version"])
    assert {"mlflow.db", "mlflow.db-shm", "mlflow.db-wal", "mlflow.db.lock", "prefect", "processes", "dask"} >= kept
    assert {"bundles", "ledger", "mlflow", "profiles", "reports", "runs", "scores", "serving"} <= {
        item["Key"].split("/")[1] for item in found if item["Key"].startswith("team/")
    }


def test_a_bucket_is_a_source_as_a_folder_is(tmp_path: Path, prefect_api: str, s3: str) -> None:
    """With the data on S3 and the root here: a first retrain, a plan and a retrain of one new month, batch scoring."""
    workspace = Workspace(tmp_path, {**KEYS, "AWS_ENDPOINT_URL": s3, "PREFECT_API_URL": prefect_api})
    client = boto3.client("s3", endpoint_url=s3)
    source = ("--set", "data.source=s3://models/data/*.parquet")

    def upload(months: int) -> dict[str, int]:
        """Copy all months to S3, known ones again, and return their addresses and numbers of rows."""
        workspace.grow(months)
        copied = {}
        for path in sorted(workspace.data.glob("*.parquet")):
            client.put_object(Bucket="models", Key=f"data/{path.name}", Body=path.read_bytes())
            copied[f"s3://models/data/{path.name}"] = pl.read_parquet(path).height
        return copied

    rows = upload(4)
    first = workspace.evergreen("retrain", "--json", *LEAN, *source).answer
    upload(5)
    plan = workspace.evergreen("plan", "--json", "--files", *LEAN, *source).answer
    second = workspace.evergreen("retrain", "--json", *LEAN, *source).answer
    again = workspace.evergreen("plan", "--json", *LEAN, *source).answer
    month = next(iter(rows))
    scored = workspace.evergreen("predict", month, tmp_path / "scored.parquet", "--json", *LEAN).answer
    origins = {one["file"]: one["origin"] for one in plan["files"]}

    assert ("PROMOTE", 4) == (first["verdict"]["decision"], first["rows"]["new_files"])
    assert 1 == second["rows"]["new_files"]
    assert list(rows) == [file for file, origin in origins.items() if origin == "unchanged"]
    assert ["new"] == [origin for origin in origins.values() if origin != "unchanged"]
    assert ["reuse", "reuse"] == [one["action"] for one in again["stages"] if one["name"] in ("profile", "encode")]
    assert rows[month] == scored["rows"] == pl.read_parquet(tmp_path / "scored.parquet").height


WRONG = {
    "bucket": (
        {"EVERGREEN_ROOT": "s3://elsewhere/team"},
        "evergreen: An S3 bucket must exist, but got bucket=elsewhere (s3://elsewhere/team). "
        "Make it, or correct EVERGREEN_ROOT.",
    ),
    "credentials": (
        {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_EC2_METADATA_DISABLED": "true"},
        "evergreen: S3 needs credentials, but got none for s3://models/team. "
        "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give this machine a role.",
    ),
}


@pytest.mark.parametrize("command", ["retrain", "plan"])
def test_a_source_that_can_not_be_used_is_one_line(tmp_path: Path, s3: str, three_months: Path, command: str) -> None:
    """A pattern without a match is refused before anything starts."""
    workspace = Workspace(tmp_path, {**KEYS, "AWS_ENDPOINT_URL": s3})
    shutil.copytree(three_months, tmp_path, dirs_exist_ok=True)
    ended = workspace.evergreen(command, "--set", "data.source=s3://models/data/*.csv")

    assert (2, "") == (ended.code, ended.stdout)
    assert ended.stderr == (
        'evergreen: A pattern must match at least one object, but got pattern="s3://models/data/*.csv". '
        'Correct data.source; "**/*.csv" searches subfolders.\n'
    )


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("command", ["retrain", "status", "plan", "gc"])
def test_a_root_that_can_not_be_used_is_one_line(
    tmp_path: Path, s3: str, three_months: Path, command: str, what: str
) -> None:
    """Each command says what to correct before it does anything else, and exits with 2."""
    changed, message = WRONG[what]
    workspace = Workspace(tmp_path, {**KEYS, "AWS_ENDPOINT_URL": s3, "EVERGREEN_ROOT": "s3://models/team", **changed})
    shutil.copytree(three_months, tmp_path, dirs_exist_ok=True)
    ended = workspace.evergreen(command)

    assert (2, "", message) == (ended.code, ended.stdout, ended.stderr.rstrip("\n"))
