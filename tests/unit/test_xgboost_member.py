"""Training XGBoost on one worker: which rows it sees, and what it returns."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import xgboost as xgb

from infra.bundle.encoder import encode_frame
from infra.bundle.schema import Task
from infra.bundle.trees import Trees
from infra.bundle.vocabulary import Vocabulary
from infra.errors import RunError
from infra.member import Member
from infra.progress import listening
from infra.storage import Store
from tasks import _xgboost
from tasks._candidate import Candidate, load_bundle
from tasks._encode import TARGET, Encoded, encode_file, extended_vocabulary, load_shard
from tasks._finish import NUM_GOLDEN, conformal_half_width, golden_rows, job_vocabulary, validation_scores
from tasks._kinds import infer_schema
from tasks._learning import side_rows
from tasks._metrics import best_threshold
from tasks._profile import merge, profile_frame
from tasks._sample import Sample, SampleRule, Strata
from tasks._snapshot import CsvConfig, DataConfig, source_file
from tasks._split import HOLDOUT, TRAIN, VALIDATION, SplitConfig, make_rule
from tasks._train import XGBoostConfig
from tasks._training import Matrices, ShardBatches, TrainingJob, library_parameters
from tasks._xgboost import importance, load_booster

N = 600
CONFIG = XGBoostConfig(rounds=60, early_stopping_rounds=5, learning_rate=0.3, max_depth=3)
KINDS = {"row": "numeric"}


def train(store: Store, job: TrainingJob) -> Candidate:
    """Train as the only member."""
    candidate = _xgboost.train(Member.alone(), store, job).candidate
    assert candidate is not None
    return candidate


def rows(task: Task = "binary", seed: int = 0) -> pl.DataFrame:
    """Make rows whose column `row` says which row it is, and whose target can be learnt in part."""
    rng = np.random.default_rng(seed)
    x, noise = rng.normal(size=N), rng.normal(size=N)
    city = rng.choice(["Rome", "Oslo", "Bern"], N)
    signal = 2 * x + (city == "Rome") + noise
    targets = {"binary": signal > 0.5, "multiclass": np.digitize(signal, [-1, 1]), "regression": signal * 10}
    y = pl.Series(targets[task]).cast(pl.Float64 if task == "regression" else pl.Int64)
    return pl.DataFrame(
        {
            "row": np.arange(N),
            "x": x,
            "city": pl.Series(city).replace("Bern", None),
            "day": [date(2024, 1, 1) + timedelta(int(i) // 10) for i in range(N)],
            "customer": [f"c{i % 40}" for i in range(N)],
            "w": rng.integers(0, 3, N),
            "y": y,
        }
    ).with_columns(y=pl.when(pl.col("row") % 50 != 7).then(pl.col("y")))


def job_of(folder: Path, frame: pl.DataFrame, **settings: Any) -> tuple[Store, TrainingJob]:
    """Encode rows as three files, and describe their training."""
    folder.mkdir(exist_ok=True)
    store = Store(str(folder / "root"))
    by = settings.pop("by", "row")
    share = settings.pop("share", 1.0)
    task = settings.pop("task", "binary")
    config = DataConfig(source="d", target="y", kinds=KINDS, **settings)
    files = []
    for i, part in enumerate((frame[:100], frame[100:350], frame[350:])):
        part.write_parquet(folder / f"{i}.parquet")
        files.append(source_file(str(folder / f"{i}.parquet"), CsvConfig()))
    seen = merge(profile_frame(part, config.time) for part in (frame[:100], frame[100:350], frame[350:]))
    schema = infer_schema(seen, config, task, None)
    vocabulary = extended_vocabulary(Vocabulary({"gone": ("a",)}), schema, seen)
    shards = tuple(encode_file(store, file, schema, vocabulary, f"shards/{i}") for i, file in enumerate(files))
    encoded = Encoded(schema, store.put("vocabulary.json", vocabulary.to_json().encode()), shards, num_new=3)
    rule = make_rule(SplitConfig(by=by), schema, seen.columns[config.time] if config.time else None)
    return store, TrainingJob(
        model="loans",
        encoded=encoded,
        files=tuple(files),
        rule=rule,
        sample=Sample(SampleRule(thresholds=(1 - share,)) if share < 1 else SampleRule(), 0, 0),
        config=CONFIG,
        include_validation=True,
        seed=3,
        interval=None,
        threads=1,
        facts={"model": "loans"},
    )


def handed_out(store: Store, job: TrainingJob, *sides: int) -> list[dict[str, Any]]:
    """Collect the batches that XGBoost would get."""
    batches = ShardBatches(store, job, *sides)
    collected: list[dict[str, Any]] = []
    while batches.next(lambda **batch: collected.append(batch)):
        pass
    return collected


def ids(batches: list[dict[str, Any]]) -> list[int]:
    """Return which rows are in batches, told by the feature that says so."""
    return [int(row) for batch in batches for row in batch["data"][:, batch["feature_names"].index("row")]]


def sides_of(store: Store, job: TrainingJob) -> dict[int, list[int]]:
    """Return the rows of each side, found by asking the rule about all rows of all shards."""
    shards = [load_shard(store, shard) for shard in job.encoded.shards]
    whole = pl.concat(shards)
    sides = job.rule.sides(whole)
    return {s: whole.get_column("row").to_numpy()[sides == s].astype(int).tolist() for s in (-1, 0, 1, 2)}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, TrainingJob]:
    """Give a small binary problem, split by row."""
    return job_of(tmp_path_factory.mktemp("small"), rows())


@pytest.fixture(scope="module")
def candidate(small: tuple[Store, TrainingJob]) -> Candidate:
    """Train the small problem once."""
    return train(*small)


@pytest.fixture(scope="module")
def once(small: tuple[Store, TrainingJob]) -> Candidate:
    """Train the small problem in one phase."""
    store, job = small
    return train(store, replace(job, include_validation=False))


def pilot_scores(store: Store, job: TrainingJob, found: Candidate) -> tuple[Any, Any, Any]:
    """Return labels, scores and weights of the validation rows by the model of the first phase."""
    return validation_scores(
        store, job, replace(load_bundle(store, found.bundle), predictor=Trees(load_booster(store, found.pilot)))
    )


# Which rows


SPLITS = [{"by": "row"}, {"by": "group", "group": "customer"}, {"by": "time", "time": "day"}]


@pytest.mark.parametrize("settings", SPLITS)
def test_training_gets_the_rows_of_its_side_alone(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Training and validation get exactly their rows; held-out and unlabelled ones reach neither."""
    store, job = job_of(tmp_path, rows(), **settings)
    sides = sides_of(store, job)

    assert (sides[TRAIN], sides[VALIDATION]) == tuple(ids(handed_out(store, job, s)) for s in (TRAIN, VALIDATION))
    assert [12, True] == [len(sides[-1]), all(sides.values())]


