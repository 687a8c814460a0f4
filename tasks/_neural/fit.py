"""Train a network on a gang, in two phases.

A pilot learns from the training rows until the validation rows no longer gain. It tells the number of epochs, and its
scores of the validation rows, on which it has not trained, choose threshold and interval. Then a second network learns
for as many epochs, at the same learning rates, from the rows of both sides, and is shipped
(`train.include_validation`).
"""

from __future__ import annotations

import gc
import itertools
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor

from infra.bundle.model import Bundle
from infra.bundle.network import Network as Graph
from infra.errors import InputError, RunError
from infra.gpus import gpus
from infra.member import Member
from infra.memory import give_back, lean, peak_bytes, reset_peak
from infra.progress import report_progress
from infra.storage import Ref, Store, digest_bytes
from tasks._candidate import Candidate, store_bundle
from tasks._finish import Trained, finished, job_vocabulary
from tasks._gaps import CHECKED_ROWS
from tasks._neural.checkpoint import Checkpoint, Progress, Writer, load
from tasks._neural.collective import agreed, process_group, summed
from tasks._neural.config import REFERENCE_BATCH_ROWS, NeuralConfig
from tasks._neural.export import exported
from tasks._neural.job import NeuralJob
from tasks._neural.network import NetworkShape, Target, seed_of
from tasks._neural.parallel import Parallel, here, parallel_of, require_divisible
from tasks._neural.rows import Batch, Loader, Order, Piece, Rows, cut
from tasks._reporting import Usage
from tasks._split import TRAIN, VALIDATION
from tasks._train import OBJECTIVES

REPORT_SECONDS = 0.5
LOOK_STEPS = 20
"""Steps between two looks at what takes time to ask: whether losses are numbers, and whether to write a checkpoint."""
JUDGED_ROWS = (256, 8192)
"""Rows that are scored at once: as many as are learnt from at once, within these limits."""
LEAST_RATE = 0.02
"""Share of the learning rate that is left at the end."""
FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


@dataclass
class Timer:
    """Where the time of the training steps went."""

    seconds: float = 0.0
    loader_seconds: float = 0.0
    num_rows: int = 0


@dataclass
class Journey:
    """Where a training starts, how it tells how far it is, and where it leaves checkpoints."""

    member: Member
    store: Store
    job: NeuralJob
    start: Checkpoint | None
    writer: Writer
    timer: Timer = field(default_factory=Timer)
    num_steps: int = 0
    phase: int = 0
    _saved_at: float = field(default_factory=time.monotonic)
    _told_at: float = field(default_factory=time.monotonic)
    _curve: list[tuple[int, float, float]] = field(default_factory=list)

    def is_due(self) -> bool:
        """Return whether all members are to leave a checkpoint now."""
        is_due = time.monotonic() - self._saved_at >= self.job.config.checkpoint_seconds and not self.writer.is_busy
        return agreed(self.member, is_due)

    def save(self, state: dict[str, Any], progress: Progress) -> None:
        """Begin to write a checkpoint."""
        self.writer.save(state, progress)
        self._saved_at = time.monotonic()

    def tell(self, done: int, num_all: int, point: tuple[int, float, float] | None = None) -> None:
        """Report how many steps there are, and the losses of epochs since the last time; not each by itself."""
        if not self.member.is_first:
            return
        if point is not None:
            self._curve.append(point)
        if point is not None or time.monotonic() - self._told_at >= REPORT_SECONDS:
            self._told_at = time.monotonic()
            report_progress({"done": done, "total": num_all, "curve": self._curve, "phase": self.phase})
            self._curve = []


@dataclass(frozen=True)
class Step:
    """What is to be known of a step until the next look: whose rows it had, and what came of them, on the device."""

    pieces: Sequence[Piece]
    positions: NDArray[np.int64]
    epoch: int
    num_rows: int
    loss: Tensor
    norm: Tensor


@dataclass(frozen=True)
class Learnt:
    """The network of a phase, on the first member."""

    shape: NetworkShape
    target: Target
    state: dict[str, Tensor]
    rows_BF: np.ndarray
    """Some rows, on which the graph is checked."""
    progress: Progress
    num_rows: int


