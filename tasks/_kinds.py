"""Infer what each column is, and hold new data against the champion's schema.

The rules, in this order (a kind set in the configuration wins over all of them):

0. the column of `data.group` where no time splits the rows: identifier, because the groups to come are new
1. no value at all: refused, because the source is broken or the column belongs in `data.ignore`
2. one value, nothing missing: ignored (constant)
3. two values 0 and 1: boolean
4. typed as true/false, or two values that are words of truth (yes/no, true/false, y/n): boolean
5. typed as dates, or texts of one date format: datetime
6. text of digits with leading zeros, whole numbers called like a code (zip, postcode, phone), or called like an
   identifier where values come again (brewery_id, ProviderNumber): categorical
7. a row counter, whole numbers that are (almost) all different and called like an identifier, or texts that are
   almost all different: identifier
8. numbers: numeric; whole numbers of low cardinality too, because trees split them well and their order is kept
9. text of 200 characters and more, most of them different: ignored (free text)
10. any other text: categorical

Of texts that are numbers or dates the share `data.tolerance` may be something else, for that is what encoding
tolerates; a column with more of them gets a hint. The column of `data.time` is ignored unless it holds dates: what is
ever larger in newer rows can't be learnt from older ones.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

import polars as pl

from infra.bundle.encoder import DATE_FORMATS, NUM_ISO_FORMATS, failures
from infra.bundle.schema import Column, DatePart, Kind, Schema, Task
from infra.errors import InputError, nearest
from tasks._profile import ColumnProfile, Profile, most_read
from tasks._snapshot import NA_VALUES, DataConfig

SourceType = Literal["number", "integer", "text", "boolean", "datetime"]
MOSTLY = 0.95
CODE_WORDS = frozenset(
    ("zip", "zipcode", "postal", "postalcode", "postcode", "phone", "telephone", "plz", "naics", "sic", "fips")
)
ID_WORDS = frozenset(("id", "uuid", "guid", "key"))
COUNTER_WORDS = frozenset(("number", "no", "nr"))
"""An identifier's last word too, but also one of what is counted from 1, such as weeks."""
ROW_WORDS = frozenset(("index", "row", "rownum"))
AMOUNT_WORDS = frozenset(("num", "n", "count", "cnt", "total", "sum"))
"""What is counted is no code, whatever it is: num_phones."""
MIN_ROWS_OF_COUNTER = 1_000
TIME_PARTS = {"year": ("year", "yr"), "month": ("month", "mnth"), "day": ("day",), "hour": ("hour", "hr")}
PART_BOUNDS = {"year": (1800, 2200), "month": (1, 12), "day": (1, 31), "hour": (0, 24)}
NEARLY = 0.5
"""The share of numbers or dates from which the other texts of a column are worth a hint."""
MAX_LISTED_STRAYS = 5
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
    if _needs_value(name, config) and seen.num_present == 0:
        raise _empty_error([name], seen.num_rows, config)
    if name in config.ignore:
        return _column(name, "ignored", "listed in data.ignore", seen)
    if name in config.kinds:
        return _column(name, config.kinds[name], "set in data.kinds", seen)
    if name == config.group and config.time is None:
        return _column(name, "identifier", "groups the rows of a split; new groups have new values", seen)
    if inherited is not None:
        column = replace(_column(name, inherited.kind, inherited.reason, seen), hint=inherited.hint)
    else:
        kind, reason = _rule(name, seen, config.tolerance)
        column = replace(_column(name, kind, reason, seen), hint=_stray_hint(name, kind, seen, config))
    if name == config.time and column.kind not in ("datetime", "ignored"):
        reason = "orders the rows; what is ever larger in newer rows can't be learnt"
        return _column(name, "ignored", reason, seen)
    return column


def _needs_value(name: str, config: DataConfig) -> bool:
    is_group = name == config.group and config.time is None
    return not (name in config.ignore or name in config.kinds or is_group)


