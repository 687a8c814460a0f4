"""Workers that come and go, that run out of memory, that belong to others, and that must prove who they are."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest
from distributed import Client

from infra import scaling, worker_memory
from infra.clusters import ClusterConfig, client_of, on_one_worker, open_cluster, run_on_workers
from infra.errors import InputError, RunError
from infra.processes import free_port, start_supervised

ROOT = Path(__file__).parents[2]
LIMIT = "600MB"
kept: list[bytearray] = []
"""What a task leaves in the memory of its worker."""


def nap(seconds: float) -> int:
    """Take some time; return who did."""
    time.sleep(seconds)
    return os.getpid()


def fill(share: float) -> int:
    """Take memory up to a share of the limit, and keep it."""
    while psutil.Process().memory_info().rss < share * 600e6:
        kept.append(bytearray(os.urandom(1 << 20) * 8))
        time.sleep(0.002)
    return os.getpid()


def workers_within(address: str, number: int, seconds: float = 30) -> int:
    """Return how many workers there are when there are as many as expected, or when the time is over."""
    deadline = time.monotonic() + seconds
    while (found := len(client_of(address).nthreads())) != number and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def wait_until_paused(client: Client, seconds: float = 30) -> None:
    """Wait until the one worker has noticed how full it is: it looks from time to time, not at once."""
    deadline = time.monotonic() + seconds
    while set(client.run(lambda dask_worker: dask_worker.status.name).values()) != {"paused"}:
        assert time.monotonic() < deadline
        time.sleep(0.05)


# Workers that come and go


@pytest.fixture(scope="module")
def elastic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Open a cluster of one to three workers that ends idle ones at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scaling, "INTERVAL_SECONDS", 0.1)
        patch.setattr(scaling, "IDLE_INTERVALS", 3)
        config = ClusterConfig(min_workers=1, max_workers=3, threads_per_worker=1, memory_limit="1GiB")
        with open_cluster(config, tmp_path_factory.mktemp("elastic")) as opened:
            assert 1 == len(client_of(opened).nthreads())
            yield opened


@pytest.fixture
def growing(elastic: str) -> str:
    """Give it with the one worker that it has when there is nothing to do."""
    assert 1 == workers_within(elastic, 1)
    return elastic


def test_workers_come_with_the_work_and_go_without_it(growing: str) -> None:
    """One worker becomes three while there is work for three, and one again afterwards; nothing runs twice."""
    first = len(client_of(growing).nthreads())
    before = dict(os.environ)
    answers = run_on_workers(client_of(growing), nap, [0.5] * 24)

    assert (1, 24, 3) == (first, len(answers), len(set(answers)))
    assert 1 == workers_within(growing, 1)
    assert before == dict(os.environ)


def test_one_task_needs_one_worker(growing: str) -> None:
    """No worker is started that would have nothing to do."""
    run_on_workers(client_of(growing), nap, [1.0])

    assert 1 == len(client_of(growing).nthreads())


def test_no_worker_ends_during_a_training(growing: str) -> None:
    """While a function runs on one worker the idle others stay, so that no gang loses a member; then they end."""
    client = client_of(growing)
    stage = threading.Thread(target=lambda: run_on_workers(client, nap, [0.5] * 18))
    stage.start()
    workers_within(growing, 3)
    on_one_worker(client, nap, 6.0)
    is_over, three = not stage.is_alive(), len(client.nthreads())
    stage.join()

    assert (True, 3, 1) == (is_over, three, workers_within(growing, 1))


def test_trainings_one_after_the_other_keep_their_worker(growing: str) -> None:
    """Workers that are being ended are not chosen for a training."""
    for _ in range(2):
        run_on_workers(client_of(growing), nap, [0.3] * 12)
        time.sleep(0.25)

        assert on_one_worker(client_of(growing), nap, 0.1) > 0


def test_stages_side_by_side_ask_for_workers_together(growing: str) -> None:
    """Two threads with one task each have two workers."""
    found: list[int] = []
    client = client_of(growing)
    threads = [threading.Thread(target=lambda: found.extend(run_on_workers(client, nap, [3.0, 3.0]))) for _ in range(2)]
    for thread in threads:
        thread.start()
    three = workers_within(growing, 3, seconds=10)
    for thread in threads:
        thread.join()

    assert (3, 4) == (three, len(found))


# Memory


@pytest.fixture
def small(tmp_path: Path) -> Iterator[str]:
    """Open a cluster of one worker with little memory."""
    config = ClusterConfig(workers=1, threads_per_worker=1, memory_limit=LIMIT)
    with open_cluster(config, tmp_path) as opened:
        yield opened


def test_a_task_that_needs_too_much_memory_is_named(small: str) -> None:
    """A worker that Dask ends for its memory ends the run, with the item, the limit and what to set."""
    with pytest.raises(
        RunError,
        match=r"^A worker must have the memory that its task needs, but got memory_limit=572\.2 MiB, passed by "
        r"item='file 2\.0'\. Raise cluster\.memory_limit, or have fewer workers or threads: cluster\.workers, "
        r"\.threads_per_worker\.$",
    ):
        run_on_workers(client_of(small), fill, [0.0, 2.0], describe=lambda item: f"'file {item}'")


def test_a_training_that_needs_too_much_memory_is_named(small: str) -> None:
    """So does a function on one worker, which is not run again."""
    began = time.monotonic()
    with pytest.raises(
        RunError,
        match=r"^A worker must have the memory .* memory_limit=572\.2 MiB, passed by task=fill on worker=tcp://",
    ):
        on_one_worker(client_of(small), fill, 2.0)

    assert time.monotonic() - began < 30


@pytest.mark.parametrize("is_one_task", [True, False])
def test_a_worker_without_memory_for_a_task_is_no_hang(
    small: str, monkeypatch: pytest.MonkeyPatch, is_one_task: bool
) -> None:
    """A worker whose memory is taken begins nothing any more; that is an error which says so, and what to set."""
    monkeypatch.setattr(worker_memory, "PAUSED_SECONDS", 2.0)
    client = client_of(small)
    run_on_workers(client, fill, [0.88])
    wait_until_paused(client)
    with pytest.raises(
        RunError,
        match=r"^A worker must have memory left for a task, but got memory=\S+ MiB of memory_limit=572\.2 MiB in use "
        r"on worker=tcp://\S+, which does nothing\. Raise cluster\.memory_limit, or",
    ):
        on_one_worker(client, nap, 0.1) if is_one_task else run_on_workers(client, nap, [0.1])


# A cluster that somebody else has started


@contextmanager
def foreign_cluster(
    folder: Path, *, path: str = str(ROOT), tls: tuple[str, ...] = (), more: tuple[str, ...] = ()
) -> Iterator[str]:
    """Run a scheduler and a worker with an installation, and yield the address."""
    address = f"{'tls' if tls else 'tcp'}://127.0.0.1:{free_port()}"
    dask = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "POLARS_MAX_THREADS")}
    environment = {**dask, "DASK_TEMPORARY_DIRECTORY": str(folder), "PYTHONPATH": path}
    commands = (
        ["dask_scheduler", "--host", address, "--no-dashboard", *tls],
        ["dask_worker", address, "--nthreads", "2", "--no-nanny", "--no-dashboard", *tls, *more],
    )
    started = [
        start_supervised(
            [sys.executable, "-P", "-m", f"distributed.cli.{command[0]}", *command[1:]],
            env=environment,
            log=folder / f"{command[0]}.log",
            grace_seconds=1,
        )
        for command in commands
    ]
    try:
        yield address
    finally:
        for process in reversed(started):
            process.stop()


def test_a_worker_like_this_process_is_used(tmp_path: Path) -> None:
    """A cluster of the same installation runs our functions, modest with threads, and there is nothing to say."""
    notes: list[str] = []
    path = f"{ROOT}{os.pathsep}{Path(__file__).parent}"
    with (
        foreign_cluster(tmp_path, path=path) as address,
        open_cluster(ClusterConfig(address=address), tmp_path, on_note=notes.append) as opened,
    ):
        (found,) = run_on_workers(client_of(opened), variables_of_worker, [None])

    assert (("2", "passive"), []) == (found, notes)


def variables_of_worker(_: object) -> tuple[str | None, ...]:
    """Return how the libraries of a worker use threads."""
    return tuple(os.environ.get(name) for name in ("POLARS_MAX_THREADS", "OMP_WAIT_POLICY"))


def test_a_worker_that_can_not_be_made_modest_is_told(tmp_path: Path) -> None:
    """Where the libraries were loaded before we came, a note says which variables their workers need."""
    notes: list[str] = []
    with (
        foreign_cluster(tmp_path, more=("--preload", "polars", "--preload", "xgboost")) as address,
        open_cluster(ClusterConfig(address=address), tmp_path, on_note=notes.append) as opened,
    ):
        (worker,) = client_of(opened).nthreads()

    assert [
        f"Worker {worker} may keep cores busy for nothing: start it with POLARS_MAX_THREADS=2 OMP_WAIT_POLICY=passive."
    ] == notes


def changed_code(folder: Path) -> str:
    """Install what differs in one line."""
    for package in ("infra", "tasks"):
        shutil.copytree(ROOT / package, folder / package)
    with (folder / "tasks" / "encode.py").open("a") as file:
        file.write("\nCHANGED = True\n")
    return str(folder)


def no_code(folder: Path) -> str:
    """Install what stands before our package, and says that there is none."""
    (folder / "infra").mkdir()
    (folder / "infra" / "__init__.py").write_text('raise ModuleNotFoundError("No module named infra", name="infra")\n')
    return str(folder)


@pytest.mark.parametrize(
    ("install", "message"),
    [
        (
            changed_code,
            r"^Client, scheduler and workers must have the same versions, but got evergreen's code=\w{12} instead of "
            r"\w{12} on worker=tcp://\S+\. Install the same there as here, or run from an installation like theirs\.$",
        ),
        (
            no_code,
            r"^A worker must have the code that it runs, but got worker=tcp://\S+ without it "
            r"\(ModuleNotFoundError.*\)\. Install this version of evergreen there\.$",
        ),
    ],
)
def test_a_worker_with_other_code_is_refused(tmp_path: Path, install: Callable[[Path], str], message: str) -> None:
    """Workers that would compute something else, or nothing, are found before they get any work."""
    (tmp_path / "code").mkdir()
    with (
        foreign_cluster(tmp_path, path=install(tmp_path / "code")) as address,
        open_cluster(ClusterConfig(address=address), tmp_path) as opened,
        pytest.raises(RunError, match=message),
    ):
        client_of(opened)


def test_a_cluster_with_another_dask_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another release of Dask is named with both versions, the scheduler's before the workers'."""
    from infra import worker_facts

    monkeypatch.setattr(worker_facts, "versions_here", lambda: {"python": "3.11", "dask": "1", "distributed": "1"})
    with (
        foreign_cluster(tmp_path) as address,
        open_cluster(ClusterConfig(address=address), tmp_path) as opened,
        pytest.raises(
            RunError,
            match=rf"but got .*dask=\S+ instead of 1, distributed=\S+ instead of 1 on scheduler={address}\. Ins",
        ),
    ):
        client_of(opened)


