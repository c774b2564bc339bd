"""What must hold of intervals and of the reader whatever they are given."""

import gzip
import random
from decimal import Decimal

import numpy as np
from builders import kineto_text, read_text, rows_to_events
from hypothesis import given, settings
from hypothesis import strategies as st

from speedprof.analyses.breakdown import measure_breakdown
from speedprof.analyses.stages import measure_stages
from speedprof.errors import SpeedprofError
from speedprof.trace.events import to_ns
from speedprof.trace.intervals import covered_before, innermost, intersect, join, overlap, subtract, union

# Times that Kineto writes: µs with three decimals, after its base time of up to three months, or since the epoch.
NS = st.one_of(
    st.integers(0, 2**53),
    st.integers(4_400_000_000_000_000, 4_500_000_000_000_000),
    st.integers(1000 * 2**42 - 5_000, 1000 * 2**42 + 5_000),
    st.integers(1000 * 2**43 - 5_000, 1000 * 2**43 + 5_000),
    st.integers(2**53, 1_900_000_000_000_000_000),
)
BASE_NS = st.one_of(st.just(0), st.integers(0, 4_000_000_000_000_000_000))


@settings(deadline=None, max_examples=200)
@given(BASE_NS, st.lists(st.tuples(NS, NS), min_size=1, max_size=20))
def test_every_ns_that_is_written_is_read(base_ns, spans):
    kernel = {"ph": "X", "cat": "kernel", "name": "k", "tid": 7, "args": {"device": 0}}
    text = kineto_text([{**kernel, "ts": start, "dur": length} for start, length in spans], baseTimeNanoseconds=base_ns)
    kernels = read_text(text).kernels
    read = sorted(zip(kernels["start_ns"].to_list(), kernels["end_ns"].to_list(), strict=True))
    assert read == sorted((base_ns + start, base_ns + start + length) for start, length in spans)


@given(st.lists(NS, min_size=1))
def test_times_agree_with_decimal_arithmetic(times):
    written = [f"{ns // 1000}.{ns % 1000:03d}" for ns in times]
    values = [float(text) if float(text) <= 2**43 else text for text in written]
    read, sound = to_ns(values)
    assert sound.all()
    assert read.tolist() == [int(Decimal(text) * 1000) for text in written] == times


SPANS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=12)


def to_intervals(spans):
    pairs = np.array([(min(span), max(span)) for span in spans], dtype=np.int64).reshape(-1, 2)
    return union(pairs[:, 0], pairs[:, 1])


def instants(intervals):
    return {at for a, b in zip(intervals.start.tolist(), intervals.end.tolist(), strict=True) for at in range(a, b)}


@given(SPANS, SPANS)
def test_interval_sets_are_sets_of_instants(first, second):
    a, b = to_intervals(first), to_intervals(second)
    assert instants(a) == {at for span in first for at in range(min(span), max(span))}
    assert (a.start[1:] > a.end[:-1]).all()
    assert instants(join(a, b)) == instants(a) | instants(b)
    assert instants(intersect(a, b)) == instants(a) & instants(b)
    assert instants(subtract(a, b)) == instants(a) - instants(b)
    assert overlap(a, b) == overlap(b, a) == len(instants(a) & instants(b))
    assert a.length == len(instants(a))


@given(SPANS, st.lists(st.integers(-3, 45), max_size=8))
def test_covered_before_counts_instants(spans, times):
    a = to_intervals(spans)
    counted = covered_before(a, np.array(times, dtype=np.int64)).tolist()
    assert counted == [sum(at < time for at in instants(a)) for time in times]


@st.composite
def nested_spans(draw, low=0, high=60, depth=0):
    """Spans that nest as ranges of one thread do."""
    spans = []
    at = low
    while at < high and draw(st.booleans()):
        start = draw(st.integers(at, high))
        end = draw(st.integers(start, high))
        spans.append((start, end))
        if depth < 3 and end - start > 1:
            spans += draw(nested_spans(start + 1, end, depth + 1))
        at = end + 1
    return spans


@given(nested_spans(), st.randoms(use_true_random=False))
def test_innermost_is_the_shortest_span_around(spans, order):
    order.shuffle(spans)
    start, end = np.array(spans, dtype=np.int64).reshape(-1, 2).T
    times = np.arange(-1, 62, dtype=np.int64)
    for time, found in zip(times.tolist(), innermost(start, end, times).tolist(), strict=True):
        around = [row for row, (a, b) in enumerate(spans) if a <= time < b]
        assert found == (min(around, key=lambda row: spans[row][1] - spans[row][0]) if around else -1)


