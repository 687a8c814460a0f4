"""Whether two members that share a network learn as one process does, and how much less memory each of them needs.

Losses are those of every step, of a network with dropout off. Memory is the largest of a member's process over what it
had before the training, libraries loaded, with checkpoints on and the export of the network included, over that of
one process. A layer at a time is whole with fsdp, so it and the pipeline have a network of many layers; tensor has one
whose embedding table is nearly all of it. At the end, but not with `--quick`, a limit at which Dask ends a worker lets
two members finish what one can't. With the small sizes of `--quick` the fixed costs of a process and of the export hide
most of what is saved.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
from _record import print_record, progress

from infra.bundle.vocabulary import Vocabulary
from infra.clusters import ClusterConfig, client_of, open_cluster
from infra.errors import RunError
from infra.gang import GangShape, run_gang
from infra.member import Member
from infra.memory import give_back
from infra.rendezvous import Rendezvous
from infra.storage import Store
from tasks._encode import Encoded, encode_file, extended_vocabulary
from tasks._kinds import infer_schema
from tasks._neural.config import NeuralConfig, Parallelism
from tasks._neural.inputs import CodeInput, NetworkInputs, inputs_of
from tasks._neural.job import NeuralJob
from tasks._profile import merge, profile_frame
from tasks._sample import Sample, SampleRule
from tasks._snapshot import CsvConfig, DataConfig, source_file
from tasks._split import SplitConfig, make_rule

TARGET = "y"
NUM_IDS = 500
NUM_STEPS = 20
"""Whose losses are compared."""
LIMIT_GROWTH = 0.75
"""Of what one process takes beyond its libraries: the limit under which it is not to fit."""


WAYS: tuple[tuple[Parallelism, str], ...] = (
    ("fsdp", "deep"),
    ("pipeline", "deep"),
    ("data", "deep"),
    ("tensor", "table"),
)


@dataclass(frozen=True)
class Size:
    """How large everything is."""

    num_rows: int
    batch_rows: int
    table_rows: int
    embedding: int
    blocks: int
    width: int


FULL = Size(num_rows=1_000, batch_rows=64, table_rows=1_000_000, embedding=64, blocks=7, width=2048)
QUICK = Size(num_rows=480, batch_rows=32, table_rows=200_000, embedding=64, blocks=5, width=1024)


@dataclass(frozen=True)
class Found:
    """What a member measured."""

    growth_bytes: int
    start_bytes: int
    rows_per_second: float
    losses: list[float]
    """Its part of the loss of every step."""


def make_job(folder: Path, config: NeuralConfig, size: Size) -> tuple[Store, NeuralJob]:
    """Encode a table of numbers and ids, and return the job of training on it."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(size.num_rows, 4)).astype(np.float32)
    ids = rng.integers(0, NUM_IDS, size.num_rows)
    label = (x[:, 0] + x[:, 1] * x[:, 2] + (ids % 3 == 0) + rng.normal(size=size.num_rows) > 0.5).astype(np.int8)
    columns: dict[str, Any] = {f"n{i}": x[:, i] for i in range(4)}
    table = pl.DataFrame({**columns, "id": [f"id {i}" for i in ids], TARGET: label})
    folder.mkdir()
    table.write_parquet(folder / "rows.parquet")
    file = source_file(str(folder / "rows.parquet"), CsvConfig())
    store, seen = Store(str(folder / "root")), merge([profile_frame(table, None)])
    schema = infer_schema(seen, DataConfig(source="data", target=TARGET, kinds={"id": "categorical"}), "binary", None)
    vocabulary = extended_vocabulary(Vocabulary({}), schema, seen)
    shard = encode_file(store, file, schema, vocabulary, "shards/0")
    stored = store.put("vocabulary.json", vocabulary.to_json().encode())
    inputs = inputs_of(schema, vocabulary, seen, config.bins)
    if config.architecture == "wide":  # most of the table's rows belong to ids that are not in these few rows
        inputs = NetworkInputs(inputs.numbers, (CodeInput(inputs.codes[0].position, size.table_rows),))
    job = NeuralJob(
        model="benchmark",
        encoded=Encoded(schema, stored, (shard,), num_new=0),
        files=(file,),
        rule=make_rule(SplitConfig(by="row"), schema, None),
        sample=Sample(SampleRule(), 0, 0),
        include_validation=False,
        seed=0,
        interval=None,
        threads=1,
        facts={"model": "benchmark"},
        config=config,
        inputs=inputs,
        batch_rows=size.batch_rows,
        micro_batch_rows=size.batch_rows,
        window_rows=size.num_rows,
        max_epochs=2,
    )
    return store, job


