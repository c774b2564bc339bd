"""The large trace of the benchmark is the real one many times over: nothing lost, nothing linked across copies."""

import gzip
import json
from pathlib import Path

import pytest
from builders import kineto_text, read_events, rows_to_events

from benchmarks.large_trace import TraceTemplate, read_template, write_large_trace
from benchmarks.trace_reading import LargeTrace, check_repeated, parse_size
from speedprof.analyses.breakdown import measure_breakdown
from speedprof.trace.model import Trace
from speedprof.trace.read_kineto import read_kineto

KINETO = Path(__file__).parents[3] / "shared" / "data" / "kineto"
needs_captures = pytest.mark.skipif(not KINETO.is_dir(), reason="the folder of real captures is not beside this one")

# Two steps of 50 µs. The first kernel was launched before the capture began, the collective runs beside nothing.
ROWS = """
    0 | main      | ProfilerStep#10                |      0 |  50000 |
    0 | main      | ProfilerStep#11                |  50000 | 100000 |
    0 | main      | speedprof.step/7               |      0 |  50000 |
    0 | main      | speedprof.step/8               |  50000 | 100000 |
    0 | main      | a name with "ts": 5 in it      |   1000 |   2000 |
    0 | stream 7  | gemm of before                 |    500 |   5001 |
    0 | stream 7  | gemm                           |  10000 |  40000 | main 6000
    0 | stream 23 | ncclDevKernel_AllReduce_RING() |  40000 |  60000 | main 8000
    0 | stream 7  | gemm                           |  70000 |  99000 | main 51000
"""
PERIOD_NS = 102_000  # 100 µs from the first start to the last end, in whole µs, and two more


def events_of_rows() -> list[dict[str, object]]:
    """The rows' events with the flows and ids that Kineto writes beside them."""
    events: list[dict[str, object]] = [{"ph": "M", "name": "process_name", "ts": 0, "pid": 1, "args": {"name": "x"}}]
    for place, event in enumerate(rows_to_events(ROWS)[0]):
        args = {**event.get("args", {}), "Ev Idx": place, "External id": place + 100}
        events.append({**event, "args": args})
        if "correlation" in args:
            phase = "s" if event["cat"] == "cuda_runtime" else "f"
            events.append({"ph": phase, "id": args["correlation"], "cat": "ac2g", "name": "ac2g", "ts": event["ts"]})
    return events


def make_large(folder: Path, num_copies: int, events: list[dict[str, object]] | None = None, name: str = "l") -> Path:
    real, large = folder / "real.json", folder / f"{name}.json"
    real.write_text(kineto_text(events_of_rows() if events is None else events))
    write_large_trace(read_template(real), large, num_copies)
    return large


def ids_of(events: list[dict[str, object]], key: str) -> set[int]:
    return {event["args"][key] for event in events if key in event.get("args", {})}


def by_copy(path: Path, num_copies: int) -> list[list[dict[str, object]]]:
    events = [event for event in json.loads(path.read_text())["traceEvents"] if event["ph"] != "M"]
    size = len(events) // num_copies
    assert len(events) == num_copies * size
    return [events[at : at + size] for at in range(0, len(events), size)]


def test_one_copy_is_the_real_file_but_for_the_place_of_its_metadata(tmp_path):
    large = json.loads(make_large(tmp_path, 1).read_text())
    assert large == json.loads((tmp_path / "real.json").read_text())


def test_every_copy_is_the_real_trace_later_with_ids_of_its_own(tmp_path):
    first, second, third = by_copy(make_large(tmp_path, 3), 3)
    for number, copy in ((1, second), (2, third)):
        for real, event in zip(first, copy, strict=True):
            assert event["ts"] == pytest.approx(real["ts"] + number * PERIOD_NS / 1000, abs=1e-6)
            changed = {"ts", "id", "name", "args"}
            assert {k: v for k, v in event.items() if k not in changed} == {
                k: v for k, v in real.items() if k not in changed
            }
    for key in ("correlation", "Ev Idx", "External id"):
        ids = [ids_of(copy, key) for copy in (first, second, third)]
        assert len(set.union(*ids)) == 3 * len(ids[0]) > 0


def test_flows_and_kernels_keep_the_id_of_their_launch(tmp_path):
    for copy in by_copy(make_large(tmp_path, 3), 3):
        flows = {(event["ph"], event["id"]) for event in copy if event["ph"] in "sf"}
        expected = {
            ("s" if event["cat"] == "cuda_runtime" else "f", event["args"]["correlation"])
            for event in copy
            if event["ph"] == "X" and "correlation" in event["args"]
        }
        assert flows == expected
        assert len(flows) == 7


def test_launches_link_to_the_kernels_of_their_own_copy(tmp_path):
    kernels = read_kineto(make_large(tmp_path, 4)).kernels
    real = [(500, None), (10_000, 6000), (40_000, 8000), (70_000, 51_000)]
    expected = [
        (start + copy * PERIOD_NS, launch if launch is None else launch + copy * PERIOD_NS)
        for copy in range(4)
        for start, launch in real
    ]
    assert kernels.select("start_ns", "launch_start_ns").rows() == expected


