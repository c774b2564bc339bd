from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import polars as pl
import pytest
from hand_made import EPOCH_NS, MS, analysis, breakdown, idle_gaps, partition, rank_analysis, stage

from speedprof.analyses.analysis import Analysis, RankAnalysis
from speedprof.analyses.clocks import RankClock
from speedprof.analyses.exposure import ExposedSplit, RankExposure, Wait
from speedprof.analyses.idle_gaps import GapCause, GapGroup
from speedprof.analyses.matching import CollectiveMatch
from speedprof.analyses.stragglers import SlowKernel, Straggler, StragglerCause
from speedprof.findings import Evidence, Finding, Severity, Slug, find_all, has_steps, mean_step_ns, mean_window_ns

NUM_STEPS = 2


def exposure(
    rank: int, wait_us: int, transfer_us: int, late: int, stages: Mapping[tuple[str, str], int]
) -> RankExposure:
    """The same in each of two steps; all waiting is for `late`, and `stages` gives the waiting of each over both."""
    each = ExposedSplit(wait_ns=wait_us * 1_000, transfer_ns=transfer_us * 1_000, unsplit_ns=0)
    wait_ns = NUM_STEPS * each.wait_ns
    wait = Wait(
        rank=late,
        ns=wait_ns,
        compute_ns=wait_ns,
        communication_ns=0,
        copy_ns=0,
        idle_ns=0,
        idle_by_cause={},
        longest_start_ns=EPOCH_NS + 3 * MS,
        longest_end_ns=EPOCH_NS + 3 * MS + 300_000,
        longest_step=60,
    )
    return RankExposure(
        rank=rank,
        split=each,
        steps=(each,) * NUM_STEPS,
        waits=(wait,) if wait_us else (),
        stages={key: ExposedSplit(wait_ns=ns * 1_000, transfer_ns=0, unsplit_ns=0) for key, ns in stages.items()},
        collectives=(),
        contention_ns=None,
        contention_basis=None,
    )


def match(*, refused_because: str | None = None, offset_ns: int = 0) -> CollectiveMatch:
    """Two collectives of ranks 0 and 1, both of which rank 1 began last, by 100 and by 300 us."""
    start = EPOCH_NS + 2 * MS
    rows = [
        (0, 0, 0, start, start + 150_000, start + 100_000, 1, True),
        (0, 1, 0, start + 100_000, start + 150_000, start + 100_000, 1, True),
        (1, 0, 1, start + MS, start + MS + 400_000, start + MS + 300_000, 1, True),
        (1, 1, 1, start + MS + 300_000, start + MS + 400_000, start + MS + 300_000, 1, True),
    ]
    columns = ["collective", "rank", "row", "start_ns", "end_ns", "last_start_ns", "last_rank", "is_complete"]
    return CollectiveMatch(
        instances=pl.DataFrame(rows, schema=columns, orient="row"),
        num_matched=0 if refused_because else 2,
        num_matchable=2,
        certainty=None if refused_because else 1.0,
        refused_because=refused_because,
        clocks=(
            RankClock(rank=0, offset_ns=0, residual_ns=0, num_collectives=2),
            RankClock(rank=1, offset_ns=offset_ns, residual_ns=5_000, num_collectives=2),
        ),
    )


def straggler(cause: StragglerCause = StragglerCause.LATE_LAUNCH, **changes: object) -> Straggler:
    one = Straggler(
        rank=1,
        cost_ns=800_000,
        cost_interval_ns=(700_000, 900_000),
        gain_ns=600_000,
        as_late=(),
        share=0.9,
        p_value=0.001,
        num_units=8,
        unit="block",
        cause=cause,
        excess_ns={"late_launch": 700_000, "compute": 90_000, "sync": 80_000, "input": 70_000},
        slow_kernels=(SlowKernel(name="gemm", own_ns=200_000, others_ns=120_000),),
    )
    return replace(one, **changes)  # type: ignore[arg-type]


def two_ranks_and_a_straggler() -> Analysis:
    """Rank 0 is exposed for 1 ms a step, 0.8 of them waiting for rank 1, half of that in an all-gather."""
    stages = (stage("all_gather", "muon.a", 1_200),)
    ranks = (
        replace(
            rank_analysis(0, [partition(9_000, 1_000, 0, 0)] * NUM_STEPS, stages),
            exposure=exposure(0, 800, 200, 1, {("all_gather", "muon.a"): 800}),
        ),
        replace(rank_analysis(1, [partition(10_000, 0, 0, 0)] * NUM_STEPS), exposure=exposure(1, 0, 0, 0, {})),
    )
    return analysis(ranks, match=match(), stragglers=(straggler(),))


def found(of: Analysis) -> dict[str, Finding]:
    return {finding.slug: finding for finding in find_all(of)}


