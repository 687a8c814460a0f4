"""The journal of an Optuna study as objects of the store, so that a search goes on after its process has died.

Optuna keeps a study in memory and writes what happens to it as a list of entries; read again, they give the same
study. An object holds the entries that belong together, under `searches/<key>/<number>.json`, and is created under a
free name: of two processes that write one journal, the second finds the name taken and ends with an error. So nothing
but memory is read after the first look, on files and on S3 alike.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from optuna.storages.journal import BaseJournalBackend

from infra.errors import RunError
from infra.storage import Store

FOLDER = "searches"


class StoreJournal(BaseJournalBackend):
    """A journal of one study, written by one process.

    Entries are written at once, or together at the end of a block:

        with journal.together():
            study.tell(trial, loss)
    """

    def __init__(self, store: Store, key: str) -> None:
        """Read what is there; what has lost a part, as after a sweep of old objects, is removed and begun anew."""
        self._store, self._key = store, key
        self._entries: list[dict[str, Any]] = []
        self._pending: list[dict[str, Any]] = []
        self._depth = 0
        names = store.list(f"{FOLDER}/{key}/")
        if names != [self._name(number) for number in range(len(names))]:
            for name in names:
                store.delete(name)
            names = []
        for name in names:
            self._entries += json.loads(store.get(name))
        self._num_objects = len(names)

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        """Return the entries from a number on."""
        return self._entries[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append entries.

        Raises:
            RunError: another process has written to the journal.
        """
        # What Optuna reads back must be what a later process will read: numbers for enumerations, lists for tuples.
        plain = json.loads(json.dumps(logs))
        self._entries += plain
        self._pending += plain
        if not self._depth:
            self._write()

    @contextmanager
    def together(self, *, is_written: bool = True) -> Iterator[None]:
        """Write the entries of this block as one object, when it ends without an error.

        Those of a block that is not written come with the next ones: who only looks at a study creates it in memory.
        """
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
        if is_written and not self._depth:
            self._write()

    def _write(self) -> None:
        if not self._pending:
            return
        name = self._name(self._num_objects)
        try:
            self._store.create(name, json.dumps(self._pending).encode())
        except FileExistsError as error:
            raise RunError(
                f"A search is continued by one run at a time, but got name={name} written by another one. "
                "Wait until that run has ended, and start this one again: it goes on from there."
            ) from error
        self._pending = []
        self._num_objects += 1

    def _name(self, number: int) -> str:
        return f"{FOLDER}/{self._key}/{number:06d}.json"
