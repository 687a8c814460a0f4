"""What a training learns from: its job, and the rows of each side as matrices of XGBoost's."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xgboost as xgb
from numpy.typing import NDArray

from infra.bundle.encoder import matrix
from infra.member import Member
from infra.memory import give_back
from infra.storage import Store
from tasks._encode import TARGET, Shard, mapped_shard
from tasks._learning import LearningJob, chosen_rows, shares_of
from tasks._origin import Base, Mode
from tasks._train import XGBoostConfig

PIECE_VALUES = 1_000_000
"""Values that are copied from a shard at once, 4 MB; XGBoost makes of each piece what it needs and forgets it."""


@dataclass(frozen=True, kw_only=True)
class TrainingJob(LearningJob):
    """All that workers need to train trees."""

    config: XGBoostConfig
    is_external: bool = False
    """Whether the rows stay on the worker's disk, and a batch at a time is in memory."""
    batch_rows: int = 0
    """Rows of such a batch; 0: those of a shard."""
    checkpoint_rounds: int = 50
    """Rounds of a chunk. Each chunk draws rows and features from a seed of its own, so that a training that goes on
    from a checkpoint draws what an undisturbed one does."""
    rounds: int | None = None
    """Exactly so many, however the validation rows fare; None: until these no longer gain."""
    base: Base | None = None
    """To whose trees rounds are added; None: all are grown anew."""
    refit_of: str | None = None
    """The version whose settings and number of rounds are kept."""

    @property
    def mode(self) -> Mode:
        """Return what is kept of another version."""
        return "continue" if self.base else "refit" if self.refit_of else "fresh"

    @property
    def base_rounds(self) -> int:
        """Return how many rounds there are before the first one."""
        return self.base.num_rounds if self.base else 0

    @property
    def max_rounds(self) -> int:
        """Return how many rounds may be grown."""
        return self.config.rounds - self.base_rounds if self.rounds is None else self.rounds


@dataclass(frozen=True)
class Batch:
    """Rows as XGBoost takes them, in order."""

    x_BF: NDArray[np.float32]
    """Shape (rows, features)."""
    label: NDArray[Any]
    """Shape (rows,), as `weight`."""
    weight: NDArray[np.float32] | None

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.label)

    def part(self, start: int, size: int) -> Batch:
        """Return some rows, without a copy."""
        some = slice(start, start + size)
        return Batch(self.x_BF[some], self.label[some], None if self.weight is None else self.weight[some])

    def copy_from(self, other: Batch) -> None:
        """Take the values of as many other rows."""
        self.x_BF[:] = other.x_BF
        self.label[:] = other.label
        if self.weight is not None and other.weight is not None:
            self.weight[:] = other.weight


def paged(pieces: Iterable[Batch], size: int) -> Iterator[Batch]:
    """Put pieces together to pages of a size, the last one smaller; all pages are the same memory, one after another.

    >>> pieces = [Batch(np.ones((n, 2), np.float32), np.ones(n), None) for n in (3, 4)]
    >>> [len(page) for page in paged(pieces, 5)]
    [5, 2]
    """
    page: Batch | None = None
    num_rows = 0
    for piece in pieces:
        if page is None:
            like = (piece.x_BF, piece.label, *(() if piece.weight is None else (piece.weight,)))
            x_BF, label, *weight = (np.empty((size, *part.shape[1:]), part.dtype) for part in like)
            page = Batch(x_BF, label, weight[0] if weight else None)
        start = 0
        while start < len(piece):
            taken = min(size - num_rows, len(piece) - start)
            page.part(num_rows, taken).copy_from(piece.part(start, taken))
            start, num_rows = start + taken, num_rows + taken
            if num_rows == size:
                yield page
                num_rows = 0
    if page is not None and num_rows:
        yield page.part(0, num_rows)


