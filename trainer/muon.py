"""Muon over many ranks: orthogonalised momentum, normalised by neuron, each rank working on its own matrices."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from speedprof import annotate
from speedprof.annotate import Stage
from trainer.config import NewtonSchulzKernel
from trainer.orthogonalise import Method, check_kernel, orthogonalise
from trainer.shard_state import ShardState
from trainer.sharding import NUM_ATTENTION_MATRICES, GroupPlan, all_gather, muon_plan, reduce_scatter_mean

MUON_STAGES = (
    Stage.REDUCE_SCATTER,
    Stage.REDUCE_SCATTER_WAIT,
    Stage.NEWTON_SCHULZ,
    Stage.UPDATE,
    Stage.ALL_GATHER,
    Stage.ALL_GATHER_WAIT,
    Stage.COPY_BACK,
)
"""What every group passes through on every rank in every step, in this order."""

Variant = Literal["normuon", "plain"]

SCALE_FLOOR = 1e-10
"""Keeps the normalisation of a row of zeros finite."""


def momentum_direction(
    gradient: Tensor,
    momentum_buffer: Tensor,
    momentum: Tensor,
    *,
    method: Method,
    dtype: torch.dtype,
    kernel: NewtonSchulzKernel = "auto",
) -> Tensor:
    """Fold `gradient` into `momentum_buffer` and return the orthogonalised Nesterov direction.

    gradient          batch x rows x columns, any float dtype
    momentum_buffer   the same shape, float32; changed in place
    momentum          0-D float32 on the CPU, so that a schedule does not recompile
    returns           batch x rows x columns in `dtype`, in which the matrix products run

    Nesterov in the form of Keller Jordan's Muon: m <- mu m + (1 - mu) g, direction (1 - mu) g + mu m.
    """
    gradient = gradient.float()
    momentum_buffer.add_((gradient - momentum_buffer) * (1 - momentum))
    direction = gradient + (momentum_buffer - gradient) * momentum
    return orthogonalise(direction.to(dtype), method, kernel)


def normuon_scale(direction: Tensor, mean_square: Tensor, beta2: float) -> Tensor:
    """The direction with every neuron's step evened out, at unchanged Frobenius norm per matrix.

    direction     batch x rows x columns, float32
    mean_square   running mean of each neuron's squares, float32: of size 1 along `neuron_dim`; changed in place

    NorMuon (arXiv 2510.05491), with the norm kept as in the published speedrun, so that learning rates carry over.
    """
    inside = -1 if mean_square.shape[-1] == 1 else -2
    neuron_mean = direction.square().mean(inside, keepdim=True)
    mean_square.add_((neuron_mean - mean_square) * (1 - beta2))
    scale = mean_square.clamp_min(SCALE_FLOOR).rsqrt()
    norm_before = neuron_mean.sum((-2, -1), keepdim=True)
    norm_after = (neuron_mean * scale.square()).sum((-2, -1), keepdim=True)
    return direction * scale * (norm_before / norm_after.clamp_min(SCALE_FLOOR)).sqrt()


def neuron_dim(shape: Sequence[int]) -> int:
    """The dimension inside a neuron: neurons are the longer side of a matrix as it is stored, its rows if it is square.

    So the columns of Q, K, V and O, which are stored side by side as one wide matrix: thus the published speedrun.
    """
    return -1 if shape[-2] >= shape[-1] else -2


def shape_scale(shape: Sequence[int]) -> float:
    """max(1, rows / columns)^0.5, Keller Jordan's factor on the learning rate of a matrix as it is orthogonalised.

    It keeps the size of the change in the output independent of the shape. No matrix of the record is tall, so
    it is 1 there; it would be 2 for an MLP matrix stored transposed, which is the trap that #146 corrected.
    """
    return math.sqrt(max(1.0, shape[-2] / shape[-1]))


def muon_update(
    parameters: Tensor,
    direction: Tensor,
    mean_square: Tensor,
    scale: Tensor,
    learning_rate: Tensor,
    decay: Tensor,
    *,
    beta2: float,
    variant: Variant = "normuon",
) -> None:
    """Move `parameters` along the direction, with cautious weight decay; changed in place.

    parameters      slots x rows x columns, float32 or bfloat16
    direction       the orthogonalised matrices: as many values, but attention comes as 4 per slot
    mean_square     see `normuon_scale`; changed in place
    scale           slots x 1 x 1: each matrix's factor on the learning rate
    learning_rate   0-D float32 on the CPU; so is `decay`
    variant         "normuon": along the direction normalised by neuron; "plain": along the direction as it is

    Cautious weight decay (arXiv 2510.12402) shrinks only the values that the step itself moves towards zero.
    """
    # Not view: tall matrices come transposed.
    direction = direction.float()
    update = normuon_scale(direction, mean_square, beta2) if variant == "normuon" else direction
    update = update.reshape(parameters.shape)
    value = parameters.float()
    shrinking = torch.where(update * value >= 0, value, 0)
    parameters.copy_(value - (update + shrinking * decay) * scale * learning_rate)


class _Group:
    """One group on this rank: its buffers, and one method per stage."""

    def __init__(self, plan: GroupPlan, parameters: Sequence[nn.Parameter]) -> None:
        rank, device = dist.get_rank(), parameters[0].device
        filled = plan.filled_slots(rank)
        rows, columns = plan.slot_shape
        is_attention = len(filled) > 0 and plan.labels[filled[0]] == "attn"
        split = NUM_ATTENTION_MATRICES if is_attention else 1
        self.name = plan.name
        self._parameters: list[Tensor] = [parameters[index] for index in plan.indices]
        self._own = self._parameters[filled.start : filled.stop]
        self._own_indices = plan.indices[filled.start : filled.stop]
        self._matrices = (len(filled) * split, rows, columns // split)
        # One buffer for both directions: gradients on their way out, parameters on their way back.
        self._stack = torch.zeros(plan.num_slots, rows, columns, dtype=plan.dtype, device=device)
        self._shard = self._stack[rank * plan.shard_slots : (rank + 1) * plan.shard_slots]
        self._gradient = torch.zeros_like(self._shard)
        self._momentum = torch.zeros(self._matrices, device=device)
        self._mean_square = torch.zeros_like(self._momentum.mean(neuron_dim(plan.slot_shape), keepdim=True))
        scales = [getattr(p, "learning_rate_scale", 1.0) * shape_scale(self._matrices) for p in self._own]
        self._scale = torch.tensor(scales, device=device).view(-1, 1, 1)
        self._direction: Tensor | None = None
        self._work: dist.Work | None = None

    def reduce_gradients(self) -> None:
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        missing = len(self._parameters) - len(gradients)
        if missing:
            raise RuntimeError(f"{self.name}: {missing} of {len(self._parameters)} parameters have no gradient")
        torch._foreach_copy_(list(self._stack[: len(gradients)].unbind()), gradients)
        self._work = reduce_scatter_mean(self._gradient, self._stack)

    def wait(self) -> None:
        assert self._work is not None
        self._work.wait()
        self._work = None

    def orthogonalise(self, direct: Callable[..., Tensor], momentum: Tensor, method: Method) -> None:
        if not self._own:  # nothing but padding here: the stage stays, its work does not
            return
        gradient = self._gradient[: len(self._own)].view(self._matrices)
        # bf16 matrix products are twice as fast on a GPU, and Muon does not mind; on a CPU they are slower.
        dtype = torch.bfloat16 if gradient.is_cuda else torch.float32
        self._direction = direct(gradient, self._momentum, momentum, method=method, dtype=dtype)

    def update(
        self, update: Callable[..., None], learning_rate: Tensor, decay: Tensor, beta2: float, variant: Variant
    ) -> None:
        if not self._own:
            return
        own = self._shard[: len(self._own)]
        torch._foreach_copy_(list(own.unbind()), self._own)
        state = self._mean_square, self._scale
        update(own, self._direction, *state, learning_rate, decay, beta2=beta2, variant=variant)
        self._direction = None

    def gather_parameters(self) -> None:
        self._work = all_gather(self._stack, self._shard)

    def copy_back(self) -> None:
        torch._foreach_copy_(self._parameters, list(self._stack[: len(self._parameters)].unbind()))

    def reset(self) -> None:
        self._momentum.zero_()
        self._mean_square.zero_()

    def states(self) -> list[ShardState]:
        parts = zip(
            self._own_indices,
            self._momentum.tensor_split(max(len(self._own), 1)),
            self._mean_square.tensor_split(max(len(self._own), 1)),
            strict=False,  # a rank of padding owns no parameter, but one empty part
        )
        return [
            ShardState(index=index, begin=0, tensors={"momentum": momentum, "mean_square": mean_square})
            for index, momentum, mean_square in parts
        ]


class Muon:
    """Muon (Keller Jordan), plain or as NorMuon, sharded by whole matrices over the default process group.

    A step makes three passes over the groups of `sharding.muon_plan`, small ones first:

    1. every group: stack its gradients into one padded buffer, start the reduce-scatter that averages them;
    2. every group: wait for its gradients; momentum and orthogonalisation; neuron normalisation (NorMuon), cautious
       weight decay and the step itself; start the all-gather of the parameters;
    3. every group: wait for its parameters; copy them back into the model.

    So a group's transfers hide behind the other groups' mathematics. Each stage is an annotated range around
    the calls: reduce_scatter holds the stacking too, newton_schulz the momentum, update the neuron normalisation.
    A rank that owns only padding passes every stage as well, with nothing to do in those two.

    On CUDA the wait stages take the host no time: they make the current stream wait, and the range marks that place.

    parameters       matrices with a `label` of MUON_LABELS and, optionally, a `learning_rate_scale`
    learning_rate    the size of a step; may be set between steps, like `momentum`
    weight_decay     cautious; a step shrinks values by learning_rate^2 x weight_decay, as in the published speedrun:
                     decay follows the learning rate's schedule
    method           of orthogonalising; `variant`: see `muon_update`
    newton_schulz_kernel   see `orthogonalise`
    compile          compile the two functions of a group's mathematics, one graph each per shape
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        learning_rate: float,
        momentum: float = 0.95,
        beta2: float = 0.95,
        weight_decay: float = 1.2,
        method: Method = "polar_express",
        variant: Variant = "normuon",
        newton_schulz_kernel: NewtonSchulzKernel = "auto",
        compile: bool = False,  # noqa: A002  # torch.compile's own word
    ) -> None:
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.beta2 = beta2
        self.weight_decay = weight_decay
        self.method: Method = method
        self.variant: Variant = variant
        self._parameters = list(parameters)
        self._plan = muon_plan(self._parameters, dist.get_world_size())  # type: ignore[arg-type]  # labels are set on them
        self._groups = [_Group(plan, self._parameters) for plan in self._plan]
        check_kernel(newton_schulz_kernel, self._parameters[0].device)
        direct: Callable[..., Tensor] = momentum_direction
        self._update: Callable[..., None] = muon_update
        if compile:
            direct = torch.compile(momentum_direction, dynamic=False)
            self._update = torch.compile(muon_update, dynamic=False)
        self._direct = functools.partial(direct, kernel=newton_schulz_kernel)

    @torch.no_grad()
    def step(self) -> None:
        """One update of every matrix from the gradients of all ranks. RuntimeError where a gradient is missing."""
        hyper = self._hyper()
        for group in self._groups:
            self._run(Stage.REDUCE_SCATTER, group, hyper)

        for group in self._groups:
            for stage in (Stage.REDUCE_SCATTER_WAIT, Stage.NEWTON_SCHULZ, Stage.UPDATE, Stage.ALL_GATHER):
                self._run(stage, group, hyper)

        for group in self._groups:
            for stage in (Stage.ALL_GATHER_WAIT, Stage.COPY_BACK):
                self._run(stage, group, hyper)

    @torch.no_grad()
    def run_stage(self, stage: Stage, group_name: str) -> None:
        """One stage of one group, exactly as `step` runs it; the caller keeps to the order of MUON_STAGES."""
        self._run(stage, next(group for group in self._groups if group.name == group_name), self._hyper())

    def _hyper(self) -> tuple[Tensor, Tensor, Tensor]:
        """Momentum, learning rate and decay, as tensors: numbers would compile a graph for each value."""
        numbers = self.momentum, self.learning_rate, self.learning_rate * self.weight_decay
        momentum, learning_rate, decay = map(torch.tensor, numbers)
        return momentum, learning_rate, decay

    def _run(self, stage: Stage, group: _Group, hyper: tuple[Tensor, Tensor, Tensor]) -> None:
        momentum, learning_rate, decay = hyper
        with annotate.stage(stage, group.name):
            match stage:
                case Stage.REDUCE_SCATTER:
                    group.reduce_gradients()
                case Stage.NEWTON_SCHULZ:
                    group.orthogonalise(self._direct, momentum, self.method)
                case Stage.UPDATE:
                    group.update(self._update, learning_rate, decay, self.beta2, self.variant)
                case Stage.ALL_GATHER:
                    group.gather_parameters()
                case Stage.REDUCE_SCATTER_WAIT | Stage.ALL_GATHER_WAIT:
                    group.wait()
                case Stage.COPY_BACK:
                    group.copy_back()

    def zero_grad(self) -> None:
        """Drop the gradients, so that the next backward writes instead of adding."""
        for parameter in self._parameters:
            parameter.grad = None

    def reset(self) -> None:
        """Forget all momentum, as before the first step; after an untimed warm-up, say."""
        for group in self._groups:
            group.reset()

    def states(self) -> list[ShardState]:
        """What this rank remembers, for a checkpoint."""
        return [state for group in self._groups for state in group.states()]

    def plan(self) -> list[dict[str, Any]]:
        """The groups in the order in which they are launched, as JSON values; what `annotate.declare` takes."""
        return [plan.to_json() | {"stages": [str(stage) for stage in MUON_STAGES]} for plan in self._plan]
