"""The Perfetto file: every slice in its place, on one clock, none that a viewer would drop."""

from __future__ import annotations

import gc
import gzip
import weakref
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from builders import build_trace, build_traces
from hand_made import HOSTILE_NAMES
from hypothesis import given
from hypothesis import strategies as st
from perfetto_files import find_dropped, read_document, read_slices

from speedprof.analyses.clocks import RankClock
from speedprof.analyses.idle_gaps import IdleGaps
from speedprof.analyses.matching import CollectiveMatch
from speedprof.analyses.measure import compare_ranks, measure_rank
from speedprof.findings import Evidence, Finding, Severity, find_all
from speedprof.report.perfetto import write_perfetto
from speedprof.report.perfetto_lanes import find_lanes
from speedprof.report.perfetto_projection import project_ranges
from speedprof.trace.read_kineto import read_kineto

ROOT = Path(__file__).parents[2]
KINETO = ROOT.parent / "shared" / "data" / "kineto"
DAY_NS = 86_400_000_000_000


def analyse(*traces):
    return compare_ranks([measure_rank(trace) for trace in traces])


def slices_of(tmp_path, *traces, analysis=None, findings=()):
    path = tmp_path / "perfetto.json.gz"
    write_perfetto(iter(traces), analyse(*traces) if analysis is None else analysis, findings, path)
    return read_slices(path)


def drawn(slices, *, track=None, process=None):
    """Name, start and end of the slices of a track, in order of time."""
    mine = [one for one in slices if track in (None, one.track) and process in (None, one.process)]
    return sorted(((one.name, one.start_ns, one.end_ns) for one in mine), key=lambda one: one[1:])


def finding(*evidence, slug="idle-late-launch", cost_ns=1_230_000, claim="The host is late.", severity=Severity.HIGH):
    return Finding(
        slug=slug, severity=severity, claim=claim, cost_ns=cost_ns, evidence=evidence, try_next="Launch earlier."
    )


def evidence(rank, start_ns, end_ns, step=None):
    return Evidence(rank=rank, step=step, start_ns=start_ns, end_ns=end_ns)


OVERLAPPING = """
    0 | main      | speedprof.step/1 |  0 | 100 |
    0 | stream 7  | a                | 10 |  40 | main 1
    0 | stream 7  | b                | 30 |  60 | main 2
    0 | stream 7  | c                | 60 |  80 | main 3
    0 | stream 7  | d                | 62 |  70 | main 4
    0 | stream 7  | e                | 64 |  66 | main 5
    0 | stream 23 | f                | 30 |  60 |
"""


def test_kernels_that_overlap_another_of_their_stream_have_tracks_of_their_own(tmp_path):
    slices = slices_of(tmp_path, build_trace(OVERLAPPING))
    assert drawn(slices, track="stream 7") == [("a", 10, 40), ("c", 60, 80)]
    assert drawn(slices, track="stream 7, overlapping") == [("b", 30, 60), ("d", 62, 70)]
    assert drawn(slices, track="stream 7, overlapping 2") == [("e", 64, 66)]
    assert drawn(slices, track="stream 23") == [("f", 30, 60)]


def test_tracks_are_numbered_in_the_order_in_which_they_are_listed(tmp_path):
    slices = slices_of(tmp_path, build_trace(OVERLAPPING))
    number_of = {one.track: one.event["tid"] for one in slices}
    assert sorted(number_of, key=number_of.__getitem__) == [
        "steps on the device",
        "stream 7",
        "stream 7, overlapping",
        "stream 7, overlapping 2",
        "stream 23",
        "thread 1",
    ]
    assert sorted(number_of.values()) == [1, 2, 3, 4, 5, 6]
    # Perfetto would list a thread first whose number is its process's.
    assert all(one.event["pid"] not in number_of.values() for one in slices)


