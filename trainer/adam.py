"""Adam over many ranks: each rank updates its own rows of every table, and may start its sums during backward."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from speedprof import annotate
from speedprof.annotate import Stage
from trainer.shard_state import ShardState
from trainer.sharding import GroupPlan, adam_plan, all_gather, reduce_scatter_mean

ADAM_STAGES = (
    Stage.REDUCE_SCATTER,
    Stage.REDUCE_SCATTER_WAIT,
    Stage.UPDATE,
    Stage.ALL_GATHER,
    Stage.ALL_GATHER_WAIT,
    Stage.COPY_BACK,
)
"""What every group passes through on every rank in every Adam step, in this order; the first perhaps in backward."""


def adam_update(
    parameter: Tensor,
    gradient: Tensor,
    mean: Tensor,
    mean_square: Tensor,
    learning_rate: Tensor,
    mean_correction: Tensor,
    square_correction: Tensor,
    *,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """One Adam step on a shard, in place; computed in float32, whatever the dtype that is stored.

    parameter, gradient   the shard: rows x columns, or elements
    mean, mean_square     the running means of gradient and square, in the parameter's dtype
    learning_rate         0-D float32 on the CPU, like both corrections (1 - beta^steps): no recompiles
    weight_decay          decoupled (AdamW, arXiv 1711.05101): shrinks by learning_rate x weight_decay

    Kingma and Ba, arXiv 1412.6980, algorithm 1, with eps outside the root, as in torch.optim.Adam.
    """
    new_mean = betas[0] * mean.float() + (1 - betas[0]) * gradient.float()
    new_square = betas[1] * mean_square.float() + (1 - betas[1]) * gradient.float().square()
    mean.copy_(new_mean)
    mean_square.copy_(new_square)
    step = (new_mean / mean_correction) / ((new_square / square_correction).sqrt() + eps)
    value = parameter.float()
    parameter.copy_(value - learning_rate * (step + weight_decay * value))


class _Group:
    """One parameter on this rank: its shard and state, and one method per stage."""

    def __init__(self, plan: GroupPlan, parameter: nn.Parameter) -> None:
        rank = dist.get_rank()
        filled = plan.filled_slots(rank)
        self.name = plan.name
        self.index = plan.indices[0]
        self.parameter = parameter
        self.learning_rate_scale: float = getattr(parameter, "learning_rate_scale", 1.0)
        # Rows that divide need no buffer: gradients leave from .grad, and the gather writes into the parameter.
        self._padded = parameter.detach().new_zeros(plan.num_slots, *plan.slot_shape) if plan.padding else None
        whole = parameter.detach() if self._padded is None else self._padded
        self._shard = whole[rank * plan.shard_slots : (rank + 1) * plan.shard_slots]
        self._filled = filled
        self._gradient = torch.zeros_like(self._shard)
        self._mean = torch.zeros_like(self._shard[: len(filled)])
        self._mean_square = torch.zeros_like(self._mean)
        self._sent: Tensor | None = None
        self._work: dist.Work | None = None

    @property
    def is_reducing(self) -> bool:
        return self._work is not None

    def reduce_gradient(self) -> None:
        gradient = self.parameter.grad
        if gradient is None:
            raise RuntimeError(f"{self.name}: the parameter has no gradient")
        if self._padded is None:
            self._sent = gradient.contiguous()  # held until the wait: the transfer reads it
        else:
            self._padded[: len(gradient)].copy_(gradient)
            self._sent = self._padded
        self._work = reduce_scatter_mean(self._gradient, self._sent)

    def wait(self) -> None:
        assert self._work is not None
        self._work.wait()
        self._work = self._sent = None

    def update(self, update: Callable[..., None], *hyper: Tensor, **constants: Any) -> None:
        num_filled = len(self._filled)
        if num_filled == 0:  # nothing but padding here: the stage stays, its work does not
            return
        own = self._shard[:num_filled]
        if self._padded is not None:
            own.copy_(self.parameter[self._filled.start : self._filled.stop])
        update(own, self._gradient[:num_filled], self._mean, self._mean_square, *hyper, **constants)

    def gather_parameter(self) -> None:
        self._work = all_gather(self.parameter.detach() if self._padded is None else self._padded, self._shard)

    def copy_back(self) -> None:
        if self._padded is not None:
            self.parameter.copy_(self._padded[: len(self.parameter)])

    def reset(self) -> None:
        self._mean.zero_()
        self._mean_square.zero_()

    def state(self) -> ShardState:
        tensors = {"mean": self._mean, "mean_square": self._mean_square}
        return ShardState(index=self.index, begin=self._filled.start, tensors=tensors)


class DistAdam:
    """Adam, sharded by rows over the default process group; one group per parameter.

    A step makes three passes over the groups of `sharding.adam_plan`, in the order in which backward ends them:

    1. every group: start the reduce-scatter that averages its gradient, unless backward has started it;
    2. every group: wait for its gradient; update this rank's rows; start the all-gather of the parameter;
    3. every group: wait for its parameter; copy it back into the model.

    Where the rows divide by the world size, gradients leave from `.grad` and the gather writes straight into the
    parameter, so that copy_back is empty; else both go through a padded buffer, filled in reduce_scatter. Every
    group passes every stage, empty or not. On CUDA the wait stages take the host no time (see Muon).

    After `reduce_in_backward(True)`, pass 1 happens in hooks while backward still runs: in CUDA programs on the
    autograd thread, and its annotations with it. Arm it before the last micro-batch's backward, or gradients
    would leave before they are whole. A step disarms it.

    parameters       tables (rows x columns) and vectors with a `label` and, optionally, a `learning_rate_scale`
    learning_rate    may be set between steps
    compile          compile the update: one graph for tables of one shape, one for vectors
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        learning_rate: float = 0.008,
        betas: tuple[float, float] = (0.65, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        compile: bool = False,  # noqa: A002  # torch.compile's own word
    ) -> None:
        self.learning_rate = learning_rate
        self.betas = betas
        self.eps = eps
        self.weight_decay = weight_decay
        self.num_steps = 0
        self._parameters = list(parameters)
        self._plan = adam_plan(self._parameters, dist.get_world_size())  # type: ignore[arg-type]  # labels are set on them
        self._groups = [_Group(plan, self._parameters[plan.indices[0]]) for plan in self._plan]
        self._update = torch.compile(adam_update, dynamic=False) if compile else adam_update
        self._reduces_in_backward = False
        for group in self._groups:
            group.parameter.register_post_accumulate_grad_hook(self._hook(group))

    def reduce_in_backward(self, armed: bool) -> None:
        """Whether the next backward starts the reduce-scatter of each gradient as soon as it is whole."""
        self._reduces_in_backward = armed

    @torch.no_grad()
    def step(self) -> None:
        """One update of every parameter from the gradients of all ranks. RuntimeError where a gradient is missing."""
        self._reduces_in_backward = False
        self.num_steps += 1

        for group in self._groups:
            if not group.is_reducing:
                self._run(Stage.REDUCE_SCATTER, group)

        for group in self._groups:
            for stage in (Stage.REDUCE_SCATTER_WAIT, Stage.UPDATE, Stage.ALL_GATHER):
                self._run(stage, group)

        for group in self._groups:
            for stage in (Stage.ALL_GATHER_WAIT, Stage.COPY_BACK):
                self._run(stage, group)

    @torch.no_grad()
    def run_stage(self, stage: Stage, group_name: str) -> None:
        """One stage of one group, exactly as `step` runs it; the caller keeps to the order of ADAM_STAGES.

        It counts no step: an update before the first step takes itself for the first.
        """
        self.num_steps = max(self.num_steps, 1)
        self._run(stage, next(group for group in self._groups if group.name == group_name))

    def zero_grad(self) -> None:
        """Drop the gradients, so that the next backward writes instead of adding."""
        for parameter in self._parameters:
            parameter.grad = None

    def reset(self) -> None:
        """Forget both running means and the step count, as before the first step; after an untimed warm-up, say."""
        self.num_steps = 0
        for group in self._groups:
            group.reset()

    def states(self) -> list[ShardState]:
        """What this rank remembers, for a checkpoint; `num_steps` belongs to it."""
        return [group.state() for group in self._groups]

    def plan(self) -> list[dict[str, Any]]:
        """The groups in the order in which they are updated, as JSON values; what `annotate.declare` takes."""
        return [plan.to_json() | {"stages": [str(stage) for stage in ADAM_STAGES]} for plan in self._plan]

    def _run(self, stage: Stage, group: _Group) -> None:
        if stage == Stage.REDUCE_SCATTER and group.is_reducing:
            raise RuntimeError(f"{group.name}: two backwards while armed; arm before the last micro-batch alone")
        with annotate.stage(stage, group.name):
            match stage:
                case Stage.REDUCE_SCATTER:
                    group.reduce_gradient()
                case Stage.UPDATE:
                    group.update(self._update, *self._hyper(group), **self._constants())
                case Stage.ALL_GATHER:
                    group.gather_parameter()
                case Stage.REDUCE_SCATTER_WAIT | Stage.ALL_GATHER_WAIT:
                    group.wait()
                case Stage.COPY_BACK:
                    group.copy_back()

    def _hook(self, group: _Group) -> Callable[[Tensor], None]:
        def reduce_if_armed(_: Tensor) -> None:
            if self._reduces_in_backward:
                with torch.no_grad():
                    self._run(Stage.REDUCE_SCATTER, group)

        return reduce_if_armed

    def _hyper(self, group: _Group) -> tuple[Tensor, Tensor, Tensor]:
        """What changes from step to step, as tensors; see `adam_update`."""
        mean_correction, square_correction = (1 - beta**self.num_steps for beta in self.betas)
        rate = self.learning_rate * group.learning_rate_scale
        return torch.tensor(rate), torch.tensor(mean_correction), torch.tensor(square_correction)

    def _constants(self) -> dict[str, Any]:
        return {"betas": self.betas, "eps": self.eps, "weight_decay": self.weight_decay}
