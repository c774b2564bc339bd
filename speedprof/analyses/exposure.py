"""Is exposed communication waiting or transfer, and who is waited for, and what does that rank do meanwhile?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from speedprof.analyses.activity import ACTIVITIES, measure_activity
from speedprof.analyses.contention import estimate_contention
from speedprof.analyses.declared import collective_name
from speedprof.analyses.exposed_parts import ExposedParts, cut_exposed
from speedprof.analyses.idle_gaps import GapCause
from speedprof.analyses.matching import CollectiveMatch
from speedprof.analyses.timeline import RankTimeline
from speedprof.trace.intervals import Int64s, covered_before
from speedprof.trace.schema import to_numpy


@dataclass(frozen=True, slots=True, kw_only=True)
class ExposedSplit:
    """Exposed communication cut without remainder, in ns: before the last rank has begun the collective (wait), after
    that (transfer), and where the other ranks' parts are not known (unsplit)."""

    wait_ns: int
    transfer_ns: int
    unsplit_ns: int

    @property
    def exposed_ns(self) -> int:
        return self.wait_ns + self.transfer_ns + self.unsplit_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """The exposed time that a rank waits for one other rank, and what that rank did in that time, in ns.

    `ns` is the sum of `compute_ns`, `communication_ns` (other collectives), `copy_ns`, `idle_ns` and `outside_ns`:
    time before that rank's capture began, of which nothing is known. `idle_ns` is the sum of `idle_by_cause`, which is
    empty on a host timeline. `longest_start_ns` and `longest_end_ns`, on the clock of the rank that waits, show the
    longest exposed stretch of it, and `longest_step` the step whose window it begins in.
    """

    rank: int
    ns: int
    compute_ns: int
    communication_ns: int
    copy_ns: int
    idle_ns: int
    idle_by_cause: Mapping[GapCause, int]
    longest_start_ns: int
    longest_end_ns: int
    longest_step: int | None
    outside_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveTime:
    """Collectives of one kind on one rank, by name, stage and group, dtype and sizes: those of the traced steps.

    They are those that a traced step launched, or that began in its window where the launch is not known; all where
    the trace has no steps. `time_ns` is the union of their time, `hidden_ns` the part with compute beside it, and
    `split` cuts the rest. None stands for what the file does not say. `longest_start_ns` and `longest_end_ns`, on the
    rank's own clock, show the one most exposed, and `longest_step` the step that it counts for.
    """

    name: str
    stage: str | None
    group: str | None
    dtype: str | None
    in_elements: int | None
    out_elements: int | None
    count: int
    time_ns: int
    hidden_ns: int
    split: ExposedSplit
    longest_start_ns: int
    longest_end_ns: int
    longest_step: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RankExposure:
    """The exposed communication of one rank.

    `split` covers the whole capture and sums to the partition's exposed communication; `steps` has the split of each
    traced step's window, in their order; `waits` (most first), `stages` (by stage and group) and `collectives`
    (most exposed first) cover the traced steps, or the whole capture where there are none. `contention_ns` is an
    estimate inside transfer: by how much the exposed transfers took longer than the fastest equal collective seen on
    any rank. None where no collective has its equal; `contention_basis` says what it rests on. `capture_waits` and
    `capture_contention_ns` are the same over the whole capture: the waits sum to the split's.
    """

    rank: int
    split: ExposedSplit
    steps: tuple[ExposedSplit, ...]
    waits: tuple[Wait, ...]
    stages: Mapping[tuple[str, str], ExposedSplit]
    collectives: tuple[CollectiveTime, ...]
    contention_ns: int | None
    contention_basis: str | None
    capture_waits: tuple[Wait, ...] = ()
    capture_contention_ns: int | None = None


