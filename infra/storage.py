"""Objects under one root, a folder or an S3 prefix, each written whole or not at all.

A `Ref` carries the hash of its content, and every read through one checks it. Nothing here needs a lock: a write
ends in one atomic step (a rename; one S3 request), and `Store.create` lets exactly one writer have a name.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from blake3 import blake3

from infra.disk import room_in
from infra.errors import InputError, RunError
from infra.s3 import answering, client, read_again, transfers
from infra.verified import FILE as VERIFIED
from infra.verified import VerifiedFiles

CHUNK_BYTES = 1 << 20
DOWNLOADS = 2
"""What was damaged on its way comes whole the second time; what is damaged where it lies does not."""
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")
"""Files that are being written; other programs name theirs otherwise."""
_verified: set[tuple[str, str, int, int, int]] = set()
"""Files whose hash this process has seen: path, digest, inode, size and time of change."""


class MissingError(RunError):
    """Say that a stored object is not there."""

    def __init__(self, name: str, uri: str) -> None:
        """Keep what names the object."""
        super().__init__(name, uri)
        self.name = name
        self.uri = uri

    def __str__(self) -> str:
        """Return the message."""
        return (
            f"A stored object must be there when it is read, but got name={self.name}, which {self.uri} lacks. "
            "Start the run again: it rebuilds what is missing."
        )


class DamagedError(RunError):
    """Say that a stored object is not what was written."""

    def __init__(
        self, name: str, uri: str, found: str, next_step: str = "Delete it and start the run again: it is rebuilt."
    ) -> None:
        """Keep what names the object, what is wrong with it, and what to do."""
        super().__init__(name, uri, found, next_step)
        self.name = name
        self.uri = uri
        self.found = found
        self.next_step = next_step

    def __str__(self) -> str:
        """Return the message."""
        return (
            f"A stored object must keep the content that was written, but got {self.found} in name={self.name} "
            f"at {self.uri}. {self.next_step}"
        )


@dataclass(frozen=True)
class Ref:
    """A stored object and the proof of its content."""

    name: str
    """Where it is, relative to the root, with "/" between the parts."""
    digest: str
    """blake3 of the content, in hexadecimal."""
    num_bytes: int


@dataclass(frozen=True)
class Stored:
    """What a listing knows of an object."""

    name: str
    num_bytes: int
    modified: float
    """When it was written, in seconds since 1970, by the clock of the storage."""
    upload: str = ""
    """Of an upload to S3 that never ended: its id."""


def digest_bytes(payload: bytes) -> str:
    """Return the blake3 of bytes in hexadecimal.

    >>> digest_bytes(b"evergreen")[:16]
    '1073431a72fc29dd'
    """
    return blake3(payload).hexdigest()


@functools.lru_cache
def verified_files(root: str) -> VerifiedFiles:
    """Return the list of hashed files of a folder, one for this process."""
    return VerifiedFiles(root)


def digest_file(path: str | Path) -> str:
    """Return the blake3 of a file's bytes in hexadecimal.

    The file is read in chunks and not mapped: mapped pages would count as the worker's memory, and a file that is
    cut short under a mapping kills the process.
    """
    hasher = blake3()
    buffer = memoryview(bytearray(CHUNK_BYTES))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            hasher.update(buffer[:count])
    return hasher.hexdigest()


class Store:
    """Objects by name under one root.

    It opens no connection before the first S3 request, and pickles as its root alone.

    >>> store = Store("s3://bucket/models/")
    >>> store.uri("shards/ab12.arrow")
    's3://bucket/models/shards/ab12.arrow'
    """

    def __init__(self, root: str) -> None:
        """Take a folder (made on the first write) or `s3://bucket/prefix`; InputError for anything else."""
        self._backend: _Backend = _backend(root)
        self.root = self._backend.root
        self.asked: set[str] = set()
        """Objects that were asked for by name alone, there or not: what a run looks up rather than being given."""

    def __repr__(self) -> str:
        """Show the root."""
        return f"Store({self.root!r})"

    def __eq__(self, other: object) -> bool:
        """Compare by root."""
        return isinstance(other, Store) and other.root == self.root

    def __hash__(self) -> int:
        """Hash by root."""
        return hash(self.root)

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        """Pickle the root and leave clients and locks behind."""
        return Store, (self.root,)

    @property
    def is_local(self) -> bool:
        """Tell whether the root is a folder of this machine."""
        return isinstance(self._backend, _Folder)

    def put(self, name: str, payload: bytes) -> Ref:
        """Write an object, in place of one of the same name."""
        ref = Ref(_checked(name), digest_bytes(payload), len(payload))
        self._backend.write(ref, payload)
        return ref

    def put_file(self, name: str, path: Path) -> Ref:
        """Move a local file into the store; the file is gone from where it was."""
        ref = Ref(_checked(name), digest_file(path), path.stat().st_size)
        self._backend.take(ref, path)
        if self.is_local:
            verified_files(self.root).add(ref.name, ref.digest)
        return ref

    def create(self, name: str, payload: bytes) -> Ref:
        """Write an object only if its name is free; of several writers one wins, the others get FileExistsError."""
        ref = Ref(_checked(name), digest_bytes(payload), len(payload))
        if not self._backend.create(ref, payload):
            raise FileExistsError(errno.EEXIST, "The object exists already", self.uri(name))
        return ref

    def get(self, ref: Ref | str) -> bytes:
        """Return an object's content; of a `Ref` the hash is checked (DamagedError, MissingError)."""
        name = ref if isinstance(ref, str) else ref.name
        if isinstance(ref, str):
            self.asked.add(name)
        payload = self._backend.read(_checked(name), None if isinstance(ref, str) else ref.digest)
        if payload is None:
            raise MissingError(name, self.uri(name))
        if isinstance(ref, Ref):
            self._compare(ref, digest_bytes(payload))
        return payload

    def local(self, ref: Ref) -> Path:
        """Return a file of this machine with the object's verified content, to read or to map.

        An S3 object is downloaded once into a folder below the system's temporary one. A file is hashed once per
        process, and again when it changes.
        """
        path = self._backend.local_path(ref, _checked(ref.name))
        if isinstance(self._backend, _Folder):
            if not path.is_file():
                raise MissingError(ref.name, self.uri(ref.name))
            if not _is_verified(path, ref.digest):
                verified_files(self.root).strike(ref.name)
                self._compare(ref, digest_file(path))
        elif not (path.is_file() and _is_verified(path, ref.digest)):
            self._download(ref, path)
        return path

    def exists(self, name: str) -> bool:
        """Tell whether there is an object of this name."""
        return self._backend.stat(_checked(name)) is not None

    def is_intact(self, ref: Ref) -> bool:
        """Tell whether the object is there and has the content that its reference proves.

        A file is hashed, unless a process has done so since it was last changed. S3 stores content and recorded hash
        in one step and checks its own copies, so there the recorded hash and the size are compared; an object that
        another tool put without a hash is read.
        """
        found = self._backend.stat(_checked(ref.name))
        if found is None or found.num_bytes != ref.num_bytes:
            return False
        if self.is_local and verified_files(self.root).has(ref.name, ref.digest):
            return True
        is_same = (found.digest or self._backend.digest(ref.name)) == ref.digest
        if is_same and self.is_local:
            verified_files(self.root).add(ref.name, ref.digest)
        return is_same

    def list(self, prefix: str) -> list[str]:
        """Return the sorted names that start with a prefix; "" lists all, "shards/" a folder."""
        return sorted(found.name for found in self.inventory(prefix))

    def inventory(self, prefix: str = "") -> tuple[Stored, ...]:
        """Return the objects whose names start with a prefix, with size and time, in the order of their names."""
        if prefix:
            _checked(prefix.removesuffix("/"))
        found = (stored for stored in self._backend.listed(prefix) if not _is_temporary(stored.name))
        return tuple(sorted(found, key=lambda stored: stored.name))

    def leftovers(self) -> tuple[Stored, ...]:
        """Return what writers that have not ended, or were killed, hold: temporary files, unfinished uploads."""
        return tuple(sorted(self._backend.leftovers(), key=lambda stored: stored.name))

    def delete(self, name: str) -> None:
        """Remove an object, if it is there."""
        self._backend.remove(_checked(name))

    def discard(self, stored: Stored) -> bool:
        """Remove what was listed, unless it has been written again since; return whether that is gone now."""
        return self._backend.discard(stored)

    def uri(self, name: str) -> str:
        """Return an object's address for people: a path or `s3://...`."""
        return f"{self.root.rstrip('/')}/{_checked(name)}"

    def _compare(self, ref: Ref, digest: str) -> None:
        if digest != ref.digest:
            raise DamagedError(ref.name, self.uri(ref.name), f"digest={digest} instead of {ref.digest}")

    def _download(self, ref: Ref, path: Path) -> None:
        with (
            room_in(path.parent, "Free some space there, or set TMPDIR to a folder on a larger disk."),
            _beside(path, mode=0o700) as temporary,
        ):
            digest = ""
            for _ in range(DOWNLOADS):
                if digest != ref.digest:
                    if not self._backend.download(ref.name, temporary):
                        raise MissingError(ref.name, self.uri(ref.name))
                    digest = digest_file(temporary)
            self._compare(ref, digest)
            os.replace(temporary, path)
        _verified.add(_identity(path, ref.digest))


