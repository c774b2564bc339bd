"""Copies that nothing hides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from speedprof.analyses.analysis import Analysis
from speedprof.analyses.breakdown import Partition
from speedprof.findings.costs import (
    format_times,
    is_worth_telling,
    mean,
    measure_by_rank,
    rate,
    sound_ranks,
    worst_step,
)
from speedprof.findings.finding import Finding, Slug
from speedprof.units import format_percent

SMALLEST_DIRECTION_SHARE = 0.5  # of the exposed copies: advice is for one direction from here

_TRY_NEXT = (
    "See in the timeline which copies these are. Copies from device to device come from clone(), contiguous(), "
    "concatenation and the filling of buffers; copies from and to the host from the input and from results that are "
    "read back."
)

_DIRECTIONS = {"DtoD": "from device to device", "HtoD": "from host to device", "DtoH": "from device to host"}

_TRY_NEXT_BY_DIRECTION = {
    "DtoD": "See in the timeline which operators make these copies: clone(), contiguous(), concatenation or the "
    "filling of buffers. Write a result where it is needed instead of copying it there.",
    "HtoD": "Copy from pinned memory with non_blocking=True on a stream of its own, one step ahead.",
    "DtoH": "Read results back less often, and into pinned memory with non_blocking=True; .item() and .cpu() are such "
    "copies.",
}


def find_exposed_copies(analysis: Analysis) -> Iterator[Finding]:
    ranks = sound_ranks(analysis)
    copies = measure_by_rank(ranks, _copy_ns)
    if not is_worth_telling(analysis, mean(copies)):
        return
    direction, share = _main_direction(analysis)
    remark = f"; {format_percent(share)} of it {_DIRECTIONS[direction]}" if direction else ""
    yield Finding(
        slug=Slug.EXPOSED_COPY,
        severity=rate(analysis, mean(copies)),
        claim="Copies run with neither compute nor communication beside them for "
        f"{format_times(analysis, copies)}{remark}.",
        cost_ns=mean(copies),
        evidence=(worst_step(ranks, copies, _copy_ns),),
        try_next=_TRY_NEXT_BY_DIRECTION[direction] if direction else _TRY_NEXT,
    )


def _main_direction(analysis: Analysis) -> tuple[str | None, float]:
    """The direction of most exposed copies and its share; None where none has half, or directions are not known."""
    totals: Counter[str] = Counter()
    for rank in sound_ranks(analysis):
        for copy in rank.copies:
            totals[copy.direction] += copy.exposed_ns
    if not totals:
        return None, 0.0
    direction, direction_ns = totals.most_common(1)[0]
    share = direction_ns / totals.total()
    return (direction if direction in _DIRECTIONS and share >= SMALLEST_DIRECTION_SHARE else None), share


def _copy_ns(step: Partition) -> int:
    return step.exposed_copy_ns
