"""What is shown of the smaller forms of a model is what was measured and proven of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest

from flows.ui import certificate_text, frontier_rows
from infra.bundle.vocabulary import Vocabulary
from tasks._candidate import BundleRef
from tasks._certify import Certificate, Certified, certify
from tasks._compress import CompressConfig, Failure, Frontier, Measured, Variant
from tasks._page import compression_of
from tasks._pictures import compression_pictures
from tasks.certify import variant_metrics

WHOLE = Measured(2_000_000, 4_000_000, 100.0, 140.0, 1e5)
SMALL = Measured(100_000, 200_000, 10.0, 15.0, 1.2e6)


def form(name: str, measured: Measured, loss: float, **changes: Any) -> Variant:
    """Return a form of a model."""
    given = {"technique": "selection", "family": "xgboost", "bundle": BundleRef(()), "value": 0.8}
    given |= {"lost": 0.0, "deviation": 0.0, "is_lossless": False}
    return Variant(name=name, measured=measured, loss=loss, **{**given, **changes})


FRONTIER = Frontier(
    (
        form("as trained", WHOLE, 0.4, technique=""),
        form("tiny", SMALL, 0.5, refused="too lossy"),
        form("35 trees", SMALL, 0.401),
    ),
    (2, 0),
    failures=(Failure("distillation", "it crashed"),),
    machine="x86_64",
    seconds=12.0,
)


@pytest.fixture(scope="module")
def certificate() -> Certificate:
    """Certify a lossless form."""
    rng = np.random.default_rng(0)
    scores = rng.random(300)
    table = pl.DataFrame({"label": (rng.random(300) < scores).astype(float), "score": scores})
    return certify(
        *("binary", "auc", (table, table), (0.5, 0.5), CompressConfig(), [], Vocabulary()),
        variant=("35 trees", "selection"),
        measured=(WHOLE, SMALL),
        machine="x86_64",
        alpha=0.05,
    )


@pytest.fixture
def certified(certificate: Certificate) -> Certified:
    """Ship that form."""
    return Certified(BundleRef(()), 2, (certificate,), "Shipped: it is proven.")


def test_the_page_has_what_was_measured(certified: Certified, certificate: Certificate) -> None:
    """Each row has its ratios to the model as trained; what was proven, and what failed, is below."""
    page = compression_of(FRONTIER, certified, "logloss")
    whole, tiny, small = page.variants

    assert (1.0, 1.0, 1.0, 0.0, "passed over") == (
        *(whole.times_smaller, whole.row_speedup, whole.speedup),
        *(whole.loss_change, whole.fate),
    )
    assert (20.0, 10.0, 12.0, "shipped") == (small.times_smaller, small.row_speedup, small.speedup, small.fate)
    assert pytest.approx(0.0025) == small.loss_change
    assert ("refused", "too lossy") == (tiny.fate, tiny.why)
    assert ((("distillation", "it crashed"),), certificate.lines, True) == (
        *(page.failures, page.certificate),
        page.is_certified,
    )


def test_as_trained_has_no_certificate(certificate: Certificate) -> None:
    """Where no form was proven the page tells of the last one that was tried, and does not call it certified."""
    tried = compression_of(FRONTIER, Certified(BundleRef(()), 0, (certificate,), ""), "logloss")
    none = compression_of(replace(FRONTIER, ranking=(0,)), Certified(BundleRef(()), 0, (), ""), "logloss")

    assert [(certificate.lines, False), ((), False)] == [(p.certificate, p.is_certified) for p in (tried, none)]


def test_pictures_are_drawn_where_there_is_something_to_compare(certified: Certified) -> None:
    """Of a frontier there is its picture, and that of the certificate; of a model alone there is none."""
    alone = Frontier(FRONTIER.variants[:1], (0,))
    drawn = list(compression_pictures(FRONTIER, certified, 0.002, "logloss"))

    assert [("Frontier", "compression"), ("Certificate", "certificate")] == [(p.heading, p.section) for p in drawn]
    assert [] == list(compression_pictures(alone, Certified(BundleRef(()), 0, (), ""), 0.002, "logloss"))


def test_the_artifact_has_what_was_measured(certified: Certified) -> None:
    """The table of the Prefect UI has a row per form, and one per technique that failed."""
    rows = frontier_rows(FRONTIER, certified, "logloss")

    assert ["passed over", "refused: too lossy", "shipped", "failed: it crashed"] == [row["fate"] for row in rows]
    assert (20.0, 10.0, 12.0, "+0.25%", 1_200_000) == tuple(
        rows[2][name]
        for name in (
            *("times smaller", "times faster, one row", "times faster, 1,000 rows"),
            *("logloss change", "rows/s"),
        )
    )


def test_the_certificate_is_a_text(certified: Certified, certificate: Certificate) -> None:
    """What was proven is a paragraph with its lines; as trained there is the sentence alone."""
    lines = certificate_text(certified).splitlines()

    assert ["**Shipped: it is proven.**", "", *(f"- {line}" for line in certificate.lines)] == lines
    assert "**As it was.**\n\n" == certificate_text(Certified(BundleRef(()), 0, (certificate,), "As it was."))


def test_a_variants_run_has_what_was_tested(certified: Certified) -> None:
    """MLflow gets what was measured of each form, and the difference of those that were held against the holdout."""
    tested = {"auc_difference": 0.0, "auc_low": 0.0, "auc_high": 0.0}

    assert [
        {"loss": 0.4, **vars(WHOLE)},
        {"loss": 0.5, **vars(SMALL)},
        {"loss": 0.401, **vars(SMALL), **tested},
    ] == [variant_metrics(variant, certified) for variant in FRONTIER.variants]
