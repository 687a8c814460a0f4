"""A network as a graph that ONNX Runtime runs: the same answers as torch's, or none."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import pytest
import torch
from _networks import graph, weights
from _neural_jobs import job_of, table, with_settings
from numpy.typing import NDArray
from safetensors.torch import load as read_weights

from infra.bundle.encoder import encode_frame, matrix
from infra.bundle.model import Bundle
from infra.bundle.network import Network as Graph
from infra.errors import RunError
from tasks._finish import job_vocabulary
from tasks._gaps import CHECKED_ROWS, with_gaps
from tasks._neural.export import TOLERANCE, check, exported, quiet
from tasks._neural.network import Network, NetworkShape, Served, Target, initialise


@dataclass(frozen=True)
class Made:
    """A network, its graph, and the bundle that ships it."""

    shape: NetworkShape
    served: Served
    graph: Graph
    bundle: Bundle
    rows_BF: NDArray[np.float32]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Export a network of three submodels once, as that takes seconds."""
    store, job = job_of(tmp_path_factory.mktemp("made"), table().drop("w"))
    job = with_settings(job, architecture="tabm-mini", blocks=2)
    shape = NetworkShape(job.inputs, "binary", 1, job.config)
    network = Network(shape)
    initialise(network, 0)
    target = Target("binary")
    rows_BF = rows(CHECKED_ROWS)
    found = exported(shape, target, network.state_dict(), rows_BF)
    vocabulary = job_vocabulary(store, job)
    bundle = Bundle(job.encoded.schema, vocabulary, found, threshold=0.5, has_spread=True)
    return Made(shape, Served(network, target, has_spread=True).eval(), found, bundle, rows_BF)


def rows(num_rows: int) -> NDArray[np.float32]:
    """Return rows of features as an encoder gives them: a number, a number, and a code."""
    rng = np.random.default_rng(0)
    return np.stack(
        [rng.integers(0, 600, num_rows), rng.normal(size=num_rows), rng.integers(0, 3, num_rows)], 1
    ).astype(np.float32)


