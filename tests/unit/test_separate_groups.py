"""Groups that run side by side and that the files do not tell apart are not taken for one."""

from dataclasses import replace

import numpy as np
import pytest
from simulated_ranks import MS, START_NS, US, Part, Run, make_timeline_of, simulate, simulate_groups

from speedprof.analyses.matching import match_collectives
from speedprof.analyses.separate_groups import find_sets

TWO_OF_FOUR = ((0, 1, 2, 3), (4, 5, 6, 7))
# Of ten collectives a millisecond apart, when the last rank of each of two groups starts, in us.
LAST_STARTS_US = ([0, 9, 30, 4, 20, 2, 40, 8, 0, 25], [20, 0, 4, 33, 0, 28, 3, 30, 18, 0])


def draw_groups(last_starts_us, **said):
    """Ranks 0 and 1, and 2 and 3; in each one rank starts 15 us early, and all end 400 us after its last start."""
    parts = {rank: [] for rank in range(4)}
    for at, (first, second) in enumerate(zip(*last_starts_us, strict=True)):
        for rank, last_us in enumerate((first, first, second, second)):
            last = START_NS + at * MS + last_us * US
            start = last - 15 * US * (rank % 2 == at % 2)
            parts[rank].append(
                Part(truth=at, name="all_reduce", start_ns=start, end_ns=last + 400 * US + rank % 2 * US, said=said)
            )
    return parts


def match(parts, world_size=4):
    return match_collectives([make_timeline_of(rank, mine, world_size) for rank, mine in parts.items()])


def test_two_groups_whose_ends_go_with_their_own_last_starts_are_refused_by_name():
    found = match(draw_groups(LAST_STARTS_US))
    assert found.refused_because == (
        "the trace files do not say which ranks form a group, and by their times these are several: collectives end "
        "together among ranks 0 and 1 and among ranks 2 and 3, but not between these"
    )
    assert found.instances.is_empty()
    assert (found.num_matched, found.certainty) == (0, None)


def test_the_same_times_are_one_group_where_all_end_after_the_last_start_of_all():
    first = [max(pair) for pair in zip(*LAST_STARTS_US, strict=True)]
    parts = draw_groups((first, first))
    early = {
        rank: [
            replace(part, start_ns=START_NS + at * MS + LAST_STARTS_US[rank // 2][at] * US)
            for at, part in enumerate(mine)
        ]
        for rank, mine in parts.items()
    }
    found = match(early)
    assert (found.num_matched, found.num_matchable, found.certainty) == (10, 10, 1.0)


@pytest.mark.parametrize("said", [{"process_group": "tp"}, {"process_group": "tp", "seq": 1}])
def test_one_name_on_all_ranks_does_not_make_them_one_group(said):
    parts = draw_groups(LAST_STARTS_US, **said)
    if "seq" in said:
        parts = {
            rank: [replace(part, said={**said, "seq": part.truth}) for part in mine] for rank, mine in parts.items()
        }
    assert "among ranks 0 and 1 and among ranks 2 and 3" in match(parts).refused_because


def test_where_the_files_list_the_ranks_each_group_is_matched_by_itself():
    parts = draw_groups(LAST_STARTS_US)
    listed = {
        rank: [replace(part, said={"group_ranks": "[0, 1]" if rank < 2 else "[2, 3]"}) for part in mine]
        for rank, mine in parts.items()
    }
    found = match(listed)
    assert (found.num_matched, found.num_matchable, found.certainty) == (20, 20, 1.0)


def test_what_the_files_list_is_matched_beside_groups_that_are_told_apart_by_nothing():
    parts = draw_groups(LAST_STARTS_US)
    every = [
        Part(
            truth=100 + at,
            name="all_gather",
            start_ns=START_NS + at * MS + 500 * US,
            end_ns=START_NS + at * MS + 600 * US,
            stream=24,
            said={"group_ranks": "[0, 1, 2, 3]"},
        )
        for at in range(10)
    ]
    both = {rank: sorted((*mine, *every), key=lambda part: part.start_ns) for rank, mine in parts.items()}
    found = match(both)
    assert (found.num_matched, found.num_matchable, found.refused_because) == (10, 20, None)
    assert {truth for one in Run(parts=both, world_size=4).truth_of(found.instances).values() for _, truth in one} == {
        *range(100, 110)
    }


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("sets", "said"),
    [(TWO_OF_FOUR, "ranks 0 to 3 and among ranks 4 to 7"), (((0, 4), (1, 5), (2, 6), (3, 7)), "ranks 3 and 7")],
)
def test_made_up_groups_that_nobody_names_are_refused(seed, sets, said):
    found = match_collectives(simulate_groups(seed, sets, skew_us=60, ends_us=2).timelines())
    assert found.num_matched == 0
    assert said in found.refused_because


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("skew_us", "ends_us"), [(2, 20), (20, 20), (50, 20), (50, 50), (300, 50), (2_000, 20)])
def test_one_group_of_eight_is_matched_however_far_its_ends_lie_apart(seed, skew_us, ends_us):
    run = simulate(seed, num_ranks=8, num_in_step=6, skew_us=skew_us, ends_us=ends_us, least_transfer_us=200)
    found = match_collectives(run.timelines())
    assert (found.refused_because, found.num_matched, found.num_matchable) == (None, 36, 36)


