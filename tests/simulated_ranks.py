"""Ranks of a made-up training run whose collectives are known to belong together, for testing how they are matched.

Each rank comes to each collective at a time of its own; all end it together, after the last one has come and the
transfer is done, but for some microseconds. A stream carries one collective at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import polars as pl
from builders_ranks import NO_GAPS

from speedprof.analyses.timeline import RankTimeline
from speedprof.trace.intervals import Intervals
from speedprof.trace.model import Timeline
from speedprof.trace.occupied import Occupied
from speedprof.trace.schema import COLLECTIVES

US = 1_000
MS = 1_000_000
START_NS = 1_795_000_000_000_000_000
NAMES = ("all_reduce", "reduce_scatter", "all_gather")


@dataclass(frozen=True, kw_only=True)
class Part:
    """One rank's part of the collective whose number is `truth`; what is None the file does not say."""

    truth: int
    name: str
    start_ns: int
    end_ns: int
    stream: int | None = 23
    said: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Run:
    """The parts of each rank in order of their start, by rank, and the run's number of ranks."""

    parts: Mapping[int, Sequence[Part]]
    world_size: int
    on_host: bool = False

    def without(self, rank: int, truths: set[int]) -> Run:
        """The same where a rank's trace lacks some collectives."""
        kept = [part for part in self.parts[rank] if part.truth not in truths]
        return replace(self, parts={**self.parts, rank: kept})

    def timelines(self, offset_ns: Mapping[int, int] | None = None) -> list[RankTimeline]:
        """The timeline of each rank, whose clock is behind by its offset: it is to be added to the rank's times."""
        offsets = offset_ns or {}
        return [
            make_timeline_of(rank, parts, self.world_size, on_host=self.on_host).shifted(-offsets.get(rank, 0))
            for rank, parts in self.parts.items()
        ]

    def truth_of(self, instances: pl.DataFrame) -> dict[int, set[tuple[int, int]]]:
        """By the number of each instance the rank and the true collective of each of its parts."""
        found: dict[int, set[tuple[int, int]]] = {}
        for number, rank, row in instances.select("collective", "rank", "row").iter_rows():
            found.setdefault(number, set()).add((rank, self.parts[rank][row].truth))
        return found

    def ranks_of(self) -> dict[int, set[int]]:
        """By true collective the ranks that have a part of it."""
        ranks: dict[int, set[int]] = {}
        for rank, parts in self.parts.items():
            for part in parts:
                ranks.setdefault(part.truth, set()).add(rank)
        return ranks


def make_timeline_of(
    rank: int, parts: Sequence[Part], world_size: int | None, *, on_host: bool = False
) -> RankTimeline:
    """A timeline that holds nothing but these collectives, sorted by start, and ends with the last of them."""
    rows = [{"name": part.name, "start_ns": part.start_ns, "end_ns": part.end_ns, **part.said} for part in parts]
    streams = [part.stream for part in parts]
    table = pl.DataFrame(rows, schema={name: column.dtype for name, column in COLLECTIVES.items()})
    none = np.zeros(0, dtype=np.int64)
    nothing = Intervals(start=none, end=none)
    return RankTimeline(
        rank=rank,
        world_size=world_size,
        timeline=Timeline.HOST if on_host else Timeline.DEVICE,
        is_damaged=False,
        start_ns=min((part.start_ns for part in parts), default=0),
        end_ns=max((part.end_ns for part in parts), default=0),
        steps=(),
        occupied=Occupied(compute=nothing, communication=nothing, copy=nothing),
        collectives=table.with_columns(stream=pl.Series(streams, dtype=pl.Int64)),
        gaps=NO_GAPS.table,
        kernels=pl.DataFrame(),
    )


