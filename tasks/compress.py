"""Compress: smaller forms of a candidate, measured, and the one that is shipped."""

from infra.clusters import client_of, on_one_worker
from tasks import _candidate, _compress, _encode, _finish, _learning, _metrics, _split, _xgboost
from tasks._candidate import BUNDLE_CODE, Candidate
from tasks._compress import CompressConfig, Frontier
from tasks._learning import LearningJob
from tasks.stage import Run, stage


@stage(
    cached=True,
    code=(_compress, _xgboost, _candidate, _encode, _finish, _learning, _metrics, _split, *BUNDLE_CODE),
    libraries=("xgboost", "onnxruntime"),
)
def compress(run: Run, job: LearningJob, candidate: Candidate, config: CompressConfig) -> Frontier:
    """Measure the variants; where none is within tolerance, the candidate itself goes on."""
    return on_one_worker(client_of(run.cluster), _compress.frontier, run.store, job, candidate, config)
