"""Networks for tables: raw rows of a shard in, predictions out.

Shape suffixes: B rows, F features, N numbers, C codes, E embedding, D inputs of the first layer, K submodels, W width,
O outputs (classes of a multiclass target, else 1).

A network is a list of layers that hand one tensor on, so that it can be cut anywhere: the input layer scales numbers,
fills in what is missing and looks up codes; hidden layers follow, and the head. The architectures differ in their
parts alone.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import warnings
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from infra.bundle.schema import Task
from infra.imports import without
from tasks._neural.config import NeuralConfig
from tasks._neural.inputs import LARGEST, MAX_CODE, SMOOTH_LIMIT, NetworkInputs

with without("sklearn"):  # a second, for borders of pieces that come from the profile here
    import tabm
    from rtdl_num_embeddings import LinearEmbeddings, PiecewiseLinearEmbeddings

INIT_ROWS = 4096
"""Rows of a parameter that are drawn from one seed, whoever holds them."""


@dataclass(frozen=True)
class NetworkShape:
    """All that decides which modules a network has, and how large they are."""

    inputs: NetworkInputs
    task: Task
    num_outputs: int
    config: NeuralConfig

    @property
    def num_submodels(self) -> int:
        """Return how many predictions the network makes of a row."""
        return self.config.submodels if self.config.architecture == "tabm-mini" else 1


class ScaledNumbers(nn.Module):
    """Scale numbers and bend them to stay within a limit; NaN stays.

    x_BF of shape (rows, features) becomes (rows, numbers).
    """

    def __init__(self, inputs: NetworkInputs) -> None:
        super().__init__()
        self.register_buffer("positions_N", torch.tensor([n.position for n in inputs.numbers], dtype=torch.long))
        self.register_buffer("center_N", torch.tensor([n.center for n in inputs.numbers], dtype=torch.float32))
        self.register_buffer("scale_N", torch.tensor([n.scale for n in inputs.numbers], dtype=torch.float32))

    def forward(self, x_BF: Tensor) -> Tensor:
        """Return the numbers, shape (rows, numbers)."""
        positions, center, scale = (cast(Tensor, b) for b in (self.positions_N, self.center_N, self.scale_N))
        # Finite, as zero times infinity is no number, and a constant column's scale is zero.
        z_BN = (x_BF.index_select(1, positions) - center).clamp(-LARGEST, LARGEST) * scale
        # 1e18 is beyond what matters here, and its square is a float32.
        z_BN = z_BN.clamp(-1e18, 1e18)
        return z_BN / torch.sqrt(1 + (z_BN / SMOOTH_LIMIT) ** 2)


class Codes(nn.Module):
    """Turn codes into rows of one table for all features: missing first, then unknown, then the known values.

    x_BF of shape (rows, features) becomes (rows, codes), int64. A code that the vocabulary lacks is unknown.
    """

    def __init__(self, inputs: NetworkInputs) -> None:
        super().__init__()
        sizes = [code.size for code in inputs.codes]
        starts = [sum(sizes[:i]) + i for i in range(len(sizes))]
        self.register_buffer("positions_C", torch.tensor([c.position for c in inputs.codes], dtype=torch.long))
        self.register_buffer("sizes_C", torch.tensor(sizes, dtype=torch.long))
        self.register_buffer("starts_C", torch.tensor(starts, dtype=torch.long))

    def forward(self, x_BF: Tensor) -> Tensor:
        """Return the rows of the table, shape (rows, codes)."""
        positions, sizes, starts = (cast(Tensor, b) for b in (self.positions_C, self.sizes_C, self.starts_C))
        codes_BC = x_BF.index_select(1, positions)
        # An int64 holds no infinity, and what lies below -1 would be a row of another feature.
        known_BC = torch.nan_to_num(codes_BC, nan=-1.0).clamp(-1.0, float(MAX_CODE)).long()
        known_BC = torch.where(known_BC < sizes, known_BC, 0)
        return known_BC + 1 + starts


class InputLayer(nn.Module):
    """Turn raw rows into what the first hidden layer takes: x_BF into (rows, D), or (rows, K, D) with submodels.

    A missing number has an embedding of its own (piecewise-linear networks), or a flag beside it and the median in
    its place (others).
    """

    def __init__(self, shape: NetworkShape, where: str) -> None:
        super().__init__()
        inputs, config = shape.inputs, shape.config
        num_numbers, num_codes, width = len(inputs.numbers), len(inputs.codes), config.embedding
        chunks: list[int] = []
        self.numbers: ScaledNumbers | None = ScaledNumbers(inputs) if num_numbers else None
        self.pieces: PiecewiseLinearEmbeddings | None = None
        if num_numbers and config.architecture == "tabm-mini":
            edges = [torch.tensor(number.edges, dtype=torch.float32) for number in inputs.numbers]
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*just two bin edges")  # a truth value has no more
                self.pieces = PiecewiseLinearEmbeddings(edges, width, activation=False, version="B")
            self.missing_NE = nn.Parameter(torch.zeros(num_numbers, width))
            chunks += [width] * num_numbers
        elif num_numbers:
            chunks += [1] * (2 * num_numbers)
        self.codes: Codes | None = Codes(inputs) if num_codes else None
        if num_codes:
            self.table = nn.Embedding(inputs.num_table_rows, width, device=where)
            chunks += [width] * num_codes
        self.affine: nn.Module | None = None
        if config.architecture == "tabm-mini":
            shape_KD = (shape.num_submodels, sum(chunks))
            self.affine = tabm.ElementwiseAffine(
                shape_KD, bias=False, scaling_init="normal", scaling_init_chunks=list(chunks)
            )
        self.chunks = chunks
        self.num_submodels = shape.num_submodels

    @property
    def num_outputs(self) -> int:
        """Return D."""
        return sum(self.chunks)

    def forward(self, x_BF: Tensor) -> Tensor:
        """Return the first layer's input."""
        parts = []
        if self.numbers is not None:
            z_BN = self.numbers(x_BF)
            missing_BN = torch.isnan(z_BN)
            z_BN = torch.where(missing_BN, 0.0, z_BN)
            if self.pieces is not None:
                parts.append(torch.where(missing_BN[..., None], self.missing_NE, self.pieces(z_BN)).flatten(1))
            else:
                parts += [z_BN, missing_BN.to(z_BN.dtype)]
        if self.codes is not None:
            parts.append(self.table(self.codes(x_BF)).flatten(1))
        x_BD = torch.cat(parts, 1)
        if self.affine is None:
            return x_BD
        return cast(Tensor, self.affine(x_BD[:, None, :].expand(-1, self.num_submodels, -1)))


