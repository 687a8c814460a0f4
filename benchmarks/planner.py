"""The planner's prediction of memory against trainings in processes of their own, each under a hard limit.

For each size the limit is the least under which the planner says that it fits. A process whose memory passes it is
killed and counted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from _member import HOLDOUT, SHARES, TRAIN, VALIDATION, write_shard
from _record import print_record, progress

from infra.clusters import WORKER_ENVIRONMENT
from infra.errors import InputError
from tasks._costs import BASE_BYTES, MIB, Workload, cpu_seconds
from tasks._planner import Machine, Plan, PlanConfig, make_plan

ROUNDS = 2
LOOK_SECONDS = 0.01
LIMIT_STEP = 16 * MIB
MEMBER = Path(__file__).with_name("_member.py")


def workload(num_shards: int, shard_rows: int, num_numeric: int, **others: Any) -> Workload:
    """Return a workload of equal shards, a fifth of whose rows are held out."""
    rows = num_shards * shard_rows
    return Workload(
        num_train_rows=round(SHARES[TRAIN] * rows),
        num_validation_rows=round(SHARES[VALIDATION] * rows),
        num_numeric=num_numeric,
        num_shards=num_shards,
        largest_shard_rows=shard_rows,
        used_share=1 - SHARES[HOLDOUT],
        rounds=ROUNDS,
        **others,
    )


QUICK = [
    ("in_memory", workload(1, 50_000, 10)),
    ("in_memory", workload(8, 50_000, 30, vocabulary_sizes=(50, 3000), max_depth=8)),
    ("in_memory", workload(5, 100_000, 20, num_classes=5, missing_share=0.05)),
    ("external", workload(8, 100_000, 15)),
    ("in_memory", workload(3, 50_000, 60, max_depth=10)),
]
FULL = [
    *QUICK,
    ("in_memory", workload(12, 250_000, 10, has_weights=True)),
    ("in_memory", workload(10, 200_000, 50)),
    ("in_memory", workload(10, 100_000, 50, max_bin=512)),
    ("in_memory", workload(10, 100_000, 50, missing_share=0.1)),
    ("in_memory", workload(6, 100_000, 40, missing_share=0.1, has_sparse_feature=True)),
    ("in_memory", workload(4, 100_000, 100, max_bin=64, includes_validation=False)),
    ("in_memory", workload(4, 100_000, 100, max_depth=4)),
    ("in_memory", workload(20, 50_000, 20, num_classes=5, max_depth=8)),
    ("in_memory", workload(2, 1_000_000, 20)),
    ("in_memory", workload(4, 100_000, 20, vocabulary_sizes=(20_000, 10_000, 300), max_depth=9)),
    ("external", workload(20, 100_000, 50)),
    ("external", workload(4, 500_000, 40)),
    ("external", workload(40, 25_000, 40, missing_share=0.05, num_classes=3)),
    ("external", workload(8, 100_000, 60, max_depth=9, vocabulary_sizes=(500,))),
]


def tightest(work: Workload, memory: str) -> tuple[Machine, Plan]:
    """Return the machine with the least memory under which the planner lets this training run, and its plan."""
    for steps in range(BASE_BYTES // LIMIT_STEP, 2**14):
        machine = Machine("here", threads=1, memory_bytes=steps * LIMIT_STEP)
        try:
            return machine, make_plan(work, [machine], PlanConfig.model_validate({"memory": memory, "device": "cpu"}))
        except InputError:
            continue
    raise AssertionError(f"no limit is enough for {work}")


def trained(work: Workload, plan: Plan, limit: int, folder: Path) -> dict[str, float] | None:
    """Train by a plan in a new process; None if its memory passes the limit."""
    shard = folder / "shard.arrow"
    write_shard(shard, work)
    told = {
        "workload": asdict(work),
        "shard": str(shard),
        "folder": str(folder),
        "threads": plan.threads,
        "batch_rows": plan.batch_rows,
    }
    number = dict.fromkeys(("OMP_NUM_THREADS", "POLARS_MAX_THREADS"), str(plan.threads))
    root = str(MEMBER.parents[1])
    environment = {**os.environ, **WORKER_ENVIRONMENT, **number, "PYTHONPATH": root}
    process = subprocess.Popen(
        [sys.executable, str(MEMBER), json.dumps(told)], env=environment, stdout=subprocess.PIPE, text=True
    )
    for used in rss(process):
        if used > limit:
            process.kill()
        time.sleep(LOOK_SECONDS)
    printed, _ = process.communicate()
    if process.returncode:
        return None
    found: dict[str, float] = json.loads(printed.splitlines()[-1])
    return found if found["peak"] <= limit else None


def rss(process: subprocess.Popen[str]) -> Iterator[int]:
    """Yield the memory of a process until it ends."""
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            return
        yield 1024 * next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")), 0)


def main() -> None:
    """Train each size under the tightest limit, and print how far the predictions were off."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="Only the small sizes.")
    grid = QUICK if parser.parse_args().quick else FULL
    errors, seconds, num_killed = [], [], 0
    for memory, work in grid:
        machine, plan = tightest(work, memory)
        with tempfile.TemporaryDirectory() as folder:
            found = trained(work, plan, machine.memory_bytes, Path(folder))
        if found is None:
            num_killed += 1
            progress(f"out of memory at {machine.memory_bytes / MIB:,.0f} MiB: {plan.sentence}")
            continue
        predicted = plan.predicted_bytes - machine.base_bytes + found["before"]
        errors.append(predicted / found["peak"] - 1)
        pilot = cpu_seconds(replace(work, includes_validation=False), 1.0, 1.0, is_external=plan.is_external)
        seconds.append(pilot.of(ROUNDS) / (found["read"] + found["trained"]))
        progress(
            f"{memory}: {work.num_rows:,} x {work.num_features}, depth {work.max_depth}, {work.max_bin} bins: "
            f"{found['peak'] / MIB:,.0f} MiB, memory {errors[-1]:+.1%}, processor time x {seconds[-1]:.2f}"
        )
    figures = {
        "memory_error_worst": max(map(abs, errors)),
        "memory_error_median": statistics.median(map(abs, errors)),
        "memory_least_over_measured": 1 + min(errors),
        "num_out_of_memory": num_killed,
        "num_trainings": len(grid),
        "seconds_over_measured_median": statistics.median(seconds),
    }
    print_record("planner", figures, ["xgboost", "polars", "numpy"])


if __name__ == "__main__":
    main()
