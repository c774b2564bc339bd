"""What must hold of idle gaps, and of searching host time, whatever the trace."""

from itertools import pairwise

import numpy as np
from builders import THREADS, kineto_text, read_text, rows_to_events
from hypothesis import given, settings
from hypothesis import strategies as st

from speedprof.analyses.breakdown import measure_breakdown
from speedprof.analyses.host_spans import HostSpans, find_innermost, find_longest, find_overlaps
from speedprof.analyses.idle_gaps import measure_idle_gaps
from speedprof.analyses.top_kernels import measure_kernels
from speedprof.trace.intervals import innermost
from speedprof.trace.occupied import find_compute_threads

# Times are thousands of ns, so that gaps are shorter and longer than the resolution of launches.
TIME = st.integers(0, 60)
KERNELS = st.lists(
    st.tuples(st.sampled_from(["gemm", "ncclX", "Memcpy HtoD", "Memset"]), TIME, TIME, TIME, TIME), max_size=12
)
HOST = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "aten::mm",
                "autograd::engine::x",
                "DataLoader",
                "speedprof.range/a",
                "cudaMalloc",
                "cudaStreamSynchronize",
                "gc.collect",
            ]
        ),
        st.sampled_from(["main", "autograd"]),
        TIME,
        TIME,
    ),
    max_size=8,
)
BORDERS = st.lists(TIME, max_size=3, unique=True)


def trace_of(kernels, host, borders):
    rows = ["0 | worker | aten::mm | 0 | 1 |"]
    rows += [f"0 | {thread} | {name} | {min(a, b)}000 | {max(a, b)}000 |" for name, thread, a, b in host]
    marks = [0, *sorted(borders), 60]
    kinds = ("", "/validation")
    rows += [
        f"0 | main | speedprof.step/{step}{kinds[step % 2]} | {a}000 | {b}000 |"
        for step, (a, b) in enumerate(pairwise(marks))
        if borders
    ]
    for name, a, b, stream, launch in kernels:
        launched = f"main {launch}000" if launch % 3 else ""
        rows.append(f"0 | stream {stream % 3} | {name} | {min(a, b)}000 | {max(a, b)}000 | {launched}")
    (events,) = rows_to_events("\n".join(rows)).values()
    return read_text(kineto_text(events))


@settings(deadline=None, max_examples=200)
@given(KERNELS, HOST, BORDERS)
def test_gaps_tile_the_idle_time_of_the_capture_and_of_every_step(kernels, host, borders):
    trace = trace_of(kernels, host, borders)
    table, breakdown = measure_idle_gaps(trace).table, measure_breakdown(trace)
    if not kernels:
        assert table.is_empty()
        return
    starts, ends = table["start_ns"].to_list(), table["end_ns"].to_list()
    assert sum(ends) - sum(starts) == breakdown.partition.idle_ns
    assert all(a < b for a, b in zip(starts, ends, strict=True))
    assert all(a <= b for a, b in zip(ends[:-1], starts[1:], strict=True))
    work = list(zip(trace.kernels["start_ns"].to_list(), trace.kernels["end_ns"].to_list(), strict=True))
    assert not any(max(a, c) < min(b, d) for a, b in zip(starts, ends, strict=True) for c, d in work)
    for segment in breakdown.segments:
        mine = [(a, b) for a, b in zip(starts, ends, strict=True) if segment.start_ns <= a < segment.end_ns]
        assert sum(b - a for a, b in mine) == segment.partition.idle_ns
        assert all(b <= segment.end_ns for _, b in mine)


