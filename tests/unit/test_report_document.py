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
    damaged_report,
    empty_report,
    manifest,
    partition,
    rank_analysis,
    small_report,
)
from hand_made_results import full_report, hostile_report

from speedprof.report.document import as_document
from speedprof.report.json_report import format_json, write_json
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
    }
    assert first["error_budget"] == {"device_events": 1_000, "unlinked": 0, "cut": 0, "crossing": 0, "zero_length": 2}


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
    assert (first["slug"], first["severity"], first["cost_ns_per_step"]) == ("idle-device", "high", 950_000)
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


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_hostile_names_come_back_as_they_were(name: str, tmp_path: Path) -> None:
    write_json(hostile_report(name), tmp_path / "report.json")
    raw = (tmp_path / "report.json").read_bytes()
    assert all(32 <= byte < 127 or byte == 10 for byte in raw)
    assert json.loads(raw)["ranks"][0]["stages"][0]["group"] == name