class ShardBatches(xgb.DataIter):
    """Sides of the split as batches; of one shard at a time the file is mapped, and the rows of one batch are copied.

    With `batch_rows` there are as many in each. Without any row there is one empty batch, so that a member without
    rows on a side still takes part.
    """

    def __init__(
        self,
        store: Store,
        job: TrainingJob,
        *sides: int,
        shards: Sequence[Shard] | None = None,
        check: Callable[[], None] = lambda: None,
        cache_prefix: str | None = None,
        share: float = 1.0,
    ) -> None:
        """Name the sides, the shards (all by default), and what is called between batches and may stop it.

        `share` is as for `chosen_rows`.
        """
        self._store, self._job, self._sides = store, job, sides
        self._shards = job.encoded.shards if shards is None else shards
        self._check, self._share = check, share
        self._batches: Iterator[Batch] = iter(())
        super().__init__(cache_prefix=cache_prefix, release_data=True)
        self.reset()

    def next(self, input_data: Callable[..., Any]) -> bool:
        """Hand the next batch to XGBoost; False at the end."""
        self._check()
        batch = next(self._batches, None)
        if batch is None:
            return False
        features = self._job.encoded.schema.features
        input_data(
            data=batch.x_BF,
            label=batch.label,
            feature_names=[feature.name for feature in features],
            feature_types=["c" if feature.is_categorical else "q" for feature in features],
            **({} if batch.weight is None else {"weight": batch.weight}),
        )
        return True

    def margins(self, base: xgb.Booster) -> NDArray[np.float32]:
        """Return what a booster gives for all rows, before the link: shape (rows,), or (rows, classes)."""
        found = []
        for batch in self._divided():
            self._check()
            found += [base.inplace_predict(batch.x_BF, predict_type="margin", missing=np.nan)] if len(batch) else []
        return np.concatenate(found) if found else np.empty(0, np.float32)

    def reset(self) -> None:
        """Start again from the first shard."""
        self._batches = self._divided()

    def _divided(self) -> Iterator[Batch]:
        """Yield batches of at least one row; one empty batch where there is no row at all."""
        pieces = (piece for shard in self._shards for piece in self._pieces(shard))
        num_rows = 0
        for batch in paged(pieces, self._job.batch_rows) if self._job.batch_rows else pieces:
            num_rows += len(batch)
            yield batch
        if not num_rows:
            shape = (0, len(self._job.encoded.schema.features))
            yield Batch(np.empty(shape, np.float32), np.empty(0, np.float32), None)

    def _pieces(self, shard: Shard) -> Iterator[Batch]:
        """Yield the rows of a shard, so many at once that what is in memory of it stays small."""
        with mapped_shard(self._store, shard) as (frame, let_go):
            rows, weights = chosen_rows(self._store, self._job, frame, *self._sides, share=self._share)
            features = self._job.encoded.schema.features
            label = frame.get_column(TARGET).to_numpy()
            size = max(1, PIECE_VALUES // max(1, len(features)))
            for start in range(0, len(rows), size):
                part = rows[start : start + size]
                piece = Batch(matrix(frame, features, part), label[part], None if weights is None else weights[part])
                let_go()
                yield piece
                del piece


class Matrices:
    """Makes a member's matrices; the files of those that stay on disk go when the matrix does."""

    def __init__(self, member: Member, store: Store, job: TrainingJob) -> None:
        """Take the member's share of the shards."""
        self._member, self._store, self._job = member, store, job
        self.shards = shares_of(job.encoded.shards, member.num_members)[member.rank]
        self.threads = job.threads or member.threads

    def of(
        self, *sides: int, ref: xgb.DMatrix | None = None, base: xgb.Booster | None = None, share: float = 1.0
    ) -> xgb.DMatrix:
        """Return a share of the quantized rows of these sides, with the bins of another matrix if one is given.

        With a base, they begin with its scores. These are of the rows as they are: its trees have other bins, and
        what it gives for quantized rows is another model's (see docs/log.md).

        The bins of a gang are those of all its rows: its members find them together.
        """
        if not self._job.is_external:
            return self._made(xgb.QuantileDMatrix, sides, ref, base, share)
        folder = tempfile.mkdtemp(prefix="rows-", dir=self._member.scratch or None)
        try:
            made = self._made(xgb.ExtMemQuantileDMatrix, sides, ref, base, share, cache_prefix=f"{folder}/cache")
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        weakref.finalize(made, shutil.rmtree, folder, ignore_errors=True)  # after the library has removed its files
        return made

    def _made(
        self,
        kind: Callable[..., xgb.DMatrix],
        sides: tuple[int, ...],
        ref: xgb.DMatrix | None,
        base: xgb.Booster | None,
        share: float,
        cache_prefix: str | None = None,
    ) -> xgb.DMatrix:
        job, check = self._job, self._member.check
        batches = ShardBatches(
            self._store, job, *sides, shards=self.shards, check=check, cache_prefix=cache_prefix, share=share
        )
        made = kind(batches, max_bin=job.config.max_bin, nthread=self.threads, enable_categorical=True, ref=ref)
        if base is not None and made.num_row():
            base.set_param({"nthread": self.threads})
            made.set_base_margin(batches.margins(base))
        give_back()
        return made


def library_parameters(job: TrainingJob) -> dict[str, float | int | str]:
    """Return XGBoost's parameters of a job, but for seed and threads."""
    schema = job.encoded.schema
    classes = {"num_class": len(schema.labels)} if schema.task == "multiclass" else {}
    device = {"device": job.device} if job.device != "cpu" else {}
    return {**job.config.parameters(schema.task), **classes, **device}
