"""The search: its space, its ladder, what it remembers, and how it ends, with a trainer that pretends."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from pydantic import ValidationError

from infra.errors import RunError
from infra.journal import StoreJournal
from infra.storage import Store
from tasks._search import (
    FACTOR,
    MIN_RUNG_ROWS,
    Ladder,
    SearchConfig,
    SearchResult,
    Trial,
    TrialOutcome,
    chosen,
    is_better,
    ladder_of,
    leading,
    progress_note,
    seconds_left,
    why_enough,
)
from tasks._space import TREES
from tasks._study import Search
from tasks._train import TrainConfig, XGBoostConfig
from tasks._trainer import Failed, Finished, Reported

OWN = XGBoostConfig(rounds=1000, learning_rate=0.1)
WHOLE = Ladder((1.0,))
ROUND_SECONDS = 0.1


def loss_of(config: XGBoostConfig) -> float:
    """Return how good parameters are in the end: depth 9 is best, slow learning a little better."""
    return 0.3 + 0.01 * abs(config.max_depth - 9) + 0.1 * config.learning_rate


def curve_of(config: XGBoostConfig, share: float) -> tuple[float, ...]:
    """Return the losses by round: as much learnt, as near to the end; fewer rows are a little worse."""
    num_rounds = round(10 / config.learning_rate)
    end = loss_of(config) + 0.01 * (1 - share)
    return tuple(end + 0.5 * (1 - round_ / num_rounds) for round_ in range(1, num_rounds + 1))


class PretendTrainer:
    """Trains several trials in turns, ten rounds at a time."""

    def __init__(self, size: int = 2, fails: tuple[int, ...] = (), dies_after: int | None = None) -> None:
        """Have so many workers; some trials fail, and after so many trainings the process dies."""
        self.size, self.fails, self.dies_after = size, fails, dies_after
        self.running: dict[int, tuple[XGBoostConfig, float, int]] = {}
        self.queue: deque[int] = deque()
        self.stopped: set[int] = set()
        self.started: list[tuple[int, float]] = []
        self.configs: dict[int, XGBoostConfig] = {}
        self.expected: list[int] = []
        self.num_rounds = 0
        self.most_running = 0

    def num_idle(self) -> int:
        return self.size - len(self.running)

    def expect(self, num_trials: int) -> None:
        self.expected.append(num_trials)

    def start(self, number: int, config: XGBoostConfig, share: float) -> None:
        assert self.num_idle() > 0
        self.running[number] = (config, share, 0)
        self.queue.append(number)
        self.started.append((number, share))
        self.configs[number] = config
        self.most_running = max(self.most_running, len(self.running))

    def stop(self, number: int) -> None:
        self.stopped.add(number)

    def wait(self, timeout_seconds: float) -> Reported | Finished | Failed | None:
        if self.dies_after is not None and len(self.started) > self.dies_after:
            raise KeyboardInterrupt
        number = self.queue.popleft()
        config, share, done = self.running[number]
        if number in self.fails:
            del self.running[number]
            return Failed(number, RunError(f"trial {number} fails"))
        losses = curve_of(config, share)
        is_stopped = number in self.stopped
        if done >= len(losses) or is_stopped:
            del self.running[number]
            self.stopped.discard(number)
            row_microseconds = 10.0 * config.max_depth
            outcome = TrialOutcome(losses[:done], row_microseconds, done * ROUND_SECONDS, done * 1.0, is_stopped)
            return Finished(number, outcome)
        self.running[number] = (config, share, done + 10)
        self.queue.append(number)
        self.num_rounds += len(losses[done : done + 10])
        return Reported(number, losses[done : done + 10])


class Heard:
    """Writes down what it hears."""

    def __init__(self) -> None:
        self.begun: dict[int, XGBoostConfig] = {}
        self.trials: dict[int, Trial] = {}
        self.notes: list[str] = []

    def began(self, number: int, config: XGBoostConfig) -> str:
        self.begun[number] = config
        return f"run-{number}"

    def ended(self, trial: Trial, losses: tuple[float, ...]) -> None:
        self.trials[trial.number] = trial

    def progressed(self, done: int, total: int, note: str) -> None:
        self.notes.append(note)


def search_in(folder: Path, config: SearchConfig, own: XGBoostConfig = OWN, ladder: Ladder = WHOLE) -> Search:
    """Take up the search of a folder."""
    return Search(own, TREES, config, ladder, StoreJournal(Store(str(folder)), "key"))


def run(folder: Path, config: SearchConfig, trainer: PretendTrainer | None = None, **given: object) -> SearchResult:
    """Search with a trainer that pretends."""
    return search_in(folder, config, **given).run(trainer or PretendTrainer(), Heard())  # type: ignore[arg-type]


def trial(number: int, loss: float = 0.3, **facts: object) -> Trial:
    """Make a complete trial."""
    whole = Trial(number, "complete", {}, loss, 1.0, 100, 10.0, 10.0, 50.0, True)
    return replace(whole, **facts)  # type: ignore[arg-type]


# The configuration, the space and the ladder.


def test_no_search_is_asked_for_by_default() -> None:
    """Without a word about it there is no search, and every field says what it is."""
    assert 0 == TrainConfig().search.trials
    assert all(field.description for field in SearchConfig.model_fields.values())
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        SearchConfig.model_validate({"trails": 3})


def test_the_run_s_own_parameters_are_in_the_space() -> None:
    """The defaults come back from their positions as they are."""
    default = XGBoostConfig()

    assert default == TREES.searched(default, TREES.positions(default))


def test_parameters_outside_of_the_space_count_as_its_border() -> None:
    """Own values that the space lacks are tried as they are, and known to the sampler by the nearest that it has."""
    own = XGBoostConfig(max_depth=20, reg_lambda=0, max_bin=300)
    positions = TREES.positions(own)

    assert {"max_depth": 12, "reg_lambda": 0.05, "max_bin": 8} == {
        name: positions[name] for name in ("max_depth", "reg_lambda", "max_bin")
    }


def test_small_data_has_no_rungs_of_rows() -> None:
    """A rung of rows has at least MIN_RUNG_ROWS of them; the last one always has all rows."""
    assert [(1.0,), (1 / 3, 1.0), (1 / 9, 1 / 3, 1.0)] == [
        ladder_of(MIN_RUNG_ROWS * factor).row_shares for factor in (1, 3, 9)
    ]


def test_slow_learners_are_given_more_rounds() -> None:
    """A rung of rounds is reached after as much learning, whatever the learning rate."""
    ladder = Ladder((1.0,), way=30.0)

    assert [75, 150, 300] == [ladder.rounds(index, 0.1) for index in range(3)]
    assert [150, 300, 600] == [ladder.rounds(index, 0.05) for index in range(3)]


# The journal.


def test_a_journal_gives_back_what_was_written(tmp_path: Path) -> None:
    """Entries come back in their order, from any number on, whether they were written alone or together."""
    store = Store(str(tmp_path))
    journal = StoreJournal(store, "key")
    journal.append_logs([{"n": 0}])
    with journal.together():
        journal.append_logs([{"n": 1}])
        with journal.together():
            journal.append_logs([{"n": 2}, {"n": 3}])

    assert ["searches/key/000000.json", "searches/key/000001.json"] == store.list("searches/")
    assert [{"n": 1}, {"n": 2}, {"n": 3}] == json.loads(store.get("searches/key/000001.json"))
    again = StoreJournal(store, "key")
    assert [{"n": 0}, {"n": 1}, {"n": 2}, {"n": 3}] == list(again.read_logs(0)) == list(journal.read_logs(0))
    assert [{"n": 2}, {"n": 3}] == list(again.read_logs(2))
    assert [] == list(StoreJournal(store, "other").read_logs(0))


def test_a_journal_has_one_writer(tmp_path: Path) -> None:
    """The second of two processes that continue one search ends, and overwrites nothing."""
    store = Store(str(tmp_path))
    first, second = StoreJournal(store, "key"), StoreJournal(store, "key")
    first.append_logs([{"by": "first"}])

    with pytest.raises(RunError, match="continued by one run at a time, but got name=searches/key/000000.json written"):
        second.append_logs([{"by": "second"}])
    assert [{"by": "first"}] == list(StoreJournal(store, "key").read_logs(0))


def test_what_belongs_together_is_not_written_in_half(tmp_path: Path) -> None:
    """A block that ends with an error leaves nothing in the store."""
    journal = StoreJournal(Store(str(tmp_path)), "key")
    with pytest.raises(KeyError), journal.together():
        journal.append_logs([{"n": 0}])
        raise KeyError

    assert [] == list(StoreJournal(Store(str(tmp_path)), "key").read_logs(0))


def test_a_journal_that_lost_a_part_begins_anew(tmp_path: Path) -> None:
    """What a sweep of old objects has left of a journal is removed."""
    store = Store(str(tmp_path))
    journal = StoreJournal(store, "key")
    for number in range(3):
        journal.append_logs([{"n": number}])
    store.delete("searches/key/000000.json")

    assert [] == list(StoreJournal(store, "key").read_logs(0))
    assert [] == store.list("searches/")


def test_optuna_keeps_a_study_in_a_journal(tmp_path: Path) -> None:
    """A study that is loaded again has the trials, states and values that it had."""
    store = Store(str(tmp_path))
    for _ in range(2):
        storage = optuna.storages.JournalStorage(StoreJournal(store, "key"))
        study = optuna.create_study(storage=storage, study_name="s", load_if_exists=True)
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1) ** 2, n_trials=3)

    trials = optuna.load_study(
        study_name="s", storage=optuna.storages.JournalStorage(StoreJournal(store, "key"))
    ).trials
    assert [0, 1, 2, 3, 4, 5] == [one.number for one in trials]
    assert [one.value for one in study.trials] == [one.value for one in trials]


# The loop.


def test_a_search_finds_what_is_better(tmp_path: Path) -> None:
    """The best complete trial beats the run's own parameters, which are the first, at full length."""
    heard = Heard()
    result = search_in(tmp_path, SearchConfig(trials=30)).run(PretendTrainer(), heard)
    own, best = result.trial(result.own), result.trial(result.best)

    assert (0, "complete", loss_of(OWN)) == (own.number, own.state, pytest.approx(own.loss))
    assert own.loss is not None and best.loss is not None and best.loss < own.loss
    assert loss_of(result.config) == pytest.approx(best.loss)
    assert (OWN.rounds, OWN.early_stopping_rounds) == (result.config.rounds, result.config.early_stopping_rounds)
    assert OWN == heard.begun[0]
    assert list(range(30)) == [trial.number for trial in result.trials] == sorted(heard.trials)
    assert result.trials == tuple(heard.trials[number] for number in range(30))
    assert "all that were asked for" == result.ended_by
    assert result.sentence.startswith(f"Trial {best.number} has validation loss {best.loss:.5f}, ")


