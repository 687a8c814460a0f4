"""Where smaller forms of a candidate are made: a process of its own, in which techniques work one after another.

What a technique does to its process costs its own forms and no more: it is killed when the time is up, and if it dies,
another one goes on with the next technique. What is made is checked and put into the store at once.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from infra.bundle.blend import Blend
from infra.bundle.encoder import matrix
from infra.bundle.model import Bundle
from infra.bundle.predictor import Predictor
from infra.child import ChildLostError, run_in_child
from infra.errors import RunError
from infra.progress import listening, report_progress
from infra.storage import Store
from tasks._cache import Cache, code_version, key_of
from tasks._candidate import BUNDLE_CODE, BundleRef, Candidate, copy_bundle, load_bundle, store_bundle
from tasks._certify import Pair
from tasks._choose import pilot_of
from tasks._compress import AS_TRAINED, CompressConfig, Failure, Form, Frontier, Variant, frontier_of
from tasks._encode import TARGET, load_shard
from tasks._finish import golden_rows, judged_by
from tasks._gaps import CHECKED_ROWS, with_gaps
from tasks._learning import LearningJob, chosen_rows, data_key
from tasks._measure import BATCH_ROWS, SERVING_THREADS, Measured, measure
from tasks._metrics import is_higher_better, row_losses
from tasks._runtimes import packaged
from tasks._sample import ROW_LOSS
from tasks._split import TRAIN, VALIDATION
from tasks._techniques import load_technique, module_of, technique_keys, technique_modules

if TYPE_CHECKING:
    from tasks._techniques.technique import Built, Rows, Technique, Uncompressed

MAX_ROWS = 200_000
MAX_VALUES = 64 << 20
"""Of both sides together, a quarter of a GB of float32: of more rows, as many as that are taken, evenly."""
ALONE_ROWS = 50
"""So many rows are scored one by one as well: an answer must not depend on the rows beside it."""
GAPS_FACTOR, GAPS_FLOOR = 5.0, 0.02
"""How many times the mean difference of usual rows it may be where values are missing, unknown or far out; and, on top,
how many deviations of the scores."""
SAME = 1e-5
"""Largest difference of two answers that count as the same, over the largest answer where that is above 1."""
LOSSLESS = 1e-6
"""The same of two runtimes of one model."""
FORMS: TypeAdapter[list[Form]] = TypeAdapter(list[Form])
SHARED_CODE = (
    *(
        f"tasks.{name}"
        for name in ("_candidate", "_certify", "_choose", "_finish", "_gaps", "_learning", "_onnx_trees")
    ),
    *("tasks._runtimes", "tasks._workshop"),
)


@dataclass(frozen=True)
class Order:
    """What the workshop is asked for."""

    store: Store
    job: LearningJob
    candidate: Candidate
    metric: str
    techniques: tuple[str, ...]
    threads: int
    seconds: float
    deadline: float = float("inf")
    """In seconds of `time.monotonic`."""

    def key(self, technique: str) -> str:
        """Return what the forms of a technique depend on, time apart."""
        # All modules of techniques, as they share some.
        code = code_version([*SHARED_CODE, *technique_modules(), *BUNDLE_CODE], ["xgboost", "onnxruntime", "scipy"])
        candidate, job = self.candidate, self.job
        models = [candidate.bundle.digest, candidate.pilot, list(candidate.pilots), candidate.num_rounds]
        settings = [candidate.settings, candidate.parameters, job.seed, self.metric, self.seconds]
        return key_of(code, technique, module_of(technique), models, settings, data_key(job))


def frontier(
    store: Store, job: LearningJob, candidate: Candidate, metric: str, config: CompressConfig, threads: int = 0
) -> Frontier:
    """Make and measure the variants of a candidate; runs on a worker.

    Args:
        store: where everything is.
        job: the training of the candidate.
        candidate: the model.
        metric: that of the verdict.
        config: which techniques, for how long, and what may be shipped.
        threads: for the techniques; 0: all that this worker has.
    """
    began = time.monotonic()
    keys = tuple(config.techniques) or technique_keys()
    order = Order(
        store,
        job,
        candidate,
        metric,
        keys if config.enabled else (),
        threads or job.threads,
        config.budget_seconds,
        time.monotonic() + config.budget_seconds,
    )
    forms, failures = made(order)
    variants = []
    for form, found in measured_forms(store, forms, sample_rows(store, job)):
        if isinstance(found, Measured):
            variants.append(Variant(**vars(form), measured=found))
            continue
        assert variants, "the candidate has answered its own golden rows"
        failures.append(Failure(form.technique, f"{form.name}: {found}"))
    ranked = frontier_of(variants, config, metric)
    return replace(ranked, failures=tuple(failures), machine=machine(), seconds=time.monotonic() - began)


def machine() -> str:
    """Return what this machine is, in words: what was measured holds for its like.

    >>> len(machine()) > 5
    True
    """
    names = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if os.path.exists(path) else []


# --- In the worker ---------------------------------------------------------------------------------------------------


class LateError(Exception):
    """The time is up."""


def made(order: Order) -> tuple[list[Form], list[Failure]]:
    """Return the candidate and its smaller forms, and what went wrong with the others."""
    forms: list[Form] = []
    failures: list[Failure] = []
    planned: list[str] = list(order.techniques)
    done: list[str] = []
    begun: list[str] = []

    def hear(event: dict[str, Any]) -> None:
        if "planned" in event:
            planned[:] = event["planned"]
        elif "begun" in event:
            begun.append(event["begun"])
            report_progress({"done": len(done), "total": len(planned), "note": event["begun"].replace("_", " ")})
        elif "done" in event:
            done.append(event["done"])
        elif "failed" in event:
            failures.append(event["failed"])
        elif all(form.name != event["form"].name for form in forms):
            forms.append(event["form"])

    def check() -> None:
        # The candidate itself takes as long as it takes.
        if forms and time.monotonic() > order.deadline:
            raise LateError

    if not order.techniques:
        with listening(hear):
            work(order)
        return forms, failures
    env = {"OMP_NUM_THREADS": str(order.threads)} if order.threads else {}
    while True:
        try:
            run_in_child(work, (order, tuple(done), not forms), on_event=hear, check=check, env=env)
            return forms, failures
        except LateError:
            words = f"not ready after compress.budget_seconds = {order.seconds:g}"
            return forms, failures + [Failure(name, words) for name in planned if name not in done]
        except ChildLostError as error:
            if not begun or begun[-1] in done:
                raise RunError(
                    f"A candidate can be read and scored, but got a process that ended with code={error.code}. "
                    "See the worker's log."
                ) from error
            failures.append(Failure(begun[-1], f"its process ended with code {error.code}"))
            done.append(begun[-1])


def sample_rows(store: Store, job: LearningJob) -> NDArray[np.float32]:
    """Return a few rows, on which forms are timed."""
    rows = load_shard(store, job.encoded.shards[0]).head(BATCH_ROWS)
    return matrix(rows, job.encoded.schema.features)


def measured_forms(store: Store, forms: Sequence[Form], x_BF: NDArray[np.float32]) -> list[tuple[Form, Measured | str]]:
    """Return what was measured of each form, the first one being the candidate, or why it can't be served."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "rows.npy", x_BF)
        folders = [folder / str(i) for i in range(len(forms))]
        for place, form in zip(folders, forms, strict=True):
            place.mkdir()
            copy_bundle(store, form.bundle, place)

        def together(*which: int) -> list[Measured | str]:
            places = [str(folders[i]) for i in which]
            if len(forms) == 1:
                return measure(places, str(folder / "rows.npy"))  # nothing that could take this process along
            found: list[Measured | str] = run_in_child(measure, (places, str(folder / "rows.npy")), env=SERVING_THREADS)
            return found

        try:
            return list(zip(forms, together(*range(len(forms))), strict=True))
        except ChildLostError:
            pass
        # One of them has taken the process along: each beside the candidate alone.
        answers = together(0)
        for i in range(1, len(forms)):
            try:
                answers.append(together(0, i)[1])
            except ChildLostError as error:
                answers.append(f"a process that serves it ended with code {error.code}")
        return list(zip(forms, answers, strict=True))


