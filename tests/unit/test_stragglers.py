"""Which rank the others wait for and why, on runs drawn by hand and on real captures."""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import polars as pl
import pytest
from builders_ranks import build_timelines
from hand_match import match_by_hand, match_in_order, refuse

from speedprof.analyses.idle_gaps import GapCause
from speedprof.analyses.matching import CollectiveMatch
from speedprof.analyses.measure import compare_ranks, measure_rank
from speedprof.analyses.stragglers import SlowKernel, Straggler, StragglerCause, find_stragglers
from speedprof.analyses.timeline import RankTimeline
from speedprof.trace.intervals import join, subtract, union
from speedprof.trace.read_kineto import read_kineto

ROOT = Path(__file__).parents[2]
KINETO = ROOT.parent / "shared" / "data" / "kineto"
needs_captures = pytest.mark.skipif(not KINETO.is_dir(), reason="the folder of real captures is not beside this one")

STEP_NS = 1000
EARLY = "gemm 0 500; gather 500 1000"


def build_run(steps_of: Mapping[int, str], *, num_steps: int = 9, marks: bool = True) -> list[RankTimeline]:
    """Ranks whose every step of 1000 ns holds the parts that the text says: `<what> <start> <end>`."""
    rows = []
    for rank, parts in steps_of.items():
        for step in range(num_steps):
            rows += build_rows(rank, step, parts, marks=marks)
    return build_timelines("\n".join(rows))


def build_rows(rank: int, step: int, parts: str, *, marks: bool) -> list[str]:
    at = step * STEP_NS
    rows = [f"{rank} | main | speedprof.step/{step} | {at} | {at + STEP_NS} |"] if marks else []
    for part in parts.split(";"):
        what, start, end = part.split()
        kernel = {"gather": "ncclDevKernel_AllGather()", "copy": "Memcpy DtoD (x)"}.get(what, what)
        stream = {"gather": 2, "copy": 9}.get(what, 7)
        rows.append(f"{rank} | stream {stream} | {kernel} | {at + int(start)} | {at + int(end)} | main {at}")
    return rows


def build_run_of_steps(rank: int, steps: Sequence[str]) -> list[RankTimeline]:
    """One rank whose steps hold what each text says."""
    rows = [row for step, parts in enumerate(steps) for row in build_rows(rank, step, parts, marks=True)]
    return build_timelines("\n".join(rows))


def because_of(rank: RankTimeline, cause: GapCause) -> RankTimeline:
    """The rank with all of its idle time put down to one cause."""
    busy = join(rank.occupied.compute, rank.occupied.communication, rank.occupied.copy)
    window = union(*(pl.Series([time]).to_numpy() for time in (rank.start_ns, rank.end_ns)))
    idle = subtract(window, busy)
    gaps = pl.DataFrame({"start_ns": idle.start, "end_ns": idle.end, "cause": [cause.value] * len(idle)})
    return replace(rank, gaps=gaps)


def stragglers_of(ranks: list[RankTimeline], match: CollectiveMatch | None = None) -> tuple[Straggler, ...]:
    match = match or match_in_order(ranks)
    return find_stragglers(ranks, match)


@pytest.mark.parametrize(
    ("gap", "cause"),
    [
        (GapCause.LATE_LAUNCH, StragglerCause.LATE_LAUNCH),
        (GapCause.SYNC, StragglerCause.SYNC),
        (GapCause.INPUT, StragglerCause.INPUT),
        # The host launches late for a reason of its own; the excess says which.
        (GapCause.GARBAGE_COLLECTION, StragglerCause.LATE_LAUNCH),
        (GapCause.ALLOCATOR, StragglerCause.LATE_LAUNCH),
        (GapCause.RECOMPILE, StragglerCause.LATE_LAUNCH),
        (GapCause.QUEUED, StragglerCause.UNEXPLAINED),
        (GapCause.UNLINKED, StragglerCause.UNEXPLAINED),
        (GapCause.BELOW_LAUNCH_RESOLUTION, StragglerCause.UNEXPLAINED),
    ],
)
def test_a_rank_that_idles_is_late_by_the_cause_of_its_idle_time(gap, cause):
    # The others wait for rank 1 from 500 to 700. Rank 1 computes in that time: its compute comes later, but is no more.
    ranks = build_run({0: EARLY, 1: "gemm 0 300; gemm 500 700; gather 700 1000", 2: EARLY})
    (found,) = stragglers_of([because_of(rank, gap) for rank in ranks])
    assert found == Straggler(
        rank=1,
        cost_ns=200,
        cost_interval_ns=(200, 200),
        gain_ns=200,
        as_late=(),
        share=1.0,
        # One way in 3 to the power of 9 to draw it in each step, and any of 3 ranks could be the one.
        p_value=found.p_value,
        num_units=9,
        unit="step",
        cause=cause,
        excess_ns={"compute": 0, "communication": -200, gap.value: 200},
        slow_kernels=(),
    )
    assert found.p_value == pytest.approx(3**-8)


