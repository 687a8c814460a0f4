"""Which of several families' candidates goes on."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_xgboost_member import job_of, rows

from infra.bundle.blend import Blend
from infra.member import Member
from infra.progress import listening
from infra.storage import Store
from tasks import _choose, _runtimes, _xgboost
from tasks._candidate import Candidate, load_bundle
from tasks._choose import choose, greedy, paired, sole
from tasks._finish import validation_scores
from tasks._metrics import DEFAULT_METRIC, row_losses
from tasks._techniques import distilled_trees
from tasks._training import TrainingJob
from tasks._workshop import Order, work

Trained = tuple[Store, TrainingJob, tuple[Candidate, Candidate]]


@pytest.fixture(scope="module", params=["binary", "regression", "multiclass"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Give two candidates of one job, the second of them stopped at its first round and called a network."""
    store, job = job_of(tmp_path_factory.mktemp("choose"), rows(request.param), task=request.param)
    weak = replace(job, config=job.config.model_copy(update={"rounds": 1}))
    found = [_xgboost.train(Member.alone(), store, one).candidate for one in (job, weak)]
    assert found[0] is not None and found[1] is not None
    return store, job, (found[0], replace(found[1], family="neural"))


def losses_of(store: Store, job: TrainingJob, candidate: Candidate) -> np.ndarray:
    """Return the losses of the validation rows of a candidate's pilot."""
    task = job.encoded.schema.task
    bundle = replace(load_bundle(store, candidate.bundle), predictor=_choose.pilot_of(store, candidate.pilot))
    labels, scores, _ = validation_scores(store, job, bundle)
    known = labels if task == "regression" else labels.astype(np.int64)
    found = row_losses(task, "rmse" if task == "regression" else "log_loss", known, scores)
    assert found is not None
    return found


def test_the_least_loss_on_validation_rows_goes_on(trained: Trained) -> None:
    """Of two candidates the one whose pilot has the least loss goes on; the other is behind by the paired mean."""
    store, job, candidates = trained
    choice = choose(store, job, candidates)
    ours, theirs = (losses_of(store, job, candidate) for candidate in candidates)
    first, second = choice.contenders

    assert candidates[0] == choice.candidate
    assert (0.0, 0.0) == (first.behind, first.deviation)
    assert (second.behind, second.deviation) == pytest.approx(paired(theirs, ours, None))
    assert not second.is_close
    assert first.loss == pytest.approx(candidates[0].loss_after(candidates[0].num_rounds), rel=1e-5)
    assert choice.sentence.endswith(" xgboost is clearly the least.")


def test_the_order_of_families_does_not_decide(trained: Trained) -> None:
    """The same candidates in another order give the same choice."""
    store, job, candidates = trained

    assert choose(store, job, candidates).candidate == choose(store, job, candidates[::-1]).candidate


def test_a_mean_that_is_not_clearly_better_is_left_out(trained: Trained) -> None:
    """The mean with a model that knows less gains nothing, and the choice says by how much it did not."""
    store, job, candidates = trained
    choice = choose(store, job, candidates, True)

    assert candidates[0] == choice.candidate
    assert "a row, too little to be sure of." in choice.sentence


def test_a_mean_that_goes_on_answers_with_the_mean(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """A blend's bundle gives the weighted mean of its parts, its loss is that of the pilots' mean, and it loads."""
    store, job, candidates = trained
    monkeypatch.setattr(_choose, "CLEARLY", -np.inf)
    monkeypatch.setattr(_choose, "greedy", lambda *_: [0.75, 0.25])
    choice = choose(store, job, candidates, True)
    bundle = load_bundle(store, choice.candidate.bundle)
    x_BF = np.random.default_rng(0).normal(size=(50, len(job.encoded.schema.features))).astype(np.float32)
    parts = [load_bundle(store, candidate.bundle).scores_of_matrix(x_BF) for candidate in candidates]

    assert isinstance(bundle.predictor, Blend)
    assert ("blend", {"share_xgboost": 0.75, "share_neural": 0.25}) == (
        choice.candidate.family,
        choice.candidate.parameters,
    )
    np.testing.assert_allclose(bundle.scores_of_matrix(x_BF), 0.75 * parts[0] + 0.25 * parts[1], rtol=1e-6)
    assert choice.candidate.loss_after(1) is not None
    assert [0.75, 0.25] == [contender.weight for contender in choice.contenders]
    bundle.check_golden()


def test_a_mean_has_smaller_forms(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """A blend is packed part by part, and taught to small trees; its pilot is the mean of its parts' pilots."""
    store, job, candidates = trained
    monkeypatch.setattr(_choose, "CLEARLY", -np.inf)
    monkeypatch.setattr(_choose, "greedy", lambda *_: [0.75, 0.25])
    monkeypatch.setattr(distilled_trees, "SIZES", ((8, 8),))
    monkeypatch.setattr(distilled_trees, "MOST_COPIES", 1)
    monkeypatch.setattr(_runtimes, "BATCH_ROWS", (1, 64))
    blend = choose(store, job, candidates, True).candidate
    metric = DEFAULT_METRIC[job.encoded.schema.task]
    events: list[dict[str, Any]] = []
    with listening(events.append):
        work(Order(store, job, blend, metric, ("as_served", "distilled_trees", "first_rounds"), 1, 60.0))
    forms = [event["form"] for event in events if "form" in event]

    assert [] == [event["failed"] for event in events if "failed" in event and "missing" not in event["failed"].reason]
    assert ["as trained", "nothing left out"] == [form.name for form in forms[:2]]
    assert blend.loss_after(1) == pytest.approx(forms[0].loss, rel=1e-4)
    assert forms[1].is_lossless
    assert (
        load_bundle(store, forms[1].bundle).predictor.num_bytes < load_bundle(store, blend.bundle).predictor.num_bytes
    )
    assert {"xgboost"} >= {form.family for form in forms[2:]}


def test_independent_errors_make_the_mean_better() -> None:
    """Two models of equal, independent errors are each given about half, and rows that chose nothing confirm it."""
    rng = np.random.default_rng(1)
    labels = rng.normal(size=2000)
    scores = [(labels + rng.normal(size=2000)).astype(np.float32) for _ in range(2)]
    job: Any = SimpleNamespace(encoded=SimpleNamespace(schema=SimpleNamespace(task="regression")))
    shares = greedy(lambda mean: float(((mean - labels) ** 2).mean()), scores)
    gain, deviation = _choose._honest_gain(job, labels, scores, None, 0)

    assert shares == pytest.approx([0.5, 0.5], abs=0.1)
    assert gain > 5 * deviation


def test_weights_count_in_the_pairing() -> None:
    """A row that weighs twice counts twice in the mean, and the error is that of a weighted mean."""
    mean, deviation = paired(np.array([1.0, 4.0]), np.array([0.0, 0.0]), np.array([2.0, 1.0]))

    assert 2.0 == mean
    assert deviation == pytest.approx(np.sqrt((4 * 1 + 1 * 4) * 2) / 3)


def test_one_candidate_is_no_choice(trained: Trained) -> None:
    """A single family goes on without a word."""
    _, _, candidates = trained
    choice = sole(candidates[0])

    assert (candidates[0], "", 1) == (choice.candidate, choice.sentence, len(choice.contenders))
