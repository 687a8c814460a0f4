"""Choose among candidates of several families: the one that does best on validation rows, from which none has learnt.

What is compared are the pilots of the trainings' first phases; what goes on is the model of the last one. On request
their weighted mean is tried too, and goes on where it is clearly better than the best of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.bundle.blend import Blend
from infra.bundle.model import Bundle
from infra.bundle.network import GRAPH_SUFFIX, WEIGHTS_SUFFIX, Network
from infra.bundle.predictor import Predictor
from infra.bundle.trees import Trees, read_booster
from infra.storage import Ref, Store
from tasks._candidate import Candidate, load_bundle, store_bundle
from tasks._finish import finished, job_vocabulary, validation_scores
from tasks._learning import LearningJob
from tasks._metrics import row_losses
from tasks._sample import ROW_LOSS

CLEARLY = 1.645
"""So many standard errors better must the mean of several be: 95% of a one-sided test."""
GREEDY_STEPS = 20
BLEND = "blend"


@dataclass(frozen=True)
class Contender:
    """A candidate beside the others."""

    candidate: Candidate
    loss: float
    """Of its pilot on the validation rows: log loss or RMSE."""
    behind: float
    """By how much the mean loss of a row is larger than that of the best, log loss or squared error."""
    deviation: float
    """The standard error of that difference, the rows being paired."""
    weight: float | None = None
    """In the mean of several, where that goes on."""

    @property
    def is_close(self) -> bool:
        """Return whether the difference may be chance."""
        return self.behind <= CLEARLY * self.deviation


@dataclass(frozen=True)
class Choice:
    """All candidates, in the order of their families, and the one that goes on."""

    contenders: tuple[Contender, ...]
    candidate: Candidate
    note: str

    @property
    def sentence(self) -> str:
        """Return who goes on and why, for people; nothing where there was no choice."""
        if len(self.contenders) < 2:
            return self.note
        best = min(self.contenders, key=lambda contender: contender.loss)
        losses = ", ".join(f"{c.candidate.family} {c.loss:.5g}" for c in self.contenders)
        others = [c for c in self.contenders if c is not best]
        how = "within noise of the others" if all(c.is_close for c in others) else "clearly the least"
        name = best.candidate.family
        return f"Validation {best.candidate.loss}: {losses}. {name} is {how}.{f' {self.note}' if self.note else ''}"


def sole(candidate: Candidate) -> Choice:
    """Return the choice where there is none."""
    loss = candidate.loss_after(candidate.num_rounds)
    assert loss is not None, "the last round was measured"
    return Choice((Contender(candidate, loss, 0.0, 0.0),), candidate, "")


def choose(store: Store, job: LearningJob, candidates: Sequence[Candidate], with_blend: bool = False) -> Choice:
    """Return the candidates' losses, and the one that goes on; runs on a worker."""
    pilots = [pilot_of(store, candidate.pilot) for candidate in candidates]
    labels, scores, weights = _scored(store, job, candidates, pilots)
    losses = [_row_losses(job, labels, score) for score in scores]
    means = [float(np.average(loss, weights=weights)) for loss in losses]
    best = int(np.argmin(means))
    contenders = [
        Contender(candidate, _shown(job, mean), *paired(loss, losses[best], weights))
        for candidate, mean, loss in zip(candidates, means, losses, strict=True)
    ]
    if not with_blend:
        return Choice(tuple(contenders), candidates[best], "")
    shares = greedy(lambda mixed: float(np.average(_row_losses(job, labels, mixed), weights=weights)), scores)
    gain, deviation = _honest_gain(job, labels, scores, weights, best)
    if gain <= CLEARLY * deviation or max(shares) == 1:
        why = f"gains {gain:.3g} ± {deviation:.3g} a row, too little to be sure of"
        return Choice(tuple(contenders), candidates[best], f"Their weighted mean {why}.")
    blended = blend_of(store, job, candidates, pilots, shares, _mixed(scores, shares), labels, weights)
    named = ", ".join(f"{share:.0%} {c.family}" for share, c in zip(shares, candidates, strict=True))
    weighed = tuple(replace(c, weight=share) for c, share in zip(contenders, shares, strict=True))
    return Choice(
        weighed, blended, f"Their weighted mean ({named}) goes on: {gain:.3g} ± {deviation:.3g} a row better."
    )


def pilot_of(store: Store, pilot: Ref) -> Predictor:
    """Read a model of a first phase from the store, a network with its weights."""
    if pilot.name.endswith(GRAPH_SUFFIX):
        weights = f"{pilot.name.removesuffix(GRAPH_SUFFIX)}{WEIGHTS_SUFFIX}"
        return Network(store.get(pilot), store.get(weights) if store.exists(weights) else None)
    return Trees(read_booster(store.local(pilot)))


def _scored(
    store: Store, job: LearningJob, candidates: Sequence[Candidate], pilots: Sequence[Predictor]
) -> tuple[NDArray[Any], list[NDArray[np.float32]], NDArray[Any] | None]:
    """Return labels, each pilot's scores and weights of the validation rows."""
    found = []
    labels: NDArray[Any] = np.empty(0)
    weights: NDArray[Any] | None = None
    for candidate, pilot in zip(candidates, pilots, strict=True):
        bundle = replace(load_bundle(store, candidate.bundle), predictor=pilot)
        labels, scores, weights = validation_scores(store, job, bundle)
        found.append(scores)
    return labels, found, weights


