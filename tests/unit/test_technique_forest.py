"""Trees that are taken apart and put together, their leaves that learn together, and the lasso over subtrees."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import xgboost as xgb
from _small_trees import rows_of, uncompressed
from scipy.sparse import csr_array

from infra.bundle.schema import Task
from infra.bundle.trees import Trees
from tasks._techniques._forest import Forest, Tree, leaf_ids, margins, matrix_of
from tasks._techniques._lasso import Lasso
from tasks._techniques._levels import Aim, pruned_at
from tasks._techniques._refit import mean_loss, probabilities, refitted
from tasks._techniques._rounding import NOISE_SHARE, rounded
from tasks._techniques._students import hard, means

TASKS: tuple[Task, ...] = ("binary", "multiclass", "regression")
X_BF = rows_of("binary", 300, seed=9).x_BF


def booster_of(task: Task, num_rounds: int = 6) -> xgb.Booster:
    """Train a few rounds."""
    final = uncompressed(task, num_rounds).final
    assert isinstance(final, Trees)
    return final.booster


def sums(forest: Forest, leaf_BT: np.ndarray) -> np.ndarray:
    """Add up the leaves of each row by hand, shape (rows, classes)."""
    total_BG = np.tile(forest.intercept_G.astype(np.float64), (len(leaf_BT), 1))
    for number, tree in enumerate(forest.trees):
        total_BG[:, forest.group_T[number]] += tree.value_N[leaf_BT[:, number]]
    return total_BG


@pytest.mark.parametrize("task", TASKS)
def test_put_together_again_trees_answer_as_before(task: Task) -> None:
    """A forest without any change gives the same scores, bit for bit, with categories and missing values."""
    booster = booster_of(task)
    again = Forest.of(booster).booster()

    assert booster.num_boosted_rounds() == again.num_boosted_rounds()
    assert np.array_equal(Trees(booster).scores(X_BF), Trees(again).scores(X_BF))
    assert any(tree.categories for tree in Forest.of(booster).trees)
    assert np.isnan(X_BF).any()


@pytest.mark.parametrize("task", TASKS)
def test_scores_are_the_intercept_and_the_leaves(task: Task) -> None:
    """What is read of a booster explains its scores: intercept, leaf of each row, and class of each tree."""
    given = uncompressed(task, 6)
    booster = booster_of(task)
    forest = Forest.of(booster)
    leaf_BT = leaf_ids(booster, matrix_of(given.schema, given.train), forest)

    np.testing.assert_allclose(sums(forest, leaf_BT), margins(booster, given.train.x_BF), atol=1e-5)


def test_trees_of_one_class_may_be_left_out() -> None:
    """Where classes keep different numbers of trees, each tree still adds to its own class, and leaves are found."""
    given, booster = uncompressed("multiclass", 6), booster_of("multiclass")
    whole = Forest.of(booster)
    kept = [0, 1, 4, 7, 10, 13, 16, 17]  # one of the first class, all of the second, and the last of the third
    some = whole.with_trees([whole.trees[i] for i in kept], whole.group_T[kept])
    rows = matrix_of(given.schema, given.train)
    expected = sums(some, leaf_ids(booster, rows, whole)[:, kept])
    small = some.booster()

    assert [0, 1, 1, 1, 1, 1, 1, 2] == sorted(some.group_T.tolist())
    assert 6 == small.num_boosted_rounds()
    np.testing.assert_allclose(expected, margins(small, given.train.x_BF), atol=1e-5)
    assert np.array_equal(leaf_ids(booster, rows, whole)[:, kept], leaf_ids(small, rows, some))


def test_trees_without_a_split_become_a_bias_of_another() -> None:
    """A tree that answers the same for every row goes, and its answer is added to another tree of its class."""
    whole = Forest.of(booster_of("binary"))
    some = whole.with_trees([Tree.stump(0.25), whole.trees[1], Tree.stump(0.5)], np.zeros(3, np.intp))
    alone = whole.with_trees([whole.trees[1]], np.zeros(1, np.intp))
    none = whole.with_trees([Tree.stump(0.25)], np.zeros(1, np.intp))

    assert (1, 1) == (len(some.trees), len(none.trees))
    np.testing.assert_allclose(margins(alone.booster(), X_BF) + 0.75, margins(some.booster(), X_BF), atol=1e-6)
    np.testing.assert_allclose(np.full((300, 1), whole.intercept_G + 0.25), margins(none.booster(), X_BF), atol=1e-6)


def test_a_pruned_tree_answers_the_value_where_it_was_cut() -> None:
    """Rows that came below a node get the value that it was given, others what they got, and categories stay right."""
    given = uncompressed("regression", 6)
    whole = Forest.of(booster_of("regression"))
    tree = next(tree for tree in whole.trees if any(node > 2 for node in tree.categories))
    alone = whole.with_trees([tree], np.zeros(1, np.intp))
    leaf_B = leaf_ids(alone.booster(), matrix_of(given.schema, given.train), alone)[:, 0]
    root = int(tree.nodes["left_children"][0])
    cut = alone.with_trees([tree.pruned({root: 7.0})], np.zeros(1, np.intp))
    is_below = np.isin(leaf_B, tree.below(root))
    expected = np.where(is_below, 7.0, tree.value_N[leaf_B]) + alone.intercept_G

    assert 0 < is_below.sum() < len(is_below)
    assert len(tree.leaves_L) - len(tree.below(root)) + 1 == cut.num_leaves
    np.testing.assert_allclose(expected, margins(cut.booster(), given.train.x_BF)[:, 0], atol=1e-5)


def test_trees_with_several_values_in_a_leaf_are_refused() -> None:
    """Trees of vectors are not what is worked on here, and the message says how to train others."""
    x_BF, y_BG = np.zeros((9, 1)), np.zeros((9, 2))
    booster = xgb.train({"multi_strategy": "multi_output_tree", "nthread": 1}, xgb.DMatrix(x_BF, y_BG), 1)

    with pytest.raises(ValueError, match="Trees have one value in a leaf, but got size_leaf_vector=2. Train with "):
        Forest.of(booster)


def test_one_refitted_tree_has_the_values_of_ridge_regression() -> None:
    """Squared error of one tree: a leaf moves by the sum of its residuals over its weight and the penalty."""
    given = uncompressed("regression", 1, is_weighted=True)
    assert isinstance(given.pilot, Trees)
    forest, strength = Forest.of(given.pilot.booster), 3.0
    leaf_B = leaf_ids(given.pilot.booster, matrix_of(given.schema, given.train), forest)
    target_BG, weight_B = hard(given, given.train), given.train.weight_B
    assert weight_B is not None
    found = refitted("regression", forest, leaf_B, target_BG, weight_B, strength=strength, num_steps=200)
    (tree,) = forest.trees
    residual_B = (target_BG - margins(given.pilot.booster, given.train.x_BF))[:, 0]
    num_nodes = len(tree.value_N)
    total_N, count_N = (np.bincount(leaf_B[:, 0], w, num_nodes) for w in (weight_B * residual_B, weight_B))
    expected = tree.value_N + total_N / (count_N + strength)

    np.testing.assert_allclose(expected[tree.leaves_L], found.trees[0].value_N[tree.leaves_L], atol=1e-4)


@pytest.mark.parametrize("task", TASKS)
def test_leaves_that_learn_together_lose_less(task: Task) -> None:
    """Refitted to labels, the trees have less loss on these rows than before, and without penalty even less."""
    given = uncompressed(task, 5)
    assert isinstance(given.pilot, Trees)
    booster, target_BG = given.pilot.booster, hard(given, given.train)
    forest = Forest.of(booster)
    leaf_BT = leaf_ids(booster, matrix_of(given.schema, given.train), forest)
    share_B = np.full(len(target_BG), 1 / len(target_BG))

    def loss(one: Forest) -> float:
        return mean_loss(task, margins(one.booster(), given.train.x_BF).astype(np.float64), target_BG, share_B)

    penalized, free = (refitted(task, forest, leaf_BT, target_BG, None, strength=s) for s in (30.0, 0.1))

    assert loss(free) < loss(penalized) < loss(forest)
    mean_BG = probabilities(task, margins(booster, given.train.x_BF))
    np.testing.assert_allclose(means(given.pilot, given.train.x_BF), mean_BG, atol=1e-6)


def test_the_lasso_shrinks_what_is_orthogonal_by_the_penalty() -> None:
    """Columns that do not meet get their own least-squares weight, less the penalty times cost, but never below 0."""
    x_BC = np.array([[1, 0, 0], [-1, 0, 0], [0, 2, 0], [0, -2, 0], [0, 0, 1], [0, 0, -1]], np.float32)
    z_B = np.array([3, -3, 2, -2, -1, 1], np.float64)
    lasso = Lasso(csr_array(x_BC), z_B, np.ones(6), np.array([1.0, 2.0, 1.0]))
    square_C, toward_C = np.array([1 / 3, 4 / 3, 1 / 3]), np.array([1.0, 4 / 3, -1 / 3])

    expected_C = np.maximum(0, (toward_C - 0.25 * np.array([1, 2, 1])) / square_C)

    np.testing.assert_allclose(expected_C, lasso.weights(0.25, np.zeros(3), 500), atol=1e-4)
    np.testing.assert_allclose([3, 0, 0], lasso.within(2.0), atol=1e-3)
    np.testing.assert_allclose([3, 1, 0], lasso.within(3.0), atol=1e-3)


def test_blocks_and_products_give_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether products of columns are computed once, in blocks, or anew at each step, the weights are the same."""
    rng = np.random.default_rng(0)
    x_BC, z_B, curve_B = csr_array(rng.normal(size=(90, 6))), rng.normal(size=90), rng.uniform(1, 2, 90)
    found = []
    for most, cells in ((100, 10_000), (100, 60), (0, 1)):
        monkeypatch.setattr("tasks._techniques._lasso.MOST_SQUARED", most)
        monkeypatch.setattr("tasks._techniques._lasso.BLOCK_CELLS", cells)
        found.append(Lasso(x_BC, z_B, curve_B, np.ones(6)).weights(0.01, np.zeros(6), 300))

    assert found[0].any()
    np.testing.assert_allclose([found[0]] * 3, found, atol=1e-4)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("level", [0, 1, 2])
