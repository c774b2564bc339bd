"""The parts of all ranks put together, one rank after another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from speedprof.analyses.alignment import KEYS, UNKNOWN, Spans, pair_up
from speedprof.analyses.clocks import CommonClock
from speedprof.analyses.collective_parts import Parts
from speedprof.trace.intervals import Int64s


@dataclass(slots=True)
class _Collectives:
    """The collectives found so far: group, name and what is known of each, and the time that all its parts share."""

    group: Int64s
    name: Int64s
    start: Int64s
    end: Int64s
    keys: Int64s

    def __len__(self) -> int:
        return len(self.group)

    def spans(self, rows: Int64s, kind: Int64s) -> Spans:
        return Spans(kind=kind[rows], start=self.start[rows], end=self.end[rows], keys=self.keys[rows])

    def add(self, parts: Parts) -> Int64s:
        """Begin a collective with each of these parts; gives their numbers."""
        begun = np.arange(len(self), len(self) + len(parts))
        for name in ("group", "name", "start", "end", "keys"):
            setattr(self, name, np.concatenate((getattr(self, name), getattr(parts, name))))
        return begun

    def join(self, rows: Int64s, parts: Parts) -> None:
        """Add to each collective one more part."""
        self.start[rows] = np.maximum(self.start[rows], parts.start)
        self.end[rows] = np.minimum(self.end[rows], parts.end)
        self.keys[rows] = np.where(self.keys[rows] == UNKNOWN, parts.keys, self.keys[rows])


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinedParts:
    """Parts on the common clock, the number of each one's collective, and each collective's group."""

    parts: Parts
    collective: Int64s
    group: Int64s


def join_parts(parts: Parts, clock: CommonClock) -> JoinedParts:
    """Put together what is one collective. A part that fits none is a collective by itself.

    Rank by rank, each rank's parts join the collectives of the ranks before it, or begin others: so every part overlaps
    the time that all others of its collective share. First come kernels whose group is known, then the rest, which may
    join any collective of their name that lacks their rank. Ranks that fit with no other are left by themselves.
    """
    parts = parts.shifted(clock.offset_ns)
    none = np.zeros(0, dtype=np.int64)
    found = _Collectives(group=none, name=none, start=none, end=none, keys=np.zeros((0, len(KEYS)), dtype=np.int64))
    collective = np.full(len(parts), -1, dtype=np.int64)
    takes_part = np.zeros((len(parts.groups), int(parts.rank.max(initial=-1)) + 1), dtype=np.bool_)
    for number, group in enumerate(parts.groups):
        takes_part[number, [place for place in group.traced if place < takes_part.shape[1]]] = True
    places = [place for place in np.unique(parts.rank).tolist() if place not in clock.misfits]
    for has_group in (True, False):
        for place in places:
            mine = parts.rank == place
            has_part = np.zeros(len(found), dtype=np.bool_)
            has_part[collective[mine & (collective >= 0)]] = True
            open_rows = np.flatnonzero(~has_part & takes_part[found.group, place])
            rows = np.flatnonzero(mine & (parts.has_group == has_group))
            collective[rows] = _join_rank(found, open_rows, parts.take(rows), clock.slack_ns, by_group=has_group)
    alone = np.flatnonzero(collective < 0)
    collective[alone] = found.add(parts.take(alone))
    return JoinedParts(parts=parts, collective=collective, group=found.group)


def _join_rank(found: _Collectives, open_rows: Int64s, mine: Parts, slack_ns: int, *, by_group: bool) -> Int64s:
    """The collective of each part of one rank, among those of `open_rows` or begun anew."""
    num_groups = len(mine.groups) if by_group else 0
    kind = found.name * num_groups + found.group if by_group else found.name
    spans = Spans(kind=mine.kind if by_group else mine.name, start=mine.start, end=mine.end, keys=mine.keys)
    rows, joining = pair_up(found.spans(open_rows, kind), spans, slack_ns=slack_ns, in_queue=mine.on_host)
    collective = np.full(len(mine), -1, dtype=np.int64)
    collective[joining] = open_rows[rows]
    found.join(open_rows[rows], mine.take(joining))
    rest = np.flatnonzero(collective < 0)
    collective[rest] = found.add(mine.take(rest))
    return collective
