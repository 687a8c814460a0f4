"""Split: which rows train, stop the training, and judge."""

from dataclasses import dataclass

from infra.clusters import client_of, run_on_workers
from tasks import _split
from tasks._encode import Encoded
from tasks._jobs import split_job
from tasks._profile import Profile
from tasks._split import SideCounts, SplitConfig, SplitRule, add_counts, check_sides, make_rule
from tasks.stage import Run, stage


@dataclass(frozen=True)
class Split:
    """The rule, and how many rows it puts where."""

    rule: SplitRule
    counts: SideCounts


@stage(cached=True, code=(_split,))
def split(run: Run, encoded: Encoded, config: SplitConfig, seen: Profile) -> Split:
    """Make the rule, count both sides of it, and refuse a side that lacks rows or classes."""
    schema = encoded.schema
    rule = make_rule(config, schema, seen.columns[schema.time] if schema.time else None)
    jobs = [(run.store, shard, rule, len(schema.labels)) for shard in encoded.shards]
    counts = add_counts(run_on_workers(client_of(run.cluster), split_job, jobs, on_done=run.advance("split")))
    check_sides(counts, schema.labels, rule)
    return Split(rule, counts)
