"""How members share the work on one network; whichever way, the same batches give the same network within rounding.

- data: every member has the network, and a part of each batch (DDP).
- fsdp: also each has only its part of parameters, gradients and optimizer (fully_shard).
- tensor: all see the same rows; each has some rows of the embedding tables, and of every other layer the columns, of
  those between the rows (DTensor; Shoeybi and others 2019, section 3).
- pipeline: each has some layers, and hands on small batches of rows (1F1B; Narayanan and others 2019).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from infra.errors import InputError
from infra.member import Member
from tasks._neural.config import NeuralConfig, Parallelism
from tasks._neural.inputs import NetworkInputs
from tasks._neural.network import Block, InputLayer, Network, NetworkShape, Target, initialise
from tasks._neural.rows import Batch

MICRO_BATCHES = 4
"""Of a pipeline, per member: while one is filled the others wait."""


def require_divisible(inputs: NetworkInputs, config: NeuralConfig, parallelism: Parallelism, num_members: int) -> None:
    """Raise an InputError if a network cannot be divided in a way among so many members."""
    if num_members == 1:
        return
    if parallelism == "tensor" and config.width % num_members:
        raise InputError(
            f"A network is divided evenly among members, but got train.neural.width={config.width} for "
            f"{num_members} members. Set a multiple of {num_members}."
        )
    num_layers = config.blocks + 2
    if parallelism == "pipeline" and num_layers < num_members:
        raise InputError(
            f"A pipeline gives every member a layer, but got train.neural.blocks={config.blocks}, {num_layers} layers "
            f"with those of inputs and outputs, for {num_members} members. Raise it, or lower train.plan.workers to "
            f"{num_layers}."
        )
    if parallelism == "pipeline" and config.blocks < 2:
        raise InputError(
            f"A pipeline needs hidden layers to divide, but got train.neural.blocks={config.blocks}. Raise it to 2 or "
            'more, or set train.neural.parallelism = "data".'
        )


class Parallel:
    """A network among members. This one is whole: a single member, or each with rows of its own.

    Every member calls the same methods in the same order.
    """

    def __init__(self, member: Member, shape: NetworkShape, target: Target, seed: int, device: str = "cpu") -> None:
        """Build the network, the same whoever holds it."""
        self.member, self.target, self.device, self.config = member, target, torch.device(device), shape.config
        self.shape = shape
        self.network = Network(shape, self._where)
        self._divide()
        initialise(self.network, seed, self.device)
        if self.device.type != "cpu":
            self.network.to(self.device)
        self._wrap()

    _where = "cpu"
    """Where large parameters are made: "meta" makes them once they are divided."""
    splits_rows = True
    """Whether each member takes a part of every batch, and not all of it."""
    is_replicated = False
    """Whether all members have the outputs of the same rows."""

    @property
    def counts(self) -> bool:
        """Return whether what this member finds of rows that all of them see is to be counted."""
        return self.member.is_first

    def _divide(self) -> None:
        """Divide the parameters, before they are filled."""

    def _wrap(self) -> None:
        """Make ready for training."""
        self.model: nn.Module = self.network
        if self.member.num_members > 1:
            self.model = DistributedDataParallel(self.network, device_ids=None)
        if self.device.type == "cuda" and self.config.compile:
            self.model = cast(nn.Module, torch.compile(self.model))

    @property
    def part(self) -> tuple[int, int]:
        """Return which part of every batch is this member's, of how many."""
        return (self.member.rank, self.member.num_members) if self.splits_rows else (0, 1)

    @property
    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which products of matrices are computed."""
        precision = self.config.precision
        is_half = precision == "bfloat16" or (precision == "auto" and self.device.type == "cuda")
        return torch.autocast(self.device.type, torch.bfloat16) if is_half else nullcontext()

    def backward(self, batch: Batch, micro_rows: int) -> Tensor:
        """Add up the gradients of a batch's mean loss; return this member's part of the sum of losses.

        The mean is over the rows of all members, each by its weight; gradients of members that split the rows are
        averaged by who gathers them, so that each counts as often as there are members.
        """
        factor = (self.member.num_members if self.splits_rows else 1) / batch.num_rows
        parts = [rows.split(micro_rows) for rows in (batch.x_BF, batch.label_B, batch.weight_B)]
        losses: list[Tensor] = []
        for x_BF, label_B, weight_B in zip(*parts, strict=True):
            with self._gathering(is_last=len(losses) == len(parts[0]) - 1), self.autocast:
                loss = torch.dot(self.target.losses(self.model(x_BF), label_B), weight_B)
                torch.autograd.backward(loss * factor)
            losses.append(loss.detach())
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def _gathering(self, *, is_last: bool) -> AbstractContextManager[Any]:
        """Return the context of a backward pass; gradients are exchanged with the last one of a batch."""
        if isinstance(self.model, DistributedDataParallel) and not is_last:
            return cast(AbstractContextManager[Any], self.model.no_sync())
        return nullcontext()

    @torch.no_grad()
    def raw(self, x_BF: Tensor) -> Tensor | None:
        """Return the raw outputs of rows, where the last layer is; None elsewhere."""
        with self.autocast:
            return cast(Tensor, self.network(x_BF))

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters of which something is here, by name."""
        return dict(self.network.named_parameters())

    def clip(self, most: float) -> Tensor:
        """Scale the gradients down to a norm, that of all parameters together; return what the norm was."""
        gradients = [p.grad for p in self.parameters().values() if p.grad is not None]
        whole = [here(g) for g in gradients if not self._is_divided(g)]
        parts = [here(g) for g in gradients if self._is_divided(g)]
        square = squared_norm(whole, self.device)
        if self._has_divided:
            own = squared_norm(parts, self.device)
            dist.all_reduce(own)
            square = square + own
        norm = square.sqrt()
        if most:
            torch._foreach_mul_([*whole, *parts], (most / (norm + 1e-6)).clamp(max=1.0).float())
        return norm

    _has_divided = False

    def _is_divided(self, gradient: Tensor) -> bool:
        """Return whether members hold different parts of a gradient."""
        return isinstance(gradient, DTensor) and not all(p.is_replicate() for p in gradient.placements)

    def whole_state(self) -> dict[str, Tensor]:
        """Return all parameters and buffers, whole and on the CPU, on the first member; nothing on the others."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        found = get_model_state_dict(self.network, options=options)
        return {name: cast(Tensor, value) for name, value in found.items()} if self.member.is_first else {}


class DividedParameters(Parallel):
    """fsdp: parameters, gradients and optimizer are divided too."""

    _where = "meta"
    _has_divided = True

    def _divide(self) -> None:
        mesh = mesh_of(self.member, self.device)
        is_half = self.device.type == "cuda" and self.config.precision != "float32"
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if is_half else MixedPrecisionPolicy()
        for layer in self.network.layers.values():
            fully_shard(layer, mesh=mesh, mp_policy=policy)
        fully_shard(self.network, mesh=mesh, mp_policy=policy)

    def _wrap(self) -> None:
        self.model = self.network

    def _gathering(self, *, is_last: bool) -> AbstractContextManager[Any]:
        cast(FSDPModule, self.network).set_requires_gradient_sync(is_last)
        return nullcontext()


class ColumnDropout(nn.Module):
    """Leave out some outputs of a layer of which each member has some columns: (..., width / members) stays that shape.

    Every member draws for all columns, and so the same as the others, and as one that has all.
    """

    def __init__(self, share: float, member: Member) -> None:
        super().__init__()
        self.share, self.rank, self.num_members = share, member.rank, member.num_members

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs, of which some are zero and the rest larger."""
        if not self.training or not self.share:
            return x
        width = x.shape[-1]
        whole = functional.dropout(x.new_ones(*x.shape[:-1], width * self.num_members), self.share)
        return x * whole.narrow(-1, self.rank * width, width)


