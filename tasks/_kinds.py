"""Infer what each column is, and hold new data against the champion's schema.

The rules, in this order (a kind set in the configuration wins over all of them):

0. the column of `data.group` where no time splits the rows: identifier, because the groups to come are new
1. no value at all: refused, because the source is broken or the column belongs in `data.ignore`
2. one value, nothing missing: ignored (constant)
3. typed as true/false, or two values that are words of truth (yes/no, true/false, y/n): boolean
4. two values 0 and 1: boolean
5. typed as dates, or at least 95% of its texts read as one date format: datetime
6. text of digits with leading zeros, or a whole number called like a code (zip, postcode, phone): categorical
7. a row counter, whole numbers that are all different and called like an identifier, or texts that are almost all
   different: identifier
8. at least 95% numbers: numeric; whole numbers of low cardinality too, because trees split them well and their order
   is kept
9. text of 200 characters and more, most of them different: ignored (free text)
10. any other text: categorical
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Literal

from infra.bundle.encoder import DATE_FORMATS, NUM_ISO_FORMATS
from infra.bundle.schema import Column, DatePart, Kind, Schema, Task
from infra.errors import InputError, nearest
from tasks._profile import ColumnProfile, Profile
from tasks._snapshot import DataConfig

SourceType = Literal["number", "integer", "text", "boolean", "datetime"]
MOSTLY = 0.95
CODE_NAMES = re.compile(
    r"(^|_|\b)(zip|zipcode|zip_code|postal|postcode|post_code|phone|plz|naics|sic|fips)($|_|\b)", re.I
)
ID_NAMES = re.compile(
    r"(^|_|\b)(id|uuid|guid|key|index|row|rownum|number|no|nr)$|^(id|uuid|guid)(_|$)|(?-i:[a-z]Id$)", re.I
)
FREE_TEXT_LENGTH = 200
MAX_CLASSES = 100
MAX_INTEGER_CLASSES = 20


def infer_column(name: str, seen: ColumnProfile, config: DataConfig, inherited: Column | None = None) -> Column:
    """Say what a column is, and why.

    Args:
        name: the column.
        seen: its profile.
        config: kinds that are set, and columns to leave out.
        inherited: the column in the schema of the champion, whose kind is kept.

    Raises:
        InputError: the column has no value at all.
    """
    if name in config.ignore:
        return _column(name, "ignored", "listed in data.ignore", seen)
    if name in config.kinds:
        return _column(name, config.kinds[name], "set in data.kinds", seen)
    if name == config.group and config.time is None:
        return _column(name, "identifier", "groups the rows of a split; new groups have new values", seen)
    if seen.num_present == 0:
        raise InputError(
            f"A column needs at least one value, but got none in {seen.num_rows} rows of column={name!r}. "
            f'Mend the source, or leave the column out: data.ignore = ["{name}"].'
        )
    if inherited is not None:
        return _column(name, inherited.kind, inherited.reason, seen)
    kind, reason = _rule(name, seen)
    return _column(name, kind, reason, seen)


def _rule(name: str, seen: ColumnProfile) -> tuple[Kind, str]:
    share = 1 / seen.num_present
    distinct = f"{seen.num_distinct:,} distinct values"
    is_whole = seen.num_integer == seen.num_present
    best_format = max(seen.dates, key=lambda f: seen.dates[f], default=None)
    if seen.num_distinct == 1 and seen.num_missing == 0:
        return "ignored", f"constant: every row has {next(iter(seen.values), '')!r}"
    if seen.num_boolean == seen.num_present and seen.num_distinct <= 2 and seen.dtype in ("Boolean", "String"):
        return "boolean", f"words of truth: {', '.join(sorted(seen.values))}"
    if seen.num_distinct == 2 and set(seen.values) == {"0", "1"}:
        return "boolean", "two values, 0 and 1"
    if best_format is not None and seen.dates[best_format] * share >= MOSTLY:
        return "datetime", f"dates written as {best_format}" if best_format else "typed as dates"
    if seen.num_padded:
        return "categorical", f"digits with leading zeros are a code, {distinct}"
    if is_whole and CODE_NAMES.search(name):
        return "categorical", f"whole numbers called like a code, {distinct}"
    if _is_identifier(name, seen, is_whole):
        return "identifier", f"(almost) every row has its own value, {distinct}"
    if seen.num_numeric * share >= MOSTLY:
        return "numeric", f"whole numbers, {distinct}" if is_whole else f"numbers, {distinct}"
    if seen.max_length >= FREE_TEXT_LENGTH and seen.num_distinct * share > 0.5:
        return "ignored", f"free text of up to {seen.max_length} characters"
    return "categorical", f"text, {distinct}"


def _is_identifier(name: str, seen: ColumnProfile, is_whole: bool) -> bool:
    is_unique = seen.num_distinct >= MOSTLY * seen.num_present and seen.num_present >= 50
    if not is_unique:
        return False
    if is_whole and seen.minimum is not None and seen.maximum is not None:
        counts_rows = seen.maximum - seen.minimum + 1 == seen.num_present
        return seen.num_distinct == seen.num_present and (counts_rows or bool(ID_NAMES.search(name)))
    return seen.dtype == "String" and seen.num_numeric < MOSTLY * seen.num_present


def _column(name: str, kind: Kind, reason: str, seen: ColumnProfile) -> Column:
    best_format = max(seen.dates, key=lambda f: seen.dates[f], default="") or None
    return Column(
        name=name,
        kind=kind,
        reason=reason,
        source_type=_source_type(seen),
        is_nullable=seen.num_missing > 0,
        minimum=seen.minimum,
        maximum=seen.maximum,
        date_format=best_format if kind == "datetime" and seen.dtype == "String" else None,
    )


def _source_type(seen: ColumnProfile) -> SourceType:
    """Return the type that a caller's own rows will have: the stored one, or what a reader makes of the text."""
    if seen.dtype == "Boolean":
        return "boolean"
    if seen.dtype in ("Date", "Datetime"):
        return "datetime"
    if seen.dtype != "String":
        return "number" if seen.dtype.startswith("Float") else "integer"
    if seen.dates and max(seen.dates.values()) >= MOSTLY * seen.num_present:
        return "datetime"
    if seen.num_numeric >= MOSTLY * seen.num_present and not seen.num_padded:
        return "integer" if seen.num_integer == seen.num_present else "number"
    return "text"


