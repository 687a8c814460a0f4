"""The serving process, from outside."""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import polars as pl
import pytest
import xgboost as xgb
from _networks import graph, weights

from infra.bundle.encoder import encode_frame, matrix
from infra.bundle.model import Bundle
from infra.bundle.network import Network
from infra.bundle.schema import Column, Schema
from infra.bundle.trees import Trees
from infra.bundle.vocabulary import Vocabulary
from infra.errors import InputError, RunError
from infra.serving.champion import Champion
from infra.serving.process import following
from infra.serving.server import serve
from infra.serving.target import ServerReport, Target, read_reports, write_target
from infra.storage import Ref, Store
from tasks._candidate import store_bundle

ROOT = Path(__file__).parents[2]
MODEL = "churn"
HEAVY = ("dask", "distributed", "httpx", "matplotlib", "mlflow", "pandas", "prefect", "torch")
PLANS = ("basic", "gold", "trial")


def make_rows(num_rows: int, seed: int) -> pl.DataFrame:
    """Make rows of every kind of column, with missing values in each."""
    rng = np.random.default_rng(seed)
    minutes = rng.integers(0, 2_000_000, num_rows)
    rows = pl.DataFrame(
        {
            "age": rng.normal(40, 12, num_rows),
            "plan": rng.choice([*PLANS, "never seen"], num_rows),
            "active": rng.random(num_rows) < 0.6,
            "joined": pl.Series((minutes * 60_000_000).tolist())
            .cast(pl.Datetime("us"))
            .dt.strftime("%Y-%m-%dT%H:%M:%S"),
        }
    )
    return rows.with_columns(
        pl.when(pl.Series(rng.random(num_rows) > 0.1)).then(pl.col(c)).alias(c) for c in rows.columns
    )


def make_bundle(seed: int, num_rounds: int = 20) -> Bundle:
    """Train a small model, another one for each seed."""
    schema = Schema(
        columns=(
            Column("age", "numeric", minimum=1.0, maximum=90.0, is_nullable=True),
            Column("plan", "categorical", source_type="text"),
            Column("active", "boolean", source_type="boolean"),
            Column(
                "joined",
                "datetime",
                source_type="text",
                date_format="%Y-%m-%dT%H:%M:%S",
                parts=("month", "hour", "elapsed_days"),
                minimum=0.0,
                maximum=86_400.0,
            ),
            Column("churned", "boolean"),
        ),
        target="churned",
        task="binary",
        labels=("no", "yes"),
    )
    vocabulary = Vocabulary({"plan": PLANS})
    rows = make_rows(400, seed)
    data = xgb.DMatrix(
        matrix(encode_frame(rows, schema, vocabulary), schema.features),
        label=np.random.default_rng(seed).integers(0, 2, 400),
        feature_types=["c" if feature.is_categorical else "q" for feature in schema.features],
    )
    booster = xgb.train({"objective": "binary:logistic", "nthread": 1}, data, num_rounds)
    return Bundle(schema, vocabulary, Trees(booster), threshold=0.4, facts={"model": MODEL}).with_golden(rows.head(5))


def target_of(store: Store, version: str, bundle: Bundle) -> Target:
    """Store a bundle, and return the target that releases it."""
    return Target(MODEL, version, f"run-{version}", store_bundle(store, bundle).files, "2026-11-21T04:00:00+00:00")


def make_network(seed: int) -> Bundle:
    """Make a network of the same columns, another one for each seed."""
    trees = make_bundle(seed=1, num_rounds=1)
    network = Network(graph(weights(len(trees.schema.features), seed=seed), has_spread=True))
    return replace(trees, predictor=network, has_spread=True).with_golden(make_rows(5, seed))


@dataclass(frozen=True)
class Server:
    """A running serving process."""

    process: subprocess.Popen[str]
    url: str
    first_line: str


