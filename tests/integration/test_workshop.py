"""Techniques in processes of their own, and the frontier that comes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from _planted import planted
from _tree_jobs import trained_trees

from infra.progress import listening
from infra.storage import Store
from tasks._candidate import Candidate, load_bundle
from tasks._compress import CompressConfig, Failure
from tasks._training import TrainingJob
from tasks._workshop import frontier

Job = tuple[Store, TrainingJob, Candidate]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Train a model of 4,000 rows once."""
    return trained_trees(tmp_path_factory.mktemp("workshop"), num_rows=4000)


def compressed(trained: Job, *techniques: str, **config: Any) -> Any:
    """Return the frontier of a model with these techniques alone."""
    return frontier(*trained, "auc", CompressConfig(techniques=list(techniques), **config), threads=1)


def test_bad_techniques_are_caught_and_the_good_ones_go_on(trained: Job, tmp_path: Path) -> None:
    """What crashes, fails, writes a broken file or flips 2% of the decisions does not ship."""
    names = ("crashing", "raising", "breaking", "flipping", "good")
    with planted(tmp_path, *names):
        found = compressed(trained, *names)
    by_name = {variant.name: variant for variant in found.variants}

    assert {"breaking", "crashing", "raising"} == {failure.technique for failure in found.failures}
    assert Failure("crashing", "its process ended with code -11") in found.failures
    assert by_name["2% flipped"].refused.startswith("loses ")
    assert {"a good one", "before the error"} < by_name.keys()
    # Whether forms of such small models are slower is a matter of chance.
    reasons = {v.refused for v in found.variants if v.name != "2% flipped"}
    assert all(reason == "" or reason.startswith("slower") for reason in reasons)
    assert {v.name for v in found.variants if not v.refused} == {found.variants[i].name for i in found.ranking}
    assert "cores" in found.machine


def test_a_technique_that_hangs_ends_with_the_time(trained: Job, tmp_path: Path) -> None:
    """What is not ready when the time is up is reported, and what was ready before goes on."""
    heard: list[dict[str, Any]] = []
    with planted(tmp_path, "good", "hanging"), listening(heard.append):
        found = compressed(trained, "good", "hanging", budget_seconds=8.0)

    assert (Failure("hanging", "not ready after compress.budget_seconds = 8"),) == found.failures
    assert ["as trained", "a good one"] == [variant.name for variant in found.variants]
    assert [{"done": 1, "total": 2, "note": "hanging"}] == heard[-1:]


def test_a_form_that_is_slower_is_refused(trained: Job, tmp_path: Path) -> None:
    """Hundreds of trees more answer as well, and later."""
    with planted(tmp_path, "slow"):
        found = compressed(trained, "slow")
    _, slow = found.variants

    assert slow.refused.startswith("slower: ")
    assert (0,) == found.ranking


def test_switched_off_the_candidate_is_the_one_variant(trained: Job) -> None:
    """Without compression the candidate is measured, and goes on."""
    found = frontier(*trained, "auc", CompressConfig(enabled=False), threads=1)

    assert ["as trained"] == [variant.name for variant in found.variants]
    assert trained[2].bundle == found.variants[found.ranking[0]].bundle


def test_infinity_is_answered_as_by_the_whole_model(trained: Job) -> None:
    """Raw rows with infinities, without a value or far out get what the candidate says, nearly; infinity is missing."""
    store, _, candidate = trained
    found = compressed(trained, "as_served", "imitating_trees")
    rows = pl.DataFrame({"x": [float("inf"), float("-inf"), None, float("nan"), 1e300, -1e9, 1e9, 0.0]})
    whole = load_bundle(store, candidate.bundle).predict(rows)["probability"].to_list()
    limits = {"nothing left out": 1e-6, "imitating": 0.1}
    for variant in found.variants[1:]:
        answers = load_bundle(store, variant.bundle).predict(rows)["probability"].to_list()
        limit = next(limit for word, limit in limits.items() if word in variant.name)

        assert whole == pytest.approx(answers, abs=limit)
        assert [answers[2]] * 5 == answers[:5]
    assert len(found.variants) >= 3


def test_what_ships_answers_offline_and_served_alike(trained: Job) -> None:
    """The best form answers 10,000 rows, some without a value or far out, as it answers them one by one."""
    found = compressed(trained)
    bundle = load_bundle(trained[0], found.variants[found.ranking[0]].bundle)
    x_BF = np.random.default_rng(5).normal(size=(10_000, 1)).astype(np.float32) * 2
    x_BF[::7] = np.nan
    x_BF[::11] = 1e7
    together = bundle.scores_of_matrix(x_BF)
    alone = np.concatenate([bundle.scores_of_matrix(x_BF[i : i + 1]) for i in range(len(x_BF))])

    assert together == pytest.approx(alone, abs=1e-6)
    assert found.variants[found.ranking[0]].measured.model_bytes < found.variants[0].measured.model_bytes