def train(member: Member, store: Store, job: NeuralJob, start: Checkpoint | None = None) -> Trained:
    """Train a network as one of a gang, and put its bundle into the store."""
    require_device(job)
    require_divisible(job.inputs, job.config, job.parallelism, member.num_members)
    reset_peak()
    began = time.monotonic()
    torch.set_num_threads(job.threads or member.threads)
    # Layers that are whole for a moment come and go at each step.
    is_lean = job.parallelism == "fsdp" and member.num_members > 1
    with process_group(member, job.device), lean() if is_lean else nullcontext():
        journey = Journey(member, store, job, start, Writer(store, job, member))
        try:
            progress, graph = pilot_of(journey)
            num_final = None
            if job.include_validation:
                del graph  # until it is needed, the store has it
                state = start.progress if start and start.progress.phase else restarted(progress)
                second = learnt(journey, state, progress.best_epoch)
                graph, num_final = graph_of(member, second), second.num_rows
            journey.writer.finish()
        finally:
            journey.writer.close()
    usage = Usage(peak_bytes(), time.monotonic() - began, journey.num_steps)
    if not member.is_first:
        return Trained(usage)
    assert graph is not None, "the first member has it"
    return Trained(usage, candidate_of(journey, progress, graph, num_final))


def pilot_of(journey: Journey) -> tuple[Progress, Graph | None]:
    """Train the first phase; return how it went and, on the first member if it was trained here, its network."""
    start, store = journey.start, journey.store
    if start is not None and start.progress.phase:
        return start.progress, None
    first = learnt(journey, start.progress if start else Progress(), journey.job.epochs or journey.job.max_epochs)
    graph = graph_of(journey.member, first)
    return replace(first.progress, pilot=store_network(store, graph) if graph else None), graph


def graph_of(member: Member, learnt: Learnt) -> Graph | None:
    """Return a phase's network as it is shipped, on the first member, and let go of the tensors."""
    if not member.is_first:
        return None
    gc.collect()  # divided layers lie in circles
    give_back()
    graph = exported(learnt.shape, learnt.target, learnt.state, learnt.rows_BF)
    give_back()
    return graph


def restarted(progress: Progress) -> Progress:
    """Return the state of a second phase before its first step."""
    return replace(progress, phase=1, epoch=0, batch=0, step=0, epoch_sums=(0.0, 0.0))


def store_network(store: Store, graph: Graph) -> tuple[Ref, Ref]:
    """Put graph and weights into the store, under the hash of their content."""
    assert graph.weights is not None, "an exported network has its weights"
    stem = f"pilots/{digest_bytes(graph.onnx)[:32]}"
    return store.put(f"{stem}.onnx", graph.onnx), store.put(f"{stem}.safetensors", graph.weights)


def device_of(member: Member, job: NeuralJob) -> str:
    """Return the device of a member; those of one machine have a GPU each, if they see the same ones."""
    return "cpu" if job.device == "cpu" else f"cuda:{member.rank % max(1, len(gpus()))}"


def require_device(job: NeuralJob) -> None:
    """Raise a RunError if this worker lacks the device of a job; no other one takes its place."""
    if job.device != "cpu" and not torch.cuda.is_available():
        build = "" if torch.version.cuda else "; its torch is built without CUDA"
        raise RunError(
            f"A training on a GPU needs one, but got device={job.device} on a worker that has gpus={len(gpus())}"
            f'{build}. Give the workers GPUs, or set train.plan.device = "cpu".'
        )


def learnt(journey: Journey, progress: Progress, num_epochs: int) -> Learnt:
    """Run a phase from where it was left; with validation rows beside it until they no longer gain."""
    fit = fit_of(journey, progress)
    if journey.start is not None and journey.start.progress.phase == progress.phase:
        fit.take_up(journey.start)
    fit.run(num_epochs)
    loader, parallel = fit.loader, fit.parallel
    journey.timer.loader_seconds += loader.seconds
    fit.let_go()
    state = parallel.whole_state()
    is_first, pieces = journey.member.is_first, loader.order.first_pieces(CHECKED_ROWS)
    some = loader.rows.read(pieces) if is_first else np.empty((0, 0), np.float32)
    loader.close()
    return Learnt(parallel.shape, parallel.target, state, some, fit.progress, len(loader.rows))