@contextmanager
def serving(
    store: Store, poll_seconds: float = 0.05, max_body_bytes: int = 1 << 20, more: tuple[str, ...] = ()
) -> Iterator[Server]:
    """Serve on a free port in another process, which is ended at the latest when the block is left.

    Its last line names the large packages that it has loaded, of HEAVY and of some more.
    """
    code = f"""
from infra.serving.server import serve
serve({store.root!r}, {MODEL!r}, "127.0.0.1", 0, poll_seconds={poll_seconds}, max_body_bytes={max_body_bytes})
import sys
print("heavy:", sorted(set({(*HEAVY, *more)!r}) & set(sys.modules)), flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        if not line:
            raise AssertionError(process.communicate()[1])
        yield Server(process, line.rpartition(" ")[2], line)
    finally:
        process.kill()
        process.communicate()


@dataclass(frozen=True)
class World:
    """A server, its store, and the bundle that answers."""

    server: Server
    store: Store
    bundle: Bundle


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Serve version 7."""
    store = Store(str(tmp_path_factory.mktemp("store")))
    bundle = make_bundle(seed=1)
    write_target(store, target_of(store, "7", bundle))
    with serving(store) as server:
        yield World(server, store, bundle)


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Wait until something holds, and return whether it does."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def version_of(url: str) -> str:
    """Ask which version answers."""
    return httpx.get(f"{url}/version").text


def records(rows: pl.DataFrame) -> dict[str, Any]:
    """Return rows as a request."""
    return {"dataframe_records": rows.to_dicts()}


def test_all_forms_give_the_offline_predictions(world: World) -> None:
    """Each form gives the floats that the bundle gives offline, to the bit, and the version that made them."""
    rows = make_rows(200, seed=5)
    shuffled = rows.select(rows.columns[::-1]).with_columns(other=pl.lit("ignored"))
    forms = [
        records(rows),
        {"instances": rows.to_dicts()},
        {"inputs": rows.to_dicts()},
        {"inputs": rows.to_dict(as_series=False)},
        {"dataframe_split": {"columns": shuffled.columns, "data": shuffled.rows()}},
    ]
    with httpx.Client(base_url=world.server.url) as client:
        answers = [client.post("/invocations", json=form) for form in forms]
        csv = shuffled.with_columns(pl.col("active").cast(pl.String)).write_csv()
        answers.append(client.post("/invocations", content=csv, headers={"content-type": "text/csv; charset=UTF-8"}))

    expected = ({"predictions": world.bundle.predict(rows).to_dicts()}, "7", "application/json")
    assert [expected] * 6 == [(a.json(), a.headers["x-model-version"], a.headers["content-type"]) for a in answers]


def test_the_reply_is_that_of_mlflow(world: World) -> None:
    """The reply parses to what MLflow's scoring server writes for the pandas frame of the same predictions."""
    scoring_server = pytest.importorskip("mlflow.pyfunc.scoring_server")
    rows = make_rows(20, seed=6)
    theirs = StringIO()
    scoring_server.predictions_to_json(world.bundle.predict(rows).to_pandas(), theirs)

    assert json.loads(theirs.getvalue()) == httpx.post(f"{world.server.url}/invocations", json=records(rows)).json()


def test_the_server_describes_itself(world: World) -> None:
    """The line at the start, the health check, the version, the metadata and the report name what answers."""
    url = world.server.url
    column: dict[str, Any] = {"nullable": False, "minimum": None, "maximum": None, "examples": []}
    metadata = {
        "model": MODEL,
        "version": "7",
        "run_id": "run-7",
        "released": "2026-11-21T04:00:00+00:00",
        "task": "binary",
        "labels": ["no", "yes"],
        "threshold": 0.4,
        "inputs": [
            {**column, "name": "age", "kind": "numeric", "type": "number", "nullable": True}
            | {"minimum": 1.0, "maximum": 90.0},
            {**column, "name": "plan", "kind": "categorical", "type": "text", "examples": list(PLANS)},
            {**column, "name": "active", "kind": "boolean", "type": "boolean"},
            {**column, "name": "joined", "kind": "datetime", "type": "text"}
            | {"minimum": "1970-01-01T00:00:00", "maximum": "1970-01-02T00:00:00"},
        ],
        "refused": None,
    }

    assert f"churn version 7 answers at {url}" == world.server.first_line
    assert 200 == httpx.get(f"{url}/ping").status_code
    assert ("7", "text/plain; charset=utf-8") == (
        version_of(url),
        httpx.get(f"{url}/version").headers["content-type"],
    )
    assert metadata == httpx.get(f"{url}/metadata").json()
    assert [ServerReport(url, world.server.process.pid, "7", None)] == read_reports(world.store, MODEL)


