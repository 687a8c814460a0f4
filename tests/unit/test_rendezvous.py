"""Where the members of a gang learn the first one's address."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from infra.errors import RunError
from infra.member import Member, PeerLostError, PortTakenError, StoppedError
from infra.processes import free_port
from infra.rendezvous import Rendezvous, announce, announced


@pytest.fixture
def rendezvous() -> Iterator[Rendezvous]:
    """Open one on this machine."""
    opened = Rendezvous(2, "127.0.0.1", 0)
    yield opened
    opened.close()


def test_who_asks_early_waits_for_the_address(rendezvous: Rendezvous) -> None:
    """A member that comes before the first one has told gets the address as soon as it does."""
    found: list[str] = []
    asking = [threading.Thread(target=lambda: found.append(announced(rendezvous.told, seconds=10.0))) for _ in range(2)]
    for thread in asking:
        thread.start()
    announce(rendezvous.told, "//10.0.0.7:41234")
    for thread in asking:
        thread.join()

    assert ["//10.0.0.7:41234"] * 2 == found


def test_who_asks_late_gets_the_address_at_once(rendezvous: Rendezvous) -> None:
    """What was told stays."""
    announce(rendezvous.told, "//10.0.0.7:41234")

    assert "//10.0.0.7:41234" == announced(rendezvous.told, seconds=0.0)


def test_a_first_member_that_does_not_tell_is_named(rendezvous: Rendezvous) -> None:
    """Waiting has an end, after which the member counts as lost."""
    with pytest.raises(
        PeerLostError,
        match=r"^The first member of a gang tells where it listens, but got nothing for seconds=0\. "
        r"See its worker's log\.$",
    ):
        announced(rendezvous.told, seconds=0.05)


def test_who_waits_can_be_stopped(rendezvous: Rendezvous) -> None:
    """A member that nobody wants any more does not wait for one that never comes."""
    member = Member(1, 2, 1, rendezvous.told)
    member.stop()
    with pytest.raises(StoppedError, match="got a stop for rank=1"):
        announced(rendezvous.told, 30.0, member.check)


def test_a_rendezvous_that_is_gone_is_named() -> None:
    """Where nothing listens the message names the address and what to open."""
    port = free_port()
    with pytest.raises(
        PeerLostError,
        match=rf"^The members of a gang meet beside the scheduler, but got no answer from 127\.0\.0\.1:{port} \(.*\)\. "
        r"Let the workers reach that machine at this port, or set cluster\.training_port\.$",
    ):
        announce({"rendezvous": ["127.0.0.1", port]}, "//10.0.0.7:41234")


def test_an_answer_that_is_none_is_named() -> None:
    """Something else that listens at the address, and says nothing, is no rendezvous."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()

        def hang_up() -> None:
            connection, _ = other.accept()
            connection.recv(1024)
            connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises(RunError, match=r"^A rendezvous answers, but got nothing\. Start the run again\.$"):
            announced({"rendezvous": list(other.getsockname())}, seconds=5.0)
        thread.join()


def test_who_waits_is_let_go_when_it_closes() -> None:
    """A gang that is given up leaves nobody waiting."""
    opened = Rendezvous(2, "127.0.0.1", 0)
    errors: list[Exception] = []

    def ask() -> None:
        try:
            announced(opened.told, seconds=30.0)
        except PeerLostError as error:
            errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.1)
    opened.close()
    thread.join(timeout=5)

    assert not thread.is_alive()
    assert 1 == len(errors)


def test_a_port_in_use_is_named() -> None:
    """A port of one's own that is taken is named with the key that sets it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            PortTakenError,
            match=rf"^The members of a gang meet at a port that is free, but got cluster\.training_port={port} on "
            r"127\.0\.0\.1, where nothing can listen \(.*\)\. Set another one, or leave it out\.$",
        ):
            Rendezvous(2, "127.0.0.1", port)