def _empty_error(names: list[str], num_rows: int, config: DataConfig) -> InputError:
    columns = "the column" if len(names) == 1 else "the columns"
    return InputError(
        f"A column needs at least one value, but got none in {num_rows} rows of "
        f"{', '.join(f'column={name!r}' for name in names)}. "
        f"Mend the source, or leave {columns} out: data.ignore = {_toml([*config.ignore, *names])}."
    )


def _toml(texts: Iterable[str]) -> str:
    """Write texts as a TOML array."""
    return json.dumps(list(texts), ensure_ascii=False)


def words_of(name: str) -> list[str]:
    """Return the words of a column's name in lower case, divided where case, digits or marks do.

    >>> words_of("ProviderNumber"), words_of("homeZIPCode5"), words_of("user_id")
    (['provider', 'number'], ['home', 'zip', 'code', '5'], ['user', 'id'])
    """
    divided = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    return [word.lower() for word in re.findall(r"[^\W\d_]+|\d+", divided)]


def _is_called_code(words: list[str]) -> bool:
    if not words or AMOUNT_WORDS.intersection(words):
        return False
    return bool(CODE_WORDS.intersection(words)) or (words[-1] == "code" and "of" not in words)


def _is_called_id(words: list[str]) -> bool:
    return bool(words) and (words[-1] in ID_WORDS or words[0] in ID_WORDS - {"key"})


def _rule(name: str, seen: ColumnProfile, tolerance: float) -> tuple[Kind, str]:
    words = words_of(name)
    enough = (1 - tolerance) * seen.num_present
    distinct = f"{seen.num_distinct:,} distinct values"
    best_format = most_read(seen.dates)
    if seen.num_distinct == 1 and seen.num_missing == 0:
        return "ignored", f"constant: every row has {next(iter(seen.values), '')!r}"
    if seen.num_distinct == 2 and set(seen.values) == {"0", "1"}:
        return "boolean", "two values, 0 and 1"
    if seen.num_boolean == seen.num_present and seen.num_distinct <= 2 and seen.dtype in ("Boolean", "String"):
        return "boolean", f"words of truth: {', '.join(sorted(seen.values))}"
    if best_format is not None and _num_dates(seen, best_format) >= enough:
        return "datetime", f"dates written as {best_format}" if best_format else "typed as dates"
    if seen.num_padded:
        return "categorical", f"digits with leading zeros are a code, {distinct}"
    if seen.num_integer >= enough:
        found = _rule_of_whole_numbers(words, seen)
        if found:
            return found
    elif seen.num_numeric < MOSTLY * seen.num_present and seen.dtype == "String" and _is_unique(seen):
        return "identifier", f"(almost) every row has its own value, {distinct}"
    if seen.num_numeric >= enough:
        return "numeric", f"whole numbers, {distinct}" if _is_whole(seen) else f"numbers, {distinct}"
    if seen.max_length >= FREE_TEXT_LENGTH and seen.num_distinct > 0.5 * seen.num_present:
        return "ignored", f"free text of up to {seen.max_length} characters"
    what, share = _nearly(seen)
    return "categorical", f"text, {distinct}" + (f"; {share:.1%} {what}s" if share >= NEARLY else "")


def _rule_of_whole_numbers(words: list[str], seen: ColumnProfile) -> tuple[Kind, str] | None:
    """Say what whole numbers are if they are not a quantity."""
    distinct = f"{seen.num_distinct:,} distinct values"
    unique = f"(almost) every row has its own value, {distinct}"
    last = words[-1] if words else ""
    is_id, is_counter = _is_called_id(words), last in COUNTER_WORDS
    assert seen.minimum is not None and seen.maximum is not None, "a whole number has been seen"
    num_between = seen.maximum - seen.minimum + 1
    if _is_called_code(words):
        return "categorical", f"whole numbers called like a code, {distinct}"
    if _is_unique(seen):
        is_all = seen.num_distinct == seen.num_present and _is_whole(seen)
        if is_id or (is_all and (is_counter or last in ROW_WORDS or num_between == seen.num_present)):
            return "identifier", unique
    starts_anew = seen.minimum in (0, 1) and seen.num_distinct >= MOSTLY * num_between
    if (is_counter or last in ROW_WORDS) and starts_anew and seen.num_distinct > MIN_ROWS_OF_COUNTER:
        return "identifier", f"counts rows from {seen.minimum:.0f} to {seen.maximum:,.0f}, again and again"
    if (is_id or (is_counter and not starts_anew)) and seen.num_distinct < seen.num_present:
        return "categorical", f"whole numbers called like an identifier, some of them repeated, {distinct}"
    return None


