"""The training log's line a step, and the clock of a run; neither makes the host wait for the device at every step."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.ranks import Ranks

_MAX_PENDING = 8
_NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """A line whose loss may still be on its way to the host."""

    step: int
    loss: Tensor
    arrived: torch.cuda.Event | None
    rest: str

    def has_arrived(self) -> bool:
        return self.arrived is None or self.arrived.query()


class Progress:
    """Lines of the training log on rank 0, and the time that training took, whatever was not training left out.

    On a GPU a line is printed once its loss has arrived. The host waits for a loss only where as many as
    _MAX_PENDING lines are due: then it is that many lines ahead of the device, which still has work.
    """

    def __init__(self, ranks: Ranks, tokens_per_step: int) -> None:
        self._is_printing = ranks.is_first
        self._is_cuda = ranks.device.type == "cuda"
        self._tokens_per_step = tokens_per_step
        self._pending: deque[_Line] = deque()
        self._last_step = -1
        self._left_out_ns = 0
        self._began_ns = self._last_ns = self._now_ns()
        self.first_step_s: float | None = None

    def start(self, first_step: int) -> None:
        """The clock of training starts, before that step."""
        self._last_step = first_step - 1
        self._began_ns = self._last_ns = self._now_ns()

    def train_s(self) -> float:
        """Seconds of training until now, host clock; waits for the device."""
        self._wait_for_device()
        return (self._now_ns() - self._began_ns) / _NS_PER_S

    def step_ended(self, step: int, loss: Tensor, learning_rate: float, *, is_due: bool) -> None:
        """Note a step; where a line is due, with its mean loss, a tensor on the device.

        Milliseconds and tokens per second are of the host, over the steps since the last line.
        """
        if self.first_step_s is None:
            self.first_step_s = (self._now_ns() - self._began_ns) / _NS_PER_S
        if not (is_due and self._is_printing):
            return
        now_ns = self._now_ns()
        step_ns = max(now_ns - self._last_ns, 1) / max(step - self._last_step, 1)
        self._last_step, self._last_ns = step, now_ns
        tokens_per_s = self._tokens_per_step * _NS_PER_S / step_ns
        rest = f"lr {learning_rate:.6f}  {step_ns / 1e6:.1f} ms/step  {tokens_per_s:,.0f} tokens/s"
        self._pending.append(self._line(step, loss, rest))
        while self._pending and (self._pending[0].has_arrived() or len(self._pending) > _MAX_PENDING):
            self._print(self._pending.popleft())

    @contextmanager
    def left_out(self) -> Iterator[None]:
        """What happens inside is no training: validation, a checkpoint. Training's queued work ends before it."""
        self.flush()
        self._wait_for_device()
        began_ns = time.perf_counter_ns()
        yield
        self._wait_for_device()
        self._left_out_ns += time.perf_counter_ns() - began_ns

    def flush(self) -> None:
        """Print the lines that are pending."""
        while self._pending:
            self._print(self._pending.popleft())

    def _line(self, step: int, loss: Tensor, rest: str) -> _Line:
        if not self._is_cuda:
            return _Line(step=step, loss=loss, arrived=None, rest=rest)
        copy, arrived = copy_to_host(loss)
        return _Line(step=step, loss=copy, arrived=arrived, rest=rest)

    def _print(self, line: _Line) -> None:
        if line.arrived is not None:
            line.arrived.synchronize()
        print(f"step {line.step:>5}  train loss {line.loss.item():.4f}  {line.rest}", flush=True)

    def _now_ns(self) -> int:
        return time.perf_counter_ns() - self._left_out_ns

    def _wait_for_device(self) -> None:
        if self._is_cuda:
            torch.cuda.synchronize()


def copy_to_host(values: Tensor) -> tuple[Tensor, torch.cuda.Event]:
    """A copy of CUDA `values` in pinned memory, the only kind that the host need not wait for, and its arrival."""
    copy = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return copy, arrived
