"""Make a model smaller, and measure what that costs.

One method so far: a booster cut to its first rounds, whose loss the validation curve already tells.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from infra.bundle.encoder import matrix
from infra.storage import Store
from tasks._candidate import BundleRef, Candidate, load_bundle, store_bundle
from tasks._encode import load_shard

if TYPE_CHECKING:
    import xgboost as xgb

    from tasks._xgboost import TrainingJob

SHARES = (0.25, 0.5, 0.75)
NUM_TIMINGS = 30


class CompressConfig(BaseModel):
    """How much quality a smaller model may cost."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = Field(default=True, description="Off: the model is shipped as it was trained.")
    tolerance: float = Field(
        default=0.0005, ge=0, lt=1, description="A variant's validation loss may be larger by this share."
    )


@dataclass(frozen=True)
class Variant:
    """A compressed form of a candidate, with what was measured on this machine."""

    name: str
    bundle: BundleRef
    num_rounds: int
    model_bytes: int
    loss: float
    """On the validation rows, in the candidate's own loss."""
    row_microseconds: float
    """Median time to score one row."""
    batch_milliseconds: float
    """Median time to score 1,000 rows."""


@dataclass(frozen=True)
class Frontier:
    """All variants, the candidate first, and the one that is shipped."""

    variants: tuple[Variant, ...]
    chosen: int

    @property
    def shipped(self) -> Variant:
        """Return the smallest variant within the tolerance."""
        return self.variants[self.chosen]


def frontier(store: Store, job: TrainingJob, candidate: Candidate, config: CompressConfig) -> Frontier:
    """Build and measure the variants of a candidate; runs on a worker."""
    from tasks._xgboost import finished  # who reads a configuration does not wait for xgboost

    whole = load_bundle(store, candidate.bundle)
    rows = load_shard(store, job.encoded.shards[0]).head(1000)
    x_BF = matrix(rows, whole.schema.features)
    variants = [_measure("as trained", candidate.bundle, whole.booster, candidate, candidate.num_rounds, x_BF)]
    cuts = sorted({max(1, round(share * candidate.num_rounds)) for share in SHARES} - {candidate.num_rounds})
    for num_rounds in cuts if config.enabled else ():
        booster = whole.booster[:num_rounds]
        ref = store_bundle(store, finished(store, job, replace(whole, booster=booster)))
        variants.append(_measure(f"first {num_rounds} rounds", ref, booster, candidate, num_rounds, x_BF))
    allowed = variants[0].loss + config.tolerance * abs(variants[0].loss)
    fitting = [i for i, variant in enumerate(variants) if variant.loss <= allowed]
    return Frontier(tuple(variants), min(fitting, key=lambda i: variants[i].model_bytes))


def _measure(
    name: str, ref: BundleRef, booster: xgb.Booster, candidate: Candidate, num_rounds: int, x_BF: np.ndarray
) -> Variant:
    return Variant(
        name=name,
        bundle=ref,
        num_rounds=num_rounds,
        model_bytes=len(booster.save_raw("ubj")),
        loss=candidate.validation_curve[num_rounds - 1],
        row_microseconds=_median_seconds(booster, x_BF[:1]) * 1e6,
        batch_milliseconds=_median_seconds(booster, x_BF) * 1e3,
    )


def _median_seconds(booster: xgb.Booster, x_BF: np.ndarray) -> float:
    def once() -> float:
        start = time.perf_counter()
        booster.inplace_predict(x_BF)
        return time.perf_counter() - start

    once()
    return statistics.median(once() for _ in range(NUM_TIMINGS))
