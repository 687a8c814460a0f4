"""Sample: the rows to train on, as few as are enough, and proven to stand for all of them."""

from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np

from infra.bundle.vocabulary import Vocabulary
from infra.clusters import client_of, on_one_worker, run_on_workers
from tasks import _encode, _fairness, _learning_curve, _metrics, _pilot, _sample, _split, _threshold, _train
from tasks._candidate import BUNDLE_CODE
from tasks._encode import TARGET, Encoded
from tasks._jobs import column_job, count_keys_job, loss_job, time_span_job, top_keys_job
from tasks._learning_curve import MIN_ROWS, Curve
from tasks._pilot import Rows, compare, learning_curve, train_loss_pilot
from tasks._sample import (
    MAX_STRATA,
    NUM_QUANTILE_STRATA,
    SECONDS_PER_DAY,
    LossPilot,
    Sample,
    SampleRule,
    SamplingConfig,
    Strata,
    check_sample,
    stratum_column,
)
from tasks._threshold import (
    KeyBins,
    add_floats,
    allocation,
    boundary,
    key_bins,
    loss_scale,
    quantile_edges,
    stratum_weights,
    thresholds,
)
from tasks.split import Split
from tasks.stage import Run, stage


@stage(
    cached=True,
    code=(
        _sample,
        _threshold,
        _fairness,
        _learning_curve,
        _pilot,
        _encode,
        _metrics,
        _split,
        _train,
        *BUNDLE_CODE,
    ),
    libraries=("xgboost", "scipy"),
)
def sample(run: Run, encoded: Encoded, split: Split, config: SamplingConfig) -> Sample:
    """Find how many rows are enough if that is asked for, draw them, and hold them against a second draw."""
    num_all = split.counts.train
    rows = Rows(encoded, split.rule, SampleRule(config.method).unit)
    curve = enough_rows(run, rows, config, num_all) if config.rows == "auto" else None
    size = min(config.size(num_all), curve.chosen) if curve else config.size(num_all)
    chosen = Sample(SampleRule(), num_all, num_all, curve=curve)
    if size < num_all:
        rule = rule_of(run, rows, config, size, num_all)
        num_rows, fairness = on_one_worker(
            client_of(run.cluster), compare, run.store, rows, rule, on_event=followed(run)
        )
        chosen = Sample(rule, num_rows, num_all, fairness, curve)
        check_sample(chosen)
    if size < num_all or curve:
        run.reporter.noted(chosen.sentence)
    return chosen


def enough_rows(run: Run, rows: Rows, config: SamplingConfig, num_all: int) -> Curve:
    """Return the learning curve of the training rows, and the size that it tells to use."""
    if num_all < MIN_ROWS:
        return Curve("", chosen=num_all, num_all=num_all, tolerance=config.tolerance)
    return on_one_worker(
        client_of(run.cluster),
        learning_curve,
        run.store,
        rows,
        num_all,
        config.tolerance,
        on_event=followed(run),
    )


def rule_of(run: Run, rows: Rows, config: SamplingConfig, size: int, num_all: int) -> SampleRule:
    """Return the rule by which a sample of a size is drawn."""
    if config.method == "hard":
        return hard_rule(run, rows, size, num_all)
    rule = SampleRule(config.method)
    if config.method == "stratified":
        rule = replace(rule, strata=strata_of(run, rows, config.by))
    if config.method == "recent":
        assert config.half_life_days is not None and rows.schema.time is not None, "check_design has seen to it"
        is_date = rows.schema.column(rows.schema.time).kind == "datetime"
        return with_thresholds(
            run, rows, replace(rule, half_life=config.half_life_days * (SECONDS_PER_DAY if is_date else 1)), size
        )
    return with_thresholds(run, rows, rule, size)


def with_thresholds(run: Run, rows: Rows, rule: SampleRule, size: int) -> SampleRule:
    """Complete a rule with the thresholds, and where strata have a minimum the weights, of a sample of this size."""
    client, shards = client_of(run.cluster), rows.encoded.shards
    bins = bins_of(run, rows, rule)
    counts = reduce(
        np.add, run_on_workers(client, count_keys_job, [(run.store, s, rows.split, rule, bins) for s in shards])
    )
    totals = counts.sum(axis=1)
    at = boundary(counts, [int(n) for n in allocation(totals, size)])
    parts = run_on_workers(client, top_keys_job, [(run.store, s, rows.split, rule, bins, at) for s in shards])
    limits, sizes = thresholds(counts, at, parts)
    weights = stratum_weights(totals, sizes) if rule.strata else ()
    return replace(rule, thresholds=limits, weights=weights)


def bins_of(run: Run, rows: Rows, rule: SampleRule) -> KeyBins:
    """Return the bins in which a rule's keys are counted."""
    if rule.method != "recent":
        return key_bins(rule)
    jobs = [(run.store, shard, rows.split) for shard in rows.encoded.shards]
    spans = run_on_workers(client_of(run.cluster), time_span_job, jobs)
    return key_bins(rule, (min(first for first, _ in spans), max(last for _, last in spans)))


def strata_of(run: Run, rows: Rows, by: str | None) -> Strata:
    """Return the strata of a column: its codes, or ten quantile bins of its numbers."""
    column, has_codes = stratum_column(by, rows.schema)
    if not has_codes:
        jobs = [(run.store, shard, rows.split, column) for shard in rows.encoded.shards]
        seen = add_floats(run_on_workers(client_of(run.cluster), column_job, jobs))
        edges = quantile_edges(seen, NUM_QUANTILE_STRATA)
        return Strata(column, len(edges) + 2, edges)
    vocabulary = Vocabulary.from_json(run.store.get(rows.encoded.vocabulary).decode())
    num_codes = len(rows.schema.labels) if column == TARGET else vocabulary.size(column)
    return Strata(column, min(num_codes + 1, MAX_STRATA))


def hard_rule(run: Run, rows: Rows, size: int, num_all: int) -> SampleRule:
    """Return the rule of a loss-proportional sample: a pilot model's losses, scaled to give the size on average."""
    client = client_of(run.cluster)
    bundle = on_one_worker(client, train_loss_pilot, run.store, rows)
    jobs = [(run.store, shard, rows.split, bundle) for shard in rows.encoded.shards]
    mean_loss, scale = loss_scale(add_floats(run_on_workers(client, loss_job, jobs)), size)
    return SampleRule("hard", pilot=LossPilot(bundle, mean_loss, scale, size / num_all))


def followed(run: Run) -> Callable[[dict[str, Any]], None]:
    """Return a listener that moves the stage's bar."""
    advance = run.advance("sample")
    return lambda event: advance(event["done"], event["total"])
