"""Fill the report's page from what a run has learnt and decided."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from infra.bundle.schema import Column
from tasks._certify import Certified, Fate, fates
from tasks._choose import Choice
from tasks._compress import Frontier, Variant
from tasks._encode import TARGET
from tasks._metrics import gain
from tasks._profile import ColumnProfile
from tasks._report import (
    ColumnRow,
    Compression,
    ContenderRow,
    DataFacts,
    MetricRow,
    ReportPage,
    SampleRow,
    SliceRow,
    StageRow,
    VariantRow,
)
from tasks._reporting import StageTime
from tasks._split import SplitRule
from tasks._story import Judged, Training

MAX_FEATURES = 20


def page_of(
    training: Training,
    judged: Judged,
    times: list[StageTime],
    run: Mapping[str, str],
    configuration: dict[str, Any],
    environment: Mapping[str, str],
) -> ReportPage:
    """Return the page; `run` has the model's name, the run's id and where it is in MLflow."""
    comparison, before = judged.verdict.comparison, judged.champion_before
    return ReportPage(
        title=run["model"],
        decision=judged.verdict.decision,
        reasons=judged.verdict.reasons,
        version=judged.version.version,
        champion_version=before.version if before else None,
        created=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        run_id=run["run_id"],
        mlflow=run["mlflow"],
        data=data_facts(training),
        columns=tuple(column_row(c, training.profile.columns[c.name]) for c in training.encoded.schema.columns),
        schema_changes=training.changes,
        metrics=metric_rows(judged),
        confidence=comparison.differences[0].confidence if comparison else 0.95,
        pictures=judged.pictures,
        slices=slice_rows(judged),
        slice_metric=judged.challenger.slice_metric,
        importance=tuple(list(training.candidate.importance.items())[:MAX_FEATURES]),
        split=split_text(training),
        sample=training.sample.sentence,
        sample_rows=sample_rows(training),
        plan=". ".join(training.plans),
        fit=fit_text(training.choice),
        contenders=contender_rows(training.choice),
        compression=compression_of(training.frontier, training.certified, training.candidate.loss),
        stages=tuple(StageRow(t.name, t.seconds, t.is_cached) for t in times),
        configuration=json.dumps(configuration, indent=1),
        environment=environment,
    )


def fit_text(choice: Choice) -> str:
    """Say how the candidates were trained, and why one went on."""
    if len(choice.contenders) == 1:
        return choice.candidate.sentence
    each = (f"{c.candidate.family}: {c.candidate.sentence}" for c in choice.contenders)
    return " ".join([*each, choice.sentence])


def contender_rows(choice: Choice) -> tuple[ContenderRow, ...]:
    """Return what is known of each family's candidate; nothing where there is one."""
    if len(choice.contenders) < 2:
        return ()
    return tuple(
        ContenderRow(
            family=c.candidate.family,
            loss_name=c.candidate.loss,
            loss=c.loss,
            behind=c.behind,
            deviation=c.deviation,
            num_bytes=c.candidate.bundle.num_bytes,
            seconds=c.candidate.seconds,
            rows_per_second=c.candidate.rows_per_second,
            loader_share=c.candidate.loader_share,
            peak_bytes=c.candidate.peak_bytes,
            weight=c.weight,
            is_chosen=c.candidate.bundle == choice.candidate.bundle or bool(c.weight),
        )
        for c in choice.contenders
    )


def data_facts(training: Training) -> DataFacts:
    """Return what the model was made from."""
    schema, encoded = training.encoded.schema, training.encoded
    target = training.profile.columns[schema.target]
    if schema.task == "regression":
        words = (
            f"{schema.target}: regression, mean {target.mean:,.4g}, standard deviation {target.standard_deviation:,.4g}"
        )
    else:
        shares = (f"{label} {target.values.get(label, 0) / target.num_present:.1%}" for label in schema.labels)
        words = f"{schema.target}: {schema.task}, {', '.join(shares)}"
    return DataFacts(
        num_rows=encoded.num_rows,
        num_columns=len(schema.columns),
        num_files=len(training.snapshot.files),
        num_new_files=encoded.num_new,
        num_bytes=training.snapshot.num_bytes,
        fingerprint=training.snapshot.fingerprint,
        target=words,
        time_range=time_range(training),
    )


def time_range(training: Training) -> str | None:
    """Return the first and the last instant of the rows, where they have a time."""
    time = training.encoded.schema.time
    if time is None:
        return None
    seen = training.profile.columns[time]
    instants = [float(key) for key in seen.times]
    return f"{instant_text(min(instants), seen)} to {instant_text(max(instants), seen)}"


def instant_text(instant: float, seen: ColumnProfile) -> str:
    """Return an instant for people: a date where the column holds dates, else its number."""
    return f"{datetime.fromtimestamp(instant, UTC):%Y-%m-%d %H:%M}" if seen.dates else f"{instant:g}"


