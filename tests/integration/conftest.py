"""What the integration tests share: an S3 that fails as it is told to, and a client that does not wait for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from infra import s3

if TYPE_CHECKING:
    from _s3 import Gate


@pytest.fixture(scope="module")
def gate() -> Iterator[Gate]:
    """Serve S3 to the module."""
    from _s3 import serve_s3

    with serve_s3() as gate:
        yield gate


@pytest.fixture
def little_patience(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget earlier faults, and pause for hundredths of a second where S3 would be given seconds."""
    if gate.faults:  # a client that S3 has slowed down stays slow, and another one takes half a second to make
        s3._connections.clear()
    gate.faults.clear()
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.01)
    monkeypatch.setattr(s3, "BODY_PAUSE_SECONDS", 0.01)
