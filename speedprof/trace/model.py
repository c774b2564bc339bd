"""The trace of one rank as columns."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import polars as pl


class Timeline(StrEnum):
    """Whose clock a window follows: the device's kernels, or the host's ops where there is no device."""

    HOST = "host"
    DEVICE = "device"


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorBudget:
    """How much of the device's work is known only in part, in events. All zero on a host timeline.

    `unlinked`: no launch was recorded. `cut`: the border of the capture cuts it from its launch or from its start or
    end (an unlinked event with no linked one before it on its stream; an event not within the profiler's own span).
    `crossing`: begins inside an earlier event of its stream and outlasts it; viewers that nest slices drop it.
    `zero_length`: ends when it begins; kept, and counts for nothing in a union.
    """

    device_events: int
    unlinked: int
    cut: int
    crossing: int
    zero_length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """One rank's trace; speedprof.trace.schema says what each table's columns hold. Never changed in place.

    `world_size` is how many ranks the run had, None where the file does not say.
    `is_damaged`: more than a negligible part of the file could not be read; `notes` say why and how much. Its steps
    have no kind then: Kineto does not write in order of time, so none is known to be whole.
    """

    rank: int
    world_size: int | None
    timeline: Timeline
    kernels: pl.DataFrame
    launches: pl.DataFrame
    ops: pl.DataFrame
    ranges: pl.DataFrame
    collectives: pl.DataFrame
    steps: pl.DataFrame
    error_budget: ErrorBudget
    is_damaged: bool
    notes: tuple[str, ...]
