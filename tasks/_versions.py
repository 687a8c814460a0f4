"""Registered versions: what each was made from, kept beside the bundles so that no registry is needed to read it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import TypeAdapter

from infra.errors import InputError
from infra.ledger import Ledger
from infra.serving.target import Target
from infra.storage import MissingError, Store
from tasks._candidate import BundleRef
from tasks._origin import Origin
from tasks._split import SplitRule


@dataclass(frozen=True)
class ModelVersion:
    """One registered version."""

    model: str
    version: str
    run_id: str
    """The MLflow run that registered it."""
    created: str
    """UTC, ISO 8601."""
    bundle: BundleRef
    rule: SplitRule
    """Which rows it has trained on: those that this does not hold out."""
    snapshot: str
    """Fingerprint of its data."""
    file_keys: tuple[str, ...]
    num_train_rows: int
    metrics: dict[str, float]
    origin: Origin | None = None
    """How it came about; None: an earlier release registered it."""


VERSIONS: TypeAdapter[ModelVersion] = TypeAdapter(ModelVersion)


def version_name(model: str, version: str) -> str:
    """Return the name of a version's object."""
    return f"versions/{model}/{version}.json"


def bundle_name(model: str, digest: str) -> str:
    """Return the name of the object that tells under which version a bundle is registered."""
    return f"versions/{model}/bundle-{digest}.json"


def load_version(store: Store, model: str, version: str) -> ModelVersion:
    """Read a version.

    Raises:
        InputError: there is no such version.
    """
    try:
        if not version.isdecimal():
            raise MissingError(version_name(model, version), store.uri(version_name(model, "")))
        return VERSIONS.validate_json(store.get(version_name(model, version)))
    except MissingError as error:
        have = ", ".join(list_versions(store, model)) or "none"
        raise InputError(
            f"A version is one that was registered, but got version={version!r} of {model!r}. The versions are {have}."
        ) from error


def list_versions(store: Store, model: str) -> list[str]:
    """List the versions of a model from the first to the last."""
    names = [name.rpartition("/")[2].removesuffix(".json") for name in store.list(f"versions/{model}/")]
    return sorted((name for name in names if name.isdecimal()), key=int)


def find_by_bundle(store: Store, model: str, digest: str) -> ModelVersion | None:
    """Return the version under which a bundle is registered, if it is."""
    name = bundle_name(model, digest)
    if not store.exists(name):
        return None
    return VERSIONS.validate_json(store.get(name))


def keep_version(store: Store, version: ModelVersion) -> None:
    """Write a version, first under its number, then under its bundle."""
    payload = VERSIONS.dump_json(version)
    store.put(version_name(version.model, version.version), payload)
    store.put(bundle_name(version.model, version.bundle.digest), payload)


def target_of(version: ModelVersion) -> Target:
    """Return what serving processes need to answer with a version, released now."""
    released = datetime.now(UTC).isoformat(timespec="seconds")
    return Target(version.model, version.version, version.run_id, version.bundle.files, released)


def withdrawn_version(store: Store, ledger: Ledger, model: str, digest: str) -> str | None:
    """Return the version of a bundle that was in production and rolled back since, if it is one.

    Who rolled it back had a reason that no metric knows; it comes back by another rollback, not by a retrain.
    """
    known = find_by_bundle(store, model, digest)
    if known is None:
        return None
    withdrawn = False
    for row in ledger.rows():
        if row.action == "rollback" and row.previous == known.version:
            withdrawn = True
        elif row.action != "verdict" and row.version == known.version:
            withdrawn = False
    return known.version if withdrawn else None


def champion_of(store: Store, ledger: Ledger, model: str) -> ModelVersion | None:
    """Return the version in production."""
    version = ledger.champion()
    return load_version(store, model, version) if version is not None else None
