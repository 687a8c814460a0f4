"""Train a small network for a few epochs in one process.

Shape suffixes: B rows, F features, C classes (1 of a binary target or a regression), K submodels, O outputs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from infra.bundle.schema import Task
from tasks._neural.config import REFERENCE_BATCH_ROWS
from tasks._neural.fit import rate_factor
from tasks._neural.job import NeuralJob
from tasks._neural.network import Network, NetworkShape, Target
from tasks._techniques._network_parts import Parts, parts_from
from tasks._techniques.technique import Rows, Uncompressed

DECAY = 3e-4
WARM_SHARE = 0.1
CLIP = 1.0
PACE_STEPS = 10
"""Before so many steps there is no pace."""


@dataclass(frozen=True)
class Lesson:
    """What to learn, and how long."""

    x_BF: NDArray[np.float32]
    wanted_BC: NDArray[np.float32]
    """The target, or the probability of the second class, or of every class; these may be soft."""
    weight_B: NDArray[np.float32]
    num_epochs: int
    batch_rows: int
    rate: float
    """The largest learning rate; it rises, and falls with half a cosine."""
    seed: int
    threads: int
    """0: as torch has it."""


def fine_tuned(network: Network, target: Target, lesson: Lesson, seconds: float) -> bool:
    """Train a network in place with AdamW, whose decay is for matrices alone; return whether there was time for it.

    The same lesson gives the same network on the same machine. It is given up when it would, at the pace so far, take
    more seconds than there are.
    """
    with thread_count(lesson.threads):
        return run(network, target, lesson, seconds)


@contextmanager
def thread_count(num_threads: int) -> Iterator[None]:
    """Have torch use so many threads for a while; 0: as it does."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run(network: Network, target: Target, lesson: Lesson, seconds: float) -> bool:
    """Do what `fine_tuned` does, on the threads that there are."""
    x_BF, wanted_BC = torch.from_numpy(lesson.x_BF), torch.from_numpy(lesson.wanted_BC)
    weight_B = torch.from_numpy(lesson.weight_B)
    optimizer = optimizer_of(network, lesson.rate)
    num_steps = lesson.num_epochs * -(-len(x_BF) // lesson.batch_rows)
    generator, began, step = torch.Generator().manual_seed(lesson.seed), time.monotonic(), 0
    network.train()
    for _ in range(lesson.num_epochs):
        for rows in torch.randperm(len(x_BF), generator=generator).split(lesson.batch_rows):
            for group in optimizer.param_groups:
                group["lr"] = lesson.rate * rate_factor(step, num_steps, WARM_SHARE)
            losses_B = soft_losses(target, network(x_BF[rows]), wanted_BC[rows])
            loss = (losses_B * weight_B[rows]).sum() / weight_B[rows].sum().clamp_min(1e-12)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), CLIP)
            optimizer.step()
            step += 1
            if (time.monotonic() - began) / step * num_steps > seconds and step >= PACE_STEPS:
                return False
    network.eval()
    return all(bool(parameter.isfinite().all()) for parameter in network.parameters())


def optimizer_of(network: Network, rate: float) -> torch.optim.AdamW:
    """Return AdamW; as in a training only the products' weights decay, not biases, scales and embeddings."""
    matrices = {id(module.weight) for module in network.modules() if isinstance(module, nn.Linear)}
    parameters = list(network.parameters())
    groups = [
        {"params": [p for p in parameters if id(p) in matrices], "weight_decay": DECAY},
        {"params": [p for p in parameters if id(p) not in matrices], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rate)


def soft_losses(target: Target, raw_BKO: Tensor, wanted_BC: Tensor) -> Tensor:
    """Return the loss of every row, the mean of its submodels' own losses, shape (rows,); see `Target.losses`.

    >>> soft_losses(Target("multiclass"), torch.zeros(1, 2, 4), torch.tensor([[0.5, 0.5, 0.0, 0.0]])).exp()
    tensor([4.])
    """
    if target.task != "multiclass":
        return target.losses(raw_BKO, wanted_BC[:, 0])
    return -(functional.log_softmax(raw_BKO, -1) * wanted_BC[:, None]).sum(-1).mean(1)


def lesson_of(
    given: Uncompressed,
    rows: Sequence[Rows],
    wanted: Callable[[Rows], NDArray[np.float32]],
    num_epochs: int,
    rate_share: float,
) -> Lesson:
    """Return a lesson on some rows, with batches and, but for a share, the learning rate of the network's training."""
    job = given.job
    assert isinstance(job, NeuralJob)
    weight_B = np.concatenate([weights_of(part) for part in rows])
    if is_balanced(job) and all(np.isfinite(part.label_B).all() for part in rows):
        weight_B = balanced(np.concatenate([part.label_B for part in rows]), weight_B)
    return Lesson(
        x_BF=np.concatenate([part.x_BF for part in rows]),
        wanted_BC=np.concatenate([wanted(part) for part in rows]),
        weight_B=weight_B,
        num_epochs=num_epochs,
        batch_rows=job.batch_rows,
        rate=rate_share * job.config.learning_rate * math.sqrt(job.batch_rows / REFERENCE_BATCH_ROWS),
        seed=given.seed,
        threads=given.threads,
    )


def weights_of(rows: Rows) -> NDArray[np.float32]:
    """Return what rows weigh, shape (rows,)."""
    return np.ones(len(rows), np.float32) if rows.weight_B is None else rows.weight_B


def is_balanced(job: NeuralJob) -> bool:
    """Return whether all classes weigh the same in the network's training."""
    return job.config.class_weights == "balanced" and job.encoded.schema.task != "regression"


def balanced(label_B: NDArray[np.float32], weight_B: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return weights with which all classes weigh the same.

    >>> balanced(np.float32([0, 0, 0, 1]), np.ones(4, np.float32)).round(2)
    array([0.67, 0.67, 0.67, 2.  ], dtype=float32)
    """
    classes_B = label_B.astype(np.int64)
    sums = np.bincount(classes_B, weight_B)
    factors = sums.sum() / (np.maximum(sums, 1e-12) * np.count_nonzero(sums))
    return np.asarray(weight_B * factors[classes_B], np.float32)


def hard(rows: Rows, task: Task, num_outputs: int) -> NDArray[np.float32]:
    """Return the labels of rows as what is wanted, shape (rows, 1) or (rows, classes).

    >>> hard(Rows(np.zeros((2, 1), np.float32), np.float32([0, 2]), None), "multiclass", 3).tolist()
    [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    """
    if task != "multiclass":
        return rows.label_B[:, None]
    return np.eye(num_outputs, dtype=np.float32)[rows.label_B.astype(np.int64)]


def shape_of(job: NeuralJob, **settings: int) -> NetworkShape:
    """Return the shape of a job's network, perhaps with other settings."""
    config = job.config.model_copy(update=settings)
    return NetworkShape(job.inputs, job.encoded.schema.task, job.num_outputs, config)


def parts_of_trained(network: Network, shape: NetworkShape, like: Parts) -> Parts:
    """Return the parts of a network that was trained here, whose outputs mean what those of another one do."""
    state = {name: value.detach().numpy() for name, value in network.state_dict().items()}
    return parts_from(state, shape.inputs, like.task, like.shift, like.scale, like.has_spread)
