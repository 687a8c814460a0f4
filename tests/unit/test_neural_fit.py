"""Training a network: what it learns, when it stops, what it ships, and that it goes on where it was left."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from _networks import graph
from _neural_jobs import BATCH_ROWS, job_of, table, with_settings
from numpy.typing import NDArray
from safetensors.numpy import load as read_weights
from safetensors.torch import save as write_weights
from torch import Tensor

from infra.bundle.network import Network as Graph
from infra.bundle.schema import Task
from infra.errors import InputError, RunError
from infra.member import Member, StoppedError
from infra.progress import listening
from infra.storage import Store
from tasks._candidate import Candidate, load_bundle
from tasks._finish import conformal_half_width, validation_scores
from tasks._metrics import best_threshold
from tasks._neural import fit
from tasks._neural.checkpoint import Checkpoint, Part, Progress, Writer, newest
from tasks._neural.config import REFERENCE_BATCH_ROWS, NeuralConfig
from tasks._neural.fit import Fit, Journey, Learnt, learnt, optimizer_of, rate_factor, row_losses
from tasks._neural.job import NeuralJob
from tasks._neural.network import Network, NetworkShape, Target
from tasks._neural.parallel import Parallel
from tasks._neural.rows import Loader, Order, Rows, cut
from tasks._sample import Sample, SampleRule
from tasks._split import TRAIN, VALIDATION

TASKS: tuple[Task, ...] = ("binary", "multiclass", "regression")
Problem = tuple[Store, NeuralJob]


def learn(store: Store, job: NeuralJob, progress: Progress | None = None, epochs: int | None = None) -> Learnt:
    """Run a phase, by default the first one, as the only member."""
    member = Member.alone()
    journey = Journey(member, store, job, None, Writer(store, job, member))
    try:
        return learnt(journey, progress or Progress(), epochs or job.epochs or job.max_epochs)
    finally:
        journey.writer.close()


def train(store: Store, job: NeuralJob, start: Checkpoint | None = None, member: Member | None = None) -> Candidate:
    """Train as the only member."""
    candidate = fit.train(member or Member.alone(), store, job, start).candidate
    assert candidate is not None
    return candidate


def parallel_of(job: NeuralJob, target: Target | None = None) -> Parallel:
    """Return the network of a job before it has learnt."""
    task = job.encoded.schema.task
    shape = NetworkShape(job.inputs, task, job.num_outputs, job.config)
    return Parallel(Member.alone(), shape, target or Target(task), job.seed)


def scores_of(found: Learnt, rows: Rows) -> Tensor:
    """Return what a trained network serves of rows."""
    network = Network(found.shape).eval()
    network.load_state_dict(found.state)
    with torch.no_grad():
        return found.target.scores(network(torch.from_numpy(rows.read(cut(rows.sizes, len(rows))))))[0]


def loss_of(found: Learnt, rows: Rows) -> float:
    """Return the loss of a trained network on rows, by the formulas."""
    scores, labels = scores_of(found, rows).double().numpy(), rows.label_R
    if found.target.task == "regression":
        return float(np.sqrt(((scores - labels) ** 2).mean()))
    if found.target.task == "binary":
        return float(-np.log(np.where(labels == 1, scores, 1 - scores)).mean())
    return float(-np.log(scores[np.arange(len(labels)), labels.astype(int)]).mean())


def prior_loss(labels: NDArray[np.float32], task: Task) -> float:
    """Return the loss of the best constant."""
    if task == "regression":
        return float(labels.std())
    shares = np.bincount(labels.astype(int)) / len(labels)
    return float(-(shares * np.log(shares)).sum())


def flat(state: dict[str, Tensor]) -> NDArray[np.float32]:
    """Return the parameters and buffers of a network as one row of numbers."""
    return np.concatenate([value.float().flatten().numpy() for _, value in sorted(state.items())])


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Have torch on one thread, for products this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> dict[Task, Problem]:
    """Give a small problem of each task."""
    folder = tmp_path_factory.mktemp("problems")
    return {task: job_of(folder / task, table(task=task), task) for task in TASKS}


@pytest.fixture(scope="module")
def problem(problems: dict[Task, Problem]) -> Problem:
    """Give the binary one."""
    return problems["binary"]


@pytest.fixture
def linear(monkeypatch: pytest.MonkeyPatch) -> list[NDArray[np.float32]]:
    """Have each export give a graph of one linear layer, beside the true weights, as the true one takes seconds.

    Gives the weights of the linear layers, that of the pilot first.
    """
    made: list[NDArray[np.float32]] = []

    def exported(shape: NetworkShape, _target: Target, state: dict[str, Tensor], _rows: Any) -> Graph:
        columns = shape.num_outputs
        made.append(
            np.random.default_rng(len(made)).normal(size=(shape.inputs.num_features, columns)).astype("f4") / 99
        )
        stored = write_weights({name: value.contiguous() for name, value in state.items()})
        return Graph(graph(made[-1], shape.task, has_spread=shape.task != "multiclass"), stored)

    monkeypatch.setattr(fit, "exported", exported)
    return made


# What is learnt


@pytest.mark.parametrize("task", TASKS)
def test_a_signal_is_learnt(problems: dict[Task, Problem], task: Task) -> None:
    """A few epochs on a signal leave a loss on the validation rows well below that of the best constant."""
    store, job = problems[task]
    found = learn(store, replace(with_settings(job, learning_rate=0.06), max_epochs=8))
    rows = Rows(store, job, VALIDATION)

    assert loss_of(found, rows) < 0.75 * prior_loss(rows.label_R, task)


@pytest.mark.parametrize("task", TASKS)
def test_the_curve_is_the_loss_of_what_is_served(
    problems: dict[Task, Problem], task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best point of the curve is the loss of the network that is kept, by the formulas, also if scored in parts."""
    monkeypatch.setattr(fit, "JUDGED_ROWS", (31, 31))
    store, job = problems[task]
    found = learn(store, job)
    curve = found.progress.validation_curve

    np.testing.assert_allclose(min(curve), loss_of(found, Rows(store, job, VALIDATION)), rtol=1e-5)
    assert curve.index(min(curve)) + 1 == found.progress.best_epoch


