"""Candidates: trained models as bundles in the store."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from infra.bundle import blend, encoder, model, network, predictor, session, trees
from infra.bundle.model import Bundle
from infra.storage import Ref, Store, digest_bytes, digest_file
from tasks._cache import key_of
from tasks._origin import Base, Mode, Origin

BUNDLE_CODE: tuple[ModuleType, ...] = (blend, encoder, model, network, predictor, session, trees)
"""What decides how a bundle answers, for the keys of stages that score with one."""
MODEL_NAMES = frozenset(
    f"{stem}{suffix}" for stem in ("model", "part0") for suffix in (*trees.SUFFIXES, network.GRAPH_SUFFIX)
)
MEASURED = (model.RUNTIME_FILE, "certificate.json")
"""Files of a bundle that say what was measured on a machine: they may differ between bundles of one model."""


@dataclass(frozen=True)
class BundleRef:
    """A bundle in the store: its files in the order of their names."""

    files: tuple[Ref, ...]

    @property
    def digest(self) -> str:
        """Return the hash of the bundle's content but for what was measured: equal bundles are one model."""
        named = [(Path(ref.name).name, ref.digest) for ref in self.files]
        return key_of([[name, digest] for name, digest in named if name not in MEASURED])

    @property
    def has_trees(self) -> bool:
        """Return whether it takes XGBoost to read it."""
        return any(ref.name.endswith(trees.SUFFIXES) for ref in self.files)

    @property
    def model(self) -> Ref:
        """Return the file of the model; of a blend that of its first part."""
        return next(ref for ref in self.files if Path(ref.name).name in MODEL_NAMES)

    @property
    def booster(self) -> Ref:
        """Return the file of the trees, as they were trained or compact.

        Raises:
            ValueError: the model is of another family.
        """
        if Path(self.model.name).name not in [f"model{suffix}" for suffix in trees.SUFFIXES]:
            raise ValueError(f"A bundle of trees has a booster, but got {self.model.name}. Ask for the model.")
        return self.model

    @property
    def num_bytes(self) -> int:
        """Return the size of all files together."""
        return sum(ref.num_bytes for ref in self.files)


