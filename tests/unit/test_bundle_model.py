"""A bundle: on disk, and what it answers."""

from __future__ import annotations

import json
import pickletools
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import xgboost as xgb
from polars.testing import assert_frame_equal

from infra.bundle.encoder import encode_frame, matrix
from infra.bundle.errors import InputError
from infra.bundle.model import FILES, FORMAT, TREES_FILES, Bundle, golden_frame
from infra.bundle.pyfunc import _load_pyfunc
from infra.bundle.schema import Column, Schema, Task
from infra.bundle.trees import Trees
from infra.bundle.vocabulary import Vocabulary

COLUMNS = (
    Column("n", "numeric"),
    Column("city", "categorical"),
    Column("ok", "boolean"),
    Column("day", "datetime", date_format="%d.%m.%Y", parts=("month", "elapsed_days")),
    Column("y", "numeric"),
)
LABELS: dict[Task, tuple[str, ...]] = {"binary": ("no", "yes"), "multiclass": ("a", "b", "c"), "regression": ()}
ROWS = pl.DataFrame(
    {
        "n": [float(i % 13) if i % 7 else None for i in range(90)],
        "city": [("Rome", "Oslo", "Bern", None, "Lima")[i % 5] for i in range(90)],
        "ok": [("yes", "no", None)[i % 3] for i in range(90)],
        "day": [f"{1 + i % 28:02}.{1 + i % 12:02}.2024" for i in range(90)],
    }
)


@cache
def bundle_of(task: Task = "binary") -> Bundle:
    """Train a small model of a task."""
    schema = Schema(COLUMNS, target="y", task=task, labels=LABELS[task])
    vocabulary = Vocabulary({"city": ("Rome", "Oslo", "Bern")})
    index = np.arange(ROWS.height)
    targets = {"binary": (index * 7) % 5 < 2, "multiclass": (index * 7) % 3, "regression": np.sin(index) * 9}
    objective = {"binary": "binary:logistic", "multiclass": "multi:softprob", "regression": "reg:squarederror"}
    rows = xgb.DMatrix(
        matrix(encode_frame(ROWS, schema, vocabulary), schema.features),
        label=targets[task],
        feature_names=[f.name for f in schema.features],
        feature_types=["c" if f.is_categorical else "q" for f in schema.features],
        enable_categorical=True,
    )
    classes = {"num_class": 3} if task == "multiclass" else {}
    parameters = {"objective": objective[task], "max_depth": 3, "nthread": 1, "seed": 1, **classes}
    booster = xgb.train(parameters, rows, num_boost_round=8)
    return Bundle(schema, vocabulary, Trees(booster), 0.4, {"model": "loans", "metrics": {"auc": 0.7}})


def golden_bundle() -> Bundle:
    """Give a bundle with golden predictions."""
    return bundle_of().with_golden(ROWS.head(10))


@pytest.mark.parametrize("task", list(LABELS))
def test_round_trip(tmp_path: Path, task: Task) -> None:
    """A bundle that is read again has the same parts and answers the same, to the last bit."""
    bundle = replace(bundle_of(task), half_width=2.5 if task == "regression" else None).with_golden(ROWS.head(5))
    bundle.save(tmp_path)
    loaded = Bundle.load(tmp_path)

    assert replace(bundle, predictor=None) == replace(loaded, predictor=None)  # type: ignore[arg-type]
    assert_frame_equal(bundle.predict(ROWS), loaded.predict(ROWS), check_exact=True)
    assert "loans" == loaded.name


def test_the_files_are_json_and_xgboosts_own_format(tmp_path: Path) -> None:
    """A bundle has exactly its files, and none of them is a pickle."""
    golden_bundle().save(tmp_path)

    assert {*FILES, *TREES_FILES} == {path.name for path in tmp_path.iterdir()}
    assert [True] * 4 == [isinstance(json.loads((tmp_path / name).read_text()), dict) for name in FILES]
    with pytest.raises(ValueError):
        list(pickletools.genops((tmp_path / "model.ubj").read_bytes()))


