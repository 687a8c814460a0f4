"""Compress: smaller forms of a candidate, measured, and which of them may be shipped."""

from typing import Any

from infra.clusters import client_of, on_one_worker, threads_of
from tasks import (
    _candidate,
    _compress,
    _encode,
    _finish,
    _learning,
    _measure,
    _metrics,
    _onnx_trees,
    _runtimes,
    _split,
    _workshop,
)
from tasks._candidate import BUNDLE_CODE, Candidate
from tasks._compress import CompressConfig, Frontier
from tasks._learning import LearningJob
from tasks._techniques import technique_modules
from tasks.stage import Run, stage


@stage(
    cached=True,
    code=(
        *(_candidate, _compress, _encode, _finish, _learning, _measure, _metrics, _split, _workshop),
        *(_onnx_trees, _runtimes),
        *technique_modules(),
        *BUNDLE_CODE,
    ),
    libraries=("xgboost", "onnxruntime"),
)
def compress(run: Run, job: LearningJob, candidate: Candidate, metric: str, config: CompressConfig) -> Frontier:
    """Make and measure the variants; where none is within tolerance, the candidate itself goes on."""

    def show(event: dict[str, Any]) -> None:
        run.reporter.advanced("compress", event["done"], event["total"], event["note"])

    client = client_of(run.cluster)
    threads = job.threads or min(threads_of(client).values(), default=0)
    frontier = on_one_worker(
        client, _workshop.frontier, run.store, job, candidate, metric, config, threads, on_event=show
    )
    for failure in frontier.failures:
        run.reporter.noted(f"Compression without {failure.technique.replace('_', ' ')}: {failure.reason}.")
    return frontier