def test_pruned_at_a_level_trees_keep_to_the_budget(task: Task, level: int) -> None:
    """At most the leaves of the budget are left, with the same mean score, and a generous budget cuts nothing."""
    given = uncompressed(task, 8)
    assert isinstance(given.pilot, Trees)
    booster = given.pilot.booster
    forest, aim = Forest.of(booster), Aim.of(given, booster, given.train, 8)
    half, whole = (pruned_at(forest, level, aim, share * forest.num_leaves) for share in (0.6, 2.0))
    before, after = (np.average(margins(f.booster(), given.train.x_BF), axis=0) for f in (forest, half))

    assert 0.3 * forest.num_leaves < half.num_leaves <= 0.6 * forest.num_leaves
    assert whole.num_leaves >= 0.95 * forest.num_leaves
    np.testing.assert_allclose(margins(booster, X_BF), margins(whole.booster(), X_BF), atol=0.1)
    np.testing.assert_allclose(before, after, atol=0.15)


def test_rounded_leaves_are_few_and_hardly_move_a_score() -> None:
    """Leaves become multiples of one power of 2, and scores move by about as much as was asked for."""
    booster = booster_of("regression", 20)
    forest, before_BG = Forest.of(booster), margins(booster, X_BF)
    small = rounded(forest, before_BG)
    values = [np.concatenate([t.value_N[t.leaves_L] for t in f.trees]) for f in (forest, small)]
    step = 2.0 ** np.floor(np.log2(NOISE_SHARE * before_BG.std() * np.sqrt(12 / 20)))
    moved = margins(small.booster(), X_BF) - before_BG

    assert np.array_equal(np.round(values[1] / step) * step, values[1])
    assert 0.6 * len(np.unique(values[0])) > len(np.unique(values[1]))
    assert 0 < moved.std() < 1.5 * NOISE_SHARE * before_BG.std()
    assert replace(forest) == rounded(forest, np.zeros((3, 1)))
