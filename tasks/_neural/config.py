"""What a network is, and how it learns; known without torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Architecture = Literal["tabm-mini", "mlp", "wide"]
Parallelism = Literal["data", "fsdp", "tensor", "pipeline"]

EPOCH_ROWS = 320_000
"""About how many rows a training sees in all epochs, where their number is not set."""
MIN_EPOCHS, MAX_EPOCHS = 8, 64
BATCH_STEPS = 150
"""About how many batches an epoch has, where their size is not set."""
MIN_BATCH_ROWS, MAX_BATCH_ROWS = 128, 4096
REFERENCE_BATCH_ROWS = 256
"""The batch to which `learning_rate` belongs."""


class NeuralConfig(BaseModel):
    """How to build and train a network.

    The defaults are those that did best on the data sets in docs/log.md (2026-12-01) among settings that a CPU trains
    in minutes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: Architecture = Field(
        default="tabm-mini",
        description="tabm-mini: many small networks in one, with piecewise-linear embeddings of numbers. mlp: a plain "
        "network. wide: a plain network on large embedding tables, for categories of very many values.",
    )
    parallelism: Literal["auto", "data", "fsdp", "tensor", "pipeline"] = Field(
        default="auto",
        description="How members divide the work. data: the rows of a batch. fsdp: these, and parameters, gradients "
        "and optimizer. tensor: the rows of embedding tables, and the columns and rows of layers. pipeline: the "
        "layers. auto: one member while it fits, then data, then fsdp.",
    )
    epochs: int | None = Field(
        default=None, ge=1, le=10_000, description="Most passes over the rows. Empty: the more the fewer rows."
    )
    patience: int | None = Field(
        default=None,
        ge=1,
        description="Stop after this many epochs without gain. Empty: a quarter of epochs, 4 or more.",
    )
    batch_rows: int | None = Field(
        default=None, ge=1, le=1_000_000, description="Rows of a step. Empty: from the number of rows."
    )
    micro_batch_rows: int | None = Field(
        default=None, ge=1, description="Rows that are computed at once; a step adds up several. Empty: as fit memory."
    )
    learning_rate: float = Field(
        default=0.012,
        gt=0,
        le=1,
        description=f"Of AdamW, for {REFERENCE_BATCH_ROWS} rows a step; scaled by the root of how many more there are.",
    )
    warmup_fraction: float = Field(
        default=0.05, ge=0, lt=1, description="Share of all steps in which the learning rate rises; then it falls."
    )
    weight_decay: float = Field(default=0.0003, ge=0, description="Of the layers' weights.")
    clip_norm: float = Field(default=1.0, ge=0, description="Largest norm of a gradient; 0: any.")
    ema: float = Field(
        default=0.0, ge=0, lt=1, description="Decay of a running mean of the weights, which is shipped; 0: none."
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Share of a layer's outputs that are left out.")
    blocks: int = Field(default=2, ge=1, le=64, description="Hidden layers.")
    width: int = Field(default=128, ge=1, le=65_536, description="Outputs of a hidden layer.")
    submodels: int = Field(default=4, ge=1, le=256, description="Networks in one, of tabm-mini.")
    bins: int = Field(default=64, ge=2, le=1024, description="Pieces of a number's embedding, of tabm-mini.")
    embedding: int = Field(default=16, ge=1, le=1024, description="Outputs of the embedding of a number or category.")
    class_weights: Literal["none", "balanced"] = Field(
        default="none", description="balanced: every class weighs the same in the loss; shifts the probabilities."
    )
    spread: bool = Field(
        default=False, description="Answer with the spread of the submodels too, which tells how sure a model is."
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="auto: bfloat16 for the products of matrices on a GPU, float32 on a CPU."
    )
    compile: bool = Field(
        default=True, description="Compile the network, on a GPU; takes a minute and makes it faster."
    )
    recompute: bool = Field(
        default=False, description="Keep no outputs of hidden layers for the backward pass: less memory, more time."
    )
    window_rows: int | None = Field(
        default=None, ge=1000, description="Rows in memory, which are shuffled together. Empty: all that fit."
    )
    checkpoint_seconds: float = Field(default=20.0, gt=0, description="Time between two checkpoints, at least.")

    def num_epochs(self, num_rows: int) -> int:
        """Return the most epochs of a training on so many rows.

        >>> [NeuralConfig().num_epochs(rows) for rows in (1_000, 100_000, 10_000_000)]
        [64, 8, 8]
        """
        return self.epochs or min(MAX_EPOCHS, max(MIN_EPOCHS, round(EPOCH_ROWS / max(1, num_rows))))

    def num_batch_rows(self, num_rows: int) -> int:
        """Return the rows of a step, a power of two if it is not set.

        >>> [NeuralConfig().num_batch_rows(rows) for rows in (1_000, 100_000, 10_000_000)]
        [128, 512, 4096]
        """
        if self.batch_rows:
            return self.batch_rows
        steps = max(1, num_rows // BATCH_STEPS)
        return min(MAX_BATCH_ROWS, max(MIN_BATCH_ROWS, 1 << (steps.bit_length() - 1)))

    def num_patience(self, num_epochs: int) -> int:
        """Return after how many epochs without gain a training stops."""
        return self.patience or max(4, num_epochs // 4)