@pytest.mark.parametrize(
    ("method", "path", "content", "content_type", "status", "code", "message"),
    [
        ("POST", "/invocations", b"{", "application/json", 400, "BAD_REQUEST", "A body must be valid JSON, but got"),
        ("POST", "/invocations", b'{"inputs": []}', "application/json", 400, "BAD_REQUEST", "at least one row"),
        (
            "POST",
            "/invocations",
            b'{"inputs": [{}]}',
            "application/json",
            400,
            "BAD_REQUEST",
            "none called 'age', 'plan'",
        ),
        ("POST", "/invocations", b"age\n1\n", "text/csv", 400, "BAD_REQUEST", "none called 'plan', 'active', 'joined'"),
        (
            "POST",
            "/invocations",
            b"x",
            "text/plain",
            415,
            "UNSUPPORTED_MEDIA_TYPE",
            "but got content-type='text/plain'",
        ),
        (
            "POST",
            "/invocations",
            b"x",
            "",
            415,
            "UNSUPPORTED_MEDIA_TYPE",
            "A body is application/json or text/csv in UTF-8",
        ),
        ("POST", "/invocations", b"x", "text/csv; charset=latin1", 415, "UNSUPPORTED_MEDIA_TYPE", "charset=latin1"),
        (
            "POST",
            "/invocations",
            b" " * (3 << 20),
            "application/json",
            413,
            "CONTENT_TOO_LARGE",
            "1048576 bytes, but got",
        ),
        (
            "POST",
            "/invocations",
            b" " * (9 << 20),
            "application/json",
            413,
            "CONTENT_TOO_LARGE",
            "in several requests.",
        ),
        (
            "GET",
            "/invocations",
            b"",
            "",
            405,
            "METHOD_NOT_ALLOWED",
            "The server answers POST /invocations and GET /ping",
        ),
        ("GET", "/other", b"", "", 404, "NOT_FOUND", "but got GET /other. Correct the address or the method."),
    ],
)
def test_a_mistake_is_answered_in_one_message(
    world: World, method: str, path: str, content: bytes, content_type: str, status: int, code: str, message: str
) -> None:
    """Each mistake has its status, its code and a message that says what was wrong."""
    answer = httpx.request(method, world.server.url + path, content=content, headers={"content-type": content_type})

    assert (status, code, True) == (
        answer.status_code,
        answer.json()["error_code"],
        message in answer.json()["message"],
    ), answer.text


def test_versions_are_exchanged_under_load(tmp_path: Path) -> None:
    """While versions change, no request fails, and each answer comes from the one version that it names."""
    store = Store(str(tmp_path))
    bundles = {"1": make_bundle(seed=1), "2": make_bundle(seed=2)}
    targets = {version: target_of(store, version, bundle) for version, bundle in bundles.items()}
    write_target(store, targets["1"])
    rows = make_rows(30, seed=7)
    expected = {version: {"predictions": bundle.predict(rows).to_dicts()} for version, bundle in bundles.items()}
    answers: list[tuple[int, str, bool]] = []
    stop = threading.Event()

    def ask(url: str) -> None:
        with httpx.Client(base_url=url) as client:
            while not stop.is_set():
                answer = client.post("/invocations", json=records(rows))
                version = answer.headers.get("x-model-version", "")
                answers.append((answer.status_code, version, expected.get(version) == answer.json()))

    with serving(store) as server:
        askers = [threading.Thread(target=ask, args=(server.url,)) for _ in range(4)]
        for asker in askers:
            asker.start()
        taken = []
        for version in ("2", "1", "2", "1", "2"):
            write_target(store, targets[version])
            wait_for(lambda version=version: version == version_of(server.url))  # type: ignore[misc]
            taken.append(version_of(server.url))
        stop.set()
        for asker in askers:
            asker.join()
        assert wait_for(lambda: ["2"] == [report.version for report in read_reports(store, MODEL)])

    assert expected["1"] != expected["2"]
    assert ["2", "1", "2", "1", "2"] == taken
    assert {(200, "1", True), (200, "2", True)} == set(answers)