def test_what_is_waited_for_a_straggler_is_charged_to_it_alone() -> None:
    findings = found(two_ranks_and_a_straggler())
    assert {slug: finding.cost_ns for slug, finding in findings.items()} == {
        # Of two ranks one waits 0.8 ms.
        Slug.STRAGGLER: 400_000,
        # Rank 0: 0.6 ms a step in the stage, 0.4 of them waiting for rank 1; the mean over two ranks.
        Slug.EXPOSED_ALL_GATHER: 100_000,
    }
    assert findings[Slug.EXPOSED_ALL_GATHER].claim == (
        "All-gather of muon.a runs with no compute beside it for 300 us per step (3.0% of it): 200 us of waiting for "
        "the last rank, 0 ns of transfer; most on rank 0: 600 us; 100 us of it is charged here, the rest to other "
        "findings."
    )


def test_a_straggler_is_shown_where_it_is_waited_for_longest() -> None:
    one = found(two_ranks_and_a_straggler())[Slug.STRAGGLER]
    start = EPOCH_NS + 3 * MS
    assert one.evidence == (
        Evidence(rank=1, step=60, start_ns=start, end_ns=start + 300_000),
        Evidence(rank=0, step=60, start_ns=start, end_ns=start + 300_000),
    )
    assert one.severity is Severity.MEDIUM
    assert one.claim == (
        "Rank 0 waits for rank 1 with nothing to compute for 800 us per step (8.0% of it), 95% interval 0.700 to 0.900 "
        "ms, 90.0% of all waiting for other ranks. Its host is late: its device idles 700 us more than that of the "
        "ranks that wait, per step, most for launches that come late (700 us)."
    )


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        (
            StragglerCause.SLOW_KERNEL,
            "It computes 90.0 us more than the ranks that wait, per step, most in gemm by 80.0 us.",
        ),
        (StragglerCause.SYNC, "idles 80.0 us more"),
        (StragglerCause.INPUT, "idles 70.0 us more"),
        (
            StragglerCause.UNEXPLAINED,
            "compared with the ranks that wait it spends most more on launches that come late (700 us).",
        ),
    ],
)
def test_a_straggler_is_told_with_its_cause(cause: StragglerCause, words: str) -> None:
    of = replace(two_ranks_and_a_straggler(), stragglers=(straggler(cause),))
    assert words in found(of)[Slug.STRAGGLER].claim


def test_waiting_while_the_straggler_was_not_captured_may_be_the_profiler_s_doing() -> None:
    of = two_ranks_and_a_straggler()
    waiting = of.ranks[0]
    assert waiting.exposure is not None
    for outside_ns, is_told in ((NUM_STEPS * 80_000, True), (NUM_STEPS * 79_999, False)):
        (wait,) = waiting.exposure.waits
        wait = replace(wait, compute_ns=wait.ns - outside_ns, outside_ns=outside_ns)
        ranks = (replace(waiting, exposure=replace(waiting.exposure, waits=(wait,))), of.ranks[1])
        claim = found(replace(of, ranks=ranks))[Slug.STRAGGLER].claim
        remark = "For 80.0 us of the waiting its capture had not begun or was over: starting the profiler may be what"
        assert (remark in claim) == is_told


def test_without_stages_what_stragglers_leave_is_split() -> None:
    of = two_ranks_and_a_straggler()
    bare = replace(of, ranks=tuple(replace(rank, stages=()) for rank in of.ranks))
    assert found(bare)[Slug.EXPOSED_COMMUNICATION].claim == (
        "Communication that no other finding is charged with runs with no compute beside it for 100 us per step "
        "(1.0% of it): 0 ns of waiting for the last rank, 100 us of transfer; most on rank 0: 200 us."
    )


def test_a_straggler_that_costs_nothing_worth_telling_takes_no_charge() -> None:
    of = two_ranks_and_a_straggler()
    waiting = replace(of.ranks[0], exposure=exposure(0, 39, 961, 1, {("all_gather", "muon.a"): 0}))
    findings = found(replace(of, ranks=(waiting, of.ranks[1])))
    # 39 us a step on one of two ranks are under 0.2% of 10 ms.
    assert Slug.STRAGGLER not in findings
    assert findings[Slug.EXPOSED_ALL_GATHER].cost_ns == 300_000
    assert findings[Slug.EXPOSED_COMMUNICATION].cost_ns == 200_000


def test_mending_one_of_two_late_ranks_gains_little() -> None:
    of = replace(two_ranks_and_a_straggler(), stragglers=(straggler(as_late=(2, 3), gain_ns=5_000),))
    claim = found(of)[Slug.STRAGGLER].claim
    assert claim.endswith(" Ranks 2, 3 come almost as late: mending rank 1 alone would gain 5.00 us.")


def test_more_or_other_work_is_not_called_slower_kernels() -> None:
    of = replace(two_ranks_and_a_straggler(), stragglers=(straggler(StragglerCause.SLOW_KERNEL, slow_kernels=()),))
    claim = found(of)[Slug.STRAGGLER].claim
    assert claim.endswith("It computes 90.0 us more than the ranks that wait, per step, in more or in other kernels.")