def test_a_rank_that_computes_longer_has_slow_kernels():
    slow = "gemm 0 400; attention 400 640; norm 640 690; gather 690 1000"
    early = "gemm 0 400; attention 400 460; norm 460 520; gather 520 1000"
    found, *rest = stragglers_of(build_run({0: early, 1: early, 2: slow, 3: early}))
    assert (found.rank, found.cost_ns, found.cause, rest) == (2, 170, StragglerCause.SLOW_KERNEL, [])
    assert found.excess_ns == {"compute": 170, "communication": -170}
    assert found.slow_kernels == (SlowKernel(name="attention", own_ns=240, others_ns=60),)


def test_the_slowest_kernel_comes_first():
    slow = "gemm 0 450; attention 450 700; gather 700 1000"
    early = "gemm 0 400; attention 400 500; gather 500 1000"
    (found,) = stragglers_of(build_run({0: early, 1: slow}))
    assert found.slow_kernels == (
        SlowKernel(name="attention", own_ns=250, others_ns=100),
        SlowKernel(name="gemm", own_ns=450, others_ns=400),
    )


def test_compute_that_no_kernel_explains_is_unexplained():
    # The same kernels; on rank 1 they run one after another instead of beside one another.
    ranks = build_run({0: "gemm 0 300; norm 0 300; gather 300 1000", 1: "gemm 0 300; norm 300 600; gather 600 1000"})
    (found,) = stragglers_of(ranks)
    assert (found.rank, found.cause, found.slow_kernels) == (1, StragglerCause.UNEXPLAINED, ())
    assert found.excess_ns == {"compute": 300, "communication": -300}


def test_a_rank_that_copies_is_late_by_that_and_unexplained():
    (found,) = stragglers_of(build_run({0: EARLY, 1: "gemm 0 500; copy 500 700; gather 700 1000"}))
    assert (found.cause, found.excess_ns["copy"]) == (StragglerCause.UNEXPLAINED, 200)


def test_where_nothing_is_half_of_it_the_cause_is_unexplained():
    late = "gemm 0 500; copy 500 580; norm 580 660; gather 700 1000"
    ranks = build_run({0: EARLY, 1: late})
    (found,) = stragglers_of([ranks[0], because_of(ranks[1], GapCause.SYNC)])
    assert found.excess_ns == {"compute": 80, "communication": -200, "copy": 80, "sync": 40}
    assert found.cause is StragglerCause.UNEXPLAINED


def test_idle_time_without_a_cause_is_unexplained():
    (found,) = stragglers_of(build_run({0: EARLY, 1: "gemm 0 500; gather 700 1000"}))
    assert (found.cause, found.excess_ns) == (
        StragglerCause.UNEXPLAINED,
        {"compute": 0, "communication": -200, "idle": 200},
    )


def test_a_rank_that_is_late_because_it_waited_elsewhere_is_unexplained():
    # Rank 1 is late from a collective that the others have no part in.
    ranks = build_run({0: EARLY, 1: "gemm 0 300; gather 300 680; gemm 680 720; gather 720 1000"})
    match = match_by_hand(ranks, [{0: step, 1: 2 * step + 1} for step in range(9)])
    (found,) = stragglers_of(ranks, match)
    assert (found.rank, found.cause, found.excess_ns["compute"]) == (1, StragglerCause.UNEXPLAINED, -160)


