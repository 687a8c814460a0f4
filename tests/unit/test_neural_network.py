"""The modules of a network: raw rows in, predictions out.

Shape suffixes as in tasks/_neural/network.py.
"""

from __future__ import annotations

import itertools
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from infra.bundle.schema import Task
from tasks._neural.config import Architecture, NeuralConfig
from tasks._neural.inputs import CodeInput, NetworkInputs, NumberInput
from tasks._neural.network import (
    INIT_ROWS,
    Network,
    NetworkShape,
    Served,
    Target,
    fill_uniform,
    initialise,
    seed_of,
)

NAN = float("nan")
ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)
TASKS: tuple[Task, ...] = get_args(Task)
INPUTS = NetworkInputs(
    (NumberInput(0, 10.0, 0.5, (-1.0, 0.0, 1.0)), NumberInput(2, 0.0, 0.0, (0.0, 1.0))),
    (CodeInput(1, 4), CodeInput(3, 3)),
)
MEDIANS_BF = torch.tensor([[10.0, 1.0, 0.0, 1.0]])


def shape(architecture: Architecture = "tabm-mini", task: Task = "binary", **settings: Any) -> NetworkShape:
    """Return the shape of a small network of two numbers, the second of which is constant, and two codes."""
    config = NeuralConfig(architecture=architecture, width=8, blocks=2, submodels=3, embedding=4, dropout=0.0)
    return NetworkShape(INPUTS, task, 3 if task == "multiclass" else 1, config.model_copy(update=settings))


