"""Fingerprints of source files: a file that has not changed is not read again."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from infra.storage import Store
from tasks import _fingerprints
from tasks._fingerprints import fingerprints_name, known_snapshot, load_fingerprints
from tasks._snapshot import CsvConfig, DataConfig

CONFIG = DataConfig(source="data", target="y")
LONG_AGO = 1_000_000_000.0


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Give an empty store."""
    return Store(str(tmp_path / "root"))


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a folder with three old files, and a clock's resolution of nothing: files are made a moment ago here."""
    monkeypatch.setattr(_fingerprints, "RACY_NS", -(10**12))
    (tmp_path / "data").mkdir()
    for name in "abc":
        write(tmp_path / f"data/{name}.csv", f"x,y\n1,{name}\n")
    return tmp_path


def write(path: Path, text: str) -> None:
    """Write a file as if it had been there for long."""
    path.write_text(text)
    os.utime(path, (LONG_AGO, LONG_AGO))


def num_read(store: Store, base: Path, config: DataConfig = CONFIG) -> int:
    """Return how many files a snapshot reads."""
    return known_snapshot(store, "m", config, base).num_read


def test_a_known_file_is_not_read(store: Store, base: Path) -> None:
    """A second snapshot reads nothing and is the same; one with a new file reads that alone."""
    first = known_snapshot(store, "m", CONFIG, base)
    second = known_snapshot(store, "m", CONFIG, base)
    write(base / "data/d.csv", "x,y\n1,d\n")

    assert (3, 0, first.files) == (first.num_read, second.num_read, second.files)
    assert [1, 0] == [num_read(store, base), num_read(store, base)]


def test_a_change_is_seen_though_size_and_time_are_kept(store: Store, base: Path) -> None:
    """A file that was written again, with its old size and time, has another time of change."""
    before = known_snapshot(store, "m", CONFIG, base)
    time.sleep(0.02)
    write(base / "data/b.csv", "x,y\n2,b\n")
    after = known_snapshot(store, "m", CONFIG, base)

    assert 1 == after.num_read
    assert before.files[1].digest != after.files[1].digest


def test_a_file_that_was_just_written_is_hashed_again(
    store: Store, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What changed within the resolution of a clock before it was hashed may have changed once more."""
    num_read(store, base)
    monkeypatch.setattr(_fingerprints, "RACY_NS", 10**12)

    assert 3 == num_read(store, base)


def test_other_settings_for_csv_are_looked_at_again(store: Store, base: Path) -> None:
    """How a CSV file is written depends on the settings too."""
    num_read(store, base)

    assert 3 == num_read(store, base, CONFIG.model_copy(update={"csv": CsvConfig(delimiter=";")}))


def test_what_cannot_be_read_counts_as_nothing(store: Store, base: Path) -> None:
    """Damaged fingerprints cost time, and are replaced."""
    num_read(store, base)
    store.put(fingerprints_name("m"), b"{oops")

    assert [3, 0] == [num_read(store, base), num_read(store, base)]


def test_a_file_that_is_gone_is_forgotten(store: Store, base: Path) -> None:
    """A deleted file drops out of the snapshot and of what is known; one that another source names stays."""
    num_read(store, base)
    (base / "data/a.csv").unlink()
    narrow = known_snapshot(store, "m", CONFIG.model_copy(update={"source": "data/b.csv"}), base)
    known_snapshot(store, "m", CONFIG, base)

    assert 0 == narrow.num_read
    assert {"b.csv", "c.csv"} == {Path(path).name for path in load_fingerprints(store, "m").files}


def test_a_plan_remembers_nothing(store: Store, base: Path) -> None:
    """A look that is not to leave a trace leaves none."""
    assert 3 == known_snapshot(store, "m", CONFIG, base, remember=False).num_read
    assert 3 == num_read(store, base)


def test_where_a_file_comes_from(store: Store, base: Path) -> None:
    """A file is new, unchanged, changed, or the same as one under another name."""
    num_read(store, base)
    known = load_fingerprints(store, "m")
    (base / "data/a.csv").rename(base / "data/z.csv")
    write(base / "data/b.csv", "x,y\n7,b\n")
    write(base / "data/n.csv", "x,y\n8,n\n")
    files = known_snapshot(store, "m", CONFIG, base).files

    assert {
        "b.csv": "changed since it was last read",
        "c.csv": "unchanged",
        "n.csv": "new",
        "z.csv": "the same as a.csv",
    } == {Path(file.path).name: known.origin(file) for file in files}
