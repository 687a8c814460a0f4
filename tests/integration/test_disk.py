"""A disk that is really full: one of a mebibyte."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from _s3 import serve_s3

from infra.disk import FullDiskError
from infra.storage import Store

ROOT_FULL = (
    r"^A disk must have room for what is written to it, but got free_bytes=[\d,]+ in folder=/\S+/disk/root "
    r"\(No space left on device\)\. Free some space, see what evergreen gc would remove, or move the root: "
    r"EVERGREEN_ROOT\.$"
)
TEMPORARY_FULL = (
    r"^A disk must have room for what is written to it, but got free_bytes=[\d,]+ in folder=/\S+/disk/evergreen-\S+ "
    r"\(No space left on device\)\. Free some space there, or set TMPDIR to a folder on a larger disk\.$"
)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of a mebibyte; where that is not allowed, tests/unit/test_storage.py has a made-up one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("Mounting a small disk needs root.")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def files_below(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder and of those in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_full_root_is_named_and_keeps_what_it_has(disk: Path, tmp_path: Path) -> None:
    """Each way to write says that the disk is full; the old object stays, with no half of a new one beside it."""
    store = Store(str(disk / "root"))
    store.put("a", b"old")
    large = os.urandom(2 << 20)
    source = tmp_path / "made"
    source.write_bytes(large)
    for write in (
        lambda: store.put("a", large),
        lambda: store.create("b", large),
        lambda: store.put_file("a", source),
    ):
        with pytest.raises(FullDiskError, match=ROOT_FULL):
            write()

    assert ({"a": b"old"}, large) == (files_below(disk / "root"), source.read_bytes())
    store.put("a", b"new")  # what was begun has given its space back


def test_a_full_temporary_folder_is_named(disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A download for which there is no room says so, and leaves nothing behind."""
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    with serve_s3():
        store = Store("s3://evergreen/prefix")
        ref = store.put("a", os.urandom(2 << 20))
        with pytest.raises(FullDiskError, match=TEMPORARY_FULL):
            store.local(ref)

    assert {} == files_below(disk)
