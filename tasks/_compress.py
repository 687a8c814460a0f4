"""Make a model smaller, and measure what that costs.

One method so far: a booster cut to its first rounds. What that costs, the validation curve of the first training
phase tells: the shipped booster has learnt from the validation rows, the pilot has not. Where the model was continued,
and the cut is among the rounds that it began with, the validation rows are asked again. A model of another family is
measured, and goes on as it was trained.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

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
    """Of the pilot after as many rounds, on the validation rows, in the candidate's own loss."""
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


def frontier(store: Store, job: LearningJob, candidate: Candidate, config: CompressConfig) -> Frontier:
    """Build and measure the variants of a candidate; runs on a worker."""
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
            bundle=bundles[num_rounds],
            num_rounds=num_rounds,
            model_bytes=predictor.num_bytes,
            loss=loss_after(store, job, candidate, num_rounds),
            row_microseconds=row_seconds * 1e6,
            batch_milliseconds=batch_seconds * 1e3,
        )
        for (num_rounds, predictor), (row_seconds, batch_seconds) in zip(predictors.items(), timings, strict=True)
    )
    allowed = variants[0].loss + config.tolerance * abs(variants[0].loss)
    fitting = [i for i, variant in enumerate(variants) if variant.loss <= allowed]
    return Frontier(variants, min(fitting, key=lambda i: variants[i].model_bytes))


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
