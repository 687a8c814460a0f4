"""The ledger of one model."""

from __future__ import annotations

import getpass
import json
import multiprocessing
import os
import pickle
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from infra import ledger as ledger_module
from infra.errors import InputError, RunError
from infra.ledger import Action, Ledger, Row, StaleChampionError
from infra.storage import DamagedError, Store, digest_bytes


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Give an empty store."""
    return Store(str(tmp_path / "root"))


@pytest.fixture
def ledger(store: Store) -> Ledger:
    """Give the empty ledger of a model."""
    return Ledger(store, "churn")


def write(ledger: Ledger, action: Action, version: str | None, expected: str | None = None) -> Row:
    """Append a row with a plain reason."""
    return ledger.append(action, version=version, expected=expected, run_id="run", reason="why", details={"gain": 0.5})


def path_of(store: Store, sequence: int) -> Path:
    """Return the file of a row."""
    return Path(store.root, f"ledger/churn/{sequence:08d}.json")


def race(pool: Executor, ledger: Ledger, action: Action, num_writers: int) -> tuple[list[Row], list[BaseException]]:
    """Append from many writers that all expect no champion; return the rows and the errors."""
    futures = [
        pool.submit(ledger.append, action, version=str(i), expected=None, run_id=str(i), reason="", details={})
        for i in range(num_writers)
    ]
    errors = [error for future in futures if (error := future.exception())]
    return [future.result() for future in futures if not future.exception()], errors


def test_an_empty_ledger_has_no_champion(ledger: Ledger) -> None:
    """A model that nobody promoted has no rows, no champion and nothing to go back to."""
    assert (
        ledger.rows(),
        ledger.champion(),
        ledger.previous(),
        ledger.champion_at(datetime.now(UTC)),
    ) == ([], None, None, None)


def test_a_row_says_all_and_is_read_as_written(ledger: Ledger, store: Store) -> None:
    """Rows are read as they were written, with number, champion before, author and the hash of the row before."""
    first = write(ledger, "promote", "1")
    second = write(ledger, "verdict", None, expected="1")

    assert [
        first,
        Row(
            sequence=2,
            at=second.at,
            action="verdict",
            version=None,
            previous="1",
            run_id="run",
            reason="why",
            details={"gain": 0.5},
            author=getpass.getuser(),
            parent=digest_bytes(path_of(store, 1).read_bytes()),
        ),
    ] == ledger.rows()
    assert timedelta(0) <= datetime.now(UTC) - datetime.fromisoformat(second.at) < timedelta(minutes=1)


def test_ledgers_of_models_are_apart(ledger: Ledger, store: Store) -> None:
    """Two models in one store do not see each other's rows, even if one name starts the other."""
    write(ledger, "promote", "1")
    write(Ledger(store, "churn-2"), "promote", "7")

    assert (ledger.champion(), Ledger(store, "churn-2").champion()) == ("1", "7")


@pytest.mark.parametrize(
    ("steps", "champion", "previous"),
    [
        ([("promote", "1")], "1", None),
        ([("promote", "1"), ("verdict", "2")], "1", None),
        ([("promote", "1"), ("promote", "2")], "2", "1"),
        ([("promote", "1"), ("promote", "2"), ("rollback", "1")], "1", "2"),
        ([("promote", "1"), ("promote", "2"), ("rollback", "1"), ("promote", "3")], "3", "1"),
        ([("promote", "1"), ("promote", "2"), ("rollback", "1"), ("rollback", "2")], "2", "1"),
        ([("promote", "1"), ("promote", "2"), ("promote", "2")], "2", "1"),
    ],
)
def test_champion_and_previous_follow_the_changes(
    ledger: Ledger, steps: list[tuple[Action, str]], champion: str, previous: str | None
) -> None:
    """The champion is the last version put in production; the previous one is the last other version before it."""
    for action, version in steps:
        write(ledger, action, version, expected=ledger.champion())

    assert (champion, previous) == (ledger.champion(), ledger.previous())


