"""The rows that a network learns from: each once an epoch, in an order that hangs on seed and epoch alone."""

from __future__ import annotations

import itertools
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from _neural_jobs import job_of, table
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import InputError
from infra.member import Member, StoppedError
from infra.storage import Store
from tasks._encode import TARGET, load_shard
from tasks._neural.job import NeuralJob
from tasks._neural.rows import PIECES_PER_WINDOW, Batch, Loader, Order, Rows, cut
from tasks._sample import Sample, SampleRule
from tasks._split import TRAIN, VALIDATION

QUICK = settings(max_examples=60, deadline=None, derandomize=True)
BATCH_ROWS = 50
WINDOWS = [1 << 40, 150, 40]
"""All rows in one window, several batches in a window, and windows that are smaller than a batch."""
MEMBERS = [1, 2, 3]


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, NeuralJob]:
    """Give a small binary problem in three shards."""
    return job_of(tmp_path_factory.mktemp("rows"), table())


@pytest.fixture(scope="module")
def rows(problem: tuple[Store, NeuralJob]) -> Rows:
    """Give its training rows."""
    return Rows(*problem, TRAIN)


def loader_of(
    rows: Rows, window_rows: int = WINDOWS[0], part: tuple[int, int] = (0, 1), seed: int = 3, batch: int = BATCH_ROWS
) -> Loader:
    """Return the loader of a member."""
    return Loader(rows, Order(rows.sizes, window_rows, seed), batch, part)


def numbers_of(batch: Batch) -> list[int]:
    """Return which rows of the table weigh something in a batch, told by the feature that says so."""
    return batch.x_BF[batch.weight_B > 0, 0].int().tolist()


def epoch_of(loader: Loader, epoch: int = 0, first: int = 0) -> list[list[int]]:
    """Return the rows of an epoch's batches."""
    return [numbers_of(batch) for batch in loader.epoch(epoch, first)]


def side_of(problem: tuple[Store, NeuralJob], *sides: int) -> pl.DataFrame:
    """Return the rows of sides as the rule of the split has them."""
    store, job = problem
    whole = pl.concat([load_shard(store, shard) for shard in job.encoded.shards])
    return whole.filter(np.isin(job.rule.sides(whole), sides))


# Which rows


@pytest.mark.parametrize("sides", [(TRAIN,), (VALIDATION,), (TRAIN, VALIDATION)])
def test_rows_are_those_of_the_sides(problem: tuple[Store, NeuralJob], sides: tuple[int, ...]) -> None:
    """The rows, their features and labels are those of the sides, in the order of the shards, and no other."""
    found = Rows(*problem, *sides)
    expected = side_of(problem, *sides)
    names = [feature.name for feature in problem[1].encoded.schema.features]
    features = expected.select(names).with_columns(pl.col("city").cast(pl.Float32).replace(-1, float("nan")))

    np.testing.assert_array_equal(features.to_numpy(), found.read(cut(found.sizes, 77)))
    assert expected.get_column(TARGET).to_list() == found.label_R.tolist()
    assert len(expected) == len(found)


def test_a_sample_thins_the_rows(problem: tuple[Store, NeuralJob], rows: Rows) -> None:
    """A sample leaves out rows of the training side, and none of the validation side alone."""
    store, job = problem
    thinned = replace(job, sample=Sample(SampleRule(thresholds=(0.5,)), 0, 0))

    assert 0.3 * len(rows) < len(Rows(store, thinned, TRAIN)) < 0.7 * len(rows)
    assert len(Rows(store, job, VALIDATION)) == len(Rows(store, thinned, VALIDATION))


def test_weights_are_one_on_average(tmp_path: Path) -> None:
    """Weights of the data are kept in proportion, with a mean of 1; without any all are 1."""
    problem = job_of(tmp_path, table(), weight="w")
    found = Rows(*problem, TRAIN)
    raw = table().get_column("w").to_numpy()[found.read(cut(found.sizes, 999))[:, 0].astype(int)]

    np.testing.assert_allclose(found.weight_R, raw / raw.mean(), rtol=1e-6)
    assert [1.0] == np.unique(Rows(*job_of(tmp_path / "plain", table()), TRAIN).weight_R).tolist()


