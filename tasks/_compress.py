"""The compression frontier: forms of a candidate with their size, speed and quality, and which of them may be shipped.

What the validation rows say of a form is measured on its pilot, which has not learnt from them (see
`tasks._techniques.technique`). A form may be shipped if it is within the tolerance there, keeps the budgets, and is
not slower than the candidate. The holdout can be asked for few: first for those from which most can be expected, their
gain in the objective over that of the best sure form, times the chance that it is proven; then for the sure ones. The
candidate itself may always be shipped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from infra.errors import InputError, nearest
from tasks._candidate import BundleRef
from tasks._measure import Measured
from tasks._metrics import is_higher_better

Objective = Literal["size", "latency", "throughput", "balanced"]
SLOWER = 1.25
"""A form that takes this much longer than the candidate is slower; below that it may be noise, or the choice between
two runtimes, which is not exact."""
AS_TRAINED = "as trained"
MAX_TRIES = 4
"""How many variants are held against the holdout at most; alpha is divided by it (Bonferroni)."""
SURE = 0.95
"""Chance to be proven from which a form counts as sure; what loses nothing is."""
LOSS_GATE = 5.0
"""How many times the tolerance a loss that is not the run's metric may grow, as a share of the candidate's."""


class CompressConfig(BaseModel):
    """How much quality a smaller model may cost, and what it is made for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = Field(default=True, description="Off: the model is shipped as it was trained.")
    tolerance: float = Field(
        default=0.002,
        ge=0,
        lt=1,
        description="The most that a smaller model may lose: of a score from 0 to 1 as such (AUC 0.002), of a loss as "
        "a share of the candidate's (0.2% of the RMSE).",
    )
    confidence: float = Field(
        default=0.95, gt=0.5, lt=1, description="Confidence of the proof that no more is lost, and no more gained."
    )
    slice_margin: float = Field(
        default=0.1, ge=0, description="No slice may be worse by more than this share of its loss, beyond noise."
    )
    min_slice_rows: int = Field(default=200, ge=2, description="Smaller slices are not guarded.")
    objective: Objective = Field(
        default="balanced",
        description="What the shipped model is the best in: size of its files, latency of one row, throughput of 1,000 "
        "rows, or balanced, the three multiplied.",
    )
    max_bytes: int | None = Field(default=None, gt=0, description="The most that the files of a model may take.")
    max_p99_ms: float | None = Field(
        default=None, gt=0, description="The longest that one row may take, in 99 of 100 cases."
    )
    budget_seconds: float = Field(
        default=60.0, gt=0, description="How long forms are made, the cheapest first; measuring them comes on top."
    )
    techniques: list[str] = Field(default=[], description="Use these techniques alone; empty: all that apply.")


@dataclass(frozen=True)
class Form:
    """A smaller form of a candidate, made and stored."""

    name: str
    technique: str
    """What made it; nothing for the candidate as it was trained."""
    family: str
    bundle: BundleRef
    loss: float
    """Of its pilot on the validation rows, in the candidate's own loss: log loss or RMSE."""
    value: float
    """The same, in the metric of the verdict."""
    lost: float
    """How much worse that is than the candidate's own."""
    deviation: float
    """The standard error of what is lost, the rows being paired."""
    is_lossless: bool
    """Whether it answers all of these rows as the candidate does."""


@dataclass(frozen=True)
class Variant(Form):
    """A form with what was measured on this machine."""

    measured: Measured
    refused: str = ""
    """Why it may not be shipped."""


@dataclass(frozen=True)
class Failure:
    """A technique that gave no form, or one that can't be used."""

    technique: str
    reason: str


@dataclass(frozen=True)
class Frontier:
    """All variants, the candidate first."""

    variants: tuple[Variant, ...]
    ranking: tuple[int, ...]
    """Those that may be shipped, the best first; the candidate is the last."""
    failures: tuple[Failure, ...] = ()
    machine: str = ""
    """What they were measured on."""
    seconds: float = 0.0
    """What all of it took."""


def margin_of(metric: str, value: float, tolerance: float) -> float:
    """Return how much of a metric may be lost.

    >>> margin_of("auc", 0.8, 0.002), margin_of("rmse", 10.0, 0.002)
    (0.002, 0.02)
    """
    return tolerance if is_higher_better(metric) else tolerance * abs(value)


