"""What techniques make of boosted trees: how small, from which rows, and always the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import xgboost as xgb
from _small_trees import LABELS, rows_of, uncompressed

from infra.bundle.predictor import Predictor
from infra.bundle.schema import Task
from infra.bundle.trees import Trees
from tasks._techniques import distilled_trees, imitating_trees, leaf_refit, load_technique, small_trees, tree_selection
from tasks._techniques._forest import Forest
from tasks._techniques._refit import mean_loss
from tasks._techniques._students import Shape, hard, rounds_within, student
from tasks._techniques.technique import Built, Rows, Technique, Uncompressed

TASKS: tuple[Task, ...] = ("binary", "multiclass", "regression")
MADE = ("distilled trees", "imitating trees", "leaf refit", "small trees", "tree selection")
OWN = ("imitating trees", "leaf refit", "tree selection")
ROWS = {task: rows_of(task, 500, seed=8) for task in TASKS}


class Constant:
    """A model of another family, which says the same of every row."""

    family = "neural"
    num_bytes = 1

    def scores(self, x_BF: np.ndarray) -> np.ndarray:
        """Return a probability."""
        return np.full(len(x_BF), 0.25, np.float32)


def technique(name: str) -> Technique:
    """Find a technique."""
    return load_technique(name.replace(" ", "_"))


@pytest.fixture(autouse=True)
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mix few rows, and make forms that suit the tests' small models."""
    monkeypatch.setattr(distilled_trees, "SIZES", ((8, 8), (4, 8)))
    monkeypatch.setattr(small_trees, "SIZES", ((8, 8), (4, 8)))
    monkeypatch.setattr(leaf_refit, "DIVISORS", (8, 4))
    monkeypatch.setattr(leaf_refit, "NUM_LEVELS", 3)
    monkeypatch.setattr(tree_selection, "DIVISORS", (8, 4))
    monkeypatch.setattr(distilled_trees, "MOST_COPIES", 1)
    monkeypatch.setattr(distilled_trees, "NUM_FOLDS", 2)
    monkeypatch.setattr(imitating_trees, "SIZES", ((4, 6), (3, 4)))
    monkeypatch.setattr(imitating_trees, "MOST_COPIES", 2)
    monkeypatch.setattr(imitating_trees, "LEAST_LEAVES", 4)


def loss(task: Task, model: Predictor) -> float:
    """Return the loss on rows that nobody has seen."""
    assert isinstance(model, Trees)
    rows = ROWS[task]
    margin = model.booster.inplace_predict(rows.x_BF, predict_type="margin").reshape(len(rows), -1)
    target = np.eye(3)[rows.label_B.astype(int)] if task == "multiclass" else rows.label_B[:, None]
    return mean_loss(task, margin.astype(np.float64), target, np.full(len(rows), 1 / len(rows)))


def raw(model: Predictor) -> bytes:
    """Return a model's bytes."""
    assert isinstance(model, Trees)
    return bytes(model.booster.save_raw("ubj"))


def leaves(model: Predictor) -> int:
    """Count a model's leaves."""
    assert isinstance(model, Trees)
    return Forest.of(model.booster).num_leaves


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("task", TASKS)
def test_forms_are_small_and_know_the_task(name: str, task: Task) -> None:
    """Each form has at most a third of the leaves, knows much more than nothing, and has a name of its own."""
    given = uncompressed(task, 16, is_weighted=True)
    built = list(technique(name).build(given))
    rows = ROWS[task]
    share = np.bincount(rows.label_B.astype(int)) / len(rows) if task != "regression" else np.ones(1)
    nothing = rows.label_B.var() / 2 if task == "regression" else -(share * np.log(share)).sum()

    assert len(built) == len({one.name for one in built}) > 1
    for one in built:
        assert max(leaves(one.pilot), leaves(one.final)) <= leaves(given.final) / 3
        assert max(loss(task, one.pilot), loss(task, one.final)) < 0.95 * nothing
    assert loss(task, built[-1].final) < 0.75 * nothing


@pytest.mark.parametrize("name", MADE)
def test_forms_are_the_same_again(name: str) -> None:
    """The same model and rows give the same bytes."""
    found = [
        [(one.name, raw(one.pilot), raw(one.final)) for one in technique(name).build(uncompressed("binary", 12))]
        for _ in range(2)
    ]

    assert found[0] == found[1]


def other_labels(given: Uncompressed) -> Uncompressed:
    """Turn the labels of the validation rows around."""
    rows = given.validation
    return replace(given, validation=Rows(rows.x_BF, 1 - rows.label_B, rows.weight_B))


@pytest.mark.parametrize("name", ("distilled trees", *OWN))
def test_the_pilots_form_has_not_learnt_from_the_validation_rows(name: str) -> None:
    """With other labels of the validation rows the pilot's form is the same, byte for byte."""
    given = uncompressed("binary", 12)
    found = [[raw(one.pilot) for one in technique(name).build(one)] for one in (given, other_labels(given))]

    assert found[0] == found[1]


def test_a_students_final_form_learns_from_the_validation_rows() -> None:
    """With other labels of the validation rows distilled and small trees are others: these rows are learnt from."""
    given = uncompressed("binary", 12)
    for name in ("distilled trees", "small trees"):
        first, other = (next(iter(technique(name).build(one))) for one in (given, other_labels(given)))

        assert raw(first.final) != raw(other.final)


