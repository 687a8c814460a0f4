"""What orchestration costs: `evergreen retrain` against a bare script that trains the same model.

Both sides are whole processes on the same files, in turns: the bare script below; a retrain into an empty root, which
starts its own Prefect server; a retrain into an empty root with a Prefect server up; the same again, from the caches.
The script reads, encodes, splits by time, trains as often as a retrain does, scores and saves. A retrain also
profiles, compresses, judges, registers, ships, draws and reports. The benchmark fails unless both split the rows
alike. The models are the same up to the order of category codes, which differs where a column has more values than
Evergreen counts (10,000).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from _record import print_record, progress

ROWS, QUICK_ROWS = 100_000, 12_000
ROUNDS, QUICK_ROUNDS = 3, 1
LIBRARIES = ("evergreen", "prefect", "mlflow", "dask", "polars", "xgboost")
GRACE_SECONDS = 20.0
CATEGORIES = ("branch", "zip_code", "channel", "home_ownership", "purpose")
COLUMNS = (
    "applied_on.month",
    "applied_on.day",
    "applied_on.weekday",
    "branch",
    "zip_code",
    "channel",
    "age",
    "income",
    "employment_years",
    "home_ownership",
    "existing_debt",
    "late_payments",
    "has_guarantor",
    "customer_since.month",
    "customer_since.day",
    "customer_since.weekday",
    "customer_since.elapsed_days",
    "purpose",
    "loan_amount",
    "term_months",
    "interest_rate",
)


@dataclass(frozen=True)
class Training:
    """What both sides train with."""

    parameters: dict[str, float | int | str]
    rounds: int
    early_stopping_rounds: int
    include_validation: bool
    holdout_fraction: float
    validation_fraction: float
    minimum_count: int
    most_categories: int


@dataclass(frozen=True)
class Bare:
    """What the bare script found."""

    auc: float
    num_rounds: int
    num_rows: tuple[int, int, int]
    """Training, validation and holdout."""


@dataclass(frozen=True)
class Cost:
    """What a command took."""

    seconds: float
    cpu_seconds: float
    """Of all its processes that have ended with it; other work on the machine changes them less."""


@dataclass(frozen=True)
class Round:
    """The cost of each process, and what they answered."""

    bare_cost: Cost
    embedded_cost: Cost
    server_cost: Cost
    """The server that was up is not counted."""
    rerun_cost: Cost
    bare: Bare
    retrained: dict[str, Any]
    """The outcome of the retrain with a server, as its JSON."""
    rerun: dict[str, Any]


def retrain_bare(data: Path, output: Path, training: Training) -> Bare:
    """Read, encode, split, train, score and save, as a script would that nobody has to watch."""
    import numpy as np
    import polars as pl
    import xgboost as xgb

    def codes(texts: pl.Series) -> pl.Series:
        """Number the values from 1, the most frequent first; 0 for the rare ones."""
        counts = texts.value_counts().filter(pl.col("count") >= training.minimum_count)
        known = counts.sort("count", texts.name, descending=[True, False]).head(training.most_categories)
        return texts.replace_strict(
            known.get_column(texts.name), range(1, known.height + 1), default=0, return_dtype=pl.Float32
        )

    frame = pl.read_parquet(data / "*.parquet")
    encoded = frame.with_columns(
        *[codes(frame.get_column(name)) for name in CATEGORIES],
        (pl.col("has_guarantor") == "yes").alias("has_guarantor"),
        pl.col("customer_since").cast(pl.Int32).alias("customer_since.elapsed_days"),
        *[
            part.alias(f"{name}.{part_name}")
            for name in ("applied_on", "customer_since")
            for part_name, part in (
                ("month", pl.col(name).dt.month()),
                ("day", pl.col(name).dt.day()),
                ("weekday", pl.col(name).dt.weekday()),
            )
        ],
    )
    # Whole days, the newest ones apart, so that each side has about its share of the rows.
    days = frame.group_by("applied_on").len().sort("applied_on", descending=True)
    newer = days.with_columns(share=pl.col("len").cum_sum() / frame.height)

    def cut(share: float) -> pl.Series:
        return newer.sort((pl.col("share") - share).abs()).get_column("applied_on").head(1)

    held_out = training.holdout_fraction
    holdout_from = cut(held_out)
    validation_from = cut(held_out + training.validation_fraction * (1 - held_out))
    day = pl.col("applied_on")
    sides = [
        encoded.filter(day < validation_from),
        encoded.filter((day >= validation_from) & (day < holdout_from)),
        encoded.filter(day >= holdout_from),
    ]
    features_BF = [side.select(COLUMNS).cast(pl.Float32).to_numpy() for side in sides]
    labels_B = [side.get_column("defaulted").to_numpy() for side in sides]
    named: dict[str, Any] = {
        "feature_names": list(COLUMNS),
        "feature_types": ["c" if name in CATEGORIES else "q" for name in COLUMNS],
        "enable_categorical": True,
        "nthread": training.parameters["nthread"],
    }
    known = xgb.QuantileDMatrix(features_BF[0], labels_B[0], **named)
    watched = xgb.QuantileDMatrix(features_BF[1], labels_B[1], ref=known, **named)
    booster = xgb.train(
        training.parameters,
        known,
        training.rounds,
        evals=[(watched, "validation")],
        early_stopping_rounds=training.early_stopping_rounds,
        verbose_eval=False,
    )
    booster = booster[: booster.best_iteration + 1]
    if training.include_validation:
        both = xgb.QuantileDMatrix(np.concatenate(features_BF[:2]), np.concatenate(labels_B[:2]), **named)
        booster = xgb.train(training.parameters, both, booster.num_boosted_rounds())
    scores_B = booster.predict(xgb.DMatrix(features_BF[2], **named))
    booster.save_model(output / "model.ubj")
    sides[2].select("applicant_id").with_columns(score=scores_B).write_parquet(output / "scores.parquet")
    # Area under the curve from the ranks of the positive rows (Mann and Whitney, 1947).
    positive = pl.Series(scores_B).rank().filter(pl.Series(labels_B[2] == 1))
    num_positive, num_negative = len(positive), len(scores_B) - len(positive)
    auc = (float(positive.sum()) - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative)
    train, validation, holdout = (side.height for side in sides)
    return Bare(auc, booster.num_boosted_rounds(), (train, validation, holdout))


def timed(command: Sequence[str], environment: dict[str, str]) -> tuple[Cost, dict[str, Any]]:
    """Run a process to its end; return what it took and the JSON object that its last line is."""
    start, start_cpu = time.perf_counter(), children_seconds()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        output, errors = process.communicate()
    finally:
        end(process)
    cost = Cost(time.perf_counter() - start, children_seconds() - start_cpu)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with code {process.returncode}:\n{errors}")
    answer: dict[str, Any] = json.loads(output.splitlines()[-1])
    return cost, answer


def children_seconds() -> float:
    """Return the CPU seconds of all child processes that have ended, theirs included."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def end(process: subprocess.Popen[str]) -> None:
    """End a process that may still run: first so that it can end its own children."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def clean_environment() -> dict[str, str]:
    """Return the environment of both sides: this process's, without what would lead a run elsewhere."""
    ours = ("EVERGREEN_", "PREFECT_", "MLFLOW_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    # As Evergreen's workers have it. On a busy machine, threads that spin would make the script ten times slower.
    return {**kept, "OMP_WAIT_POLICY": "passive"}


def default_training() -> Training:
    """Return what Evergreen trains with when nothing is set."""
    from infra.clusters import cpu_count
    from tasks._snapshot import MAX_CATEGORIES, MIN_CATEGORY_ROWS
    from tasks._split import SplitConfig
    from tasks._train import TrainConfig

    trees, split = TrainConfig().xgboost, SplitConfig()
    return Training(
        {**trees.parameters("binary"), "seed": TrainConfig().seed, "nthread": cpu_count()},
        trees.rounds,
        trees.early_stopping_rounds,
        TrainConfig().include_validation,
        split.holdout_fraction,
        split.validation_fraction,
        MIN_CATEGORY_ROWS,
        MAX_CATEGORIES,
    )


def measure(folder: Path, training: Training, server: str) -> Round:
    """Run every side once, in an empty folder."""
    folder.mkdir()
    data, environment = folder.parent / "data", clean_environment()
    evergreen = str(Path(sys.executable).with_name("evergreen"))
    retrain = [evergreen, "retrain", str(folder.parent / "evergreen.toml"), "--json"]
    with_server = {**environment, "EVERGREEN_ROOT": str(folder / "with_server"), "PREFECT_API_URL": server}
    script = [sys.executable, __file__, "--bare", str(data), str(folder), json.dumps(asdict(training))]
    bare_cost, bare = timed(script, environment)
    progress(f"  bare script {told(bare_cost)}")
    embedded_cost, _ = timed(retrain, {**environment, "EVERGREEN_ROOT": str(folder / "embedded")})
    progress(f"  embedded {told(embedded_cost)}")
    server_cost, retrained = timed(retrain, with_server)
    progress(f"  with a server {told(server_cost)}, of it in stages {stage_seconds(retrained):.1f} s")
    rerun_cost, rerun = timed(retrain, with_server)
    progress(f"  again {told(rerun_cost)}, of it in stages {stage_seconds(rerun):.1f} s")
    found = Bare(bare["auc"], bare["num_rounds"], tuple(bare["num_rows"]))
    check(found, retrained, rerun)
    return Round(bare_cost, embedded_cost, server_cost, rerun_cost, found, retrained, rerun)


def told(cost: Cost) -> str:
    """Return a cost in words, with how busy the machine is."""
    return f"{cost.seconds:.1f} s ({cost.cpu_seconds:.1f} s of CPU, load {os.getloadavg()[0]:.1f})"


def check(bare: Bare, retrained: dict[str, Any], rerun: dict[str, Any]) -> None:
    """End the benchmark if the sides did not do the same work."""
    rows = tuple(retrained["rows"][side] for side in ("train", "validation", "holdout"))
    if rows != bare.num_rows:
        sys.exit(f"Both sides split alike, but got rows={rows} against the script's {bare.num_rows}. Compare the cuts.")
    if not rerun["stages"]["train"]["cached"]:
        sys.exit(f"A second run trains nothing, but got stages={rerun['stages']}. Look at the keys of the caches.")


def stage_seconds(outcome: dict[str, Any]) -> float:
    """Return the seconds of all stages of a run together."""
    return sum(float(stage["seconds"]) for stage in outcome["stages"].values())


def figures(rounds: list[Round]) -> dict[str, float]:
    """Return the medians over the rounds; each round's sides are compared with each other first."""
    return {
        "overhead_seconds_embedded": median(r.embedded_cost.seconds - r.bare_cost.seconds for r in rounds),
        "overhead_seconds_with_server": median(r.server_cost.seconds - r.bare_cost.seconds for r in rounds),
        "overhead_cpu_seconds_embedded": median(r.embedded_cost.cpu_seconds - r.bare_cost.cpu_seconds for r in rounds),
        "overhead_cpu_seconds_with_server": median(r.server_cost.cpu_seconds - r.bare_cost.cpu_seconds for r in rounds),
        "time_vs_bare_embedded": median(r.embedded_cost.seconds / r.bare_cost.seconds for r in rounds),
        "time_vs_bare_with_server": median(r.server_cost.seconds / r.bare_cost.seconds for r in rounds),
        "cached_rerun_vs_first": median(stage_seconds(r.rerun) / stage_seconds(r.retrained) for r in rounds),
        "auc_difference": rounds[0].retrained["metrics"]["challenger"]["auc"] - rounds[0].bare.auc,
        "seconds_bare": median(r.bare_cost.seconds for r in rounds),
        "seconds_embedded": median(r.embedded_cost.seconds for r in rounds),
        "seconds_with_server": median(r.server_cost.seconds for r in rounds),
        "seconds_rerun_with_server": median(r.rerun_cost.seconds for r in rounds),
        "stage_seconds": median(stage_seconds(r.retrained) for r in rounds),
    }


def benchmark(num_rows: int, num_rounds: int) -> None:
    """Measure in a folder that is gone afterwards, and print the line."""
    from infra import prefect_server

    os.environ.pop("PREFECT_API_URL", None)
    with tempfile.TemporaryDirectory(prefix="evergreen-orchestration-") as name:
        folder = Path(name)
        server = prefect_server.start(folder / "prefect")
        try:
            from tasks._demo import write_demo

            write_demo(folder, rows=num_rows)
            training = default_training()
            url = server.wait()
            rounds = []
            for number in range(1, num_rounds + 1):
                progress(f"round {number} of {num_rounds}, {num_rows:,} rows")
                rounds.append(measure(folder / f"round-{number}", training, url))
        finally:
            server.stop()
    print_record("orchestration", figures(rounds), LIBRARIES)


def main() -> None:
    """Run the benchmark, or the bare script when asked to by the benchmark."""
    parser = argparse.ArgumentParser(description="Measure what `evergreen retrain` costs over a bare script.")
    parser.add_argument("--quick", action="store_true", help="one round on fewer rows, in under 50 seconds")
    parser.add_argument("--bare", nargs=3, metavar=("DATA", "OUTPUT", "TRAINING"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.bare:
        data, output, training = asked.bare
        print(json.dumps(asdict(retrain_bare(Path(data), Path(output), Training(**json.loads(training))))))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exit that closes what is open
    benchmark(*((QUICK_ROWS, QUICK_ROUNDS) if asked.quick else (ROWS, ROUNDS)))


if __name__ == "__main__":
    main()