@pytest.mark.parametrize("seed", range(5))
def test_one_group_on_two_hosts_is_one_though_ends_keep_together_on_each(seed):
    # Ends lie within 1 us on a host, and up to 30 us apart between the hosts, whose clocks drift by 2 us a collective.
    random = np.random.default_rng(seed)
    host = np.arange(8) // 4
    begin = np.arange(40)[:, None] * MS
    start = begin + random.integers(0, 100 * US, (40, 8))
    late = random.integers(0, 30 * US, (40, 2))[:, host] + random.integers(0, US, (40, 8))
    end = start.max(axis=1)[:, None] + 200 * US + late
    drift = np.arange(40)[:, None] * 2 * US * host
    assert find_sets(start + drift, end + drift) == ()
    # Each host by itself, the other things equal.
    last = np.stack([start[:, host == one].max(axis=1) for one in (0, 1)], axis=1)[:, host]
    own = last + 200 * US + random.integers(0, US, (40, 8))
    assert find_sets(start + drift, own + drift) == TWO_OF_FOUR


def test_too_few_collectives_or_ranks_say_nothing():
    start, end = np.zeros((7, 4), dtype=np.int64), np.zeros((7, 4), dtype=np.int64)
    start[:, 2:] = end[:, 2:] = (np.arange(7)[:, None] % 2) * 50 * US
    assert find_sets(start, end) == ()
    assert find_sets(np.concatenate((start, start)), np.concatenate((end, end))) == ((0, 1), (2, 3))
    assert find_sets(np.concatenate((start, start))[:, 1:], np.concatenate((end, end))[:, 1:]) == ()


def parts_of_two(**said):
    return {rank: [Part(truth=0, name="all_reduce", start_ns=10, end_ns=40, said=said)] for rank in (0, 1)}


@pytest.mark.parametrize(
    ("world_size", "said", "assumes"),
    [
        (None, {}, True),
        (None, {"process_group": "dp"}, True),
        (None, {"group_size": 2}, False),
        (None, {"process_group": "dp", "group_size": 2}, False),
        (None, {"group_ranks": "[0, 1]"}, False),
        (2, {}, False),
        (8, {}, False),
    ],
)
def test_it_is_told_where_nobody_says_how_many_ranks_take_part(world_size, said, assumes):
    found = match(parts_of_two(**said), world_size)
    assert found.num_matched == 1
    assert found.assumes_complete is assumes
    assert found.instances["is_complete"].all() == (world_size != 8)
