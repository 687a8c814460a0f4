"""MLflow with a SQLite database and files."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from _boosters import booster, rows
from _networks import graph, weights

from infra import mlflow_server
from infra.bundle.model import Bundle
from infra.bundle.network import Network
from infra.bundle.schema import Column, Schema
from infra.bundle.trees import Trees
from infra.bundle.vocabulary import Vocabulary
from infra.errors import RunError
from infra.ledger import Ledger
from infra.processes import free_port, start_supervised
from infra.storage import Store
from infra.tracking import (
    ENVIRONMENT,
    DeletedRun,
    GitState,
    Tracking,
    Version,
    check_server,
    column_signature,
    configure_environment,
    default_uri,
    deleted_runs,
    git_state,
    purge_run,
    save_pyfunc,
)
from tasks._candidate import BundleRef
from tasks._certify import Certified
from tasks._compress import Frontier, Measured, Variant
from tasks._onnx_trees import forest_of, graphs_of, without_statistics
from tasks.certify import log_variants
from tasks.register import requirements
from tasks.stage import Run

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True, scope="module")
def environment() -> Iterator[None]:
    """Take back what the module sets in the environment."""
    before = dict(os.environ)
    configure_environment()
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a request be repeated once, not for half a minute."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a database whose migrations, which take seconds, are done once for all tests."""
    state = tmp_path_factory.mktemp("state")
    Tracking(default_uri(state), str(state / "artifacts"), "unused")
    return state / "mlflow.db"


@pytest.fixture
def tracking(migrated: Path, tmp_path: Path) -> Tracking:
    """Return an experiment in a database of its own."""
    with closing(sqlite3.connect(migrated)) as source, closing(sqlite3.connect(tmp_path / "mlflow.db")) as copy:
        source.backup(copy)
    return Tracking(default_uri(tmp_path), (tmp_path / "artifacts").as_uri(), "churn")


@pytest.fixture
def saved_model(tmp_path: Path) -> Path:
    """Return an MLflow model whose loader is a package of three lines."""
    package = tmp_path / "package"
    (package / "__pycache__").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__pycache__" / "pyfunc.pyc").touch()
    (package / "pyfunc.py").write_text(
        textwrap.dedent("""
            from pathlib import Path

            class Doubler:
                def __init__(self, factor): self.factor = factor
                def predict(self, model_input, params=None): return model_input["x"] * self.factor

            def _load_pyfunc(data_path): return Doubler(float((Path(data_path) / "factor.txt").read_text()))
        """)
    )
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "factor.txt").write_text("2")
    signature = column_signature({"x": "double"}, {"prediction": "double"})
    save_pyfunc(tmp_path / "model", bundle, signature, ["numpy"], package=package, package_name="tracking_test_bundle")
    return tmp_path / "model"


def read_run(tracking: Tracking, run_id: str) -> Any:
    """Return a run as MLflow has it."""
    from mlflow import MlflowClient

    return MlflowClient(tracking.uri).get_run(run_id)


def test_a_run_keeps_what_is_logged(tracking: Tracking) -> None:
    """Tags, nested parameters, metrics and series of any number arrive whole."""
    run_id = tracking.start_run("nightly", {"evergreen.model": "churn"})
    tracking.set_tags(run_id, {"verdict": "HOLD"})
    tracking.log_params(run_id, {"train": {"rounds": 10, "eta": 0.1}, "names": ["a"], "long": "x" * 7000, "none": None})
    tracking.log_params(run_id, {f"p{n}": n for n in range(250)})
    tracking.log_metrics(run_id, {"auc": 0.9, "auc/city=Rome": 0.8})
    tracking.log_series(run_id, {"loss": [1 / (n + 1) for n in range(2500)]})
    tracking.finish(run_id, "FINISHED")
    run = read_run(tracking, run_id)
    from mlflow import MlflowClient

    history = MlflowClient(tracking.uri).get_metric_history(run_id, "loss")

    assert ("nightly", "FINISHED") == (run.info.run_name, run.info.status)
    assert ("churn", "HOLD") == (run.data.tags["evergreen.model"], run.data.tags["verdict"])
    assert {
        "train.rounds": "10",
        "train.eta": "0.1",
        "names": '["a"]',
        "long": "x" * 6000,
        "none": "null",
        **{f"p{n}": str(n) for n in range(250)},
    } == run.data.params
    assert {"auc": 0.9, "auc/city_Rome": 0.8, "loss": 1 / 2500} == run.data.metrics
    assert [(n, 1 / (n + 1)) for n in range(2500)] == sorted((m.step, m.value) for m in history)