def _row_losses(job: LearningJob, labels: NDArray[Any], scores: NDArray[Any]) -> NDArray[np.float64]:
    task = job.encoded.schema.task
    known = labels if task == "regression" else labels.astype(np.int64)
    found = row_losses(task, ROW_LOSS[task], known, scores)
    assert found is not None, "these metrics are means over rows"
    return found


def _shown(job: LearningJob, mean: float) -> float:
    return mean**0.5 if job.encoded.schema.task == "regression" else mean


def paired(
    loss: NDArray[np.float64], reference: NDArray[np.float64], weights: NDArray[Any] | None
) -> tuple[float, float]:
    """Return the mean of the differences of two models' losses, and its standard error.

    >>> paired(np.array([1.0, 3.0]), np.array([1.0, 1.0]), None)
    (1.0, 1.0)
    """
    difference = loss - reference
    mass = np.ones(len(loss)) if weights is None else weights
    mean = float(np.average(difference, weights=mass))
    squares = float((mass**2 * (difference - mean) ** 2).sum())
    freedom = len(loss) / max(1, len(loss) - 1)
    return mean, float(np.sqrt(squares * freedom) / mass.sum())


def greedy(loss_of: Any, scores: Sequence[NDArray[np.float32]]) -> list[float]:
    """Return the shares of models in the mean that has the least loss.

    Models are added one at a time, with replacement, each the one that helps most (Caruana, Niculescu-Mizil, Crew and
    Ksikes 2004, section 2).

    >>> greedy(lambda mean: abs(float(mean[0]) - 0.25), [np.array([0.0]), np.array([1.0])])
    [0.75, 0.25]
    """
    counts = [0] * len(scores)
    best_counts, best = counts, np.inf
    total = np.zeros_like(scores[0], dtype=np.float64)
    for step in range(1, GREEDY_STEPS + 1):
        found = [loss_of((total + score) / step) for score in scores]
        chosen = int(np.argmin(found))
        total, counts = total + scores[chosen], [n + (i == chosen) for i, n in enumerate(counts)]
        if found[chosen] < best:
            best_counts, best = counts, found[chosen]
    return [count / sum(best_counts) for count in best_counts]


def _honest_gain(
    job: LearningJob,
    labels: NDArray[Any],
    scores: Sequence[NDArray[np.float32]],
    weights: NDArray[Any] | None,
    best: int,
) -> tuple[float, float]:
    """Return by how much a mean is better than the best model, on rows that have not chosen its shares.

    Two halves of the rows choose shares for one another.
    """
    is_even = np.arange(len(labels)) % 2 == 0
    mixed = np.zeros_like(scores[0], dtype=np.float64)
    for half in (is_even, ~is_even):
        mass = None if weights is None else weights[half]
        shares = greedy(
            lambda mean, half=half, mass=mass: float(np.average(_row_losses(job, labels[half], mean), weights=mass)),
            [score[half] for score in scores],
        )
        mixed[~half] = _mixed([score[~half] for score in scores], shares)
    gain, deviation = paired(_row_losses(job, labels, scores[best]), _row_losses(job, labels, mixed), weights)
    return gain, deviation


def _mixed(scores: Sequence[NDArray[np.float32]], shares: Sequence[float]) -> NDArray[np.float64]:
    found = np.zeros_like(scores[0], dtype=np.float64)
    for score, share in zip(scores, shares, strict=True):
        found += share * score
    return found


def blend_of(
    store: Store,
    job: LearningJob,
    candidates: Sequence[Candidate],
    pilots: Sequence[Predictor],
    shares: Sequence[float],
    mixed: NDArray[np.float64],
    labels: NDArray[Any],
    weights: NDArray[Any] | None,
) -> Candidate:
    """Put the weighted mean of candidates into the store, as a candidate of its own."""
    used = [i for i, share in enumerate(shares) if share > 0]
    bundles = [load_bundle(store, candidates[i].bundle) for i in used]
    whole = Blend(tuple((shares[i], bundle.predictor) for i, bundle in zip(used, bundles, strict=True)))
    pilot = Blend(tuple((shares[i], pilots[i]) for i in used))
    bundle = Bundle(
        job.encoded.schema,
        job_vocabulary(store, job),
        whole,
        facts=bundles[0].facts,
        has_spread=any(bundle.has_spread for bundle in bundles),
    )
    loss = _shown(job, float(np.average(_row_losses(job, labels, mixed), weights=weights)))
    first = candidates[used[0]]
    return replace(
        first,
        family=BLEND,
        bundle=store_bundle(store, finished(store, job, bundle, pilot)),
        num_rounds=1,
        max_rounds=1,
        train_curve=(),
        validation_curve=(loss,),
        importance={},
        parameters={f"share_{candidates[i].family}": shares[i] for i in used},
        settings={},
        base=None,
        base_loss=None,
        refit_of=None,
        pilots=tuple((shares[i], candidates[i].pilot) for i in used),
    )