@pytest.mark.parametrize("task", TASKS)
def test_the_training_curve_is_in_the_unit_of_the_other(problems: dict[Task, Problem], task: Task) -> None:
    """With a learning rate of nearly zero, the training loss is that of the first network on the training rows."""
    store, job = problems[task]
    still = with_settings(job, learning_rate=1e-12)
    found = learn(store, still, epochs=1)

    np.testing.assert_allclose(found.progress.train_curve, [loss_of(found, Rows(store, job, TRAIN))], rtol=1e-4)


def test_the_network_of_the_best_epoch_is_kept(problem: Problem) -> None:
    """A training that gets worse stops after `patience` epochs without gain, and keeps the network of the best one."""
    store, job = problem
    wild = with_settings(job, learning_rate=0.3, patience=3)
    found = learn(store, replace(wild, max_epochs=50))
    curve = found.progress.validation_curve

    assert len(curve) == curve.index(min(curve)) + 1 + 3 < 50
    np.testing.assert_allclose(min(curve), loss_of(found, Rows(store, job, VALIDATION)), rtol=1e-5)


def test_fixed_epochs_are_kept_to(problem: Problem) -> None:
    """With a number of epochs that is fixed, as of a refit, no gain is waited for, and the last network is kept."""
    store, job = problem
    wild = with_settings(job, learning_rate=0.3, patience=1)
    found = learn(store, replace(wild, epochs=15, max_epochs=15))
    curve = found.progress.validation_curve

    assert (15, 15) == (len(curve), found.progress.best_epoch)
    assert curve.index(min(curve)) < 13
    np.testing.assert_allclose(curve[-1], loss_of(found, Rows(store, job, VALIDATION)), rtol=1e-5)


def test_the_second_phase_learns_from_both_sides(problem: Problem) -> None:
    """The second phase has the rows of both sides, as many epochs as it is told, and leaves the curves alone."""
    store, job = problem
    found = learn(store, job, Progress(phase=1, validation_curve=(0.5, 0.4)), epochs=2)
    num_rows = len(Rows(store, job, TRAIN, VALIDATION))

    assert (num_rows, 2 * math.ceil(num_rows / BATCH_ROWS)) == (found.num_rows, found.progress.step)
    assert (0.5, 0.4) == found.progress.validation_curve


