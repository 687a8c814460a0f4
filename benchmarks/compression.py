"""What the compression stage ships, against the candidate: size, speed and quality, for both families on four sets.

Each model is trained as a retrain trains it, and compressed by the stage itself: forms chosen on validation rows, and
proven on held-out rows. Then candidate and shipped form answer the same rows by turns, in one thread: trees against
XGBoost's inplace_predict of the candidate, networks against its fp32 graph in ONNX Runtime. `runtime_regret` is how
much longer the shipped trees take, at the worst of the batch sizes from 1 to 10,000, than the better of their runtimes.

Figures are those of the worst set. With the folder of real data sets (--data, or EVERGREEN_DATA) it takes those,
without it made-up ones.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch and XGBoost load their threads

import numpy as np
import polars as pl
from _record import print_record, progress
from _sets import MADE_UP, QUICK, REAL, DataSet, Prepared, prepare
from numpy.typing import NDArray

from infra.bundle.encoder import matrix
from infra.bundle.model import Bundle
from infra.bundle.trees import Trees
from infra.member import Member
from infra.progress import listening
from tasks import _xgboost
from tasks._candidate import Candidate, load_bundle
from tasks._certify import certify, certify_first
from tasks._compress import CompressConfig, Frontier
from tasks._encode import TARGET
from tasks._evaluate import LABEL, SCORE
from tasks._learning import LearningJob
from tasks._metrics import DEFAULT_METRIC, gain, is_higher_better, metrics_of
from tasks._neural.config import NeuralConfig
from tasks._workshop import frontier

SETS = ("adult", "bank marketing", "California housing", "diamonds")
BATCHES = (1, 4, 16, 64, 256, 1024, 4096, 10_000)
BUDGET_SECONDS = 600.0
LEAST_SECONDS = 0.02
"""Of one timing: a single row is asked as often as that takes."""


@dataclass(frozen=True)
class Outcome:
    """What was shipped of one model, next to its candidate."""

    name: str
    shipped: str
    size_speedup: float
    row_speedup: float
    batch_speedup: float
    """Trees: 10,000 rows. Networks: 100 rows."""
    loss: float
    """Of a score as such, of a loss as a share."""
    regret: float


def compress(
    chosen: DataSet, rows: Prepared, job: LearningJob, candidate: Candidate, turns: int, seconds: float
) -> Outcome:
    """Compress a candidate as the stage does, and measure what is shipped next to it."""
    task = rows.trees.encoded.schema.task
    metric = DEFAULT_METRIC[task]
    config = CompressConfig(budget_seconds=seconds)
    began = time.monotonic()
    with listening(lambda event: progress(f"  {time.monotonic() - began:5.1f} s {event['note']}")):
        found = frontier(rows.store, job, candidate, metric, config, threads=os.cpu_count() or 1)
    held = rows.held_out()
    tables = [table_of(load_bundle(rows.store, v.bundle), held) for v in found.variants]
    index = proven(rows, found, tables, metric, config)
    tell(chosen.name, candidate, found, tables, index, metric, time.monotonic() - began)
    whole, small = (load_bundle(rows.store, found.variants[i].bundle) for i in (0, index))
    for bundle in (whole, small):
        bundle.predictor.use_one_thread()
    x_BF = np.resize(matrix(held, whole.schema.features), (max(BATCHES), len(whole.schema.features)))
    is_trees = isinstance(whole.predictor, Trees)
    size = 10_000 if is_trees else 100
    answers = [whole.predictor.scores, small.predictor.scores]
    row, batch = (np.divide(*medians(answers, x_BF[:n], turns)) for n in (1, size))
    values = [metrics_of(task, labels_of(t, task), scores_of(t))[metric] for t in (tables[0], tables[index])]
    lost = -(gain(metric, values[1], values[0]) or 0.0)
    return Outcome(
        name=chosen.name,
        shipped=found.variants[index].name,
        size_speedup=graph_bytes(whole) / graph_bytes(small),
        row_speedup=float(row),
        batch_speedup=float(batch),
        loss=lost if is_higher_better(metric) else lost / values[0],
        regret=regret(small, x_BF, turns) if isinstance(small.predictor, Trees) else 1.0,
    )


def graph_bytes(bundle: Bundle) -> int:
    """Return the size of what answers: of a network without the weights that a training would go on from."""
    onnx = getattr(bundle.predictor, "onnx", None)
    return len(onnx) if bundle.predictor.family == "neural" and onnx else bundle.predictor.num_bytes


def regret(bundle: Bundle, x_BF: NDArray[np.float32], turns: int) -> float:
    """Return how many times longer trees take than the better of their runtimes, at the worst batch size."""
    trees = bundle.predictor
    assert isinstance(trees, Trees)
    few, many = (replace(trees, booster=trees.booster, crossover=limit) for limit in (max(BATCHES), 0))
    runtimes = [trees.scores, few.scores, many.scores]
    ratios = []
    for size in BATCHES:
        ours, *each = medians(runtimes, x_BF[:size], turns)
        ratios.append(ours / min(each))
    return max(ratios)


def medians(
    answers: Sequence[Callable[[NDArray[np.float32]], object]], rows: NDArray[np.float32], turns: int
) -> list[float]:
    """Return the median seconds of each of some models to answer rows, by turns."""
    repeats = []
    for answer in answers:
        answer(rows)
        start = time.perf_counter()
        answer(rows)
        repeats.append(max(1, int(LEAST_SECONDS / max(1e-7, time.perf_counter() - start))))
    taken: list[list[float]] = [[] for _ in answers]
    for _ in range(turns):
        for answer, count, seconds in zip(answers, repeats, taken, strict=True):
            start = time.perf_counter()
            for _ in range(count):
                answer(rows)
            seconds.append((time.perf_counter() - start) / count)
    return [float(np.median(seconds)) for seconds in taken]


def table_of(bundle: Bundle, held: pl.DataFrame) -> pl.DataFrame:
    """Return labels and scores of held-out rows, as `tasks._evaluate` writes them."""
    scores = bundle.scores(held)
    columns = {f"{SCORE}_{i}": scores[:, i] for i in range(scores.shape[1])} if scores.ndim == 2 else {SCORE: scores}
    return pl.DataFrame({LABEL: held.get_column(TARGET), **columns})


def scores_of(table: pl.DataFrame) -> NDArray[np.float64]:
    """Return the scores of a table."""
    return (table.get_column(SCORE).to_numpy() if SCORE in table.columns else table.drop(LABEL).to_numpy()).astype(
        np.float64
    )


def labels_of(table: pl.DataFrame, task: str) -> NDArray[np.int64] | NDArray[np.float64]:
    """Return the labels of a table."""
    labels = table.get_column(LABEL).to_numpy()
    return labels if task == "regression" else labels.astype(np.int64)


def proven(rows: Prepared, found: Frontier, tables: Sequence[pl.DataFrame], metric: str, config: CompressConfig) -> int:
    """Return the variant that the certificate allows."""
    thresholds = [load_bundle(rows.store, v.bundle).threshold for v in found.variants]

    def certificate(index: int, alpha: float) -> object:
        v = found.variants[index]
        return certify(
            rows.trees.encoded.schema.task,
            metric,
            (tables[0], tables[index]),
            (thresholds[0], thresholds[index]),
            config,
            [],
            rows.vocabulary,
            variant=(v.name, v.technique),
            measured=(found.variants[0].measured, v.measured),
            machine=found.machine,
            alpha=alpha,
        )

    lossless = [i for i, v in enumerate(found.variants) if v.is_lossless]
    index, certificates = certify_first(found.ranking, certificate, config.confidence, lossless)  # type: ignore[arg-type]
    for one in certificates:
        progress(f"  {one.sentence}")
    return index


def tell(
    name: str,
    candidate: Candidate,
    found: Frontier,
    tables: Sequence[pl.DataFrame],
    index: int,
    metric: str,
    seconds: float,
) -> None:
    """Print every variant next to the candidate."""
    whole = found.variants[0]
    progress(f"{name}, {candidate.family}: {candidate.num_rounds} {candidate.unit}s, compressed in {seconds:.0f} s")
    progress(f"  {'form':<34}{'technique':<20}{'size':>7}{'p50':>7}{'p99':>7}{'rows/s':>8}{'loss':>9}{metric:>9}")
    for i, v in enumerate(found.variants):
        m, w = v.measured, whole.measured
        ratios = (
            w.model_bytes / m.model_bytes,
            w.row_p50_us / m.row_p50_us,
            w.row_p99_us / m.row_p99_us,
            m.rows_per_second / w.rows_per_second,
        )
        mark = "shipped" if i == index else v.refused
        shown = "".join(f"{ratio:>7.2f}" for ratio in ratios)
        progress(f"  {v.name[:33]:<34}{v.technique[:19]:<20}{shown} {v.loss:>9.5f}{v.value:>9.5f}  {mark}")
    for failure in found.failures:
        progress(f"  {failure.technique}: {failure.reason}")


def models(rows: Prepared, families: Sequence[str], epochs: int | None) -> list[tuple[LearningJob, Candidate]]:
    """Train a model of each family, in both phases."""
    trained: list[tuple[LearningJob, Candidate]] = []
    for family in families:
        if family == "trees":
            job: LearningJob = replace(rows.trees, include_validation=True)
            answer = _xgboost.train(Member.alone(), rows.store, job)  # type: ignore[arg-type]
        else:
            from tasks._neural import fit

            settings = NeuralConfig() if epochs is None else NeuralConfig(epochs=epochs)
            job = replace(rows.network(settings), include_validation=True)
            answer = fit.train(Member.alone(), rows.store, job)  # type: ignore[arg-type]
        assert answer.candidate is not None, "who is alone is the first"
        trained.append((job, answer.candidate))
    return trained


def figures_of(outcomes: Sequence[tuple[str, Outcome]]) -> dict[str, float]:
    """Return the figures of the worst set."""
    found: dict[str, float] = {}
    for family, prefix in (("xgboost", "tree"), ("neural", "network")):
        own = [outcome for name, outcome in outcomes if name == family]
        if not own:
            continue
        found[f"{prefix}_size_speedup"] = min(o.size_speedup for o in own)
        found[f"{prefix}_batch_speedup"] = min(o.batch_speedup for o in own)
        found[f"{prefix}_loss"] = max(o.loss for o in own)
        if prefix == "tree":
            found["tree_row_speedup"] = min(o.row_speedup for o in own)
            found["runtime_regret"] = max(o.regret for o in own)
    return found


def main(arguments: Sequence[str]) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small made-up sets, in less than 50 seconds")
    parser.add_argument("--data", default=os.environ.get("EVERGREEN_DATA", ""), help="folder of the real data sets")
    parser.add_argument("--sets", nargs="*", default=[], help="names of sets; all by default")
    parser.add_argument("--families", nargs="*", default=["trees", "network"], choices=["trees", "network"])
    parser.add_argument("--epochs", type=int, default=None, help="of networks")
    asked = parser.parse_args(arguments)
    sets = QUICK if asked.quick else tuple(s for s in REAL if s.name in SETS) if asked.data else MADE_UP
    outcomes: list[tuple[str, Outcome]] = []
    for chosen in sets:
        if asked.sets and chosen.name not in asked.sets:
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows = prepare(chosen, Path(asked.data), Path(folder))
            for job, candidate in models(rows, asked.families, 2 if asked.quick else asked.epochs):
                turns, seconds = (5, 8.0) if asked.quick else (15, BUDGET_SECONDS)
                outcome = compress(chosen, rows, job, candidate, turns, seconds)
                progress(f"  {outcome}")
                outcomes.append((candidate.family, outcome))
    print_record("compression", figures_of(outcomes), ["xgboost", "onnxruntime", "numpy"])


if __name__ == "__main__":
    main(sys.argv[1:])
