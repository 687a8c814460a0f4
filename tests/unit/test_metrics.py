"""The metrics agree with scikit-learn, and the interval of a difference holds what it promises."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from infra.errors import InputError
from tasks._metrics import (
    DEFAULT_METRIC,
    Difference,
    SliceScore,
    Task,
    best_threshold,
    calibration_curve,
    check_defined,
    is_higher_better,
    metric_names,
    metrics_of,
    paired_difference,
    row_losses,
    slice_metrics,
)

Array = NDArray[Any]
TASKS: tuple[Task, ...] = ("binary", "multiclass", "regression")


def _rows(task: Task, num_rows: int = 400, seed: int = 0) -> tuple[Array, Array, Array]:
    """Return labels, predictions with ties, and weights."""
    rng = np.random.default_rng(seed)
    weights = rng.exponential(size=num_rows)
    if task == "regression":
        labels = rng.gamma(3.0, size=num_rows) + 0.1
        return labels, np.abs(labels + rng.normal(size=num_rows)), weights
    if task == "binary":
        predictions = np.round(rng.uniform(0.005, 0.995, num_rows), 2)
        return (rng.uniform(size=num_rows) < predictions).astype(np.float32), predictions, weights
    scores = rng.normal(size=(num_rows, 4))
    labels = (scores + rng.gumbel(size=scores.shape)).argmax(axis=1).astype(np.int32)
    return labels, np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True), weights


def _oracle(task: Task, y: Array, p: Array, w: Array | None, threshold: float) -> dict[str, float]:
    """Return what scikit-learn says; it is imported here, as only one of the processes comes here."""
    from sklearn import metrics as oracle  # type: ignore[import-untyped]

    if task == "regression":
        return {
            "rmse": oracle.root_mean_squared_error(y, p, sample_weight=w),
            "mae": oracle.mean_absolute_error(y, p, sample_weight=w),
            "r2": oracle.r2_score(y, p, sample_weight=w),
            "median_absolute_error": oracle.median_absolute_error(y, p, sample_weight=w),
            "mape": oracle.mean_absolute_percentage_error(y, p, sample_weight=w),
            "rmsle": oracle.root_mean_squared_log_error(y, p, sample_weight=w),
        }
    if task == "multiclass":
        chosen = p.argmax(axis=1)
        return {
            "log_loss": oracle.log_loss(y, p, sample_weight=w),
            "accuracy": oracle.accuracy_score(y, chosen, sample_weight=w),
            "f1_macro": oracle.f1_score(y, chosen, sample_weight=w, average="macro"),
            "f1_weighted": oracle.f1_score(y, chosen, sample_weight=w, average="weighted"),
            "auc_ovr_macro": float(
                np.mean([oracle.roc_auc_score(y == code, p[:, code], sample_weight=w) for code in range(p.shape[1])])
            ),
        }
    chosen = (p >= threshold).astype(int)
    return {
        "auc": oracle.roc_auc_score(y, p, sample_weight=w),
        "average_precision": oracle.average_precision_score(y, p, sample_weight=w),
        "log_loss": oracle.log_loss(y, p, sample_weight=w),
        "brier": oracle.brier_score_loss(y, p, sample_weight=w),
        "accuracy": oracle.accuracy_score(y, chosen, sample_weight=w),
        "f1": oracle.f1_score(y, chosen, sample_weight=w),
        "precision": oracle.precision_score(y, chosen, sample_weight=w),
        "recall": oracle.recall_score(y, chosen, sample_weight=w),
    }


@pytest.mark.parametrize("is_weighted", [False, True])
@pytest.mark.parametrize("task", TASKS)
def test_metrics_equal_scikit_learn(task: Task, is_weighted: bool) -> None:
    """Every metric equals scikit-learn's, with ties, with and without weights."""
    labels, predictions, weights = _rows(task)
    given_weights = weights if is_weighted else None

    actual = metrics_of(task, labels, predictions, weights=given_weights, threshold=0.4)
    actual.pop("calibration_error", None)

    assert pytest.approx(_oracle(task, labels, predictions, given_weights, 0.4), abs=1e-12) == actual


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(st.booleans(), st.sampled_from([0.01, 0.2, 0.5, 0.7, 0.99]), st.sampled_from([0.5, 1.0, 3.0])),
        min_size=2,
        max_size=30,
    )
)
def test_binary_metrics_equal_scikit_learn_on_small_tied_rows(rows: list[tuple[bool, float, float]]) -> None:
    """Few rows, heavy ties and uneven weights change nothing about the agreement."""
    labels, predictions, weights = (np.array(column) for column in zip(*rows, strict=True))
    actual = metrics_of("binary", labels, predictions, weights=weights)

    if labels.min() == labels.max():
        assert set(metric_names("binary")) - {"auc", "average_precision"} == set(actual)
        return
    actual.pop("calibration_error")
    with np.errstate(all="ignore"):
        expected = _oracle("binary", labels, predictions, weights, 0.5)
    assert pytest.approx(expected, abs=1e-9) == actual