def test_a_request_ends_with_the_version_that_it_began_with(tmp_path: Path) -> None:
    """A request whose body is still on its way while the version changes is answered by the version before."""
    store = Store(str(tmp_path))
    before, after = make_bundle(seed=1), make_bundle(seed=2)
    write_target(store, target_of(store, "1", before))
    rows = make_rows(3, seed=8)
    with serving(store) as server, half_sent(server.url, records(rows)) as (connection, rest):
        write_target(store, target_of(store, "2", after))
        assert wait_for(lambda: version_of(server.url) == "2")
        connection.send(rest)
        answer = connection.getresponse()

        assert ("1", {"predictions": before.predict(rows).to_dicts()}) == (
            answer.headers["x-model-version"],
            json.loads(answer.read()),
        )


def test_a_request_in_flight_is_finished_before_the_server_ends(tmp_path: Path) -> None:
    """SIGTERM closes the door, the request in flight is answered, the report is withdrawn, and the exit is clean."""
    store = Store(str(tmp_path))
    bundle = make_bundle(seed=1)
    write_target(store, target_of(store, "1", bundle))
    rows = make_rows(3, seed=8)
    with serving(store) as server, half_sent(server.url, records(rows)) as (connection, rest):
        assert 1 == len(read_reports(store, MODEL))
        server.process.send_signal(signal.SIGTERM)
        assert wait_for(lambda: not accepts(server.url))
        connection.send(rest)
        answer = json.loads(connection.getresponse().read())
        output, errors = server.process.communicate(timeout=20)

    assert {"predictions": bundle.predict(rows).to_dicts()} == answer
    assert (0, "heavy: []\n", "") == (server.process.returncode, output, errors)
    assert [] == read_reports(store, MODEL)


def test_a_network_is_served_without_xgboost_or_torch(tmp_path: Path) -> None:
    """A network gives its offline predictions, spread included, to parallel requests, by ONNX Runtime alone."""
    store, bundle, rows = Store(str(tmp_path)), make_network(seed=2), make_rows(50, seed=6)
    write_target(store, target_of(store, "1", bundle))
    with serving(store, more=("onnxruntime", "xgboost")) as server, httpx.Client(base_url=server.url) as client:
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: client.post("/invocations", json=records(rows)).json(), range(20)))
        server.process.terminate()
        output, errors = server.process.communicate(timeout=20)

    assert [{"predictions": bundle.predict(rows).to_dicts()}] * 20 == answers
    assert {"prediction", "probability", "prediction_spread"} == set(answers[0]["predictions"][0])
    assert ("heavy: ['onnxruntime']\n", "") == (output, errors)


def test_a_server_goes_from_a_network_to_trees(tmp_path: Path) -> None:
    """A release of another family is taken as any other."""
    store = Store(str(tmp_path))
    champion = Champion(store, MODEL)
    bundles = make_network(seed=2), make_bundle(seed=3)
    rows, answers = make_rows(20, seed=6), []
    for version, bundle in zip("12", bundles, strict=True):
        write_target(store, target_of(store, version, bundle))
        champion.look()
        assert champion.current is not None
        answers.append(champion.current.bundle.predict(rows).to_dicts())

    assert [bundle.predict(rows).to_dicts() for bundle in bundles] == answers
    assert champion.refused is None


def test_ctrl_c_ends_an_idle_server(tmp_path: Path) -> None:
    """SIGINT with an idle connection open ends the server at once, and the report is withdrawn."""
    store = Store(str(tmp_path))
    write_target(store, target_of(store, "1", make_bundle(seed=1)))
    with serving(store) as server, httpx.Client(base_url=server.url) as client:
        client.get("/ping")
        server.process.send_signal(signal.SIGINT)

        assert 0 == server.process.wait(5)
    assert [] == read_reports(store, MODEL)


