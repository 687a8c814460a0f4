"""The loop of a search: Optuna proposes, a trainer trains, the ladder decides who goes on, the journal remembers.

One thread does it all, in the process that runs the flow. It knows neither where trials are trained nor who follows
them: a `Trainer` begins, stops and tells, a `Follower` hears.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Generic

import optuna
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.trial import FrozenTrial, TrialState

from infra.errors import RunError
from infra.journal import StoreJournal
from tasks._search import (
    Ladder,
    SearchConfig,
    SearchResult,
    Trial,
    TrialOutcome,
    chosen,
    facts_of,
    leading,
    progress_note,
    seconds_left,
    why_enough,
)
from tasks._space import Config, Dimension, Space
from tasks._trainer import Failed, Follower, Reported, Trainer

STUDY = "search"
TICK_SECONDS = 1.0
MAX_FAILURES = 3
"""Trials that fail one after the other end the search: it is not the parameters."""
OWN, INTERRUPTED, FACTS, WHY, RUN_ID, WAY = "own", "interrupted", "facts", "why", "run_id", "way"
"""Names of what is kept with a trial, and with the study."""
BUDGET = "row_microseconds"
"""The constraint's name."""


@dataclass
class _Climb(Generic[Config]):
    """A trial that runs, and how far it has climbed."""

    trial: optuna.Trial
    config: Config
    is_own: bool
    row_rung: int = 0
    next_rung: int = 0
    losses: list[float] = field(default_factory=list)
    outcomes: list[tuple[float, TrialOutcome]] = field(default_factory=list)
    is_pruned: bool = False
    is_called_off: bool = False


