"""A smaller model is shipped if it is proven to be as good, and only then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from infra.bundle.schema import Task
from infra.bundle.vocabulary import Vocabulary
from infra.errors import InputError
from infra.storage import Ref, Store
from tasks import _certify
from tasks._candidate import BundleRef, with_file
from tasks._certify import (
    CERTIFICATES,
    MAX_TRIES,
    Certificate,
    Certified,
    Flips,
    Pair,
    certify,
    certify_first,
    choice_text,
    fates,
    margin_of,
    two_one_sided,
)
from tasks._compress import CompressConfig, Frontier, Measured, Variant
from tasks._evaluate import LABEL, SCORE
from tasks._metrics import paired_difference

Array = NDArray[Any]
N = 20_000
RNG = np.random.default_rng(0)
LOGIT = 1.5 * RNG.normal(size=N) - 0.5
LABELS = (RNG.random(N) < 1 / (1 + np.exp(-LOGIT))).astype(float)
CITY = np.where(RNG.random(N) < 0.03, 1, RNG.integers(2, 4, N))
VOCABULARY = Vocabulary({"city": ("Rome", "Oslo", "Bern")})
CONFIG, WIDER = CompressConfig(), CompressConfig(tolerance=0.003)
WHOLE, SMALL = Measured(2_000_000, 4_000_000, 100.0, 140.0, 1e5), Measured(100_000, 200_000, 10.0, 15.0, 1e6)
ALPHA = 0.05


@pytest.fixture(autouse=True, scope="module")
def _resample_less() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_certify, "CALIBRATION_RESAMPLES", 40)
        yield


def sigmoid(z: Array) -> Array:
    """Return probabilities."""
    return np.asarray(1 / (1 + np.exp(-z)))


def noisy(scale: float, seed: int = 9) -> Array:
    """Return the candidate's probabilities with a little noise."""
    return sigmoid(LOGIT + scale * np.random.default_rng(seed).normal(size=N))


OLD = sigmoid(LOGIT)


def table(labels: Array, scores: Array, city: Array) -> pl.DataFrame:
    """Return scores as the evaluation writes them."""
    columns = {SCORE: scores} if scores.ndim == 1 else {f"{SCORE}_{i}": scores[:, i] for i in range(scores.shape[1])}
    return pl.DataFrame({LABEL: labels, "city": pl.Series(city, dtype=pl.Int32), **columns})


def certificate(
    new: Array,
    *,
    task: Task = "binary",
    metric: str = "auc",
    labels: Array = LABELS,
    old: Array = OLD,
    thresholds: tuple[float, float] = (0.5, 0.5),
    config: CompressConfig = CONFIG,
) -> Certificate:
    """Certify scores against those of the candidate."""
    city = CITY[: len(labels)]
    return certify(
        task,
        metric,
        (table(labels, old, city), table(labels, new, city)),
        thresholds,
        config,
        ["city"],
        VOCABULARY,
        variant=("35 trees", "tree selection"),
        measured=(WHOLE, SMALL),
        machine="x86_64",
        alpha=ALPHA,
    )


def classes(scale: float) -> Array:
    """Return probabilities of three classes, with a little noise."""
    logits = np.c_[LOGIT, -LOGIT, 0.3 * LOGIT**2] + scale * np.random.default_rng(1).normal(size=(N, 3))
    return np.asarray(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))


CLASSES = (classes(0).cumsum(axis=1) < np.random.default_rng(2).random((N, 1))).sum(axis=1).clip(0, 2).astype(float)
TARGETS = LOGIT + np.random.default_rng(3).normal(size=N)


def test_a_metric_that_the_rows_do_not_define_is_refused() -> None:
    """Without both classes there is no AUC to be proven, and the message says what to do, as that of a verdict does."""
    with pytest.raises(InputError, match='where auc needs rows of both classes, but got model.metric="auc"'):
        certificate(OLD[:9], labels=np.ones(9), old=OLD[:9])


# What is proven


@pytest.mark.parametrize(
    "case",
    [
        {"new": OLD},
        {"new": classes(0), "old": classes(0), "labels": CLASSES, "task": "multiclass", "metric": "log_loss"},
        {"new": LOGIT, "old": LOGIT, "labels": TARGETS, "task": "regression", "metric": "rmse"},
    ],
)
def test_a_lossless_variant_is_equivalent(case: dict[str, Any]) -> None:
    """Of identical scores the difference is 0 with the interval [0, 0], whatever the tolerance."""
    found = certificate(**case, config=CompressConfig(tolerance=0))

    assert ("equivalent", (), 0.0, 0.0, 0.0) == (
        *(found.outcome, found.reasons),
        *(found.test.difference, found.test.low, found.test.high),
    )
    assert (0.0, 0.0, 0) == (
        *(found.max_row_difference, found.p99_row_difference),
        0 if found.flips is None else found.flips.total,
    )


