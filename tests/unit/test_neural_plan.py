"""Where and how a network is trained."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from infra.errors import InputError
from tasks._neural.config import NeuralConfig
from tasks._neural.inputs import MAX_CODE, CodeInput, NetworkInputs, NumberInput
from tasks._neural.plan import (
    BASE_BYTES,
    FLOAT_BYTES,
    STATE_COPIES,
    NetworkPlan,
    check_codes,
    plan_network,
    size_of,
)
from tasks._plans import MEMORY_SHARE, Machine, PlanConfig

GIB = 2**30
NUMBERS = tuple(NumberInput(i, 0.0, 1.0, tuple(range(33))) for i in range(10))
INPUTS = NetworkInputs(NUMBERS, (CodeInput(10, 5), CodeInput(11, 100)))
WIDE = NetworkInputs(NUMBERS, (CodeInput(10, 4_000_000),))

AS_PLANNED = PlanConfig()


def machine(host: str = "a", memory_bytes: int = 4 * GIB, **more: Any) -> Machine:
    """Return a worker."""
    return Machine(host, 2, memory_bytes, **more)


def planned(
    inputs: NetworkInputs = INPUTS,
    rows: int = 100_000,
    validation: int = 0,
    machines: tuple[Machine, ...] = (machine(),),
    asked: PlanConfig = AS_PLANNED,
    **config: Any,
) -> NetworkPlan:
    """Plan a network of one output."""
    return plan_network(inputs, NeuralConfig(**config), 1, rows, validation, machines, asked)


@pytest.mark.parametrize("architecture", ["tabm-mini", "mlp", "wide"])
@pytest.mark.parametrize("num_outputs", [1, 3])
def test_parameters_are_counted_as_torch_does(architecture: Any, num_outputs: int) -> None:
    """The count of parameters, made without torch, is that of the network's modules."""
    from tasks._neural.network import Network, NetworkShape

    config = NeuralConfig(architecture=architecture, width=24, blocks=3, submodels=4, embedding=5)
    task: Any = "multiclass" if num_outputs > 1 else "binary"
    network = Network(NetworkShape(INPUTS, task, num_outputs, config))

    assert sum(p.numel() for p in network.parameters()) == size_of(INPUTS, config, num_outputs).num_parameters


def test_what_fits_one_worker_runs_on_it() -> None:
    """A small network on few rows takes one worker, all its threads, and keeps all rows in memory."""
    plan = planned(machines=(machine(host_threads=4), machine(host_threads=4)))

    assert (1, 4, "data", True, "it fits one worker") == (
        plan.members,
        plan.threads,
        plan.parallelism,
        plan.is_resident,
        plan.why,
    )
    assert plan.predicted_bytes < MEMORY_SHARE * 4 * GIB


def test_rows_of_both_phases_stay_in_memory() -> None:
    """A window holds the validation rows too, which are learnt from in the second phase."""
    plan = planned(rows=10_000, validation=2_000)

    assert (True, 12_000) == (plan.is_resident, plan.window_rows)
    assert not planned(rows=10_000, validation=2_000, window_rows=10_000).is_resident


def test_rows_that_do_not_fit_come_in_windows() -> None:
    """Of more rows than memory holds, windows of whole batches are kept, three of which fit beside the rest."""
    plan = planned(rows=60_000_000)

    assert (False, 0) == (plan.is_resident, plan.window_rows % plan.batch_rows)
    assert plan.predicted_bytes < MEMORY_SHARE * 4 * GIB


def test_a_batch_that_does_not_fit_is_computed_in_parts() -> None:
    """The rows that are computed at once are halved until their outputs fit."""
    roomy = planned(width=2048, submodels=64, batch_rows=4096, machines=(machine(memory_bytes=512 * GIB),))
    tight = planned(width=2048, submodels=64, batch_rows=4096)

    assert 4096 == roomy.micro_batch_rows
    assert tight.micro_batch_rows < 4096
    assert tight.batch_rows == roomy.batch_rows