def test_events_of_zero_length_are_kept_beside_what_touches_them(tmp_path):
    trace = build_trace("""
        0 | stream 7 | a | 10 | 20 |
        0 | stream 7 | z | 20 | 20 |
        0 | stream 7 | b | 20 | 30 |
        0 | stream 7 | y | 25 | 25 |
        0 | stream 7 | x | 25 | 25 |
    """)
    slices = slices_of(tmp_path, trace)
    assert drawn(slices, track="stream 7") == [("a", 10, 20), ("z", 20, 20), ("b", 20, 30)]
    assert len([one for one in slices if one.track.startswith("stream 7")]) == 5
    assert find_dropped(slices) == []


def test_ranges_that_cross_on_a_thread_are_all_drawn(tmp_path):
    trace = build_trace("""
        0 | main | speedprof.range/outer | 10 | 50 |
        0 | main | aten::mm              | 20 | 40 |
        0 | main | speedprof.range/late  | 30 | 60 |
        0 | main | aten::add             | 52 | 58 |
    """)
    slices = slices_of(tmp_path, trace)
    assert drawn(slices, track="thread 1") == [
        ("speedprof.range/outer", 10, 50),
        ("aten::mm", 20, 40),
        ("aten::add", 52, 58),
    ]
    assert drawn(slices, track="thread 1, overlapping") == [("speedprof.range/late", 30, 60)]


PROJECTED = """
    0 | main      | speedprof.step/1                            |   0 | 100 |
    0 | main      | speedprof.step/2                            | 100 | 200 |
    0 | main      | speedprof.range/forward                     |  10 |  40 |
    0 | main      | speedprof.range/inner                       |  20 |  30 |
    0 | main      | speedprof.range/empty                       |  41 |  44 |
    0 | main      | speedprof.range/backward                    |  50 |  60 |
    0 | main      | speedprof.stage/reduce_scatter/muon.attn    |  51 |  58 |
    0 | main      | speedprof.range/next                        | 110 | 120 |
    0 | autograd  | autograd::engine::evaluate_function: Mm     |  52 |  57 |
    0 | autograd  | speedprof.stage/update/adam.embed           |  55 |  57 |
    0 | stream 7  | before                                      |  90 | 100 | main 5
    0 | stream 7  | outer                                       | 120 | 140 | main 12
    0 | stream 7  | inner                                       | 140 | 150 | main 22
    0 | stream 7  | outer                                       | 150 | 160 | main 35
    0 | stream 23 | inner                                       | 145 | 180 | main 25
    0 | stream 7  | at the end of the range                     | 160 | 170 | main 40
    0 | stream 23 | ncclDevKernel_ReduceScatter_RING()          | 200 | 230 | main 53
    0 | stream 7  | backward of mm                              | 210 | 220 | autograd 54
    0 | stream 7  | update                                      | 250 | 260 | autograd 56
    0 | stream 7  | next                                        | 270 | 280 | main 111
    0 | stream 9  | Memcpy HtoD                                 |  80 | 300 |
"""


def test_ranges_and_stages_span_the_work_that_was_launched_in_them(tmp_path):
    """Ranges include what inner ones launched, and what autograd's threads launched while they were open on the main
    thread; stages what was launched on their own thread alone."""
    slices = slices_of(tmp_path, build_trace(PROJECTED))
    assert drawn(slices, track="ranges on the device") == [
        ("forward", 120, 180),
        ("inner", 140, 180),
        ("backward", 200, 260),
        ("next", 270, 280),
    ]
    assert drawn(slices, track="stages on the device") == [
        ("reduce_scatter/muon.attn", 200, 230),
        ("update/adam.embed", 250, 260),
    ]
    counted = {one.name: one.args for one in slices if one.track.endswith("on the device")}
    assert counted["forward"] == {"device_events": 4, "host_ns": 30}
    assert counted["backward"] == {"device_events": 3, "host_ns": 10}


def test_steps_are_drawn_as_their_device_windows(tmp_path):
    slices = slices_of(tmp_path, build_trace(PROJECTED))
    assert drawn(slices, track="steps on the device") == [("step 1", 90, 270), ("step 2", 270, 300)]


