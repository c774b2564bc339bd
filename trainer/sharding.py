"""What each rank owns of each parameter group: the plan of the sharded optimizers, and their collectives.

A group is one reduce-scatter and one all-gather. It is cut into slots, and every rank owns the same number
of consecutive slots, its shard; so the slots are padded to a multiple of the world size. Muon's slot is one
matrix, because orthogonalising needs a whole one; Adam's is one row of a table or one element of a vector.

A plan needs shapes only: `python -m trainer plan` makes one for any world size without a process group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor

MUON_LABELS = ("smear_gate", "attn_gate", "attn", "mlp")
"""Small groups lead, so that the first wait is short while the large reductions still run (the record's 0.2 s)."""

ADAM_ORDER = ("lm_head", "value_embed", "scalars", "embed")
"""The order in which backward finishes these gradients, tables from high numbers to low: the order to wait in."""

SHARED_WORLD_SIZE = 8
SHARED_GROUP_SLOTS = 16
"""At 8 ranks the record packs attention and MLP matrices into groups of 16, two a rank: 10 + 2 x 11 = 2 x 16."""

NUM_ATTENTION_MATRICES = 4
"""One "attn" parameter holds Q, K, V and O: rows x 4 columns, which forward views flat as 4 x rows x columns."""


class HasShape(Protocol):
    """What a plan reads of a parameter."""

    @property
    def label(self) -> str: ...
    @property
    def shape(self) -> Sequence[int]: ...
    @property
    def dtype(self) -> torch.dtype: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterShape:
    """A parameter that is only planned, not made."""

    label: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupPlan:
    """How one parameter group lies on the ranks.

    name             "<optimizer>.<group>", as in the names of its stages
    indices          which of the optimizer's parameters, in slot order (Adam: one)
    labels           the labels of those parameters
    shape            of one parameter
    slot_shape       of one slot: a whole matrix for Muon; a row, or () for an element, for Adam
    num_filled       slots that hold something
    num_slots        slots that are sent: num_filled, padded to a multiple of the world size
    """

    name: str
    indices: tuple[int, ...]
    labels: tuple[str, ...]
    shape: tuple[int, ...]
    slot_shape: tuple[int, ...]
    dtype: torch.dtype
    num_filled: int
    num_slots: int
    world_size: int

    @property
    def optimizer(self) -> str:
        return self.name.partition(".")[0]

    @property
    def num_params(self) -> int:
        return len(self.indices)

    @property
    def padding(self) -> int:
        """Slots that are sent for nothing."""
        return self.num_slots - self.num_filled

    @property
    def shard_slots(self) -> int:
        """Slots of each rank."""
        return self.num_slots // self.world_size

    @property
    def slot_bytes(self) -> int:
        return math.prod(self.slot_shape) * self.dtype.itemsize

    @property
    def num_bytes(self) -> int:
        """Bytes of the whole padded group: what a reduce-scatter reads and an all-gather writes."""
        return self.num_slots * self.slot_bytes

    @property
    def padding_bytes(self) -> int:
        return self.padding * self.slot_bytes

    @property
    def shard_bytes(self) -> int:
        return self.shard_slots * self.slot_bytes

    def filled_slots(self, rank: int) -> range:
        """The slots of `rank` that hold something; may be empty."""
        begin = min(rank * self.shard_slots, self.num_filled)
        return range(begin, min(begin + self.shard_slots, self.num_filled))

    def to_json(self) -> dict[str, Any]:
        """The plan and what follows from it, as JSON values."""
        return asdict(self) | {
            "dtype": str(self.dtype).removeprefix("torch."),
            "optimizer": self.optimizer,
            "num_params": self.num_params,
            "padding": self.padding,
            "padding_bytes": self.padding_bytes,
            "shard_slots": self.shard_slots,
            "shard_bytes": self.shard_bytes,
            "num_bytes": self.num_bytes,
            "filled_slots_per_rank": [len(self.filled_slots(rank)) for rank in range(self.world_size)],
        }


def muon_plan(parameters: Iterable[HasShape], world_size: int) -> tuple[GroupPlan, ...]:
    """Muon's groups, in the order in which they are launched.

    One group per label; at 8 ranks attention and MLP matrices share groups of 16 where shapes allow (see
    `_share_groups`). Raises ValueError for an unknown label or unlike shapes under one label.
    """
    parameters = list(parameters)
    by_label: dict[str, list[int]] = {label: [] for label in MUON_LABELS}
    for index, parameter in enumerate(parameters):
        if parameter.label not in by_label:
            raise ValueError(f"Muon knows no label {parameter.label!r}; it takes {', '.join(MUON_LABELS)}")
        by_label[parameter.label].append(index)
    groups = _share_groups(parameters, by_label, world_size) or [found for found in by_label.values() if found]
    names = _distinct(_muon_name({parameters[index].label for index in group}) for group in groups)
    return tuple(_muon_group(name, parameters, group, world_size) for name, group in zip(names, groups, strict=True))


def adam_plan(parameters: Iterable[HasShape], world_size: int) -> tuple[GroupPlan, ...]:
    """Adam's groups, one per parameter, in the order in which backward finishes their gradients (ADAM_ORDER).

    Labels that ADAM_ORDER does not know come first, in the order given.
    """
    parameters = list(parameters)
    names = _distinct(f"adam.{parameter.label}" for parameter in parameters)
    groups = [
        GroupPlan(
            name=name,
            indices=(index,),
            labels=(parameter.label,),
            shape=tuple(parameter.shape),
            slot_shape=tuple(parameter.shape[1:]),
            dtype=parameter.dtype,
            num_filled=parameter.shape[0],
            num_slots=_round_up(parameter.shape[0], world_size),
            world_size=world_size,
        )
        for index, (name, parameter) in enumerate(zip(names, parameters, strict=True))
    ]
    return tuple(sorted(groups, key=lambda group: _backward_position(group.labels[0])))


def _share_groups(
    parameters: Sequence[HasShape], by_label: dict[str, list[int]], world_size: int
) -> list[list[int]] | None:
    """The record's grouping, attention and MLP matrices in groups of 16, or None where it cannot be.

    It needs 8 ranks, equal shapes, a count that fills whole groups, and no rank with both kinds in its shard:
    attention is orthogonalised as four square matrices, so a mixed shard would not be one batch.
    """
    kinds = by_label["attn"] + by_label["mlp"]
    alike = len({(tuple(parameters[index].shape), parameters[index].dtype) for index in kinds}) == 1
    if world_size != SHARED_WORLD_SIZE or not alike or len(kinds) % SHARED_GROUP_SLOTS:
        return None
    per_rank = SHARED_GROUP_SLOTS // world_size
    shards = (kinds[begin : begin + per_rank] for begin in range(0, len(kinds), per_rank))
    if any(len({parameters[index].label for index in shard}) > 1 for shard in shards):
        return None
    shared = [kinds[begin : begin + SHARED_GROUP_SLOTS] for begin in range(0, len(kinds), SHARED_GROUP_SLOTS)]
    return [by_label[label] for label in ("smear_gate", "attn_gate") if by_label[label]] + shared


def _muon_group(name: str, parameters: Sequence[HasShape], indices: list[int], world_size: int) -> GroupPlan:
    shapes = {(tuple(parameters[index].shape), parameters[index].dtype) for index in indices}
    if len(shapes) > 1:
        raise ValueError(f"{name}: one group needs one shape and dtype, not {sorted(map(str, shapes))}")
    (shape, dtype) = shapes.pop()
    if len(shape) != 2:
        raise ValueError(f"{name}: Muon takes matrices, not shape {shape}")
    if any(parameters[index].label == "attn" for index in indices) and shape[1] % NUM_ATTENTION_MATRICES:
        raise ValueError(f"{name}: attention holds Q, K, V and O side by side; {shape[1]} columns do not divide by 4")
    return GroupPlan(
        name=name,
        indices=tuple(indices),
        labels=tuple(parameters[index].label for index in indices),
        shape=shape,
        slot_shape=shape,
        dtype=dtype,
        num_filled=len(indices),
        num_slots=_round_up(len(indices), world_size),
        world_size=world_size,
    )


def _muon_name(labels: set[str]) -> str:
    return "muon." + ("attn_mlp" if labels == {"attn", "mlp"} else labels.pop())


def _distinct(names: Iterable[str]) -> list[str]:
    """The names, numbered from the second of one name on: muon.mlp, muon.mlp_2."""
    seen: dict[str, int] = {}
    distinct = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        distinct.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return distinct


def _backward_position(label: str) -> tuple[int, int]:
    """Sorts value_embed_2 before value_embed_0, and both where ADAM_ORDER has value_embed."""
    stem, _, number = label.rpartition("_")
    if number.isdigit() and stem in ADAM_ORDER:
        return ADAM_ORDER.index(stem), -int(number)
    return (ADAM_ORDER.index(label) if label in ADAM_ORDER else -1), 0


def _round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _newest(*names: str) -> Callable[..., dist.Work]:
    """The first of these torch.distributed functions that this torch has."""
    return cast("Callable[..., dist.Work]", next(getattr(dist, name) for name in names if hasattr(dist, name)))


# torch 2.13 renamed both and warns of the old names; 2.11 has only those.
_reduce_scatter = _newest("reduce_scatter_single", "reduce_scatter_tensor")
_all_gather = _newest("all_gather_single", "all_gather_into_tensor")


def reduce_scatter_mean(shard: Tensor, whole: Tensor) -> dist.Work:
    """Start filling `shard` with this rank's part of the mean of `whole` over the ranks.

    `whole` is contiguous and world_size times as long as `shard` in its first dimension. Both must live, and
    `whole` must not change, until `.wait()`. On NCCL that wait returns at once and makes the current stream wait.
    """
    return _reduce_scatter(shard, whole, op=dist.ReduceOp.AVG, async_op=True)


def all_gather(whole: Tensor, shard: Tensor) -> dist.Work:
    """Start filling `whole` with every rank's `shard`, in rank order; `shard` may be this rank's part of `whole`."""
    return _all_gather(whole, shard, async_op=True)