@pytest.mark.parametrize(
    "case",
    [
        {"new": noisy(0.1)},
        {"new": noisy(0.1), "metric": "log_loss"},
        {"new": classes(0.1), "old": classes(0), "labels": CLASSES, "task": "multiclass", "metric": "log_loss"},
        {
            "new": LOGIT + 0.02 * np.random.default_rng(5).normal(size=N),
            "old": LOGIT,
            "labels": TARGETS,
            "task": "regression",
            "metric": "rmse",
        },
    ],
)
def test_a_little_noise_is_equivalent(case: dict[str, Any]) -> None:
    """A variant that is off by a little in every row is certified, with an interval inside of the margins."""
    found = certificate(**case, config=CompressConfig(tolerance=0.005))

    assert ("equivalent", ()) == (found.outcome, found.reasons)
    assert -found.test.margin < found.test.low < found.test.difference < found.test.high < found.test.margin
    assert max(found.test.p_worse, found.test.p_better) < ALPHA


def test_a_better_variant_is_certified() -> None:
    """A variant that removes noise of the candidate is better by more than the margin, which is no reason to refuse."""
    found = certificate(OLD, old=noisy(0.8))

    assert ("better", True) == (found.outcome, found.is_proven)
    assert found.test.low > 0


# What is refused


def mirrored(share: float) -> Array:
    """Return the candidate's probabilities, of a share of rows those of the other class."""
    chosen = np.random.default_rng(4).random(N) < share
    return np.where(chosen, 1 - OLD, OLD)


def slightly_flipped(share: float) -> Array:
    """Return the candidate's probabilities, of a share of rows put just across the threshold."""
    chosen = np.random.default_rng(4).random(N) < share
    return np.where(chosen, np.where(OLD < 0.5, 0.501, 0.499), OLD)


def worse_in_rome() -> Array:
    """Return probabilities that are noisy in one small slice alone."""
    return np.where(CITY == 1, sigmoid(LOGIT + 0.8 * np.random.default_rng(6).normal(size=N)), OLD)


def swapped(share: float) -> Array:
    """Return probabilities of three classes, of a share of rows those of another one each."""
    scores = classes(0)
    chosen = np.random.default_rng(4).random(N) < share
    return np.where(chosen[:, None], np.roll(scores, 1, axis=1), scores)


@pytest.mark.parametrize(
    ("case", "outcome", "reason"),
    [
        ({"new": mirrored(0.02)}, "worse", "log_loss is worse by more than"),
        ({"new": slightly_flipped(0.02)}, "worse", ""),
        ({"new": OLD**2}, "worse", "log_loss is worse by more than"),
        ({"new": OLD**2, "config": CompressConfig(tolerance=0.9)}, "worse", "calibration_error is worse by more than"),
        ({"new": worse_in_rome(), "config": WIDER}, "worse", "Slice city = Rome"),
        (
            {"new": swapped(0.02), "old": classes(0), "labels": CLASSES, "task": "multiclass", "metric": "log_loss"},
            "worse",
            "",
        ),
        (
            {
                "new": swapped(0.02),
                "old": classes(0),
                "labels": CLASSES,
                "task": "multiclass",
                "metric": "accuracy",
            },
            "worse",
            "log_loss is worse by more than",
        ),
        (
            {"new": LOGIT + 0.5, "old": LOGIT, "labels": TARGETS, "task": "regression", "metric": "rmse"},
            "worse",
            "mae is worse by more than",
        ),
        ({"new": OLD, "thresholds": (0.5, 0.7)}, "worse", "decisions become wrong and"),
        ({"new": OLD, "thresholds": (0.4, 0.6)}, "worse", "F1 at the thresholds falls by more than 0.01"),
    ],
)
def test_a_planted_fault_is_caught(case: dict[str, Any], outcome: str, reason: str) -> None:
    """Flipped decisions, shifted probabilities, one harmed slice and a threshold that is off are refused by name."""
    found = certificate(**case)

    assert (outcome, False) == (found.outcome, found.is_proven), found.sentence
    assert any(reason in words for words in (*found.reasons, found.sentence)), found.sentence


