from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hand_made import (
    EPOCH_NS,
    HOSTILE_NAMES,
    MS,
    analysis,
    breakdown,
    damaged_report,
    empty_report,
    idle_gaps,
    manifest,
    partition,
    rank_analysis,
    small_report,
    stage,
)
from hand_made_results import (
    BANDWIDTHS,
    KERNEL,
    collective,
    full_analysis,
    full_report,
    gap_group,
    hostile_report,
    kernel,
    match,
    split,
    two_full_ranks,
    wait,
)

from speedprof.analyses.idle_gaps import GapCause
from speedprof.report.document import Report, as_document
from speedprof.report.json_report import format_json, write_json
from speedprof.report.rank_document import LONGEST_NAME, MOST_STAGES, MOST_STEPS
from speedprof.report.sections import SECTIONS_OF, Section
from speedprof.report.tables import segment_table


def test_a_rank_holds_the_keys_that_others_rely_on() -> None:
    document = as_document(small_report())
    assert document["schema_version"] == 1
    first = document["ranks"][0]
    assert first["rank"] == 0
    assert first["timeline"] == "device"
    assert first["window_ns"] == 21 * MS
    assert first["partition"] == {
        "compute_ns": 16_200_000,
        "exposed_communication_ns": 1_800_000,
        "exposed_copy_ns": 200_000,
        "idle_ns": 2_800_000,
    }
    assert (first["communication_ns"], first["overlapped_communication_ns"]) == (3_600_000, 1_800_000)
    assert first["num_steps"] == 2
    assert [(step["step"], step["kind"]) for step in first["steps"]] == [(60, "train"), (61, "train")]
    assert first["steps"][0]["start_ns"] == EPOCH_NS + MS
    assert first["stages"][0] == {
        "stage": "reduce_scatter",
        "group": "muon.attn",
        "num_calls": 2,
        "host_ns": 3_600_000,
        "device_ns": 2_400_000,
        "exposed_ns": 1_200_000,
        "exposed_split": {"wait_ns": 0, "transfer_ns": 0, "unsplit_ns": 1_200_000},
    }
    budget = {"device_events": 1_000, "unlinked": 0, "cut": 0, "crossing": 0, "zero_length": 2}
    assert first["error_budget"] == budget | {"without": {}}


def test_validation_is_a_window_but_no_step() -> None:
    ranks = (rank_analysis(0, [partition(9_000, 0, 0, 1_000)] * 3),)
    segments = [replace(one, kind="validation" if one.step == 61 else one.kind) for one in ranks[0].breakdown.segments]
    validating = replace(ranks[0], breakdown=replace(ranks[0].breakdown, segments=tuple(segments)))
    (rank,) = as_document(replace(empty_report(), analysis=analysis((validating,))))["ranks"]
    assert [step["step"] for step in rank["steps"]] == [60, 62]
    assert rank["num_steps"] == 2
    assert [row[0] for row in segment_table(validating).rows] == ["before the first", "60", "61 validation", "62"]


def test_a_damaged_trace_is_marked() -> None:
    assert as_document(small_report())["damaged_ranks"] == []
    document = as_document(damaged_report())
    assert document["damaged_ranks"] == [1]
    assert [rank["is_damaged"] for rank in document["ranks"]] == [False, True]


def test_every_window_is_its_partition_and_steps_follow_one_another() -> None:
    for rank in as_document(small_report())["ranks"]:
        assert sum(rank["partition"].values()) == rank["window_ns"]
        for step in rank["steps"]:
            assert sum(step["partition"].values()) == step["end_ns"] - step["start_ns"]
        for before, after in zip(rank["steps"], rank["steps"][1:], strict=False):
            assert before["end_ns"] == after["start_ns"]


def test_findings_and_step_times() -> None:
    document = as_document(small_report())
    first = document["findings"][0]
    assert (first["slug"], first["severity"], first["cost_ns_per_step"]) == ("idle-late-launch", "high", 950_000)
    assert first["evidence"] == [
        {"rank": 1, "step": 60, "start_ns": EPOCH_NS + MS, "end_ns": EPOCH_NS + 11 * MS},
    ]
    assert first["try_next"]
    assert document["traced_step_ns"] == 10 * MS
    step_time = document["step_times"][0]
    assert step_time["interval_ns"] == (9_170_000, 9_320_000)
    assert (step_time["interval_of"], step_time["typical_ns"], step_time["levels_ns"]) == ("median", 9_245_000, None)
    assert document["notes"] == ["2 files were skipped: they are not Kineto traces"]


def test_the_run_is_named_with_where_it_ran() -> None:
    run = as_document(small_report())["run"]
    assert run["run_id"] == "20261121-221502_abc1234_tiny_2xh200"
    assert (run["status"], run["preset"], run["world_size"], run["device"]) == ("complete", "tiny", 2, "h200")
    assert (run["commit"], run["dirty"]) == ("abc1234def5678", True)


def test_without_a_run_the_document_is_whole_and_says_so() -> None:
    document = json.loads(format_json(empty_report()))
    assert document["run"] is None
    assert document["traced_step_ns"] is None
    assert document["ranks"] == document["findings"] == document["step_times"] == []


