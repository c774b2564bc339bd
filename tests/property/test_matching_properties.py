"""What must hold of matched collectives whatever the run: made-up runs whose truth is known, and tables of nonsense."""

from dataclasses import replace

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_ranks import MS, Part, Run, make_timeline_of, simulate, simulate_queues

from speedprof.analyses.clock_fit import CLOCK_NOISE_NS
from speedprof.analyses.matching import match_collectives

SEEDS = st.integers(0, 2**32 - 1)
TIMES = ("start_ns", "end_ns", "last_start_ns")


@st.composite
def runs(draw, *, drops=True, max_ranks=5):
    """A run on one clock: ranks enter and leave the capture at other times, and now and then an event is lost."""
    num_ranks, num_steps = draw(st.integers(2, max_ranks)), draw(st.integers(2, 7))
    run = simulate(
        draw(SEEDS),
        num_ranks=num_ranks,
        num_steps=num_steps,
        num_in_step=draw(st.integers(3, 10)),
        skew_us=draw(st.sampled_from([10, 200, 2_000, 20_000])),
        ends_us=draw(st.sampled_from([0, 3, 20])),
        says=draw(st.booleans()),
    )
    count = len(run.parts[0])
    for rank in range(num_ranks):
        head, tail = draw(st.integers(0, count // 3)), draw(st.integers(0, count // 4))
        run = run.without(rank, {*range(head), *range(count - tail, count)})
        if drops:
            # Fewer than one in ten, and not two in a row on any rank or on two: then nothing tells what is missing.
            run = run.without(rank, {at for at in draw(st.sets(st.integers(0, count))) if at % 10 == 2 * rank})
    return run


def is_right(run, found):
    """Whether what was put together is one collective each, and all parts of it are there."""
    truth = run.ranks_of()
    for one in run.truth_of(found.instances).values():
        (number,) = {number for _, number in one}
        assert {rank for rank, _ in one} == truth[number]
    assert len(set(found.instances["collective"])) == sum(len(ranks) > 1 for ranks in truth.values())


@settings(deadline=None, max_examples=60)
@given(runs())
def test_made_up_collectives_are_matched_as_they_were_made(run):
    found = match_collectives(run.timelines())
    is_right(run, found)
    assert all(clock.offset_ns == 0 for clock in found.clocks)
    traced = sum(len(ranks) == len(run.parts) for ranks in run.ranks_of().values())
    assert found.num_matched == traced
    assert found.certainty == 1.0


OFFSETS = st.one_of(st.integers(-100 * MS, 100 * MS), st.sampled_from([0, 3 * MS, 3_600_000 * MS, -(10**18), 10**15]))


@settings(deadline=None, max_examples=40)
@given(runs(max_ranks=3), st.lists(OFFSETS, min_size=2, max_size=2))
def test_ranks_on_other_clocks_are_matched_right_or_refused(run, offsets):
    behind = dict(zip((1, 2), offsets, strict=True))
    found = match_collectives(run.timelines(behind))
    if found.refused_because is not None:
        return
    wrong = [clock for clock in found.clocks if abs(clock.offset_ns - behind.get(clock.rank, 0)) > 0.1 * MS]
    # Off by a step that is like the next one to within what clocks of one host differ by, nobody can tell.
    assert all(clock.offset_ns == 0 and clock.residual_ns <= 2 * CLOCK_NOISE_NS for clock in wrong)
    for one in run.truth_of(found.instances).values():
        assert wrong or len({number for _, number in one}) == 1


@settings(deadline=None, max_examples=30)
@given(runs(), st.integers(-(10**18), 10**18))
def test_moving_all_ranks_by_the_same_changes_nothing_but_times(run, by_ns):
    ranks = run.timelines()
    found, moved = match_collectives(ranks), match_collectives([rank.shifted(by_ns) for rank in ranks])
    assert moved.instances.equals(found.instances.with_columns(pl.col(name) + by_ns for name in TIMES))
    assert replace(moved, instances=found.instances) == found


@settings(deadline=None, max_examples=30)
@given(runs(), st.randoms(use_true_random=False))
def test_the_order_in_which_ranks_are_given_does_not_matter(run, order):
    ranks = run.timelines()
    found = match_collectives(ranks)
    order.shuffle(ranks)
    again = match_collectives(ranks)
    assert again.instances.equals(found.instances)
    assert replace(again, instances=found.instances) == found


@settings(deadline=None, max_examples=30)
@given(SEEDS, st.data())
def test_what_some_ranks_lack_at_the_head_leaves_the_others_matches_alone(seed, data):
    run = simulate(seed, num_ranks=4, num_steps=5)
    whole = run.truth_of(match_collectives(run.timelines()).instances)
    lost = {rank: data.draw(st.integers(0, 15)) for rank in (1, 3)}
    for rank, count in lost.items():
        run = run.without(rank, set(range(count)))
    left = [{(rank, at) for rank, at in one if at >= lost.get(rank, 0)} for one in whole.values()]
    found = run.truth_of(match_collectives(run.timelines()).instances)
    assert sorted(map(sorted, found.values())) == sorted(map(sorted, left))


@settings(deadline=None, max_examples=30)
@given(runs(), SEEDS)
def test_what_a_file_says_only_now_and_then_does_no_harm(run, seed):
    random = np.random.default_rng(seed)
    group = f"[{', '.join(map(str, run.parts))}]"
    known = {"process_group": "0", "group_ranks": group, "group_size": len(run.parts)}
    parts = {
        rank: [
            replace(part, said={**part.said, **known, "seq": part.truth} if random.random() < 0.5 else {})
            for part in mine
        ]
        for rank, mine in run.parts.items()
    }
    some = Run(parts=parts, world_size=run.world_size)
    is_right(some, match_collectives(some.timelines()))


@settings(deadline=None, max_examples=30)
@given(SEEDS, st.integers(2, 4), st.integers(1, 3))
def test_queues_of_hosts_are_matched_in_their_order(seed, num_ranks, num_threads):
    run = simulate_queues(seed, num_ranks=num_ranks, num_threads=num_threads)
    found = match_collectives(run.timelines())
    is_right(run, found)
    assert (found.num_matched, found.num_matchable) == (60, 60)


SMALL = st.integers(0, 40)
SAID = st.fixed_dictionaries(
    {},
    optional={
        "declared_name": st.sampled_from(["send", "all_to_allv", "_allgather_base", "x"]),
        "process_group": st.sampled_from(["0", "tp", ""]),
        "group_ranks": st.sampled_from(
            ["[0, 1]", "[0, 1, 2]", "[1, 2, ...]", "[]", "nonsense", "[7, 8]", "[0, x, -1]"]
        ),
        "group_size": st.sampled_from([0, 1, 2, 3, 64]),
        "seq": st.integers(0, 3),
        "dtype": st.sampled_from(["Float", "BFloat16"]),
        "in_elements": SMALL,
        "out_elements": SMALL,
    },
)
PARTS = st.builds(
    lambda name, start, length, stream, said, scale: Part(
        truth=0, name=name, start_ns=start * scale, end_ns=(start + length) * scale, stream=stream, said=said
    ),
    st.sampled_from(["all_reduce", "all_gather", "send_recv", "broadcast", "other"]),
    SMALL,
    SMALL,
    st.one_of(st.none(), st.integers(7, 9)),
    SAID,
    st.sampled_from([1, 50_000]),
)


@settings(deadline=None, max_examples=150)
@given(
    st.dictionaries(st.integers(0, 9), st.lists(PARTS, max_size=12), max_size=4),
    st.one_of(st.none(), st.integers(0, 128)),
    st.booleans(),
)
def test_nonsense_is_matched_or_refused_by_the_rules(tables, world_size, on_host):
    ranks = [
        make_timeline_of(rank, sorted(parts, key=lambda part: part.start_ns), world_size, on_host=on_host)
        for rank, parts in tables.items()
    ]
    found = match_collectives(ranks)
    instances = found.instances
    assert (found.refused_because is None) == (found.num_matched > 0)
    assert found.num_matched <= found.num_matchable or found.refused_because is not None
    assert (found.certainty is None) == (found.num_matched == 0)
    assert [clock.rank for clock in found.clocks] == sorted(tables)
    assert instances.equals(instances.sort("collective", "rank"))
    assert not instances.select("rank", "row").is_duplicated().any()
    assert not instances.select("collective", "rank").is_duplicated().any()
    for _, parts in instances.group_by("collective"):
        assert len(parts) > 1
        assert parts["last_start_ns"].unique().to_list() == [parts["start_ns"].max()]
        assert parts.filter(pl.col("rank") == pl.col("last_rank"))["start_ns"][0] == parts["start_ns"].max()
    offset_of = {clock.rank: clock.offset_ns for clock in found.clocks}
    for rank, row, start in instances.select("rank", "row", "start_ns").iter_rows():
        own = next(one for one in ranks if one.rank == rank)
        assert own.collectives["start_ns"][row] + offset_of[rank] == start
