"""What is left of a damaged file, and what is said of the rest. Nothing of it counts in a mean."""

import gzip
import json

import pytest
from builders import build_trace, kineto_text, read_events, read_text, rows_to_events

from speedprof.analyses.breakdown import measure_breakdown
from speedprof.analyses.stages import measure_stages
from speedprof.trace.model import Timeline

STEPS = """
    0 | main      | speedprof.step/1                |   0 | 100 |
    0 | main      | speedprof.stage/update/adam.e   |  50 |  60 |
    0 | main      | speedprof.step/2                | 100 | 200 |
    0 | stream 7  | gemm                            |  10 |  90 | main 6
    0 | stream 7  | gemm                            | 110 | 190 | main 106
    0 | stream 7  | last                            | 190 | 191 | main 107
"""
(EVENTS,) = rows_to_events(STEPS).values()
TEXT = kineto_text(EVENTS)
KERNEL = {"ph": "X", "cat": "kernel", "name": "k", "tid": 7, "ts": 0, "dur": 1, "args": {"stream": 7, "device": 0}}
MANY = kineto_text([{**KERNEL, "ts": at * 37 % 9973, "name": f"k{at * 7919 % 10007}"} for at in range(20_000)])
UNCOUNTED = "none of its steps is known to be whole, so none counts in a mean"


def test_a_cut_file_gives_what_comes_before_the_cut_and_no_step_counts():
    trace = read_text(TEXT[: TEXT.index('"last"')])
    assert len(trace.kernels) == 2
    assert trace.is_damaged
    assert trace.notes == (
        "the file ends in the midst of its events: what follows the break is missing",
        UNCOUNTED,
    )
    found = measure_breakdown(trace)
    assert [(s.step, s.kind, s.start_ns, s.end_ns) for s in found.segments] == [(1, None, 10, 110), (2, None, 110, 190)]
    assert (found.steps, measure_stages(trace)) == ((), ())


def test_a_cut_on_the_host_leaves_no_step_that_counts_either():
    (events,) = rows_to_events("0 | main | speedprof.step/1 | 0 | 9 |\n0 | main | aten::mm | 1 | 5 |").values()
    text = kineto_text(events)
    trace = read_text(text[: text.rindex("]")])
    assert (trace.timeline, trace.steps["kind"].to_list(), trace.notes[1]) == (Timeline.HOST, [None], UNCOUNTED)