@pytest.mark.parametrize("task", TASKS)
def test_weights_count_rows(task: Task) -> None:
    """A row of weight 3 is the same as three rows."""
    labels, predictions, _ = _rows(task, 120)
    counts = np.random.default_rng(1).integers(1, 4, 120)
    repeated = np.repeat(np.arange(120), counts)

    assert pytest.approx(metrics_of(task, labels[repeated], predictions[repeated])) == metrics_of(
        task, labels, predictions, weights=counts
    )


def test_undefined_metrics_are_left_out() -> None:
    """One class, a zero, a negative or a constant target leave a metric out; none is NaN."""
    one = np.ones(5)
    negative = metrics_of("regression", np.array([0.0, -1.0, 2.0]), np.array([0.1, -1.0, 2.0]))
    constant = metrics_of("regression", one, np.linspace(0, 1, 5))
    uniform = np.full((5, 3), 1 / 3)

    assert [
        {"log_loss", "brier", "accuracy", "f1", "precision", "recall", "calibration_error"},
        {"rmse", "mae", "r2", "median_absolute_error"},
        {"rmse", "mae", "median_absolute_error", "mape", "rmsle"},
        {"log_loss", "accuracy", "f1_macro", "f1_weighted"},
    ] == [set(found) for found in (metrics_of("binary", one, one * 0.3), negative, constant)] + [
        set(metrics_of("multiclass", one, uniform))
    ]


def test_a_negative_prediction_is_nought_for_rmsle() -> None:
    """RMSLE counts a negative prediction as 0, in the metric as in the losses of rows, and keeps all others."""
    labels, predictions = np.array([0.0, 1.0, 3.0]), np.array([-5.0, -0.1, 2.0])
    clipped = np.array([0.0, 0.0, 2.0])
    losses = row_losses("regression", "rmsle", labels, predictions)

    assert losses is not None
    assert pytest.approx(_oracle("regression", labels, clipped, None, 0.5)["rmsle"]) == math.sqrt(losses.mean())
    assert pytest.approx(math.sqrt(losses.mean())) == metrics_of("regression", labels, predictions)["rmsle"]


@pytest.mark.parametrize(
    ("task", "metric", "labels", "message"),
    [
        (
            "regression",
            "rmsle",
            [1.0, -2.5],
            r"rmsle needs no target below 0, but got .*from -2.5 to 1. .* one of rmse",
        ),
        (
            "regression",
            "mape",
            [0.0, 4.0],
            r"mape needs no target of 0, but got model.metric=\"mape\" with targets from",
        ),
        ("regression", "r2", [4.0, 4.0], r"r2 needs targets that differ, but got .* from 4 to 4. Mend the targets, or"),
        (
            "binary",
            "auc",
            [1, 1],
            r"auc needs rows of both classes, but got .* set model.metric to one of log_loss, brie",
        ),
    ],
)
def test_a_verdict_needs_its_metric(task: Task, metric: str, labels: list[float], message: str) -> None:
    """Rows that do not define the metric of the verdict are refused; with one that they define all is well."""
    values = metrics_of(task, np.array(labels), np.array([0.5, 0.6]))
    with pytest.raises(InputError, match=message):
        check_defined(metric, values, np.array(labels))

    check_defined(next(iter(values)), values, np.array(labels))


