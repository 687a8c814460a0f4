"""Scoring files, and joining their parts into one output."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import xgboost as xgb
from polars.testing import assert_frame_equal

from infra.bundle.model import Bundle
from infra.bundle.schema import Column, Schema
from infra.bundle.trees import Trees
from infra.bundle.vocabulary import Vocabulary
from infra.errors import InputError
from infra.storage import MissingError, Ref, Store
from tasks import _predict
from tasks._candidate import BundleRef, store_bundle
from tasks._predict import TYPES_KEY, check_inputs, check_output, join_parts, noted, predict_file
from tasks._snapshot import CsvConfig, SourceFile, source_file
from tasks._typed import Typed, typed_columns

SCHEMA = Schema(
    (Column("x", "numeric"), Column("city", "categorical"), Column("y", "numeric")),
    target="y",
    task="binary",
    labels=("no", "yes"),
)
ROWS = pl.DataFrame({"note": ["a", None, "c"], "city": ["Rome", "Bern", None], "x": [1.5, -2.0, None]})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Give an empty store."""
    return Store(str(tmp_path / "root"))


@pytest.fixture
def model(store: Store) -> tuple[Bundle, BundleRef]:
    """Give a small model, and where it is stored."""
    rng = np.random.default_rng(0)
    rows = xgb.DMatrix(rng.normal(size=(80, 2)), rng.integers(0, 2, 80))
    booster = xgb.train({"objective": "binary:logistic", "nthread": 1, "max_depth": 2}, rows, num_boost_round=3)
    bundle = Bundle(SCHEMA, Vocabulary({"city": ("Rome",)}), Trees(booster))
    return bundle, store_bundle(store, bundle)


def source(folder: Path, frame: pl.DataFrame, name: str = "rows.parquet") -> SourceFile:
    """Write rows into a file and fingerprint it."""
    path = folder / name
    frame.write_parquet(path) if path.suffix == ".parquet" else frame.write_csv(path)
    return source_file(str(path), CsvConfig())


def part(store: Store, types: dict[str, Typed] | None = None, /, **columns: Any) -> Ref:
    """Store a part, with a note on which of its texts are more than texts."""
    path = Path(store.root).parent / "part.parquet"
    pl.DataFrame(columns).write_parquet(path, metadata={TYPES_KEY: noted(types or {})})
    return store.put_file(f"parts/{len(store.list('parts/'))}", path)


def read(path: Path) -> pl.DataFrame:
    """Read an output."""
    return pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_csv(path)


@pytest.mark.parametrize("name", ["out.parquet", "out.csv"])
def test_an_output_is_parquet_or_csv(tmp_path: Path, name: str) -> None:
    """An output in a folder that exists, with a known suffix, is accepted, and nothing is written yet."""
    check_output(tmp_path / name)

    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["out.json", "out", "out.csv.gz"])
def test_another_suffix_is_refused(tmp_path: Path, name: str) -> None:
    """An output in a format that is not written is named."""
    with pytest.raises(InputError, match=rf"ends in \.parquet or \.csv, but got {tmp_path}/{name}\. Rename it\."):
        check_output(tmp_path / name)


def test_an_output_needs_its_folder(tmp_path: Path) -> None:
    """No folder is made by a slip of the pen."""
    message = rf"a folder that exists, but got {tmp_path}/no/out\.csv\. Make {tmp_path}/no first\."
    with pytest.raises(InputError, match=message):
        check_output(tmp_path / "no/out.csv")


@pytest.mark.parametrize("name", ["rows.parquet", "rows.csv"])
def test_rows_keep_their_columns(tmp_path: Path, store: Store, model: tuple[Bundle, BundleRef], name: str) -> None:
    """Rows come back in order with all their columns, and beside them the answers and the version that gave them."""
    bundle, ref = model
    stored = predict_file(store, source(tmp_path, ROWS, name), ref, "7", "parts/0")
    found = pl.read_parquet(store.local(stored))
    answers = bundle.predict(ROWS)

    assert [*ROWS.columns, "prediction", "probability", "model_version"] == found.columns
    assert_frame_equal(answers, found.select("prediction", "probability"), check_exact=True)
    assert ([*ROWS["note"]], ["7"] * 3) == (found["note"].to_list(), found["model_version"].to_list())