def test_ranges_crossing_on_the_device_have_a_track_more(tmp_path):
    trace = build_trace("""
        0 | main      | speedprof.range/a | 10 | 20 |
        0 | main      | speedprof.range/b | 20 | 30 |
        0 | stream 7  | first             | 50 | 90 | main 12
        0 | stream 23 | second            | 60 | 95 | main 22
    """)
    slices = slices_of(tmp_path, trace)
    assert drawn(slices, track="ranges on the device") == [("a", 50, 90)]
    assert drawn(slices, track="ranges on the device, overlapping") == [("b", 60, 95)]


def test_without_step_marks_autograd_belongs_to_the_thread_that_launches_most():
    trace = build_trace("""
        0 | main     | speedprof.range/backward                | 10 | 50 |
        0 | worker   | speedprof.range/loading                 | 10 | 50 |
        0 | autograd | autograd::engine::evaluate_function: Mm | 20 | 40 |
        0 | stream 7 | forward                                 | 15 | 16 | main 11
        0 | stream 7 | gradient                                | 60 | 70 | autograd 30
    """)
    names = trace.ranges["name"].cast(pl.String)
    found = project_ranges(trace)
    assert [(names[row], start, end) for row, start, end, _ in found.iter_rows()] == [
        ("speedprof.range/backward", 15, 70)
    ]


def test_work_is_tied_to_its_launch_and_a_graph_to_all_its_kernels(tmp_path):
    slices = slices_of(tmp_path, *build_traces(PROJECTED + PROJECTED.replace("    0 |", "    1 |")).values())
    launches = {one.event["bind_id"]: one for one in slices if one.event.get("flow_out")}
    kernels = [one for one in slices if one.event.get("flow_in")]
    assert (len(launches), len(kernels)) == (20, 20)
    for kernel in kernels:
        launch = launches[kernel.event["bind_id"]]
        assert (launch.process, launch.name) == (kernel.process, "cudaLaunchKernel")
    (forward,) = (one for one in kernels if one.name == "next" and one.process == "rank 1")
    assert launches[forward.event["bind_id"]].start_ns == 111


def test_device_work_says_who_launched_it(tmp_path):
    slices = slices_of(tmp_path, build_trace(PROJECTED))
    said = {one.name: one.args for one in slices if one.track.startswith("stream")}
    assert said["inner"].items() >= {"step": 1, "range": "inner"}.items()
    assert said["update"].items() >= {"step": 1, "stage": "update/adam.embed"}.items()
    assert "range" not in said["update"]
    assert said["Memcpy HtoD"].items() >= {"launch": "before the capture"}.items()
    assert {one.cat for one in slices if one.track == "stream 23"} == {"compute", "communication"}


GATHERED = """
    0 | main      | speedprof.step/1                | 1000 | 9000 |
    0 | stream 7  | gemm                            | 2000 | 3000 | main 1001
    0 | stream 23 | ncclDevKernel_AllGather_RING()  | 3000 | 5000 | main 1002
    1 | main      | speedprof.step/1                | 1000 | 9000 |
    1 | stream 7  | gemm                            | 2000 | 4200 | main 1001
    1 | stream 23 | ncclDevKernel_AllGather_RING()  | 4200 | 5010 | main 1002
"""


def matched(traces, *, offset_ns=0, is_complete=True):
    """The analysis of GATHERED's ranks with their collective matched, rank 1's clock `offset_ns` behind."""
    parts = [(0, 0, 0, 3000, 5000), (0, 1, 0, 4200, 5010)]
    instances = pl.DataFrame(parts, schema=["collective", "rank", "row", "start_ns", "end_ns"], orient="row")
    last = pl.lit(4200, dtype=pl.Int64).alias("last_start_ns"), pl.lit(1, dtype=pl.Int64).alias("last_rank")
    match = CollectiveMatch(
        instances=instances.with_columns(*last, is_complete=pl.lit(is_complete)),
        num_matched=1,
        num_matchable=1,
        certainty=1.0,
        refused_because=None,
        clocks=tuple(
            RankClock(rank=rank, offset_ns=rank * offset_ns, residual_ns=5, num_collectives=1) for rank in (0, 1)
        ),
    )
    return replace(analyse(*traces), match=match)


