"""What early epochs of networks tell of their last ones, and what halving by them saves and costs.

Networks that are drawn from the space are trained to their end, the run's own first; then halving is replayed on
their losses in many random orders.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from _record import print_record, progress
from numpy.typing import NDArray
from scipy.stats import spearmanr

from infra.bundle.vocabulary import Vocabulary
from infra.storage import Store
from tasks._encode import Encoded, encode_file, extended_vocabulary
from tasks._kinds import infer_schema
from tasks._neural.config import NeuralConfig
from tasks._neural.inputs import inputs_of
from tasks._neural.job import NeuralJob
from tasks._neural.space import network_space
from tasks._neural.trial import run_trial
from tasks._profile import profile_frame
from tasks._sample import Sample, SampleRule
from tasks._search import FACTOR, ROUND_SHARES, Ladder, TrialOutcome
from tasks._snapshot import CsvConfig, DataConfig, source_file
from tasks._space import Dimension
from tasks._split import SplitConfig, make_rule

NUM_ORDERS = 200
RUNGS = (ROUND_SHARES, (1 / 9, 1 / 3, 1.0), (1 / 3, 1.0), (1 / 2, 1.0))


def make_rows(num_rows: int) -> pl.DataFrame:
    """Return rows whose target is a smooth function of some of their numbers and texts, with noise."""
    rng = np.random.default_rng(0)
    numbers = {f"n{i}": rng.normal(size=num_rows) for i in range(8)}
    code = rng.integers(0, 40, num_rows)
    signal = 2 * np.sin(2 * numbers["n0"]) * numbers["n1"] + numbers["n2"] * numbers["n3"] + numbers["n4"] ** 2
    target = signal + rng.normal(size=40)[code] * numbers["n5"] + rng.normal(size=num_rows)
    return pl.DataFrame({**numbers, "c": pl.Series(code).cast(pl.String), "y": target})


class Problem:
    """The rows of a table, and the job of any network on them."""

    def __init__(self, folder: Path, frame: pl.DataFrame, target: str, own: NeuralConfig, epochs: int) -> None:
        """Encode the rows."""
        path = folder / "rows.parquet"
        frame.write_parquet(path)
        self.store, self.own, self.epochs = Store(str(folder / "root")), own, epochs
        self.seen = profile_frame(frame, None)
        data = DataConfig(source=str(path), target=target)
        self.schema = infer_schema(self.seen, data, None, None)
        self.vocabulary = extended_vocabulary(Vocabulary({}), self.schema, self.seen)
        file = source_file(str(path), CsvConfig())
        shard = encode_file(self.store, file, self.schema, self.vocabulary, "shards/0")
        stored = self.store.put("vocabulary.json", self.vocabulary.to_json().encode())
        self.encoded, self.num_rows = Encoded(self.schema, stored, (shard,), 0), frame.height

    def job(self, config: NeuralConfig) -> NeuralJob:
        """Return the job of a network."""
        num_train = round(0.64 * self.num_rows)
        return NeuralJob(
            model="benchmark",
            encoded=self.encoded,
            files=(),
            rule=make_rule(SplitConfig(by="row"), self.schema, None),
            sample=Sample(SampleRule(), num_train, num_train),
            include_validation=False,
            seed=0,
            interval=None,
            threads=1,
            facts={},
            config=config,
            inputs=inputs_of(self.schema, self.vocabulary, self.seen, config.bins),
            batch_rows=config.num_batch_rows(num_train),
            micro_batch_rows=4096,
            window_rows=1 << 40,
            max_epochs=self.epochs,
        )


def drawn(dimension: Dimension, rng: np.random.Generator) -> float:
    """Return where in a dimension a trial is that nobody proposes."""
    low, high = dimension.low, dimension.high
    if dimension.is_integer:
        return float(low + dimension.step * rng.integers(0, int((high - low) // dimension.step) + 1))
    return float(np.exp(rng.uniform(np.log(low), np.log(high))) if dimension.is_log else rng.uniform(low, high))


def replayed(
    outcomes: Sequence[TrialOutcome], shares: Sequence[float], way: int, order: NDArray[Any]
) -> tuple[float, float]:
    """Return the CPU time of a halving against that of all trainings, and the loss of its best over the best.

    Rungs are shares of a way, in epochs.
    """
    epochs = [max(1, int(np.ceil(share * way))) for share in shares]
    rungs: list[list[float]] = [[] for _ in shares]
    spent, best = 0.0, np.inf
    for number in [0, *(i for i in order if i)]:
        losses, seconds = outcomes[number].losses, outcomes[number].cpu_seconds
        length = len(losses)
        for rung, end in zip(rungs, epochs, strict=True):
            rung.append(min(losses[:end]))
            if number and end < length and not Ladder((1.0,), factor=FACTOR).goes_on(rung[-1], rung):
                length = end
                break
        else:
            best = min(best, min(losses))
        spent += seconds * length / len(losses)
    return spent / sum(one.cpu_seconds for one in outcomes), best / min(min(one.losses) for one in outcomes)


def main() -> None:
    """Train networks that are drawn at random, replay halving on them, and print what it gives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="Use fewer rows, networks and epochs.")
    parser.add_argument("--data", help="A file to use instead of made-up rows.")
    parser.add_argument("--target", default="y", help="Its target.")
    parser.add_argument("--rows", type=int, default=8000, help="How many of its rows are used, at most.")
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--own", default="{}", help="The run's own parameters, as JSON.")
    args = parser.parse_args()
    num_rows, num_trials, epochs = (1000, 6, 4) if args.quick else (args.rows, args.trials, args.epochs)
    frame = make_rows(num_rows)
    if args.data:
        read = pl.read_parquet if args.data.endswith("parquet") else pl.read_csv
        frame = read(args.data)
        frame = frame.sample(min(num_rows, frame.height), seed=0)
    rng, outcomes = np.random.default_rng(0), []
    with tempfile.TemporaryDirectory() as name:
        problem = Problem(Path(name), frame, args.target, NeuralConfig.model_validate_json(args.own), epochs)
        space = network_space(problem.job(problem.own), lambda _config: True)
        for number in range(num_trials):
            positions = {dimension.name: drawn(dimension, rng) for dimension in space.dimensions}
            config = space.searched(problem.own, positions) if number else problem.own
            outcomes.append(run_trial(problem.store, problem.job(config), 1.0, False))
            last = outcomes[-1]
            progress(f"{number}: {min(last.losses):.5f} in {last.cpu_seconds:.0f} s of CPU {space.values(config)}")
    best_epoch = int(np.argmin(outcomes[0].losses)) + 1
    ends = [min(one.losses) for one in outcomes]
    figures: dict[str, float] = {"trials": num_trials, "rows": frame.height, "epochs": epochs}
    figures |= {"own_best_epoch": best_epoch, "own_loss": ends[0], "best_loss": min(ends)}
    for name, way in (("epochs", epochs), ("own_best", best_epoch)):
        for share in sorted({share for shares in RUNGS for share in shares[:-1]}):
            early = [min(one.losses[: max(1, int(np.ceil(share * way)))]) for one in outcomes]
            figures[f"rank_correlation_at_{share:.2f}_of_{name}"] = float(spearmanr(early, ends).statistic)
        for shares in RUNGS:
            orders = [rng.permutation(num_trials) for _ in range(NUM_ORDERS)]
            cost, regret = np.mean([replayed(outcomes, shares, way, order) for order in orders], axis=0)
            label = "_".join(f"{share:.2f}" for share in shares[:-1])
            figures |= {f"cost_{label}_of_{name}": float(cost), f"regret_{label}_of_{name}": float(regret - 1)}
    print_record("search_neural", figures, ["torch", "tabm", "optuna"])


if __name__ == "__main__":
    main()
