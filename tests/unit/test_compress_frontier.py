"""Smaller forms of a candidate, and the one that is shipped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from _networks import graph, weights
from pydantic import ValidationError

from infra.bundle.network import Network
from infra.bundle.schema import Column, Schema
from infra.bundle.trees import Trees
from infra.bundle.vocabulary import Vocabulary
from infra.member import Member
from infra.storage import Store
from tasks import _compress, _xgboost
from tasks._candidate import Candidate, copy_bundle, load_bundle, store_bundle
from tasks._compress import CompressConfig, Frontier, frontier, median_seconds
from tasks._encode import Encoded, encode_file
from tasks._finish import validation_scores
from tasks._metrics import best_threshold
from tasks._sample import Sample, SampleRule
from tasks._snapshot import CsvConfig, source_file
from tasks._split import SplitRule
from tasks._train import XGBoostConfig
from tasks._training import TrainingJob
from tasks._xgboost import load_booster

ROWS = pl.DataFrame({"x": np.random.default_rng(0).normal(size=400)}).with_columns(
    y=(pl.col("x") + pl.Series(np.random.default_rng(1).normal(size=400)) > 0).cast(pl.Int64)
)
DEFAULT = CompressConfig()
SCHEMA = Schema((Column("x", "numeric"), Column("y", "numeric")), "y", "binary", labels=("0", "1"), hash_columns=("x",))


@pytest.fixture(scope="module", autouse=True)
def _measure_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_compress, "MAX_TIMINGS", 1)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, TrainingJob, Candidate]:
    """Train a small model once."""
    folder = tmp_path_factory.mktemp("compress")
    store = Store(str(folder / "root"))
    ROWS.write_parquet(folder / "rows.parquet")
    file = source_file(str(folder / "rows.parquet"), CsvConfig())
    shard = encode_file(store, file, SCHEMA, Vocabulary(), "shards/0")
    job = TrainingJob(
        model="loans",
        encoded=Encoded(SCHEMA, store.put("vocabulary.json", b"{}"), (shard,), num_new=1),
        files=(file,),
        rule=SplitRule("row", 0.2, 0.25),
        sample=Sample(SampleRule(), 0, 0),
        config=XGBoostConfig(rounds=40, early_stopping_rounds=10, learning_rate=0.2, max_depth=3),
        include_validation=True,
        seed=0,
        interval=None,
        threads=1,
        facts={"model": "loans"},
    )
    return store, job, _xgboost.train(Member.alone(), store, job).candidate


@pytest.fixture(scope="module")
def found(trained: tuple[Store, TrainingJob, Candidate]) -> Frontier:
    """Cut the model once."""
    return frontier(*trained, DEFAULT)


def test_variants_are_cut_after_shares_of_the_rounds(
    trained: tuple[Store, TrainingJob, Candidate], found: Frontier
) -> None:
    """The candidate comes first, then its first quarter, half and three quarters, each with the loss it had then."""
    candidate = trained[2]
    n = candidate.num_rounds
    cuts = [n, round(0.25 * n), round(0.5 * n), round(0.75 * n)]

    assert n > 4
    assert [("as trained", n), *((f"first {cut} rounds", cut) for cut in cuts[1:])] == [
        (variant.name, variant.num_rounds) for variant in found.variants
    ]
    assert [candidate.validation_curve[cut - 1] for cut in cuts] == [variant.loss for variant in found.variants]
    assert candidate.bundle == found.variants[0].bundle


def test_a_variant_answers_as_its_first_rounds(trained: tuple[Store, TrainingJob, Candidate], found: Frontier) -> None:
    """A variant's bundle is complete: it gives the scores of its rounds, and its own golden predictions."""
    store, _, candidate = trained
    whole = load_bundle(store, candidate.bundle)
    x_BF = np.linspace(-2, 2, 9, dtype=np.float32)[:, None]
    for variant in found.variants[1:]:
        bundle = load_bundle(store, variant.bundle)
        bundle.check_golden()

        assert variant.num_rounds == bundle.booster.num_boosted_rounds()
        expected = whole.booster.inplace_predict(x_BF, iteration_range=(0, variant.num_rounds))
        assert expected.tolist() == bundle.scores_of_matrix(x_BF).tolist()


def test_a_variants_threshold_is_that_of_as_many_rounds_of_the_pilot(
    trained: tuple[Store, TrainingJob, Candidate], found: Frontier
) -> None:
    """What a variant's bundle takes from the validation rows comes from a model that has not learnt from them."""
    store, job, candidate = trained
    pilot = load_booster(store, candidate.pilot)
    thresholds = []
    for variant in found.variants:
        cut = replace(load_bundle(store, variant.bundle), predictor=Trees(pilot[: variant.num_rounds]))
        labels, scores, _ = validation_scores(store, job, cut)
        thresholds.append(best_threshold(labels, scores))

    assert thresholds == [load_bundle(store, variant.bundle).threshold for variant in found.variants]
    assert candidate.pilot.digest != candidate.bundle.booster.digest


class Slow:
    """A model that takes some seconds for one row, and as many for any number of them."""

    now = 0.0

    def __init__(self, seconds: float, asked: list[float]) -> None:
        self.seconds, self.asked = seconds, asked

    def scores(self, rows: np.ndarray) -> None:
        """Let time pass."""
        Slow.now += self.seconds
        self.asked.append(self.seconds)


