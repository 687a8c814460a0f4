"""Search for better parameters: what is asked for, the ladder, when to stop, and what comes out.

A trial is one set of parameters. It climbs a ladder on which it costs more and tells more from rung to rung: trained
on a ninth and a third of the rows, where those are many, then on all rows for a quarter and half of the rounds and
for all of them. On each rung only the best third goes on (asynchronous successive halving: Li et al. 2020, "A System
for Massively Parallel Hyperparameter Tuning", algorithm 2, in the form that stops trials and does not wait for
others).

Rounds are counted by what has been learnt in them. A booster with half the learning rate needs about twice the rounds
to get as far, so that at equal rounds the fast learners would always win. The whole way is what the run's own
parameters took: their best round times their learning rate. The rounds of a network are its epochs, and count alike:
in all trainings the learning rate falls to its end in the same number of them, which is the whole way.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal

from pydantic import BaseModel, ConfigDict, Field

from tasks._space import Config

FACTOR = 3
"""One of so many trials goes on to the next rung."""
MIN_RUNG_ROWS = 20_000
"""A rung of fewer rows would order trials by chance: that of a learning curve begins there too."""
ROW_SHARES = (1 / 9, 1 / 3)
ROUND_SHARES = (1 / 4, 1 / 2, 1.0)
"""After a ninth of the rounds the order of trials says little of that at their end; see docs/log.md."""
PERCENT = 100
MIN_DEVIATIONS = 1.645
"""Of no difference, one pair of trials in twenty passes."""
NUM_FOLDS = 50
"""Parts of the validation rows: enough to know how much a difference of two losses varies."""


class SearchConfig(BaseModel):
    """Search for better parameters before the training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trials: int = Field(
        default=0,
        ge=0,
        le=10_000,
        description="How many sets of parameters are tried of each family, this file's first; 0: no search.",
    )
    timeout_minutes: float | None = Field(
        default=None, gt=0, description="The search ends after so long; the next one goes on. Empty: no limit."
    )
    patience: int | None = Field(
        default=None, ge=1, description="The search ends after so many trials without a better one. Empty: no limit."
    )
    max_row_microseconds: float | None = Field(
        default=None,
        gt=0,
        description="Most time to score one row, measured on a worker; slower models are not chosen. Empty: no limit.",
    )
    seed: int = Field(default=0, ge=0, le=2**31 - 1, description="Another seed tries other parameters.")


