"""A search for networks: its space, its ladder, and one trial on the same parts of the rows as the trees' trials."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _neural_jobs import job_of, table, with_settings

from infra.bundle.schema import Task
from infra.errors import InputError
from infra.progress import listening, stoppable
from infra.storage import Store
from tasks._neural import trial
from tasks._neural.config import NeuralConfig
from tasks._neural.job import NeuralJob
from tasks._neural.space import dimensions_of, largest, network_space
from tasks._neural.trial import run_trial, sized
from tasks._search import NUM_FOLDS, Ladder, SearchConfig
from tasks._space import Space
from tasks._train import XGBoostConfig
from tasks._training import TrainingJob
from tasks._trial import run_trial as run_tree_trial
from tasks.search import Trees
from tasks.search_neural import Networks


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, NeuralJob]:
    """Give a small binary problem."""
    return job_of(tmp_path_factory.mktemp("small"), table())


@pytest.fixture(scope="module")
def tabm(small: tuple[Store, NeuralJob]) -> NeuralJob:
    """Give the job of a network as it is by default."""
    return replace(small[1], config=NeuralConfig())


def space_of(job: NeuralJob) -> Space[NeuralConfig]:
    """Return the space where everything fits."""
    return network_space(job, lambda _config: True)


def names_of(job: NeuralJob) -> set[str]:
    """Return what is searched."""
    return {dimension.name for dimension in dimensions_of(job)}


# The space and the ladder


def test_the_default_network_is_in_the_space(tabm: NeuralJob) -> None:
    """The defaults come back from their positions as they are."""
    own, space = NeuralConfig(), space_of(tabm)

    assert own == space.searched(own, space.positions(own))


@pytest.mark.parametrize("end", ["low", "high"])
def test_every_dimension_is_a_setting_of_a_network(tabm: NeuralJob, end: str) -> None:
    """The space names fields of NeuralConfig, each of whose values in it is allowed; nothing else changes."""
    space = space_of(tabm)
    found = space.searched(tabm.config, {one.name: getattr(one, end) for one in space.dimensions})

    assert found == NeuralConfig.model_validate(found.model_dump())
    assert tabm.config.model_dump(exclude=names_of(tabm)) == found.model_dump(exclude=names_of(tabm))


def test_nothing_is_a_value_of_its_own(tabm: NeuralJob) -> None:
    """No weight decay and no dropout have room among the draws; an own value of 0 is kept."""
    space = space_of(tabm)
    ends = space.positions(tabm.config) | {"weight_decay": 5e-5, "dropout": -0.1}
    own = tabm.config.model_copy(update={"weight_decay": 0.0, "dropout": 0.0})

    assert (0.0, 0.0) == (space.searched(own, ends).weight_decay, space.searched(own, ends).dropout)
    assert own == space.searched(own, space.positions(own))


def test_sizes_lie_on_their_steps(tabm: NeuralJob) -> None:
    """An own width or embedding that is no multiple is known to the sampler by the nearest one that is."""
    own = tabm.config.model_copy(update={"width": 100, "embedding": 15, "blocks": 9})

    assert (96, 16, 4) == tuple(space_of(tabm).positions(own)[name] for name in ("width", "embedding", "blocks"))


@pytest.mark.parametrize(
    ("architecture", "numbers", "codes", "absent"),
    [
        ("tabm-mini", True, True, set()),
        ("tabm-mini", False, True, {"bins"}),
        ("mlp", True, True, {"bins"}),
        ("wide", True, False, {"bins", "embedding"}),
    ],
)
def test_what_a_network_has_no_use_for_is_not_searched(
    tabm: NeuralJob, architecture: Any, numbers: bool, codes: bool, absent: set[str]
) -> None:
    """Pieces belong to numbers of tabm-mini, embeddings to these and to codes."""
    inputs = replace(
        tabm.inputs,
        numbers=tabm.inputs.numbers if numbers else (),
        codes=tabm.inputs.codes if codes else (),
    )
    job = replace(with_settings(tabm, architecture=architecture), inputs=inputs)

    assert names_of(tabm) - absent == names_of(job)


def test_a_network_that_is_divided_can_be(tabm: NeuralJob) -> None:
    """Widths are multiples of the members of a tensor-parallel network, and a pipeline has hidden layers."""
    tensor, pipeline = (replace(tabm, members=6, parallelism=kind) for kind in ("tensor", "pipeline"))
    width = next(one for one in dimensions_of(tensor) if one.name == "width")
    blocks = next(one for one in dimensions_of(pipeline) if one.name == "blocks")

    assert (0, 0, 48) == (width.low % 6, width.high % 6, width.step)
    assert (4, 4) == (blocks.low, blocks.high)


def test_the_largest_network_of_the_space_fits(tabm: NeuralJob) -> None:
    """Where memory is short sizes end nearer to the run's own, which are in the space in any case."""
    tried: list[NeuralConfig] = []

    def fits(config: NeuralConfig) -> bool:
        tried.append(config)
        return config.width <= 400 and config.blocks <= 3

    own = tabm.config.model_copy(update={"width": 128, "blocks": 2})
    space = network_space(replace(tabm, config=own), fits)
    found = largest(space, own)
    nothing = network_space(replace(tabm, config=own), lambda _config: False)

    assert (512, 4) == (tried[0].width, tried[0].blocks)
    assert (320, 3) == (found.width, found.blocks)
    assert own == largest(nothing, own)


