"""Keep a network's weights in fewer bits in its file; it computes with float32 as before."""

from __future__ import annotations

from collections.abc import Iterator

from infra.bundle.network import Network
from tasks._techniques.int8_network import is_network
from tasks._techniques.technique import Built, Uncompressed


class ShortWeights:
    """float16, or 8 bits with a scale for each output or row: a smaller file, and nothing else.

    ONNX Runtime turns constants to float32 when it loads the graph (constant folding), so that rows take no longer. A
    CPU does not compute faster with float16 or bfloat16 (docs/log.md), so that no form computes with these.
    """

    name = "short weights"
    cost = 0.01

    def applies_to(self, given: Uncompressed) -> bool:
        """Return whether it is a network."""
        return is_network(given)

    def build(self, given: Uncompressed) -> Iterator[Built]:
        """Give the same network in 32 bits, without what the exporter leaves in a graph; in 16 bits; and in 8."""
        from tasks._techniques import _networks  # who lists the techniques does not wait for onnx
        from tasks._techniques._network_graph import Storage, float_graph

        both = _networks.both_parts(given)
        storages: dict[str, Storage] = {"32": "float32", "16": "float16", "8": "int8"}

        def forms() -> Iterator[Built]:
            for bits, storage in storages.items():
                pilot, final = (Network(float_graph(parts, storage)) for parts in both)
                yield Built(f"{bits}-bit weights", pilot, final)

        yield from _networks.checked(given, forms())


TECHNIQUE = ShortWeights()