def measured(member: Member, store: Store, job: NeuralJob) -> Found:
    """Train, and tell what it took."""
    from tasks._neural import fit

    losses, own = [], fit.Fit._step

    def step(state: fit.Fit, batch: Any) -> None:
        own(state, batch)
        share = member.num_members if state.parallel.is_replicated else 1
        losses.append(float(state._recent[-1].loss) / batch.num_rows / share)

    fit.Fit._step = step  # type: ignore[method-assign]
    gc.collect()
    give_back()
    start = psutil.Process().memory_info().rss
    try:
        trained = fit.train(member, store, job)
    finally:
        fit.Fit._step = own  # type: ignore[method-assign]
    rate = trained.candidate.rows_per_second if trained.candidate else None
    return Found(trained.usage.peak_bytes - start, start, rate or 0.0, losses)


def trained(cluster: str, store: Store, job: NeuralJob, members: int) -> list[Found]:
    """Train with so many members."""
    shape = GangShape(members, least=members, meeting=Rendezvous)
    found: list[Found] = run_gang(client_of(cluster), shape, measured, lambda *_: (store, job))
    return found


def main() -> None:
    """Train each way, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="Use a small network and few rows.")
    is_quick = parser.parse_args().quick
    size = QUICK if is_quick else FULL
    # At a rate at which the losses do not explode: chaos would tell rounding from nothing.
    common = {"dropout": 0.0, "embedding": size.embedding, "learning_rate": 1e-4, "checkpoint_seconds": 0.5}
    table = NeuralConfig(architecture="wide", width=64, **common)
    deep = NeuralConfig(architecture="mlp", width=size.width, blocks=size.blocks, **common)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        jobs = {name: make_job(folder / name, config, size) for name, config in (("table", table), ("deep", deep))}
        alone: dict[str, Found] = {}
        shared: dict[tuple[Parallelism, str], list[Found]] = {}
        with open_cluster(ClusterConfig(workers=2, threads_per_worker=1), folder / "scratch") as cluster:
            # What is loaded in any case counts for neither side.
            small = replace(size, width=8, table_rows=NUM_IDS)
            store, job = make_job(folder / "small", table, small)
            trained(cluster, store, replace(job, parallelism="fsdp"), 2)
            # fsdp first: a process whose heap has been large keeps its holes, and fills them again.
            for kind, network in WAYS:
                store, job = jobs[network]
                found = shared[kind, network] = trained(cluster, store, replace(job, parallelism=kind), 2)
                progress(f"two, {kind}, {network}: {' and '.join(f'{one.growth_bytes / 1e6:.0f}' for one in found)} MB")
            for network, (store, job) in jobs.items():
                (alone[network],) = trained(cluster, store, job, 1)
                progress(f"one process, {network}: {alone[network].growth_bytes / 1e6:.0f} MB")
                figures[f"rows_per_second_single_{network}"] = alone[network].rows_per_second
        for (kind, network), found in shared.items():
            losses = [sum(parts) for parts in zip(*(one.losses for one in found), strict=True)]
            gaps = np.abs(np.subtract(losses, alone[network].losses))[:NUM_STEPS]
            figures["max_loss_difference"] = max(figures.get("max_loss_difference", 0.0), float(gaps.max()))
            figures[f"rows_per_second_{kind}"] = found[0].rows_per_second
            if kind != "data":
                peak = max(one.growth_bytes for one in found)
                figures[f"peak_member_vs_single_{kind}"] = peak / alone[network].growth_bytes
        if not is_quick:
            figures |= within_a_limit(folder, jobs, alone)
    figures["steps"] = len(losses)
    print_record("neural_parallel", figures, ["torch", "dask", "onnxruntime"])


def within_a_limit(folder: Path, jobs: dict[str, tuple[Store, NeuralJob]], alone: dict[str, Found]) -> dict[str, float]:
    """Return who finishes where a worker has less memory than one process takes: 1 who does, 0 who does not."""
    figures: dict[str, float] = {}
    for network in ("table", "deep"):
        store, job = jobs[network]
        limit = int(alone[network].start_bytes + LIMIT_GROWTH * alone[network].growth_bytes)
        figures[f"limit_bytes_{network}"] = limit
        config = ClusterConfig(workers=2, threads_per_worker=1, memory_limit=f"{limit}B")
        with open_cluster(config, folder / f"scratch-{network}") as cluster:
            for kind, own in WAYS:
                if own == network and kind != "data":
                    figures[f"finishes_{kind}"] = finishes(cluster, store, replace(job, parallelism=kind), 2)
            figures[f"finishes_single_{network}"] = finishes(cluster, store, job, 1)
    return figures


def finishes(cluster: str, store: Store, job: NeuralJob, members: int) -> int:
    """Return 1 if a training has enough memory, and 0 if a worker was ended for it."""
    try:
        trained(cluster, store, job, members)
    except RunError as error:
        progress(f"{members} member(s), {job.parallelism}: {error}")
        return 0
    progress(f"{members} member(s), {job.parallelism}: finished")
    return 1


if __name__ == "__main__":
    main()