def column_row(column: Column, seen: ColumnProfile) -> ColumnRow:
    """Return a line about a column."""
    return ColumnRow(
        name=column.name,
        kind=column.kind,
        reason=column.reason,
        missing_fraction=seen.num_missing / seen.num_rows if seen.num_rows else None,
        num_distinct=seen.num_distinct,
        minimum=_bound(seen.minimum, seen),
        maximum=_bound(seen.maximum, seen),
    )


def _bound(value: float | None, seen: ColumnProfile) -> str:
    if value is None:
        return ""
    return instant_text(value, seen) if "" in seen.dates else f"{value:,.6g}"


def metric_rows(judged: Judged) -> tuple[MetricRow, ...]:
    """Return every metric of the challenger, beside the champion's where there is one."""
    comparison = judged.verdict.comparison
    differences = {d.metric: d for d in comparison.differences} if comparison else {}
    before = judged.champion.metrics if judged.champion else {}
    rows = []
    for name, value in judged.challenger.metrics.items():
        old, d = before.get(name), differences.get(name)
        better = None if old is None else gain(name, value, old)
        rows.append(MetricRow(name, value, old, better, d.low if d else None, d.high if d else None))
    return tuple(rows)


def slice_rows(judged: Judged) -> tuple[SliceRow, ...]:
    """Return the metric on every slice, of both models."""
    before = {(s.column, s.score.value): s.score.score for s in judged.champion.slices} if judged.champion else {}
    comparison = judged.verdict.comparison
    harmed = {(h.column, h.value) for h in comparison.harms} if comparison else set()
    rows = []
    for s in judged.challenger.slices:
        key, new = (s.column, s.score.value), s.score.score
        old = before.get(key)
        better = None if new is None or old is None else gain(judged.challenger.slice_metric, new, old)
        rows.append(SliceRow(s.column, s.score.value, s.score.num_rows, new, old, better, key in harmed))
    return tuple(rows)


def split_text(training: Training) -> str:
    """Say how the rows were divided."""
    counts, rule = training.counts, training.rule
    return (
        f"{_rule_text(rule, training)} {counts.train:,} rows to train, {counts.validation:,} to stop the training, "
        f"{counts.holdout:,} held out; {counts.unlabelled:,} without a label are left out.{class_shares(training)}"
    )


def class_shares(training: Training) -> str:
    """Say how the classes are spread over the sides, for a few classes."""
    labels, rows = training.encoded.schema.labels, training.counts.classes
    if not 2 <= len(labels) <= 5:
        return ""
    sides = (
        f"{side} {' / '.join(f'{count / max(1, sum(row)):.1%}' for count in row)}"
        for side, row in zip(("training", "validation", "holdout"), rows, strict=True)
    )
    return f" Shares of {' / '.join(labels)}: {', '.join(sides)}."


def _rule_text(rule: SplitRule, training: Training) -> str:
    if rule.by == "time":
        assert rule.column is not None, "a split by time has its column"
        start = instant_text(rule.holdout_from, training.profile.columns[rule.column])
        return f"By time: the holdout is everything from {start} on ({rule.column})."
    by = (
        f"by {rule.column}, so that equal values stay together"
        if rule.by == "group"
        else "by a stable hash of each row"
    )
    return f"Split {by}: {rule.holdout_fraction:.0%} are held out."


def sample_rows(training: Training) -> tuple[SampleRow, ...]:
    """Return how far each column of the sample is from the second draw; nothing where all rows are used."""
    fairness = training.sample.fairness
    schema = training.encoded.schema
    return tuple(
        SampleRow(schema.target if t.column == TARGET else t.column, t.psi, t.psi_p_value, t.ks, t.ks_p_value)
        for t in (fairness.columns if fairness else ())
    )


def compression_of(frontier: Frontier, certified: Certified, loss: str) -> Compression:
    """Return the variants with what was measured and what became of them, and what was proven.

    loss: name of the candidate's.
    """
    tried = certified.certificates
    return Compression(
        variants=tuple(
            variant_row(variant, frontier.variants[0], *fate)
            for variant, fate in zip(frontier.variants, fates(frontier, certified), strict=True)
        ),
        failures=tuple((failure.technique, failure.reason) for failure in frontier.failures),
        loss_name=loss,
        sentence=certified.sentence,
        certificate=tried[-1].lines if tried else (),
        is_certified=certified.certificate is not None,
        machine=frontier.machine,
        seconds=frontier.seconds,
    )


def variant_row(variant: Variant, whole: Variant, fate: Fate, why: str) -> VariantRow:
    """Return a line about a variant, beside the model as trained."""
    taken, before = variant.measured, whole.measured
    return VariantRow(
        name=variant.name,
        technique=variant.technique,
        num_bytes=taken.model_bytes,
        times_smaller=before.model_bytes / taken.model_bytes,
        memory_bytes=taken.memory_bytes,
        row_p50_us=taken.row_p50_us,
        row_p99_us=taken.row_p99_us,
        row_speedup=before.row_p50_us / taken.row_p50_us,
        rows_per_second=taken.rows_per_second,
        speedup=taken.rows_per_second / before.rows_per_second,
        loss=variant.loss,
        loss_change=variant.loss / whole.loss - 1 if whole.loss else None,
        fate=fate,
        why=why,
    )
