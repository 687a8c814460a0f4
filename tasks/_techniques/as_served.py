"""Nothing is lost: the model as it is served, without what only a training needs."""

from __future__ import annotations

from collections.abc import Iterator

from infra.bundle.blend import Blend
from infra.bundle.network import Network
from infra.bundle.predictor import Predictor
from tasks._techniques.technique import Built, Uncompressed


class AsServed:
    """The whole model, packed; every form of trees gets both runtimes, so does this one."""

    name = "as served"
    cost = -1.0

    def applies_to(self, given: Uncompressed) -> bool:
        """Return True: every model has what is not needed to answer."""
        return True

    def build(self, given: Uncompressed) -> Iterator[Built]:
        """Give the model."""
        yield Built("nothing left out", given.pilot, served(given.final))


def served(model: Predictor) -> Predictor:
    """Return a model without the weights that a training would go on from."""
    if isinstance(model, Blend):
        return Blend(tuple((weight, served(part)) for weight, part in model.parts))
    return Network(model.onnx) if isinstance(model, Network) else model


TECHNIQUE = AsServed()
