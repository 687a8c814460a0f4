"""Objects on S3, against a moto server."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from infra.errors import RunError
from infra.ledger import Ledger, StaleChampionError
from infra.storage import DamagedError, MissingError, Ref, Store, digest_bytes

boto3 = pytest.importorskip("boto3")
moto_app = pytest.importorskip("moto.moto_server.werkzeug_app")
serving = pytest.importorskip("werkzeug.serving")


class Gate:
    """A moto server that answers one request at a time, because its conditional write is not atomic.

    The answers to the next `lose` writes are lost after they took effect.
    """

    def __init__(self) -> None:
        """Make the application."""
        self._app = moto_app.DomainDispatcherApplication(moto_app.create_backend_app)
        self._lock = threading.Lock()
        self.lose = 0
        self.requests: list[str] = []

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer a request."""
        with self._lock:
            self.requests.append(environ["REQUEST_METHOD"])
            if environ["REQUEST_METHOD"] == "PUT" and self.lose:
                self.lose -= 1
                list(self._app(environ, lambda *_: None))
                start_response("503 Service Unavailable", [("Content-Length", "0")])
                return []
            return list(self._app(environ, start_response))


@pytest.fixture(scope="module")
def gate() -> Iterator[Gate]:
    """Serve S3 on a free port of this machine, and point the S3 client there."""
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
        boto3.session.Session().client("s3").create_bucket(Bucket="evergreen")
        yield gate
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))


@pytest.fixture
def store(gate: Gate, request: pytest.FixtureRequest) -> Store:
    """Give an empty prefix."""
    gate.lose = 0
    return Store(f"s3://evergreen/{request.node.name}")


@pytest.fixture
def client(gate: Gate) -> Any:
    """Give another S3 client."""
    return boto3.session.Session().client("s3")


def key_of(store: Store, name: str) -> dict[str, str]:
    """Return where an object is, as boto3 says it."""
    return {"Bucket": "evergreen", "Key": store.uri(name).removeprefix("s3://evergreen/")}


def test_what_was_put_is_read(store: Store) -> None:
    """An object comes back as it was put, its hash is checked, and its address is for people."""
    ref = store.put("shards/a.arrow", b"rows")

    assert (
        Ref("shards/a.arrow", digest_bytes(b"rows"), 4),
        b"rows",
        b"rows",
        f"{store.root}/shards/a.arrow",
        False,
    ) == (
        ref,
        store.get(ref),
        store.get("shards/a.arrow"),
        store.uri("shards/a.arrow"),
        store.is_local,
    )


@pytest.mark.parametrize("num_bytes", [0, 10, 9 << 20])
def test_put_file_consumes_the_file(store: Store, tmp_path: Path, num_bytes: int) -> None:
    """A file, one sent in several parts included, is in the store, intact, and no longer where it was."""
    payload = os.urandom(num_bytes)
    source = tmp_path / "made.arrow"
    source.write_bytes(payload)
    ref = store.put_file("shards/a.arrow", source)

    assert (False, payload, payload, True) == (
        source.exists(),
        store.get(ref),
        store.local(ref).read_bytes(),
        store.is_intact(ref),
    )


def test_create_refuses_a_name_that_is_taken(store: Store) -> None:
    """A created object is never written over."""
    store.create("a", b"first")
    with pytest.raises(FileExistsError, match=r"The object exists already: 's3://evergreen/.*/a'"):
        store.create("a", b"second")

    assert store.get("a") == b"first"


def test_create_knows_its_own_object(store: Store, gate: Gate) -> None:
    """When the answer to a write is lost, the client's repeated request does not take the own object for another's."""
    gate.lose = 1
    ref = store.create("a", b"mine")
    with pytest.raises(FileExistsError, match="exists already"):
        store.create("a", b"mine")

    assert (gate.lose, store.get(ref)) == (0, b"mine")