@pytest.mark.parametrize("name", MADE)
def test_names_and_types_of_features_are_kept(name: str) -> None:
    """A form knows its features by the names that the bundle gives them, and which of them are categories."""
    built = next(iter(technique(name).build(uncompressed("regression", 12))))
    for one in (built.pilot, built.final):
        assert isinstance(one, Trees)
        assert (["n", "m", "city"], ["q", "q", "c"]) == (one.booster.feature_names, one.booster.feature_types)


@pytest.mark.parametrize("name", ("distilled trees", *OWN))
def test_without_time_left_no_form_is_begun(name: str) -> None:
    """After the deadline a technique ends."""
    given = replace(uncompressed("binary", 12), deadline=0.0)

    assert [] == list(technique(name).build(given))


def test_what_is_no_tree_is_only_distilled() -> None:
    """Of another family there is nothing to prune or to refit, but it can teach, and small trees can replace it."""
    network = Constant()
    given = replace(uncompressed("binary", 2), pilot=network, final=network, parameters={}, settings={})  # type: ignore

    assert ["distilled trees", "small trees"] == [name for name in MADE if technique(name).applies_to(given)]


def test_any_family_can_teach(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trees learn from a model of another family: of mixed rows they believe what it says, a probability of 1/4."""
    monkeypatch.setattr(distilled_trees, "SIZES", ((400, 8),))
    monkeypatch.setattr(distilled_trees, "MIXED_WEIGHT", 100.0)
    network = Constant()
    given = replace(uncompressed("binary", 2), pilot=network, final=network, parameters={}, settings={})  # type: ignore
    (one,) = distilled_trees.TECHNIQUE.build(given)

    np.testing.assert_allclose(0.25, one.final.scores(ROWS["binary"].x_BF), atol=0.1)


def test_no_teacher_labels_a_row_that_it_has_learnt_from() -> None:
    """A training row's label comes from the teacher of its fold, who was trained without it."""
    given = uncompressed("binary", 6)
    teachers = distilled_trees.teachers_of(given)
    assert teachers is not None
    said = teachers.unseen(given.train.x_BF)
    flipped = given.train.label_B.copy()
    flipped[teachers.fold_B == 0] = 1 - flipped[teachers.fold_B == 0]
    others = distilled_trees.teachers_of(replace(given, train=replace(given.train, label_B=flipped)))
    assert others is not None
    is_first = teachers.fold_B == 0

    assert np.array_equal(said[is_first], others.unseen(given.train.x_BF)[is_first])
    assert not np.array_equal(said[~is_first], others.unseen(given.train.x_BF)[~is_first])


def test_mixed_rows_have_the_values_of_their_columns() -> None:
    """Every value of a mixed row stood in the same column of some row; most rows are new, and weights add up."""
    rows = rows_of("binary", 200, seed=3, is_weighted=True)
    mixed = distilled_trees.mixed_rows(rows, np.random.default_rng(0), 5)
    assert rows.weight_B is not None
    assert mixed.weight_B is not None
    known = {row.tobytes() for row in rows.x_BF}

    assert [True] * 3 == [set(m[~np.isnan(m)]) <= set(r) for m, r in zip(mixed.x_BF.T, rows.x_BF.T, strict=True)]
    assert sum(row.tobytes() not in known for row in mixed.x_BF) > 0.4 * len(mixed)
    assert pytest.approx(1.5 * rows.weight_B.sum(), rel=1e-5) == mixed.weight_B.sum()


def test_means_of_classes_teach_as_their_labels_do() -> None:
    """On certain means a student of several classes is as good as the library's own training, whose rounds it has."""
    given = uncompressed("multiclass", 2, is_weighted=True)
    shape = Shape(8, 8, 0.4)
    own = student(given, given.train, hard(given, given.train), shape)
    named = given.parameters | shape.settings() | {"nthread": 1}  # type: ignore[operator]
    rows = xgb.DMatrix(
        given.train.x_BF,
        given.train.label_B,
        weight=given.train.weight_B,
        feature_types=["q", "q", "c"],
        enable_categorical=True,
    )

    assert len(LABELS["multiclass"]) * 8 == len(Forest.of(own).trees)
    assert pytest.approx(loss("multiclass", Trees(xgb.train(named, rows, 8))), rel=0.05) == loss(
        "multiclass", Trees(own)
    )


def test_a_budget_of_leaves_is_divided_among_rounds() -> None:
    """Rounds times classes times leaves are the candidate's leaves over the divisor; there is one round at least."""
    given = uncompressed("multiclass", 30)
    num_rounds = rounds_within(given, 2, 8)

    assert num_rounds == round(leaves(given.final) / 2 / 8 / 3) > 1
    assert 1 == rounds_within(given, 1e9, 8)


def test_small_trees_choose_a_rate_by_the_validation_rows() -> None:
    """Of the learning rates and rounds those with the least loss on the validation rows are taken."""
    given = uncompressed("regression", 30)
    built: list[Built] = list(technique("small trees").build(given))
    rows = given.validation
    found = float(np.sqrt(np.mean((built[-1].pilot.scores(rows.x_BF) - rows.label_B) ** 2)))
    num_rounds = rounds_within(given, 4, 8)
    others = [
        student(given, given.train, given.train.label_B[:, None], Shape(num_rounds, 8, rate))
        for rate in (0.1, 0.2, 0.4)
    ]
    losses = [
        min(
            float(np.sqrt(np.mean((o[: k + 1].inplace_predict(rows.x_BF) - rows.label_B) ** 2)))
            for k in range(num_rounds)
        )
        for o in others
    ]

    assert pytest.approx(min(losses), abs=1e-6) == found
    assert max(losses) > 1.02 * found
