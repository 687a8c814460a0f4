"""What of the champion a training keeps, and why it may keep nothing.

A model that is continued has learnt from all rows that any version before it in its line has learnt from. That no
row of a verdict's holdout is among them follows from one step: a split by row or by group must be the champion's to
the letter, so that a row stays on its side for ever; the windows of a split by time may only move forward, so that
what an older version has learnt from lies before the holdout of every later one. The same holds for the validation
rows and the pilot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from infra.bundle.schema import Schema
from infra.storage import Ref, Store
from tasks._neural.config import NeuralConfig
from tasks._origin import Base, Family, Origin
from tasks._split import SplitRule
from tasks._train import TrainConfig, XGBoostConfig
from tasks._training import TrainingJob
from tasks._versions import ModelVersion

MAX_NAMES = 5
"""How many columns a note names."""

Measure = Callable[[TrainingJob, Ref], float | None]
"""Returns the loss of a pilot on a job's validation rows; None: nobody has measured it yet."""


def kept_schema(schema: Schema, config: TrainConfig, champion: ModelVersion | None) -> tuple[Schema, str]:
    """Return the schema that a training learns from, and what that leaves out, in words.

    A refit has the champion's features: further columns are ignored.
    """
    origin = champion.origin if champion else None
    if config.mode != "refit" or champion is None or origin is None:
        return schema, ""
    known, used = {name for name, *_ in origin.encoding["columns"]}, [column.name for column in schema.inputs]
    new, gone = [name for name in used if name not in known], sorted(known - set(used))
    if not new and not gone:
        return schema, ""
    columns = tuple(
        replace(column, kind="ignored", reason="a refit keeps the champion's features")
        if column.name in new
        else column
        for column in schema.columns
    )
    parts = [f"leaves out {named(new)}, which it does not know"] if new else []
    parts += [f"does without {named(gone)}, which the run does not use"] if gone else []
    return replace(schema, columns=columns), f"The refit of version {champion.version} {' and '.join(parts)}."


def families_of(config: TrainConfig, champion: ModelVersion | None) -> tuple[tuple[Family, ...], str]:
    """Return which families are trained, and a note where these are not the ones that are set.

    A refit keeps the champion's parameters, and so its family.
    """
    origin = champion.origin if champion else None
    if config.mode != "refit" or champion is None or origin is None:
        return config.families, ""
    if origin.family not in get_args(Family):
        why = f"version {champion.version} is the mean of several models"
        return config.families, fallen_back(config, why)
    kept: Family = "neural" if origin.family == "neural" else "xgboost"
    if config.families == (kept,):
        return config.families, ""
    return (kept,), f"Refit: version {champion.version} is of the family {kept}, which alone is trained."


@dataclass(frozen=True)
class RestartedNetwork:
    """With which settings a network is trained, and what of them is kept of another version."""

    config: TrainConfig
    epochs: int | None = None
    refit_of: str | None = None
    note: str = ""


def restarted_network(config: TrainConfig, champion: ModelVersion | None) -> RestartedNetwork:
    """Return what a network keeps of the champion: a refit its settings and epochs, else nothing."""
    origin = champion.origin if champion else None
    if config.mode == "refit" and champion is not None and origin is not None and origin.family == "neural":
        settings = NeuralConfig.model_validate(origin.settings)
        note = (
            f"Refit: the parameters, the {origin.num_rounds:,} epochs and the features of version {champion.version} "
            "are kept."
        )
        kept = config.model_copy(update={"neural": settings})
        return RestartedNetwork(kept, origin.num_rounds, origin.refit_of or champion.version, note)
    if config.mode == "continue":
        return RestartedNetwork(config, note=fallen_back(config, "networks are not continued"))
    return RestartedNetwork(config)


def started(
    store: Store, job: TrainingJob, config: TrainConfig, champion: ModelVersion | None, measure: Measure
) -> tuple[TrainingJob, str]:
    """Return the job with what it keeps of the champion, and a note that says what that is or why it is nothing."""
    if config.mode == "fresh":
        return job, ""
    origin = champion.origin if champion else None
    if champion is None or origin is None:
        why = (
            "there is no champion yet"
            if champion is None
            else f"version {champion.version} was registered by an earlier release and does not say how it came about"
        )
        return job, fallen_back(config, why)
    if origin.family != "xgboost":
        return job, fallen_back(config, f"version {champion.version} is no model of trees alone")
    if config.mode == "refit":
        return refitted(job, champion.version, origin)
    return continued(store, job, config, champion, origin, measure)


def refitted(job: TrainingJob, version: str, origin: Origin) -> tuple[TrainingJob, str]:
    """Return the job of a refit: the settings of a version, and exactly its number of rounds.

    A refit of a refit is named after the first of them, so that a second run on the same files is the same job.
    """
    settings = XGBoostConfig.model_validate(origin.settings)
    note = f"Refit: the parameters, the {origin.num_rounds:,} rounds and the features of version {version} are kept."
    return replace(job, config=settings, rounds=origin.num_rounds, refit_of=origin.refit_of or version), note


