"""One model, four ways to ask it: `evergreen serve`, `mlflow models serve`, `mlflow.pyfunc`, `evergreen predict`."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest
from _drive import (
    COMMAND,
    LEAN,
    MODEL,
    MONTHS,
    PROMOTE_IF_FRESHER,
    State,
    Workspace,
    answering,
    wait_for_version,
)

from infra.processes import free_port

NUM_ROWS = 200
CHAMPION = f"models:/{MODEL}@champion"
ANSWER = ["prediction", "probability"]
LOAD_WITH_MLFLOW = """
import sys
import mlflow.pyfunc
import pandas as pd
model = mlflow.pyfunc.load_model(sys.argv[1])
model.predict(pd.read_parquet(sys.argv[2])).to_parquet(sys.argv[3])
assert not {"flows", "tasks", "infra"} & set(sys.modules), "the model brings all of its code with it"
"""


@pytest.fixture(scope="module")
def place(trained: State) -> Workspace:
    """Give a workspace with version 1 in production to all tests of this file; the last one adds a version."""
    return trained.restore()


@pytest.fixture(scope="module")
def rows(place: Workspace, tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    """Return raw rows that version 1 has not seen, with missing values, rare ones, and a category that is new."""
    later = Workspace(tmp_path_factory.mktemp("later"), place.variables)
    later.grow(MONTHS + 1)
    frame = pl.read_parquet(later.data / "applications-2024-09.parquet").drop("defaulted").head(NUM_ROWS)
    return frame.with_columns(channel=pl.when(pl.int_range(pl.len()) % 10 > 0).then("channel").otherwise(pl.lit("fax")))


@pytest.fixture(scope="module")
def offline(place: Workspace, rows: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    """Return the answers of `evergreen predict`."""
    folder = tmp_path_factory.mktemp("offline")
    rows.write_parquet(folder / "rows.parquet")
    done = place.evergreen("predict", folder / "rows.parquet", folder / "answers.parquet", "--json", *LEAN).answer
    assert {"model": MODEL, "version": "1", "rows": NUM_ROWS, "output": str(folder / "answers.parquet")} == done
    return pl.read_parquet(folder / "answers.parquet")


def as_json(rows: pl.DataFrame) -> list[dict[str, Any]]:
    """Return rows as a client sends them."""
    return json.loads(rows.write_json())


def split_body(rows: pl.DataFrame) -> dict[str, Any]:
    """Return rows in the protocol that MLflow's server and ours both speak."""
    return {"dataframe_split": {"columns": rows.columns, "data": [list(row.values()) for row in as_json(rows)]}}


def bodies(rows: pl.DataFrame) -> dict[str, dict[str, Any]]:
    """Return rows in every form of the protocol."""
    listed = as_json(rows)
    return {
        "dataframe_split": split_body(rows),
        "dataframe_records": {"dataframe_records": listed},
        "inputs": {"inputs": {name: [row[name] for row in listed] for name in rows.columns}},
    }


def ask(url: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a server's predictions."""
    answer = httpx.post(f"{url}/invocations", json=body, timeout=60)
    assert 200 == answer.status_code, answer.text
    return answer.json()["predictions"]


def test_the_rows_are_of_every_sort(rows: pl.DataFrame) -> None:
    """Among the rows are missing numbers, missing dates, and categories that version 1 has never seen."""
    assert NUM_ROWS == rows.height
    assert all(rows[name].null_count() > 0 for name in ("income", "customer_since"))
    assert "green energy" in rows["purpose"].to_list()
    assert "fax" in rows["channel"].to_list()


def test_predict_keeps_the_rows_and_names_the_version(rows: pl.DataFrame, offline: pl.DataFrame) -> None:
    """The output has the rows as they were, their answers, and the version that gave them."""
    assert rows.equals(offline.select(rows.columns))
    assert [*rows.columns, *ANSWER, "model_version"] == offline.columns
    assert (["1"], ["0", "1"]) == (
        offline["model_version"].unique().to_list(),
        sorted(offline["prediction"].unique().to_list()),
    )
    assert offline["probability"].is_between(0, 1).all()
    assert offline["probability"].n_unique() > NUM_ROWS / 2


def test_mlflow_loads_the_model_and_agrees(
    place: Workspace, rows: pl.DataFrame, offline: pl.DataFrame, tmp_path: Path
) -> None:
    """The champion loaded by mlflow.pyfunc, without Evergreen's packages, gives the same answers."""
    rows.write_parquet(tmp_path / "rows.parquet")
    files = (tmp_path / "rows.parquet", tmp_path / "answers.parquet")
    tracked = Workspace(place.folder, {**place.variables, "MLFLOW_TRACKING_URI": place.tracking_uri})
    done = tracked.run(sys.executable, "-c", LOAD_WITH_MLFLOW, CHAMPION, *files)

    assert 0 == done.code, done.stderr
    assert offline.select(ANSWER).equals(pl.read_parquet(files[1]).select(ANSWER))


def test_mlflow_serves_the_model_and_agrees(
    place: Workspace, rows: pl.DataFrame, offline: pl.DataFrame, tmp_path: Path
) -> None:
    """The champion behind `mlflow models serve` gives the same answers."""
    port = free_port()
    command = [str(COMMAND.with_name("mlflow")), "models", "serve", "--env-manager", "local", "-m", CHAMPION]
    variables = {**place.environment, "MLFLOW_TRACKING_URI": place.tracking_uri, "MLFLOW_DISABLE_TELEMETRY": "true"}
    ready = re.compile("Application startup complete")
    with answering([*command, "--port", str(port)], variables, tmp_path / "log", ready):
        found = ask(f"http://127.0.0.1:{port}", split_body(rows))

    assert offline.select(ANSWER).to_dicts() == found


def test_serve_agrees_and_takes_up_a_new_champion(
    place: Workspace, rows: pl.DataFrame, offline: pl.DataFrame, tmp_path: Path
) -> None:
    """A running `evergreen serve` gives the same answers in each form, and those of a new champion once there is one.

    The retrain ends when every server answers with the new version.
    """
    with place.serving(tmp_path / "log") as url:
        found = {form: ask(url, body) for form, body in bodies(rows).items()}
        served = place.evergreen("status", "--json").answer["servers"]
        place.grow(MONTHS + 1)
        promoted = place.evergreen("retrain", "--json", *LEAN, *PROMOTE_IF_FRESHER).answer
        wait_for_version(url, "2")
        renewed = ask(url, split_body(rows))
        metadata = httpx.get(f"{url}/metadata").json()
    scored = place.evergreen("predict", rows_file(rows, tmp_path), tmp_path / "answers.csv", "--json", *LEAN).answer

    assert dict.fromkeys(bodies(rows), offline.select(ANSWER).to_dicts()) == found
    assert [{"url": url, "version": "1", "refused": None}] == served
    assert ("2", "2", "2") == (promoted["champion_version"], metadata["version"], scored["version"])
    assert (
        pl.read_csv(tmp_path / "answers.csv", schema_overrides={"prediction": pl.String}).select(ANSWER).to_dicts()
        == renewed
    )
    assert renewed != found["dataframe_split"]


def rows_file(rows: pl.DataFrame, folder: Path) -> Path:
    """Write rows as a CSV file."""
    rows.write_csv(folder / "rows.csv")
    return folder / "rows.csv"
