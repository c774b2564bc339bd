"""Which kernels cost most, and in which stage?"""

from __future__ import annotations

from dataclasses import dataclass

from speedprof.trace.model import Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelTime:
    """All launches of one kernel in one stage and group on one rank, summed over the traced steps.

    Outside the optimizer's stages both are None. `alone_ns` is the part with no other work beside it on the device.
    """

    name: str
    kind: str
    stage: str | None
    group: str | None
    count: int
    total_ns: int
    alone_ns: int


def measure_kernels(trace: Trace) -> tuple[KernelTime, ...]:
    """Costliest first by `total_ns`."""
    raise NotImplementedError