def test_calibration_error_is_the_gap_of_miscalibrated_rows() -> None:
    """Predictions that are 0.1 too high everywhere have an error of 0.1; honest ones have next to none."""
    honest = np.repeat(np.arange(0.05, 0.9, 0.05), 2000)
    labels = np.concatenate([np.arange(2000) < round(p * 2000) for p in np.arange(0.05, 0.9, 0.05)])

    assert pytest.approx([0.0, 0.1], abs=1e-9) == [
        metrics_of("binary", labels, shifted)["calibration_error"] for shifted in (honest, honest + 0.1)
    ]


def test_metrics_do_not_depend_on_the_order_of_rows() -> None:
    """Shuffled rows give the same metrics, ties included."""
    labels, predictions, weights = _rows("binary")
    order = np.random.default_rng(3).permutation(len(labels))

    assert pytest.approx(metrics_of("binary", labels, predictions, weights=weights)) == metrics_of(
        "binary", labels[order], predictions[order], weights=weights[order]
    )


def test_names_and_directions() -> None:
    """Every default is a metric of its task, and the losses point down."""
    assert all(DEFAULT_METRIC[task] in metric_names(task) for task in TASKS)
    assert {
        "log_loss",
        "brier",
        "calibration_error",
        "rmse",
        "mae",
        "median_absolute_error",
        "mape",
        "rmsle",
    } == {name for task in TASKS for name in metric_names(task) if not is_higher_better(name)}


@pytest.mark.parametrize("task", TASKS)
def test_row_losses_average_to_the_metric(task: Task) -> None:
    """The mean of row losses gives the metric back, and metrics of whole samples have none."""
    labels, predictions, _ = _rows(task)
    values = metrics_of(task, labels, predictions)
    undo = {"accuracy": lambda x: 1 - x, "rmse": math.sqrt, "rmsle": math.sqrt}
    losses = {name: row_losses(task, name, labels, predictions) for name in metric_names(task)}
    means = {name: undo.get(name, float)(loss.mean()) for name, loss in losses.items() if loss is not None}

    assert pytest.approx({name: values[name] for name in means}) == means
    assert {
        "binary": {"log_loss", "brier", "accuracy"},
        "multiclass": {"log_loss", "accuracy"},
        "regression": {"rmse", "mae", "mape", "rmsle"},
    }[task] == set(means)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 8)), min_size=1, max_size=25))
def test_best_threshold_is_the_best_of_all(rows: list[tuple[bool, int]]) -> None:
    """No threshold on a fine grid has a higher F1 than the one returned."""
    labels = np.array([label for label, _ in rows])
    predictions = np.array([score / 8 for _, score in rows])
    if not labels.any():
        with pytest.raises(InputError, match=r"num_positives=0[.] Validate on more rows"):
            best_threshold(labels, predictions)
        return

    grid = max(metrics_of("binary", labels, predictions, threshold=t)["f1"] for t in np.linspace(0, 1, 81))
    found = metrics_of("binary", labels, predictions, threshold=best_threshold(labels, predictions))["f1"]

    assert pytest.approx(grid) == found


def test_calibration_curve_has_equal_bins() -> None:
    """Bins of the same size carry their mean prediction and their share of positives."""
    predictions = np.repeat([0.1, 0.3, 0.6, 0.9], 10)
    labels = np.concatenate([np.arange(10) < k for k in (1, 2, 7, 10)])

    expected = [(0.1, 0.1, 10), (0.3, 0.2, 10), (0.6, 0.7, 10), (0.9, 1.0, 10)]
    curve = calibration_curve(labels, predictions, num_bins=4)

    assert expected == [(round(p, 9), round(o, 9), n) for p, o, n in curve]


