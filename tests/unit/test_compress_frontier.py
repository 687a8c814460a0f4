"""Smaller forms of a candidate, and the one that is shipped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _planted import planted
from _tree_jobs import trained_trees
from pydantic import ValidationError

from infra.bundle.encoder import matrix
from infra.bundle.trees import Trees
from infra.errors import InputError
from infra.progress import listening
from infra.storage import Store
from tasks import _measure
from tasks._candidate import BundleRef, Candidate, copy_bundle, load_bundle, store_bundle
from tasks._compress import (
    CompressConfig,
    Failure,
    Form,
    Variant,
    broken_budgets,
    check_techniques,
    frontier_of,
)
from tasks._encode import load_shard
from tasks._finish import validation_scores
from tasks._measure import Measured, measure, timed
from tasks._training import TrainingJob
from tasks._workshop import Order, work
from tasks._xgboost import load_booster

Job = tuple[Store, TrainingJob, Candidate]


@pytest.fixture(scope="module", autouse=True)
def _measure_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_measure, "MAX_TIMINGS", 1)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Train a small model once."""
    return trained_trees(tmp_path_factory.mktemp("compress"))


# Which variants may be shipped, and in which order

OLD = Measured(model_bytes=1000, memory_bytes=9000, row_p50_us=100.0, row_p99_us=200.0, rows_per_second=1e5)


def variant(name: str, loss: float = 0.3, lost: float = 0.0, deviation: float = 0.0, **measured: float) -> Variant:
    """Return a variant that was measured as the candidate was, but for what is said."""
    found = replace(OLD, **measured)  # type: ignore[arg-type]
    return Variant(name, name, "xgboost", BundleRef(()), loss, 0.9, lost, deviation, False, measured=found)


def ranked(*variants: Variant, metric: str = "auc", **config: Any) -> tuple[list[str], list[str]]:
    """Return the names of those that may be shipped, the best first, and why the others may not."""
    found = frontier_of([variant("whole"), *variants], CompressConfig(**config), metric)
    return [found.variants[i].name for i in found.ranking], [v.refused for v in found.variants if v.refused]


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ("size", ["small", "even", "quick", "wide", "whole"]),
        ("latency", ["quick", "even", "wide", "small", "whole"]),
        ("throughput", ["wide", "even", "small", "quick", "whole"]),
        ("balanced", ["even", "quick", "wide", "small", "whole"]),
    ],
)
def test_the_objective_orders_the_variants(objective: str, expected: list[str]) -> None:
    """Smallest, quickest for a row, quickest for many, or all three together; the candidate is always the last."""
    variants = [
        variant("small", model_bytes=100),
        variant("quick", row_p50_us=5.0, model_bytes=800),
        variant("wide", rows_per_second=2e6, model_bytes=900, row_p50_us=90.0),
        variant("even", model_bytes=300, row_p50_us=20.0, rows_per_second=1e6),
    ]
    assert (expected, []) == ranked(*variants, objective=objective)


def test_what_is_likely_to_be_proven_comes_first() -> None:
    """Three that gain more than what is sure come first, by gain times chance; then what is sure, then the others."""
    variants = [
        variant("small", lost=0.0015, deviation=0.0007, model_bytes=20),
        variant("likely", lost=0.0004, deviation=0.0007, model_bytes=25),
        variant("sure", model_bytes=200),
        variant("less", model_bytes=300),
        variant("doubtful", lost=0.0019, deviation=0.0007, model_bytes=30),
        variant("large", deviation=0.0007, model_bytes=250),
        variant("fair", lost=0.0010, deviation=0.0007, model_bytes=25),
    ]

    expected = ["likely", "fair", "small", "sure", "less", "doubtful", "large", "whole"]
    assert (expected, []) == ranked(*variants, objective="size")


@pytest.mark.parametrize(
    ("worse", "metric", "reason"),
    [
        ({"lost": 0.003}, "auc", "loses 0.003 ± 0 of auc on the validation rows, more than 0.002"),
        ({"lost": 0.0019}, "rmse", "loses 0.0019 ± 0 of rmse on the validation rows, more than 0.0018"),
        ({"lost": float("nan")}, "auc", "loses nan ± 0 of auc on the validation rows, more than 0.002"),
        ({"loss": 0.3031}, "auc", "its loss on the validation rows grows by more than 1.0%"),
        ({"row_p50_us": 126.0}, "auc", "slower: 126 µs for one row"),
        ({"rows_per_second": 7.9e4}, "auc", "slower: 79,000 rows a second"),
    ],
)
def test_what_is_worse_or_slower_is_refused(worse: dict[str, float], metric: str, reason: str) -> None:
    """A variant that loses more than the tolerance, or is slower than the candidate, is refused with the reason."""
    bad = {"model_bytes": 10, **worse}
    assert (["good", "whole"], [reason]) == ranked(
        variant("bad", **bad), variant("good", model_bytes=500), metric=metric
    )


