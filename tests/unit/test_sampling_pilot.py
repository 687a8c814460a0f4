"""What workers do for a sample, over shards in a store: pilot models, and the comparison with a second draw."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from infra.bundle.schema import Column, Schema, Task
from infra.progress import listening
from infra.storage import Store
from tasks import _pilot
from tasks._encode import GROUP, ROW, TARGET, Encoded, Shard, row_hash, uniform
from tasks._pilot import FirstRows, Rows, compare, learning_curve, ordered, train_loss_pilot
from tasks._sample import SAMPLE_SALT, LossPilot, Sample, SampleRule, pilot_losses
from tasks._split import HOLDOUT, TRAIN, VALIDATION, SplitRule
from tasks._threshold import add_floats, count_floats, loss_scale

N = 4000
RULE = SplitRule("row", 0.2, 0.15)
LABELS: dict[Task, tuple[str, ...]] = {"binary": ("no", "yes"), "multiclass": ("a", "b", "c"), "regression": ()}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_pilot, "NUM_THREADS", 1)
        yield


def frame(task: Task = "binary") -> pl.DataFrame:
    """Make rows whose target can be learnt in part."""
    rng = np.random.default_rng(0)
    x, code = rng.normal(size=N), rng.integers(-1, 4, N)
    signal = 2 * x + code + rng.normal(size=N)
    targets = {"binary": signal > 2, "multiclass": np.digitize(signal, [0, 3]), "regression": signal}
    return pl.DataFrame(
        {
            "x": pl.Series(x, dtype=pl.Float32),
            "k": pl.Series(code, dtype=pl.Int32),
            TARGET: pl.Series(targets[task], dtype=pl.Float32),
            GROUP: row_hash(pl.DataFrame({"g": rng.integers(0, 300, N)}), ("g",)),
            ROW: row_hash(pl.DataFrame({"i": np.arange(N)}), ("i",)),
        }
    )


def rows_of(
    folder: Path, whole: pl.DataFrame, task: Task = "binary", cuts: Sequence[int] = (900,)
) -> tuple[Store, Rows]:
    """Store rows as shards."""
    store = Store(str(folder / "root"))
    shards = []
    for start, end in pairwise([0, *cuts, whole.height]):
        path = folder / f"{start}.arrow"
        whole[start:end].write_ipc(path)
        shards.append(Shard(store.put_file(f"shards/{start}-{end}", path), end - start, 0, {}, {}))
    columns = (Column("x", "numeric"), Column("k", "categorical"), Column("y", "numeric"))
    schema = Schema(columns, "y", task, LABELS[task])
    vocabulary = store.put("vocabulary.json", b'{"k": ["a", "b", "c"]}')
    return store, Rows(Encoded(schema, vocabulary, tuple(shards), 0), RULE)


def side(whole: pl.DataFrame, wanted: int) -> pl.DataFrame:
    """Return the rows of a side."""
    return whole.filter(pl.Series(RULE.sides(whole) == wanted))


# Reservoirs


def test_a_reservoir_keeps_the_first_rows_whatever_comes_when() -> None:
    """However rows are ordered and divided, those with the smallest hashes are kept, one of each unit if so asked."""
    whole = ordered(frame(), GROUP, 9)
    mixed = whole.sample(fraction=1.0, shuffle=True, seed=1)
    for size, is_unique in ((50, True), (50, False), (10_000, True)):
        once, pieces = FirstRows(size, is_unique), FirstRows(size, is_unique)
        once.add(whole)
        for start in range(0, N, 700):
            pieces.add(mixed[start : start + 700])
        num_units = whole.get_column(GROUP).n_unique()

        assert once.rows.equals(pieces.rows)
        assert (min(size, num_units) if is_unique else size) == once.rows.height


# The learning curve


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_a_learning_curve_falls(tmp_path: Path, task: Task) -> None:
    """Models of more rows are better, each size is reported, and the loss is that of the training."""
    store, given = rows_of(tmp_path, frame(task), task)
    heard: list[dict[str, int]] = []
    with listening(heard.append):
        found = learning_curve(store, given, 2400, 0.02)

    assert {"binary": "logloss", "multiclass": "mlogloss", "regression": "rmse"}[task] == found.loss
    assert (75, 150, 300, 600, 1200) == found.sizes == tuple(event["rows"] for event in heard)
    assert found.losses[0] > found.losses[2] > found.losses[4]


def test_a_learning_curve_does_not_depend_on_the_shards(tmp_path: Path) -> None:
    """The same rows in other shards give the same curve, and rows of the holdout have no say in it."""
    whole = frame()
    is_held = pl.Series(RULE.sides(whole) == HOLDOUT)
    spoilt = whole.with_columns(pl.when(is_held).then(1 - pl.col(TARGET)).otherwise(pl.col(TARGET)).alias(TARGET))
    found = []
    for name, rows, cuts in (("a", whole, (900,)), ("b", spoilt.reverse(), (10, 1100, 3000))):
        (tmp_path / name).mkdir()
        found.append(learning_curve(*rows_of(tmp_path / name, rows, cuts=cuts), 2400, 0.02))

    assert found[0] == found[1]


# Hard rows


def test_hard_rows_are_drawn_more_often_and_weigh_less(tmp_path: Path) -> None:
    """Drawn rows have a larger loss than others, about as many as asked for, and weigh one over their chance."""
    store, given = rows_of(tmp_path, frame())
    train = side(frame(), TRAIN)
    bundle = train_loss_pilot(store, given)
    losses = pilot_losses(store, bundle, train)
    mean, scale = loss_scale(add_floats([count_floats(losses)]), 500)
    rule = SampleRule("hard", pilot=LossPilot(bundle, mean, scale, 500 / train.height))
    (is_in,), weights = rule.draw(store, train)
    assert weights is not None and rule.pilot is not None

    assert abs(int(is_in.sum()) - 500) < 4 * np.sqrt(500)
    assert losses[is_in].mean() > 1.5 * losses.mean()
    np.testing.assert_allclose(weights * rule.pilot.probabilities(store, train), 500 / train.height, rtol=1e-5)
    np.testing.assert_allclose((weights * losses)[is_in].sum() / weights[is_in].sum(), losses.mean(), rtol=0.15)


def test_validation_rows_are_thinned_like_training_rows(tmp_path: Path) -> None:
    """The second phase draws hard validation rows by the same chances, so that its weights are right there too."""
    store, given = rows_of(tmp_path, frame())
    validation = side(frame(), VALIDATION)
    bundle = train_loss_pilot(store, given)
    mean, scale = loss_scale(count_floats(pilot_losses(store, bundle, side(frame(), TRAIN))), 1000)
    rule = SampleRule("hard", pilot=LossPilot(bundle, mean, scale, 1000 / side(frame(), TRAIN).height))
    (is_in,), weights = rule.draw(store, validation)
    assert weights is not None

    np.testing.assert_allclose(weights[is_in].sum() / (rule.pilot.share * validation.height), 1.0, atol=0.15)  # type: ignore[union-attr]


def test_rows_without_a_label_are_not_hard(tmp_path: Path) -> None:
    """A loss needs a label."""
    store, given = rows_of(tmp_path, frame())
    unlabelled = frame().with_columns(pl.lit(float("nan"), dtype=pl.Float32).alias(TARGET))

    assert 0.0 == pilot_losses(store, train_loss_pilot(store, given), unlabelled).max()


# The comparison


@pytest.mark.parametrize("cuts", [(900,), (10, 1100, 3000)])
@pytest.mark.parametrize("method", ["uniform", "group"])
def test_a_fair_sample_is_accepted(tmp_path: Path, method: str, cuts: Sequence[int]) -> None:
    """A draw by hash passes, its training rows are counted, and the shards play no part."""
    store, given = rows_of(tmp_path, frame(), cuts=cuts)
    rule = SampleRule("group" if method == "group" else "uniform", thresholds=(0.7,))
    num_rows, found = compare(store, given, rule)
    (tmp_path / "one").mkdir()
    again = compare(*rows_of(tmp_path / "one", frame(), cuts=()), rule)

    assert int(Sample(rule, 0, 0).chooses(store, side(frame(), TRAIN)).sum()) == num_rows
    assert () == found.problems
    assert (num_rows, found) == again


def test_groups_are_units(tmp_path: Path) -> None:
    """Rows of a group are alike: one of each is compared, so that what a group has in common is no evidence."""
    whole = frame().with_columns((pl.col(GROUP) % 97).cast(pl.Float32).alias("x"))
    store, given = rows_of(tmp_path, whole)
    _, found = compare(store, given, SampleRule("group", thresholds=(0.5,)))

    assert found.num_sampled < 100
    assert () == found.problems


@pytest.mark.parametrize("column", ["x", TARGET])
def test_a_draw_that_prefers_some_rows_is_found(tmp_path: Path, column: str) -> None:
    """If the numbers by which rows are drawn go with what is in them, the sample is refused."""
    position = uniform(frame().get_column(ROW).to_numpy(), SAMPLE_SALT)
    biased = frame().with_columns(pl.Series(column, np.round(position), dtype=pl.Float32))
    _, found = compare(*rows_of(tmp_path, biased), SampleRule(thresholds=(0.7,)))

    assert [True, True] == [f"column={column!r}" in found.problems[0], "an adversary with AUC" in found.problems[-1]]


def test_what_a_design_prefers_is_no_flaw(tmp_path: Path) -> None:
    """A sample that prefers hard rows is compared with another that does so too."""
    store, given = rows_of(tmp_path, frame())
    bundle = train_loss_pilot(store, given)
    mean, scale = loss_scale(count_floats(pilot_losses(store, bundle, side(frame(), TRAIN))), 800)
    rule = SampleRule("hard", pilot=LossPilot(bundle, mean, scale, 0.3))
    num_rows, found = compare(store, given, rule)

    assert () == found.problems
    assert abs(num_rows - 800) < 4 * np.sqrt(800)
    assert found != replace(found, unlike=1.0)