def test_what_json_cannot_hold_becomes_null() -> None:
    declared = {"preset": [float("nan"), {"lr": float("inf")}]}
    report = replace(small_report(), manifest=replace(manifest(), declared=declared))
    assert json.loads(format_json(report))["run"]["preset"] == [None, {"lr": None}]


def test_a_manifest_of_odd_types_does_no_harm() -> None:
    odd = replace(manifest(), environment=[], declared=None)  # type: ignore[arg-type]
    assert as_document(replace(small_report(), manifest=odd))["run"]["commit"] is None


def test_exposed_communication_is_split_and_says_who_was_waited_for() -> None:
    first, second = as_document(full_report())["ranks"]
    assert first["exposed_split"] == {"wait_ns": 300_000, "transfer_ns": 1_400_000, "unsplit_ns": 100_000}
    assert sum(first["exposed_split"].values()) == first["partition"]["exposed_communication_ns"]
    assert (first["contention_estimate_ns"], second["contention_estimate_ns"]) == (200_000, None)
    assert (first["contention_basis"], second["contention_basis"]) == ("10 of 12 transfers have an equal one", None)
    assert second["waited_for"] == [
        {
            "rank": 0,
            "ns": 2_000_000,
            "compute_ns": 500_000,
            "communication_ns": 0,
            "copy_ns": 0,
            "idle_ns": 1_500_000,
            "outside_ns": 0,
            "idle_by_cause": {"late_launch": 1_200_000, "sync": 300_000},
        }
    ]
    for rank in (first, second):
        for step in rank["steps"]:
            assert sum(step["exposed_split"].values()) == step["partition"]["exposed_communication_ns"]
        for one in rank["stages"]:
            assert sum(one["exposed_split"].values()) == one["exposed_ns"]
    assert second["collectives"][0]["exposed_split"] == {
        "wait_ns": 1_500_000,
        "transfer_ns": 1_000_000,
        "unsplit_ns": 100_000,
    }


def test_a_rank_that_was_compared_with_none_has_only_unsplit_time() -> None:
    (rank, _) = as_document(small_report())["ranks"]
    assert rank["exposed_split"] == {"wait_ns": 0, "transfer_ns": 0, "unsplit_ns": 1_800_000}
    assert rank["steps"][0]["exposed_split"] == {"wait_ns": 0, "transfer_ns": 0, "unsplit_ns": 1_000_000}
    assert rank["waited_for"] == rank["waited_for_in_steps"] == rank["collectives"] == []
    assert rank["contention_estimate_ns"] is None


def test_the_device_of_a_rank_by_itself() -> None:
    first = as_document(full_report())["ranks"][0]
    assert first["idle"]["by_cause"] == {"late_launch": 1_000_000, "sync": 800_000}
    assert first["idle"]["num_groups"] == 2
    assert first["idle"]["groups"][0] == {
        "cause": "late_launch",
        "range": "speedprof.stage/update/adam.scalars",
        "op": "aten::item",
        "call": "cudaStreamSynchronize",
        "num_gaps": 10,
        "total_ns": 1_000_000,
        "longest_ns": 200_000,
        "longest_start_ns": EPOCH_NS + 3 * MS,
        "longest_step": 60,
    }
    assert first["launches"]["num_launches"] == 400
    assert [kernel["name"] for kernel in first["kernels"]] == ["gemm", KERNEL]
    assert first["error_budget"]["without"]["unlinked"] == {
        "num_events": 5,
        "partition": {
            "compute_ns": 16 * MS,
            "exposed_communication_ns": 1_800_000,
            "exposed_copy_ns": 200_000,
            "idle_ns": 3 * MS,
        },
    }


def test_the_ranks_together() -> None:
    document = as_document(full_report(full_analysis(offset_ns=7_000)))
    found = document["collectives"]
    assert (found["matched"], found["of"], found["certainty"], found["refused_because"]) == (12, 12, 0.75, None)
    assert found["clocks"][1] == {"rank": 1, "offset_ns": 7_000, "residual_ns": 5_000, "num_collectives": 12}
    assert [one["bus_bytes_per_s"] for one in found["bandwidth"]] == [20e9, None]
    assert [(kind["name"], kind["stage"], kind["count"]) for kind in found["kinds"]] == [
        ("all_reduce", None, 4),
        ("all_gather", "all_gather", 8),
        ("reduce_scatter", "reduce_scatter", 4),
    ]
    assert found["kinds"][1]["exposed_split"] == {"wait_ns": 600_000, "transfer_ns": 800_000, "unsplit_ns": 100_000}
    (late,) = document["stragglers"]
    assert (late["rank"], late["cost_ns_per_step"], late["cause"]) == (0, MS, "late_launch")
    assert late["excess_ns_per_step"]["compute"] == 600_000


@pytest.mark.parametrize(
    ("report", "why"),
    [
        (empty_report(), "there is no trace"),
        (small_report(), "no trace holds a collective"),
        (damaged_report(), "no trace that is whole holds a collective"),
        (
            full_report(replace(full_analysis(), match=match(refused_because="their names differ"))),
            "their names differ",
        ),
    ],
)
def test_why_nothing_was_matched_is_always_said(report: Report, why: str) -> None:
    found = as_document(report)["collectives"]
    assert (found["matched"], found["certainty"], found["refused_because"]) == (0, None, why)


