"""Where and how a network is trained, and what that is predicted to take; known without torch.

One member while network and rows fit, several that divide the rows next, and several that divide the network where it
fits no member. Bytes are counted, seconds are not: they depend on the machine far more than trees do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from infra.errors import InputError
from tasks._neural.config import NeuralConfig, Parallelism
from tasks._neural.inputs import MAX_CODE, NetworkInputs
from tasks._plans import Device, Machine, PlanConfig, size_text

FLOAT_BYTES = 4
BASE_BYTES = 670 * 2**20
"""Of a worker's process with torch and the exporter, before any row; measured, as what follows (docs/log.md)."""
STATE_COPIES = 10
"""Of the parameters: themselves, gradients, AdamW's two moments, the best so far, those on their way into a
checkpoint, and what the optimizer works with."""
EXPORT_COPIES = 4
"""Of the parameters on the first member at the end, when gradients and moments are gone."""
OUTPUT_COPIES = 5
"""Of a layer's outputs that are kept for the backward pass, or are there during it."""
ROW_INDEX_BYTES = 12
"""Of a row: where it lies, its label and its weight."""
WINDOW_ROW_BYTES = 250
"""Of a row of a window, beside its features: its place in the order, and what it takes to put it there."""
DATA_SHARE = 0.5
"""Of the free memory, for rows; the rest is for outputs of layers."""
GPU_SHARE = 0.85
MIN_MICRO_ROWS = 16
MIN_WINDOW_ROWS = 10_000
ROWS_PER_SECOND_PAY = 4
"""Hosts pay when a step computes so many times as long as it takes to exchange the gradients."""
FLOPS = {"cpu": 2e10, "cuda": 3e13}
"""Of a thread, or a GPU: about what small matrices reach."""
LINK_BYTES = 1e9
"""Between two hosts in a second."""


@dataclass(frozen=True)
class NetworkPlan:
    """How a network is trained."""

    device: Device
    parallelism: Parallelism
    members: int
    threads: int
    """Of each member."""
    batch_rows: int
    micro_batch_rows: int
    window_rows: int
    max_epochs: int
    num_parameters: int
    rows: int
    predicted_bytes: int
    """Peak memory of a member, on the device that it computes on."""
    is_resident: bool
    """Whether all rows stay in memory."""
    why: str

    @property
    def sentence(self) -> str:
        """Return the plan in one line."""
        each = " each" if self.members > 1 else ""
        threads = f"{self.threads} thread{'s' * (self.threads != 1)}"
        shared = f", {self.parallelism}" if self.members > 1 else ""
        held = "all rows in memory" if self.is_resident else f"windows of {self.window_rows:,} rows in memory"
        return (
            f"Network: {self.members} worker{'s' * (self.members != 1)}, {threads}{each}, {self.device}{shared}, "
            f"{held}: {self.rows:,} rows, {self.num_parameters:,} parameters, steps of {self.batch_rows:,} rows, at "
            f"most {self.max_epochs:,} epochs, about {size_text(self.predicted_bytes)}{each}; {self.why}"
        )


@dataclass(frozen=True)
class NetworkSize:
    """What decides a network's memory."""

    num_parameters: int
    largest: int
    """Parameters of the largest layer."""
    row_outputs: int
    """Numbers that a row becomes in all layers together."""
    row_products: int
    """Multiplications of a row, forward."""
    num_features: int


def size_of(inputs: NetworkInputs, config: NeuralConfig, num_outputs: int) -> NetworkSize:
    """Count a network's parameters and what it computes of a row."""
    is_tabm = config.architecture == "tabm-mini"
    submodels = config.submodels if is_tabm else 1
    numbers, width, embedding = len(inputs.numbers), config.width, config.embedding
    table = inputs.num_table_rows * embedding
    pieces = numbers * (max((len(n.edges) - 1 for n in inputs.numbers), default=0) + 3) * embedding if is_tabm else 0
    first = len(inputs.codes) * embedding + (numbers * embedding if is_tabm else 2 * numbers)
    scales = submodels * first if is_tabm else 0
    hidden = [first * width + width, *[width * width + width] * (config.blocks - 1)]
    head = submodels * (width + 1) * num_outputs
    return NetworkSize(
        num_parameters=table + pieces + scales + sum(hidden) + head,
        largest=max(table + pieces + scales, head, *hidden),
        row_outputs=submodels * (first + 3 * config.blocks * width + num_outputs),
        row_products=submodels * (sum(hidden) + width * num_outputs),
        num_features=inputs.num_features,
    )


