"""Bringing ranks whose clocks differ onto one, by the ends of their collectives."""

from dataclasses import replace
from pathlib import Path

import pytest
from builders_ranks import timeline_of
from simulated_ranks import MS, START_NS, US, Part, Run, simulate

from speedprof.analyses.matching import match_collectives
from speedprof.trace.read_kineto import read_kineto

SPEEDRUN = Path(__file__).parents[3] / "shared" / "data" / "kineto" / "speedrun-8xH100"
needs_captures = pytest.mark.skipif(not SPEEDRUN.is_dir(), reason="the folder of real captures is not beside this one")

HOUR_NS = 3_600_000 * MS
# Ends of the collectives of three steps, in us; steps are 20, 23 and 19 ms long.
ENDS_US = [1_000, 6_000, 15_000, 21_000, 29_500, 35_200, 44_000, 49_000, 57_100]


def draw(ends_us, *, late_us=0, length_us=300, **said):
    """A rank's parts, each `length_us` long, that end where said and `late_us` later."""
    return [
        Part(
            truth=truth,
            name="all_gather" if truth % 3 else "reduce_scatter",
            start_ns=START_NS + (end - length_us) * US,
            end_ns=START_NS + (end + late_us) * US,
            said={name: values[truth] for name, values in said.items()},
        )
        for truth, end in enumerate(ends_us)
    ]


def clocks_of(found):
    assert found.refused_because is None
    return [(clock.rank, clock.offset_ns) for clock in found.clocks]


def match_two(first, second, behind_ns):
    """Match two ranks, the second of which shows times that are `behind_ns` too early."""
    run = Run(parts={0: first, 1: second}, world_size=2)
    found = match_collectives(run.timelines({1: behind_ns}))
    return run, found


@pytest.mark.parametrize("behind_ns", [3 * MS, -3 * MS, HOUR_NS, -HOUR_NS, -(START_NS - 5 * MS)])
def test_an_offset_is_found_exactly_where_ends_agree(behind_ns):
    run, found = match_two(draw(ENDS_US), draw(ENDS_US), behind_ns)
    assert clocks_of(found) == [(0, 0), (1, behind_ns)]
    assert (found.num_matched, found.num_matchable, found.certainty) == (9, 9, 1.0)
    assert found.instances["end_ns"].to_list() == [START_NS + end * US for end in ENDS_US for _ in range(2)]
    assert [clock.residual_ns for clock in found.clocks] == [0, 0]
    assert run.truth_of(found.instances) == {truth: {(0, truth), (1, truth)} for truth in range(9)}


def test_the_median_of_the_ends_counts_and_what_it_leaves_is_told():
    # Rank 1 ends 0, 10 or 20 us after rank 0.
    ends = [end + 10 * (at % 3) for at, end in enumerate(ENDS_US)]
    _, found = match_two(draw(ENDS_US), draw(ends), 3 * MS)
    assert clocks_of(found) == [(0, 0), (1, 3 * MS - 10 * US)]
    assert [clock.residual_ns for clock in found.clocks] == [10 * US, 10 * US]


@pytest.mark.parametrize("apart_us", [0, 4, 40, 90])
def test_clocks_that_differ_by_no_more_than_those_of_one_host_are_not_shifted(apart_us):
    _, found = match_two(draw(ENDS_US, length_us=800), draw(ENDS_US, length_us=800), apart_us * US)
    assert clocks_of(found) == [(0, 0), (1, 0)]
    assert found.num_matched == 9
    assert [clock.residual_ns for clock in found.clocks] == [apart_us * US] * 2


@pytest.mark.parametrize("apart_us", [40, 90])
def test_they_are_where_collectives_are_so_short_that_they_would_miss_each_other(apart_us):
    _, found = match_two(draw(ENDS_US, length_us=60), draw(ENDS_US, length_us=60), apart_us * US)
    assert clocks_of(found) == [(0, 0), (1, apart_us * US)]
    assert (found.num_matched, found.certainty) == (9, 1.0)


def test_an_offset_that_hides_in_long_collectives_is_found_too():
    # 3 ms is little beside collectives of 5 ms: on the plain clocks all overlap, but all ends lie 3 ms apart.
    _, found = match_two(draw(ENDS_US, length_us=5_000), draw(ENDS_US, length_us=5_000), 3 * MS)
    assert clocks_of(found) == [(0, 0), (1, 3 * MS)]
    assert [clock.residual_ns for clock in found.clocks] == [0, 0]