def test_stragglers_come_costliest_first_and_cost_the_mean_over_the_others():
    # Each rank begins the first collective of a step, or the second, 300 or 200 late.
    early = "gemm 0 100; gather 100 500; gemm 500 600; gather 600 1000"
    ranks = build_run(
        {
            0: early,
            1: "gemm 0 100; gather 100 500; gemm 500 800; gather 800 1000",
            2: "gemm 0 400; gather 400 500; gemm 500 600; gather 600 1000",
            3: early,
            4: early,
        }
    )
    found = stragglers_of(ranks)
    assert [(one.rank, one.cost_ns, one.share) for one in found] == [(2, 300, 0.6), (1, 200, 0.4)]


def test_two_ranks_that_wait_for_each_other_alike_are_no_stragglers():
    first = "gemm 0 100; gather 100 500; gemm 500 800; gather 800 1000"
    last = "gemm 0 400; gather 400 500; gemm 500 600; gather 600 1000"
    assert stragglers_of(build_run({0: first, 1: last})) == ()


@pytest.mark.parametrize(("late_by", "is_straggler"), [(1, False), (2, True)])
def test_what_costs_less_than_two_thousandths_of_a_step_is_no_straggler(late_by, is_straggler):
    ranks = build_run({0: EARLY, 1: f"gemm 0 {500 + late_by}; gather {500 + late_by} 1000"})
    assert [one.rank for one in stragglers_of(ranks)] == ([1] if is_straggler else [])


def test_no_claim_where_the_last_rank_is_not_known():
    ranks = build_run({0: EARLY, 1: "gemm 0 700; gather 700 1000"})
    matched = [{0: row, 1: row} for row in range(9)]
    assert stragglers_of(ranks, refuse(ranks)) == ()
    assert stragglers_of(ranks, match_by_hand(ranks, matched, incomplete=range(5))) == ()
    assert [one.rank for one in stragglers_of(ranks, match_by_hand(ranks, matched, incomplete=range(4)))] == [1]
    assert stragglers_of(ranks[:1], match_by_hand(ranks[:1], [{0: row} for row in range(9)])) == ()
    assert stragglers_of([], refuse([])) == ()


def test_without_steps_the_cost_is_that_of_the_capture():
    ranks = build_run({0: EARLY, 1: "gemm 0 700; gather 700 1000"}, marks=False)
    (found,) = stragglers_of(ranks)
    # 200 in each of nine; between the ends of the first and the last eight ninths of the capture are compared.
    assert (found.rank, found.cost_ns, found.cause) == (1, 1800, StragglerCause.SLOW_KERNEL)
    assert found.excess_ns == {"compute": 1800, "communication": -1800}
    assert found.slow_kernels == (SlowKernel(name="gemm", own_ns=6300, others_ns=4500),)
    # Last in 9 of 9, or the other rank is.
    assert (found.unit, found.num_units, found.p_value) == ("collective", 9, 2**-8)
    assert found.cost_interval_ns is None


def test_without_a_collective_of_all_ranks_the_common_capture_is_compared():
    ranks = build_run({0: EARLY, 1: "gemm 0 700; gather 700 1000", 2: "gemm 0 500; norm 500 1000"})
    (found,) = stragglers_of(ranks, match_by_hand(ranks, [{0: row, 1: row} for row in range(9)]))
    # Rank 2 computes all the time, but waits for nobody: rank 1 is compared with rank 0 alone.
    assert (found.rank, found.excess_ns) == (1, {"compute": 200, "communication": -200})
    assert found.cause is StragglerCause.SLOW_KERNEL


def test_validation_passes_do_not_count():
    step = """
        {rank} | main     | speedprof.step/{step}{kind}  | {at}      | {at} + 1000 |
        {rank} | stream 7 | gemm                         | {at}      | {at} + {gemm} | main {at} + 1
        {rank} | stream 2 | ncclDevKernel_AllGather()    | {at} + {gemm} | {at} + 1000 | main {at} + 2
    """
    rows = ""
    for rank, gemm, in_validation in ((0, 500, 100), (1, 600, 900)):
        for number in range(10):
            kind, ns = ("/validation", in_validation) if number == 9 else ("", gemm)
            text = step.format(rank=rank, step=number, kind=kind, at=1000 * number, gemm=ns)
            rows += re.sub(r"(\d+) \+ (\d+)", lambda sum_of: str(int(sum_of[1]) + int(sum_of[2])), text)
    (found,) = stragglers_of(build_timelines(rows))
    assert (found.cost_ns, found.excess_ns) == (100, {"compute": 100, "communication": -100})
    assert found.slow_kernels == (SlowKernel(name="gemm", own_ns=600, others_ns=500),)