def test_runs_are_found_by_a_tag(tracking: Tracking) -> None:
    """Of all runs of the experiment those are found that have a tag's very value."""
    for number, value in enumerate(("a", "b", "a")):
        tracking.start_run(str(number), {"evergreen.frontier": value, "evergreen.variant": str(number)})

    found = [
        sorted(tags["evergreen.variant"] for tags in tracking.tags_of_runs("evergreen.frontier", value))
        for value in ("a", "b", "c")
    ]

    assert [["0", "2"], ["1"], []] == found


def test_variants_are_runs_below_the_first_that_made_them(tracking: Tracking, tmp_path: Path) -> None:
    """Each variant is a run with what was measured and became of it; a cached one adds none, and a lost one is made."""
    from mlflow import MlflowClient

    measured = Measured(100, 200, 10.0, 15.0, 1e6)
    given: dict[str, Any] = {"family": "xgboost", "bundle": BundleRef(()), "value": 0.8, "measured": measured}
    given |= {"lost": 0.0, "deviation": 0.0, "is_lossless": False}
    frontier = Frontier(
        (
            Variant(name="as trained", technique="", loss=0.4, **given),
            Variant(name="tiny", technique="first_rounds", loss=0.5, refused="too lossy", **given),
        ),
        (0,),
    )
    certified = Certified(BundleRef(()), 0, (), "Shipped as trained.")
    store = Store(str(tmp_path / "root"))
    runs = [
        Run("churn", store, Ledger(store, "churn"), tracking, tracking.start_run(name, {}), "inline", tmp_path)
        for name in ("first", "second", "third")
    ]

    def children(run: Run) -> list[Any]:
        found = MlflowClient(tracking.uri).search_runs(
            [tracking.experiment_id], f"tags.`mlflow.parentRunId` = '{run.run_id}'"
        )
        return sorted(found, key=lambda child: str(child.info.run_name))

    for run in runs[:2]:
        log_variants(run, frontier, certified)
    first, tiny = children(runs[0])
    MlflowClient(tracking.uri).delete_run(first.info.run_id)
    log_variants(runs[2], frontier, certified)

    assert [("variant as trained", "FINISHED"), ("variant tiny", "FINISHED")] == [
        (child.info.run_name, child.info.status) for child in (first, tiny)
    ]
    assert {"name": "tiny", "technique": "first_rounds", "family": "xgboost"} == tiny.data.params
    assert {"loss": 0.5, **vars(measured)} == tiny.data.metrics
    assert ("SHIPPED", "REFUSED", "too lossy") == (
        *(first.data.tags["evergreen.state"], tiny.data.tags["evergreen.state"]),
        tiny.data.tags["evergreen.why"],
    )
    assert [[], ["variant as trained"]] == [[child.info.run_name for child in children(run)] for run in runs[1:]]


