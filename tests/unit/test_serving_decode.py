"""Request bodies as frames, and the application without a server."""

from __future__ import annotations

import asyncio
import errno
import json
import socket
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import httpx
import polars as pl
import pytest
from starlette.applications import Starlette

from infra.bundle.encoder import encode_frame
from infra.bundle.model import Bundle
from infra.bundle.schema import Column, Schema
from infra.bundle.vocabulary import Vocabulary
from infra.errors import InputError
from infra.serving.app import build_app
from infra.serving.champion import Champion, Loaded
from infra.serving.decode import read_csv, read_json
from infra.serving.process import listening
from infra.serving.target import Target
from infra.storage import Store

SCHEMA = Schema(
    columns=(
        Column("age", "numeric"),
        Column("plan", "categorical", source_type="text"),
        Column("zip", "categorical", source_type="integer"),
        Column("active", "boolean", source_type="boolean"),
        Column("joined", "datetime", source_type="text", date_format="%d/%m/%Y", parts=("year", "month", "day")),
        Column("row_id", "identifier"),
        Column("churned", "boolean"),
    ),
    target="churned",
    task="binary",
    labels=("no", "yes"),
)
VOCABULARY = Vocabulary({"plan": ("basic", "gold"), "zip": ("3", "1000")})
RAW = pl.DataFrame(
    {
        "age": [41.5, None, 7.0, 1e-9],
        "plan": ["gold", "never seen", None, "basic"],
        "zip": [3.0, 1000.0, None, 5.5],
        "active": [True, None, False, True],
        "joined": ["31/05/2024", "2024-06-01", None, "2024-06-01T10:20:30"],
        "row_id": [1, 2, 3, 4],
    }
)
ROWS = RAW.to_dicts()
NAMES = list(RAW.columns)


def rows_with(**changed: Any) -> dict[str, Any]:
    """Return two records, the second with another value."""
    return {"dataframe_records": [ROWS[0], {**ROWS[0], **changed}]}


def read(sent: Any) -> pl.DataFrame:
    """Read a body from plain data."""
    return read_json(json.dumps(sent).encode(), SCHEMA)


async def ask(app: Starlette, method: str, path: str, sent: Any = None) -> httpx.Response:
    """Ask an application without a server."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        return await client.request(method, path, json=sent)


class BrokenBundle:
    """A bundle with a mistake of ours."""

    schema = SCHEMA

    def predict(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Fail."""
        raise ZeroDivisionError("secret detail")


class TakenSocket(socket.socket):
    """A socket that the system gives no port."""

    def bind(self, address: object) -> None:
        """Refuse."""
        raise PermissionError(errno.EACCES, "Permission denied")


@pytest.mark.parametrize(
    "sent",
    [
        {"dataframe_records": ROWS},
        {"instances": ROWS},
        {"inputs": ROWS},
        {"inputs": RAW.to_dict(as_series=False)},
        {"dataframe_split": {"columns": NAMES[::-1], "data": [list(row[::-1]) for row in RAW.rows()], "index": [9, 8]}},
        {"dataframe_records": ROWS, "params": {"ignored": 1}},
    ],
)
def test_every_form_encodes_as_the_raw_rows(sent: Any) -> None:
    """Each JSON form gives the model's inputs that the same rows give offline."""
    assert encode_frame(RAW, SCHEMA, VOCABULARY).equals(encode_frame(read(sent), SCHEMA, VOCABULARY))


def test_csv_encodes_as_the_raw_rows() -> None:
    """A CSV body gives the model's inputs that a CSV file gives offline, its words for "missing" included."""
    body = (
        b'\xef\xbb\xbfplan,age,joined,"zip",active\r\ngold, 41.5 ,31/05/2024,3,true\r\n\r\n?,NA,,1000,\n"a,""b",,,,no\n'
    )
    texts = {
        "age": ["41.5", None, None],
        "plan": ["gold", None, 'a,"b'],
        "zip": ["3", "1000", None],
        "active": ["true", None, "no"],
        "joined": ["31/05/2024", None, None],
    }

    assert encode_frame(pl.DataFrame(texts), SCHEMA, VOCABULARY).equals(
        encode_frame(read_csv(body, SCHEMA), SCHEMA, VOCABULARY)
    )


