"""What the workers run: one function per stage that goes file by file, each of one job.

A worker that gets a function imports its module. This one and all that it imports know neither Prefect nor MLflow,
which take 3 s to import and would be loaded by every worker.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import TypeAdapter

from infra.bundle.schema import Schema
from infra.bundle.vocabulary import Vocabulary
from infra.storage import Ref, Store
from tasks._cache import Cache, key_of
from tasks._candidate import BundleRef
from tasks._encode import TIME, Shard, encode_file, load_shard
from tasks._evaluate import score_shard
from tasks._predict import predict_file
from tasks._profile import PROFILE_VERSION, Profile, merge, profile_frame
from tasks._profile_tree import Node
from tasks._readers import read_units
from tasks._sample import SampleRule, pilot_losses
from tasks._snapshot import SourceFile
from tasks._split import TRAIN, SideCounts, SplitRule, count_sides
from tasks._threshold import Boundary, FloatCounts, KeyBins, count_floats, count_keys, top_keys

PROFILES: TypeAdapter[Profile] = TypeAdapter(Profile)
SHARDS: TypeAdapter[Shard] = TypeAdapter(Shard)


def profile_key(unit: SourceFile, time: str | None) -> str:
    """Return the key of a unit's profile."""
    return key_of(unit.key, PROFILE_VERSION, time)


def profile_job(job: tuple[Store, tuple[SourceFile, ...], str | None]) -> None:
    """Profile units that are read in one go, and keep what was found of each under its key."""
    store, units, time = job
    cache = Cache(store, "profiles")
    for unit, frame in zip(units, read_units(units), strict=True):
        cache.keep(profile_key(unit, time), profile_frame(frame, time, unit.key), PROFILES)


def merge_job(job: tuple[Store, Node]) -> None:
    """Merge stored profiles, and keep the result under the key of their node."""
    store, node = job
    cache = Cache(store, "profiles")
    merged = merge([cache.get(key, PROFILES) for key in node.parts])
    names = tuple(dict.fromkeys(map(cache.name, node.parts)))
    cache.keep(node.key, replace(merged, source=node.key, parts=names), PROFILES)


def encode_job(job: tuple[Store, tuple[SourceFile, ...], Schema, Ref, tuple[str, ...]]) -> list[Shard]:
    """Encode units that are read in one go into a shard each, and keep where it is under its key."""
    store, units, schema, content, keys = job
    vocabulary = read_vocabulary(store, content)
    shards = []
    for unit, key, frame in zip(units, keys, read_units(units), strict=True):
        shards.append(encode_file(store, unit, schema, vocabulary, f"shards/{key}.arrow", frame))
        Cache(store, "shards").keep(key, shards[-1], SHARDS)
    return shards


@functools.lru_cache(maxsize=2)
def read_vocabulary(store: Store, content: Ref) -> Vocabulary:
    """Return a stored vocabulary, read once for all units of a run."""
    return Vocabulary.from_json(store.get(content).decode())


def split_job(job: tuple[Store, Shard, SplitRule, int]) -> SideCounts:
    """Count the rows of a shard on each side."""
    store, shard, rule, num_classes = job
    return count_sides(load_shard(store, shard, rule.columns), rule, num_classes)


def time_span_job(job: tuple[Store, Shard, SplitRule]) -> tuple[float, float]:
    """Return the first and the last instant of a shard's training rows; (inf, -inf) where it has none."""
    store, shard, rule = job
    frame = load_shard(store, shard, list({*rule.columns, TIME}))
    times = frame.get_column(TIME).to_numpy()[rule.sides(frame) == TRAIN]
    return float(times.min(initial=np.inf)), float(times.max(initial=-np.inf))


def column_job(job: tuple[Store, Shard, SplitRule, str]) -> FloatCounts:
    """Count the numbers of a column in a shard's training rows."""
    store, shard, rule, column = job
    frame = load_shard(store, shard, list({*rule.columns, column}))
    return count_floats(frame.get_column(column).to_numpy()[rule.sides(frame) == TRAIN].astype(np.float32))


def loss_job(job: tuple[Store, Shard, SplitRule, BundleRef]) -> FloatCounts:
    """Count the losses of a pilot model on a shard's training rows."""
    store, shard, rule, pilot = job
    frame = load_shard(store, shard)
    return count_floats(pilot_losses(store, pilot, frame.filter(pl.Series(rule.sides(frame) == TRAIN))))


def count_keys_job(job: tuple[Store, Shard, SplitRule, SampleRule, KeyBins]) -> NDArray[np.int64]:
    """Count a shard's sampling keys by stratum and bin."""
    store, shard, split, rule, bins = job
    return count_keys(load_shard(store, shard, _columns(split, rule)), split, rule, bins)


def top_keys_job(
    job: tuple[Store, Shard, SplitRule, SampleRule, KeyBins, Boundary],
) -> tuple[NDArray[np.float64], ...]:
    """Return a shard's largest sampling keys in the bin where the threshold lies."""
    store, shard, split, rule, bins, at = job
    return top_keys(load_shard(store, shard, _columns(split, rule)), split, rule, bins, at)


def _columns(split: SplitRule, rule: SampleRule) -> list[str]:
    return list(dict.fromkeys([*split.columns, *rule.columns]))


def score_job(
    job: tuple[Store, BundleRef, Shard, Shard, tuple[SplitRule, ...], list[str], int, float],
) -> Ref | None:
    """Score the held out rows of a shard."""
    return score_shard(*job)


def predict_job(job: tuple[Store, tuple[SourceFile, ...], BundleRef, str, list[str]]) -> list[Ref]:
    """Score units that are read in one go."""
    store, units, bundle, version, names = job
    frames = zip(units, read_units(units), names, strict=True)
    return [predict_file(store, unit, bundle, version, name, rows) for unit, rows, name in frames]
