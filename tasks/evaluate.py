"""Evaluate: every model of a verdict on the same holdout."""

from dataclasses import replace

from infra.bundle.schema import Schema
from infra.bundle.vocabulary import Vocabulary
from infra.clusters import client_of, on_one_worker, run_on_workers
from infra.errors import InputError
from infra.storage import Ref
from tasks import _evaluate, _metrics, _split
from tasks._candidate import BUNDLE_CODE, BundleRef, load_bundle
from tasks._encode import Encoded
from tasks._evaluate import Evaluation, holdout_share, measure, slice_columns
from tasks._jobs import score_job
from tasks._profile import Profile
from tasks._snapshot import DataConfig, Snapshot
from tasks._split import SplitRule, check_reproducible
from tasks._versions import ModelVersion
from tasks.encode import encode
from tasks.stage import Run, stage


@stage(cached=True, code=(_evaluate, _metrics, _split, *BUNDLE_CODE), libraries=("xgboost", "onnxruntime"))
def evaluate(
    run: Run, bundle: BundleRef, encoded: Encoded, inputs: Encoded, rules: tuple[SplitRule, ...], metric: str
) -> Evaluation:
    """Score a model on the rows that all rules hold out, and measure it there.

    Args:
        run: where this runs.
        bundle: the model.
        encoded: the rows of this run.
        inputs: the same rows as the model's own schema encodes them.
        rules: the split of this run, and that of the champion.
        metric: the metric of the verdict.
    """
    files = scored(run, bundle, encoded, inputs, rules, "evaluate")
    slices = slice_columns(encoded.schema, Vocabulary.from_json(run.store.get(encoded.vocabulary).decode()))
    return on_one_worker(client_of(run.cluster), measure, run.store, bundle, files, encoded, metric, slices)


def scored(
    run: Run, bundle: BundleRef, encoded: Encoded, inputs: Encoded, rules: tuple[SplitRule, ...], stage: str
) -> tuple[Ref, ...]:
    """Return where a model's scores of the holdout are, which the workers write; `stage` hears how far they are."""
    vocabulary = Vocabulary.from_json(run.store.get(encoded.vocabulary).decode())
    slices = slice_columns(encoded.schema, vocabulary)
    num_classes = len(encoded.schema.labels) if encoded.schema.task == "multiclass" else 0
    share = holdout_share(rules[0].holdout_fraction * encoded.num_rows)
    jobs = [
        (run.store, bundle, shard, own, rules, slices, num_classes, share)
        for shard, own in zip(encoded.shards, inputs.shards, strict=True)
    ]
    written = run_on_workers(client_of(run.cluster), score_job, jobs, on_done=run.advance(stage))
    files = tuple(file for file in written if file is not None)
    if not files:
        raise InputError(
            "A verdict needs rows that neither model has trained on, but got num_rows=0 that both the split of this "
            "run and the champion's hold out. Set the [split] section back, or bring newer rows."
        )
    return files


def holdout_rules(rule: SplitRule, champion: ModelVersion | None, schema: Schema) -> tuple[SplitRule, ...]:
    """Return the rules that a row of the holdout must meet: that of this run, and that of the champion."""
    if champion is None or champion.rule == rule:
        return (rule,)
    check_reproducible(champion.rule, schema)
    return rule, champion.rule


def inputs_of(
    run: Run, champion: ModelVersion, encoded: Encoded, snapshot: Snapshot, seen: Profile, config: DataConfig
) -> Encoded:
    """Return the rows as the champion's schema encodes them: the shards of this run, but where that has changed."""
    schema = replace(load_bundle(run.store, champion.bundle).schema, labels=encoded.schema.labels)
    if schema.encoding() == encoded.schema.encoding():
        return encoded
    return encode(run, snapshot, schema, seen, config)
