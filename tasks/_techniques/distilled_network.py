"""Teach a smaller network what a network answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from infra.bundle.network import Network
from infra.bundle.predictor import Predictor
from tasks._neural.job import NeuralJob
from tasks._techniques.int8_network import is_network
from tasks._techniques.technique import Built, Rows, Uncompressed

if TYPE_CHECKING:
    from tasks._techniques._network_parts import Parts

SIZES = ((1, 64), (1, 32))
"""Submodels and width of the students."""
HARD_SHARE = 0.25
"""Of the label in what is wanted of a row of the data; the rest is the teacher's answer."""
MIXED_SHARE = 0.2
"""How many of a made-up row's values are from another row."""
NUM_EPOCHS, RATE_SHARE = 6, 1.0


class DistilledNetwork:
    """A network with one submodel and fewer units that learns the answers of the whole one.

    It begins with the teacher's embeddings, and learns from the rows of the data, with a mixture of the teacher's
    answer and the label (Hinton, Vinyals and Dean 2015, section 2), and from as many made-up rows with the teacher's
    answer alone: a row of the data of which some values are from another one (Buciluă, Caruana and Niculescu-Mizil
    2006, section 3, in its simplest form). The pilot's student learns from the pilot on training rows, the final one's
    from the final network on these and the validation rows.
    """

    name = "distilled network"
    cost = 0.8

    def applies_to(self, given: Uncompressed) -> bool:
        """Return whether a student would be smaller."""
        return is_network(given) and isinstance(given.job, NeuralJob) and given.job.config.width > SIZES[-1][1]

    def build(self, given: Uncompressed) -> Iterator[Built]:
        """Give students, the largest first, each with 16-bit weights and in whole numbers."""
        from tasks._techniques import _networks  # who lists the techniques does not wait for torch

        assert isinstance(given.job, NeuralJob)
        config, both = given.job.config, _networks.both_parts(given)

        def forms() -> Iterator[Built]:
            for size, width in SIZES:
                if width >= config.width:
                    continue
                phases = (
                    (given.pilot, both[0], (given.train,)),
                    (given.final, both[1], (given.train, given.validation)),
                )
                pilot, final = (student(given, size, width, *phase) for phase in phases)
                if pilot is not None and final is not None:
                    yield from _networks.written(given, f"student of {width} units", pilot, final)

        yield from _networks.checked(given, forms())


def student(
    given: Uncompressed, size: int, width: int, teacher: Predictor, parts: Parts, rows: Sequence[Rows]
) -> Parts | None:
    """Return a student of a network; None: time is over."""
    from safetensors.torch import load

    from tasks._neural.network import Network as Module
    from tasks._neural.network import Target, initialise
    from tasks._techniques._fine_tune import fine_tuned, hard, is_balanced, lesson_of, parts_of_trained, shape_of

    job = given.job
    assert isinstance(job, NeuralJob)
    assert isinstance(teacher, Network)
    assert teacher.weights is not None, "given.pilot and given.final have weights"
    shape = shape_of(job, width=width, submodels=size)
    small = Module(shape)
    initialise(small, given.seed)
    known = load(teacher.weights)
    taken = {name: value for name, value in known.items() if name.startswith("layers.0.")}
    if "layers.0.affine.weight" in taken:
        taken["layers.0.affine.weight"] = taken["layers.0.affine.weight"][:size]
    small.load_state_dict({**small.state_dict(), **taken})

    # Where classes were balanced, the teacher's probabilities are not those of the labels.
    hard_share = 0.0 if is_balanced(job) else HARD_SHARE

    def wanted(part: Rows) -> NDArray[np.float32]:
        soft_BC = teacher.scores(part.x_BF).reshape(len(part), -1)
        is_real = np.isfinite(part.label_B)[:, None]
        label_BC = hard(Rows(part.x_BF, np.nan_to_num(part.label_B), None), parts.task, job.num_outputs)
        return np.where(is_real, hard_share * label_BC + (1 - hard_share) * soft_BC, soft_BC).astype(np.float32)

    lesson = lesson_of(given, [*rows, *(mixed(part, given.seed) for part in rows)], wanted, NUM_EPOCHS, RATE_SHARE)
    if not fine_tuned(small, Target(parts.task, parts.shift, parts.scale), lesson, given.seconds_left):
        return None
    return parts_of_trained(small, shape, parts)


def mixed(rows: Rows, seed: int) -> Rows:
    """Return as many made-up rows, without labels: some values of each are from another row."""
    rng = np.random.default_rng(seed)
    others_BF = rows.x_BF[rng.permutation(len(rows))]
    is_other = rng.random(rows.x_BF.shape) < MIXED_SHARE
    none = np.full(len(rows), np.nan, np.float32)
    return Rows(np.where(is_other, others_BF, rows.x_BF), none, rows.weight_B)


TECHNIQUE = DistilledNetwork()
