"""The loss of the default network against that of default XGBoost, on rows that neither has seen.

Both learn from the same encoded rows, stop by the same validation rows, and run by turns in one process on one
thread. Noise is the half-width of the 95% interval of the difference in loss over the held-out rows, pair by pair; rows
of a split by time count by week. It does not cover that another seed gives another model: ask for more seeds.

With the folder of real data sets (--data, or EVERGREEN_DATA) it takes those, without it made-up ones.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch and XGBoost load their threads

import numpy as np
import polars as pl
from _record import print_record, progress
from _sets import MADE_UP, QUICK, REAL, DataSet, Prepared, prepare
from numpy.typing import NDArray

from infra.bundle.schema import Task
from infra.member import Member
from tasks import _xgboost
from tasks._candidate import Candidate, load_bundle
from tasks._encode import TARGET, TIME
from tasks._finish import Trained
from tasks._metrics import metrics_of, row_losses
from tasks._neural import fit
from tasks._neural.config import NeuralConfig

SECONDS_PER_WEEK = 7 * 86_400
INTERVAL_DEVIATIONS = 1.96
SHOWN_METRIC: dict[Task, str] = {"binary": "auc", "multiclass": "accuracy", "regression": "r2"}
COLOURS = {"better": "#2a9d72", "within noise": "#8a8a8a", "worse": "#d1495b"}


@dataclass(frozen=True)
class Score:
    """How a family fares on a set, the mean of its seeds."""

    losses: NDArray[np.float64]
    """Of the held-out rows, shape (rows,); squared errors of a regression."""
    validation_loss: float
    metric: float
    cpu_seconds: float


@dataclass(frozen=True)
class Comparison:
    """Both families on one set."""

    name: str
    published: str
    num_rows: int
    task: Task
    trees: Score
    network: Score
    groups: NDArray[np.int64]
    """Rows of one number are not independent, shape (rows,)."""

    @property
    def losses(self) -> tuple[float, float]:
        """Return the losses of trees and network: log loss or RMSE."""
        means = (float(score.losses.mean()) for score in (self.trees, self.network))
        first, second = (mean**0.5 if self.task == "regression" else mean for mean in means)
        return first, second

    @property
    def noise(self) -> float:
        """Return half of the interval of the difference (for an RMSE by the delta method)."""
        slopes = [1 / (2 * loss) if self.task == "regression" else 1.0 for loss in self.losses]
        parts = [
            slope * (s.losses - s.losses.mean()) for slope, s in zip(slopes, (self.trees, self.network), strict=True)
        ]
        _, place = np.unique(self.groups, return_inverse=True)
        sums = np.bincount(place, parts[1] - parts[0])
        deviation = np.sqrt((sums**2).sum() * len(sums) / (len(sums) - 1)) / len(self.groups)
        return float(INTERVAL_DEVIATIONS * deviation)

    @property
    def verdict(self) -> str:
        """Say how the network is, next to the trees."""
        trees, network = self.losses
        better = "better" if network < trees else "worse"
        return better if abs(network - trees) > self.noise else "within noise"

    @property
    def regret(self) -> float:
        """Return by how many times the noise the family that validation rows choose is worse than the better one."""
        chosen = self.losses[self.network.validation_loss < self.trees.validation_loss]
        return (chosen - min(self.losses)) / self.noise

    @property
    def relative(self) -> tuple[float, float]:
        """Return the network's loss less that of the trees, and the noise, as percentages of the latter."""
        trees, network = self.losses
        return 100 * (network - trees) / trees, 100 * self.noise / trees


def compare(chosen: DataSet, source: Path, folder: Path, seeds: int) -> Comparison:
    """Train both families on a set, by turns."""
    rows = prepare(chosen, source, folder)
    held = rows.held_out()
    found: dict[str, list[Score]] = {"trees": [], "network": []}
    for seed in range(seeds):
        found["trees"].append(score_of(rows, held, train_trees, seed))
        found["network"].append(score_of(rows, held, train_network, seed))
    is_timed = rows.trees.rule.by == "time"
    groups = held.get_column(TIME).to_numpy() // SECONDS_PER_WEEK if is_timed else np.arange(held.height)
    return Comparison(
        name=chosen.name,
        published=chosen.published,
        num_rows=rows.trees.sample.num_rows,
        task=rows.trees.encoded.schema.task,
        trees=mean_score(found["trees"]),
        network=mean_score(found["network"]),
        groups=groups.astype(np.int64),
    )


def train_trees(rows: Prepared, seed: int) -> Trained:
    """Train default XGBoost."""
    return _xgboost.train(Member.alone(), rows.store, replace(rows.trees, seed=seed))


def train_network(rows: Prepared, seed: int) -> Trained:
    """Train the default network."""
    return fit.train(Member.alone(), rows.store, replace(rows.network(NeuralConfig()), seed=seed))


