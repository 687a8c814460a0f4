"""What is refused, and what is known, before any server or worker starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from infra.errors import InputError
from infra.storage import Store
from tasks import _first_look
from tasks._first_look import first_look
from tasks._jobs import profile_job
from tasks._snapshot import DataConfig, take_snapshot

ROWS = pl.DataFrame({"x": [1.0, 2.0], "day": ["2024-01-01", "2024-01-02"], "bought": ["yes", "no"]})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Give an empty store."""
    return Store(str(tmp_path / "root"))


def config(**changes: Any) -> DataConfig:
    """Return a configuration of the files in the folder `data`."""
    return DataConfig(**{"source": "data", "target": "bought", **changes})


def written(folder: Path, *names: str) -> Path:
    """Write files of the same rows, and return the folder that relative sources start at."""
    (folder / "data").mkdir()
    for name in names:
        path = folder / "data" / name
        {".parquet": ROWS.write_parquet, ".csv": ROWS.write_csv, ".jsonl": ROWS.write_ndjson}[path.suffix](path)
    return folder


def test_a_file_is_new_until_it_is_profiled(tmp_path: Path, store: Store) -> None:
    """There is work as long as one file has no profile for this configuration."""
    base = written(tmp_path, "a.parquet", "b.csv")
    seen = [first_look(config(), "buyers", base, store)]
    for file in take_snapshot(config(), base).files:
        profile_job((store, file.units, None))
        seen.append(first_look(config(), "buyers", base, store))

    assert [True, True, False] == seen
    assert first_look(config(time="day"), "buyers", base, store)


@pytest.mark.parametrize("name", ["a.parquet", "a.csv"])
def test_a_name_that_is_no_column_is_refused(tmp_path: Path, store: Store, name: str) -> None:
    """A wrong name is found in the headers, with the nearest right one."""
    base = written(tmp_path, name)
    message = (
        r"data\.target names a column of the data, but got 'bougt'\. Did you mean \"bought\"\? The columns are x, "
    )
    with pytest.raises(InputError, match=message):
        first_look(config(target="bougt"), "buyers", base, store)


def test_a_column_of_one_file_alone_is_a_column(tmp_path: Path, store: Store) -> None:
    """A name is right if any of the files has it, as it is for the stages."""
    base = written(tmp_path, "a.parquet")
    ROWS.with_columns(extra=1).write_parquet(base / "data/b.parquet")

    assert first_look(config(ignore=["extra"]), "buyers", base, store)


def test_a_damaged_file_is_refused(tmp_path: Path, store: Store) -> None:
    """A file that is not what its name says is named."""
    base = written(tmp_path, "a.parquet")
    (base / "data/b.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match=r"must be valid parquet, but got file=\".*/data/b\.parquet\""):
        first_look(config(), "buyers", base, store)


def test_names_of_json_lines_are_left_to_the_stages(tmp_path: Path, store: Store) -> None:
    """Any line of JSON may add a column, and not all are read here."""
    assert first_look(config(target="later"), "buyers", written(tmp_path, "a.jsonl"), store)


@pytest.mark.parametrize("limit", ["MAX_BYTES", "MAX_FILES"])
def test_large_sources_are_not_looked_at(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    """What would take long is left to the stages, wrong names included."""
    monkeypatch.setattr(_first_look, limit, 1)

    assert first_look(config(target="bougt"), "buyers", written(tmp_path, "a.parquet", "b.parquet"), store)


def test_a_source_that_is_absent_is_refused(tmp_path: Path, store: Store) -> None:
    """A source that does not exist is named with where it was looked for."""
    with pytest.raises(InputError, match=r'A source must exist, but got source="data" \(looked in '):
        first_look(config(), "buyers", tmp_path, store)


def test_what_the_workers_import_knows_no_service() -> None:
    """The functions that run on workers load neither Prefect nor MLflow, whatever module they come from."""
    code = (
        "import sys, infra.worker_process; "
        "import tasks._jobs, tasks._evaluate, tasks._xgboost, tasks._compress, tasks._decide, tasks._pictures; "
        "print([name for name in ('prefect', 'mlflow', 'typer', 'httpx') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "[]" == done.stdout.strip()
