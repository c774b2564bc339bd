"""Stops a run whose loss or gradients are no numbers, and says where that began: the step, the rank, the group.

Each step leaves one small vector on the device: the loss, and the norm of every group's gradient on this rank before
the ranks share theirs. On a CPU it is looked at before the update. On a GPU the host looks two steps later, when
it has arrived: nothing waits for it, and the norms read the gradients once (0.2% of a step at most).
"""

from __future__ import annotations

import itertools
import json
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from trainer.errors import NOT_FINITE, TrainerError
from trainer.progress import copy_to_host

_LAG_STEPS = 2
LOSS = "loss"


@dataclass(frozen=True, slots=True, kw_only=True)
class NotFinite:
    """What was found on one rank: the first of `names` in the order of backward is where it began.

    names: "loss", or names of parameter groups.
    """

    step: int
    rank: int
    names: tuple[str, ...]
    num_groups: int

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> NotFinite:
        fields = json.loads(text)
        return cls(**fields | {"names": tuple(fields["names"])})

    def describe(self) -> str:
        groups = [name for name in self.names if name != LOSS]
        parts = ["the loss is not finite"] if LOSS in self.names else []
        if groups:
            others = f" ({len(groups)} of {self.num_groups} groups in all)" if len(groups) > 1 else ""
            parts.append(f"the gradient of {groups[0]} went first{others}")
        else:
            parts.append(f"the gradients of all {self.num_groups} groups are finite")
        return f"step {self.step}, rank {self.rank}: {', '.join(parts)}"


class NotFiniteError(TrainerError):
    """Ends the run; `found` is for the other ranks."""

    def __init__(self, found: NotFinite) -> None:
        super().__init__(
            f"{found.describe()}; resume from a checkpoint before it with a lower learning rate (--resume, "
            "--set muon_learning_rate=VALUE), or look at the data of that step",
            NOT_FINITE,
        )
        self.found = found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """The vector of one step, perhaps still on its way: the loss, then one squared norm a group."""

    step: int
    values: Tensor
    arrived: torch.cuda.Event | None


class FiniteWatch:
    """groups: name -> its parameters, in the order in which backward ends their gradients."""

    def __init__(self, groups: Mapping[str, Sequence[nn.Parameter]], rank: int) -> None:
        numbered = [
            (number, parameter) for number, parameters in enumerate(groups.values(), 1) for parameter in parameters
        ]
        numbered.sort(key=lambda pair: str(pair[1].dtype))  # one fused kernel takes one dtype
        self._parameters = [parameter for _, parameter in numbered]
        self._names = (LOSS, *groups)
        self._rank = rank
        self._group_of = torch.tensor([number for number, _ in numbered], device=self._parameters[0].device)
        self._looks: deque[_Look] = deque()

    @torch.no_grad()
    def see(self, step: int, loss: Tensor) -> dict[str, Tensor]:
        """Note the step, between backward and update. Raises NotFiniteError for it or one shortly before it.

        Gives the norm of each group's gradient on this rank, fp32 scalars still on the device.
        """
        values = self._measure(loss)
        if values.is_cuda:
            copy, arrived = copy_to_host(values)
            self._looks.append(_Look(step=step, values=copy, arrived=arrived))
        else:
            self._looks.append(_Look(step=step, values=values, arrived=None))
        lag = _LAG_STEPS if values.is_cuda else 0
        while len(self._looks) > lag:
            self._judge(self._looks.popleft())
        return dict(zip(self._names[1:], values[1:].sqrt().unbind(), strict=True))

    def finish(self) -> None:
        """Look at the steps that are left; waits for the device. Raises NotFiniteError."""
        while self._looks:
            self._judge(self._looks.popleft())

    def _measure(self, loss: Tensor) -> Tensor:
        """The loss, and the squared norm of each group's gradient, which overflows beyond 1e38: fp32."""
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        if len(gradients) < len(self._parameters):
            raise RuntimeError(f"{len(self._parameters) - len(gradients)} parameters have no gradient")
        norms = [
            norm
            for _, alike in itertools.groupby(gradients, key=lambda gradient: gradient.dtype)
            for norm in torch._foreach_norm(list(alike), dtype=torch.float32)
        ]
        squares = torch.stack(norms).square()
        values = loss.new_zeros(len(self._names), dtype=torch.float32).index_add_(0, self._group_of, squares)
        values[0] = loss
        return values

    def _judge(self, look: _Look) -> None:
        if look.arrived is not None:
            look.arrived.synchronize()
        bad = ~look.values.isfinite()
        if not bad.any():
            return
        names = tuple(name for name, is_bad in zip(self._names, bad.tolist(), strict=True) if is_bad)
        found = NotFinite(step=look.step, rank=self._rank, names=names, num_groups=len(self._names) - 1)
        raise NotFiniteError(found)
