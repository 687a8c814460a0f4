"""Find a sample's thresholds over all shards: exact, in two passes, whatever the size of the data.

The first pass counts keys in NUM_CELLS bins (a few KiB per shard), which tells in which bin the threshold lies. The
second collects the keys of that bin alone: of each shard a bounded reservoir of the largest, merged exactly, since the
largest keys of all shards are among the largest of each. The driver so holds about 1 / NUM_CELLS of all keys. Neither
the order of rows nor how they are divided into shards changes anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from infra.errors import InputError
from tasks._sample import MIN_STRATUM_ROWS, SampleRule, hardness
from tasks._split import TRAIN, SplitRule

NUM_CELLS = 4096
MIN_BINS = 64
ABSENT = 0.5
"""Threshold of a stratum without training rows: the validation rows of one are thinned too, for what that matters."""
GUMBEL_RANGE = (-4.0, 40.0)
"""Where -log(-log u) lies for all u of 53 bits."""
NUM_FLOAT_BINS = 2**16

Array = NDArray[np.float64]


@dataclass(frozen=True)
class KeyBins:
    """Equal bins of keys, for each of some strata."""

    low: float
    high: float
    num_strata: int = 1

    @property
    def size(self) -> int:
        """Return the number of bins of a stratum."""
        return max(MIN_BINS, NUM_CELLS // self.num_strata)

    def of(self, keys: Array) -> NDArray[np.intp]:
        """Return each key's bin; those outside of the range are in the first or the last one."""
        place = (keys - self.low) / (self.high - self.low) * self.size
        return np.clip(place, 0, self.size - 1).astype(np.intp)


@dataclass(frozen=True)
class Boundary:
    """In which bin of each stratum the threshold lies."""

    bins: tuple[int, ...]
    """-1: the stratum is taken whole."""
    rooms: tuple[int, ...]
    """How many of that bin's keys are still wanted."""


def key_bins(rule: SampleRule, times: tuple[float, float] = (0.0, 0.0)) -> KeyBins:
    """Return bins for a rule's keys; `times` are the first and last instant of the rows, for a recent sample."""
    if rule.method != "recent":
        return KeyBins(0.0, 1.0, rule.strata.size if rule.strata else 1)
    first, last = (time * np.log(2) / rule.half_life for time in times)
    return KeyBins(float(first + GUMBEL_RANGE[0]), float(last + GUMBEL_RANGE[1]))


def train_keys(shard: pl.DataFrame, split: SplitRule, rule: SampleRule) -> tuple[Array, NDArray[np.intp]]:
    """Return key and stratum of a shard's training rows."""
    rows = shard.filter(pl.Series(split.sides(shard) == TRAIN))
    strata = rule.strata.of(rows) if rule.strata else np.zeros(rows.height, dtype=np.intp)
    return rule.keys(rows), strata


def count_keys(shard: pl.DataFrame, split: SplitRule, rule: SampleRule, bins: KeyBins) -> NDArray[np.int64]:
    """Count a shard's training rows by stratum and bin, shape (strata, bins)."""
    keys, strata = train_keys(shard, split, rule)
    flat = np.bincount(strata * bins.size + bins.of(keys), minlength=bins.num_strata * bins.size)
    return flat.reshape(bins.num_strata, bins.size)


def boundary(counts: NDArray[np.int64], wanted: Sequence[int]) -> Boundary:
    """Return the bin of each stratum that holds the last key which is wanted and the first which is not."""
    places, rooms = [], []
    for row, number in zip(counts, wanted, strict=True):
        above = row[::-1].cumsum()[::-1]  # keys in a bin and all higher ones
        place = int(np.flatnonzero(above > number).max(initial=-1))
        places.append(place)
        rooms.append(int(number - (above[place] - row[place])) if place >= 0 else 0)
    return Boundary(tuple(places), tuple(rooms))


def top_keys(shard: pl.DataFrame, split: SplitRule, rule: SampleRule, bins: KeyBins, at: Boundary) -> tuple[Array, ...]:
    """Return by stratum a shard's largest keys in the bin of the threshold, one more than there is room for."""
    keys, strata = train_keys(shard, split, rule)
    is_there = bins.of(keys) == np.asarray(at.bins)[strata]
    keys, strata = keys[is_there], strata[is_there]
    return tuple(np.sort(keys[strata == s])[::-1][: room + 1] for s, room in enumerate(at.rooms))


def threshold(parts: Sequence[Array], room: int) -> tuple[float, int]:
    """Return the smallest key to take and how many are taken: `room` of the largest, or fewer.

    Rows of equal keys, that is equal rows or a group, are in the sample together or not at all.

    >>> threshold([np.array([0.9, 0.7]), np.array([0.8, 0.7])], room=2)
    (0.8, 2)
    >>> threshold([np.array([0.9, 0.7]), np.array([0.8, 0.7])], room=3)
    (0.8, 2)
    """
    keys = np.sort(np.concatenate(parts))[::-1]
    assert len(keys) > room, "the bin holds a key that is not wanted"
    num = int(np.flatnonzero(keys[:room] > keys[1 : room + 1]).max(initial=-1)) + 1
    return (float(keys[num - 1]), num) if num else (float(np.nextafter(keys[0], np.inf)), 0)


