"""Removing what nobody needs: from folders and S3, MLflow and Prefect."""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest

from infra.ledger import Ledger
from infra.prefect_server import embedded_server
from infra.storage import DamagedError, Ref, Store
from infra.tracking import Tracking, default_uri
from tasks._cache import Cache
from tasks._maintain import DAY, HOUR, UNREFERENCED, MaintainConfig, remember_uses
from tasks._origin import Base, Origin
from tasks._split import SplitRule
from tasks._versions import ModelVersion, keep_version

CONFIG = MaintainConfig(keep_days=1, keep_versions=2, grace_hours=1)


@pytest.fixture(scope="module")
def prefect_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the Prefect server's database."""
    return tmp_path_factory.mktemp("prefect")


@pytest.fixture(scope="module", autouse=True)
def prefect_api(prefect_home: Path) -> Iterator[str]:
    """Give one Prefect server to the module; other modules of the session may have imported Prefect already."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with embedded_server(prefect_home) as url, temporary_settings({PREFECT_API_URL: url}):
        yield url


# The storage


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Give an empty storage of each kind."""
    if request.param == "folder":
        yield Store(str(tmp_path / "root"))
        return
    boto3 = pytest.importorskip("boto3")
    moto_server = pytest.importorskip("moto.server")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        for variable in [variable for variable in os.environ if variable.startswith("AWS_")]:
            patch.delenv(variable)
        host, port = server.get_host_and_port()
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        boto3.session.Session().client("s3").create_bucket(Bucket=f"evergreen-{port}")
        yield Store(f"s3://evergreen-{port}/prefix")
    server.stop()


def keep_entry(store: Store, key: str) -> Ref:
    """Write a shard and its cache entry, as encode does."""
    from tasks.encode import SHARDS

    ref = store.put(f"shards/{key}.arrow", key.encode())
    shard = SHARDS.validate_python({**_SHARD, "file": ref})
    Cache(store, "shards").keep(key, shard, SHARDS)
    return ref


_SHARD = {"num_rows": 1, "num_unlabelled": 0, "num_failed": {}, "failed_example": {}}


def sweep_at(store: Store, now: float) -> list[str]:
    """List and delete at a moment, as the flow does; return what is gone."""
    from tasks._collect import sweep_of

    found = sweep_of(store, "loans", CONFIG, {"loans": {"2"}}, now)
    gone = [one.name for one in (*found.entries, *found.content) if store.discard(one)]
    store.put(UNREFERENCED, json.dumps(dict(found.unreferenced)).encode())
    return gone


def test_two_nights_empty_a_cache_of_what_is_not_used(store: Store) -> None:
    """In a folder and on S3 an unused entry goes in the first night, its content in the second; what is used stays."""
    from tasks.encode import SHARDS

    used, unused = keep_entry(store, "used"), keep_entry(store, "unused")
    bundles = [store.put(f"bundles/{n}/model.ubj", n.encode()) for n in "12"]
    for number, ref in zip("12", bundles, strict=True):
        keep_version(store, version_of(number, ref))
    run = Store(store.root)
    Cache(run, "shards").find("used", SHARDS)
    remember_uses(run, "loans", "retrain", "run-1")
    now = time.time()
    nights = [sweep_at(store, now + 2 * DAY), sweep_at(store, now + 3 * DAY), sweep_at(store, now + 4 * DAY)]

    assert [["shards/unused.json"], ["bundles/1/model.ubj", "shards/unused.arrow"], []] == [*map(sorted, nights)]
    assert (True, False, None) == (
        store.is_intact(used),
        store.is_intact(unused),
        Cache(store, "shards").find("unused", SHARDS),
    )
    assert (False, True) == (store.is_intact(bundles[0]), store.is_intact(bundles[1]))


def test_trees_that_may_be_continued_stay(store: Store) -> None:
    """Of a version that can be rolled back to stay pilot, final trees and those of its base; of others they go."""
    refs = {
        f"{kind}{number}": store.put(f"{folder}/{kind}{number}.ubj", f"{kind}{number}".encode())
        for number in "12"
        for kind, folder in (("pilot", "pilots"), ("final", "bundles"), ("base-pilot", "pilots"), ("base", "bundles"))
    }
    for number in "12":
        base = Base("0", 3, refs[f"base-pilot{number}"], refs[f"base{number}"], 9)
        origin = Origin({}, 5, refs[f"pilot{number}"], refs[f"final{number}"], "rmse", 1.0, (), {}, base)
        shipped = store.put(f"bundles/shipped{number}/model.ubj", number.encode())
        keep_version(store, replace(version_of(number, shipped), origin=origin))
    now = time.time() + 9 * DAY
    gone = [*sweep_at(store, now), *sweep_at(store, now + DAY)]

    assert {ref.name for name, ref in refs.items() if name.endswith("1")} | {"bundles/shipped1/model.ubj"} == set(gone)


