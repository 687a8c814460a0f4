"""Networks written by hand as ONNX graphs: the same answers as torch's, with fewer operators."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from _small_networks import SCALE, SHIFT, module, target_of, uncompressed
from numpy.typing import NDArray

from infra.bundle.network import Network as Graph
from infra.bundle.schema import Task
from infra.errors import RunError
from tasks._neural.config import Architecture
from tasks._neural.export import exported, with_gaps
from tasks._neural.inputs import NumberInput
from tasks._neural.job import NeuralJob
from tasks._neural.network import Served
from tasks._techniques import _network_graph
from tasks._techniques._fine_tune import shape_of
from tasks._techniques._network_graph import float_graph, knots_of, rounded, whole_graph, with_odd_values
from tasks._techniques._network_parts import Pieces, parts_from, parts_of, target_moments
from tasks._techniques._networks import require_same, sample_of
from tasks._techniques.technique import Rows, Uncompressed

ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)
TASKS: tuple[Task, ...] = get_args(Task)


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Uncompressed:
    """A network of three submodels."""
    return uncompressed(tmp_path_factory.mktemp("binary"))


def torch_answers(job: NeuralJob, rows_BF: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Return torch's scores and spread of the final network."""
    with torch.inference_mode():
        served = Served(module(job, 2), target_of(job), has_spread=True)
        return [part.numpy() for part in served(torch.from_numpy(rows_BF))]


@pytest.mark.parametrize(("architecture", "task"), [*itertools.product(ARCHITECTURES, TASKS)])
def test_a_graph_by_hand_answers_as_torch_does(tmp_path: Path, architecture: Architecture, task: Task) -> None:
    """Scores and spread are torch's, of rows with gaps, unknown codes, infinities and values far out among others."""
    given = uncompressed(tmp_path, task, architecture=architecture)
    rows_BF = np.concatenate([with_gaps(given.train.x_BF), with_odd_values(given.train.x_BF)])
    scores, spread = torch_answers(given.job, rows_BF)
    found = given.final.scored(rows_BF)

    limit = 1e-5 * max(1.0, float(np.abs(scores).max()))
    np.testing.assert_allclose(found[0], scores, rtol=0, atol=limit)
    np.testing.assert_allclose(found[1], spread, rtol=0, atol=limit)
    assert {True} == {bool(condition(rows_BF).any()) for condition in (np.isnan, np.isposinf, np.isneginf)}


@pytest.mark.parametrize("task", TASKS)
def test_whole_numbers_answer_nearly_as_torch_does(tmp_path: Path, task: Task) -> None:
    """With 8 bits, scores differ by little from torch's, of odd rows too."""
    given = uncompressed(tmp_path, task)
    whole = Graph(whole_graph(parts_of(given.job, given.final), sample_of(given.train, 0)))
    rows_BF = np.concatenate([given.validation.x_BF, with_odd_values(given.validation.x_BF)])
    scores, _ = torch_answers(given.job, rows_BF)
    unit = SCALE if task == "regression" else 1.0

    np.testing.assert_allclose(whole.scores(rows_BF), scores, rtol=0, atol=0.03 * unit)
    assert float(np.abs(whole.scores(rows_BF) - scores).max()) > 0


def test_the_exporters_graph_tells_what_its_outputs_mean(tmp_path: Path) -> None:
    """From a regression's graph come the mean and the deviation of its target, which its weights lack."""
    given = uncompressed(tmp_path, "regression")
    network, shape = module(given.job, 2), shape_of(given.job)
    graph = exported(shape, target_of(given.job), network.state_dict(), given.train.x_BF)

    assert (SHIFT, SCALE) == target_moments(graph.onnx)
    np.testing.assert_allclose(given.final.scores(given.train.x_BF), graph.scores(given.train.x_BF), rtol=1e-5)


def test_a_shift_of_zero_may_be_left_out(tmp_path: Path) -> None:
    """A graph without an addition adds zero, and one without a product multiplies by one."""
    given = uncompressed(tmp_path)

    assert (0.0, 1.0) == target_moments(given.final.onnx)