def test_epochs_count_alike(tabm: NeuralJob) -> None:
    """Fast learners get as many epochs as slow ones, and the rungs of rows are those of the trees."""
    space, ladder = space_of(tabm), Ladder((1.0,), way=20.0)
    paces = {space.pace(tabm.config.model_copy(update={"learning_rate": rate})) for rate in (1e-3, 1e-2)}

    assert {1.0} == paces
    assert [5, 10, 20] == [ladder.rounds(index, 1.0) for index in range(3)]


# The family


def networks_of(job: NeuralJob, **asked: Any) -> Networks:
    """Return the family of a job that is planned as it is."""
    return Networks(job, lambda config: (replace(job, config=config), None), SearchConfig(**asked))  # type: ignore[arg-type, return-value]


def trees_of(job: NeuralJob) -> TrainingJob:
    """Return the training of trees on the same rows."""
    shared = ("model", "encoded", "files", "rule", "sample", "seed", "interval", "threads", "facts", "validation_share")
    config = XGBoostConfig(rounds=30, max_depth=2, learning_rate=0.3)
    return TrainingJob(config=config, include_validation=False, **{name: getattr(job, name) for name in shared})


def test_a_search_is_known_by_what_its_losses_depend_on(small: tuple[Store, NeuralJob]) -> None:
    """Other own values of what is searched, and other limits, belong to the same search; all else to another one."""
    job = small[1]
    first = networks_of(job).key
    same = [
        networks_of(with_settings(job, width=96, learning_rate=0.001)),
        networks_of(replace(job, threads=7)),
        networks_of(with_settings(job, checkpoint_seconds=1.0)),
        networks_of(job, trials=9, timeout_minutes=1, patience=2),
    ]
    others = [
        networks_of(job, seed=1),
        networks_of(job, max_row_microseconds=5),
        networks_of(replace(job, seed=9)),
        networks_of(replace(job, max_epochs=9)),
        networks_of(replace(job, batch_rows=9)),
        networks_of(with_settings(job, ema=0.9)),
        networks_of(with_settings(job, architecture="wide", submodels=2)),
        networks_of(replace(job, validation_share=0.5)),
    ]

    assert {first} == {one.key for one in same}
    assert len(others) == len({one.key for one in others} - {first})


def test_what_fits_no_worker_is_not_tried(small: tuple[Store, NeuralJob]) -> None:
    """Sizes that the planner refuses, or would divide otherwise, are left out of the space."""
    job = with_settings(small[1], width=128)

    def planned(config: NeuralConfig) -> Any:
        if config.width > 400:
            raise InputError("A network must fit the memory of its workers")
        return replace(job, config=config, parallelism="fsdp" if config.width > 250 else "data"), None

    width = next(one for one in Networks(job, planned, SearchConfig()).space.dimensions if one.name == "width")

    assert (64, 224) == (width.low, width.high)


def test_both_families_have_the_same_rungs_of_rows(small: tuple[Store, NeuralJob]) -> None:
    """Their trials are on the same shares of the same rows; of networks it is known how far they go."""
    job = replace(small[1], sample=replace(small[1].sample, num_rows=200_000), max_epochs=12)
    families = networks_of(job), Trees(trees_of(job), SearchConfig())

    assert [(1 / 9, 1 / 3, 1.0)] * 2 == [family.ladder.row_shares for family in families]
    assert [12.0, None] == [family.ladder.way for family in families]
    assert [4, 12] == [families[0].ladder.rounds(index, 1.0) for index in range(2)]


