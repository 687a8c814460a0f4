"""Boosted trees taken apart into arrays, and put together again after surgery.

XGBoost's documented JSON model is what is read and written ("Introduction to Model IO" in its manual, with the schema
in doc/model.schema): every property of a tree is a list over its nodes, and the categories that go right are listed
beside. Scores are the intercept plus, for each class, the leaf values of its trees; the order of trees within a class
decides how float32 sums round, and is kept.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import xgboost as xgb
from numpy.typing import NDArray

from infra.bundle.schema import Schema
from tasks._techniques.technique import Rows

# B = rows, F = features, G = classes (1 unless multiclass), T = trees, N = nodes of a tree, L = its leaves.

LISTS = {
    "base_weights": np.float32,
    "default_left": np.int8,
    "left_children": np.int32,
    "loss_changes": np.float32,
    "parents": np.int32,
    "right_children": np.int32,
    "split_conditions": np.float32,
    "split_indices": np.int32,
    "split_type": np.int8,
    "sum_hessian": np.float32,
}
"""What is listed by node."""
NO_PARENT = 2**31 - 1
LEAF_CELLS = 64_000_000
"""Leaves (rows times trees) that are asked for at once: 256 MB of the library's float32."""


@dataclass(frozen=True)
class Tree:
    """One tree; node 0 is its root."""

    nodes: Mapping[str, NDArray[Any]]
    """By name of LISTS, shape (nodes,); `split_conditions` of a leaf is its value."""
    categories: Mapping[int, tuple[int, ...]]
    """By node that splits by category: those that go right."""

    @property
    def value_N(self) -> NDArray[np.float32]:
        """Return the values of the leaves; of other nodes thresholds."""
        return self.nodes["split_conditions"]

    @cached_property
    def leaves_L(self) -> NDArray[np.intp]:
        """Return which nodes are leaves, in order."""
        return np.flatnonzero(self.nodes["left_children"] < 0)

    def roots_at(self, level: int) -> NDArray[np.intp]:
        """Return for each node the one on a level that it is below, or is; -1 where that has no split, or is deeper."""
        root_N = np.full(len(self.value_N), -1, np.intp)
        nodes = [0]
        for _ in range(level):
            nodes = [child for node in nodes for child in self._children(node)]
        for root in nodes:
            if self.nodes["left_children"][root] >= 0:
                root_N[list(self.down(root))] = root
        return root_N

    def _children(self, node: int) -> list[int]:
        left, right = int(self.nodes["left_children"][node]), int(self.nodes["right_children"][node])
        return [left, right] if left >= 0 else []

    def down(self, root: int = 0) -> Iterator[int]:
        """Give a node and those below it, parents before children, level by level."""
        level = [root]
        while level:
            yield from level
            level = [child for node in level for child in self._children(node)]

    def below(self, root: int) -> NDArray[np.intp]:
        """Return the leaves below a node."""
        nodes = np.fromiter(self.down(root), np.intp)
        return nodes[self.nodes["left_children"][nodes] < 0]

    def with_values(self, value_L: NDArray[np.floating[Any]]) -> Tree:
        """Return the tree with other values of its leaves, in their order."""
        value_N = self.value_N.copy()
        value_N[self.leaves_L] = value_L
        return replace(self, nodes={**self.nodes, "split_conditions": value_N, "base_weights": self._weights(value_N)})

    def _weights(self, value_N: NDArray[np.float32]) -> NDArray[np.float32]:
        weight_N = self.nodes["base_weights"].copy()
        weight_N[self.leaves_L] = value_N[self.leaves_L]
        return weight_N

    def pruned(self, value_of: Mapping[int, float]) -> Tree:
        """Return the tree with some nodes made leaves of a value, without what was below them; nodes are renumbered."""
        left_N, right_N = (self.nodes[side].copy() for side in ("left_children", "right_children"))
        value_N, type_N = self.value_N.copy(), self.nodes["split_type"].copy()
        for node, value in value_of.items():
            left_N[node] = right_N[node] = -1
            value_N[node], type_N[node] = value, 0
        cut = {**self.nodes, "left_children": left_N, "right_children": right_N, "split_conditions": value_N}
        whole = Tree({**cut, "split_type": type_N}, self.categories)
        kept = np.fromiter(whole.down(), np.intp)
        number = np.full(len(value_N) + 1, -1, np.int32)  # the last is for the children of leaves, -1
        number[kept] = np.arange(len(kept))
        nodes = {name: array[kept] for name, array in whole.nodes.items()}
        for side in ("left_children", "right_children"):
            nodes[side] = number[nodes[side]]
        nodes["parents"] = np.concatenate([[NO_PARENT], number[nodes["parents"][1:]]]).astype(np.int32)
        is_leaf = nodes["left_children"] < 0
        for name in ("loss_changes", "split_indices", "default_left"):
            nodes[name] = np.where(is_leaf, 0, nodes[name]).astype(LISTS[name])
        nodes["base_weights"] = np.where(is_leaf, nodes["split_conditions"], nodes["base_weights"])
        categories = {int(number[n]): told for n, told in self.categories.items() if number[n] >= 0 and type_N[n]}
        return Tree(nodes, categories)

    @classmethod
    def stump(cls, value: float = 0.0) -> Tree:
        """Return a tree that answers the same for every row."""
        nodes = {name: np.zeros(1, kind) for name, kind in LISTS.items()}
        nodes["left_children"] -= 1
        nodes["right_children"] -= 1
        nodes["parents"][:] = NO_PARENT
        nodes["split_conditions"][:] = nodes["base_weights"][:] = value
        return cls(nodes, {})

    @classmethod
    def read(cls, told: Mapping[str, Any]) -> Tree:
        """Take a tree from the library's document."""
        if int(told["tree_param"].get("size_leaf_vector", "1")) > 1:
            raise ValueError(
                "Trees have one value in a leaf, but got size_leaf_vector="
                f"{told['tree_param']['size_leaf_vector']}. Train with multi_strategy=one_output_per_tree."
            )
        nodes = {name: np.asarray(told[name], kind) for name, kind in LISTS.items()}
        listed = zip(told["categories_nodes"], told["categories_segments"], told["categories_sizes"], strict=True)
        return cls(nodes, {node: tuple(told["categories"][start : start + size]) for node, start, size in listed})

    def written(self, number: int, num_features: int) -> dict[str, Any]:
        """Return the library's document of the tree."""
        nodes = sorted(self.categories)
        sizes = [len(self.categories[node]) for node in nodes]
        return {
            **{name: _plain(array) for name, array in self.nodes.items()},
            "categories": [category for node in nodes for category in self.categories[node]],
            "categories_nodes": nodes,
            "categories_segments": [sum(sizes[:i]) for i in range(len(sizes))],
            "categories_sizes": sizes,
            "id": number,
            "tree_param": {
                "num_deleted": "0",
                "num_feature": str(num_features),
                "num_nodes": str(len(self.value_N)),
                "size_leaf_vector": "1",
            },
        }


