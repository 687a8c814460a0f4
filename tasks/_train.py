"""What is trained."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from infra.bundle.schema import Task
from tasks._neural.config import NeuralConfig
from tasks._origin import Family, Mode
from tasks._plans import PlanConfig
from tasks._search import SearchConfig

MAX_VALIDATION_ROWS = 1_000_000
"""Enough to stop a training by: the error of their mean loss is below 0.2% of it."""
VALIDATION_SALT = 5


OBJECTIVES: dict[Task, tuple[str, str]] = {
    "binary": ("binary:logistic", "logloss"),
    "multiclass": ("multi:softprob", "mlogloss"),
    "regression": ("reg:squarederror", "rmse"),
}


class XGBoostConfig(BaseModel):
    """How to grow the trees.

    The defaults are the best of seven settings on the data sets in docs/log.md (2026-11-21): slow learning, shallow
    trees, and rows and columns drawn per tree. Published defaults that were tuned without native categories overfit
    columns of thousands of codes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rounds: int = Field(default=2000, ge=1, le=100_000, description="Most boosting rounds.")
    early_stopping_rounds: int = Field(default=50, ge=1, description="Stop after this many rounds without gain.")
    learning_rate: float = Field(default=0.05, gt=0, le=1, description="Share of each tree's answer that counts.")
    max_depth: int = Field(default=6, ge=1, le=20, description="Depth of a tree.")
    min_child_weight: float = Field(default=2.0, ge=0, description="Least sum of curvatures in a leaf.")
    subsample: float = Field(default=0.8, gt=0, le=1, description="Share of the rows that a tree sees.")
    colsample_bytree: float = Field(default=0.8, gt=0, le=1, description="Share of the features that a tree sees.")
    reg_lambda: float = Field(default=1.0, ge=0, description="L2 penalty of the leaves.")
    max_bin: int = Field(default=256, ge=2, le=65_536, description="Bins per feature.")

    def parameters(self, task: Task) -> dict[str, float | int | str]:
        """Return the library's parameters of a training."""
        objective, loss = OBJECTIVES[task]
        return {
            **self.model_dump(exclude={"rounds", "early_stopping_rounds"}),
            "objective": objective,
            "eval_metric": loss,
            "tree_method": "hist",
        }


class TrainConfig(BaseModel):
    """What to train."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(default=0, ge=0, le=2**31 - 1, description="The same seed and data give the same model.")
    families: tuple[Family, ...] = Field(
        default=("xgboost",),
        min_length=1,
        description="What is trained: xgboost, neural, or both. Of several the one with the least loss on the "
        "validation rows goes on.",
    )
    ensemble: bool = Field(
        default=False,
        description="Of several families, also try their weighted mean; it goes on if it is clearly better.",
    )
    mode: Mode = Field(
        default="fresh",
        description="fresh: all is learnt anew. refit: the champion's parameters, number of rounds and features are "
        "kept, and learn from today's rows. continue: rounds are added to the champion's trees. Where there is no "
        "champion to keep or to continue, or it no longer fits, all is learnt anew, and the run says why.",
    )
    continue_tolerance: float = Field(
        default=0.1,
        ge=0,
        description="Mode continue: by how much larger than at its training the champion's loss on this run's "
        "validation rows may be, as a share; beyond that the data have drifted, and all is learnt anew.",
    )
    include_validation: bool = Field(
        default=True,
        description="Train a second time, on training and validation rows together, for the rounds that were best on "
        "the validation rows, and ship that model; takes about 1.5 times as long. A sample thins both sides alike.",
    )
    checkpoint_rounds: int = Field(
        default=50,
        ge=1,
        description="Rounds between two checkpoints: the most that is lost with a worker. Each chunk draws rows and "
        "features from a seed of its own, so another number gives another model.",
    )
    interval: float | None = Field(
        default=None, gt=0, lt=1, description="Regression: share of rows that a prediction interval holds, such as 0.9."
    )
    plan: PlanConfig = Field(default=PlanConfig(), description="Where to train; by default what fits and is fastest.")
    xgboost: XGBoostConfig = Field(default=XGBoostConfig(), description="How to grow trees.")
    neural: NeuralConfig = Field(default=NeuralConfig(), description="How to build and train networks.")
    search: SearchConfig = Field(default=SearchConfig(), description="Search for better parameters.")


def validation_share(num_rows: int) -> float:
    """Return how many of the validation rows are used.

    >>> validation_share(500), validation_share(4 * MAX_VALIDATION_ROWS)
    (1.0, 0.25)
    """
    return min(1.0, MAX_VALIDATION_ROWS / max(1, num_rows))
