"""The cut of exposed communication against an instant-by-instant count over tiny times."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from hand_match import match_by_hand
from hypothesis import given, settings
from hypothesis import strategies as st

from speedprof.analyses.breakdown import Partition, Segment
from speedprof.analyses.exposure import ExposedSplit, RankExposure, measure_exposure
from speedprof.analyses.grouped_intervals import GroupLine
from speedprof.analyses.idle_gaps import GapCause
from speedprof.analyses.matching import CollectiveMatch
from speedprof.analyses.timeline import RankTimeline
from speedprof.trace.intervals import join, subtract, union
from speedprof.trace.model import Timeline
from speedprof.trace.occupied import Occupied
from speedprof.trace.schema import COLLECTIVES

END = 60
NOT_MEASURED = Partition(compute_ns=0, exposed_communication_ns=0, exposed_copy_ns=0, idle_ns=0)
CAUSES = (GapCause.LATE_LAUNCH, GapCause.SYNC)


@dataclass(frozen=True)
class Drawn:
    """One rank as it was drawn: intervals as pairs, in whole ns from 0 to END."""

    compute: list[tuple[int, int]]
    copies: list[tuple[int, int]]
    parts: list[tuple[int, int]]
    window: tuple[int, int]
    border: int | None


spans = st.tuples(st.integers(0, END), st.integers(0, END)).map(lambda pair: (min(pair), max(pair)))
short = st.tuples(st.integers(0, END), st.integers(0, 15)).map(lambda span: (span[0], min(span[0] + span[1], END)))


@st.composite
def runs(draw: st.DrawFn) -> tuple[list[Drawn], list[dict[int, int]], set[int], dict[int, int]]:
    """Ranks, their collectives matched by chance, which of these are incomplete, and what each clock is off."""
    ranks = []
    for _ in range(draw(st.sampled_from([3, 2, 1]))):
        parts = sorted(draw(st.lists(spans, min_size=draw(st.sampled_from([3, 0])), max_size=6)))
        compute, copies = draw(st.lists(short, max_size=4)), draw(st.lists(short, max_size=2))
        every = [*parts, *compute, *copies]
        window = (min((one[0] for one in every), default=0), max((one[1] for one in every), default=0))
        ranks.append(
            Drawn(
                compute=compute,
                copies=copies,
                parts=parts,
                window=window,
                border=draw(st.none() | st.integers(*window)),
            )
        )
    free = {rank: list(range(len(one.parts))) for rank, one in enumerate(ranks)}
    collectives = []
    for _ in range(draw(st.sampled_from([5, 3, 0]))):
        members = [rank for rank in free if free[rank] and draw(st.sampled_from([True, True, False]))]
        if len(members) > 1:
            collectives.append({rank: free[rank].pop(draw(st.integers(0, len(free[rank]) - 1))) for rank in members})
    incomplete = {number for number in range(len(collectives)) if draw(st.sampled_from([False, False, True]))}
    return ranks, collectives, incomplete, {rank: draw(st.sampled_from([0, -1000, 7])) for rank in free}


def to_timeline(number: int, drawn: Drawn, behind: int) -> RankTimeline:
    """The rank on a clock that is `behind` that of the drawing; with a border, a step runs from it to the end."""

    def make(pairs: list[tuple[int, int]]):
        pairs = [(start - behind, end - behind) for start, end in pairs]
        return union(*np.array(pairs, dtype=np.int64).reshape(-1, 2).T)

    compute, communication, copy = make(drawn.compute), make(drawn.parts), make(drawn.copies)
    idle = subtract(make([drawn.window]), join(compute, communication, copy))
    start, end = (time - behind for time in drawn.window)
    step = Segment(step=1, kind="train", start_ns=(drawn.border or 0) - behind, end_ns=end, partition=NOT_MEASURED)
    times = {
        "start_ns": [one[0] - behind for one in drawn.parts],
        "end_ns": [one[1] - behind for one in drawn.parts],
        "name": ["all_gather"] * len(drawn.parts),
        "launch_start_ns": [0] * len(drawn.parts),
        "host_step": [None if drawn.border is None else 1] * len(drawn.parts),
    }
    return RankTimeline(
        rank=number,
        world_size=None,
        timeline=Timeline.DEVICE,
        is_damaged=False,
        start_ns=start,
        end_ns=end,
        steps=() if drawn.border is None else (step,),
        occupied=Occupied(compute=compute, communication=communication, copy=copy),
        collectives=pl.DataFrame(
            {name: times.get(name, [None] * len(drawn.parts)) for name in COLLECTIVES},
            schema={name: column.dtype for name, column in COLLECTIVES.items()},
        ),
        gaps=pl.DataFrame(
            {
                "start_ns": idle.start,
                "end_ns": idle.end,
                "cause": [CAUSES[at % 2].value for at in range(len(idle))],
            },
            schema={"start_ns": pl.Int64, "end_ns": pl.Int64, "cause": pl.String},
        ),
        kernels=pl.DataFrame(),
    )


def holds(pairs: list[tuple[int, int]], time: int) -> bool:
    return any(start <= time < end for start, end in pairs)


def what_at(drawn: Drawn, time: int) -> str:
    """What the rank does in the instant from `time` to the next."""
    if not holds([drawn.window], time):
        return "outside"
    layers = {"compute": drawn.compute, "communication": drawn.parts, "copy": drawn.copies}
    return next((name for name, pairs in layers.items() if holds(pairs, time)), "idle")


def wait_at(drawn: Drawn, match: CollectiveMatch, rank: int, time: int) -> tuple[str, int | None] | None:
    """What an exposed instant is and who is waited for; None where it is not exposed."""
    if not holds(drawn.parts, time) or holds(drawn.compute, time):
        return None
    rows = match.instances.filter((pl.col("rank") == rank) & (pl.col("start_ns") <= time) & (pl.col("end_ns") > time))
    begun = rows.filter(pl.col("last_start_ns") <= time)
    waiting = rows.filter(pl.col("last_start_ns") > time).sort("start_ns", "row")
    if begun["is_complete"].any():
        return "transfer", None
    return ("wait", waiting["last_rank"][0]) if len(waiting) else ("unsplit", None)


def count(cut: list[str]) -> ExposedSplit:
    return ExposedSplit(wait_ns=cut.count("wait"), transfer_ns=cut.count("transfer"), unsplit_ns=cut.count("unsplit"))


def check_waits(ranks: list[Drawn], rank: RankExposure, waited: list[tuple[int, int]], behind: int) -> None:
    """`waited` are the counted instants of waiting, each with the rank that is waited for."""
    assert sum(wait.ns for wait in rank.waits) == len(waited)
    assert [wait.ns for wait in rank.waits] == sorted((wait.ns for wait in rank.waits), reverse=True)
    for wait in rank.waits:
        did = [what_at(ranks[wait.rank], time) for time, late in waited if late == wait.rank]
        found = {
            "compute": wait.compute_ns,
            "communication": wait.communication_ns,
            "copy": wait.copy_ns,
            "idle": wait.idle_ns,
            "outside": wait.outside_ns,
        }
        assert found == {name: did.count(name) for name in found}
        assert sum(found.values()) == wait.ns
        assert sum(wait.idle_by_cause.values()) == wait.idle_ns
        # The longest stretch waits for that rank from its start to its end, on the rank's own clock.
        longest = range(wait.longest_start_ns + behind, wait.longest_end_ns + behind)
        assert len(longest) > 0
        assert {(time, wait.rank) for time in longest} <= set(waited)


@settings(deadline=None)
@given(runs())
def test_every_exposed_instant_is_counted_once_and_as_the_rules_say(run):
    ranks, collectives, incomplete, behind = run
    timelines = [to_timeline(number, drawn, behind[number]) for number, drawn in enumerate(ranks)]
    match = match_by_hand(timelines, collectives, incomplete=incomplete, offsets=behind)
    for number, (drawn, found) in enumerate(zip(ranks, measure_exposure(timelines, match), strict=True)):
        cut = {time: at for time in range(END) if (at := wait_at(drawn, match, number, time))}
        assert found.split == count([kind for kind, _ in cut.values()])
        since = drawn.window[0] if drawn.border is None else drawn.border
        counted = {time: at for time, at in cut.items() if time >= since}
        if drawn.border is not None:
            assert found.steps == (count([kind for kind, _ in counted.values()]),)
        check_waits(
            ranks, found, [(time, late) for time, (_, late) in counted.items() if late is not None], behind[number]
        )
        assert sum(one.split.exposed_ns for one in found.collectives) == found.split.exposed_ns


grouped = st.lists(st.tuples(st.integers(0, 2), spans), min_size=1, max_size=12)


@settings(deadline=None)
@given(grouped, grouped, st.lists(spans, max_size=4))
def test_one_sweep_over_all_groups_is_a_sweep_over_each(a, b, within):
    def columns(rows):
        return tuple(np.array(one, dtype=np.int64) for one in zip(*((g, s, e) for g, (s, e) in rows), strict=True))

    def of(rows, group):
        return union(*(np.array([pair[k] for g, pair in rows if g == group], dtype=np.int64) for k in (0, 1)))

    (group_a, *times_a), (group_b, *times_b) = columns(a), columns(b)
    line = GroupLine.through(3, *times_a, *times_b)
    laid = subtract(line.lay(group_a, *times_a), line.lay(group_b, *times_b))
    inside = union(*np.array(within, dtype=np.int64).reshape(-1, 2).T)
    each = [subtract(of(a, group), of(b, group)) for group in range(3)]
    assert line.lengths(laid).tolist() == [one.length for one in each]
    assert line.lengths(laid, inside).tolist() == [one.length - subtract(one, inside).length for one in each]
