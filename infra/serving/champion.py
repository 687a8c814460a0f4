"""The champion in memory: one immutable reference, exchanged when another version is released."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path

from polars.exceptions import PolarsError

from infra.bundle.model import Bundle
from infra.errors import InputError, RunError
from infra.serving.target import Target, load_target, read_target
from infra.storage import DamagedError, MissingError, Store

log = logging.getLogger(__name__)
UNFIT = (DamagedError, MissingError, ValueError, TypeError, LookupError, PolarsError)
"""What says that a bundle is bad: it will not get better, and is not tried again."""
UNREACHABLE = (RunError, OSError)
"""What says that the store did not answer: the next look may succeed."""


@dataclass(frozen=True)
class Loaded:
    """A version that has given its golden predictions. A request holds on to the one that it began with."""

    target: Target
    bundle: Bundle


class Champion:
    """The version that answers. One thread calls `look`; any number of others read `current`."""

    def __init__(self, store: Store, model: str, current: Loaded | None = None) -> None:
        """Hold a version that is loaded already, or none."""
        self.model = model
        self.current = current
        self.refused: str | None = None
        """The released version that failed its check, as `<version>: <reason>`; None once another is released."""
        self._store = store
        self._refused_target: Target | None = None
        self._complaint = ""

    def load(self) -> Loaded:
        """Load the released version, for a process that has none yet.

        Raises:
            InputError: nothing is released.
            RunError: what is released cannot answer.
        """
        try:
            target = read_target(self._store, self.model)
            if target is not None:
                self.current = self._loaded(target)
                return self.current
        except UNFIT as error:
            raise RunError(
                f"A server starts with a version that passes its check, but got model={self.model}: {error} "
                "Release another version with evergreen retrain or evergreen rollback."
            ) from error
        raise InputError(
            f"A server needs a released version, but got none of model={self.model} in root={self._store.root}. "
            "Run evergreen retrain first."
        )

    def look(self) -> None:
        """Load the released version if it is another one, beside the present one, and then exchange them."""
        try:
            target = read_target(self._store, self.model)
        except (*UNREACHABLE, ValueError) as error:
            self._complain(f"The released version cannot be read, and the present one goes on answering: {error}")
            return
        if target is None or target == self._refused_target:
            return
        if self.current is not None and target == self.current.target:
            self.refused = self._refused_target = None
            return
        try:
            self.current = self._loaded(target)
        except UNFIT as error:
            reason = " ".join(str(error).split())
            self.refused, self._refused_target = f"{target.version}: {reason}", target
            log.error("Version %s is refused, and the one before goes on answering: %s", target.version, reason)
        except UNREACHABLE as error:
            self._complain(f"Version {target.version} cannot be loaded yet: {error}")
        else:
            self.refused = self._refused_target = None
            self._complaint = ""
            log.info("Version %s of %s answers from now on", target.version, self.model)

    def _loaded(self, target: Target) -> Loaded:
        with tempfile.TemporaryDirectory(prefix="evergreen-serving-") as folder:
            bundle = load_target(self._store, target, Path(folder))
        return Loaded(target, bundle)

    def _complain(self, complaint: str) -> None:
        """Log what goes wrong at every look only once."""
        if complaint != self._complaint:
            log.warning(complaint)
            self._complaint = complaint
