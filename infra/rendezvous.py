"""Where the members of a gang learn the address of the first one; it listens beside Dask's scheduler.

    gang: OpenMeeting = Rendezvous        # opens it before the members start
    announce(told, "10.0.0.7:41234")      # the first member, once it listens there itself
    address = announced(told, seconds=60)  # all others

One line of JSON goes each way. Only an address is handed on: what the members tell one another goes from one to the
other, by whatever they use.
"""

from __future__ import annotations

import json
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from typing import Any, ClassVar

from infra.errors import RunError
from infra.member import PeerLostError, PortTakenError

CONNECT_SECONDS = 30.0
CHECK_SECONDS = 0.5
"""Between two looks of who waits whether it is still wanted."""


class _Handler(socketserver.StreamRequestHandler):
    """Takes an address, or waits for it and hands it out."""

    server: _Server

    def handle(self) -> None:
        """Answer one request."""
        asked = json.loads(self.rfile.readline())
        board = self.server
        if "address" in asked:
            board.address = asked["address"]
            board.is_known.set()
        board.is_known.wait(asked.get("seconds", 0))
        self.wfile.write(json.dumps({"address": board.address}).encode() + b"\n")


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address: ClassVar[bool] = True  # type: ignore[misc]
    daemon_threads = True
    address: str | None = None

    def __init__(self, host: str, port: int) -> None:
        self.is_known = threading.Event()
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)


class Rendezvous:
    """A meeting of members that know nothing of one another yet; see `infra.gang_meeting.Meeting`."""

    def __init__(self, num_members: int, host: str, port: int) -> None:
        """Listen.

        Raises:
            PortTakenError: something listens there.
        """
        del num_members  # who comes is not counted here
        try:
            self._server = _Server(host, port)
        except OSError as error:
            raise PortTakenError(
                f"The members of a gang meet at a port that is free, but got cluster.training_port={port} on {host}, "
                f"where nothing can listen ({error}). Set another one, or leave it out."
            ) from error
        threading.Thread(target=self._server.serve_forever, name="rendezvous", daemon=True).start()

    @property
    def told(self) -> dict[str, Any]:
        """Return what members must know to ask."""
        host, port = self._server.server_address[:2]
        return {"rendezvous": [host, port]}

    def close(self) -> None:
        """Stop listening."""
        self._server.is_known.set()
        self._server.shutdown()
        self._server.server_close()


def announce(told: dict[str, Any], address: str) -> None:
    """Tell the others where the first member listens."""
    _ask(told, {"address": address}, CONNECT_SECONDS)


def announced(told: dict[str, Any], seconds: float, check: Callable[[], None] = lambda: None) -> str:
    """Return where the first member listens, once it does; who waits can still be stopped, by what `check` raises.

    Raises:
        PeerLostError: it has not told, or the rendezvous is gone.
    """
    deadline = time.monotonic() + seconds
    while True:
        check()
        wait = max(0.0, min(CHECK_SECONDS, deadline - time.monotonic()))
        address = _ask(told, {"seconds": wait}, wait + CONNECT_SECONDS)
        if address is not None:
            return address
        if time.monotonic() >= deadline:
            raise PeerLostError(
                f"The first member of a gang tells where it listens, but got nothing for seconds={seconds:.0f}. "
                "See its worker's log."
            )


def _ask(told: dict[str, Any], request: dict[str, Any], seconds: float) -> str | None:
    host, port = told["rendezvous"]
    try:
        with socket.create_connection((host, port), timeout=CONNECT_SECONDS) as connection:
            connection.settimeout(seconds)
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as answers:
                line = answers.readline()
    except OSError as error:
        raise PeerLostError(
            f"The members of a gang meet beside the scheduler, but got no answer from {host}:{port} ({error}). "
            "Let the workers reach that machine at this port, or set cluster.training_port."
        ) from error
    if not line:
        raise RunError("A rendezvous answers, but got nothing. Start the run again.")
    found: str | None = json.loads(line)["address"]
    return found
