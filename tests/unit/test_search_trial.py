"""One trial of a search: which rows it sees, what it reports, when it ends, and what a worker keeps for the next."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import pytest
import xgboost as xgb

from infra.bundle.schema import Column, Schema, Task
from infra.errors import RunError
from infra.progress import listening, stoppable
from infra.storage import Store
from tasks import _trial
from tasks._encode import ROW, TARGET, WEIGHT, Encoded, Shard, row_hash
from tasks._sample import Sample, SampleRule
from tasks._search import TrialOutcome
from tasks._split import HOLDOUT, TRAIN, VALIDATION, SplitRule
from tasks._train import XGBoostConfig
from tasks._training import ShardBatches, TrainingJob
from tasks._trial import KeptMatrices, Matrices, data_key, fold_losses, kept_matrices, run_trial

N = 3000
CONFIG = XGBoostConfig(rounds=40, early_stopping_rounds=5, learning_rate=0.3, max_depth=3)
TARGETS: dict[Task, Any] = {
    "binary": lambda signal: signal > 0,
    "multiclass": lambda signal: np.digitize(signal, [-1, 1]),
    "regression": lambda signal: signal,
}


def job_in(folder: Path, task: Task = "binary", weighted: bool = False) -> tuple[Store, TrainingJob]:
    """Put two shards in the store of a folder, and describe a training on them."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    x, code = rng.normal(size=N), rng.integers(-1, 4, N)
    target = TARGETS[task](2 * x + 0.5 * code + rng.normal(size=N))
    rows = pl.DataFrame(
        {
            "x": pl.Series(x, dtype=pl.Float32),
            "row": pl.Series(np.arange(N), dtype=pl.Float32),
            "k": pl.Series(code, dtype=pl.Int32),
            TARGET: pl.Series(np.asarray(target, dtype=np.float32)),
            ROW: row_hash(pl.DataFrame({"i": np.arange(N)}), ("i",)),
            **({WEIGHT: pl.Series(rng.integers(1, 4, N), dtype=pl.Float32)} if weighted else {}),
        }
    )
    store, shards = Store(str(folder / "root")), []
    for i, part in enumerate((rows[:1000], rows[1000:])):
        part.write_ipc(folder / f"{i}.arrow")
        shards.append(Shard(store.put_file(f"shards/{i}", folder / f"{i}.arrow"), part.height, 0, {}, {}))
    labels = {"binary": ("no", "yes"), "multiclass": ("a", "b", "c"), "regression": ()}[task]
    columns = (Column("x", "numeric"), Column("row", "numeric"), Column("k", "categorical"), Column("y", "numeric"))
    schema = Schema(columns, target="y", task=task, labels=labels)
    return store, TrainingJob(
        model="loans",
        encoded=Encoded(schema, store.put("vocabulary.json", b'{"k": ["a", "b", "c"]}'), tuple(shards), 0),
        files=(),
        rule=SplitRule("row", 0.2, 0.2),
        sample=Sample(SampleRule(), N, N),
        config=XGBoostConfig(),
        include_validation=False,
        seed=0,
        interval=None,
        threads=1,
        facts={},
    )


def rows_of(store: Store, job: TrainingJob, side: int, share: float = 1.0) -> list[int]:
    """Return which rows XGBoost is handed, told by the feature that says so."""
    batches, seen = ShardBatches(store, job, side, share=share), []

    def take(**batch: Any) -> None:
        seen.extend(batch["data"][:, batch["feature_names"].index("row")].astype(int).tolist())

    while batches.next(take):
        pass
    return seen


@pytest.fixture(autouse=True)
def nothing_kept() -> None:
    """Begin each test with a worker that has trained nothing."""
    kept_matrices.clear()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, TrainingJob]:
    """Give a small binary problem."""
    return job_in(tmp_path_factory.mktemp("small"))


def test_fewer_rows_are_among_more_rows(small: tuple[Store, TrainingJob]) -> None:
    """A ninth of the training rows is in the third, the third in all of them, and no other side is touched."""
    ninth, third, whole = (set(rows_of(*small, TRAIN, share)) for share in (1 / 9, 1 / 3, 1.0))

    assert ninth < third < whole
    assert [pytest.approx(1 / 9, abs=0.03), pytest.approx(1 / 3, abs=0.04)] == [
        len(part) / len(whole) for part in (ninth, third)
    ]
    assert not whole & (set(rows_of(*small, VALIDATION)) | set(rows_of(*small, HOLDOUT)))


def test_a_trial_gives_its_losses_and_its_speed(small: tuple[Store, TrainingJob]) -> None:
    """The losses are by round up to early stopping, and one row takes some microseconds."""
    outcome = run_trial(*small, CONFIG, 1.0)

    assert len(outcome.losses) <= CONFIG.rounds
    assert min(outcome.losses) < outcome.losses[0]
    assert 1 < outcome.row_microseconds < 1e5
    assert outcome.cpu_seconds > 0 and outcome.seconds > 0
    assert not outcome.is_stopped


def test_the_same_trial_gives_the_same_losses(small: tuple[Store, TrainingJob]) -> None:
    """Whether a worker has kept the matrices or not changes nothing."""
    first, kept = run_trial(*small, CONFIG, 0.5), run_trial(*small, CONFIG, 0.5)
    kept_matrices.clear()

    assert first.losses == kept.losses == run_trial(*small, CONFIG, 0.5).losses


