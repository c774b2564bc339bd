"""What each stage of the optimizer takes, by parameter group: on the host, on the device, and exposed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTime:
    """One stage of one group on one rank, summed over the traced steps.

    `device_ns` is the union of the device work that the stage launched, wherever it ran; `exposed_ns` the part of
    its collectives with no compute beside it on that device. On CPU ranks both come from the host timeline.
    """

    stage: str
    group: str
    num_calls: int
    host_ns: int
    device_ns: int
    exposed_ns: int
