"""Networks on gangs: however members divide one, it learns as in one process, and goes on when they change."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import polars as pl
import pytest
from distributed import Client

from infra import gang
from infra.bundle.vocabulary import Vocabulary
from infra.clusters import ClusterConfig, client_of, open_cluster
from infra.gang import GangShape, run_gang
from infra.member import Member
from infra.rendezvous import Rendezvous
from infra.storage import Store
from tasks._candidate import Candidate
from tasks._encode import Encoded, encode_file, extended_vocabulary
from tasks._kinds import infer_schema
from tasks._neural import checkpoint, fit
from tasks._neural.config import NeuralConfig, Parallelism
from tasks._neural.inputs import inputs_of
from tasks._neural.job import NeuralJob
from tasks._profile import merge, profile_frame
from tasks._sample import Sample, SampleRule
from tasks._snapshot import CsvConfig, DataConfig, source_file
from tasks._split import SplitConfig, make_rule

NUM_ROWS, NUM_FILES = 1600, 2
KINDS: tuple[Parallelism, ...] = get_args(Parallelism)
NUM_KILLS = int(os.environ.get("EVERGREEN_TEST_KILLS", "1"))
"""Random moments at which a member is killed; more of them make a drill."""
LOOK_STEPS = 15
"""Between checkpoints: one of 27 steps, amid the second epoch."""
CONFIG = NeuralConfig(
    architecture="wide",
    batch_rows=128,
    blocks=3,
    dropout=0.0,
    embedding=4,
    epochs=3,
    learning_rate=0.02,
    width=8,
    checkpoint_seconds=0.001,
)
TABM = CONFIG.model_copy(update={"architecture": "tabm-mini", "submodels": 4, "bins": 4})


@dataclass(frozen=True)
class Place:
    """A cluster of two workers, and a job whose shards are stored."""

    client: Client
    store: Store
    job: NeuralJob


def make_job(folder: Path, config: NeuralConfig, seed: int = 3) -> tuple[Store, NeuralJob]:
    """Encode a table of two files: numbers with gaps, and a text of many values."""
    store = Store(str(folder / "root"))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(NUM_ROWS, 3)).astype(np.float32)
    city = rng.integers(0, 40, NUM_ROWS)
    label = (2 * x[:, 0] + (city % 3 == 0) + 0.5 * rng.normal(size=NUM_ROWS) > 0.5).astype(np.int8)
    x[rng.random(NUM_ROWS) < 0.1, 1] = np.nan
    columns = {f"n{i}": pl.Series(x[:, i]).fill_nan(None) for i in range(3)}
    table = pl.DataFrame({**columns, "city": [f"city {i}" for i in city], "y": label})
    parts = [table[i::NUM_FILES] for i in range(NUM_FILES)]
    files = []
    for index, part in enumerate(parts):
        part.write_parquet(folder / f"{index}.parquet")
        files.append(source_file(str(folder / f"{index}.parquet"), CsvConfig()))
    seen = merge(profile_frame(part, None) for part in parts)
    schema = infer_schema(seen, DataConfig(source="data", target="y"), "binary", None)
    vocabulary = extended_vocabulary(Vocabulary({}), schema, seen)
    shards = tuple(encode_file(store, file, schema, vocabulary, f"shards/{i}") for i, file in enumerate(files))
    stored = store.put("vocabulary.json", vocabulary.to_json().encode())
    return store, NeuralJob(
        model="loans",
        encoded=Encoded(schema, stored, shards, num_new=0),
        files=tuple(files),
        rule=make_rule(SplitConfig(by="row"), schema, None),
        sample=Sample(SampleRule(), 0, 0),
        include_validation=False,
        seed=seed,
        interval=None,
        threads=1,
        facts={"model": "loans"},
        members=2,
        config=config,
        inputs=inputs_of(schema, vocabulary, seen, config.bins),
        batch_rows=128,
        micro_batch_rows=48,
        window_rows=NUM_ROWS,
        max_epochs=3,
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Open a cluster of two workers."""
    folder = tmp_path_factory.mktemp("neural")
    store, job = make_job(folder, CONFIG)
    with open_cluster(ClusterConfig(workers=2, threads_per_worker=1), folder / "scratch") as cluster:
        yield Place(client_of(cluster), store, job)


@dataclass
class Told:
    """What a member found."""

    candidate: Candidate | None
    losses: list[float]
    """Its part of the loss of every step of the first phase."""


