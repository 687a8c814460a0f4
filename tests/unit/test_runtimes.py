"""Trees as they are shipped: checked, timed, and with a crossover between two runtimes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import xgboost as xgb
from _boosters import booster, rows
from _networks import graph, weights

from infra.bundle.blend import Blend
from infra.bundle.network import Network
from infra.bundle.trees import Graphs, Trees
from infra.errors import RunError
from tasks import _runtimes
from tasks._gaps import CHECKED_ROWS
from tasks._onnx_trees import forest_of, graphs_of
from tasks._runtimes import HANDICAP, Timing, crossover_of, edge_rows, packaged, require_equal, shortest, timings_of

X_BF = rows(200)


@pytest.fixture(scope="module", autouse=True)
def _measure_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"BATCH_ROWS": (1, 4, 16), "MIN_TURNS": 1, "MAX_TURNS": 1, "TURN_SECONDS": 0}.items():
            patch.setattr(_runtimes, name, value)
        yield


def shipped(task: str = "binary") -> Trees:
    """Package trees."""
    found = packaged(Trees(booster(task)), X_BF).predictor
    assert isinstance(found, Trees)
    return found


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_any_number_of_rows_gets_the_same_bits(task: str) -> None:
    """Packaged trees answer a row alone as they do in a batch of any size, and as XGBoost does within float32."""
    trees = replace(shipped(task), crossover=20)
    known = trees.scores(X_BF)

    np.testing.assert_allclose(booster(task).inplace_predict(X_BF), known, rtol=1e-6, atol=2e-7)
    for size in (1, 3, 20, 21, 100):
        found = np.concatenate([trees.scores(X_BF[i : i + size]) for i in range(0, 200, size)])
        np.testing.assert_array_equal(known, found)


def test_packaged_trees_are_compact_and_have_both_runtimes() -> None:
    """They are smaller by far, hold both forms, and go to ONNX Runtime up to a number of rows that was measured."""
    whole = Trees(booster())
    found = packaged(whole, X_BF)
    trees = found.predictor

    assert isinstance(trees, Trees)
    assert ((), True, True) == (found.notes, trees.is_compact, trees.graphs is not None)
    assert 0 <= trees.crossover <= 16
    assert trees.num_bytes < whole.num_bytes / 3


def test_packaging_is_repeatable_but_for_the_crossover(tmp_path: Path) -> None:
    """The same trees become the same files."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        shipped().save(tmp_path / name)
    contents = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("a", "b")]

    assert {"model.ubj.xz", "model.onnx.xz", "model.link.onnx"} == set(contents[0])
    assert contents[0] == contents[1]


def test_trees_that_cannot_be_converted_have_xgboost_alone() -> None:
    """They are compact, answer the same, and a note says why there is no second runtime."""
    whole = xgb.train({"objective": "count:poisson", "nthread": 1}, xgb.DMatrix(X_BF, np.arange(200)), 3)
    found = packaged(Trees(whole), X_BF)
    trees = found.predictor

    assert isinstance(trees, Trees)
    assert (None, True, 0) == (trees.graphs, trees.is_compact, trees.crossover)
    np.testing.assert_array_equal(whole.inplace_predict(X_BF), trees.scores(X_BF))
    (note,) = found.notes
    assert note.endswith("but got objective=count:poisson. Serve by XGBoost.")


def test_a_graph_of_other_trees_is_refused() -> None:
    """A conversion that answers otherwise is not shipped."""
    wrong = Trees(booster(), graphs_of(forest_of(booster(rounds=11))))
    with pytest.raises(RunError, match=r"to within 1e-05, but got a difference=0\.\d+ on 200 rows. They are served by"):
        require_equal(wrong, X_BF)


def test_a_graph_that_rounds_otherwise_is_refused() -> None:
    """A conversion within the tolerance whose bits differ would make a row's answer depend on its batch."""
    forest = forest_of(booster())
    near = replace(forest, base_scores=np.nextafter(forest.base_scores, np.float32(9)))
    with pytest.raises(RunError, match=r"the same in batches of any size, but got num_different=\d+ scores of 200 ro"):
        require_equal(Trees(booster(), graphs_of(near)), X_BF)


