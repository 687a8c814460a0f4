"""Networks with fewer hidden units."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from _small_networks import module, target_of, uncompressed

from tasks._neural.job import NeuralJob
from tasks._techniques import narrow_network
from tasks._techniques._fine_tune import lesson_of, shape_of
from tasks._techniques.narrow_network import TECHNIQUE, cut, importance
from tasks._techniques.technique import Uncompressed


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Uncompressed:
    """A network of 16 units a layer."""
    return uncompressed(tmp_path_factory.mktemp("given"))


def test_halves_and_quarters_are_offered(given: Uncompressed) -> None:
    """Half and a quarter of the units are kept, in 16-bit weights and in whole numbers, each really smaller."""
    forms = list(TECHNIQUE.build(given))
    names = [form.name for form in forms]
    sizes = [form.final.num_bytes for form in forms]

    assert [f"{n} of 16 units, {bits}" for n in (8, 4) for bits in ("16-bit weights", "8-bit")] == names
    assert sizes[0] > sizes[2] and sizes[1] > sizes[3]
    assert {None} == {form.final.weights for form in forms}


def test_units_that_do_nothing_are_left_out_without_a_trace(given: Uncompressed) -> None:
    """If half of the units give nothing, they count nothing, and the network without them answers the same."""
    assert isinstance(given.job, NeuralJob)
    whole = module(given.job, 2)
    dead = np.arange(0, 16, 2)
    with torch.no_grad():
        for number in (1, 2):
            whole.layers[str(number)].linear.weight[dead] = 0
            whole.layers[str(number)].linear.bias[dead] = -1
    found = importance(whole, target_of(given.job), given)
    kept = [np.sort(np.argsort(-unit_W, kind="stable")[:8]) for unit_W in found]
    small = type(whole)(shape_of(given.job, width=8)).eval()
    small.load_state_dict(cut(whole.state_dict(), kept))
    rows_BF = torch.from_numpy(given.train.x_BF)

    assert [0.0] * 8 == [float(unit_W[i]) for unit_W in found[:1] for i in dead]
    torch.testing.assert_close(small(rows_BF), whole(rows_BF))


def test_what_is_left_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of half of the units learns, and has a smaller loss than the untrained one that it was cut from."""
    monkeypatch.setattr(narrow_network, "NUM_EPOCHS", 20)
    monkeypatch.setattr(narrow_network, "SHARES", (0.5,))
    given = uncompressed(tmp_path, "regression", width=16)
    forms = list(TECHNIQUE.build(given))
    before = np.mean((given.pilot.scores(given.train.x_BF) - given.train.label_B) ** 2)
    after = np.mean((forms[0].pilot.scores(given.train.x_BF) - given.train.label_B) ** 2)

    assert after < 0.8 * before


def test_it_is_the_same_again(given: Uncompressed) -> None:
    """The same network and rows give the same bytes."""
    first, second = (next(iter(TECHNIQUE.build(given))) for _ in range(2))

    assert (first.pilot, first.final) == (second.pilot, second.final)


def test_nothing_is_offered_when_time_is_over(given: Uncompressed) -> None:
    """A training that would not end in time is given up, and no form is half trained."""
    assert [] == list(TECHNIQUE.build(replace(given, deadline=time.monotonic() - 1)))


def test_balanced_classes_stay_balanced(given: Uncompressed) -> None:
    """Where all classes weighed the same in the training, they do so in the one after it; otherwise rows do."""
    assert isinstance(given.job, NeuralJob)
    config = given.job.config.model_copy(update={"class_weights": "balanced"})
    label_B = given.train.label_B
    sums = []
    for job in (given.job, replace(given.job, config=config)):
        found = lesson_of(replace(given, job=job), (given.train,), lambda part: part.label_B[:, None], 1, 1.0)
        sums.append([float(found.weight_B[label_B == label].sum()) for label in (0, 1)])

    assert [float((label_B == 0).sum()), float((label_B == 1).sum())] == sums[0]
    np.testing.assert_allclose(sums[1], [len(label_B) / 2] * 2, rtol=1e-5)
