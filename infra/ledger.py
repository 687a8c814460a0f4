"""The ledger: an append-only record of one model's verdicts, promotions and rollbacks.

Each row is one object, `ledger/<model>/<sequence>.json`, that is created only if it is absent. The next sequence
number is therefore the fence: of two writers that saw the same champion one gets the number, the other looks again.
Each row carries the hash of the row before it, so that a changed, removed or inserted row is found. The chain
cannot show that rows are missing at its end, nor that the last row was changed.
"""

from __future__ import annotations

import getpass
import json
import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from infra.errors import InputError, RunError
from infra.storage import DamagedError, MissingError, Store, digest_bytes

Action = Literal["verdict", "promote", "rollback"]
MAX_ATTEMPTS = 200
READERS = 16
RESTORE = "Restore it from a backup: the champion is not changed while its ledger is damaged."


class StaleChampionError(RunError):
    """Say that the champion is no longer the one that a decision was made against."""

    def __init__(self, expected: str | None, actual: str | None) -> None:
        """Keep both versions; None is "no champion"."""
        super().__init__(expected, actual)
        self.expected = expected
        self.actual = actual

    def __str__(self) -> str:
        """Return the message."""
        return (
            f"The champion must still be the one that was decided against, expected={self.expected or 'none'}, "
            f"but got champion={self.actual or 'none'}. Decide again against the new champion."
        )


@dataclass(frozen=True)
class Row:
    """One entry of a ledger."""

    sequence: int
    """1 for the first row, without gaps."""
    at: str
    """UTC, ISO 8601, in seconds."""
    action: Action
    version: str | None
    """What was judged or put in production; None: a verdict on a model that was not registered."""
    previous: str | None
    """The champion before this row."""
    run_id: str
    reason: str
    details: dict[str, Any]
    author: str
    """Name of the user whose process wrote the row."""
    parent: str | None
    """blake3 of the previous row's bytes; None in the first row."""


class Ledger:
    """The record of one model; cheap to make, and picklable."""

    def __init__(self, store: Store, model: str) -> None:
        """Name the model; nothing is read yet."""
        if not model or "/" in model:
            raise InputError(f'A model\'s name is one word without "/", but got model={model!r}. Rename the model.')
        self._store = store
        self._folder = f"ledger/{model}/"

    def rows(self) -> list[Row]:
        """Return all rows in order, with their chain checked; DamagedError names the first row that breaks it."""
        return self._read()[0]

    def champion(self) -> str | None:
        """Return the version in production, None if nothing was promoted."""
        return _champion(self.rows())

    def previous(self) -> str | None:
        """Return the version that was champion before the current one: where a rollback goes.

        After promotions of 1 and 2 and a rollback to 1 it is 2.
        """
        versions = _champions(self.rows())
        return next((version for version in reversed(versions) if version != versions[-1]), None)

    def champion_at(self, when: datetime) -> str | None:
        """Return the version that was in production at a moment."""
        if when.tzinfo is None:
            raise ValueError(f"A moment needs a time zone, but got when={when.isoformat()}. Pass one with tzinfo.")
        return _champion([row for row in self.rows() if datetime.fromisoformat(row.at) <= when])

    def append(
        self,
        action: Action,
        *,
        version: str | None,
        expected: str | None,
        run_id: str,
        reason: str,
        details: Mapping[str, Any],
    ) -> Row:
        """Write the next row and return it.

        A promotion or rollback is written only while the champion is `expected`, else StaleChampionError; a verdict
        changes no champion and is always written. Of several writers that expect the same champion one wins.
        """
        if version is None and action != "verdict":
            raise ValueError(f"A {action} needs a version, but got version=None. Register the model first.")
        for _ in range(MAX_ATTEMPTS):
            rows, parent = self._read()
            champion = _champion(rows)
            if action != "verdict" and champion != expected:
                raise StaleChampionError(expected, champion)
            row = Row(
                sequence=len(rows) + 1,
                at=datetime.now(UTC).isoformat(timespec="seconds"),
                action=action,
                version=version,
                previous=champion,
                run_id=run_id,
                reason=reason,
                details=dict(details),
                author=_author(),
                parent=parent,
            )
            try:
                self._store.create(self._name(row.sequence), _payload(row))
            except FileExistsError:
                continue
            return row
        raise RunError(
            f"A ledger row must get its number within {MAX_ATTEMPTS} attempts, but got "
            f"name={self._name(len(rows) + 1)}, which is taken and cannot be read. "
            f"Look at {self._store.uri(self._folder.rstrip('/'))}."
        )

    def _read(self) -> tuple[list[Row], str | None]:
        """Return the rows and the hash of the last one."""
        # A folder listed while rows are added may show a row without the one before: the highest number counts.
        pattern = re.compile(re.escape(self._folder) + r"(\d{8})\.json")
        found = [int(match[1]) for name in self._store.list(self._folder) if (match := pattern.fullmatch(name))]
        with ThreadPoolExecutor(READERS) as readers:
            payloads = list(readers.map(self._payload, range(1, max(found, default=0) + 1)))
        rows: list[Row] = []
        parent: str | None = None
        for sequence, payload in enumerate(payloads, start=1):
            rows.append(self._checked(sequence, payload, parent))
            parent = digest_bytes(payload)
        return rows, parent

    def _payload(self, sequence: int) -> bytes:
        try:
            return self._store.get(self._name(sequence))
        except MissingError as error:
            raise self._damaged(sequence, "no row") from error

    def _checked(self, sequence: int, payload: bytes, parent: str | None) -> Row:
        try:
            row = _ROW.validate_json(payload)
        except ValidationError as error:
            raise self._damaged(sequence, f"{error.error_count()} unreadable fields") from error
        if row.sequence != sequence:
            raise self._damaged(sequence, f"sequence={row.sequence}")
        if row.parent != parent:
            raise self._damaged(sequence, f"parent={row.parent} instead of {parent}")
        return row

    def _damaged(self, sequence: int, found: str) -> DamagedError:
        name = self._name(sequence)
        return DamagedError(name, self._store.uri(name), found, RESTORE)

    def _name(self, sequence: int) -> str:
        return f"{self._folder}{sequence:08d}.json"


_ROW = TypeAdapter(Row)


def _champions(rows: list[Row]) -> list[str]:
    """Return the versions put in production, in order."""
    return [row.version for row in rows if row.action != "verdict" and row.version is not None]


def _champion(rows: list[Row]) -> str | None:
    versions = _champions(rows)
    return versions[-1] if versions else None


def _payload(row: Row) -> bytes:
    try:
        return json.dumps(asdict(row), indent=1, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"A row's details must be JSON, but got details={row.details} ({error}). "
            "Pass plain numbers that are finite, texts, lists and dictionaries."
        ) from error


def _author() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        return f"uid {os.getuid()}"
