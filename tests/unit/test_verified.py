"""Files that have been hashed are not hashed again, unless they have changed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra import storage, verified
from infra.storage import DamagedError, Ref, Store, digest_file
from infra.verified import FILE, VerifiedFiles


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Give the names of the files that are hashed from now on, in a process that knows of none."""
    seen: list[str] = []

    def digest(path: str | Path) -> str:
        seen.append(Path(path).name)
        return digest_file(path)

    monkeypatch.setattr(storage, "digest_file", digest)
    storage.verified_files.cache_clear()
    return seen


def stored(root: Path, content: bytes = b"rows") -> Ref:
    """Put a file into a store."""
    (root.parent / "new").write_bytes(content)
    return Store(str(root)).put_file("shards/a", root.parent / "new")


def test_a_file_is_hashed_when_it_is_stored_and_never_again(tmp_path: Path, hashed: list[str]) -> None:
    """Another process, too, knows that it is intact."""
    ref = stored(tmp_path / "root")
    code = (
        "import infra.storage as s, sys; s.digest_file = None; "
        f"print(s.Store({str(tmp_path / 'root')!r}).is_intact(s.Ref({ref.name!r}, {ref.digest!r}, {ref.num_bytes})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "True" == done.stdout.strip()
    assert Store(str(tmp_path / "root")).is_intact(ref)
    assert ["new"] == hashed


def test_a_file_that_was_written_again_is_hashed_again(tmp_path: Path, hashed: list[str]) -> None:
    """The same size and the same time of writing do not hide a change."""
    ref = stored(tmp_path / "root")
    path = tmp_path / "root/shards/a"
    times = path.stat()
    path.write_bytes(b"rowz")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    assert not Store(str(tmp_path / "root")).is_intact(ref)
    assert ["new", "a"] == hashed


def test_what_is_lost_in_silence_is_found_when_it_is_read(
    tmp_path: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file whose bytes are not what the list says is an error when it is read, and from then on not intact."""
    store = Store(str(tmp_path / "root"))
    ref = stored(tmp_path / "root")
    path = tmp_path / "root/shards/a"
    path.write_bytes(b"rowz")
    store.is_intact(ref)
    # As if the file system had not noticed: what is listed is the state of now.
    storage.verified_files(store.root).add(ref.name, ref.digest)

    assert store.is_intact(ref)
    with pytest.raises(DamagedError):
        store.local(ref)
    assert not store.is_intact(ref)


def test_a_list_that_is_lost_or_damaged_costs_time(tmp_path: Path, hashed: list[str]) -> None:
    """Without the list, or with one that is no JSON, files are hashed, and noted again."""
    ref = stored(tmp_path / "root")
    (tmp_path / "root" / FILE).write_bytes(b'{oops\n["shards/a", 1')
    storage.verified_files.cache_clear()

    assert [True, True] == [Store(str(tmp_path / "root")).is_intact(ref) for _ in range(2)]
    assert ["new", "a"] == hashed


def test_what_another_process_notes_is_seen(tmp_path: Path) -> None:
    """A list is read on when a file is asked for that is not on it yet."""
    (tmp_path / "a").write_bytes(b"rows")
    mine, theirs = VerifiedFiles(str(tmp_path)), VerifiedFiles(str(tmp_path))
    before = mine.has("a", "d")
    theirs.add("a", "d")

    assert (False, True, False) == (before, mine.has("a", "d"), mine.has("a", "e"))


def test_a_long_list_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines that later ones have replaced go."""
    monkeypatch.setattr(verified, "SHORT_BYTES", 100)
    (tmp_path / "a").write_bytes(b"rows")
    listed = VerifiedFiles(str(tmp_path))
    for number in range(20):
        listed.add("a", f"d{number}")
    other = VerifiedFiles(str(tmp_path))

    assert (False, True) == (other.has("a", "d0"), other.has("a", "d19"))
    assert ["a"] == [json.loads(line)[0] for line in (tmp_path / FILE).read_text().splitlines()]
    assert listed.has("a", "d19")
