"""Trees and networks on a GPU, in a process of its own: as good as on the processor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from infra.bundle.vocabulary import Vocabulary
from infra.clusters import ClusterConfig, client_of, open_cluster
from infra.gang import GangShape, run_gang
from infra.gpus import gpus
from infra.rendezvous import Rendezvous
from infra.storage import Store
from infra.worker_shapes import local_shapes
from tasks import _xgboost
from tasks._boost import Tracker
from tasks._candidate import Candidate
from tasks._checkpoint import Checkpoints
from tasks._encode import Encoded
from tasks._fingerprints import known_snapshot
from tasks._kinds import infer_schema
from tasks._learning import LearningJob
from tasks._neural.config import NeuralConfig
from tasks._neural.fit import train as train_network
from tasks._neural.inputs import inputs_of
from tasks._neural.job import NeuralJob
from tasks._profile import merge, profile_frame
from tasks._readers import read_file
from tasks._sample import Sample, SampleRule
from tasks._snapshot import DataConfig
from tasks._split import SplitConfig, make_rule
from tasks._train import XGBoostConfig
from tasks._training import TrainingJob
from tasks.encode import encode_units
from tasks.profile import profile_units

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not gpus(), reason="needs a GPU")]

NUM_ROWS = 200_000


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Store, TrainingJob]]:
    """Encode a table of four files on a cluster of this machine."""
    folder = tmp_path_factory.mktemp("gpu")
    (folder / "data").mkdir()
    rng = np.random.default_rng(0)
    for index in range(4):
        x = rng.normal(size=(NUM_ROWS // 4, 10)).astype(np.float32)
        city = rng.choice(["Rome", "Oslo", "Bern"], len(x))
        signal = x[:, 0] + x[:, 1] * x[:, 2] + (city == "Rome") + rng.normal(size=len(x))
        columns = {f"n{i}": x[:, i] for i in range(10)}
        frame = pl.DataFrame({**columns, "city": city, "y": (signal > 0.5).astype(np.int8)})
        frame.write_parquet(folder / "data" / f"{index}.parquet")
    with open_cluster(ClusterConfig(workers=1), folder / "scratch") as cluster:
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
            config=XGBoostConfig(rounds=100, early_stopping_rounds=100, learning_rate=0.1),
            include_validation=True,
            seed=3,
            interval=None,
            threads=0,
            facts={"model": "loans"},
            device="cuda",
        )
        yield cluster, store, job


@pytest.fixture(scope="module")
def network(place: tuple[str, Store, TrainingJob]) -> NeuralJob:
    """Give the job of a network on the same rows."""
    _, store, job = place
    schema = job.encoded.schema
    seen = merge(profile_frame(read_file(file), None) for file in job.files)
    config = NeuralConfig(width=64, submodels=8, epochs=4, dropout=0.0, batch_rows=512)
    vocabulary = Vocabulary.from_json(store.get(job.encoded.vocabulary).decode())
    return NeuralJob(
        **{field.name: getattr(job, field.name) for field in fields(LearningJob)},
        config=config,
        inputs=inputs_of(schema, vocabulary, seen, config.bins),
        batch_rows=512,
        micro_batch_rows=512,
        window_rows=10**9,
        max_epochs=4,
    )


def trained(cluster: str, store: Store, job: TrainingJob) -> Candidate:
    """Train as the stage does."""
    shape = GangShape(job.members, is_isolated=job.device != "cpu", meeting=Tracker)
    answers = run_gang(
        client_of(cluster), shape, _xgboost.train, lambda *_: (store, job, Checkpoints(store, job).newest())
    )
    candidate = answers[0].candidate
    assert isinstance(candidate, Candidate)
    return candidate


def test_a_gpu_learns_what_the_processor_does(place: tuple[str, Store, TrainingJob]) -> None:
    """The loss on the validation rows is that of the processor, up to the order of sums."""
    cluster, store, job = place
    cpu, cuda = (trained(cluster, store, replace(job, device=device)) for device in ("cpu", "cuda"))

    assert abs(min(cpu.validation_curve) - min(cuda.validation_curve)) < 0.001


def test_pages_on_a_gpu_change_little(place: tuple[str, Store, TrainingJob]) -> None:
    """Rows that the GPU reads page by page from the host give about the same model."""
    cluster, store, job = place
    whole = trained(cluster, store, job)
    paged = trained(cluster, store, replace(job, is_external=True, batch_rows=20_000))

    assert abs(min(whole.validation_curve) - min(paged.validation_curve)) < 0.001


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_network_learns_on_a_gpu_what_it_does_on_the_processor(
    place: tuple[str, Store, TrainingJob], network: NeuralJob, precision: str
) -> None:
    """The loss on the validation rows is that of the processor, up to the order and the precision of sums."""
    cluster, store, _ = place
    found = []
    for device, compiled in (("cpu", False), ("cuda", precision == "bfloat16")):
        changes = {"precision": precision if device == "cuda" else "float32", "compile": compiled}
        job = replace(network, device=device, config=network.config.model_copy(update=changes))
        shape = GangShape(1, is_isolated=device != "cpu", meeting=Rendezvous)
        answers = run_gang(client_of(cluster), shape, train_network, lambda *_, job=job: (store, job, None))
        found.append(min(answers[0].candidate.validation_curve))

    assert abs(found[0] - found[1]) < (0.005 if precision == "float32" else 0.02)


def test_the_planner_knows_the_gpu(tmp_path: Path) -> None:
    """The workers of this machine have its GPUs, as many as there are."""
    found = [shape.gpu_bytes for shape in local_shapes(ClusterConfig(workers=len(gpus()) + 1))]

    assert [*(gpu.memory_bytes for gpu in gpus()), 0] == found