@pytest.mark.parametrize(
    ("config", "reasons"),
    [
        ({"max_bytes": 400}, ["the model takes 500 bytes, above compress.max_bytes = 400"]),
        ({"max_p99_ms": 0.1}, ["one row takes 0.2 ms, above compress.max_p99_ms = 0.1"]),
    ],
)
def test_a_budget_refuses_what_breaks_it(config: dict[str, float], reasons: list[str]) -> None:
    """A variant above a budget is refused; the candidate's own breach is told in the same words."""
    good = variant("good", model_bytes=300, row_p99_us=50.0)

    assert (["good", "whole"], reasons) == ranked(variant("bad", model_bytes=500), good, **config)
    assert 1 == len(broken_budgets(OLD, CompressConfig(**config)))


def test_a_technique_has_a_known_name() -> None:
    """A technique that does not exist is refused with the nearest one."""
    check_techniques(CompressConfig(techniques=["first_rounds"]))
    with pytest.raises(
        InputError, match=r"compress\.techniques .* got 'first_round'\. Did you mean \"first_rounds\"\?"
    ):
        check_techniques(CompressConfig(techniques=["first_round"]))


def test_a_tolerance_is_a_share() -> None:
    """A tolerance is at least 0 and below 1."""
    for wrong in (-0.1, 1):
        with pytest.raises(ValidationError, match="tolerance"):
            CompressConfig(tolerance=wrong)


# Forms


def made_here(trained: Job, *techniques: str) -> tuple[list[Form], list[Failure]]:
    """Return what the workshop tells, in this process."""
    events: list[dict[str, Any]] = []
    with listening(events.append):
        work(Order(*trained, "auc", techniques, 1, 60.0))
    forms = [event["form"] for event in events if "form" in event]
    return forms, [event["failed"] for event in events if "failed" in event]


@pytest.fixture(scope="module")
def forms(trained: Job) -> list[Form]:
    """Cut the model once."""
    found, failures = made_here(trained, "first_rounds")
    assert [] == failures
    return found


def num_rounds(form: Form) -> int:
    """Return the rounds of a cut."""
    return int(form.name.split()[1])


def test_forms_are_cut_after_shares_of_the_rounds(trained: Job, forms: list[Form]) -> None:
    """The candidate comes first, then its first quarter, half and three quarters, each with the loss it had then."""
    candidate = trained[2]
    n = candidate.num_rounds
    cuts = [round(share * n) for share in (0.25, 0.5, 0.75)]

    assert n > 4
    assert ["as trained", *(f"first {cut} rounds" for cut in cuts)] == [form.name for form in forms]
    assert [candidate.validation_curve[cut - 1] for cut in [n, *cuts]] == pytest.approx([form.loss for form in forms])
    assert candidate.bundle == forms[0].bundle


def test_a_form_answers_as_its_first_rounds(trained: Job, forms: list[Form]) -> None:
    """A form's bundle is complete: it gives the scores of its rounds, and its own golden predictions."""
    store, _, candidate = trained
    whole = load_bundle(store, candidate.bundle)
    x_BF = np.linspace(-2, 2, 9, dtype=np.float32)[:, None]
    for form in forms[1:]:
        bundle = load_bundle(store, form.bundle)
        bundle.check_golden()

        expected = whole.booster.inplace_predict(x_BF, iteration_range=(0, num_rounds(form)))
        assert expected == pytest.approx(bundle.scores_of_matrix(x_BF), abs=1e-6)


def test_a_form_says_yes_as_often_as_the_candidate(trained: Job, forms: list[Form]) -> None:
    """A form's threshold lets its pilot say yes to as many validation rows as the candidate's pilot does."""
    store, job, candidate = trained
    pilot = load_booster(store, candidate.pilot)
    counts = []
    for form in forms:
        bundle = load_bundle(store, form.bundle)
        trees = Trees(pilot if form is forms[0] else pilot[: num_rounds(form)])
        _, scores, _ = validation_scores(store, job, replace(bundle, predictor=trees))
        counts.append(int((scores >= np.float32(bundle.threshold)).sum()))

    assert counts == pytest.approx([counts[0]] * len(forms), abs=3)
    assert candidate.pilot.digest != candidate.bundle.booster.digest