def traced_train(member: Member, seconds: float, look_steps: int, *args: Any) -> Told:
    """Train with a pause at each step, so that there is time to disturb it, and keep the losses."""
    found, own, looks = [], fit.Fit._step, fit.LOOK_STEPS

    def step(state: fit.Fit, batch: Any) -> None:
        own(state, batch)
        time.sleep(seconds)
        if not state.progress.phase:
            share = state.journey.member.num_members if state.parallel.is_replicated else 1
            found.append(float(state._recent[-1].loss) / batch.num_rows / share)

    fit.Fit._step, fit.LOOK_STEPS = step, look_steps  # type: ignore[method-assign]
    try:
        return Told(fit.train(member, *args).candidate, found)
    finally:
        fit.Fit._step, fit.LOOK_STEPS = own, looks  # type: ignore[method-assign]


@dataclass
class Run:
    """How a training went."""

    candidate: Candidate
    losses: list[float]
    """By step, from where the last attempt began."""
    notes: list[str]
    starts: list[int]
    """Steps at which the attempts began."""
    sizes: list[int]
    """Members of the attempts."""


def trained(place: Place, job: NeuralJob, members: int = 2, seconds: float = 0.0, look_steps: int = LOOK_STEPS) -> Run:
    """Train on a gang as the stage does, from the newest checkpoint, and leave the checkpoints."""
    notes: list[str] = []
    starts: list[int] = []
    sizes: list[int] = []

    def args_of(_attempt: int, num_members: int) -> tuple[object, ...]:
        found = checkpoint.newest(place.store, job, notes.append)
        starts.append(found.progress.step if found else 0)
        sizes.append(num_members)
        return seconds, look_steps, place.store, job, found

    shape = GangShape(members, meeting=Rendezvous)
    answers = run_gang(place.client, shape, traced_train, args_of, on_note=notes.append)
    losses = [sum(parts) for parts in zip(*(answer.losses for answer in answers), strict=True)]
    return Run(answers[0].candidate, losses, notes, starts, sizes)


def forget(place: Place, job: NeuralJob) -> None:
    """Remove what earlier trainings left."""
    checkpoint.clear(place.store, job)


@pytest.fixture(scope="module")
def alone(place: Place) -> Run:
    """Train in one process, and leave its checkpoints."""
    return trained(place, replace(place.job, model="alone"), members=1)


@pytest.fixture(scope="module")
def together(place: Place) -> dict[Parallelism, Run]:
    """Hold the undisturbed trainings of two members by parallelism, of those that were needed so far."""
    return {}


def undisturbed(place: Place, together: dict[Parallelism, Run], kind: Parallelism) -> Run:
    """Train with two members whom nobody disturbs, once for all tests; its checkpoints stay."""
    if kind not in together:
        together[kind] = trained(place, replace(place.job, parallelism=kind))
    return together[kind]


# Equality


@pytest.mark.parametrize("kind", KINDS)
def test_two_members_learn_as_one_process_does(
    place: Place, alone: Run, together: dict[Parallelism, Run], kind: Parallelism
) -> None:
    """The losses of all steps and the losses of the validation rows are those of one process."""
    run = undisturbed(place, together, kind)

    assert len(alone.losses) >= 20
    assert alone.losses == pytest.approx(run.losses, abs=1e-5)
    assert alone.candidate.validation_curve == pytest.approx(run.candidate.validation_curve, abs=1e-5)
    assert alone.candidate.train_curve == pytest.approx(run.candidate.train_curve, abs=1e-5)
    assert alone.candidate.validation_curve[-1] < alone.candidate.validation_curve[0] - 0.05


