"""Ingest: find the source files of a run and fix what they hold."""

from tasks._fingerprints import known_snapshot
from tasks._snapshot import DataConfig, Snapshot
from tasks.stage import Run, stage


@stage()
def ingest(run: Run, config: DataConfig) -> Snapshot:
    """List the source files with their fingerprints: always looks, and reads what is new or has changed."""
    return known_snapshot(run.store, run.model, config, run.base)