class Search(Generic[Config]):
    """A search that begins where an earlier one of the same journal has ended."""

    def __init__(
        self,
        own: Config,
        space: Space[Config],
        config: SearchConfig,
        ladder: Ladder,
        journal: StoreJournal,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read the journal."""
        self._own, self._space = own, space
        self._config, self._journal, self._clock = config, journal, clock
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with journal.together(is_written=False), warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            storage = JournalStorage(journal)
            is_new = not storage.get_all_studies()
            open_study = optuna.create_study if is_new else optuna.load_study
            self._study = open_study(storage=storage, study_name=STUDY)
            # A sampler that began with the same seed each time would propose what an earlier process has tried.
            seed = (config.seed * 1_000_003 + len(self._frozen())) % 2**32
            self._study.sampler = TPESampler(seed=seed, constant_liar=True)
        self._ladder = replace(ladder, way=ladder.way or self._study.user_attrs.get(WAY))
        self._ended: dict[int, Trial] = {}
        self._climbs: dict[int, _Climb[Config]] = {}
        self._num_failures = 0

    def _frozen(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def trials(self) -> tuple[Trial, ...]:
        """Return all trials that have ended."""
        for frozen in self._frozen():
            if frozen.number not in self._ended and frozen.state.is_finished():
                self._ended[frozen.number] = trial_of(frozen, self._own, self._space, self._config)
        return tuple(self._ended[number] for number in sorted(self._ended))

    def _own_trial(self) -> int | None:
        """Return the number of the complete trial of the run's own parameters."""
        return next(
            (
                frozen.number
                for frozen in self._frozen()
                if frozen.state == TrialState.COMPLETE and self._is_own(frozen.user_attrs)
            ),
            None,
        )

    def _is_own(self, attributes: dict[str, Any]) -> bool:
        return bool(attributes.get(OWN) == self._own.model_dump())

    def result(self, ended_by: str, is_reused: bool) -> SearchResult[Config]:
        """Return what has been found so far."""
        trials, own = self.trials(), self._own_trial()
        assert own is not None, "a search ends after the run's own parameters are done"
        best = chosen(trials, own)
        config = config_of(self._frozen()[best], self._own, self._space)
        return SearchResult(config, best, own, trials, ended_by, is_reused)

    def known(self) -> SearchResult[Config] | None:
        """Return the result if there is nothing left to do."""
        own = self._own_trial()
        if own is None:
            return None
        why = why_enough(replace_time(self._config), self.trials(), leading(self.trials(), own), 0.0)
        return self.result(why, is_reused=True) if why else None

    def run(self, trainer: Trainer[Config], follower: Follower) -> SearchResult[Config]:
        """Search until a limit is reached.

        Raises:
            RunError: the journal has another writer, the cluster was lost, or trials fail one after the other.
        """
        began = self._clock()
        self._take_up(follower)
        why: str | None = None
        while True:
            trials, own = self.trials(), self._own_trial()
            elapsed = self._clock() - began
            best = None if own is None else leading(trials, own)
            why = why or why_enough(self._config, trials, best, elapsed)
            if why and not self._climbs:
                return self.result(why, is_reused=False)
            self._follow(follower, trials, own, best, elapsed)
            if why:
                self._call_off(trainer)
            else:
                self._begin(trainer, follower, trials, is_own_done=own is not None)
            self._hear(trainer, follower, is_over=why is not None)

    def _take_up(self, follower: Follower) -> None:
        """Give up what a dead process has left running, and put it and the run's own parameters in the queue."""
        with self._journal.together():
            for frozen in self._frozen():
                if frozen.state == TrialState.RUNNING:
                    self._interrupt(frozen, follower, ())
            pending = (TrialState.WAITING, TrialState.COMPLETE)
            if not any(self._is_own(frozen.user_attrs) for frozen in self._frozen() if frozen.state in pending):
                self._study.enqueue_trial(self._space.positions(self._own), user_attrs={OWN: self._own.model_dump()})

    def _interrupt(self, frozen: FrozenTrial, follower: Follower, losses: tuple[float, ...]) -> None:
        """End a trial that has not been judged, and try its parameters once more later."""
        storage, trial_id = self._study._storage, frozen._trial_id
        if frozen.params:  # else its process died before they were drawn
            own = {OWN: frozen.user_attrs[OWN]} if OWN in frozen.user_attrs else {}
            self._study.enqueue_trial(frozen.params, user_attrs=own)
        storage.set_trial_user_attr(trial_id, INTERRUPTED, True)
        storage.set_trial_state_values(trial_id, TrialState.FAIL)
        follower.ended(trial_of(storage.get_trial(trial_id), self._own, self._space, self._config), losses)

    def _call_off(self, trainer: Trainer[Config]) -> None:
        """Ask all that runs to end."""
        for number, climb in self._climbs.items():
            if not climb.is_called_off:
                trainer.stop(number)
            climb.is_called_off = True

    def _begin(
        self, trainer: Trainer[Config], follower: Follower, trials: tuple[Trial, ...], is_own_done: bool
    ) -> None:
        """Begin as many trials as may run."""
        left = self._config.trials - sum(trial.state != "interrupted" for trial in trials)
        if not is_own_done and not any(climb.is_own for climb in self._climbs.values()):
            left = max(left, len(self._climbs) + 1)
        trainer.expect(left)
        for _ in range(min(trainer.num_idle(), left - len(self._climbs))):
            with self._journal.together():
                trial = self._study.ask()
                positions = {dimension.name: suggested(trial, dimension) for dimension in self._space.dimensions}
                config = config_of_attributes(trial.user_attrs, positions, self._own, self._space)
                trial.set_user_attr(RUN_ID, follower.began(trial.number, config))
            self._climbs[trial.number] = _Climb(trial, config, self._is_own(trial.user_attrs))
            trainer.start(trial.number, config, self._ladder.row_shares[0])

    def _hear(self, trainer: Trainer[Config], follower: Follower, is_over: bool) -> None:
        """Wait for something to happen, and act on it."""
        event = trainer.wait(TICK_SECONDS)
        climb = self._climbs.get(event.number) if event else None
        if event is None or climb is None:
            return
        with self._journal.together():
            if isinstance(event, Failed):
                self._fail(climb, event.error, follower)
            elif isinstance(event, Reported):
                climb.losses += event.losses
                self._judge(trainer, climb)
            else:
                self._finish(trainer, climb, event.outcome, follower, is_over)

    def _judge(self, trainer: Trainer[Config], climb: _Climb[Config]) -> None:
        """Stop a trial on all rows that is not among the best of a rung that it has reached."""
        if self._ladder.way is None or climb.is_pruned or climb.row_rung < len(self._ladder.row_shares) - 1:
            return
        while (index := climb.next_rung - self._ladder.round_rung(0)) < len(self._ladder.round_shares):
            rounds = self._ladder.rounds(index, self._space.pace(climb.config))
            if len(climb.losses) < rounds:
                return
            if not self._climbs_on(climb, min(climb.losses[:rounds])):
                climb.is_pruned = True
                trainer.stop(climb.trial.number)
                return

    def _climbs_on(self, climb: _Climb[Config], loss: float) -> bool:
        """Put a trial on its next rung; return whether it goes on from there. The run's own parameters always do.

        Optuna's pruner has the same rule, but compares with all trials. Models that are too slow would fill the best
        third, and of the fast ones, which are what is asked for, none would go on.
        """
        climb.trial.report(loss, climb.next_rung)
        rivals = [
            frozen.intermediate_values[climb.next_rung]
            for frozen in self._frozen()
            if climb.next_rung in frozen.intermediate_values and not self._is_slow(frozen)
        ]
        climb.next_rung += 1
        if climb.is_own:
            return True
        return self._ladder.goes_on(loss, rivals) and not self._is_slow(self._frozen()[climb.trial.number])

    def _is_slow(self, frozen: FrozenTrial) -> bool:
        budget, facts = self._config.max_row_microseconds, frozen.user_attrs.get(FACTS)
        return budget is not None and facts is not None and facts["row_microseconds"] > budget

    def _finish(
        self, trainer: Trainer[Config], climb: _Climb[Config], outcome: TrialOutcome, follower: Follower, is_over: bool
    ) -> None:
        number, share = climb.trial.number, self._ladder.row_shares[climb.row_rung]
        climb.outcomes.append((share, outcome))
        climb.losses = list(outcome.losses)
        climb.trial.set_user_attr(FACTS, facts_of(climb.outcomes))
        if share == 1 and not outcome.is_stopped:  # perhaps it was to stop, and had already come to its end
            self._complete(trainer, climb, follower)
        elif climb.is_pruned:
            self._end(climb, TrialState.PRUNED, follower)
        elif outcome.is_stopped or is_over:
            del self._climbs[number]
            self._interrupt(self._frozen()[number], follower, outcome.losses)
        elif self._climbs_on(climb, min(outcome.losses)):
            climb.row_rung, climb.losses = climb.row_rung + 1, []
            trainer.start(number, climb.config, self._ladder.row_shares[climb.row_rung])
        else:
            self._end(climb, TrialState.PRUNED, follower)

    def _complete(self, trainer: Trainer[Config], climb: _Climb[Config], follower: Follower) -> None:
        if climb.is_own and self._ladder.way is None:
            best_round = climb.losses.index(min(climb.losses)) + 1
            self._ladder = replace(self._ladder, way=best_round * self._space.pace(climb.config))
            self._study.set_user_attr(WAY, self._ladder.way)
        if self._ladder.way is not None:
            while climb.next_rung < self._ladder.num_rungs:  # it converged before them, and is measured there too
                index = climb.next_rung - self._ladder.round_rung(0)
                rounds = self._ladder.rounds(index, self._space.pace(climb.config))
                self._climbs_on(climb, min(climb.losses[:rounds]))
        self._end(climb, TrialState.COMPLETE, follower)
        if climb.is_own:
            for other in self._climbs.values():
                self._judge(trainer, other)

    def _end(self, climb: _Climb[Config], state: TrialState, follower: Follower) -> None:
        """Tell Optuna how a trial went."""
        trial, budget = climb.trial, self._config.max_row_microseconds
        if budget is not None:
            found = climb.outcomes[-1][1].row_microseconds
            assert found is not None, "under a budget every trial is timed"
            trial.set_constraint(BUDGET, found - budget)
        value = min(climb.losses) if state == TrialState.COMPLETE else None
        self._study.tell(trial, value, state=state)
        del self._climbs[trial.number]
        self._num_failures = 0
        ended = trial_of(self._frozen()[trial.number], self._own, self._space, self._config)
        follower.ended(ended, climb.outcomes[-1][1].losses)

    def _fail(self, climb: _Climb[Config], error: Exception, follower: Follower) -> None:
        climb.trial.set_user_attr(WHY, str(error))
        self._study.tell(climb.trial, state=TrialState.FAIL)
        number = climb.trial.number
        del self._climbs[number]
        follower.ended(trial_of(self._frozen()[number], self._own, self._space, self._config), ())
        self._num_failures += 1
        if climb.is_own:
            raise error
        if self._num_failures >= MAX_FAILURES:
            raise RunError(
                f"A search goes on while trials succeed, but got failures={self._num_failures} one after the other, "
                f"the last of trial {number} ({error}). Look into that error, and start the run again: it goes on."
            ) from error

    def _follow(
        self, follower: Follower, trials: tuple[Trial, ...], own: int | None, best: int | None, elapsed: float
    ) -> None:
        done = sum(trial.state != "interrupted" for trial in trials)
        losses = {trial.number: trial.loss for trial in trials}
        left = seconds_left(self._config, trials, len(self._climbs), elapsed)
        note = progress_note(
            losses[best] if best is not None else None, losses[own] if own is not None else None, done, left
        )
        follower.progressed(done, self._config.trials, note)


def replace_time(config: SearchConfig) -> SearchConfig:
    """Return a configuration without a limit of time: an earlier run's time does not count."""
    return config.model_copy(update={"timeout_minutes": None})


def suggested(trial: optuna.Trial, dimension: Dimension) -> float:
    """Return where in a dimension of the space a trial is."""
    low, high, is_log = dimension.low, dimension.high, dimension.is_log
    if dimension.is_integer:
        return trial.suggest_int(dimension.name, int(low), int(high), step=dimension.step, log=is_log)
    return trial.suggest_float(dimension.name, low, high, log=is_log)


def config_of_attributes(
    attributes: dict[str, Any], positions: dict[str, float], own: Config, space: Space[Config]
) -> Config:
    """Return the parameters of a trial: as they were given, or those at its positions."""
    given = attributes.get(OWN)
    return type(own).model_validate(given) if given else space.searched(own, positions)


def config_of(frozen: FrozenTrial, own: Config, space: Space[Config]) -> Config:
    """Return the parameters of a trial that has ended."""
    return config_of_attributes(frozen.user_attrs, frozen.params, own, space)


def trial_of(frozen: FrozenTrial, own: Config, space: Space[Config], config: SearchConfig) -> Trial:
    """Return a trial that has ended, as ours."""
    facts = frozen.user_attrs.get(FACTS, {})
    row_microseconds = facts.get("row_microseconds")
    budget = config.max_row_microseconds
    is_interrupted = frozen.user_attrs.get(INTERRUPTED, False)
    parameters: dict[str, float] = {}
    if frozen.params or OWN in frozen.user_attrs:
        parameters = space.values(config_of(frozen, own, space))
    states = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
    return Trial(
        number=frozen.number,
        state="interrupted" if is_interrupted else states[frozen.state],  # type: ignore[arg-type]
        parameters=parameters,
        loss=frozen.value,
        rows_share=facts.get("rows_share", 0.0),
        rounds=facts.get("rounds", 0),
        seconds=facts.get("seconds", 0.0),
        cpu_seconds=facts.get("cpu_seconds", 0.0),
        row_microseconds=row_microseconds,
        is_within_budget=budget is None or (row_microseconds is not None and row_microseconds <= budget),
        why=frozen.user_attrs.get(WHY, ""),
        run_id=frozen.user_attrs.get(RUN_ID, ""),
        fold_losses=tuple(facts.get("fold_losses", ())),
    )
