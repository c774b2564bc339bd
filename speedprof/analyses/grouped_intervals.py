"""Interval sets of many groups, computed in one sweep instead of one for each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from speedprof.trace.intervals import Int64s, Intervals, covered_before, union


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupLine:
    """A line on which the groups lie one after another, so that intervals of different groups never meet.

        group 0      ####   ##
        group 1    ######
        the line   .####.##.|######....|

    A place on it is not a time but the time's index in `times`, which leaves room for any number of groups.
    """

    times: Int64s
    num_groups: int

    @staticmethod
    def through(num_groups: int, *times: Int64s) -> GroupLine:
        """The line for intervals whose starts and ends are among `times`."""
        return GroupLine(times=np.sort(np.concatenate(times)), num_groups=num_groups)

    def lay(self, group: Int64s, start: Int64s, end: Int64s) -> Intervals:
        """The union of each group's intervals, on the line; sets on one line can be joined, intersected, subtracted."""
        offset = group * len(self.times)
        return union(np.searchsorted(self.times, start) + offset, np.searchsorted(self.times, end) + offset)

    def lengths(self, laid: Intervals, within: Intervals | None = None) -> Int64s:
        """How many instants of each group are covered; `within` (times, not places) counts only what it covers too."""
        totals = np.zeros(self.num_groups, dtype=np.int64)
        if not len(laid):
            return totals
        group = laid.start // len(self.times)
        start, end = (self.times[place - group * len(self.times)] for place in (laid.start, laid.end))
        covered = end - start if within is None else covered_before(within, end) - covered_before(within, start)
        np.add.at(totals, group, covered)
        return totals
