"""Every picture is a small, well-formed SVG that takes its colours from the page, whatever the names in it."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from numpy.typing import NDArray

from infra.errors import InputError
from tasks import _plots as plots
from tasks._metrics import calibration_curve, paired_difference

Array = NDArray[Any]
HOSTILE = '_<script>alert("1")</script> & $x^2$\n\x00 名'


def _binary(num_rows: int = 5000) -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    scores = rng.uniform(size=num_rows)
    return (rng.uniform(size=num_rows) < scores).astype(float), scores


def _roc() -> str:
    labels, scores = _binary(20_000)
    return plots.roc_and_pr(labels, {"challenger": scores, HOSTILE: scores**2})


def _calibration() -> str:
    return plots.calibration({"challenger": calibration_curve(*_binary()), HOSTILE: [(0.1, 0.0, 9), (0.9, 1.0, 9)]})


def _scores() -> str:
    return plots.score_distribution(*_binary(), threshold=0.4)


def _residuals() -> str:
    labels = np.random.default_rng(0).normal(size=100_000)
    return plots.residuals(labels, labels + np.random.default_rng(1).standard_cauchy(size=len(labels)))


def _confusion(num_classes: int = 30) -> str:
    rng = np.random.default_rng(0)
    names = [HOSTILE, *(f"class number {code} of many" for code in range(1, num_classes))]
    return plots.confusion_matrix(rng.integers(0, num_classes, 5000), rng.uniform(size=(5000, num_classes)), names)


def _learning() -> str:
    falling = list(np.exp(-np.arange(20_000) / 900) + np.random.default_rng(0).uniform(0, 0.1, 20_000))
    return plots.learning_curve(falling, [*falling[:-1], float("nan")], 15_000, HOSTILE)


def _sample_size() -> str:
    grid = [1000, 2000, 4000, 8000, 16_000]
    fitted = [0.3 + n**-0.4 for n in grid]
    band = ([loss - 0.01 for loss in fitted], fitted, [loss + 0.01 for loss in fitted])
    return plots.sample_size(list(zip(grid, fitted, strict=True)), grid, band, 8000, HOSTILE)


def _importance() -> str:
    return plots.importance([HOSTILE, *(f"feature {i}" for i in range(500))], list(range(501, 0, -1)))


def _intervals() -> str:
    labels, scores = _binary(500)
    others = (scores**1.5, scores, np.random.default_rng(9).permutation(scores))
    return plots.metric_intervals(
        [paired_difference("binary", "auc", labels, scores, other, num_resamples=30) for other in others]
    )


FATES: tuple[Any, ...] = ("passed over", "passed over", "shipped", "refused")


def _frontier() -> str:
    forms = [
        plots.Form(HOSTILE, 10_000 * size, 3.0 * size, 0.3 - size / 100, FATES[size % len(FATES)])
        for size in range(1, 9)
    ]
    return plots.frontier([*forms, plots.Form("far", 900, 2.0, 9.0, "refused")], HOSTILE, allowed=0.25)


def _certificate() -> str:
    return plots.certificate([(HOSTILE, -0.001, -0.0015, 0.0, 0.002), ("log_loss", -0.1, -0.2, 0.0, 0.01)], 0.967)


def _stages() -> str:
    return plots.stage_timings([("ingest", 0.2, False), (HOSTILE, 90.0, True), ("train", 300.0, False)])


ALL = [
    *(_roc, _calibration, _scores, _residuals, _confusion, _learning, _sample_size, _importance, _intervals),
    *(_frontier, _certificate, _stages),
]
WITH_NAMES = [_roc, _calibration, _confusion, _sample_size, _importance, _frontier, _certificate, _stages]


def _texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


@functools.cache
def drawn(draw: Callable[[], str]) -> str:
    """Return a picture, drawn once for all tests that look at it."""
    return draw()


@pytest.mark.parametrize("draw", ALL)
def test_a_picture_is_small_titled_and_has_no_background(draw: Callable[[], str]) -> None:
    """It is one well-formed SVG below 60 kB with a title for those who cannot see it, drawn in the page's colour."""
    svg = drawn(draw)
    root = ElementTree.fromstring(svg)

    assert len(svg.encode()) < 60_000
    assert root.find("{http://www.w3.org/2000/svg}title") is not None
    assert (root.get("role"), bool(root.get("aria-label"))) == ("img", True)
    assert "fill: currentColor" in svg
    assert not re.search(r"#ffffff|#000000|<style|<metadata|<script|<image|<!DOCTYPE", svg)


