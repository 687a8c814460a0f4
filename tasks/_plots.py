"""The pictures of a report, as SVG text.

One style: no background, text and axes in the colour of the page around (grey where there is none), so that a
picture reads on white and on black. The same input gives the same bytes. Curves are thinned to what the eye can see.
"""

from __future__ import annotations

import hashlib
import math
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from io import StringIO
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from infra.errors import InputError
from tasks._metrics import Difference, metrics_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[Any]
Place = Literal["best", "lower left", "lower right", "upper right", "outside"]

COLOURS = ("#2f81c7", "#e08a1e", "#2a9d72", "#a06cc9", "#8a8a8a")
"""Challenger first, champion second; apart for colour-blind readers too, and visible on white and on black."""
GOOD, BAD, NEUTRAL = COLOURS[2], "#d1495b", COLOURS[4]
INK = "#7f7f7e"
"""Stands for the colour of the page's text while matplotlib draws."""
MAX_POINTS = 400
MAX_CLASSES = 20
_STYLE: dict[str, Any] = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.labelsize": 10,
    "axes.prop_cycle": f"cycler('color', {list(COLOURS)})",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "grid.alpha": 0.18,
    "grid.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.6,
    "patch.linewidth": 0,
    "path.simplify": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "evergreen",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
}
_STYLING = threading.Lock()
"""matplotlib's style is global to the process."""


# --- Binary ----------------------------------------------------------------------------------------------------------


def roc_and_pr(labels: Array, predictions: Mapping[str, Array]) -> str:
    """Draw the ROC curve and the precision-recall curve of each named model on the same rows."""
    positive = np.asarray(labels) == 1
    if positive.all() or not positive.any():
        raise InputError(
            f"A ROC curve needs rows of both classes, but got num_positives={int(positive.sum())} of "
            f"num_rows={len(positive)}. Hold out more rows."
        )
    with _drawing("ROC and precision-recall curves of " + ", ".join(predictions), 8.4, 3.9) as drawing:
        areas, precisions = [], []
        roc, pr = drawing.figure.subplots(1, 2)
        for (name, scores), colour in zip(predictions.items(), _cycle(), strict=False):
            values = metrics_of("binary", positive, np.asarray(scores))
            found, taken = _cumulative(positive, np.asarray(scores))
            recall, false_rate = found / found[-1], (taken - found) / (taken[-1] - found[-1])
            roc.plot(*_thinned(np.r_[0, false_rate], np.r_[0, recall]), color=colour)
            pr.plot(*_thinned(recall, found / taken), color=colour)
            areas.append((colour, f"{_short(name)}: {values['auc']:.4f}"))
            precisions.append((colour, f"{_short(name)}: {values['average_precision']:.4f}"))
        roc.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=":")
        pr.axhline(positive.mean(), color=INK, linewidth=0.8, linestyle=":")
        _finish(roc, "ROC (area)", "False positive rate", "True positive rate", areas, "lower right")
        _finish(pr, "Precision and recall (average precision)", "Recall", "Precision", precisions, "lower left")
        for axes in (roc, pr):
            axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
    return drawing.svg


def calibration(curves: Mapping[str, Sequence[tuple[float, float, int]]]) -> str:
    """Draw observed shares against predicted ones, with the 95% noise of each bin's rows.

    curves: by model, (mean predicted, observed, rows) per bin, as `calibration_curve` gives them.
    """
    with _drawing("Calibration of " + ", ".join(curves), 5.4, 4.2) as drawing:
        keys: list[tuple[str, str]] = []
        axes = drawing.figure.subplots()
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=":")
        for (name, curve), colour in zip(curves.items(), _cycle(), strict=False):
            predicted, observed, count = (np.array(column, dtype=float) for column in zip(*curve, strict=True))
            noise = 1.96 * np.sqrt(observed * (1 - observed) / count)
            axes.errorbar(predicted, observed, noise, color=colour, marker="o", markersize=4, elinewidth=0.9)
            keys.append((colour, _short(name)))
        title = "Calibration: on the dotted line a probability means what it says"
        _finish(axes, title, "Mean predicted probability", "Observed share", keys)
    return drawing.svg


