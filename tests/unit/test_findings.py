from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hand_made import (
    EPOCH_NS,
    MS,
    alternating_log,
    analysis,
    breakdown,
    budget,
    manifest,
    partition,
    rank_analysis,
    run_log,
    stage,
    step_log,
    step_rows,
    two_ranks,
)
from hypothesis import given
from hypothesis import strategies as st

from speedprof.analyses.copies import CopyTime
from speedprof.analyses.core_sharing import is_sharing_cores
from speedprof.findings import Evidence, Finding, Severity, Slug, find_all, mean_step_ns
from speedprof.trace.model import Timeline

DOCS = Path(__file__).parents[2] / "docs" / "findings.md"


def costs(findings: tuple[Finding, ...]) -> dict[str, int]:
    return {finding.slug: finding.cost_ns for finding in findings}


@pytest.mark.parametrize("slug", list(Slug))
def test_each_slug_has_its_entry_in_the_docs(slug: Slug) -> None:
    _, found, entry = DOCS.read_text().partition(f"\n## `{slug}`\n")
    entry = entry.partition("\n## ")[0]
    assert found
    assert all(word in entry for word in ("**Means**", "**Measured**", "**Try**", "**Example**"))


def test_costs_are_means_over_steps_and_ranks_and_the_worst_rank_is_the_evidence() -> None:
    found = find_all(analysis(two_ranks()))
    assert costs(found) == {
        # Rank 0 has 0.9 ms of exposed communication a step, rank 1 has 1.75: 1.325 in all.
        Slug.IDLE_LATE_LAUNCH: 950_000,
        Slug.EXPOSED_COMMUNICATION: 1_325_000 - 375_000 - 300_000,
        Slug.EXPOSED_ALL_GATHER: (300_000 + 450_000) // 2,
        Slug.EXPOSED_REDUCE_SCATTER: 600_000 // 2,
        Slug.EXPOSED_COPY: 50_000,
    }
    assert [finding.cost_ns for finding in found] == sorted((finding.cost_ns for finding in found), reverse=True)
    idle = found[0]
    assert idle.severity is Severity.HIGH
    assert idle.claim == (
        "The device runs dry because the host has not launched the next work yet, for 950 us per step (9.5% of it), "
        "most on rank 1: 1.00 ms."
    )
    gather = next(finding for finding in found if finding.slug == Slug.EXPOSED_ALL_GATHER)
    assert gather.severity is Severity.MEDIUM
    assert gather.evidence == (Evidence(rank=1, step=60, start_ns=EPOCH_NS + MS, end_ns=EPOCH_NS + 11 * MS),)
    assert "All-gather of muon.attn" in gather.claim


def test_stages_exposed_at_the_same_time_share_what_is_exposed() -> None:
    stages = (stage("reduce_scatter", "muon.a", 3_000), stage("all_gather", "muon.b", 1_000))
    found = find_all(analysis((rank_analysis(0, [partition(9_000, 1_000, 0, 0)] * 2, stages),)))
    # 1.5 and 0.5 ms of stages in 1 ms of exposed time.
    assert costs(found) == {Slug.EXPOSED_REDUCE_SCATTER: 750_000, Slug.EXPOSED_ALL_GATHER: 250_000}


def test_the_claim_tells_what_was_measured_and_what_is_charged() -> None:
    stages = (stage("reduce_scatter", "muon.a", 3_000), stage("all_gather", "muon.b", 1_000))
    found = find_all(analysis((rank_analysis(0, [partition(9_000, 1_000, 0, 0)] * 2, stages),)))
    assert found[0].claim == (
        "Reduce-scatter of muon.a runs with no compute beside it for 1.50 ms per step (15.0% of it); "
        "750 us of it is charged here, the rest to other findings."
    )


def test_time_is_shared_out_on_each_rank_by_itself() -> None:
    stages = (stage("reduce_scatter", "muon.a", 2_000), stage("all_gather", "muon.b", 2_000))
    ranks = (
        rank_analysis(0, [partition(9_000, 1_000, 0, 0)] * 2, stages),
        rank_analysis(1, [partition(8_000, 2_000, 0, 0)] * 2, stages),
    )
    # Rank 0 has 2 ms of stages in 1 ms, rank 1 as much in 2 ms.
    assert costs(find_all(analysis(ranks))) == {
        Slug.EXPOSED_REDUCE_SCATTER: 750_000,
        Slug.EXPOSED_ALL_GATHER: 750_000,
    }