@pytest.mark.parametrize("draw", ALL)
def test_the_same_input_gives_the_same_bytes(draw: Callable[[], str]) -> None:
    """Neither time nor chance is in a picture."""
    assert drawn(draw) == draw()


@pytest.mark.parametrize("draw", WITH_NAMES)
def test_names_are_shown_as_they_are(draw: Callable[[], str]) -> None:
    """Markup, formulas, a leading underscore and letters without a local font are shown, on one line."""
    shown = [text for text in _texts(drawn(draw)) if '_<script>alert("' in text]

    assert len(shown) >= 1
    assert not any("\n" in text or "\x00" in text for text in shown)


def test_a_picture_does_not_depend_on_others_style() -> None:
    """A matplotlib style that somebody else has set neither shows nor is changed."""
    import matplotlib

    plain = drawn(_stages)
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        styled = _stages()
        assert matplotlib.rcParams["font.size"] == 30

    assert plain == styled


def test_names_inside_pictures_do_not_clash() -> None:
    """Two pictures on one page define different names."""
    first, second = (set(re.findall(r' id="([^"]+)"', drawn(draw))) for draw in (_scores, _learning))

    assert first and second
    assert first.isdisjoint(second)


def test_every_reference_inside_a_picture_is_defined() -> None:
    """Nothing refers to a name that was cleaned away, or to something outside."""
    for draw in ALL:
        svg = drawn(draw)
        referred = set(re.findall(r'(?:href="|url\()([^")]+)', svg))

        assert {f"#{name}" for name in re.findall(r' id="([^"]+)"', svg)} == referred


def test_thinned_curves_keep_their_shape() -> None:
    """A curve of 100,000 points is drawn by at most 400, ends and jump included."""
    x = np.linspace(0, 1, 100_000)
    y = (x > 0.5) * 1.0
    few_x, few_y = plots._thinned(x, y)

    assert len(few_x) <= plots.MAX_POINTS
    assert (0.0, 1.0, 0.0, 1.0) == (few_x[0], few_x[-1], few_y[0], few_y[-1])
    assert np.interp(0.4999, few_x, few_y) == 0
    assert np.interp(0.5001, few_x, few_y) == 1


def test_roc_shows_the_areas() -> None:
    """The legend carries the metrics of each model."""
    labels, scores = np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8])

    assert ["champion: 0.7500", "champion: 0.8333"] == [
        text for text in _texts(plots.roc_and_pr(labels, {"champion": scores})) if "champion" in text
    ]


def test_many_classes_are_drawn_together() -> None:
    """Of 30 classes the 19 most frequent are shown, and the others as one."""
    texts = _texts(_confusion(30))

    assert texts.count("others") == 2
    assert len([text for text in texts if text.startswith("class number")]) in (36, 38)


def test_degenerate_input_is_drawn() -> None:
    """Constant targets, one class, no rounds, no differences and no stages make pictures, not errors."""
    ones = np.ones(10)
    pictures = [
        plots.residuals(ones, ones),
        plots.confusion_matrix(ones, np.eye(2)[np.ones(10, dtype=int)], ["no", "yes"]),
        plots.score_distribution(ones, ones),
        plots.learning_curve([], [], None),
        plots.metric_intervals([]),
        plots.metric_intervals([paired_difference("regression", "mae", ones, ones, ones, num_resamples=20)]),
        plots.frontier([]),
        plots.frontier([plots.Form("as trained", 5, 0.1, 0.0, "shipped")]),
        plots.certificate([], 0.9),
        plots.certificate([("auc", 0.0, 0.0, 0.0, 0.0)], 0.9),
        plots.stage_timings([]),
        plots.importance([], []),
        plots.calibration({}),
    ]

    assert all(picture.startswith("<svg") for picture in pictures)


def test_a_roc_of_one_class_is_refused() -> None:
    """Without both classes there is no curve, and the message says what to do."""
    with pytest.raises(InputError, match="rows of both classes, but got num_positives=3 of num_rows=3. Hold out more"):
        plots.roc_and_pr(np.ones(3), {"champion": np.ones(3)})


def test_importing_does_not_load_matplotlib() -> None:
    """The module is cheap to import and touches no font cache."""
    command = "import sys, tasks._plots; sys.exit('matplotlib' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0
