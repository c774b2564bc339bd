"""Who waits for whom, in which collective and in which step, within what all ranks have captured?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from speedprof.analyses.common_time import CommonTime
from speedprof.analyses.exposed_parts import ExposedParts
from speedprof.analyses.matching import CollectiveMatch
from speedprof.trace.intervals import Int64s
from speedprof.trace.schema import to_numpy

_SCHEMA = dict.fromkeys(("rank", "last_rank", "collective", "window", "ns", "gain_ns"), pl.Int64())


def find_waiting(parts: Sequence[ExposedParts], match: CollectiveMatch, common: CommonTime) -> pl.DataFrame:
    """A row for each stretch of exposed waiting in the windows of the common time.

        rank 0     |=============      three ranks begin a collective
        rank 1         |=========
        rank 2              |====      the last
                   <-- ns -->          what rank 0 waits
                       <---->          gain_ns: what it would not, were rank 2 there as early as rank 1

    Columns: `rank` waits for `last_rank` in `collective` (its number in `match`), in the window of index `window`, for
    `ns`, of which `gain_ns` lie after the second-last rank has begun. Where a rank waits in several collectives at
    once, an instant belongs to the one that began first.
    """
    number, second_ns = second_starts(match)
    tables = [_waiting_of(part, number, second_ns, common) for part in parts]
    return pl.concat(tables) if tables else pl.DataFrame(schema=_SCHEMA)


def _waiting_of(part: ExposedParts, number: Int64s, second_ns: Int64s, common: CommonTime) -> pl.DataFrame:
    start, end = common.start[part.rank.rank], common.end[part.rank.rank]
    pieces = part.waits_within(start, end)
    collective = part.collective[pieces.row]
    since = np.maximum(pieces.start, second_ns[np.searchsorted(number, collective)]) if len(number) else pieces.start
    columns = {
        "rank": np.full(len(pieces.row), part.rank.rank),
        "last_rank": part.last_rank[pieces.row],
        "collective": collective,
        "window": np.searchsorted(start, pieces.start, side="right") - 1,
        "ns": pieces.end - pieces.start,
        "gain_ns": np.maximum(pieces.end - since, 0),
    }
    return pl.DataFrame(columns, schema=_SCHEMA)


def second_starts(match: CollectiveMatch) -> tuple[Int64s, Int64s]:
    """The number of each collective, in order, and when the second-last of its ranks begins; equal starts count each.

    Of a collective with one known part it is that one's start.
    """
    table = match.instances.select("collective", "start_ns").sort("collective", "start_ns")
    number, start = to_numpy(table["collective"]), to_numpy(table["start_ns"])
    last = np.flatnonzero(np.diff(number, append=-1) != 0)
    before = np.maximum(last - 1, 0)
    return number[last], start[np.where(number[before] == number[last], before, last)]
