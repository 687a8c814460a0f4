"""Rows per second of the platform's training of a network over those of a bare loop in torch, on the same rows.

Both run in one process, by turns of a few steps, so that a busy machine slows both. Ours goes from shards through the
loader, with a schedule, progress and checks of each step; the bare loop has the rows as a tensor before the clock
starts. On a CPU both have one thread, and what counts is processor time; on a GPU ours computes as it does by default,
in bfloat16 and compiled, the bare loop as a script that says nothing of either, and what counts is time.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from _record import print_record, progress
from _training import make_neural_job, write_files
from torch.optim.lr_scheduler import LambdaLR

from infra.member import Member
from infra.storage import Store
from tasks._neural.checkpoint import Progress, Writer
from tasks._neural.config import MIN_BATCH_ROWS, REFERENCE_BATCH_ROWS, NeuralConfig
from tasks._neural.fit import Journey, Timer, learnt, rate_factor
from tasks._neural.job import NeuralJob
from tasks._neural.network import Network, NetworkShape, Target, initialise
from tasks._neural.rows import Rows, cut
from tasks._split import TRAIN, VALIDATION

NUM_RUNS = 3
EPOCHS = 2


@dataclass(frozen=True)
class Case:
    """One network, and how many rows it learns from."""

    name: str
    config: NeuralConfig
    num_rows: int
    batch_rows: int


def cases(device: str, *, quick: bool) -> list[Case]:
    """Return what is measured: about as many seconds each."""
    factor = (1 if quick else 4) * (1 if device == "cpu" else 64)
    batch_rows = 512 if device == "cpu" else 4096
    mlp = NeuralConfig(architecture="mlp")
    return [
        Case("tabm_mini", NeuralConfig(), 3_000 * factor, batch_rows // 2),
        Case("mlp", mlp, 40_000 * factor, batch_rows),
        Case("mlp_short_steps", mlp, 20_000 * factor, MIN_BATCH_ROWS),
    ]


@dataclass
class Side:
    """What one of the two has done in its turns."""

    seconds: float = 0.0
    num_rows: int = 0

    @property
    def rows_per_second(self) -> float:
        """Return how many rows were learnt from in a second."""
        return self.num_rows / self.seconds


@dataclass
class Alternating(Member):
    """A member that lets the bare loop have its turn whenever it is asked whether to go on, and times both."""

    steps: Iterator[int] = field(default_factory=lambda: iter(()))
    """Of the bare loop; each gives its number of rows."""
    timer: Timer = field(default_factory=Timer)
    """Knows how many rows ours has had."""
    device: str = "cpu"
    block: int = 1
    """Steps of a turn. Before the first turn of the bare loop ours does not count: on a GPU it compiles."""
    ours: Side = field(default_factory=Side)
    bare: Side = field(default_factory=Side)
    _num_checks: int = 0
    _began: tuple[float, int] | None = None

    def check(self) -> None:
        """Give the turn to the other side after a block of steps."""
        self._num_checks += 1
        if self._num_checks % self.block:
            return
        handed, num_rows = self._now(), self.timer.num_rows
        if self._began is not None:
            self.ours.seconds += handed - self._began[0]
            self.ours.num_rows += num_rows - self._began[1]
        for _ in range(self.block):
            self.bare.num_rows += next(self.steps)
        self._began = (self._now(), num_rows)
        self.bare.seconds += self._began[0] - handed

    def _now(self) -> float:
        if self.device == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()


def bare_steps(job: NeuralJob, x_RF: torch.Tensor, label_R: torch.Tensor) -> Iterator[int]:
    """Train the same modules as a script does, on rows that are in memory, for ever."""
    config, target, num_rows = job.config, Target("binary"), len(label_R)
    network = Network(NetworkShape(job.inputs, "binary", 1, config))
    initialise(network, job.seed)
    network.to(job.device).train()
    rate = config.learning_rate * math.sqrt(job.batch_rows / REFERENCE_BATCH_ROWS)
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=config.weight_decay)
    num_steps = job.max_epochs * -(-num_rows // job.batch_rows)
    schedule = LambdaLR(optimizer, lambda step: rate_factor(step, num_steps, config.warmup_fraction))
    total = torch.zeros((), device=job.device)
    while True:
        for some in torch.randperm(num_rows, device=job.device).split(job.batch_rows):
            loss = target.losses(network(x_RF[some]), label_R[some]).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), config.clip_norm)
            optimizer.step()
            schedule.step()
            total += loss.detach()
            yield len(some)


def loader_share(store: Store, job: NeuralJob) -> float:
    """Train without the other side; return the share of the steps' time in which they wait for rows."""
    member = Member.alone()
    journey = Journey(member, store, job, None, Writer(store, job, member))
    learnt(journey, Progress(phase=1), EPOCHS)
    journey.writer.close()
    return journey.timer.loader_seconds / journey.timer.seconds


def sides_of(store: Store, job: NeuralJob) -> tuple[Side, Side]:
    """Train by turns; return ours and the bare side."""
    rows = Rows(store, job, TRAIN, VALIDATION)
    x_RF = torch.from_numpy(rows.read(cut(rows.sizes, len(rows)))).to(job.device)
    steps = bare_steps(job, x_RF, torch.from_numpy(rows.label_R).to(job.device))
    timer = Timer()
    member = Alternating(0, 1, 1, steps=steps, timer=timer, device=job.device, block=1 if job.device == "cpu" else 20)
    journey = Journey(member, store, job, None, Writer(store, job, member), timer)
    learnt(journey, Progress(phase=1), EPOCHS)  # without validation rows, which the bare loop has none of either
    journey.writer.close()
    return member.ours, member.bare


def figures_of(case: Case, folder: Path, device: str) -> dict[str, float]:
    """Train a few times; return the figures of the medians."""
    write_files(folder / "data", case.num_rows, num_files=4)
    store, job = make_neural_job(folder / "data", folder / "root", case.config, device)
    num_rows = len(Rows(store, job, TRAIN, VALIDATION))
    # Whole batches: what fills up the last one of an epoch is a part of 150 steps, not of the few that are taken here.
    batch_rows = math.ceil(num_rows / round(num_rows / case.batch_rows))
    job = replace(job, threads=1, batch_rows=batch_rows)
    share = loader_share(store, job)  # loads code, too
    ratios, ours, bare = [], [], []
    for _ in range(NUM_RUNS):
        mine, theirs = sides_of(store, job)
        progress(f"{case.name}: {mine.rows_per_second:,.0f} rows/s, bare {theirs.rows_per_second:,.0f}")
        ratios.append(mine.rows_per_second / theirs.rows_per_second)
        ours.append(mine.rows_per_second)
        bare.append(theirs.rows_per_second)
    return {
        f"{case.name}_throughput_vs_bare": statistics.median(ratios),
        f"{case.name}_rows_per_second": statistics.median(ours),
        f"{case.name}_bare_rows_per_second": statistics.median(bare),
        f"{case.name}_loader_share": share,
    }


def main() -> None:
    """Measure each network, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="Use a quarter of the rows.")
    asked = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)
    figures: dict[str, float] = {}
    for case in cases(device, quick=asked.quick):
        with tempfile.TemporaryDirectory() as name:
            figures |= figures_of(case, Path(name), device)
    figures["throughput_vs_bare"] = min(value for name, value in figures.items() if name.endswith("_vs_bare"))
    print_record("neural_train", figures, ["torch", "tabm", "polars"])


if __name__ == "__main__":
    main()
