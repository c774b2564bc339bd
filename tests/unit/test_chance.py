"""Whether chance alone could have the others wait for a rank, on tables of waiting made by hand."""

from collections.abc import Mapping, Sequence

import polars as pl
import pytest

from speedprof.analyses.chance import Chance, judge_by_chance
from speedprof.analyses.common_time import CommonTime
from speedprof.analyses.matching import CollectiveMatch


def judge(
    waits: Sequence[tuple[int, int]], *, among: Sequence[int], rank: int, num_steps: int, each: int = 1
) -> Chance:
    """`waits` says of each collective who came last and how long it was waited for; `each` of them make a step."""
    return judge_groups(
        [(tuple(among), *wait) for wait in waits], among=among, rank=rank, num_steps=num_steps, each=each
    )


def judge_groups(
    waits: Sequence[tuple[tuple[int, ...], int, int]], *, among: Sequence[int], rank: int, num_steps: int, each: int = 1
) -> Chance:
    rows = [(members, last, ns, at) for at, (members, last, ns) in enumerate(waits)]
    waiting = pl.DataFrame(
        [(last, at, at // each, ns) for _, last, ns, at in rows],
        schema=dict.fromkeys(("last_rank", "collective", "window", "ns"), pl.Int64()),
        orient="row",
    )
    instances = pl.DataFrame(
        [(at, member, last) for members, last, _, at in rows for member in members],
        schema=dict.fromkeys(("collective", "rank", "last_rank"), pl.Int64()),
        orient="row",
    )
    match = CollectiveMatch(
        instances=instances,
        num_matched=len(waits),
        num_matchable=len(waits),
        certainty=1.0,
        refused_because=None,
        clocks=(),
    )
    empty: Mapping[int, object] = {}
    common = CommonTime(
        steps=tuple(range(num_steps)),
        start=empty,  # type: ignore[arg-type]
        end=empty,  # type: ignore[arg-type]
        num_windows=max(num_steps, 1),
        step_ns=1000.0,
        per_step=1.0,
    )
    return judge_by_chance(waiting, match, common, among=among, rank=rank)


def test_a_rank_that_is_waited_for_in_every_step_stands_out() -> None:
    # One way in 4 to the power of 5 to draw it each time; any of 4 ranks could be it.
    found = judge([(2, 100)] * 5, among=range(4), rank=2, num_steps=5)
    assert (found.unit, found.num_units) == ("step", 5)
    assert found.p_value == pytest.approx(4**-4)


def test_one_long_wait_among_short_ones_does_not_stand_out() -> None:
    waits = [(0, 10), (1, 10), (2, 10_000), (3, 10), (1, 10), (0, 10)]
    # In one of 4 draws the long one is drawn, and any of 4 could be the one.
    assert judge(waits, among=range(4), rank=2, num_steps=6).p_value > 0.9


def test_short_waits_for_others_weigh_little() -> None:
    waits = [(2, 100)] * 5 + [(0, 1), (1, 1)]
    one, other = (judge(waits, among=range(4), rank=rank, num_steps=7).p_value for rank in (2, 0))
    assert one < 0.01
    assert other == 1


def test_steps_in_which_nobody_waits_say_nothing_for_any_rank() -> None:
    busy, quiet = [(2, 100)] * 5, [(0, 0)] * 5
    with_quiet = judge(busy + quiet, among=range(4), rank=2, num_steps=10)
    assert with_quiet.num_units == 10
    assert with_quiet.p_value == pytest.approx(4**-4)


def test_where_steps_are_too_few_blocks_of_collectives_are_judged() -> None:
    # Two collectives in each of 8 blocks.
    found = judge([(1, 100)] * 16, among=range(2), rank=1, num_steps=8, each=2)
    assert (found.unit, found.num_units) == ("block", 8)
    assert found.p_value == pytest.approx(2**-7)
    assert judge([(1, 100)] * 18, among=range(2), rank=1, num_steps=9, each=2).unit == "step"


def test_of_few_collectives_it_counts_who_came_last() -> None:
    # Last in 5 of 8 with a chance of an eighth each: 0.00123, for any of 8 ranks.
    waits = [(7, 10)] * 5 + [(0, 1_000)] * 2 + [(1, 1_000)]
    found = judge(waits, among=range(8), rank=7, num_steps=1, each=8)
    assert (found.unit, found.num_units) == ("collective", 8)
    assert found.p_value == pytest.approx(0.00984, abs=1e-5)


def test_ranks_known_to_be_late_are_left_out_with_the_waiting_for_them() -> None:
    waits = [(2, 900), (1, 100)] * 10
    alone = judge(waits, among=(0, 1, 2, 3), rank=1, num_steps=10, each=2).p_value
    among_the_rest = judge(waits, among=(0, 1, 3), rank=1, num_steps=10, each=2).p_value
    assert alone > 0.05
    assert among_the_rest == pytest.approx(3**-9)


def test_a_rank_is_compared_with_those_that_it_meets_in_collectives() -> None:
    # Two groups of two: the waiting in the other one, ten times as long, says nothing of this one.
    waits = [((0, 1), 1, 100), ((2, 3), 2, 1_000)] * 10
    found = judge_groups(waits, among=range(4), rank=1, num_steps=10, each=2)
    assert found.p_value == pytest.approx(4 * 2**-10)


def test_without_any_waiting_nobody_stands_out() -> None:
    assert judge([], among=range(4), rank=1, num_steps=5).p_value == 1
    assert judge([], among=range(4), rank=1, num_steps=0).p_value == 1
