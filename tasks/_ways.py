"""Every way to train, each with its price: one worker or several, CPU or GPU, in memory or in pages on disk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from infra.errors import InputError
from tasks._costs import (
    FLOAT_BYTES,
    PAGES,
    Seconds,
    Workload,
    cpu_bytes,
    cpu_seconds,
    gpu_bytes,
    gpu_seconds,
    member_share,
    num_rounds,
    thread_speed,
)
from tasks._outcomes import Outcome, factors_of
from tasks._plans import Device, Machine, Plan, PlanConfig

GPU_SHARE = 0.9
PAGE_SHARE = 0.1
"""Of a worker's limit, for pages and the batch that becomes the next one."""
UNLIMITED_BYTES = 16 * 2**30
"""Taken for a page's size where no limit is known."""
MIN_PAGE_ROWS, MAX_PAGE_ROWS = 10_000, 4_000_000
MIN_PAGES = 8
"""With fewer, three that are mapped at once would be much of the whole."""


def alternatives(
    workload: Workload, machines: Sequence[Machine], config: PlanConfig, outcomes: Sequence[Outcome] = ()
) -> list[Plan]:
    """Return every plan that the configuration allows, fitting or not, each with its prediction.

    Where one worker has too little memory, a plan with a sample that fits it is among them, as a proposal.

    Raises:
        InputError: the configuration asks for workers or a GPU that are not there.
    """
    plans = []
    for device in _devices(machines, config):
        able = [index for index, machine in enumerate(machines) if device == "cpu" or machine.gpu_bytes]
        for size in gang_sizes(len(able)) if config.workers is None else [config.workers]:
            for is_external in _memories(config):
                plans += _of_form(workload, machines, able, size, device, is_external, outcomes)
    return plans + _sampled(workload, machines, plans, outcomes)


def fits(workload: Workload, machines: Sequence[Machine], config: PlanConfig, outcomes: Sequence[Outcome] = ()) -> bool:
    """Return whether any plan fits; of the gangs the largest one is looked at, which needs the least memory each."""
    for device in _devices(machines, config):
        able = [index for index, machine in enumerate(machines) if device == "cpu" or machine.gpu_bytes]
        for size in {1, len(able)} if config.workers is None else {config.workers}:
            for is_external in _memories(config):
                plans = _of_form(workload, machines, able, size, device, is_external, outcomes)
                if any(plan.is_fitting for plan in plans):
                    return True
    return False


def gang_sizes(most: int) -> list[int]:
    """Return the numbers of members that are worth a look: each up to 8, then a quarter more, and all.

    >>> gang_sizes(3), gang_sizes(20)
    ([1, 2, 3], [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 18, 20])
    """
    sizes, size = [], 1
    while size < most:
        sizes.append(size)
        size = size + 1 if size < 8 else size * 5 // 4
    return [*sizes, most]


def _memories(config: PlanConfig) -> tuple[bool, ...]:
    """Return whether pages on disk are tried, the rows in memory, or both."""
    return {"auto": (False, True), "in_memory": (False,), "external": (True,)}[config.memory]


def corrected(plan: Plan, outcomes: Sequence[Outcome]) -> Plan:
    """Return a plan with its prediction corrected by the outcomes of its kind."""
    factors = factors_of(plan.kind, outcomes)
    return replace(
        plan,
        predicted_bytes=int(plan.predicted_bytes * factors.memory),
        predicted_seconds=plan.predicted_seconds * factors.seconds,
        start_seconds=plan.start_seconds * factors.seconds,
        memory_factor=plan.memory_factor * factors.memory,
        seconds_factor=plan.seconds_factor * factors.seconds,
    )


def _devices(machines: Sequence[Machine], config: PlanConfig) -> list[Device]:
    assert machines, "a plan needs at least one machine"
    num_gpus = sum(machine.gpu_bytes > 0 for machine in machines)
    if config.device == "cuda" and not num_gpus:
        raise InputError(
            f'train.plan.device = "cuda" needs a worker with a GPU, but got none among {len(machines)} workers. '
            'Start workers on machines with one, or set train.plan.device = "auto".'
        )
    num_able = num_gpus if config.device == "cuda" else len(machines)
    if config.workers is not None and config.workers > num_able:
        gpu = " with a GPU" if config.device == "cuda" else ""
        raise InputError(
            f"train.plan.workers needs as many workers{gpu} in the cluster, but got train.plan.workers="
            f"{config.workers} for {num_able}. Lower it to {num_able}, or start more workers."
        )
    enough = num_gpus >= (config.workers or 1)
    both: list[Device] = ["cpu", "cuda"] if enough else ["cpu"]
    return both if config.device == "auto" else [config.device]


def _of_form(
    workload: Workload,
    machines: Sequence[Machine],
    able: Sequence[int],
    size: int,
    device: Device,
    is_external: bool,
    outcomes: Sequence[Outcome],
) -> list[Plan]:
    """Return the plans of one form: of one worker, one plan for each sort of machine, else a single one."""
    chosen = [(index,) for index in _sorts(machines, able)] if size == 1 else [_spread(machines, able, size)]
    return [priced(workload, machines, members, device, is_external, outcomes) for members in chosen]


