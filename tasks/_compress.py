"""Make a model smaller, and measure what that costs.

One method so far: a booster cut to its first rounds. What that costs, the validation curve of the first training
phase tells: the shipped booster has learnt from the validation rows, the pilot has not. Where the model was continued,
and the cut is among the rounds that it began with, the validation rows are asked again. A model of another family is
measured, and goes on as it was trained.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from infra.bundle.encoder import matrix
from infra.bundle.model import Bundle
from infra.bundle.predictor import Predictor
from infra.bundle.trees import Trees
from infra.storage import Store
from tasks._candidate import BundleRef, Candidate, load_bundle, store_bundle
from tasks._encode import load_shard

if TYPE_CHECKING:
    from tasks._learning import LearningJob

SHARES = (0.25, 0.5, 0.75)
MAX_TIMINGS, MIN_TIMINGS = 30, 3
TIMING_SECONDS = 1.0
"""What the timings of one variant may take together, unless the fewest take longer."""


class CompressConfig(BaseModel):
    """How much quality a smaller model may cost."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = Field(default=True, description="Off: the model is shipped as it was trained.")
    tolerance: float = Field(
        default=0.002,
        ge=0,
        lt=1,
        description="Largest loss of quality: of metrics such as auc as such, of losses as a share of the candidate's.",
    )
    confidence: float = Field(default=0.95, gt=0.5, lt=1, description="Of each of the two one-sided tests.")
    objective: Literal["latency", "size", "throughput", "balanced"] = Field(
        default="size", description="What the variants are ranked by."
    )
    max_bytes: int | None = Field(default=None, gt=0, description="Largest model that may be shipped.")
    max_p99_ms: float | None = Field(default=None, gt=0, description="Longest time of one row, 99 of 100 times.")
    budget_seconds: float = Field(default=60.0, gt=0, description="How long to look for variants.")
    techniques: list[str] = Field(default=[], description="Which techniques; none named: all.")
    slice_margin: float = Field(
        default=0.1, ge=0, description="No slice may be worse by more than this share of its loss, beyond noise."
    )
    min_slice_rows: int = Field(default=200, ge=2, description="Smaller slices are not guarded.")


@dataclass(frozen=True)
class Measured:
    """What a model takes on this machine."""

    model_bytes: int
    memory_bytes: int
    row_p50_us: float
    row_p99_us: float
    rows_per_second: float
    """At 1,000 rows at a time."""


@dataclass(frozen=True)
class Variant:
    """A compressed form of a candidate, with what was measured."""

    name: str
    technique: str
    family: str
    bundle: BundleRef
    loss: float
    """Of its pilot on the validation rows."""
    value: float
    """The same, in the metric of the verdict."""
    measured: Measured
    refused: str = ""
    """Why it may not be shipped."""


@dataclass(frozen=True)
class Failure:
    """A technique that gave nothing."""

    technique: str
    reason: str


@dataclass(frozen=True)
class Frontier:
    """All variants, the candidate as trained first."""

    variants: tuple[Variant, ...]
    ranking: tuple[int, ...]
    """Which may be shipped, the best first; the candidate itself (0) is last."""
    failures: tuple[Failure, ...] = ()
    machine: str = ""
    seconds: float = 0.0
    broken_budgets: tuple[str, ...] = ()
    """Sentences: budgets that the candidate breaks and no variant saves."""


def frontier(store: Store, job: LearningJob, candidate: Candidate, config: CompressConfig) -> Frontier:
    """Build and measure the variants of a candidate; runs on a worker."""
    start = time.perf_counter()
    whole = load_bundle(store, candidate.bundle)
    predictors = {candidate.num_rounds: whole.predictor}
    bundles = {candidate.num_rounds: candidate.bundle}
    for num_rounds, cut in cuts(store, job, candidate, whole) if config.enabled else ():
        predictors[num_rounds] = cut.predictor
        bundles[num_rounds] = store_bundle(store, cut)
    rows = load_shard(store, job.encoded.shards[0]).head(1000)
    timings = median_seconds(list(predictors.values()), matrix(rows, whole.schema.features))
    variants = tuple(
        Variant(
            name="as trained" if num_rounds == candidate.num_rounds else f"first {num_rounds} rounds",
            technique="" if num_rounds == candidate.num_rounds else "first rounds",
            bundle=bundles[num_rounds],
            family=candidate.family,
            loss=loss_after(store, job, candidate, num_rounds),
            value=0.0,
            measured=Measured(
                predictor.num_bytes, predictor.num_bytes, row_seconds * 1e6, row_seconds * 1e6, 1000 / batch_seconds
            ),
        )
        for (num_rounds, predictor), (row_seconds, batch_seconds) in zip(predictors.items(), timings, strict=True)
    )
    allowed = variants[0].loss + config.tolerance * abs(variants[0].loss)
    variants = tuple(v if v.loss <= allowed else replace(v, refused="outside the tolerance") for v in variants)
    fitting = [i for i, variant in enumerate(variants) if i and not variant.refused]
    ranking = (*sorted(fitting, key=lambda i: variants[i].measured.model_bytes), 0)
    return Frontier(variants, ranking, (), platform.machine(), time.perf_counter() - start, ())


def cuts(store: Store, job: LearningJob, candidate: Candidate, whole: Bundle) -> Iterator[tuple[int, Bundle]]:
    """Give the first rounds of trees as bundles, the fewest first; nothing of a model of another family."""
    if not isinstance(whole.predictor, Trees):
        return
    from tasks._finish import finished
    from tasks._xgboost import load_booster  # who reads a configuration does not wait for xgboost

    pilot = load_booster(store, candidate.pilot)
    lengths = {max(1, round(share * candidate.num_rounds)) for share in SHARES} - {candidate.num_rounds}
    for num_rounds in sorted(lengths):
        cut = replace(whole, predictor=Trees(whole.booster[:num_rounds]))
        yield num_rounds, finished(store, job, cut, Trees(pilot[:num_rounds]))


def loss_after(store: Store, job: LearningJob, candidate: Candidate, num_rounds: int) -> float:
    """Return the loss of the pilot's first rounds on the validation rows, which are asked where it is not known."""
    known = candidate.loss_after(num_rounds)
    if known is not None:
        return known
    from tasks._xgboost import pilot_loss

    return pilot_loss(store, job, candidate.pilot, num_rounds)


def median_seconds(
    predictors: Sequence[Predictor], x_BF: np.ndarray, clock: Callable[[], float] = time.perf_counter
) -> list[tuple[float, float]]:
    """Return by model the median time to score the first row, and all rows, of a matrix of shape (rows, features).

    The models take turns, so that what else the machine does slows all of them alike. There are MAX_TIMINGS turns
    after one that is not counted, or fewer: none begins that would, at the pace so far, end after TIMING_SECONDS per
    model. MIN_TIMINGS there are in any case.
    """

    def once(predictor: Predictor, rows: np.ndarray) -> float:
        start = clock()
        predictor.scores(rows)
        return clock() - start

    turns: list[list[tuple[float, float]]] = []
    start = clock()
    while len(turns) <= MAX_TIMINGS:
        turns.append([(once(predictor, x_BF[:1]), once(predictor, x_BF)) for predictor in predictors])
        pace = (clock() - start) / len(turns)
        if len(turns) > MIN_TIMINGS and pace * (len(turns) + 1) > TIMING_SECONDS * len(predictors):
            break
    return [(float(row), float(batch)) for row, batch in np.median(turns[1:], axis=0)]