def test_steps_count_on(tmp_path):
    ranges = read_kineto(make_large(tmp_path, 3)).ranges
    steps = {kind: ranges.filter(ranges["kind"] == kind)["step"].to_list() for kind in ("profiler_step", "step")}
    assert steps == {"profiler_step": [10, 11, 12, 13, 14, 15], "step": [7, 8, 9, 10, 11, 12]}


def test_a_name_that_looks_like_a_number_of_the_trace_is_left_alone(tmp_path):
    names = read_kineto(make_large(tmp_path, 2)).ops["name"].to_list()
    assert names == ['a name with "ts": 5 in it'] * 2


def test_zero_stands_for_no_link_in_every_copy(tmp_path):
    events = rows_to_events("0 | stream 7 | gemm | 10 | 20 |\n0 | stream 7 | gemm | 30 | 40 | main 5")[0]
    events[0]["args"]["correlation"] = 0
    kernels = read_kineto(make_large(tmp_path, 3, events)).kernels
    assert kernels["correlation"].to_list()[::2] == [0, 0, 0]
    assert kernels["linked"].to_list() == [False, True] * 3


def test_whole_microseconds_stay_whole_and_decimals_stay(tmp_path):
    kernel = {"ph": "X", "cat": "kernel", "name": "gemm", "pid": 0, "tid": 7, "args": {"stream": 7}}
    for ts, later in (("1694128201435418", "1694128201435425"), ("1435418.250", "1435425.250")):
        (tmp_path / "real.json").write_text(
            json.dumps({"traceEvents": [{**kernel, "ts": 0, "dur": 5}]}).replace('"ts": 0', f'"ts": {ts}')
        )
        template = read_template(tmp_path / "real.json")
        assert template.period_us == 7
        assert f'"ts": {later},' in template.copy(1)


def test_a_packed_trace_holds_the_text_of_the_plain_one(tmp_path):
    plain = make_large(tmp_path, 5)
    write_large_trace(read_template(tmp_path / "real.json"), tmp_path / "l.json.gz", 5)
    assert gzip.decompress((tmp_path / "l.json.gz").read_bytes()) == plain.read_bytes()


def summary(trace: Trace) -> dict[str, int]:
    """What the benchmark's process prints of a trace."""
    breakdown, budget = measure_breakdown(trace), trace.error_budget
    parts = breakdown.partition
    return {
        "compute_ns": parts.compute_ns,
        "exposed_communication_ns": parts.exposed_communication_ns,
        "exposed_copy_ns": parts.exposed_copy_ns,
        "idle_ns": parts.idle_ns,
        "gaps_ns": parts.idle_ns,
        "segments_ns": sum(segment.partition.window_ns for segment in breakdown.segments),
        "communication_ns": breakdown.communication_ns,
        "overlapped_communication_ns": breakdown.overlapped_communication_ns,
        "device_events": budget.device_events,
        "linked": budget.device_events - budget.unlinked,
        "crossing": budget.crossing,
        "launches": len(trace.launches),
        "ops": len(trace.ops),
        "steps": len(trace.steps),
    }


def large_of(template: TraceTemplate, path: Path, num_copies: int) -> LargeTrace:
    write_large_trace(template, path, num_copies)
    num_events = num_copies * template.num_events
    return LargeTrace(path=path, num_copies=num_copies, num_events=num_events, period_ns=template.period_us * 1000)


def test_the_benchmark_notices_a_number_that_is_not_the_real_ones_times_the_copies(tmp_path):
    (tmp_path / "real.json").write_text(kineto_text(events_of_rows()))
    template = read_template(tmp_path / "real.json")
    large, of_real = large_of(template, tmp_path / "large.json", 3), summary(read_events(events_of_rows()))
    said = summary(read_kineto(large.path))
    # 98.5 µs from the first kernel to the end of the last, of 102: 3.5 µs of idle at each of the two seams.
    assert (of_real["idle_ns"], said["idle_ns"]) == (14_999, 3 * 14_999 + 2 * 3500)
    check_repeated(large, said, of_real)
    for key in ("compute_ns", "idle_ns", "gaps_ns", "linked"):
        with pytest.raises(AssertionError):
            check_repeated(large, {**said, key: said[key] + 1}, of_real)


@needs_captures
@pytest.mark.parametrize(
    "name", ["speedrun-8xH100", "dlrm-8xV100", "nccl-rank0of2-A100", "resnet-rank0of8-MI300X", "sampled-2of128"]
)
def test_a_real_capture_three_times_over_says_three_times_the_same(tmp_path, name):
    real = KINETO / name / "rank0.json.gz"
    large = large_of(read_template(real), tmp_path / "rank0.json", 3)
    check_repeated(large, summary(read_kineto(large.path)), summary(read_kineto(real)))


@pytest.mark.parametrize(("text", "num_bytes"), [("530MB", 530_000_000), ("1.5GB", 1_500_000_000), ("8KB", 8000)])
def test_sizes_are_decimal(text, num_bytes):
    assert parse_size(text) == num_bytes