def thresholds(
    counts: NDArray[np.int64], at: Boundary, parts: Sequence[tuple[Array, ...]]
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Return the threshold of each stratum, and the number of its rows in the sample.

    Raises:
        InputError: not even the first rows fit, so many of them are equal or of one group.
    """
    found, sizes = [], []
    for s, (row, place, room) in enumerate(zip(counts, at.bins, at.rooms, strict=True)):
        limit, num = threshold([part[s] for part in parts], room) if place >= 0 else (0.0, 0)
        found.append(limit if row.any() else ABSENT)
        sizes.append(num + int(row[place + 1 :].sum()))
    if not sum(sizes):
        raise InputError(
            "A sample holds at least one group, or one set of equal rows, but got num_rows=0: the first has more rows "
            "than asked for. Raise sampling.rows or sampling.fraction."
        )
    return tuple(found), tuple(sizes)


def allocation(counts: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Return how many rows of each stratum make a sample of `size`: in proportion, rare strata with a minimum.

    The minimum is MIN_STRATUM_ROWS where a stratum has as many, and less where all minima together would be more than
    half of the sample. The fractions that are left go to the largest remainders, ties to the first stratum.

    >>> allocation(np.array([9000, 1900, 100]), 1000).tolist()
    [743, 157, 100]
    """
    num_strata = int(np.count_nonzero(counts))
    floor = np.minimum(counts, min(MIN_STRATUM_ROWS, size // (2 * num_strata)))
    is_floor = np.zeros(len(counts), dtype=np.bool_)
    while True:
        left = size - floor[is_floor].sum()
        shares = np.where(is_floor, floor, left * counts / max(1, counts[~is_floor].sum()))
        below = ~is_floor & (shares < floor)
        if not below.any():
            break
        is_floor |= below
    whole = np.floor(shares + 1e-9).astype(np.int64)
    order = np.argsort(-(shares - whole), kind="stable")
    whole[order[: size - int(whole.sum())]] += 1
    return np.asarray(whole)


def stratum_weights(counts: NDArray[np.int64], sizes: Sequence[int]) -> tuple[float, ...]:
    """Return what a sampled row of each stratum stands for, 1 on average over the sample."""
    taken = np.asarray(sizes)
    share = taken.sum() / counts.sum()
    return tuple(float(w) for w in np.where(taken > 0, counts / np.maximum(1, taken) * share, 1.0))


# --- Values that are summed up without knowing their range ------------------------------------------------------------


@dataclass(frozen=True)
class FloatCounts:
    """How many numbers share their first 16 bits as float32 (8 of exponent, 7 of fraction), and their sums.

    Additive, exact, and within 0.8% of each value whatever the scale: quantiles that depend on no order.
    """

    bins: NDArray[np.int64]
    counts: NDArray[np.int64]
    sums: Array


def count_floats(values: NDArray[np.floating]) -> FloatCounts:
    """Count numbers by their first bits; missing ones do not count."""
    numbers = values[~np.isnan(values)].astype(np.float32)
    bits = numbers.view(np.uint32)
    ordered = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)) >> np.uint32(16)
    bins, inverse, counts = np.unique(ordered, return_inverse=True, return_counts=True)
    sums = np.bincount(inverse, weights=numbers.astype(np.float64), minlength=len(bins)).astype(np.float64)
    return FloatCounts(bins.astype(np.int64), counts, sums)


def add_floats(parts: Sequence[FloatCounts]) -> FloatCounts:
    """Return the counts of all parts together."""
    bins = np.concatenate([part.bins for part in parts])
    counts = np.bincount(bins, np.concatenate([part.counts for part in parts]), NUM_FLOAT_BINS).astype(np.int64)
    sums = np.bincount(bins, np.concatenate([part.sums for part in parts]), NUM_FLOAT_BINS).astype(np.float64)
    filled = np.flatnonzero(counts)
    return FloatCounts(filled, counts[filled], sums[filled])


def quantile_edges(seen: FloatCounts, num_bins: int) -> tuple[float, ...]:
    """Return numbers that cut others into bins of about equally many."""
    reached = seen.counts.cumsum() / max(1, seen.counts.sum())
    inner = [i / num_bins for i in range(1, num_bins)]
    places = np.unique(np.searchsorted(reached, inner)) if len(reached) else np.empty(0, dtype=np.intp)
    ends = (seen.bins[places] + 1 << 16).astype(np.uint32)  # the first number of the next bin
    bits = np.where(ends >> 31, ends & np.uint32(0x7FFFFFFF), ~ends).astype(np.uint32)
    return tuple(float(edge) for edge in bits.view(np.float32))


def loss_scale(seen: FloatCounts, size: int) -> tuple[float, float]:
    """Return the mean loss, and the factor by which hardness gives chances that add up to `size` rows."""
    from scipy.optimize import brentq  # here: who reads a configuration does not wait for it

    num_rows = int(seen.counts.sum())
    assert 0 < size < num_rows, "a sample is smaller than what it is drawn from"
    mean = float(seen.sums.sum() / num_rows)
    hard = hardness(seen.sums / seen.counts, mean)

    def excess(scale: float) -> float:
        return float((seen.counts * np.minimum(1.0, scale * hard)).sum()) - size

    return mean, float(brentq(excess, 0.0, 1.0 / float(hard.min())))