def test_values_are_read_as_their_column_is() -> None:
    """Numbers become categories without a fraction, words and 0 and 1 booleans, and texts numbers and dates."""
    sent = {
        "age": ["2.5", 3, True, None, 2**60],
        "plan": [3, 3.0, 2.5, True, 2**60],
        "zip": [None, "03", 1e20, -0.0, False],
        "active": [True, "no", 1, 0.0, "Y"],
        "joined": ["01/02/2024", "2024-02-01 10:00", "2024-02-01T10:00:00Z", None, "2024-02-01"],
    }
    expected = {
        "age": [2.5, 3.0, 1.0, None, float(2**60)],
        "plan": ["3", "3", "2.5", "true", str(2**60)],
        "zip": [None, "03", "1e+20", "0", "false"],
        "active": [True, False, True, False, True],
        "joined": [
            datetime(2024, 2, 1),
            datetime(2024, 2, 1, 10),
            datetime(2024, 2, 1, 10),
            None,
            datetime(2024, 2, 1),
        ],
    }

    assert expected == read({"inputs": sent}).to_dict(as_series=False)


def test_null_is_allowed_in_every_column() -> None:
    """A row of missing values is a row."""
    assert [dict.fromkeys(NAMES[:5])] == read({"inputs": [dict.fromkeys(NAMES[:5])]}).to_dicts()


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ([1], r"must be a JSON object, but got \[1\]\. Send one with"),
        ({}, r"exactly one of dataframe_split, .*, but got none\. Send one with"),
        ({"rows": []}, r"exactly one of .*, but got rows\. Send one with"),
        ({"inputs": ROWS, "instances": ROWS}, r"exactly one of .*, but got inputs, instances\. Send one with"),
        ({"dataframe_split": ROWS}, r'dataframe_split has columns, a list of names, .* Send \{"dataframe_split"'),
        ({"dataframe_split": {"columns": [1], "data": [[1]]}}, r"columns, a list of names"),
        ({"dataframe_split": {"columns": NAMES, "data": [1]}}, r"and data, a list of rows, but got"),
        (
            {"dataframe_split": {"columns": NAMES, "data": []}},
            r"at least one row, but got num_rows=0 in dataframe_spli",
        ),
        (
            {"dataframe_split": {"columns": NAMES, "data": [[1]]}},
            r"each of the 6 columns, but got 1 values in row 1 of",
        ),
        (
            {"dataframe_split": {"columns": ["a", "a"], "data": [[1, 2]]}},
            r"sent once, but got column='a' twice in data",
        ),
        (
            {"dataframe_records": {}},
            r'dataframe_records is a list of objects, but got \{\}\. Send \{"dataframe_records"',
        ),
        ({"dataframe_records": []}, r"at least one row, but got num_rows=0 in dataframe_records\. Send a row"),
        ({"inputs": {name: [] for name in NAMES}}, r"at least one row, but got num_rows=0 in inputs\. Send a row"),
        ({"inputs": [[1, 2]]}, r"inputs names the column of every value, but got \[1,2\] in row 1\. Send objects"),
        ({"instances": [1.5]}, r"instances names the column of every value, but got 1.5 in row 1\. Send objects"),
        ({"inputs": 3}, r"inputs is a list of objects, but got 3\."),
        ({"inputs": ROWS[0]}, r'a list of values for every column, but got age=41.5\. Send \{"age": \[\.\.\.\]\}'),
        (
            {"inputs": {n: [1] * (1 + (n == "age")) for n in NAMES}},
            r"have one length, but got age=2, plan=1, .* Send null",
        ),
        (
            {"dataframe_records": [{"age": 1}]},
            r"none called 'plan', 'zip', 'active', 'joined' in row 1\. Send the colum",
        ),
        (
            {"inputs": [ROWS[0], {"plans" if name == "plan" else name: None for name in NAMES}]},
            r"none called 'plan' in row 2, and unknown columns 'plans'\. Did you mean \"plan\"\? Send the columns age",
        ),
        (
            rows_with(age="old"),
            r"A numeric column takes a number, but got age=\"old\" in row 2\. Send a number, or null",
        ),
        (rows_with(age=[1]), r"takes a number, but got age=\[1\] in row 2"),
        (rows_with(age=""), r"takes a number, but got age=\"\" in row 2"),
        (rows_with(active="maybe"), r"A boolean column takes true or false, but got active=\"maybe\" in row 2"),
        (rows_with(active=2), r"takes true or false, but got active=2 in row 2"),
        (
            rows_with(joined="soon"),
            r"A datetime column takes a date as 2026-05-31 or .*, but got joined=\"soon\" in row",
        ),
        (rows_with(joined=1717113600), r"takes a date as .*, but got joined=1717113600 in row 2"),
        (
            rows_with(plan={"a": "b" * 90}),
            r"A categorical column takes a text, but got plan=\{\"a\":\"b+\.\.\. in row 2",
        ),
    ],
)
def test_a_bad_body_is_refused(sent: Any, message: str) -> None:
    """Each mistake is named, with its column and row, and the next step."""
    with pytest.raises(InputError, match=message):
        read(sent)