def test_a_run_keeps_its_files(tracking: Tracking, tmp_path: Path) -> None:
    """Texts, values, bytes and files are found under their names."""
    run_id = tracking.start_run("files", {})
    (tmp_path / "notes.txt").write_text("notes")
    tracking.log_text(run_id, "report.html", "<p>")
    tracking.log_dict(run_id, "data/plan.json", {"städte": 1})
    tracking.log_bytes(run_id, "plots/roc.png", b"\x89PNG")
    tracking.log_file(run_id, tmp_path / "notes.txt", "logs")
    folder = next((tmp_path / "artifacts").glob(f"**/{run_id}/artifacts"))

    assert {
        "report.html": b"<p>",
        "data/plan.json": '{\n "städte": 1\n}'.encode(),
        "plots/roc.png": b"\x89PNG",
        "logs/notes.txt": b"notes",
    } == {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_is_linked_to_its_data(tracking: Tracking) -> None:
    """The data set of a run has its name, source, fingerprint and purpose."""
    run_id = tracking.start_run("data", {})
    profile = json.dumps({"num_rows": 10})
    tracking.log_dataset(run_id, "sales", "s3://bucket/sales", "f" * 64, "training", profile=profile)
    (linked,) = read_run(tracking, run_id).inputs.dataset_inputs
    data = linked.dataset

    assert ("sales", "f" * 36, "s3", '{"uri": "s3://bucket/sales"}', profile) == (
        data.name,
        data.digest,
        data.source_type,
        data.source,
        data.profile,
    )
    assert [("mlflow.data.context", "training")] == [(tag.key, tag.value) for tag in linked.tags]


def test_runs_of_two_threads_do_not_mix(tracking: Tracking) -> None:
    """Two runs written at once keep what is theirs, and no run is active."""
    import mlflow

    def write(name: str) -> dict[str, float]:
        run_id = tracking.start_run(name, {})
        for step in range(5):
            tracking.log_metrics(run_id, {f"{name}{step}": step})
        metrics: dict[str, float] = read_run(tracking, run_id).data.metrics
        return metrics

    with ThreadPoolExecutor(2) as pool:
        written = list(pool.map(write, ["a", "b"]))

    assert [{f"{name}{step}": float(step) for step in range(5)} for name in "ab"] == written
    assert mlflow.active_run() is None


def test_a_registered_model_loads_and_answers(tracking: Tracking, saved_model: Path) -> None:
    """`mlflow.pyfunc.load_model` of a version answers as the bundle does, without Evergreen."""
    run_id = tracking.start_run("train", {})
    version = tracking.register(run_id, "churn", saved_model, {"digest": "d1"})
    program = f"""
        import sys, mlflow, pandas
        mlflow.set_tracking_uri({tracking.uri!r})
        model = mlflow.pyfunc.load_model("models:/churn/{version}")
        print(model.predict(pandas.DataFrame({{"x": [1.0, 2.5]}})).tolist(), "infra" in sys.modules)
    """
    answer = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=saved_model.parent / "bundle",
        capture_output=True,
        text=True,
        check=True,
    )

    assert "[2.0, 5.0] False\n" == answer.stdout
    outputs = read_run(tracking, run_id).outputs.model_outputs
    assert 1 == len(outputs)


def test_a_network_answers_in_mlflow_without_xgboost(tmp_path: Path) -> None:
    """The pyfunc model of a network answers where neither XGBoost, torch nor Evergreen can be imported."""
    schema = Schema((Column("x", "numeric"), Column("y", "numeric")), target="y", task="regression")
    network = Network(graph(weights(1), "regression", has_spread=True))
    bundle = Bundle(schema, Vocabulary(), network, has_spread=True)
    rows = pl.DataFrame({"x": [1.0, 2.5]})
    data = tmp_path / "bundle"
    data.mkdir()
    bundle.with_golden(rows).save(data)
    outputs = {"prediction": "double", "prediction_spread": "double"}
    save_pyfunc(tmp_path / "model", data, column_signature({"x": "double"}, outputs), requirements(bundle))
    program = f"""
        import sys, mlflow, pandas
        sys.modules.update(dict.fromkeys(("xgboost", "torch", "infra")))
        model = mlflow.pyfunc.load_model({str(tmp_path / "model")!r})
        print(model.predict(pandas.DataFrame({{"x": [1.0, 2.5]}})).to_dict("list"))
    """
    answer = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=tmp_path, capture_output=True, text=True, check=True
    )

    assert f"{bundle.predict(rows).to_dict(as_series=False)}\n" == answer.stdout
    assert "xgboost" not in (tmp_path / "model" / "requirements.txt").read_text()