def _plain(array: NDArray[Any]) -> list[Any]:
    """Return numbers for JSON; of float32 nine digits, from which the library reads the same number.

    >>> _plain(np.array([0.1, 1 / 3], np.float32))
    [0.100000001, 0.333333343]
    """
    return [float(f"{value:.9g}") for value in array] if array.dtype == np.float32 else array.tolist()


@dataclass(frozen=True)
class Forest:
    """All trees of a booster, and what else there is in its document."""

    trees: tuple[Tree, ...]
    group_T: NDArray[np.intp]
    """Which class a tree adds to."""
    document: Mapping[str, Any]
    """Of the library, without trees."""

    @classmethod
    def of(cls, booster: xgb.Booster) -> Forest:
        """Take a booster apart."""
        document = json.loads(bytes(booster.save_raw("json")))
        model = document["learner"]["gradient_booster"]["model"]
        trees = tuple(Tree.read(told) for told in model.pop("trees"))
        return cls(trees, np.asarray(model["tree_info"], np.intp), document)

    @property
    def num_groups(self) -> int:
        """Count the classes; 1 unless the task is multiclass."""
        return max(1, int(self.document["learner"]["learner_model_param"]["num_class"]))

    @property
    def num_leaves(self) -> int:
        """Count the leaves of all trees."""
        return sum(len(tree.leaves_L) for tree in self.trees)

    @cached_property
    def intercept_G(self) -> NDArray[np.float32]:
        """Return the scores before the link that there are without any tree."""
        bare = replace(self, trees=(Tree.stump(),), group_T=np.zeros(1, np.intp)).booster()
        x_BF = np.zeros((1, bare.num_features()), np.float32)
        return np.asarray(bare.inplace_predict(x_BF, predict_type="margin"), np.float32).reshape(self.num_groups)

    def with_trees(self, trees: Sequence[Tree], group_T: NDArray[np.intp]) -> Forest:
        """Return a forest of other trees; what those without a split add, another of the class adds instead."""
        is_split = np.array([len(tree.value_N) > 1 for tree in trees], bool)
        bias_G = np.zeros(self.num_groups)
        np.add.at(bias_G, group_T[~is_split], [float(tree.value_N[0]) for tree in trees if len(tree.value_N) == 1])
        kept = tuple(tree for tree in trees if len(tree.value_N) > 1)
        return replace(self, trees=kept, group_T=group_T[is_split]).shifted(bias_G)

    def with_values(self, values: Sequence[NDArray[np.floating[Any]]]) -> Forest:
        """Return the forest with other values of all leaves, tree by tree."""
        return replace(self, trees=tuple(t.with_values(v) for t, v in zip(self.trees, values, strict=True)))

    def shifted(self, bias_G: NDArray[np.floating[Any]]) -> Forest:
        """Return a forest whose scores before the link are larger: the leaves of one tree of a class are."""
        trees, missing = list(self.trees), []
        for group, bias in enumerate(bias_G):
            first = next(iter(np.flatnonzero(self.group_T == group)), None)
            if first is None:
                missing.append((Tree.stump(float(bias)), group))
            else:
                trees[first] = trees[first].with_values(trees[first].value_N[trees[first].leaves_L] + bias)
        group_T = np.concatenate([self.group_T, [group for _, group in missing]]).astype(np.intp)
        return replace(self, trees=(*trees, *(tree for tree, _ in missing)), group_T=group_T)

    def booster(self) -> xgb.Booster:
        """Put the trees together: round by round one of each class, so that every runtime knows whose a tree is.

        A class that has fewer trees than another gets trees that add nothing.
        """
        by_group = [[self.trees[i] for i in np.flatnonzero(self.group_T == g)] for g in range(self.num_groups)]
        num_rounds = max(1, *(len(trees) for trees in by_group))
        padded = [trees + [Tree.stump()] * (num_rounds - len(trees)) for trees in by_group]
        trees = [tree for one_of_each in zip(*padded, strict=True) for tree in one_of_each]
        document = copy.deepcopy(dict(self.document))
        learner = document["learner"]
        learner["attributes"] = {}
        num_features = int(learner["learner_model_param"]["num_feature"])
        model = learner["gradient_booster"]["model"]
        model["trees"] = [tree.written(number, num_features) for number, tree in enumerate(trees)]
        model["tree_info"] = list(range(self.num_groups)) * num_rounds
        model["iteration_indptr"] = list(range(0, len(trees) + 1, self.num_groups))
        model["gbtree_model_param"] = {"num_parallel_tree": "1", "num_trees": str(len(trees))}
        return xgb.Booster(model_file=bytearray(json.dumps(document).encode()))


