"""S3 for tests: a moto server on this machine that fails as S3 does when it is told to."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

boto3 = pytest.importorskip("boto3")
moto_app = pytest.importorskip("moto.moto_server.werkzeug_app")
serving = pytest.importorskip("werkzeug.serving")

BUCKET = "evergreen"
CHECKSUMS = "x-amz-checksum-"
Answer = tuple[str, list[tuple[str, str]], bytes]
"""Status, headers and body."""


@dataclass
class Fault:
    """What goes wrong with the next requests of a kind."""

    method: str
    spoil: Callable[[Callable[[], Answer]], Answer]
    """It gets a function that lets S3 answer, and returns what arrives."""
    left: int = 1
    query: str = ""
    """A part of the requests' query."""
    path: str = ""
    """The requests' whole path; any if empty."""

    def fits(self, environ: dict[str, Any]) -> bool:
        """Tell whether this request is one."""
        is_meant = self.query in environ["QUERY_STRING"] and self.path in ("", environ["PATH_INFO"])
        return self.left > 0 and environ["REQUEST_METHOD"] == self.method and is_meant


def refused(status: str, code: str) -> Callable[[Callable[[], Answer]], Answer]:
    """Answer with an error, and do nothing."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
    return lambda _: (status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))], body)


def lost(ask: Callable[[], Answer]) -> Answer:
    """Do what was asked, and lose the answer."""
    ask()
    return "503 Service Unavailable", [("Content-Length", "0")], b""


def cut(ask: Callable[[], Answer]) -> Answer:
    """Break off in the middle of the body."""
    status, headers, body = ask()
    return status, headers, body[: len(body) // 2]


def shortened(ask: Callable[[], Answer]) -> Answer:
    """Leave out the end, as a proxy would that takes it for the whole; nothing but our hash can tell."""
    status, headers, body = ask()
    body = body[: len(body) // 2]
    kept = [(name, value) for name, value in headers if name.lower() != "content-length" and CHECKSUMS not in name]
    return status, [*kept, ("Content-Length", str(len(body)))], body


class Gate:
    """A moto server that answers one request at a time, because its conditional write is not atomic."""

    def __init__(self) -> None:
        """Make the application."""
        self._app = moto_app.DomainDispatcherApplication(moto_app.create_backend_app)
        self._lock = threading.Lock()
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        """The methods of all requests."""
        self.num_bytes = 0
        """Sent in answers that nothing was done to."""
        self.client: Any = None
        """Another client than the product's, for what a test does itself; half a second to make."""

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer a request."""
        with self._lock:
            self.requests.append(environ["REQUEST_METHOD"])
            fault = next((fault for fault in self.faults if fault.fits(environ)), None)
            if fault is None:
                answer = list(self._app(environ, start_response))
                self.num_bytes += sum(map(len, answer))
                return answer
            fault.left -= 1
            # Read whatever comes of it: the connection is used again.
            environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))
            status, headers, body = fault.spoil(lambda: self._answer(environ))
        start_response(status, headers)
        return _sent(body, next(int(value) for name, value in headers if name.lower() == "content-length"))

    def _answer(self, environ: dict[str, Any]) -> Answer:
        began: list[Any] = []
        body = b"".join(self._app(environ, lambda *args: began.extend(args)))
        return began[0], began[1], body


def _sent(body: bytes, promised: int) -> Iterator[bytes]:
    yield body
    if len(body) < promised:
        raise ConnectionResetError("cut")


@contextmanager
def serve_s3() -> Iterator[Gate]:
    """Serve S3 with one bucket on a free port of this machine, and point the environment there."""
    gate = Gate()
    server = serving.make_server("127.0.0.1", 0, gate, threaded=True, request_handler=moto_app.MotoRequestHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        for variable in [variable for variable in os.environ if variable.startswith("AWS_")]:
            patch.delenv(variable)
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        gate.client = boto3.session.Session().client("s3")
        gate.client.create_bucket(Bucket=BUCKET)
        yield gate
    server.shutdown()
    thread.join()
    server.server_close()
