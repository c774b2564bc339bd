"""The tables that every report prints, row by row, of values set by hand: two traced steps of 10 ms."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hand_made import (
    MS,
    analysis,
    breakdown,
    damaged_report,
    empty_report,
    idle_gaps,
    partition,
    rank_analysis,
    small_report,
)
from hand_made_results import (
    full_analysis,
    full_report,
    match,
    straggler,
    two_full_ranks,
    wait,
)

from speedprof.analyses.certainty import PartitionWithout
from speedprof.analyses.idle_gaps import GapCause
from speedprof.report.certainty_tables import clock_table, error_budget_table, format_certainty, without_table
from speedprof.report.communication_tables import (
    bandwidth_table,
    collective_table,
    exposure_table,
    format_match,
    format_meanwhile,
)
from speedprof.report.console import TABLES
from speedprof.report.device_tables import gap_table, idle_table, kernel_table, launch_table
from speedprof.report.document import Report
from speedprof.report.stage_tables import costliest_stage_table
from speedprof.report.straggler_tables import HEAT_LEVELS, format_no_straggler, straggler_table, wait_matrix
from speedprof.report.text_table import TextTable
from speedprof.trace.model import Timeline


def shown(table: TextTable) -> list[dict[str, str]]:
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def test_exposed_communication_by_rank() -> None:
    first, second = shown(exposure_table(full_report()))
    assert first == {
        "rank": "0",
        "waits most for": "rank 1: 0.150",
        "which meanwhile": "compute 0.150",
        "exposed": "0.900",
        "wait": "0.150",
        "transfer": "0.700",
        "unsplit": "0.050",
        "contention": "0.100",
    }
    assert second["waits most for"] == "rank 0: 1.000"
    assert second["which meanwhile"] == "late launch 0.600, compute 0.250, sync 0.150"
    assert second["contention"] == "-"
    assert "12 of 12 collectives" in exposure_table(full_report()).remark
    assert "bear out 75.0% of them" in exposure_table(full_report()).remark


def test_without_a_match_exposed_communication_is_unsplit() -> None:
    table = exposure_table(small_report())
    assert [(row["exposed"], row["wait"], row["unsplit"]) for row in shown(table)] == [
        ("0.900", "0.000", "0.900"),
        ("1.750", "0.000", "1.750"),
    ]
    assert "waits most for" not in table.shortened(9).columns
    assert "Collectives are not matched across ranks: no trace holds a collective." in table.remark


def test_a_refusal_is_said_once_with_its_reason() -> None:
    refused = full_report(replace(full_analysis(), match=match(refused_because="the names differ.")))
    assert format_match(refused) == "Collectives are not matched across ranks: the names differ."
    assert format_no_straggler(refused).startswith("Who waits for whom is not known")


def test_small_parts_of_what_a_late_rank_did_are_left_out() -> None:
    late = wait(1, compute=60, copy=9, communication=131, late_launch=400, queued=400)
    assert format_meanwhile(late, 1) == "queued 0.400, late launch 0.400, other collectives 0.131"
    # A host timeline knows no causes.
    assert format_meanwhile(replace(wait(1, sync=100), idle_by_cause={}), 2) == "idle 0.050"


def test_collectives_by_kind() -> None:
    assert [tuple(row.values()) for row in shown(collective_table(full_report()))] == [
        ("all_reduce", "-", "1", "0.650", "0.000", "0.650", "0.375", "0.250"),
        ("all_gather", "all_gather of muon.attn", "2", "0.500", "0.200", "0.375", "0.150", "0.200"),
        ("reduce_scatter", "reduce_scatter of muon.attn", "1", "0.400", "0.100", "0.300", "0.050", "0.250"),
    ]


def test_bandwidth_is_that_of_the_median_time() -> None:
    gather, barrier = shown(bandwidth_table(full_report()))
    assert (gather["size"], gather["median us"], gather["bus GB/s"]) == ("4.00 MB", "100.0", "20")
    assert barrier["bus GB/s"] == "-"


def test_stages_are_split_where_that_is_known() -> None:
    (gather, scatter, newton) = shown(costliest_stage_table(full_report()))
    assert (gather["stage"], gather["exposed"], gather["wait"], gather["transfer"]) == (
        *("all_gather", "0.375"),
        *("0.150", "0.200"),
    )
    assert (scatter["stage"], scatter["wait"]) == ("reduce_scatter", "0.050")
    assert (newton["exposed"], newton["wait"]) == ("0.000", "0.000")
    assert shown(costliest_stage_table(small_report()))[0]["wait"] == "-"


def test_a_straggler_shows_what_it_has_more_of() -> None:
    (late,) = shown(straggler_table(full_report()))
    assert late == {
        "rank": "0",
        "cause": "late launches",
        "spends more in": "late launch +0.700, compute +0.600",
        "slower kernels (own, others)": "vectorized_elementwise_kernel<4… (0.200, 0.120)",
        "cost": "1.000",
        "share of waiting": "87.0%",
    }
    least = full_report(replace(full_analysis(), stragglers=(straggler({"compute": -5, "sync": 0}),)))
    assert shown(straggler_table(least))[0]["spends more in"] == "-"


def test_why_no_straggler_is_named() -> None:
    none_late = full_report(replace(full_analysis(), stragglers=()))
    assert format_no_straggler(none_late) == "No rank is waited for more than chance has it."
    alone = full_report(replace(full_analysis(), stragglers=(), ranks=two_full_ranks()[:1]))
    assert "one rank alone" in format_no_straggler(alone)


@pytest.mark.parametrize("is_told", [True, False])
def test_of_ranks_that_share_cores_nobody_is_called_late(is_told: bool) -> None:
    ranks = tuple(replace(rank, breakdown=replace(rank.breakdown, timeline=Timeline.HOST)) for rank in two_full_ranks())
    report = full_report(replace(full_analysis(), ranks=ranks, stragglers=(), can_tell_overlap=is_told))
    assert ("share cores" in exposure_table(report).remark) is not is_told
    assert ("share cores" in format_no_straggler(report)) is not is_told


def test_who_waits_for_whom() -> None:
    matrix = wait_matrix(full_report())
    assert matrix is not None
    assert matrix.columns == (0, 1)
    assert [(rank, [cell.text for cell in cells], together) for rank, cells, together in matrix.rows] == [
        (0, ["", "0.150"], "0.150"),
        (1, ["1.000", ""], "1.000"),
    ]
    assert [cell.level for _, cells, _ in matrix.rows for cell in cells] == [0, 1, HEAT_LEVELS, 0]
    assert wait_matrix(small_report()) is None
    assert wait_matrix(empty_report()) is None


def test_a_matrix_of_many_ranks_shows_those_that_matter() -> None:
    one = two_full_ranks()[0]
    assert one.exposure is not None
    ranks = tuple(
        replace(one, rank=k, exposure=replace(one.exposure, waits=(wait((k + 1) % 100, compute=10 + k),)))
        for k in range(100)
    )
    matrix = wait_matrix(full_report(replace(full_analysis(), ranks=ranks)))
    assert matrix is not None
    assert (matrix.columns[0], len(matrix.columns), len(matrix.rows)) == (0, 16, 64)
    assert "84 ranks" in matrix.remark


def test_idle_time_by_cause() -> None:
    table = idle_table(full_report())
    assert table.columns == ("rank", "idle", "late launch", "sync")
    assert table.rows == (("0", "0.900", "0.500", "0.400"), ("1", "1.000", "1.000", "0.000"))
    assert table.remark.startswith("Late launch: the device ran dry before the host launched")


def test_gaps_by_what_the_host_was_in() -> None:
    late, sync = shown(gap_table(full_report()))
    # Rank 0 and rank 1 have ten gaps each in two steps.
    assert (late["cause"], late["the host was in"], late["gaps"], late["time"]) == (
        *("late launch", "update of adam.scalars"),
        *("5", "0.500"),
    )
    assert late["in the longest gap"] == "aten::item"
    assert (sync["in the longest gap"], sync["longest"]) == ("muon.attn > cudaStreamSynchronize", "0.300")
    # Step 60 begins 1 ms after the capture, the gap 3 ms after it.
    assert sync["which is at"] == "rank 0, step 60 +2.000"


def test_gaps_outside_every_range_go_by_their_operator() -> None:
    first, second = two_full_ranks()
    groups = tuple(replace(group, range=None, op=None, call=None) for group in first.idle.groups)
    bare = replace(first, idle=replace(first.idle, groups=groups))
    (late, sync) = shown(gap_table(full_report(replace(full_analysis(), ranks=(bare,)))))
    assert late["the host was in"] == sync["the host was in"] == "nothing recorded"
    assert late["in the longest gap"] == "-"
    op = replace(groups[0], op="aten::copy_", call="cudaMemcpyAsync")
    named = replace(second, idle=replace(second.idle, groups=(op,)))
    (copy,) = shown(gap_table(full_report(replace(full_analysis(), ranks=(named,)))))
    assert (copy["the host was in"], copy["in the longest gap"]) == ("aten::copy_", "-")


def test_launches_and_kernels() -> None:
    first, _ = shown(launch_table(full_report()))
    assert tuple(first.values()) == ("0", "200", "190", "1.500", "6.5", "1.250", "4 (2.0%)", "9.5 (5.0%)")
    gemm, fill = kernel_table(full_report()).rows
    assert gemm == ("gemm", "compute", "-", "10", "3.000", "1.500")
    # Rank 0 alone has it: half of what it takes there.
    assert fill == (
        "vectorized_elementwise_kernel<4, FillFunctor<float>>",
        *("compute", "update of muon.attn", "5", "0.250", "0.125"),
    )


def test_the_budget_and_the_partition_without_it() -> None:
    report = full_report()
    assert shown(error_budget_table(report))[0]["zero length"] == "2"
    whole, unlinked, *_ = without_table(report).rows
    assert whole == ("0", "nothing", "", "16.200", "1.800", "0.200", "2.800")
    assert unlinked == ("0", "unlinked", "5", "16.000", "1.800", "0.200", "3.000")
    # 0.2 ms of 21 were compute and are idle without these events.
    assert format_certainty(report) == (
        "Without the 7 device events known only in part, most of them cut, 0.95% of rank 0's capture would be "
        "something else."
    )
    assert format_certainty(small_report()) == ""
    same = PartitionWithout(kind="any", num_events=3, partition=partition(16_200, 1_800, 200, 2_800))
    (first, _) = two_full_ranks()
    unchanged = full_report(replace(full_analysis(), ranks=(replace(first, certainty=(same,)),)))
    assert "the partition of no rank would change" in format_certainty(unchanged)


def test_clocks_are_shown_where_one_was_moved() -> None:
    assert clock_table(full_report()).rows == ()
    assert clock_table(full_report(full_analysis(offset_ns=-7_000))).rows == (
        ("0", "+0.0", "0.0", "12"),
        ("1", "-7.0", "5.0", "12"),
    )


def test_without_steps_the_whole_capture_is_told() -> None:
    first, second = (
        replace(rank, breakdown=breakdown(rank.rank, []), exposure=None, idle=idle_gaps({GapCause.SYNC: MS}))
        for rank in two_full_ranks()
    )
    report = full_report(replace(full_analysis(), ranks=(first, second)))
    assert idle_table(report).title == "Idle time of the device by cause, ms in the whole capture"
    assert idle_table(report).rows[0] == ("0", "1.000", "1.000")


def bare_reports() -> list[Report]:
    nothing = rank_analysis(0, [])
    no_window = replace(nothing, breakdown=replace(breakdown(0, []), partition=partition(0, 0, 0, 0)))
    on_host = rank_analysis(0, [partition(1, 1, 0, 0)], timeline=Timeline.HOST)
    return [
        empty_report(),
        damaged_report(),
        *(replace(empty_report(), analysis=analysis((rank,))) for rank in (nothing, no_window, on_host)),
    ]


@pytest.mark.parametrize("report", bare_reports())
def test_no_table_needs_anything_to_be_there(report: Report) -> None:
    for _, make_table, limit in TABLES:
        table = make_table(report).shortened(limit)
        assert all(len(row) == len(table.columns) for row in table.rows)
    assert without_table(report).rows == ()
    assert wait_matrix(report) is None


def test_a_table_is_shortened_to_what_matters_and_says_so() -> None:
    table = TextTable(
        title="t",
        columns=("rank", "words", "time"),
        rows=tuple((str(k), "-" if k < 3 else "w", str(k)) for k in range(4)),
        num_labels=2,
        remark="Time: ns.",
        weights=(3.0, 1.0, 2.0, 0.0),
    )
    short = table.shortened(2)
    assert short.rows == (("0", "0"), ("2", "2"))
    assert (short.columns, short.num_labels, short.weights) == (("rank", "time"), 1, (3.0, 2.0))
    assert short.remark == "2 smaller rows left out. Time: ns."
    assert table.shortened(4) == table
    assert replace(table, weights=()).shortened(3).rows == (("0", "0"), ("1", "1"), ("2", "2"))
    assert replace(table, weights=()).shortened(3).remark == "1 smaller row left out. Time: ns."
