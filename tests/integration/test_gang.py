"""Gangs of real worker processes: members that are killed, that hang, that fail, and jobs beside one another."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from distributed import Client

from infra import gang, scaling
from infra.clusters import ClusterConfig, client_of, open_cluster
from infra.errors import InputError, RunError
from infra.gang import GangShape, run_gang
from infra.member import Member, PeerLostError, PortTakenError
from infra.processes import free_port, start_supervised
from infra.progress import report_progress

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Open a cluster of two workers."""
    config = ClusterConfig(workers=2, threads_per_worker=1, memory_limit="600MB")
    with open_cluster(config, tmp_path_factory.mktemp("scratch")) as opened:
        yield client_of(opened)


@pytest.fixture
def client(pair: Client) -> Client:
    """Have both workers, those that the test before has killed as well."""
    pair.wait_for_workers(2, timeout=60)
    return pair


class Table:
    """A meeting that only says what it was asked for."""

    def __init__(self, num_members: int, host: str, port: int) -> None:
        self.told = {"num_members": num_members, "host": host, "port": port, "pid": os.getpid()}

    def close(self) -> None:
        """Have nothing to do."""


class TakenTable:
    """A meeting for which there is no room."""

    def __init__(self, num_members: int, host: str, port: int) -> None:
        raise PortTakenError(f"A port is free, but got port={port}. Choose another.")


def arguments(*args: object) -> Callable[[int, int], tuple[object, ...]]:
    """Return the same arguments for every attempt, after the attempt's number."""
    return lambda attempt, _members: (attempt, *args)


# Members, and what the caller hears


def introduce(member: Member, attempt: int) -> tuple[int, int, int, dict[str, Any], bool, int]:
    """Tell who this member is."""
    report_progress({"name": f"member {member.rank}"})
    return member.rank, member.num_members, attempt, member.meeting, Path(member.scratch).is_dir(), os.getpid()


def test_members_run_on_workers_of_their_own(client: Client) -> None:
    """Two members have two workers and one meeting, their answers come by rank, and each is heard."""
    heard: list[dict[str, Any]] = []
    found = run_gang(client, GangShape(2, meeting=Table), introduce, arguments(), on_event=heard.append)
    workers = set(client.run(os.getpid).values())

    assert [(0, 2, 0), (1, 2, 0)] == [answer[:3] for answer in found]
    assert workers == {answer[5] for answer in found}
    assert {"num_members": 2, "host": "127.0.0.1", "port": 0, "pid": os.getpid()} == found[0][3] == found[1][3]
    assert all(answer[4] for answer in found)
    assert [{"rank": 0, "name": "member 0"}, {"rank": 1, "name": "member 1"}] == sorted(heard, key=lambda e: e["rank"])


def test_one_member_needs_no_meeting(client: Client) -> None:
    """A gang of one opens nothing."""
    ((_, _, _, meeting, _, _),) = run_gang(client, GangShape(1, meeting=TakenTable), introduce, arguments())

    assert {} == meeting


def test_a_member_in_a_process_of_its_own(client: Client) -> None:
    """An isolated member is a child of its worker; it is heard all the same, and is gone afterwards."""
    heard: list[dict[str, Any]] = []
    found = run_gang(client, GangShape(2, is_isolated=True), introduce, arguments(), on_event=heard.append)
    workers = set(client.run(os.getpid).values())

    assert [0, 1] == [answer[0] for answer in found]
    assert not workers & {answer[5] for answer in found}
    assert {"member 0", "member 1"} == {event["name"] for event in heard}
    assert not any(psutil.pid_exists(answer[5]) for answer in found)


# Errors


def fail(member: Member, _attempt: int, culprit: int, kind: str) -> None:
    """Fail as one member, and as the other one lose it."""
    if member.rank != culprit:
        time.sleep(0.2)
        raise PeerLostError("A member is there, but got none. Look.")
    raise {"input": InputError, "run": RunError, "own": ZeroDivisionError}[kind]("This is why.")


@pytest.mark.parametrize("is_isolated", [False, True])
@pytest.mark.parametrize(("kind", "error"), [("input", InputError), ("run", RunError), ("own", ZeroDivisionError)])
def test_a_members_own_error_is_raised(client: Client, kind: str, error: type[Exception], is_isolated: bool) -> None:
    """The error of the member that failed is raised as it is, not that of who lost it; nothing is repeated."""
    attempts: list[int] = []

    def args_of(attempt: int, _members: int) -> tuple[object, ...]:
        attempts.append(attempt)
        return attempt, 1, kind

    with pytest.raises(error, match="^This is why.$"):
        run_gang(client, GangShape(2, is_isolated=is_isolated), fail, args_of)
    assert [0] == attempts


def test_a_port_that_is_taken_is_named(client: Client) -> None:
    """A port that was asked for and is in use ends the run with one message; it is not tried again."""
    with pytest.raises(PortTakenError, match=r"^A port is free, but got port=4711\."):
        run_gang(client, GangShape(2, meeting=TakenTable, port=4711), introduce, arguments())