def fit_of(journey: Journey, progress: Progress, share: float = 1.0) -> Fit:
    """Return a phase at its first step, perhaps on a share of its rows; the first one has validation rows beside it."""
    member, store, job = journey.member, journey.store, journey.job
    journey.phase = progress.phase
    sides = (TRAIN, VALIDATION) if progress.phase else (TRAIN,)
    rows = Rows(store, job, *sides, check=member.check, share=share)
    if not len(rows):
        raise InputError("A network learns from rows, but got num_rows=0 on the training side. Widen data.source.")
    target = target_of(job, rows)
    if job.config.class_weights == "balanced" and target.task != "regression":
        rows.balance(max(2, job.num_outputs))
    shape = NetworkShape(job.inputs, target.task, job.num_outputs, job.config)
    device = device_of(member, job)
    parallel = parallel_of(job.parallelism, member, shape, target, job.seed, device)
    order = Order(rows.sizes, job.window_rows, job.seed)
    loader = Loader(rows, order, min(job.batch_rows, len(rows)), parallel.part, device)
    judges = None
    if not progress.phase:
        judges = Judges(Rows(store, job, VALIDATION, check=member.check), parallel, job.micro_batch_rows)
    progress = replace(progress, num_train_rows=progress.num_train_rows or len(rows))
    if judges is not None:
        progress = replace(progress, num_validation_rows=len(judges.rows))
    fit = Fit(journey, parallel, loader, judges, progress)
    # Where members have the outputs of the same rows, they must leave out the same ones.
    torch.manual_seed(seed_of(job.seed, f"dropout {0 if parallel.is_replicated else member.rank}"))
    return fit


def target_of(job: NeuralJob, rows: Rows) -> Target:
    """Return what the outputs mean; a regression's are in deviations of the labels from their mean."""
    task = job.encoded.schema.task
    return Target(task, *rows.label_moments) if task == "regression" else Target(task)


