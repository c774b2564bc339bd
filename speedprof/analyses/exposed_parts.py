"""Where is a rank's exposed communication waiting, and where transfer?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from speedprof.analyses.grouped_intervals import GroupLine
from speedprof.analyses.matching import CollectiveMatch
from speedprof.analyses.timeline import RankTimeline
from speedprof.trace.intervals import Bools, Int64s, Intervals, covered_before, intersect, subtract, union
from speedprof.trace.schema import to_numpy

_NO_CUTS = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """Parts of intervals: `row` says whose part each is. Sorted, and no two overlap."""

    row: Int64s
    start: Int64s
    end: Int64s


@dataclass(frozen=True, slots=True, kw_only=True)
class ExposedParts:
    """One rank's collectives and its exposed communication, on the common clock.

        last rank        ----########        a rank that begins the collective last
        this rank        ############
        start, cut, end  |   |       |
                         wait transfer

    `rank` is on the common clock, `offset_ns` ahead of its own. The arrays have an entry for each row of its table of
    collectives: before `cut` the row waits for `last_rank`. Rows without a match are cut at their start and have no
    `last_rank` (-1); after the cut, time is transfer only where every rank of the group is known. `collective` is the
    number of the matched instance, -1 for none.

    `exposed` is communication with no compute beside it, `transfer` and `wait` what is known of it; neither is
    clipped to the capture. `counted` covers the windows of the traced steps, or the whole capture where there are none.
    """

    rank: RankTimeline
    offset_ns: int
    counted: Intervals
    start: Int64s
    cut: Int64s
    end: Int64s
    collective: Int64s
    last_rank: Int64s
    is_complete: Bools
    exposed: Intervals
    transfer: Intervals
    wait: Intervals

    def over_capture(self) -> ExposedParts:
        """The same, counted over the whole capture."""
        start, end = np.array([self.rank.start_ns]), np.array([self.rank.end_ns])
        return replace(self, counted=union(start, end))

    def split(self, start: Int64s, end: Int64s) -> Int64s:
        """Wait, transfer and unsplit ns within each window [start, end): one row of three for each."""
        wait, transfer, exposed = (
            covered_before(each, end) - covered_before(each, start) for each in (self.wait, self.transfer, self.exposed)
        )
        return np.stack((wait, transfer, exposed - transfer - wait), axis=1)

    def split_groups(self, rows: Int64s, group: Int64s, num_groups: int) -> tuple[Int64s, Int64s]:
        """The union of the time of each group's rows, and the split of what is exposed of it, by the same rules.

        `group` numbers the groups from 0; it has an entry for each of `rows`.
        """
        start, cut, end = self.start[rows], self.cut[rows], self.end[rows]
        line = GroupLine.through(num_groups, start, cut, end)
        known = self.is_complete[rows]
        busy = line.lay(group, start, end)
        transfer = line.lay(group[known], cut[known], end[known])
        wait = subtract(line.lay(group, start, cut), transfer)
        exposed, in_transfer, in_wait = (line.lengths(each, self.exposed) for each in (busy, transfer, wait))
        return line.lengths(busy), np.stack((in_wait, in_transfer, exposed - in_transfer - in_wait), axis=1)

    def waits(self) -> Pieces:
        """The exposed waiting of the counted time, each instant given to the row whose wait began first."""
        return _cut_to(give_to_first(self.start, self.cut), intersect(self.wait, self.counted))

    def waits_within(self, start: Int64s, end: Int64s) -> Pieces:
        """The same within windows [start, end), which do not overlap; no piece lies in two of them."""
        within = intersect(self.wait, union(start, end))
        return _cut_to(give_to_first(self.start, self.cut), within, np.concatenate((start, end)))

    def transfers(self) -> Pieces:
        """The exposed transfer of the counted time, each instant given to the row whose transfer began first."""
        until = np.where(self.is_complete, self.end, self.cut)
        return _cut_to(give_to_first(self.cut, until), intersect(self.transfer, self.counted))


def cut_exposed(rank: RankTimeline, match: CollectiveMatch) -> ExposedParts:
    """Cut the exposed communication of one rank by what is matched of it. The rank is on its own clock."""
    offset = next((clock.offset_ns for clock in match.clocks if clock.rank == rank.rank), 0)
    rank = rank.shifted(offset)
    start, end = (to_numpy(rank.collectives[name]) for name in ("start_ns", "end_ns"))
    cut, collective, last_rank = start.copy(), np.full(len(start), -1), np.full(len(start), -1)
    is_complete = np.zeros(len(start), dtype=np.bool_)
    if not match.instances.is_empty():
        mine = match.instances.filter(pl.col("rank") == rank.rank)
        row = to_numpy(mine["row"])
        cut[row] = np.clip(to_numpy(mine["last_start_ns"]), start[row], end[row])
        collective[row], last_rank[row] = to_numpy(mine["collective"]), to_numpy(mine["last_rank"])
        is_complete[row] = mine["is_complete"].to_numpy()
    exposed = subtract(rank.occupied.communication, rank.occupied.compute)
    transfer = intersect(union(cut[is_complete], end[is_complete]), exposed)
    return ExposedParts(
        rank=rank,
        offset_ns=offset,
        counted=_counted(rank),
        start=start,
        cut=cut,
        end=end,
        collective=collective,
        last_rank=last_rank,
        is_complete=is_complete,
        exposed=exposed,
        transfer=transfer,
        wait=subtract(intersect(union(start, cut), exposed), transfer),
    )


def give_to_first(start: Int64s, end: Int64s) -> Pieces:
    """Cut overlapping intervals so that each instant belongs to the one around it that began first.

    row 0    ######            ######
    row 1      ########              ####
    row 2       ##
    """
    order = np.argsort(start, kind="stable")
    start, end = start[order], end[order]
    # Those that began earlier cover everything from this one's start up to the furthest of their ends.
    reach = np.maximum.accumulate(end)
    start[1:] = np.maximum(start[1:], reach[:-1])
    kept = start < end
    return Pieces(row=order[kept], start=start[kept], end=end[kept])


def _cut_to(pieces: Pieces, within: Intervals, cuts: Int64s = _NO_CUTS) -> Pieces:
    """The parts of the pieces that `within` covers, cut in two at each of `cuts` too."""
    if not len(pieces.row):
        return pieces
    borders = np.sort(np.concatenate((pieces.start, pieces.end, within.start, within.end, cuts)))
    left, right = borders[:-1], borders[1:]
    at = np.searchsorted(pieces.start, left, side="right") - 1
    inside = covered_before(within, right) > covered_before(within, left)
    kept = inside & (at >= 0) & (left < pieces.end[np.maximum(at, 0)])
    return Pieces(row=pieces.row[at[kept]], start=left[kept], end=right[kept])


def _counted(rank: RankTimeline) -> Intervals:
    """The windows of the traced steps, or the whole capture where there are none."""
    windows = [(step.start_ns, step.end_ns) for step in rank.steps] or [(rank.start_ns, rank.end_ns)]
    start, end = np.array(windows, dtype=np.int64).T
    return union(start, end)