@pytest.mark.parametrize("settings", SPLITS)
def test_the_second_phase_gets_the_rows_of_both_sides_alone(tmp_path: Path, settings: dict[str, Any]) -> None:
    """The second phase gets every row of training and validation once, in their order, and no other."""
    store, job = job_of(tmp_path, rows(), **settings)
    sides = sides_of(store, job)

    assert sorted(sides[TRAIN] + sides[VALIDATION]) == ids(handed_out(store, job, TRAIN, VALIDATION))


def test_customers_of_the_holdout_are_not_trained_on(tmp_path: Path) -> None:
    """Split by group, no customer of the holdout is among the rows of training or validation."""
    store, job = job_of(tmp_path, rows(), by="group", group="customer")
    customers = [{row % 40 for row in sides_of(store, job)[side]} for side in (TRAIN, VALIDATION, HOLDOUT)]

    assert 40 == sum(map(len, customers)) == len(set.union(*customers))


def test_training_is_older_than_the_holdout(tmp_path: Path) -> None:
    """Split by time, every row of training is older than every one of validation, and these than the holdout."""
    store, job = job_of(tmp_path, rows(), by="time", time="day")
    days = {side: [row // 10 for row in sides_of(store, job)[side]] for side in (TRAIN, VALIDATION, HOLDOUT)}

    assert max(days[TRAIN]) < min(days[VALIDATION])
    assert max(days[VALIDATION]) < min(days[HOLDOUT])


def test_only_training_rows_are_sampled(tmp_path: Path) -> None:
    """A sample thins the rows to learn from, in the second phase both sides; to stop a training all are used."""
    store, job = job_of(tmp_path, rows(), share=0.4)
    full = replace(job, sample=Sample(SampleRule(), 0, 0))
    chosen = [
        frame.filter(pl.Series(job.sample.chooses(store, frame)))
        for frame in (load_shard(store, s) for s in job.encoded.shards)
    ]
    sampled = {int(row) for frame in chosen for row in frame.get_column("row")}
    train_rows = ids(handed_out(store, full, TRAIN))

    assert [row for row in train_rows if row in sampled] == ids(handed_out(store, job, TRAIN))
    assert ids(handed_out(store, full, VALIDATION)) == ids(handed_out(store, job, VALIDATION))
    assert 0.3 * len(train_rows) < len(ids(handed_out(store, job, TRAIN))) < 0.5 * len(train_rows)
    both = ids(handed_out(store, full, TRAIN, VALIDATION))
    assert [row for row in both if row in sampled] == ids(handed_out(store, job, TRAIN, VALIDATION))


@pytest.mark.parametrize("weight", [None, "w"])
def test_rows_of_a_sample_carry_its_weights(tmp_path: Path, weight: str | None) -> None:
    """A rule's weights multiply those of the data, on the sides to learn from and on these alone."""
    store, job = job_of(tmp_path, rows(), weight=weight)
    rule = SampleRule("stratified", (0.0, 0.5, 0.0), Strata(TARGET, 3), (1.0, 2.0, 0.5))
    weighted = replace(job, sample=Sample(rule, 0, 0))
    given = {int(r): float(w) for r, w in zip(rows()["row"], rows()["w"], strict=True)}
    found = handed_out(store, weighted, TRAIN, VALIDATION)
    expected = [
        (given[int(row)] if weight else 1.0) * (2.0 if label == 0 else 0.5)
        for batch in found
        for row, label in zip(ids([batch]), batch["label"], strict=True)
    ]

    assert expected == [float(w) for batch in found for w in batch["weight"]]
    assert {weight is not None} == {"weight" in batch for batch in handed_out(store, weighted, VALIDATION)}


def test_a_shard_without_rows_of_a_side_is_skipped(tmp_path: Path) -> None:
    """Split by time, old files hold no validation rows, and make no empty batch."""
    store, job = job_of(tmp_path, rows(), by="time", time="day")

    assert [1, 3] == [len(handed_out(store, job, VALIDATION)), len(handed_out(store, job, TRAIN))]


def test_batches_start_again(small: tuple[Store, TrainingJob]) -> None:
    """XGBoost reads the batches several times: after a reset they are the same."""
    store, job = small
    batches = ShardBatches(store, job, TRAIN)
    collected: list[Any] = []
    for _ in range(2):
        while batches.next(lambda **batch: collected.append(batch["data"])):
            pass
        batches.reset()

    assert 6 == len(collected)
    np.testing.assert_array_equal(np.concatenate(collected[:3]), np.concatenate(collected[3:]))


def test_a_batch_is_one_shards_side(tmp_path: Path) -> None:
    """A batch has the features in order, their types, labels, and weights where the data has some."""
    store, job = job_of(tmp_path, rows(), weight="w")
    schema = job.encoded.schema
    frame = side_rows(store, job, job.encoded.shards[0], TRAIN)
    (batch, *_) = handed_out(store, job, TRAIN)
    names = [f.name for f in schema.features]

    assert ["row", "x", "city", "day.month", "day.day", "day.weekday", "day.elapsed_days", "customer"] == names
    assert (names, ["q", "q", "c", "q", "q", "q", "q", "c"]) == (batch["feature_names"], batch["feature_types"])
    assert rows()["w"].gather(ids([batch])).to_list() == batch["weight"].tolist()
    assert frame.get_column(TARGET).to_list() == batch["label"].tolist()
    assert "weight" not in handed_out(*job_of(tmp_path / "b", rows()), TRAIN)[0]


def test_labels_of_held_out_rows_change_nothing(
    tmp_path: Path, small: tuple[Store, TrainingJob], candidate: Candidate
) -> None:
    """With the labels of all held-out rows turned round, the candidate is the same, byte for byte."""
    store, job = small
    held = sides_of(store, job)[HOLDOUT]
    turned = rows().with_columns(y=pl.when(pl.col("row").is_in(held)).then(1 - pl.col("y")).otherwise(pl.col("y")))
    other = train(*job_of(tmp_path / "b", turned))

    assert not rows()["y"].equals(turned["y"])
    assert candidate == other


def test_labels_of_validation_rows_change_the_end_alone_of_the_pilot(
    tmp_path: Path, small: tuple[Store, TrainingJob], candidate: Candidate
) -> None:
    """What chooses threshold and variant has not learnt from validation rows: they end it, its trees are the same.

    The shipped model has learnt from them.
    """
    store, job = small
    chosen = sides_of(store, job)[VALIDATION]
    turned = rows().with_columns(y=pl.when(pl.col("row").is_in(chosen)).then(1 - pl.col("y")).otherwise(pl.col("y")))
    store_b, job_b = job_of(tmp_path / "b", turned)
    other = train(store_b, job_b)
    n = min(candidate.num_rounds, other.num_rounds)
    pilots = [load_booster(s, c.pilot)[:n].save_raw() for s, c in ((store, candidate), (store_b, other))]
    shipped = [load_bundle(s, c.bundle).booster[:n].save_raw() for s, c in ((store, candidate), (store_b, other))]

    assert (True, False) == (pilots[0] == pilots[1], shipped[0] == shipped[1])


# The model


def test_training_twice_gives_the_same_bytes(small: tuple[Store, TrainingJob], candidate: Candidate) -> None:
    """The same job gives the same candidate, its bundle's bytes included; another seed gives another."""
    store, job = small
    again, other = train(store, job), train(store, replace(job, seed=4))

    assert candidate == again
    assert candidate.bundle.digest != other.bundle.digest


def test_the_model_is_cut_to_its_best_round(small: tuple[Store, TrainingJob], candidate: Candidate) -> None:
    """The first phase stops when validation no longer gains; the pilot and the shipped model end at its best round."""
    store, _ = small
    curve = list(candidate.validation_curve)
    best = int(np.argmin(curve)) + 1

    assert (best, best, best, best + 5, True) == (
        candidate.num_rounds,
        load_booster(store, candidate.pilot).num_boosted_rounds(),
        load_bundle(store, candidate.bundle).booster.num_boosted_rounds(),
        len(curve),
        candidate.is_stopped,
    )
    assert len(candidate.train_curve) == len(curve) < CONFIG.rounds


def test_the_curve_is_the_loss_of_the_pilot(small: tuple[Store, TrainingJob], candidate: Candidate) -> None:
    """The pilot has on the validation rows exactly the loss that its best round had in training."""
    labels, scores, _ = pilot_scores(*small, candidate)
    loss = -np.mean(np.log(np.where(labels == 1, scores, 1 - scores)))

    np.testing.assert_allclose(min(candidate.validation_curve), loss, rtol=1e-5)


def test_the_second_phase_is_a_training_of_all_rows_but_the_holdout(
    small: tuple[Store, TrainingJob], candidate: Candidate
) -> None:
    """The shipped model is the one that the same rounds on the rows of both sides give, trained from nothing."""
    store, job = small
    batches = handed_out(store, job, TRAIN, VALIDATION)
    features, types = batches[0]["feature_names"], batches[0]["feature_types"]
    data, label = (np.concatenate([batch[name] for batch in batches]) for name in ("data", "label"))
    whole = xgb.QuantileDMatrix(
        data, label, feature_names=features, feature_types=types, enable_categorical=True, nthread=1
    )
    expected = xgb.train(
        {**library_parameters(job), "seed": job.seed, "nthread": 1}, whole, num_boost_round=candidate.num_rounds
    )
    actual = load_bundle(store, candidate.bundle).booster

    assert expected.get_dump(with_stats=True) == actual.get_dump(with_stats=True)


def test_in_one_phase_the_pilot_is_shipped(
    small: tuple[Store, TrainingJob], candidate: Candidate, once: Candidate
) -> None:
    """In one phase the model of the first is shipped; it and what it chooses are the same as with a second one."""
    store, _ = small
    in_two, in_one = load_bundle(store, candidate.bundle), load_bundle(store, once.bundle)
    pilots = [store.get(found.pilot) for found in (candidate, once)]

    assert (None, once.bundle.booster) == (once.num_final_rows, once.pilot)
    assert pilots[0] == pilots[1] != store.get(candidate.bundle.booster)
    assert (in_one.threshold, once.validation_curve, once.num_rounds) == (
        in_two.threshold,
        candidate.validation_curve,
        candidate.num_rounds,
    )


def test_the_first_phase_is_freed_before_the_second_begins(
    small: tuple[Store, TrainingJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the rows of the second are read, no matrix of the first phase is in memory any more."""
    made: list[weakref.ref[xgb.DMatrix]] = []
    alive: list[int] = []
    build = Matrices.of

    def watched(*args: Any, **options: Any) -> xgb.DMatrix:
        alive.append(sum(matrix() is not None for matrix in made))
        matrix = build(*args, **options)
        made.append(weakref.ref(matrix))
        return matrix

    monkeypatch.setattr(Matrices, "of", watched)
    gc.disable()
    try:
        train(*small)
    finally:
        gc.enable()

    assert [0, 1, 0] == alive


def test_a_candidate_says_how_it_came_about(small: tuple[Store, TrainingJob], candidate: Candidate) -> None:
    """A candidate has the rows of both phases, its loss and parameters, and shares of gain that add up to 1."""
    store, job = small
    sides = sides_of(store, job)
    num_train, num_validation = len(sides[TRAIN]), len(sides[VALIDATION])
    gains = list(candidate.importance.values())

    assert ("xgboost", "logloss", num_train, num_validation, num_train + num_validation, 60) == (
        candidate.family,
        candidate.loss,
        candidate.num_train_rows,
        candidate.num_validation_rows,
        candidate.num_final_rows,
        candidate.max_rounds,
    )
    assert CONFIG.parameters("binary") == candidate.parameters
    assert ("x", gains) == (next(iter(candidate.importance)), sorted(gains, reverse=True))
    assert pytest.approx(1.0) == sum(gains)


def test_the_bundle_is_complete(small: tuple[Store, TrainingJob], candidate: Candidate) -> None:
    """A bundle has schema, facts, the pilot's threshold on the validation rows, and golden predictions of its own."""
    store, job = small
    bundle = load_bundle(store, candidate.bundle)
    bundle.check_golden()
    facts = {"model": "loans", "num_train_rows": candidate.num_final_rows}

    assert (job.encoded.schema, facts, NUM_GOLDEN) == (bundle.schema, bundle.facts, len(bundle.golden[0]))
    assert best_threshold(*pilot_scores(store, job, candidate)[:2]) == bundle.threshold
    assert best_threshold(*validation_scores(store, job, bundle)[:2]) != bundle.threshold


def test_facts_have_the_rows_that_the_shipped_model_learnt_from(
    small: tuple[Store, TrainingJob], once: Candidate
) -> None:
    """In one phase these are the training rows."""
    assert once.num_train_rows == load_bundle(small[0], once.bundle).facts["num_train_rows"]


def test_a_candidate_tells_people_how_it_was_trained(candidate: Candidate, once: Candidate) -> None:
    """One line has the rounds and the rows of each phase."""
    c = candidate
    first = f"{c.num_rounds} rounds on {c.num_train_rows} rows, stopped by {c.num_validation_rows} others"

    assert (f"{first}; then anew on {c.num_final_rows} of both, which is shipped.", f"{first}.") == (
        c.sentence,
        once.sentence,
    )


def test_a_training_that_the_limit_ended_says_so(small: tuple[Store, TrainingJob]) -> None:
    """Where the validation rows still gained at the last round, the key that sets the limit is named."""
    store, job = small
    found = train(store, replace(job, config=CONFIG.model_copy(update={"rounds": 3})))

    assert (3, 3, False) == (found.num_rounds, found.max_rounds, found.is_stopped)
    end = f"ended by the limit of 3 and not by {found.num_validation_rows} others: raise train.xgboost.rounds; then"
    assert end in found.sentence


def test_served_rows_get_the_scores_of_the_shards(small: tuple[Store, TrainingJob], candidate: Candidate) -> None:
    """Raw rows that are sent to the bundle get the scores that their encoded form in the shards gets."""
    store, job = small
    bundle = load_bundle(store, candidate.bundle)
    raw = bundle.scores(encode_frame(rows(), bundle.schema, bundle.vocabulary))
    stored = [bundle.scores(load_shard(store, shard)) for shard in job.encoded.shards]

    assert raw.tolist() == np.concatenate(stored).tolist()


@pytest.mark.parametrize(("task", "loss"), [("multiclass", "mlogloss"), ("regression", "rmse")])
def test_other_tasks_train(tmp_path: Path, task: Task, loss: str) -> None:
    """Classes and numbers are learnt too: the validation loss falls well below that of the first round."""
    store, job = job_of(tmp_path, rows(task), task=task)
    candidate = train(store, job)
    bundle = load_bundle(store, candidate.bundle)
    bundle.check_golden()

    assert (loss, 0.5, None) == (candidate.loss, bundle.threshold, bundle.half_width)
    assert min(candidate.validation_curve) < 0.85 * candidate.validation_curve[0]


def test_a_regression_may_have_an_interval(tmp_path: Path) -> None:
    """The interval holds the share of the validation rows that was asked for, by the model that has not seen them."""
    store, job = job_of(tmp_path, rows("regression"), task="regression")
    found = train(store, replace(job, interval=0.8))
    bundle = load_bundle(store, found.bundle)
    labels, scores, _ = pilot_scores(store, job, found)

    assert bundle.half_width is not None
    assert 0.8 <= float((np.abs(labels - scores) <= bundle.half_width + 1e-6).mean()) < 0.84


@pytest.mark.parametrize(("share", "expected"), [(0.1, 1.0), (0.5, 3.0), (0.75, 4.0), (0.99, 4.0)])
def test_half_width(share: float, expected: float) -> None:
    """The half-width is the residual of the rank that split conformal prediction asks for, at most the largest."""
    assert expected == conformal_half_width(np.array([-1.0, 4.0, 3.0, -2.0]), share)


def test_a_loss_that_is_no_number_is_refused(tmp_path: Path) -> None:
    """A training that diverges fails with the loss that it had, and makes no bundle."""
    extreme = rows("regression").with_columns(y=pl.when(pl.col("row") % 2 == 0).then(3e38).otherwise(-3e38))
    store, job = job_of(tmp_path, extreme, task="regression")
    with pytest.raises(
        RunError, match=r"finite loss, but got rmse=.* on the validation rows\. Look for extreme values"
    ):
        train(store, job)

    assert [] == store.list("bundles/")


@pytest.mark.parametrize("seconds", [0.0, 1e9])
def test_a_training_tells_how_far_it_is(
    small: tuple[Store, TrainingJob], monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """Rounds of both phases are reported, not too often, those of the first with all losses.

    What is done never falls, and the total of the first phase is the most that both may take.
    """
    monkeypatch.setattr(_xgboost, "REPORT_SECONDS", seconds)
    store, job = small
    heard: list[dict[str, Any]] = []
    with listening(lambda event: heard.append(event) if "done" in event else None):
        found = train(store, job)
    num_done = len(found.validation_curve)
    total = num_done + found.num_rounds
    curve = list(zip(range(num_done), found.train_curve, found.validation_curve, strict=True))
    told = [(event["done"], event["total"]) for event in heard]

    assert curve == [point for event in heard for point in event["curve"]]
    if seconds:
        assert [(num_done, 120), (total, total)] == told
    else:
        assert [(r + 1, 120 if r < num_done else total) for r in range(total)] == told


def test_one_phase_counts_its_own_rounds(small: tuple[Store, TrainingJob]) -> None:
    """In one phase the total is the limit of rounds."""
    store, job = small
    heard: list[dict[str, Any]] = []
    with listening(heard.append):
        train(store, replace(job, include_validation=False))

    assert {60} == {event["total"] for event in heard}


# Its parts


def test_parameters_are_the_settings() -> None:
    """Every setting reaches XGBoost as it was set, zero included, with the objective of the task."""
    config = XGBoostConfig(min_child_weight=0, reg_lambda=0, learning_rate=0.2, subsample=0.9, max_depth=2, max_bin=64)
    parameters = config.parameters("regression")

    assert {
        "min_child_weight": 0,
        "reg_lambda": 0,
        "learning_rate": 0.2,
        "subsample": 0.9,
        "max_depth": 2,
        "max_bin": 64,
        "objective": "reg:squarederror",
        "eval_metric": "rmse",
        "tree_method": "hist",
    } == {name: value for name, value in parameters.items() if name != "colsample_bytree"}


def test_the_vocabulary_is_cut_to_the_schema(small: tuple[Store, TrainingJob]) -> None:
    """A bundle carries the codes of its own columns, and not those of columns that are gone."""
    store, job = small

    assert ["city", "customer"] == sorted(job_vocabulary(store, job).values)


def test_golden_rows_are_what_a_caller_sends(small: tuple[Store, TrainingJob]) -> None:
    """Golden rows are spread over the start of a file, have the inputs alone, and dates as ISO text."""
    _, job = small
    found = golden_rows(job.files, job.encoded.schema)
    expected = rows().gather(range(0, 100, 5)).select("row", "x", "city", "day", "customer", "w")

    assert expected.drop("day").equals(found.drop("day"))
    assert [f"{day}T00:00:00" for day in expected["day"]] == [text[:19] for text in found["day"]]


def test_golden_rows_lack_what_came_later(tmp_path: Path, small: tuple[Store, TrainingJob]) -> None:
    """A column that the first file does not have is missing in the golden rows, as it is in that file's shard."""
    rows().head(20).drop("city").write_parquet(tmp_path / "old.parquet")
    found = golden_rows([source_file(str(tmp_path / "old.parquet"), CsvConfig())], small[1].encoded.schema)

    assert [None] * 20 == found["city"].to_list()
    assert rows().head(20)["x"].to_list() == found["x"].to_list()


def test_a_model_without_splits_has_no_importance() -> None:
    """A booster that never split anything names no feature."""
    constant = xgb.train({}, xgb.DMatrix(np.zeros((9, 1)), np.ones(9)), num_boost_round=1)

    assert {} == importance(constant)


def test_of_very_many_validation_rows_a_share_stops_the_training(tmp_path: Path) -> None:
    """A share of the validation rows is the same rows in every run, and none of another side."""
    store, job = job_of(tmp_path, rows())
    whole = ids(handed_out(store, job, VALIDATION))
    halves = [ids(handed_out(store, replace(job, validation_share=0.5), VALIDATION)) for _ in range(2)]

    assert halves[0] == halves[1]
    assert set(halves[0]) < set(whole)
    assert 0.3 * len(whole) < len(halves[0]) < 0.7 * len(whole)
    assert ids(handed_out(store, job, TRAIN)) == ids(handed_out(store, replace(job, validation_share=0.5), TRAIN))