@pytest.mark.parametrize(("seconds", "num_turns"), [((2**-10, 2**-9), 31), ((2**-7, 2**-5), 25), ((4.0, 8.0), 4)])
def test_timings_take_turns_and_end_in_time(
    monkeypatch: pytest.MonkeyPatch, seconds: tuple[float, float], num_turns: int
) -> None:
    """Models are timed in turns: 30 after one that does not count, fewer where they are slow, but at least 3."""
    monkeypatch.setattr(_compress, "MAX_TIMINGS", 30)
    asked: list[float] = []
    start = Slow.now
    found = median_seconds([Slow(s, asked) for s in seconds], np.zeros((9, 1)), clock=lambda: Slow.now)  # type: ignore

    assert [s for _ in range(num_turns) for s in seconds for _ in ("row", "batch")] == asked
    assert [pytest.approx((s, s)) for s in seconds] == found
    assert num_turns == 4 or Slow.now - start <= 2 * _compress.TIMING_SECONDS


def test_variants_are_measured(found: Frontier) -> None:
    """Fewer rounds are fewer bytes, and times are measured."""
    whole, *cut = found.variants
    sizes = [variant.model_bytes for variant in cut]

    assert sizes == sorted(sizes)
    assert sizes[-1] < whole.model_bytes
    assert all(v.row_microseconds > 0 and v.batch_milliseconds > 0 for v in (whole, *cut))


def shipped(trained: tuple[Store, TrainingJob, Candidate], losses: list[float], tolerance: float) -> str:
    """Return the variant that is shipped where eight rounds had these losses."""
    store, job, candidate = trained
    short = replace(candidate, num_rounds=8, validation_curve=tuple(losses))
    return frontier(store, job, short, CompressConfig(tolerance=tolerance)).shipped.name


@pytest.mark.parametrize(
    ("losses", "tolerance", "expected"),
    [
        ([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2], 0.0, "as trained"),
        ([0.9, 0.8, 0.7, 0.203, 0.5, 0.202, 0.2, 0.2], 0.02, "first 4 rounds"),
        ([0.9, 0.8, 0.7, 0.205, 0.5, 0.202, 0.2, 0.2], 0.02, "first 6 rounds"),
        ([0.9, 0.2, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2], 0.0, "first 2 rounds"),
    ],
)
def test_the_smallest_within_the_tolerance_is_shipped(
    trained: tuple[Store, TrainingJob, Candidate], losses: list[float], tolerance: float, expected: str
) -> None:
    """Of the variants whose loss is larger by no more than the tolerance, the smallest goes on, or the candidate."""
    assert expected == shipped(trained, losses, tolerance)


def test_switched_off_nothing_is_cut(trained: tuple[Store, TrainingJob, Candidate]) -> None:
    """Without compression the candidate is the one variant, and is shipped."""
    store, job, candidate = trained
    only = frontier(store, job, candidate, CompressConfig(enabled=False))

    assert (1, candidate.bundle) == (len(only.variants), only.shipped.bundle)


def test_a_network_goes_on_as_it_was_trained(trained: tuple[Store, TrainingJob, Candidate]) -> None:
    """A model of another family has one variant, with its own loss, size and times, and is what its version keeps."""
    store, job, candidate = trained
    network = Network(graph(weights(1)), b"weights")
    stored = store_bundle(store, replace(load_bundle(store, candidate.bundle), predictor=network))
    other = replace(candidate, family="neural", bundle=stored, num_rounds=3, validation_curve=(0.9, 0.6, 0.5, 0.7))
    (only,) = frontier(store, job, other, DEFAULT).variants

    assert ("as trained", stored, 3, network.num_bytes, 0.5) == (
        *(only.name, only.bundle, only.num_rounds),
        *(only.model_bytes, only.loss),
    )
    assert only.row_microseconds > 0
    assert only.batch_milliseconds > 0
    assert "model.onnx" == Path(other.origin.final.name).name


def test_one_round_cannot_be_cut(trained: tuple[Store, TrainingJob, Candidate]) -> None:
    """A model of one round has no smaller form."""
    store, job, candidate = trained
    only = frontier(store, job, replace(candidate, num_rounds=1), DEFAULT)

    assert [1] == [variant.num_rounds for variant in only.variants]


def test_a_tolerance_is_a_share() -> None:
    """A tolerance is at least 0 and below 1."""
    with pytest.raises(ValidationError, match="tolerance"):
        CompressConfig(tolerance=1)


# Bundles in the store


def test_a_stored_bundle_is_the_bundle(trained: tuple[Store, TrainingJob, Candidate], tmp_path: Path) -> None:
    """A bundle that is read from the store and put there again is the same object under the same name."""
    store, _, candidate = trained
    bundle = load_bundle(store, candidate.bundle)
    copy_bundle(store, candidate.bundle, tmp_path)

    assert candidate.bundle == store_bundle(store, bundle)
    assert [(Path(ref.name).name, ref.num_bytes) for ref in candidate.bundle.files] == [
        (path.name, path.stat().st_size) for path in sorted(tmp_path.iterdir())
    ]
    assert candidate.bundle.num_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())


def test_another_threshold_is_another_bundle(trained: tuple[Store, TrainingJob, Candidate]) -> None:
    """Two bundles that answer differently have different digests, though their boosters are the same."""
    store, _, candidate = trained
    other = store_bundle(store, replace(load_bundle(store, candidate.bundle), threshold=0.123))

    assert candidate.bundle.digest != other.digest


def test_a_bundles_digest_does_not_depend_on_its_place(trained: tuple[Store, TrainingJob, Candidate]) -> None:
    """The same files in another folder are the same model."""
    files = trained[2].bundle.files
    moved = replace(trained[2].bundle, files=tuple(replace(f, name=f"elsewhere/{Path(f.name).name}") for f in files))

    assert trained[2].bundle.digest == moved.digest


def test_the_frontier_ships_what_was_chosen(found: Frontier) -> None:
    """The shipped variant is the chosen one."""
    assert found.variants[2] == Frontier(found.variants, 2).shipped