def test_the_true_offset_wins_over_one_that_is_wrong_by_a_step():
    # Rank 1 lacks the first step. Moved by a step, eleven of twelve collectives still meet: steps differ by 30 us.
    step_us = [20_000, 20_030, 19_990, 20_010, 20_040]
    begins = [sum(step_us[:at]) for at in range(5)]
    ends = [begin + within for begin in begins for within in (1_000, 6_000, 15_000)]
    run, found = match_two(draw(ends), draw(ends)[3:], HOUR_NS)
    assert clocks_of(found) == [(0, 0), (1, HOUR_NS)]
    assert run.truth_of(found.instances) == {at: {(0, at + 3), (1, at + 3)} for at in range(12)}


def test_steps_that_are_all_alike_tell_no_offset():
    ends = [20_000 * step + within for step in range(5) for within in (1_000, 6_000, 15_000)]
    _, found = match_two(draw(ends), draw(ends)[3:], HOUR_NS)
    assert found.refused_because == (
        "the clocks of ranks 0 and 1 differ, and their collectives repeat so evenly that two offsets, 20.0 ms apart, "
        "fit them about as well"
    )


def test_steps_that_are_all_alike_do_no_harm_on_one_clock():
    ends = [20_000 * step + within for step in range(5) for within in (1_000, 6_000, 15_000)]
    run, found = match_two(draw(ends), draw(ends)[3:], 0)
    assert clocks_of(found) == [(0, 0), (1, 0)]
    assert run.truth_of(found.instances) == {at: {(0, at + 3), (1, at + 3)} for at in range(12)}


def test_sequence_numbers_tell_the_offset_even_of_steps_that_are_all_alike():
    ends = [20_000 * step + within for step in range(5) for within in (1_000, 6_000, 15_000)]
    said = {"process_group": ["dp"] * 15, "group_ranks": ["[0, 1]"] * 15, "seq": list(range(100, 115))}
    run, found = match_two(draw(ends, **said), draw(ends, **said)[3:], HOUR_NS)
    assert clocks_of(found) == [(0, 0), (1, HOUR_NS)]
    assert (found.num_matched, found.certainty) == (12, 1.0)
    assert run.truth_of(found.instances) == {at: {(0, at + 3), (1, at + 3)} for at in range(12)}


def test_three_collectives_are_too_few_to_tell_an_offset():
    _, found = match_two(draw(ENDS_US[:3]), draw(ENDS_US[:3]), HOUR_NS)
    assert found.refused_because == (
        "the captures of ranks 0 and 1 have no time in common, and no clock offset fits both"
    )


def test_other_parts_of_one_run_are_not_moved_together():
    # The second rank was captured later: no offset makes steps of other lengths the same.
    _, found = match_two(draw(ENDS_US)[:4], draw(ENDS_US)[5:], 0)
    assert found.refused_because == (
        "the captures of ranks 0 and 1 have no time in common, and no clock offset fits both"
    )


