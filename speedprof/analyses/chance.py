"""Could chance alone have the others wait for one rank as they do?"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from speedprof.analyses.common_time import CommonTime
from speedprof.analyses.matching import CollectiveMatch
from speedprof.stats import chance_of_count, chance_of_sum
from speedprof.trace.intervals import Int64s
from speedprof.trace.schema import to_numpy

# What chance is judged by: the waiting of traced steps, of blocks of collectives, or who came last in each collective.
ChanceUnit = Literal["step", "block", "collective"]

# A rank that only chance has in so few of all captures stands out.
MAX_CHANCE = 0.05
# Units of which even a rank that is waited for in all of them has a chance above this are too few.
_MOST_FOR_UNITS = MAX_CHANCE / 10
NUM_BLOCKS = 8
# With fewer collectives than this a block would hold but one: then it is counted who came last how often.
MIN_FOR_BLOCKS = 2 * NUM_BLOCKS


@dataclass(frozen=True, slots=True, kw_only=True)
class Chance:
    """How likely chance alone makes any rank stand out as far as one does, by `num_units` units of one kind."""

    p_value: float
    num_units: int
    unit: ChanceUnit


def judge_by_chance(
    waiting: pl.DataFrame, match: CollectiveMatch, common: CommonTime, *, among: Collection[int], rank: int
) -> Chance:
    """The chance that a rank is waited for as much as this one is though all that it is `among` are alike.

    If they are, each rank of a collective can expect to cause one part in k of the waiting in it, with k ranks. What
    each causes beyond that is summed over each step. In every step any rank could as well have been any other:

        ns beyond    step 1   step 2   step 3   step 4    sum
        rank 0          -20      +40      -10      +30    +40      a draw of one from each step often comes as high
        rank 1          +60      +60      +50      +40   +210      no other draw does: 1 in 4 to the power of 4
        rank 2, 3       ...

    So the chance is how often such a draw among the ranks that meet this one in collectives sums to as much: a
    permutation test. It needs no distribution of the waiting, and one long wait in one step is no evidence. It is
    multiplied by the number of ranks (Bonferroni), among which the one that stands out most is chosen. Ranks that are
    known to be late are left out of those to judge the others by, and so is the waiting for them.

    The steps are those that all ranks captured. Where they are too few for any rank to stand out clearly (fewer than 9
    for 2 ranks, 5 for 4, 4 for 8), the collectives with exposed waiting, in order of time, are cut into 8 blocks
    instead; with fewer than 16 of these it counts how often the rank came last in them, against the binomial
    distribution. Both take what happens in one collective for independent of the next.
    """
    in_question = pl.col("rank").is_in(sorted(among))
    waited = waiting.filter(pl.col("last_rank").is_in(sorted(among)) & (pl.col("ns") > 0))
    table = waited.group_by("collective", "window", "last_rank").agg(pl.col("ns").sum()).sort("collective", "window")
    parts = match.instances.filter(in_question).join(table.select("collective").unique(), on="collective")
    unit, unit_of, num_units = _divide(table, common, len(among))
    if unit == "collective":
        joined, last, ratio = _count_last(parts, rank)
        chance, num_units = chance_of_count(last, size=joined, ratio=ratio), joined
    else:
        peers = _find_peers(parts, rank)
        beyond = _waiting_beyond(table, parts, peers, unit_of, num_units)
        chance = chance_of_sum(beyond, least=float(beyond[:, peers.index(rank)].sum()))
    return Chance(p_value=min(chance * len(among), 1.0), num_units=num_units, unit=unit)


def _divide(table: pl.DataFrame, common: CommonTime, num_ranks: int) -> tuple[ChanceUnit, Int64s, int]:
    """The kind of unit, the unit of each row of the table, and how many there are."""
    if float(num_ranks) ** (1 - len(common.steps)) <= _MOST_FOR_UNITS:
        return "step", to_numpy(table["window"]), common.num_windows
    numbers, place = np.unique(to_numpy(table["collective"]), return_inverse=True)
    if len(numbers) < MIN_FOR_BLOCKS:
        return "collective", place.astype(np.int64), len(numbers)
    return "block", place * NUM_BLOCKS // len(numbers), NUM_BLOCKS


def _find_peers(parts: pl.DataFrame, rank: int) -> list[int]:
    """The ranks with a part in any of the collectives that this one has a part in, itself among them, in order."""
    joined = parts.filter(pl.col("rank") == rank).select("collective")
    return sorted({rank, *parts.join(joined, on="collective")["rank"].to_list()})


def _waiting_beyond(
    table: pl.DataFrame, parts: pl.DataFrame, ranks: Sequence[int], unit_of: Int64s, num_units: int
) -> npt.NDArray[np.float64]:
    """By unit and rank, the waiting in ns that the rank causes beyond what it can expect to."""
    beyond = np.zeros((num_units, len(ranks)))
    expected = (
        table.with_columns(pl.Series("unit", unit_of, dtype=pl.Int64))
        .join(parts.select("collective", "rank"), on="collective")
        .with_columns(pl.len().over("collective", "window").alias("size"))
        .filter(pl.col("rank").is_in(list(ranks)))
    )
    is_last = (expected["rank"] == expected["last_rank"]).to_numpy()
    at = to_numpy(expected["unit"]), np.searchsorted(np.array(ranks), to_numpy(expected["rank"]))
    np.add.at(beyond, at, to_numpy(expected["ns"]) * (is_last - 1 / expected["size"].to_numpy()))
    return beyond


def _count_last(parts: pl.DataFrame, rank: int) -> tuple[int, int, float]:
    """Of the collectives with waiting, how many the rank has a part in and came last in, and the mean chance of that.

    With a mean chance, the binomial distribution tells a greater chance than the true one: Hoeffding, "On the
    distribution of the number of successes in independent trials", Annals of Mathematical Statistics 27 (1956).
    """
    mine = parts.with_columns(pl.len().over("collective").alias("size")).filter(pl.col("rank") == rank)
    ratio = float(np.mean(1 / mine["size"].to_numpy())) if len(mine) else 1.0
    return len(mine), int((mine["last_rank"] == rank).sum()), ratio