ROWS = """
    1 | main      | speedprof.step/3                           | 100 | 190 |
    1 | main      | speedprof.stage/reduce_scatter/muon.attn   | 110 | 130 |
    1 | main      | aten::mm                                   | 110 | 130 |
    1 | main      | aten::mm                                   | 110 | 130 |
    1 | main      | speedprof.step/4                           | 200 | 290 |
    1 | autograd  | speedprof.stage/reduce_scatter/adam.embed  | 140 | 150 |
    1 | stream 7  | queued before the capture                  |  90 | 120 |
    1 | stream 7  | gemm a                                     | 150 | 250 | main 105
    1 | stream 23 | ncclDevKernel_ReduceScatter_Sum_bf16()     | 140 | 180 | main 115
    1 | stream 23 | ncclDevKernel_ReduceScatter_Sum_bf16()     | 180 | 220 | autograd 145
    1 | stream 7  | gemm b                                     | 250 | 300 | autograd 120
    1 | stream 7  | gemm b                                     | 250 | 250 | autograd 120
    1 | stream 8  | Memcpy DtoH                                | 250 | 310 | main 120
    1 | stream 7  | gemm c                                     | 310 | 400 | main 210
"""
HOST_ROWS = """
    1 | main   | speedprof.step/1                           |   0 | 200 |
    1 | main   | speedprof.stage/reduce_scatter/adam.e      |  10 |  40 |
    1 | main   | aten::reshape                              |  12 |  15 |
    1 | main   | c10d::_reduce_scatter_base_                |  20 |  38 |
    1 | gloo 0 | gloo:all_reduce                            |  30 | 100 |
    1 | main   | aten::mm                                   | 150 | 160 |
"""
(EVENTS,) = rows_to_events(ROWS).values()
(HOST_EVENTS,) = rows_to_events(HOST_ROWS).values()


def measured(events):
    trace = read_text(kineto_text(events, rank=1))
    return trace, measure_breakdown(trace), measure_stages(trace)


EXPECTED = {id(events): measured(events) for events in (EVENTS, HOST_EVENTS)}


@settings(deadline=None, max_examples=50)
@given(st.sampled_from([EVENTS, HOST_EVENTS]), st.randoms(use_true_random=False))
def test_the_order_of_events_in_the_file_changes_nothing(events, order):
    shuffled = list(events)
    order.shuffle(shuffled)
    trace, breakdown, stages = measured(shuffled)
    expected_trace, expected_breakdown, expected_stages = EXPECTED[id(events)]
    for table in ("kernels", "launches", "ops", "ranges", "collectives", "steps"):
        assert getattr(trace, table).equals(getattr(expected_trace, table)), table
    assert (breakdown, stages) == (expected_breakdown, expected_stages)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["gemm", "ncclX", "Memcpy", "Memset"]), *[st.integers(0, 60)] * 4), max_size=15)
)
def test_a_partition_sums_to_its_window_and_segments_to_the_whole(kernels):
    rows = ["0 | main | speedprof.step/1 | 0 | 30 |", "0 | main | speedprof.step/2 | 30 | 60 |"]
    for name, a, b, stream, launch in kernels:
        launched = f"main {launch}" if launch % 3 else ""
        rows.append(f"0 | stream {stream % 3} | {name} | {min(a, b)} | {max(a, b)} | {launched}")
    (events,) = rows_to_events("\n".join(rows)).values()
    trace = read_text(kineto_text(events))
    found = measure_breakdown(trace)
    parts = [segment.partition for segment in found.segments]
    for field in ("compute_ns", "exposed_communication_ns", "exposed_copy_ns", "idle_ns"):
        assert sum(getattr(part, field) for part in parts) == getattr(found.partition, field) >= 0
    assert [a.end_ns for a in found.segments[:-1]] == [b.start_ns for b in found.segments[1:]]
    assert found.communication_ns == found.partition.exposed_communication_ns + found.overlapped_communication_ns
    if kernels:
        assert found.window_ns == max(max(k[1:3]) for k in kernels) - min(min(k[1:3]) for k in kernels)


TEXTS = [kineto_text(EVENTS).encode(), gzip.compress(kineto_text(HOST_EVENTS).encode())]
SPICE = [
    b"NaN",
    b"-1",
    b"null",
    b"]",
    b"[",
    b"{",
    b"}",
    b'"',
    b"\\",
    b"\x00",
    b"\xff",
    b"1e999",
    b"9" * 30,
    b",",
    b"[" * 2000,
]


def read_or_refuse(text):
    """The trace, or None where the reader refuses in one line; any other exception fails the test."""
    refusal = ""
    try:
        return read_text(text)
    except SpeedprofError as error:
        refusal = str(error)
    assert refusal.count("\n") == 0
    return None


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(TEXTS), st.integers(0, 2**32), st.integers(1, 6))
def test_whatever_the_bytes_the_reader_answers_or_refuses(text, seed, num_changes):
    chance = random.Random(seed)
    spoiled = bytearray(text)
    for _ in range(num_changes):
        at = chance.randrange(len(spoiled) + 1)
        length = chance.choice((0, 1, 3, 40))
        spoiled[at : at + length] = chance.choice((b"", chance.choice(SPICE), chance.randbytes(3)))
    if chance.random() < 0.3:
        del spoiled[chance.randrange(len(spoiled) + 1) :]
    trace = read_or_refuse(bytes(spoiled))
    if trace is None:
        return
    found = measure_breakdown(trace)
    measure_stages(trace)
    assert sum(segment.partition.window_ns for segment in found.segments) == found.window_ns


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=200))
def test_random_bytes_are_answered_or_refused(text):
    for start in (b"", b"{", b"[", b'{"traceEvents": [', b"\x1f\x8b\x08"):
        read_or_refuse(start + text)