def score_distribution(labels: Array, predictions: Array, threshold: float | None = None) -> str:
    """Draw how predicted probabilities spread over negatives and positives."""
    positive = np.asarray(labels) == 1
    with _drawing("Distribution of scores by class", 5.4, 3.4) as drawing:
        keys: list[tuple[str, str]] = []
        axes = drawing.figure.subplots()
        edges = np.linspace(0, 1, 41)
        for name, rows, colour in (("negative", ~positive, COLOURS[1]), ("positive", positive, COLOURS[0])):
            counts = np.histogram(np.asarray(predictions)[rows], edges)[0]
            axes.stairs(counts / max(1, counts.sum()), edges, fill=True, color=colour, alpha=0.5)
            keys.append((colour, f"{name} ({int(rows.sum()):,} rows)"))
        if threshold is not None:
            axes.axvline(threshold, color=INK, linestyle="--", linewidth=1)
            keys.append((INK, f"threshold {threshold:.3g}"))
        axes.margins(y=0.4)  # room for the legend
        axes.set_ylim(bottom=0)
        _finish(axes, "Scores by class", "Predicted probability", "Share of the class", keys)
    return drawing.svg


# --- Regression and multiclass ---------------------------------------------------------------------------------------


def residuals(labels: Array, predictions: Array) -> str:
    """Draw predicted against actual values, and how the errors spread (the outermost 0.5% at either end cut off)."""
    actual, predicted = np.asarray(labels, dtype=float), np.asarray(predictions, dtype=float)
    errors = predicted - actual
    with _drawing("Predicted against actual values, and residuals", 8.4, 3.9) as drawing:
        from matplotlib.colors import LinearSegmentedColormap
        from matplotlib.ticker import MaxNLocator

        plane, spread = drawing.figure.subplots(1, 2)
        low, high = _range(np.concatenate([actual, predicted]))
        rgb = tuple(int(COLOURS[0][i : i + 2], 16) / 255 for i in (1, 3, 5))
        shades = LinearSegmentedColormap.from_list("count", [(*rgb, 0.12), (*rgb, 1.0)])
        plane.hexbin(
            actual,
            predicted,
            gridsize=(20, 12),
            bins="log",
            mincnt=1,
            cmap=shades,
            extent=(low, high, low, high),
            linewidths=0,
        )
        plane.plot([low, high], [low, high], color=INK, linewidth=0.8, linestyle=":")
        plane.set(xlim=(low, high), ylim=(low, high))
        edges = np.linspace(*_range(errors), 41)
        spread.stairs(np.histogram(errors, edges)[0], edges, fill=True, color=COLOURS[0], alpha=0.6)
        spread.axvline(0, color=INK, linewidth=0.8, linestyle=":")
        spread.axvline(errors.mean(), color=COLOURS[1], linewidth=1.2)
        mean = [(COLOURS[1], f"mean {errors.mean():.4g}")]
        _finish(plane, "Predicted against actual (stronger: more rows)", "Actual", "Predicted")
        _finish(spread, "Errors", "Predicted minus actual", "Rows", mean, "upper right")
        for axis in (plane.xaxis, plane.yaxis, spread.xaxis, spread.yaxis):
            axis.set_major_locator(MaxNLocator(6))
            axis.set_major_formatter(lambda number, _: _number(number))
    return drawing.svg


