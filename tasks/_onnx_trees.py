"""Boosted trees as graphs of ONNX Runtime that answer as XGBoost does, to the last bit of the margins.

XGBoost begins with the base score of an output and adds the leaves of its trees in their order, in float32. The graph
does the same: the base score is in the leaves of the first tree of each output, and ONNX Runtime adds up in the order
of the trees where it has one thread.

onnxmltools 1.16 would be the library for this. It can't do it: a split on a set of 300 codes ends in a
RecursionError, one on 40 in a chain of comparisons, and 500 trees of depth 8 take it 26 s (docs/log.md).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from infra.bundle.session import INPUT, SCORES
from infra.bundle.trees import Graphs
from infra.errors import RunError

if TYPE_CHECKING:
    import xgboost as xgb

# B = rows, F = features, N = nodes of all trees.

LINKS: Mapping[str, str | None] = {
    "binary:logistic": "Sigmoid",
    "reg:logistic": "Sigmoid",
    "multi:softprob": "Softmax",
    "reg:squarederror": None,
    "reg:absoluteerror": None,
    "reg:pseudohubererror": None,
}
"""What makes scores of the margins of an objective, as an operator; None: they are the scores."""
LESS, MEMBER = 1, 6
"""Modes of a node in TreeEnsemble (ai.onnx.ml, version 5)."""
SUM, NONE = 1, 0
"""Its ways to put leaves together, and what follows."""
MAIN_OPSET, TREES_OPSET, IR = 17, 5, 9
"""TreeEnsemble is known to ONNX Runtime since 1.20."""
STATISTICS = ("base_weights", "loss_changes", "sum_hessian")
"""What a tree remembers of its training; no prediction needs it."""


@dataclass(frozen=True)
class Forest:
    """All trees of a booster as arrays of shape (N,), each tree's nodes in a row, but for what no row reaches."""

    objective: str
    num_features: int
    base_scores: NDArray[np.float32]
    """Margins without a tree, shape (outputs,)."""
    roots: NDArray[np.int64]
    """The first node of each tree."""
    outputs: NDArray[np.int64]
    """What each tree adds to."""
    left: NDArray[np.int64]
    """Where a row goes whose value is less, or not in the set; -1: the node is a leaf."""
    right: NDArray[np.int64]
    feature: NDArray[np.int64]
    value: NDArray[np.float32]
    """The threshold, or what a leaf adds."""
    misses_left: NDArray[np.bool_]
    is_set: NDArray[np.bool_]
    sets: Sequence[Sequence[int]]
    """The codes that go right, of every node that has a set."""

    @property
    def is_leaf(self) -> NDArray[np.bool_]:
        """Return which nodes are leaves."""
        return self.left < 0

    @property
    def thresholds(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return features and thresholds of the nodes that compare."""
        compares = ~self.is_leaf & ~self.is_set
        return self.feature[compares], self.value[compares]


def forest_of(booster: xgb.Booster) -> Forest:
    """Return the trees of a booster.

    Raises:
        RunError: they are of a sort that has no graph.
    """
    described = json.loads(booster.save_raw("json"))
    learner = described["learner"]
    kind, objective = learner["gradient_booster"]["name"], learner["objective"]["name"]
    if kind != "gbtree":
        raise RunError(f"Trees for ONNX Runtime are of the booster gbtree, but got booster={kind}. Serve by XGBoost.")
    if objective not in LINKS:
        raise RunError(
            f"Trees for ONNX Runtime have an objective of {', '.join(LINKS)}, but got objective={objective}. "
            "Serve by XGBoost."
        )
    model = learner["gradient_booster"]["model"]
    trees = [_with_root(tree) for tree in model["trees"]]
    widest = max((int(tree["tree_param"]["size_leaf_vector"]) for tree in trees), default=0)
    if widest != 1 or int(learner["learner_model_param"]["num_target"]) != 1:
        raise RunError(
            f"Trees for ONNX Runtime have one number in a leaf and one target, but got size_leaf_vector={widest}, "
            f"num_target={learner['learner_model_param']['num_target']}. Serve by XGBoost."
        )
    num_features = int(learner["learner_model_param"]["num_feature"])
    return _forest(trees, np.array(model["tree_info"]), objective, num_features, base_scores(booster, num_features))


def base_scores(booster: xgb.Booster, num_features: int) -> NDArray[np.float32]:
    """Return the margins that a booster begins with, shape (outputs,), as XGBoost itself computes them."""
    import xgboost as xgb

    described = json.loads(booster[:1].save_raw("json"))
    for tree in described["learner"]["gradient_booster"]["model"]["trees"]:
        pairs = zip(tree["split_conditions"], tree["left_children"], strict=True)
        tree["split_conditions"] = [0.0 if left < 0 else split for split, left in pairs]
    empty = xgb.Booster(model_file=bytearray(json.dumps(described).encode()))
    row = np.zeros((1, num_features), np.float32)
    return np.asarray(empty.inplace_predict(row, predict_type="margin"), np.float32).reshape(-1)


def without_statistics(booster: xgb.Booster) -> xgb.Booster:
    """Return a booster that predicts the same, and has forgotten gains, weights and sums of its training.

    These numbers are most of what a file of trees holds once it is compressed.
    """
    import xgboost as xgb

    described = json.loads(booster.save_raw("json"))
    for tree in described["learner"]["gradient_booster"]["model"]["trees"]:
        tree |= {name: [0.0] * len(tree[name]) for name in STATISTICS}
    return xgb.Booster(model_file=bytearray(json.dumps(described).encode()))


def graphs_of(forest: Forest) -> Graphs:
    """Return trees as graphs; see `Graphs`."""
    from onnx import TensorProto, helper

    link, num_outputs = LINKS[forest.objective], len(forest.base_scores)
    shape: list[int | None] = [None] if num_outputs == 1 else [None, num_outputs]

    def finished(nodes: list[Any], given: list[int | None]) -> bytes:
        graph = helper.make_graph(
            nodes,
            "trees",
            [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, given)],
            [helper.make_tensor_value_info(SCORES, TensorProto.FLOAT, shape)],
            [helper.make_tensor("axis", TensorProto.INT64, [1], [1])] if len(nodes) > 1 and num_outputs == 1 else [],
        )
        opsets = [helper.make_opsetid("", MAIN_OPSET), helper.make_opsetid("ai.onnx.ml", TREES_OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR, producer_name="evergreen")
        return bytes(model.SerializeToString())

    steps = [("Squeeze", ["axis"])] if num_outputs == 1 else []
    steps += [(link, [])] if link is not None else []
    names = ["sums", *(f"step{i}" for i in range(1, len(steps))), SCORES] if steps else [SCORES]
    nodes = [helper.make_node("TreeEnsemble", [INPUT], names[:1], domain="ai.onnx.ml", **_attributes(forest))]
    for i, (operator, more) in enumerate(steps):
        nodes.append(helper.make_node(operator, [names[i], *more], [names[i + 1]]))
    whole = finished(nodes, [None, forest.num_features])
    return Graphs(whole, finished([helper.make_node(link, [INPUT], [SCORES])], shape) if link else None)


def _with_root(tree: dict[str, Any]) -> dict[str, Any]:
    """Return a tree whose root is a split: one leaf alone, perhaps left by pruning, becomes two of the same value."""
    if tree["left_children"][0] >= 0:
        return tree
    return {
        **tree,
        "left_children": [1, -1, -1],
        "right_children": [2, -1, -1],
        "split_conditions": [0.0, *tree["split_conditions"][:1] * 2],
        **{name: [0, 0, 0] for name in ("split_indices", "split_type", "default_left")},
        **{name: [] for name in ("categories_nodes", "categories_segments", "categories_sizes")},
    }


def _forest(
    trees: Sequence[Mapping[str, Any]],
    outputs: NDArray[np.int64],
    objective: str,
    num_features: int,
    base: NDArray[np.float32],
) -> Forest:
    """Put trees together, without nodes that were pruned."""

    def joined(name: str, dtype: Any) -> NDArray[Any]:
        return np.concatenate([np.asarray(tree[name], dtype=dtype) for tree in trees])

    sizes = np.array([len(tree["left_children"]) for tree in trees])
    roots = np.cumsum(sizes) - sizes
    first = np.repeat(roots, sizes)
    children = [joined(name, np.int64) for name in ("left_children", "right_children")]
    left, right = (np.where(child < 0, -1, child + first) for child in children)
    is_set = (joined("split_type", np.int64) == 1) & (left >= 0)
    codes: dict[int, list[int]] = {}
    for root, tree in zip(roots.tolist(), trees, strict=True):
        starts = zip(tree["categories_nodes"], tree["categories_segments"], tree["categories_sizes"], strict=True)
        codes |= {root + node: tree["categories"][start : start + size] for node, start, size in starts}
    is_reached = np.zeros(len(left), dtype=bool)
    reached = roots
    while len(reached):
        is_reached[reached] = True
        inner = reached[left[reached] >= 0]
        reached = np.concatenate([left[inner], right[inner]])
    place = np.cumsum(is_reached) - 1
    kept = np.flatnonzero(is_reached)
    return Forest(
        objective=objective,
        num_features=num_features,
        base_scores=base,
        roots=place[roots],
        outputs=outputs,
        left=np.where(left[kept] < 0, -1, place[left[kept]]),
        right=np.where(left[kept] < 0, -1, place[right[kept]]),
        feature=joined("split_indices", np.int64)[kept],
        value=joined("split_conditions", np.float32)[kept],
        misses_left=joined("default_left", np.int64)[kept] == 1,
        is_set=is_set[kept],
        sets=[codes[node] for node in kept[is_set[kept]].tolist()],
    )


def _attributes(forest: Forest) -> dict[str, Any]:
    """Return the attributes of a TreeEnsemble; its inner nodes and its leaves are numbered apart."""
    from onnx import numpy_helper

    is_leaf, is_inner = forest.is_leaf, ~forest.is_leaf
    place = np.where(is_leaf, np.cumsum(is_leaf), np.cumsum(is_inner)) - 1
    left, right, is_set = forest.left[is_inner], forest.right[is_inner], forest.is_set[is_inner]
    # A condition that is true leads left where a threshold is compared, and right where a set is looked up.
    if_true, if_false = np.where(is_set, right, left), np.where(is_set, left, right)
    tree = np.repeat(np.arange(len(forest.roots)), np.diff(np.append(forest.roots, len(is_leaf))))
    output = forest.outputs[tree]
    firsts = np.unique(forest.outputs, return_index=True)[1]
    base = np.where(np.isin(tree, firsts), forest.base_scores[output], np.float32(0))
    added = np.where(np.isin(tree, firsts), base + forest.value, forest.value)[is_leaf].astype(np.float32)
    splits = np.where(is_set, np.float32(0), forest.value[is_inner]).astype(np.float32)
    # Sets follow one another, each with NaN at its end.
    members = [np.append(np.array(codes, np.float32), np.float32(np.nan)) for codes in forest.sets]
    sets = {"membership_values": numpy_helper.from_array(np.concatenate(members))} if members else {}
    return {
        "aggregate_function": SUM,
        "post_transform": NONE,
        "n_targets": len(forest.base_scores),
        "tree_roots": place[forest.roots].tolist(),
        "nodes_modes": numpy_helper.from_array(np.where(is_set, MEMBER, LESS).astype(np.uint8)),
        "nodes_featureids": forest.feature[is_inner].tolist(),
        "nodes_splits": numpy_helper.from_array(splits),
        "nodes_truenodeids": place[if_true].tolist(),
        "nodes_trueleafs": is_leaf[if_true].astype(int).tolist(),
        "nodes_falsenodeids": place[if_false].tolist(),
        "nodes_falseleafs": is_leaf[if_false].astype(int).tolist(),
        "nodes_missing_value_tracks_true": (forest.misses_left[is_inner] != is_set).astype(int).tolist(),
        "leaf_targetids": output[is_leaf].tolist(),
        "leaf_weights": numpy_helper.from_array(added),
        **sets,
    }