class Judges:
    """The validation rows, and the loss of a network on them: the log loss of what it serves, or its RMSE."""

    def __init__(self, rows: Rows, parallel: Parallel, micro_batch_rows: int) -> None:
        """Take this member's part of the rows, as many as every other one's, filled up with rows that weigh nothing."""
        self.rows, self._parallel = rows, parallel
        rank, num_parts = parallel.part
        share = -(-len(rows) // num_parts)
        # Equal chunks, which a pipeline cuts into as many parts as it has members.
        unit, (least, most) = parallel.member.num_members, JUDGED_ROWS
        self._chunk = -(-min(max(least, min(most, micro_batch_rows)), share) // unit) * unit
        mine = np.arange(rank, len(rows), num_parts)
        places = np.zeros(-(-share // self._chunk) * self._chunk, np.int64)
        places[: len(mine)] = mine
        pieces = cut(rows.sizes, len(rows))
        self._x_RF = torch.from_numpy(rows.read(pieces, places)).to(parallel.device)
        self._label_R = torch.from_numpy(rows.label_R[places]).to(parallel.device)
        weights = rows.weight_R[places].copy()
        weights[len(mine) :] = 0
        self._weight_R = torch.from_numpy(weights).to(parallel.device)
        self._place_R = torch.from_numpy(places).to(parallel.device)

    def loss(self) -> float:
        """Return the loss of all rows; every member calls it, and gets the same."""
        sums = torch.zeros(2, dtype=torch.float64, device=self._parallel.device)
        for _, loss_B, weight_B in self._measured():
            sums[0] += (loss_B * weight_B).sum()
            sums[1] += weight_B.sum()
        total, weight = summed(self._parallel.member, float(sums[0]), float(sums[1]))
        mean = total / weight
        return math.sqrt(mean) if self._parallel.target.task == "regression" else mean

    def fold_losses(self, most: int) -> tuple[float, ...]:
        """Return the losses of so many parts of the rows, of RMSE the square; their mean is the loss of all rows.

        The parts are those of `tasks._trial.fold_losses`.
        """
        num_folds = min(most, len(self.rows))
        sums = torch.zeros(2, num_folds, dtype=torch.float64, device=self._parallel.device)
        for some, loss_B, weight_B in self._measured():
            folds = self._place_R[some] % num_folds
            sums[0].index_add_(0, folds, loss_B * weight_B)
            sums[1].index_add_(0, folds, weight_B)
        found = np.array(summed(self._parallel.member, *sums.ravel().tolist())).reshape(2, num_folds)
        return tuple(float(loss) for loss in found[0] * num_folds / found[1].sum())

    def _measured(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield, where they are known, which rows of this member, their losses and their weights."""
        parallel = self._parallel
        parallel.model.eval()
        for start in range(0, len(self._label_R), self._chunk):
            parallel.member.check()
            some = slice(start, start + self._chunk)
            raw_BKO = parallel.raw(self._x_RF[some])
            if raw_BKO is not None and (parallel.splits_rows or parallel.counts):
                scores, _ = parallel.target.scores(raw_BKO)
                yield (
                    some,
                    row_losses(parallel.target, scores, self._label_R[some]).double(),
                    self._weight_R[some].double(),
                )
        parallel.model.train()


def row_losses(target: Target, scores: Tensor, label_B: Tensor) -> Tensor:
    """Return the loss of served scores, shape (rows,): log loss, or squared error in the target's unit."""
    least = torch.finfo(torch.float32).tiny
    if target.task == "regression":
        return (scores.double() - label_B.double()) ** 2
    if target.task == "multiclass":
        return -scores.gather(1, label_B.long()[:, None])[:, 0].clamp_min(least).log()
    return -torch.where(label_B > 0, scores, 1 - scores).clamp_min(least).log()


class Fit:
    """The state of a phase: network, optimizer, the best network so far, and where in which epoch it is."""

    def __init__(
        self, journey: Journey, parallel: Parallel, loader: Loader, judges: Judges | None, progress: Progress
    ) -> None:
        """Begin at the first step."""
        self.journey, self.parallel, self.loader, self.judges = journey, parallel, loader, judges
        self.progress, self.config = progress, journey.job.config
        self.optimizer = optimizer_of(parallel, self.config)
        self.rate = self.config.learning_rate * math.sqrt(loader.batch_rows / REFERENCE_BATCH_ROWS)
        self.epoch_steps = loader.order.num_batches(0, loader.batch_rows)
        self.num_steps = journey.job.max_epochs * self.epoch_steps
        """In which the learning rate falls to its end."""
        self.mean = self._copied() if self.config.ema else None
        """A running mean of the parameters."""
        self.best: dict[str, Tensor] | None = None
        self._sums = (0.0, 0.0)
        self._recent: list[Step] = []

    def run(self, num_epochs: int) -> None:
        """Run epochs until the last one, or until validation rows no longer gain, and keep the best network."""
        for epoch in range(self.progress.epoch, num_epochs):
            self._run_epoch(epoch, num_epochs)
            if self.judges is not None and self._judge(epoch, num_epochs):
                break
            self.progress = replace(self.progress, epoch=epoch + 1, batch=0, epoch_sums=(0.0, 0.0))
        chosen = self.best if self.best is not None else self.mean
        if chosen is not None:
            self._put(chosen)

    def let_go(self) -> None:
        """Give back all memory but the network's."""
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer.state.clear()
        self.mean = self.best = None
        give_back()

    def _run_epoch(self, epoch: int, num_epochs: int) -> None:
        journey, member, progress = self.journey, self.journey.member, self.progress
        num_phases = 2 if journey.job.include_validation else 1
        num_all = num_epochs * self.epoch_steps * (num_phases if not progress.phase else 1)
        before = 0
        if progress.phase:
            before = len(progress.validation_curve) * self.epoch_steps
            num_all += before
        self.parallel.model.train()
        began = time.perf_counter()
        for batch in self.loader.epoch(epoch, progress.batch):
            member.check()
            self._step(batch)
            journey.num_steps += 1
            journey.timer.num_rows += batch.num_rows
            self.progress = replace(self.progress, epoch=epoch, batch=batch.number + 1, step=self.progress.step + 1)
            journey.tell(before + self.progress.step, num_all)
            if self.progress.step % LOOK_STEPS == 0:
                self._look()
        self._settle()
        journey.timer.seconds += time.perf_counter() - began

    def _step(self, batch: Batch) -> None:
        """Learn from a batch."""
        rate = self.rate * rate_factor(self.progress.step, self.num_steps, self.config.warmup_fraction)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self.parallel.backward(batch, self.journey.job.micro_batch_rows)
        norm = self.parallel.clip(self.config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.mean is not None:
            with torch.no_grad():
                for name, parameter in self.parallel.parameters().items():
                    here(self.mean[name]).lerp_(here(parameter), 1 - self.config.ema)
        self._recent.append(Step(batch.pieces, batch.positions, batch.epoch, batch.num_rows, loss, norm))

    def _look(self) -> None:
        """Do what is not done at each step."""
        self._settle()
        self.journey.writer.poll()
        if self.journey.is_due():
            self._add_up()
            self.journey.save(self.state(), self.progress)

    def _add_up(self) -> None:
        """Add what all members have found since the last time to the sums of the epoch."""
        total, weight = summed(self.journey.member, *self._sums)
        self._sums = (0.0, 0.0)
        share = self.journey.member.num_members
        total /= share if self.parallel.is_replicated else 1
        before = self.progress.epoch_sums
        self.progress = replace(self.progress, epoch_sums=(before[0] + total, before[1] + weight / share))

    def _settle(self) -> None:
        """Add up the losses of the steps since the last time; raise a RunError if one, or a gradient, is no number."""
        steps, self._recent = self._recent, []
        if not steps:
            return
        losses = torch.stack([step.loss for step in steps]).tolist()
        norms = torch.stack([step.norm for step in steps]).tolist()
        for number, (step, loss, norm) in enumerate(zip(steps, losses, norms, strict=True), 1):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                self._refuse(step, self.progress.step - len(steps) + number)
            self._sums = (self._sums[0] + loss, self._sums[1] + step.num_rows)

    def _refuse(self, step: Step, number: int) -> None:
        names = self.loader.rows.shards_of(step.pieces, np.unique(step.positions))
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        raise RunError(
            f"A training has a finite loss, but got loss=nan at step={number:,} (epoch {step.epoch + 1}) on rows of "
            f"{shown}. Look for extreme values of the target, and lower train.neural.learning_rate."
        )

    def _judge(self, epoch: int, num_epochs: int) -> bool:
        """Measure the network after an epoch; return whether the training is over."""
        assert self.judges is not None, "there are validation rows in the first phase"
        with self._averaged():
            loss = self.judges.loss()
        self._add_up()
        mean = self.progress.epoch_sums[0] / self.progress.epoch_sums[1]
        train_loss = math.sqrt(mean) * self.parallel.target.scale if self.parallel.target.task == "regression" else mean
        progress = self.progress
        curve = (*progress.validation_curve, loss)
        is_best = not progress.validation_curve or loss < min(progress.validation_curve)
        if not math.isfinite(loss):
            name = OBJECTIVES[self.parallel.target.task][1]
            raise RunError(
                f"A training has a finite loss, but got {name}={loss} on the validation rows after epoch {epoch + 1}. "
                "Look for extreme values of the target, and lower train.neural.learning_rate."
            )
        if is_best and self.journey.job.epochs is None:
            self.best = self._copied(self.mean)
        self.progress = replace(
            progress,
            train_curve=(*progress.train_curve, train_loss),
            validation_curve=curve,
            best_epoch=epoch + 1 if is_best else progress.best_epoch,
        )
        patience = self.config.num_patience(self.journey.job.max_epochs)
        is_over = epoch + 1 == num_epochs
        if self.journey.job.epochs is None:
            is_over = is_over or epoch + 1 - self.progress.best_epoch >= patience
        elif is_over:
            self.progress = replace(self.progress, best_epoch=num_epochs)
        num_phases = 2 if self.journey.job.include_validation else 1
        self.journey.tell(self.progress.step, num_epochs * self.epoch_steps * num_phases, (epoch, train_loss, loss))
        return is_over

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Have the running mean in the network's place."""
        if self.mean is None:
            yield
            return
        own = self._copied()
        self._put(self.mean)
        try:
            yield
        finally:
            self._put(own)

    def _copied(self, values: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return copies of parameters, by default the network's own."""
        source = self.parallel.parameters() if values is None else values
        return {name: value.detach().clone() for name, value in source.items()}

    def _put(self, values: dict[str, Tensor]) -> None:
        """Copy values into the network."""
        with torch.no_grad():
            for name, parameter in self.parallel.parameters().items():
                here(parameter).copy_(here(values[name]))

    def state(self) -> dict[str, Any]:
        """Return all tensors that a checkpoint has, as they are placed."""
        network = self.parallel.network
        found: dict[str, Any] = {
            "network": {name: value.detach() for name, value in self.parallel.parameters().items()},
            "optimizer": get_optimizer_state_dict(network, self.optimizer, options=FLAT),
        }
        found |= {"mean": self.mean} if self.mean is not None else {}
        return found | ({"best": self.best} if self.best is not None else {})

    def take_up(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint."""
        self.progress = checkpoint.progress
        if self.progress.validation_curve and not self.progress.phase and self.journey.job.epochs is None:
            self.best = self._copied()
        state = self.state()
        load(self.journey.store, checkpoint, state, self.journey.member)
        self._put(state["network"])
        set_optimizer_state_dict(self.parallel.network, self.optimizer, state["optimizer"], options=FLAT)
        random_state = checkpoint.random_state(self.journey.member)
        if random_state is not None:
            torch.set_rng_state(random_state)


def optimizer_of(parallel: Parallel, config: NeuralConfig) -> torch.optim.AdamW:
    """Return AdamW; only the products' weights decay, not biases, scales and embeddings.

    Divided and whole parameters are groups of their own: what works on many tensors at once takes no mixture.
    """
    decayed = {
        f"{prefix}.weight" for prefix, module in parallel.network.named_modules() if isinstance(module, nn.Linear)
    }
    groups = [
        {
            "params": [
                p
                for name, p in parallel.parameters().items()
                if ((name in decayed), isinstance(p, DTensor)) == (is_decayed, is_divided)
            ],
            "weight_decay": config.weight_decay if is_decayed else 0.0,
        }
        for is_decayed, is_divided in itertools.product((True, False), repeat=2)
    ]
    kept = [group for group in groups if group["params"]]
    return torch.optim.AdamW(cast(Any, kept), lr=config.learning_rate, foreach=True)


def rate_factor(step: int, num_steps: int, warmup_fraction: float) -> float:
    """Return by what the learning rate is multiplied: a straight rise, then half a cosine down to LEAST_RATE.

    >>> [round(rate_factor(step, 101, 0.1), 3) for step in (0, 9, 10, 55, 100, 200)]
    [0.1, 1.0, 1.0, 0.51, 0.02, 0.02]
    """
    num_rising = int(num_steps * warmup_fraction)
    if step < num_rising:
        return (step + 1) / num_rising
    done = min(1.0, (step - num_rising) / max(1, num_steps - 1 - num_rising))
    return LEAST_RATE + (1 - LEAST_RATE) * (1 + math.cos(math.pi * done)) / 2


def candidate_of(journey: Journey, progress: Progress, graph: Graph, num_final_rows: int | None) -> Candidate:
    """Put a trained network into the store as a bundle."""
    store, job, timer = journey.store, journey.job, journey.timer
    stored = progress.pilot
    assert stored is not None, "a first phase is over"
    pilot = graph if num_final_rows is None else Graph(store.get(stored[0]))
    facts = {**job.facts, "num_train_rows": num_final_rows or progress.num_train_rows}
    bundle = Bundle(job.encoded.schema, job_vocabulary(store, job), graph, facts=facts, has_spread=job.config.spread)
    shipped = store_bundle(store, finished(store, job, bundle, pilot))
    patience = job.config.num_patience(job.max_epochs)
    return Candidate(
        family="neural",
        bundle=shipped,
        pilot=stored[0],
        num_rounds=progress.best_epoch,
        max_rounds=job.epochs or job.max_epochs,
        is_stopped=len(progress.validation_curve) - progress.best_epoch >= patience,
        loss=OBJECTIVES[job.encoded.schema.task][1],
        train_curve=progress.train_curve,
        validation_curve=progress.validation_curve,
        importance={},
        num_train_rows=progress.num_train_rows,
        num_validation_rows=progress.num_validation_rows,
        num_final_rows=num_final_rows,
        parameters={
            **{name: value for name, value in job.config.model_dump(mode="json").items() if value is not None},
            "batch_rows": job.batch_rows,
            "parallelism": job.parallelism,
        },
        settings=job.config.model_dump(mode="json"),
        features=tuple(feature.name for feature in job.encoded.schema.features),
        encoding=job.encoded.schema.encoding(),
        refit_of=job.refit_of,
        rows_per_second=timer.num_rows / timer.seconds if timer.seconds else None,
        loader_share=timer.loader_seconds / timer.seconds if timer.seconds else None,
    )