def test_old_answers_are_replaced(tmp_path: Path, store: Store, model: tuple[Bundle, BundleRef]) -> None:
    """A file that was scored before has the new answers alone."""
    bundle, ref = model
    scored = ROWS.with_columns(prediction=pl.lit("old"), model_version=pl.lit("1"))
    found = pl.read_parquet(store.local(predict_file(store, source(tmp_path, scored), ref, "7", "parts/0")))

    assert [*ROWS.columns, "prediction", "probability", "model_version"] == found.columns
    assert bundle.predict(ROWS)["prediction"].to_list() == found["prediction"].to_list()


def test_a_file_without_an_input_is_named(tmp_path: Path, store: Store, model: tuple[Bundle, BundleRef]) -> None:
    """A file that lacks columns is refused with its name and theirs; the target is not needed."""
    file = source(tmp_path, ROWS.select("note"))
    message = rf"every input column, but got none called 'x', 'city' in {file.path}\. Mend the file\."
    with pytest.raises(InputError, match=message):
        predict_file(store, file, model[1], "7", "parts/0")

    check_inputs(ROWS, SCHEMA, "f")


@pytest.mark.parametrize("name", ["out.parquet", "out.csv"])
def test_parts_become_one_file(tmp_path: Path, store: Store, name: str) -> None:
    """Parts are joined in order; a column that some lack is null there; types that differ find a common one."""
    parts = [part(store, a=[1, 2], b=["x", None]), part(store, a=[0.5], c=[True]), part(store, b=["y"], a=[None])]
    num_rows = join_parts(store, parts, tmp_path / name)
    expected = pl.DataFrame(
        {"a": [1.0, 2.0, 0.5, None], "b": ["x", None, None, "y"], "c": [None, None, True, None]},
    )

    assert 4 == num_rows
    assert_frame_equal(expected, read(tmp_path / name), check_column_order=False)


@pytest.mark.parametrize("name", ["out.parquet", "out.csv"])
def test_parts_of_one_file_of_text_and_one_of_numbers(tmp_path: Path, store: Store, name: str) -> None:
    """A column that is a number in one file and a text in another, as in a CSV file, is a text in the output."""
    num_rows = join_parts(store, [part(store, a=[1]), part(store, a=["x"])], tmp_path / name)

    assert (2, ["1", "x"]) == (num_rows, read(tmp_path / name)["a"].to_list())


def test_columns_of_a_csv_file_get_the_types_of_the_model_in_parquet(tmp_path: Path, store: Store) -> None:
    """Numbers, truth values and dates come as such into Parquet; what is no column of the model stays a text."""
    schema = Schema(
        (
            Column("x", "numeric", source_type="number"),
            Column("n", "identifier", source_type="integer"),
            Column("ok", "boolean", source_type="boolean"),
            Column("day", "datetime", source_type="datetime", date_format="%d.%m.%Y"),
            Column("city", "categorical", source_type="text"),
        ),
        target="x",
        task="regression",
    )
    rows = {"x": ["1.50", None], "n": ["7", "8"], "ok": ["true", "false"], "day": ["31.12.2024", None]}
    rows |= {"city": ["1", "2"], "extra": ["1", "2"]}
    text = pl.DataFrame(rows)
    stored = part(store, typed_columns(text, schema), **rows)
    outputs = [tmp_path / "out.parquet", tmp_path / "out.csv"]
    for output in outputs:
        join_parts(store, [stored], output)

    expected = {"x": [1.5, None], "n": [7, 8], "ok": [True, False], "day": [date(2024, 12, 31), None]}
    assert expected | {"city": ["1", "2"], "extra": ["1", "2"]} == pl.read_parquet(outputs[0]).to_dict(as_series=False)
    assert_frame_equal(text, pl.read_csv(outputs[1], infer_schema=False))


def test_a_column_is_a_text_as_written_if_one_file_needs_it(tmp_path: Path, store: Store) -> None:
    """Where one file holds a value that is no number, the values of the others stay as they were written, too."""
    parts = [
        part(store, typed_columns(pl.DataFrame({"x": column}), SCHEMA), x=column) for column in (["1.50"], ["many"])
    ]
    join_parts(store, parts, tmp_path / "out.parquet")

    assert ["1.50", "many"] == pl.read_parquet(tmp_path / "out.parquet")["x"].to_list()