def test_trees_with_two_runtimes_answer_in_mlflow(tmp_path: Path) -> None:
    """The pyfunc model of compact trees answers few rows and many as the bundle does, without Evergreen and onnx."""
    schema = Schema((*(Column(name, "numeric") for name in "abcd"), Column("y", "numeric")), "y", "regression")
    trained = booster("regression")
    graphs = graphs_of(forest_of(trained))
    bundle = Bundle(schema, Vocabulary(), Trees(without_statistics(trained), graphs, crossover=3, is_compact=True))
    frame = pl.DataFrame(rows(20), schema=list("abcd"), orient="row")
    data = tmp_path / "bundle"
    data.mkdir()
    bundle.with_golden(frame.head(5).fill_nan(None)).save(data)
    inputs = dict.fromkeys("abcd", "double")
    save_pyfunc(tmp_path / "model", data, column_signature(inputs, {"prediction": "double"}), requirements(bundle))
    frame.write_parquet(tmp_path / "rows.parquet")
    program = f"""
        import sys, mlflow, pandas
        sys.modules.update(dict.fromkeys(("onnx", "infra", "tasks")))
        model = mlflow.pyfunc.load_model({str(tmp_path / "model")!r})
        rows = pandas.read_parquet("rows.parquet").astype("float64")
        print([model.predict(part)["prediction"].tolist() for part in (rows.head(2), rows)])
        print("onnxruntime" in sys.modules)
    """
    answer = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=tmp_path, capture_output=True, text=True, check=True
    )

    expected = bundle.predict(frame)["prediction"].to_list()
    assert f"{[expected[:2], expected]}\nTrue\n" == answer.stdout
    assert {"onnxruntime", "xgboost"} < set(re.split("==|\n", (tmp_path / "model" / "requirements.txt").read_text()))


def test_a_model_folder_holds_no_pickle(saved_model: Path) -> None:
    """A model is its data, the code that loads it, and MLflow's descriptions."""
    assert [
        "MLmodel",
        "code/tracking_test_bundle/__init__.py",
        "code/tracking_test_bundle/pyfunc.py",
        "conda.yaml",
        "data/bundle/factor.txt",
        "python_env.yaml",
        "requirements.txt",
    ] == sorted(str(path.relative_to(saved_model)) for path in saved_model.rglob("*") if path.is_file())
    assert "numpy" == (saved_model / "requirements.txt").read_text().strip().splitlines()[-1]


def test_versions_and_aliases(tracking: Tracking, saved_model: Path) -> None:
    """Versions count from 1; an alias points to one version, moves, and goes."""
    run_id = tracking.start_run("train", {})
    numbers = [tracking.register(run_id, "churn", saved_model, {"digest": f"d{n}"}) for n in range(2)]
    unknown = [tracking.version_by_alias(name, "champion") for name in ("churn", "absent")]
    tracking.set_alias("churn", "champion", "1")
    tracking.set_alias("churn", "previous", "1")
    tracking.set_alias("churn", "champion", "2")
    tracking.delete_alias("churn", "previous")
    tracking.delete_alias("churn", "previous")
    tracking.set_version_tag("churn", "2", "verdict", "PROMOTE")
    found = tracking.versions("churn")

    assert (["1", "2"], [None, None]) == (numbers, unknown)
    assert ("2", None) == tuple(tracking.version_by_alias("churn", alias) for alias in ("champion", "previous"))
    assert [
        Version("churn", "1", run_id, {"digest": "d0"}, (), found[0].created_ms),
        Version("churn", "2", run_id, {"digest": "d1", "verdict": "PROMOTE"}, ("champion",), found[1].created_ms),
    ] == found
    assert found == [tracking.get_version("churn", number) for number in numbers]
    assert [] == tracking.versions("absent")


def test_a_version_can_be_downloaded(tracking: Tracking, saved_model: Path, tmp_path: Path) -> None:
    """What was registered comes back file by file."""
    version = tracking.register(tracking.start_run("train", {}), "churn", saved_model, {})
    folder = tracking.download("churn", version, tmp_path / "downloaded")

    names = sorted(str(path.relative_to(saved_model)) for path in saved_model.rglob("*") if path.is_file())
    assert {name: (saved_model / name).read_bytes() for name in names if name != "MLmodel"} == {
        name: (folder / name).read_bytes() for name in names if name != "MLmodel"
    }


