"""Where the members of a gang find one another: something that listens beside Dask's scheduler.

It outlives every member, so that those who lose one can still be told, and all workers can reach that machine.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from distributed import Client, Scheduler


class Meeting(Protocol):
    """What listens for the members of one gang."""

    @property
    def told(self) -> dict[str, Any]:
        """What each member must know to find it, as plain data."""

    def close(self) -> None:
        """Stop listening; may take as long as it needs, on a thread of its own."""


OpenMeeting = Callable[[int, str, int], Meeting]
"""Opens a meeting for so many members, on a host, at a port (0: any); raises a PortTakenError."""


@dataclass
class _Held:
    meeting: Meeting
    client: str


_held: dict[str, _Held] = {}
"""The meetings of this scheduler by gang."""


def open_meeting(
    client: Client, gang: str, function: OpenMeeting, num_members: int, port: int | None
) -> dict[str, Any]:
    """Open a meeting beside the scheduler, and return what the members must know."""
    told: dict[str, Any] = client.run_on_scheduler(_open, gang, function, num_members, port or 0, client.id)
    return told


def close_meeting(client: Client, gang: str) -> None:
    """Close a meeting; a scheduler that is gone has none."""
    if client.status == "running":
        with suppress(OSError):
            client.run_on_scheduler(_close, gang)


def _open(
    gang: str, function: OpenMeeting, num_members: int, port: int, client: str, dask_scheduler: Scheduler
) -> dict[str, Any]:
    for name in [name for name, held in _held.items() if held.client not in dask_scheduler.clients]:
        _close(name)  # who opened it was killed
    host = str(urlsplit(dask_scheduler.address).hostname)
    _held[gang] = _Held(function(num_members, host, port), client)
    return _held[gang].meeting.told


def _close(gang: str) -> None:
    if held := _held.pop(gang, None):
        threading.Thread(target=held.meeting.close, name=f"close-{gang}", daemon=True).start()