@given(
    st.lists(
        st.tuples(st.integers(0, 9_000), st.lists(st.integers(0, 9_000), min_size=4, max_size=4)),
        min_size=1,
        max_size=4,
    )
)
def test_costs_of_communication_never_exceed_what_is_exposed(ranks: list[tuple[int, list[int]]]) -> None:
    kinds = [(name, group) for name in ("reduce_scatter", "all_gather") for group in ("a", "b")]
    measured = tuple(
        rank_analysis(
            rank,
            [partition(10_000 - exposed, exposed, 0, 0)] * 3,
            tuple(stage(*kind, each) for kind, each in zip(kinds, stages, strict=True)),
        )
        for rank, (exposed, stages) in enumerate(ranks)
    )
    together = sum(finding.cost_ns for finding in find_all(analysis(measured)))
    assert together <= sum(exposed for exposed, _ in ranks) * 1_000 // len(ranks)


def test_a_damaged_trace_bears_no_cost() -> None:
    first, second = two_ranks()
    found = find_all(analysis((first, replace(second, is_damaged=True))))
    assert costs(found)[Slug.IDLE_LATE_LAUNCH] == 900_000
    assert {evidence.rank for finding in found for evidence in finding.evidence} == {0}
    both = tuple(replace(rank, is_damaged=True) for rank in (first, second))
    assert find_all(analysis(both)) == ()
    assert mean_step_ns(analysis(both)) is None


@pytest.mark.parametrize(
    ("direction", "claim_ends", "advice"),
    [
        ("DtoD", "; 75.0% of it from device to device.", "which operators make these copies"),
        ("HtoD", "; 75.0% of it from host to device.", "pinned memory"),
        ("DtoH", "; 75.0% of it from device to host.", "Read results back less often"),
        ("PtoP", "100 us per step (1.0% of it).", "See in the timeline which copies these are"),
        (None, "100 us per step (1.0% of it).", "See in the timeline which copies these are"),
    ],
)
def test_advice_on_copies_follows_their_direction(direction: str | None, claim_ends: str, advice: str) -> None:
    copies = (CopyTime(direction=direction, exposed_ns=300), CopyTime(direction="other", exposed_ns=100))
    ranks = (rank_analysis(0, [partition(9_900, 0, 100, 0)], copies=copies if direction else ()),)
    (found,) = find_all(analysis(ranks))
    assert found.claim.endswith(claim_ends)
    assert advice in found.try_next


def test_small_groups_are_told_together() -> None:
    stages = tuple(stage("all_gather", f"adam.{k}", 30) for k in range(10))
    found = find_all(analysis((rank_analysis(0, [partition(9_800, 200, 0, 0)] * 2, stages),)))
    assert costs(found) == {Slug.EXPOSED_COMMUNICATION: 200_000}
    assert found[0].claim.startswith("Communication runs with no compute beside it for 200 us per step (2.0% of it)")


def test_what_costs_under_two_per_mille_is_not_told() -> None:
    assert find_all(analysis((rank_analysis(0, [partition(9_981, 0, 0, 19)]),))) == ()
    (low,) = find_all(analysis((rank_analysis(0, [partition(9_980, 0, 0, 20)]),)))
    assert (low.slug, low.severity, low.cost_ns) == (Slug.IDLE_LATE_LAUNCH, Severity.LOW, 20_000)


def test_on_shared_cores_nothing_is_claimed_of_overlap() -> None:
    stages = (stage("reduce_scatter", "muon.a", 3_000),)
    ranks = (rank_analysis(0, [partition(8_000, 2_000, 0, 0)], stages, timeline=Timeline.HOST),)
    (told,) = find_all(replace(analysis(ranks), can_tell_overlap=False))
    assert (told.slug, told.severity, told.cost_ns) == (Slug.EXPOSED_COMMUNICATION, Severity.INFO, 0)
    assert told.claim.startswith("Cannot tell what communication costs: 2.00 ms per step")


def test_cpu_ranks_with_cores_of_their_own_get_the_claim() -> None:
    stages = (stage("reduce_scatter", "muon.a", 1_000),)
    ranks = (rank_analysis(0, [partition(8_000, 1_000, 0, 1_000)], stages, timeline=Timeline.HOST),)
    found = find_all(analysis(ranks))
    assert costs(found) == {Slug.EXPOSED_REDUCE_SCATTER: MS, Slug.IDLE_HOST: MS}


def test_ranks_share_cores_where_their_threads_exceed_them() -> None:
    run = manifest()
    assert is_sharing_cores(run) is False
    assert is_sharing_cores(replace(run, environment={"num_cores": 8, "variables": {"OMP_NUM_THREADS": "8"}})) is True
    assert is_sharing_cores(replace(run, environment={"num_cores": 2})) is False
    assert is_sharing_cores(replace(run, environment={"num_cores": 1})) is True
    assert is_sharing_cores(replace(run, environment={})) is None


