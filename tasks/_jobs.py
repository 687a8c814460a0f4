"""What the workers run: one function per stage that goes file by file, each of one job.

A worker that gets a function imports its module. This one and all that it imports know neither Prefect nor MLflow,
which take 3 s to import and would be loaded by every worker.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from infra.bundle.schema import Schema
from infra.bundle.vocabulary import Vocabulary
from infra.storage import Ref, Store
from tasks._cache import Cache, key_of
from tasks._candidate import BundleRef
from tasks._encode import Encoded, Shard, encode_file, load_shard
from tasks._evaluate import score_shard
from tasks._predict import predict_file
from tasks._profile import PROFILE_VERSION, Profile, profile_frame
from tasks._readers import read_file
from tasks._sample import Sample, count_bins
from tasks._snapshot import SourceFile
from tasks._split import SideCounts, SplitRule, count_sides

PROFILES: TypeAdapter[Profile] = TypeAdapter(Profile)
SHARDS: TypeAdapter[Shard] = TypeAdapter(Shard)

Counts = dict[str, NDArray[np.int64]]


def profile_key(file: SourceFile, time: str | None) -> str:
    """Return the key of a file's profile."""
    return key_of(file.key, PROFILE_VERSION, time)


def profile_job(job: tuple[Store, SourceFile, str | None, str]) -> Profile:
    """Profile a file, and keep what was found under its key."""
    store, file, time, key = job
    found = profile_frame(read_file(file), time)
    Cache(store, "profiles").keep(key, found, PROFILES)
    return found


def encode_job(job: tuple[Store, SourceFile, Schema, Ref, str]) -> Shard:
    """Encode a file into its shard, and keep where it is under its key."""
    store, file, schema, content, key = job
    vocabulary = Vocabulary.from_json(store.get(content).decode())
    shard = encode_file(store, file, schema, vocabulary, f"shards/{key}.arrow")
    Cache(store, "shards").keep(key, shard, SHARDS)
    return shard


def split_job(job: tuple[Store, Shard, SplitRule, int]) -> SideCounts:
    """Count the rows of a shard on each side."""
    store, shard, rule, num_classes = job
    return count_sides(load_shard(store, shard, rule.columns), rule, num_classes)


def sample_job(job: tuple[Store, Shard, Encoded, SplitRule, Sample, dict[str, list[float]]]) -> Counts:
    """Count the chosen and the other rows of a shard by bin."""
    store, shard, encoded, rule, chosen, edges = job
    return count_bins(load_shard(store, shard), encoded.schema, rule, chosen, edges)


def score_job(job: tuple[Store, BundleRef, Shard, Shard, tuple[SplitRule, ...], list[str], int]) -> Ref | None:
    """Score the held out rows of a shard."""
    return score_shard(*job)


def predict_job(job: tuple[Store, SourceFile, BundleRef, str, str]) -> Ref:
    """Score a file."""
    return predict_file(*job)