def test_a_network_that_is_written_otherwise_is_refused(binary: Uncompressed) -> None:
    """Parts that don't make the network are an error that names the difference, not a worse model."""
    with pytest.raises(RunError, match=r"to within 0.001, but got a difference=0\.\d+ on 50 rows\. Leave techniques"):
        require_same(binary.pilot, binary.final, binary.train.x_BF[:50])


def test_knots_are_where_the_pieces_meet() -> None:
    """Knots lie at the limits of what scaling gives and at all edges, and the last rows are of what is missing."""
    bins_NBE = np.array([[[1.0], [2.0]]], np.float32)
    zero_NE, missing_NE = np.zeros((1, 1), np.float32), np.full((1, 1), 9, np.float32)
    found = knots_of(Pieces(zero_NE, zero_NE, bins_NBE, missing_NE), ((-1.0, 0.0, 2.0),))

    assert [-2.0, 0.0, 1.0, 3.0, 4.0, 9.0, 9.0] == found.rows_SE[:, 0].tolist()
    assert [-3.0, -1.0, 0.0, 2.0, 3.0, 4.0] == found.left_S.tolist()


def test_weights_are_rounded_by_output() -> None:
    """Each output's largest weight is the largest whole number."""
    whole, scale = rounded(np.array([[1.0, 100.0], [-0.5, 25.0]]), 64, 1)

    assert [[64, 64], [-32, 16]] == whole.tolist()
    np.testing.assert_allclose([[1 / 64, 100 / 64]], scale, rtol=1e-6)


def test_extreme_scales_are_clipped_as_in_torch(binary: Uncompressed) -> None:
    """A number whose scale is huge or tiny has torch's answers, at its smallest differences and at infinity."""
    job = binary.job
    assert isinstance(job, NeuralJob)
    first, *rest = job.inputs.numbers
    for scale in (1e30, 1e-25):
        number = NumberInput(first.position, first.center, scale, first.edges)
        inputs = type(job.inputs)((number, *rest), job.inputs.codes)
        changed = uncompressed_like(job, inputs)
        state = {name: value.numpy() for name, value in module(changed, 2).state_dict().items()}
        graph = Graph(float_graph(parts_from(state, inputs, "binary", 0.0, 1.0, has_spread=True)))
        rows_BF = np.repeat(binary.train.x_BF[:1], 6, 0)
        rows_BF[:, first.position] = [first.center + 1e-3, 3e38, -3e38, np.inf, -np.inf, np.nan]

        np.testing.assert_allclose(graph.scores(rows_BF), torch_answers(changed, rows_BF)[0], rtol=0, atol=1e-5)


def uncompressed_like(job: NeuralJob, inputs: object) -> NeuralJob:
    """Return a job with other inputs."""
    from dataclasses import replace

    return replace(job, inputs=inputs)  # type: ignore[arg-type]


def test_a_sample_has_the_shares_of_all() -> None:
    """Of a class that is a tenth of the rows, a tenth of the sample is; the same seed draws the same."""
    label_B = np.repeat(np.float32([0, 1]), [900, 100])
    rows = Rows(np.arange(1000, dtype=np.float32)[:, None], label_B, None)
    found = sample_of(rows, 3, 100)

    assert (100, 10) == (len(found), int((found >= 900).sum()))
    np.testing.assert_array_equal(found, sample_of(rows, 3, 100))
    assert 1000 == len(sample_of(rows, 3, 5000))


def test_many_submodels_share_the_first_layer(binary: Uncompressed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the first layer is too large to be written out for all submodels, rows are copied; the scores are equal."""
    parts = parts_of(binary.job, binary.final)
    monkeypatch.setattr(_network_graph, "MOST_EXPANDED", 1)
    shared = float_graph(parts)

    assert shared != binary.final.onnx
    rows_BF = with_odd_values(binary.train.x_BF)
    np.testing.assert_allclose(Graph(shared).scores(rows_BF), binary.final.scores(rows_BF), rtol=0, atol=1e-6)