def priced(
    workload: Workload,
    machines: Sequence[Machine],
    chosen: tuple[int, ...],
    device: Device,
    is_external: bool,
    outcomes: Sequence[Outcome],
) -> Plan:
    """Return the plan of certain members with its prediction, corrected by outcomes, and whether it fits."""
    members = [machines[index] for index in chosen]
    tightest = min(members, key=lambda machine: machine.usable_bytes - machine.base_bytes)
    share = member_share(workload, len(members))
    page = page_rows(workload, tightest.memory_bytes, share) if is_external else 0
    threads, speed = _threads(machines, chosen)
    if device == "cpu":
        own, on_gpu = cpu_bytes(workload, share, tightest.base_bytes, page, len(members)), 0
        seconds = cpu_seconds(workload, share, speed, len(members), is_external)
    else:
        own, on_gpu = gpu_bytes(workload, share, tightest.base_bytes, page)
        seconds = gpu_seconds(workload, share, len(members), is_external)
    plan = corrected(_plan(workload, chosen, device, threads, page, own, seconds), outcomes)
    fits_gpu = device == "cpu" or on_gpu <= GPU_SHARE * min(machine.gpu_bytes for machine in members)
    return replace(
        plan,
        limit_bytes=tightest.memory_bytes,
        predicted_gpu_bytes=on_gpu,
        is_fitting=plan.predicted_bytes <= tightest.usable_bytes and fits_gpu,
    )


def _plan(
    workload: Workload, chosen: tuple[int, ...], device: Device, threads: int, page: int, own: int, seconds: Seconds
) -> Plan:
    return Plan(
        device=device,
        members=len(chosen),
        threads=threads,
        is_external=page > 0,
        batch_rows=page,
        rows=workload.num_rows,
        features=workload.num_features,
        predicted_bytes=own,
        predicted_seconds=seconds.of(num_rounds(workload)),
        chosen=chosen,
        start_seconds=seconds.start,
        rounds=num_rounds(workload),
    )


def page_rows(workload: Workload, memory_bytes: int, share: float = 1.0) -> int:
    """Return the rows of a page: as many as a tenth of the memory holds, with the floats that become the next one.

    >>> page_rows(Workload(8_000_000, 0, num_numeric=50), 2**30), page_rows(Workload(5_000, 0, num_numeric=50), 2**30)
    (214748, 5000)
    """
    row = workload.num_features * (FLOAT_BYTES + PAGES * workload.value_bytes)
    rows = PAGE_SHARE * (memory_bytes or UNLIMITED_BYTES) / max(1.0, row)
    held = max(1, math.ceil(workload.num_rows * share))
    return int(min(max(min(rows, held / MIN_PAGES, MAX_PAGE_ROWS), MIN_PAGE_ROWS), held))


def _sorts(machines: Sequence[Machine], able: Sequence[int]) -> list[int]:
    """Return one machine of each sort."""
    first: dict[Machine, int] = {}
    for index in able:
        first.setdefault(replace(machines[index], host=""), index)
    return list(first.values())


def _spread(machines: Sequence[Machine], able: Sequence[int], size: int) -> tuple[int, ...]:
    """Return so many machines, from as many hosts as possible, those with the most memory and threads first."""
    by_host: dict[str, list[int]] = {}
    for index in sorted(able, key=lambda one: (-machines[one].usable_bytes, -machines[one].threads, one)):
        by_host.setdefault(machines[index].host, []).append(index)
    ranked = sorted(
        (turn, order, index) for order, one in enumerate(by_host.values()) for turn, index in enumerate(one)
    )
    return tuple(sorted(index for _, _, index in ranked[:size]))


def _threads(machines: Sequence[Machine], chosen: tuple[int, ...]) -> tuple[int, float]:
    """Return the threads of each member, and how fast the slowest one is: members on one host share its cores."""
    found = []
    for index in chosen:
        machine = machines[index]
        together = sum(machines[other].host == machine.host for other in chosen)
        cores = max(machine.host_threads, sum(one.threads for one in machines if one.host == machine.host))
        threads = max(machine.threads, machine.host_threads // together)
        found.append((threads, thread_speed(min(cores, threads * together)) / together))
    return min(threads for threads, _ in found), min(speed for _, speed in found)


def _sampled(
    workload: Workload,
    machines: Sequence[Machine],
    plans: Sequence[Plan],
    outcomes: Sequence[Outcome],
) -> list[Plan]:
    """Return the plan with the largest sample that fits one worker in memory, if all rows do not."""
    single = [plan for plan in plans if plan.members == 1 and not plan.is_external]
    if not single or any(plan.is_fitting for plan in single):
        return []
    tried = (
        (share, priced(sampled(workload, share), machines, plan.chosen, plan.device, False, outcomes))
        for share in (step / 100 for step in range(99, 0, -1))
        for plan in single
    )
    return [replace(plan, share=share, why="a sample") for share, plan in tried if plan.is_fitting][:1]


def sampled(workload: Workload, share: float) -> Workload:
    """Return what is left to learn from a share of the rows, of both sides alike."""
    return replace(
        workload,
        num_train_rows=max(1, int(workload.num_train_rows * share)),
        num_validation_rows=int(workload.num_validation_rows * share),
        largest_shard_rows=workload.shard_rows,
        used_share=workload.used_share * share,
    )