@settings(deadline=None, max_examples=200)
@given(KERNELS, HOST, BORDERS)
def test_groups_sum_to_the_idle_time_of_the_training_steps(kernels, host, borders):
    trace = trace_of(kernels, host, borders)
    found, breakdown = measure_idle_gaps(trace), measure_breakdown(trace)
    parts = [step.partition for step in breakdown.steps] or [breakdown.partition]
    idle_ns = sum(part.idle_ns for part in parts) if kernels else 0
    assert sum(found.by_cause.values()) == sum(group.total_ns for group in found.groups) == idle_ns
    totals = [group.total_ns for group in found.groups]
    assert totals == sorted(totals, reverse=True)
    assert all(0 < group.longest_ns <= group.total_ns for group in found.groups)


EVIDENCE = {"gc.collect": "gc", "cudaMalloc": "allocator", "DataLoader": "input", "cudaStreamSynchronize": "sync"}


def causes_by_hand(trace, host):
    """What the host is late for in each µs in which the device waits for a launch, looked up µs by µs."""
    together = {name for name, number in THREADS.items() if number in find_compute_threads(trace)}
    work = [
        (row["start_ns"] // 1000, row["end_ns"] // 1000, row["launch_start_ns"])
        for row in trace.kernels.iter_rows(named=True)
    ]
    busy = {at for start, end, _ in work for at in range(start, end)}
    found = {}
    idle = [at for at in range(work[0][0], max(end for _, end, _ in work)) if at not in busy]
    for begin in [at for at in idle if at - 1 not in idle]:
        end = next(at for at in range(begin, 99) if at not in idle)
        ends = [one for one in work if one[0] == end]
        ends = [one for one in ends if one[2] is not None] if any(b > a for a, b, _ in ends) else ends
        ends = [one for one in ends if one[1] > end] or ends
        launched = ends[0][2] // 1000 if ends and ends[0][2] is not None else begin
        turn = together if "main" in together else {"main"}
        found |= causes_of_gap(begin, end, launched, [(name, a, b) for name, thread, a, b in host if thread in turn])
    return found


def causes_of_gap(begin, end, launched, host):
    late = dict.fromkeys(range(begin, min(end, launched)), "late_launch")
    for cause in ("sync", "input", "allocator", "gc"):
        reach = -1
        mine = sorted((min(a, b), -max(a, b)) for name, a, b in host if EVIDENCE.get(name) == cause)
        top_level = []
        for start, minus_end in mine:
            if start >= reach and not (name_is_call(cause) and -minus_end > launched):
                top_level.append((start, -minus_end))
            reach = max(reach, -minus_end)
        covered = {at for a, b in top_level for at in range(a, b)}
        if cause == "sync":
            held = [(a, b) for a, b in top_level if a < begin and b >= begin - 5 and a < b]
            lead = sum(min(b, begin) - a for a, b in held)
            after = max([begin, *(b for _, b in held)])
            covered |= set(range(after, after + lead))
        late |= {at: cause for at in covered if at in late}
    return late


def name_is_call(cause):
    return cause in ("sync", "allocator")


# Little work, far apart and launched just before it runs, so that the host is late most of the time; calls that wait
# for it and return at about its end; and whatever else may hold the host back.
SPARSE_KERNELS = st.lists(
    st.tuples(TIME, st.integers(0, 6), st.integers(0, 2)).map(
        lambda one: ("gemm", one[0], one[0] + one[1], one[2], max(one[0] - one[2], 0))
    ),
    min_size=2,
    max_size=5,
)
WAITS = st.lists(st.none() | st.tuples(st.integers(0, 9), st.integers(-6, 6)), min_size=5, max_size=5)
BUSY_HOST = st.lists(
    st.tuples(
        st.sampled_from([*EVIDENCE, "aten::mm", "autograd::engine::x"]),
        st.sampled_from(["main", "main", "autograd"]),
        TIME,
        st.integers(0, 12),
    ).map(lambda one: (*one[:3], one[2] + one[3])),
    max_size=6,
)


def wait_for(kernel, lasting, later):
    """A call that returns so much later than the kernel ends."""
    end = max(kernel[2] + later, 0)
    return ("cudaStreamSynchronize", "main", max(end - lasting, 0), end)


@settings(deadline=None, max_examples=300)
@given(SPARSE_KERNELS, WAITS, BUSY_HOST, BORDERS)
def test_every_instant_before_a_launch_has_the_cause_that_covers_it(kernels, waits, host, borders):
    host = host + [wait_for(kernel, *wait) for kernel, wait in zip(kernels, waits, strict=False) if wait]
    trace = trace_of(kernels, host, borders)
    table = measure_idle_gaps(trace).table
    told = {
        at: row["cause"]
        for row in table.iter_rows(named=True)
        for at in range(row["start_ns"] // 1000, row["end_ns"] // 1000)
        if row["cause"] in {"late_launch", *EVIDENCE.values()}
    }
    assert told == causes_by_hand(trace, host)
    # Rows that meet and say the same are one.
    said = table.drop("kernel").rows()
    assert not any(a[1] == b[0] and a[2:] == b[2:] and is_same_gap(trace, b[0]) for a, b in pairwise(said))


def is_same_gap(trace, time):
    """Whether no work stands at this time, not even of zero length."""
    return time not in set(trace.kernels["start_ns"].to_list())


@settings(deadline=None, max_examples=100)
@given(KERNELS, HOST, BORDERS)
def test_time_alone_is_what_one_row_of_kernels_runs(kernels, host, borders):
    trace = trace_of(kernels, host, borders)
    found = measure_kernels(trace)
    assert all(0 <= row.alone_ns <= row.total_ns for row in found)
    if not borders:
        assert sum(row.count for row in found) == len(kernels)
        running = [{k[0] for k in kernels if min(k[1:3]) <= at < max(k[1:3])} for at in range(60)]
        alone = {row.name: row.alone_ns // 1000 for row in found}
        assert alone == {name: running.count({name}) for name in {k[0] for k in kernels}}


SPANS = st.lists(st.tuples(st.integers(1, 2), st.integers(0, 40), st.integers(0, 40)), max_size=14)


def to_spans(spans):
    ordered = sorted((min(a, b), -max(a, b), track) for track, a, b in spans)
    start, end, track = np.array(ordered, dtype=np.int64).reshape(-1, 3).T
    return HostSpans(track=track, start=start, end=-end)


@given(SPANS, st.lists(st.tuples(st.integers(1, 3), st.integers(-1, 42)), max_size=20))
def test_the_innermost_span_is_that_of_intervals(spans, asked):
    spans = to_spans(spans)
    track, times = np.array(asked, dtype=np.int64).reshape(-1, 2).T
    found = find_innermost(spans, track, times)
    for one in (1, 2, 3):
        rows = np.flatnonzero(spans.track == one)
        there = innermost(spans.start[rows], spans.end[rows], times[track == one])
        expected = [int(rows[at]) if at >= 0 else -1 for at in there.tolist()]
        assert found[track == one].tolist() == expected


@given(SPANS, SPANS)
def test_the_longest_span_takes_most_of_a_stretch(spans, stretches):
    spans, stretches = to_spans(spans), to_spans(stretches)
    spans = spans.take(spans.find_outermost())
    stretches = stretches.take(stretches.find_outermost() & (stretches.end > stretches.start))
    row = find_longest(spans, stretches.track, stretches.start, stretches.end)
    stretch, span = find_overlaps(spans, stretches.track, stretches.start, stretches.end)
    pairs = set(zip(stretch.tolist(), span.tolist(), strict=True))
    assert len(pairs) == len(stretch)
    for at in range(len(stretches)):
        same = spans.track == stretches.track[at]
        inside = np.minimum(spans.end, stretches.end[at]) - np.maximum(spans.start, stretches.start[at])
        inside = np.where(same, np.maximum(inside, 0), 0)
        assert {one for place, one in pairs if place == at} == set(np.flatnonzero(inside).tolist())
        assert (row[at] < 0 and not inside.any()) or inside[row[at]] == inside.max() > 0