# --- In the workshop -------------------------------------------------------------------------------------------------


def work(order: Order, done: Sequence[str] = (), is_first: bool = True) -> None:
    """Make the forms of all techniques that are not done, the cheapest first, and report each when it is made."""
    import infra.lean_xgboost  # noqa: F401  before the bundle imports it

    bench = Bench(order)
    if is_first:
        report_progress({"form": bench.candidate_form})
    techniques = _planned(bench, [key for key in order.techniques if key not in done])
    report_progress({"planned": [*done, *(key for key, _ in techniques)]})
    cache = Cache(order.store, "stages/variants")
    for key, technique in techniques:
        report_progress({"begun": key})
        known = cache.find(order.key(key), FORMS)
        if known is not None:
            for form in known:
                report_progress({"form": form})
        else:
            forms, is_whole = _forms_of(bench, key, technique)
            if is_whole:
                cache.keep(order.key(key), forms, FORMS)
        report_progress({"done": key})


def _planned(bench: Bench, keys: Sequence[str]) -> list[tuple[str, Technique]]:
    """Return the techniques that apply, the cheapest first; of one that can't be asked it is reported."""
    found = []
    for key in keys:
        report_progress({"begun": key})
        try:
            technique = load_technique(key)
            if technique.applies_to(bench.given):
                found.append((key, technique))
        except Exception as error:  # a plug-in may raise anything
            report_progress({"failed": Failure(key, _words(error))})
    return sorted(found, key=lambda pair: (pair[1].cost, pair[0]))


