"""Predict: score files on the cluster with the version in production."""

from pathlib import Path

from infra.clusters import client_of, run_on_workers
from tasks._cache import key_of
from tasks._jobs import predict_job
from tasks._predict import check_output, join_parts
from tasks._snapshot import Snapshot
from tasks._versions import ModelVersion
from tasks.stage import Run, stage


@stage()
def predict(run: Run, snapshot: Snapshot, version: ModelVersion, output: Path) -> int:
    """Write the rows of a snapshot with their answers into one file; return how many there are."""
    check_output(output)
    # One name per file of this run: two runs may score the same file at once.
    names = [f"predictions/{run.run_id}/{key_of(file.key, i)}.parquet" for i, file in enumerate(snapshot.files)]
    jobs = [
        (run.store, file, version.bundle, version.version, name)
        for file, name in zip(snapshot.files, names, strict=True)
    ]
    try:
        parts = run_on_workers(client_of(run.cluster), predict_job, jobs, on_done=run.advance("predict"))
        return join_parts(run.store, parts, output)
    finally:
        for name in names:
            run.store.delete(name)
