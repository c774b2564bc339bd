"""Which parts are one collective, said by hand, so that tests of what follows rest on no matching."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import polars as pl

from speedprof.analyses.clocks import RankClock
from speedprof.analyses.matching import CollectiveMatch
from speedprof.analyses.timeline import RankTimeline

_COLUMNS = ("collective", "rank", "row", "start_ns", "end_ns", "last_start_ns", "last_rank", "is_complete")
_SCHEMA = {name: pl.Boolean() if name == "is_complete" else pl.Int64() for name in _COLUMNS}


def match_by_hand(
    ranks: Sequence[RankTimeline],
    collectives: Sequence[Mapping[int, int]],
    *,
    incomplete: Collection[int] = (),
    offsets: Mapping[int, int] | None = None,
) -> CollectiveMatch:
    """Each of `collectives` says by rank which row of its table is its part; `incomplete` ones lack a rank's part."""
    offsets = offsets or {}
    tables = {rank.rank: rank.shifted(offsets.get(rank.rank, 0)).collectives for rank in ranks}
    rows = []
    for number, parts in enumerate(collectives):
        start = {rank: tables[rank]["start_ns"][row] for rank, row in parts.items()}
        last_start = max(start.values())
        last_rank = min(rank for rank in start if start[rank] == last_start)
        for rank, row in sorted(parts.items()):
            end = tables[rank]["end_ns"][row]
            rows.append((number, rank, row, start[rank], end, last_start, last_rank, number not in incomplete))
    num_complete = len(collectives) - len(set(incomplete))
    return CollectiveMatch(
        instances=pl.DataFrame(rows, schema=_SCHEMA, orient="row"),
        num_matched=num_complete,
        num_matchable=num_complete,
        certainty=1.0 if num_complete else None,
        refused_because=None,
        clocks=tuple(
            RankClock(rank=rank.rank, offset_ns=offsets.get(rank.rank, 0), residual_ns=0, num_collectives=0)
            for rank in ranks
        ),
    )


def match_in_order(ranks: Sequence[RankTimeline]) -> CollectiveMatch:
    """The last collective of each rank is one collective, and so are those before it, as far as every rank has one."""
    counts = {rank.rank: len(rank.collectives) for rank in ranks}
    fewest = min(counts.values())
    return match_by_hand(ranks, [{rank: counts[rank] - fewest + at for rank in counts} for at in range(fewest)])


def refuse(ranks: Sequence[RankTimeline]) -> CollectiveMatch:
    """Nothing could be matched."""
    return CollectiveMatch(
        instances=pl.DataFrame(schema=_SCHEMA),
        num_matched=0,
        num_matchable=0,
        certainty=None,
        refused_because="nothing fits",
        clocks=tuple(RankClock(rank=rank.rank, offset_ns=0, residual_ns=0, num_collectives=0) for rank in ranks),
    )