def test_collectives_that_lack_their_mates_are_told() -> None:
    for num_matched, is_told in ((89, True), (90, False)):
        some = replace(match(), num_matched=num_matched, num_matchable=100)
        told = found(replace(two_ranks_and_a_straggler(), match=some)).get(Slug.UNMATCHED_COLLECTIVES)
        assert (told is not None) is is_told
        assert told is None or "only 89 of 100 collectives were found on all ranks" in told.claim


def test_evidence_lies_on_each_rank_s_own_clock() -> None:
    of = replace(two_ranks_and_a_straggler(), match=match(offset_ns=7 * MS))
    findings = found(of)
    start = EPOCH_NS + 3 * MS
    assert [one.start_ns for one in findings[Slug.STRAGGLER].evidence] == [start - 7 * MS, start]
    assert findings[Slug.CLOCK_OFFSET].cost_ns == 0
    assert findings[Slug.CLOCK_OFFSET].claim == (
        "The clocks of 1 of 2 ranks differ from that of rank 0, most on rank 1: 7.00 ms behind. They were aligned "
        "by the ends of 2 collectives, and what is said across ranks is uncertain by 5.00 us."
    )


def test_what_cannot_be_matched_is_said() -> None:
    of = replace(two_ranks_and_a_straggler(), match=match(refused_because="only 4 of 10 fit"), stragglers=())
    told = found(of)[Slug.UNMATCHED_COLLECTIVES]
    assert (told.severity, told.cost_ns) == (Severity.INFO, 0)
    assert told.claim == (
        "Cannot tell how much of the exposed communication (500 us per step (5.0% of it)) is waiting for other ranks: "
        "only 4 of 10 fit."
    )
    quiet = analysis((rank_analysis(0, [partition(9_999, 1, 0, 0)]),), match=match(refused_because="none fit"))
    assert found(quiet) == {}


def gaps(cause: GapCause, total_ns: int, place: str | None) -> GapGroup:
    return GapGroup(
        cause=cause,
        range=place,
        op=None,
        call=None,
        num_gaps=2,
        total_ns=total_ns,
        longest_ns=total_ns // 2,
        longest_start_ns=EPOCH_NS + 2 * MS,
        longest_step=60,
    )


SLUG_OF = {
    GapCause.LATE_LAUNCH: Slug.IDLE_LATE_LAUNCH,
    GapCause.SYNC: Slug.IDLE_SYNC,
    GapCause.INPUT: Slug.IDLE_INPUT,
    GapCause.ALLOCATOR: Slug.IDLE_ALLOCATOR,
    GapCause.RECOMPILE: Slug.IDLE_RECOMPILE,
    GapCause.GARBAGE_COLLECTION: Slug.IDLE_GC,
    GapCause.QUEUED: Slug.IDLE_QUEUED,
    GapCause.BELOW_LAUNCH_RESOLUTION: Slug.IDLE_SHORT_GAPS,
    GapCause.UNLINKED: Slug.IDLE_DEVICE,
}


def idle_rank(cause: GapCause, *, place: str | None = "loop") -> RankAnalysis:
    idle = idle_gaps({cause: 2 * MS}, (gaps(cause, 2 * MS, place),))
    return rank_analysis(0, [partition(9_000, 0, 0, 1_000)] * NUM_STEPS, idle=idle)


@pytest.mark.parametrize("cause", list(GapCause))
def test_idle_time_is_told_by_its_cause_with_its_place_and_its_longest_gap(cause: GapCause) -> None:
    (one,) = find_all(analysis((idle_rank(cause),)))
    assert (one.slug, one.cost_ns, one.severity) == (SLUG_OF[cause], MS, Severity.HIGH)
    assert one.claim.endswith(" 1.00 ms per step (10.0% of it), mostly in loop.")
    assert one.evidence == (Evidence(rank=0, step=60, start_ns=EPOCH_NS + 2 * MS, end_ns=EPOCH_NS + 3 * MS),)


def test_idle_time_of_an_unknown_place_names_none() -> None:
    (one,) = find_all(analysis((idle_rank(GapCause.SYNC, place=None),)))
    assert one.claim.endswith(" 1.00 ms per step (10.0% of it).")


def test_a_trace_without_steps_is_told_as_a_whole() -> None:
    whole = replace(breakdown(0, []), partition=partition(6_000, 3_000, 0, 1_000))
    rank = replace(rank_analysis(0, []), breakdown=whole, idle=idle_gaps({GapCause.QUEUED: MS}))
    of = analysis((rank,))
    findings = find_all(of)
    assert (has_steps(of), mean_step_ns(of), mean_window_ns(of)) == (False, None, 10 * MS)
    assert [(one.slug, one.cost_ns) for one in findings] == [
        (Slug.EXPOSED_COMMUNICATION, 3 * MS),
        (Slug.IDLE_QUEUED, MS),
    ]
    assert "3.00 ms of the capture (30.0% of it)" in findings[0].claim
    assert findings[0].evidence[0].step is None
