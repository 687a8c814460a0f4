"""What earlier runs computed, kept under the hash of all that it depends on.

An entry is JSON that may hold references to stored objects; it counts only if every one of them is still there
with its hash, so that a deleted or damaged object means work, never a wrong answer.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import importlib.util
import inspect
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from blake3 import blake3
from pydantic import BaseModel, TypeAdapter

from infra.storage import MissingError, Ref, Store, digest_bytes

T = TypeVar("T")
REF_FIELDS = frozenset(field.name for field in dataclasses.fields(Ref))


def key_of(*parts: Any) -> str:
    """Return a hash of JSON-like values, dataclasses and pydantic models: equal values have equal keys.

    >>> key_of("a", {"y": 1, "x": 2}) == key_of("a", {"x": 2, "y": 1})
    True
    """
    return blake3(json.dumps([_plain(part) for part in parts], sort_keys=True).encode()).hexdigest(length=16)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # A property called `key` says what an object's content depends on; paths and times do not count.
        own = getattr(value, "key", None)
        return (
            own if isinstance(own, str) else {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        )
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    assert value is None or isinstance(value, str | int | float | bool), f"no part of a cache key: {type(value)}"
    return value


def code_version(modules: Sequence[ModuleType | str], libraries: Sequence[str]) -> str:
    """Return a hash of modules' source and the versions of the libraries that they rely on.

    A module that is named is not imported.
    """
    sources = [source_of(module) if isinstance(module, str) else inspect.getsource(module) for module in modules]
    return key_of(sources, [f"{name}=={importlib.metadata.version(name)}" for name in libraries])


@functools.cache
def source_of(module: str) -> str:
    """Return the source of a module that may not be loaded."""
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None, f"there is a module {module}"
    return Path(spec.origin).read_text()


class Cache:
    """Entries of one kind in a store."""

    def __init__(self, store: Store, kind: str) -> None:
        """Name the kind: the folder of the entries."""
        self.store = store
        self.kind = kind

    def name(self, key: str) -> str:
        """Return the name of an entry's object."""
        return f"{self.kind}/{key}.json"

    def find(self, key: str, adapter: TypeAdapter[T]) -> T | None:
        """Return an entry, or None if it is absent, damaged, or refers to something that is."""
        body = self._body(key)
        if body is None or not all(self.store.is_intact(ref) for ref in _refs_in(body)):
            return None
        return adapter.validate_json(body)

    def get(self, key: str, adapter: TypeAdapter[T]) -> T:
        """Return an entry that was kept a moment ago.

        Raises:
            MissingError: it is absent or damaged.
        """
        found = self.find(key, adapter)
        if found is None:
            raise MissingError(self.name(key), self.store.uri(self.name(key)))
        return found

    def has(self, key: str) -> bool:
        """Return whether there is an intact entry, without reading it as what it is."""
        return self._body(key) is not None

    def keep(self, key: str, value: T, adapter: TypeAdapter[T]) -> None:
        """Write an entry, after the objects that it refers to."""
        body = adapter.dump_json(value)
        self.store.put(self.name(key), digest_bytes(body).encode() + b"\n" + body)

    def why_absent(self, key: str) -> str | None:
        """Say why an entry does not count; None if it does."""
        body = self._body(key)
        if body is None:
            return (
                "nothing is stored for these inputs"
                if not self.store.exists(self.name(key))
                else "its entry is damaged"
            )
        broken = next((ref for ref in _refs_in(body) if not self.store.is_intact(ref)), None)
        return f"{broken.name} is gone or damaged" if broken else None

    def _body(self, key: str) -> bytes | None:
        try:
            digest, _, body = self.store.get(self.name(key)).partition(b"\n")
        except MissingError:
            return None
        return body if digest_bytes(body).encode() == digest else None


def _refs_in(body: bytes) -> Iterator[Ref]:
    # Profiles refer to nothing, and are the largest entries: what can't hold a reference is not searched for one.
    return _refs(json.loads(body)) if b'"digest"' in body else iter(())


def _refs(value: Any) -> Iterator[Ref]:
    if isinstance(value, dict):
        if value.keys() == REF_FIELDS:
            yield Ref(**value)
        else:
            for item in value.values():
                yield from _refs(item)
    elif isinstance(value, list):
        for item in value:
            yield from _refs(item)
