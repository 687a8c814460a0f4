"""How a network is divided among members, and which settings can't be."""

from __future__ import annotations

import re

import pytest

from infra.errors import InputError
from tasks._neural.config import NeuralConfig, Parallelism
from tasks._neural.inputs import CodeInput, NetworkInputs
from tasks._neural.parallel import num_micro_batches, require_divisible, stages_of

INPUTS = NetworkInputs((), (CodeInput(0, 3),))


@pytest.mark.parametrize(
    ("parallelism", "settings", "num_members", "message"),
    [
        (
            "tensor",
            {"width": 15},
            2,
            "A network is divided evenly among members, but got train.neural.width=15 for 2 members. "
            "Set a multiple of 2.",
        ),
        (
            "pipeline",
            {"blocks": 1},
            2,
            "A pipeline needs hidden layers to divide, but got train.neural.blocks=1. Raise it to 2 or more, or set "
            'train.neural.parallelism = "data".',
        ),
        (
            "pipeline",
            {"blocks": 2},
            5,
            "A pipeline gives every member a layer, but got train.neural.blocks=2, 4 layers with those of inputs and "
            "outputs, for 5 members. Raise it, or lower train.plan.workers to 4.",
        ),
    ],
)
def test_what_can_not_be_divided_is_refused(
    parallelism: Parallelism, settings: dict[str, int], num_members: int, message: str
) -> None:
    """The message names the setting, the number of members and what to set."""
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        require_divisible(INPUTS, NeuralConfig(**settings), parallelism, num_members)


@pytest.mark.parametrize("parallelism", ["data", "fsdp", "tensor", "pipeline"])
def test_one_member_divides_nothing(parallelism: Parallelism) -> None:
    """Alone any setting is right."""
    require_divisible(INPUTS, NeuralConfig(width=15, blocks=1), parallelism, 1)


@pytest.mark.parametrize("num_rows", [1, 2, 7, 251, 4096])
@pytest.mark.parametrize("num_members", [2, 3, 8])
def test_a_pipelines_parts_are_enough(num_rows: int, num_members: int) -> None:
    """There are as many parts as members at least, none has more rows than fit, and few rows fill them up."""
    parts = num_micro_batches(num_rows, 64, num_members)
    size = -(-num_rows // parts)

    assert parts >= num_members
    assert size <= 64
    assert parts * size - num_rows < max(size, num_members)


def test_every_layer_has_a_stage() -> None:
    """Stages are neighbours, and each has a layer."""
    for num_stages in range(1, 7):
        stages = stages_of(6, num_stages)
        assert list(range(6)) == [layer for stage in stages for layer in stage]
        assert all(stages)
