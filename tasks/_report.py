"""The page that says what happened: one HTML file without scripts or network, and its short form in Markdown.

Everything on the page arrives as plain values, so that this module knows nothing of how they came about.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from jinja2 import Template

Decision = Literal["PROMOTE", "HOLD", "REJECT"]
MAX_PAGE_BYTES = 2_000_000
MAX_PICTURE_BYTES = 1_200_000
"""Of all pictures together; those that do not fit are named and left out."""
MAX_ROWS = (300, 100, 30, 10)
"""Of a table: the first that keeps the page within its size; the page says how many more there are."""
MAX_REASONS = 20
MAX_CELL_CHARS = 160
MAX_TEXT_CHARS = 1_000
MAX_CONFIGURATION_CHARS = 50_000
_ABSENT = "–"


@dataclass(frozen=True)
class DataFacts:
    """What the model was made from."""

    num_rows: int
    num_columns: int
    num_files: int
    num_new_files: int
    num_bytes: int
    fingerprint: str
    target: str
    """The target in words, such as "fare_amount: regression, mean 12.4"."""
    time_range: str | None = None


@dataclass(frozen=True)
class ColumnRow:
    """One column of the schema."""

    name: str
    kind: str
    reason: str
    missing_fraction: float | None
    num_distinct: int | None
    minimum: str
    maximum: str


@dataclass(frozen=True)
class MetricRow:
    """One metric of the holdout; without a champion there is nothing to compare with."""

    metric: str
    challenger: float | None
    champion: float | None = None
    improvement: float | None = None
    """Positive where the challenger is better, whichever way the metric points."""
    low: float | None = None
    high: float | None = None

    @property
    def outcome(self) -> Literal["better", "worse", "same", "alone"]:
        """Say on which side of zero the whole interval lies."""
        if self.low is None or self.high is None:
            return "alone"
        return "better" if self.low > 0 else "worse" if self.high < 0 else "same"


@dataclass(frozen=True)
class SliceRow:
    """The metric on the rows that share one value of a column."""

    column: str
    value: str
    num_rows: int
    challenger: float | None
    champion: float | None
    improvement: float | None
    is_flagged: bool
    """The challenger is worse here beyond what is tolerated."""


@dataclass(frozen=True)
class SampleRow:
    """How far one column of the sample is from a second draw; p-values are corrected for all tests together."""

    column: str
    psi: float
    psi_p_value: float
    ks: float | None = None
    """None: the column holds categories."""
    ks_p_value: float | None = None


@dataclass(frozen=True)
class ContenderRow:
    """One family's candidate, beside the others."""

    family: str
    loss_name: str
    loss: float
    """Of the first phase's model, on the validation rows."""
    behind: float
    """By how much the mean loss of a row is larger than that of the best, log loss or squared error."""
    deviation: float
    """The standard error of that difference."""
    num_bytes: int
    seconds: float | None
    rows_per_second: float | None
    loader_share: float | None
    peak_bytes: int | None
    weight: float | None
    """In the mean of several that went on."""
    is_chosen: bool


@dataclass(frozen=True)
class VariantRow:
    """One form of the challenger, beside the model as trained."""

    name: str
    technique: str
    num_bytes: int
    times_smaller: float
    memory_bytes: int
    row_p50_us: float
    row_p99_us: float
    row_speedup: float
    """Of the median time of one row."""
    rows_per_second: float
    """At 1,000 rows at a time."""
    speedup: float
    """Of these."""
    loss: float
    """On the validation rows, of the training phase that has not learnt from them."""
    loss_change: float | None
    """As a share of the loss as trained."""
    fate: Literal["shipped", "refused", "passed over"]
    why: str = ""