def test_most_trials_are_stopped_early(tmp_path: Path) -> None:
    """Successive halving takes under half of the rounds of all trials at full length."""
    trainer = PretendTrainer()
    result = run(tmp_path, SearchConfig(trials=40), trainer)
    whole = sum(len(curve_of(config, 1.0)) for config in trainer.configs.values())

    assert trainer.num_rounds < 0.5 * whole
    assert 20 < sum(trial.state == "pruned" for trial in result.trials)


def test_a_trial_that_is_stopped_is_not_among_the_best_third_of_its_rung(tmp_path: Path) -> None:
    """Of those that have reached a rung, only one among the best third goes on, unless it was at its end anyway."""
    run(tmp_path, SearchConfig(trials=40), PretendTrainer(size=1))
    study = search_in(tmp_path, SearchConfig())._study
    trials = [one for one in study.trials if one.number > 0]
    for rung in range(3):
        seen = [study.trials[0].intermediate_values[rung]]
        for one in trials:
            if rung in one.intermediate_values:
                seen.append(one.intermediate_values[rung])
                is_among = sorted(seen).index(seen[-1]) < max(1, len(seen) // FACTOR)
                assert is_among or one.last_step == rung or "COMPLETE" == one.state.name
                assert not is_among or one.last_step != rung or "COMPLETE" == one.state.name


def test_rows_come_before_rounds(tmp_path: Path) -> None:
    """On a ladder with rungs of rows a trial is trained on few rows first, and the best ones on more."""
    trainer = PretendTrainer()
    result = run(tmp_path, SearchConfig(trials=20), trainer, ladder=Ladder((1 / 9, 1 / 3, 1.0)))
    by_share = {share: sum(one == share for _, one in trainer.started) for share in (1 / 9, 1 / 3, 1.0)}

    assert by_share[1 / 9] == 20 > by_share[1 / 3] > by_share[1.0] >= 2
    assert [(0, 1 / 9), (0, 1 / 3), (0, 1.0)] == [one for one in trainer.started if one[0] == 0]
    assert {1 / 9, 1.0} <= {trial.rows_share for trial in result.trials}
    assert 1.0 == result.trial(result.best).rows_share


def test_the_own_parameters_are_never_stopped(tmp_path: Path) -> None:
    """Even the worst parameters are trained to the end if they are the run's own, on every rung."""
    own = OWN.model_copy(update={"max_depth": 20, "learning_rate": 0.3})
    trainer = PretendTrainer(size=4)
    result = run(tmp_path, SearchConfig(trials=15), trainer, own=own, ladder=Ladder((1 / 3, 1.0)))

    assert ("complete", pytest.approx(loss_of(own))) == (result.trial(0).state, result.trial(0).loss)
    assert own == trainer.configs[0]
    assert result.best != 0


def test_the_own_parameters_come_back_if_nothing_is_better(tmp_path: Path) -> None:
    """A search never ends below the run's own parameters."""
    own = OWN.model_copy(update={"max_depth": 9, "learning_rate": 0.01})
    result = run(tmp_path, SearchConfig(trials=8), own=own)

    assert (own, 0, 0) == (result.config, result.own, result.best)
    assert result.sentence.startswith("No parameters are better than the run's own, validation loss 0.30")


def test_one_trial_is_the_own_parameters_alone(tmp_path: Path) -> None:
    """A search of one trial measures the run's own parameters and returns them."""
    result = run(tmp_path, SearchConfig(trials=1))

    assert (OWN, (0,)) == (result.config, tuple(trial.number for trial in result.trials))


def test_as_many_trials_run_at_once_as_there_are_workers(tmp_path: Path) -> None:
    """All workers are busy, no more trials begin than are asked for, and the cluster hears what is left."""
    trainer = PretendTrainer(size=4)
    run(tmp_path, SearchConfig(trials=6), trainer)

    assert (4, 6) == (trainer.most_running, len(trainer.configs))
    assert (6, 1) == (trainer.expected[0], trainer.expected[-1])


# The budget.


def test_models_that_are_too_slow_are_not_chosen(tmp_path: Path) -> None:
    """With a budget for one row the best of the fast models is chosen, even if the own parameters are too slow."""
    own = OWN.model_copy(update={"max_depth": 8})
    result = run(tmp_path, SearchConfig(trials=30, max_row_microseconds=60), own=own)
    best = result.trial(result.best)

    assert (False, True) == (result.trial(result.own).is_within_budget, best.is_within_budget)
    assert best.row_microseconds is not None and best.row_microseconds <= 60
    assert result.config.max_depth <= 6
    slow = [trial for trial in result.trials if trial.parameters["max_depth"] > 6]
    assert slow and not any(trial.is_within_budget for trial in slow)


def test_a_budget_that_nothing_meets_leaves_the_own_parameters(tmp_path: Path) -> None:
    """If no model is fast enough the own parameters come back, and the sentence says why."""
    result = run(tmp_path, SearchConfig(trials=5, max_row_microseconds=1))

    assert OWN == result.config
    assert result.sentence.startswith("No parameters are as fast as train.search.max_row_microseconds")


@pytest.mark.parametrize(
    ("trials", "expected"),
    [
        ((trial(0), trial(1, 0.2), trial(2, 0.1, state="pruned")), 1),
        ((trial(0), trial(1, 0.3)), 0),
        ((trial(0), trial(1, 0.1, is_within_budget=False)), 0),
        ((trial(0, 0.1, is_within_budget=False), trial(1, 0.4)), 1),
        ((trial(0, is_within_budget=False), trial(1, 0.1, is_within_budget=False)), 0),
    ],
    ids=["the best", "own if equal", "none too slow", "a fast one before slow own", "own if all are slow"],
)
def test_the_best_complete_trial_within_the_budget_is_chosen(trials: tuple[Trial, ...], expected: int) -> None:
    """Pruned and slow trials are not chosen, and equals lose to the run's own."""
    assert expected == chosen(trials, own=0)


def test_a_gain_within_the_noise_is_none() -> None:
    """A trial is chosen only if its losses on parts of the validation rows are lower beyond chance."""
    own = trial(0, 0.30, fold_losses=(0.30, 0.28, 0.32, 0.30))
    noisy = trial(1, 0.25, fold_losses=(0.10, 0.40, 0.10, 0.40))
    sure = trial(2, 0.28, fold_losses=(0.28, 0.26, 0.30, 0.28))
    tiny = replace(sure, number=3, loss=0.31)

    assert [False, True, False] == [is_better(one, own) for one in (noisy, sure, tiny)]
    assert (1, 2) == (leading((own, noisy, sure), own=0), chosen((own, noisy, sure), own=0))
    assert 0 == chosen((own, noisy), own=0)
    result = SearchResult(OWN, 0, 0, (own, noisy), "all that were asked for", False)
    assert "validation loss 0.30000, trial 1 with 0.25000 may be by chance: 2 trials" in result.sentence


# Going on.


def test_a_search_that_died_goes_on(tmp_path: Path) -> None:
    """Finished trials are not repeated, those that ran are tried again, and numbers go on."""
    config = SearchConfig(trials=12)
    first, second = PretendTrainer(dies_after=6), PretendTrainer()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, config, first)
    before = search_in(tmp_path, config).trials()
    running = sorted(set(first.configs) - {trial.number for trial in before})
    heard = Heard()
    result = search_in(tmp_path, config).run(second, heard)

    assert before == result.trials[: len(before)] if not running else True
    assert all(result.trial(trial.number) == trial for trial in before)
    assert ["interrupted"] * len(running) == [result.trial(number).state for number in running]
    assert [f"run-{number}" for number in running] == [heard.trials[number].run_id for number in running]
    assert min(second.configs) == max(first.configs) + 1
    assert [first.configs[number] for number in running] == [second.configs[n] for n in sorted(second.configs)][
        : len(running)
    ]
    assert 12 == sum(trial.state != "interrupted" for trial in result.trials)


