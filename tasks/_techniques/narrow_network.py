"""Leave out units of a network's hidden layers, and train it a little."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from infra.bundle.network import Network
from infra.bundle.predictor import Predictor
from tasks._neural.job import NeuralJob
from tasks._techniques.int8_network import is_network
from tasks._techniques.technique import Built, Rows, Uncompressed

if TYPE_CHECKING:
    from torch import Tensor

    from tasks._neural.network import Network as Module
    from tasks._neural.network import Target
    from tasks._techniques._network_parts import Parts

SHARES = (0.5, 0.25)
MIN_WIDTH = 4
NUM_EPOCHS = 4
RATE_SHARE = 0.5
"""Of the learning rate that the network was trained with."""
SAMPLE_ROWS = 2048


class NarrowNetwork:
    """Half or a quarter of the units of each hidden layer: smaller matrices, not zeros in large ones.

    A unit counts by what the loss would change, to the first order, if it gave nothing: the mean over rows and
    submodels of |output * gradient| (Molchanov et al. 2017, section 2.2). What is left is trained for a few epochs:
    the pilot on the training rows, the final network on these and the validation rows.
    """

    name = "narrow network"
    cost = 0.6

    def applies_to(self, given: Uncompressed) -> bool:
        """Return whether there are units to leave out."""
        return is_network(given) and isinstance(given.job, NeuralJob) and given.job.config.width >= MIN_WIDTH

    def build(self, given: Uncompressed) -> Iterator[Built]:
        """Give narrower networks, the wider first, each with 16-bit weights and in whole numbers."""
        from tasks._techniques import _networks  # who lists the techniques does not wait for torch

        assert isinstance(given.job, NeuralJob)
        width, both = given.job.config.width, _networks.both_parts(given)

        def forms() -> Iterator[Built]:
            for share in SHARES:
                num_units = max(1, round(share * width))
                phases = (
                    (given.pilot, both[0], (given.train,)),
                    (given.final, both[1], (given.train, given.validation)),
                )
                found = [narrowed(given, num_units, *phase) for phase in phases]
                pilot, final = found
                if pilot is not None and final is not None:
                    yield from _networks.written(given, f"{num_units} of {width} units", pilot, final)

        yield from _networks.checked(given, forms())


def narrowed(
    given: Uncompressed, num_units: int, network: Predictor, parts: Parts, rows: Sequence[Rows]
) -> Parts | None:
    """Return a network with so many units in each hidden layer, trained a little on rows; None: time is over."""
    from safetensors.torch import load

    from tasks._neural.network import Network as Module
    from tasks._neural.network import Target
    from tasks._techniques._fine_tune import fine_tuned, hard, lesson_of, parts_of_trained, shape_of

    assert isinstance(given.job, NeuralJob)
    assert isinstance(network, Network)
    assert network.weights is not None, "given.pilot and given.final have weights"
    job, target = given.job, Target(parts.task, parts.shift, parts.scale)
    whole = Module(shape_of(job))
    whole.load_state_dict(load(network.weights))
    shape = shape_of(job, width=num_units)
    small = Module(shape)
    kept = [np.sort(np.argsort(-unit_W, kind="stable")[:num_units]) for unit_W in importance(whole, target, given)]
    small.load_state_dict(cut(whole.state_dict(), kept))
    lesson = lesson_of(given, rows, lambda part: hard(part, parts.task, job.num_outputs), NUM_EPOCHS, RATE_SHARE)
    if not fine_tuned(small, target, lesson, given.seconds_left):
        return None
    return parts_of_trained(small, shape, parts)


def importance(network: Module, target: Target, given: Uncompressed) -> list[NDArray[np.float32]]:
    """Return by hidden layer what each unit counts, shape (width,)."""
    import torch

    from tasks._neural.network import Block

    some = np.random.default_rng(given.seed).permutation(len(given.train))[:SAMPLE_ROWS]
    found: list[Tensor] = []
    blocks = [layer for layer in network.layers.values() if isinstance(layer, Block)]
    hooks = [block.register_forward_hook(lambda _, __, output: found.append(output)) for block in blocks]
    network.eval()
    raw_BKO = network(torch.from_numpy(given.train.x_BF[some]))
    losses_B = target.losses(raw_BKO, torch.from_numpy(given.train.label_B[some]))
    slopes = torch.autograd.grad(losses_B.sum(), found)
    for hook in hooks:
        hook.remove()
    return [
        (output * slope).abs().flatten(0, -2).mean(0).detach().numpy()
        for output, slope in zip(found, slopes, strict=True)
    ]


def cut(state: Mapping[str, Tensor], kept: Sequence[NDArray[np.intp]]) -> dict[str, Tensor]:
    """Return a network's state with these units of each hidden layer alone."""
    found = dict(state)
    for number, units in enumerate(kept, 1):
        name = f"layers.{number}.linear"
        found[f"{name}.weight"] = found[f"{name}.weight"][units]
        found[f"{name}.bias"] = found[f"{name}.bias"][units]
        after = f"layers.{number + 1}.linear.weight"
        found[after] = found[after][:, units]  # (outputs, inputs) of a layer, (submodels, inputs, outputs) of the head
    return found


TECHNIQUE = NarrowNetwork()
