"""Sources: an object is read as a file is, with few requests."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra import sources
from infra.errors import RunError
from infra.objects import S3Object, is_named
from infra.sources import ObjectReader, open_source, size_of

QUICK = settings(max_examples=50, deadline=None, derandomize=True)
PAYLOAD = os.urandom(5000)
FOUND = S3Object("bucket", "a", len(PAYLOAD), '"1"', 0.0)
MOVES = st.tuples(st.sampled_from([os.SEEK_SET, os.SEEK_CUR, os.SEEK_END]), st.integers(-6000, 6000))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Let an object be asked for without S3, small ranges first, and return what is asked for."""
    asked: list[tuple[int, int]] = []

    def read_range(_: S3Object, start: int, stop: int) -> bytes:
        asked.append((start, stop))
        return PAYLOAD[start:stop]

    monkeypatch.setattr(sources, "read_range", read_range)
    monkeypatch.setattr(sources, "FIRST_BYTES", 100)
    monkeypatch.setattr(sources, "MOST_BYTES", 400)
    return asked


@QUICK
@given(st.lists(st.one_of(MOVES, st.integers(-1, 6000)), max_size=20))
def test_reads_and_moves_are_those_of_a_file(steps: list[tuple[int, int] | int]) -> None:
    """Whatever is read and sought in whatever order: it is what bytes in memory give."""
    file = io.BytesIO(PAYLOAD)
    with pytest.MonkeyPatch.context() as patch, open_source(FOUND) as stream:
        patch.setattr(sources, "read_range", lambda _, start, stop: PAYLOAD[start:stop])
        patch.setattr(sources, "FIRST_BYTES", 100)
        for step in steps:
            if isinstance(step, int):
                assert file.read(step) == stream.read(step)
            elif {os.SEEK_SET: 0, os.SEEK_CUR: file.tell(), os.SEEK_END: len(PAYLOAD)}[step[0]] + step[1] >= 0:
                assert file.seek(step[1], step[0]) == stream.seek(step[1], step[0])


def test_small_reads_ask_for_ever_more(asked: list[tuple[int, int]]) -> None:
    """From front to back each request is twice as long as the last one, up to a limit; elsewhere it begins anew."""
    with open_source(FOUND) as stream:
        for _ in range(1200):
            stream.read(1)
        stream.seek(3000)
        stream.read(1)

    assert [(0, 100), (100, 300), (300, 700), (700, 1100), (1100, 1500), (3000, 3100)] == asked


def test_a_large_read_is_one_request(asked: list[tuple[int, int]]) -> None:
    """What is asked for at once comes at once; all that is left is no exception."""
    with open_source(FOUND) as stream:
        stream.seek(1000)
        stream.read(2000)
        stream.read()

    assert [(1000, 3000), (3000, 5000)] == asked


def test_nothing_is_asked_for_to_open_or_measure(asked: list[tuple[int, int]]) -> None:
    """Size and end of an object are known from its listing."""
    with open_source(FOUND) as stream:
        sizes = size_of(FOUND), stream.seek(0, os.SEEK_END), stream.read()

    assert ((5000, 5000, b""), []) == (sizes, asked)


def test_a_position_before_the_start_is_refused() -> None:
    """As a file refuses it."""
    with pytest.raises(OSError, match=r"^a position before the start: -1$"):
        ObjectReader(FOUND).seek(-1)


def test_an_error_of_a_read_outlives_whoever_hides_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that makes another error of it can't: leaving the stream raises it again."""

    def read_range(*_: object) -> bytes:
        raise RunError("no answer")

    monkeypatch.setattr(sources, "read_range", read_range)
    with pytest.raises(RunError, match=r"^no answer$"), open_source(FOUND) as stream:
        try:
            stream.read(1)
        except RunError:
            raise OSError("something") from None


def test_a_file_is_opened_as_ever(tmp_path: Path) -> None:
    """A path opens the file that is there."""
    (tmp_path / "a").write_bytes(b"abc")
    with open_source(str(tmp_path / "a")) as stream:
        assert (b"abc", 3) == (stream.read(), size_of(str(tmp_path / "a")))


@pytest.mark.parametrize(
    ("address", "is_in"),
    [
        ("s3://bucket/data/2024/a.csv", True),
        ("s3://bucket/data/", True),
        ("s3://bucket/data", True),
        ("s3://bucket/", True),
        ("s3://bucket/data/**/*.csv", True),
        ("s3://bucket/data/*.csv", False),
        ("s3://bucket/dat", False),
        ("s3://bucket/data/2024/a.csv.gz", False),
        ("s3://other/data/", False),
        ("/bucket/data", False),
    ],
)
def test_an_object_is_one_of_an_address(address: str, is_in: bool) -> None:
    """A key, a folder with or without its slash, or a pattern: the objects that a listing would give."""
    assert is_in == is_named("s3://bucket/data/2024/a.csv", address)


def test_an_object_is_recalled_as_it_was() -> None:
    """What is kept of an object is enough to ask for that one and no other."""
    found = S3Object("bucket", "a/b=1/c d.csv", 7, '"0f-3"', 1_700_000_000.25)

    assert found == S3Object.recalled(found.uri, found.digest, found.num_bytes, found.modified_ns)