def score_of(rows: Prepared, held: pl.DataFrame, train: object, seed: int) -> Score:
    """Train a model, and judge it by the held-out rows."""
    began = time.process_time()
    candidate: Candidate = train(rows, seed).candidate  # type: ignore[operator]
    seconds = time.process_time() - began
    task, labels = rows.trees.encoded.schema.task, held.get_column(TARGET).to_numpy()
    labels = labels if task == "regression" else labels.astype(np.int64)
    scores = np.asarray(load_bundle(rows.store, candidate.bundle).scores(held))
    losses = row_losses(task, "rmse" if task == "regression" else "log_loss", labels, scores)
    assert losses is not None, "these metrics are means over rows"
    metric = metrics_of(task, labels, scores)[SHOWN_METRIC[task]]
    return Score(losses, candidate.validation_curve[candidate.num_rounds - 1], metric, seconds)


def mean_score(scores: Sequence[Score]) -> Score:
    """Return the mean of seeds."""
    losses = np.mean([score.losses for score in scores], axis=0)
    rest = np.mean([(score.validation_loss, score.metric, score.cpu_seconds) for score in scores], axis=0)
    return Score(losses, *map(float, rest))


def table(found: Sequence[Comparison]) -> str:
    """Return what was found, as Markdown."""
    lines = [
        "| set | rows | loss | XGBoost | network | difference ± noise | verdict | CPU seconds | metric | published |",
        "|---|---:|---|---:|---:|---:|---|---:|---|---|",
    ]
    for c in found:
        trees, network = c.losses
        lines.append(
            f"| {c.name} | {c.num_rows:,} | {'RMSE' if c.task == 'regression' else 'log loss'} | {trees:.4g} | "
            f"{network:.4g} | {network - trees:+.2g} ± {c.noise:.2g} | {c.verdict} | {c.trees.cpu_seconds:.1f} / "
            f"{c.network.cpu_seconds:.1f} | {SHOWN_METRIC[c.task]} {c.trees.metric:.4f} / {c.network.metric:.4f} | "
            f"{c.published} |"
        )
    return "\n".join(lines)


def draw(found: Sequence[Comparison], path: Path) -> None:
    """Draw the differences with their intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 1.1 + 0.42 * len(found)), layout="constrained")
    axes = figure.subplots()
    for place, one in enumerate(reversed(found)):
        middle, half = one.relative
        axes.errorbar(middle, place, xerr=half, fmt="o", color=COLOURS[one.verdict], capsize=3)
    axes.set_yticks(range(len(found)), [one.name for one in reversed(found)])
    axes.axvline(0, color="#7f7f7e", linewidth=0.8, linestyle=":")
    axes.set_xlabel("Loss of the network against XGBoost, % (left of the dotted line is better; 95% intervals)")
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None})


def figures_of(found: Sequence[Comparison]) -> dict[str, float]:
    """Return the figures of the line."""
    verdicts = [one.verdict for one in found]
    costs = [one.network.cpu_seconds / one.trees.cpu_seconds for one in found]
    ratios = [1 + one.relative[0] / 100 for one in found]
    return {
        "sets_network_not_worse": sum(verdict != "worse" for verdict in verdicts),
        "sets_network_better": sum(verdict == "better" for verdict in verdicts),
        "sets": len(found),
        "share_network_not_worse": sum(verdict != "worse" for verdict in verdicts) / len(found),
        "regret_of_best_of_families": max(one.regret for one in found),
        "loss_vs_xgboost_mean": float(np.exp(np.mean(np.log(ratios)))),
        "loss_vs_xgboost_worst": max(ratios),
        "cpu_time_vs_xgboost_mean": float(np.exp(np.mean(np.log(costs)))),
        "cpu_seconds_network_longest": max(one.network.cpu_seconds for one in found),
    }


def main() -> None:
    """Compare on every set, draw the plot and print the line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="Use two small made-up sets.")
    parser.add_argument("--data", type=Path, default=os.environ.get("EVERGREEN_DATA"), help="Folder of the real sets.")
    parser.add_argument("--sets", nargs="+", help="Names of those to take.")
    parser.add_argument("--seeds", type=int, default=1, help="Trainings of each family on each set.")
    parser.add_argument("--plot", type=Path, default=Path("build/neural_quality.svg"), help="Where the plot goes.")
    args = parser.parse_args()
    sets = QUICK if args.quick else REAL if args.data else MADE_UP
    names = [one.name for one in sets]
    if unknown := set(args.sets or []) - set(names):
        sys.exit(f"A set is one of {', '.join(names)}, but got sets={', '.join(sorted(unknown))}. Correct --sets.")
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for number, one in enumerate(one for one in sets if one.name in (args.sets or names)):
            found.append(compare(one, Path(args.data or ""), Path(folder) / str(number), args.seeds))
            progress(table(found[-1:]).splitlines()[-1])
    progress(table(found))
    draw(found, args.plot)
    print_record("neural_quality", figures_of(found), ["torch", "tabm", "xgboost"])


if __name__ == "__main__":
    main()