def measure_exposure(ranks: Sequence[RankTimeline], match: CollectiveMatch) -> tuple[RankExposure, ...]:
    """The exposed communication of each rank, in the order of `ranks`; all of it unsplit where nothing was matched.

        rank 0       compute   ####                     an all-gather: rank 0 begins it at 3, rank 1 at 8
                     gather       ###############
        rank 1       compute   ######  ##
                     gather            ##########
        rank 0 is              CCCCWWWWTTTTTTTTTT       C compute, W wait for rank 1, T transfer

    In the wait, rank 1 first computes and then idles: that is what `waits` says of it. Where some ranks' parts of a
    collective are not known, it certainly waits until the last known rank begins it, and is unsplit from then on.
    Where several run at once an instant is transfer if any is in transfer, else wait, else unsplit, and waiting on
    several belongs to the one that began first. Ranks are compared on the common clock of `match`.
    """
    parts = [cut_exposed(rank, match) for rank in ranks]
    waits = _measure_waits(parts)
    contention = estimate_contention(parts, match)
    of_capture = [part.over_capture() for part in parts]
    capture_waits, capture_contention = _measure_waits(of_capture), estimate_contention(of_capture, match)
    found = []
    for part, estimate, of_all in zip(parts, contention, capture_contention, strict=True):
        rank, rows = part.rank, _counted_rows(part)
        windows = [(rank.start_ns, rank.end_ns), *((step.start_ns, step.end_ns) for step in rank.steps)]
        whole, *steps = _splits(part.split(*np.array(windows, dtype=np.int64).T))
        found.append(
            RankExposure(
                rank=rank.rank,
                split=whole,
                steps=tuple(steps),
                waits=waits[rank.rank],
                stages=_split_stages(part, rows),
                collectives=_measure_collectives(part, rows),
                contention_ns=estimate.ns if estimate else None,
                contention_basis=estimate.basis if estimate else None,
                capture_waits=capture_waits[rank.rank],
                capture_contention_ns=of_all.ns if of_all else None,
            )
        )
    return tuple(found)


def _splits(rows: Int64s) -> list[ExposedSplit]:
    return [ExposedSplit(wait_ns=wait, transfer_ns=transfer, unsplit_ns=rest) for wait, transfer, rest in rows.tolist()]


def _measure_waits(parts: Sequence[ExposedParts]) -> dict[int, tuple[Wait, ...]]:
    """By rank, what it waits for each other one over the counted time, most first."""
    spans = pl.concat([_waiting_spans(part) for part in parts]) if parts else pl.DataFrame()
    by_rank = {part.rank.rank: part for part in parts}
    waits: dict[int, list[Wait]] = {rank: [] for rank in by_rank}
    for part in parts:
        # What the late rank did is looked up once for all that wait for it: its own timeline is what is long.
        mine = spans.filter(pl.col("last_rank") == part.rank.rank)
        did = measure_activity(part.rank, to_numpy(mine["start_ns"]), to_numpy(mine["end_ns"]))
        longest = pl.col("start_ns", "end_ns").get((pl.col("end_ns") - pl.col("start_ns")).arg_max())
        totals = (
            pl.concat([mine.select("rank", "start_ns", "end_ns"), did], how="horizontal")
            .group_by("rank", maintain_order=True)
            .agg(pl.col(did.columns).sum(), longest.name.prefix("longest_"))
        )
        for row in totals.iter_rows(named=True):
            waits[row["rank"]].append(_to_wait(by_rank[row["rank"]], part.rank.rank, row))
    return {rank: tuple(sorted(each, key=lambda wait: (-wait.ns, wait.rank))) for rank, each in waits.items()}


def _waiting_spans(part: ExposedParts) -> pl.DataFrame:
    pieces = part.waits()
    columns = {
        "rank": np.full(len(pieces.row), part.rank.rank),
        "last_rank": part.last_rank[pieces.row],
        "start_ns": pieces.start,
        "end_ns": pieces.end,
    }
    return pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.Int64()))