def _is_unique(seen: ColumnProfile) -> bool:
    return seen.num_distinct >= MOSTLY * seen.num_present and seen.num_present >= 50


def _is_whole(seen: ColumnProfile) -> bool:
    return seen.num_integer == seen.num_present


def _nearly(seen: ColumnProfile) -> tuple[Literal["number", "date"], float]:
    """Return whether a column is numbers or dates rather, and the share of its values that are."""
    numbers, dates = seen.num_numeric / seen.num_present, _num_dates(seen, most_read(seen.dates)) / seen.num_present
    return ("number", numbers) if numbers >= dates else ("date", dates)


def _num_dates(seen: ColumnProfile, date_format: str | None) -> int:
    """Count the values that encoding reads as dates: typed ones, those of a format, and those of the ISO formats."""
    # ISO formats exclude each other; others may read the same text as different days.
    return sum(seen.dates.get(name, 0) for name in {"", date_format or "", *DATE_FORMATS[:NUM_ISO_FORMATS]})


def _stray_hint(name: str, kind: Kind, seen: ColumnProfile, config: DataConfig) -> str:
    """Say which values keep a text column from being numbers or dates, and the lines that leave them out."""
    what, share = _nearly(seen)
    words = words_of(name)
    is_called_id = _is_called_id(words) or (bool(words) and words[-1] in COUNTER_WORDS)
    is_meant = seen.num_padded or _is_called_code(words) or is_called_id
    if kind not in ("categorical", "identifier", "ignored") or share < NEARLY or not seen.strays or is_meant:
        return ""
    num_others = round((1 - share) * seen.num_present)
    line = f'data.kinds."{name}" = "{"numeric" if what == "number" else "datetime"}"'
    wider = f" with data.tolerance = {_rounded_up(num_others / seen.num_present):g}"
    missing = ""
    if len(seen.strays) <= MAX_LISTED_STRAYS and sum(seen.strays.values()) == num_others:
        known = NA_VALUES if config.csv.na_values is None else config.csv.na_values
        texts = [text for text in (*known, *seen.strays) if text]
        missing = f"; or, if all mean missing: data.csv.na_values = {_toml(texts)}"
    return (
        f"{name!r} is text because of {num_others:,} values ({num_others / seen.num_present:.1%}) that are no "
        f"{what}s, such as {next(iter(seen.strays))!r}. Mend them, or do without them: {line}{wider}{missing}."
    )


def _rounded_up(share: float) -> float:
    """Return a share in hundredths that is not below it."""
    return math.ceil(round(share * 100, 6)) / 100


def _time_hint(columns: list[Column], config: DataConfig) -> tuple[str, str] | None:
    """Return the column of the year and what to do, if the rows have their time in several columns."""
    found: dict[str, str] = {}
    for part, names in TIME_PARTS.items():
        low, high = PART_BOUNDS[part]
        for column in columns:
            is_within = column.minimum is not None and column.maximum is not None
            is_within = is_within and low <= column.minimum and column.maximum <= high  # type: ignore[operator]
            if column.name.lower() in names and is_within and column.source_type == "integer":
                found[part] = column.name
    year = found.get("year")
    if year is None or "month" not in found or year in config.kinds or config.time not in (None, year):
        return None
    if config.time is None and any(column.kind == "datetime" for column in columns):
        return None
    *first, last = map(repr, found.values())
    whole = f', and data.time = "{year}" holds out whole years. For a finer cut' if config.time else None
    return year, (
        f"{', '.join(first)} and {last} look like one time in parts{whole or '. To hold out the newest rows,'} "
        "make one column of them in the source, such as 2013-03-01 13:00, and name it in data.time."
    )


