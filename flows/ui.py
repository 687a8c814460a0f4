"""What people see of a run in the Prefect UI: a bar and a log while it works, its plan, its verdict, its pictures."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from uuid import UUID

from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.logging import get_run_logger

from infra.bundle.schema import Schema
from infra.serving.target import read_reports
from tasks._certify import Certified, fates
from tasks._compress import Frontier
from tasks._kinds import schema_text
from tasks._reporting import Reporter
from tasks._story import Training
from tasks.stage import Run

STAGES = (
    "ingest",
    "profile",
    "encode",
    "split",
    "sample",
    "recheck",
    "search",
    "train",
    "search neural",
    "train neural",
    "choose",
    "compress",
    "certify",
    "evaluate",
    "compare",
    "decide",
    "draw",
    "register",
    "promote",
    "deploy",
    "report",
)
"""The stages of a retrain in their order; those that a run has no use for are passed over."""
UPDATE_SECONDS = 1.0
"""How often the bar moves at most: each time is a request to the server."""


class UiReporter:
    """A progress artifact and the log of a flow run. It is made inside the flow, and used from any thread."""

    def __init__(self, model: str) -> None:
        """Show an empty bar."""
        self._log: logging.Logger | logging.LoggerAdapter[logging.Logger] = get_run_logger()
        bar = create_progress_artifact(0.0, key=f"progress-{model}", description="starting")
        assert isinstance(bar, UUID), "outside of an event loop the call waits"
        self._bar = bar
        self._moved = -UPDATE_SECONDS

    def started(self, stage: str) -> None:
        """Name the stage beside the bar."""
        self._move(stage, 0.0, stage)

    def advanced(self, stage: str, done: int, total: int, note: str) -> None:
        """Move the bar inside the stage's part of it."""
        if time.monotonic() - self._moved >= UPDATE_SECONDS:
            self._move(stage, done / max(total, 1), f"{stage}: {done:,} of {total:,} {note}".rstrip())

    def ended(self, stage: str, seconds: float, is_cached: bool) -> None:
        """Log how long the stage took, and fill its part of the bar."""
        self._log.info("%-10s %7.1f s%s", stage, seconds, "  cached" if is_cached else "")
        self._move(stage, 1.0, "done" if stage == STAGES[-1] else stage)

    def noted(self, text: str) -> None:
        """Log what was inferred or decided."""
        self._log.info(text)

    def _move(self, stage: str, share: float, description: str) -> None:
        if stage in STAGES:
            self._moved = time.monotonic()
            percent = 100 * (STAGES.index(stage) + share) / len(STAGES)
            update_progress_artifact(self._bar, percent, description=description)


class Reporters:
    """Several that hear the same."""

    def __init__(self, reporters: Sequence[Reporter]) -> None:
        """Tell each of these, in order."""
        self._reporters = tuple(reporters)

    def started(self, stage: str) -> None:
        """Pass it on."""
        for reporter in self._reporters:
            reporter.started(stage)

    def advanced(self, stage: str, done: int, total: int, note: str) -> None:
        """Pass it on."""
        for reporter in self._reporters:
            reporter.advanced(stage, done, total, note)

    def ended(self, stage: str, seconds: float, is_cached: bool) -> None:
        """Pass it on."""
        for reporter in self._reporters:
            reporter.ended(stage, seconds, is_cached)

    def noted(self, text: str) -> None:
        """Pass it on."""
        for reporter in self._reporters:
            reporter.noted(text)


def show_plan(run: Run, schema: Schema, plan: str, metric: str, key: str) -> None:
    """Show where and on what the training runs, before it does."""
    text = f"**{plan}**\n\n```\n{schema_text(schema, metric)}\n```\n"
    create_markdown_artifact(text, key=f"{key}-{run.model}", description="Where the training runs, and on what")


def show_story(run: Run, training: Training) -> None:
    """Show the variants, and where the run and the served model are; the verdict is the report stage's."""
    show_frontier(run, training.frontier, training.certified, training.candidate.loss)
    page = run.tracking.run_url(run.run_id)
    if page.startswith("http"):
        create_link_artifact(page, "The run in MLflow", key=f"mlflow-{run.model}", description="The run in MLflow")
    for server in read_reports(run.store, run.model):
        text = f"Version {server.version} answers at {server.url}"
        create_link_artifact(f"{server.url}/metadata", text, key=f"served-{run.model}", description=text)


def show_frontier(run: Run, frontier: Frontier, certified: Certified, loss: str) -> None:
    """Show the variants, and what was proven of the one that is shipped; `loss` is the name of the candidate's."""
    create_table_artifact(
        frontier_rows(frontier, certified, loss),
        key=f"frontier-{run.model}",
        description=f"Size, speed and quality of the variants. {certified.sentence}",
    )
    create_markdown_artifact(
        certificate_text(certified),
        key=f"certificate-{run.model}",
        description="What was proven of the model that is shipped",
    )


def frontier_rows(frontier: Frontier, certified: Certified, loss: str) -> list[dict[str, str | float]]:
    """Return a row per variant: what it is, what it takes beside the model as trained, what became of it and why."""
    whole = frontier.variants[0]
    rows: list[dict[str, str | float]] = [
        {
            "variant": variant.name,
            "technique": variant.technique,
            "fate": f"{fate}: {why}" if why else fate,
            "bytes": variant.measured.model_bytes,
            "times smaller": round(whole.measured.model_bytes / variant.measured.model_bytes, 1),
            "bytes in memory": variant.measured.memory_bytes,
            "one row p50, \N{MICRO SIGN}s": round(variant.measured.row_p50_us, 1),
            "one row p99, \N{MICRO SIGN}s": round(variant.measured.row_p99_us, 1),
            "times faster, one row": round(whole.measured.row_p50_us / variant.measured.row_p50_us, 1),
            "rows/s": round(variant.measured.rows_per_second),
            "times faster, 1,000 rows": round(variant.measured.rows_per_second / whole.measured.rows_per_second, 1),
            loss: round(variant.loss, 6),
            f"{loss} change": f"{variant.loss / whole.loss - 1:+.2%}" if whole.loss else "",
        }
        for variant, (fate, why) in zip(frontier.variants, fates(frontier, certified), strict=True)
    ]
    return rows + [{"technique": f.technique, "fate": f"failed: {f.reason}"} for f in frontier.failures]


def certificate_text(certified: Certified) -> str:
    """Return in Markdown what was proven."""
    lines = [f"**{certified.sentence}**", ""]
    if certified.certificate is not None:
        lines += [f"- {line}" for line in certified.certificate.lines]
    return "\n".join(lines) + "\n"
