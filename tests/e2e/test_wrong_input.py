"""Wrong input from outside: one line that names the cause, exit code 2, and the champion goes on answering."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx
import polars as pl
import pytest
from _drive import LEAN, PROGRESS, State, Workspace

EDGE = re.compile(r"[\w./-]*/loans/")
"""The folder of the workspace in a message."""


@dataclass(frozen=True)
class Case:
    """A way to be wrong."""

    name: str
    spoil: Callable[[Workspace], tuple[str, ...]]
    """Spoil a workspace, and return the further arguments of the command."""
    message: str
    """How the message begins, with the workspace's folder left out."""


def month(workspace: Workspace, number: int = 8) -> pl.DataFrame:
    """Return the rows of one month."""
    return pl.read_parquet(workspace.data / f"applications-2024-{number:02d}.parquet")


def setting(key: str, value: str) -> Callable[[Workspace], tuple[str, ...]]:
    """Change one key on the command line."""
    return lambda workspace: ("--set", f"{key}={value}")


def line(text: str) -> Callable[[Workspace], tuple[str, ...]]:
    """Add a line to the configuration."""

    def spoil(workspace: Workspace) -> tuple[str, ...]:
        workspace.config.write_text(f"{workspace.config.read_text()}{text}\n")
        return ()

    return spoil


def only(change: Callable[[pl.DataFrame], pl.DataFrame], *arguments: str) -> Callable[[Workspace], tuple[str, ...]]:
    """Let the data be one changed month."""

    def spoil(workspace: Workspace) -> tuple[str, ...]:
        change(month(workspace)).write_parquet(workspace.data / "only.parquet")
        return "--set", "data.source=data/only.parquet", *arguments

    return spoil


def further(change: Callable[[pl.DataFrame], pl.DataFrame]) -> Callable[[Workspace], tuple[str, ...]]:
    """Add a changed month to the data."""

    def spoil(workspace: Workspace) -> tuple[str, ...]:
        change(month(workspace)).write_parquet(workspace.data / "later.parquet")
        return ()

    return spoil


def everywhere(change: Callable[[pl.DataFrame], pl.DataFrame]) -> Callable[[Workspace], tuple[str, ...]]:
    """Change every month."""

    def spoil(workspace: Workspace) -> tuple[str, ...]:
        for path in workspace.data.iterdir():
            change(pl.read_parquet(path)).write_parquet(path)
        return ()

    return spoil


def csv(change: Callable[[str], bytes]) -> Callable[[Workspace], tuple[str, ...]]:
    """Add a month as a CSV file that is written in a wrong way."""

    def spoil(workspace: Workspace) -> tuple[str, ...]:
        (workspace.data / "later.csv").write_bytes(change(month(workspace).write_csv()))
        return "--set", 'data.source=["data/*.parquet", "data/later.csv"]'

    return spoil


def empty(workspace: Workspace) -> tuple[str, ...]:
    """Add a file without a byte."""
    (workspace.data / "later.parquet").touch()
    return ()