@dataclass(frozen=True)
class Ladder:
    """The rungs of a search, by number: first those of fewer rows, then those of fewer rounds."""

    row_shares: tuple[float, ...]
    """Shares of the training rows, the last one 1."""
    way: float | None = None
    """Rounds times pace: of networks all epochs, of trees the best round of the run's own parameters; None: not known
    yet."""
    factor: int = FACTOR
    """One of so many goes on to the next rung; with 1 all do."""
    round_shares: tuple[float, ...] = ROUND_SHARES
    """Shares of the way at which those on all rows are judged, the last one 1."""

    @property
    def num_rungs(self) -> int:
        """Count the rungs."""
        return len(self.row_shares) - 1 + len(self.round_shares)

    def round_rung(self, index: int) -> int:
        """Return the number of a rung of rounds; the first has index 0."""
        return len(self.row_shares) - 1 + index

    def rounds(self, index: int, pace: float) -> int:
        """Return after how many rounds a trial is on a rung of rounds.

        >>> ladder = Ladder((1.0,), way=18.0)
        >>> [ladder.rounds(index, 0.05) for index in range(3)], ladder.rounds(0, 0.1)
        ([90, 180, 360], 45)
        """
        assert self.way is not None, "the run's own parameters go all the way first"
        return max(1, math.ceil(round(self.round_shares[index] * self.way / pace, 6)))

    def goes_on(self, loss: float, rung: Sequence[float]) -> bool:
        """Return whether a loss is among the best third of those on a rung, or the best of the first few.

        >>> [Ladder((1.0,)).goes_on(loss, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]) for loss in (0.1, 0.2, 0.3)]
        [True, True, False]
        >>> Ladder((1.0,)).goes_on(0.2, [0.1, 0.2])
        False
        """
        return not rung or loss <= sorted(rung)[max(1, len(rung) // self.factor) - 1]


def ladder_of(num_rows: int) -> Ladder:
    """Return the ladder of a number of training rows.

    >>> [len(ladder_of(rows).row_shares) for rows in (50_000, 100_000, 1_000_000)]
    [1, 2, 3]
    """
    return Ladder((*(share for share in ROW_SHARES if share * num_rows >= MIN_RUNG_ROWS), 1.0))


@dataclass(frozen=True)
class TrialOutcome:
    """What the training of a trial, on a share of the rows, has given."""

    losses: tuple[float, ...]
    """Of the validation rows, by round."""
    row_microseconds: float | None
    """Median time to score one row; None: nobody asked, and it would take long to find."""
    seconds: float
    cpu_seconds: float
    is_stopped: bool = False
    """Whether it ended because it was asked to."""
    fold_losses: tuple[float, ...] = ()
    """Of parts of the validation rows, the same ones in all trials; of a model that was trained to its end on all
    rows."""


TrialState = Literal["complete", "pruned", "failed", "interrupted"]


@dataclass(frozen=True)
class Trial:
    """One set of parameters, and how it did."""

    number: int
    state: TrialState
    """complete: trained on all rows to the end; interrupted: its process died, or the time was up."""
    parameters: dict[str, float]
    """Those that are searched."""
    loss: float | None
    """The lowest of the highest rung that it reached; None: it reached none."""
    rows_share: float
    """Of the training rows, on the highest rung."""
    rounds: int
    """With that loss."""
    seconds: float
    cpu_seconds: float
    row_microseconds: float | None
    is_within_budget: bool
    """Whether one row is scored as fast as is asked for, if it is."""
    why: str = ""
    """Of a trial that failed: its error."""
    run_id: str = ""
    """Its run in MLflow."""
    fold_losses: tuple[float, ...] = ()
    """Of a complete trial: its loss on parts of the validation rows."""

    @property
    def is_eligible(self) -> bool:
        """Return whether its parameters may be chosen."""
        return self.state == "complete" and self.is_within_budget


@dataclass(frozen=True)
class SearchResult(Generic[Config]):
    """The parameters to train with, and all that were tried."""

    config: Config
    best: int
    """Number of the trial that had them."""
    own: int
    """Number of the trial with the run's own parameters."""
    trials: tuple[Trial, ...]
    ended_by: str
    """Which limit ended the search."""
    is_reused: bool
    """Whether an earlier run had done it all."""

    def trial(self, number: int) -> Trial:
        """Return the trial of a number."""
        return next(trial for trial in self.trials if trial.number == number)

    @property
    def sentence(self) -> str:
        """Return what was found, for people."""
        own, best = self.trial(self.own), self.trial(self.best)
        counted = [trial for trial in self.trials if trial.state != "interrupted"]
        pruned = sum(trial.state == "pruned" for trial in counted)
        tried = f"{len(counted):,} trials, {pruned:,} of them stopped early, {self.ended_by}"
        if self.best == self.own and own.is_within_budget:
            first = self.trial(leading(self.trials, self.own))
            chance = f", trial {first.number} with {first.loss:.5f} may be by chance" if first is not own else ""
            return f"No parameters are better than the run's own, validation loss {own.loss:.5f}{chance}: {tried}."
        if self.best == self.own:
            return f"No parameters are as fast as train.search.max_row_microseconds, the run's own stay: {tried}."
        gain = PERCENT * (1 - shown(best.loss) / shown(own.loss)) if own.loss else 0.0
        values = ", ".join(f"{name} {value:.4g}" for name, value in best.parameters.items())
        return (
            f"Trial {best.number} has validation loss {best.loss:.5f}, {gain:.2f}% below that of the run's own "
            f"parameters: {values}; {tried}."
        )


def shown(loss: float | None) -> float:
    """Return a loss that there is."""
    assert loss is not None, "a complete trial has a loss"
    return loss


def leading(trials: Sequence[Trial], own: int) -> int:
    """Return the number of the complete trial that has the lowest loss and is fast enough; own if there is none."""
    eligible = [trial for trial in trials if trial.is_eligible]
    if not eligible:
        return own
    return min(eligible, key=lambda trial: (shown(trial.loss), trial.number != own, trial.number)).number


def chosen(trials: Sequence[Trial], own: int) -> int:
    """Return the number of the best complete trial that is fast enough and better than the run's own beyond chance.

    The best of many trials on the same validation rows looks better than it is, so that a gain within their noise is
    none. Own parameters that are too slow lose to any that are not.
    """
    reference = next(trial for trial in trials if trial.number == own)
    if not reference.is_within_budget:
        return leading(trials, own)
    return leading([trial for trial in trials if trial.number == own or is_better(trial, reference)], own)


def is_better(trial: Trial, reference: Trial) -> bool:
    """Return whether a complete trial is better than another one, by a paired test over parts of the rows.

    The difference of the losses is MIN_DEVIATIONS times its standard error or more.
    """
    if trial.state != "complete" or shown(trial.loss) >= shown(reference.loss):
        return False
    gains = [before - after for before, after in zip(reference.fold_losses, trial.fold_losses, strict=True)]
    if len(gains) < 2:
        return True
    return statistics.fmean(gains) >= MIN_DEVIATIONS * statistics.stdev(gains) / math.sqrt(len(gains))


def why_enough(config: SearchConfig, trials: Sequence[Trial], best: int | None, elapsed_seconds: float) -> str | None:
    """Return which limit a search has reached; None: it goes on. `best` is None until the own parameters are done."""
    counted = [trial for trial in trials if trial.state != "interrupted"]
    if best is None:
        return None
    if len(counted) >= config.trials:
        return "all that were asked for"
    if config.timeout_minutes is not None and elapsed_seconds >= 60 * config.timeout_minutes:
        return f"when {config.timeout_minutes:g} minutes were over"
    if config.patience is not None and sum(trial.number > best for trial in counted) >= config.patience:
        return f"after {config.patience:,} without a better one"
    return None


def seconds_left(
    config: SearchConfig, trials: Sequence[Trial], num_running: int, elapsed_seconds: float
) -> float | None:
    """Return about how long a search will take yet; None: no trial has ended."""
    counted = [trial for trial in trials if trial.state != "interrupted"]
    if not counted:
        return None
    pace = sum(trial.seconds for trial in counted) / len(counted)
    left = pace * (config.trials - len(counted)) / max(1, num_running)
    if config.timeout_minutes is not None:
        left = min(left, 60 * config.timeout_minutes - elapsed_seconds)
    return max(0.0, left)


def progress_note(best: float | None, own: float | None, num_trials: int, left_seconds: float | None) -> str:
    """Return how far a search is, for people.

    >>> progress_note(0.27312, 0.2812, 14, 170.0)
    'best 0.27312 of 14 trials (own parameters 0.28120), about 3 min left'
    """
    parts = [] if best is None else [f"best {best:.5f} of {num_trials:,} trials"]
    if parts and own is not None:
        parts[0] += f" (own parameters {own:.5f})"
    if left_seconds is not None:
        parts.append(
            f"about {left_seconds:.0f} s left" if left_seconds < 60 else f"about {left_seconds / 60:.0f} min left"
        )
    return ", ".join(parts)


def facts_of(outcomes: Sequence[tuple[float, TrialOutcome]]) -> dict[str, Any]:
    """Return what is kept of a trial's trainings, each with its share of the rows."""
    share, last = outcomes[-1]
    best = min(range(len(last.losses)), key=last.losses.__getitem__) if last.losses else -1
    return {
        "rows_share": share,
        "rounds": best + 1,
        "seconds": sum(outcome.seconds for _, outcome in outcomes),
        "cpu_seconds": sum(outcome.cpu_seconds for _, outcome in outcomes),
        "row_microseconds": last.row_microseconds,
        "fold_losses": last.fold_losses,
    }