@dataclass(frozen=True)
class _Found:
    num_bytes: int
    digest: str | None
    """The recorded hash, where the backend keeps one with the content."""


class _Backend(Protocol):
    """What a kind of storage can do; names are checked, and None or False says "no such object"."""

    root: str

    def write(self, ref: Ref, payload: bytes) -> None: ...
    def take(self, ref: Ref, path: Path) -> None: ...
    def create(self, ref: Ref, payload: bytes) -> bool: ...
    def read(self, name: str, digest: str | None) -> bytes | None: ...
    def stat(self, name: str) -> _Found | None: ...
    def digest(self, name: str) -> str | None: ...
    def local_path(self, ref: Ref, name: str) -> Path: ...
    def download(self, name: str, path: Path) -> bool: ...
    def listed(self, prefix: str) -> Iterator[Stored]: ...
    def leftovers(self) -> Iterator[Stored]: ...
    def remove(self, name: str) -> None: ...
    def discard(self, stored: Stored) -> bool: ...


class _Folder:
    """A folder of a file system with atomic renames and hard links."""

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(os.path.expanduser(root))

    def write(self, ref: Ref, payload: bytes) -> None:
        with self._room(), self._written(ref.name, payload) as temporary:
            os.replace(temporary, self._path(ref.name))
        _sync(self._path(ref.name).parent)

    def take(self, ref: Ref, path: Path) -> None:
        target = self._path(ref.name)
        with self._room(), _beside(target) as temporary:
            shutil.move(path, temporary)  # a rename, or a copy when the file is on another file system
            os.utime(temporary)  # an object is as old as its place here, whenever its file was made
            _sync(temporary)
            os.replace(temporary, target)
        _sync(target.parent)

    def create(self, ref: Ref, payload: bytes) -> bool:
        with self._room(), self._written(ref.name, payload) as temporary:
            try:
                os.link(temporary, self._path(ref.name))
            except FileExistsError:
                return False
        _sync(self._path(ref.name).parent)
        return True

    def read(self, name: str, digest: str | None) -> bytes | None:
        try:
            return self._path(name).read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None

    def stat(self, name: str) -> _Found | None:
        path = self._path(name)
        return _Found(path.stat().st_size, digest=None) if path.is_file() else None

    def digest(self, name: str) -> str | None:
        try:
            return digest_file(self._path(name))
        except FileNotFoundError:
            return None

    def local_path(self, ref: Ref, name: str) -> Path:
        return self._path(name)

    def download(self, name: str, path: Path) -> bool:
        raise AssertionError("A file of a folder is used where it is")

    def listed(self, prefix: str) -> Iterator[Stored]:
        for folder, _, files in os.walk(Path(self.root, prefix.rpartition("/")[0]), onerror=_refuse_unreadable):
            for file in files:
                path = Path(folder, file)
                name = path.relative_to(self.root).as_posix()
                if name.startswith(prefix) and name != VERIFIED:
                    with suppress(FileNotFoundError):  # it was removed meanwhile, or is a link to nothing
                        status = path.stat()
                        yield Stored(name, status.st_size, status.st_mtime)

    def leftovers(self) -> Iterator[Stored]:
        return (stored for stored in self.listed("") if TEMPORARY.fullmatch(stored.name.rpartition("/")[2]))

    def remove(self, name: str) -> None:
        self._path(name).unlink(missing_ok=True)

    def discard(self, stored: Stored) -> bool:
        try:
            status = self._path(stored.name).stat()
        except FileNotFoundError:
            return True
        if (status.st_size, status.st_mtime) != (stored.num_bytes, stored.modified):
            return False
        self.remove(stored.name)
        return True

    def _path(self, name: str) -> Path:
        return Path(self.root, name)

    def _room(self) -> AbstractContextManager[None]:
        return room_in(
            Path(self.root), "Free some space, see what evergreen gc would remove, or move the root: EVERGREEN_ROOT."
        )

    @contextmanager
    def _written(self, name: str, payload: bytes) -> Iterator[Path]:
        with _beside(self._path(name)) as temporary:
            with open(temporary, "xb") as file:
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
            yield temporary