def _column(name: str, kind: Kind, reason: str, seen: ColumnProfile) -> Column:
    # A column that is ignored may still order the rows.
    has_format = kind in ("datetime", "ignored") and seen.dtype == "String"
    return Column(
        name=name,
        kind=kind,
        reason=reason,
        source_type=_source_type(seen, 0.0 if kind == "categorical" else 1 - MOSTLY),
        is_nullable=seen.num_missing > 0,
        minimum=seen.minimum,
        maximum=seen.maximum,
        date_format=(most_read(seen.dates) or None) if has_format else None,
    )


def _source_type(seen: ColumnProfile, tolerance: float) -> SourceType:
    """Return the type that a caller's own rows will have: the stored one, or what a reader makes of the text."""
    if seen.dtype == "Boolean":
        return "boolean"
    if seen.dtype in ("Date", "Datetime"):
        return "datetime"
    if seen.dtype != "String":
        return "number" if seen.dtype.startswith("Float") else "integer"
    enough = (1 - tolerance) * seen.num_present
    if seen.dates and _num_dates(seen, most_read(seen.dates)) >= enough:
        return "datetime"
    if seen.num_numeric >= enough and not seen.num_padded:
        return "integer" if _is_whole(seen) else "number"
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
    check_names(list(seen.columns), config)
    known = {column.name: column for column in champion.columns} if champion else {}
    fresh = tuple(
        n for n in seen.columns if champion and n not in known and n not in config.kinds and n not in config.ignore
    )
    learnt = [n for n in seen.columns if n not in (config.target, config.weight, *fresh) and _needs_value(n, config)]
    empty = [name for name in learnt if seen.columns[name].num_present == 0]
    if empty:
        raise _empty_error(empty, seen.num_rows, config)
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
    if hint := _time_hint(columns, config):
        columns = [replace(c, hint=hint[1]) if c.name == hint[0] else c for c in columns]
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


def check_names(columns: list[str], config: DataConfig) -> None:
    """Raise an InputError if the configuration names a column that is none of these."""
    roles = {"target": config.target, "time": config.time, "group": config.group, "weight": config.weight}
    named = [(f"data.{key}", name) for key, name in roles.items() if name is not None]
    named += [("data.ignore", name) for name in config.ignore] + [("data.kinds", name) for name in config.kinds]
    wrong = [(key, name) for key, name in named if name not in columns]
    if wrong:
        told = (f"{key} names a column of the data, but got {name!r}.{nearest(name, columns)}" for key, name in wrong)
        raise InputError(f"{' '.join(told)} The columns are {', '.join(columns)}.")


def _with_format(column: Column, before: Column | None) -> Column:
    """Keep the champion's date format, so that a day of ambiguous dates does not swap months and days."""
    if before is None or before.date_format is None or column.kind not in ("datetime", "ignored"):
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
    before = champion.labels if champion else ()
    labels = (*before, *sorted((v for v in target.values if v not in before), key=_label_order))
    is_numbers = target.num_numeric >= (1 - config.tolerance) * target.num_present
    has_few = target.is_complete and len(labels) <= MAX_CLASSES
    if task == "regression" and is_numbers:
        return ()
    if task == "regression" or not has_few:
        raise _target_error(target, found, is_numbers=is_numbers, has_few=has_few)
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