class Block(nn.Module):
    """A hidden layer: (..., inputs) becomes (..., width)."""

    def __init__(self, num_inputs: int, width: int, dropout: float, where: str) -> None:
        super().__init__()
        self.linear = nn.Linear(num_inputs, width, device=where)
        self.dropout: nn.Module = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output."""
        return cast(Tensor, self.dropout(functional.relu(self.linear(x))))


class Head(nn.Module):
    """The last layer: (rows, W) or (rows, K, W) becomes (rows, K, outputs)."""

    def __init__(self, num_inputs: int, num_outputs: int, num_submodels: int) -> None:
        super().__init__()
        self.linear = tabm.LinearEnsemble(num_inputs, num_outputs, k=num_submodels)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the submodels say, before the link."""
        return cast(Tensor, self.linear(x if x.ndim == 3 else x[:, None, :]))


class Network(nn.Module):
    """A network: raw rows x_BF of shape (rows, features) become raw outputs of shape (rows, submodels, outputs).

    >>> from tasks._neural.inputs import CodeInput, NumberInput
    >>> inputs = NetworkInputs((NumberInput(0, 0.0, 1.0, (-1.0, 0.0, 1.0)),), (CodeInput(1, 4),))
    >>> network = Network(NetworkShape(inputs, "binary", 1, NeuralConfig(submodels=8, width=16)))
    >>> network(torch.tensor([[0.5, 3.0], [float("nan"), float("nan")]])).shape
    torch.Size([2, 8, 1])
    """

    def __init__(self, shape: NetworkShape, where: str = "cpu") -> None:
        """Make the modules; with where="meta" large parameters take no memory until they are filled."""
        super().__init__()
        config, first = shape.config, InputLayer(shape, where)
        widths = [first.num_outputs, *[config.width] * config.blocks]
        blocks = [Block(i, o, config.dropout, where) for i, o in itertools.pairwise(widths)]
        head = Head(widths[-1], shape.num_outputs, shape.num_submodels)
        self.layers = nn.ModuleDict({str(i): layer for i, layer in enumerate([first, *blocks, head])})
        self.recompute = config.recompute

    def forward(self, x: Tensor) -> Tensor:
        """Return what the last layer that is here gives."""
        for layer in self.layers.values():
            if self.recompute and self.training and isinstance(layer, Block):
                x = cast(Tensor, checkpoint(layer, x, use_reentrant=False))
            else:
                x = layer(x)
        return x


def initialise(network: nn.Module, seed: int, device: torch.device | str = "cpu") -> None:
    """Fill all parameters, each from the seed and its name: whoever holds which part of one, all hold the same values.

    Layers and embeddings are uniform within the root of one over their inputs (as torch has it), the scales of
    tabm-mini's submodels normal and equal within a feature (Gorishniy, Kotelnikov and Babenko 2025, section 3.3),
    piecewise parts zero.
    """
    for prefix, module in network.named_modules():
        own = dict(module.named_parameters(prefix, recurse=False))
        if any(parameter.is_meta for parameter in own.values()):
            module.to_empty(device=device, recurse=False)
            own = dict(module.named_parameters(prefix, recurse=False))
        bound = _bound(module)
        if bound is not None:
            for name, parameter in own.items():
                fill_uniform(parameter, seed_of(seed, name), bound)
        if isinstance(module, InputLayer) and module.affine is not None:
            chunks = torch.tensor(module.chunks)
            draws = torch.empty(module.num_submodels, len(chunks))
            draws.normal_(generator=torch.Generator().manual_seed(seed_of(seed, f"{prefix}.affine")))
            with torch.no_grad():
                scales = cast(Tensor, module.affine.weight)
                scales.copy_(as_placed(draws.repeat_interleave(chunks, 1), scales))


