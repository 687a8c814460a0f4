"""The process group of a gang's members: torch.distributed on the cluster's own addresses."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from urllib.parse import urlsplit

import psutil
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from infra.errors import RunError
from infra.member import Member, PeerLostError
from infra.rendezvous import announce, announced

MEET_SECONDS = 120.0
CONNECT_SECONDS = 15
"""Who has told its address listens there, or is gone."""
POLL_SECONDS = 0.02
COLLECTIVE_SECONDS = 3600
"""Longer than the slowest member reads its shards; who hangs is found by its heartbeat."""
COLLECTIVE_WORDS = ("connection", "gloo", "nccl", "socket", "peer", "process group", "processgroup", "rendezvous")
"""What is in the library's message when another member can't be reached."""


def interface_of(host: str) -> str | None:
    """Return the name of the network interface that has an address; None if none of this machine has it.

    >>> interface_of("127.0.0.1")
    'lo...'
    """
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address.partition("%")[0] == host for address in addresses):
            return name
    return None


@contextmanager
def process_group(member: Member, device: str) -> Iterator[None]:
    """Join the members' process group; one member needs none.

    The first member keeps the store by which the others find it, at the address of its worker.

    Raises:
        PeerLostError: another member is gone.
    """
    if member.num_members == 1:
        yield
        return
    if name := interface_of(member.host):
        os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = name
    try:
        store = _store(member)
        dist.init_process_group(
            "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl",
            store=store,
            rank=member.rank,
            world_size=member.num_members,
            timeout=timedelta(seconds=COLLECTIVE_SECONDS),
        )
        yield
    except RunError:
        raise
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or is_of_peers(str(error)):
            raise PeerLostError(
                f"A collective needs all of its members, but got an error on rank={member.rank}: "
                f"{str(error).splitlines()[0]}. Look at what the lost member's worker has written."
            ) from error
        raise
    finally:
        if dist.is_initialized():
            with suppress(RuntimeError):
                dist.destroy_process_group()


def _store(member: Member) -> TCPStore:
    """Return the store by which members find one another, once all have come to it.

    What torch does next can't be stopped, and waits for all; so a member that is lost before is found here.
    """
    wait = timedelta(seconds=CONNECT_SECONDS)
    if member.is_first:
        host = member.host or "127.0.0.1"
        store = TCPStore(host, 0, member.num_members, is_master=True, wait_for_workers=False, timeout=wait)
        announce(member.meeting, f"//[{host}]:{store.port}" if ":" in host else f"//{host}:{store.port}")
    else:
        found = urlsplit(announced(member.meeting, MEET_SECONDS, member.check))
        assert found.hostname and found.port, "the first member tells both"
        store = TCPStore(found.hostname, found.port, member.num_members, is_master=False, timeout=wait)
    store.set(f"here/{member.rank}", "1")
    deadline = time.monotonic() + MEET_SECONDS
    while not store.check([f"here/{rank}" for rank in range(member.num_members)]):
        member.check()
        if time.monotonic() > deadline:
            raise PeerLostError(
                f"All members of a gang come together, but got fewer than {member.num_members} for "
                f"seconds={MEET_SECONDS:.0f}. See the workers' logs."
            )
        time.sleep(POLL_SECONDS)
    store.set_timeout(timedelta(seconds=MEET_SECONDS))
    return store


def is_of_peers(message: str) -> bool:
    """Return whether an error's message says that another member can't be reached.

    >>> is_of_peers("[../gloo/transport/tcp/pair.cc:547] Connection closed by peer"), is_of_peers("out of memory")
    (True, False)
    """
    return any(word in message.lower() for word in COLLECTIVE_WORDS)


def summed(member: Member, *values: float) -> list[float]:
    """Return sums of numbers over all members, in double precision."""
    if member.num_members == 1:
        return list(values)
    total = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(total)
    return [float(value) for value in total]


def agreed(member: Member, is_so: bool) -> bool:
    """Return what the first member has decided, in all."""
    if member.num_members == 1:
        return is_so
    found = torch.tensor([int(is_so)])
    dist.broadcast(found, 0)
    return bool(found[0])