def confusion_matrix(labels: Array, predictions: Array, names: Sequence[str]) -> str:
    """Draw how the rows of each class are predicted, as shares of the class.

    labels: (n,) codes; predictions: (n, classes) probabilities. Of more than MAX_CLASSES classes the most frequent
    are shown, the others together.
    """
    codes, chosen = np.asarray(labels).astype(np.intp), np.asarray(predictions).argmax(axis=1)
    frequent = np.argsort(-np.bincount(codes, minlength=len(names)), kind="stable")
    shown = np.sort(frequent if len(names) <= MAX_CLASSES else frequent[: MAX_CLASSES - 1])
    place = np.full(len(names), len(shown))
    place[shown] = np.arange(len(shown))
    ticks = [_short(names[code], 18) for code in shown] + (["others"] if len(shown) < len(names) else [])
    size = len(ticks)
    counts = np.bincount(place[codes] * size + place[chosen], minlength=size * size).reshape(size, size)
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    side = max(3.2, 0.42 * size)
    with _drawing(f"Confusion matrix of {size} classes", side + 2.0, side + 0.9) as drawing:
        axes = drawing.figure.subplots()
        for (row, column), share in np.ndenumerate(shares):
            if size <= 12 or row == column:
                axes.text(column, row, f"{share:.0%}", ha="center", va="center", fontsize=9 if size <= 12 else 7.5)
        _fill_squares(axes, shares)
        _finish(axes, "Shares of each actual class", "Predicted", "Actual")
        axes.grid(visible=False)
        axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5), aspect="equal")
        axes.set_xticks(range(size), ticks, rotation=90 if max(map(len, ticks)) > 4 else 0)
        axes.set_yticks(range(size), ticks)
    return drawing.svg


# --- Training and comparison -----------------------------------------------------------------------------------------


def learning_curve(
    train: Sequence[float],
    validation: Sequence[float],
    best: int | None,
    metric: str = "loss",
    before: int = 0,
    unit: str = "round",
) -> str:
    """Draw the metric by round, or another unit, counted from 1.

    best: index of the round that was kept. before: how many rounds there were already when the first one began.
    """
    with _drawing(f"Learning curve: {metric} by {unit}", 5.4, 3.4) as drawing:
        keys: list[tuple[str, str]] = []
        axes = drawing.figure.subplots()
        for name, values, colour in (("training", train, COLOURS[1]), ("validation", validation, COLOURS[0])):
            if len(values):
                rounds = before + np.arange(1.0, len(values) + 1)
                axes.plot(*_thinned(rounds, np.asarray(values, dtype=float)), color=colour)
                keys.append((colour, name))
        if best is not None:
            axes.axvline(best + 1, color=INK, linestyle="--", linewidth=1)
            keys.append((INK, f"kept: {unit} {best + 1}"))
        _finish(axes, "Learning curve", unit.capitalize(), _short(metric), keys)
    return drawing.svg


def sample_size(
    points: Sequence[tuple[int, float]],
    grid: Sequence[int],
    band: tuple[Sequence[float], Sequence[float], Sequence[float]],
    chosen: int,
    loss: str = "loss",
) -> str:
    """Draw the loss of models of a few sizes, the curve through them with its band, and the size that was chosen.

    points: (rows, loss) of the models; band: low, fitted and high loss at each size of the grid.
    """
    with _drawing(f"Learning curve of the sample: {loss} by number of rows", 5.4, 3.4) as drawing:
        axes = drawing.figure.subplots()
        axes.set_xscale("log")
        axes.fill_between(grid, band[0], band[2], color=COLOURS[0], alpha=0.2, linewidth=0)
        axes.plot(grid, band[1], color=COLOURS[0])
        axes.plot(*zip(*points, strict=True), "o", color=COLOURS[1], markersize=5)
        axes.axvline(chosen, color=INK, linestyle="--", linewidth=1)
        keys = [(COLOURS[1], "pilot models"), (COLOURS[0], "fitted, 90% band"), (INK, f"chosen: {chosen:,}")]
        _finish(axes, "How many rows are enough", "Training rows", _short(loss), keys)
        axes.xaxis.set_major_formatter(lambda rows, _: _number(rows))
        axes.xaxis.set_minor_formatter(lambda rows, _: "")
    return drawing.svg


def importance(names: Sequence[str], values: Sequence[float], top: int = 20) -> str:
    """Draw the features that matter most, the first on top."""
    ranked = sorted(zip(names, values, strict=True), key=lambda pair: -pair[1])[:top]
    with _drawing("Feature importance", 5.4, 0.9 + 0.24 * len(ranked)) as drawing:
        axes = drawing.figure.subplots()
        axes.barh(range(len(ranked)), [value for _, value in ranked], color=COLOURS[0], height=0.7)
        _finish(axes, f"The {len(ranked)} most important of {len(names)} features", "Importance")
        _rows(axes, [_short(name) for name, _ in ranked])
    return drawing.svg


