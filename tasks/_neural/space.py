"""What a search may try of networks; known without torch.

The space is that of the authors of TabM (https://github.com/yandex-research/tabm, README, "Hyperparameters"), with
dropout, with layers as wide as a CPU trains in minutes, and with higher learning rates: theirs are for ten times as
many epochs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from tasks._neural.config import NeuralConfig
from tasks._neural.job import NeuralJob
from tasks._space import Dimension, Space

MAX_WIDTH = {"cpu": 512, "cuda": 1024}
SIZES = ("blocks", "width", "embedding", "bins")
"""What decides how much memory a network takes."""
NEARER = (1.0, 0.5, 0.25, 0.0)
"""Shares of the way from the run's own sizes to the largest ones."""


def network_space(job: NeuralJob, fits: Callable[[NeuralConfig], bool]) -> Space[NeuralConfig]:
    """Return what may be tried of a job's network, all of which fits its workers.

    Sizes end nearer to the run's own where larger ones do not fit. What a network of the job's architecture and
    features has no use for is left out.
    """
    dimensions = dimensions_of(job)
    for share in NEARER:
        space = Space(tuple(nearer(one, job.config, share) for one in dimensions), "epochs", even)
        if fits(largest(space, job.config)):
            break
    return space


def even(_config: NeuralConfig) -> float:
    """Return the pace of a network: all end after the same number of epochs, with the same share of their rate."""
    return 1.0


def dimensions_of(job: NeuralJob) -> tuple[Dimension, ...]:
    """Return what may be tried where memory has no end."""
    is_tabm = job.config.architecture == "tabm-mini"
    shared = job.members if job.parallelism == "tensor" else 1
    step = math.lcm(16, shared)
    widest = MAX_WIDTH["cpu" if job.device == "cpu" else "cuda"]
    # A pipeline gives every member a layer, and divides hidden ones.
    least = max(2, job.members - 2) if job.parallelism == "pipeline" and job.members > 1 else 1
    has_pieces, has_embeddings = is_tabm and bool(job.inputs.numbers), is_tabm or bool(job.inputs.codes)
    return (
        Dimension("learning_rate", 5e-4, 0.03, is_log=True),
        Dimension("blocks", least, max(4, least), is_integer=True),
        Dimension("width", -(-64 // step) * step, widest // step * step, is_integer=True, step=step),
        # A third of all draws are 0, and a quarter of the weight decay's.
        Dimension("dropout", -0.25, 0.5, zero_below=0.0),
        Dimension("weight_decay", 1e-5, 0.1, is_log=True, zero_below=1e-4),
        *([Dimension("bins", 2, 128, is_integer=True)] if has_pieces else []),
        *([Dimension("embedding", 8, 32, is_integer=True, step=4)] if has_embeddings else []),
    )


def nearer(dimension: Dimension, own: NeuralConfig, share: float) -> Dimension:
    """Return a dimension that ends after a share of the way from the run's own value; one that is no size stays."""
    if dimension.name not in SIZES:
        return dimension
    start = dimension.position(getattr(own, dimension.name))
    steps = math.floor(share * (dimension.high - start) / dimension.step)
    return replace(dimension, high=start + steps * dimension.step)


def largest(space: Space[NeuralConfig], own: NeuralConfig) -> NeuralConfig:
    """Return the network of a space that takes most memory."""
    ends = {one.name: one.high for one in space.dimensions if one.name in SIZES}
    return space.searched(own, space.positions(own) | ends)