def test_own_parameters_that_died_are_tried_again_first(tmp_path: Path) -> None:
    """If the process dies during the first trial, the next one begins with the same parameters, which never stop."""
    config = SearchConfig(trials=5)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, config, PretendTrainer(dies_after=1))
    trainer = PretendTrainer()
    result = run(tmp_path, config, trainer)

    assert OWN == trainer.configs[result.own] == trainer.configs[min(trainer.configs)]
    assert "complete" == result.trial(result.own).state


def test_looking_at_a_search_writes_nothing(tmp_path: Path) -> None:
    """Who asks what is known of a search takes no name in its journal, before it has begun or later."""
    config = SearchConfig(trials=5)
    assert None is search_in(tmp_path, config).known()
    assert [] == Store(str(tmp_path)).list("")
    run(tmp_path, config)
    names = Store(str(tmp_path)).list("")
    assert search_in(tmp_path, config).known() is not None

    assert names == Store(str(tmp_path)).list("")


def test_a_longer_search_continues_a_shorter_one(tmp_path: Path) -> None:
    """More trials go on from those that were done; as many are there at once, without a trainer."""
    short = run(tmp_path, SearchConfig(trials=5))
    assert replace(short, is_reused=True) == search_in(tmp_path, SearchConfig(trials=5)).known()
    assert search_in(tmp_path, SearchConfig(trials=9)).known() is None
    trainer = PretendTrainer()
    long = run(tmp_path, SearchConfig(trials=9), trainer)

    assert [5, 6, 7, 8] == sorted(trainer.configs)
    assert short.trials == long.trials[:5]