def test_slices_are_scored_apart() -> None:
    """Each slice gets its own metric, the largest first; small ones are left out, one class has no AUC."""
    labels = np.array([0, 1] * 40 + [1] * 60 + [0, 1] * 5)
    predictions = np.array([0.2, 0.8] * 40 + [0.5] * 60 + [0.1, 0.2] * 5)
    slices = np.array(["a"] * 80 + ["b"] * 60 + [None] * 10, dtype=object)

    assert [SliceScore("a", 80, 1.0), SliceScore("b", 60, None)] == slice_metrics(
        "binary", "auc", labels, predictions, slices
    )
    expected = [("0", 80), ("7", 60), ("9", 10)]
    codes = np.repeat([0, 7, 9], [80, 60, 10])
    found = slice_metrics("binary", "brier", labels, predictions, codes, min_rows=10)
    assert expected == [(part.value, part.num_rows) for part in found]


def _equal_models(task: Task, num_rows: int, seed: int) -> tuple[Array, Array, Array]:
    """Return labels and the predictions of two models whose errors have the same distribution."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=num_rows)
    first, second = (truth + 0.7 * rng.normal(size=num_rows) for _ in range(2))
    if task == "regression":
        return truth + rng.normal(size=num_rows), first, second
    labels = (rng.uniform(size=num_rows) < 1 / (1 + np.exp(-truth))).astype(float)
    return labels, 1 / (1 + np.exp(-first)), 1 / (1 + np.exp(-second))


@pytest.mark.parametrize(
    ("task", "metric"),
    [("binary", "auc"), ("binary", "log_loss"), ("binary", "average_precision"), ("regression", "rmse")],
)
def test_interval_covers_zero_as_often_as_it_says(task: Task, metric: str) -> None:
    """Of 160 pairs of equally good models about 95% have zero in their interval.

    160 draws at 95% lie between 144 and 159 with probability above 0.99.
    """
    covered = 0
    for seed in range(160):
        labels, challenger, champion = _equal_models(task, 300, seed)
        found = paired_difference(task, metric, labels, challenger, champion, num_resamples=200, seed=seed)
        covered += found.low <= 0 <= found.high

    assert 144 <= covered <= 159


@pytest.mark.parametrize("task", TASKS)
def test_identical_predictions_differ_by_exactly_nothing(task: Task) -> None:
    """For every metric the interval of a model against its own copy is [0, 0]."""
    labels, predictions, weights = _rows(task)

    for metric in metric_names(task):
        found = paired_difference(
            task, metric, labels, predictions, predictions.copy(), weights=weights, num_resamples=25
        )
        differences = {found.improvement, found.low, found.high, found.resample_sd}
        assert {0.0} == differences, metric


@pytest.mark.parametrize("task", TASKS)
def test_the_better_model_improves_whichever_way_the_metric_points(task: Task) -> None:
    """A positive improvement means a better challenger, in losses as in scores, and points are the metrics."""
    labels, predictions, weights = _rows(task, 2000)
    worse = np.roll(predictions, 1, axis=0)
    better_values, worse_values = (metrics_of(task, labels, p, weights=weights) for p in (predictions, worse))

    for metric in set(metric_names(task)) - {"calibration_error"}:
        found = paired_difference(task, metric, labels, predictions, worse, weights=weights, num_resamples=50)
        assert 0 < found.low < found.improvement < found.high
        assert (metric, better_values[metric], worse_values[metric], 2000, 50) == (
            found.metric,
            found.challenger,
            found.champion,
            found.num_rows,
            found.num_resamples,
        )


def test_interval_is_the_same_for_the_same_seed() -> None:
    """A seed fixes every digit; another seed moves them."""
    labels, challenger, champion = _equal_models("binary", 300, 0)
    first, again, other = (
        paired_difference("binary", "auc", labels, challenger, champion, num_resamples=50, seed=seed)
        for seed in (5, 5, 6)
    )

    assert first == again
    assert (first.improvement, first.low) != (other.improvement, other.low)
    assert first.improvement == other.improvement


def test_interval_agrees_with_delong() -> None:
    """The standard error of an AUC difference agrees with DeLong's (1988), computed from its definition."""
    labels, challenger, champion = _equal_models("binary", 500, 2)
    positive, negative = labels == 1, labels == 0

    def components(p: Array) -> tuple[Array, Array]:
        wins = (p[positive][:, None] > p[negative][None, :]).astype(float)
        return wins.mean(axis=1), wins.mean(axis=0)

    (a10, a01), (b10, b01) = components(challenger), components(champion)
    delong = math.sqrt((a10 - b10).var(ddof=1) / positive.sum() + (a01 - b01).var(ddof=1) / negative.sum())
    found = paired_difference("binary", "auc", labels, challenger, champion, num_resamples=1000)

    assert pytest.approx(delong, rel=0.1) == found.resample_sd
    assert pytest.approx(2 * 1.96 * delong, rel=0.12) == found.high - found.low