class DividedLayers(Parallel):
    """tensor: rows of tables, and columns and rows of layers, are divided."""

    _where = "meta"
    _has_divided = True
    splits_rows = False
    is_replicated = True

    def _divide(self) -> None:
        mesh = mesh_of(self.member, self.device)
        plan: dict[str, ParallelStyle] = {}
        blocks = [name for name, layer in self.network.layers.items() if isinstance(layer, Block)]
        for number, name in enumerate(blocks):
            # Columns, then rows: what lies between stays divided. The last of an odd number is gathered.
            is_gathered = number == len(blocks) - 1
            layouts = Replicate() if is_gathered else None
            if not number % 2 and not is_gathered:
                block = cast(Block, self.network.layers[name])
                block.dropout = ColumnDropout(self.config.dropout, self.member)
            plan[f"layers.{name}.linear"] = RowwiseParallel() if number % 2 else ColwiseParallel(output_layouts=layouts)
        first = next(layer for layer in self.network.layers.values() if isinstance(layer, InputLayer))
        if first.codes is not None:
            plan["layers.0.table"] = RowwiseParallel(input_layouts=Replicate())
        parallelize_module(self.network, mesh, plan)

    def _wrap(self) -> None:
        self.model = self.network


class DividedDepth(Parallel):
    """pipeline: every member has some of the layers."""

    _where = "meta"
    _has_divided = True
    splits_rows = False

    def _divide(self) -> None:
        names = list(self.network.layers)
        mine = stages_of(len(names), self.member.num_members)[self.member.rank]
        for name in names:
            if int(name) not in mine:
                del self.network.layers[name]

    def _wrap(self) -> None:
        self.model = self.network
        self._schedules: dict[tuple[int, bool], Schedule1F1B] = {}

    @property
    def is_last(self) -> bool:
        """Return whether the last layer is here."""
        return self.member.rank == self.member.num_members - 1

    @property
    def counts(self) -> bool:
        """Return whether the outputs are here."""
        return self.is_last

    def backward(self, batch: Batch, micro_rows: int) -> Tensor:
        """Add up the gradients; the sum of losses is known where the last layer is."""
        parts = num_micro_batches(len(batch.label_B), micro_rows, self.member.num_members)
        schedule = self._schedule(len(batch.label_B), parts, is_training=True)
        losses: list[Tensor] = []
        self._num_rows = batch.num_rows
        if self.member.is_first:
            schedule.step(filled_up(batch.x_BF, parts), return_outputs=False)
        elif self.is_last:
            label_B = filled_up(batch.label_B, parts)
            target_B2 = torch.stack([label_B, filled_up(batch.weight_B, parts, weighs_nothing=True)], 1)
            schedule.step(target=target_B2, losses=losses, return_outputs=False)
        else:
            schedule.step(return_outputs=False)
        return torch.stack(losses).detach().sum() * batch.num_rows if losses else torch.zeros((), device=self.device)

    @torch.no_grad()
    def raw(self, x_BF: Tensor) -> Tensor | None:
        """Return the raw outputs where the last layer is."""
        # 1F1B asks for as many parts as there are members.
        parts = self.member.num_members
        schedule = self._schedule(len(x_BF), parts, is_training=False)
        if self.member.is_first:
            schedule.eval(filled_up(x_BF, parts))
            return None
        found = schedule.eval()
        return cast(Tensor, found)[: len(x_BF)] if self.is_last else None

    def _is_divided(self, gradient: Tensor) -> bool:
        return True

    def _mean_loss(self, raw_BKO: Tensor, target_B2: Tensor) -> Tensor:
        label_B, weight_B = target_B2.unbind(1)
        return (self.target.losses(raw_BKO, label_B) * weight_B).sum() / self._num_rows

    def _schedule(self, num_rows: int, num_parts: int, *, is_training: bool) -> Schedule1F1B:
        """Return the schedule of batches of a size; the shapes that are handed on are fixed with the first one."""
        key = (num_rows, is_training)
        if key not in self._schedules:
            stage = PipelineStage(self.network, self.member.rank, self.member.num_members, self.device)
            loss = self._mean_loss if is_training else None
            self._schedules[key] = Schedule1F1B(stage, num_parts, loss_fn=loss, scale_grads=False)
        return self._schedules[key]

    def whole_state(self) -> dict[str, Tensor]:
        """Return all parameters and buffers on the first member, sent there by the others."""
        mine = {name: value.detach().cpu() for name, value in self.network.state_dict().items()}
        if not self.member.is_first:
            for value in mine.values():
                dist.send(value.contiguous(), 0)
            return {}
        whole = Network(self.shape, "meta").state_dict()
        owner = {
            str(layer): rank
            for rank, layers in enumerate(stages_of(self.config.blocks + 2, self.member.num_members))
            for layer in layers
        }
        for name, like in whole.items():
            if name not in mine:
                mine[name] = torch.empty(like.shape, dtype=like.dtype)
                dist.recv(mine[name], owner[name.split(".")[1]])
        return {name: mine[name] for name in whole}


