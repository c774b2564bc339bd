"""The parts of a report that a user can ask for by name (`--only`)."""

from __future__ import annotations

from enum import StrEnum


class Section(StrEnum):
    """Step times, the partition of steps, communication (its split, its collectives, the optimizer's stages),
    stragglers, idle gaps, launches, the costliest kernels, and how certain all of it is."""

    STEP_TIME = "step_time"
    PARTITION = "partition"
    OVERLAP = "overlap"
    STRAGGLERS = "stragglers"
    IDLE = "idle"
    LAUNCHES = "launches"
    KERNELS = "kernels"
    CERTAINTY = "certainty"
