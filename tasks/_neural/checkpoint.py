"""Checkpoints of a network's training, written while it goes on, and read by however many members there are.

Each member writes its part with torch.distributed.checkpoint into a folder of its own, then puts the files into the
store, and last a small object that lists them. A checkpoint counts once the parts of all members are there; the newest
two are kept.
"""

from __future__ import annotations

import base64
import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint.state_dict_loader as loading
import torch.distributed.checkpoint.state_dict_saver as saving
from pydantic import TypeAdapter, ValidationError
from torch.distributed.checkpoint.api import CheckpointException

from infra.errors import RunError
from infra.member import Member
from infra.storage import MissingError, Ref, Store
from tasks._cache import key_of

CHECKPOINT_VERSION = 1
"""To be raised when the same job comes to train another network."""
KEPT = 2
"""The newest could be damaged; then the one before it counts."""
NUM_DIGITS = 12
PHASE_STEPS = 10**11


@dataclass(frozen=True)
class Progress:
    """How far a training is, between two steps."""

    phase: int = 0
    """0: on the training rows; 1: on the validation rows too."""
    epoch: int = 0
    batch: int = 0
    """Steps of this epoch that are done."""
    step: int = 0
    """Steps of this phase that are done."""
    best_epoch: int = 0
    """Epochs after which the loss on the validation rows was least; 0: none is over."""
    train_curve: tuple[float, ...] = ()
    """Loss by epoch of the first phase, as the next one."""
    validation_curve: tuple[float, ...] = ()
    epoch_sums: tuple[float, float] = (0.0, 0.0)
    """Of the training losses and of the weights, in this epoch so far."""
    num_train_rows: int = 0
    """Of the first phase, as the next one."""
    num_validation_rows: int = 0
    pilot: tuple[Ref, Ref] | None = None
    """In the second phase: graph and weights of the first one's network."""

    @property
    def number(self) -> int:
        """Return what orders checkpoints."""
        return self.phase * PHASE_STEPS + self.step

    @property
    def sentence(self) -> str:
        """Return how far that is, for people."""
        return f"step {self.step:,} (epoch {self.epoch + 1}) on {'all' if self.phase else 'training'} rows"


@dataclass(frozen=True)
class Part:
    """What one member has written."""

    rank: int
    num_members: int
    files: tuple[Ref, ...]
    progress: Progress
    random_state: str
    """Of the member's generator on the CPU, base64."""


@dataclass(frozen=True)
class Checkpoint:
    """All parts of one."""

    parts: tuple[Part, ...]

    @property
    def progress(self) -> Progress:
        """Return how far the training was."""
        return self.parts[0].progress

    def random_state(self, member: Member) -> torch.Tensor | None:
        """Return the state of a member's generator; None where there were more or fewer members."""
        if member.num_members != len(self.parts):
            return None
        return torch.frombuffer(bytearray(base64.b64decode(self.parts[member.rank].random_state)), dtype=torch.uint8)


PARTS: TypeAdapter[Part] = TypeAdapter(Part)


def folder_of(job: object) -> str:
    """Return where the checkpoints of a job are."""
    return f"checkpoints/{key_of(job, CHECKPOINT_VERSION, 'neural')}"


def newest(store: Store, job: object, on_damaged: Callable[[str], None] = lambda _text: None) -> Checkpoint | None:
    """Return the newest checkpoint that is whole; of each one that is damaged, something is said."""
    folder = folder_of(job)
    numbers = sorted({name.split("/")[2] for name in store.list(f"{folder}/") if name.endswith(".json")}, reverse=True)
    for number in numbers:
        names = [name for name in store.list(f"{folder}/{number}/") if name.endswith(".json")]
        try:
            parts = sorted((PARTS.validate_json(store.get(name)) for name in names), key=lambda part: part.rank)
        except (ValidationError, MissingError):
            on_damaged(f"The checkpoint {folder}/{number} is damaged; the one before it is used.")
            continue
        parts = [part for part in parts if part.num_members == parts[0].num_members]
        if len(parts) < parts[0].num_members:
            continue  # a member was lost while it was written
        if not all(store.is_intact(file) for part in parts for file in part.files):
            on_damaged(f"The checkpoint {folder}/{number} is damaged; the one before it is used.")
            continue
        return Checkpoint(tuple(parts))
    return None