@pytest.mark.parametrize("kind", ["fsdp", "tensor"])
def test_members_may_change_places(
    place: Place, alone: Run, kind: Parallelism, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was the first member, and then is the second, has the second's part of every layer."""
    monkeypatch.setattr(gang, "claimed", reversed_workers(gang.claimed))
    run = trained(place, replace(place.job, model="places", parallelism=kind))

    assert alone.losses == pytest.approx(run.losses, abs=1e-5)


def reversed_workers(claimed: Any) -> Any:
    """Let members have the workers in the other order."""

    @contextmanager
    def other(*args: Any) -> Iterator[list[str]]:
        with claimed(*args) as workers:
            yield workers[::-1]

    return other


# Checkpoints


@pytest.mark.parametrize("kind", KINDS)
def test_two_members_and_one_go_on_from_a_checkpoint_of_two(
    place: Place, alone: Run, together: dict[Parallelism, Run], kind: Parallelism
) -> None:
    """Amid an epoch two members take up their checkpoint, and so does one; all end as those that did not stop."""
    whole = undisturbed(place, together, kind)
    job = replace(place.job, parallelism=kind)
    two, one = trained(place, job), trained(place, job, members=1)
    forget(place, job)

    assert ([LOOK_STEPS], [LOOK_STEPS]) == (two.starts, one.starts)
    assert whole.losses[LOOK_STEPS:] == pytest.approx(two.losses, abs=1e-6)
    assert whole.candidate.validation_curve == pytest.approx(two.candidate.validation_curve, abs=1e-6)
    assert alone.losses[LOOK_STEPS:] == pytest.approx(one.losses, abs=1e-5)
    assert alone.candidate.validation_curve == pytest.approx(one.candidate.validation_curve, abs=1e-5)


def test_two_members_go_on_from_a_checkpoint_of_one(place: Place, alone: Run) -> None:
    """A network that one had whole is divided, with its optimizer."""
    run = trained(place, replace(place.job, model="alone"))

    assert ([LOOK_STEPS], [2]) == (run.starts, run.sizes)
    assert alone.losses[LOOK_STEPS:] == pytest.approx(run.losses, abs=1e-5)
    assert alone.candidate.validation_curve == pytest.approx(run.candidate.validation_curve, abs=1e-5)


def test_a_damaged_checkpoint_is_passed_over(place: Place) -> None:
    """Older ones are kept beside the newest; where that lacks a byte the one before it counts, and it is said."""
    job = replace(place.job, model="damaged")
    whole = trained(place, job, look_steps=5)
    kinds = sorted({path.parent for path in Path(place.store.root).glob(f"{checkpoint.folder_of(job)}/*/*.json")})
    path = next(kinds[-1].glob("*.distcp"))
    path.write_bytes(path.read_bytes()[:-1])
    run = trained(place, job)
    forget(place, job)

    assert len(kinds) in (2, 3)
    assert [int(kinds[-2].name)] == run.starts
    assert [f"The checkpoint {checkpoint.folder_of(job)}/{kinds[-1].name} is damaged; the one before it is used."] == (
        run.notes
    )
    assert whole.candidate.validation_curve == pytest.approx(run.candidate.validation_curve, abs=1e-6)


# Losses of members


def kill_once(client: Client, seconds: float, rank: int) -> None:
    """Kill a worker after a while."""
    pids = [pid for _, pid in sorted(client.run(os.getpid).items())]
    time.sleep(seconds)
    os.kill(pids[rank], signal.SIGKILL)


def killed(place: Place, job: NeuralJob, seconds: float, rank: int) -> Run:
    """Train, slowly, while a member is killed."""
    place.client.wait_for_workers(2, timeout=60)
    killer = threading.Thread(target=kill_once, args=(place.client, seconds, rank))
    killer.start()
    try:
        return trained(place, job, seconds=0.04, look_steps=5)
    finally:
        killer.join()
        forget(place, job)


@pytest.mark.parametrize("number", range(NUM_KILLS))
def test_a_kill_changes_nothing(place: Place, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A member that is killed at any moment, of either phase, costs some steps; the network is the same within 1e-6."""
    monkeypatch.setattr(gang, "REJOIN_SECONDS", 120.0)  # a busy machine takes its time to start a worker
    kind = KINDS[number % len(KINDS)]
    config = CONFIG.model_copy(update={"dropout": 0.2})
    job = replace(place.job, model="killed", config=config, parallelism=kind, include_validation=True)
    whole = trained(place, job)
    forget(place, job)
    chance = random.Random(number)
    run = killed(place, job, chance.uniform(0.5, 3.0), chance.randrange(2))

    assert whole.candidate.validation_curve == pytest.approx(run.candidate.validation_curve, abs=1e-6)
    assert whole.candidate.num_final_rows == run.candidate.num_final_rows
    assert [note for note in run.notes if "was lost" in note] or len(run.starts) == 1


def test_one_member_goes_on_where_two_were(place: Place, alone: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a lost worker does not come back one member takes up the checkpoint of two, and learns the same."""
    job = replace(place.job, model="fewer", parallelism="fsdp")
    monkeypatch.setattr(gang, "claimed", fewer_after_a_loss(gang.claimed))
    monkeypatch.setattr(gang, "REJOIN_SECONDS", 120.0)
    run = killed(place, job, 1.5, 1)

    assert ([2, 1], "The gang goes on with 1 of 2 members.") == (run.sizes, run.notes[-1])
    assert alone.candidate.validation_curve == pytest.approx(run.candidate.validation_curve, abs=1e-5)


def fewer_after_a_loss(claimed: Any) -> Any:
    """Let a gang have all its workers once, and one afterwards."""
    shapes: list[GangShape] = []

    def once(client: Client, shape: GangShape, *rest: Any) -> Any:
        shapes.append(shape)
        return claimed(client, shape if len(shapes) == 1 else replace(shape, members=1), *rest)

    return once