def network(architecture: Architecture = "tabm-mini", task: Task = "binary", seed: int = 0, **settings: Any) -> Network:
    """Make a network whose parts are all filled, also those that begin with zeros."""
    made = Network(shape(architecture, task, **settings))
    initialise(made, seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    return made.eval()


def changed(column: int, value: float) -> Tensor:
    """Return the row of medians with another value in a column."""
    row_BF = MEDIANS_BF.clone()
    row_BF[0, column] = value
    return row_BF


# From raw rows to outputs


@pytest.mark.parametrize(("architecture", "task"), [*itertools.product(ARCHITECTURES, TASKS)])
def test_raw_rows_become_predictions(architecture: Architecture, task: Task) -> None:
    """Of raw rows each architecture gives what its task is: probabilities, those of all classes, or numbers."""
    made = network(architecture, task)
    rows_BF = torch.tensor([[9.0, 0.0, 1.0, 2.0], [NAN, NAN, NAN, NAN], [12.0, 3.0, 0.0, 1.0]])
    raw_BKO = made(rows_BF)
    scores, spread = Served(made, Target(task, 3.0, 2.0), has_spread=True)(rows_BF)

    assert (3, 3 if architecture == "tabm-mini" else 1, 3 if task == "multiclass" else 1) == tuple(raw_BKO.shape)
    assert (((3, 3) if task == "multiclass" else (3,)), (3,)) == (tuple(scores.shape), tuple(spread.shape))
    if task != "regression":
        assert bool(((scores > 0) & (scores < 1)).all())
    if task == "multiclass":
        torch.testing.assert_close(scores.sum(1), torch.ones(3))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_network_of_numbers_or_of_codes_alone_works(architecture: Architecture) -> None:
    """A network may have no numbers, or no codes."""
    for inputs in (NetworkInputs(INPUTS.numbers[:1], ()), NetworkInputs((), (CodeInput(0, 4),))):
        config = NeuralConfig(architecture=architecture, width=8, submodels=3, embedding=4)

        assert 2 == len(Network(NetworkShape(inputs, "binary", 1, config))(torch.tensor([[1.0], [NAN]])))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_extreme_values_have_finite_predictions(architecture: Architecture) -> None:
    """Missing, infinite and huge numbers, and codes that no vocabulary has, give finite predictions in each column."""
    extremes = [NAN, float("inf"), float("-inf"), 3e38, -3e38, 1e7, -7.0]
    rows_BF = torch.cat([changed(column, value) for column in range(4) for value in extremes])

    assert bool(network(architecture)(rows_BF).isfinite().all())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_missing_number_is_not_the_median(architecture: Architecture) -> None:
    """A row without a number has another prediction than one with the median of it."""
    made = network(architecture)

    assert not torch.allclose(made(changed(0, NAN)), made(MEDIANS_BF), atol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_missing_unknown_and_known_codes_differ(architecture: Architecture) -> None:
    """A missing code, the unknown one and each known one have predictions of their own."""
    found = torch.cat([network(architecture)(changed(1, code)) for code in (NAN, 0.0, 1.0, 2.0, 3.0)])[:, 0, 0]

    assert 5 == len({round(value, 5) for value in found.tolist()})


def test_codes_that_the_vocabulary_lacks_are_unknown() -> None:
    """A code beyond the vocabulary, of whatever size, is the unknown one; one below zero is missing."""
    made = network()
    unknown_BF = torch.cat([changed(1, value) for value in (4.0, 1e7, 3e38, float("inf"))])
    missing_BF = torch.cat([changed(1, value) for value in (-1.0, -2.0, -3e38, float("-inf"))])

    torch.testing.assert_close(made(unknown_BF), made(changed(1, 0.0)).expand(4, -1, -1))
    torch.testing.assert_close(made(missing_BF), made(changed(1, NAN)).expand(4, -1, -1))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_constant_number_does_not_count(architecture: Architecture) -> None:
    """What a column that was constant in the data holds makes no difference, except that it is missing."""
    made = network(architecture)
    rows_BF = torch.cat([changed(2, value) for value in (5.0, -3e38, float("inf"))])

    torch.testing.assert_close(made(rows_BF), made(MEDIANS_BF).expand(3, -1, -1))
    assert not torch.allclose(made(changed(2, NAN)), made(MEDIANS_BF), atol=1e-4)


def test_rows_do_not_see_each_other() -> None:
    """A row alone has the prediction that it has among others."""
    rows_BF = torch.cat([changed(0, value) for value in (1.0, 10.0, 20.0, NAN)])
    made = network()

    torch.testing.assert_close(made(rows_BF), torch.cat([made(row_F[None]) for row_F in rows_BF]))


def test_a_network_is_its_layers_in_a_row() -> None:
    """Layers that are called one after the other, cut anywhere, give what the network gives."""
    made = network()
    x = MEDIANS_BF
    for layer in made.layers.values():
        x = layer(x)

    assert torch.equal(made(MEDIANS_BF), x)


def test_only_tabm_mini_has_submodels() -> None:
    """tabm-mini has as many submodels as are set; the others have one."""
    assert [3, 1, 1] == [shape(architecture).num_submodels for architecture in ARCHITECTURES]


def test_one_submodel_has_no_spread() -> None:
    """With one submodel the spread is zero; with more it is the deviation of their predictions."""
    spreads = {k: Served(network(submodels=k), Target("binary"), has_spread=True)(MEDIANS_BF)[1].item() for k in (1, 3)}

    assert 0.0 == spreads[1] < spreads[3]


def test_spread_is_left_out_unless_asked() -> None:
    """A network that is served without spread gives its scores alone."""
    assert 1 == len(Served(network(), Target("binary"), has_spread=False)(MEDIANS_BF))


# What outputs mean


@pytest.fixture
def raw_BKO() -> np.ndarray:
    """Give raw outputs of 5 rows, 2 submodels and 3 classes."""
    return np.random.default_rng(0).normal(size=(5, 2, 3))


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Return the logistic function."""
    return 1 / (1 + np.exp(-x))


def softmax(x: np.ndarray) -> np.ndarray:
    """Return probabilities along the last axis."""
    powers = np.exp(x)
    return powers / powers.sum(-1, keepdims=True)


def of(array: Any) -> Tensor:
    """Return an array as float32."""
    return torch.from_numpy(np.asarray(array, np.float32))


def test_binary_loss_and_scores_are_those_of_the_formulas(raw_BKO: np.ndarray) -> None:
    """Binary: the mean of the submodels' log losses; served is the mean of their probabilities, and its deviation."""
    labels = np.array([0, 1, 1, 0, 1])
    each = sigmoid(raw_BKO[..., 0])
    losses = -np.where(labels[:, None] == 1, np.log(each), np.log(1 - each)).mean(1)
    raw, target = of(raw_BKO[..., :1]), Target("binary")

    torch.testing.assert_close(target.losses(raw, of(labels)), of(losses))
    torch.testing.assert_close(target.scores(raw), (of(each.mean(1)), of(each.std(1))))


def test_multiclass_loss_and_scores_are_those_of_the_formulas(raw_BKO: np.ndarray) -> None:
    """Multiclass: mean log loss of the submodels; served are mean probabilities, and the likeliest one's deviation."""
    labels = np.array([0, 1, 2, 0, 2])
    each = softmax(raw_BKO)
    losses = -np.log(each[np.arange(5), :, labels]).mean(1)
    mean = each.mean(1)
    target = Target("multiclass")

    torch.testing.assert_close(target.losses(of(raw_BKO), of(labels)), of(losses))
    torch.testing.assert_close(target.scores(of(raw_BKO)), (of(mean), of(each.std(1)[np.arange(5), mean.argmax(1)])))


def test_regression_loss_and_scores_are_those_of_the_formulas(raw_BKO: np.ndarray) -> None:
    """Regression: the mean squared error in deviations of the target; served is the mean in the target's unit."""
    labels = np.array([90.0, 100, 110, 120, 80])
    raw, target = raw_BKO[..., 0], Target("regression", 100.0, 20.0)
    losses = ((raw - (labels[:, None] - 100) / 20) ** 2).mean(1)
    each = raw * 20 + 100

    torch.testing.assert_close(target.losses(of(raw_BKO[..., :1]), of(labels)), of(losses))
    torch.testing.assert_close(target.scores(of(raw_BKO[..., :1])), (of(each.mean(1)), of(each.std(1))))


def test_sure_outputs_have_finite_losses() -> None:
    """Outputs that are as sure as float32 allows, and wrong, have finite losses."""
    raw = torch.tensor([[[1e4]], [[-1e4]]])

    assert bool(Target("binary").losses(raw, torch.tensor([0.0, 1.0])).isfinite().all())


# Parameters


def values(made: torch.nn.Module) -> dict[str, list[float]]:
    """Return all parameters, flat."""
    return {name: parameter.flatten().tolist() for name, parameter in made.named_parameters()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_same_seed_gives_the_same_parameters(architecture: Architecture) -> None:
    """Parameters hang on the seed alone: not on torch's generator, nor on whether they were made on "meta"."""
    made, again = Network(shape(architecture)), Network(shape(architecture), "meta")
    initialise(made, 1)
    torch.manual_seed(123)
    initialise(again, 1)

    assert values(made) == values(again)


def test_parameters_do_not_hang_on_the_order_in_which_they_are_filled() -> None:
    """Layers that are filled the last one first, as where each member has some, have the same parameters."""
    made, parts = Network(shape()), Network(shape())
    initialise(made, 1)
    for name, layer in reversed(parts.layers.items()):
        alone = torch.nn.Module()
        alone.layers = torch.nn.ModuleDict({name: layer})
        initialise(alone, 1)

    assert values(made) == values(parts)


def test_another_seed_gives_other_parameters() -> None:
    """With another seed every parameter that is drawn differs."""
    made, other = Network(shape()), Network(shape())
    initialise(made, 1)
    initialise(other, 2)
    same = {name for name, value in values(made).items() if value == values(other)[name]}

    assert {"layers.0.missing_NE", "layers.0.pieces.linear.weight"} == same


def test_scales_of_submodels_are_equal_within_a_feature() -> None:
    """A submodel's scale of a feature is one number for all outputs of its embedding."""
    made = Network(shape())
    initialise(made, 0)
    scales_KFE = made.layers["0"].affine.weight.detach().reshape(3, 4, 4)

    assert torch.equal(scales_KFE, scales_KFE[..., :1].expand(-1, -1, 4))
    assert 12 == len(scales_KFE[..., 0].unique())


def test_rows_of_a_large_table_are_drawn_by_chunks() -> None:
    """The rows of a table's chunk are those of a smaller table's, and lie within the bound."""
    small, large = torch.empty(INIT_ROWS, 2), torch.empty(INIT_ROWS + 5, 2)
    for table in (small, large):
        fill_uniform(table, seed_of(0, "table"), 0.5)

    assert torch.equal(small, large[:INIT_ROWS])
    assert 0.49 < large.abs().max() <= 0.5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_recomputed_gradients_are_the_same(architecture: Architecture) -> None:
    """With recompute=True the gradients are those of a network that keeps its outputs, dropout included."""
    gradients = []
    for recompute in (False, True):
        made = network(architecture, recompute=recompute, dropout=0.5).train()
        torch.manual_seed(0)
        made(torch.cat([MEDIANS_BF, changed(0, 3.0)])).sum().backward()
        gradients.append([parameter.grad for parameter in made.parameters()])

    torch.testing.assert_close(*gradients, rtol=0, atol=0)