def test_an_upload_that_fails_is_no_version(tracking: Tracking, saved_model: Path, tmp_path: Path) -> None:
    """A model whose files are not all there is never a version."""
    run_id = tracking.start_run("train", {})
    (tmp_path / "artifacts").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="artifacts"):
        tracking.register(run_id, "churn", saved_model, {})

    assert [] == tracking.versions("churn")


def test_a_folder_that_is_no_model_is_not_registered(tracking: Tracking, tmp_path: Path) -> None:
    """MLflow would register an empty folder without a word."""
    with pytest.raises(AssertionError, match="absent is no MLflow model"):
        tracking.register("r1", "churn", tmp_path / "absent", {})


def test_two_processes_write_one_new_database(tmp_path: Path) -> None:
    """Two processes create the database, log and number versions at once without an error or a lost write."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "MLmodel").write_text("flavors: {}\n")
    program = f"""
        import sys
        from pathlib import Path
        from infra.tracking import Tracking, default_uri
        folder = Path({str(tmp_path)!r})
        tracking = Tracking(default_uri(folder / "state"), str(folder / "artifacts"), "churn")
        run_id = tracking.start_run(sys.argv[1], {{}})
        for n in range(20):
            tracking.log_metrics(run_id, {{f"m{{i}}": n for i in range(50)}}, step=n)
        print(*[tracking.register(run_id, "churn", folder / "model", {{}}) for _ in range(5)])
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    writers = [
        subprocess.Popen([*command, name], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for name in "ab"
    ]
    ends = [writer.communicate(timeout=120) for writer in writers]

    assert [0, 0] == [writer.returncode for writer in writers], ends
    assert {str(n) for n in range(1, 11)} == {version for out, _ in ends for version in out.split()}
    database = tmp_path / "state" / "mlflow.db"
    with closing(sqlite3.connect(database)) as connection:
        assert [("wal",)] == connection.execute("PRAGMA journal_mode").fetchall()
        assert [(2 * 20 * 50,)] == connection.execute("SELECT count(*) FROM metrics").fetchall()


def test_nothing_is_written_elsewhere(migrated: Path, tmp_path: Path) -> None:
    """The working folder stays empty: MLflow's own defaults are never used."""
    work = tmp_path / "work"
    work.mkdir()
    program = f"""
        from pathlib import Path
        from infra.tracking import Tracking, default_uri
        state = Path({str(migrated.parent)!r})
        tracking = Tracking(default_uri(state), str(state / "artifacts"), "elsewhere")
        run_id = tracking.start_run("a", {{}})
        tracking.log_text(run_id, "a.txt", "a")
        (model := state / "model").mkdir()
        (model / "MLmodel").write_text("flavors: {{}}")
        tracking.download("elsewhere", tracking.register(run_id, "elsewhere", model, {{}}), state / "back")
    """
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=work,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )

    assert [] == list(work.iterdir())


