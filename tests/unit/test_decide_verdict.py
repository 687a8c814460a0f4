"""The verdict: from scores on the holdout to PROMOTE, HOLD or REJECT."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import xgboost as xgb
from pydantic import ValidationError

from infra.bundle.model import Bundle
from infra.bundle.schema import Column, Schema, Task
from infra.bundle.trees import Trees
from infra.bundle.vocabulary import Vocabulary
from infra.errors import InputError
from infra.storage import Ref, Store
from tasks._candidate import BundleRef, store_bundle
from tasks._decide import (
    Comparison,
    PromoteConfig,
    SliceHarm,
    Verdict,
    broken_floors,
    check_floors,
    compare,
    judge,
)
from tasks._encode import ROW, TARGET, TIME, WEIGHT, Encoded, Shard
from tasks._evaluate import (
    LABEL,
    MIN_SLICE_ROWS,
    SCORE,
    Evaluation,
    interval_metrics,
    load_scores,
    measure,
    score_matrix,
    score_shard,
    slice_columns,
    slice_values,
)
from tasks._metrics import Difference, metrics_of
from tasks._split import SplitRule

CONFIG = PromoteConfig(resamples=100)
N = 2000
RNG = np.random.default_rng(0)
LABELS = (RNG.random(N) < 0.4).astype(np.float64)
CITY = RNG.integers(1, 4, N)
NOISE = RNG.normal(size=N)
VOCABULARY = Vocabulary({"city": ("Rome", "Oslo", "Bern")})


def sigmoid(z: Any) -> Any:
    """Return probabilities."""
    return 1 / (1 + np.exp(-z))


def scores_of(skill: float, seed: int = 1, noise: float = 0.0) -> Any:
    """Return probabilities of a model with some skill, that differs from others by a little noise of its own."""
    return sigmoid(skill * (2 * LABELS - 1) + NOISE + noise * np.random.default_rng(seed).normal(size=N))


def evaluation(store: Store, name: str, scores: Any, **changes: Any) -> Evaluation:
    """Store a model's scores and measure them."""
    path = Path(store.root).parent / f"{name}.arrow"
    pl.DataFrame({LABEL: LABELS, "city": pl.Series(CITY, dtype=pl.Int32), SCORE: scores}).write_ipc(path)
    return replace(
        Evaluation(
            bundle=BundleRef((Ref(name, name, 1),)),
            threshold=0.5,
            metrics=metrics_of("binary", LABELS, scores),
            num_rows=N,
            slices=(),
            slice_metric="log_loss",
            calibration=(),
            scores=(store.put_file(f"scores/{name}", path),),
        ),
        **changes,
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Give an empty store."""
    store = Store(str(tmp_path / "root"))
    store.put("vocabulary.json", VOCABULARY.to_json().encode())
    return store


def changed(**changes: Any) -> PromoteConfig:
    """Change some of the settings."""
    return CONFIG.model_copy(update=changes)


def verdict_of(
    store: Store, new: Any, old: Any, *, is_fresher: bool = True, metric: str = "auc", config: PromoteConfig = CONFIG
) -> Verdict:
    """Judge a challenger's scores against a champion's."""
    challenger, champion = evaluation(store, "new", new), evaluation(store, "old", old)
    vocabulary = store.put("vocabulary.json", VOCABULARY.to_json().encode())
    comparison = compare(store, "binary", metric, challenger, champion, config, ["city"], vocabulary)
    return judge("binary", metric, challenger, champion, comparison, config, is_fresher)


# Against a champion


@pytest.mark.parametrize(
    ("new", "old", "is_fresher", "decision", "reason"),
    [
        (scores_of(1.0), scores_of(0.6), True, "PROMOTE", "Better: "),
        (scores_of(1.0), scores_of(0.6), False, "PROMOTE", "Better: "),
        (scores_of(0.6), scores_of(1.0), True, "REJECT", "Worse: "),
        (scores_of(0.6), scores_of(1.0), False, "REJECT", "Worse: "),
        (scores_of(0.8, 1, 0.02), scores_of(0.8, 2, 0.02), True, "PROMOTE", "As good and fresher: "),
        (scores_of(0.8, 1, 0.02), scores_of(0.8, 2, 0.02), False, "HOLD", "As good, and not fresher: "),
        (scores_of(0.8, 1, 1.0), scores_of(0.82, 2, 1.0), True, "HOLD", "Not proven: "),
    ],
)
@pytest.mark.parametrize("metric", ["auc", "log_loss"])
def test_verdict(store: Store, new: Any, old: Any, is_fresher: bool, decision: str, reason: str, metric: str) -> None:
    """Better takes over, as good only if it saw newer data, worse is rejected, and the rest waits; by any metric."""
    found = verdict_of(store, new, old, is_fresher=is_fresher, metric=metric, config=changed(slice_margin=9))

    assert (decision, True) == (found.decision, found.reasons[0].startswith(reason)), found.reasons


def test_reasons_have_the_numbers(store: Store) -> None:
    """A reason tells metric, both values, the rows, and the interval of the difference."""
    found = verdict_of(store, scores_of(1.0), scores_of(0.6))
    assert found.comparison is not None
    d = found.comparison.differences[0]

    assert (
        f"Better: auc {d.challenger:.4f} against {d.champion:.4f} on 2,000 rows: improvement {d.improvement:+.4f}, "
        f"95% interval [{d.low:+.4f}, {d.high:+.4f}].",
    ) == found.reasons
    assert ["auc", "log_loss", "average_precision", "brier"] == [x.metric for x in found.comparison.differences]


def test_the_margin_is_a_share_of_the_champions_error(store: Store) -> None:
    """A slightly worse, fresher model takes over within the margin, and is rejected beyond it."""
    new, old = scores_of(0.8, 1, 0.05), scores_of(0.81, 2, 0.05)

    found = [verdict_of(store, new, old, config=changed(margin=margin)) for margin in (0.1, 0.0)]

    assert [("PROMOTE", "As good and fresher"), ("REJECT", "Worse")] == [
        (verdict.decision, verdict.reasons[0].partition(":")[0]) for verdict in found
    ]


HARMED = np.where(CITY == 2, sigmoid(2 * NOISE), scores_of(1.6))


def test_a_harmed_slice_holds_a_better_model(store: Store) -> None:
    """A model that is better on the whole waits if a slice is much worse beyond noise; the slice is named."""
    found = verdict_of(store, HARMED, scores_of(0.6))
    assert found.comparison is not None
    (harm,) = found.comparison.harms
    rows = int((CITY == 2).sum())

    assert ("HOLD", ("city", "Oslo", rows)) == (found.decision, (harm.column, harm.value, harm.num_rows))
    assert found.reasons[0].startswith("Better: ")
    assert (
        f"Slice city = Oslo ({rows:,} rows) is harmed: loss {harm.challenger:.4f} against {harm.champion:.4f}."
        == found.reasons[1]
    )


def test_a_harmed_slice_holds_a_fresher_model() -> None:
    """A model that is as good and fresher waits if a slice is harmed."""
    found = judge("binary", "auc", NEW, OLD, comparison(-0.0001, 0.0001, HARM), CONFIG, is_fresher=True)

    assert ("HOLD", 2) == (found.decision, len(found.reasons))


@pytest.mark.parametrize("changes", [{"min_slice_rows": N}, {"slice_margin": 5.0}])
def test_a_slice_is_guarded_as_configured(store: Store, changes: dict[str, Any]) -> None:
    """Slices that are too small, or harmed by less than the margin, hold nothing."""
    assert "PROMOTE" == verdict_of(store, HARMED, scores_of(0.6), config=changed(**changes)).decision


def test_noise_harms_no_slice(store: Store) -> None:
    """Models that differ by noise alone harm no slice, though each slice's loss is larger in one of them."""
    config = changed(slice_margin=0.0, min_slice_rows=20)
    harms = []
    for seed in range(10):
        found = verdict_of(store, scores_of(0.8, seed, 0.3), scores_of(0.8, seed + 100, 0.3), config=config)
        assert found.comparison is not None
        harms += found.comparison.harms

    assert len(harms) <= 2


def test_flipped_rows_are_counted(store: Store) -> None:
    """A comparison tells on how many rows the two models decide differently, each at its own threshold."""
    new, old = scores_of(1.0), scores_of(0.6)
    challenger, champion = evaluation(store, "new", new, threshold=0.3), evaluation(store, "old", old, threshold=0.6)
    vocabulary = store.put("vocabulary.json", VOCABULARY.to_json().encode())
    found = compare(store, "binary", "auc", challenger, champion, CONFIG, [], vocabulary)

    assert int(((new >= 0.3) != (old >= 0.6)).sum()) == found.flipped


# Before and beside the comparison


def bare(name: str, num_rows: int = 1000, **metrics: float) -> Evaluation:
    """Make an evaluation without scores."""
    return Evaluation(BundleRef((Ref(name, name, 1),)), 0.5, {"auc": 0.8, **metrics}, num_rows, (), "log_loss", (), ())


def comparison(low: float, high: float, *harms: SliceHarm) -> Comparison:
    """Make a comparison with an interval."""
    d = Difference("auc", 0.8, 0.8, (low + high) / 2, low, high, 0.95, 1000, 100, 0.01)
    return Comparison((d,), harms, 0)


NEW, OLD = bare("new"), bare("old")
HARM = SliceHarm("city", "Oslo", 300, 0.9, 0.5)


def test_the_first_model_takes_over() -> None:
    """Without a champion, a model that reaches the floors is promoted."""
    assert Verdict("PROMOTE", ("First model: it reaches every floor with auc 0.8000.",)) == judge(
        "binary", "auc", NEW, None, None, CONFIG, is_fresher=True
    )


@pytest.mark.parametrize(
    ("task", "metrics", "floors", "reasons"),
    [
        ("binary", {"auc": 0.49}, {}, ("auc is 0.4900, below its floor of 0.5.",)),
        ("binary", {"auc": 0.7}, {"auc": 0.75}, ("auc is 0.7000, below its floor of 0.75.",)),
        ("binary", {"auc": 0.7, "log_loss": 0.5}, {"log_loss": 0.4}, ("log_loss is 0.5000, above its floor of 0.4.",)),
        ("binary", {}, {}, ("auc can't be computed on this holdout, so its floor of 0.5 is not reached.",)),
        ("regression", {"r2": -0.1, "rmse": 3.0}, {}, ("r2 is -0.1000, below its floor of 0.",)),
        ("regression", {"r2": 0.5, "rmse": 13.0}, {"rmse": 12}, ("rmse is 13.0000, above its floor of 12.",)),
        ("binary", {"auc": 0.75}, {"auc": 0.75}, ()),
        ("binary", {"auc": 0.45}, {"auc": 0.4}, ()),
        ("multiclass", {"accuracy": 0.1}, {}, ()),
    ],
)
def test_floors(task: Task, metrics: dict[str, float], floors: dict[str, float], reasons: tuple[str, ...]) -> None:
    """A metric that misses its floor, the trivial one or the configured one, is told with both numbers."""
    challenger = replace(NEW, metrics=metrics)
    config = changed(floors=floors)
    found = judge(task, next(iter(metrics), "auc"), challenger, None, None, config, is_fresher=True)

    assert reasons == tuple(broken_floors(task, metrics, config))
    assert ("REJECT" if reasons else "PROMOTE") == found.decision


def test_a_model_that_learnt_nothing_is_no_first_model() -> None:
    """A model that gives every row the same answer has an AUC of exactly one half, and does not take over."""
    constant = replace(NEW, metrics=metrics_of("binary", LABELS, np.full(N, 0.4)))

    assert "REJECT" == judge("binary", "auc", constant, None, None, CONFIG, is_fresher=True).decision


def test_floors_come_before_the_champion() -> None:
    """A model below a floor is rejected even if it is better than the champion."""
    found = judge("binary", "auc", NEW, OLD, comparison(0.1, 0.2), changed(floors={"auc": 0.9}), is_fresher=True)

    assert ("REJECT", ("auc is 0.8000, below its floor of 0.9.",)) == (found.decision, found.reasons)


@pytest.mark.parametrize("champion", [None, OLD])
def test_a_broken_budget_is_a_floor(champion: Evaluation | None) -> None:
    """A model that no form of keeps a budget is rejected, the first one and a better one alike, beside its floors."""
    budget = "The model has 9 MB, more than compress.max_bytes = 1,000,000, and no variant is smaller."
    config = changed(floors={"auc": 0.9})
    reasons = [
        judge(
            *("binary", "auc", NEW, champion, comparison(0.1, 0.2), given),
            is_fresher=True,
            broken_budgets=(budget,),
        )
        for given in (CONFIG, config)
    ]

    assert [("REJECT", (budget,)), ("REJECT", ("auc is 0.8000, below its floor of 0.9.", budget))] == [
        (verdict.decision, verdict.reasons) for verdict in reasons
    ]


@pytest.mark.parametrize("champion", [None, OLD])
def test_too_few_rows_prove_nothing(champion: Evaluation | None) -> None:
    """A verdict on a small holdout waits, whether there is a champion or not."""
    found = judge("binary", "auc", bare("new", 99), champion, comparison(0.1, 0.2), CONFIG, is_fresher=True)

    assert ("HOLD", ("The holdout has 99 rows, fewer than promote.min_rows = 100.",)) == (found.decision, found.reasons)


def test_the_champion_itself_is_held() -> None:
    """A challenger that is the champion, byte for byte, changes nothing."""
    reason = "The challenger is the champion itself: the same data, configuration and code."

    assert Verdict("HOLD", (reason,)) == judge("binary", "auc", OLD, OLD, None, CONFIG, is_fresher=True)


def test_a_withdrawn_version_is_held() -> None:
    """A version that somebody rolled back does not come back by a retrain, however good it is."""
    found = judge("binary", "auc", NEW, OLD, comparison(0.1, 0.2), CONFIG, is_fresher=True, withdrawn="7")

    assert "HOLD" == found.decision
    assert "version 7, which was rolled back. evergreen rollback --to 7" in found.reasons[0]


@pytest.mark.parametrize(
    ("low", "high", "is_fresher", "decision"),
    [
        (0.0001, 0.01, False, "PROMOTE"),
        (0.0, 0.01, False, "HOLD"),
        (0.0, 0.01, True, "PROMOTE"),
        (-0.0019, 0.0, True, "PROMOTE"),
        (-0.0021, 0.01, True, "HOLD"),
        (-0.01, -0.0019, True, "HOLD"),
        (-0.01, -0.0021, True, "REJECT"),
        (-0.01, -0.0021, False, "REJECT"),
    ],
)
def test_the_edges_of_the_interval_decide(low: float, high: float, is_fresher: bool, decision: str) -> None:
    """With a margin of a hundredth of the champion's error of 0.2: 0.002."""
    assert decision == judge("binary", "auc", NEW, OLD, comparison(low, high), CONFIG, is_fresher).decision


@pytest.mark.parametrize(
    ("task", "name", "message"),
    [
        ("binary", "acuracy", r"names metrics of a binary model, but got 'acuracy'\. Did you mean \"accuracy\"\?"),
        ("regression", "auc", r"metrics of a regression model, but got 'auc'\..* They are rmse, "),
    ],
)
def test_a_floor_on_an_unknown_metric_is_refused(task: Task, name: str, message: str) -> None:
    """A floor that would never be looked at is refused before anything is trained."""
    with pytest.raises(InputError, match=message):
        check_floors(task, changed(floors={name: 0.5}))

    check_floors("binary", changed(floors={"auc": 0.5}))


@pytest.mark.parametrize(
    "settings", [{"confidence": 0.5}, {"margin": 1}, {"slice_margin": -1}, {"min_rows": 1}, {"resamples": 10}]
)
def test_settings_that_decide_nothing_are_refused(settings: dict[str, Any]) -> None:
    """A setting outside its range is named."""
    with pytest.raises(ValidationError, match=next(iter(settings))):
        PromoteConfig(**settings)


# Scoring and measuring


SCHEMA = Schema(
    (Column("x", "numeric"), Column("city", "categorical"), Column("ok", "boolean"), Column("y", "numeric")),
    target="y",
    task="binary",
    labels=("no", "yes"),
)


def shard_of(store: Store, num_rows: int = 300, **columns: Any) -> Shard:
    """Store a shard with a time from 0 up and what else is given."""
    rng = np.random.default_rng(0)
    frame = pl.DataFrame(
        {
            "x": pl.Series(rng.normal(size=num_rows), dtype=pl.Float32),
            "city": pl.Series(rng.integers(-1, 4, num_rows), dtype=pl.Int32),
            "ok": pl.Series(rng.choice([0.0, 1.0, np.nan], num_rows), dtype=pl.Float32),
            TARGET: pl.Series(rng.integers(0, 2, num_rows), dtype=pl.Float32),
            ROW: pl.Series(np.arange(num_rows), dtype=pl.UInt64),
            TIME: np.arange(num_rows, dtype=np.float64),
            **columns,
        }
    )
    path = Path(store.root).parent / "shard.arrow"
    frame.write_ipc(path)
    return Shard(store.put_file(f"shards/{len(columns)}", path), num_rows, 0, {}, {})


def bundle_in(store: Store, task: Task = "binary", **changes: Any) -> tuple[Bundle, BundleRef]:
    """Train a model on noise and store it."""
    rng = np.random.default_rng(1)
    objective = {"binary": "binary:logistic", "multiclass": "multi:softprob", "regression": "reg:squarederror"}[task]
    classes = {"num_class": 2} if task == "multiclass" else {}
    rows = xgb.DMatrix(rng.normal(size=(60, 3)), rng.integers(0, 2, 60))
    booster = xgb.train({"objective": objective, "max_depth": 2, "nthread": 1, **classes}, rows, num_boost_round=3)
    bundle = Bundle(replace(SCHEMA, task=task), VOCABULARY, Trees(booster), **changes)
    return bundle, store_bundle(store, bundle)


def by_time(holdout_from: float) -> SplitRule:
    """Hold out the rows from an instant on."""
    return SplitRule("time", 0.2, 0.15, holdout_from=holdout_from)


def test_a_row_counts_if_every_rule_holds_it_out(store: Store) -> None:
    """A verdict is about rows that no model of it has trained on: those that all rules hold out, with their labels."""
    bundle, ref = bundle_in(store)
    shard = shard_of(store)
    stored = score_shard(store, ref, shard, shard, (by_time(100), by_time(250)), ["city"], 0)
    assert stored is not None
    table = load_scores(store, (stored,))
    whole = pl.read_ipc(store.local(shard.file))

    assert [LABEL, "city", SCORE] == table.columns
    assert whole[250:][TARGET].to_list() == table[LABEL].to_list()
    assert bundle.scores(whole[250:]).astype(float).tolist() == score_matrix(table).tolist()


def test_a_shard_without_held_out_rows_has_no_scores(store: Store) -> None:
    """Old files, all of which was trained on, are not scored."""
    _, ref = bundle_in(store)
    shard = shard_of(store)

    assert None is score_shard(store, ref, shard, shard, (by_time(100), by_time(300)), [], 0)


def test_of_very_many_held_out_rows_a_share_judges(store: Store) -> None:
    """A share of the holdout is the same rows for every model, and has a file of its own."""
    (_, first), (_, other) = bundle_in(store), bundle_in(store, threshold=0.3)
    shard = shard_of(store)
    whole, half, again = (
        score_shard(store, ref, shard, shard, (by_time(100),), ["city"], 0, share)
        for ref, share in ((first, 1.0), (first, 0.5), (other, 0.5))
    )
    assert whole and half and again
    cities = [load_scores(store, (file,)).get_column("city").to_list() for file in (whole, half, again)]

    assert whole.name != half.name
    assert cities[1] == cities[2]
    assert 60 < len(cities[1]) < 140 < len(cities[0]) == 200


def test_another_encoding_is_scored_with_the_labels_of_this_one(store: Store) -> None:
    """A champion sees rows as its own schema encodes them; labels, weights and slices come from this run's."""
    bundle, ref = bundle_in(store)
    shard = shard_of(store, **{WEIGHT: pl.Series(np.arange(300), dtype=pl.Float32)})
    own = shard_of(store, x=pl.Series(np.full(300, 5.0), dtype=pl.Float32), a=np.zeros(300))
    stored = score_shard(store, ref, shard, own, (by_time(290),), ["ok"], 0)
    assert stored is not None
    table = load_scores(store, (stored,))

    assert ([LABEL, WEIGHT, "ok", SCORE], list(range(290, 300))) == (table.columns, table[WEIGHT].to_list())
    assert bundle.scores(pl.read_ipc(store.local(own.file))[290:]).tolist() == table[SCORE].to_list()


def test_a_model_without_a_new_class_gives_it_nothing(store: Store) -> None:
    """An older model, which knows fewer classes, gives those that came later a probability of 0."""
    _, ref = bundle_in(store, "multiclass")
    shard = shard_of(store)
    stored = score_shard(store, ref, shard, shard, (by_time(290),), [], 3)
    assert stored is not None
    scores = score_matrix(load_scores(store, (stored,)))

    assert ((10, 3), [0.0] * 10) == (scores.shape, scores[:, 2].tolist())


def test_a_model_is_measured_on_its_scores(store: Store) -> None:
    """An evaluation has the metrics at the bundle's threshold, that too, the large slices, and the calibration."""
    _, ref = bundle_in(store, threshold=0.45)
    shard = shard_of(store)
    encoded = Encoded(SCHEMA, store.put("v.json", VOCABULARY.to_json().encode()), (shard,), 1)
    stored = score_shard(store, ref, shard, shard, (by_time(0),), ["ok", "city"], 0)
    assert stored is not None
    found = measure(store, ref, (stored,), encoded, "auc", ["ok", "city"])
    table = load_scores(store, (stored,))
    labels, scores = table[LABEL].to_numpy().astype(float), score_matrix(table)
    values, counts = np.unique(table["city"].to_numpy(), return_counts=True)
    names = {-1: "missing", 0: "unknown", 1: "Rome", 2: "Oslo", 3: "Bern"}

    assert {**metrics_of("binary", labels, scores, threshold=0.45), "threshold": 0.45} == found.metrics
    assert (300, 0.45, "log_loss", 300) == (
        found.num_rows,
        found.threshold,
        found.slice_metric,
        sum(n for _, _, n in found.calibration),
    )
    assert {names[int(v)]: int(n) for v, n in zip(values, counts, strict=True) if n >= MIN_SLICE_ROWS} == {
        s.score.value: s.score.num_rows for s in found.slices if s.column == "city"
    }
    assert {"yes", "no", "missing"} == {s.score.value for s in found.slices if s.column == "ok"}


@pytest.mark.parametrize("metric", ["rmsle", "mape"])
def test_a_holdout_that_does_not_define_the_metric_is_refused(store: Store, metric: str) -> None:
    """No evaluation lacks the metric that the verdict is about: the run stops and names it, at the first model too."""
    _, ref = bundle_in(store, "regression")
    shard = shard_of(store, **{TARGET: pl.Series(np.arange(300) - 100, dtype=pl.Float32)})
    schema = replace(SCHEMA, task="regression", labels=())
    encoded = Encoded(schema, store.put("v.json", VOCABULARY.to_json().encode()), (shard,), 1)
    stored = score_shard(store, ref, shard, shard, (by_time(0),), [], 0)
    assert stored is not None
    with pytest.raises(InputError, match=rf'got model.metric="{metric}" with targets from -100 to 199\. Mend the targ'):
        measure(store, ref, (stored,), encoded, metric, [])

    assert "rmse" in measure(store, ref, (stored,), encoded, "rmse", []).metrics


def test_an_interval_is_measured() -> None:
    """A regression with an interval has its share of the rows, the edge included, and its width."""
    residuals = np.array([0.0, 1.0, -2.0, 2.5])

    assert {"interval_coverage": 0.75, "interval_width": 4.0} == interval_metrics(residuals, 2.0)


def test_slices_are_booleans_and_small_categories() -> None:
    """Booleans and categories of 2 to 20 values cut the holdout into slices."""
    sizes = {"one": 1, "two": 2, "most": 20, "many": 21}
    categories = [Column(name, "categorical") for name in sizes]
    columns = (Column("ok", "boolean"), Column("x", "numeric"), *categories, Column("y", "numeric"))
    vocabulary = Vocabulary({name: tuple(map(str, range(size))) for name, size in sizes.items()})

    assert ["ok", "two", "most"] == slice_columns(replace(SCHEMA, columns=columns), vocabulary)


def test_slice_values_are_words() -> None:
    """Codes become their values; 1 and 0 become yes and no; missing and unknown have their words."""
    table = pl.DataFrame(
        {"city": pl.Series([-1, 0, 3], dtype=pl.Int32), "ok": pl.Series([1.0, 0.0, float("nan")], dtype=pl.Float32)}
    )

    assert [["missing", "unknown", "Bern"], ["yes", "no", "missing"]] == [
        slice_values(table, name, VOCABULARY).tolist() for name in ("city", "ok")
    ]


def test_a_category_that_became_boolean_is_a_boolean() -> None:
    """A boolean feature is read as one though the vocabulary still has the codes of its days as a category."""
    table = pl.DataFrame({"ok": pl.Series([1.0, 0.0, float("nan")], dtype=pl.Float32)})

    assert ["yes", "no", "missing"] == slice_values(table, "ok", Vocabulary({"ok": ("on", "off")})).tolist()
