"""What a training program says of itself: steps, stages, ranges, metrics, phases and declarations.

Every step, stage and range is an NVTX range and a torch.profiler range at once, under one name:

    speedprof.step/<n>      speedprof.stage/<stage>/<optimizer>.<group>      speedprof.range/<name>

A validation pass is a step whose name ends in /validation, so that a trace can tell it from training.

A capture hears the same calls through a `Listener`. Where nothing listens, a range costs a few hundred
nanoseconds (benchmarks/annotation_cost.py), so a program can leave its annotations in place.

Inside code that torch.compile traces, these calls do nothing: Dynamo would drop the ranges anyway.
Put stages around compiled functions, not into them.

Needs torch; uses the package `nvtx` where it is installed, else torch.cuda.nvtx, else no NVTX.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any, Protocol

import torch

from speedprof.vocabulary import RANGE_PREFIX as RANGE_PREFIX
from speedprof.vocabulary import STAGE_PREFIX as STAGE_PREFIX
from speedprof.vocabulary import STEP_PREFIX as STEP_PREFIX
from speedprof.vocabulary import VALIDATION_SUFFIX
from speedprof.vocabulary import Stage as Stage
from speedprof.vocabulary import StepKind as StepKind


class Listener(Protocol):
    """What hears the annotations of this process. Calls come on the thread that annotates."""

    def step_began(self, step: int, kind: StepKind) -> None: ...
    def step_ended(self, step: int) -> None: ...
    def stage_began(self, stage: str, group: str) -> None: ...
    def stage_ended(self, stage: str, group: str) -> None: ...
    def metric_seen(self, name: str, value: float | torch.Tensor) -> None: ...
    def phase_began(self, name: str) -> None: ...
    def declared(self, name: str, value: Any) -> None: ...


_listener: Listener | None = None


def listen(listener: Listener | None) -> None:
    """Make `listener` hear every later annotation of this process; None ends it."""
    global _listener
    _listener = listener


def listener() -> Listener | None:
    """What hears the annotations now; one that takes its place can pass them on to it."""
    return _listener


def _open_nvtx() -> tuple[Callable[[str], object], Callable[[], object]] | None:
    """The push and pop of the best NVTX at hand, or None where there is none."""
    try:
        import nvtx
    except ImportError:
        if torch.cuda.is_available():
            return torch.cuda.nvtx.range_push, torch.cuda.nvtx.range_pop
        return None
    domain = nvtx.get_domain("speedprof")
    # Attributes are made once a name: making them costs more than the push itself.
    attributes = functools.cache(lambda name: domain.get_event_attributes(message=name))
    return (lambda name: domain.push_range(attributes(name))), domain.pop_range


_nvtx = _open_nvtx()


class Range:
    """A named range of host time; enter it once."""

    __slots__ = ("_name", "_record")

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        if _nvtx is not None:
            _nvtx[0](self._name)
        # torch.profiler.record_function costs 9 us even with no profiler; this private twin costs 0.2 us.
        self._record = torch._C._profiler._RecordFunctionFast(self._name)
        self._record.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._record.__exit__(kind, error, traceback)
        if _nvtx is not None:
            _nvtx[1]()


class _StageRange(Range):
    """A range that the listener hears of; its callbacks run outside the range, so it holds the stage alone."""

    __slots__ = ("_group", "_heard_by", "_stage")

    def __init__(self, name: str, heard_by: Listener, stage: str, group: str) -> None:
        super().__init__(name)
        self._heard_by = heard_by
        self._stage = stage
        self._group = group

    def __enter__(self) -> None:
        self._heard_by.stage_began(self._stage, self._group)
        super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, traceback)
        self._heard_by.stage_ended(self._stage, self._group)


class _StepRange(Range):
    """The range of one step; the listener hears its start before and its end after the range itself."""

    __slots__ = ("_heard_by", "_kind", "_step")

    def __init__(self, name: str, heard_by: Listener, step: int, kind: StepKind) -> None:
        super().__init__(name)
        self._heard_by = heard_by
        self._step = step
        self._kind = kind

    def __enter__(self) -> None:
        self._heard_by.step_began(self._step, self._kind)
        super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, traceback)
        self._heard_by.step_ended(self._step)


@functools.cache
def _stage_name(stage: str, group: str) -> str:
    return f"{STAGE_PREFIX}{Stage(stage).value}/{group}"


def step(n: int, *, kind: StepKind = "train") -> AbstractContextManager[None]:
    """The range of step `n`, one optimizer update (or one validation pass, which has its own number).

    Host step n runs from entering this range to entering the next one, or to its end for the last.
    """
    if torch.compiler.is_compiling():
        return nullcontext()
    name = f"{STEP_PREFIX}{n}{VALIDATION_SUFFIX if kind == 'validation' else ''}"
    return Range(name) if _listener is None else _StepRange(name, _listener, n, kind)


def stage(stage: str, group: str) -> AbstractContextManager[None]:
    """The range of one `Stage` of the parameter group `group`, named `<optimizer>.<group>`.

    Raises ValueError for a stage that is not in `Stage`.
    """
    if torch.compiler.is_compiling():
        return nullcontext()
    name = _stage_name(stage, group)
    return Range(name) if _listener is None else _StageRange(name, _listener, stage, group)


def range(name: str) -> AbstractContextManager[None]:
    """A range of the program's own choosing."""
    return nullcontext() if torch.compiler.is_compiling() else Range(RANGE_PREFIX + name)


def metric(name: str, value: float | torch.Tensor) -> None:
    """A number of the current step: loss, learning rate, a lambda.

    A tensor must hold one element. A device tensor is copied without making the host wait, and read later.
    """
    if _listener is not None and not torch.compiler.is_compiling():
        _listener.metric_seen(name, value)


def phase(name: str) -> None:
    """From here on the program is in another phase: a window size or batch size that changes the step's work."""
    if _listener is not None and not torch.compiler.is_compiling():
        _listener.phase_began(name)


def declare(name: str, value: Any) -> None:
    """A fact of the whole run, as a JSON value: preset, tokens per step, the optimizer's plan."""
    if _listener is not None:
        _listener.declared(name, value)