def test_on_the_host_a_straggler_is_named_and_its_kernels_are_not_known():
    step = """
        {0} | main   | speedprof.step/{1} | {1}00 | {2}00 |
        {0} | main   | aten::mm           | {1}00 | {1}{3} |
        {0} | main   | c10d::allreduce_   | {1}{3} | {1}{4} |
        {0} | gloo 0 | gloo:all_reduce    | {1}{4} | {2}00 |
    """
    numbers = range(1, 10)
    rows = "".join(
        step.format(rank, at, at + 1, *late) for rank, late in enumerate(((30, 31), (50, 51))) for at in numbers
    )
    (found,) = stragglers_of(build_timelines(rows))
    assert (found.rank, found.cost_ns, found.cause) == (1, 20, StragglerCause.UNEXPLAINED)
    assert found.excess_ns["compute"] == 20


def test_the_cost_is_that_of_the_steps_that_all_ranks_captured():
    # Rank 0 was traced for 20 steps, rank 1 for the first 10 of them.
    ranks = build_run({0: EARLY}, num_steps=20) + build_run({1: "gemm 0 700; gather 700 1000"}, num_steps=10)
    (found,) = stragglers_of(ranks, match_by_hand(ranks, [{0: row, 1: row} for row in range(10)]))
    assert (found.rank, found.cost_ns, found.cost_interval_ns) == (1, 200, (200, 200))
    assert (found.num_units, found.unit) == (10, "step")
    assert (found.cause, found.excess_ns) == (StragglerCause.SLOW_KERNEL, {"compute": 200, "communication": -200})


def test_the_interval_of_the_cost_is_that_of_a_mean_over_steps():
    # Late by 100, 200, ... 900: the mean is 500, the deviation 274, Student's factor for 8 degrees of freedom 2.306.
    late = [f"gemm 0 {50 + 100 * step}; gather {50 + 100 * step} 1000" for step in range(1, 10)]
    ranks = [*build_run({0: "gemm 0 50; gather 50 1000"}), *build_run_of_steps(1, late)]
    (found,) = stragglers_of(ranks)
    assert (found.cost_ns, found.cost_interval_ns) == (500, (289, 711))


def test_of_two_equally_slow_ranks_one_is_named_and_mending_it_gains_nothing():
    slow = "gemm 0 800; gather 800 1000"
    (found,) = stragglers_of(build_run({0: EARLY, 1: slow, 2: slow, 3: EARLY}))
    # Ranks 0 and 3 wait 300, rank 2 does not.
    assert (found.rank, found.cost_ns, found.gain_ns, found.as_late) == (1, 200, 0, (2,))
    assert found.slow_kernels == (SlowKernel(name="gemm", own_ns=800, others_ns=500),)


def test_the_gain_is_what_is_waited_after_the_second_last_rank():
    second = "gemm 0 700; gather 700 1000"
    (found,) = stragglers_of(build_run({0: EARLY, 1: second, 2: "gemm 0 800; gather 800 1000"}))
    # Of 300 and 100; rank 1 still waits 100 less, and so does rank 0.
    assert (found.rank, found.cost_ns, found.gain_ns, found.as_late) == (2, 200, 100, ())


def test_a_straggler_is_compared_with_the_ranks_that_wait_for_it():
    slow = "gemm 0 800; gather 800 1000"
    (found,) = stragglers_of(build_run({0: EARLY, 1: slow, 2: slow, 3: slow}))
    # Three of four are slow: compared with the mean of the others rank 1 would do little more than they.
    assert (found.rank, found.cause, found.excess_ns) == (
        1,
        StragglerCause.SLOW_KERNEL,
        {"compute": 300, "communication": -300},
    )
    assert found.as_late == (2, 3)