def test_saving_is_byte_deterministic(tmp_path: Path) -> None:
    """A bundle that is saved twice, or read and saved again, has the same bytes."""
    contents = []
    bundle = golden_bundle()
    for name in ("a", "b", "c"):
        folder = tmp_path / name
        folder.mkdir()
        bundle.save(folder)
        contents.append({file: (folder / file).read_bytes() for file in (*FILES, *TREES_FILES)})
        if name == "b":
            bundle = Bundle.load(folder)

    assert contents[0] == contents[1] == contents[2]


def test_facts_in_another_order_are_the_same_bytes(tmp_path: Path) -> None:
    """The order in which facts are given does not make another model."""
    for name, facts in (("a", {"x": 1, "model": "m"}), ("b", {"model": "m", "x": 1})):
        (tmp_path / name).mkdir()
        replace(bundle_of(), facts=facts).save(tmp_path / name)

    assert (tmp_path / "a/bundle.json").read_bytes() == (tmp_path / "b/bundle.json").read_bytes()


def test_a_folder_without_a_bundle_is_named(tmp_path: Path) -> None:
    """A folder that lacks files of a bundle is refused with their names."""
    golden_bundle().save(tmp_path)
    (tmp_path / "schema.json").unlink()
    (tmp_path / "model.ubj").unlink()
    message = rf"but got a folder without schema\.json, model\.ubj: {tmp_path}\. Register the model again"
    with pytest.raises(InputError, match=message):
        Bundle.load(tmp_path)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    """A bundle that a later version wrote is not half understood."""
    golden_bundle().save(tmp_path)
    described = json.loads((tmp_path / "bundle.json").read_text())
    (tmp_path / "bundle.json").write_text(json.dumps({**described, "format": FORMAT + 1}))
    with pytest.raises(InputError, match=rf"up to format {FORMAT}, but got format={FORMAT + 1} in .*\. Upgrade"):
        Bundle.load(tmp_path)


def test_binary_answers() -> None:
    """A binary model answers a label and the probability of the second one, and says yes from its threshold."""
    answers = bundle_of().predict(ROWS)
    probability = answers["probability"].to_numpy()

    assert {"prediction": pl.String, "probability": pl.Float64} == dict(answers.schema)
    assert np.where(probability >= 0.4, "yes", "no").tolist() == answers["prediction"].to_list()
    assert {"no", "yes"} == set(answers["prediction"])


def test_the_threshold_itself_is_yes() -> None:
    """A probability that equals the threshold says yes, though the one is float32 and the other float64."""
    scores = np.array([0.3, 0.29], dtype=np.float32)

    assert ["yes", "no"] == replace(bundle_of(), threshold=0.3).answer(scores)["prediction"].to_list()


def test_multiclass_answers() -> None:
    """A multiclass model answers the likeliest label and a probability for each."""
    answers = bundle_of("multiclass").predict(ROWS)
    shares = answers.select("probability_a", "probability_b", "probability_c").to_numpy()

    assert ["prediction", "probability_a", "probability_b", "probability_c"] == answers.columns
    assert np.array(["a", "b", "c"])[shares.argmax(axis=1)].tolist() == answers["prediction"].to_list()
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-5)


def test_regression_answers() -> None:
    """A regression model answers a number."""
    assert {"prediction": pl.Float64} == dict(bundle_of("regression").predict(ROWS).schema)


def test_a_regression_with_an_interval_answers_its_ends() -> None:
    """The ends of the interval lie its half-width below and above the prediction."""
    numbers = np.array([1.0, -2.0], dtype=np.float32)
    answers = replace(bundle_of("regression"), half_width=0.5).answer(numbers)

    assert {
        "prediction": [1.0, -2.0],
        "prediction_low": [0.5, -2.5],
        "prediction_high": [1.5, -1.5],
    } == answers.to_dict(as_series=False)


@pytest.mark.parametrize("task", list(LABELS))
def test_no_rows_have_no_answers(task: Task) -> None:
    """An empty request is answered with the usual columns and no rows."""
    bundle = bundle_of(task)

    assert bundle.predict(ROWS).head(0).equals(bundle.predict(ROWS.head(0)))


