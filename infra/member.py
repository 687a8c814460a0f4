"""What a member of a gang is to the function that it runs; any process can make one, with or without a cluster."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from infra.errors import RunError
from infra.progress import report_progress

SAVED = "saved"
"""Kind of the message that a checkpoint was written."""


class PeerLostError(RunError):
    """A collective operation failed because another member is gone, or can't be reached."""


class PortTakenError(RunError):
    """The port on which the members of a gang were to meet is in use."""


class StoppedError(RunError):
    """The gang no longer wants its members to go on."""


@dataclass
class Member:
    """One of the processes that run a collective job.

    A function that a gang runs takes it first. It calls `check` now and then, where it can stop, and raises a
    `PeerLostError` where its collective fails because of another member.
    """

    rank: int
    num_members: int
    threads: int
    """Of its worker."""
    meeting: dict[str, Any] = field(default_factory=dict)
    """By what it finds the others; see `infra.gang_meeting`."""
    scratch: str = ""
    """A folder on its worker's disk for what does not fit into memory."""
    host: str = ""
    """The address at which the others reach it."""
    _stop: threading.Event = field(default_factory=threading.Event, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to one process."""
        return {name: value for name, value in self.__dict__.items() if name != "_stop"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begin as one that goes on."""
        self.__dict__.update(state, _stop=threading.Event())

    @classmethod
    def alone(cls, threads: int = 1, scratch: str = "") -> Member:
        """Return the only member of a gang that needs no cluster."""
        return cls(0, 1, threads, scratch=scratch)

    @property
    def is_first(self) -> bool:
        """Tell whether this is the member that speaks for all."""
        return self.rank == 0

    def stop(self) -> None:
        """Ask the member to end at its next check."""
        self._stop.set()

    def check(self) -> None:
        """Raise a StoppedError if the member is to end."""
        if self._stop.is_set():
            raise StoppedError(
                f"A member goes on while its gang wants it, but got a stop for rank={self.rank}. Start the run again."
            )

    def saved(self) -> None:
        """Tell that a checkpoint was written: what fails after it has not failed at the same place."""
        report_progress({SAVED: self.rank})