def test_a_search_that_goes_on_proposes_other_parameters(tmp_path: Path) -> None:
    """The sampler does not draw again what it drew before it was stopped."""
    run(tmp_path, SearchConfig(trials=4))
    result = run(tmp_path, SearchConfig(trials=8))

    assert 8 == len({json.dumps(trial.parameters) for trial in result.trials})


def test_changed_own_parameters_are_tried_in_the_same_search(tmp_path: Path) -> None:
    """Other own parameters are one more trial, at full length, that the result is held against."""
    run(tmp_path, SearchConfig(trials=5))
    changed = OWN.model_copy(update={"max_depth": 3})
    assert search_in(tmp_path, SearchConfig(trials=5), own=changed).known() is None
    result = run(tmp_path, SearchConfig(trials=5), own=changed)

    assert (5, "complete", pytest.approx(loss_of(changed))) == (
        result.own,
        result.trial(5).state,
        result.trial(5).loss,
    )


def test_the_same_seed_gives_the_same_search(tmp_path: Path) -> None:
    """With one worker, the same seed tries the same parameters; another seed tries others."""
    tried = [
        [
            trial.parameters
            for trial in run(tmp_path / name, SearchConfig(trials=14, seed=seed), PretendTrainer(1)).trials
        ]
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]

    assert tried[0] == tried[1] != tried[2]