def frontier_of(
    variants: Sequence[Variant],
    config: CompressConfig,
    metric: str,
    failures: Sequence[Failure] = (),
    machine: str = "",
) -> Frontier:
    """Say which variants may be shipped, and in which order; the first one is the candidate."""
    whole = variants[0]
    judged = [whole, *(replace(v, refused=_fault(v, whole, config, metric)) for v in variants[1:])]
    margin = margin_of(metric, whole.value, config.tolerance)
    fitting = [i for i, variant in enumerate(judged) if i and not variant.refused]
    gains = {i: -math.log(_cost(judged[i].measured, whole.measured, config.objective)) for i in fitting}
    chances = {i: chance_of_proof(judged[i], margin, config.confidence) for i in fitting}
    sure = sorted((i for i in fitting if chances[i] >= SURE), key=lambda i: (-gains[i], i))
    least = gains[sure[0]] if sure else 0.0
    # What is gained beyond what is sure, as often as it can be had.
    doubtful = sorted((i for i in fitting if i not in sure), key=lambda i: (-(gains[i] - least) * chances[i], i))
    worth = [i for i in doubtful if gains[i] > least][: MAX_TRIES - 1]
    return Frontier(tuple(judged), (*worth, *sure, *(i for i in doubtful if i not in worth), 0))


def chance_of_proof(form: Form, margin: float, confidence: float) -> float:
    """Return how likely the holdout will prove that no more than the margin is lost.

    Its estimate will be as far from the truth as that of the validation rows, and has to stay away from the margin by
    what its own interval reaches. (The holdout is larger as a rule, so that this is on the safe side.)

    >>> certain = Form("a", "b", "xgboost", BundleRef(()), 0.3, 0.9, lost=0.0, deviation=0.0, is_lossless=True)
    >>> chance_of_proof(certain, 0.002, 0.95)
    1.0
    >>> round(chance_of_proof(replace(certain, deviation=0.001, is_lossless=False), 0.002, 0.95), 2)
    0.43
    """
    if form.deviation == 0:
        return float(form.lost <= margin)
    normal = NormalDist()
    reach = normal.inv_cdf(1 - (1 - confidence) / MAX_TRIES) * form.deviation
    return normal.cdf((margin - form.lost - reach) / (math.sqrt(2) * form.deviation))


def _fault(variant: Variant, whole: Variant, config: CompressConfig, metric: str) -> str:
    """Return why a variant may not be shipped; nothing if it may."""
    new, old = variant.measured, whole.measured
    margin = margin_of(metric, whole.value, config.tolerance)
    if not variant.lost <= margin:
        lost = f"loses {variant.lost:.2g} \N{PLUS-MINUS SIGN} {variant.deviation:.2g} of {metric}"
        return f"{lost} on the validation rows, more than {margin:.2g}"
    if not variant.loss <= whole.loss * (1 + LOSS_GATE * config.tolerance):
        return f"its loss on the validation rows grows by more than {LOSS_GATE * config.tolerance:.1%}"
    if new.row_p50_us > SLOWER * old.row_p50_us:
        return f"slower: {new.row_p50_us:.3g} \N{MICRO SIGN}s for one row"
    if new.rows_per_second * SLOWER < old.rows_per_second:
        return f"slower: {new.rows_per_second:,.0f} rows a second"
    return "; ".join(broken_budgets(new, config))


def broken_budgets(measured: Measured, config: CompressConfig) -> list[str]:
    """Return in words which budgets a model breaks."""
    broken = []
    if config.max_bytes is not None and measured.model_bytes > config.max_bytes:
        broken.append(
            f"the model takes {measured.model_bytes:,} bytes, above compress.max_bytes = {config.max_bytes:,}"
        )
    if config.max_p99_ms is not None and measured.row_p99_us / 1e3 > config.max_p99_ms:
        p99_ms = measured.row_p99_us / 1e3
        broken.append(f"one row takes {p99_ms:.3g} ms, above compress.max_p99_ms = {config.max_p99_ms:g}")
    return broken


def _cost(new: Measured, old: Measured, objective: Objective) -> float:
    """Return what is to be small: a ratio to the candidate's."""
    size, latency = new.model_bytes / old.model_bytes, new.row_p50_us / old.row_p50_us
    work = old.rows_per_second / new.rows_per_second
    return {"size": size, "latency": latency, "throughput": work, "balanced": size * latency * work}[objective]


def check_techniques(config: CompressConfig) -> None:
    """Raise an InputError that names a technique which does not exist."""
    if not config.techniques:
        return
    from tasks._techniques import technique_keys

    known = technique_keys()
    for name in config.techniques:
        if name not in known:
            raise InputError(
                f"compress.techniques names techniques, but got {name!r}.{nearest(name, known)} "
                f"They are {', '.join(known)}."
            )