def test_a_wrong_conversion_is_not_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the check fails the bundle has XGBoost alone, and a note says by how much the answers differ."""
    wrong = graphs_of(forest_of(booster(rounds=11)))
    monkeypatch.setattr(_runtimes, "graphs_of", lambda forest: wrong)
    found = packaged(Trees(booster()), X_BF)

    assert isinstance(found.predictor, Trees)
    assert None is found.predictor.graphs
    assert found.notes[0].startswith("Converted trees answer as XGBoost does, to within 1e-05, but got a difference=")


def test_a_graph_that_cannot_be_read_is_not_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ONNX Runtime refuses ends in XGBoost alone, and in its words."""
    monkeypatch.setattr(_runtimes, "graphs_of", lambda forest: Graphs(b"no graph"))
    found = packaged(Trees(booster()), X_BF)

    assert isinstance(found.predictor, Trees)
    assert None is found.predictor.graphs
    assert "INVALID_PROTOBUF" in found.notes[0]


def test_a_blends_trees_are_packaged() -> None:
    """Weights stay, trees become compact, networks are what they were, and notes are those of all parts."""
    network = Network(graph(weights(4)))
    blend = Blend(((0.25, Trees(booster())), (0.75, network)))
    found = packaged(blend, X_BF).predictor

    assert isinstance(found, Blend)
    (first, trees), (second, other) = found.parts
    assert isinstance(trees, Trees)
    assert (0.25, 0.75, True, network) == (first, second, trees.is_compact, other)
    np.testing.assert_allclose(blend.scores(X_BF), found.scores(X_BF), atol=2e-7)
    assert network is packaged(network, X_BF).predictor


def test_rows_have_what_conversions_stumble_over() -> None:
    """Among the checked rows are missing, unknown, infinite values, thresholds and their neighbours; the given stay."""
    forest = forest_of(booster())
    given = X_BF.copy()
    found = edge_rows(X_BF, forest)
    features, thresholds = forest.thresholds
    pairs = set(zip(features.tolist(), thresholds.tolist(), strict=True))
    has = {(int(f), float(v)) for f in np.unique(features) for v in np.unique(found[:, f])}

    assert (CHECKED_ROWS, 4) == found.shape
    assert pairs <= has
    assert [True] * 4 == [bool(np.isin(value, found)) for value in (np.inf, -np.inf, np.float32(1e7), found[-1, -1])]
    assert np.isnan(found).any(axis=0).all()
    np.testing.assert_array_equal(given, X_BF)


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ([2.0, 3.0, 4.0], 0),
        ([0.1, 0.5, 0.9], 16),
        ([0.25, 0.5, 2.0], 8),
        ([0.1, 1.05, 0.9], 16),
        ([0.1, 0.5, 1.02], 15),
    ],
)
def test_the_crossover_is_where_one_is_no_longer_clearly_faster(ratios: list[float], expected: int) -> None:
    """It lies between the sizes where one and the other wins, and noise at one size does not move it."""
    assert expected == crossover_of([Timing(4**i, ratio / HANDICAP, 1.0) for i, ratio in enumerate(ratios)])


class Clock:
    """Time that passes when a model is asked."""

    def __init__(self) -> None:
        self.now, self.asked = 0.0, list[str]()

    def __call__(self) -> float:
        return self.now

    def model(self, name: str, *seconds: float) -> Any:
        """Return a model that takes these times, the last one from then on."""
        left = list(seconds)

        def scores(x_BF: Any) -> None:
            self.asked.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return SimpleNamespace(scores=scores)


def test_models_take_turns_and_the_shortest_time_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What disturbs a call does not count, and both are asked in turn."""
    monkeypatch.setattr(_runtimes, "MAX_TURNS", 3)
    clock = Clock()
    monkeypatch.setattr(_runtimes, "SIZE_SECONDS", 100.0)
    found = shortest([clock.model("a", 3.0, 2.0, 5.0), clock.model("b", 4.0, 9.0, 3.5)], X_BF, clock)

    assert [2.0, 3.5] == found
    assert ["a", "b"] * 3 == clock.asked


def test_timings_are_of_both_runtimes() -> None:
    """Every size is timed for both, and the given booster keeps its threads."""
    trees = shipped()
    before = trees.booster.save_config()
    timings = timings_of(trees, X_BF)

    assert [1, 4, 16] == [timing.num_rows for timing in timings]
    assert all(timing.few > 0 and timing.many > 0 for timing in timings)
    assert before == trees.booster.save_config()


def test_a_hopeless_runtime_is_not_asked_further(monkeypatch: pytest.MonkeyPatch) -> None:
    """With two sizes in a row at which it is far slower, larger ones are not tried."""
    monkeypatch.setattr(_runtimes, "shortest", lambda models, x_BF, clock: (2.0, 1.0))

    assert [Timing(1, 2.0, 1.0), Timing(4, 2.0, 1.0)] == timings_of(shipped(), X_BF)