def cut(workspace: Workspace) -> tuple[str, ...]:
    """Add half a Parquet file."""
    whole = (workspace.data / "applications-2024-08.parquet").read_bytes()
    (workspace.data / "later.parquet").write_bytes(whole[: len(whole) // 2])
    return ()


def short_row(text: str) -> bytes:
    """Take the last two fields from the fourth line."""
    lines = text.splitlines()
    lines[3] = lines[3].rsplit(",", 2)[0]
    return "\n".join(lines).encode()


def one_yacht(rows: pl.DataFrame) -> pl.DataFrame:
    """Give the newest row a class of its own."""
    return rows.sort("applied_on").with_columns(
        purpose=pl.when(pl.int_range(pl.len()) == pl.len() - 1).then(pl.lit("yacht")).otherwise("purpose")
    )


def percents(rows: pl.DataFrame) -> pl.DataFrame:
    """Write every fourth number as a percentage."""
    number = pl.int_range(pl.len())
    text = (number / 7).cast(pl.String)
    return rows.head(400).with_columns(income=pl.when(number % 4 == 0).then(text + "%").otherwise(text))


CASES = [
    Case(
        "a missing file",
        setting("data.source", "data/gone.parquet"),
        'A source must exist, but got source="data/gone.parquet" (looked in data).',
    ),
    Case(
        "a missing configuration",
        lambda workspace: (workspace.config.unlink(), ())[1],
        "A configuration file must exist, but got none at evergreen.toml.",
    ),
    Case("an empty file", empty, 'A source file must not be empty, but got num_bytes=0 for "data/later.parquet".'),
    Case(
        "a corrupt Parquet file",
        cut,
        'A source file must be valid parquet, but got file="data/later.parquet" (',
    ),
    Case(
        "a short row",
        csv(short_row),
        'A row must have as many fields as the header, 18, but got num_fields=16 in line 4 of "data/later.csv".',
    ),
    Case(
        "duplicate column names",
        csv(lambda text: text.replace("age,income", "age,age", 1).encode()),
        'Column names must be unique, but got column="age" at positions 6 and 7 of "data/later.csv".',
    ),
    Case(
        "text that is not UTF-8",
        csv(lambda text: text.replace("medical", "médical").encode("cp1252")),
        "A text file must be written in utf-8 throughout, but got byte=0xe9 in line ",
    ),
    Case(
        "a wrong target",
        setting("data.target", "defalted"),
        "data.target names a column of the data, but got 'defalted'. Did you mean \"defaulted\"?",
    ),
    Case(
        "a constant target",
        only(lambda rows: rows.with_columns(defaulted=pl.lit(3.5))),
        "A target needs at least two different values, but got only '3.5' (one class, constant) "
        "in column='defaulted' of ",
    ),
    Case(
        "one class alone for a model that is new",
        only(lambda rows: rows.with_columns(defaulted=pl.lit("no")), "--set", "model.name=novel"),
        "A target needs at least two different values, but got only 'no' (one class, constant) "
        "in column='defaulted' of ",
    ),
    Case(
        "a column without a value",
        only(lambda rows: rows.with_columns(income=pl.lit(None, pl.Float64))),
        "A column needs at least one value, but got none in 410 rows of column='income'.",
    ),
    Case(
        "an unknown key",
        line('data.tagret = "defaulted"'),
        "evergreen.toml: [data] has known keys alone, but got 'data.tagret'. Did you mean \"target\"?",
    ),
    Case(
        "an unknown section",
        line("trian.seed = 1"),
        "evergreen.toml: A configuration has known keys alone, but got 'trian'. Did you mean \"train\"?",
    ),
    Case(
        "a value of a wrong type",
        line('split.holdout_fraction = "a fifth"'),
        "evergreen.toml: split.holdout_fraction does not fit: input should be a valid number",
    ),
    Case(
        "a value out of bounds",
        setting("split.holdout_fraction", "1.5"),
        "evergreen.toml: split.holdout_fraction does not fit: input should be less than 1, but got 1.5.",
    ),
    Case(
        "a configuration that is no TOML",
        line("data.target defaulted"),
        "A configuration is valid TOML, but got evergreen.toml: ",
    ),
    Case(
        "a column that has disappeared",
        everywhere(lambda rows: rows.drop("income")),
        "A new file keeps the columns of the champion, but got none called 'income' "
        "in data/applications-2024-01.parquet.",
    ),
    Case(
        "texts in a column of numbers",
        further(lambda rows: rows.with_columns(income=pl.lit("much"))),
        "A column keeps the type that the champion was trained on, but got 410 values that are no numbers, "
        "such as 'much', in column='income' (was number).",
    ),
    Case(
        "texts in two columns of numbers",
        further(lambda rows: rows.with_columns(income=pl.lit("much"), age=pl.lit("old"))),
        "A column keeps the type that the champion was trained on, but got 410 values that are no numbers, "
        "such as 'old', in column='age' (was integer); 410 values that are no numbers, such as 'much', in "
        "column='income' (was number).",
    ),
    Case(
        "several columns without a value",
        only(lambda rows: rows.with_columns(income=pl.lit(None, pl.Float64), age=pl.lit(None, pl.Int64))),
        "A column needs at least one value, but got none in 410 rows of column='age', column='income'.",
    ),
    Case(
        "a class of one row",
        only(one_yacht, "--set", "data.target=purpose", "--set", "model.name=novel"),
        "Each class needs rows in the training side of a split by time, but got none of class 'yacht' (1 row in all). "
        "Leave out the rows of rare classes,",
    ),
    Case(
        "a target of numbers and other texts",
        only(percents, "--set", "data.target=income", "--set", "model.name=novel"),
        "A target holds numbers or at most 100 classes, but got 75.0% numbers and 100 other values, such as ",
    ),
    Case(
        "a time in several columns",
        setting("data.time", '["year", "month"]'),
        "evergreen.toml: data.time does not fit: value error, a time is one column; make one of these in the source, "
        "such as 2013-03-01 13:00, but got ['year', 'month'].",
    ),
    Case(
        "a cluster of a fixed size that is to grow",
        setting("cluster.max_workers", "4"),
        "evergreen.toml: cluster does not fit: value error, workers is a fixed number; leave it out beside max_workers",
    ),
]


@pytest.fixture(scope="module")
def served(trained: State, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Give the address of a server that answers with the champion meanwhile."""
    with trained.restore().serving(tmp_path_factory.mktemp("server") / "log") as url:
        yield url


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_wrong_input_is_one_line_and_changes_nothing(workspace: Workspace, served: str, case: Case) -> None:
    """The command names the cause in one line and exits with 2; versions, champion and server stay as they were."""
    arguments = case.spoil(workspace)
    before = workspace.published()
    ended = workspace.evergreen("retrain", "--json", *LEAN, *arguments)
    lines = ended.stderr.splitlines()

    assert (2, "") == (ended.code, ended.stdout)
    assert 1 == len([text for text in lines if not PROGRESS.fullmatch(text)]), ended.stderr
    assert f"evergreen: {case.message}" == EDGE.sub("", lines[-1])[: len("evergreen: ") + len(case.message)]
    assert before == workspace.published()
    assert [] == workspace.query("SELECT run_uuid FROM runs WHERE status NOT IN ('FINISHED', 'FAILED')")
    assert "1" == httpx.get(f"{served}/version").text


def test_a_new_file_without_a_column_leaves_the_status_as_it_was(workspace: Workspace) -> None:
    """A new file that lacks columns is refused by name, and the status shows the same champion as before."""
    before = workspace.evergreen("status", "--json").answer
    arguments = further(lambda rows: rows.drop("income", "purpose"))(workspace)
    refused = workspace.evergreen("retrain", *LEAN, *arguments)

    assert (2, "") == (refused.code, refused.stdout)
    assert EDGE.sub("", refused.stderr.splitlines()[-1]).startswith(
        "evergreen: A new file keeps the columns of the champion, but got none called 'income', 'purpose' "
        "in data/later.parquet."
    )
    assert before == workspace.evergreen("status", "--json").answer
    assert ("1", "1", ["1"]) == (before["champion_version"], before["released_version"], before["versions"])