@dataclass(frozen=True)
class Compression:
    """What became of the attempts to make the challenger smaller."""

    variants: tuple[VariantRow, ...]
    """The model as trained first."""
    failures: tuple[tuple[str, str], ...]
    """Techniques that gave nothing, and why."""
    loss_name: str
    sentence: str
    """What is shipped and why."""
    certificate: tuple[str, ...]
    """What was proven of it, or was not of the last one that was tried, in words."""
    is_certified: bool
    """Whether what is shipped has a certificate, as all but the model as trained have."""
    machine: str
    seconds: float


@dataclass(frozen=True)
class StageRow:
    """How long one stage took."""

    name: str
    seconds: float
    is_cached: bool


@dataclass(frozen=True)
class Picture:
    """A picture of `tasks._plots`: its SVG goes on the page as it is."""

    heading: str
    svg: str
    caption: str
    section: Literal["pictures", "compression", "certificate"] = "pictures"
    """Where it is on the page."""

    @property
    def slug(self) -> str:
        """Return the heading in lower-case letters, digits and single hyphens, as names of files and artifacts are."""
        return "-".join(re.findall(r"[a-z0-9]+", self.heading.lower()))


@dataclass(frozen=True)
class ReportPage:
    """All that a report says. An empty tuple, mapping or text leaves its section out."""

    title: str
    """The model's name."""
    decision: Decision
    reasons: tuple[str, ...]
    version: str
    champion_version: str | None
    """None: this is the first model."""
    created: str
    """UTC, as text."""
    run_id: str
    mlflow: str
    """Where the run is in MLflow; shown, not linked, as the page must not reach out."""
    data: DataFacts
    columns: tuple[ColumnRow, ...]
    schema_changes: tuple[str, ...]
    metrics: tuple[MetricRow, ...]
    confidence: float
    pictures: tuple[Picture, ...]
    slices: tuple[SliceRow, ...]
    slice_metric: str
    importance: tuple[tuple[str, float], ...]
    split: str
    sample: str
    sample_rows: tuple[SampleRow, ...]
    plan: str
    fit: str
    """How the training went, in words."""
    contenders: tuple[ContenderRow, ...]
    """The families' candidates; nothing where there is one."""
    compression: Compression
    stages: tuple[StageRow, ...]
    configuration: str
    """The whole configuration as JSON."""
    environment: Mapping[str, str]


def render(page: ReportPage) -> str:
    """Return the report as one HTML file of less than MAX_PAGE_BYTES that fetches nothing."""
    assert all(picture.svg.startswith("<svg") for picture in page.pictures), "pictures come from tasks._plots"
    shown, num_left = [], MAX_PICTURE_BYTES
    for picture in page.pictures:
        num_left -= len(picture.svg.encode())
        shown.append(
            picture if num_left >= 0 else replace(picture, svg="", caption="Left out: too large for the page.")
        )
    for max_rows in MAX_ROWS:
        html = _template().render(page=page, pictures=shown, max_rows=max_rows)
        if len(html.encode()) < MAX_PAGE_BYTES:
            return html
    raise AssertionError("rows, cells, texts and pictures are bounded")


def markdown_summary(page: ReportPage) -> str:
    """Return verdict, reasons, metrics and stages in Markdown, for a Prefect artifact."""
    against = f"against champion {page.champion_version}" if page.champion_version else "the first model"
    lines = [
        f"# {page.decision}: {_markdown(page.title)} {_markdown(page.version)}",
        "",
        f"{_markdown(against)}, {_markdown(page.created)}, run `{_code(page.run_id)}`",
        "",
        *(f"- {_markdown(reason, MAX_TEXT_CHARS)}" for reason in page.reasons[:MAX_REASONS]),
        "",
        f"| metric | challenger | champion | improvement | {page.confidence:.0%} interval | |",
        "| --- | ---: | ---: | ---: | :---: | --- |",
    ]
    for row in page.metrics:
        cells = [_markdown(row.metric), _number(row.challenger), _number(row.champion), _signed(row.improvement)]
        lines.append(f"| {' | '.join(cells)} | {_interval(row)} | {_OUTCOMES[row.outcome]} |")
    lines += ["", "| stage | seconds | |", "| --- | ---: | --- |"]
    for stage in page.stages:
        lines.append(f"| {_markdown(stage.name)} | {stage.seconds:.1f} | {'cached' if stage.is_cached else ''} |")
    return "\n".join(lines) + "\n"