@pytest.mark.parametrize("body", [b"", b"{", b'{"inputs": NaN}', b"\xff", b'{"inputs": [{"age": 1e999}]}', b"[" * 5000])
def test_a_body_that_is_not_json_is_refused(body: bytes) -> None:
    """Malformed JSON is refused with its position; NaN is not JSON."""
    with pytest.raises(
        InputError, match=r"A body must be valid JSON, but got .*\. Send JSON in UTF-8, with null for a "
    ):
        read_json(body, SCHEMA)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", r"none called 'age', 'plan', 'zip', 'active', 'joined'\. Send the columns"),
        (b"age,plan,zip,active,joined\n", r"at least one row, but got num_rows=0 in the CSV body"),
        (b"age,plan,zip,active,joined\n1,2,3,0\n", r"each of the 5 columns, but got 4 values in row 1 of the CSV body"),
        (b"age,age\n1,2\n", r"sent once, but got column='age' twice in the CSV body"),
        (b"age,plan,zip,active,joined\nx,,,,\n", r"takes a number, but got age=\"x\" in row 1"),
        (b"age\n\xff\n", r"A CSV body must be UTF-8, but got .* Encode it in UTF-8"),
        (b'age\n"1\n', r"A body must be valid CSV, but got unexpected end of data\. Quote fields"),
    ],
)
def test_a_bad_csv_body_is_refused(body: bytes, message: str) -> None:
    """CSV that is ragged, not UTF-8 or not quoted right is refused."""
    with pytest.raises(InputError, match=message):
        read_csv(body, SCHEMA)


@pytest.mark.parametrize("path", ["/ping", "/version", "/metadata"])
def test_without_a_version_the_application_is_unavailable(tmp_path: Path, path: str) -> None:
    """Until a version is loaded every question is answered with 503."""
    answer = asyncio.run(ask(build_app(Champion(Store(str(tmp_path)), "churn"), 1000), "GET", path))

    assert 503 == answer.status_code
    assert {
        "error_code": "TEMPORARILY_UNAVAILABLE",
        "message": "A server answers once a version is loaded, but got none of model=churn. Try again in a moment.",
    } == answer.json()


def test_a_mistake_of_ours_shows_no_traceback(tmp_path: Path) -> None:
    """An unforeseen failure is answered with 500 and one message; what happened is in the log alone."""
    target = Target("churn", "1", "run-1", (), "2026-11-21T04:00:00+00:00")
    champion = Champion(Store(str(tmp_path)), "churn", Loaded(target, cast(Bundle, BrokenBundle())))
    answer = asyncio.run(ask(build_app(champion, 10_000), "POST", "/invocations", {"inputs": ROWS}))

    message = "A prediction must not fail, but this one did. See the server's log for the reason."
    assert (500, {"error_code": "INTERNAL_ERROR", "message": message}) == (answer.status_code, answer.json())


def test_a_port_that_needs_rights_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that the system reserves is refused by its number."""
    monkeypatch.setattr(socket, "socket", TakenSocket)

    with pytest.raises(InputError, match="below 1024 needs special rights, but got port=80. Choose one from 1024"):
        listening("127.0.0.1", 80).__enter__()