def test_a_cut_gzip_gives_what_comes_before_the_cut():
    packed = gzip.compress(MANY.encode())
    trace = read_text(packed[: len(packed) // 2], "rank0.json.gz")
    assert 5_000 < len(trace.kernels) < 15_000
    assert trace.is_damaged
    (note,) = trace.notes
    assert note.startswith("the gzip stream ends early, after 1.")
    assert note.endswith(" MB of text: what follows the break is missing, and nothing says how much that is")


def test_a_damaged_gzip_gives_what_comes_before_the_damage_and_says_how_much_is_lost():
    packed = bytearray(gzip.compress(MANY.encode(), compresslevel=1))
    middle = len(packed) // 2
    packed[middle:] = b"\xff" * (len(packed) - middle)
    trace = read_text(bytes(packed), "rank0.json.gz")
    assert 1_000 < len(trace.kernels) < 15_000
    # Damage is known to the 64 KiB.
    at = 2 + (middle - 2) // 65_536 * 65_536
    share = f"{100 * (len(packed) - at) / len(packed):.1f}%"
    assert trace.notes[0].startswith("the gzip stream is damaged ")
    assert trace.notes[0].endswith(f" into the file: the rest, {share} of the file, is missing")


def test_text_that_fails_its_checksum_is_damaged_though_it_reads_well():
    packed = bytearray(gzip.compress(MANY.encode()))
    packed[-6] ^= 1  # in the checksum
    trace = read_text(bytes(packed), "rank0.json.gz")
    assert trace.is_damaged
    assert trace.notes[0] == "the gzip stream is damaged: its text is not what was written, as the checksum shows"


def test_what_follows_the_gzip_stream_is_named_and_harms_nothing():
    packed = gzip.compress(TEXT.encode())
    for garbage in (b"x", b"\x1f", b"garbage" * 20_000):
        trace = read_text(packed + b"\0\0" + garbage, "rank0.json.gz")
        assert (len(trace.kernels), trace.is_damaged) == (3, False)
        (note,) = trace.notes
        assert note.endswith(" that are not gzip follow the trace in its file and were not read")
    assert note.startswith("140 kB ")


def test_damage_in_one_place_costs_one_event_of_many_megabytes_and_steps_still_count():
    filler = [{**KERNEL, "ts": 20, "name": "kernel" * 10} for _ in range(20_000)]
    broken = kineto_text([*EVENTS, *filler]).replace('"dur": 0.001', '"dur": 0.0.1', 1)
    trace = read_text(broken)
    assert not trace.is_damaged
    (note,) = trace.notes
    assert note.startswith("1 damaged events were skipped: ")
    assert note.endswith(" B of 3.54 MB of text could not be read")
    assert trace.steps["kind"].to_list() == ["train", "train"]


@pytest.mark.parametrize("spoiled", ["9" * 5000, "[" * 3000 + "]" * 3000])
def test_an_event_that_no_parser_takes_costs_itself_alone(spoiled):
    event = json.dumps(KERNEL).replace('"ts": 0', f'"ts": {spoiled}')
    trace = read_text(f'{{"traceEvents": [{json.dumps(KERNEL)}, {event}, {json.dumps(KERNEL)}]}}', "rank0.json")
    assert (len(trace.kernels), trace.is_damaged) == (2, True)


@pytest.mark.parametrize("piece", ['{"a": [{}, ', '{"a": {"b": [', ', {"a', ", {x"])
def test_text_that_makes_a_parser_start_anew_everywhere_is_given_up(piece):
    """A megabyte of it took minutes when every piece was tried."""
    good = json.dumps(KERNEL)
    filler = ", ".join([good] * 3_000)
    text = f'{{"traceEvents": [{filler}, {piece * (2_000_000 // len(piece))}, {filler}, {filler}]}}'
    trace = read_text(text, "rank0.json")
    assert trace.is_damaged
    assert len(trace.kernels) >= 3_000


def test_many_events_that_are_broken_each_in_itself_cost_themselves_alone():
    """As where a profiler writes paths of Windows without doubling their backslashes."""
    broken = json.dumps(KERNEL).replace('"name": "k"', r'"name": "C:\Users\x"')
    events = [broken if number % 3 else json.dumps(KERNEL) for number in range(9_000)]
    trace = read_text(f'{{"traceEvents": [{", ".join(events)}]}}', "rank0.json")
    assert (len(trace.kernels), trace.is_damaged) == (3_000, True)


def test_a_larger_hole_leaves_no_step_that_counts():
    hole = TEXT.index('"gemm"')
    trace = read_text(TEXT[:hole] + "\0" * 200 + TEXT[hole + 200 :])
    assert trace.is_damaged
    assert UNCOUNTED in trace.notes


def test_a_bracket_in_garbage_that_seems_to_close_the_events_is_a_loss():
    trace = read_text(TEXT.replace('"name": "gemm"', '"name": gemm}, {}, ] {', 1))
    assert trace.is_damaged
    assert [note for note in trace.notes if "follow a damaged event are damaged too" in note]


def test_keys_cut_behind_all_events_are_told_and_harm_nothing():
    trace = read_text(TEXT[: TEXT.index('"t.json"')])
    assert (trace.is_damaged, trace.steps["kind"].to_list()) == (False, ["train", "train"])
    assert trace.notes == ("the keys beside the events are damaged and were not read",)


def test_launches_without_a_kernel_make_no_cpu_rank():
    launches = [event for event in EVENTS if event["cat"] != "kernel"]
    trace = read_events(launches)
    assert (trace.timeline, len(trace.kernels), trace.is_damaged) == (Timeline.DEVICE, 0, False)
    assert trace.notes == ("3 launches of device work, but its kernels are missing: nothing is known of the device",)
    found = measure_breakdown(trace)
    assert (found.window_ns, found.steps, measure_stages(trace)) == (0, (), ())


def test_a_cut_before_the_first_launch_makes_no_cpu_rank_where_the_machine_has_a_device():
    text = kineto_text(EVENTS, deviceProperties=[{"id": 0}])
    trace = read_text(text[: text.index('"cudaLaunchKernel"')])
    assert (trace.timeline, len(trace.kernels)) == (Timeline.DEVICE, 0)
    assert trace.notes[1:] == (
        "the machine has a device, but its kernels are missing: nothing is known of it",
        UNCOUNTED,
    )


def test_a_whole_file_without_launches_is_a_cpu_rank_on_any_machine():
    (events,) = rows_to_events("0 | main | aten::mm | 1 | 5 |\n0 | main | cudaDeviceSynchronize | 6 | 7 |").values()
    trace = read_text(kineto_text(events, deviceProperties=[{"id": 0}]))
    assert (trace.timeline, trace.notes) == (Timeline.HOST, ())
    assert build_trace("0 | main | aten::mm | 1 | 5 |").timeline is Timeline.HOST