def test_collectives_say_how_long_they_waited_and_for_whom(tmp_path):
    traces = build_traces(GATHERED).values()
    slices = slices_of(tmp_path, *traces, analysis=matched(traces))
    first, second = (one.args for one in slices if one.cat == "communication")
    same = {"collective": "all_gather", "matched_as": 0, "last_rank": 1}
    assert first.items() >= {**same, "waited_ns": 1200, "transfer_ns": 800}.items()
    assert second.items() >= {**same, "waited_ns": 0, "transfer_ns": 810}.items()


def test_of_a_collective_with_unknown_parts_only_the_waiting_is_sure(tmp_path):
    traces = build_traces(GATHERED).values()
    slices = slices_of(tmp_path, *traces, analysis=matched(traces, is_complete=False))
    first = next(one.args for one in slices if one.cat == "communication")
    assert (first["waited_ns"], first["unsplit_ns"]) == (1200, 800)
    assert "transfer_ns" not in first


def test_ranks_and_their_findings_are_shifted_onto_the_common_clock(tmp_path):
    traces = build_traces(GATHERED).values()
    told = [finding(evidence(0, 2000, 3000), evidence(1, 2000, 3000, step=1))]
    slices = slices_of(tmp_path, *traces, analysis=matched(traces, offset_ns=700), findings=told)
    assert drawn(slices, process="rank 0", track="stream 7") == [("gemm", 2000, 3000)]
    assert drawn(slices, process="rank 1", track="stream 7") == [("gemm", 2700, 4900)]
    assert drawn(slices, process="rank 1", track="thread 1")[0] == ("speedprof.step/1", 1700, 9700)
    assert drawn(slices, process="findings") == [
        ("idle-late-launch: rank 0", 2000, 3000),
        ("idle-late-launch: rank 1, step 1", 2700, 3700),
    ]


def test_findings_are_a_process_of_their_own_with_a_track_for_each(tmp_path):
    trace = build_trace(OVERLAPPING)
    told = [
        finding(evidence(0, 10, 40, step=1), evidence(0, 30, 60), evidence(0, 60, 70)),
        finding(
            evidence(0, 20, 30), slug="unlinked-work", cost_ns=0, severity=Severity.INFO, claim="Work is unlinked."
        ),
    ]
    slices = slices_of(tmp_path, trace, findings=told)
    assert drawn(slices, track="idle-late-launch, 1.23 ms a step") == [
        ("idle-late-launch: rank 0, step 1", 10, 40),
        ("idle-late-launch: rank 0", 60, 70),
    ]
    assert drawn(slices, track="idle-late-launch, 1.23 ms a step, overlapping") == [
        ("idle-late-launch: rank 0", 30, 60)
    ]
    (unlinked,) = (one for one in slices if one.track == "unlinked-work")
    assert (unlinked.process, unlinked.args) == (
        "findings",
        {
            "claim": "Work is unlinked.",
            "cost_ns_per_step": 0,
            "try_next": "Launch earlier.",
            "severity": "info",
            "rank": 0,
        },
    )
    events = read_document(tmp_path / "perfetto.json.gz")["traceEvents"]
    place = {event["pid"]: event["args"]["sort_index"] for event in events if event["name"] == "process_sort_index"}
    assert min(place, key=place.__getitem__) == unlinked.event["pid"]


def test_evidence_outside_the_traces_does_not_stretch_the_view(tmp_path):
    trace = build_trace(OVERLAPPING)
    told = [finding(evidence(0, -5_000, -3_000), evidence(0, 90_000, 95_000), evidence(0, -10, 20))]
    slices = slices_of(tmp_path, trace, findings=told)
    found = {one.args.get("lies"): (one.start_ns, one.end_ns) for one in slices if one.process == "findings"}
    assert found == {
        "5.01 us before the beginning of the trace": (10, 10),
        "89.9 us after the end of the trace": (10, 10),
        None: (-10, 20),
    }