def test_a_trial_ends_when_it_is_told_to(small: tuple[Store, TrainingJob], monkeypatch: pytest.MonkeyPatch) -> None:
    """It returns what it has, says that it was stopped, and reports its losses on the way, each of them once."""
    told: list[float] = []
    monkeypatch.setattr(_trial, "REPORT_SECONDS", 0.0)
    with listening(lambda event: told.extend(event["losses"])), stoppable(lambda: len(told) >= 10):
        outcome = run_trial(*small, CONFIG, 1.0)

    assert told == list(outcome.losses)
    assert (10, True, ()) == (len(told), outcome.is_stopped, outcome.fold_losses)


@pytest.mark.parametrize("task", TARGETS)
@pytest.mark.parametrize("weighted", [False, True])
def test_parts_of_the_rows_have_the_loss_of_the_whole_as_mean(tmp_path: Path, task: Task, weighted: bool) -> None:
    """The losses of the folds average to XGBoost's own of the best round, with weights too."""
    outcome = run_trial(*job_in(tmp_path, task, weighted), CONFIG, 1.0)
    mean = float(np.mean(outcome.fold_losses))

    assert 50 == len(outcome.fold_losses)
    assert min(outcome.losses) == pytest.approx(mean**0.5 if task == "regression" else mean, rel=1e-5)


def test_few_rows_have_few_parts(small: tuple[Store, TrainingJob]) -> None:
    """With fewer rows than folds each row is one."""
    rows = xgb.DMatrix(np.zeros((3, 1)), label=np.array([0.0, 1.0, 1.0]))
    booster = xgb.train({"objective": "binary:logistic"}, rows, num_boost_round=1)

    assert 3 == len(fold_losses(small[1], booster, rows))


def test_a_loss_that_is_not_finite_is_an_error(tmp_path: Path) -> None:
    """A trial whose loss overflows fails with a message."""
    store, job = job_in(tmp_path, "regression")
    huge = replace(job, encoded=replace(job.encoded, shards=job.encoded.shards[:1]))
    shard = pl.read_ipc(tmp_path / "root" / "shards" / "0")
    shard.with_columns(pl.col(TARGET) * 1e30).write_ipc(tmp_path / "huge.arrow")
    placed = replace(huge.encoded.shards[0], file=store.put_file("shards/huge", tmp_path / "huge.arrow"))
    with pytest.raises(RunError, match="A trial has a finite loss, but got rmse="):
        run_trial(store, replace(huge, encoded=replace(huge.encoded, shards=(placed,))), CONFIG, 1.0)


# What a worker keeps.


class Sized:
    """Stands for matrices of a size."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes


def keep(kept: KeptMatrices, made: list[str], key: str, num_bytes: int = 10, max_bytes: int = 100) -> None:
    """Ask for matrices of a key, and write down when they are made."""

    def make() -> Matrices:
        made.append(key)
        return cast(Matrices, Sized(num_bytes))

    kept.get(key, make, max_bytes)


def test_a_worker_keeps_the_two_newest_matrices() -> None:
    """Rows are put into bins once; of three kinds the one that was used longest ago goes."""
    kept, made = KeptMatrices(), list[str]()
    for key in ("a", "b", "a", "c", "a", "b"):
        keep(kept, made, key)

    assert ["a", "b", "c", "b"] == made
    assert 2 == len(kept)


def test_a_worker_keeps_no_more_than_its_memory_allows() -> None:
    """What would not fit beside new matrices of the same size goes before they are made."""
    kept, made = KeptMatrices(), list[str]()
    keep(kept, made, "a", num_bytes=60)
    keep(kept, made, "b", num_bytes=10)
    keep(kept, made, "c", num_bytes=95)

    assert 1 == len(kept)
    kept.clear()
    assert 0 == len(kept)


def test_trials_of_other_parameters_share_matrices(
    small: tuple[Store, TrainingJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the rows, their share and the number of bins make other matrices, never the other parameters."""
    made: list[tuple[float, int]] = []
    make = _trial.make_matrices

    def counted(store: Store, job: TrainingJob, share: float) -> Matrices:
        made.append((share, job.config.max_bin))
        return make(store, job, share)

    monkeypatch.setattr(_trial, "make_matrices", counted)
    few: list[TrialOutcome] = [
        run_trial(*small, CONFIG.model_copy(update={"rounds": 2, **changes}), share)
        for changes, share in (({}, 1.0), ({"max_depth": 5}, 1.0), ({"max_bin": 64}, 1.0), ({"max_bin": 64}, 0.5))
    ]

    assert [(1.0, 256), (1.0, 64), (0.5, 64)] == made
    assert 4 == len(few)


def test_the_rows_decide_about_matrices(small: tuple[Store, TrainingJob]) -> None:
    """Another split, sample or shard is another set of rows; another seed or number of threads is not."""
    job = small[1]
    others = [
        replace(job, rule=SplitRule("row", 0.3, 0.2)),
        replace(job, sample=Sample(SampleRule(thresholds=(0.5,)), N, N)),
        replace(job, encoded=replace(job.encoded, shards=job.encoded.shards[:1])),
    ]

    assert data_key(job) == data_key(replace(job, seed=5, threads=7, config=CONFIG))
    assert 4 == len({data_key(one) for one in (job, *others)})