@contextmanager
def half_sent(url: str, sent: dict[str, Any]) -> Iterator[tuple[http.client.HTTPConnection, bytes]]:
    """Send half of a request, and give its connection and the other half."""
    body = json.dumps(sent).encode()
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    connection.putrequest("POST", "/invocations")
    connection.putheader("content-type", "application/json")
    connection.putheader("content-length", str(len(body)))
    connection.endheaders(body[: len(body) // 2])
    time.sleep(0.3)  # for the server to begin with it; nothing that can be seen from outside tells when
    yield connection, body[len(body) // 2 :]
    connection.close()


def accepts(url: str) -> bool:
    """Return whether a server takes new connections."""
    host, _, port = url.removeprefix("http://").partition(":")
    with ExitStack() as stack:
        try:
            stack.enter_context(socket.create_connection((host, int(port)), timeout=5))
        except ConnectionRefusedError:
            return False
    return True


def damage(store: Store, target: Target) -> None:
    """Flip one byte of the model's file."""
    model = next(file for file in target.files if file.name.endswith("model.ubj"))
    path = Path(store.root, model.name)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_version_is_refused_and_the_next_one_taken(tmp_path: Path) -> None:
    """The old version goes on, report and metadata name the damaged one and why, and a good one clears that."""
    store = Store(str(tmp_path))
    bundle = make_bundle(seed=1)
    first, bad, good = (
        target_of(store, v, b) for v, b in (("1", bundle), ("2", make_bundle(2)), ("3", make_bundle(3)))
    )
    damage(store, bad)
    write_target(store, first)
    rows = make_rows(3, seed=9)
    with serving(store) as server:
        write_target(store, bad)
        assert wait_for(lambda: read_reports(store, MODEL)[0].refused is not None)
        (report,) = read_reports(store, MODEL)
        metadata = httpx.get(f"{server.url}/metadata").json()
        answer = httpx.post(f"{server.url}/invocations", json=records(rows))
        write_target(store, first)
        assert wait_for(lambda: read_reports(store, MODEL)[0].refused is None)
        write_target(store, bad)
        assert wait_for(lambda: read_reports(store, MODEL)[0].refused is not None)
        write_target(store, good)
        assert wait_for(lambda: read_reports(store, MODEL)[0].version == "3")
        (last,) = read_reports(store, MODEL)
        server.process.terminate()
        log = server.process.communicate(timeout=20)[1]

    assert report.refused is not None
    assert report.refused.startswith("2: A stored object must keep the content that was written, but got digest=")
    assert ("1", "1", report.refused) == (report.version, metadata["version"], metadata["refused"])
    assert ("1", {"predictions": bundle.predict(rows).to_dicts()}) == (answer.headers["x-model-version"], answer.json())
    assert ServerReport(server.url, server.process.pid, "3", None) == last
    assert "Version 2 is refused, and the one before goes on answering: A stored object" in log
    assert "Version 3 of churn answers from now on" in log
    assert "Traceback" not in log


def test_a_version_with_other_predictions_is_refused(tmp_path: Path) -> None:
    """A bundle that does not give its golden predictions never answers."""
    store = Store(str(tmp_path))
    good = make_bundle(seed=1)
    rows, scores = good.golden
    wrong = Bundle(good.schema, good.vocabulary, good.predictor, 0.4, golden=(rows, [[s + 0.1] for (s,) in scores]))
    write_target(store, target_of(store, "1", good))
    champion = Champion(store, MODEL)
    loaded = champion.load()
    write_target(store, target_of(store, "2", wrong))
    champion.look()

    assert loaded is champion.current
    assert champion.refused is not None
    assert champion.refused.startswith(
        "2: A bundle gives its golden predictions to within 1e-06, but got a difference="
    )


def test_a_store_that_does_not_answer_is_asked_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A target that cannot be read changes nothing, is told once in the log, and is taken when it can be read."""
    store = Store(str(tmp_path))
    first, second = (target_of(store, version, make_bundle(int(version))) for version in ("1", "2"))
    write_target(store, first)
    champion = Champion(store, MODEL)
    loaded = champion.load()
    store.put(f"serving/{MODEL}/target.json", b"{")
    champion.look()
    champion.look()

    assert (loaded, None) == (champion.current, champion.refused)
    assert 1 == len([record for record in caplog.records if "cannot be read" in record.message])

    write_target(store, second)
    champion.look()

    assert champion.current is not None
    assert second == champion.current.target


class SilentStore(Store):
    """A store that does not give out models while it is silent."""

    is_silent = True

    def get(self, ref: Ref | str) -> bytes:
        """Fail as S3 does when it cannot be reached."""
        if self.is_silent and isinstance(ref, Ref):
            raise RunError("An S3 root must answer")
        return super().get(ref)


def test_a_version_that_cannot_be_fetched_is_not_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """While the store does not answer the old version goes on, and the new one is taken when it does."""
    store = SilentStore(str(tmp_path))
    target = target_of(store, "1", make_bundle(seed=1))
    write_target(store, target)
    champion = Champion(store, MODEL)
    champion.look()

    assert (None, None) == (champion.current, champion.refused)
    assert "Version 1 cannot be loaded yet: An S3 root must answer" in caplog.text

    store.is_silent = False
    champion.look()

    assert champion.current is not None
    assert target == champion.current.target


def test_a_report_that_fails_is_written_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A report that cannot be written is tried again until it is there, and withdrawn at the end."""
    store = Store(str(tmp_path))
    write_target(store, target_of(store, "1", make_bundle(seed=1)))
    champion = Champion(store, MODEL)
    servers = tmp_path / "serving" / MODEL / "servers"
    with following(champion, store, "http://127.0.0.1:1", poll_seconds=0.02):
        shutil.rmtree(servers)
        servers.write_text("in the way")
        assert wait_for(lambda: "The report is not written, and will be tried again" in caplog.text)
        servers.unlink()
        assert wait_for(lambda: ["1"] == [report.version for report in read_reports(store, MODEL)])

    assert [] == read_reports(store, MODEL)


def test_a_server_needs_a_released_version(tmp_path: Path) -> None:
    """Before the first release there is nothing to serve."""
    with pytest.raises(InputError, match="but got none of model=churn in root=.*Run evergreen retrain first"):
        serve(str(tmp_path), MODEL, "127.0.0.1", 0)


def test_a_server_does_not_start_with_a_damaged_version(tmp_path: Path) -> None:
    """With no version before, a damaged one ends the server with one message."""
    store = Store(str(tmp_path))
    bad = target_of(store, "1", make_bundle(seed=1))
    damage(store, bad)
    write_target(store, bad)

    with pytest.raises(
        RunError, match="passes its check, but got model=churn: .* Release another version with evergreen"
    ):
        serve(str(tmp_path), MODEL, "127.0.0.1", 0)


def test_a_taken_port_is_named(world: World) -> None:
    """A port on which another process listens is refused by its number."""
    port = int(world.server.url.rpartition(":")[2])

    with pytest.raises(InputError, match=f"must be free, but got port={port}, .* choose another port with --port"):
        serve(world.store.root, MODEL, "127.0.0.1", port)


@pytest.mark.parametrize(
    ("host", "port", "message"),
    [
        ("127.0.0.1", 70_000, "between 0 and 65535, but got port=70000. Choose one"),
        ("192.0.2.1", 0, "must be an address of this machine, but got host=192.0.2.1 .* Choose 127.0.0.1"),
        ("no host", 0, "must be an address of this machine, but got host=no host .* Choose 127.0.0.1"),
    ],
)
def test_a_wrong_address_is_refused(world: World, host: str, port: int, message: str) -> None:
    """A port out of range and a host that is not this machine are refused."""
    with pytest.raises(InputError, match=message):
        serve(world.store.root, MODEL, host, port)