def answers(served: Served, rows_BF: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Return torch's scores and spread."""
    with torch.inference_mode():
        return [part.numpy() for part in served(torch.from_numpy(rows_BF))]


def test_a_graph_answers_as_torch_does(made: Made) -> None:
    """On 10,000 rows with gaps, values far out and unknown codes, graph and torch agree within 1e-5."""
    gappy_BF = with_gaps(made.rows_BF)
    found = made.graph.scored(gappy_BF)

    assert (10_000, True, 1e-5) == (len(gappy_BF), bool(np.isnan(gappy_BF).any()), TOLERANCE)
    np.testing.assert_allclose(found, answers(made.served, gappy_BF), rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_rows", [0, 1, 2])
def test_a_graph_takes_any_number_of_rows(made: Made, num_rows: int) -> None:
    """No row, one and two have as many scores, though the graph was traced with three."""
    found = made.graph.scores(made.rows_BF[:num_rows])

    np.testing.assert_allclose(found, answers(made.served, made.rows_BF[:num_rows])[0], rtol=0, atol=1e-6)


def test_a_graph_is_finite_on_any_input(made: Made) -> None:
    """Infinite, huge and missing numbers, and codes that no vocabulary has, have finite scores in the graph too."""
    extremes = [np.nan, np.inf, -np.inf, 3e38, -3e38, -7]
    rows_BF = np.repeat(made.rows_BF[:1], 3 * len(extremes), 0)
    rows_BF[np.arange(len(rows_BF)), np.arange(len(rows_BF)) % 3] = np.repeat(extremes, 3)
    found = made.graph.scored(rows_BF)

    np.testing.assert_allclose(found, answers(made.served, rows_BF), rtol=0, atol=1e-5)


def test_the_same_network_gives_the_same_bytes(made: Made) -> None:
    """Exported again, a network has the same graph and weights to the byte."""
    again = exported(made.shape, made.served.target, made.served.network.state_dict(), made.rows_BF[:10])

    assert made.graph == again


def test_the_weights_beside_the_graph_are_the_networks(made: Made) -> None:
    """From the weights beside the graph a network can be built that answers the same."""
    again = Network(made.shape).eval()
    again.load_state_dict(read_weights(made.graph.weights))
    found = answers(Served(again, made.served.target, has_spread=True), made.rows_BF[:100])

    np.testing.assert_array_equal(found, answers(made.served, made.rows_BF[:100]))


def test_a_bundle_predicts_raw_rows(made: Made) -> None:
    """A bundle takes raw rows, gaps and new values among them, and gives torch's scores and spread."""
    raw = table(50).with_columns(city=pl.when(pl.col("row") < 9).then(pl.lit("Lima")).otherwise("city"))
    schema = made.bundle.schema
    rows_BF = matrix(encode_frame(raw, schema, made.bundle.vocabulary), schema.features)
    scores, spread = answers(made.served, rows_BF)
    found = made.bundle.predict(raw.drop("y", "w"))

    np.testing.assert_allclose(found.get_column("prediction_spread"), spread, rtol=0, atol=1e-5)
    np.testing.assert_allclose(made.bundle.scores(encode_frame(raw, schema, made.bundle.vocabulary)), scores, atol=1e-5)
    assert (50, True) == (found.height, bool(np.isnan(rows_BF).any() and (rows_BF[:, 2] == 0).any()))


@pytest.mark.parametrize(("name", "change"), [("scores", "shift"), ("spread", "spread")])
def test_a_graph_that_differs_is_refused(made: Made, name: str, change: str) -> None:
    """A graph whose scores or spread differ from torch's is not shipped, and the message names what and how far."""
    network, target = made.served.network, made.served.target

    class Other(Served):
        """The network, with one output off by 1e-4."""

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            scores, spread = super().forward(x)
            return (scores + 1e-4, spread) if change == "shift" else (scores, spread + 1e-4)

    with pytest.raises(RunError, match=rf"got a difference=\S+ of the {name} on 100 rows\. Install"):
        check(made.graph, Other(network, target, has_spread=True).eval(), made.rows_BF[:100])


def test_a_graph_that_gives_no_number_is_refused(made: Made) -> None:
    """A graph that answers with no number where torch has one is refused, as no difference is small then."""
    broken = Graph(graph(weights(3) * np.float32("nan"), has_spread=True))

    with pytest.raises(RunError, match="got a difference=nan of the scores"):
        check(broken, made.served, made.rows_BF[:100])


def test_large_scores_may_differ_in_proportion(made: Made) -> None:
    """Scores of a regression in the millions may differ by as much as float32 does, and no more."""
    target = Target("regression", 0.0, 1e7)
    network = made.served.network

    @dataclass
    class Off:
        """A graph whose scores are off by a share of the largest."""

        share: float

        def scored(self, rows_BF: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            scores, spread = answers(Served(network, target, has_spread=True), rows_BF)
            return scores + self.share * np.abs(scores).max(), spread

    served = Served(network, target, has_spread=True)
    check(Off(5e-6), served, made.rows_BF[:100])
    with pytest.raises(RunError, match="of the scores"):
        check(Off(5e-5), served, made.rows_BF[:100])


def test_rows_with_gaps_leave_the_given_ones_alone() -> None:
    """Every seventh row lacks a value and every eleventh has one far out, in each column; the rest is as it was."""
    before = rows(500)
    found = with_gaps(before)
    is_changed = ~np.isclose(found, before, equal_nan=True)

    np.testing.assert_array_equal(before, rows(500))
    assert set(range(0, 500, 7)) | set(range(0, 500, 11)) == set(np.flatnonzero(is_changed.any(1)).tolist())
    assert np.isnan(found).any(0).all() and (found == 1e7).any(0).all()


def test_the_exporter_is_quiet_and_its_log_is_not() -> None:
    """Inside, the exporter's remarks are not logged; afterwards its logger is as it was."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    with quiet():
        inside = log.level

    assert (logging.ERROR, before) == (inside, log.level)


def test_a_network_that_lacks_parameters_is_not_exported(made: Made) -> None:
    """A state that is not whole, as of a member that holds a part, is not taken for a network."""
    state = dict(made.served.network.state_dict())
    del state["layers.1.linear.bias"]

    with pytest.raises(RuntimeError, match=r"layers\.1\.linear\.bias"):
        exported(replace(made.shape), made.served.target, state, made.rows_BF[:10])