def test_balanced_classes_weigh_the_same(tmp_path: Path) -> None:
    """Once balanced, the rows of each class weigh as much as those of any other, and 1 on average."""
    found = Rows(*job_of(tmp_path, table(task="multiclass"), "multiclass"), TRAIN)
    found.balance(3)
    sums = [found.weight_R[found.label_R == label].sum() for label in range(3)]

    np.testing.assert_allclose(sums, [len(found) / 3] * 3, rtol=1e-5)


def test_a_class_without_rows_is_not_balanced(problem: tuple[Store, NeuralJob]) -> None:
    """A class of which there are no rows leaves the mean weight of the others at 1."""
    found = Rows(*problem, TRAIN)
    found.balance(5)

    np.testing.assert_allclose(found.weight_R.mean(), 1, rtol=1e-5)


def test_moments_of_labels_are_weighted(tmp_path: Path, problem: tuple[Store, NeuralJob]) -> None:
    """Mean and deviation of the labels count each row as often as it weighs; equal labels deviate by 1."""
    found = Rows(*job_of(tmp_path, table(task="regression"), "regression", weight="w"), TRAIN)
    repeated = np.repeat(found.label_R.astype(float), np.rint(found.weight_R / found.weight_R.max() * 2).astype(int))
    equal = Rows(*problem, TRAIN)
    equal.label_R = np.full(len(equal), 2.5, np.float32)

    np.testing.assert_allclose(found.label_moments, [repeated.mean(), repeated.std()], rtol=1e-5)
    assert (2.5, 1.0) == equal.label_moments


def test_rows_are_read_at_any_positions(rows: Rows) -> None:
    """Rows at given positions come in the order of the positions, also the same one twice, from any pieces."""
    pieces = [p for i, p in enumerate(cut(rows.sizes, 30)) if i % 3]
    whole = rows.read(pieces)
    positions = np.random.default_rng(0).integers(0, len(whole), 100)

    np.testing.assert_array_equal(whole[positions], rows.read(pieces, positions))
    np.testing.assert_array_equal(whole, rows.read(cut(rows.sizes, 999))[rows.numbers(pieces)])


def test_a_stop_is_heard_while_rows_are_looked_up_and_read(problem: tuple[Store, NeuralJob]) -> None:
    """A member that is asked to stop does so before the next shard is looked at, or rows of it are copied."""
    member = Member.alone()
    found = Rows(*problem, TRAIN, check=member.check)
    member.stop()

    with pytest.raises(StoppedError, match="rank=0"):
        found.read(cut(found.sizes, 999))
    with pytest.raises(StoppedError, match="rank=0"):
        Rows(*problem, TRAIN, check=member.check)


def test_shards_of_rows_are_named(rows: Rows, problem: tuple[Store, NeuralJob]) -> None:
    """The files of rows of a window are named, each once, in their order."""
    (window,) = Order(rows.sizes, WINDOWS[0], 0).windows(0)
    names = [shard.file.name for shard in problem[1].encoded.shards]
    last = rows.sizes[0] - 1

    assert [names[:1], names[:2], names[2:]] == [
        rows.shards_of(window, np.array(positions)) for positions in ([0, last], [last + 1, 0], [len(rows) - 1])
    ]


# Their order

sizes = st.lists(st.integers(0, 60), min_size=1, max_size=6).filter(any)


@QUICK
@given(sizes, st.integers(1, 80))
def test_pieces_are_all_rows_once(sizes: list[int], most: int) -> None:
    """Pieces hold each row of each shard once, in order, none more than the limit, and none is empty."""
    pieces = cut(sizes, most)

    assert [(s, i) for s, size in enumerate(sizes) for i in range(size)] == [
        (piece.shard, i) for piece in pieces for i in range(piece.start, piece.stop)
    ]
    assert all(1 <= len(piece) <= most for piece in pieces)