def test_classes_can_weigh_the_same(tmp_path: Path) -> None:
    """With balanced weights the mean probability of a rare class is about a half; without, about its share."""
    rare = table(900).with_columns(y=(pl.col("x").fill_null(0) > 1.2).cast(pl.Int64))
    store, job = job_of(tmp_path, rare)
    rows = Rows(store, job, TRAIN)
    means = []
    for weights in ("none", "balanced"):
        # Of the feature that tells the class nothing is left: what is learnt is the share.
        blind = replace(job.inputs, numbers=tuple(replace(n, scale=0.0) for n in job.inputs.numbers))
        chosen = replace(with_settings(job, class_weights=weights), inputs=blind, max_epochs=10)
        means.append(float(scores_of(learn(store, chosen), rows).mean()))

    np.testing.assert_allclose(means, [rows.label_R.mean(), 0.5], atol=0.06)


def test_weights_of_rows_count(tmp_path: Path) -> None:
    """Rows that weigh nothing teach nothing: a class of which all rows do is not learnt."""
    frame = table().with_columns(w=pl.when(pl.col("y") == 1).then(0.0).otherwise(1.0))
    store, job = job_of(tmp_path, frame, weight="w")
    found = learn(store, replace(with_settings(job, learning_rate=0.1), max_epochs=8))

    assert float(scores_of(found, Rows(store, job, TRAIN)).max()) < 0.2


# The steps


def first_batch(store: Store, job: NeuralJob, batch_rows: int = BATCH_ROWS) -> Any:
    """Return the first batch of the training rows."""
    rows = Rows(store, job, TRAIN)
    return next(Loader(rows, Order(rows.sizes, job.window_rows, 0), batch_rows).epoch(0))


def gradients(parallel: Parallel) -> NDArray[np.float32]:
    """Return all gradients as one row of numbers."""
    return np.concatenate([p.grad.flatten().numpy() for p in parallel.parameters().values() if p.grad is not None])


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("micro_rows", [1, 7, 32])
def test_parts_of_a_batch_add_up_to_it(problems: dict[Task, Problem], task: Task, micro_rows: int) -> None:
    """Gradients and loss of a batch that is computed in parts are those of the whole, within 1e-6."""
    store, job = problems[task]
    batch, found = first_batch(store, job), []
    for size in (1 << 20, micro_rows):
        parallel = parallel_of(job, Target(task, 100.0, 20.0))
        loss = parallel.backward(batch, size)
        found.append(np.append(gradients(parallel), float(loss) / batch.num_rows))

    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-6)


def test_gradients_are_clipped_to_the_norm(problem: Problem) -> None:
    """Larger gradients are scaled down to the norm, smaller ones and those without a limit stay as they are."""
    store, job = problem
    norms = []
    for most in (0.01, 100.0, 0.0):
        parallel = parallel_of(job)
        parallel.backward(first_batch(store, job), 1 << 20)
        before = np.linalg.norm(gradients(parallel))
        np.testing.assert_allclose(before, float(parallel.clip(most)), rtol=1e-5)
        norms.append(np.linalg.norm(gradients(parallel)))

    assert before > 0.01
    np.testing.assert_allclose(norms, [0.01, before, before], rtol=1e-4)


def watched_steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[NDArray[np.float32], list[float]]]:
    """Return a list that gets the parameters and learning rates of every step once it is done."""
    step, seen = Fit._step, []

    def watched(self: Fit, batch: Any) -> None:
        step(self, batch)
        rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        seen.append((flat({n: p.detach() for n, p in self.parallel.parameters().items()}), rates))

    monkeypatch.setattr(Fit, "_step", watched)
    return seen


