"""Files on S3, against a moto server: the same rows, parts and keys as on disk, and few requests."""

from __future__ import annotations

import gzip
import io
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from _s3 import BUCKET, Fault, Gate, refused
from polars.testing import assert_frame_equal

from infra import s3, sources
from infra.errors import InputError, RunError
from infra.objects import list_objects
from infra.storage import Store
from tasks import _fingerprints, _parts, _snapshot
from tasks._fingerprints import known_snapshot, load_fingerprints
from tasks._first_look import first_look
from tasks._readers import count_rows, read_file, read_schema, read_units, work_orders
from tasks._snapshot import CsvConfig, DataConfig, Snapshot, SourceFile, all_sources, source_file, take_snapshot

pytestmark = pytest.mark.usefixtures("little_patience")

ROWS = pl.DataFrame(
    {"n": range(40), "x": [i / 3 for i in range(40)], "city": ["Rome", None, "São Paulo", 'the "big" one'] * 10}
)
CHANGED = r'^A source file must stay as it is during a run, but got file="s3://evergreen/\S+", which changed while it'


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Divide files of a few rows."""
    monkeypatch.setattr(_parts, "TEXT_BYTES", 64)
    monkeypatch.setattr(_snapshot, "TEXT_BYTES", 64)
    monkeypatch.setattr(_parts, "TYPED_BYTES", 400)


@dataclass
class Bucket:
    """A folder of a test's own on S3, and one on disk."""

    uri: str
    """It ends in a slash."""
    folder: Path
    gate: Gate
    client: Any

    def put(self, name: str, payload: bytes) -> str:
        """Write an object and return its address."""
        self.client.put_object(Bucket=BUCKET, Key=self._key(name), Body=payload)
        return self.uri + name

    def delete(self, name: str) -> None:
        """Delete an object."""
        self.client.delete_object(Bucket=BUCKET, Key=self._key(name))

    def _key(self, name: str) -> str:
        return f"{self.uri}{name}".removeprefix(f"s3://{BUCKET}/")

    def both(self, name: str, payload: bytes) -> tuple[SourceFile, SourceFile]:
        """Write an object and a file, and fingerprint both."""
        path = self.folder / name
        path.write_bytes(payload)
        return self.look(self.put(name, payload)), source_file(str(path), CsvConfig())

    def look(self, address: str) -> SourceFile:
        """Fingerprint an object."""
        (found,) = list_objects(address)
        return source_file(found, CsvConfig())

    @property
    def store(self) -> Store:
        """Return a store on disk."""
        return Store(str(self.folder / "root"))

    def snapshot(self, source: str | list[str], **csv: Any) -> Snapshot:
        """Take a snapshot that knows the earlier ones."""
        config = DataConfig(source=source, target="y", csv=CsvConfig(**csv))
        return known_snapshot(self.store, "m", config, self.folder)

    def requests(self, call: Callable[[], Any]) -> list[str]:
        """Return the methods of the requests that a call makes."""
        self.gate.requests.clear()
        call()
        return list(self.gate.requests)


@pytest.fixture
def bucket(request: pytest.FixtureRequest, gate: Gate, tmp_path: Path) -> Bucket:
    """Give a folder of the test's own."""
    name = request.node.name.replace("[", "-").replace("]", "")
    return Bucket(f"s3://{BUCKET}/{name}/", tmp_path, gate, gate.client)


def joined(file: SourceFile) -> pl.DataFrame:
    """Read a file unit by unit."""
    return pl.concat(
        [frame for order in work_orders(file.units) for frame in read_units(order)], how="diagonal_relaxed"
    )


def binary(write: Callable[..., Any], **options: Any) -> bytes:
    """Return what a frame's method writes."""
    written = io.BytesIO()
    write(written, **options)
    return written.getvalue()