def test_list_and_delete(store: Store) -> None:
    """A list is sorted and takes a prefix, folder markers are left out, and deleting twice is silent."""
    for name in ("shards/b", "shards/a", "shards-2/c", "shards/.d.01.tmp/e"):
        store.put(name, b"x")
    store.delete("shards/b")
    store.delete("shards/b")

    assert (
        store.list(""),
        store.list("shards-"),
        store.exists("shards/b"),
        store.list("none/"),
    ) == (["shards-2/c", "shards/.d.01.tmp/e", "shards/a"], ["shards-2/c"], False, [])


def test_list_leaves_out_what_is_no_object(store: Store, client: Any) -> None:
    """Folder markers of consoles and temporary files that somebody copied are left out."""
    store.put("shards/a", b"x")
    client.put_object(**{**key_of(store, "x"), "Key": key_of(store, "shards")["Key"] + "/"}, Body=b"")
    client.put_object(**{**key_of(store, "x"), "Key": key_of(store, "shards")["Key"] + "/.a.0.tmp"}, Body=b"")

    assert store.list("shards/") == ["shards/a"]


def test_a_list_may_be_longer_than_a_page(store: Store) -> None:
    """More objects than S3 lists in one answer are all listed."""
    names = [f"shards/{i:04d}" for i in range(1005)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: store.put(name, b""), names))

    assert names == store.list("shards/")


def test_an_inventory_and_a_discard(store: Store, client: Any) -> None:
    """Sizes and times come with the list; an object of another size than was listed stays, and a gone one is gone."""
    store.put("shards/a", b"rows")
    (listed,) = store.inventory("shards/")
    store.put("shards/a", b"more rows")
    stays = store.discard(listed)
    (again,) = store.inventory("shards/")

    assert (4, 9, False, True, True) == (
        listed.num_bytes,
        again.num_bytes,
        stays,
        store.discard(again),
        store.discard(again),
    )
    assert (True, ()) == (abs(again.modified - time.time()) < 60, store.inventory(""))


def test_leftovers_are_uploads_that_never_ended(store: Store, client: Any) -> None:
    """A large upload whose writer was killed is listed with its size, and discarding it ends it; objects stay."""
    store.put("shards/a", b"rows")
    upload = client.create_multipart_upload(**key_of(store, "shards/b"))["UploadId"]
    client.upload_part(**key_of(store, "shards/b"), UploadId=upload, PartNumber=1, Body=b"torn")
    found = store.leftovers()
    discarded = [store.discard(one) for one in found]

    assert ([("shards/b", 4)], [True]) == ([(one.name, one.num_bytes) for one in found], discarded)
    assert ((), ["shards/a"]) == (store.leftovers(), store.list(""))


def test_a_missing_object_is_named(store: Store) -> None:
    """Reading what is not there names the object, its address and the next step."""
    ref = Ref("gone", digest_bytes(b""), 0)
    for read in (lambda: store.get("gone"), lambda: store.get(ref), lambda: store.local(ref)):
        with pytest.raises(
            MissingError, match=r"got name=gone, which s3://evergreen/.*/gone lacks\. Start the run again"
        ):
            read()

    assert (store.exists("gone"), store.is_intact(ref)) == (False, False)


def test_a_damaged_object_is_named(store: Store, client: Any) -> None:
    """Content that another tool put in place of ours is refused, and leaves nothing in the cache."""
    ref = store.put("a", b"rows")
    client.put_object(**key_of(store, "a"), Body=b"rowz")
    for read in (store.get, store.local):
        with pytest.raises(
            DamagedError, match=r"got digest=.* instead of .* in name=a at s3://evergreen/.*/a\. Delete it"
        ):
            read(ref)

    assert (
        store.is_intact(ref),
        [path for path in Path(tempfile.gettempdir()).glob("evergreen-*/*") if path.is_file()],
    ) == (False, [])