def test_the_running_mean_of_the_weights_is_kept(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `ema` the running mean of the weights, from the first ones on, is what is judged and kept."""
    store, job = problem
    averaged = with_settings(job, ema=0.8)
    mean = flat({name: value.detach() for name, value in parallel_of(averaged).parameters().items()})
    seen = watched_steps(monkeypatch)
    found = learn(store, replace(averaged, epochs=2))
    for parameters, _ in seen:
        mean = 0.8 * mean + 0.2 * parameters
    names = set(parallel_of(averaged).parameters())

    np.testing.assert_allclose(flat({n: v for n, v in found.state.items() if n in names}), mean, atol=1e-6)
    last = found.progress.validation_curve[-1]
    np.testing.assert_allclose(last, loss_of(found, Rows(store, job, VALIDATION)), rtol=1e-5)
    assert np.abs(seen[-1][0] - mean).max() > 1e-3


def test_the_learning_rate_belongs_to_the_batch(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step has the learning rate of the schedule, times the root of how large its batches are."""
    store, job = problem
    seen = watched_steps(monkeypatch)
    learn(store, job)
    scale = job.config.learning_rate * math.sqrt(BATCH_ROWS / REFERENCE_BATCH_ROWS)
    expected = [scale * rate_factor(i, len(seen), job.config.warmup_fraction) for i in range(len(seen))]

    np.testing.assert_allclose([rate for _, rates in seen for rate in set(rates)], expected)


def test_only_weights_of_layers_decay(problem: Problem) -> None:
    """Weight decay is for the products' weights; biases, scales, tables and pieces have none."""
    parallel = parallel_of(with_settings(problem[1], architecture="tabm-mini", blocks=2))
    names = {id(parameter): name for name, parameter in parallel.parameters().items()}
    groups = optimizer_of(parallel, NeuralConfig(weight_decay=0.5)).param_groups
    decayed = {group["weight_decay"]: {names[id(p)] for p in group["params"]} for group in groups}

    assert {"layers.1.linear.weight", "layers.2.linear.weight"} == decayed[0.5]
    assert set(names.values()) == decayed[0.5] | decayed[0.0]


def test_losses_of_served_scores_are_those_of_the_formulas() -> None:
    """Log loss of what is served stays finite where it is sure and wrong; a regression's is the squared error."""
    labels, scores = torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0.25, 0.25, 0.0])
    classes = torch.tensor([[0.5, 0.5], [0.25, 0.75], [1.0, 0.0]])

    torch.testing.assert_close(
        [row_losses(Target("binary"), scores, labels)[:2], row_losses(Target("multiclass"), classes, labels)[:2]],
        [-torch.log(torch.tensor([0.25, 0.75])), -torch.log(torch.tensor([0.5, 0.25]))],
    )
    assert bool(row_losses(Target("binary"), scores, labels).isfinite().all())
    assert bool(row_losses(Target("multiclass"), classes, labels).isfinite().all())
    assert [4.0, 1.0] == row_losses(Target("regression"), torch.tensor([3.0, 1.0]), torch.tensor([1.0, 2.0])).tolist()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: float) -> None:
    """A loss that is no number ends the training with the step, the epoch and the files of the batch that had it."""
    store, job = job_of(tmp_path, table(task="regression"), "regression")
    job = replace(job, batch_rows=2)
    losses, rows = Target.losses, Rows(store, job, TRAIN)
    label = float(rows.label_R[-1])
    batches = Loader(rows, Order(rows.sizes, job.window_rows, job.seed), 2).epoch(0)
    batch = next(batch for batch in batches if label in batch.label_B)
    names = ", ".join(rows.shards_of(batch.pieces, np.unique(batch.positions)))

    def broken(self: Target, raw_BKO: Tensor, label_B: Tensor) -> Tensor:
        return torch.where(label_B == label, bad, losses(self, raw_BKO, label_B))

    monkeypatch.setattr(Target, "losses", broken)
    with pytest.raises(
        RunError, match=rf"got loss=nan at step={batch.number + 1} \(epoch 1\) on rows of {names}\. Look"
    ):
        learn(store, job)


