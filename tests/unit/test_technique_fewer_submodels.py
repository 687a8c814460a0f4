"""Networks of fewer submodels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from _small_networks import uncompressed

from infra.bundle.network import Network
from tasks._techniques._network_graph import float_graph
from tasks._techniques._network_parts import parts_of
from tasks._techniques.fewer_submodels import TECHNIQUE, chosen_submodels, greedy


def test_a_half_a_quarter_and_one_are_offered(tmp_path: Path) -> None:
    """Of eight submodels one, two and four are kept, in 16-bit weights and in whole numbers."""
    given = uncompressed(tmp_path, submodels=8)
    names = [form.name for form in TECHNIQUE.build(given)]

    assert [f"{k} of 8 submodels, {bits}" for k in (1, 2, 4) for bits in ("16-bit weights", "8-bit")] == names


def test_the_kept_submodels_alone_are_the_network(tmp_path: Path) -> None:
    """The mean of the kept submodels' predictions is the score; each network keeps its own best ones."""
    given = uncompressed(tmp_path, "regression", submodels=4)
    (form,) = (form for form in TECHNIQUE.build(given) if form.name == "2 of 4 submodels, 16-bit weights")
    rows_BF = given.validation.x_BF
    for network, small in ((given.pilot, form.pilot), (given.final, form.final)):
        parts = parts_of(given.job, network)
        order = chosen_submodels(parts, given.train, given.seed)
        each = [Network(float_graph(parts.with_submodels([k]))).scores(rows_BF) for k in order[:2]]

        np.testing.assert_allclose(small.scores(rows_BF), np.mean(each, axis=0), rtol=0, atol=0.05)
        assert 4 == len(set(order))


@pytest.mark.parametrize(
    ("task", "scores", "label", "expected"),
    [
        ("binary", [[0.99, 0.6, 0.55], [0.999, 0.5, 0.3]], [1, 0], [2, 1, 0]),
        ("regression", [[9.0, 0.0, 2.0], [9.0, 0.5, 2.0]], [1, 1], [1, 2, 0]),
        ("multiclass", [[[0.2, 0.8], [0.7, 0.3]]], [0], [1, 0]),
    ],
)
def test_the_best_together_come_first(task: str, scores: list, label: list, expected: list[int]) -> None:
    """The best submodel is first, and then those whose mean with the ones before is best."""
    found = greedy(np.array(scores, np.float64), task, np.float32(label), np.ones(len(label), np.float32))

    assert expected == found


def test_weights_of_rows_count() -> None:
    """A row that weighs nothing does not choose."""
    scores = np.array([[1.0, 2.0], [2.0, 1.0]])
    label = np.float32([1, 1])

    assert [0, 1] == greedy(scores, "regression", label, np.float32([1, 0]))
    assert [1, 0] == greedy(scores, "regression", label, np.float32([0, 1]))


def test_a_plain_network_has_no_submodels(tmp_path: Path) -> None:
    """A network of one submodel has none to leave out."""
    for number, settings in enumerate(({"architecture": "mlp"}, {"submodels": 1})):
        assert not TECHNIQUE.applies_to(uncompressed(tmp_path / str(number), **settings))