def parallel_of(
    parallelism: Parallelism, member: Member, shape: NetworkShape, target: Target, seed: int, device: str = "cpu"
) -> Parallel:
    """Build a network among members."""
    kinds: dict[Parallelism, type[Parallel]] = {
        "data": Parallel,
        "fsdp": DividedParameters,
        "tensor": DividedLayers,
        "pipeline": DividedDepth,
    }
    kind = kinds[parallelism] if member.num_members > 1 else Parallel
    return kind(member, shape, target, seed, device)


def mesh_of(member: Member, device: torch.device) -> DeviceMesh:
    """Return the mesh of all members, in one dimension.

    Its name is its own: torch keeps what it has worked out for a mesh, with this member's place in it, and takes one
    of the same members for the same, although another gang of this process may have had them in another order.
    """
    return init_device_mesh(device.type, (member.num_members,), mesh_dim_names=(f"members{next(_meshes)}",))


_meshes = itertools.count()


def stages_of(num_layers: int, num_stages: int) -> list[range]:
    """Return which layers each stage has: about equally many, the last stages more.

    >>> stages_of(5, 2)
    [range(0, 2), range(2, 5)]
    """
    borders = [num_layers * stage // num_stages for stage in range(num_stages + 1)]
    return [range(low, high) for low, high in itertools.pairwise(borders)]


def num_micro_batches(num_rows: int, micro_rows: int, num_members: int) -> int:
    """Return into how many parts a pipeline cuts a batch: enough to keep all busy, and to fit memory.

    >>> num_micro_batches(256, 256, 2), num_micro_batches(256, 16, 2), num_micro_batches(5, 256, 2)
    (8, 16, 5)
    """
    least = max(num_members, -(-num_rows // micro_rows))
    wanted = max(least, min(num_rows, MICRO_BATCHES * num_members))
    return max(num_members, -(-num_rows // -(-num_rows // wanted)))


def filled_up(values: Tensor, num_parts: int, *, weighs_nothing: bool = False) -> Tensor:
    """Return rows that can be cut into equal parts: the first one is repeated, or zeros follow.

    >>> filled_up(torch.tensor([3, 4, 5]), 2), filled_up(torch.tensor([1, 1, 1]), 2, weighs_nothing=True)
    (tensor([3, 4, 5, 3]), tensor([1, 1, 1, 0]))
    """
    missing = -len(values) % num_parts
    if not missing:
        return values
    more = values[:1].expand(missing, *values.shape[1:])
    return torch.cat([values, torch.zeros_like(more) if weighs_nothing else more])


def here(value: Tensor) -> Tensor:
    """Return the part of a tensor that is here."""
    return value.to_local() if isinstance(value, DTensor) else value


def squared_norm(values: Sequence[Tensor], device: torch.device) -> Tensor:
    """Return the sum of the squares of all numbers, in double precision."""
    if not values:
        return torch.zeros((), dtype=torch.float64, device=device)
    return torch.stack(torch._foreach_norm(list(values))).double().square().sum()