class _Bucket:
    """A prefix of an S3 bucket; boto3 is imported, and a connection opened, by the first request."""

    def __init__(self, root: str) -> None:
        self._bucket, _, prefix = root.removeprefix("s3://").strip("/").partition("/")
        if not self._bucket:
            raise InputError(f"An S3 root names a bucket, but got root={root}. Write s3://bucket/prefix.")
        self._prefix = f"{prefix}/" if prefix else ""
        self.root = f"s3://{self._bucket}/{prefix}".rstrip("/")
        self._has_bucket = False

    def write(self, ref: Ref, payload: bytes) -> None:
        with self._answering():
            client().put_object(**self._at(ref.name), Body=payload, Metadata={"blake3": ref.digest})

    def take(self, ref: Ref, path: Path) -> None:
        metadata = {"blake3": ref.digest, "writer": secrets.token_hex(16)}
        key = self._prefix + ref.name
        with self._answering("NoSuchUpload"), transfers() as manager:
            manager.upload(str(path), self._bucket, key, {"Metadata": metadata}).result()
            path.unlink()
            return
        # The client repeats the request that ends an upload when its answer is lost, and then finds no upload.
        found = self._head(ref.name)
        if found is None or found["Metadata"] != metadata:
            raise RunError(
                f"An upload must end as it began, but got error=NoSuchUpload for {self.root}/{ref.name}. "
                "Start the run again; it goes on from what is done."
            )
        path.unlink()

    def create(self, ref: Ref, payload: bytes) -> bool:
        # The client repeats a request whose answer was lost, and then finds its own object: the mark tells.
        mark = secrets.token_hex(16)
        metadata = {"blake3": ref.digest, "writer": mark}
        with self._answering("PreconditionFailed", "ConditionalRequestConflict", "412", "409"):
            client().put_object(**self._at(ref.name), Body=payload, IfNoneMatch="*", Metadata=metadata)
            return True
        found = self._head(ref.name)
        return found is not None and found["Metadata"].get("writer") == mark

    def read(self, name: str, digest: str | None) -> bytes | None:
        def is_whole(payload: bytes) -> bool:
            return digest is None or digest_bytes(payload) == digest

        with self._answering("NoSuchKey"):
            return read_again(lambda: self._body(name), lambda body: bytes(body.read()), is_whole)
        return None

    def stat(self, name: str) -> _Found | None:
        head = self._head(name)
        return None if head is None else _Found(head["ContentLength"], head["Metadata"].get("blake3"))

    def digest(self, name: str) -> str | None:
        with self._answering("NoSuchKey"):
            return read_again(lambda: self._body(name), _digest_body)
        return None

    def local_path(self, ref: Ref, name: str) -> Path:
        root = hashlib.blake2b(self.root.encode(), digest_size=8).hexdigest()
        # The suffix is kept because some readers, such as XGBoost's, choose the format by it.
        return Path(tempfile.gettempdir(), f"evergreen-{os.getuid()}-{root}", ref.digest + Path(name).suffix)

    def download(self, name: str, path: Path) -> bool:
        if self._head(name) is None:
            return False
        with self._answering("404", "NoSuchKey"), transfers() as manager:
            manager.download(self._bucket, self._prefix + name, str(path)).result()
            return True
        return False

    def listed(self, prefix: str) -> Iterator[Stored]:
        for item in self._pages("list_objects_v2", "Contents", prefix):
            if not item["Key"].endswith("/"):
                yield Stored(item["Key"].removeprefix(self._prefix), item["Size"], item["LastModified"].timestamp())

    def leftovers(self) -> Iterator[Stored]:
        for item in self._pages("list_multipart_uploads", "Uploads", ""):
            name = item["Key"].removeprefix(self._prefix)
            parts = self._pages("list_parts", "Parts", "", Key=item["Key"], UploadId=item["UploadId"])
            num_bytes = sum(part["Size"] for part in parts)
            yield Stored(name, num_bytes, item["Initiated"].timestamp(), upload=item["UploadId"])

    def remove(self, name: str) -> None:
        with self._answering():
            client().delete_object(**self._at(name))

    def discard(self, stored: Stored) -> bool:
        if stored.upload:
            with self._answering("NoSuchUpload"):
                client().abort_multipart_upload(**self._at(stored.name), UploadId=stored.upload)
            return True
        head = self._head(stored.name)
        if head is None:
            return True
        # A listing gives fractions of a second that a HEAD does not.
        if (head["ContentLength"], int(head["LastModified"].timestamp())) != (stored.num_bytes, int(stored.modified)):
            return False
        self.remove(stored.name)
        return True

    def _pages(self, request: str, what: str, prefix: str, **more: str) -> list[Any]:
        """Return all items of a listing, however many answers it takes."""
        where = more or {"Prefix": self._prefix + prefix}
        with self._answering(*(("NoSuchUpload",) if more else ())):
            pages = client().get_paginator(request).paginate(Bucket=self._bucket, **where)
            return [item for page in pages for item in page.get(what) or ()]
        return []

    def _body(self, name: str) -> Any:
        return client().get_object(**self._at(name))["Body"]

    def _at(self, name: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + name}

    def _head(self, name: str) -> Any:
        with self._answering("404"):
            return client().head_object(**self._at(name))
        if not self._has_bucket:
            # A missing bucket is an error, not a missing object; one that may not be asked for is there.
            with self._answering("403"):
                client().head_bucket(Bucket=self._bucket)
            self._has_bucket = True
        return None

    def _answering(self, *expected: str) -> AbstractContextManager[None]:
        return answering(self.root, "EVERGREEN_ROOT", *expected)


