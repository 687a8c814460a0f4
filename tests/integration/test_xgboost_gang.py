"""XGBoost on gangs: the same model whatever happens to its members, and nearly the same with other numbers of them."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from distributed import Client

from infra import gang
from infra.clusters import ClusterConfig, client_of, open_cluster
from infra.errors import RunError
from infra.gang import GangShape, run_gang
from infra.member import Member, PortTakenError
from infra.processes import free_port
from infra.storage import Store
from tasks import _xgboost
from tasks._boost import Tracker
from tasks._candidate import Candidate
from tasks._checkpoint import Checkpoints
from tasks._encode import Encoded
from tasks._fingerprints import known_snapshot
from tasks._kinds import infer_schema
from tasks._origin import Base
from tasks._sample import Sample, SampleRule
from tasks._snapshot import DataConfig
from tasks._split import SplitConfig, make_rule
from tasks._train import XGBoostConfig
from tasks._training import TrainingJob
from tasks.encode import encode_units
from tasks.profile import profile_units

NUM_ROWS, NUM_FILES = 24_000, 4
NUM_KILLS = int(os.environ.get("EVERGREEN_TEST_KILLS", "2"))
"""Random moments at which a member is killed; more of them make a drill."""
CONFIG = XGBoostConfig(rounds=60, early_stopping_rounds=60, learning_rate=0.2, max_depth=5)


@dataclass(frozen=True)
class Place:
    """A cluster of two workers, and a job whose shards are stored."""

    client: Client
    store: Store
    job: TrainingJob


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Encode a table of four files on a cluster of two workers."""
    folder = tmp_path_factory.mktemp("gang")
    (folder / "data").mkdir()
    rng = np.random.default_rng(0)
    for index in range(NUM_FILES):
        x = rng.normal(size=(NUM_ROWS // NUM_FILES, 6)).astype(np.float32)
        city = rng.choice(["Rome", "Oslo", "Bern"], len(x))
        signal_ = x[:, 0] + x[:, 1] * x[:, 2] + (city == "Rome") + rng.normal(size=len(x))
        columns = {f"n{i}": x[:, i] for i in range(6)}
        frame = pl.DataFrame({**columns, "city": city, "y": (signal_ > 0.5).astype(np.int8)})
        frame.write_parquet(folder / "data" / f"{index}.parquet")
    with open_cluster(ClusterConfig(workers=2, threads_per_worker=1), folder / "scratch") as cluster:
        store = Store(str(folder / "root"))
        config = DataConfig(source=str(folder / "data"), target="y")
        snapshot = known_snapshot(store, "loans", config, folder)
        seen, _ = profile_units(store, cluster, snapshot, None)
        schema = infer_schema(seen, config, None, None)
        encoded, _ = encode_units(store, "loans", cluster, snapshot, schema, seen, config)
        job = TrainingJob(
            model="loans",
            encoded=Encoded(schema, encoded.vocabulary, encoded.shards, num_new=0),
            files=snapshot.units[:1],
            rule=make_rule(SplitConfig(by="row"), schema, None),
            sample=Sample(SampleRule(), 0, 0),
            config=CONFIG,
            include_validation=True,
            seed=3,
            interval=None,
            threads=1,
            facts={"model": "loans"},
            members=2,
            checkpoint_rounds=10,
        )
        yield Place(client_of(cluster), store, job)


@pytest.fixture(autouse=True)
def every_chunk(monkeypatch: pytest.MonkeyPatch, place: Place) -> None:
    """Leave a checkpoint after every chunk, also on workers that are started later."""
    monkeypatch.setattr(_xgboost, "CHECKPOINT_SECONDS", 0.0)


def slow_train(member: Member, seconds: float, *args: Any) -> _xgboost.Trained:
    """Train with a checkpoint after every chunk, and with a pause after each, so that there is time to disturb it."""
    _xgboost.CHECKPOINT_SECONDS = 0.0
    passed = _xgboost.Journey.passed

    def slower(journey: _xgboost.Journey, number: int, *rest: Any) -> None:
        passed(journey, number, *rest)
        time.sleep(seconds / journey.job.config.rounds)

    _xgboost.Journey.passed = slower  # type: ignore[method-assign]
    try:
        return _xgboost.train(member, *args)
    finally:
        _xgboost.Journey.passed = passed  # type: ignore[method-assign]


@dataclass
class Told:
    """What the caller of a gang heard."""

    notes: list[str]
    starts: list[int]
    """Rounds at which the attempts began."""


def trained(
    place: Place, job: TrainingJob, shape: GangShape | None = None, seconds: float = 0.0
) -> tuple[Candidate, Told]:
    """Train on a gang as the stage does, and leave its checkpoints."""
    checkpoints = Checkpoints(place.store, job)
    told = Told([], [])

    def args_of(_attempt: int, _members: int) -> tuple[object, ...]:
        found = checkpoints.newest(told.notes.append)
        told.starts.append(found.progress.num_rounds if found else 0)
        return seconds, place.store, job, found

    shape = shape or GangShape(job.members, meeting=Tracker)
    answers = run_gang(place.client, shape, slow_train, args_of, on_note=told.notes.append)
    return answers[0].candidate, told


def forget(place: Place, job: TrainingJob) -> None:
    """Remove what earlier trainings left."""
    Checkpoints(place.store, job).clear()


@pytest.fixture(scope="module")
def undisturbed(place: Place) -> Candidate:
    """Train with two members whom nobody disturbs."""
    candidate, _ = trained(place, place.job)
    forget(place, place.job)
    return candidate


def kill_once(client: Client, seconds: float, rank: int) -> None:
    """Kill a worker after a while."""
    pids = [pid for _, pid in sorted(client.run(os.getpid).items())]
    time.sleep(seconds)
    os.kill(pids[rank], signal.SIGKILL)


def test_a_member_learns_from_its_share_alone(place: Place, undisturbed: Candidate) -> None:
    """Two members count all rows together, and agree with one member about the loss."""
    alone, _ = trained(place, replace(place.job, members=1))
    forget(place, replace(place.job, members=1))

    assert (alone.num_train_rows, alone.num_validation_rows, alone.num_final_rows) == (
        undisturbed.num_train_rows,
        undisturbed.num_validation_rows,
        undisturbed.num_final_rows,
    )
    assert abs(min(alone.validation_curve) - min(undisturbed.validation_curve)) < 0.005


def test_a_gang_continues_as_one_member_does(place: Place, undisturbed: Candidate) -> None:
    """Each member begins with the base's scores of its own rows: the loss before the first new round is the same."""
    base = Base("1", undisturbed.num_rounds, undisturbed.pilot, undisturbed.bundle.booster, 1)
    config = place.job.config.model_copy(update={"rounds": undisturbed.num_rounds + 20})
    found = []
    for members in (1, 2):
        job = replace(place.job, base=base, config=config, members=members)
        found.append(trained(place, job)[0])
        forget(place, job)
    losses = [one.base_loss for one in found]

    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[0] == pytest.approx(undisturbed.origin.validation_loss, rel=1e-6)
    assert abs(found[0].origin.validation_loss - found[1].origin.validation_loss) < 0.005


def test_five_trainings_are_one_model(place: Place, undisturbed: Candidate) -> None:
    """The same job with as many members gives the same bytes each time."""
    for _ in range(4):
        assert undisturbed == trained(place, place.job)[0]
        forget(place, place.job)


@pytest.mark.parametrize("number", range(NUM_KILLS))
def test_a_kill_changes_nothing(place: Place, undisturbed: Candidate, number: int) -> None:
    """A member that is killed at any moment costs at most a chunk of rounds, and the model is the same to the byte."""
    forget(place, place.job)
    chance = random.Random(number)
    seconds, rank = chance.uniform(0.2, 3.0), chance.randrange(2)
    killer = threading.Thread(target=kill_once, args=(place.client, seconds, rank))
    killer.start()
    candidate, told = trained(place, place.job, seconds=2.0)
    killer.join()
    forget(place, place.job)

    assert undisturbed == candidate
    assert [note for note in told.notes if "was lost" in note] or len(told.starts) == 1


def test_with_one_worker_fewer_the_metric_is_near(
    place: Place, undisturbed: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gang that goes on with fewer members has read all rows all the same.

    Nothing is drawn here: which rows a tree draws depends on who has them, and that alone moves a loss of so few rows
    by 0.003.
    """
    config = place.job.config.model_copy(update={"subsample": 1.0, "colsample_bytree": 1.0})
    job = replace(place.job, config=config)
    whole, _ = trained(place, job)
    forget(place, job)
    monkeypatch.setattr(gang, "claimed", fewer_after_a_loss(gang.claimed))
    killer = threading.Thread(target=kill_once, args=(place.client, 1.5, 1))
    killer.start()
    candidate, told = trained(place, job, seconds=3.0)
    killer.join()
    forget(place, job)

    assert "The gang goes on with 1 of 2 members." in told.notes
    assert candidate.num_train_rows == whole.num_train_rows
    assert abs(min(candidate.validation_curve) - min(whole.validation_curve)) < 0.002


def fewer_after_a_loss(claimed: Any) -> Any:
    """Let a gang have all its workers once, and one afterwards."""
    shapes: list[GangShape] = []

    def once(client: Client, shape: GangShape, *rest: Any) -> Any:
        shapes.append(shape)
        return claimed(client, shape if len(shapes) == 1 else replace(shape, members=1), *rest)

    return once


# Checkpoints


def interrupted(place: Place, job: TrainingJob, after: int) -> Checkpoints:
    """Stop a training after some rounds, with its checkpoints left."""
    forget(place, job)
    passed = _xgboost.Journey.passed

    def stop(journey: _xgboost.Journey, number: int, *rest: Any) -> None:
        passed(journey, number, *rest)
        if number + 1 == after:
            raise RuntimeError("The power is gone.")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="power"):
        patch.setattr(_xgboost.Journey, "passed", stop)
        _xgboost.train(Member.alone(), place.store, job)
    return Checkpoints(place.store, job)


@pytest.mark.parametrize("is_damaged", [False, True])
def test_a_training_goes_on_where_its_process_ended(place: Place, is_damaged: bool) -> None:
    """After the end of all processes it goes on at the newest checkpoint, or the one before where that is damaged."""
    job = replace(place.job, members=1, seed=5)
    whole, _ = trained(place, job)
    checkpoints = interrupted(place, job, 35)
    if is_damaged:
        path = next(Path(place.store.root).glob("checkpoints/*/0-00000030.ubj"))
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    candidate, told = trained(place, job)

    assert whole == candidate
    assert [20 if is_damaged else 30] == told.starts
    assert is_damaged == any("is damaged" in note and "the one before it is used" in note for note in told.notes)
    checkpoints.clear()
    assert None is checkpoints.newest()


def test_a_few_checkpoints_are_kept(place: Place) -> None:
    """The oldest go as new ones come."""
    job = replace(place.job, members=1, seed=6)
    interrupted(place, job, 45)
    names = [path.name for path in Path(place.store.root).glob("checkpoints/*/*")]
    forget(place, job)

    assert ["0-00000030.json", "0-00000030.ubj", "0-00000040.json", "0-00000040.ubj"] == sorted(names)


# Where rows are, and where members meet


def test_rows_on_disk_give_the_same_model(place: Place, undisturbed: Candidate) -> None:
    """Rows that stay on the workers' disks, in other batches, change no byte; afterwards no file is left."""
    for batch_rows in (0, 1000):
        job = replace(place.job, is_external=True, batch_rows=batch_rows)
        candidate, _ = trained(place, job)
        forget(place, job)
        assert replace(undisturbed, bundle=candidate.bundle) == candidate
        assert place.store.get(undisturbed.bundle.booster) == place.store.get(candidate.bundle.booster)
    left = place.client.run(lambda dask_worker: [str(p) for p in Path(dask_worker.local_directory).rglob("cache*")])
    assert not any(left.values())


def test_a_member_without_rows_takes_part(place: Place) -> None:
    """More members than shards with rows: the model is that of the others."""
    job = replace(place.job, seed=7, encoded=replace(place.job.encoded, shards=place.job.encoded.shards[:1]))
    two, _ = trained(place, job)
    one, _ = trained(place, replace(job, members=1))

    assert one.num_train_rows == two.num_train_rows
    assert abs(min(one.validation_curve) - min(two.validation_curve)) < 1e-6


def test_a_port_in_use_is_named(place: Place) -> None:
    """Members that are to meet where something listens already get one message."""
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            PortTakenError,
            match=rf"^The members of a gang meet at a port that is free, but got cluster\.training_port={port} on "
            r"127\.0\.0\.1, where nothing can listen\. Set another one, or leave it out\.$",
        ):
            trained(place, place.job, GangShape(2, meeting=Tracker, port=port))


def test_a_port_of_ones_own_is_used(place: Place, undisturbed: Candidate) -> None:
    """Behind a firewall the members meet at the port that is open."""
    forget(place, place.job)
    candidate, _ = trained(place, place.job, GangShape(2, meeting=Tracker, port=free_port()))

    assert undisturbed == candidate


def test_a_gpu_that_is_not_there_is_named(place: Place) -> None:
    """Who asks for a GPU never gets a processor instead."""
    job = replace(place.job, device="cuda", members=1)
    with pytest.raises(
        RunError, match=r"^A training on a GPU needs one, but got device=cuda on a worker that has gpus=0"
    ):
        trained(place, job, GangShape(1))