def infer_schema(seen: Profile, config: DataConfig, task: Task | None, champion: Schema | None) -> Schema:
    """Say what every column is, and what the target asks for.

    Args:
        seen: the merged profile of the snapshot.
        config: the names and kinds that are set.
        task: the task, where it is set.
        champion: the schema of the model in production; its kinds and labels are kept, its columns must be there.

    Raises:
        InputError: a named column is absent, the target can't be learnt, or the data broke the champion's schema.
    """
    _check_names(seen, config)
    known = {column.name: column for column in champion.columns} if champion else {}
    fresh = tuple(
        n for n in seen.columns if champion and n not in known and n not in config.kinds and n not in config.ignore
    )
    columns = []
    for name, profile in seen.columns.items():
        if name in (config.target, config.weight):
            columns.append(_column(name, "numeric", "the target" if name == config.target else "the weight", profile))
        elif name in fresh:
            columns.append(_column(name, "ignored", "new: the champion does not know it", profile))
        else:
            column = infer_column(name, profile, config, known.get(name))
            columns.append(_with_format(column, known.get(name)))
    columns = [_with_parts(c, seen.columns[c.name], config.time) for c in columns]
    resolved = task or (champion.task if champion else infer_task(seen.columns[config.target]))
    schema = Schema(
        columns=tuple(columns),
        target=config.target,
        task=resolved,
        labels=_labels(seen.columns[config.target], resolved, config, champion),
        time=config.time,
        group=config.group,
        weight=config.weight,
        hash_columns=champion.hash_columns
        if champion
        else tuple(n for n in seen.columns if n not in (config.target, config.weight)),
        ignored_new=fresh,
    )
    if champion:
        _enforce(champion, schema, seen, config)
    if not schema.features:
        raise InputError(
            f"A model needs at least one feature, but got num_features=0 from the columns {', '.join(seen.columns)}. "
            "Set the kinds of some in data.kinds."
        )
    return schema


