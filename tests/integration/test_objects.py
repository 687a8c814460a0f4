"""Sources on S3, against a moto server."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from _s3 import BUCKET, Fault, Gate, boto3, cut, refused, shortened
from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends

from infra import s3
from infra.errors import InputError, RunError
from infra.objects import (
    ChangedError,
    S3Object,
    fetch,
    list_objects,
    polars_options,
    read,
    read_range,
    require_unchanged,
)

pytestmark = pytest.mark.usefixtures("little_patience")


@pytest.fixture
def put(request: pytest.FixtureRequest, gate: Gate) -> Callable[[str, bytes], str]:
    """Give a function that writes an object below a folder of the test's own and returns its address."""
    client = gate.client

    def put(name: str, payload: bytes) -> str:
        key = f"{request.node.name.replace('[', '-').replace(']', '')}/{name}"
        client.put_object(Bucket=BUCKET, Key=key, Body=payload)
        return f"s3://{BUCKET}/{key}"

    return put


def table(num_rows: int) -> bytes:
    """Return a Parquet file with row groups of a thousand rows."""
    written = io.BytesIO()
    pl.DataFrame({"row": range(num_rows), "text": [f"row {n}" for n in range(num_rows)]}).write_parquet(
        written, row_group_size=1000
    )
    return written.getvalue()


@pytest.mark.parametrize(
    ("address", "names"),
    [
        ("a.csv", ["a.csv"]),
        ("", ["2023/c.csv", "2024-01.csv", "2024-02.csv", "2024/deep/d.csv", "a.csv", "b[1].csv"]),
        ("2024", ["2024/deep/d.csv"]),
        ("2024/", ["2024/deep/d.csv"]),
        ("2024-*.csv", ["2024-01.csv", "2024-02.csv"]),
        ("*.csv", ["2024-01.csv", "2024-02.csv", "a.csv", "b[1].csv"]),
        ("20??/*.csv", ["2023/c.csv"]),
        ("**/*.csv", ["2023/c.csv", "2024-01.csv", "2024-02.csv", "2024/deep/d.csv", "a.csv", "b[1].csv"]),
        ("2024-0[2-9].csv", ["2024-02.csv"]),
        ("b[1].csv", ["b[1].csv"]),
        ("_*/*", ["_old/e.csv"]),
    ],
)
def test_an_address_is_a_key_a_folder_or_a_pattern(
    put: Callable[[str, bytes], str], address: str, names: list[str]
) -> None:
    """Addresses name what paths would: one key whatever its characters, all below a folder, or what fits a pattern."""
    kept = ("a.csv", "b[1].csv", "2024-01.csv", "2024-02.csv", "2024/deep/d.csv", "2023/c.csv")
    for name in (*kept, "_old/e.csv", ".f.csv", "_SUCCESS", "2023/"):
        root = put(name, b"x").removesuffix(name)

    assert names == [found.uri.removeprefix(root) for found in list_objects(root + address)]


def test_a_listing_knows_size_time_and_etag(put: Callable[[str, bytes], str]) -> None:
    """What a key and what a folder give of an object is the same."""
    uri = put("data/a.csv", b"1,2\n")
    (one,) = list_objects(uri)
    (other,) = list_objects(uri.removesuffix("a.csv"))

    assert (one.uri, 4, BUCKET) == (uri, one.num_bytes, one.bucket)
    assert (one, int(one.modified)) == (
        S3Object(other.bucket, other.key, other.num_bytes, other.etag, one.modified),
        int(other.modified),
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("s3://", r'^An S3 source names a bucket, but got source="s3://"\. Write s3://bucket/folder/, s3://bucket/key'),
        ("s3://evergre*/x.csv", r"^An S3 source names a bucket, but got source=.s3://evergre\*/x\.csv"),
        (
            "s3://elsewhere/data/",
            r"^An S3 bucket must exist, but got bucket=elsewhere \(s3://elsewhere/data/\)\. Make it, or correct "
            r"data\.source\.$",
        ),
        ("s3://elsewhere/a.csv", r"^An S3 bucket must exist, but got bucket=elsewhere"),
        ("s3://elsewhere/*.csv", r"^An S3 bucket must exist, but got bucket=elsewhere"),
        (
            "s3://evergreen/none/*.csv",
            r'^A pattern must match at least one object, but got pattern="s3://evergreen/none/\*\.csv"\. '
            r'Correct data\.source; "\*\*/\*\.csv" searches subfolders\.$',
        ),
        (
            "s3://evergreen/loans/2024-1.csv",
            r'^A source must exist, but got source="s3://evergreen/loans/2024-1\.csv"\. Did you mean "2024-01\.csv"\? '
            r"Correct data\.source\.$",
        ),
        ("s3://evergreen/loan", r'^A source must exist, .* Did you mean "loans"\? Correct data\.source\.$'),
        (
            "s3://Not_a_bucket!/x.csv",
            r"^An S3 address must be valid, but got s3://Not_a_bucket!/x\.csv \(.*\)\. Correct",
        ),
    ],
)
def test_a_source_that_is_not_there_is_named(gate: Gate, source: str, message: str) -> None:
    """A missing bucket, key, folder or match ends in one line with what to correct."""
    boto3.session.Session().client("s3").put_object(Bucket=BUCKET, Key="loans/2024-01.csv", Body=b"x")
    with pytest.raises(InputError, match=message):
        list_objects(source)