def test_what_a_damaged_trace_cannot_tell_is_null() -> None:
    first, second = two_full_ranks()
    report = full_report(replace(full_analysis(), ranks=(first, replace(second, is_damaged=True, exposure=None))))
    damaged = as_document(report)["ranks"][1]
    sums = ("window_ns", "partition", "exposed_split", "waited_for", "collectives", "idle", "launches", "kernels")
    assert [damaged[name] for name in sums] == [None] * len(sums)
    assert damaged["error_budget"]["without"] is None
    assert damaged["error_budget"]["device_events"] == 1_000
    assert set(damaged) == set(as_document(report)["ranks"][0])


ALWAYS = {
    *("schema_version", "speedprof_version", "sections", "sources", "damaged_ranks", "run", "traced_step_ns"),
    *("findings", "ranks", "notes"),
}
ALWAYS_OF_A_RANK = {"rank", "is_damaged", "timeline", "window_ns", "num_steps"}


@pytest.mark.parametrize(
    ("section", "keys", "keys_of_a_rank"),
    [
        (Section.STEP_TIME, {"step_times"}, set()),
        (
            Section.PARTITION,
            set(),
            {
                *("partition", "communication_ns", "overlapped_communication_ns", "steps", "before_first_step"),
                "copies",
            },
        ),
        (
            Section.OVERLAP,
            {"collectives"},
            {
                *("communication_ns", "overlapped_communication_ns", "steps", "exposed_split", "waited_for", "stages"),
                *(
                    "contention_estimate_ns",
                    "contention_basis",
                    "collectives",
                    "before_first_step",
                    "waited_for_in_steps",
                ),
            },
        ),
        (Section.STRAGGLERS, {"collectives", "stragglers"}, {"waited_for", "waited_for_in_steps"}),
        (Section.IDLE, set(), {"idle"}),
        (Section.LAUNCHES, set(), {"launches"}),
        (Section.KERNELS, set(), {"num_kernels", "kernels"}),
        (Section.CERTAINTY, set(), {"error_budget"}),
    ],
)
def test_only_the_parts_that_were_asked_for(section: Section, keys: set[str], keys_of_a_rank: set[str]) -> None:
    document = as_document(replace(full_report(), sections=frozenset({section})))
    assert set(document) == ALWAYS | keys
    assert document["sections"] == [section.value]
    assert set(document["ranks"][0]) == ALWAYS_OF_A_RANK | keys_of_a_rank
    assert all(section in SECTIONS_OF[finding["slug"]] for finding in document["findings"])


def test_each_finding_is_in_the_document_of_its_section() -> None:
    report = full_report()
    told = {
        finding["slug"]
        for section in Section
        for finding in as_document(replace(report, sections=frozenset({section})))["findings"]
    }
    assert told == {finding.slug for finding in report.findings}


def test_no_trace_makes_a_document_too_large() -> None:
    """Eight ranks with more of everything than a trace of a million events holds, and names of 100,000 characters."""
    name = "long " * 20_000
    first = replace(two_full_ranks(name)[0], stages=tuple(stage("update", f"{k}{name}", k) for k in range(3_000)))
    assert first.exposure is not None
    exposure = replace(
        first.exposure,
        steps=(split(0, 0, 10),) * 20_000,
        waits=tuple(wait(k, compute=1) for k in range(1_000)),
        collectives=(collective("all_gather", "all_gather", "muon.attn", split(1, 1)),) * 5_000,
    )
    many = replace(
        first,
        breakdown=breakdown(0, [partition(1, 10, 1, 1)] * 20_000),
        exposure=exposure,
        idle=idle_gaps({GapCause.SYNC: 1}, (gap_group(GapCause.SYNC, 1),) * 50_000),
        kernels=(kernel("void f<" * 500, 1, stage="update", group="muon.attn"),) * 50_000,
    )
    measured = analysis((many,) * 8, match=match(), bandwidths=BANDWIDTHS * 5_000)
    document = format_json(replace(empty_report(), analysis=measured))
    assert len(document) < 30_000_000
    rank = json.loads(document)["ranks"][0]
    assert (rank["num_steps"], len(rank["steps"]), len(rank["stages"])) == (20_000, MOST_STEPS, MOST_STAGES)
    assert len(rank["stages"][0]["group"]) == LONGEST_NAME
    assert rank["stages"][-1]["group"].startswith("2999long")


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_hostile_names_come_back_as_they_were(name: str, tmp_path: Path) -> None:
    write_json(hostile_report(name), tmp_path / "report.json")
    raw = (tmp_path / "report.json").read_bytes()
    assert all(32 <= byte < 127 or byte == 10 for byte in raw)
    group = json.loads(raw)["ranks"][0]["stages"][0]["group"]
    assert group == name if len(name) <= LONGEST_NAME else group == f"{name[: LONGEST_NAME - 1]}…"