def zipped(payload: bytes) -> bytes:
    """Return an archive of one file."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        archive.writestr("a", payload)
    return written.getvalue()


TEXT, LINES = ROWS.write_csv().encode(), ROWS.write_ndjson().encode()
FILES = {
    "a.csv": TEXT,
    "a.tsv": ROWS.write_csv(separator="\t").encode(),
    "a.csv.gz": gzip.compress(TEXT),
    "a.csv.zst": pa.compress(TEXT, codec="zstd", asbytes=True),
    "a.csv.zip": zipped(TEXT),
    "utf-16.csv": TEXT.decode().encode("utf-16"),
    "a.jsonl": LINES,
    "a.jsonl.gz": gzip.compress(LINES),
    "a.parquet": binary(ROWS.write_parquet, row_group_size=40),
    "a [1] b%20c#é.parquet": binary(ROWS.write_parquet, row_group_size=7),
    "a.arrow": binary(ROWS.write_ipc, record_batch_size=10),
    "stream.arrow": binary(ROWS.write_ipc_stream),
}


@pytest.mark.parametrize("name", FILES)
def test_an_object_is_what_a_file_is(bucket: Bucket, name: str) -> None:
    """Rows, columns, types and dialect of an object are those of the same bytes on disk."""
    found, file = bucket.both(name, FILES[name])

    assert (bucket.uri + name, file.format, file.dialect, file.num_bytes) == (
        *(found.path, found.format, found.dialect),
        found.num_bytes,
    )
    assert_frame_equal(read_file(file), read_file(found))
    assert (read_schema(file), count_rows(file)) == (read_schema(found), count_rows(found))
    assert_frame_equal(read_file(file, ["city", "n"]), read_file(found, ["city", "n"]))


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("name", FILES)
def test_a_large_object_is_divided_as_a_file_is(bucket: Bucket, name: str) -> None:
    """Parts are the same, and read one by one they are the rows; a part of a text has the key that it has on disk."""
    found, file = bucket.both(name, FILES[name])
    is_whole = name in ("utf-16.csv", "stream.arrow")
    has_own_keys = not is_whole and file.format in ("csv", "jsonl")

    assert (file.parts, is_whole) == (found.parts, found.parts == ())
    assert_frame_equal(joined(file), joined(found))
    assert has_own_keys == ([unit.key for unit in file.units] == [unit.key for unit in found.units])


def test_folders_patterns_keys_and_paths_mix(bucket: Bucket) -> None:
    """A list names objects and files; of a folder other formats are left out, and what is named twice counts once."""
    for name in ("a.csv", "b.csv", "deep/c.jsonl", "notes.txt", "_old.csv", "other/2024-1.csv", "other/2025-1.csv"):
        bucket.put(name, b"x\n")
    (bucket.folder / "here.csv").write_bytes(b"x\n")
    config = DataConfig(
        source=[f"{bucket.uri}deep/", "here.csv", f"{bucket.uri}*.csv", f"{bucket.uri}a.csv", f"{bucket.uri}o*/2024-*"],
        target="x",
    )
    everything = config.model_copy(update={"source": bucket.uri.rstrip("/")})

    def names(config: DataConfig) -> list[str]:
        return [str(one).removeprefix(bucket.uri) for one in all_sources(config, bucket.folder)]

    assert [str(bucket.folder / "here.csv"), "a.csv", "b.csv", "deep/c.jsonl", "other/2024-1.csv"] == names(config)
    assert ["a.csv", "b.csv", "deep/c.jsonl", "other/2024-1.csv", "other/2025-1.csv"] == names(everything)


def test_a_known_object_costs_no_request(bucket: Bucket) -> None:
    """A second snapshot is one request, for three objects as for thirty, and the same; a new one is read alone."""
    counted = {}
    for num_objects in (3, 30):
        for index in range(num_objects):
            bucket.put(f"{num_objects}/{index:02}.csv", b"x,y\n1,%d\n" % index)
        first = bucket.snapshot(f"{bucket.uri}{num_objects}/")
        counted[num_objects] = bucket.requests(lambda: bucket.snapshot(f"{bucket.uri}{num_objects}/"))  # noqa: B023
    second = bucket.snapshot(f"{bucket.uri}30/")
    bucket.put("30/99.csv", b"x,y\n1,99\n")
    requests = bucket.requests(lambda: bucket.snapshot(f"{bucket.uri}30/"))

    assert {3: ["GET"], 30: ["GET"]} == counted
    assert (30, 0, first.files) == (first.num_read, second.num_read, second.files)
    assert ["GET", "GET"] == requests


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize(
    ("name", "least", "most"), [("a.csv", 1, 3), ("a.csv.gz", 1, 3), ("a.parquet", 1, 1), ("a.arrow", 1, 4)]
)
def test_a_new_object_costs_few_requests(bucket: Bucket, name: str, least: int, most: int) -> None:
    """A new object is asked for a few times, however many parts it has."""
    payload = FILES[name]
    (found,) = list_objects(bucket.put(name, payload))
    requests = bucket.requests(lambda: source_file(found, CsvConfig()))

    assert {"GET"} == set(requests)
    assert least <= len(requests) <= most


def test_a_small_text_is_read_at_its_beginning_alone(bucket: Bucket) -> None:
    """What can't be divided has its fingerprint from the listing, and its dialect from its first bytes."""
    line = b"1,2.5,Oslo\n"
    (found,) = list_objects(bucket.put("a.csv", b"n,x,city\n" + line * (4 * _snapshot.SAMPLE_BYTES // len(line))))
    read: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        real = _snapshot.open_source
        patch.setattr(_snapshot, "open_source", lambda source: _noting(real(source), read))
        source_file(found, CsvConfig())

    assert [_snapshot.SAMPLE_BYTES] == read


def _noting(stream: Any, read: list[int]) -> Any:
    real = stream.read
    stream.read = lambda size=-1: (read.append(size), real(size))[1]
    return stream


@pytest.mark.parametrize("name", ["a.csv", "a.parquet", "a.arrow"])
def test_a_part_is_read_without_the_others(bucket: Bucket, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a divided object a worker asks for its own part, and for little else."""
    monkeypatch.setattr(_parts, "TEXT_BYTES", 1 << 20)
    monkeypatch.setattr(_snapshot, "TEXT_BYTES", 1 << 20)
    monkeypatch.setattr(_parts, "TYPED_BYTES", 2 << 20)
    monkeypatch.setattr(_snapshot, "SAMPLE_BYTES", 1 << 14)
    monkeypatch.setattr(sources, "FIRST_BYTES", 1 << 14)
    rng = np.random.default_rng(0)
    rows = pl.DataFrame({"n": range(100_000), **{name: rng.normal(size=100_000) for name in "abcdef"}})
    payload = {
        "a.csv": lambda: rows.write_csv().encode(),
        "a.parquet": lambda: binary(rows.write_parquet, row_group_size=10_000),
        "a.arrow": lambda: binary(rows.write_ipc, record_batch_size=10_000),
    }[name]()
    file = bucket.look(bucket.put(name, payload))
    bucket.gate.num_bytes = 0
    read_file(file.units[-1])

    assert len(file.units) >= 3
    assert bucket.gate.num_bytes < 0.6 * file.num_bytes


def test_the_same_bytes_under_another_key_are_known(bucket: Bucket) -> None:
    """An object that was moved has the same units; a changed one, a new one and one that stayed are called so."""
    for name in ("a.csv", "b.csv", "c.csv"):
        bucket.put(name, f"x,y\n1,{name}\n".encode())
    bucket.snapshot(bucket.uri)
    known = load_fingerprints(bucket.store, "m")
    bucket.delete("a.csv")
    bucket.put("z.csv", b"x,y\n1,a.csv\n")
    bucket.put("b.csv", b"x,y\n2,b.csv\n")
    bucket.put("n.csv", b"x,y\n9,n.csv\n")
    after = bucket.snapshot(bucket.uri)

    assert {
        "b.csv": "changed since it was last read",
        "c.csv": "unchanged",
        "n.csv": "new",
        "z.csv": "the same as a.csv",
    } == {Path(file.path).name: known.origin(file) for file in after.files}
    assert 3 == after.num_read


def test_other_settings_for_csv_are_looked_at_again(bucket: Bucket) -> None:
    """How a CSV object is written depends on the settings too; of a typed one nothing does."""
    bucket.put("a.csv", b"x,y\n1,2\n")
    bucket.put("a.parquet", binary(ROWS.write_parquet))

    assert [2, 0, 1] == [bucket.snapshot(bucket.uri, **csv).num_read for csv in ({}, {}, {"delimiter": ";"})]


def test_an_object_that_is_gone_is_forgotten(bucket: Bucket) -> None:
    """What a source would name and did not is gone; objects of another source stay known, and so do files."""
    for name in ("a/1.csv", "a/2.csv", "b/1.csv"):
        bucket.put(name, b"x,y\n1,2\n")
    (bucket.folder / "here.csv").write_bytes(b"x,y\n1,2\n")
    bucket.snapshot([f"{bucket.uri}a/", "here.csv"])
    bucket.delete("a/2.csv")
    bucket.snapshot(f"{bucket.uri}b/*.csv")
    before = set(load_fingerprints(bucket.store, "m").files)
    bucket.snapshot(f"{bucket.uri}a/*.csv")
    after = set(load_fingerprints(bucket.store, "m").files)

    assert {f"{bucket.uri}{name}" for name in ("a/1.csv", "a/2.csv", "b/1.csv")} < before
    assert {f"{bucket.uri}a/2.csv"} == before - after


def test_a_first_look_names_a_wrong_target(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """The columns of a few objects are looked at before anything starts, those of many are not."""
    bucket.put("a.csv", TEXT)
    bucket.put("b.parquet", binary(ROWS.write_parquet))
    config = DataConfig(source=bucket.uri, target="ctiy")
    with pytest.raises(InputError, match=r"got 'ctiy'\. Did you mean \"city\"\?"):
        first_look(config, "m", bucket.folder, bucket.store)
    monkeypatch.setattr("tasks._first_look.MAX_OBJECTS", 1)

    assert first_look(config, "m", bucket.folder, bucket.store)


WRONG = {
    "key": ("none.csv", r'^A source must exist, but got source="s3://evergreen/\S+/none\.csv"\.'),
    "pattern": ("*.parquet", r'^A pattern must match at least one object, but got pattern="s3://evergreen/\S+\*\.par'),
    "format": (
        "a.doc",
        r'^A source file must be of a supported format, but got suffix="\.doc" of "s3://ever\S+/a\.doc',
    ),
    "folder": ("other/", r'^A folder must hold at least one .*, but got folder="s3://\S+/other/" \(1 of another kind'),
    "empty": ("empty.csv", r'^A source file must not be empty, but got num_bytes=0 for "s3://evergreen/\S+/empty\.csv'),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_source_that_cannot_be_used_is_refused(bucket: Bucket, what: str) -> None:
    """The message names the address as the user wrote it and says what to do."""
    for name in ("a.csv", "a.doc", "other/b.doc"):
        bucket.put(name, b"x\n1\n")
    bucket.put("empty.csv", b"")
    name, message = WRONG[what]
    with pytest.raises(InputError, match=message):
        take_snapshot(DataConfig(source=bucket.uri + name, target="x"), bucket.folder)


def test_a_bucket_that_is_not_there_is_named(gate: Gate, tmp_path: Path) -> None:
    """A bucket that is not there is one line."""
    with pytest.raises(InputError, match=r"^An S3 bucket must exist, but got bucket=elsewhere \(s3://elsewhere/a/\)\."):
        take_snapshot(DataConfig(source="s3://elsewhere/a/", target="x"), tmp_path)


def ways(file: SourceFile, *, is_new_read: bool = True) -> list[Callable[[], Any]]:
    """Return all ways to read an object, to fingerprint it too unless the listing is enough for that."""
    again = [lambda: source_file(file.source, CsvConfig())] if is_new_read else []
    return [lambda: read_file(file), lambda: joined(file), lambda: read_schema(file), lambda: count_rows(file), *again]


READ = ["a.csv", "a.csv.gz", "a.csv.zip", "a.jsonl", "a.parquet", "a.arrow", "stream.arrow"]
"""One name for each way of reading."""


@pytest.mark.parametrize("is_gone", [True, False])
@pytest.mark.parametrize("is_divided", [True, False])
@pytest.mark.parametrize("name", READ)
def test_an_object_that_changes_is_refused(
    bucket: Bucket, name: str, is_gone: bool, is_divided: bool, request: pytest.FixtureRequest
) -> None:
    """However it is read: an object that is another one of the same size, or gone, is not what the snapshot says."""
    if is_divided:
        request.getfixturevalue("small_parts")
    file = bucket.look(bucket.put(name, FILES[name]))
    bucket.put(name, os.urandom(file.num_bytes))
    if is_gone:
        bucket.delete(name)
    for read in ways(file, is_new_read=is_divided or name != "a.jsonl"):
        with pytest.raises(InputError, match=CHANGED):
            read()


@pytest.mark.parametrize("name", READ)
def test_missing_credentials_are_named(bucket: Bucket, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot without credentials says what to set, and a worker without them too."""
    file = bucket.look(bucket.put(name, FILES[name]))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    config = DataConfig(source=bucket.uri, target="x")
    for read in [*ways(file, is_new_read=name != "a.jsonl"), lambda: take_snapshot(config, bucket.folder)]:
        with pytest.raises(InputError, match=r"^S3 needs credentials, but got none for s3://evergreen/.*\. Set "):
            read()


@pytest.mark.parametrize("name", ["a.csv.gz", "a.parquet", "a.arrow"])
def test_an_s3_that_does_not_answer_is_no_damaged_file(bucket: Bucket, name: str) -> None:
    """Errors of S3 that do not end are errors of the run, whoever reads: nothing is wrong with the file."""
    file = bucket.look(bucket.put(name, FILES[name]))
    bucket.gate.faults.append(Fault("GET", refused("500 Internal Server Error", "InternalError"), left=1000))
    for read in (lambda: read_file(file), lambda: source_file(file.source, CsvConfig())):
        with pytest.raises(RunError, match=r"^S3 must answer, but got error=InternalError on GetObject of s3://ever"):
            read()


def test_an_s3_that_answers_again_is_no_damaged_file(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Polars has given up and S3 answers by now, it is an error of the run as well."""
    file = bucket.look(bucket.put("a.parquet", FILES["a.parquet"]))
    monkeypatch.setattr("tasks._readers.read_range", lambda *_: b"P")
    bucket.gate.faults.append(Fault("GET", refused("500 Internal Server Error", "InternalError"), left=1000))
    with pytest.raises(RunError, match=r"^S3 must answer, but got an error on the way to s3://\S+ \(object-store"):
        read_file(file)


@pytest.mark.parametrize("is_divided", [True, False])
@pytest.mark.parametrize("name", ["a.csv.gz", "a.csv.zst", "a.csv.zip", "a.jsonl.gz"])
def test_a_packed_object_that_ends_early_is_refused(
    bucket: Bucket, name: str, is_divided: bool, request: pytest.FixtureRequest
) -> None:
    """It is refused when it is first seen, or else when it is read, and named."""
    if is_divided:
        request.getfixturevalue("small_parts")
    uri = bucket.put(name, FILES[name][:-20])
    message = rf'^A source file must be complete and readable, but got file="{uri}" \(.*\)\. Fetch or write it again'
    with pytest.raises(InputError, match=message):
        read_file(bucket.look(uri))


def test_a_damaged_object_is_named(bucket: Bucket) -> None:
    """A Parquet object that is none is refused by name."""
    uri = bucket.put("a.parquet", os.urandom(1000))
    with pytest.raises(InputError, match=rf'^A source file must be valid parquet, but got file="{uri}" \(parquet: '):
        read_file(bucket.look(uri))


def test_local_sources_import_no_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot of files asks nobody for boto3; one of objects without it says what to install."""

    def missing(module: str) -> Any:
        raise ModuleNotFoundError(name=module)

    monkeypatch.setattr(s3, "import_module", missing)
    (tmp_path / "a.csv").write_bytes(TEXT)
    monkeypatch.setattr(_fingerprints, "RACY_NS", -(10**12))
    file = known_snapshot(Store(str(tmp_path / "root")), "m", DataConfig(source="a.csv", target="x"), tmp_path).files[0]

    assert 40 == read_file(file).height
    with pytest.raises(InputError, match=r"^A root or a source on S3 needs boto3, .* pip install 'evergreen\[s3\]'"):
        take_snapshot(DataConfig(source="s3://evergreen/a.csv", target="x"), tmp_path)
