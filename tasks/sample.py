"""Sample: the rows to train on, proven to stand for all of them."""

from functools import reduce

from infra.clusters import client_of, run_on_workers
from tasks import _sample
from tasks._encode import Encoded
from tasks._jobs import sample_job
from tasks._profile import Profile
from tasks._sample import Sample, SamplingConfig, bin_edges, check_sample, compare_sample
from tasks.split import Split
from tasks.stage import Run, stage


@stage(cached=True, code=(_sample,))
def sample(run: Run, encoded: Encoded, split: Split, config: SamplingConfig, seen: Profile) -> Sample:
    """Choose the rows by a stable hash, and hold their distributions against those of the other rows."""
    share = config.share(split.counts.train)
    if share >= 1:
        return Sample(1.0, split.counts.train, split.counts.train)
    rule = Sample(share, 0, split.counts.train)
    edges = bin_edges(encoded.schema, seen)
    jobs = [(run.store, shard, encoded, split.rule, rule, edges) for shard in encoded.shards]
    parts = run_on_workers(client_of(run.cluster), sample_job, jobs, on_done=run.advance("sample"))
    counts = reduce(lambda a, b: {name: a[name] + b[name] for name in a}, parts)
    num_rows = int(next(iter(counts.values()))[0].sum())
    chosen = Sample(share, num_rows, split.counts.train, compare_sample(counts))
    check_sample(chosen)
    return chosen