def _check_names(seen: Profile, config: DataConfig) -> None:
    roles = {"target": config.target, "time": config.time, "group": config.group, "weight": config.weight}
    named = [(f"data.{key}", name) for key, name in roles.items() if name is not None]
    named += [("data.ignore", name) for name in config.ignore] + [("data.kinds", name) for name in config.kinds]
    for key, name in named:
        if name not in seen.columns:
            raise InputError(
                f"{key} names a column of the data, but got {name!r}.{nearest(name, seen.columns)} "
                f"The columns are {', '.join(seen.columns)}."
            )


def _with_format(column: Column, before: Column | None) -> Column:
    """Keep the champion's date format, so that a day of ambiguous dates does not swap months and days."""
    if before is None or before.date_format is None or column.kind != "datetime":
        return column
    return replace(column, date_format=before.date_format)


def _with_parts(column: Column, seen: ColumnProfile, time: str | None) -> Column:
    if column.kind != "datetime":
        return column
    parts: list[DatePart] = ["month", "day", "weekday"]
    has_clock = "%H" in column.date_format if column.date_format else seen.dtype != "Date"
    if has_clock:
        parts.append("hour")
    # What is ever larger in newer rows can't be learnt from older ones.
    if column.name != time:
        parts.append("elapsed_days")
    return replace(column, parts=tuple(parts))


def infer_task(target: ColumnProfile) -> Task:
    """Say what a target asks for: two classes, several, or a number."""
    if target.num_distinct == 2:
        return "binary"
    is_number = target.num_numeric >= MOSTLY * target.num_present
    if is_number:
        few = target.num_integer == target.num_present and target.num_distinct <= MAX_INTEGER_CLASSES
        return "multiclass" if few else "regression"
    return "multiclass"


def _labels(target: ColumnProfile, task: Task, config: DataConfig, champion: Schema | None) -> tuple[str, ...]:
    found = f"column={config.target!r} of {target.num_rows:,} rows"
    if target.num_present == 0:
        raise InputError(f"A target needs values, but got only missing ones in {found}. Name another data.target.")
    if target.num_distinct == 1:
        only = next(iter(target.values), None) or target.minimum
        raise InputError(
            f"A target needs at least two different values, but got only {only!r} (one class, constant) in {found}. "
            "Widen data.source, or name another data.target."
        )
    if task == "regression":
        if target.num_numeric < (1 - config.tolerance) * target.num_present:
            raise InputError(
                f"A regression target holds numbers, but got {target.num_present - target.num_numeric:,} other values "
                f'in {found}. Mend them, or set model.task = "multiclass".'
            )
        return ()
    before = champion.labels if champion else ()
    labels = (*before, *sorted((v for v in target.values if v not in before), key=_label_order))
    if not target.is_complete or len(labels) > MAX_CLASSES:
        raise InputError(
            f"A classification target has at most {MAX_CLASSES} classes, but got {target.num_distinct:,} in {found}. "
            'Set model.task = "regression", or group the rare classes.'
        )
    if task == "binary" and len(labels) != 2:
        raise InputError(
            f"A binary target has two classes, but got {', '.join(map(repr, labels))} in {found}. "
            'Set model.task = "multiclass", or mend the values.'
        )
    if task == "binary" and before and config.positive not in (None, before[1]):
        raise InputError(
            f"A model keeps its positive class, {before[1]!r}, but got data.positive={config.positive!r}. "
            "Set it back, or start a new model under another model.name."
        )
    return _positive_last(labels, config) if task == "binary" and not before else labels


def _label_order(label: str) -> tuple[int, float, str]:
    """Sort numbers by value, before texts."""
    try:
        return 0, float(label), label
    except ValueError:
        return 1, 0.0, label