def version_of(number: str, bundle: Ref) -> ModelVersion:
    """Return a version with a bundle of one file."""
    from tasks._candidate import BundleRef

    return ModelVersion("loans", number, f"run-{number}", "", BundleRef((bundle,)), RULE, "", (), 1, {})


RULE = SplitRule(by="row", holdout_fraction=0.2, validation_fraction=0.1)


def test_a_run_keeps_what_it_has_found_while_it_is_swept(store: Store) -> None:
    """A run that hits an old entry reads its content to the end, though a sweep deletes the entry in between."""
    from tasks.encode import SHARDS

    keep_entry(store, "a")
    remember_uses(Store(store.root), "loans", "retrain", "newest")
    now = time.time() + 2 * DAY
    hit = Cache(store, "shards").find("a", SHARDS)
    gone = [*sweep_at(store, now), *sweep_at(store, now + 0.9 * HOUR)]
    assert hit is not None
    read = store.local(hit.file).read_bytes()
    missed = Cache(store, "shards").find("a", SHARDS)
    keep_entry(store, "a")
    later = sweep_at(store, time.time() + 0.9 * HOUR)  # it was missed, and written anew

    assert (["shards/a.json"], b"a", None, []) == (gone, read, missed, later)
    assert hit == Cache(store, "shards").find("a", SHARDS)


def test_a_young_storage_is_left_alone(store: Store) -> None:
    """Within the grace period nothing goes, referred to or not, and nothing is remembered against it."""
    keep_entry(store, "a")
    store.put("bundles/x/model.ubj", b"x")
    remember_uses(store, "loans", "retrain", "run-1")

    assert ([], {}) == (sweep_at(store, time.time() + 0.9 * HOUR), json.loads(store.get(UNREFERENCED)))


def test_what_is_written_again_after_the_list_stays(store: Store) -> None:
    """Content that a run writes again between list and deletion is not the content that was listed."""
    store.put("bundles/x/model.ubj", b"x")
    listed = store.inventory("bundles/")
    time.sleep(1.1)  # S3 tells whole seconds
    store.put("bundles/x/model.ubj", b"x")

    assert (False, True) == (store.discard(listed[0]), store.exists("bundles/x/model.ubj"))


def test_nothing_goes_while_a_version_cannot_be_read(store: Store) -> None:
    """A version's object that is damaged could protect anything: the sweep ends with its name before it deletes."""
    store.put("versions/loans/2.json", b"\x00 torn")
    store.put("bundles/x/model.ubj", b"x")

    with pytest.raises(
        DamagedError, match=r"text=.*torn.*, which is no JSON, in name=versions/loans/2\.json .* nothing"
    ):
        sweep_at(store, time.time() + 9 * DAY)
    assert store.exists("bundles/x/model.ubj")


# This machine


