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
    """How much of the device's work is known only in part. All zero on a host timeline."""

    device_events: int
    unlinked: int
    cut: int
    crossing: int
    zero_length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """One rank's trace; speedprof.trace.schema says what each table's columns hold. Never changed in place."""

    rank: int
    timeline: Timeline
    kernels: pl.DataFrame
    launches: pl.DataFrame
    ops: pl.DataFrame
    ranges: pl.DataFrame
    collectives: pl.DataFrame
    steps: pl.DataFrame
    error_budget: ErrorBudget
    notes: tuple[str, ...]