# The end.


def test_a_search_ends_when_the_time_is_up(tmp_path: Path) -> None:
    """What runs then is tried again by the next search, and the own parameters are done in any case."""
    trainer = PretendTrainer()
    search = Search(
        OWN,
        TREES,
        SearchConfig(trials=50, timeout_minutes=1),
        WHOLE,
        StoreJournal(Store(str(tmp_path)), "key"),
        clock=lambda: trainer.num_rounds * ROUND_SECONDS,
    )
    result = search.run(trainer, Heard())

    assert "when 1 minutes were over" == result.ended_by
    assert "complete" == result.trial(result.own).state
    assert "interrupted" in {trial.state for trial in result.trials}
    assert 60 <= trainer.num_rounds * ROUND_SECONDS < 70
    again = PretendTrainer()
    longer = run(tmp_path, SearchConfig(trials=len(result.trials)), again)
    assert {json.dumps(t.parameters) for t in result.trials if t.state == "interrupted"} <= {
        json.dumps(t.parameters) for t in longer.trials if t.number >= len(result.trials)
    }


def test_a_search_ends_without_improvement(tmp_path: Path) -> None:
    """After `patience` trials that were no better it is over."""
    own = OWN.model_copy(update={"max_depth": 9, "learning_rate": 0.01})
    result = run(tmp_path, SearchConfig(trials=100, patience=6), PretendTrainer(size=1), own=own)

    assert "after 6 without a better one" == result.ended_by
    assert 7 == len(result.trials)