def plan_network(
    inputs: NetworkInputs,
    config: NeuralConfig,
    num_outputs: int,
    num_rows: int,
    num_validation_rows: int,
    machines: Sequence[Machine],
    asked: PlanConfig,
) -> NetworkPlan:
    """Return how to train a network.

    Args:
        inputs: its features.
        config: its configuration.
        num_outputs: numbers that it gives of a row and submodel.
        num_rows: from which it learns in the first phase.
        num_validation_rows: which are in memory beside them, and from which it learns too in the second one.
        machines: the workers.
        asked: which device, and how many workers.

    Raises:
        InputError: it asks for what is not there, or the network fits nowhere.
    """
    check_codes(inputs)
    device, able = _able(machines, asked)
    size = size_of(inputs, config, num_outputs)
    batch, num_all = _batch_rows(config, num_rows), num_rows + num_validation_rows
    parallelism, members, why = _division(config, size, batch, able, asked, device)
    chosen = able[:members]
    free = min(_usable(machine, device) for machine in chosen) - _base(device)
    is_divided = parallelism != "data"
    state = _state_bytes(size, config, members if is_divided else 1, parallelism)
    if state > free:
        raise _refusal(size, state, free, chosen, config, parallelism, members)
    local = -(-batch // members) if parallelism in ("data", "fsdp") else batch
    per_row = OUTPUT_COPIES * size.row_outputs * FLOAT_BYTES
    left = free - state
    micro = min(config.micro_batch_rows or local, local)
    if config.micro_batch_rows is None:
        while micro > MIN_MICRO_ROWS and micro * per_row > (1 - DATA_SHARE) * left:
            micro = -(-micro // 2)
    row_bytes = size.num_features * FLOAT_BYTES + WINDOW_ROW_BYTES
    index = ROW_INDEX_BYTES * num_all
    room = left - micro * per_row - index
    window = config.window_rows or (num_all if row_bytes * num_all <= room else int(room / (2 * row_bytes)))
    is_resident = window >= num_all
    if not is_resident:
        window = max(MIN_WINDOW_ROWS, window // batch * batch)
    held = row_bytes * (num_all if is_resident else 2 * window)
    return NetworkPlan(
        device=device,
        parallelism=parallelism,
        members=members,
        threads=_threads(chosen, members),
        batch_rows=batch,
        micro_batch_rows=micro,
        window_rows=window,
        max_epochs=config.num_epochs(num_rows),
        num_parameters=size.num_parameters,
        rows=num_rows,
        predicted_bytes=int(_base(device) + state + micro * per_row + index + held),
        is_resident=is_resident,
        why=why,
    )


def _batch_rows(config: NeuralConfig, num_rows: int) -> int:
    """Return the rows of a step, at most those that there are; more are not asked for."""
    if config.batch_rows is not None and config.batch_rows > num_rows:
        raise InputError(
            f"A step has at most as many rows as there are, but got train.neural.batch_rows={config.batch_rows:,} for "
            f"{num_rows:,} training rows. Lower it, or leave it out."
        )
    return max(1, min(config.num_batch_rows(num_rows), num_rows))


def check_codes(inputs: NetworkInputs) -> None:
    """Raise an InputError if a code is too large to be handed over."""
    largest = max((code.size for code in inputs.codes), default=0)
    if largest > MAX_CODE:
        raise InputError(
            f"A network takes up to {MAX_CODE:,} categories of a column, but got {largest:,}. "
            "Lower data.max_categories."
        )


def _able(machines: Sequence[Machine], asked: PlanConfig) -> tuple[Device, list[Machine]]:
    """Return the device, and the workers that have it, the largest first."""
    with_gpu = [machine for machine in machines if machine.gpu_bytes]
    if asked.device == "cuda" and not with_gpu:
        raise InputError(
            f'train.plan.device = "cuda" needs a worker with a GPU, but got none among {len(machines)} workers. '
            'Start workers on machines with one, or set train.plan.device = "auto".'
        )
    device: Device = "cuda" if with_gpu and asked.device != "cpu" else "cpu"
    able = with_gpu if device == "cuda" else list(machines)
    if asked.workers is not None and asked.workers > len(able):
        raise InputError(
            f"train.plan.workers needs as many workers in the cluster, but got train.plan.workers={asked.workers} for "
            f"{len(able)}. Lower it to {len(able)}, or start more workers."
        )
    return device, sorted(able, key=lambda machine: -_usable(machine, device))


def _division(
    config: NeuralConfig,
    size: NetworkSize,
    batch: int,
    able: Sequence[Machine],
    asked: PlanConfig,
    device: Device,
) -> tuple[Parallelism, int, str]:
    """Return how the work is divided, among how many members, and why."""
    if config.parallelism != "auto":
        members = asked.workers or len(able)
        if config.parallelism != "data" and members < 2:
            raise InputError(
                f'train.neural.parallelism = "{config.parallelism}" divides a network among workers, but got '
                f"{members}. Start more workers, or leave it out."
            )
        return config.parallelism, members, "train.neural.parallelism asks for it"
    free = _usable(able[0], device) - _base(device)
    needed = _state_bytes(size, config, 1, "data")
    least = OUTPUT_COPIES * size.row_outputs * FLOAT_BYTES * MIN_MICRO_ROWS
    if needed + least > free:
        for members in range(2, (asked.workers or len(able)) + 1):
            room = _usable(able[members - 1], device) - _base(device)
            if _state_bytes(size, config, members, "fsdp") + least <= room:
                return "fsdp", members, f"one worker would need {size_text(needed)} for the network alone"
        raise _refusal(size, needed, free, able, config, "data", 1)
    if asked.workers is not None:
        return "data", asked.workers, "train.plan.workers asks for it"
    hosts = len({machine.host for machine in able}) if device == "cpu" else len(able)
    speed = FLOPS[device] * (able[0].threads if device == "cpu" else 1)
    step = 3 * 2 * size.row_products * batch / speed
    exchange = 2 * FLOAT_BYTES * size.num_parameters / LINK_BYTES
    if hosts > 1 and step >= ROWS_PER_SECOND_PAY * exchange * hosts:
        return "data", hosts, f"a step computes {step / exchange:.0f} times as long as its gradients travel"
    return "data", 1, "it fits one worker"


def _state_bytes(size: NetworkSize, config: NeuralConfig, members: int, parallelism: Parallelism) -> float:
    """Return what parameters and all that belongs to them take in a member."""
    copies = STATE_COPIES + (2 if config.ema else 0)
    divided = FLOAT_BYTES * size.num_parameters * copies / members
    # fully_shard gathers a layer's parameters and gradients at a time, and that of the next one.
    gathered = 3 * FLOAT_BYTES * size.largest if parallelism == "fsdp" and members > 1 else 0
    return max(divided + gathered, EXPORT_COPIES * FLOAT_BYTES * size.num_parameters)


def _base(device: Device) -> int:
    return BASE_BYTES if device == "cpu" else 2**30


def _usable(machine: Machine, device: Device) -> float:
    return machine.usable_bytes if device == "cpu" else GPU_SHARE * machine.gpu_bytes


def _threads(chosen: Sequence[Machine], members: int) -> int:
    """Return the threads of a member: a single one may use those of its host's idle workers."""
    if members == 1:
        return max(chosen[0].threads, chosen[0].host_threads)
    return min(machine.threads for machine in chosen)


def _refusal(
    size: NetworkSize,
    needed: float,
    free: float,
    machines: Sequence[Machine],
    config: NeuralConfig,
    parallelism: Parallelism,
    members: int,
) -> InputError:
    """Return the error for a network that fits nowhere, with the ways out."""
    more = math.ceil(needed / max(1.0, free)) * members
    ways = [f"lower train.neural.embedding from {config.embedding} or train.neural.width from {config.width}"]
    if more > len(machines):
        ways.insert(0, f"start {more - len(machines)} more workers")
    ways.append("lower data.max_categories" if size.largest > config.width**2 else "start workers with more memory")
    return InputError(
        f"A network must fit the memory of its workers, but got {size.num_parameters:,} parameters that take "
        f"{size_text(needed)} in each of {members} ({parallelism}), for {size_text(max(0.0, free))} that are free "
        f"there. Do one of these: {'; '.join(ways)}."
    )