def _target_error(target: ColumnProfile, found: str, *, is_numbers: bool, has_few: bool) -> InputError:
    """Return the error for a target that does not suit its task, with what would suit it."""
    num_others = target.num_present - target.num_numeric
    share = num_others / target.num_present
    example = next(iter(_unread(target, Column("", "numeric"))), next(iter(target.values), ""))
    if has_few:
        return InputError(
            f"A regression target holds numbers, but got {num_others:,} other values ({share:.1%}), such as "
            f'{example!r}, in {found}. Mend them, or set model.task = "multiclass".'
        )
    if is_numbers or share > 1 - NEARLY:
        step = 'Set model.task = "regression", or group' if is_numbers else "Group"
        other = "" if is_numbers else ", or name another data.target"
        return InputError(
            f"A classification target has at most {MAX_CLASSES} classes, but got {target.num_distinct:,}, such as "
            f"{example!r}, in {found}. {step} the rare ones in the source{other}."
        )
    return InputError(
        f"A target holds numbers or at most {MAX_CLASSES} classes, but got {1 - share:.1%} numbers and {num_others:,} "
        f"other values, such as {example!r}, {target.num_distinct:,} distinct ones in all, in {found}. "
        "Mend the others in the source, or do without their rows: "
        f'model.task = "regression" with data.tolerance = {_rounded_up(share):g}.'
    )


def _unread(seen: ColumnProfile, column: Column) -> list[str]:
    """List kept values that can't be read as what a column is."""
    return failures(pl.Series([*seen.strays, *seen.values], dtype=pl.String), column).to_list()


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
    problems: dict[str, str] = {}
    for before in champion.inputs:
        profile = seen.columns[before.name]
        if before.name in dropped or before.name in config.kinds or profile.num_present == 0:
            continue
        problem = _retyped(before, profile, config.tolerance)
        if problem:
            problems[before.name] = f"{problem} in column={before.name!r} (was {before.source_type})"
    if problems:
        keys = ", ".join(f'data.kinds."{name}"' for name in problems)
        raise InputError(
            f"A column keeps the type that the champion was trained on, but got {'; '.join(problems.values())}. "
            f"Mend the source, or set {keys} to {'its' if len(problems) == 1 else 'the'} new kind."
        )
    if champion.task != schema.task or champion.target != schema.target:
        raise InputError(
            f"A model keeps its target and task, but got {schema.target!r} ({schema.task}) after "
            f"{champion.target!r} ({champion.task}). Give the new problem another model.name."
        )


def _retyped(before: Column, seen: ColumnProfile, tolerance: float) -> str | None:
    allowed = tolerance * seen.num_present
    if before.kind == "numeric" and seen.num_present - seen.num_numeric > allowed:
        return f"{seen.num_present - seen.num_numeric:,} values that are no numbers{_example(before, seen)}"
    if before.kind == "boolean" and seen.num_distinct > 2 and seen.num_present - seen.num_boolean > allowed:
        return f"{seen.num_distinct:,} distinct values{_example(before, seen)}"
    if before.kind == "datetime":
        readable = _num_dates(seen, before.date_format)
        if seen.num_present - readable > allowed:
            return f"{seen.num_present - readable:,} values that are no dates{_example(before, seen)}"
    # A text column that was nearly numbers, as its hint says, may have been mended.
    if before.kind == "categorical" and before.source_type == "text" and not before.hint:
        now = _source_type(seen, 0.0)
        return f"values that are all {now}s" if now in ("number", "datetime") else None
    return None


def _example(before: Column, seen: ColumnProfile) -> str:
    wrong = _unread(seen, before)
    return f", such as {wrong[0]!r}," if wrong else ""


def schema_text(schema: Schema, metric: str) -> str:
    """Say in one line what was inferred, and below it what could be set otherwise."""
    kinds = [c.kind for c in schema.columns if c.name not in (schema.target, schema.weight)]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    positive = f" (positive: {schema.labels[1]!r})" if schema.task == "binary" else ""
    left_out = [f"{c.name} ({c.kind})" for c in schema.columns if c.kind in ("identifier", "ignored")]
    without = f"; left out: {', '.join(left_out[:8])}{' ...' if len(left_out) > 8 else ''}" if left_out else ""
    first = f"{schema.target} is {schema.task}{positive}, judged by {metric}; columns: {counts}{without}"
    return "\n  ".join((first, *(column.hint for column in schema.columns if column.hint)))


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