def test_a_monotone_shift_is_hidden_from_the_auc() -> None:
    """The AUC of shifted probabilities is the same to the last digit, so that it is the gates that catch them."""
    found = certificate(OLD**2)

    assert ("equivalent", 0.0, 0.0) == (found.test.outcome, found.test.low, found.test.high)
    assert [("log_loss", False), ("calibration_error", False)] == [(g.metric, g.is_not_worse) for g in found.gates]


def test_a_harmed_slice_is_hidden_from_everything_else() -> None:
    """Metric and gates of all rows pass where one slice of 3% is harmed."""
    found = certificate(worse_in_rome(), config=WIDER)

    assert [True, True, True] == [test.is_not_worse for test in (found.test, *found.gates)]
    assert ["Rome"] == [harm.value for harm in found.harms]


def test_few_rows_prove_nothing() -> None:
    """Where ten rows are all there is, a perfect AUC of both models is no proof, unless the scores are the same."""
    labels = np.repeat([0.0, 1.0], 5)
    scores = np.linspace(0.1, 0.9, 10)
    found = certificate(scores**2, labels=labels, old=scores)
    same = certificate(scores, labels=labels, old=scores)

    assert ("not proven", "equivalent") == (found.outcome, same.outcome)
    assert "A proof needs 50 rows (of a binary target of each class), but got num_rows=5." in found.reasons


def test_no_flip_in_few_rows_is_no_certainty() -> None:
    """Of 400 rows none of which is decided otherwise, an accuracy is not known to a fifth of a percent."""
    found = certificate(OLD[:400] * 0.9999, labels=LABELS[:400], old=OLD[:400], metric="accuracy")
    many = certificate(OLD * 0.9999, metric="accuracy")

    assert (0, "not proven", "equivalent") == (found.flips and found.flips.total, found.test.outcome, many.test.outcome)


def test_a_nearly_lossless_variant_passes_on_few_rows() -> None:
    """The calibration's noise does not refuse a variant whose probabilities hardly move."""
    found = certificate(noisy(0.01)[:1500], labels=LABELS[:1500], old=OLD[:1500])
    calibration = found.gates[-1]

    assert ("equivalent", "calibration_error") == (found.outcome, calibration.metric)
    assert max(-calibration.low, calibration.high) < 0.003


# Rates


def ranked(rng: np.random.Generator, difference: float) -> tuple[Array, Array, Array]:
    """Return labels and scores of two models whose AUCs, 0.8 and another one, are known exactly (binormal)."""
    labels = (rng.random(1500) < 0.4).astype(float)
    shared, *own = (rng.normal(size=len(labels)) for _ in range(3))
    separations = (np.sqrt(2) * ndtri(auc) for auc in (0.8, 0.8 + difference))
    assert abs(ndtr(ndtri(0.8)) - 0.8) < 1e-12
    old, new = (d * labels + 0.95 * shared + np.sqrt(1 - 0.95**2) * e for d, e in zip(separations, own, strict=True))
    return labels, sigmoid(old), sigmoid(new)


def spread(rng: np.random.Generator, difference: float) -> tuple[Array, Array, Array]:
    """Return targets and predictions of two models whose RMSEs, 1 and another one, are known exactly."""
    labels = rng.normal(size=1500)
    shared, *own = (rng.normal(size=len(labels)) for _ in range(3))
    old, new = (0.95 * shared + np.sqrt(1 - 0.95**2) * e for e in own)
    return labels, labels + old, labels + (1 - difference) * new


@pytest.mark.parametrize(
    ("draw", "task", "metric", "margin"), [(ranked, "binary", "auc", 0.02), (spread, "regression", "rmse", 0.035)]
)
def test_rates_of_certification(
    draw: Callable[[np.random.Generator, float], tuple[Array, Array, Array]], task: Task, metric: str, margin: float
) -> None:
    """Of variants that are worse by just the margin at most alpha are certified, of equal ones nearly all."""
    rng, num_draws = np.random.default_rng(7), 600

    def rate(difference: float) -> float:
        certified = 0
        for _ in range(num_draws):
            labels, old, new = draw(rng, difference)
            pair = Pair(task, labels, old, new, np.ones(len(labels)), (0.5, 0.5))
            certified += pair.tested(metric, margin, ALPHA).is_not_worse
        return certified / num_draws

    assert rate(-margin) <= ALPHA + 2.5 * np.sqrt(ALPHA * (1 - ALPHA) / num_draws)
    assert rate(0.0) >= 0.9