# Who is who


def make_certificates(folder: Path, name: str, days: int = 1) -> tuple[Path, Path, Path]:
    """Write an authority, a certificate that is valid for some days from two days ago on, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    start = datetime.now(UTC) - timedelta(days=2)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"{name} {who}")]) for who in ("ca", "member")]
    made = []
    for who, key in enumerate(keys):
        builder = (
            x509.CertificateBuilder()
            .subject_name(names[who])
            .issuer_name(names[0])
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(start + timedelta(days=3 if who == 0 else 2 + days))
            .add_extension(x509.BasicConstraints(ca=who == 0, path_length=None), critical=True)
        )
        made.append(builder.sign(keys[0], hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    secret = keys[1].private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    paths = tuple(folder / f"{name}-{what}.pem" for what in ("ca", "cert", "key"))
    for path, payload in zip(paths, (*made, secret), strict=True):
        path.write_bytes(payload)
    return paths


def tls_config(address: str, ca: Path, cert: Path, key: Path) -> ClusterConfig:
    """Return the configuration of a cluster, with the names of files."""
    return ClusterConfig(address=address, tls_ca=ca.name, tls_cert=cert.name, tls_key=key.name)


def test_a_tls_cluster_is_used_by_those_who_belong(tmp_path: Path) -> None:
    """With the cluster's files its workers run our functions; a member of another authority gets one message."""
    ours, others = make_certificates(tmp_path, "ours"), make_certificates(tmp_path, "others")
    options = [f"--tls-{what}-file" if what == "ca" else f"--tls-{what}" for what in ("ca", "cert", "key")]
    files = tuple(word for option, path in zip(options, ours, strict=True) for word in (option, str(path)))
    path = f"{ROOT}{os.pathsep}{Path(__file__).parent}"
    with foreign_cluster(tmp_path, path=path, tls=files) as address:
        with open_cluster(tls_config(address, *ours), tmp_path, tmp_path) as opened:
            assert 1 == len(run_on_workers(client_of(opened), nap, [0.0]))
        with (
            open_cluster(tls_config(address, *others), tmp_path, tmp_path) as opened,
            pytest.raises(
                RunError,
                match=rf"^A Dask scheduler must answer at cluster\.address with these cluster\.tls_ files, but got "
                rf"cluster\.address={address} \(.*\)\. Start that cluster, or leave cluster\.address out",
            ),
        ):
            client_of(opened)


