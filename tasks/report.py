"""Report: one HTML page for people, and a summary in the Prefect UI."""

from collections.abc import Mapping
from typing import Any

from prefect.artifacts import create_markdown_artifact

from infra.bundle.schema import Schema
from infra.clusters import client_of, on_one_worker
from tasks import _pictures, _plots
from tasks._candidate import Candidate
from tasks._certify import Certified
from tasks._choose import Choice
from tasks._compress import Frontier
from tasks._decide import Comparison
from tasks._evaluate import Evaluation
from tasks._page import page_of
from tasks._report import Picture, markdown_summary, render
from tasks._sample import Sample
from tasks._story import Judged, Training
from tasks.certify import log_variants
from tasks.stage import Run, stage


@stage(cached=True, code=(_pictures, _plots), libraries=("matplotlib",))
def draw(
    run: Run,
    schema: Schema,
    challenger: Evaluation,
    champion: Evaluation | None,
    comparison: Comparison | None,
    choice: Choice,
    frontier: Frontier,
    certified: Certified,
    tolerance: float,
    sample: Sample,
) -> tuple[Picture, ...]:
    """Draw the report's pictures, where the scores are."""
    return on_one_worker(
        client_of(run.cluster),
        _pictures.draw,
        run.store,
        schema,
        challenger,
        champion,
        comparison,
        choice,
        frontier,
        certified,
        tolerance,
        sample,
    )


@stage()
def report(
    run: Run,
    training: Training,
    judged: Judged,
    configuration: dict[str, Any],
    environment: Mapping[str, str],
) -> str:
    """Write the page and log it to MLflow with metrics, curves and the data's fingerprint; return where the page is."""
    known = {"model": run.model, "run_id": run.run_id, "mlflow": run.tracking.run_url(run.run_id)}
    page = page_of(training, judged, run.times, known, configuration, environment)
    html = render(page).encode()
    name = f"reports/{run.model}/{run.run_id}.html"
    run.store.put(name, html)
    log_run(run, training, judged, html)
    log_variants(run, training.frontier, training.certified)
    create_markdown_artifact(
        markdown_summary(page) + links(run, judged),
        key=f"report-{run.model}",
        description=f"{page.decision} of version {page.version}",
    )
    return run.store.uri(name)


def links(run: Run, judged: Judged) -> str:
    """Return, in Markdown, where the run and its page are and its pictures, all shown by MLflow's server.

    Prefect keeps no files; without such a server there is nothing to point to.
    """
    place = run.tracking.run_url(run.run_id)
    urls = [(picture, run.tracking.file_url(run.run_id, f"plots/{picture.slug}.svg")) for picture in judged.pictures]
    pictures = [f"## {picture.heading}\n\n![{picture.heading}]({url})\n" for picture, url in urls if url]
    if not place.startswith("http"):
        return ""
    top = f"[The run in MLflow]({place}) · [The whole report]({place}/artifacts/report.html)\n"
    return "\n".join(["", top, *pictures])


def log_run(run: Run, training: Training, judged: Judged, html: bytes) -> None:
    """Log what MLflow shows of a run."""
    tracking, run_id, candidate = run.tracking, run.run_id, training.candidate
    before = judged.champion.metrics if judged.champion else {}
    tracking.log_metrics(run_id, {**judged.challenger.metrics, **{f"champion_{k}": v for k, v in before.items()}})
    cached = {time.name for time in run.times if time.is_cached}
    for contender in training.choice.contenders:
        log_training(run, contender.candidate, cached)
    tracking.log_params(run_id, {f"fitted.{name}": value for name, value in candidate.parameters.items()})
    tracking.set_tags(
        run_id,
        {
            "evergreen.mode": candidate.mode,
            "evergreen.decision": judged.verdict.decision,
            "evergreen.version": judged.version.version,
            "mlflow.note.content": "\n\n".join(judged.verdict.reasons),
        },
    )
    source = training.snapshot.files[0].path.rpartition("/")[0]
    schema = training.encoded.schema.to_json()
    tracking.log_dataset(
        run_id, run.model, source, training.snapshot.fingerprint, "training", schema=mlflow_schema(schema)
    )
    tracking.log_bytes(run_id, "report.html", html)
    for picture in judged.pictures:
        tracking.log_bytes(run_id, f"plots/{picture.slug}.svg", picture.svg.encode())


def log_training(run: Run, candidate: Candidate, cached: set[str]) -> None:
    """Log a candidate's losses, if they were not logged as they came, and what its training took."""
    is_network = candidate.family == "neural"
    prefix = "neural_" if is_network else ""
    if ("train neural" if is_network else "train") in cached:
        curves = {
            f"train_{prefix}{candidate.loss}": candidate.train_curve,
            f"validation_{prefix}{candidate.loss}": candidate.validation_curve,
        }
        run.tracking.log_series(run.run_id, curves, candidate.base_rounds)
    taken = {
        "rows_per_second": candidate.rows_per_second,
        "loader_share": candidate.loader_share,
        "peak_bytes": candidate.peak_bytes,
    }
    known = {f"train_{prefix}{name}": float(value) for name, value in taken.items() if value is not None}
    if known:
        run.tracking.log_metrics(run.run_id, known)


def mlflow_schema(text: str) -> str | None:
    """Return a dataset's schema as MLflow stores it, or nothing where it is too long."""
    return text if len(text) < 60_000 else None