def test_a_validation_loss_that_is_no_number_is_named(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network whose loss on the validation rows is no number ends the training with the epoch."""
    monkeypatch.setattr(fit, "row_losses", lambda _target, _scores, label_B: torch.full_like(label_B, float("nan")))

    with pytest.raises(RunError, match=r"got logloss=nan on the validation rows after epoch 1\. Look"):
        learn(*problem)


def test_huge_targets_are_learnt(tmp_path: Path) -> None:
    """Targets whose squares float32 can't hold are learnt, and judged, in their own unit."""
    frame = table(task="regression").with_columns(pl.col("y") * 1e30)
    store, job = job_of(tmp_path, frame, "regression")
    found = learn(store, replace(job, max_epochs=8))
    rows = Rows(store, job, VALIDATION)

    assert min(found.progress.validation_curve) < 0.75 * float(rows.label_R.std(dtype=np.float64))


def test_no_rows_to_learn_from_are_refused(problem: Problem) -> None:
    """Without a row on the training side there is nothing to learn, and the message says so."""
    store, job = problem

    with pytest.raises(InputError, match="got num_rows=0 on the training side"):
        learn(store, replace(job, sample=Sample(SampleRule(thresholds=(1.0,)), 0, 0)))


def test_a_gpu_that_is_not_there_is_no_cpu(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training on a GPU fails on a worker without one; no CPU takes its place."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    store, job = problem

    with pytest.raises(RunError, match="got device=cuda on a worker"):
        train(store, replace(job, device="cuda"))


# What is shipped


@pytest.mark.usefixtures("linear")
def test_a_candidate_tells_how_it_went(problem: Problem) -> None:
    """A candidate has the curves, the numbers of rows and of epochs, and the settings that made it."""
    store, job = problem
    found = train(store, job)
    counts = [len(Rows(store, job, *sides)) for sides in ((TRAIN,), (VALIDATION,), (TRAIN, VALIDATION))]

    assert ("neural", "logloss", *counts) == (
        *(found.family, found.loss),
        *(found.num_train_rows, found.num_validation_rows, found.num_final_rows),
    )
    assert job.config == NeuralConfig.model_validate(found.settings)
    assert (4, 4, False) == (len(found.train_curve), found.max_rounds, found.is_stopped)
    assert (BATCH_ROWS, "mlp") == (found.parameters["batch_rows"], found.parameters["architecture"])
    assert counts[2] == load_bundle(store, found.bundle).facts["num_train_rows"]


@pytest.mark.usefixtures("linear")
def test_one_phase_ships_the_pilot(problem: Problem) -> None:
    """Without `include_validation` the network of the first phase is shipped, which learnt from the training rows."""
    store, job = problem
    found = train(store, replace(job, include_validation=False))
    shipped = load_bundle(store, found.bundle)

    assert found.num_final_rows is None
    assert store.get(found.pilot) == shipped.predictor.onnx
    assert found.num_train_rows == shipped.facts["num_train_rows"] == len(Rows(store, job, TRAIN))


@pytest.mark.usefixtures("linear")
def test_two_phases_ship_the_second_network(problem: Problem) -> None:
    """With `include_validation` the shipped network is one that learnt from both sides, and not the pilot."""
    store, job = problem
    found = train(store, job)
    second = learn(store, job, Progress(phase=1), epochs=found.num_rounds)
    shipped = load_bundle(store, found.bundle).predictor

    np.testing.assert_array_equal(flat(second.state), flat_bytes(shipped.weights))
    assert store.get(found.pilot) != shipped.onnx


def flat_bytes(weights: bytes) -> NDArray[np.float32]:
    """Return the numbers of stored weights as one row."""
    return np.concatenate([value.astype(np.float32).ravel() for _, value in sorted(read_weights(weights).items())])


def pilot_scores(store: Store, job: NeuralJob, found: Candidate, weights_FO: NDArray[np.float32]) -> tuple[Any, Any]:
    """Return labels and scores of the validation rows by the network of the first phase."""
    pilot = Graph(graph(weights_FO, job.encoded.schema.task, has_spread=True))
    labels, scores, _ = validation_scores(store, job, replace(load_bundle(store, found.bundle), predictor=pilot))
    return labels, scores


def test_the_threshold_is_the_pilots(problem: Problem, linear: list[NDArray[np.float32]]) -> None:
    """The threshold of two classes is the best one of the pilot's scores of the validation rows."""
    store, job = problem
    found = train(store, job)

    assert best_threshold(*pilot_scores(store, job, found, linear[0])) == load_bundle(store, found.bundle).threshold


def test_the_interval_is_the_pilots(problems: dict[Task, Problem], linear: list[NDArray[np.float32]]) -> None:
    """The prediction interval holds its share of the pilot's errors on the validation rows."""
    store, job = problems["regression"]
    found = train(store, replace(job, interval=0.9))
    labels, scores = pilot_scores(store, job, found, linear[0])

    assert conformal_half_width(labels - scores, 0.9) == load_bundle(store, found.bundle).half_width


@pytest.mark.usefixtures("linear")
@pytest.mark.parametrize("has_spread", [False, True])
def test_answers_have_a_spread_if_asked(problem: Problem, has_spread: bool) -> None:
    """The bundle answers with the spread of the submodels only where `spread` is set."""
    store, job = problem
    found = load_bundle(store, train(store, with_settings(job, spread=has_spread)).bundle)

    assert has_spread == ("prediction_spread" in found.predict(table(5)).columns)


def test_the_same_job_gives_the_same_bytes(problem: Problem, linear: list[NDArray[np.float32]]) -> None:
    """Trained twice, a job gives the same bundle to the byte, whatever else torch has drawn."""
    store, job = problem
    job, found = replace(with_settings(job, dropout=0.5), include_validation=False), []
    for seed in (0, 1):
        torch.manual_seed(seed)
        linear.clear()
        found.append(train(store, job).bundle)

    assert found[0] == found[1]
    assert any(ref.name.endswith(".safetensors") for ref in found[0].files)


@pytest.mark.usefixtures("linear")
def test_progress_is_told(problem: Problem) -> None:
    """Who listens hears each point of the curves once, and of steps that never fall, up to all of them."""
    store, job = problem
    heard: list[dict[str, Any]] = []
    with listening(heard.append):
        found = train(store, replace(job, epochs=3))
    told = [event for event in heard if "done" in event]
    points = [tuple(point) for event in told for point in event["curve"]]

    assert [(i, *pair) for i, pair in enumerate(zip(found.train_curve, found.validation_curve, strict=True))] == points
    assert sorted(event["done"] for event in told) == [event["done"] for event in told]
    assert all(event["done"] <= event["total"] for event in told)


# Going on


class Stopping(Member):
    """A member that is asked to stop once a checkpoint was written."""

    def saved(self) -> None:
        """Stop."""
        self.stop()


def eager(job: NeuralJob) -> NeuralJob:
    """Return a job that leaves a checkpoint as often as it can."""
    return with_settings(job, checkpoint_seconds=1e-9)


@pytest.mark.usefixtures("linear")
def test_a_training_goes_on_where_it_was_left(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in either phase and resumed, a training gives the network of one that was never stopped."""
    monkeypatch.setattr(fit, "LOOK_STEPS", 2)
    monkeypatch.setattr(Writer, "is_busy", property(lambda self: self._running and not self._running.result()))
    store, job = problem
    job = replace(with_settings(job, dropout=0.3, ema=0.5), max_epochs=2)
    whole = train(store, job)
    often = eager(job)
    reached, start = [], None
    while (start is None or not start.progress.phase) and len(reached) < 99:
        with pytest.raises(StoppedError, match="rank=0"):
            train(store, often, start, Stopping(0, 1, 1))
        start = newest(store, often)
        assert start is not None
        reached.append(start.progress)
    resumed = train(store, often, start)

    assert {(0, 0), (0, 1), (1, 0)} == {(progress.phase, progress.epoch) for progress in reached}
    assert (whole.train_curve, whole.validation_curve) == (resumed.train_curve, resumed.validation_curve)
    shipped = [load_bundle(store, candidate.bundle).predictor.weights for candidate in (whole, resumed)]
    np.testing.assert_allclose(*map(flat_bytes, shipped), rtol=0, atol=1e-6)


def test_a_resumed_second_phase_keeps_the_pilot(problem: Problem, linear: list[NDArray[np.float32]]) -> None:
    """A training that is resumed in its second phase exports no other pilot, and knows where the one it had is."""
    store, job = problem
    member = Member.alone()
    journey = Journey(member, store, job, None, Writer(store, job, member))
    progress, _ = fit.pilot_of(journey)
    again = replace(journey, start=Checkpoint((Part(0, 1, (), replace(progress, phase=1), ""),)))
    found = fit.pilot_of(again)

    assert (replace(progress, phase=1), None) == found
    assert 1 == len(linear)