def test_an_offset_reaches_a_rank_by_way_of_others():
    # Host a: ranks 0 and 1. Host b: ranks 2 and 3, 7 ms behind. Tensor parallelism within a host, data parallelism
    # between ranks 0 and 2 and between 1 and 3; rank 3 shares nothing with rank 0.
    tensor = [end for end in ENDS_US for _ in range(2)]
    parts = {rank: [] for rank in range(4)}
    for number, end in enumerate(tensor):
        for rank in range(4):
            group = "[0, 1]" if rank < 2 else "[2, 3]"
            begin = START_NS + (end + 700 * (number % 2)) * US
            parts[rank].append(
                Part(
                    truth=100 * (rank // 2) + number,
                    name="all_reduce",
                    start_ns=begin - 300 * US,
                    end_ns=begin,
                    said={"group_ranks": group},
                )
            )
    for number, end in enumerate(ENDS_US):
        for rank in range(4):
            group = "[0, 2]" if rank % 2 == 0 else "[1, 3]"
            begin = START_NS + (end + 2_000 + 90 * rank % 2) * US
            parts[rank].append(
                Part(
                    truth=1_000 + 100 * (rank % 2) + number,
                    name="all_gather",
                    start_ns=begin - 400 * US,
                    end_ns=begin,
                    stream=24,
                    said={"group_ranks": group},
                )
            )
    run = Run(parts={rank: sorted(mine, key=lambda part: part.start_ns) for rank, mine in parts.items()}, world_size=4)
    found = match_collectives(run.timelines({2: 7 * MS, 3: 7 * MS}))
    assert clocks_of(found) == [(0, 0), (1, 0), (2, 7 * MS), (3, 7 * MS)]
    assert (found.num_matched, found.num_matchable, found.certainty) == (54, 54, 1.0)
    assert all(len({truth for _, truth in one}) == 1 for one in run.truth_of(found.instances).values())


def test_ranks_of_one_host_keep_one_clock_when_it_is_moved():
    # Ends on ranks 1 and 2 lie 2 us apart; both are on the other host.
    run = Run(parts={0: draw(ENDS_US), 1: draw(ENDS_US), 2: draw(ENDS_US, late_us=2)}, world_size=3)
    found = match_collectives(run.timelines({1: HOUR_NS, 2: HOUR_NS}))
    assert clocks_of(found) == [(0, 0), (1, HOUR_NS), (2, HOUR_NS)]


@pytest.mark.parametrize("seed", range(6))
def test_offsets_are_found_through_late_captures_and_dropped_events(seed):
    run = simulate(seed, num_ranks=3, num_steps=40, num_in_step=10)
    run = run.without(1, set(range(35))).without(2, set(range(60, 400, 45)))
    found = match_collectives(run.timelines({1: -HOUR_NS, 2: 12 * MS}))
    off = [clock.offset_ns - truth for clock, truth in zip(found.clocks, (0, -HOUR_NS, 12 * MS), strict=True)]
    assert max(abs(one) for one in off) < 5 * US
    instances = run.truth_of(found.instances).values()
    assert all(len({truth for _, truth in one}) == 1 for one in instances)
    assert len(instances) == 400


@needs_captures
@pytest.mark.parametrize("behind_ns", [3 * MS, -50 * MS, HOUR_NS])
def test_the_speedrun_with_two_ranks_on_another_clock(behind_ns):
    ranks = [timeline_of(read_kineto(path)) for path in sorted(SPEEDRUN.glob("rank*.json.gz"))]
    found = match_collectives([rank.shifted(-behind_ns) if rank.rank in (3, 5) else rank for rank in ranks])
    assert (found.num_matched, found.num_matchable, found.certainty) == (76, 76, 1.0)
    for clock in found.clocks:
        assert abs(clock.offset_ns - (behind_ns if clock.rank in (3, 5) else 0)) < 5 * US
        assert clock.offset_ns == 0 or clock.rank in (3, 5)
        assert clock.residual_ns < 10 * US


@needs_captures
def test_the_first_half_of_one_rank_is_not_matched_with_the_second_half_of_another():
    ranks = [timeline_of(read_kineto(SPEEDRUN / f"rank{rank}.json.gz")) for rank in (0, 1)]
    halves = [
        replace(rank, collectives=rows, start_ns=rows["start_ns"].min(), end_ns=rows["end_ns"].max())
        for rank, rows in zip(ranks, (ranks[0].collectives[:38], ranks[1].collectives[38:]), strict=True)
    ]
    assert match_collectives(halves).refused_because == (
        "the captures of ranks 0 and 1 have no time in common, and no clock offset fits both"
    )


@pytest.mark.parametrize("num_steps", [3, 8])
def test_a_clock_that_is_off_by_a_step_is_found_where_steps_are_nearly_alike(num_steps):
    # Steps last 20 ms and 10 us or more, each 4 us longer than the one before: moved by a step, ends still lie close.
    starts = [20_010 * step + 2 * step * step for step in range(num_steps)]
    ends = [start + within for start in starts for within in (1_000, 6_000, 15_000)]
    run, found = match_two(draw(ends), draw(ends), 20 * MS)
    assert clocks_of(found) == [(0, 0), (1, 20 * MS)]
    assert (found.num_matched, found.num_matchable, found.certainty) == (3 * num_steps, 3 * num_steps, 1.0)
    assert all(len({truth for _, truth in one}) == 1 for one in run.truth_of(found.instances).values())
