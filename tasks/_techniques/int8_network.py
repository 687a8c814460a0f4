"""Compute a network with whole numbers of 8 bits."""

from __future__ import annotations

from collections.abc import Iterator

from infra.bundle.network import Network
from tasks._techniques.technique import Built, Uncompressed

MOST_EXPANDED = 1 << 23
"""Weights of the first layer if every submodel has its own, as in memory."""


class Int8Network:
    """Activations and weights of 8 bits, with scales that were fixed on a sample of the training rows.

    ONNX Runtime's dynamic quantization takes one scale for all rows of a call: a row has other scores beside others.
    Its operators (DynamicQuantizeLinear, DynamicQuantizeMatMul) have no scale per row, and one made of other operators
    takes more time than it saves; docs/log.md has the figures. Products use 7 bits of the weights, so that processors
    without VNNI, whose 16-bit sums overflow otherwise, give the same answers. How: `_network_graph`.

    The embedding of a number goes on beyond what the training rows had, as steep as its last piece. 8 bits that reach
    as far are coarse where the rows are; so there is a form that cuts it, and one that doesn't.
    """

    name = "int8 network"
    cost = 0.01

    def applies_to(self, given: Uncompressed) -> bool:
        """Return whether it is a network whose first layer may be written out for all submodels."""
        return is_network(given)

    def build(self, given: Uncompressed) -> Iterator[Built]:
        """Give the network in whole numbers that are fine where rows are, and in others that go on to infinity."""
        from tasks._techniques import _networks  # who lists the techniques does not wait for onnx
        from tasks._techniques._network_graph import FAR, NEAR, whole_graph

        both, rows_BF = _networks.both_parts(given), _networks.sample_of(given.train, given.seed)

        def forms() -> Iterator[Built]:
            for name, reach in (("8-bit", NEAR), ("8-bit, far values too", FAR)):
                pilot, final = (Network(whole_graph(parts, rows_BF, reach)) for parts in both)
                yield Built(name, pilot, final)

        yield from _networks.checked(given, forms())


def is_network(given: Uncompressed) -> bool:
    """Return whether a model is a network with weights, whose first layer can be written out for all submodels."""
    from tasks._neural.job import NeuralJob

    if not (isinstance(given.final, Network) and isinstance(given.job, NeuralJob)):
        return False
    config, inputs = given.job.config, given.job.inputs
    size = config.submodels if config.architecture == "tabm-mini" else 1
    return size * inputs.num_features * config.embedding * config.width <= MOST_EXPANDED


TECHNIQUE = Int8Network()