def matrix_of(schema: Schema, rows: Rows, label: NDArray[Any] | None = None, threads: int = 0) -> xgb.DMatrix:
    """Return rows as XGBoost takes them, not quantized."""
    return xgb.DMatrix(rows.x_BF, **_told(schema, rows, label, threads))


def quantized(
    schema: Schema, rows: Rows, max_bin: int, threads: int, ref: xgb.DMatrix | None = None
) -> xgb.QuantileDMatrix:
    """Return rows to learn from, or, with the bins of others, to judge by."""
    return xgb.QuantileDMatrix(rows.x_BF, max_bin=max_bin, ref=ref, **_told(schema, rows, None, threads))


def _told(schema: Schema, rows: Rows, label: NDArray[Any] | None, threads: int) -> dict[str, Any]:
    return {
        "label": rows.label_B if label is None else label,
        "weight": rows.weight_B,
        "feature_names": [feature.name for feature in schema.features],
        "feature_types": ["c" if feature.is_categorical else "q" for feature in schema.features],
        "enable_categorical": True,
        "nthread": threads,
    }


def leaf_ids(booster: xgb.Booster, rows: xgb.DMatrix, forest: Forest) -> NDArray[np.int32]:
    """Return the node in which each row ends, shape (rows, trees of the forest).

    Asked of the library, some rounds at a time: it answers in float32, of which all rows and trees may be too many.
    The booster is that of the forest; trees that only fill its rounds are left out.
    """
    num_rounds, per_round = booster.num_boosted_rounds(), forest.num_groups
    step = max(1, LEAF_CELLS // max(1, rows.num_row() * per_round))
    place_T = np.zeros(len(forest.trees), np.intp)  # a booster holds one tree of each class per round
    for group in range(per_round):
        own = np.flatnonzero(forest.group_T == group)
        place_T[own] = np.arange(len(own)) * per_round + group
    found_BT = np.empty((rows.num_row(), len(forest.trees)), np.int32)
    for start in range(0, num_rounds, step):
        stop = min(num_rounds, start + step)
        part = np.asarray(booster[start:stop].predict(rows, pred_leaf=True)).reshape(rows.num_row(), -1)
        is_in = (place_T >= start * per_round) & (place_T < stop * per_round)
        found_BT[:, is_in] = part[:, place_T[is_in] - start * per_round]
    return found_BT


def margins(booster: xgb.Booster, x_BF: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return scores before the link, shape (rows, classes)."""
    found = booster.inplace_predict(x_BF, predict_type="margin", missing=np.nan)
    return np.asarray(found, np.float32).reshape(len(x_BF), -1)