def test_idle_gaps_are_drawn_with_their_cause(tmp_path):
    trace = build_trace(OVERLAPPING)
    table = pl.DataFrame(
        {
            "start_ns": [0, 80],
            "end_ns": [10, 95],
            "cause": ["late_launch", "unlinked"],
            "step": [None, 1],
            "range": ["forward", None],
            "op": [None, None],
            "call": ["cudaLaunchKernel", None],
            "kernel": ["a", None],
        },
        schema_overrides={"op": pl.String},
    )
    analysis = analyse(trace)
    (rank,) = analysis.ranks
    gaps = IdleGaps(table=table, groups=(), by_cause={})
    slices = slices_of(tmp_path, trace, analysis=replace(analysis, ranks=(replace(rank, idle=gaps),)))
    assert drawn(slices, track="idle") == [("idle: late_launch", 0, 10), ("idle: unlinked", 80, 95)]
    assert [one.args for one in slices if one.track == "idle"] == [
        {"range": "forward", "call": "cudaLaunchKernel", "kernel": "a"},
        {"step": 1},
    ]


HOST = """
    0 | main   | speedprof.step/1        |  0 | 100 |
    0 | main   | aten::mm                | 10 |  30 |
    0 | main   | c10d::allreduce_        | 42 |  50 |
    0 | gloo 0 | gloo:all_reduce         | 44 |  80 |
"""


def test_on_the_host_collectives_lie_on_their_threads(tmp_path):
    slices = slices_of(tmp_path, build_trace(HOST))
    assert drawn(slices, track="steps") == [("step 1", 0, 100)]
    assert drawn(slices, track="thread 4") == [("all_reduce", 44, 80)]
    (gloo,) = (one for one in slices if one.track == "thread 4")
    assert (gloo.cat, gloo.args) == ("communication", {"collective": "all_reduce", "declared_as": "allreduce"})
    assert {one.track for one in slices} == {"steps", "thread 1", "thread 4"}


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=range(len(HOSTILE_NAMES)))
def test_hostile_names_are_sound_and_harmless(tmp_path, name):
    rows = "0 | main | speedprof.range/R | 0 | 100 |\n0 | stream 7 | K | 10 | 40 | main 1"
    trace = build_trace(rows)
    sound = name.encode(errors="replace").decode()
    hostile = {"K": sound, "R": f"speedprof.range/{sound}"}
    trace = replace(
        trace,
        kernels=trace.kernels.with_columns(name=pl.lit(sound).cast(pl.Categorical)),
        ranges=trace.ranges.with_columns(name=pl.lit(hostile["R"]).cast(pl.Categorical)),
    )
    slices = slices_of(tmp_path, trace, findings=[finding(evidence(0, 1, 2), claim=name, slug=name)])
    assert Counter(one.cat for one in slices) == {"range": 2, "launch": 1, "compute": 1, "finding": 1}
    for one in slices:
        assert all(text.isprintable() for text in (one.name, one.track, *map(str, one.args.values())))
        assert max(len(one.name), *(len(str(value)) for value in one.args.values()), 0) <= 2_100


def test_nothing_is_left_of_a_file_that_fails_and_an_older_one_stays(tmp_path):
    path = tmp_path / "perfetto.json.gz"
    path.write_bytes(b"older")
    trace = build_trace(OVERLAPPING)

    def failing():
        yield trace
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        write_perfetto(failing(), analyse(trace), (), path)
    assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [("perfetto.json.gz", b"older")]


