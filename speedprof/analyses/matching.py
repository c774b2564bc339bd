"""Which kernels on different ranks are one collective?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from speedprof.analyses.clocks import CommonClock, RankClock, find_common_clock
from speedprof.analyses.collective_parts import gather_parts
from speedprof.analyses.joined_parts import join_parts
from speedprof.analyses.match_evidence import INSTANCES, Evidence, weigh
from speedprof.analyses.separate_groups import Sets
from speedprof.analyses.timeline import RankTimeline

# More sets of ranks than this are not listed one by one.
_MOST_NAMED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveMatch:
    """The collectives of all ranks, put together.

    `instances` has a row for each rank's part of each collective that was found on two ranks or more, sorted by
    `collective` and `rank`: `collective` (its number, in order of time), `rank`, `row` (in that rank's table of
    collectives), `start_ns` and `end_ns` (on the common clock of `clocks`), `last_start_ns` (the latest start of its
    parts), `last_rank` (whose that is, the lowest of equals), and `is_complete` (every rank of its group has a part,
    those that were not traced included: else the last to begin may be one that is not known).

    `num_matched` counts those found on all traced ranks of their group, of `num_matchable` that lie within the captures
    of all these. Neither counts groups of which one rank alone was traced, or messages between two ranks of more.
    `certainty` is the share of the matched ones that are borne out by time: all their parts overlap one another and
    carry the same name, size and element type where these are known; None where none matched.
    `refused_because` says in a clause why nothing was matched; then `instances` is empty and `num_matched` 0.
    `assumes_complete`: neither the size of the group nor that of the run is known for some that count as complete, for
    all traced ranks have a part of them. Were others not traced, the last to begin may be one of these.
    """

    instances: pl.DataFrame
    num_matched: int
    num_matchable: int
    certainty: float | None
    refused_because: str | None
    clocks: tuple[RankClock, ...]
    assumes_complete: bool = False


def match_collectives(ranks: Sequence[RankTimeline]) -> CollectiveMatch:
    """Match the collectives of the ranks of one run, given in any order.

    By process group and sequence number where the files hold them, else by what is known of each (name, element type,
    size), which must not differ, and by time: see `pair_up`. Clocks that differ are brought together first. Nothing is
    matched by count, since captures begin at different times and profilers drop events.
    """
    ordered = sorted(ranks, key=lambda rank: rank.rank)
    if (reason := _why_not_tried(ordered)) is not None:
        return _refuse(ordered, reason, 0)
    parts = gather_parts(ordered)
    if not parts.are_shared:
        return _refuse(ordered, "no two of the traced ranks are known to take part in one collective", 0)
    clock = find_common_clock(ordered, parts)
    evidence = weigh(join_parts(parts, clock), ordered, clock)
    if not evidence.num_matched:
        return _refuse(ordered, _why_none(ordered, clock, evidence), _count_common(ordered))
    return CollectiveMatch(
        instances=evidence.parts.select(INSTANCES.keys()),
        num_matched=evidence.num_matched,
        num_matchable=evidence.num_matchable,
        certainty=evidence.certainty,
        refused_because=None,
        clocks=_describe_clocks(ordered, clock, evidence),
        assumes_complete=evidence.assumes_complete,
    )


def _why_not_tried(ranks: Sequence[RankTimeline]) -> str | None:
    if len(ranks) < 2:
        return "only one rank's trace was given" if ranks else "no rank's trace was given"
    numbers = [rank.rank for rank in ranks]
    if len(set(numbers)) < len(numbers):
        return f"two of the traces are of rank {next(one for one in numbers if numbers.count(one) > 1)}"
    carriers = [rank.rank for rank in ranks if len(rank.collectives)]
    if len(carriers) < 2:
        return f"only rank {carriers[0]}'s trace has collectives" if carriers else "no trace has collectives"
    return None


def _count_common(ranks: Sequence[RankTimeline]) -> int:
    """How many collectives all of these ranks can have had a part in at most: within the captures of all of them."""
    start, end = max(rank.start_ns for rank in ranks), min(rank.end_ns for rank in ranks)
    within = (pl.col("start_ns") >= start) & (pl.col("end_ns") <= end)
    return min(rank.collectives.filter(within).height for rank in ranks)


def _why_none(ranks: Sequence[RankTimeline], clock: CommonClock, evidence: Evidence) -> str:
    """Why, of what was tried, nothing is used."""
    if clock.misfits:
        return next(iter(clock.misfits.values()))
    if evidence.separate:
        return _why_separate(next(iter(evidence.separate.values())))
    lacking = [rank.rank for rank in ranks if rank.collectives.is_empty()]
    if lacking:
        return f"rank {lacking[0]}'s trace has no collectives"
    if evidence.collectives.is_empty():
        return (
            "the ranks have none in common but kernels that send and receive, and too few of these run on all ranks at "
            "one time to be exchanges among all"
        )
    if not evidence.num_matchable:
        return "no collective lies within the captures of all traced ranks of its group"
    if not evidence.collectives["is_used"].any():
        return "too few of the collectives overlap in time, or their ends lie too far apart, for parts of the same ones"
    return (
        f"none of the {evidence.num_matchable} collectives within the captures of all traced ranks of their group was "
        "found on all of them"
    )


def _why_separate(sets: Sets) -> str:
    named = [_list_ranks(one) for one in sets[:_MOST_NAMED]] + (["more sets"] if len(sets) > _MOST_NAMED else [])
    return (
        "the trace files do not say which ranks form a group, and by their times these are several: collectives end "
        f"together among {', '.join(named[:-1])} and among {named[-1]}, but not between these"
    )


def _list_ranks(ranks: tuple[int, ...]) -> str:
    if len(ranks) > 2 and ranks[-1] - ranks[0] == len(ranks) - 1:
        return f"ranks {ranks[0]} to {ranks[-1]}"
    return f"ranks {', '.join(map(str, ranks[:-1]))} and {ranks[-1]}"


def _describe_clocks(ranks: Sequence[RankTimeline], clock: CommonClock, evidence: Evidence) -> tuple[RankClock, ...]:
    known = evidence.parts.group_by("rank").agg(pl.len(), pl.col("distance_ns").median())
    by_rank = {rank: (count, int(distance)) for rank, count, distance in known.iter_rows()}
    clocks = []
    for rank, offset_ns in zip(ranks, clock.offset_ns.tolist(), strict=True):
        count, residual_ns = by_rank.get(rank.rank, (0, 0))
        offset_ns = offset_ns if count else 0
        clocks.append(RankClock(rank=rank.rank, offset_ns=offset_ns, residual_ns=residual_ns, num_collectives=count))
    return tuple(clocks)


def _refuse(ranks: Sequence[RankTimeline], reason: str, num_matchable: int) -> CollectiveMatch:
    clocks = [RankClock(rank=rank.rank, offset_ns=0, residual_ns=0, num_collectives=0) for rank in ranks]
    return CollectiveMatch(
        instances=pl.DataFrame(schema=INSTANCES),
        num_matched=0,
        num_matchable=num_matchable,
        certainty=None,
        refused_because=reason,
        clocks=tuple(clocks),
    )
