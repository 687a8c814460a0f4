"""Predict: score files on the cluster with the version in production."""

from pathlib import Path

from infra.clusters import client_of, run_on_workers
from tasks._cache import key_of
from tasks._jobs import predict_job
from tasks._predict import check_output, join_parts
from tasks._readers import work_orders
from tasks._snapshot import Snapshot
from tasks._versions import ModelVersion
from tasks.stage import Run, stage


@stage()
def predict(run: Run, snapshot: Snapshot, version: ModelVersion, output: Path) -> int:
    """Write the rows of a snapshot with their answers into one file; return how many there are."""
    check_output(output)
    # One name per unit of this run: two runs may score the same file at once.
    units = snapshot.units
    names = {unit: f"predictions/{run.run_id}/{key_of(unit.key, i)}.parquet" for i, unit in enumerate(units)}
    orders = work_orders(units)
    jobs = [(run.store, order, version.bundle, version.version, [names[unit] for unit in order]) for order in orders]
    try:
        scored = run_on_workers(client_of(run.cluster), predict_job, jobs, on_done=run.advance("predict"))
        part_of = {
            unit: part
            for order, parts in zip(orders, scored, strict=True)
            for unit, part in zip(order, parts, strict=True)
        }
        return join_parts(run.store, [part_of[unit] for unit in units], output)
    finally:
        for name in names.values():
            run.store.delete(name)