def test_is_intact_asks_and_does_not_download(store: Store, gate: Gate, client: Any) -> None:
    """An object put by us is proven by its recorded hash; one copied by another tool is read."""
    ref = store.put("a", b"rows")
    gate.requests.clear()
    ours = (store.is_intact(ref), list(gate.requests))
    client.put_object(**key_of(store, "a"), Body=b"rows")
    gate.requests.clear()

    assert (ours, (store.is_intact(ref), gate.requests)) == ((True, ["HEAD"]), (True, ["HEAD", "GET"]))


def test_local_downloads_once(store: Store, gate: Gate) -> None:
    """The second use, of another store of the same root too, reads the cache; the suffix is kept."""
    ref = store.put("models/model.ubj", b"trees")
    first = store.local(ref)
    gate.requests.clear()
    second = Store(store.root).local(ref)

    assert (first, b"trees", ".ubj", []) == (second, second.read_bytes(), second.suffix, gate.requests)


def test_a_damaged_cache_is_downloaded_again(store: Store) -> None:
    """A cached file that was changed is replaced by the object."""
    ref = store.put("a", b"rows")
    store.local(ref).write_bytes(b"changed")

    assert store.local(ref).read_bytes() == b"rows"


def test_threads_share_one_store(store: Store) -> None:
    """Many threads open one store and download one object at once."""
    ref = Store(store.root).put("a", b"rows" * 1000)
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: store.local(ref), range(16)))

    assert {paths[0]: b"rows" * 1000} == {path: path.read_bytes() for path in paths}


def test_a_store_travels_without_its_client(store: Store) -> None:
    """A store that has an open client pickles, and its copy opens one of its own."""
    ref = store.put("a", b"rows")
    copy = pickle.loads(pickle.dumps(store))

    assert (store, b"rows") == (copy, copy.get(ref))


def test_a_bucket_that_is_not_there_is_not_empty(gate: Gate) -> None:
    """Every request to a missing bucket fails; none takes it for a missing object or an empty list."""
    store = Store("s3://elsewhere/prefix")
    ref = Ref("a", digest_bytes(b""), 0)
    for ask in (
        lambda: store.exists("a"),
        lambda: store.get("a"),
        lambda: store.local(ref),
        lambda: store.list(""),
        lambda: store.put("a", b""),
        lambda: store.create("a", b""),
        lambda: store.delete("a"),
    ):
        with pytest.raises(
            RunError, match=r"must answer, but got root=s3://elsewhere/prefix .* Check the bucket"
        ) as found:
            ask()

        assert RunError is found.type


def test_a_server_that_does_not_answer_is_named(gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a server each kind of request ends in one message, and a file that was not sent stays."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    source = tmp_path / "made"
    source.write_bytes(b"rows")
    store = Store("s3://evergreen/prefix")
    with pytest.raises(RunError, match=r"must answer, but got root=s3://evergreen/prefix .*127\.0\.0\.1:1"):
        store.put_file("a", source)

    assert source.exists()


def test_importing_storage_imports_no_client() -> None:
    """An installation without the S3 extra can import the module and use folders."""
    code = (
        "import sys, infra.storage; infra.storage.Store('s3://bucket'); print({'boto3', 'botocore'} & set(sys.modules))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert printed == "set()\n"


def test_one_of_many_threads_promotes_on_s3(store: Store) -> None:
    """On S3 too one of many promotions against the same champion wins, with verdicts in between."""

    def promote(version: str) -> str | None:
        ledger = Ledger(Store(store.root), "churn")
        ledger.append("verdict", version=version, expected=None, run_id="", reason="", details={})
        try:
            ledger.append("promote", version=version, expected=None, run_id="", reason="", details={})
        except StaleChampionError:
            return None
        return version

    with ThreadPoolExecutor(4) as pool:
        winners = [version for version in pool.map(promote, "1234") if version]
    rows = Ledger(store, "churn").rows()

    assert (winners, 5) == ([row.version for row in rows if row.action == "promote"], len(rows))
