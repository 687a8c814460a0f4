"""Sources on S3: list them, read ranges of them, fetch them, and give Polars what it needs to scan them.

An object is read as it was listed: every request names its ETag, so that one that is written again meanwhile is an
error and not a mixture. Keys, buckets and credentials are those that boto3 finds.

    for found in list_objects("s3://bucket/data/2024-*.parquet"):
        footer = read_range(found, found.num_bytes - 8, found.num_bytes)
        frame = pl.scan_parquet(found.uri, glob=False, storage_options=polars_options(found.uri))
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from infra.disk import room_in
from infra.errors import InputError, RunError, nearest
from infra.s3 import ATTEMPTS, PART_BYTES, answering, boto, client, credentials, read_again, transfers

SETTING = "data.source"
DIGEST = "etag-"
SIBLINGS = 1000
"""How many names are looked at for the one that was meant."""
MAGIC = re.compile(r"[*?\[]")
AWS_HOST = re.compile(r"s3([.-][a-z0-9-]+)?\.amazonaws\.com(\.cn)?")


class ChangedError(InputError):
    """Say that a source is not what was listed any more."""

    def __init__(self, uri: str) -> None:
        """Keep which one."""
        super().__init__(uri)
        self.uri = uri

    def __str__(self) -> str:
        """Return the message."""
        return (
            f'A source file must stay as it is during a run, but got file="{self.uri}", which changed while it was '
            "read. Run again when nothing writes to it any more."
        )


@dataclass(frozen=True)
class S3Object:
    """An object as it was listed."""

    bucket: str
    key: str
    num_bytes: int
    etag: str
    """Changes with the content; S3 computes it, quotes included."""
    modified: float
    """When it was written, in seconds since 1970, by S3's clock."""

    @property
    def uri(self) -> str:
        """The address for people and for Polars; a key may hold the characters of patterns."""
        return f"s3://{self.bucket}/{self.key}"

    def __str__(self) -> str:
        """Return the address."""
        return self.uri

    @property
    def digest(self) -> str:
        """What the content is known by, wherever it lies: the ETag, without its quotes."""
        return DIGEST + self.etag.strip('"')

    @property
    def modified_ns(self) -> int:
        """When it was written, in nanoseconds since 1970, to the microsecond."""
        return round(self.modified * 1e6) * 1000

    @classmethod
    def recalled(cls, uri: str, digest: str, num_bytes: int, modified_ns: int) -> S3Object:
        """Return an object as it was once listed."""
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        return cls(bucket, key, num_bytes, f'"{digest.removeprefix(DIGEST)}"', modified_ns // 1000 / 1e6)


def list_objects(uri: str) -> tuple[S3Object, ...]:
    """Return the objects that an address names, sorted by key: one, those of a folder, or those of a pattern.

    As with local files, `*` does not cross a "/" and `**` does; in folders and patterns, names that start with a dot
    or _ are left out unless the pattern says so.

    Raises:
        InputError: nothing is there, or S3 does not allow to look.
        RunError: S3 does not answer.
    """
    bucket, key = _parts(uri)
    with answering(uri, SETTING):
        if key and not key.endswith("/") and (found := _head(bucket, key)):
            return (found,)
        if MAGIC.search(key):
            return _matches(uri, bucket, key)
        folder = key if key.endswith("/") or not key else f"{key}/"
        shown = tuple(one for one in _listed(bucket, folder) if not _is_private(one.key.removeprefix(folder)))
        if not shown:
            raise InputError(f'A source must exist, but got source="{uri}".{_hint(bucket, key)} Correct {SETTING}.')
        return shown


def is_named(uri: str, address: str) -> bool:
    """Tell whether an address names an object, if it is there.

    >>> is_named("s3://bucket/data/a.csv", "s3://bucket/data"), is_named("s3://bucket/data/a.csv", "s3://bucket/d*")
    (True, False)
    """
    if address == uri or uri.startswith(f"{address.rstrip('/')}/"):
        return True
    return bool(MAGIC.search(address)) and is_match(tuple(uri.split("/")), tuple(address.split("/")))


def _parts(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not uri.startswith("s3://") or not bucket or MAGIC.search(bucket):
        raise InputError(
            f'An S3 source names a bucket, but got source="{uri}". Write s3://bucket/folder/, s3://bucket/key or '
            "s3://bucket/data/*.parquet."
        )
    return bucket, key


def _head(bucket: str, key: str) -> S3Object | None:
    """Return one object, or None where there is none of this key."""
    with answering(f"s3://{bucket}/{key}", SETTING, "404"):
        head = client().head_object(Bucket=bucket, Key=key)
        return S3Object(bucket, key, head["ContentLength"], head["ETag"], head["LastModified"].timestamp())
    return None


def _listed(bucket: str, prefix: str) -> Iterator[S3Object]:
    """Yield the objects whose keys start with a prefix, in the order of their keys, but for markers of folders."""
    for page in client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for item in page.get("Contents") or ():
            if not item["Key"].endswith("/"):
                yield S3Object(bucket, item["Key"], item["Size"], item["ETag"], item["LastModified"].timestamp())


def _matches(uri: str, bucket: str, pattern: str) -> tuple[S3Object, ...]:
    parts = tuple(pattern.split("/"))
    prefix = pattern[: MAGIC.search(pattern).start()]  # type: ignore[union-attr]  # the caller has looked
    found = tuple(one for one in _listed(bucket, prefix) if is_match(tuple(one.key.split("/")), parts))
    if not found:
        raise InputError(
            f'A pattern must match at least one object, but got pattern="{uri}". '
            f'Correct {SETTING}; "**/*.csv" searches subfolders.'
        )
    return found


def is_match(names: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Tell whether the parts of a key fit those of a pattern, of which `**` stands for any number of folders.

    >>> is_match(("data", "2024", "a.csv"), ("data", "**", "*.csv")), is_match(("data", "a.csv"), ("*.csv",))
    (True, False)
    >>> is_match(("data", "_old.csv"), ("data", "*.csv")), is_match(("data", "_old.csv"), ("data", "_*.csv"))
    (False, True)
    """
    if not pattern:
        return not names
    if pattern[0] == "**":
        return is_match(names, pattern[1:]) or bool(
            names and not _is_private(names[0]) and is_match(names[1:], pattern if names[1:] else pattern[1:])
        )
    is_shown = bool(names) and (not _is_private(names[0]) or pattern[0].startswith((".", "_")))
    return is_shown and fnmatchcase(names[0], pattern[0]) and is_match(names[1:], pattern[1:])


def _is_private(key: str) -> bool:
    return any(name.startswith((".", "_")) for name in key.split("/"))


def _hint(bucket: str, key: str) -> str:
    """Return a hint with the name that was probably meant."""
    folder, _, name = key.rstrip("/").rpartition("/")
    prefix = f"{folder}/" if folder else ""
    page = client().list_objects_v2(Bucket=bucket, Prefix=prefix, Delimiter="/", MaxKeys=SIBLINGS)
    keys = [item["Key"] for item in page.get("Contents") or ()]
    keys += [item["Prefix"].rstrip("/") for item in page.get("CommonPrefixes") or ()]
    return nearest(name, [key.removeprefix(prefix) for key in keys])


def read_range(found: S3Object, start: int, stop: int) -> bytes:
    """Return the bytes of an object from `start` to before `stop`.

    Raises:
        ChangedError: it is not the one that was listed any more.
        RunError: S3 does not answer, or breaks off again and again.
    """
    assert 0 <= start <= stop <= found.num_bytes, f"bytes {start} to {stop} of {found}"
    if start == stop:
        return b""
    part = {"Bucket": found.bucket, "Key": found.key, "IfMatch": found.etag, "Range": f"bytes={start}-{stop - 1}"}
    with _as_listed(found):
        payload = read_again(
            lambda: client().get_object(**part)["Body"],
            lambda body: bytes(body.read()),
            lambda read: len(read) == stop - start,
        )
    return _whole(found, payload, stop - start)


def read(found: S3Object) -> bytes:
    """Return the whole content of an object; errors as `read_range`."""
    return read_range(found, 0, found.num_bytes)


def _whole(found: S3Object, payload: bytes, num_bytes: int) -> bytes:
    if len(payload) != num_bytes:
        raise RunError(
            f"S3 must send what was asked for, but got num_bytes={len(payload)} instead of {num_bytes} of {found.uri}. "
            "See what lies between this machine and S3, and start the run again."
        )
    return payload


def fetch(found: S3Object, path: Path) -> None:
    """Write an object to a local file, in parts and in bounded memory; the file appears whole or not at all.

    Raises:
        ChangedError: it is not the one that was listed any more.
        FullDiskError: the folder has no room for it.
        RunError: S3 does not answer, or breaks off again and again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with room_in(path.parent, "Free some space there, or name a folder on a larger disk."):
            if found.num_bytes < PART_BYTES:
                temporary.write_bytes(read(found))  # a transfer of one part would not name the ETag
            else:
                with _as_listed(found), transfers() as manager:
                    manager.download(found.bucket, found.key, str(temporary), subscribers=[_known(found)]).result()
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _known(found: S3Object) -> Any:
    """Return what tells a transfer the size and the ETag, so that it need not ask and takes no other object."""

    class Known(boto("s3transfer.subscribers").BaseSubscriber):  # type: ignore[misc]  # its class comes with boto3
        def on_queued(self, future: Any, **_: object) -> None:
            future.meta.provide_transfer_size(found.num_bytes)
            future.meta.provide_object_etag(found.etag)

    return Known()


def require_unchanged(found: S3Object) -> None:
    """Raise a ChangedError if an object is not the one that was listed any more, for readers that do not look."""
    now = _head(found.bucket, found.key)
    if now is None or now.digest != found.digest:
        raise ChangedError(found.uri)


@contextmanager
def _as_listed(found: S3Object) -> Iterator[None]:
    """Turn S3's answers for an object that is another one now, or gone, into a ChangedError."""
    with answering(found.uri, SETTING, "PreconditionFailed", "412", "NoSuchKey", "404"):
        try:
            yield
        except boto("s3transfer.exceptions").S3DownloadFailedError as error:  # its name for another ETag
            raise ChangedError(found.uri) from error
        return
    raise ChangedError(found.uri)


def polars_options(uri: str) -> dict[str, str | int]:
    """Return `storage_options` with which Polars reads from where boto3 would, with the credentials boto3 has found.

    They hold secrets, and credentials of a role that end within hours: make them where they are used.

    Raises:
        InputError: there are no credentials, or no such bucket.
    """
    bucket, _ = _parts(uri)
    with answering(uri, SETTING):
        s3 = client()
        endpoint = urlsplit(s3.meta.endpoint_url)
        is_aws = AWS_HOST.fullmatch(endpoint.hostname or "") is not None
        options = {"max_retries": ATTEMPTS - 1, "aws_region": _region(bucket) if is_aws else s3.meta.region_name}
        if not is_aws:
            options["aws_endpoint_url"] = s3.meta.endpoint_url
            options["aws_allow_http"] = str(endpoint.scheme == "http").lower()
        keys = credentials()
        options |= {"aws_access_key_id": keys.access_key, "aws_secret_access_key": keys.secret_key}
        return options | ({"aws_session_token": keys.token} if keys.token else {})


def _region(bucket: str) -> str:
    """Return where a bucket is: boto3 follows S3 there, Polars does not."""
    s3 = client()
    with answering(f"s3://{bucket}", SETTING, "403"):
        return str(s3.head_bucket(Bucket=bucket).get("BucketRegion") or s3.meta.region_name)
    return str(s3.meta.region_name)