def spoilt(folder: Path, what: str) -> tuple[Path, Path, Path]:
    """Return three files of which one is wrong."""
    ca, cert, key = make_certificates(folder, "ours", days=-1 if what == "expired" else 1)
    other_ca, _, other_key = make_certificates(folder, "others")
    if what == "missing":
        return ca, folder / "none.pem", key
    if what == "no PEM":
        ca.write_text("authority")
    return (other_ca if what == "signed by others" else ca), cert, (other_key if what == "key of others" else key)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (
            "missing",
            r"^cluster\.tls_cert must be a file that can be read, but got tls_cert=\S+/none\.pem \(No such file or "
            r"directory\)\. Correct it; relative paths start at the folder of the configuration\.$",
        ),
        (
            "no PEM",
            r"^cluster\.tls_ca must hold an authority's certificates as PEM, but got tls_ca=\S+ours-ca\.pem \(.*\)\. "
            r"Name the cluster's own ca file\.$",
        ),
        (
            "key of others",
            r"^cluster\.tls_key must be the key, without a password, of the certificate in cluster\.tls_cert, but got "
            r"tls_key=\S+others-key\.pem for tls_cert=\S+ours-cert\.pem \(.*\)\. Name the two that were made together",
        ),
        (
            "signed by others",
            r"^cluster\.tls_cert must be signed by the authority in cluster\.tls_ca and be valid now, but got "
            r"error='unable to get local issuer certificate'\. Name files that were made together, or renew the "
            r"certificate\.$",
        ),
        ("expired", r"^cluster\.tls_cert must be signed .* but got error='certificate has expired'\. "),
    ],
)
def test_files_that_do_not_fit_are_named(tmp_path: Path, what: str, message: str) -> None:
    """Before anything is sent, the file that is missing, no PEM, or of another authority is named."""
    config = tls_config("tls://127.0.0.1:8786", *spoilt(tmp_path, what))
    with pytest.raises(InputError, match=message), open_cluster(config, tmp_path, tmp_path):
        pass
