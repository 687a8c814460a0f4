"""The rows that a network learns from, in an order that is drawn anew for every epoch.

The order is a function of the seed and the epoch alone, however many members there are: each takes its part of every
batch. Shards are cut into pieces, the pieces are shuffled, consecutive ones make a window that fits into memory, and
the rows of a window are shuffled. Where all rows fit there is one window, which is read once, and the order is a full
shuffle. Otherwise the next window is read while the present one is learnt from; a member copies its own rows alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from infra.bundle.encoder import matrix
from infra.errors import InputError
from infra.storage import Store
from tasks._encode import TARGET, Shard, mapped_shard
from tasks._learning import LearningJob, chosen_rows

PIECES_PER_WINDOW = 16
"""Into at least so many pieces of shards a window's rows are drawn from, where there is more than one window."""
COPY_ROWS = 65_536
"""Rows of a shard that are copied between two looks whether anybody still wants them."""


@dataclass(frozen=True)
class Piece:
    """Some chosen rows of a shard, from `start` to `stop` in their order."""

    shard: int
    start: int
    stop: int

    def __len__(self) -> int:
        """Count the rows."""
        return self.stop - self.start


def cut(sizes: Sequence[int], most: int) -> list[Piece]:
    """Return all rows as pieces of at most so many.

    >>> [len(piece) for piece in cut([5, 2], 3)]
    [3, 2, 2]
    """
    return [
        Piece(shard, start, min(start + most, size))
        for shard, size in enumerate(sizes)
        for start in range(0, size, most)
    ]


