"""Objects in a local folder."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from blake3 import blake3

from infra import storage
from infra.disk import FullDiskError
from infra.errors import InputError
from infra.storage import CHUNK_BYTES, DamagedError, MissingError, Ref, Store, digest_bytes, digest_file
from infra.verified import FILE as VERIFIED


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Give an empty store whose folder does not exist yet."""
    return Store(str(tmp_path / "root"))


def files_below(store: Store) -> list[str]:
    """List every file on the disk, the temporary ones included, but for the list of those that were hashed."""
    files = (path.relative_to(store.root).as_posix() for path in Path(store.root).rglob("*") if path.is_file())
    return sorted(name for name in files if name != VERIFIED)


def test_what_was_put_is_read_and_nothing_else_is_left(store: Store) -> None:
    """An object comes back as it was put, and its temporary file is gone."""
    ref = store.put("shards/a.arrow", b"rows")

    assert (Ref("shards/a.arrow", blake3(b"rows").hexdigest(), 4), b"rows", b"rows", ["shards/a.arrow"]) == (
        ref,
        store.get(ref),
        store.get("shards/a.arrow"),
        files_below(store),
    )


def test_put_replaces_an_object_of_the_same_name(store: Store) -> None:
    """The second put wins, and the first reference no longer proves the content."""
    first = store.put("a", b"one")
    second = store.put("a", b"two")

    assert [store.is_intact(first), store.is_intact(second)] == [False, True]


def test_put_file_consumes_the_file(store: Store, tmp_path: Path) -> None:
    """A file that is put is in the store and no longer where it was."""
    source = tmp_path / "made.arrow"
    source.write_bytes(b"rows")
    ref = store.put_file("shards/a.arrow", source)

    assert (source.exists(), store.get(ref), files_below(store)) == (False, b"rows", ["shards/a.arrow"])