def metric_intervals(differences: Sequence[Difference]) -> str:
    """Draw the improvement of each metric with its interval, each on its own scale, around zero."""
    with _drawing("Improvement over the champion by metric", 7.6, 0.5 + 0.62 * len(differences)) as drawing:
        rows = drawing.figure.subplots(max(1, len(differences)), 1, squeeze=False)[:, 0]
        for axes, d in zip(rows, differences, strict=False):
            colour = GOOD if d.low > 0 else BAD if d.high < 0 else NEUTRAL
            reach = 1.15 * max(abs(d.low), abs(d.high), abs(d.improvement)) or 1.0
            _interval(axes, d.metric, (d.improvement, d.low, d.high), colour, reach)
        if differences:
            sure = f"{differences[0].confidence:.0%} interval"
            rows[0].set_title(f"Improvement over the champion ({sure}; right of the dotted line is better)")
    return drawing.svg


@dataclass(frozen=True)
class Form:
    """A form of a model in the picture of the frontier."""

    name: str
    size_bytes: int
    latency_us: float
    """Of one row."""
    loss: float
    fate: Literal["shipped", "refused", "passed over"]


def frontier(forms: Sequence[Form], loss: str = "loss", allowed: float | None = None) -> str:
    """Draw the loss of each form against its size and against its time of one row; both panels share one key.

    The line joins the forms that may be shipped and that no other one beats in both; those that are beaten are grey.
    Losses far above those that may be shipped are at the upper edge, as arrows.

    allowed: the largest loss within the tolerance.
    """
    height = max(3.7, 0.9 + 0.24 * len(forms))
    with _drawing("Compression frontier: loss against size and latency", 11.0, height) as drawing:
        panels = drawing.figure.subplots(1, 2, sharey=True)
        top = _top(forms, allowed)
        costs = ([float(form.size_bytes) for form in forms], [form.latency_us for form in forms])
        for axes, cost, words in zip(panels, costs, (_bytes, _microseconds), strict=True):
            if allowed is not None:
                axes.axhline(allowed, color=INK, linewidth=0.9, linestyle="--")
            best = _undominated([(c, f.loss) for c, f in zip(cost, forms, strict=True) if f.fate != "refused"])
            if best:
                axes.step(*zip(*best, strict=True), where="post", color=INK, linewidth=0.9, linestyle=":")
            for form, at in zip(forms, cost, strict=True):
                style = _form_style(form, is_beaten=(at, form.loss) not in best)
                arrow = {"marker": "^"} if form.loss > top else {}
                axes.plot([at], [min(form.loss, top)], linestyle="none", **{**style, **arrow})
            _log_axis(axes, words, cost)
        _finish(panels[0], "Loss and size", "Size", _short(loss))
        _finish(panels[1], "Loss and time of one row", "Time (median)")
        _form_key(panels[1], forms, costs, allowed)
        drawing.figure.draw_without_rendering()  # where the points are is known once the key has its room
        for axes, cost in zip(panels, costs, strict=True):
            _number_points(axes, [(at, min(form.loss, top)) for at, form in zip(cost, forms, strict=True)])
    return drawing.svg


def _top(forms: Sequence[Form], allowed: float | None) -> float:
    """Return the largest loss that is drawn at its place."""
    near = [form.loss for form in forms if form.fate != "refused"] + [allowed for allowed in [allowed] if allowed]
    lowest = min((form.loss for form in forms), default=0.0)
    span = max(near, default=lowest) - lowest
    return max(near, default=lowest) + 1.5 * span if span > 0 else math.inf


def _form_style(form: Form, *, is_beaten: bool) -> dict[str, Any]:
    if form.fate == "shipped":
        return {"marker": "o", "color": GOOD, "markersize": 11}
    if form.fate == "refused":
        return {"marker": "o", "color": BAD, "markersize": 7, "markerfacecolor": "none", "markeredgewidth": 1.4}
    return {"marker": "o", "color": NEUTRAL if is_beaten else COLOURS[0], "markersize": 7}