def _positive_last(labels: tuple[str, ...], config: DataConfig) -> tuple[str, ...]:
    positive = config.positive
    if positive is None:
        lowered = {label.lower(): label for label in labels}
        positive = next((lowered[word] for word in ("yes", "true", "y", "t") if word in lowered), labels[-1])
    elif positive not in labels:
        raise InputError(
            f"data.positive is a value of the target, but got {positive!r}.{nearest(positive, labels)} "
            f"The values are {', '.join(map(repr, labels))}."
        )
    return (*(label for label in labels if label != positive), positive)


def _enforce(champion: Schema, schema: Schema, seen: Profile, config: DataConfig) -> None:
    dropped = set(config.ignore)
    needed = {c.name for c in champion.inputs} | {c.name for c in champion.columns if c.name in champion.hash_columns}
    missing = [name for name in sorted(needed) if name not in seen.columns]
    if missing:
        raise InputError(
            f"The data keeps the columns of the champion, but got none called {', '.join(map(repr, missing))}. "
            "Bring them back in data.source, or start a new model under another model.name."
        )
    for before in champion.inputs:
        profile = seen.columns[before.name]
        if before.name in dropped or before.name in config.kinds or profile.num_present == 0:
            continue
        problem = _retyped(before, profile, config.tolerance)
        if problem:
            raise InputError(
                f"A column keeps the type that the champion was trained on, but got {problem} in "
                f"column={before.name!r} (was {before.source_type}). "
                f'Mend the source, or set data.kinds."{before.name}" to its new kind.'
            )
    if champion.task != schema.task or champion.target != schema.target:
        raise InputError(
            f"A model keeps its target and task, but got {schema.target!r} ({schema.task}) after "
            f"{champion.target!r} ({champion.task}). Give the new problem another model.name."
        )


def _retyped(before: Column, seen: ColumnProfile, tolerance: float) -> str | None:
    allowed = tolerance * seen.num_present
    if before.kind == "numeric" and seen.num_present - seen.num_numeric > allowed:
        return f"{seen.num_present - seen.num_numeric:,} values that are no numbers"
    if before.kind == "boolean" and seen.num_distinct > 2 and seen.num_present - seen.num_boolean > allowed:
        return f"{seen.num_distinct:,} distinct values"
    if before.kind == "datetime":
        # ISO formats exclude each other; others may read the same text as different days.
        formats = {"", before.date_format or "", *DATE_FORMATS[:NUM_ISO_FORMATS]}
        readable = sum(seen.dates.get(name, 0) for name in formats)
        if seen.num_present - readable > allowed:
            return f"{seen.num_present - readable:,} values that are no dates"
    if before.kind == "categorical" and before.source_type == "text" and _source_type(seen) in ("number", "datetime"):
        return f"values that are all {_source_type(seen)}s"
    return None


def schema_text(schema: Schema, metric: str) -> str:
    """Say in one line what was inferred."""
    kinds = [c.kind for c in schema.columns if c.name not in (schema.target, schema.weight)]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    positive = f" (positive: {schema.labels[1]!r})" if schema.task == "binary" else ""
    left_out = [f"{c.name} ({c.kind})" for c in schema.columns if c.kind in ("identifier", "ignored")]
    without = f"; left out: {', '.join(left_out[:8])}{' ...' if len(left_out) > 8 else ''}" if left_out else ""
    return f"{schema.target} is {schema.task}{positive}, judged by {metric}; columns: {counts}{without}"


def schema_changes(schema: Schema, champion: Schema | None) -> list[str]:
    """Say in words how the schema differs from the champion's."""
    if champion is None:
        return []
    before = {c.name: c for c in champion.columns}
    lines = [f"New column {name!r} is ignored until data.kinds names it." for name in schema.ignored_new]
    for column in schema.columns:
        old = before.get(column.name)
        if old is not None and old.kind != column.kind:
            lines.append(f"{column.name!r} is now {column.kind}, was {old.kind} ({column.reason}).")
        if old is None and column.name not in schema.ignored_new:
            lines.append(f"{column.name!r} joins as {column.kind} ({column.reason}).")
    lines += [f"New class {label!r} of the target." for label in schema.labels if label not in champion.labels]
    lines += [f"{name!r} is gone." for name in before if name not in {c.name for c in schema.columns}]
    return lines
