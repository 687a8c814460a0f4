"""Dask with real worker processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from distributed import Client

from infra import clusters
from infra.clusters import (
    ClusterConfig,
    client_of,
    cpu_count,
    is_started,
    local_shape,
    on_one_worker,
    open_cluster,
    run_on_workers,
    started_early,
)
from infra.errors import InputError, RunError
from infra.processes import free_port, start_supervised
from infra.progress import listening, report_progress

ROOT = Path(__file__).parents[2]


def square(number: int) -> int:
    """Return the square."""
    return number * number


def refuse_three(number: int) -> int:
    """Refuse one item."""
    if number == 3:
        raise InputError("An item is not three, but got item=3. Leave it out.")
    return number


def die_at_thirty(number: int) -> int:
    """Kill the worker at one item."""
    if number == 30:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def mark(folder: str) -> None:
    """Leave a file behind."""
    time.sleep(0.3)
    (Path(folder) / str(time.monotonic_ns())).touch()


def mark_or_fail(item: tuple[str, bool]) -> None:
    """Leave a file behind, or fail at once."""
    folder, is_bad = item
    if is_bad:
        raise InputError("bad")
    mark(folder)


def report_rounds(num_rounds: int) -> str:
    """Report progress as a training does."""
    for number in range(num_rounds):
        report_progress({"round": number, "loss": 1 / (number + 1)})
    return "done"


def die(_: object = None) -> None:
    """Kill the worker."""
    os.kill(os.getpid(), signal.SIGKILL)


def environment_of_worker(_: object) -> tuple[str | None, ...]:
    """Return what the libraries of a worker read."""
    return tuple(os.environ.get(name) for name in ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "POLARS_MAX_THREADS"))


def modules_of_worker(_: object) -> set[str]:
    """Return what a worker has imported."""
    return set(sys.modules)


def workers() -> set[int]:
    """Return the processes below this one but Python's own resource tracker."""
    found = psutil.Process().children(recursive=True)
    return {child.pid for child in found if not any("resource_tracker" in word for word in child.cmdline())}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Open two workers with one thread each for all tests."""
    config = ClusterConfig(workers=2, threads_per_worker=1, memory_limit="1GiB")
    with open_cluster(config, tmp_path_factory.mktemp("scratch")) as opened:
        yield opened


@contextmanager
def scheduler_process(folder: Path) -> Iterator[tuple[str, Any]]:
    """Run a scheduler of another process."""
    address = f"tcp://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", address, "--no-dashboard"]
    environment = {**os.environ, "DASK_TEMPORARY_DIRECTORY": str(folder)}
    scheduler = start_supervised(command, env=environment, log=folder / "scheduler.log", grace_seconds=1)
    deadline = time.monotonic() + 30
    while "Scheduler at" not in scheduler.tail(100) and time.monotonic() < deadline:
        time.sleep(0.05)
    try:
        yield address, scheduler
    finally:
        scheduler.stop()


def test_workers_load_neither_prefect_nor_mlflow(tmp_path: Path) -> None:
    """A worker imports beforehand what it will run, and none of the services, which take it 3 s."""
    config = ClusterConfig(workers=1)
    with started_early(config, tmp_path, ["tasks._jobs"]), open_cluster(config, tmp_path) as opened:
        (loaded,) = run_on_workers(client_of(opened), modules_of_worker, [None])

    assert {"tasks._jobs", "polars", "xgboost"} == {"tasks._jobs", "polars", "xgboost"} & loaded
    assert set() == {"prefect", "mlflow", "matplotlib"} & loaded


def test_workers_that_were_started_early_are_used_and_ended(tmp_path: Path) -> None:
    """Whoever opens the cluster meanwhile gets the workers that are there; one of another shape gets its own."""
    before = workers()
    config, other = ClusterConfig(workers=1), ClusterConfig(workers=1, threads_per_worker=1)
    with started_early(config, tmp_path, []):
        with open_cluster(config, tmp_path) as opened, open_cluster(other, tmp_path) as apart:
            early = client_of(opened).nthreads()
            assert (True, False) == (is_started(opened), is_started(apart))
            assert early.keys().isdisjoint(client_of(apart).nthreads())
        assert before == workers()


def test_workers_that_nobody_uses_are_ended(tmp_path: Path) -> None:
    """If a run fails before it needs the workers that were started early, none is left."""
    before = workers()
    with started_early(ClusterConfig(workers=1), tmp_path, []):
        time.sleep(0.5)

    assert before == workers()


def test_no_worker_starts_before_it_is_needed(tmp_path: Path) -> None:
    """A run that never asks for the client starts no process and writes no file."""
    before = psutil.Process().children(recursive=True)
    with open_cluster(ClusterConfig(), tmp_path / "scratch") as opened:
        assert (False, before) == (is_started(opened), psutil.Process().children(recursive=True))

    assert not (tmp_path / "scratch").exists()


def test_all_threads_share_one_client_and_its_end_leaves_no_process(tmp_path: Path) -> None:
    """Stages side by side get the same client; closing the cluster ends every worker."""
    before = set(psutil.Process().children(recursive=True))
    found: list[object] = []
    with open_cluster(ClusterConfig(workers=1, memory_limit="1GB"), tmp_path) as opened:
        threads = [threading.Thread(target=lambda: found.append(client_of(opened))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        children = [
            child
            for child in set(psutil.Process().children(recursive=True)) - before
            if not any("resource_tracker" in word for word in child.cmdline())  # Python's own; one for the process
        ]

    assert (4, 1) == (len(found), len(set(map(id, found))))
    gone, alive = psutil.wait_procs(children, timeout=10)
    assert [] == alive
    assert len(gone) >= 1


def test_a_killed_process_leaves_no_worker(tmp_path: Path) -> None:
    """When the process that has opened a cluster is killed, its workers end."""
    script = f"""
        import time
        from pathlib import Path
        import psutil
        from infra.clusters import ClusterConfig, client_of, open_cluster
        if __name__ == "__main__":
            with open_cluster(ClusterConfig(workers=1, memory_limit="1GB"), Path({str(tmp_path)!r})) as address:
                client_of(address)
                print(*[child.pid for child in psutil.Process().children(recursive=True)], flush=True)
                time.sleep(60)
    """
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(script))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, str(program)], env=environment, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        children = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        parent.send_signal(signal.SIGKILL)

    _gone, alive = psutil.wait_procs(children, timeout=15)
    assert (True, []) == (len(children) >= 1, alive)


def test_answers_come_in_the_order_of_the_items(address: str) -> None:
    """Each item has one answer, in order, and progress counts every one of them."""
    done: list[tuple[int, int]] = []
    answers = run_on_workers(client_of(address), square, range(60), on_done=lambda n, total: done.append((n, total)))

    assert [n * n for n in range(60)] == answers
    assert [(n, 60) for n in range(1, 61)] == done


def test_no_items_give_no_answers(address: str) -> None:
    """An empty list of items is answered by an empty list."""
    assert [] == run_on_workers(client_of(address), square, [])


def test_the_functions_own_error_arrives_as_it_is(address: str) -> None:
    """An InputError on a worker is the same InputError here."""
    with pytest.raises(InputError, match=r"^An item is not three, but got item=3\. Leave it out\.$"):
        run_on_workers(client_of(address), refuse_three, range(20))


def test_after_an_error_nothing_new_begins(address: str, tmp_path: Path) -> None:
    """The first error cancels what has not begun."""
    items = [(str(tmp_path), False), (str(tmp_path), True), *[(str(tmp_path), False)] * 30]
    with pytest.raises(InputError, match="bad"):
        run_on_workers(client_of(address), mark_or_fail, items)
    time.sleep(1.5)

    assert len(list(tmp_path.iterdir())) <= 4


def test_few_tasks_are_in_flight(address: str) -> None:
    """However many items there are, the scheduler knows at most two per thread."""
    client = client_of(address)
    seen: list[int] = []
    run_on_workers(client, square, range(200), on_done=lambda _n, _total: seen.append(len(client.futures)))

    assert max(seen) <= 2 * 2 + 2  # and the last answers, which are being let go


def test_the_item_that_kills_its_workers_is_named(address: str) -> None:
    """A worker that dies again and again is an error that names the item, not its neighbour, and the next step."""
    with pytest.raises(
        RunError, match=r"must survive its task, but got worker=lost for item='file 30'\. .*cluster\.memory_limit"
    ):
        run_on_workers(client_of(address), die_at_thirty, range(60), describe=lambda item: f"'file {item}'")

    client_of(address).wait_for_workers(2, timeout=30)


def test_progress_arrives_in_order(address: str) -> None:
    """What a function on a worker reports is heard here, whole and in order, before its answer."""
    events: list[dict[str, Any]] = []
    answer = on_one_worker(client_of(address), report_rounds, 50, on_event=events.append)

    assert ("done", [{"round": n, "loss": 1 / (n + 1)} for n in range(50)]) == (answer, events)


def test_progress_without_a_listener_is_dropped(address: str) -> None:
    """Reporting is harmless when nobody listens, on a worker and here."""
    assert "done" == on_one_worker(client_of(address), report_rounds, 2) == report_rounds(2)


def test_progress_of_one_process_needs_no_cluster() -> None:
    """The same function reports to a listener of its own process."""
    events: list[dict[str, Any]] = []
    with listening(events.append):
        report_rounds(1)
    report_rounds(1)

    assert [{"round": 0, "loss": 1.0}] == events


def test_a_certain_worker_is_used(address: str) -> None:
    """A function runs where it is sent."""
    client = client_of(address)
    pids = {worker: on_one_worker(client, os.getpid, worker=worker) for worker in client.nthreads()}

    assert client.run(os.getpid) == pids


def test_a_function_whose_worker_dies_is_not_run_again(address: str) -> None:
    """The death of the one worker is an error within seconds."""
    before = time.monotonic()
    with pytest.raises(RunError, match=r"must survive its task, but got worker=lost for task=die on worker=tcp://"):
        on_one_worker(client_of(address), die)

    assert time.monotonic() - before < 10
    client_of(address).wait_for_workers(2, timeout=30)


def test_a_function_that_carries_data_is_refused(address: str) -> None:
    """Functions travel small."""
    data = bytes(2_000_000)

    with pytest.raises(AssertionError, match="send a reference"):
        run_on_workers(client_of(address), lambda _: len(data), [1])


def test_workers_have_their_threads_and_wait_passively(address: str) -> None:
    """Libraries on a worker use its threads and no more, and idle ones do not spin."""
    assert ("passive", "1", "1") == on_one_worker(client_of(address), environment_of_worker, None)


def test_the_environment_of_this_process_stays(tmp_path: Path) -> None:
    """What workers are started with is not left in this process, whose other children would inherit it."""
    before = dict(os.environ)
    with open_cluster(ClusterConfig(workers=1, memory_limit="1GB"), tmp_path) as opened:
        client_of(opened)

        assert before == dict(os.environ)


def test_an_unreachable_scheduler_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler that does not answer is named, with the next step."""
    monkeypatch.setattr(clusters, "CONNECT_TIMEOUT_SECONDS", 0.5)
    given = f"tcp://127.0.0.1:{free_port()}"

    with (
        open_cluster(ClusterConfig(address=given), tmp_path) as opened,
        pytest.raises(RunError, match=rf"must answer at cluster.address, but got cluster.address={given} .*leave"),
    ):
        client_of(opened)