@pytest.mark.parametrize(
    ("task", "metric"),
    [("binary", "auc"), ("binary", "log_loss"), ("binary", "accuracy"), ("regression", "rmse"), ("regression", "mae")],
)
@pytest.mark.parametrize("is_weighted", [False, True])
def test_a_standard_error_is_that_of_the_bootstrap(task: Task, metric: str, is_weighted: bool) -> None:
    """The formulas agree with resampling, weights included, and the values with the metrics."""
    labels, old, new = (ranked if task == "binary" else spread)(np.random.default_rng(8), -0.01)
    weights = np.random.default_rng(9).uniform(0.2, 3, len(labels)) if is_weighted else np.ones(len(labels))
    d = paired_difference(task, metric, labels, new, old, weights=weights, num_resamples=400)
    found = Pair(task, labels, old, new, weights, (0.5, 0.5)).difference(metric)

    assert pytest.approx((d.champion, d.challenger), rel=1e-9) == found[:2]
    assert pytest.approx(d.resample_sd, rel=0.15) == found[2]


def test_both_tests_are_the_interval() -> None:
    """A one-sided test is significant at alpha just where the interval of 1 - 2 alpha ends inside of its margin."""
    found = [two_one_sided("auc", (0.8, 0.8), d, 0.001, 0.002, ALPHA) for d in np.linspace(-0.004, 0.004, 41)]

    assert [t.p_worse <= ALPHA for t in found] == [t.low >= -t.margin for t in found]
    assert [t.p_better <= ALPHA for t in found] == [t.high <= t.margin for t in found]
    assert {"worse", "not proven", "equivalent", "better"} == {t.outcome for t in found}


def test_a_margin_is_a_share_of_a_loss() -> None:
    """The tolerance counts as such for what lies between 0 and 1, and as a share for what is a loss."""
    assert [0.002, 0.002, 0.002 * 70, 0.002 * 0.3] == [
        *(margin_of("auc", 0.9, 0.002), margin_of("r2", 0.5, 0.002)),
        *(margin_of("rmse", 70, 0.002), margin_of("log_loss", 0.3, 0.002)),
    ]


# Decisions


def test_flips_are_counted_by_direction() -> None:
    """Each model decides at its own threshold; a flip that turns a right decision wrong is told from its opposite."""
    labels, ones = np.array([1.0, 0.0, 1.0, 0.0, 1.0]), np.ones(5)
    old, new = np.array([0.6, 0.6, 0.4, 0.4, 0.9]), np.array([0.35, 0.2, 0.45, 0.42, 0.8])
    binary = Pair("binary", labels, old, new, ones, (0.5, 0.4)).flips()
    several = Pair("multiclass", np.array([0.0, 1.0, 2.0]), np.eye(3), np.eye(3)[[0, 2, 1]], np.ones(3), (0.5, 0.5))

    assert (Flips(2, 2, 0, became_wrong=2, became_right=2), 4) == (binary, binary and binary.total)
    assert Flips(0, 0, 2, became_wrong=2, became_right=0) == several.flips()


# Which one is shipped

PROVEN = certificate(OLD[:1000], labels=LABELS[:1000], old=OLD[:1000])
REFUSED = certificate(OLD[:1000] ** 2, labels=LABELS[:1000], old=OLD[:1000])


@pytest.mark.parametrize(
    ("ranking", "lossless", "good", "index", "asked"),
    [
        ((0,), set(), {0}, 0, []),
        ((2, 1, 0), set(), {1, 2}, 2, [(2, 0.025)]),
        ((2, 1, 0), set(), {1}, 1, [(2, 0.025), (1, 0.025)]),
        ((2, 1, 0), set(), set(), 0, [(2, 0.025), (1, 0.025)]),
        ((6, 5, 4, 3, 2, 1, 0), set(), {1, 2}, 0, [(6, 0.0125), (5, 0.0125), (4, 0.0125), (3, 0.0125)]),
        ((6, 5, 4, 3, 2, 1, 0), {1}, {1}, 1, [(6, 0.0125), (5, 0.0125), (4, 0.0125), (3, 0.0125), (1, 0.0125)]),
        ((3, 2, 1, 0), {2}, {1}, 0, [(3, 0.05), (2, 0.05)]),
        ((1, 0, 2), set(), {2}, 0, [(1, 0.05)]),
    ],
)
def test_the_first_that_is_certified_is_shipped(
    ranking: tuple[int, ...], lossless: set[int], good: set[int], index: int, asked: list[tuple[int, float]]
) -> None:
    """Variants are tried in order, four at most at an alpha that is divided, and then what loses nothing."""
    tried: list[tuple[int, float]] = []

    def certificate_of(number: int, alpha: float) -> Certificate:
        tried.append((number, alpha))
        return PROVEN if number in good else REFUSED

    found = certify_first(ranking, certificate_of, 0.95, lossless)

    assert (index, len(asked)) == (found[0], len(found[1]))
    assert [number for number, _ in asked] == [number for number, _ in tried]
    assert pytest.approx([alpha for _, alpha in asked]) == [alpha for _, alpha in tried]
    assert len(tried) <= MAX_TRIES + 1