def _to_wait(waiting: ExposedParts, last_rank: int, did: Mapping[str, int]) -> Wait:
    start_ns, end_ns = did["longest_start_ns"], did["longest_end_ns"]
    windows = (step.step for step in waiting.rank.steps if step.start_ns <= start_ns < step.end_ns)
    return Wait(
        rank=last_rank,
        ns=sum(did[activity] for activity in ACTIVITIES),
        compute_ns=did["compute_ns"],
        communication_ns=did["communication_ns"],
        copy_ns=did["copy_ns"],
        idle_ns=did["idle_ns"],
        idle_by_cause={cause: did[cause.value] for cause in GapCause if did.get(cause.value)},
        longest_start_ns=start_ns - waiting.offset_ns,
        longest_end_ns=end_ns - waiting.offset_ns,
        longest_step=next(windows, None),
        outside_ns=did["outside_ns"],
    )


_KIND = ("name", "stage", "group", "dtype", "in_elements", "out_elements")


def _counted_rows(part: ExposedParts) -> pl.DataFrame:
    """The collectives that count, with their `row`, what makes them of one kind (`_KIND`), and their `step`."""
    rank = part.rank
    borders = np.array([(step.start_ns, step.end_ns) for step in rank.steps], dtype=np.int64).reshape(-1, 2)
    at = np.searchsorted(borders[:, 0], part.start, side="right") - 1
    inside = (at >= 0) & (part.start < np.append(borders[:, 1], 0)[at])
    numbers = [step.step for step in rank.steps]
    window = pl.Series("window", [*numbers, None], dtype=pl.Int64).gather(np.where(inside, at, len(numbers)))
    not_known = pl.col("launch_start_ns").is_null() & pl.col("host_step").is_null()
    has_steps = bool(numbers) or rank.collectives["host_step"].null_count() < len(rank.collectives)
    rows = rank.collectives.select(
        pl.int_range(pl.len(), dtype=pl.Int64).alias("row"),
        collective_name().alias("name"),
        pl.col("stage", "group", "dtype").cast(pl.String),
        "in_elements",
        "out_elements",
        pl.when(not_known).then(window).otherwise(pl.col("host_step")).alias("step"),
    )
    return rows.filter(pl.col("step").is_in(numbers)) if has_steps else rows


def _split_stages(part: ExposedParts, rows: pl.DataFrame) -> dict[tuple[str, str], ExposedSplit]:
    groups = rows.filter(pl.col("stage").is_not_null()).group_by("stage", "group", maintain_order=True).agg("row")
    _, split = part.split_groups(*_flatten(groups["row"]), len(groups))
    return dict(zip(groups.select("stage", "group").iter_rows(), _splits(split), strict=True))


def _measure_collectives(part: ExposedParts, rows: pl.DataFrame) -> tuple[CollectiveTime, ...]:
    exposed = covered_before(part.exposed, part.end) - covered_before(part.exposed, part.start)
    groups = (
        rows.with_columns(pl.Series("exposed_ns", exposed[to_numpy(rows["row"])], dtype=pl.Int64))
        .group_by(_KIND, maintain_order=True)
        .agg(
            pl.len().alias("count"),
            "row",
            pl.col("row", "step").get(pl.col("exposed_ns").arg_max()).name.prefix("longest_"),
        )
    )
    time, split = part.split_groups(*_flatten(groups["row"]), len(groups))
    found = [
        CollectiveTime(
            **{name: group[name] for name in (*_KIND, "count", "longest_step")},
            time_ns=time_ns,
            hidden_ns=time_ns - cut.exposed_ns,
            split=cut,
            longest_start_ns=int(part.start[group["longest_row"]]) - part.offset_ns,
            longest_end_ns=int(part.end[group["longest_row"]]) - part.offset_ns,
        )
        for group, time_ns, cut in zip(
            groups.drop("row").iter_rows(named=True), time.tolist(), _splits(split), strict=True
        )
    ]
    return tuple(sorted(found, key=lambda one: (-one.split.exposed_ns, -one.time_ns)))


def _flatten(rows: pl.Series) -> tuple[Int64s, Int64s]:
    """The rows of all groups, and the number of the group of each."""
    if rows.is_empty():
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    return to_numpy(rows.explode()), np.repeat(np.arange(len(rows)), to_numpy(rows.list.len()))
