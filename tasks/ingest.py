"""Ingest: find the source files of a run and fix what they hold."""

from tasks._snapshot import DataConfig, Snapshot, take_snapshot
from tasks.stage import Run, stage


@stage()
def ingest(run: Run, config: DataConfig) -> Snapshot:
    """List the source files with their fingerprints; always looks."""
    return take_snapshot(config, run.base)