def continued(
    store: Store, job: TrainingJob, config: TrainConfig, champion: ModelVersion, origin: Origin, measure: Measure
) -> tuple[TrainingJob, str]:
    """Return the job that adds rounds to the champion's, unless something speaks against it; this is said.

    A champion that has learnt from the same files is not continued on them once more. The job is then the one that
    made it, so that a run on known data ends as it does in every mode: all is cached, and the challenger is the
    champion itself.
    """
    base = origin.base
    is_new = champion.snapshot != job.facts.get("snapshot")
    if is_new:
        base = Base(
            champion.version,
            origin.num_rounds,
            origin.pilot,
            origin.final,
            champion.num_train_rows,
            origin.generations,
        )
    if base is None and origin.refit_of:
        return refitted(job, champion.version, origin)
    if base is None:
        return job, f"All is learnt anew, as version {champion.version} was: it has learnt from the same files."
    why = (
        (None if store.is_intact(base.pilot) and store.is_intact(base.final) else "its trees are gone or damaged")
        or split_objection(champion.rule, job.rule)
        or schema_objection(origin.encoding, job.encoded.schema.encoding())
        or rounds_objection(base, config.xgboost)
    )
    if why:
        return job, fallen_back(config, f"of version {champion.version}, {why}")
    begun = replace(job, base=base)
    goes_on = f"Continue: up to {begun.max_rounds:,} rounds are added to the {base.num_rounds:,} of version "
    goes_on += base.version
    if not is_new:
        return begun, f"{goes_on}, as version {champion.version} did: it has learnt from the same files."
    found = measure(job, base.pilot)
    if found is None:
        return begun, f"{goes_on}, unless its loss on this run's validation rows shows a drift."
    if why := drift_objection(origin, found, config.continue_tolerance):
        return job, fallen_back(config, f"of version {champion.version}, {why}")
    return begun, (
        f"{goes_on}, whose {origin.loss} on this run's validation rows is {found:.5g} "
        f"({origin.validation_loss:.5g} when it was trained)."
    )


def fallen_back(config: TrainConfig, why: str) -> str:
    """Return the note of a training that keeps nothing."""
    return f'All is learnt anew, though train.mode = "{config.mode}": {why}.'


def split_objection(before: SplitRule, now: SplitRule) -> str | None:
    """Say why trees that learnt under one rule may not go on under another."""
    if (before.by, before.column) != (now.by, now.column):
        ways = [f"by {r.by}" + (f" ({r.column})" if r.column else "") for r in (before, now)]
        return f"the rows were divided {ways[0]} and are now divided {ways[1]}"
    if now.by != "time":
        return None if before == now else "the split rule has changed, so that it has learnt from rows now held out"
    for side, old, new in (
        ("holdout", before.holdout_from, now.holdout_from),
        ("validation window", before.validation_from, now.validation_from),
    ):
        if new < old:
            return f"the {side} began later than now, so that it has learnt from rows that are now in it"
    return None


def schema_objection(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """Say why trees of rows that were encoded in one way can't go on with rows that are encoded in another."""
    old, new = ({name: rest for name, *rest in encoding["columns"]} for encoding in (before, now))
    if list(old) != list(new):
        added, gone = [n for n in new if n not in old], [n for n in old if n not in new]
        parts = [f"{named(added)} new"] * bool(added) + [f"{named(gone)} gone"] * bool(gone)
        return f"the features differ: {' and '.join(parts) or 'their order'}"
    if changed := [name for name in new if new[name] != old[name]]:
        return f"the kind or format of {named(changed)} has changed"
    if before["target"] != now["target"]:
        return "the target, its task or its labels have changed"
    if before["roles"][2] != now["roles"][2]:
        return "data.weight has changed"
    if before["version"] != now["version"]:
        return "rows are encoded in another way since this release"
    return None


def rounds_objection(base: Base, config: XGBoostConfig) -> str | None:
    """Say why there is no room for further rounds: fewer than it takes to see that they no longer help."""
    if base.num_rounds + config.early_stopping_rounds <= config.rounds:
        return None
    return (
        f"the {base.num_rounds:,} rounds and {config.early_stopping_rounds:,} more would pass "
        f"train.xgboost.rounds = {config.rounds:,}"
    )


def drift_objection(origin: Origin, found: float, tolerance: float) -> str | None:
    """Say why the data have drifted too far: the loss is worse than it was at the training, beyond the tolerance."""
    if found <= origin.validation_loss * (1 + tolerance):
        return None
    return (
        f"the {origin.loss} on this run's validation rows is {found:.5g}, and was {origin.validation_loss:.5g} when it "
        f"was trained: more than train.continue_tolerance = {tolerance:g} above it"
    )


def named(names: Sequence[str]) -> str:
    """Return names for a note, not too many of them.

    >>> named(["a", "b"]), named(list("abcdefg"))
    ("'a', 'b'", "'a', 'b', 'c', 'd', 'e' and 2 more")
    """
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(map(repr, names[:MAX_NAMES])) + more