@pytest.mark.parametrize("task", list(LABELS))
def test_a_row_alone_gets_the_answer_of_the_batch(task: Task) -> None:
    """Each row gets the same answer alone, as it comes out of JSON, as in a batch."""
    bundle = bundle_of(task)
    alone = pl.concat([bundle.predict(golden_frame([row])) for row in ROWS.head(15).to_dicts()])

    assert_frame_equal(bundle.predict(ROWS.head(15)), alone, check_exact=True)


def test_a_later_code_counts_as_unknown() -> None:
    """Codes that came after the model was trained get the scores of an unknown value, not of another category."""
    bundle = bundle_of()
    encoded = encode_frame(ROWS.head(6), bundle.schema, bundle.vocabulary)
    scores = [bundle.scores(encoded.with_columns(city=pl.lit(c, dtype=pl.Int32))).tolist() for c in (0, 4, 9999)]

    assert scores[0] == scores[1] == scores[2]


def test_unseen_and_missing_categories_are_told_apart() -> None:
    """An unseen value is code 0 and a missing one is NaN: the model may treat them differently."""
    bundle = bundle_of()
    frame = pl.DataFrame({"n": [1.0] * 2, "city": ["Atlantis", None], "ok": ["yes"] * 2, "day": ["01.01.2024"] * 2})
    x_BF = matrix(encode_frame(frame, bundle.schema, bundle.vocabulary), bundle.schema.features)

    np.testing.assert_array_equal([0.0, np.nan], x_BF[:, 1])


def test_a_missing_column_is_refused() -> None:
    """A request without an input column ends in one message that names it."""
    with pytest.raises(InputError, match=r"but got none called 'city'\. Send the columns n, city, ok, day\."):
        bundle_of().predict(ROWS.drop("city"))


def test_golden_predictions_hold() -> None:
    """A bundle gives its golden predictions, one row of scores for each raw row, and so does one without any."""
    bundle = golden_bundle()
    bundle.check_golden()
    bundle_of().check_golden()

    assert ROWS.head(10).to_dicts() == bundle.golden[0]
    np.testing.assert_allclose(
        bundle.predict(ROWS.head(10))["probability"].to_numpy()[:, None], bundle.golden[1], atol=1e-7
    )


def _other_model(bundle: Bundle) -> Bundle:
    return replace(bundle, predictor=Trees(bundle.booster[:2]))


def _other_codes(bundle: Bundle) -> Bundle:
    return replace(bundle, vocabulary=Vocabulary({"city": ("Oslo", "Rome")}))


def _nan(bundle: Bundle) -> Bundle:
    return replace(bundle, golden=(bundle.golden[0], [[float("nan")]] * len(bundle.golden[0])))


@pytest.mark.parametrize("damage", [_other_model, _other_codes, _nan])
def test_a_bundle_that_answers_otherwise_is_refused(damage: Any) -> None:
    """Another model, other codes or no numbers at all are found by the golden predictions."""
    with pytest.raises(ValueError, match=r"golden predictions to within 1e-06, but got a difference=.*Keep the ver"):
        damage(golden_bundle()).check_golden()


def test_golden_rows_may_mix_types() -> None:
    """Rows from JSON become one frame even where a column mixes numbers and texts."""
    rows = [{"a": 1}, {"a": None}, {"a": 2.5}]

    assert [1.0, None, 2.5] == golden_frame(rows)["a"].to_list()


def test_mlflow_gets_the_same_answers(tmp_path: Path) -> None:
    """The pyfunc model answers a pandas frame as the bundle answers a Polars frame, NaN being missing."""
    bundle = bundle_of()
    bundle.save(tmp_path)
    frame = ROWS.to_pandas()
    answers = _load_pyfunc(str(tmp_path)).predict(frame)

    assert isinstance(answers, pd.DataFrame)
    assert_frame_equal(bundle.predict(ROWS), pl.from_pandas(answers), check_exact=True)