def test_too_few_workers_are_named(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gang that can't come together says how many there are, how many it needs, and what to set."""
    monkeypatch.setattr(gang, "REJOIN_SECONDS", 0.5)
    with pytest.raises(
        RunError,
        match=r"^A gang needs a worker for each of its members, but got workers=2 for members=3 after \d s\. "
        r"Raise cluster\.workers, or lower train\.plan\.workers\.$",
    ):
        run_gang(client, GangShape(3, least=3), introduce, arguments())


def test_a_gang_for_gpus_needs_workers_with_gpus(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers without the resource are no substitute for those that have it."""
    monkeypatch.setattr(gang, "REJOIN_SECONDS", 0.5)
    with pytest.raises(
        RunError, match=r"^A gang needs a worker for each of its members with the resource GPU, but got workers=0"
    ):
        run_gang(client, GangShape(1, resource="GPU"), introduce, arguments())


def fill(_member: Member, _attempt: int) -> None:
    """Take more memory than a worker may have."""
    kept = []
    while psutil.Process().memory_info().rss < 2e9:
        kept.append(bytearray(os.urandom(1 << 20) * 8))
        time.sleep(0.002)


def test_a_member_without_memory_is_named(client: Client) -> None:
    """A worker that Dask ends for its memory would end again: that is an error with the limit and what to set."""
    with pytest.raises(
        RunError,
        match=r"^A worker must have the memory that its task needs, but got memory_limit=572\.2 MiB, passed by "
        r"rank=0 of a training on worker=tcp://\S+\. Raise cluster\.memory_limit",
    ):
        run_gang(client, GangShape(1), fill, arguments())


# Losses


def work(member: Member, attempt: int, folder: str, num_lost: int, has_saved: bool = False) -> tuple[int, int]:
    """Wait to be disturbed in the first attempts, then answer."""
    Path(folder, f"{attempt}-{member.rank}").write_text(str(os.getpid()))
    while attempt < num_lost:
        member.check()
        if has_saved and member.is_first:
            member.saved()
        time.sleep(0.05)
    return attempt, member.num_members


def disturb(folder: Path, number: int, rank: int) -> None:
    """Send a signal to a member of the first attempt, once it works."""
    path = folder / f"0-{rank}"
    deadline = time.monotonic() + 60
    while not (path.exists() and path.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    os.kill(int(path.read_text()), number)


def disturbed(
    client: Client, shape: GangShape, folder: Path, number: int, *, has_saved: bool = False
) -> tuple[list[Any], list[str]]:
    """Run a gang whose second member gets a signal; return the answers and the notes."""
    notes: list[str] = []
    other = threading.Thread(target=disturb, args=(folder, number, shape.members - 1))
    other.start()
    try:
        return run_gang(client, shape, work, arguments(str(folder), 1, has_saved), on_note=notes.append), notes
    finally:
        other.join()


def test_a_killed_member_is_replaced(client: Client, tmp_path: Path) -> None:
    """After SIGKILL the gang is built again with as many members, and a note says who was lost."""
    found, notes = disturbed(client, GangShape(2), tmp_path, signal.SIGKILL)

    assert [(1, 2), (1, 2)] == found
    assert 1 == len(notes)
    assert notes[0].startswith("member 1 was lost with its worker tcp://127.0.0.1:")


def test_a_member_that_hangs_is_replaced(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that is stopped is found by its silence, ended, and replaced."""
    monkeypatch.setattr(gang, "SILENT_SECONDS", 3.0)
    found, notes = disturbed(client, GangShape(2), tmp_path, signal.SIGSTOP)

    assert [(1, 2), (1, 2)] == found
    assert notes[0].startswith("member 1 was not heard for 3 s; the gang is built again")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_an_isolated_member_is_replaced_without_its_worker(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A member's own process that dies or hangs takes no worker with it."""
    monkeypatch.setattr(gang, "SILENT_SECONDS", 3.0)
    monkeypatch.setattr(gang, "BLAME_SECONDS", 0.5)
    before = set(client.nthreads())
    found, notes = disturbed(client, GangShape(1, is_isolated=True), tmp_path, number)

    assert ([(1, 1)], before) == (found, set(client.nthreads()))
    assert len(notes) == 1


def test_losses_without_a_checkpoint_end_the_run(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is lost again and again before anything was saved would be lost for ever."""
    monkeypatch.setattr(gang, "MAX_FRUITLESS", 1)
    with pytest.raises(
        RunError,
        match=r"^A training must get from one checkpoint to the next, but got losses=1 in a row before it did, "
        r"the last one: member 0 was lost .* lower train\.checkpoint_rounds",
    ):
        disturbed(client, GangShape(1), tmp_path, signal.SIGKILL)


def test_losses_with_checkpoints_between_do_not(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss after a checkpoint is none without progress."""
    monkeypatch.setattr(gang, "MAX_FRUITLESS", 1)
    found, notes = disturbed(client, GangShape(1), tmp_path, signal.SIGKILL, has_saved=True)

    assert ([(1, 1)], 1) == (found, len(notes))


def test_a_gang_that_stands_still_is_built_again(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Members that live, and of which none gets on, wait for one another; they are stopped and started again."""
    monkeypatch.setattr(gang, "STALL_SECONDS", 2.0)
    notes: list[str] = []
    found = run_gang(client, GangShape(2), work, arguments(str(tmp_path), 1), on_note=notes.append)

    assert [(1, 2), (1, 2)] == found
    assert notes[0].startswith("no member has got on for 2 s")


# Jobs beside one another


def nap(member: Member, _attempt: int, seconds: float) -> tuple[float, float, int]:
    """Take some time; tell when, and on which worker."""
    began = time.time()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        member.check()
        time.sleep(0.02)
    return began, time.time(), os.getpid()


def test_gangs_beside_one_another_share_no_worker(client: Client) -> None:
    """Two gangs of one run at once on two workers; one of two waits until both are free."""
    found: dict[int, list[Any]] = {}

    def start(members: int, key: int) -> threading.Thread:
        def run() -> None:
            found[key] = run_gang(client, GangShape(members, least=members), nap, arguments(1.5))

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    threads = [start(1, 0), start(1, 1)]
    time.sleep(1.0)
    threads.append(start(2, 2))
    for thread in threads:
        thread.join()
    first, second, both = found[0][0], found[1][0], found[2]

    assert first[2] != second[2]
    assert max(first[0], second[0]) < min(first[1], second[1]), "they ran at once"
    assert min(answer[0] for answer in both) >= max(first[1], second[1])


def test_a_cluster_grows_for_a_gang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where workers come with the work, a gang has as many as it has members, and they end afterwards."""
    monkeypatch.setattr(scaling, "INTERVAL_SECONDS", 0.1)
    config = ClusterConfig(min_workers=1, max_workers=3, threads_per_worker=1, memory_limit="1GiB")
    with open_cluster(config, tmp_path) as opened:
        found = run_gang(client_of(opened), GangShape(2, least=2), nap, arguments(0.1))

    assert 2 == len({answer[2] for answer in found})


# A cluster that somebody else has started


@pytest.fixture
def foreign(tmp_path: Path) -> Iterator[str]:
    """Start a scheduler and two workers without nannies, which nobody starts anew."""
    address = f"tcp://127.0.0.1:{free_port()}"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}"}
    worker = ["dask_worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard"]
    started = [
        start_supervised(
            [sys.executable, "-P", "-m", f"distributed.cli.{command[0]}", *command[1:]],
            env=environment,
            log=tmp_path / f"{index}.log",
            grace_seconds=1,
        )
        for index, command in enumerate((["dask_scheduler", "--host", address, "--no-dashboard"], worker, worker))
    ]
    try:
        with Client(address, timeout=30) as waiting:
            waiting.wait_for_workers(2, timeout=30)
        yield address
    finally:
        for process in reversed(started):
            process.stop()


def test_fewer_members_go_on(foreign: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a lost worker does not come back the others go on without it, and a note says so."""
    monkeypatch.setattr(gang, "REJOIN_SECONDS", 1.0)
    with open_cluster(ClusterConfig(address=foreign), tmp_path) as opened:
        found, notes = disturbed(client_of(opened), GangShape(2), tmp_path, signal.SIGKILL)

    assert [(1, 1)] == found
    assert "The gang goes on with 1 of 2 members." == notes[1]


CLIENT = """
import sys
from pathlib import Path
from infra.clusters import ClusterConfig, client_of, open_cluster
from infra.gang import GangShape, run_gang
from test_gang import arguments, work
if __name__ == "__main__":
    with open_cluster(ClusterConfig(address=sys.argv[1]), Path(sys.argv[2])) as opened:
        run_gang(client_of(opened), GangShape(2), work, arguments(sys.argv[2], 1))
"""


def test_a_killed_client_leaves_nothing_running(foreign: str, tmp_path: Path) -> None:
    """When the process that asked is killed the members end, and their workers can be had by others."""
    script = tmp_path / "client.py"
    script.write_text(textwrap.dedent(CLIENT))
    paths = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    process = subprocess.Popen(
        [sys.executable, str(script), foreign, str(tmp_path)], env={**os.environ, "PYTHONPATH": paths}
    )
    deadline = time.monotonic() + 60
    while not all((tmp_path / f"0-{rank}").exists() for rank in (0, 1)) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.kill()
    process.wait()
    with open_cluster(ClusterConfig(address=foreign), tmp_path) as opened:
        client = client_of(opened)

        def busy() -> int:
            return sum(len(keys) for keys in client.run(running_threads).values())

        deadline = time.monotonic() + 20
        while busy() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert 0 == busy()
        found = run_gang(client, GangShape(2, least=2), introduce, arguments())

    assert [0, 1] == [answer[0] for answer in found]


def running_threads() -> list[str]:
    """Return the pulses of members on this worker."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("gang-pulse")]