def test_whole_numbers_and_others_become_numbers(tmp_path: Path, store: Store) -> None:
    """A column of whole numbers in one file and of fractions in another has both as numbers, beside typed files."""
    schema = Schema((Column("x", "numeric", source_type="integer"),), target="x", task="regression")
    parts = [part(store, typed_columns(pl.DataFrame({"x": [v]}), schema), x=[v]) for v in ("1", "2.5")]
    join_parts(store, [*parts, part(store, x=[3])], tmp_path / "out.parquet")

    assert [1.0, 2.5, 3.0] == pl.read_parquet(tmp_path / "out.parquet")["x"].to_list()


@pytest.mark.parametrize(
    ("source_type", "text"),
    [
        ("integer", "007"),
        ("integer", "0x1f"),
        ("number", "007.5"),
        ("number", "inf"),
        ("number", "12345678901234567"),
        ("boolean", "yes"),
        ("datetime", "2024-01-01T00:00:00Z"),
        ("datetime", "2024-01-01 00:00:00.0000001"),
        ("datetime", "soon"),
        ("text", "1"),
    ],
)
def test_a_text_that_would_lose_something_stays_a_text(source_type: Any, text: str) -> None:
    """Leading zeros, digits beyond a float's, zones and nanoseconds are kept, for the whole column."""
    schema = Schema((Column("x", "numeric", source_type=source_type),), target="x", task="regression")
    usual = {"integer": "1", "number": "1.5", "boolean": "true", "datetime": "2024-01-01 00:00:00", "text": "a"}

    assert ([] if source_type == "text" else ["x"]) == [
        *typed_columns(pl.DataFrame({"x": [usual[source_type]]}), schema)
    ]
    assert {} == typed_columns(pl.DataFrame({"x": [usual[source_type], text, None]}), schema)


def test_an_output_appears_when_it_is_whole(tmp_path: Path, store: Store) -> None:
    """If a part is gone, the output that was there stays, and nothing half written is left beside it."""
    output = tmp_path / "out" / "scored.csv"
    output.parent.mkdir()
    output.write_text("before")
    parts = [part(store, a=[1]), part(store, a=[2])]
    Path(store.root, parts[1].name).unlink()
    with pytest.raises(MissingError, match=r"parts/1"):
        join_parts(store, parts, output)

    assert {"scored.csv": "before"} == {path.name: path.read_text() for path in output.parent.iterdir()}


def test_a_csv_output_can_be_scored_again(tmp_path: Path, store: Store, model: tuple[Bundle, BundleRef]) -> None:
    """Answers for a CSV output that is read in again are the same."""
    _, ref = model
    outputs = [tmp_path / "first.csv", tmp_path / "second.csv"]
    file = source(tmp_path, ROWS)
    for number, output in enumerate(outputs):
        join_parts(store, [predict_file(store, file, ref, "7", f"parts/{number}")], output)
        file = source_file(str(output), CsvConfig())

    assert_frame_equal(read(outputs[0]), read(outputs[1]))


@pytest.mark.parametrize("num_rows", [1, 3, 7])
def test_a_unit_is_scored_in_batches(
    tmp_path: Path,
    store: Store,
    model: tuple[Bundle, BundleRef],
    num_rows: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However many rows a unit has, no more than a batch of them is scored at once, and all get their answers."""
    bundle, ref = model
    rows = pl.concat([ROWS] * 3).head(num_rows)
    sizes: list[int] = []

    class Counted(Bundle):
        def predict(self, frame: pl.DataFrame) -> pl.DataFrame:
            sizes.append(frame.height)
            return super().predict(frame)

    counted = Counted(bundle.schema, bundle.vocabulary, bundle.predictor)
    monkeypatch.setattr(_predict, "BATCH_ROWS", 3)
    monkeypatch.setattr(_predict, "loaded", lambda *_: counted)
    written = predict_file(store, source(tmp_path, rows), ref, "7", "out")
    answers = pl.read_parquet(store.local(written)).select("prediction", "probability")

    assert_frame_equal(bundle.predict(rows), answers)
    assert (num_rows, min(3, num_rows)) == (sum(sizes), max(sizes))