def _bound(module: nn.Module) -> float | None:
    """Return within what a module's parameters are drawn; None: they stay as they are."""
    if isinstance(module, nn.Linear | tabm.LinearEnsemble):
        return 1 / math.sqrt(module.in_features)
    if isinstance(module, nn.Embedding):
        return 1 / math.sqrt(module.embedding_dim)
    if isinstance(module, LinearEmbeddings):
        return 1 / math.sqrt(module.weight.shape[-1])
    return None


def fill_uniform(parameter: Tensor, seed: int, bound: float) -> None:
    """Draw the part of a parameter that is here from (-bound, bound), by chunks of rows of the whole."""
    offsets, mine = [0] * parameter.ndim, parameter
    if isinstance(parameter, DTensor):
        _, found = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
        offsets, mine = list(found), parameter.to_local()
    first, last = offsets[0], offsets[0] + mine.shape[0]
    with torch.no_grad():
        for start in range(first // INIT_ROWS * INIT_ROWS, last, INIT_ROWS):
            end = min(start + INIT_ROWS, parameter.shape[0])
            chunk = torch.empty(end - start, *parameter.shape[1:])
            chunk.uniform_(-bound, bound, generator=torch.Generator().manual_seed(seed_of(seed, str(start))))
            low, high = max(start, first), min(end, last)
            chunk = chunk[low - start : high - start]
            for dim in range(1, parameter.ndim):
                chunk = chunk.narrow(dim, offsets[dim], mine.shape[dim])
            mine[low - first : high - first].copy_(chunk)


def as_placed(values: Tensor, like: Tensor) -> Tensor:
    """Return whole values, which every member has, as a parameter is placed."""
    if not isinstance(like, DTensor):
        return values
    return distribute_tensor(values.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def seed_of(seed: int, name: str) -> int:
    """Return a seed of its own for a name.

    >>> seed_of(0, "a") == seed_of(0, "a"), seed_of(0, "a") == seed_of(1, "a")
    (True, False)
    """
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "big") >> 1


@dataclass(frozen=True)
class Target:
    """What the raw outputs mean."""

    task: Task
    shift: float = 0.0
    """Of a regression: what the outputs are multiplied by, and this is added."""
    scale: float = 1.0

    def losses(self, raw_BKO: Tensor, label_B: Tensor) -> Tensor:
        """Return the loss of every row, the mean of its submodels' own losses, shape (rows,).

        Log loss, or the squared error in units of the target's deviation.
        """
        size = raw_BKO.shape[1]
        if self.task == "multiclass":
            flat = functional.cross_entropy(
                raw_BKO.flatten(0, 1).float(), label_B.long().repeat_interleave(size), reduction="none"
            )
            return flat.reshape(-1, size).mean(1)
        raw_BK, known_BK = raw_BKO[..., 0].float(), label_B[:, None].expand(-1, size)
        if self.task == "binary":
            return functional.binary_cross_entropy_with_logits(raw_BK, known_BK, reduction="none").mean(1)
        return functional.mse_loss(raw_BK, (known_BK - self.shift) / self.scale, reduction="none").mean(1)

    def scores(self, raw_BKO: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is served: the mean of the submodels' predictions, and how far they spread.

        Returns:
            Scores, shape (rows,) or (rows, classes); and the standard deviation over submodels, shape (rows,): of the
            probability, of the predicted number, or of the probability of the class that is most likely.
        """
        raw_BKO = raw_BKO.float()
        if self.task == "multiclass":
            each_BKO = torch.softmax(raw_BKO, -1)
            mean_BO = each_BKO.mean(1)
            deviation_BO = torch.sqrt(((each_BKO - mean_BO[:, None]) ** 2).mean(1))
            return mean_BO, deviation_BO.gather(1, mean_BO.argmax(1, keepdim=True))[:, 0]
        each_BK = raw_BKO[..., 0]
        each_BK = torch.sigmoid(each_BK) if self.task == "binary" else each_BK * self.scale + self.shift
        mean_B = each_BK.mean(1)
        return mean_B, torch.sqrt(((each_BK - mean_B[:, None]) ** 2).mean(1))


class Served(nn.Module):
    """A network as it is shipped: x of shape (rows, features) becomes scores, and their spread if asked."""

    def __init__(self, network: Network, target: Target, has_spread: bool) -> None:
        super().__init__()
        self.network, self.target, self.has_spread = network, target, has_spread

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs of the bundle's graph."""
        scores, spread = self.target.scores(self.network(x))
        return (scores, spread) if self.has_spread else (scores,)