def clear(store: Store, job: object) -> None:
    """Remove all: the training is over."""
    for name in store.list(f"{folder_of(job)}/"):
        store.delete(name)


def load(store: Store, checkpoint: Checkpoint, state: dict[str, Any], member: Member) -> None:
    """Read tensors in place, whoever had which part of them when they were written."""
    with tempfile.TemporaryDirectory(prefix="checkpoint-", dir=member.scratch or None) as name:
        for file in (file for part in checkpoint.parts for file in part.files):
            shutil.copyfile(store.local(file), Path(name) / file.name.rpartition("/")[2])
        with named_errors():
            loading.load(state, checkpoint_id=name, no_dist=member.num_members == 1)


@contextmanager
def named_errors() -> Iterator[None]:
    """Have the library's error, which is no Exception, as one of ours that names who failed."""
    try:
        yield
    except CheckpointException as error:
        rank, (cause, _) = next(iter(error.failures.items()))
        raise RunError(
            f"A checkpoint is written and read as a whole, but got an error on rank={rank}: {cause!r}. "
            "Look at that worker's disk and log, and start the run again."
        ) from error


@dataclass
class Writer:
    """Writes the checkpoints of one member, one at a time, while the training goes on."""

    store: Store
    job: object
    member: Member
    _group: Any = None
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="checkpoint"))
    _running: Future[None] | None = None
    _is_closed: bool = False

    def __post_init__(self) -> None:
        """Make a process group of its own: its operations must not mix with those of the training."""
        if self.member.num_members > 1:
            self._group = dist.new_group(backend="gloo")
        else:
            warnings.filterwarnings("ignore", "torch.distributed is disabled")

    @property
    def is_busy(self) -> bool:
        """Return whether one is being written."""
        return self._running is not None and not self._running.done()

    def save(self, state: dict[str, Any], progress: Progress) -> None:
        """Copy the tensors, and begin to write them; all members call it together, when none is busy."""
        if self.finish():
            self.member.saved()
        folder = Path(tempfile.mkdtemp(prefix="checkpoint-", dir=self.member.scratch or None))
        written = saving.async_save(
            state,
            checkpoint_id=str(folder),
            process_group=self._group,
            async_checkpointer_type=saving.AsyncCheckpointerType.THREAD,
            no_dist=self.member.num_members == 1,
        )
        random_state = base64.b64encode(bytes(torch.get_rng_state().numpy())).decode()
        self._running = self._thread.submit(self._put, written, folder, progress, random_state)

    def _put(self, written: Any, folder: Path, progress: Progress, random_state: str) -> None:
        """Put the files into the store once they are written, then what lists them."""
        try:
            with named_errors():
                written.result()
            if self._is_closed:
                return  # the next attempt writes under the same names
            kind = f"{folder_of(self.job)}/{progress.number:0{NUM_DIGITS}d}"
            files = tuple(
                self.store.put_file(f"{kind}/{path.name}", path) for path in sorted(folder.iterdir()) if path.is_file()
            )
            part = Part(self.member.rank, self.member.num_members, files, progress, random_state)
            name = f"{kind}/part-{self.member.rank:05d}.json"
            self.store.put(name, json.dumps(asdict(part)).encode())
            if self.member.is_first:
                self._remove_old(kind)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _remove_old(self, newest_kind: str) -> None:
        """Remove all but the newest, and the newest two of those before it that are listed."""
        folder = folder_of(self.job)
        found = sorted({"/".join(name.split("/")[:3]) for name in self.store.list(f"{folder}/")} - {newest_kind})
        for kind in found[:-KEPT] if len(found) > KEPT else []:
            for name in self.store.list(f"{kind}/"):
                self.store.delete(name)

    def finish(self) -> bool:
        """Wait until what is being written is; return whether something was."""
        if self._running is None:
            return False
        running, self._running = self._running, None
        running.result()
        return True

    def poll(self) -> None:
        """Tell that a checkpoint was written, if one has been since the last call."""
        if self._running is not None and self._running.done():
            self.finish()
            self.member.saved()

    def close(self) -> None:
        """Stop; what is being written does not count."""
        self._is_closed = True
        self._thread.shutdown(wait=False, cancel_futures=True)
