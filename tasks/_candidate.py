"""Candidates: trained models as bundles in the store."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from infra.bundle.model import FILES, Bundle
from infra.storage import Ref, Store
from tasks._cache import key_of


@dataclass(frozen=True)
class BundleRef:
    """A bundle in the store: its files in the order of their names."""

    files: tuple[Ref, ...]

    @property
    def digest(self) -> str:
        """Return the hash of the bundle's content: equal bundles are one model."""
        return key_of([[Path(ref.name).name, ref.digest] for ref in self.files])

    @property
    def booster(self) -> Ref:
        """Return the file of the trees."""
        return next(ref for ref in self.files if Path(ref.name).name == "model.ubj")

    @property
    def num_bytes(self) -> int:
        """Return the size of all files together."""
        return sum(ref.num_bytes for ref in self.files)


@dataclass(frozen=True)
class Candidate:
    """A trained model and how its training went."""

    family: str
    bundle: BundleRef
    """What goes on: after a refit, the model of the second phase."""
    pilot: Ref
    """The trees of the first phase, which have not learnt from the validation rows; without a refit the bundle's."""
    num_rounds: int
    """Of both."""
    max_rounds: int
    """The limit, train.xgboost.rounds."""
    is_stopped: bool
    """Whether the validation rows ended the first phase; if not, the limit did."""
    loss: str
    """What the training minimised, in the library's words."""
    train_curve: tuple[float, ...]
    """Loss by round of the first phase, as the next one."""
    validation_curve: tuple[float, ...]
    importance: dict[str, float]
    """Share of the total gain by feature."""
    num_train_rows: int
    """Rows of the first phase."""
    num_validation_rows: int
    num_refit_rows: int | None
    """Rows of the second phase; None: there was none."""
    parameters: dict[str, float | int | str]

    @property
    def sentence(self) -> str:
        """Return how the model was trained, for people."""
        end = f"stopped by {self.num_validation_rows:,} others"
        if not self.is_stopped:
            end = (
                f"ended by the limit of {self.max_rounds:,} and not by {self.num_validation_rows:,} others: "
                "raise train.xgboost.rounds"
            )
        again = (
            "" if self.num_refit_rows is None else f"; then anew on {self.num_refit_rows:,} of both, which is shipped"
        )
        return f"{self.num_rounds:,} rounds on {self.num_train_rows:,} rows, {end}{again}."


def store_bundle(store: Store, bundle: Bundle) -> BundleRef:
    """Put a bundle's files into the store, under the hash of their content."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle.save(folder)
        key = key_of([(folder / file).read_bytes().hex() for file in sorted(FILES)])
        return BundleRef(tuple(store.put_file(f"bundles/{key}/{file}", folder / file) for file in sorted(FILES)))


def copy_bundle(store: Store, ref: BundleRef, folder: Path) -> None:
    """Copy a bundle's files, verified, into an existing folder."""
    for file in ref.files:
        shutil.copyfile(store.local(file), folder / Path(file.name).name)


def load_bundle(store: Store, ref: BundleRef) -> Bundle:
    """Read a bundle from the store."""
    import infra.lean_xgboost  # noqa: F401  the bundle imports XGBoost, and knows nothing of Evergreen

    with tempfile.TemporaryDirectory() as name:
        copy_bundle(store, ref, Path(name))
        return Bundle.load(Path(name))