@dataclass(frozen=True)
class Order:
    """Which rows come when."""

    sizes: tuple[int, ...]
    """Chosen rows by shard."""
    window_rows: int
    seed: int

    @property
    def num_rows(self) -> int:
        """Count the rows of an epoch."""
        return sum(self.sizes)

    @property
    def is_resident(self) -> bool:
        """Return whether one window holds all rows."""
        return self.num_rows <= self.window_rows

    @property
    def mixing(self) -> float:
        """Return how good the shuffle is: the share of all rows that a row is shuffled among; 1 is a full shuffle.

        With it a batch of b rows, drawn from data in which neighbours are alike, has a mean whose variance is that of
        a full shuffle plus what windows of so many pieces differ by.
        """
        return min(1.0, self.window_rows / max(1, self.num_rows))

    def windows(self, epoch: int) -> list[list[Piece]]:
        """Return the windows of an epoch, each as its pieces."""
        if self.is_resident:
            return [cut(self.sizes, max(1, self.num_rows))]
        pieces = cut(self.sizes, max(1, self.window_rows // PIECES_PER_WINDOW))
        order = np.random.default_rng([self.seed, epoch]).permutation(len(pieces))
        windows: list[list[Piece]] = [[]]
        for piece in (pieces[i] for i in order):
            if windows[-1] and sum(map(len, windows[-1])) + len(piece) > self.window_rows:
                windows.append([])
            windows[-1].append(piece)
        return windows

    def first_pieces(self, num_rows: int) -> list[Piece]:
        """Return the first rows, as they lie in the shards."""
        found: list[Piece] = []
        for piece in cut(self.sizes, num_rows):
            if left := num_rows - sum(map(len, found)):
                found.append(Piece(piece.shard, piece.start, min(piece.stop, piece.start + left)))
        return found

    def shuffled(self, epoch: int, window: int, num_rows: int) -> NDArray[np.int64]:
        """Return the order of a window's rows."""
        return np.random.default_rng([self.seed, epoch, window + 1]).permutation(num_rows)

    def num_batches(self, epoch: int, batch_rows: int) -> int:
        """Count the batches of an epoch."""
        return sum(-(-sum(map(len, window)) // batch_rows) for window in self.windows(epoch))


@dataclass(frozen=True)
class Batch:
    """A member's part of the rows of one step, filled up to the size of all steps with rows that weigh nothing."""

    x_BF: Tensor
    label_B: Tensor
    weight_B: Tensor
    num_rows: int
    """Of the step, in all members; not those that fill it up."""
    epoch: int
    number: int
    """In the epoch, from 0."""
    pieces: Sequence[Piece]
    """Of the window."""
    positions: NDArray[np.int64]
    """Of the rows, in the window; shape (B,)."""


class Rows:
    """The rows of some sides in all shards: where they lie, their labels, and what they weigh (1 on average)."""

    def __init__(
        self,
        store: Store,
        job: LearningJob,
        *sides: int,
        check: Callable[[], None] = lambda: None,
        share: float = 1.0,
    ) -> None:
        """Look which rows of each shard are on these sides; for `share` see `tasks._learning.chosen_rows`."""
        self._store, self._features, self.check = store, job.encoded.schema.features, check
        self.shards: list[Shard] = list(job.encoded.shards)
        self.places: list[NDArray[np.int32]] = []
        labels: list[NDArray[np.float32]] = []
        weights: list[NDArray[np.float32]] = []
        has_weights = False
        for shard in self.shards:
            check()
            with mapped_shard(store, shard) as (frame, let_go):
                rows, weight = chosen_rows(store, job, frame, *sides, share=share)
                self.places.append(rows.astype(np.int32))
                labels.append(frame.get_column(TARGET).to_numpy()[rows].astype(np.float32))
                weights.append(np.ones(len(rows), np.float32) if weight is None else weight[rows])
                has_weights = has_weights or weight is not None
                let_go()
        self.label_R = np.concatenate(labels)
        self.weight_R = np.concatenate(weights)
        if has_weights and len(self.weight_R):
            self.weight_R = self.weight_R / self.weight_R.mean(dtype=np.float64).astype(np.float32)
        self.sizes = tuple(len(rows) for rows in self.places)
        self._starts = np.concatenate([[0], np.cumsum(self.sizes)])

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.label_R)

    @property
    def num_features(self) -> int:
        """Count the columns of the matrix."""
        return len(self._features)

    @cached_property
    def label_moments(self) -> tuple[float, float]:
        """Return mean and deviation of the labels; a deviation of 0 is 1."""
        label_R = self.label_R.astype(np.float64)  # squares of float32 overflow from 1.8e19
        mean = float(np.average(label_R, weights=self.weight_R))
        deviation = float(np.sqrt(np.average((label_R - mean) ** 2, weights=self.weight_R)))
        return mean, deviation or 1.0

    def balance(self, num_classes: int) -> None:
        """Have every class weigh the same."""
        sums = np.bincount(self.label_R.astype(np.int64), self.weight_R, minlength=num_classes)
        factors = sums.sum() / (np.maximum(sums, 1e-12) * np.count_nonzero(sums))
        self.weight_R = (self.weight_R * factors[self.label_R.astype(np.int64)]).astype(np.float32)

    def numbers(self, pieces: Sequence[Piece]) -> NDArray[np.int64]:
        """Return the numbers of the rows of pieces among all rows, in their order."""
        return np.concatenate(
            [np.arange(self._starts[p.shard] + p.start, self._starts[p.shard] + p.stop) for p in pieces]
        ).astype(np.int64)

    def read(self, pieces: Sequence[Piece], positions: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Return rows of pieces, all or those at some positions in their order, shape (rows, features)."""
        num_all = sum(map(len, pieces))
        wanted = np.arange(num_all) if positions is None else positions
        order = np.argsort(wanted, kind="stable")
        ordered = wanted[order]
        found = np.empty((len(wanted), self.num_features), np.float32)
        first = 0
        for piece in pieces:
            low, high = np.searchsorted(ordered, [first, first + len(piece)])
            if high > low:
                rows = self.places[piece.shard][piece.start + ordered[low:high] - first].astype(np.intp)
                with mapped_shard(self._store, self.shards[piece.shard]) as (frame, let_go):
                    for start in range(0, len(rows), COPY_ROWS):
                        self.check()
                        part = rows[start : start + COPY_ROWS]
                        found[order[low + start : low + start + len(part)]] = matrix(frame, self._features, part)
                        let_go()
            first += len(piece)
        return found

    def shards_of(self, pieces: Sequence[Piece], positions: NDArray[np.int64]) -> list[str]:
        """Return the names of the shards' files in which rows of a window lie."""
        ends = np.cumsum([len(piece) for piece in pieces])
        found = {pieces[i].shard for i in np.searchsorted(ends, positions, side="right")}
        return [self.shards[i].file.name for i in sorted(found)]


class Loader:
    """Hands a member its part of every batch.

    `seconds` is how long the training has waited for it.
    """

    def __init__(
        self, rows: Rows, order: Order, batch_rows: int, part: tuple[int, int] = (0, 1), device: str = "cpu"
    ) -> None:
        """Take as many rows a step in all members, of which this one takes part number r of n.

        Raises:
            InputError: a step has more rows than there are.
        """
        if batch_rows > len(rows):
            raise InputError(
                f"A step has at most as many rows as there are, but got train.neural.batch_rows={batch_rows:,} for "
                f"{len(rows):,} training rows. Lower it, or leave it out."
            )
        self.rows, self.order, self.batch_rows, self.device = rows, order, batch_rows, device
        self.rank, self.num_parts = part
        self.seconds = 0.0
        self._resident: Tensor | None = None
        self._ahead: ThreadPoolExecutor | None = None

    @property
    def local_rows(self) -> int:
        """Count the rows of this member in each step."""
        return -(-self.batch_rows // self.num_parts)

    def epoch(self, number: int, first: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, from a certain one."""
        windows = self.order.windows(number)
        counts = [-(-sum(map(len, window)) // self.batch_rows) for window in windows]
        starts = [sum(counts[:i]) for i in range(len(counts))]
        todo = [i for i in range(len(windows)) if starts[i] + counts[i] > first]
        ready: Future[Tensor] | None = None
        for at, index in enumerate(todo):
            pieces = windows[index]
            taken = self._taken(number, index, sum(map(len, pieces)))
            began = time.perf_counter()
            if self.order.is_resident:
                values = self._all(pieces)
            else:
                values = ready.result() if ready is not None else self._read(pieces, taken)
                if at + 1 < len(todo):
                    ahead = windows[todo[at + 1]]
                    wanted = self._taken(number, todo[at + 1], sum(map(len, ahead)))
                    ready = self._pool().submit(self._read, ahead, wanted)
            numbers = self.rows.numbers(pieces)
            size, num_all = self.local_rows, sum(map(len, pieces))
            label_R = torch.from_numpy(self.rows.label_R[numbers][taken.ravel()]).to(self.device)
            weight_R = torch.from_numpy(self._weights(numbers, taken)).to(self.device)
            places = torch.from_numpy(taken).to(self.device)
            source = places if self.order.is_resident else values.split(size)
            labels, weights = label_R.split(size), weight_R.split(size)
            self.seconds += time.perf_counter() - began
            for local in range(max(0, first - starts[index]), counts[index]):
                began = time.perf_counter()
                batch = Batch(
                    values.index_select(0, source[local]) if self.order.is_resident else source[local],
                    labels[local],
                    weights[local],
                    min(self.batch_rows, num_all - local * self.batch_rows),
                    number,
                    starts[index] + local,
                    pieces,
                    taken[local],
                )
                self.seconds += time.perf_counter() - began
                yield batch

    def close(self) -> None:
        """Let go of what is in memory."""
        self._resident = None
        if self._ahead is not None:
            self._ahead.shutdown(cancel_futures=True)

    def _taken(self, epoch: int, window: int, num_rows: int) -> NDArray[np.int64]:
        """Return this member's positions in a window, shape (batches, local rows).

        The last batch is filled up with the first row of its order, again and again.
        """
        order = self.order.shuffled(epoch, window, num_rows)
        num_batches, whole = -(-num_rows // self.batch_rows), self.local_rows * self.num_parts
        padded = np.full(num_batches * self.batch_rows, order[0])
        padded[:num_rows] = order
        by_batch = np.full((num_batches, whole), order[0])
        by_batch[:, : self.batch_rows] = padded.reshape(num_batches, self.batch_rows)
        return by_batch[:, self.rank * self.local_rows : (self.rank + 1) * self.local_rows]

    def _weights(self, numbers: NDArray[np.int64], taken: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the weights of this member's rows of a window; those that fill up weigh nothing."""
        weights = self.rows.weight_R[numbers][taken].copy()
        places = self.rank * self.local_rows + np.arange(self.local_rows)
        weights[:, places >= self.batch_rows] = 0
        left = len(numbers) - (len(taken) - 1) * self.batch_rows
        weights[-1, places >= left] = 0
        return weights.ravel()

    def _all(self, pieces: Sequence[Piece]) -> Tensor:
        if self._resident is None:
            self._resident = torch.from_numpy(self.rows.read(pieces)).to(self.device)
        return self._resident

    def _read(self, pieces: Sequence[Piece], taken: NDArray[np.int64]) -> Tensor:
        values = torch.from_numpy(self.rows.read(pieces, taken.ravel()))
        return values.to(self.device)

    def _pool(self) -> ThreadPoolExecutor:
        if self._ahead is None:
            self._ahead = ThreadPoolExecutor(1, thread_name_prefix="rows-ahead")
        return self._ahead