@QUICK
@given(sizes, st.integers(1, 300), st.integers(0, 5))
def test_windows_are_all_rows_once(sizes: list[int], window_rows: int, epoch: int) -> None:
    """The windows of an epoch hold each row once, none has more rows than it may, and batches are counted right."""
    order = Order(tuple(sizes), window_rows, 0)
    windows = order.windows(epoch)
    found = sorted((p.shard, i) for window in windows for p in window for i in range(p.start, p.stop))

    assert [(s, i) for s, size in enumerate(sizes) for i in range(size)] == found
    assert all(sum(map(len, window)) <= window_rows for window in windows)
    assert order.num_batches(epoch, 7) == sum(-(-sum(map(len, window)) // 7) for window in windows)


@QUICK
@given(sizes, st.integers(1, 400))
def test_first_pieces_are_the_first_rows(sizes: list[int], num_rows: int) -> None:
    """The first pieces are the first rows as they lie in the shards, or all where there are fewer."""
    pieces = Order(tuple(sizes), 10, 0).first_pieces(num_rows)
    whole = [(s, i) for s, size in enumerate(sizes) for i in range(size)]

    assert whole[:num_rows] == [(piece.shard, i) for piece in pieces for i in range(piece.start, piece.stop)]


def test_a_window_draws_from_many_places() -> None:
    """A window of several has rows from so many places that no stretch of neighbours is more than its part."""
    windows = Order((10_000,), 1600, 0).windows(0)

    assert all(len(piece) <= 1600 // PIECES_PER_WINDOW for window in windows for piece in window)
    assert all(len({piece.start for piece in window}) >= PIECES_PER_WINDOW for window in windows[:-1])


def test_mixing_is_the_share_in_a_window() -> None:
    """The shuffle is as good as the share of all rows that is shuffled together, and full where one window has all."""
    assert [1.0, 1.0, 0.25, 1.0] == [
        Order(sizes, rows, 0).mixing for sizes, rows in [((100,), 100), ((100,), 900), ((200, 200), 100), ((0,), 10)]
    ]


# Batches


@pytest.mark.parametrize(("num_members", "window_rows"), [*itertools.product(MEMBERS, WINDOWS)])
def test_each_row_is_seen_once_an_epoch(
    rows: Rows, problem: tuple[Store, NeuralJob], num_members: int, window_rows: int
) -> None:
    """In an epoch all members together see each chosen row once, with the label that belongs to it."""
    batches = [b for i in range(num_members) for b in loader_of(rows, window_rows, (i, num_members)).epoch(1)]
    seen = sorted(
        (n, y) for b in batches for n, y in zip(numbers_of(b), b.label_B[b.weight_B > 0].tolist(), strict=True)
    )
    expected = side_of(problem, TRAIN)

    assert sorted(zip(expected.get_column("row"), expected.get_column(TARGET), strict=True)) == seen


@pytest.mark.parametrize(("num_members", "window_rows"), [*itertools.product([2, 3], WINDOWS)])
def test_members_share_the_batches_of_one(rows: Rows, num_members: int, window_rows: int) -> None:
    """The parts of all members, one after the other, are the batches that a single member has, in the same order."""
    parts = [epoch_of(loader_of(rows, window_rows, (i, num_members))) for i in range(num_members)]

    assert epoch_of(loader_of(rows, window_rows)) == [
        list(itertools.chain(*batch)) for batch in zip(*parts, strict=True)
    ]


@pytest.mark.parametrize("num_members", MEMBERS)
def test_all_steps_have_equally_many_rows(rows: Rows, num_members: int) -> None:
    """Each step of each member has as many rows; those that fill it up weigh nothing, and are not counted."""
    loaders = [loader_of(rows, 150, (i, num_members)) for i in range(num_members)]
    steps = [*zip(*(loader.epoch(0) for loader in loaders), strict=True)]

    assert {-(-BATCH_ROWS // num_members)} == {
        len(x) for s in steps for b in s for x in (b.x_BF, b.label_B, b.weight_B)
    }
    assert [[float(batch.num_rows) for batch in step] for step in steps] == [
        [sum(float(batch.weight_B.sum()) for batch in step)] * num_members for step in steps
    ]


def test_padding_is_a_row_that_is_there(rows: Rows) -> None:
    """What fills a batch up is a row of the same window, so that nothing in it is out of the ordinary."""
    *_, last = loader_of(rows, 150).epoch(0)
    padding = last.x_BF[last.weight_B == 0]

    assert 0 < len(padding)
    assert set(padding[:, 0].int().tolist()) <= set(rows.read(last.pieces)[:, 0].astype(int).tolist())


def test_the_order_hangs_on_seed_and_epoch(rows: Rows) -> None:
    """The same seed and epoch give the same order; another seed or epoch another one."""
    order = epoch_of(loader_of(rows))

    assert order == epoch_of(loader_of(rows))
    assert order != epoch_of(loader_of(rows), epoch=1)
    assert order != epoch_of(loader_of(rows, seed=4))


def test_one_window_is_a_full_shuffle(rows: Rows) -> None:
    """Where one window has all rows, each batch is drawn from all shards about as they are large."""
    starts = np.cumsum([0, *rows.sizes])
    batches = [np.histogram(batch.positions, starts)[0] for batch in loader_of(rows, batch=100).epoch(0)][:-1]

    np.testing.assert_allclose(np.array(batches) / 100, [np.array(rows.sizes) / len(rows)] * len(batches), atol=0.15)


@pytest.mark.parametrize(("first", "window_rows"), [*itertools.product([0, 1, 4, 7, 99], WINDOWS)])
def test_an_epoch_goes_on_where_it_was_left(rows: Rows, first: int, window_rows: int) -> None:
    """Started at any batch, an epoch has the batches that it would have had, with their numbers."""
    whole = [(batch.number, numbers_of(batch)) for batch in loader_of(rows, window_rows).epoch(2)]

    assert whole[first:] == [(b.number, numbers_of(b)) for b in loader_of(rows, window_rows).epoch(2, first)]
    assert list(range(len(whole))) == [number for number, _ in whole]


def test_as_many_batches_as_are_counted(rows: Rows) -> None:
    """An epoch has as many batches as its order counts."""
    for window_rows in WINDOWS:
        loader = loader_of(rows, window_rows)

        assert loader.order.num_batches(0, BATCH_ROWS) == len(epoch_of(loader))


def test_rows_that_fit_are_read_once(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all rows fit they are read in the first epoch alone; otherwise once per window in each."""
    read, calls = rows.read, []
    monkeypatch.setattr(rows, "read", lambda *given: calls.append(given) or read(*given))
    counts = []
    for window_rows in (WINDOWS[0], 150):
        loader = loader_of(rows, window_rows)
        for epoch in range(2):
            epoch_of(loader, epoch)
        counts.append(len(calls))
        calls.clear()

    assert [1, sum(len(Order(rows.sizes, 150, 3).windows(epoch)) for epoch in range(2))] == counts


def test_the_next_window_is_read_while_one_is_learnt_from(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the first batch of a window in hand, the next window is being read by another thread."""
    read, threads = rows.read, []
    monkeypatch.setattr(rows, "read", lambda *given: threads.append(threading.current_thread().name) or read(*given))
    loader = loader_of(rows, 150)
    epoch = loader.epoch(0)
    next(epoch)
    loader.close()

    assert ["MainThread", "rows-ahead_0"] == threads


def test_an_error_of_the_thread_that_reads_ahead_is_raised(problem: tuple[Store, NeuralJob]) -> None:
    """A stop that the reading thread hears ends the training's epoch."""
    member = Member.alone()
    epoch = loader_of(Rows(*problem, TRAIN, check=member.check), 150).epoch(0)
    next(epoch)
    member.stop()

    with pytest.raises(StoppedError, match="rank=0"):
        list(epoch)


def test_a_step_of_more_rows_than_there_are_is_refused(rows: Rows) -> None:
    """A step larger than the data is refused, with both numbers and what to change."""
    with pytest.raises(InputError, match=rf"got train.neural.batch_rows=1,000 for {len(rows)} training rows. Lower"):
        loader_of(rows, batch=1000)


def test_the_time_that_training_waits_is_measured(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loader counts the time in which it is asked for a batch, and not that between two."""
    ticks = itertools.count()
    monkeypatch.setattr("tasks._neural.rows.time.perf_counter", lambda: float(next(ticks)))
    loader = loader_of(rows)
    for _ in loader.epoch(0):
        next(ticks)

    assert 1.0 + loader.order.num_batches(0, BATCH_ROWS) == loader.seconds


def test_whole_batches_are_not_copied_needlessly(rows: Rows) -> None:
    """The batches of a window that was read in its order are parts of one tensor."""
    first, second, *_ = loader_of(rows, 150).epoch(0)

    assert first.x_BF.untyped_storage().data_ptr() == second.x_BF.untyped_storage().data_ptr()
    assert torch.float32 == first.x_BF.dtype == first.label_B.dtype == first.weight_B.dtype