def test_many_rows_are_resampled_by_a_subset(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interval from a subset lies around the improvement on all rows and is as wide as that of all rows."""
    labels, challenger, champion = _equal_models("binary", 20_000, 4)
    whole = paired_difference("binary", "auc", labels, challenger, champion, num_resamples=200)
    monkeypatch.setattr("tasks._metrics.MAX_RESAMPLED_ROWS", 5_000)
    part = paired_difference("binary", "auc", labels, challenger, champion, num_resamples=200)

    assert (whole.improvement, whole.challenger, 20_000) == (part.improvement, part.challenger, part.num_rows)
    assert pytest.approx(whole.high - whole.low, rel=0.25) == part.high - part.low
    assert part.low < part.improvement < part.high


def test_thresholds_belong_to_their_models() -> None:
    """Each model is judged at its own threshold."""
    labels, predictions, _ = _rows("binary")
    found = paired_difference("binary", "f1", labels, predictions, predictions, threshold=(0.3, 0.6), num_resamples=20)

    assert (
        metrics_of("binary", labels, predictions, threshold=0.3)["f1"],
        metrics_of("binary", labels, predictions, threshold=0.6)["f1"],
    ) == (found.challenger, found.champion)


def test_a_difference_is_plain_numbers() -> None:
    """Every number of a difference is a Python number, so that it goes into JSON as it is."""
    labels, challenger, champion = _equal_models("binary", 300, 0)
    found = paired_difference("binary", "auc", labels, challenger, champion, num_resamples=20)

    assert {str, float, int} == {type(value) for value in vars(found).values()}
    assert isinstance(found, Difference)


P = np.array([0.2, 0.7, 0.6])
Y = np.array([0, 1, 1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics_of("binary", Y[:0], P[:0]), "at least 1 row, but got num_rows=0. Hold out more rows"),
        (lambda: metrics_of("binary", Y, P[:2]), r"per label, but got shape=\(2,\) for num_rows=3. Predict the same"),
        (lambda: metrics_of("multiclass", Y, P), "one row of class probabilities per label, but got shape"),
        (lambda: metrics_of("binary", Y, P, weights=np.zeros(3)), "not all zero, but got weights that are not"),
        (lambda: metrics_of("binary", Y, P * np.nan), "finite numbers, but got num_not_finite=3. Check the model"),
        (lambda: metrics_of("binary", Y, P * 9), "are probabilities, but got values from 1.8 to 6.3. Apply the sig"),
        (lambda: metrics_of("binary", Y + 1, P), "the codes 0 to 1, but got label=2. Encode the target"),
        (lambda: metrics_of("regression", Y / 0.0 * 0, P), "Targets are finite numbers, but got num_not_finite=3"),
        (lambda: row_losses("binary", "acuracy", Y, P), 'metric="acuracy". Did you mean "accuracy"'),
        (lambda: is_higher_better("gini"), 'A metric is one of .*but got metric="gini"'),
        (lambda: slice_metrics("binary", "auc", Y, P, Y[:1]), "one value per row, but got num_slices=1 for num_rows=3"),
        (lambda: paired_difference("binary", "auc", Y, P, P, confidence=95), "0 and 1, but got confidence=95. Choose"),
        (lambda: paired_difference("binary", "auc", Y, P, P, num_resamples=1), "20 resamples, but got num_resamples=1"),
        (lambda: paired_difference("binary", "auc", Y * 0, P, P), "An interval of auc needs rows.*got num_rows=3 that"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_wrong_rows_are_refused(call: Any, message: str) -> None:
    """Rows that do not fit together are named, with the next step."""
    with pytest.raises(InputError, match=message):
        call()