@pytest.fixture(scope="module")
def server_uri(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Give the address of one MLflow server, with a database of its own, to all tests that leave it running."""
    folder = tmp_path_factory.mktemp("server")
    uri = f"http://127.0.0.1:{free_port()}"
    database = folder / "mlflow.db"
    with closing(sqlite3.connect(migrated)) as source, closing(sqlite3.connect(database)) as copy:
        source.backup(copy)
    server = start_supervised(
        [
            *[sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", uri.rpartition(":")[2]],
            *["--backend-store-uri", f"sqlite:///{database}", "--artifacts-destination", str(folder / "artifacts")],
        ],
        env={**os.environ, **ENVIRONMENT},
        log=folder / "server.log",
    )
    try:
        wait_for_server(uri)
        yield uri
    finally:
        server.stop()


def test_a_server_is_used_like_a_database(server_uri: str, tmp_path: Path, saved_model: Path) -> None:
    """The same calls work through an MLflow server."""
    tracking = Tracking(server_uri, None, "churn")
    run_id = tracking.start_run("a", {})
    tracking.log_metrics(run_id, {"auc": 0.5})
    version = tracking.register(run_id, "churn", saved_model, {})
    tracking.set_alias("churn", "champion", version)

    assert {"auc": 0.5} == read_run(tracking, run_id).data.metrics
    assert version == tracking.version_by_alias("churn", "champion")
    assert tracking.version_by_alias("churn", "absent") is None
    assert (tracking.download("churn", version, tmp_path / "to") / "MLmodel").exists()
    assert f"{server_uri}/#/experiments/{tracking.experiment_id}/runs/{run_id}" == tracking.run_url(run_id)


def wait_for_server(uri: str) -> None:
    """Return when a server answers."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return check_server(uri)
        except RunError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def test_an_unreachable_server_is_named_without_its_password() -> None:
    """A server that does not answer is named at once; its password is not."""
    port = free_port()

    with pytest.raises(RunError, match=rf"but got tracking_uri=http://ann:\*\*\*@127.0.0.1:{port} \(.*Start that"):
        Tracking(f"http://ann:secret@127.0.0.1:{port}", None, "churn")


def test_a_server_that_vanishes_is_named_once(tracking: Tracking, tmp_path: Path, quick: None) -> None:
    """A server that ends during a run is named with the next step; what ends the run is told the same at once."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    server = mlflow_server.start(tracking.uri, str(tmp_path / "artifacts"), port, tmp_path / "server.log")
    try:
        mlflow_server.wait(server, url)
        watched = Tracking(url, None, "churn")
        run_id = watched.start_run("first", {})
    finally:
        server.stop()
    message = (
        rf"must answer until a run has ended, but got MLFLOW_TRACKING_URI={url}, which has stopped answering\. "
        "Start that server and run again"
    )

    for call in (lambda: watched.log_metrics(run_id, {"auc": 0.5}), lambda: watched.finish(run_id, "FAILED")):
        with pytest.raises(RunError, match=message):
            call()


def test_a_wrong_request_is_no_vanished_server(server_uri: str) -> None:
    """What a server refuses stays MLflow's own error."""
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match="not found"):
        Tracking(server_uri, None, "churn").finish("0" * 32, "FAILED")


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    """A file in the database's place is refused and left as it is."""
    (tmp_path / "mlflow.db").write_text("text, not a database, and long enough to be read as one" * 20)

    with pytest.raises(RunError, match=r"must be a SQLite file, but got .*mlflow\.db \(.*Move it away"):
        Tracking(default_uri(tmp_path), None, "churn")