@dataclass(frozen=True)
class Candidate:
    """A trained model and how its training went."""

    family: str
    bundle: BundleRef
    """What goes on: the model of the last phase."""
    pilot: Ref
    """The trees of the first phase, which have not learnt from the validation rows; with one phase the bundle's."""
    num_rounds: int
    """Of both, those of the base included."""
    max_rounds: int
    """The limit, train.xgboost.rounds; of a refit the number of rounds."""
    is_stopped: bool
    """Whether the validation rows ended the first phase; if not, the limit did."""
    loss: str
    """What the training minimised, in the library's words."""
    train_curve: tuple[float, ...]
    """Loss by round of the first phase, without those of the base, as the next one."""
    validation_curve: tuple[float, ...]
    importance: dict[str, float]
    """Share of the total gain by feature."""
    num_train_rows: int
    """Rows of the first phase."""
    num_validation_rows: int
    num_final_rows: int | None
    """Rows of the second phase; None: there was none."""
    parameters: dict[str, bool | float | int | str]
    settings: dict[str, Any]
    """The same as train.xgboost, or train.neural, has them."""
    features: tuple[str, ...]
    encoding: dict[str, Any]
    """What its rows were encoded by."""
    base: Base | None = None
    """The trees that were continued, and stay as they are."""
    base_loss: float | None = None
    """Of these trees, on the validation rows of this run."""
    refit_of: str | None = None
    """The version whose settings and number of rounds were kept."""
    rows_per_second: float | None = None
    """Of the training's steps, in all members together; known of networks."""
    loader_share: float | None = None
    """Of the time of these steps: how long they waited for rows."""
    peak_bytes: int | None = None
    """Largest memory of a member's process."""
    seconds: float | None = None
    """Of the whole training, or of what was left of it after a loss."""
    pilots: tuple[tuple[float, Ref], ...] = ()
    """Of a blend: the pilots of its parts, with their weights."""

    @property
    def mode(self) -> Mode:
        """Return what was kept of another version."""
        return "continue" if self.base else "refit" if self.refit_of else "fresh"

    @property
    def base_rounds(self) -> int:
        """Return how many rounds there were before the first one."""
        return self.base.num_rounds if self.base else 0

    def loss_after(self, num_rounds: int) -> float | None:
        """Return the loss of the pilot's first rounds on the validation rows; None: it is not known."""
        added = num_rounds - self.base_rounds
        return self.validation_curve[added - 1] if added > 0 else self.base_loss if added == 0 else None

    @property
    def origin(self) -> Origin:
        """Return what a version of this model remembers."""
        loss = self.loss_after(self.num_rounds)
        assert loss is not None, "the last round was measured"
        return Origin(
            settings=self.settings,
            num_rounds=self.num_rounds,
            pilot=self.pilot,
            final=self.bundle.model,
            loss=self.loss,
            validation_loss=loss,
            features=self.features,
            encoding=self.encoding,
            base=self.base,
            refit_of=self.refit_of,
            family=self.family,
        )

    @property
    def unit(self) -> str:
        """Return what a training counts: rounds of trees, or epochs."""
        return "epoch" if self.family == "neural" else "round"

    @property
    def sentence(self) -> str:
        """Return how the model was trained, for people.

        A model that was refit or continued says so.
        """
        added, others = self.num_rounds - self.base_rounds, f"{self.num_validation_rows:,} others"
        if self.base and not added:
            return (
                f"Continues version {self.base.version}: no round added to {self.base_rounds:,}, as none that learnt "
                f"from {self.num_train_rows:,} rows helped on {others}; its trees stay as they are."
            )
        again = "" if self.num_final_rows is None else f"; then on {self.num_final_rows:,} of both, which is shipped"
        if self.base:
            end = "stopped by" if self.is_stopped else f"ended by the limit of {self.max_rounds:,} and not by"
            return (
                f"Continues version {self.base.version}: {added:,} rounds added to {self.base_rounds:,} on "
                f"{self.num_train_rows:,} rows, {end} {others}{again}."
            )
        if self.refit_of:
            return (
                f"Version {self.refit_of} refit: its parameters and its {self.num_rounds:,} {self.unit}s on "
                f"{self.num_train_rows:,} rows, measured on {others}{again}."
            )
        end = f"stopped by {self.num_validation_rows:,} others"
        if self.family == "neural":
            end = f"the best of {len(self.validation_curve):,} on {self.num_validation_rows:,} others"
        elif not self.is_stopped:
            end = (
                f"ended by the limit of {self.max_rounds:,} and not by {self.num_validation_rows:,} others: "
                "raise train.xgboost.rounds"
            )
        again = (
            "" if self.num_final_rows is None else f"; then anew on {self.num_final_rows:,} of both, which is shipped"
        )
        return f"{self.num_rounds:,} {self.unit}s on {self.num_train_rows:,} rows, {end}{again}."


def store_bundle(store: Store, bundle: Bundle) -> BundleRef:
    """Put a bundle's files into the store, under the hash of their content but for what was measured.

    What was measured lies below that, under a hash of its own: another measurement of the same model leaves it alone.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        digests = {file: digest_file(folder / file) for file in sorted(bundle.save(folder))}
        key = key_of([[file, digest] for file, digest in digests.items() if file not in MEASURED])
        refs = [store.put_file(_name_in_store(key, file, digest), folder / file) for file, digest in digests.items()]
        return BundleRef(tuple(refs))


def with_file(store: Store, ref: BundleRef, name: str, payload: bytes) -> BundleRef:
    """Return a bundle with a file that says what was measured, in place of one of the same name.

    Raises:
        ValueError: the file would be part of the model.
    """
    if name not in MEASURED:
        raise ValueError(f"A file that is added is one of {', '.join(MEASURED)}, but got name={name}. Store a bundle.")
    added = store.put(_name_in_store(ref.digest, name, digest_bytes(payload)), payload)
    others = [file for file in ref.files if Path(file.name).name != name]
    return BundleRef(tuple(sorted((*others, added), key=lambda file: Path(file.name).name)))


def _name_in_store(key: str, file: str, digest: str) -> str:
    """Return the name of a bundle's file in the store."""
    return f"bundles/{key}/measured/{digest[:32]}/{file}" if file in MEASURED else f"bundles/{key}/{file}"


def copy_bundle(store: Store, ref: BundleRef, folder: Path) -> None:
    """Copy a bundle's files, verified, into an existing folder."""
    for file in ref.files:
        shutil.copyfile(store.local(file), folder / Path(file.name).name)


def load_bundle(store: Store, ref: BundleRef) -> Bundle:
    """Read a bundle from the store."""
    if ref.has_trees:
        import infra.lean_xgboost  # noqa: F401  the bundle imports XGBoost, and knows nothing of Evergreen

    with tempfile.TemporaryDirectory() as name:
        copy_bundle(store, ref, Path(name))
        return Bundle.load(Path(name))