def test_access_and_credentials_are_named(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not allowed says which permission is needed, and missing credentials say what to set."""
    gate.faults.append(Fault("GET", refused("403 Forbidden", "AccessDenied"), left=10))
    with pytest.raises(
        InputError,
        match=r"^S3 must allow what is asked for, but got error=AccessDenied on ListObjectsV2 of "
        r"s3://evergreen/data/\. Allow these credentials s3:ListBucket there, or correct data\.source\.$",
    ):
        list_objects("s3://evergreen/data/")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    for ask in (list_objects, polars_options):
        with pytest.raises(
            InputError,
            match=r"^S3 needs credentials, but got none for s3://evergreen/data/\. Set AWS_ACCESS_KEY_ID and "
            r"AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give this machine a role\.$",
        ):
            ask("s3://evergreen/data/")


def test_ranges_and_the_whole_are_read(put: Callable[[str, bytes], str]) -> None:
    """A range is the bytes from its start to before its stop; an empty object has none."""
    (found,) = list_objects(put("a", b"0123456789"))
    (empty,) = list_objects(put("empty", b""))

    assert (b"234", b"", b"0123456789", b"") == (
        read_range(found, 2, 5),
        read_range(found, 5, 5),
        read(found),
        read(empty),
    )


@pytest.mark.parametrize("num_bytes", [0, 10, (16 << 20) - 1, 16 << 20, (40 << 20) + 1])
def test_an_object_is_fetched_whole(put: Callable[[str, bytes], str], tmp_path: Path, num_bytes: int) -> None:
    """A file of one part or of several is the object, in a folder that is made, in place of an older file."""
    payload = os.urandom(num_bytes)
    (found,) = list_objects(put("a", payload))
    path = tmp_path / "deep" / "a"
    for _ in range(2):
        fetch(found, path)

    assert (payload, ["a"]) == (path.read_bytes(), [one.name for one in path.parent.iterdir()])


@pytest.mark.parametrize("num_bytes", [10, (16 << 20) + 1])
@pytest.mark.parametrize("is_gone", [True, False])
def test_an_object_that_changes_after_it_was_listed_is_refused(
    put: Callable[[str, bytes], str], tmp_path: Path, num_bytes: int, is_gone: bool
) -> None:
    """Each way to read an object finds that another one, of the same size, lies there now, or none."""
    uri = put("a", os.urandom(num_bytes))
    (found,) = list_objects(uri)
    put("a", os.urandom(num_bytes))
    if is_gone:
        boto3.session.Session().client("s3").delete_object(Bucket=BUCKET, Key=found.key)
    for look in (
        lambda: read_range(found, 2, 5),
        lambda: read(found),
        lambda: fetch(found, tmp_path / "a"),
        lambda: require_unchanged(found),
    ):
        with pytest.raises(
            ChangedError,
            match=rf'^A source file must stay as it is during a run, but got file="{uri}", which changed while it was '
            r"read\. Run again when nothing writes to it any more\.$",
        ):
            look()

    assert [] == [*tmp_path.iterdir()]


def test_an_object_that_changes_between_its_parts_is_refused(
    put: Callable[[str, bytes], str], gate: Gate, tmp_path: Path
) -> None:
    """Parts of two objects are never put together."""
    (found,) = list_objects(put("a", os.urandom(40 << 20)))

    def replaced(ask: Callable[[], Any]) -> Any:
        answer = ask()
        # Inside a request the server takes no other: what is behind it is written to.
        s3_backends[DEFAULT_ACCOUNT_ID]["aws"].put_object(BUCKET, found.key, os.urandom(40 << 20))
        return answer

    gate.faults.append(Fault("GET", replaced))
    with pytest.raises(ChangedError, match=r"which changed while it was read"):
        fetch(found, tmp_path / "a")

    assert [] == [*tmp_path.iterdir()]


@pytest.mark.parametrize("spoil", [refused("503 Slow Down", "SlowDown"), cut, shortened])
def test_faults_on_the_way_are_repeated(
    put: Callable[[str, bytes], str], gate: Gate, tmp_path: Path, spoil: Callable[..., Any]
) -> None:
    """Throttled requests and bodies that are cut are asked for again, until the range or the file is whole."""
    payload = os.urandom(1 << 20)
    (found,) = list_objects(put("a", payload))
    gate.faults.append(Fault("GET", spoil, left=2))
    middle = read_range(found, 1000, 2000)
    gate.faults.append(Fault("GET", spoil, left=2))
    fetch(found, tmp_path / "a")

    assert (payload[1000:2000], payload) == (middle, (tmp_path / "a").read_bytes())


def test_a_range_that_is_never_whole_is_an_error(put: Callable[[str, bytes], str], gate: Gate, tmp_path: Path) -> None:
    """What comes short five times is named with both sizes, and no file is left."""
    (found,) = list_objects(put("a", b"0123456789"))
    gate.faults.append(Fault("GET", shortened, left=100))
    for look in (lambda: read(found), lambda: fetch(found, tmp_path / "a")):
        with pytest.raises(
            RunError,
            match=r"^S3 must send what was asked for, but got num_bytes=5 instead of 10 of s3://evergreen/\S+/a\.",
        ):
            look()

    assert [] == [*tmp_path.iterdir()]


def test_polars_reads_with_the_options(put: Callable[[str, bytes], str], gate: Gate) -> None:
    """Polars reads rows of one row group, and names with the characters of patterns, where and as boto3 would."""
    uri = put("part[1].parquet", table(10_000))
    (found,) = list_objects(uri)
    gate.requests.clear()
    rows = pl.scan_parquet(found.uri, glob=False, storage_options=polars_options(uri)).slice(4000, 3).collect()

    assert {"row": [4000, 4001, 4002], "text": ["row 4000", "row 4001", "row 4002"]} == rows.to_dict(as_series=False)
    assert gate.requests.count("GET") > 0


def test_polars_options_are_those_of_boto3(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Endpoint, region and keys are boto3's own, a role's token included."""
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")

    assert {
        "aws_access_key_id": "test",
        "aws_secret_access_key": "test",
        "aws_session_token": "token",
        "aws_endpoint_url": os.environ["AWS_ENDPOINT_URL"],
        "aws_allow_http": "true",
        "aws_region": "us-east-1",
        "max_retries": 7,
    } == polars_options("s3://evergreen/data/")


def test_polars_options_of_aws_name_the_buckets_region(monkeypatch: pytest.MonkeyPatch) -> None:
    """On AWS itself no endpoint is set, and the region is the bucket's, wherever this machine is."""
    for variable in [variable for variable in os.environ if variable.startswith("AWS_")]:
        monkeypatch.delenv(variable)
    for name, value in {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    client = s3.client()
    client.meta.events.register(
        "before-send.s3.HeadBucket", lambda **_: answered(200, {"x-amz-bucket-region": "eu-west-3"})
    )

    assert {
        "aws_access_key_id": "key",
        "aws_secret_access_key": "secret",
        "aws_region": "eu-west-3",
        "max_retries": 7,
    } == polars_options("s3://bucket/data/")


def answered(status: int, headers: dict[str, str]) -> Any:
    """Return an answer to a request that is not sent."""
    from botocore.awsrequest import AWSResponse

    class Raw(io.BytesIO):
        def stream(self, *_: object, **__: object) -> Iterator[bytes]:
            yield self.read()

    return AWSResponse("https://bucket.s3.amazonaws.com", status, headers, Raw())


def test_importing_objects_imports_no_client() -> None:
    """An installation without the S3 extra can import the module."""
    code = "import sys, infra.objects; print({'boto3', 'botocore', 's3transfer'} & set(sys.modules))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert printed == "set()\n"
