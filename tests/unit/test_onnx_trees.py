"""Trees as graphs: they answer as XGBoost does, and what can't be converted is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import xgboost as xgb
from _boosters import NUM_CODES, booster, rows
from numpy.typing import NDArray

from infra.bundle.session import answers_of, session_of
from infra.errors import RunError
from tasks._onnx_trees import STATISTICS, base_scores, forest_of, graphs_of, without_statistics
from tasks._runtimes import edge_rows

TASKS = ("binary", "multiclass", "regression")


def by_graph(trees: xgb.Booster, x_BF: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what the graph of trees answers."""
    return answers_of(session_of(graphs_of(forest_of(trees)).whole, 1), ["scores"], x_BF)[0]


def by_margins(trees: xgb.Booster, x_BF: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what XGBoost's margins become."""
    margins = trees.inplace_predict(x_BF, predict_type="margin")
    link = graphs_of(forest_of(trees)).link
    return margins if link is None else answers_of(session_of(link, 1), ["scores"], margins)[0]


@pytest.mark.parametrize("task", TASKS)
def test_a_graph_answers_as_xgboost(task: str) -> None:
    """Rows with missing, unknown and infinite values, and with thresholds, get XGBoost's scores within float32."""
    trees = booster(task)
    x_BF = edge_rows(rows(500), forest_of(trees))
    known, found = trees.inplace_predict(x_BF), by_graph(trees, x_BF)

    assert (known.shape, known.dtype) == (found.shape, found.dtype)
    assert len(np.unique(known)) > 100
    np.testing.assert_allclose(known, found, rtol=0, atol=3e-7 if task != "regression" else 0)


@pytest.mark.parametrize("task", TASKS)
def test_both_runtimes_have_the_same_bits(task: str) -> None:
    """A graph's scores are those of XGBoost's margins to the last bit, for rows together and alone."""
    trees = booster(task)
    x_BF = edge_rows(rows(500), forest_of(trees))
    known = by_margins(trees, x_BF)

    np.testing.assert_array_equal(known, by_graph(trees, x_BF))
    np.testing.assert_array_equal(known[:30], np.concatenate([by_graph(trees, x_BF[i : i + 1]) for i in range(30)]))


def test_a_threshold_itself_goes_right() -> None:
    """A value that equals a threshold goes where XGBoost sends it, and its neighbours in float32 too."""
    trees = booster("regression")
    features, thresholds = forest_of(trees).thresholds
    x_BF = np.repeat(rows(1, seed=3), 3 * len(features), axis=0)
    for i, end in enumerate((-np.inf, 0, np.inf)):
        places = np.arange(len(features)) * 3 + i
        x_BF[places, features] = np.nextafter(thresholds, np.float32(end)) if end else thresholds
    known = trees.inplace_predict(x_BF)

    assert len(features) > 20
    assert (known[0::3] != known[1::3]).any()
    np.testing.assert_array_equal(known, by_graph(trees, x_BF))


def test_sets_of_codes_hold_for_every_code() -> None:
    """Known codes, unknown ones however large, negative ones and missing ones go where XGBoost sends them."""
    trees = booster("regression")
    forest = forest_of(trees)
    codes = np.array([*range(-2, NUM_CODES + 3), 1000, 2**24, 2**25, 1e9, np.nan], np.float32)
    x_BF = np.repeat(rows(1, seed=4), len(codes), axis=0)
    x_BF[:, 0] = codes

    assert {1} < {len(members) for members in forest.sets}
    assert max(map(len, forest.sets)) > 10
    np.testing.assert_array_equal(trees.inplace_predict(x_BF), by_graph(trees, x_BF))


@pytest.mark.parametrize("task", TASKS)
def test_a_leaf_alone_is_a_tree(task: str) -> None:
    """Trees that have not split anything are converted, some or all of them."""
    flat = booster(task, rounds=2, min_child_weight=1e6)
    described = json.loads(booster(task, rounds=3).save_raw("json"))
    trees = described["learner"]["gradient_booster"]["model"]["trees"]
    leaf = json.loads(flat.save_raw("json"))["learner"]["gradient_booster"]["model"]["trees"][0]
    trees[1] = {**leaf, "id": 1, "split_conditions": [0.25], "tree_param": {**trees[1]["tree_param"], "num_nodes": "1"}}
    mixed = xgb.Booster(model_file=bytearray(json.dumps(described).encode()))
    x_BF = rows(50)

    for found in (flat, mixed):
        np.testing.assert_array_equal(by_margins(found, x_BF), by_graph(found, x_BF))


def test_nodes_that_were_pruned_are_left_out() -> None:
    """What pruning has cut off is no part of the graph, and the rest answers as XGBoost does."""
    whole, x_BF = booster("regression"), rows(600)
    matrix = xgb.DMatrix(x_BF, np.zeros(600), feature_types=["c", "q", "q", "c"], enable_categorical=True)
    update = {"process_type": "update", "updater": "prune", "gamma": 500.0, "nthread": 1, "verbosity": 0}
    pruned = xgb.train({"objective": "reg:squarederror", **update}, matrix, 12, xgb_model=whole)
    sizes = [len(forest_of(trees).left) for trees in (whole, pruned)]
    stored = json.loads(pruned.save_raw("json"))["learner"]["gradient_booster"]["model"]["trees"]

    assert sizes[1] < sizes[0]
    assert any(tree["left_children"][0] < 0 and len(tree["left_children"]) > 1 for tree in stored)
    np.testing.assert_array_equal(pruned.inplace_predict(x_BF), by_graph(pruned, x_BF))


def test_the_base_score_is_a_margin() -> None:
    """What a booster begins with is asked of XGBoost: the logit of a probability, a number, one for each class."""
    binary, number = booster("binary", base_score=0.8), booster("regression", base_score=2.5)

    np.testing.assert_allclose([np.log(4)], base_scores(binary, 4), rtol=1e-6)
    assert [2.5] == base_scores(number, 4).tolist()
    assert (3,) == base_scores(booster("multiclass"), 4).shape


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "count:poisson"}, "have an objective of binary:logistic, .*, but got objective=count:poisson"),
        ({"booster": "dart"}, "are of the booster gbtree, but got booster=dart. Serve by XGBoost."),
        ({"booster": "gblinear"}, "are of the booster gbtree, but got booster=gblinear. Serve by XGBoost."),
        ({"multi_strategy": "multi_output_tree"}, "but got size_leaf_vector=2, num_target=2. Serve by XGBoost."),
        ({"multi_strategy": "one_output_per_tree"}, "but got size_leaf_vector=1, num_target=2. Serve by XGBoost."),
    ],
)
def test_what_has_no_graph_is_refused(changes: dict[str, Any], message: str) -> None:
    """Other boosters, objectives and several targets end in a message that names them."""
    targets = np.random.default_rng(0).random((50, 2 if "multi_strategy" in changes else 1))
    trees = xgb.train({"nthread": 1, **changes}, xgb.DMatrix(np.nan_to_num(rows(50)), targets), 2)
    with pytest.raises(RunError, match=message):
        forest_of(trees)


@pytest.mark.parametrize("task", TASKS)
def test_statistics_are_forgotten_and_answers_are_not(task: str) -> None:
    """Without what a training has noted, trees answer the same to the last bit; those that were given keep it."""
    whole, x_BF = booster(task), rows(300, seed=5)
    lean = without_statistics(whole)
    trees = json.loads(lean.save_raw("json"))["learner"]["gradient_booster"]["model"]["trees"]

    np.testing.assert_array_equal(whole.inplace_predict(x_BF), lean.inplace_predict(x_BF))
    assert {0.0} == {number for tree in trees for name in STATISTICS for number in tree[name]}
    assert 0 < max(whole.get_score(importance_type="gain").values())
