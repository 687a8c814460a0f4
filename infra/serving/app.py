"""The web application: predictions in MLflow's scoring protocol, and what the server says of itself.

| path | answer |
|---|---|
| GET /ping | 200 when a version answers, 503 otherwise |
| GET /version | the version, as plain text |
| GET /metadata | the version, its task and the columns that it takes |
| POST /invocations | predictions; the header `x-model-version` names the version that made all of them |

Errors are `{"error_code": ..., "message": ...}`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import orjson
import polars as pl
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from infra.bundle.schema import Column, Schema
from infra.bundle.vocabulary import Vocabulary
from infra.errors import InputError
from infra.serving.champion import Champion, Loaded
from infra.serving.decode import read_csv, read_json

DISCARD_FACTOR = 4
"""How many times the limit of a body is read and thrown away, so that the client gets to read the refusal."""
NUM_EXAMPLES = 5
READERS: dict[str, Callable[[bytes, Schema], pl.DataFrame]] = {"application/json": read_json, "text/csv": read_csv}
ERROR_CODES = {
    400: "BAD_REQUEST",
    404: "NOT_FOUND",
    405: "METHOD_NOT_ALLOWED",
    413: "CONTENT_TOO_LARGE",
    415: "UNSUPPORTED_MEDIA_TYPE",
    500: "INTERNAL_ERROR",
    503: "TEMPORARILY_UNAVAILABLE",
}


def build_app(champion: Champion, max_body_bytes: int) -> Starlette:
    """Return the application that answers with whatever version the champion is when a request begins."""
    predicting = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="predict")

    async def invocations(request: Request) -> Response:
        loaded = _current(champion)
        read = READERS[_content_type(request)]
        body = await _body(request, max_body_bytes)
        answer = await asyncio.get_running_loop().run_in_executor(predicting, _answer, loaded, read, body)
        return Response(
            answer, media_type="application/json", headers={"x-model-version": _header(loaded.target.version)}
        )

    async def ping(request: Request) -> Response:
        _current(champion)
        return PlainTextResponse("")

    async def version(request: Request) -> Response:
        return PlainTextResponse(_current(champion).target.version)

    async def metadata(request: Request) -> Response:
        described = {**describe(_current(champion)), "refused": champion.refused}
        return Response(orjson.dumps(described), media_type="application/json")

    return Starlette(
        routes=[
            Route("/invocations", invocations, methods=["POST"]),
            Route("/ping", ping),
            Route("/version", version),
            Route("/metadata", metadata),
        ],
        exception_handlers={
            HTTPException: _on_http_error,
            InputError: _on_input_error,
            ClientDisconnect: _on_disconnect,
            500: _on_server_error,
        },
    )


def describe(loaded: Loaded) -> dict[str, Any]:
    """Return what a caller should know of a version, as plain data."""
    target, bundle = loaded.target, loaded.bundle
    return {
        "model": target.model,
        "version": target.version,
        "run_id": target.run_id,
        "released": target.released,
        "task": bundle.schema.task,
        "labels": list(bundle.schema.labels),
        "threshold": bundle.threshold if bundle.schema.task == "binary" else None,
        "inputs": [_describe_column(column, bundle.vocabulary) for column in bundle.schema.inputs],
    }


def _describe_column(column: Column, vocabulary: Vocabulary) -> dict[str, Any]:
    return {
        "name": column.name,
        "kind": column.kind,
        "type": column.source_type,
        "nullable": column.is_nullable,
        "minimum": _bound(column, column.minimum),
        "maximum": _bound(column, column.maximum),
        "examples": list(vocabulary.values.get(column.name, ())[:NUM_EXAMPLES]),
    }


def _bound(column: Column, seconds: float | None) -> float | str | None:
    if column.kind != "datetime" or seconds is None:
        return seconds
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None).isoformat()


def _answer(loaded: Loaded, read: Callable[[bytes, Schema], pl.DataFrame], body: bytes) -> bytes:
    rows = read(body, loaded.bundle.schema)
    return orjson.dumps({"predictions": loaded.bundle.predict(rows).to_dicts()})


def _current(champion: Champion) -> Loaded:
    loaded = champion.current
    if loaded is None:
        raise HTTPException(
            503,
            f"A server answers once a version is loaded, but got none of model={champion.model}. "
            "Try again in a moment.",
        )
    return loaded


def _content_type(request: Request) -> str:
    sent = request.headers.get("content-type", "")
    name, _, parameters = sent.partition(";")
    charset = parameters.partition("charset=")[2].partition(";")[0].strip(' "').lower()
    if name.strip().lower() not in READERS or charset not in ("", "utf-8", "utf8"):
        raise HTTPException(
            415,
            f"A body is {' or '.join(READERS)} in UTF-8, but got content-type={sent!r}. "
            "Set the Content-Type header to what is sent.",
        )
    return name.strip().lower()


async def _body(request: Request, limit: int) -> bytes:
    chunks: list[bytes] = []
    num_bytes = 0
    async for chunk in request.stream():
        num_bytes += len(chunk)
        if num_bytes > DISCARD_FACTOR * limit:
            break
        if num_bytes <= limit:
            chunks.append(chunk)
    if num_bytes > limit:
        raise HTTPException(
            413,
            f"A body has at most {limit} bytes, but got num_bytes={num_bytes} or more. "
            "Send the rows in several requests.",
        )
    return b"".join(chunks)


def _header(text: str) -> str:
    return text.encode("ascii", "backslashreplace").decode()


def _error(status: int, message: str) -> Response:
    code = ERROR_CODES.get(status, "ERROR")
    return Response(
        orjson.dumps({"error_code": code, "message": message}), status_code=status, media_type="application/json"
    )


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code in (404, 405):
        return _error(
            error.status_code,
            "The server answers POST /invocations and GET /ping, /version and /metadata, "
            f"but got {request.method} {request.url.path}. Correct the address or the method.",
        )
    return _error(error.status_code, error.detail)


async def _on_input_error(request: Request, error: Exception) -> Response:
    return _error(400, str(error))


async def _on_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it


async def _on_server_error(request: Request, error: Exception) -> Response:
    return _error(500, "A prediction must not fail, but this one did. See the server's log for the reason.")
