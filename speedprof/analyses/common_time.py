"""Which time have all ranks captured, so that what they do in it can be compared and counted per step?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from speedprof.analyses.timeline import RankTimeline
from speedprof.trace.intervals import Int64s

MIN_INSIDE_RATIO = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class CommonTime:
    """Windows of every rank, as many on each, on the common clock.

        rank 0   |--1--|--2--|--3--|--4--|
        rank 1        |--2--|--3--|                steps 2 and 3 are common to both

    `steps` are the traced steps that all ranks have whole and captured together, in order, and `start` and `end` hold
    by rank the windows of these. Captures begin and end with an event, earlier on one rank than on another, so it is
    enough if more than half of each rank's window lies within the captures of all. Where there are no such steps,
    `steps` is empty, and the one window is what lies within all captures; there may be none of that either. `step_ns`
    is how long a step takes, the mean over steps and ranks; without any steps on any rank it is the length of the one
    window. What is summed over all windows, times `per_step`, is that of a step.
    """

    steps: tuple[int, ...]
    start: Mapping[int, Int64s]
    end: Mapping[int, Int64s]
    num_windows: int
    step_ns: float
    per_step: float


def find_common_time(ranks: Sequence[RankTimeline]) -> CommonTime:
    """What all of these ranks have captured. They are on the common clock, and there is at least one."""
    windows = {
        rank.rank: {step.step: (step.start_ns, step.end_ns) for step in rank.steps if step.step is not None}
        for rank in ranks
    }
    within = (max(rank.start_ns for rank in ranks), min(rank.end_ns for rank in ranks))
    shared = sorted(set.intersection(*(set(each) for each in windows.values())))
    steps = tuple(step for step in shared if all(_lies_in(each[step], within) for each in windows.values()))
    if steps:
        return _make(steps, {rank: [each[step] for step in steps] for rank, each in windows.items()}, None)
    common = [within] if within[0] < within[1] else []
    lengths = [end - start for each in windows.values() for start, end in each.values()]
    return _make((), dict.fromkeys(windows, common), float(np.mean(lengths)) if lengths else None)


def _lies_in(window: tuple[int, int], within: tuple[int, int]) -> bool:
    start, end = window
    return min(end, within[1]) - max(start, within[0]) > MIN_INSIDE_RATIO * (end - start)


def _make(steps: tuple[int, ...], windows: Mapping[int, list[tuple[int, int]]], step_ns: float | None) -> CommonTime:
    borders = {rank: np.array(each, dtype=np.int64).reshape(-1, 2) for rank, each in windows.items()}
    num_windows = min(len(each) for each in borders.values())
    length = float(np.mean([each[:, 1] - each[:, 0] for each in borders.values()])) if num_windows else 0.0
    step_ns = length if step_ns is None else step_ns
    per_step = step_ns / (length * num_windows) if length else 0.0
    return CommonTime(
        steps=steps,
        start={rank: each[:, 0] for rank, each in borders.items()},
        end={rank: each[:, 1] for rank, each in borders.items()},
        num_windows=num_windows,
        step_ns=step_ns,
        per_step=per_step,
    )