def test_profiler_overhead_is_told_and_said_where_it_may_be_idle_time() -> None:
    found = find_all(analysis(two_ranks(), run_log()))
    overhead = next(finding for finding in found if finding.slug == Slug.PROFILER_OVERHEAD)
    assert (overhead.severity, overhead.cost_ns) == (Severity.INFO, 0)
    assert overhead.claim.startswith("Under the profiler a step of rank 0 takes 10.0 ms instead of 9.24 ms (8.7% more)")
    assert overhead.evidence == (Evidence(rank=0, step=None, start_ns=EPOCH_NS + MS, end_ns=EPOCH_NS + 21 * MS),)
    assert found[0].claim.endswith("; the profiler may cause up to 800 us of it.")


def test_without_a_trace_the_step_log_alone_speaks() -> None:
    log = step_log(step_rows(0, "clean", 0, [10 * MS] * 9 + [11 * MS + 1]) + step_rows(0, "profiled", 10, [10 * MS]))
    (unsteady,) = find_all(analysis((), log))
    assert unsteady.slug == Slug.UNSTEADY_STEPS
    start_ns = EPOCH_NS + 9 * 10 * MS
    assert unsteady.evidence == (Evidence(rank=0, step=9, start_ns=start_ns, end_ns=start_ns + 11 * MS + 1),)


@pytest.mark.parametrize("slowest_ns", [11 * MS, 10 * MS])
def test_a_step_within_a_tenth_of_the_median_is_steady(slowest_ns: int) -> None:
    assert find_all(analysis((), step_log(step_rows(0, "clean", 0, [10 * MS] * 9 + [slowest_ns])))) == ()


def test_work_launched_before_the_capture_puts_nothing_in_doubt() -> None:
    before = replace(budget(1_000, 500), cut=495)
    ranks = (rank_analysis(0, [partition(10_000, 0, 0, 0)], error_budget=before),)
    assert Slug.UNLINKED_WORK not in {finding.slug for finding in find_all(analysis(ranks))}


@pytest.mark.parametrize(("unlinked", "num_findings"), [(9, 0), (10, 1)])
def test_unlinked_work_is_told_from_one_percent(unlinked: int, num_findings: int) -> None:
    ranks = (rank_analysis(0, [partition(10_000, 0, 0, 0)], error_budget=budget(1_000, unlinked)),)
    found = find_all(analysis(ranks))
    assert [finding.slug for finding in found] == [Slug.UNLINKED_WORK] * num_findings


def test_nothing_measured_gives_nothing_found() -> None:
    assert find_all(analysis()) == ()
    assert mean_step_ns(analysis()) is None
    without_steps = replace(rank_analysis(0, []), breakdown=breakdown(0, []))
    assert find_all(analysis((without_steps,))) == ()
    assert mean_step_ns(analysis((without_steps,))) is None


def test_a_finding_without_evidence_cannot_be_built() -> None:
    with pytest.raises(ValueError, match="no evidence"):
        Finding(slug="x", severity=Severity.LOW, claim="", cost_ns=1, evidence=(), try_next="")


def test_the_profiler_is_never_blamed_for_more_than_there_is() -> None:
    found = find_all(analysis((rank_analysis(0, [partition(9_600, 0, 0, 400)]),), run_log()))
    assert found[0].claim.endswith("400 us per step (4.0% of it); the profiler may cause all of it.")
    assert (found[0].severity, found[0].cost_ns) == (Severity.INFO, 0)


@pytest.mark.parametrize(
    ("profiled_us", "remark"), [(10_099, ""), (10_100, "; the profiler may cause up to 100 us of it")]
)
def test_what_the_profiler_adds_is_held_against_the_cost(profiled_us: int, remark: str) -> None:
    """1% of a step, but a tenth of what is idle."""
    rows = step_rows(0, "clean", 0, [10 * MS] * 6) + step_rows(0, "profiled", 6, [profiled_us * 1_000] * 3)
    (idle,) = find_all(analysis((rank_analysis(0, [partition(9_000, 0, 0, 1_000)]),), step_log(rows)))
    assert idle.claim.endswith(f"for 1.00 ms per step (10.0% of it){remark}.")


def test_steps_that_alternate_are_steady() -> None:
    log = alternating_log()
    assert [finding.slug for finding in find_all(analysis((), log))] == [Slug.PROFILER_OVERHEAD]
    (overhead,) = find_all(analysis((), log))
    assert overhead.claim.startswith("Under the profiler a step of rank 0 takes 220 ms instead of 150 ms on average")


def test_a_step_slow_for_its_turn_is_unsteady() -> None:
    rows = step_rows(0, "clean", 0, [100 * MS, 200 * MS] * 10)
    rows[7]["device_ns"] = 300 * MS
    (unsteady,) = find_all(analysis((), step_log(rows)))
    assert unsteady.claim.startswith("Step 7 of rank 0 took 300 ms, 1.50 times the 200 ms usual in its turn")
