"""Leaf values with few digits."""

from __future__ import annotations

import lzma
from dataclasses import replace

import numpy as np
import pytest
from _small_trees import rows_of, uncompressed

from infra.bundle.blend import Blend
from infra.bundle.network import Network
from infra.bundle.schema import Task
from infra.bundle.trees import Trees
from tasks._techniques import as_served
from tasks._techniques._forest import Forest
from tasks._techniques.rounded_leaves import TECHNIQUE


def margins(model: Trees, x_BF: np.ndarray) -> np.ndarray:
    """Return scores before the link."""
    return np.asarray(model.booster.inplace_predict(x_BF, missing=np.nan, predict_type="margin"))


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_leaves_have_few_values_and_answer_as_before(task: Task) -> None:
    """The trees are the same, their leaves have fewer values, the packed file is smaller, and scores hardly move."""
    given = uncompressed(task)
    (built,) = TECHNIQUE.build(given)
    x_BF = rows_of(task, 400, seed=5).x_BF
    for old, new in ((given.pilot, built.pilot), (given.final, built.final)):
        assert isinstance(old, Trees)
        assert isinstance(new, Trees)
        before, after = (Forest.of(model.booster) for model in (old, new))
        values = [{float(v) for t in forest.trees for v in t.value_N[t.leaves_L]} for forest in (before, after)]
        sizes = [len(lzma.compress(bytes(model.booster.save_raw("ubj")))) for model in (old, new)]

        assert before.num_leaves == after.num_leaves
        assert len(values[1]) < len(values[0])
        assert sizes[1] < sizes[0]
        assert np.std(margins(new, x_BF) - margins(old, x_BF)) < 0.01 * np.std(margins(old, x_BF))


def test_only_trees_have_leaves() -> None:
    """A network is left alone."""
    assert TECHNIQUE.applies_to(uncompressed("binary"))
    assert not TECHNIQUE.applies_to(replace(uncompressed("binary"), final=Network(b"")))


def test_as_served_leaves_out_the_weights_of_networks() -> None:
    """Trees go on as they are; a network without its weights, in a blend as well."""
    trees = uncompressed("binary").final
    network = Network(b"graph", b"weights")
    blend = as_served.served(Blend(((0.5, trees), (0.5, network))))

    assert trees is as_served.served(trees)
    assert Network(b"graph") == as_served.served(network)
    assert isinstance(blend, Blend)
    assert [(0.5, trees), (0.5, Network(b"graph"))] == list(blend.parts)