@pytest.mark.parametrize(
    "late",
    [
        "gemm 0 500; extra 500 700; gather 700 1000",
        "gemm_v2 0 700; gather 700 1000",
        "gemm 0 500; gemm 500 700; gather 700 1000",
    ],
)
def test_more_and_other_work_is_not_told_as_slower_kernels(late):
    (found,) = stragglers_of(build_run({0: EARLY, 1: late}))
    assert (found.cause, found.slow_kernels) == (StragglerCause.SLOW_KERNEL, ())
    assert found.excess_ns == {"compute": 200, "communication": -200}


@pytest.mark.parametrize("num_ranks", [2, 4, 8])
def test_ranks_that_differ_by_chance_alone_are_seldom_named(num_ranks):
    named = 0
    for seed in range(20):
        source, ranks = random.Random(seed), []
        for rank in range(num_ranks):
            begins = [source.randint(400, 600) for _ in range(12)]
            ranks += build_run_of_steps(rank, [f"gemm 0 {at}; gather {at} 1000" for at in begins])
        named += len(stragglers_of(ranks))
    # One in twenty at most, on average: 4 or more of 20 would come up once in 60 runs of this test.
    assert named <= 3


def test_one_long_wait_is_no_evidence():
    steps = ["gemm 0 100; gather 100 1000"] * 12
    ranks = [
        *(one for rank in (0, 1, 3) for one in build_run_of_steps(rank, steps)),
        *build_run_of_steps(2, [*steps[:5], "gemm 0 900; gather 900 1000", *steps[6:]]),
    ]
    assert stragglers_of(sorted(ranks, key=lambda one: one.rank)) == ()


@cache
def analysis_of(folder: str):
    return compare_ranks([measure_rank(read_kineto(path)) for path in sorted((KINETO / folder).glob("*.json.gz"))])


@needs_captures
def test_the_record_run_waits_for_rank_1_whose_host_launches_late():
    (found,) = analysis_of("speedrun-8xH100").stragglers
    assert (found.rank, found.cause) == (1, StragglerCause.LATE_LAUNCH)
    # Others wait 31 to 40 ms over four steps, rank 1 only 6: it spends that much less in communication, and idles.
    assert found.share > 0.8
    assert 6_000_000 < found.cost_ns < 9_000_000
    assert found.excess_ns["late_launch"] > 0.8 * -found.excess_ns["communication"]
    # What the ranks spend on anything sums to the same, but for rounding.
    assert abs(sum(found.excess_ns.values())) < 10


@needs_captures
def test_the_straggler_of_the_record_run_waits_least():
    waits = {rank.rank: rank.exposure.split.wait_ns for rank in analysis_of("speedrun-8xH100").ranks}
    assert min(waits, key=waits.get) == 1
    assert sorted(waits.values())[1] > 5 * waits[1]


@needs_captures
def test_the_recommender_waits_for_rank_7():
    first, *_ = analysis_of("dlrm-8xV100").stragglers
    assert first.rank == 7


@needs_captures
@pytest.mark.parametrize(
    "folder", ["nccl-rank0of2-A100", "resnet-rank0of8-MI300X", "resnet50-V100-dataloader", "sampled-2of128"]
)
def test_no_straggler_is_named_where_ranks_are_missing(folder):
    assert analysis_of(folder).stragglers == ()


@needs_captures
def test_splits_of_the_record_run_sum_to_what_the_partition_says_is_exposed():
    analysis = analysis_of("speedrun-8xH100")
    for rank in analysis.ranks:
        assert rank.exposure is not None
        assert rank.exposure.split.exposed_ns == rank.breakdown.partition.exposed_communication_ns
        assert [split.exposed_ns for split in rank.exposure.steps] == [
            step.partition.exposed_communication_ns for step in rank.breakdown.steps
        ]
        assert sum(wait.ns for wait in rank.exposure.waits) == sum(split.wait_ns for split in rank.exposure.steps)
        for wait in rank.exposure.waits:
            assert sum(wait.idle_by_cause.values()) == wait.idle_ns
            parts = (wait.compute_ns, wait.communication_ns, wait.copy_ns, wait.idle_ns, wait.outside_ns)
            assert sum(parts) == wait.ns