def _forms_of(bench: Bench, key: str, technique: Technique) -> tuple[list[Form], bool]:
    """Return the forms that a technique makes, and whether these are all, so that they are worth keeping."""
    forms, is_whole = [], True
    try:
        for built in technique.build(bench.given):
            try:
                form = bench.finished(key, built)
            except UnfitError as error:
                report_progress({"failed": Failure(key, f"{built.name}: {error}")})
                is_whole = False
                continue
            report_progress({"form": form})
            forms.append(form)
    except Exception as error:  # a technique may raise anything, and is not to take the retrain along
        report_progress({"failed": Failure(key, _words(error))})
        is_whole = False
    return forms, is_whole


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]


class UnfitError(ValueError):
    """A form does not do what every model must."""


class Bench:
    """A candidate laid out for techniques: its two forms, and rows in memory."""

    def __init__(self, order: Order) -> None:
        """Read models and rows."""
        from tasks._techniques.technique import Uncompressed

        store, job, candidate = order.store, order.job, order.candidate
        self.order = order
        self.whole = load_bundle(store, candidate.bundle)
        self.train, self.validation = rows_of(store, job)
        self.given: Uncompressed = Uncompressed(
            job=job,
            pilot=first_phase_of(store, candidate),
            final=self.whole.predictor,
            settings=candidate.settings,
            parameters=candidate.parameters,
            num_rounds=candidate.num_rounds,
            train=self.train,
            validation=self.validation,
            threads=order.threads or os.cpu_count() or 1,
            deadline=order.deadline,
        )
        self.golden = golden_rows(job.files, self.whole.schema)
        self.checked_BF = with_gaps(self.train.x_BF)
        self.plain_BF = self.train.x_BF[:CHECKED_ROWS]
        changed_B = (self.checked_BF != self.plain_BF).any(axis=1)
        self.gaps_BF, self.plain_BF = self.checked_BF[changed_B], self.plain_BF[changed_B]
        self.scores = self.given.pilot.scores(self.validation.x_BF)
        self.candidate_form = self._form("", AS_TRAINED, candidate.bundle, self.whole, self.scores)

    def finished(self, key: str, built: Built) -> Form:
        """Put a form into the store as a bundle that was checked.

        Raises:
            UnfitError: it answers what no model may.
        """
        require_sound(built.final, self.checked_BF, self.whole)
        self._require_robust(built.pilot)
        shipped = packaged(built.final, self.train.x_BF)
        for note in shipped.notes:
            report_progress({"failed": Failure(key, f"{built.name}: {note}")})
        require_same(shipped.predictor.scores(self.checked_BF), built.final.scores(self.checked_BF), "its packed form")
        scores = built.pilot.scores(self.validation.x_BF)
        has_spread = self.whole.has_spread and built.final.spread(self.checked_BF[:1]) is not None
        bundle = replace(self.whole, predictor=shipped.predictor, has_spread=has_spread)
        rows = self.validation
        if bundle.schema.task == "binary":
            bundle = replace(bundle, threshold=matched_threshold(self.scores, self.whole.threshold, scores))
        else:
            bundle = judged_by(bundle, rows.label_B, scores, rows.weight_B, self.order.job.interval)
        bundle = bundle.with_golden(self.golden)
        ref = store_bundle(self.order.store, bundle)
        read = load_bundle(self.order.store, ref).predictor
        require_same(read.scores(self.checked_BF), shipped.predictor.scores(self.checked_BF), "its files")
        return self._form(key, built.name, ref, bundle, scores)

    def _require_robust(self, pilot: Predictor) -> None:
        """Raise an UnfitError for a form that differs much where values are missing, unknown or far out."""
        apart = np.abs(pilot.scores(self.gaps_BF) - self.given.pilot.scores(self.gaps_BF)).mean()
        usual = np.abs(pilot.scores(self.plain_BF) - self.given.pilot.scores(self.plain_BF)).mean()
        limit = GAPS_FACTOR * usual + GAPS_FLOOR * float(np.std(self.scores))
        if not apart <= limit:
            raise UnfitError(
                "a form differs little from the model where values are missing, unknown or far out, but got a mean "
                f"difference={apart:.3g}, above {limit:.3g}"
            )

    def _form(self, key: str, name: str, ref: BundleRef, bundle: Bundle, scores: NDArray[np.float32]) -> Form:
        rows, task, metric = self.validation, bundle.schema.task, self.order.metric
        labels = rows.label_B.astype(np.float64)
        weights = np.ones(len(rows)) if rows.weight_B is None else rows.weight_B.astype(np.float64)
        thresholds = (self.whole.threshold, bundle.threshold)
        pair = Pair(task, labels, self.scores.astype(np.float64), scores.astype(np.float64), weights, thresholds)
        known = labels if task == "regression" else labels.astype(np.int64)
        losses = row_losses(task, ROW_LOSS[task], known, scores)
        assert losses is not None, "these metrics are means over rows"
        mean = float(np.average(losses, weights=weights))
        old, new, deviation = pair.difference(metric)
        apart = float(np.abs(self.scores - scores).max(initial=0.0))
        is_lossless = apart <= LOSSLESS * max(1.0, float(np.abs(scores).max(initial=0.0)))
        return Form(
            name=name,
            technique=key,
            family=bundle.predictor.family,
            bundle=ref,
            loss=mean**0.5 if task == "regression" else mean,
            value=new,
            lost=0.0 if is_lossless else old - new if is_higher_better(metric) else new - old,
            deviation=0.0 if is_lossless else deviation,
            is_lossless=is_lossless,
        )


