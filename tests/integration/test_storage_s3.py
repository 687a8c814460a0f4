"""Objects on S3, against a moto server."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from _s3 import Fault, Gate, cut, lost, refused, shortened

from infra import s3
from infra.errors import InputError, RunError
from infra.ledger import Ledger, StaleChampionError
from infra.storage import DamagedError, MissingError, Ref, Store, digest_bytes, digest_file

pytestmark = pytest.mark.usefixtures("little_patience")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))


@pytest.fixture
def store(gate: Gate, request: pytest.FixtureRequest) -> Store:
    """Give an empty prefix."""
    gate.faults.clear()
    return Store(f"s3://evergreen/{request.node.name}")


@pytest.fixture
def client(gate: Gate) -> Any:
    """Give another S3 client."""
    return gate.client


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


@pytest.mark.parametrize("num_bytes", [0, 10, (16 << 20) + 1])
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
    gate.faults.append(Fault("PUT", lost))
    ref = store.create("a", b"mine")
    with pytest.raises(FileExistsError, match="exists already"):
        store.create("a", b"mine")

    assert (gate.faults[0].left, store.get(ref)) == (0, b"mine")


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


def test_a_miss_is_one_request(store: Store, gate: Gate) -> None:
    """The bucket is asked for with the first missing object alone, and one that may not be asked for is there."""
    gate.faults.append(Fault("HEAD", refused("403 Forbidden", "AccessDenied"), path="/evergreen"))
    gate.requests.clear()
    found = [store.exists("a"), store.exists("b")]

    assert ([False, False], ["HEAD"] * 3, 0) == (found, gate.requests, gate.faults[0].left)


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
            InputError,
            match=r"^An S3 bucket must exist, but got bucket=elsewhere \(s3://elsewhere/prefix\)\. "
            r"Make it, or correct EVERGREEN_ROOT\.$",
        ):
            ask()


def test_a_server_that_does_not_answer_is_named(gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a server each kind of request ends in one message, and a file that was not sent stays."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    source = tmp_path / "made"
    source.write_bytes(b"rows")
    store = Store("s3://evergreen/prefix")
    ref = Ref("a", digest_bytes(b""), 0)
    for ask in (
        lambda: store.put_file("a", source),
        lambda: store.get("a"),
        lambda: store.local(ref),
        lambda: store.list(""),
    ):
        with pytest.raises(
            RunError,
            match=r"^S3 must answer, but got no answer for s3://evergreen/prefix "
            r"\(Could not connect to the endpoint URL: .http://127\.0\.0\.1:1/.*\)\. "
            r"Check the network, AWS_ENDPOINT_URL and AWS_DEFAULT_REGION, and start the run again\.$",
        ):
            ask()

    assert source.exists()


NO_CREDENTIALS = (
    r"^S3 needs credentials, but got none for s3://evergreen/prefix\. "
    r"Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give this machine a role\.$"
)
HALF_CREDENTIALS = (
    r"^S3 needs whole credentials, but got none for s3://evergreen/prefix \(Partial credentials found in env, missing: "
    r"AWS_SECRET_ACCESS_KEY\)\. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give this machine "
    r"a role\.$"
)
NO_PROFILE = (
    r"^A profile must be in the AWS configuration, but got none for s3://evergreen/prefix "
    r"\(The config profile \(team\) could not be found\)\. Correct AWS_PROFILE, or leave it out\.$"
)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, NO_CREDENTIALS),
        ({"AWS_SECRET_ACCESS_KEY": None}, HALF_CREDENTIALS),
        ({"AWS_PROFILE": "team"}, NO_PROFILE),
    ],
)
def test_credentials_that_are_not_there_are_named(
    gate: Gate, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str | None], message: str
) -> None:
    """Without credentials, or with half of them, nothing is asked and the message says what to set."""
    for name, value in variables.items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    for ask in (lambda store: store.get("a"), lambda store: store.put("a", b""), lambda store: store.list("")):
        with pytest.raises(InputError, match=message):
            ask(Store("s3://evergreen/prefix"))


REFUSALS = {
    "InvalidBucketName": (
        "400 Bad Request",
        InputError,
        r"^An S3 address must be valid, but got error=InvalidBucketName on GetObject of s3://evergreen/\S+\. "
        r"Correct EVERGREEN_ROOT\.$",
    ),
    "AccessDenied": (
        "403 Forbidden",
        InputError,
        r"^S3 must allow what is asked for, but got error=AccessDenied on GetObject of s3://evergreen/\S+\. "
        r"Allow these credentials s3:GetObject there, or correct EVERGREEN_ROOT\.$",
    ),
    "ExpiredToken": (
        "400 Bad Request",
        InputError,
        r"^S3 must know the credentials, but got error=ExpiredToken on GetObject of s3://evergreen/\S+\. "
        r"Renew AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or log in again, and see that the clock is right\.$",
    ),
    "InvalidObjectState": (
        "403 Forbidden",
        InputError,
        r"^An S3 object must not be archived, but got error=InvalidObjectState on GetObject of s3://evergreen/\S+\. "
        r"Restore it, or leave it out of EVERGREEN_ROOT\.$",
    ),
    "SlowDown": (
        "503 Slow Down",
        RunError,
        r"^S3 must answer, but got error=SlowDown on GetObject of s3://evergreen/\S+ after 3 attempts\. "
        r"Start the run again; it goes on from what is done\.$",
    ),
}


@pytest.mark.parametrize("code", REFUSALS)
def test_a_refusal_is_explained(store: Store, gate: Gate, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """What a person must change is an InputError, what may go away a RunError; each names the request and the root."""
    monkeypatch.setattr(s3, "ATTEMPTS", 3)
    status, error, message = REFUSALS[code]
    ref = store.put("a", b"rows")
    gate.faults.append(Fault("GET", refused(status, code), left=100))
    with pytest.raises(error, match=message):
        store.get(ref)


@pytest.mark.parametrize(
    "spoil",
    [refused("503 Slow Down", "SlowDown"), refused("500 Internal Server Error", "InternalError"), cut, shortened, lost],
)
def test_what_fails_three_times_is_done_the_fourth(store: Store, gate: Gate, spoil: Callable[..., Any]) -> None:
    """Throttling, server errors, broken connections and bodies that are cut are repeated until the object is whole."""
    ref = store.put("a", b"rows" * 1000)
    fault = Fault("GET", spoil, left=3)
    gate.faults.append(fault)

    assert (b"rows" * 1000, 0) == (store.get(ref), fault.left)


@pytest.mark.parametrize("spoil", [refused("503 Slow Down", "SlowDown"), cut, shortened])
def test_a_download_goes_on_after_faults(store: Store, gate: Gate, spoil: Callable[..., Any]) -> None:
    """A file in several parts arrives whole though one part fails at first, with no temporary file left."""
    payload = os.urandom((40 << 20) + 1)
    ref = store.put("a.arrow", payload)
    fault = Fault("GET", spoil)
    gate.faults.append(fault)
    path = store.local(ref)

    assert (ref.digest, 0, [path]) == (digest_file(path), fault.left, [*path.parent.iterdir()])


def test_a_body_that_is_never_whole_is_damage(store: Store, gate: Gate) -> None:
    """What does not have its hash after five attempts is reported, from memory and as a file, and nothing is kept."""
    ref = store.put("a", b"rows" * 1000)
    gate.faults.append(Fault("GET", shortened, left=1000))
    gate.requests.clear()
    for read, num_requests in ((store.get, 5), (store.local, 2)):
        with pytest.raises(DamagedError, match=r"got digest=\w+ instead of \w+ in name=a at s3://.*Delete it"):
            read(ref)

        assert num_requests == gate.requests.count("GET")
        gate.requests.clear()
    assert [] == [path for path in Path(tempfile.gettempdir()).rglob("*") if path.is_file()]


def test_a_body_that_always_breaks_off_is_an_error(store: Store, gate: Gate) -> None:
    """A connection that is cut in every body ends in the message of a server that does not answer."""
    ref = store.put("a", b"rows" * 1000)
    gate.faults.append(Fault("GET", cut, left=1000))
    for read in (store.get, store.local):
        with pytest.raises(RunError, match=r"^S3 must answer, but got no answer for s3://evergreen/\S+ \(.*\)\. Check"):
            read(ref)

    assert [] == [path for path in Path(tempfile.gettempdir()).rglob("*") if path.is_file()]


def test_an_upload_that_fails_publishes_nothing(store: Store, gate: Gate, tmp_path: Path) -> None:
    """When a part can't be sent, the old object stays, no part is left to pay for, and the file is still there."""
    store.put("a", b"old")
    source = tmp_path / "made"
    source.write_bytes(os.urandom((16 << 20) + 1))
    gate.faults.append(Fault("PUT", refused("500 Internal Server Error", "InternalError"), 100, query="partNumber=2"))
    with pytest.raises(
        RunError, match=r"but got error=InternalError on UploadPart of s3://evergreen/\S+ after 8 attempts"
    ):
        store.put_file("a", source)

    assert (True, b"old", ()) == (source.exists(), store.get("a"), store.leftovers())


def test_an_upload_whose_end_was_not_heard_is_known(store: Store, gate: Gate, tmp_path: Path) -> None:
    """When the answer that ends an upload is lost, the repeated request finds the object there, and that is enough."""
    source = tmp_path / "made"
    source.write_bytes(payload := os.urandom((16 << 20) + 1))
    gate.faults.append(Fault("POST", lost, query="uploadId="))
    ref = store.put_file("a", source)

    assert (False, True, 0, payload) == (source.exists(), store.is_intact(ref), gate.faults[0].left, store.get(ref))


def test_a_client_has_bounds(store: Store) -> None:
    """Attempts, timeouts and connections are stated, not inherited from a default or the machine's configuration."""
    config = s3.client().meta.config

    assert ({"mode": "adaptive", "total_max_attempts": 8}, 5.0, 30.0, 32) == (
        config.retries,
        config.connect_timeout,
        config.read_timeout,
        config.max_pool_connections,
    )


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