# A trial


def test_a_trial_is_the_first_phase_of_a_training(small: tuple[Store, NeuralJob]) -> None:
    """Its losses by epoch are those of a training, it is not timed unasked, and it leaves nothing in the store."""
    store, job = small
    before = store.list("")
    outcome = run_trial(store, with_settings(job, checkpoint_seconds=1e-9), 1.0, False)

    assert job.max_epochs == len(outcome.losses)
    assert outcome.losses == run_trial(store, job, 1.0, False).losses
    assert min(outcome.losses) < outcome.losses[0]
    assert (None, False) == (outcome.row_microseconds, outcome.is_stopped)
    assert outcome.cpu_seconds > 0 and outcome.seconds > 0
    assert before == store.list("")


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("weighted", [False, True])
def test_parts_of_the_rows_have_the_loss_of_the_whole_as_mean(tmp_path: Path, task: Task, weighted: bool) -> None:
    """The losses of the folds average to that of the best epoch, of regression squared, with weights too."""
    store, job = job_of(tmp_path, table(task=task), task, **({"weight": "w"} if weighted else {}))
    outcome = run_trial(store, job, 1.0, False)
    mean = float(np.mean(outcome.fold_losses))

    assert NUM_FOLDS == len(outcome.fold_losses)
    assert min(outcome.losses) == pytest.approx(mean**0.5 if task == "regression" else mean, rel=1e-5)


def test_both_families_are_judged_on_the_same_parts_of_the_rows(tmp_path: Path) -> None:
    """Which parts are hard is alike for trees and networks, since they are the same rows."""
    store, job = job_of(tmp_path, table(3000))
    network = run_trial(store, replace(job, max_epochs=8), 1.0, False).fold_losses
    trees = run_tree_trial(store, trees_of(job), trees_of(job).config, 1.0).fold_losses

    assert np.corrcoef(network, trees)[0, 1] > 0.9
    assert abs(np.corrcoef(network, np.roll(trees, 1))[0, 1]) < 0.5


def test_a_share_of_the_rows_is_that_of_the_trees(small: tuple[Store, NeuralJob]) -> None:
    """A trial on a third of the rows learns from as many, in steps as for data of that size, for as many epochs."""
    store, job = small
    whole = replace(job, sample=replace(job.sample, num_rows=90_000), batch_rows=512)
    outcome = run_trial(store, job, 1 / 3, False)

    assert (128, 512) == (sized(whole, 1 / 3).batch_rows, sized(whole, 1.0).batch_rows)
    assert (job.max_epochs, ()) == (len(outcome.losses), outcome.fold_losses)
    assert outcome.losses != run_trial(store, job, 1.0, False).losses


def test_a_trial_ends_when_it_is_told_to(small: tuple[Store, NeuralJob], monkeypatch: pytest.MonkeyPatch) -> None:
    """It returns what it has, says that it was stopped, and reports its losses on the way, each of them once."""
    told: list[float] = []
    monkeypatch.setattr(trial, "REPORT_SECONDS", 0.0)
    with listening(lambda event: told.extend(event["losses"])), stoppable(lambda: len(told) >= 3):
        outcome = run_trial(*small, 1.0, False)

    assert told == list(outcome.losses)
    assert (3, True, ()) == (len(told), outcome.is_stopped, outcome.fold_losses)


def test_a_trial_does_not_wait_for_the_end_of_an_epoch(
    small: tuple[Store, NeuralJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Amid the first epoch it ends too, without a loss."""
    monkeypatch.setattr("tasks._neural.fit.LOOK_STEPS", 2)
    with stoppable(lambda: True):
        outcome = run_trial(*small, 1.0, False)

    assert ((), True) == (outcome.losses, outcome.is_stopped)


def test_the_graph_that_is_served_is_timed_for_a_budget(small: tuple[Store, NeuralJob]) -> None:
    """Under a budget one row is scored by the exported graph, in some microseconds."""
    outcome = run_trial(*small, 1.0, True)

    assert outcome.row_microseconds is not None
    assert 1 < outcome.row_microseconds < 1e5


def test_a_trial_compiles_nothing(small: tuple[Store, NeuralJob]) -> None:
    """To compile a network takes a minute, and a trial does not."""
    assert not sized(with_settings(small[1], compile=True), 1.0).config.compile