def test_put_file_copies_from_another_file_system(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that cannot be renamed into the store is copied and then removed."""

    def refuse(source: object, target: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    source = tmp_path / "made.arrow"
    source.write_bytes(b"rows")
    monkeypatch.setattr(shutil.os, "rename", refuse)  # type: ignore[attr-defined]
    ref = store.put_file("a", source)

    assert (source.exists(), store.get(ref), files_below(store)) == (False, b"rows", ["a"])


def test_a_put_that_fails_leaves_the_old_object(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk refuses to take the bytes the old object stays and no temporary file is left."""

    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    store.put("a", b"old")
    monkeypatch.setattr(os, "fsync", refuse)
    for write in (store.put, lambda _, payload: store.create("b", payload)):
        with pytest.raises(
            FullDiskError, match=r"^A disk must have room .* free_bytes=[\d,]+ in folder=/.*/root \(No sp"
        ):
            write("a", b"new")

    assert (store.get("a"), files_below(store)) == (b"old", ["a"])


def test_create_refuses_a_name_that_is_taken(store: Store) -> None:
    """A created object is never written over."""
    store.create("a", b"first")
    with pytest.raises(FileExistsError, match=r"The object exists already: '.*/root/a'"):
        store.create("a", b"second")

    assert (store.get("a"), files_below(store)) == (b"first", ["a"])


def test_one_of_many_creators_wins(store: Store) -> None:
    """Of 16 threads that create one name exactly one succeeds, and its content is what is stored."""

    def create(payload: bytes) -> bytes | None:
        try:
            store.create("a", payload)
        except FileExistsError:
            return None
        return payload

    with ThreadPoolExecutor(16) as pool:
        winners = [payload for payload in pool.map(create, [b"%d" % i for i in range(16)]) if payload]

    assert [store.get("a")] == winners


@pytest.mark.parametrize("name", ["gone", "shards", "a/below"])
def test_a_missing_object_is_named(store: Store, name: str) -> None:
    """Reading what is not there, a folder included, names the object and the next step."""
    store.put("a", b"x")
    store.put("shards/b", b"x")
    with pytest.raises(MissingError, match=rf"must be there when it is read, but got name={name}, .*Start the run"):
        store.get(name)
    with pytest.raises(MissingError, match=rf"but got name={name}, which .*/root/{name} lacks"):
        store.local(Ref(name, "0", 1))

    assert not store.exists(name)


@pytest.mark.parametrize("content", [b"rowz", b"row", b""])
def test_a_damaged_object_is_named(store: Store, content: bytes) -> None:
    """Content that no longer matches its reference is refused by every way to read it."""
    ref = store.put("shards/a", b"rows")
    Path(store.uri(ref.name)).write_bytes(content)
    message = r"must keep the content .* got digest=\w+ instead of \w+ in name=shards/a at .*/root/shards/a\. Delete it"
    with pytest.raises(DamagedError, match=message):
        store.get(ref)
    with pytest.raises(DamagedError, match=message):
        store.local(ref)

    assert not store.is_intact(ref)


def test_local_gives_the_object_itself(store: Store) -> None:
    """A local object is used where it is."""
    ref = store.put("shards/a.arrow", b"rows")

    assert Path(store.root, "shards/a.arrow") == store.local(ref)


def test_local_hashes_an_unchanged_file_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second use in one process does not read the file again, but a change is found."""
    hashed: list[str] = []

    def count(path: Path) -> str:
        hashed.append(path.name)
        return digest_file(path)

    ref = store.put("a", b"rows")
    monkeypatch.setattr(storage, "digest_file", count)
    store.local(ref)
    store.local(ref)
    once = list(hashed)
    Path(store.uri("a")).write_bytes(b"changed")
    with pytest.raises(DamagedError, match="name=a"):
        store.local(ref)

    assert once == ["a"]


def test_list_leaves_temporary_files_out(store: Store) -> None:
    """A list is sorted, takes a prefix, and leaves out what a killed writer left."""
    for name in ("shards/b", "shards/a", "shards-2/c", "d"):
        store.put(name, b"x")
    Path(store.root, "shards/.e.0123.tmp").write_bytes(b"half")

    assert {prefix: store.list(prefix) for prefix in ("", "sha", "shards/", "shards/a", "none/", "d/")} == {
        "": ["d", "shards-2/c", "shards/a", "shards/b"],
        "sha": ["shards-2/c", "shards/a", "shards/b"],
        "shards/": ["shards/a", "shards/b"],
        "shards/a": ["shards/a"],
        "none/": [],
        "d/": [],
    }


def test_delete_is_silent_about_what_is_not_there(store: Store) -> None:
    """Deleting twice leaves the object gone."""
    store.put("a", b"x")
    store.delete("a")
    store.delete("a")

    assert (store.list(""), store.exists("a")) == ([], False)


@pytest.mark.parametrize("name", ["", "/a", "../a", "a/../b", "a//b", "a/", "./a", "a\\b", "a\0", "x/.a.tmp"])
def test_a_name_stays_below_the_root(store: Store, name: str) -> None:
    """A name that could leave the root, or hide from the list, is refused."""
    with pytest.raises(InputError, match=r"name is relative.*but got name='.*'\. Name an object below the root"):
        store.put(name, b"x")
    with pytest.raises(InputError, match="but got name="):
        store.get(name)


def test_a_prefix_stays_below_the_root(store: Store) -> None:
    """A list cannot look outside the root."""
    with pytest.raises(InputError, match=r"but got name='\.\./other'"):
        store.list("../other/")


@pytest.mark.parametrize("root", ["", "gs://bucket", "file:///tmp"])
def test_an_unknown_kind_of_root_is_refused(root: str) -> None:
    """A root that is neither a folder nor on S3 is named."""
    with pytest.raises(InputError, match=rf"folder or starts with s3://, but got root={root}\. Name a folder"):
        Store(root)


def test_an_s3_root_names_a_bucket() -> None:
    """An S3 root without a bucket is refused."""
    with pytest.raises(InputError, match=r"names a bucket, but got root=s3://\. Write s3://bucket/prefix"):
        Store("s3://")


def test_roots_are_normal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative root is taken from the current folder, `~` is the home, and a last slash does not matter."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    assert [f"{tmp_path}/here", f"{tmp_path}/home/there", "s3://bucket", "s3://bucket/a/b"] == [
        Store(root).root for root in ("here/", "~/there", "s3://bucket/", "s3://bucket/a/b/")
    ]


def test_a_store_travels_as_its_root(store: Store) -> None:
    """A pickled store is equal and reads the same objects."""
    ref = store.put("a", b"x")
    copy = pickle.loads(pickle.dumps(store))

    assert (store, hash(store), b"x", f"Store('{store.root}')", True) == (
        copy,
        hash(copy),
        copy.get(ref),
        repr(copy),
        copy.is_local,
    )


def test_errors_travel(store: Store) -> None:
    """The errors keep their message through a pickle, as they must between Dask processes."""
    errors = [MissingError("a", "/r/a"), DamagedError("a", "/r/a", "digest=1 instead of 2")]

    assert [str(error) for error in errors] == [str(pickle.loads(pickle.dumps(error))) for error in errors]


def test_making_a_store_touches_nothing(tmp_path: Path) -> None:
    """A store that was only made, asked and listed has no folder and has imported no client."""
    store = Store(str(tmp_path / "root"))
    Store("s3://bucket/prefix")

    assert (store.list(""), store.exists("a"), (tmp_path / "root").exists()) == ([], False, False)


def test_a_missing_client_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without boto3 an S3 root ends in one message that says what to install."""
    monkeypatch.setitem(sys.modules, "botocore.exceptions", None)
    with pytest.raises(InputError, match=r"needs boto3, but got a missing module=.* pip install 'evergreen\[s3\]'"):
        Store("s3://bucket/prefix").exists("a")


@pytest.mark.parametrize("num_bytes", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES])
def test_files_and_bytes_have_one_digest(tmp_path: Path, num_bytes: int) -> None:
    """A file hashed in chunks has the hash of its bytes at once."""
    payload = os.urandom(num_bytes)
    path = tmp_path / "file"
    path.write_bytes(payload)

    assert digest_bytes(payload) == digest_file(path)


