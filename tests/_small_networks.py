"""Small networks as techniques get them: trained parts, but not trained, and graphs without the exporter's seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from _neural_jobs import CONFIG, job_of, table
from safetensors.torch import save

from infra.bundle.encoder import matrix
from infra.bundle.network import Network as Graph
from infra.bundle.schema import Task
from tasks._encode import TARGET, WEIGHT
from tasks._learning import side_rows
from tasks._neural.job import NeuralJob
from tasks._neural.network import Network, Target, initialise
from tasks._split import TRAIN, VALIDATION
from tasks._techniques._fine_tune import shape_of
from tasks._techniques._network_graph import float_graph
from tasks._techniques._network_parts import parts_from
from tasks._techniques.technique import Rows, Uncompressed

SHIFT, SCALE = 100.0, 20.0
"""Of a regression's target."""


def uncompressed(
    folder: Path,
    task: Task = "binary",
    num_rows: int = 600,
    frame: pl.DataFrame | None = None,
    gain: float = 1,
    **settings: Any,
) -> Uncompressed:
    """Return a tabm-mini, or what the settings say, with two phases of different parameters, and its rows."""
    config = CONFIG.model_copy(update={"architecture": "tabm-mini", "width": 16, "blocks": 2, "spread": True})
    config = config.model_copy(update=settings)
    store, job = job_of(folder, table(num_rows, task) if frame is None else frame, task, config)
    sides = [
        pl.concat(side_rows(store, job, shard, side) for shard in job.encoded.shards) for side in (TRAIN, VALIDATION)
    ]
    train, validation = (rows_of(side, job) for side in sides)
    return Uncompressed(
        job=job,
        pilot=made(job, 1, gain),
        final=made(job, 2, gain),
        settings={},
        parameters={},
        num_rounds=1,
        train=train,
        validation=validation,
        threads=1,
    )


def rows_of(frame: pl.DataFrame, job: NeuralJob) -> Rows:
    """Return encoded rows as techniques get them."""
    weight = frame.get_column(WEIGHT).to_numpy().astype(np.float32) if WEIGHT in frame.columns else None
    label = frame.get_column(TARGET).to_numpy().astype(np.float32)
    return Rows(matrix(frame, job.encoded.schema.features), label, weight)


def target_of(job: NeuralJob) -> Target:
    """Return what the outputs of the networks here mean."""
    task = job.encoded.schema.task
    return Target(task, SHIFT, SCALE) if task == "regression" else Target(task)


def module(job: NeuralJob, seed: int, gain: float = 1) -> Network:
    """Return a network none of whose parts is zero, with so many times larger a head."""
    network = Network(shape_of(job))
    initialise(network, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        network.layers[str(len(network.layers) - 1)].linear.weight *= gain
    return network.eval()


def made(job: NeuralJob, seed: int, gain: float = 1) -> Graph:
    """Return a network as it is shipped, with its weights."""
    state = module(job, seed, gain).state_dict()
    target = target_of(job)
    arrays = {name: value.numpy() for name, value in state.items()}
    parts = parts_from(arrays, job.inputs, target.task, target.shift, target.scale, has_spread=True)
    return Graph(float_graph(parts), save({k: v.contiguous() for k, v in state.items()}))