def test_a_database_of_another_version_is_refused(tracking: Tracking, tmp_path: Path) -> None:
    """A database that this MLflow does not read is refused with the command that upgrades it."""
    shutil.copy(tmp_path / "mlflow.db", tmp_path / "old.db")
    with closing(sqlite3.connect(tmp_path / "old.db")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0584bdc529eb'")
        connection.commit()

    with pytest.raises(RunError, match=r"store must open, but got tracking_uri=sqlite.*mlflow db upgrade"):
        Tracking(f"sqlite:///{tmp_path / 'old.db'}", None, "churn")


def test_a_deleted_experiment_is_named(tracking: Tracking) -> None:
    """An experiment that was deleted is refused with the command that brings it back."""
    from mlflow import MlflowClient

    MlflowClient(tracking.uri).delete_experiment(tracking.experiment_id)

    with pytest.raises(RunError, match=r"must be active, but got experiment=churn deleted.*mlflow experiments restore"):
        Tracking(tracking.uri, None, "churn")


def test_a_run_in_a_database_can_be_found(tracking: Tracking, tmp_path: Path) -> None:
    """Without a server a run's place is the file and the command that shows it."""
    page = f"#/experiments/{tracking.experiment_id}/runs/r1"

    assert (
        f"{tmp_path / 'mlflow.db'} (mlflow ui --backend-store-uri sqlite:///{tmp_path / 'mlflow.db'}, then /{page})"
    ) == tracking.run_url("r1")


def test_the_state_of_the_code(tmp_path: Path) -> None:
    """A commit is known by its hash; a changed file makes it dirty; no repository is no state."""

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=A", "-c", "user.email=a@example.com"]
        command = ["git", *identity, *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()

    outside = git_state(tmp_path)
    git("init")
    without_commit = git_state(tmp_path)
    (tmp_path / "a.txt").touch()
    git("add", ".")
    git("commit", "-m", "a")
    clean = git_state(tmp_path)
    (tmp_path / "a.txt").write_text("changed")
    commit = git("rev-parse", "HEAD")

    assert (None, None, GitState(commit, False), GitState(commit, True)) == (
        outside,
        without_commit,
        clean,
        git_state(tmp_path),
    )
    assert {"mlflow.source.git.commit": commit, "evergreen.git_dirty": "true"} == GitState(commit, True).tags


def test_the_module_does_not_import_mlflow() -> None:
    """MLflow costs seconds to import, which a command that does not need it never pays."""
    code = "import sys, infra.tracking; print('mlflow' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    assert "False\n" == answer.stdout


def test_a_deleted_run_is_purged_with_its_files(tracking: Tracking, tmp_path: Path) -> None:
    """A run deleted long enough ago is listed; purging removes its rows and files, and a second time does nothing."""
    kept, gone = (tracking.start_run(name, {"evergreen.model": "churn"}) for name in ("kept", "gone"))
    for run_id in (kept, gone):
        tracking.log_text(run_id, "report.html", "x")
        tracking.log_metrics(run_id, {"auc": 0.9})
    from mlflow import MlflowClient

    client = MlflowClient(tracking.uri)
    client.delete_run(gone)
    elsewhere = client.create_run(client.create_experiment("other")).info.run_id
    client.delete_run(elsewhere)
    young = deleted_runs(tracking.uri, tracking.experiment_id, 3600)
    listed = deleted_runs(tracking.uri, tracking.experiment_id, 0)
    purged = [purge_run(tracking.uri, tracking.uri, run_id) for run_id in (gone, gone, kept)]
    files = {path.parts[-3] for path in (tmp_path / "artifacts").rglob("report.html")}

    assert ([], [DeletedRun(gone, "gone")], [True, False, False]) == (young, listed, purged)
    assert ({kept}, "deleted") == (files, client.get_run(elsewhere).info.lifecycle_stage)
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection:
        assert [(kept,)] == connection.execute("SELECT DISTINCT run_uuid FROM metrics").fetchall()


def test_purging_leaves_deleted_experiments_and_models(tracking: Tracking, saved_model: Path) -> None:
    """Other than with `mlflow gc`, a version's files and experiments that were deleted stay when a run is purged."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking.uri)
    run_id = tracking.start_run("trained", {})
    version = tracking.register(run_id, "churn", saved_model, {})
    other = client.create_experiment("other")
    client.delete_experiment(other)
    client.delete_run(run_id)
    purge_run(tracking.uri, tracking.uri, run_id)
    path = Path(client.get_model_version_download_uri("churn", version).removeprefix("file://"))

    assert (True, "deleted") == ((path / "MLmodel").is_file(), client.get_experiment(other).lifecycle_stage)


def test_files_are_purged_before_rows(tracking: Tracking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A purge that is cut off after the files is found and ended by the next one."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    run_id = tracking.start_run("gone", {})
    tracking.log_text(run_id, "report.html", "x")
    tracking._client.delete_run(run_id)
    with monkeypatch.context() as patch:
        patch.setattr(SqlAlchemyStore, "_hard_delete_run", lambda *_: (_ for _ in ()).throw(OSError("power cut")))
        with pytest.raises(OSError, match="power cut"):
            purge_run(tracking.uri, tracking.uri, run_id)
    left = [one.run_id for one in deleted_runs(tracking.uri, tracking.experiment_id, 0)]

    assert ([], [run_id]) == ([*(tmp_path / "artifacts").rglob("report.html")], left)
    assert (True, []) == (
        purge_run(tracking.uri, tracking.uri, run_id),
        deleted_runs(tracking.uri, tracking.experiment_id, 0),
    )