def test_limits_are_named_and_wait_for_the_own_parameters() -> None:
    """Each limit says in words that it was reached; before the own parameters are done none counts."""
    config = SearchConfig(trials=3, timeout_minutes=2, patience=1)

    assert None is why_enough(config, [trial(n) for n in range(3)], None, 1e9)
    assert None is why_enough(config, [trial(0), trial(1, state="interrupted")], 0, 119)
    assert "when 2 minutes were over" == why_enough(config, [trial(0)], 0, 120)
    assert "after 1 without a better one" == why_enough(config, [trial(0), trial(1)], 0, 0)
    assert "all that were asked for" == why_enough(config, [trial(0), trial(1), trial(2)], 2, 0)


def test_a_failed_trial_does_not_end_the_search(tmp_path: Path) -> None:
    """A trial that fails counts, with its error, and others go on."""
    result = run(tmp_path, SearchConfig(trials=6), PretendTrainer(fails=(2,)))

    assert ("failed", "trial 2 fails", None) == (result.trial(2).state, result.trial(2).why, result.trial(2).loss)
    assert 6 == len(result.trials)


def test_failures_one_after_the_other_end_the_search(tmp_path: Path) -> None:
    """It is not the parameters then."""
    with pytest.raises(RunError, match=r"goes on while trials succeed, but got failures=3 .* \(trial 3 fails\)"):
        run(tmp_path, SearchConfig(trials=9), PretendTrainer(size=1, fails=(1, 2, 3)))


def test_own_parameters_that_fail_end_the_search(tmp_path: Path) -> None:
    """The training would fail in the same way, so their error is the search's; the next run tries them again."""
    with pytest.raises(RunError, match="trial 0 fails"):
        run(tmp_path, SearchConfig(trials=9), PretendTrainer(fails=(0,)))
    result = run(tmp_path, SearchConfig(trials=9))

    assert "complete" == result.trial(result.own).state


# Progress.


def test_progress_has_the_best_loss_and_the_time_left(tmp_path: Path) -> None:
    """Whoever follows hears how many trials are done, the best loss beside the own one, and how long it will take."""
    heard = Heard()
    search_in(tmp_path, SearchConfig(trials=20)).run(PretendTrainer(), heard)

    assert "" == heard.notes[0]
    assert heard.notes[-1].startswith("best 0.3")
    assert "of 19 trials (own parameters 0.34000), about " in heard.notes[-1]


def test_time_left_is_that_of_the_trials_or_of_the_limit() -> None:
    """The pace of the trials so far, over those that run side by side, up to the limit of time."""
    done = [trial(n) for n in range(4)]

    assert None is seconds_left(SearchConfig(trials=10), [], 2, 0)
    assert 30.0 == seconds_left(SearchConfig(trials=10), done, 2, 0)
    assert 10.0 == seconds_left(SearchConfig(trials=10, timeout_minutes=1), done, 2, 50)
    assert "best 0.30000 of 4 trials, about 30 s left" == progress_note(0.3, None, 4, 30.0)


def test_every_dimension_is_a_parameter_of_the_model() -> None:
    """The space names fields of XGBoostConfig, each of whose values in it is allowed."""
    for end in ("low", "high"):
        config = TREES.searched(OWN, {dimension.name: getattr(dimension, end) for dimension in TREES.dimensions})
        assert config == XGBoostConfig.model_validate(config.model_dump())
