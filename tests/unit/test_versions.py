"""Registered versions, kept beside the bundles."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from infra.errors import InputError
from infra.ledger import Ledger
from infra.storage import Ref, Store
from tasks._candidate import BundleRef
from tasks._split import SplitRule
from tasks._versions import (
    ModelVersion,
    champion_of,
    find_by_bundle,
    keep_version,
    list_versions,
    load_version,
    target_of,
    withdrawn_version,
)


def version_of(number: str, model: str = "loans") -> ModelVersion:
    """Make a version whose bundle is its own."""
    return ModelVersion(
        model=model,
        version=number,
        run_id=f"run-{number}",
        created="2024-01-01T00:00:00+00:00",
        bundle=BundleRef((Ref(f"bundles/{number}/model.ubj", f"digest-{number}", 9),)),
        rule=SplitRule("time", 0.2, 0.15, 8.5, 7.25, "at", ("a", "b")),
        snapshot="fingerprint",
        file_keys=("k1", "k2"),
        num_train_rows=100,
        metrics={"auc": 0.75},
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Give a store with versions 1, 2 and 10 of a model, and one of another."""
    store = Store(str(tmp_path / "root"))
    for number in ("1", "2", "10"):
        keep_version(store, version_of(number))
    keep_version(store, version_of("3", "churn"))
    return store


def test_a_version_is_read_as_it_was_kept(store: Store) -> None:
    """A version comes back whole, by its number and by its bundle, the rule of its split to the last digit."""
    version = version_of("10")

    assert [version] * 2 == [load_version(store, "loans", "10"), find_by_bundle(store, "loans", version.bundle.digest)]


def test_versions_are_listed_in_their_order(store: Store) -> None:
    """Versions are listed by number, of one model alone, and a model without any has none."""
    assert [["1", "2", "10"], ["3"], []] == [list_versions(store, model) for model in ("loans", "churn", "other")]


def test_an_unknown_bundle_is_no_version(store: Store) -> None:
    """A bundle that was never registered, or under another model, is found nowhere."""
    assert (None, None) == (
        find_by_bundle(store, "loans", "nothing"),
        find_by_bundle(store, "loans", version_of("3", "churn").bundle.digest),
    )


@pytest.mark.parametrize(
    ("model", "number", "message"),
    [
        ("loans", "3", r"that was registered, but got version='3' of 'loans'\. The versions are 1, 2, 10\."),
        ("other", "1", r"but got version='1' of 'other'\. The versions are none\."),
        ("loans", f"bundle-{version_of('1').bundle.digest}", r"but got version='bundle-.*The versions are 1, 2, 10"),
    ],
)
def test_an_unknown_version_is_refused(store: Store, model: str, number: str, message: str) -> None:
    """A version that is none is refused with those that there are."""
    with pytest.raises(InputError, match=message):
        load_version(store, model, number)


def test_a_target_is_what_servers_need() -> None:
    """A version becomes the target of the serving processes, released now."""
    version = version_of("2")
    target = target_of(version)
    age = datetime.now(UTC) - datetime.fromisoformat(target.released)

    assert ("loans", "2", "run-2", version.bundle.files) == (target.model, target.version, target.run_id, target.files)
    assert timedelta(0) <= age < timedelta(minutes=1)


def test_the_champion_is_what_the_ledger_says(store: Store) -> None:
    """The version in production is the one that was promoted or rolled back to last; before that there is none."""
    ledger = Ledger(store, "loans")
    found = [champion_of(store, ledger, "loans")]
    for action, number, expected in (("promote", "1", None), ("promote", "10", "1"), ("rollback", "1", "10")):
        ledger.append(action, version=number, expected=expected, run_id="r", reason="", details={})  # type: ignore[arg-type]
        found.append(champion_of(store, ledger, "loans"))

    assert [None, version_of("1"), version_of("10"), version_of("1")] == found


def test_a_version_that_was_rolled_back_is_withdrawn(store: Store) -> None:
    """A bundle is withdrawn from the rollback away from it until somebody brings it back."""
    ledger = Ledger(store, "loans")
    digest = version_of("2").bundle.digest
    found = []
    for action, number, expected in (
        ("promote", "1", None),
        ("promote", "2", "1"),
        ("verdict", "2", "2"),
        ("rollback", "1", "2"),
        ("verdict", "2", "1"),
        ("rollback", "2", "1"),
        ("promote", "10", "2"),
    ):
        ledger.append(action, version=number, expected=expected, run_id="r", reason="", details={})  # type: ignore[arg-type]
        found.append(withdrawn_version(store, ledger, "loans", digest))

    assert [None, None, None, "2", "2", None, None] == found
    assert None is withdrawn_version(store, ledger, "loans", replace(version_of("2").bundle, files=()).digest)