def _backend(root: str) -> _Backend:
    if root.startswith("s3://"):
        return _Bucket(root)
    if not root or "://" in root:
        raise InputError(
            f"A root is a folder or starts with s3://, but got root={root}. "
            "Name a folder, or a bucket as s3://bucket/prefix."
        )
    return _Folder(root)


def _checked(name: str) -> str:
    parts = name.split("/")
    if "\\" in name or "\0" in name or _is_temporary(name) or any(part in ("", ".", "..") for part in parts):
        raise InputError(
            f'An object\'s name is relative, with "/" between parts that are not empty, "." or "..", and is not '
            f"that of a temporary file, but got name={name!r}. Name an object below the root."
        )
    return name


def _is_temporary(name: str) -> bool:
    file = name.rpartition("/")[2]
    return file.startswith(".") and file.endswith(".tmp")


def _digest_body(body: Any) -> str:
    """Return the blake3 of what an answer of S3 brings."""
    hasher = blake3()
    for chunk in body.iter_chunks(CHUNK_BYTES):
        hasher.update(chunk)
    return hasher.hexdigest()


@contextmanager
def _beside(path: Path, mode: int = 0o777) -> Iterator[Path]:
    """Give a free temporary path beside a file whose folder is made, and remove what is left there."""
    path.parent.mkdir(mode=mode, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _is_verified(path: Path, digest: str) -> bool:
    """Tell whether a file has a hash, from memory if the file has not changed since it was last hashed."""
    identity = _identity(path, digest)
    if identity not in _verified:
        if digest_file(path) != digest:
            return False
        _verified.add(identity)
    return True


def _identity(path: Path, digest: str) -> tuple[str, str, int, int, int]:
    status = path.stat()
    return str(path), digest, status.st_ino, status.st_size, status.st_mtime_ns


def _refuse_unreadable(error: OSError) -> None:
    """Raise what os.walk would pass over, but for a folder that is not there."""
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        raise error


def _sync(path: Path) -> None:
    """Make a file's content, or a folder's entries, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