def matched_threshold(old_B: NDArray[np.float32], threshold: float, new_B: NDArray[np.float32]) -> float:
    """Return from which of the new scores to say yes, so that as many rows get a yes as from the old ones.

    To choose it by the labels once more would move decisions by the noise of that choice; scores that are the same keep
    their threshold.

    >>> scores = np.array([0.1, 0.4, 0.6, 0.9], np.float32)
    >>> matched_threshold(scores, 0.5, scores), round(matched_threshold(scores, 0.5, scores / 2), 3)
    (0.5, 0.25)
    """
    if np.abs(old_B - new_B).max(initial=0.0) <= LOSSLESS:
        return threshold
    num_yes = int((old_B >= np.float32(threshold)).sum())
    ordered = np.sort(new_B.astype(np.float64))[::-1]
    above = ordered[num_yes - 1] if num_yes else min(1.0, ordered[0] + threshold)
    below = ordered[num_yes] if num_yes < len(ordered) else 0.0
    return float((above + below) / 2)


def require_sound(final: Predictor, x_BF: NDArray[np.float32], whole: Bundle) -> None:
    """Raise an UnfitError for a form that answers what no model may, or a row differently beside others."""
    scores, like = final.scores(x_BF), whole.predictor.scores(x_BF)
    if scores.shape != like.shape:
        raise UnfitError(f"a form answers as the model does, but got shape={scores.shape} instead of {like.shape}")
    if not np.isfinite(scores).all():
        raise UnfitError(f"scores are finite, but got {int((~np.isfinite(scores)).sum())} that are not")
    if whole.schema.task != "regression" and not (scores.min() >= -SAME and scores.max() <= 1 + SAME):
        raise UnfitError(f"probabilities are between 0 and 1, but got {scores.min():.4g} to {scores.max():.4g}")
    alone = np.concatenate([final.scores(x_BF[i : i + 1]) for i in range(min(ALONE_ROWS, len(x_BF)))])
    require_same(alone, scores[: len(alone)], "a row that is alone")


def require_same(ours: NDArray[np.float32], theirs: NDArray[np.float32], what: str) -> None:
    """Raise an UnfitError unless scores are the same, to within SAME."""
    worst = float(np.abs(ours - theirs).max(initial=0.0))
    if not worst <= SAME * max(1.0, float(np.abs(theirs).max(initial=0.0))):
        raise UnfitError(f"{what} answers as the model in memory does for all rows, but got a difference={worst:.3g}")


def rows_of(store: Store, job: LearningJob) -> tuple[Rows, Rows]:
    """Return rows of both sides as techniques get them: of very many, as many as memory allows."""
    from tasks._techniques.technique import Rows

    features = job.encoded.schema.features
    most = min(MAX_ROWS, MAX_VALUES // max(1, len(features)))
    share = min(1.0, most / max(1, job.encoded.num_rows))
    found: list[Rows] = []
    for side in (TRAIN, VALIDATION):
        x_BF, label_B, weight_B = [], [], []
        for shard in job.encoded.shards:
            frame = load_shard(store, shard)
            rows, weights = chosen_rows(store, job, frame, side, share=share)
            x_BF.append(matrix(frame, features, rows))
            label_B.append(frame.get_column(TARGET).to_numpy()[rows].astype(np.float32))
            weight_B += [] if weights is None else [weights[rows].astype(np.float32)]
        found.append(
            Rows(np.concatenate(x_BF), np.concatenate(label_B), np.concatenate(weight_B) if weight_B else None)
        )
    return found[0], found[1]


def first_phase_of(store: Store, candidate: Candidate) -> Predictor:
    """Return the model of a candidate's first phase; of a blend, that of the pilots of its parts."""
    if candidate.pilots:
        return Blend(tuple((weight, pilot_of(store, ref)) for weight, ref in candidate.pilots))
    return pilot_of(store, candidate.pilot)