def test_a_cluster_that_has_lost_its_workers_is_an_error(tmp_path: Path) -> None:
    """A function that finds no worker left says so at once."""
    with (
        scheduler_process(tmp_path) as (given, _),
        Client(given) as client,
        pytest.raises(RunError, match="The cluster must stay up during a run, but got workers=0"),
    ):
        on_one_worker(client, os.getpid)


def test_a_cluster_without_workers_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler that gets no worker in time is an error."""
    monkeypatch.setattr(clusters, "WORKERS_TIMEOUT_SECONDS", 0.5)
    with (
        scheduler_process(tmp_path) as (given, _),
        open_cluster(ClusterConfig(address=given), tmp_path) as opened,
        pytest.raises(RunError, match=rf"at least 1 worker, but got workers=0 at {given}"),
    ):
        client_of(opened)


@pytest.mark.parametrize("is_one_task", [True, False])
def test_a_scheduler_that_ends_is_an_error(tmp_path: Path, is_one_task: bool) -> None:
    """A scheduler lost in the middle of a task ends the run with a message."""
    with (
        scheduler_process(tmp_path) as (given, scheduler),
        open_cluster(ClusterConfig(address=given), tmp_path) as opened,
    ):
        command = [sys.executable, "-m", "distributed.cli.dask_worker", given, "--no-nanny", "--no-dashboard"]
        environment = {
            **os.environ,
            "DASK_TEMPORARY_DIRECTORY": str(tmp_path),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)]),
        }
        worker = start_supervised(command, env=environment, log=tmp_path / "worker.log", grace_seconds=1)
        try:
            client = client_of(opened)
            threading.Timer(1.0, scheduler.stop).start()
            with pytest.raises(RunError, match="The cluster must stay up during a run, but got "):
                if is_one_task:
                    on_one_worker(client, time.sleep, 60)
                else:
                    run_on_workers(client, time.sleep, [60, 60])
        finally:
            worker.stop()


def test_the_default_shape_follows_the_cores() -> None:
    """Workers have two threads where there are cores for it; what is configured wins."""
    shapes = {cores: local_shape(ClusterConfig(), cores) for cores in (1, 2, 3, 4, 8, 64)}

    assert {1: (1, 1), 2: (2, 1), 3: (2, 1), 4: (2, 2), 8: (4, 2), 64: (8, 8)} == shapes
    assert (3, 2) == local_shape(ClusterConfig(workers=3), 6)
    assert (1, 6) == local_shape(ClusterConfig(threads_per_worker=6), 6)
    assert (4, 2) == local_shape(ClusterConfig(min_workers=1, max_workers=4), 8)


def test_the_cores_are_those_of_this_process() -> None:
    """A process that may use one core counts one."""
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("needs CPU affinity")
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        counted = cpu_count()
    finally:
        os.sched_setaffinity(0, allowed)

    assert 1 == counted


@pytest.mark.parametrize(
    "values", [{"address": "localhost"}, {"workers": 0}, {"memory_limit": "much"}, {"adress": "tcp://a:1"}]
)
def test_a_wrong_configuration_is_refused(values: dict[str, Any]) -> None:
    """Addresses, counts, sizes and names are checked before anything starts."""
    with pytest.raises(ValueError, match=next(iter(values))):
        ClusterConfig(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"address": "tls://a:1"}, "a tls:// address needs tls_ca, tls_cert and tls_key beside it"),
        ({"address": "tcp://a:1", "tls_ca": "ca.pem"}, "tls_ca needs an address that starts with tls://"),
        ({"tls_key": "key.pem"}, "tls_key needs an address that starts with tls://"),
        (
            {"address": "tcp://a:1", "workers": 2},
            "workers is about workers of this machine; leave it out beside address",
        ),
        ({"address": "tcp://a:1", "max_workers": 2}, "max_workers is about workers of this machine"),
        ({"min_workers": 2}, "min_workers needs max_workers beside it"),
        ({"workers": 2, "max_workers": 4}, "workers is a fixed number; leave it out beside max_workers"),
        ({"min_workers": 4, "max_workers": 2}, "max_workers is at least min_workers"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(values: dict[str, Any], message: str) -> None:
    """What one key says of the cluster may not be contradicted, or ignored, because of another one."""
    with pytest.raises(ValueError, match=message):
        ClusterConfig(**values)


def test_workers_that_cannot_start_are_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Dask's worker processes end at once, the error says so and what to do."""

    def failing(**_: object) -> None:
        raise RuntimeError("Nanny failed to start.")

    monkeypatch.setattr("distributed.LocalCluster", failing)
    with (
        open_cluster(ClusterConfig(workers=1), tmp_path) as address,
        pytest.raises(RunError, match=r"must start on this machine, but got workers=1 that ended at once \(Nanny"),
    ):
        client_of(address)