def form(name: str, measured: Measured, **changes: Any) -> Variant:
    """Return a form of a model."""
    given = {"technique": "tree_selection", "family": "xgboost", "bundle": BundleRef(()), "loss": 0.3, "value": 0.8}
    given |= {"lost": 0.0, "deviation": 0.0, "is_lossless": False}
    return Variant(name=name, measured=measured, **{**given, **changes})


def test_every_variant_has_its_fate() -> None:
    """One is shipped; of the others it is told why they were refused, by the frontier or by the holdout."""
    variants = (
        form("as trained", WHOLE),
        form("tiny", SMALL, refused="slower"),
        form("35 trees", SMALL),
        form("shipped", SMALL),
        form("late", SMALL),
    )
    certified = Certified(BundleRef(()), 3, (REFUSED, replace(PROVEN, variant="shipped")), "")

    assert (
        ("passed over", ""),
        ("refused", "slower"),
        ("refused", " ".join(REFUSED.reasons)),
        ("shipped", ""),
        ("passed over", ""),
    ) == fates(Frontier(variants, (2, 3, 4, 0)), certified)
    assert certified.certificate == certified.certificates[-1]
    assert Certified(BundleRef(()), 0, (REFUSED,), "").certificate is None


def test_the_rest_of_a_certificate_is_in_words() -> None:
    """Both tests, the gates, the decisions by direction, the distance of the scores, and the machine are told."""
    binary, number = REFUSED.lines, certificate(LOGIT, task="regression", metric="rmse", labels=TARGETS, old=LOGIT)
    flips = REFUSED.flips
    assert flips is not None

    assert ["Two", "log_loss:", "calibration_error:", str(flips.total), "Scores", "On"] == [
        line.split(" ")[0] for line in binary
    ]
    assert "p < 1e-09 against a loss and p < 1e-09 against a gain of 0.002 or more; alpha is 0.05." in binary[0]
    assert f"0 from no to yes, {flips.to_no} from yes to no; {flips.became_wrong} become wrong" in binary[3]
    assert "100,000 bytes instead of 2,000,000; one row in 10 µs instead of 100 (median)" in binary[-1]
    assert ["Two", "mae:", "Scores", "On"] == [line.split(" ")[0] for line in number.lines]
    assert "None of 10 decisions flips." == Flips(0, 0, 0, 0, 0).sentence(10)


def test_a_certificate_says_what_was_proven() -> None:
    """The sentence has both values, the rows, the difference with its interval, and the margin, or what failed."""
    frontier = Frontier((form("as trained", WHOLE), form("35 trees", SMALL)), (1, 0))
    t = PROVEN.test

    assert (
        f"Shipped: 35 trees is equivalent to the model as trained: auc {t.variant:.5g} against {t.variant:.5g} on "
        "1,000 rows, difference +0, 90.0% interval [+0, +0], margin 0.002."
    ) == choice_text(frontier, 1, (REFUSED, PROVEN))
    assert choice_text(frontier, 0, (REFUSED,)).startswith("Shipped as trained. 35 trees is worse than the model as")
    assert REFUSED.reasons[0] in choice_text(frontier, 0, (REFUSED,))
    assert "Shipped as trained: none that was tried is proven to be as good (35 trees, 12 trees)." == choice_text(
        frontier, 0, (REFUSED, replace(REFUSED, variant="12 trees"))
    )


def test_a_certificate_is_json() -> None:
    """What was written is read again as it was."""
    assert REFUSED == CERTIFICATES.validate_json(CERTIFICATES.dump_json(REFUSED))


def test_a_certificate_changes_no_model(tmp_path: Path) -> None:
    """A bundle with a certificate has the digest of the one without, and another certificate replaces it."""
    store = Store(str(tmp_path))
    bundle = BundleRef((Ref("bundles/1/bundle.json", "digest", 1),))
    once = with_file(store, bundle, "certificate.json", b"1")
    twice = with_file(store, once, "certificate.json", b"2")

    assert [bundle.digest] * 2 == [once.digest, twice.digest]
    assert [b"1", b"2"] == [store.get(ref.files[-1]) for ref in (once, twice)]
    assert [2, 2] == [len(ref.files) for ref in (once, twice)]
    assert replace(bundle, files=()).digest != bundle.digest