def _form_key(axes: Axes, forms: Sequence[Form], costs: Sequence[Sequence[float]], allowed: float | None) -> None:
    """Name the forms beside the panels; grey are those that are beaten in both."""
    from matplotlib.lines import Line2D

    kept = [i for i, form in enumerate(forms) if form.fate != "refused"]
    best = [_undominated([(cost[i], forms[i].loss) for i in kept]) for cost in costs]
    handles = [
        Line2D(
            *([], []),
            linestyle="none",
            **_form_style(
                form, is_beaten=all((cost[i], form.loss) not in b for cost, b in zip(costs, best, strict=True))
            ),
        )
        for i, form in enumerate(forms)
    ]
    words = [
        f"{number}  {_short(form.name)} · {_bytes(form.size_bytes)} · {_microseconds(form.latency_us)}"
        for number, form in enumerate(forms, start=1)
    ]
    if allowed is not None:
        handles.append(Line2D([], [], color=INK, linewidth=0.9, linestyle="--"))
        words.append("largest loss within the tolerance")
    if words:
        axes.legend(handles, words, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _log_axis(axes: Axes, words: Callable[[float], str], costs: Sequence[float]) -> None:
    """Scale costs by their logarithm, with a handful of numbers."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    axes.margins(x=0.12, y=0.12)
    if not costs:
        return
    decades = math.log10(max(costs) / min(costs))
    axes.set_xscale("log")
    steps = (1, 2, 5) if decades < 1 else (1, 3) if decades < 2.5 else (1,)
    axes.xaxis.set_major_locator(MaxNLocator(4) if decades < 0.5 else LogLocator(subs=steps))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: words(value))


NUMBER_OFFSETS = ((6, 4), (6, -12), (-13, 4), (-13, -12), (-3, 11), (-3, -19), (16, -4), (-24, -4))
"""Where the number of a point may be, in points beside it, the best first."""


def _number_points(axes: Axes, places: Sequence[tuple[float, float]]) -> None:
    """Number points from 1, where there is room for the number beside each."""
    points = [axes.transData.transform(place) * 72 / axes.figure.dpi for place in places]
    taken = list(points)
    for number, (place, at) in enumerate(zip(places, points, strict=True), start=1):
        middles = [at + np.array(offset) + (3.0 * len(str(number)), 3.5) for offset in NUMBER_OFFSETS]
        rooms = [min(float(np.hypot(*(middle - other))) for other in taken) for middle in middles]
        chosen = next((i for i, room in enumerate(rooms) if room >= 9), int(np.argmax(rooms)))
        taken.append(middles[chosen])
        axes.annotate(str(number), place, NUMBER_OFFSETS[chosen], textcoords="offset points", fontsize=9)


def certificate(tests: Sequence[tuple[str, float, float, float, float]], confidence: float) -> str:
    """Draw the difference of each metric with its interval, each on its own scale; shaded is what is within its margin.

    tests: (metric, difference, low, high, margin), positive where the variant is better. The first is the metric of
    the run, with a margin on either side; of the others only a loss is bounded.
    """
    with _drawing("Differences to the model as trained", 7.6, 0.5 + 0.62 * len(tests)) as drawing:
        rows = drawing.figure.subplots(max(1, len(tests)), 1, squeeze=False)[:, 0]
        for number, (axes, (metric, difference, low, high, margin)) in enumerate(zip(rows, tests, strict=False)):
            is_within = low >= -margin
            colour = GOOD if is_within else BAD if high < -margin else NEUTRAL
            reach = 1.15 * max(abs(low), abs(high), margin) or 1.0
            axes.axvspan(-margin, reach if number else margin, color=GOOD, alpha=0.13, linewidth=0)
            for edge in (-margin,) if number else (-margin, margin):
                axes.axvline(edge, color=GOOD, linewidth=1, linestyle="--")
            _interval(axes, metric, (difference, low, high), colour, reach)
        if tests:
            rows[0].set_title(
                f"Difference to the model as trained ({confidence:.1%} interval; shaded: within the margin)"
            )
    return drawing.svg


def _interval(axes: Axes, name: str, at: tuple[float, float, float], colour: str, reach: float) -> None:
    """Draw a value with its interval around zero, and say both on the right."""
    value, low, high = at
    axes.axvline(0, color=INK, linewidth=0.8, linestyle=":")
    axes.plot([low, high], [0, 0], color=colour, linewidth=3, alpha=0.6, solid_capstyle="butt")
    axes.plot([value], [0], color=colour, marker="o", markersize=6)
    axes.set(xlim=(-reach, reach), ylim=(-1, 1))
    axes.set_yticks([0], [_short(name)])
    axes.tick_params(left=False, labelsize=8)
    axes.tick_params(axis="y", labelsize=10)
    axes.locator_params(axis="x", nbins=5)
    axes.spines["left"].set_visible(False)
    words = f"{value:+.4g}  [{low:+.4g}, {high:+.4g}]"
    axes.text(1.02, 0.5, words, transform=axes.transAxes, va="center", fontsize=9)


def stage_timings(stages: Sequence[tuple[str, float, bool]]) -> str:
    """Draw how long each stage took, in order. stages: (name, seconds, cached)."""
    with _drawing("Seconds by stage", 5.4, 0.9 + 0.26 * len(stages)) as drawing:
        axes = drawing.figure.subplots()
        for row, (_, seconds, is_cached) in enumerate(stages):
            axes.barh(row, seconds, color=NEUTRAL if is_cached else COLOURS[0], height=0.7)
            words = f" {seconds:.3g} s" + (" (cached)" if is_cached else "")
            axes.text(seconds, row, words, va="center", fontsize=9)
        _finish(axes, f"Time by stage: {sum(seconds for _, seconds, _ in stages):,.1f} s in all", "Seconds")
        axes.margins(x=0.22)
        axes.set_xlim(left=0)
        _rows(axes, [_short(name) for name, _, _ in stages])
    return drawing.svg


# --- Style -----------------------------------------------------------------------------------------------------------


@dataclass
class _Drawing:
    """A figure to draw on, and its SVG once it is drawn."""

    figure: Figure
    svg: str = ""


@contextmanager
def _drawing(title: str, width: float, height: float) -> Iterator[_Drawing]:
    """Give a figure of this size in inches; its SVG is there when the block ends."""
    import matplotlib  # here: it may write a font cache, which importing a module of ours must not do
    from matplotlib.figure import Figure

    with _STYLING, matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # the reader's browser has the font
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(cast(Any, _STYLE))
        drawing = _Drawing(Figure(figsize=(width, height), layout="constrained"))
        yield drawing
        page = StringIO()
        drawing.figure.savefig(page, format="svg", metadata={"Date": None}, transparent=True)
    drawing.svg = _cleaned(page.getvalue(), title)


def _cleaned(svg: str, title: str) -> str:
    """Return the SVG element alone, titled, in the page's colour and font.

    Several pictures share a page: the names in one must not be the names in another, and its style must stay inside.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"\s*<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = svg.replace("font-family: 'DejaVu Sans'", "font-family: system-ui, sans-serif").replace(INK, "currentColor")
    svg = re.sub(r' (d|x|y|transform)="[^"]*"', _shortened, svg)
    prefix = f"p{hashlib.sha256(svg.encode()).hexdigest()[:8]}-"
    used = re.findall(r'(?:href="#|url\(#)([^")]+)', svg)
    names = {name: f"{prefix}{number}" for number, name in enumerate(dict.fromkeys(used))}
    svg = re.sub(r' id="([^"]*)"', lambda found: f' id="{names[found[1]]}"' if found[1] in names else "", svg)
    svg = re.sub(r'(href="#|url\(#)([^")]+)', lambda found: found[1] + names[found[2]], svg)
    label = escape(_printable(title))
    head = f'<svg role="img" aria-label="{label}" color="{INK}" stroke-linejoin="round"'
    return svg.replace("<svg", head, 1).replace(">", f">\n <title>{label}</title>", 1).strip()


def _shortened(attribute: re.Match[str]) -> str:
    """Return coordinates to a hundredth of a point, on one line."""
    return re.sub(r"(\.\d\d)\d+", r"\1", attribute[0]).replace(" \n", " ").replace("\n", " ")


def _finish(
    axes: Axes, title: str, xlabel: str, ylabel: str = "", keys: Sequence[tuple[str, str]] = (), place: Place = "best"
) -> None:
    """Name the axes, and explain the colours: (colour, words)."""
    from matplotlib.lines import Line2D

    axes.set_title(title)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(visible=True)
    axes.set_axisbelow(True)
    if keys:
        handles = [Line2D([], [], color=colour, linewidth=3) for colour, _ in keys]
        words = [words for _, words in keys]
        if place == "outside":
            axes.legend(handles, words, loc="center left", bbox_to_anchor=(1.0, 0.5))
        else:
            axes.legend(handles, words, loc=place)


def _rows(axes: Axes, names: Sequence[str]) -> None:
    """Name the rows of a bar chart, the first on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", left=False)
    axes.grid(visible=False, axis="y")


def _fill_squares(axes: Axes, shares: Array) -> None:
    """Colour each square by its share, in twenty steps: one path each, as 400 paths would be a large picture."""
    from matplotlib.patches import PathPatch, Rectangle
    from matplotlib.path import Path

    steps = np.ceil(shares * 20)
    for is_right, colour in ((True, GOOD), (False, BAD)):
        chosen = np.where(np.eye(len(shares), dtype=bool) == is_right, steps, 0)
        for step in np.unique(chosen[chosen > 0]):
            corners = [(column - 0.48, row - 0.48) for row, column in np.argwhere(chosen == step)]
            squares = [Rectangle(corner, 0.96, 0.96) for corner in corners]
            outline = Path.make_compound_path(*(s.get_transform().transform_path(s.get_path()) for s in squares))
            axes.add_patch(PathPatch(outline, color=colour, alpha=0.04 + 0.04 * step, linewidth=0))


def _cycle() -> Iterator[str]:
    while True:
        yield from COLOURS


def _short(name: str, limit: int = 30) -> str:
    text = _printable(name)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _printable(text: str) -> str:
    """Return one line that XML can hold."""
    return "".join(letter if letter.isprintable() else " " for letter in str(text))


def _bytes(count: float) -> str:
    """Return a size for people.

    >>> _bytes(2_500_000), _bytes(900)
    ('2.5 MB', '900 B')
    """
    power = min(3, max(0, int(np.log10(max(1.0, count)) // 3)))
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB')[power]}"


def _microseconds(count: float) -> str:
    """Return a time for people.

    >>> _microseconds(8.25), _microseconds(1234.0)
    ('8.25 µs', '1.23 ms')
    """
    return f"{count:.3g} µs" if count < 1000 else f"{count / 1000:.3g} ms"


def _number(value: float) -> str:
    """Return an axis number for people.

    >>> _number(25_000), _number(0.25), _number(-3e6)
    ('25k', '0.25', '-3M')
    """
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


# --- Points ----------------------------------------------------------------------------------------------------------


def _cumulative(positive: Array, scores: Array) -> tuple[Array, Array]:
    """Return positives and rows above each distinct score, from the highest."""
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    return np.cumsum(positive[order])[ends], ends + 1.0


def _thinned(x: Array, y: Array) -> tuple[Array, Array]:
    """Return at most MAX_POINTS points of a curve, evenly along its length as drawn, with both ends."""
    if len(x) <= MAX_POINTS:
        return x, y
    steps = [np.abs(np.diff(np.nan_to_num(v))) / (np.ptp(np.nan_to_num(v)) or 1.0) for v in (x, y)]
    length = np.concatenate([[0.0], np.cumsum(steps[0] + steps[1])])
    reached = np.searchsorted(length, np.linspace(0, length[-1], MAX_POINTS // 2)).clip(1, len(x) - 1)
    kept = np.union1d(reached - 1, reached)  # both sides of a jump
    return x[kept], y[kept]


def _range(values: Array) -> tuple[float, float]:
    """Return the 0.5% and 99.5% quantiles, apart even where all values are equal."""
    low, high = (float(end) for end in np.quantile(values, [0.005, 0.995]))
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _undominated(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that no other beats in both numbers, by the first."""
    best: list[tuple[float, float]] = []
    for point in sorted(points):
        if not best or point[1] < best[-1][1]:
            best.append(point)
    return best
