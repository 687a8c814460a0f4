"""Networks in whole numbers, and that a row's answer does not depend on the rows beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from _networks import graph, weights
from _small_networks import uncompressed
from onnxruntime.quantization import QuantType, quantize_dynamic

from infra.bundle.network import Network
from infra.bundle.trees import Trees
from tasks._techniques import load_technique, technique_keys
from tasks._techniques._network_graph import with_odd_values
from tasks._techniques._row_by_row import is_row_by_row, row_by_row
from tasks._techniques.int8_network import MOST_EXPANDED, TECHNIQUE
from tasks._techniques.technique import Built, Uncompressed

SIZES = (1, 2, 3, 17, 64, 200)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Uncompressed:
    """A network of three submodels."""
    return uncompressed(tmp_path_factory.mktemp("given"))


@pytest.fixture(scope="module")
def form(given: Uncompressed) -> Built:
    """The network in whole numbers."""
    return next(iter(TECHNIQUE.build(given)))


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory: pytest.TempPathFactory) -> Network:
    """A network as ONNX Runtime quantizes it, with a scale for all rows of a call."""
    folder = tmp_path_factory.mktemp("dynamic")
    (folder / "float.onnx").write_bytes(graph(weights(4), has_spread=True))
    quantize_dynamic(folder / "float.onnx", folder / "int8.onnx", per_channel=True, weight_type=QuantType.QInt8)
    return Network((folder / "int8.onnx").read_bytes())


def test_a_row_has_the_same_answer_whatever_is_beside_it(given: Uncompressed, form: Built) -> None:
    """In calls of any size, scores and spread of a row are the same to the bit; rows with odd values among them."""
    rows_BF = np.concatenate([given.train.x_BF[:150], with_odd_values(given.train.x_BF[:150])])
    known = form.final.scored(rows_BF)
    for size in SIZES:
        parts = [form.final.scored(rows_BF[start : start + size]) for start in range(0, len(rows_BF), size)]
        for whole, alone in zip(known, zip(*parts, strict=True), strict=True):
            np.testing.assert_array_equal(whole, np.concatenate(alone))


def test_both_networks_become_smaller(given: Uncompressed, form: Built) -> None:
    """Pilot and final network are other ones, each near its own whole one, and have no weights beside the graph."""
    rows_BF = given.validation.x_BF
    for small, whole in ((form.pilot, given.pilot), (form.final, given.final)):
        np.testing.assert_allclose(small.scores(rows_BF), whole.scores(rows_BF), rtol=0, atol=0.03)
        assert (None, True) == (small.weights, small.num_bytes < len(whole.onnx))
    assert float(np.abs(form.pilot.scores(rows_BF) - form.final.scores(rows_BF)).max()) > 0.01


def test_it_is_the_same_again(given: Uncompressed, form: Built) -> None:
    """The same network gives the same bytes."""
    again, _ = TECHNIQUE.build(given)

    assert (form.pilot, form.final, "8-bit") == (again.pilot, again.final, form.name)


def test_a_single_submodel_and_a_single_layer_work(tmp_path: Path) -> None:
    """A network of one submodel, or of one hidden layer, is near its whole one too."""
    for number, settings in enumerate(({"submodels": 1}, {"blocks": 1}, {"architecture": "mlp", "blocks": 1})):
        given = uncompressed(tmp_path / str(number), **settings)
        found, _ = TECHNIQUE.build(given)
        rows_BF = given.validation.x_BF

        np.testing.assert_allclose(found.final.scores(rows_BF), given.final.scores(rows_BF), rtol=0, atol=0.03)


def test_no_spread_is_written_where_none_is_served(tmp_path: Path) -> None:
    """A network whose bundle has no spread has none in its small form, which then has less to do."""
    found, _ = TECHNIQUE.build(uncompressed(tmp_path, spread=False))

    assert found.final.spread(np.zeros((2, 4), np.float32)) is None


def test_a_dynamic_scale_is_not_row_by_row(given: Uncompressed, dynamic: Network) -> None:
    """ONNX Runtime's dynamic quantization gives a row other scores beside other rows, and is found out."""
    rows_BF = given.train.x_BF[:100]
    alone = dynamic.scores(rows_BF[:1])
    together = dynamic.scores(rows_BF)[:1]

    assert float(np.abs(alone - together).max()) > 1e-4
    assert (False, True) == (is_row_by_row(dynamic, rows_BF), is_row_by_row(given.final, rows_BF))


@pytest.mark.parametrize("bad", ["pilot", "final"])
def test_a_form_that_is_not_row_by_row_is_dropped(given: Uncompressed, form: Built, dynamic: Network, bad: str) -> None:
    """A form whose pilot or final network answers by the batch is not offered; the ones after it are."""
    forms = [replace(form, **{bad: dynamic}), form]

    assert [form] == list(row_by_row(iter(forms), given.train.x_BF[:100]))


def test_it_is_for_networks_that_fit(given: Uncompressed) -> None:
    """Trees have no layers, and a network whose first layer would be huge once written out is left as it is."""
    config = given.job.config.model_copy(update={"width": MOST_EXPANDED})

    assert TECHNIQUE.applies_to(given)
    assert not TECHNIQUE.applies_to(replace(given, final=Trees(None)))
    assert not TECHNIQUE.applies_to(replace(given, job=replace(given.job, config=config)))


def test_the_technique_is_found() -> None:
    """All ways to make a network smaller are among the techniques, the cheap ones first."""
    ours = ["int8 network", "short weights", "fewer submodels", "small tables", "narrow network", "distilled network"]
    found = [one.name for one in sorted(map(load_technique, technique_keys()), key=lambda one: (one.cost, one.name))]

    assert ours == [name for name in found if name in ours]


def test_far_values_are_cut_or_not(tmp_path: Path) -> None:
    """At infinity, where steep pieces go on, the form that reaches there is nearer to the network than the other."""
    given = uncompressed(tmp_path, "regression", gain=10)
    near, far = TECHNIQUE.build(given)
    rows_BF = given.validation.x_BF.copy()
    rows_BF[:, 0], rows_BF[1::2, 0] = np.inf, -np.inf
    known = given.final.scores(rows_BF)
    off = [float(np.abs(form.final.scores(rows_BF) - known).max()) for form in (near, far)]

    assert ["8-bit", "8-bit, far values too"] == [near.name, far.name]
    assert off[1] < 0.7 * off[0]