def test_an_inventory_tells_size_and_time(store: Store) -> None:
    """An inventory has the objects that a list has, with their sizes and the time when each came here."""
    before = time.time() - 1
    store.put("shards/b", b"rows")
    made = Path(store.root, "made")
    made.write_bytes(b"more rows")
    os.utime(made, (1, 1))
    store.put_file("shards/a", made)
    found = store.inventory("shards/")

    assert [("shards/a", 9), ("shards/b", 4)] == [(one.name, one.num_bytes) for one in found]
    assert all(before < one.modified < time.time() + 1 for one in found)


def test_leftovers_are_the_temporary_files_of_writers(store: Store) -> None:
    """What a killed writer has left is listed apart from the objects, and can be discarded; other files are not."""
    store.put("shards/a", b"rows")
    folder = Path(store.root, "shards")
    for name in (f".a.{'0' * 16}.tmp", ".a.tmp", f"a.{'0' * 16}.tmp"):
        (folder / name).write_bytes(b"torn")
    found = store.leftovers()
    discarded = [store.discard(one) for one in found]

    assert ([(f"shards/.a.{'0' * 16}.tmp", 4)], [True]) == ([(one.name, one.num_bytes) for one in found], discarded)
    assert ((), 3) == (store.leftovers(), len(list(folder.iterdir())))


def test_discard_leaves_what_was_written_again(store: Store) -> None:
    """An object that is no longer what was listed stays; one that is gone already counts as gone."""
    store.put("a", b"rows")
    (listed,) = store.inventory("a")
    store.put("a", b"rows")
    stays = store.discard(listed)
    (listed,) = store.inventory("a")

    assert (False, True, True, False) == (stays, store.discard(listed), store.discard(listed), store.exists("a"))


def test_a_store_knows_what_it_was_asked_for(store: Store) -> None:
    """Names that are read are remembered, there or not; what a reference gives is not, nor by a copy of the store."""
    ref = store.put("a", b"rows")
    store.get(ref)
    store.get("a")
    with pytest.raises(MissingError, match="got name=b"):
        store.get("b")

    assert ({"a", "b"}, set()) == (store.asked, pickle.loads(pickle.dumps(store)).asked)