def test_champion_at_a_moment(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger tells which version was in production at any time."""
    start = datetime(2026, 1, 1, tzinfo=UTC)

    class Clock(datetime):
        moment = start

        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls.moment

    monkeypatch.setattr(ledger_module, "datetime", Clock)
    for day, (action, version) in enumerate([("promote", "1"), ("promote", "2"), ("rollback", "1")]):
        Clock.moment = start + timedelta(days=day)
        write(ledger, action, version, expected=ledger.champion())  # type: ignore[arg-type]
    moments = [-1, 0, 3600, 86400, 2 * 86400 - 1, 2 * 86400]

    assert [ledger.champion_at(start + timedelta(seconds=s)) for s in moments] == [None, "1", "1", "2", "2", "1"]


def test_a_moment_needs_a_time_zone(ledger: Ledger) -> None:
    """A time without a zone is refused, because it would mean another moment on another machine."""
    with pytest.raises(ValueError, match=r"needs a time zone, but got when=2026-01-01T00:00:00\. Pass one"):
        ledger.champion_at(datetime(2026, 1, 1))


@pytest.mark.parametrize("action", ["promote", "rollback"])
def test_a_stale_change_is_refused(ledger: Ledger, action: Action) -> None:
    """A change that was decided against another champion writes nothing and names both."""
    write(ledger, "promote", "1")
    with pytest.raises(StaleChampionError, match=r"expected=none, but got champion=1\. Decide again") as caught:
        write(ledger, action, "2", expected=None)

    assert (caught.value.expected, caught.value.actual, len(ledger.rows())) == (None, "1", 1)


def test_a_stale_champion_error_travels() -> None:
    """The error keeps its versions through a pickle."""
    error = pickle.loads(pickle.dumps(StaleChampionError("3", None)))

    assert (error.expected, error.actual, "expected=3, but got champion=none" in str(error)) == ("3", None, True)


def test_a_verdict_ignores_the_champion(ledger: Ledger) -> None:
    """A verdict is written whatever the champion is, and changes it not."""
    write(ledger, "promote", "1")
    row = write(ledger, "verdict", "2", expected="0")

    assert (row.previous, ledger.champion()) == ("1", "1")


@pytest.mark.parametrize("action", ["promote", "rollback"])
def test_a_change_needs_a_version(ledger: Ledger, action: Action) -> None:
    """Production cannot be given a model that was not registered."""
    with pytest.raises(ValueError, match=f"A {action} needs a version, but got version=None. Register"):
        write(ledger, action, None)


@pytest.mark.parametrize("details", [{"gain": float("nan")}, {"when": datetime(2026, 1, 1)}])
def test_details_must_be_json(ledger: Ledger, details: dict[str, Any]) -> None:
    """Details that other readers of JSON could not read are refused, and no row is written."""
    with pytest.raises(ValueError, match="details must be JSON, but got details="):
        ledger.append("verdict", version="1", expected=None, run_id="", reason="", details=details)

    assert ledger.rows() == []


@pytest.mark.parametrize("model", ["", "a/b"])
def test_a_model_is_one_word(store: Store, model: str) -> None:
    """A model's name cannot reach into another model's ledger."""
    with pytest.raises(InputError, match=rf"one word without \"/\", but got model='{model}'\. Rename"):
        Ledger(store, model)


def test_one_of_many_threads_promotes(ledger: Ledger) -> None:
    """Of 8 threads that decided against the same champion one promotes; the others learn who won."""
    with ThreadPoolExecutor(8) as pool:
        rows, errors = race(pool, ledger, "promote", 8)

    assert (rows, [(StaleChampionError, None, rows[0].version)] * 7) == (
        ledger.rows(),
        [(type(error), error.expected, error.actual) for error in errors if isinstance(error, StaleChampionError)],
    )


def test_one_of_many_processes_promotes(ledger: Ledger) -> None:
    """Of 3 processes that decided against the same champion one promotes."""
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("spawn")) as pool:
        rows, errors = race(pool, ledger, "promote", 6)

    assert (1, rows, [StaleChampionError] * 5) == (len(rows), ledger.rows(), [type(error) for error in errors])


def test_no_verdict_of_many_threads_is_lost(ledger: Ledger) -> None:
    """All of 12 verdicts written at once are kept, each under a number of its own, in one chain."""
    with ThreadPoolExecutor(12) as pool:
        rows, errors = race(pool, ledger, "verdict", 12)

    assert ([], sorted(rows, key=lambda row: row.sequence)) == (errors, ledger.rows())


def test_a_promotion_survives_verdicts_but_not_a_promotion(
    ledger: Ledger, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A promotion that loses its number tries the next one after a verdict, and gives up after a promotion."""
    rivals: list[Action] = ["verdict", "promote"]
    create = Store.create

    def lose_once(self: Store, name: str, payload: bytes) -> object:
        monkeypatch.setattr(Store, "create", create)
        write(ledger, rivals.pop(0), "9", expected=ledger.champion())
        return create(self, name, payload)

    monkeypatch.setattr(Store, "create", lose_once)
    won = write(ledger, "promote", "1")
    monkeypatch.setattr(Store, "create", lose_once)
    with pytest.raises(StaleChampionError, match="expected=1, but got champion=9"):
        write(ledger, "promote", "2", expected="1")

    assert (won.sequence, [row.action for row in ledger.rows()]) == (2, ["verdict", "promote", "promote"])


def test_a_number_that_is_taken_and_unreadable_is_named(
    ledger: Ledger, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something that holds the next number without being a row ends in a message, not in an endless loop."""
    monkeypatch.setattr(ledger_module, "MAX_ATTEMPTS", 3)
    path_of(store, 1).mkdir(parents=True)
    with pytest.raises(RunError, match=r"within 3 attempts, but got name=ledger/churn/00000001\.json.*Look at"):
        write(ledger, "promote", "1")


@pytest.mark.parametrize(
    ("broken", "found"),
    [
        ('{"half', "1 unreadable fields"),
        ("{}", "10 unreadable fields"),
    ],
)
def test_an_unreadable_row_is_named(ledger: Ledger, store: Store, broken: str, found: str) -> None:
    """A row that is not one is named, with its address and the next step."""
    write(ledger, "promote", "1")
    path_of(store, 1).write_text(broken)
    with pytest.raises(DamagedError, match=rf"got {found} in name=ledger/churn/00000001\.json at /.* Restore it"):
        ledger.rows()


def test_a_changed_row_breaks_the_chain(ledger: Ledger, store: Store) -> None:
    """A row that was edited is found by the row after it."""
    write(ledger, "promote", "1")
    write(ledger, "promote", "2", expected="1")
    path_of(store, 1).write_text(path_of(store, 1).read_text().replace('"why"', '"other"'))
    with pytest.raises(DamagedError, match=r"got parent=\w+ instead of \w+ in name=ledger/churn/00000002\.json"):
        write(ledger, "promote", "3", expected="2")


def test_a_removed_row_is_named(ledger: Ledger, store: Store) -> None:
    """A gap in the numbers is found."""
    for version in "123":
        write(ledger, "verdict", version)
    path_of(store, 2).unlink()
    with pytest.raises(DamagedError, match=r"got no row in name=ledger/churn/00000002\.json"):
        ledger.rows()


def test_a_moved_row_is_named(ledger: Ledger, store: Store) -> None:
    """A row under another row's number is found."""
    write(ledger, "verdict", "1")
    row = json.loads(path_of(store, 1).read_text())
    path_of(store, 1).write_text(json.dumps({**row, "sequence": 5}))
    with pytest.raises(DamagedError, match=r"got sequence=5 in name=ledger/churn/00000001\.json"):
        ledger.rows()


def test_a_user_without_a_name_is_a_number(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container whose user has no name the row carries the user's number."""

    def refuse() -> str:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr(getpass, "getuser", refuse)

    assert f"uid {os.getuid()}" == write(ledger, "verdict", "1").author