def test_no_rank_is_kept_while_the_next_one_is_read(tmp_path):
    kept = []

    def one_by_one():
        for rank in range(3):
            trace = build_trace(OVERLAPPING.replace("    0 |", f"    {rank} |"))
            seen = weakref.ref(trace.kernels)
            yield trace
            del trace
            gc.collect()
            kept.append(seen())

    write_perfetto(one_by_one(), compare_ranks(()), (), tmp_path / "perfetto.json.gz")
    assert kept == [None, None, None]


def test_without_traces_or_findings_the_file_is_still_one(tmp_path):
    path = tmp_path / "perfetto.json.gz"
    write_perfetto((), compare_ranks(()), (), path)
    assert read_document(path)["traceEvents"] == []
    write_perfetto((), compare_ranks(()), [finding(evidence(0, 5, 7))], path)
    assert drawn(read_slices(path)) == [("idle-late-launch: rank 0", 5, 7)]


@pytest.mark.parametrize(
    "rows",
    [
        "0 | stream 7 | alone | 10 | 20 |",
        "0 | main | aten::mm | 10 | 20 |",
        "0 | main | speedprof.step/1 | 10 | 20 |",
        "0 | main | cudaLaunchKernel | 10 | 20 |",
        "0 | main | speedprof.step/1 | 0 | 9 |\n0 | stream 7 | nothing | 5 | 5 |",
    ],
)
def test_a_trace_with_little_in_it_is_drawn_all_the_same(tmp_path, rows):
    trace = build_trace(rows)
    slices = slices_of(tmp_path, trace)
    on_host = len(trace.ops) + len(trace.ranges) + len(trace.launches)
    assert len([one for one in slices if one.track.startswith(("stream", "thread"))]) == len(trace.kernels) + on_host
    assert slices_of(tmp_path, trace, analysis=compare_ranks(()))


def test_two_traces_of_one_rank_are_two_processes(tmp_path):
    traces = (build_trace(OVERLAPPING), build_trace(OVERLAPPING))
    slices = slices_of(tmp_path, *traces)
    assert len({one.event["pid"] for one in slices}) == 2
    assert find_dropped(slices) == []


def test_ranks_that_begin_days_apart_are_drawn_from_one_beginning(tmp_path):
    near, far = build_traces(GATHERED).values()
    times = [pl.col(name) + 3 * DAY_NS for name in ("start_ns", "end_ns")]
    far = replace(
        far,
        kernels=far.kernels.with_columns(*times, pl.col("launch_start_ns") + 3 * DAY_NS),
        collectives=far.collectives.with_columns(*times, pl.col("launch_start_ns") + 3 * DAY_NS),
        launches=far.launches.with_columns(times),
        ranges=far.ranges.with_columns(times),
        steps=far.steps.with_columns(pl.all().exclude("step", "kind") + 3 * DAY_NS),
    )
    slices = slices_of(tmp_path, near, far)
    assert drawn(slices, process="rank 0", track="stream 7") == [("gemm", 2000, 3000)]
    assert drawn(slices, process="rank 1 (clock not aligned)", track="stream 7") == [("gemm", 2000, 4200)]


def test_times_are_exact_positive_and_small_enough_to_stay_exact_in_a_double(tmp_path):
    start = 1_765_622_428_262_176_917
    trace = build_trace(
        f"0 | stream 7 | a | {start} | {start + 1_001} |\n0 | main | aten::mm | {start - 9} | {start} |"
    )
    slices = slices_of(tmp_path, trace)
    assert drawn(slices, track="stream 7") == [("a", start, start + 1_001)]
    assert drawn(slices, track="thread 1") == [("aten::mm", start - 9, start)]
    assert all(0 < one.event["ts"] < 2**41 for one in slices)


def test_the_file_is_one_gzip_member_that_any_reader_takes(tmp_path):
    slices_of(tmp_path, build_trace(OVERLAPPING))
    text = gzip.decompress((tmp_path / "perfetto.json.gz").read_bytes())
    assert text.startswith(b'{"displayTimeUnit":"ns","traceEvents":[')