def simulate(
    seed: int,
    *,
    num_ranks: int = 4,
    num_steps: int = 6,
    num_in_step: int = 8,
    skew_us: int = 2_000,
    ends_us: int = 20,
    least_transfer_us: int = 10,
    says: bool = False,
) -> Run:
    """Every rank takes part in every collective. The steps repeat one pattern, each a little longer or shorter.

    A rank comes up to `skew_us` late to a collective, and ends it up to `ends_us` after the first one to. `says`: the
    file holds the element type and the sizes.
    """
    random = np.random.default_rng(seed)
    pattern = [
        (
            NAMES[random.integers(len(NAMES))],
            int(random.integers(least_transfer_us, 400)) * US,
            int(random.integers(0, 3_000)) * US,
        )
        for _ in range(num_in_step)
    ]
    free = np.full(num_ranks, START_NS)
    parts: dict[int, list[Part]] = {rank: [] for rank in range(num_ranks)}
    for truth in range(num_steps * num_in_step):
        name, transfer_ns, compute_ns = pattern[truth % num_in_step]
        late = random.integers(0, skew_us * US + 1, num_ranks) * (random.random(num_ranks) < 0.5)
        start = free + compute_ns + late + 2 * US
        last = int(start.max())
        end = last + transfer_ns + random.integers(0, ends_us * US + 1, num_ranks)
        said = (
            {"dtype": "BFloat16", "in_elements": transfer_ns // US, "out_elements": transfer_ns // US} if says else {}
        )
        for rank in range(num_ranks):
            parts[rank].append(
                Part(truth=truth, name=name, start_ns=int(start[rank]), end_ns=int(end[rank]), said=said)
            )
        free = end
    return Run(parts=parts, world_size=num_ranks)


def simulate_groups(
    seed: int, sets: Sequence[Sequence[int]], *, num_collectives: int = 30, skew_us: int, ends_us: int
) -> Run:
    """Groups side by side, of which no file says which ranks they have: each waits for its own last rank alone.

    Ranks come up to `skew_us` late, transfers last 300 us, and a collective begins each millisecond.
    """
    random = np.random.default_rng(seed)
    num_ranks = sum(map(len, sets))
    parts: dict[int, list[Part]] = {rank: [] for rank in range(num_ranks)}
    for number in range(num_collectives):
        begin = START_NS + number * MS + random.integers(0, skew_us * US + 1, num_ranks)
        for place, ranks in enumerate(sets):
            last = begin[list(ranks)].max()
            for rank in ranks:
                end = int(last + 300 * US + random.integers(0, ends_us * US + 1))
                truth = number * len(sets) + place
                parts[rank].append(Part(truth=truth, name="all_reduce", start_ns=int(begin[rank]), end_ns=end))
    return Run(parts=parts, world_size=num_ranks)


def simulate_queues(seed: int, *, num_ranks: int = 3, num_collectives: int = 60, num_threads: int = 2) -> Run:
    """Ranks without a device: on each, threads take collectives from one queue, first in, first out.

    Several are under way at once, and the operating system lets each rank end them up to a millisecond apart.
    """
    random = np.random.default_rng(seed)
    free = np.full((num_ranks, num_threads), START_NS)
    begun = start = np.full(num_ranks, START_NS)
    parts: dict[int, list[Part]] = {rank: [] for rank in range(num_ranks)}
    for truth in range(num_collectives):
        begun = begun + random.integers(1, 3_000, num_ranks) * US * (random.random() < 0.7) + US
        begun = np.maximum(begun, begun.max() - 5 * MS)
        thread = free.argmin(axis=1)
        start = np.maximum(np.maximum(begun, free.min(axis=1) + 5 * US), start + US)
        end = start.max() + random.integers(100, 5_000) * US + random.integers(0, 1_000, num_ranks) * US
        free[np.arange(num_ranks), thread] = end
        name = NAMES[truth // 8 % len(NAMES)]
        for rank in range(num_ranks):
            parts[rank].append(
                Part(truth=truth, name=name, start_ns=int(start[rank]), end_ns=int(end[rank]), stream=None)
            )
    return Run(parts=parts, world_size=num_ranks, on_host=True)
