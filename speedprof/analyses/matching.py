"""Which kernels on different ranks are one collective?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from speedprof.analyses.clocks import RankClock
from speedprof.analyses.timeline import RankTimeline


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveMatch:
    """The collectives of all ranks, put together.

    `instances` has a row for each rank's part of each collective that was found on two ranks or more, sorted by
    `collective` and `rank`: `collective` (its number, in order of time), `rank`, `row` (in that rank's table of
    collectives), `start_ns` and `end_ns` (on the common clock of `clocks`), `last_start_ns` (the latest start of its
    parts), `last_rank` (whose that is, the lowest of equals), and `is_complete` (every rank of its group has a part).

    `num_matched` counts the complete ones, of `num_matchable` that lie within the captures of all ranks of their group.
    `certainty` is the share of the matched ones that are borne out by time: all their parts overlap one another and
    carry the same name, size and element type where these are known; None where none matched.
    `refused_because` says in a sentence why nothing was matched; then `instances` is empty and `num_matched` 0.
    """

    instances: pl.DataFrame
    num_matched: int
    num_matchable: int
    certainty: float | None
    refused_because: str | None
    clocks: tuple[RankClock, ...]


def match_collectives(ranks: Sequence[RankTimeline]) -> CollectiveMatch:
    raise NotImplementedError