@pytest.mark.parametrize(
    ("start", "end", "nested", "flat"),
    [
        ([0, 1, 4], [3, 2, 5], [0, 0, 0], [0, 1, 0]),  # the second within the first
        ([0, 2, 4], [3, 5, 6], [0, 1, 0], [0, 1, 0]),  # a chain of crossings needs two lanes, not three
        ([0, 0, 0], [9, 9, 9], [0, 0, 0], [0, 1, 2]),  # equal intervals nest
        ([0, 3, 3, 5], [9, 5, 5, 9], [0, 0, 0, 0], [0, 1, 2, 1]),
        ([0, 1, 2], [4, 5, 6], [0, 1, 2], [0, 1, 2]),
    ],
)
def test_lanes_are_the_first_that_fit(start, end, nested, flat):
    arrays = np.zeros(len(start), dtype=np.int64), np.array(start), np.array(end)
    assert find_lanes(*arrays).tolist() == nested
    assert find_lanes(*arrays, deepest=1).tolist() == flat


@given(
    slices=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30), st.integers(0, 12)), max_size=40),
    deepest=st.sampled_from([1, 2, 400]),
)
def test_no_two_slices_of_a_lane_cross(slices, deepest):
    rows = sorted(((track, start, start + length) for track, start, length in slices), key=lambda r: (r[:2], -r[2]))
    track, start, end = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    lanes = find_lanes(track, start, end, deepest=deepest).tolist()
    for number, (one, lane) in enumerate(zip(rows, lanes, strict=True)):
        earlier = [other for other, its in zip(rows[:number], lanes, strict=False) if (other[0], its) == (one[0], lane)]
        assert not any(one[1] < other[2] < one[2] for other in earlier)
        around = [other for other in earlier if other[1] <= one[1] < other[2]]
        assert len(around) < deepest
        assert lane == 0 or earlier or any(its == lane - 1 for its in lanes[:number])


CAPTURES = (
    *(KINETO / name for name in ("dlrm-8xV100", "nccl-rank0of2-A100", "resnet-rank0of8-MI300X")),
    *(KINETO / name for name in ("resnet50-V100-dataloader", "sampled-2of128", "speedrun-8xH100")),
    *(ROOT / "traces" / "samples" / name / "kineto" for name in ("cpu-2ranks", "h200-2ranks")),
)


@pytest.mark.parametrize("folder", CAPTURES, ids=lambda folder: f"{folder.parent.name}/{folder.name}")
def test_of_real_captures_nothing_is_lost(tmp_path, folder):
    """Every device event is one slice of its stream's tracks, everything on the host one of its thread's, at the very
    time that the file has; and by Perfetto's rule none is dropped."""
    if not folder.is_dir():
        pytest.skip("the folder of real captures is not beside this one")
    path = tmp_path / "perfetto.json.gz"
    files = sorted(folder.glob("*.json.gz"))
    analysis = analyse(*(read_kineto(file) for file in files))
    write_perfetto((read_kineto(file) for file in files), analysis, find_all(analysis), path)
    slices = read_slices(path)
    assert find_dropped(slices) == []
    clocks = {clock.rank: clock.offset_ns for clock in analysis.match.clocks} if analysis.match else {}
    for file in files:
        trace = read_kineto(file)
        mine = [one for one in slices if one.process == f"rank {trace.rank}"]
        gloo = trace.collectives.filter(pl.col("kernel_row").is_null())
        expected = {
            "stream": (trace.kernels,),
            "thread": (trace.ops, trace.ranges, trace.launches, gloo),
            "idle": (next(rank.idle.table for rank in analysis.ranks if rank.rank == trace.rank),),
        }
        for tracks, tables in expected.items():
            offset_ns = clocks.get(trace.rank, 0)
            times = Counter(
                (start + offset_ns, end + offset_ns)
                for table in tables
                for start, end in table.select("start_ns", "end_ns").iter_rows()
            )
            found = Counter((one.start_ns, one.end_ns) for one in mine if one.track.split()[0].strip(",") == tracks)
            assert found == times, (file.name, tracks)