def test_one_round_cannot_be_cut(trained: Job) -> None:
    """A model of one round has no smaller form of this kind."""
    store, job, candidate = trained
    found, _ = made_here((store, job, replace(candidate, num_rounds=1)), "first_rounds")

    assert ["as trained"] == [form.name for form in found]


def test_forms_are_made_once(trained: Job, forms: list[Form], monkeypatch: pytest.MonkeyPatch) -> None:
    """A technique's forms of the same candidate come from the cache, without its work."""
    from tasks._techniques import first_rounds

    monkeypatch.setattr(first_rounds.TECHNIQUE.__class__, "build", None)
    assert (forms, []) == made_here(trained, "first_rounds")


def test_a_technique_that_fails_costs_no_more_than_its_own_forms(
    trained: Job, forms: list[Form], tmp_path: Path
) -> None:
    """An error, and a file that can't be read, are reported, and the other techniques go on."""
    with planted(tmp_path, "raising", "breaking", "good"):
        found, failures = made_here(trained, "raising", "breaking", "first_rounds", "good")

    assert ["as trained", *(form.name for form in forms[1:]), "a good one", "before the error"] == [
        form.name for form in found
    ]
    assert ["breaking", "raising"] == [failure.technique for failure in failures]
    assert "ZeroDivisionError: planted" == failures[1].reason


def test_a_form_that_no_model_may_be_is_refused(trained: Job, tmp_path: Path) -> None:
    """Scores are finite, probabilities, one a row, the same in any batch and in the file, near where one misses."""
    with planted(tmp_path, "unsound"):
        found, failures = made_here(trained, "unsound")

    assert ["as trained"] == [form.name for form in found]
    words = {
        "not finite": "scores are finite",
        "no probability": "probabilities are between 0 and 1",
        "another shape": "a form answers as the model does, but got shape",
        "of the batch": "a row that is alone answers as",
        "not in its file": "its files answers as",
        "other where one is missing": "a form differs little from the model where values are missing",
    }
    assert words == {
        name: reason[: len(words[name])] for name, _, reason in (failure.reason.partition(": ") for failure in failures)
    }


# What is measured


class Ticking:
    """A model that takes some seconds for one row, and as many for any number of them."""

    now = 0.0

    def __init__(self, seconds: float, asked: list[float]) -> None:
        self.seconds, self.asked = seconds, asked

    def scores(self, rows: np.ndarray) -> None:
        """Let time pass."""
        Ticking.now += self.seconds
        self.asked.append(self.seconds)


@pytest.mark.parametrize(("seconds", "num_turns"), [((2**-11, 2**-10), 31), ((2**-7, 2**-5), 10), ((4.0, 8.0), 4)])
def test_timings_take_turns_and_end_in_time(
    monkeypatch: pytest.MonkeyPatch, seconds: tuple[float, float], num_turns: int
) -> None:
    """Models are timed in turns: 30 after one that does not count, fewer where they are slow, but at least 3."""
    monkeypatch.setattr(_measure, "MAX_TIMINGS", 30)
    asked: list[float] = []
    start = Ticking.now
    models: Any = [Ticking(s, asked) for s in seconds]
    found = timed(models, np.zeros((4, 1), np.float32), clock=lambda: Ticking.now)

    assert [s for _ in range(num_turns) for s in seconds for _ in range(5)] == asked
    assert [pytest.approx([s] * 4 * (num_turns - 1)) for s in seconds] == [rows for rows, _ in found]
    assert [pytest.approx([s] * (num_turns - 1)) for s in seconds] == [batches for _, batches in found]
    assert num_turns == 4 or Ticking.now - start <= 2 * _measure.TIMING_SECONDS


def test_bundles_are_measured_as_they_are_served(trained: Job, forms: list[Form], tmp_path: Path) -> None:
    """Sizes are those of the files, times are positive, and a folder that holds no bundle is said to be none."""
    store, job, _ = trained
    for i, form in enumerate(forms):
        (tmp_path / str(i)).mkdir()
        copy_bundle(store, form.bundle, tmp_path / str(i))
    (tmp_path / "none").mkdir()
    np.save(tmp_path / "rows.npy", matrix(load_shard(store, job.encoded.shards[0]), job.encoded.schema.features))
    folders = [str(tmp_path / name) for name in ("0", "none", "1")]
    whole, none, cut = measure(folders, str(tmp_path / "rows.npy"))

    assert isinstance(whole, Measured)
    assert isinstance(cut, Measured)
    assert str(none).startswith("InputError: A bundle has the files")
    assert cut.model_bytes < whole.model_bytes
    assert load_bundle(store, forms[0].bundle).predictor.num_bytes == whole.model_bytes
    assert 0 < whole.row_p50_us <= whole.row_p99_us
    assert whole.rows_per_second > 0


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