def test_a_network_that_fits_no_worker_is_divided() -> None:
    """Parameters that one worker cannot hold are divided among as few as can, and the plan says why."""
    machines = tuple(machine(host, 5 * GIB // 2) for host in "abcd")
    plan = planned(WIDE, machines=machines, architecture="wide", embedding=12)

    assert ("fsdp", 3) == (plan.parallelism, plan.members)
    assert plan.why.startswith("one worker would need ")


def test_a_network_that_fits_nowhere_is_refused_with_ways_out() -> None:
    """A network that no division fits names its size, what is free, and what to change."""
    with pytest.raises(
        InputError,
        match=r"^A network must fit the memory of its workers, but got [\d,]+ parameters that take [\d.,]+ [GM]iB in "
        r"each of 1 \(data\), for [\d,.]+ [GM]iB that are free there\. Do one of these: start \d+ more workers; "
        r"lower train\.neural\.embedding from 64 .*; lower data\.max_categories\.$",
    ):
        planned(WIDE, architecture="wide", embedding=64)


@pytest.mark.parametrize(
    ("asked", "config", "message"),
    [
        (
            PlanConfig(device="cuda"),
            {},
            r'train\.plan\.device = "cuda" needs a worker with a GPU, but got none among 1 ',
        ),
        (PlanConfig(workers=3), {}, r"but got train\.plan\.workers=3 for 1\. Lower it to 1, or start more workers\."),
        (PlanConfig(), {"parallelism": "fsdp"}, r'parallelism = "fsdp" divides a network among workers, but got 1\.'),
        (PlanConfig(), {"batch_rows": 200_000}, r"got train\.neural\.batch_rows=200,000 for 100,000 training rows\."),
    ],
)
def test_what_is_not_there_cannot_be_asked_for(asked: PlanConfig, config: dict[str, Any], message: str) -> None:
    """A device, workers or rows that do not exist are refused by the key that asks for them."""
    with pytest.raises(InputError, match=message):
        planned(asked=asked, **config)


def test_several_hosts_divide_the_rows_where_it_pays() -> None:
    """Hosts share the rows of a step if it computes several times as long as its gradients travel."""
    machines = (machine("a"), machine("b"))
    heavy = planned(machines=machines, width=1024, submodels=32, batch_rows=4096)
    light = planned(machines=machines, architecture="mlp", width=32, batch_rows=128)

    assert (("data", 2), 1) == ((heavy.parallelism, heavy.members), light.members)
    assert heavy.why.endswith("times as long as its gradients travel")


def test_workers_that_are_asked_for_divide_the_rows() -> None:
    """The number of workers that is set is taken, each with its own threads."""
    plan = planned(machines=(machine(host_threads=4), machine(host_threads=4)), asked=PlanConfig(workers=2))

    assert (2, 2, "data") == (plan.members, plan.threads, plan.parallelism)


def test_a_gpu_is_used_where_there_is_one() -> None:
    """A worker with a GPU is preferred to larger ones without, and its own memory counts."""
    plan = planned(machines=(machine(memory_bytes=64 * GIB), machine("b", gpu_bytes=16 * GIB)))

    assert ("cuda", 1) == (plan.device, plan.members)
    assert "cpu" == planned(machines=(machine("b", gpu_bytes=16 * GIB),), asked=PlanConfig(device="cpu")).device


def test_codes_beyond_float32_are_refused() -> None:
    """A column of more categories than a float32 tells apart is refused."""
    with pytest.raises(InputError, match=r"up to 16,777,216 categories of a column, but got 16,777,217\."):
        check_codes(NetworkInputs((), (CodeInput(0, MAX_CODE + 1),)))


def test_the_plan_is_one_line() -> None:
    """A plan tells its workers, memory, network, steps and reason in one sentence."""
    plan = replace(planned(), predicted_bytes=700 * 2**20)

    assert (
        f"Network: 1 worker, 2 threads, cpu, all rows in memory: 100,000 rows, {plan.num_parameters:,} parameters, "
        f"steps of {plan.batch_rows:,} rows, at most {plan.max_epochs} epochs, about 700 MiB; it fits one worker"
    ) == plan.sentence


def test_memory_grows_with_what_is_kept() -> None:
    """The prediction counts every copy of the parameters once more than the process alone."""
    small, large = (
        planned(WIDE, architecture="wide", embedding=e, machines=(machine(memory_bytes=1 << 40),)) for e in (1, 2)
    )
    more = large.num_parameters - small.num_parameters

    assert math.isclose(STATE_COPIES * FLOAT_BYTES * more, large.predicted_bytes - small.predicted_bytes, rel_tol=0.05)
    assert small.predicted_bytes > BASE_BYTES
