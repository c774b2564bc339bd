"""What must hold on captures that nobody here made."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest

from speedprof.analyses.analysis import Analysis
from speedprof.analyses.idle_gaps import GapCause
from speedprof.analyses.measure import compare_ranks, measure_rank
from speedprof.analyses.stragglers import StragglerCause
from speedprof.findings import Slug, find_all
from speedprof.trace.read_kineto import read_kineto

ROOT = Path(__file__).parents[2]
KINETO = ROOT.parent / "shared" / "data" / "kineto"
needs_captures = pytest.mark.skipif(not KINETO.exists(), reason="the real captures are not in ../shared/data")


@cache
def analysis_of(name: str, folder: Path = KINETO) -> Analysis:
    """Every rank of one folder."""
    return compare_ranks([measure_rank(read_kineto(path)) for path in sorted((folder / name).glob("*.json.gz"))])


def test_graphs_groups_and_shared_memory_are_matched_and_a_sleep_on_one_rank_is_found() -> None:
    """Of 6 collectives a step, 2 launched by NCCL are declared, 2 are symmetric memory's, 2 run in a CUDA graph.

    Rank 1 sleeps 3 ms a step before it reads a result back; its launches are late by at least 2 of them, since the
    device has work for a part of the time.
    """
    analysis = analysis_of("h200-graphs-2ranks", ROOT / "traces" / "samples")
    assert analysis.match is not None
    assert (analysis.match.num_matched, analysis.match.num_matchable, analysis.match.certainty) == (60, 60, 1.0)
    (late,) = analysis.stragglers
    assert (late.rank, late.cause) == (1, StragglerCause.LATE_LAUNCH)
    assert late.excess_ns["late_launch"] > 2_000_000
    for rank in analysis.ranks:
        assert rank.error_budget.unlinked == 0
        assert rank.exposure is not None
        assert rank.exposure.split.unsplit_ns == 0


@needs_captures
def test_every_collective_of_the_speedrun_is_matched_though_its_ranks_hold_unequal_counts() -> None:
    match = analysis_of("speedrun-8xH100").match
    assert match is not None
    assert (match.num_matched, match.num_matchable, match.certainty, match.refused_because) == (76, 76, 1.0, None)
    assert {clock.offset_ns for clock in match.clocks} == {0}


@needs_captures
def test_rank_1_of_the_speedrun_is_the_straggler_since_its_host_launches_late() -> None:
    """The raw events: rank 1 waits 6 ms in all, the others 31 to 40; 26 of its 35 ms of idle time are late launches."""
    analysis = analysis_of("speedrun-8xH100")
    first = analysis.stragglers[0]
    assert (first.rank, first.cause) == (1, StragglerCause.LATE_LAUNCH)
    findings = find_all(analysis)
    straggler = next(one for one in findings if one.slug == Slug.STRAGGLER)
    assert straggler.claim.startswith("The other ranks wait for rank 1 ")
    assert straggler.evidence[0].rank == 1
    assert straggler.evidence[1].rank != 1


@needs_captures
def test_exposed_communication_splits_without_remainder_on_every_rank() -> None:
    for name in ("speedrun-8xH100", "dlrm-8xV100", "sampled-2of128", "resnet-rank0of8-MI300X"):
        for rank in analysis_of(name).ranks:
            assert rank.exposure is not None
            split = rank.exposure.split
            assert split.wait_ns + split.transfer_ns + split.unsplit_ns == (
                rank.breakdown.partition.exposed_communication_ns
            )


@needs_captures
def test_rank_7_of_dlrm_is_the_straggler() -> None:
    analysis = analysis_of("dlrm-8xV100")
    assert analysis.match is not None
    assert (analysis.match.num_matched, analysis.match.num_matchable) == (8, 8)
    assert analysis.stragglers[0].rank == 7


@needs_captures
def test_the_input_pipeline_starves_resnet50() -> None:
    analysis = analysis_of("resnet50-V100-dataloader")
    costliest = find_all(analysis)[0]
    assert costliest.slug == Slug.IDLE_INPUT
    assert "DataLoader" in costliest.claim


@needs_captures
def test_of_two_sampled_ranks_of_128_the_matching_alone_is_refused() -> None:
    analysis = analysis_of("sampled-2of128")
    assert analysis.match is not None
    assert analysis.match.num_matched == 0
    assert analysis.match.refused_because
    assert analysis.stragglers == ()
    slugs = {one.slug for one in find_all(analysis)}
    assert {Slug.UNMATCHED_COLLECTIVES, Slug.EXPOSED_COMMUNICATION} <= slugs
    for rank in analysis.ranks:
        assert rank.exposure is not None
        assert (rank.exposure.split.wait_ns, rank.exposure.split.transfer_ns) == (0, 0)


@needs_captures
@pytest.mark.parametrize("name", sorted(path.name for path in KINETO.glob("*")) or ["none"])
def test_idle_time_is_late_queued_or_unlinked_as_in_the_truth(name: str) -> None:
    """truth_idle.json cuts whole captures by the launch of the work that ends each gap, in µs as floats.

    Its `host_late` is what has one of the host's causes here, and `queued` what was launched in time.
    """
    truth = json.loads((KINETO / name / "truth_idle.json").read_text())
    in_time = {GapCause.QUEUED, GapCause.BELOW_LAUNCH_RESOLUTION}
    for path in sorted((KINETO / name).glob("*.json.gz")):
        expected = truth[path.name.removesuffix(".json.gz")]
        table = measure_rank(read_kineto(path)).analysis.idle.table
        cause_of = dict(zip(table["start_ns"], (GapCause(cause) for cause in table["cause"]), strict=True))
        sums = {"host_late_us": 0.0, "queued_us": 0.0, "unlinked_us": 0.0}
        for start_ns, end_ns in table.select("start_ns", "end_ns").iter_rows():
            cause = cause_of[start_ns]
            key = "unlinked" if cause is GapCause.UNLINKED else "queued" if cause in in_time else "host_late"
            sums[f"{key}_us"] += (end_ns - start_ns) / 1_000
        tolerance_us = 0.001 * expected["idle_us"]
        for key, found_us in sums.items():
            assert found_us == pytest.approx(expected[key], abs=tolerance_us), (path.name, key)