# --- Words -----------------------------------------------------------------------------------------------------------

_OUTCOMES = {"better": "▲ better", "worse": "▼ worse", "same": "≈ within noise", "alone": ""}

_FATES = {"shipped": "✓ shipped", "refused": "✗ refused", "passed over": ""}


def _number(value: float | None) -> str:
    """Return a measured value for people.

    >>> _number(0.912345), _number(1234567.0), _number(None)
    ('0.91234', '1,234,567', '–')
    """
    if value is None:
        return _ABSENT
    return f"{value:,.0f}" if abs(value) >= 100_000 else f"{value:.5g}"


def _signed(value: float | None) -> str:
    return _ABSENT if value is None else f"{value:+.3g}".replace("-", "−")


def _ratio(value: float) -> str:
    """Return how many times smaller or faster something is, for people.

    >>> _ratio(12.34), _ratio(0.456), _ratio(250.4)
    ('12.3×', '0.46×', '250×')
    """
    return f"{value:.0f}×" if value >= 100 else f"{value:.1f}×" if value >= 1 else f"{value:.2f}×"


def _time(microseconds: float) -> str:
    """Return a short time for people.

    >>> _time(8.25), _time(1234.0)
    ('8.25 µs', '1.23 ms')
    """
    return f"{microseconds:.3g} µs" if microseconds < 1000 else f"{microseconds / 1000:.3g} ms"


def _change(share: float | None) -> str:
    """Return a change as a share.

    >>> _change(0.0123), _change(-0.002), _change(None)
    ('+1.23%', '−0.20%', '–')
    """
    return _ABSENT if share is None else f"{share:+.2%}".replace("-", "−")


def _interval(row: MetricRow) -> str:
    return _ABSENT if row.low is None or row.high is None else f"[{_signed(row.low)}, {_signed(row.high)}]"


def _percent(fraction: float | None) -> str:
    """Return a share; a small one is not shown as none.

    >>> _percent(0.25), _percent(0.0004), _percent(0.0), _percent(None)
    ('25.0%', '<0.1%', '0%', '–')
    """
    if fraction is None:
        return _ABSENT
    if fraction == 0:
        return "0%"
    return "<0.1%" if fraction < 0.001 else f"{fraction:.1%}"


def _size(num_bytes: int) -> str:
    """Return a number of bytes for people.

    >>> _size(999), _size(2_500_000)
    ('999 B', '2.5 MB')
    """
    size, unit = float(num_bytes), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{size:.3g} {unit}"


def _duration(seconds: float) -> str:
    """Return a time span for people.

    >>> _duration(0.31), _duration(75.2), _duration(7260)
    ('0.31 s', '1 min 15 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _cell(text: str, limit: int = MAX_CELL_CHARS) -> str:
    text = str(text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _text(text: str) -> str:
    return _cell(text, MAX_TEXT_CHARS)


def _configuration(text: str) -> str:
    return _cell(text, MAX_CONFIGURATION_CHARS)


def _markdown(text: str, limit: int = MAX_CELL_CHARS) -> str:
    """Return text that Markdown shows as it is, on one line."""
    line = " ".join(_cell(text, limit).split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", line)


def _code(text: str) -> str:
    return " ".join(text.replace("`", "'").split())


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "cell": _cell,
        "change": _change,
        "configuration": _configuration,
        "duration": _duration,
        "interval": _interval,
        "number": _number,
        "percent": _percent,
        "ratio": _ratio,
        "signed": _signed,
        "size": _size,
        "text": _text,
        "time": _time,
    }
    environment.globals |= {"outcomes": _OUTCOMES, "fates": _FATES, "max_reasons": MAX_REASONS}
    return environment.from_string(Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8"))