def test_scratch_of_a_dead_worker_goes(tmp_path: Path) -> None:
    """A worker's folder goes when it is old and no worker holds its lock."""
    from tasks.maintain import stale_scratch

    space = tmp_path / "dask-scratch-space"
    for name in ("alive", "dead", "new"):
        (space / f"worker-{name}").mkdir(parents=True)
        (space / f"worker-{name}" / "spill").write_bytes(b"rows")
        (space / f"worker-{name}.dirlock").touch()
        if name != "new":
            for path in (space / f"worker-{name}" / "spill", space / f"worker-{name}"):
                os.utime(path, (1, 1))
    with (space / "worker-alive.dirlock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = stale_scratch(tmp_path, time.time() - HOUR)

    assert [(str(space / "worker-dead"), 4)] == [(one.name, one.num_bytes) for one in found]
    assert () == stale_scratch(tmp_path / "none", time.time())


# MLflow


def test_runs_that_a_version_came_from_are_not_purged(tmp_path: Path) -> None:
    """Of runs that were deleted long ago those stay that a version came from which can be rolled back to."""
    from tasks.maintain import old_deleted_runs
    from tasks.stage import Run

    uri, store = default_uri(tmp_path), Store(str(tmp_path))
    tracking = Tracking(uri, (tmp_path / "mlflow").as_uri(), "loans")
    runs = [tracking.start_run(f"run {n}", {}) for n in range(4)]
    for number, run_id in zip(("1", "2"), runs, strict=False):
        ref = store.put(f"bundles/{number}/model.ubj", b"trees")
        keep_version(store, replace(version_of(number, ref), run_id=run_id))
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection, connection:
        for run_id, days in zip(runs, (90, 90, 90, 0.5), strict=True):
            connection.execute(
                "UPDATE runs SET lifecycle_stage = 'deleted', deleted_time = ? WHERE run_uuid = ?",
                (int((time.time() - days * DAY) * 1000), run_id),
            )
    run = Run("loans", store, Ledger(store, "loans"), tracking, "", "", tmp_path)
    found = old_deleted_runs(run, uri, MaintainConfig(mlflow_keep_days=1), {"loans": {"2", "9"}})

    assert {runs[0], runs[2]} == {one.name for one in found}


# Prefect


def flow_run(home: Path, name: str, tags: list[str], state: str, days_ago: float) -> UUID:
    """Make a flow run that was due, and reached a state, some days ago."""
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.objects import State, StateDetails, StateType

    when = datetime.now(UTC) - timedelta(days=days_ago)

    @flow(name=name.partition(" ")[0])
    def nothing() -> None: ...

    with get_client(sync_client=True) as client:
        due = State(type=StateType.SCHEDULED, state_details=StateDetails(scheduled_time=when))
        run = client.create_flow_run(nothing, name=name, tags=tags, state=due)
        client.set_flow_run_state(run.id, State(type=StateType(state)), force=True)
    # The server's own clock says when a run ended; only its database can be told otherwise.
    with closing(sqlite3.connect(home / "prefect.db", timeout=20)) as connection, connection:
        connection.execute(
            "UPDATE flow_run SET end_time = ? WHERE id = ? AND end_time IS NOT NULL",
            (f"{when:%Y-%m-%d %H:%M:%S.%f}", str(run.id)),
        )
    return run.id


def test_only_ended_runs_of_the_model_go_from_prefect(prefect_home: Path) -> None:
    """Runs of this model that ended long ago are listed and deleted, however they ended; all others stay."""
    from prefect.client.orchestration import get_client

    from tasks.maintain import delete_flow_runs, old_flow_runs

    old = MaintainConfig(prefect_keep_days=30)
    ended = [
        flow_run(prefect_home, "retrain loans", [], "COMPLETED", 40),
        flow_run(prefect_home, "monitor loans", [], "FAILED", 40),
        flow_run(prefect_home, "by hand", ["model:loans"], "CRASHED", 40),
        flow_run(prefect_home, "predict loans", [], "CANCELLED", 40),
    ]
    others = [
        flow_run(prefect_home, "retrain loans", [], "COMPLETED", 20),
        flow_run(prefect_home, "retrain loans", [], "RUNNING", 40),
        flow_run(prefect_home, "retrain loans", [], "SCHEDULED", 40),
        flow_run(prefect_home, "retrain loans", [], "PAUSED", 40),
        flow_run(prefect_home, "retrain other-loans", [], "COMPLETED", 40),
        flow_run(prefect_home, "retrain loans-2", [], "COMPLETED", 40),
        flow_run(prefect_home, "retrain churn", ["model:churn"], "COMPLETED", 40),
    ]
    found = {UUID(one.name) for one in old_flow_runs("loans", old)}
    deleted = {UUID(one) for one in delete_flow_runs([*ended, others[1]])}
    with get_client(sync_client=True) as client:
        left = {run.id for run in client.read_flow_runs()}

    assert (set(ended), set(ended)) == (found, deleted)
    assert set(others) <= left and left.isdisjoint(ended)


def test_many_runs_go_in_batches(prefect_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More runs than a page and than a batch are all found and deleted, and again there are none."""
    import tasks.maintain

    monkeypatch.setattr(tasks.maintain, "PAGE", 3)
    monkeypatch.setattr(tasks.maintain, "BATCH", 2)
    runs = {str(flow_run(prefect_home, "retrain many", [], "COMPLETED", 200)) for _ in range(7)}
    found = tasks.maintain.old_flow_runs("many", CONFIG)

    assert runs == {one.name for one in found} == tasks.maintain.delete_flow_runs([UUID(one) for one in runs])
    assert ((), set()) == (tasks.maintain.old_flow_runs("many", CONFIG), tasks.maintain.delete_flow_runs([]))
