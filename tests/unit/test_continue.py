"""Training that keeps something of the champion: which trees, which settings, and when nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from test_xgboost_member import CONFIG, job_of, rows, train

from infra.bundle.schema import Column, Schema, Task
from infra.member import Member
from infra.storage import Ref, Store
from tasks import _checkpoint, _xgboost
from tasks._candidate import BundleRef, Candidate, load_bundle
from tasks._checkpoint import CHECKPOINTS
from tasks._continue import kept_schema, split_objection, started
from tasks._encode import TARGET, TIME, load_shard
from tasks._origin import Base, Origin
from tasks._split import HOLDOUT, TRAIN, VALIDATION, SplitRule
from tasks._train import TrainConfig, XGBoostConfig
from tasks._training import TrainingJob
from tasks._versions import VERSIONS, ModelVersion
from tasks._xgboost import load_booster, pilot_loss

OLDER_ROWS = 350
"""Of the first two files; the third one is new, and has a city that these do not."""


def base_of(store: Store, found: Candidate, version: str = "1") -> Base:
    """Return a candidate as what a later training starts from."""
    num_rows = load_bundle(store, found.bundle).facts["num_train_rows"]
    return Base(version, found.num_rounds, found.pilot, found.bundle.booster, num_rows)


def two_steps(folder: Path, task: Task = "binary") -> tuple[Store, TrainingJob, Candidate]:
    """Train on two files of three, and return the job that continues on all of them."""
    frame = rows(task).with_columns(
        city=pl.when((pl.col("row") >= OLDER_ROWS) & (pl.col("row") % 4 == 0)).then(pl.lit("Zagreb")).otherwise("city")
    )
    store, job = job_of(folder, frame, task=task)
    job = replace(job, config=CONFIG.model_copy(update={"rounds": 200, "learning_rate": 0.05}), checkpoint_rounds=7)
    short = CONFIG.model_copy(update={"rounds": 10, "learning_rate": 0.1})
    older = train(store, replace(job, config=short, encoded=replace(job.encoded, shards=job.encoded.shards[:2])))
    return store, replace(job, base=base_of(store, older)), older


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, TrainingJob, Candidate]:
    """Give a binary problem of two steps."""
    return two_steps(tmp_path_factory.mktemp("steps"))


@pytest.fixture(scope="module")
def newer(steps: tuple[Store, TrainingJob, Candidate]) -> Candidate:
    """Continue it."""
    store, job, _ = steps
    return train(store, job)


# Continued trees


def test_a_continued_model_begins_with_the_trees_of_its_base(
    steps: tuple[Store, TrainingJob, Candidate], newer: Candidate
) -> None:
    """Pilot and shipped model begin, byte for byte, with those of the base, and have new trees after them."""
    store, _, older = steps
    n = older.num_rounds
    pairs = [(older.pilot, newer.pilot), (older.bundle.booster, newer.bundle.booster)]
    found = [(load_booster(store, old), load_booster(store, new)) for old, new in pairs]

    assert [old.save_raw() for old, _ in found] == [new[:n].save_raw() for _, new in found]
    assert [newer.num_rounds] * 2 == [new.num_boosted_rounds() for _, new in found]
    assert n < newer.num_rounds < newer.max_rounds == 200


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_losses_of_a_continued_model_are_those_of_its_trees(tmp_path: Path, task: Task) -> None:
    """What the training measured is what the joined trees have on the rows as they are, also of new categories."""
    store, job, older = two_steps(tmp_path, task)
    found = train(store, job)
    cities = load_shard(store, job.encoded.shards[2]).get_column("city").to_list()
    known = {city for shard in job.encoded.shards[:2] for city in load_shard(store, shard).get_column("city")}
    measured = [pilot_loss(store, job, older.pilot), pilot_loss(store, job, found.pilot)]

    assert max(cities) > max(known)
    assert found.base_loss is not None
    np.testing.assert_allclose([found.base_loss, found.origin.validation_loss], measured, rtol=2e-5)
    assert found.origin.validation_loss <= found.base_loss


@pytest.mark.parametrize("batch_rows", [0, 50])
def test_rows_on_disk_begin_with_the_same_scores(
    steps: tuple[Store, TrainingJob, Candidate], batch_rows: int, newer: Candidate
) -> None:
    """In batches, and with the rows on disk, the trees of the base give what they give in memory."""
    store, job, _ = steps
    found = train(store, replace(job, is_external=True, batch_rows=batch_rows))

    assert newer.base_loss == found.base_loss
    np.testing.assert_allclose(found.origin.validation_loss, pilot_loss(store, job, found.pilot), rtol=2e-5)


def test_a_continued_training_that_is_resumed_is_the_same(
    steps: tuple[Store, TrainingJob, Candidate], newer: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From every checkpoint of both phases a continued training gives the candidate of one that never stopped."""
    store, job, _ = steps
    monkeypatch.setattr(_xgboost, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(_checkpoint, "KEPT", 1000)
    job = replace(job, seed=5, checkpoint_rounds=12)
    whole = train(store, job)
    checkpoints = _checkpoint.Checkpoints(store, job)
    keys = [name.rpartition("/")[2].removesuffix(".json") for name in checkpoints._names()]
    starts = [checkpoints._cache.get(key, CHECKPOINTS) for key in keys]
    resumed = [_xgboost.train(Member.alone(), store, job, start).candidate for start in starts]

    assert {"0", "1"} == {key[0] for key in keys}
    assert len(keys) > 3
    assert [whole] * len(keys) == resumed
    assert whole.bundle != newer.bundle


def test_new_trees_draw_from_seeds_that_the_base_has_not_used(
    steps: tuple[Store, TrainingJob, Candidate], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first seed of a phase is one more than the last that the kept trees of the base have used."""
    store, job, older = steps
    boosted, seeds = _xgboost.boosted, []

    def watched(*args: Any, seed: int, **options: Any) -> Any:
        seeds.append(seed)
        return boosted(*args, seed=seed, **options)

    monkeypatch.setattr(_xgboost, "boosted", watched)
    train(store, job)
    last_used = job.seed + (older.num_rounds - 1) // job.checkpoint_rounds

    assert [last_used + 1] * 2 == seeds


def test_where_no_round_helps_the_trees_stay(steps: tuple[Store, TrainingJob, Candidate]) -> None:
    """If no new round is better on the validation rows, both models keep the base's trees, and the facts its rows."""
    store, job, older = steps
    wild = CONFIG.model_copy(update={"learning_rate": 1.0, "max_depth": 12, "min_child_weight": 0.0, "reg_lambda": 0.0})
    found = train(store, replace(job, config=wild))
    bundle = load_bundle(store, found.bundle)

    assert (older.num_rounds, older.pilot, store.get(older.bundle.booster), None) == (
        found.num_rounds,
        found.pilot,
        store.get(found.bundle.booster),
        found.num_final_rows,
    )
    assert job.base is not None
    assert (job.base.num_train_rows, found.base_loss) == (bundle.facts["num_train_rows"], found.origin.validation_loss)
    assert (
        f"Continues version 1: no round added to {older.num_rounds}, as none that learnt from {found.num_train_rows} "
        f"rows helped on {found.num_validation_rows} others; its trees stay as they are."
    ) == found.sentence


def test_a_continued_model_says_what_was_added(steps: tuple[Store, TrainingJob, Candidate], newer: Candidate) -> None:
    """The line on a training names the version, and how many rounds were added to how many."""
    n, added = steps[2].num_rounds, newer.num_rounds - steps[2].num_rounds

    assert (
        f"Continues version 1: {added} rounds added to {n} on {newer.num_train_rows} rows, stopped by "
        f"{newer.num_validation_rows} others; then on {newer.num_final_rows} of both, which is shipped."
    ) == newer.sentence
    assert ("continue", 1) == (newer.mode, newer.origin.generations)


def test_losses_before_the_first_new_round_are_known_or_measured(newer: Candidate) -> None:
    """The curve tells of new rounds, the base's loss of the last old one, and nothing of those before."""
    n = newer.base_rounds

    assert (newer.validation_curve[0], newer.base_loss, None) == tuple(map(newer.loss_after, (n + 1, n, n - 1)))


# A refit


def test_a_refit_is_a_training_of_the_same_parameters(steps: tuple[Store, TrainingJob, Candidate]) -> None:
    """A refit gives the model of a job with the champion's settings that ends after exactly its rounds."""
    store, job, older = steps
    job = replace(job, base=None)
    begun, note = started(store, job, TrainConfig(mode="refit"), champion_of(older), no_measure)
    config = CONFIG.model_copy(update={"rounds": 999, "early_stopping_rounds": 999, "learning_rate": 0.1})
    refitted, plain = train(store, begun), train(store, replace(job, config=config, rounds=older.num_rounds))
    n = older.num_rounds

    assert (refitted.bundle, refitted.pilot, n, n) == (
        plain.bundle,
        plain.pilot,
        refitted.num_rounds,
        len(refitted.validation_curve),
    )
    assert f"Refit: the parameters, the {n} rounds and the features of version 1 are kept." == note
    assert (
        f"Version 1 refit: its parameters and its {n} rounds on {refitted.num_train_rows} rows, measured on "
        f"{refitted.num_validation_rows} others; then on {refitted.num_final_rows} of both, which is shipped."
    ) == refitted.sentence


def test_a_refit_leaves_new_columns_out(steps: tuple[Store, TrainingJob, Candidate]) -> None:
    """Columns that the champion does not know are ignored, and one line names them and those that are gone."""
    _, job, older = steps
    schema = job.encoded.schema
    wider = replace(
        schema,
        columns=(*(c for c in schema.columns if c.name != "x"), Column("age", "numeric"), Column("pay", "numeric")),
    )
    cut, note = kept_schema(wider, TrainConfig(mode="refit"), champion_of(older))

    assert [f.name for f in schema.features if f.name != "x"] == [f.name for f in cut.features]
    assert (
        "The refit of version 1 leaves out 'age', 'pay', which it does not know and does without 'x', "
        "which the run does not use."
    ) == note
    assert (wider, "") == kept_schema(wider, TrainConfig(), champion_of(older))
    assert (schema, "") == kept_schema(schema, TrainConfig(mode="refit"), champion_of(older))


# What speaks against it


def champion_of(older: Candidate, **changes: Any) -> ModelVersion:
    """Return a version that is a candidate."""
    version = ModelVersion("loans", "1", "run", "", older.bundle, RULE, "old", (), 300, {}, older.origin)
    return replace(version, **changes)


RULE = SplitRule("row", 0.2, 0.15, hash_version=2)


def no_measure(_job: TrainingJob, _pilot: Ref) -> float:
    """Fail: nothing is to be measured."""
    raise AssertionError("it is not measured")


def begun(
    steps: tuple[Store, TrainingJob, Candidate],
    champion: ModelVersion | None,
    measure: Callable[[TrainingJob, Ref], float | None] = no_measure,
    **changes: Any,
) -> tuple[TrainingJob, TrainingJob, str]:
    """Return the job without a champion, that with it, and the note."""
    store, job, _ = steps
    config = changes.pop("config", TrainConfig(mode="continue", xgboost=job.config))
    job = replace(job, base=None, facts={"snapshot": "new"}, **changes)
    return job, *started(store, job, config, champion, measure)


def test_a_fresh_training_keeps_nothing(steps: tuple[Store, TrainingJob, Candidate]) -> None:
    """By default nothing is kept, and nothing is said."""
    plain, job, note = begun(steps, champion_of(steps[2]), config=TrainConfig())

    assert (plain, "") == (job, note)


@pytest.mark.parametrize("mode", ["refit", "continue"])
def test_without_an_origin_all_is_learnt_anew(steps: tuple[Store, TrainingJob, Candidate], mode: Any) -> None:
    """Without a champion, or with one that does not say how it came about, nothing is kept, and a note says so."""
    config = TrainConfig(mode=mode)
    none = begun(steps, None, config=config)
    silent = begun(steps, champion_of(steps[2], origin=None), config=config)

    assert (none[0], silent[0]) == (none[1], silent[1])
    assert (
        f'All is learnt anew, though train.mode = "{mode}": there is no champion yet.',
        f'All is learnt anew, though train.mode = "{mode}": version 1 was registered by an earlier release and does '
        "not say how it came about.",
    ) == (none[2], silent[2])


def test_a_champion_that_fits_is_continued(steps: tuple[Store, TrainingJob, Candidate]) -> None:
    """With the same split and features, room for rounds and no drift, the job has the champion's trees as its base."""
    _, job, older = steps
    loss = older.origin.validation_loss
    _, found, note = begun(steps, champion_of(older, rule=job.rule), lambda *_: loss * 1.1)
    n = older.num_rounds

    assert job.base is not None
    assert replace(job.base, num_train_rows=300) == found.base
    assert (
        f"Continue: up to {200 - n} rounds are added to the {n} of version 1, whose logloss on this run's validation "
        f"rows is {loss * 1.1:.5g} ({loss:.5g} when it was trained)."
    ) == note
    _, unsure, note = begun(steps, champion_of(older, rule=job.rule), lambda *_: None)
    assert (found, True) == (unsure, note.endswith("unless its loss on this run's validation rows shows a drift."))


def test_the_same_files_are_not_learnt_from_twice(steps: tuple[Store, TrainingJob, Candidate]) -> None:
    """On the champion's own files the job is the one that made it: anew, from its base, or a refit."""
    _, job, older = steps
    origin = older.origin
    known = champion_of(older, rule=job.rule, snapshot="new")
    grown = replace(known, version="2", origin=replace(origin, base=job.base))
    refit = replace(known, version="3", origin=replace(origin, refit_of="1"))
    found = [begun(steps, version) for version in (known, grown, refit)]

    assert [(None, None), (job.base, None), (None, "1")] == [(f[1].base, f[1].refit_of) for f in found]
    assert "All is learnt anew, as version 1 was: it has learnt from the same files." == found[0][2]
    assert found[1][2].endswith("of version 1, as version 2 did: it has learnt from the same files.")


Change = Callable[[TrainingJob, Origin], tuple[dict[str, Any], Origin]]


def encoded(job: TrainingJob, origin: Origin, **changes: Any) -> tuple[dict[str, Any], Origin]:
    """Return a change of the job's schema."""
    return {"encoded": replace(job.encoded, schema=replace(job.encoded.schema, **changes))}, origin


def without(schema: Schema, name: str) -> tuple[Column, ...]:
    """Return the columns but for one."""
    return tuple(column for column in schema.columns if column.name != name)


OBJECTIONS: dict[str, Change] = {
    "the split rule has changed, so that it has learnt from rows now held out": lambda job, origin: (
        {"rule": replace(job.rule, holdout_fraction=0.3)},
        origin,
    ),
    "the rows were divided by row and are now divided by time (day)": lambda job, origin: (
        {"rule": replace(job.rule, by="time", column="day")},
        origin,
    ),
    "the features differ: 'age' new and 'x' gone": lambda job, origin: encoded(
        job, origin, columns=(*without(job.encoded.schema, "x"), Column("age", "numeric"))
    ),
    "the kind or format of 'w' has changed": lambda job, origin: encoded(
        job,
        origin,
        columns=tuple(replace(c, kind="categorical") if c.name == "w" else c for c in job.encoded.schema.columns),
    ),
    "the target, its task or its labels have changed": lambda job, origin: encoded(job, origin, labels=("1", "0")),
    "its trees are gone or damaged": lambda _job, origin: ({}, replace(origin, pilot=Ref("pilots/x.ubj", "d", 1))),
    "more would pass train.xgboost.rounds = 200": lambda _job, origin: ({}, replace(origin, num_rounds=196)),
}


@pytest.mark.parametrize("why", OBJECTIONS)
def test_a_champion_that_does_not_fit_is_not_continued(steps: tuple[Store, TrainingJob, Candidate], why: str) -> None:
    """Another split, other features, kinds or labels, lost trees or too many rounds: all is learnt anew, unmeasured."""
    _, job, older = steps
    changes, origin = OBJECTIONS[why](job, older.origin)
    plain, found, note = begun(steps, champion_of(older, rule=job.rule, origin=origin), **changes)

    assert plain == found
    assert note.startswith('All is learnt anew, though train.mode = "continue": of version 1, ')
    assert note.endswith(f"{why}.")


@pytest.mark.parametrize("factor", [1.11, float("nan"), float("inf")])
def test_a_champion_that_has_drifted_is_not_continued(
    steps: tuple[Store, TrainingJob, Candidate], factor: float
) -> None:
    """A loss that is larger than it was beyond the tolerance, or no number, is a drift; a wider tolerance is not."""
    _, job, older = steps
    champion, loss = champion_of(older, rule=job.rule), older.origin.validation_loss
    plain, found, note = begun(steps, champion, lambda *_: loss * factor)
    wide = TrainConfig(mode="continue", continue_tolerance=0.12, xgboost=job.config)
    _, tolerant, _ = begun(steps, champion, lambda *_: loss * factor, config=wide)

    assert (plain, factor == 1.11) == (found, tolerant.base is not None)
    assert (
        'All is learnt anew, though train.mode = "continue": of version 1, the logloss on this run\'s validation rows '
        f"is {loss * factor:.5g}, and was {loss:.5g} when it was trained: more than train.continue_tolerance = 0.1 "
        "above it."
    ) == note


# Which rows a chain has learnt from


def test_a_chain_has_learnt_from_no_row_of_its_holdout() -> None:
    """Of random windows of time, those that may follow one another keep all that was learnt out of later holdouts."""
    rng = np.random.default_rng(0)
    shard = pl.DataFrame({TIME: np.arange(100.0), TARGET: np.zeros(100)})
    lengths = []
    for _ in range(200):
        chain: list[SplitRule] = []
        for _ in range(12):
            validation, holdout = np.sort(rng.choice(99, 2, replace=False) + 1).astype(float)
            rule = SplitRule("time", 0.2, 0.15, holdout, validation, "day")
            if not chain or split_objection(chain[-1], rule) is None:
                chain.append(rule)
                sides = [one.sides(shard) for one in chain]
                final = np.any([np.isin(side, [TRAIN, VALIDATION]) for side in sides], axis=0)
                pilot = np.any([side == TRAIN for side in sides], axis=0)

                assert not (final & (sides[-1] == HOLDOUT)).any()
                assert not (pilot & (sides[-1] != TRAIN)).any()
        lengths.append(len(chain))

    assert max(lengths) > 3


def test_a_window_that_moves_back_is_refused() -> None:
    """A holdout, or a validation window, that begins before the champion's has rows that it has learnt from."""
    old = SplitRule("time", 0.2, 0.15, 80.0, 70.0, "day")
    found = [
        split_objection(old, replace(old, **change)) for change in ({"holdout_from": 79.0}, {"validation_from": 69.0})
    ]

    assert [
        "the holdout began later than now, so that it has learnt from rows that are now in it",
        "the validation window began later than now, so that it has learnt from rows that are now in it",
    ] == found
    assert split_objection(old, replace(old, holdout_from=90.0, validation_from=80.0)) is None


# What a version remembers


def test_a_version_remembers_its_origin(steps: tuple[Store, TrainingJob, Candidate], newer: Candidate) -> None:
    """An origin comes back from JSON whole, and a version of an earlier release has none."""
    version = ModelVersion("loans", "2", "run", "", BundleRef(()), RULE, "s", (), 1, {}, newer.origin)
    text = VERSIONS.dump_json(version)
    before = VERSIONS.dump_python(version, mode="json")
    del before["origin"]

    assert version == VERSIONS.validate_json(text)
    assert replace(version, origin=None) == VERSIONS.validate_python(before)
    assert steps[1].config == XGBoostConfig.model_validate(newer.origin.settings)
