"""What a worker must know to train a network."""

from __future__ import annotations

from dataclasses import dataclass

from tasks._learning import LearningJob
from tasks._neural.config import NeuralConfig, Parallelism
from tasks._neural.inputs import NetworkInputs
from tasks._origin import Mode


@dataclass(frozen=True, kw_only=True)
class NeuralJob(LearningJob):
    """All that members need to train one network."""

    config: NeuralConfig
    inputs: NetworkInputs
    parallelism: Parallelism = "data"
    """How members divide the work; with one member it means nothing."""
    batch_rows: int
    """Of a step, in all members together."""
    micro_batch_rows: int
    """Of a member, computed at once."""
    window_rows: int
    """In memory, and shuffled together."""
    max_epochs: int
    """The learning rate falls to its end in so many."""
    epochs: int | None = None
    """Exactly so many, however the validation rows fare; None: until these no longer gain."""
    refit_of: str | None = None
    """The version whose settings and number of epochs are kept."""

    @property
    def mode(self) -> Mode:
        """Return what is kept of another version."""
        return "refit" if self.refit_of else "fresh"

    @property
    def num_outputs(self) -> int:
        """Return how many numbers the network gives of a row and submodel."""
        schema = self.encoded.schema
        return len(schema.labels) if schema.task == "multiclass" else 1
