"""Whatever a trace file holds, it is answered or refused in one line: by the reader and by all that rests on it.

FUZZ_EXAMPLES=20000 python -m pytest tests/property/test_reader_fuzz.py     as many examples of each kind
"""

import gzip
import io
import json
import os
import tempfile
from functools import cache
from pathlib import Path

import pytest
from builders import rows_to_events
from hypothesis import HealthCheck, event, given, note, settings
from hypothesis import strategies as st
from rich.console import Console

from speedprof.analyses.measure import compare_ranks, measure_rank
from speedprof.errors import UnreadableError
from speedprof.findings import find_all
from speedprof.report.console import print_report
from speedprof.report.document import Report
from speedprof.report.html import write_html
from speedprof.report.json_report import format_json
from speedprof.report.markdown import write_markdown
from speedprof.trace.model import Timeline
from speedprof.trace.read_kineto import read_kineto
from speedprof.trace.unpack import ReadLimits

NUM_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "120"))
# A file of a few hundred kB that unfolds further is a trap.
LIMITS = ReadLimits(max_bytes=1 << 26)
fuzz = settings(
    deadline=None,
    max_examples=NUM_EXAMPLES,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)

# Two ranks on a device: two steps with stages, copies, gaps of several causes, collectives with all that a file can
# say of them, an unlinked kernel, a crossing one, one of zero length.
DEVICE = """
    {r} | span      | PyTorch Profiler (0)                      |    0 | 2000 |
    {r} | main      | speedprof.step/1                          |   10 |  500 |
    {r} | main      | speedprof.range/forward                   |   20 |  200 |
    {r} | main      | aten::mm                                  |   30 |  100 |
    {r} | main      | cudaDeviceSynchronize                     |  120 |  300 |
    {r} | main      | speedprof.stage/reduce_scatter/adam.embed |  310 |  330 |
    {r} | main      | aten::item                                |  340 |  400 |
    {r} | main      | cudaMalloc                                |  410 |  440 |
    {r} | main      | speedprof.step/2                          |  500 | 1000 |
    {r} | main      | enumerate(DataLoader)#_SingleProcessDataLoaderIter.__next__ | 510 | 600 |
    {r} | main      | aten::mm                                  |  610 |  700 |
    {r} | autograd  | autograd::engine::evaluate_function: Mm   |  650 |  690 |
    {r} | stream 7  | before                                    |    1 |    9 |
    {r} | stream 7  | gemm                                      |   50 |  120 | main 35
    {r} | stream 7  | gemm                                      |  110 |  125 | main 36
    {r} | stream 9  | Memcpy DtoH (Device -> Pinned)            |  125 |  140 | main 40
    {r} | stream 23 | ncclDevKernel_ReduceScatter_Sum_bf16()    | {a}  |  400 | main 315
    {r} | stream 7  | gemm                                      |  380 |  380 | main 350
    {r} | stream 7  | Memset (Device)                           |  450 |  452 | main 420
    {r} | stream 7  | gemm                                      |  620 |  700 | main 615
    {r} | stream 23 | ncclDevKernel_AllGather_RING_LL()         | {b}  |  900 | autograd 660
    {r} | stream 7  | gemm                                      |  910 |  990 | main 680
"""
HOST = """
    {r} | main   | speedprof.step/1                      |   0 | 200 |
    {r} | main   | speedprof.stage/reduce_scatter/adam.e |  10 |  40 |
    {r} | main   | c10d::_reduce_scatter_base_           |  20 |  38 |
    {r} | gloo 0 | gloo:all_reduce                       | {a} | 100 |
    {r} | main   | aten::mm                              | 150 | 160 |
    {r} | main   | speedprof.step/2                      | 200 | 400 |
    {r} | main   | c10d::allgather_                      | 210 | 215 |
    {r} | gloo 0 | gloo:all_gather                       | {b} | 300 |
    {r} | main   | aten::add                             | 310 | 390 |
"""
DECLARED = {
    "Collective name": "reduce_scatter",
    "In msg nelems": 1024,
    "Out msg nelems": 512,
    "Group size": 2,
    "dtype": "BFloat16",
    "Process Group Name": "0",
    "Process Group Ranks": "[0, 1]",
}


def events_of(rows, rank, **times):
    """The rank's events with times in µs, as a file has them; collectives say what they are."""
    (events,) = rows_to_events(rows.format(r=rank, **times)).values()
    seq = 0
    for one in events:
        one.update({key: one[key] / 1000 for key in ("ts", "dur")})
        if one["name"].startswith("nccl"):
            seq += 1
            one["args"] = {**one["args"], **DECLARED, "Seq": seq}
    return events


RANKS = [
    [events_of(DEVICE, 0, a="316", b="700"), events_of(DEVICE, 1, a="350", b="760")],
    [events_of(HOST, 0, a="30", b="220"), events_of(HOST, 1, a="60", b="250")],
]


def document_of(events, rank):
    head = {"schemaVersion": 1, "deviceProperties": [{"id": 0}], "baseTimeNanoseconds": 1_700_000_000_000_000_000}
    return {**head, "distributedInfo": {"rank": rank, "world_size": 2}, "traceEvents": events}


def measured(text, name="trace.json"):
    """What one rank's file gives, or None where it is refused in one line. Anything else fails the test."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(text)
        trace, refusal = None, ""
        try:
            trace = read_kineto(path, limits=LIMITS)
        except UnreadableError as error:
            refusal = str(error)
    assert "\n" not in refusal
    event("refused" if trace is None else f"{trace.timeline}, {'damaged' if trace.is_damaged else 'whole'}")
    return None if trace is None else measure_rank(trace)


def require_answers(texts):
    """All that is said of these files of one run holds together and can be written in every format."""
    ranks = {}
    for text in texts:
        found = measured(text)
        if found is not None:
            require_sums(found.analysis)
            ranks.setdefault(found.analysis.rank, found)
    if len({one.timeline.timeline for one in ranks.values()}) != 1:
        return
    analysis = compare_ranks(list(ranks.values()))
    require_split(analysis)
    event(f"of {len(ranks)} ranks {analysis.match.num_matched if analysis.match else 'no'} collectives matched")
    report = Report(analysis=analysis, findings=find_all(analysis), manifest=None, step_log=None, sources=("fuzz",))
    require_pages(report)


def require_sums(rank):
    found = rank.breakdown
    for name in ("compute_ns", "exposed_communication_ns", "exposed_copy_ns", "idle_ns"):
        parts = [getattr(segment.partition, name) for segment in found.segments]
        assert sum(parts) == getattr(found.partition, name)
        assert min(parts, default=0) >= 0
    if found.timeline is Timeline.DEVICE:
        gaps = rank.idle.table
        assert int((gaps["end_ns"] - gaps["start_ns"]).sum()) == found.partition.idle_ns


def require_split(analysis):
    for rank in analysis.ranks:
        if rank.exposure is not None:
            assert rank.exposure.split.exposed_ns == rank.breakdown.partition.exposed_communication_ns
            steps = [step.partition.exposed_communication_ns for step in rank.breakdown.steps]
            assert [split.exposed_ns for split in rank.exposure.steps] == steps


def require_pages(report):
    text = format_json(report)
    assert text.isascii()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    print_report(report, Console(file=io.StringIO(), width=100))
    with tempfile.TemporaryDirectory() as folder:
        write_markdown(report, Path(folder) / "report.md")
        write_html(report, Path(folder) / "index.html")


ODD_TEXT = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        [
            "\x1b[31m",
            "<script>alert(1)</script>",
            "\u202e",
            "a\nb",
            "\x00",
            "\ud800",
            "stream 7",
            "-1",
            "1e9",
            "nan",
            "",
        ]
    ),
    st.sampled_from(["speedprof.step/1", "speedprof.step/3", "speedprof.stage//", "ncclX", "gloo:", "ProfilerStep#9"]),
)
ODD_NUMBER = st.one_of(
    st.integers(-5, 5),
    st.integers(0, 1000).map(lambda ns: ns / 1000),
    st.sampled_from([-1, 2**31, 2**53, 2**63 - 1, 2**63, -(2**63), 10**30, 10**400, 4_000_000_000_000_000]),
    st.floats(allow_nan=True, allow_infinity=True),
)
ODD = st.recursive(
    st.one_of(st.none(), st.booleans(), ODD_NUMBER, ODD_TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(ODD_TEXT, inner, max_size=3)),
    max_leaves=4,
)
FIELDS = st.sampled_from(["ph", "cat", "name", "pid", "tid", "ts", "dur", "args"])
ARGS = st.sampled_from(["correlation", "stream", "device", "External id", "Seq", *DECLARED])
CATEGORIES = st.sampled_from(["kernel", "gpu_memcpy", "cuda_runtime", "cpu_op", "user_annotation", "Trace", "Operator"])


@st.composite
def spoiled_events(draw, events):
    """The events with some dropped, repeated, moved, made something else, or given fields that make no sense."""
    events = [{**one, "args": dict(one.get("args", {}))} for one in events]
    for _ in range(draw(st.integers(1, 12))):
        at = draw(st.integers(0, len(events) - 1)) if events else None
        change = draw(
            st.sampled_from(["drop", "repeat", "move", "field", "arg", "declared", "time", "category", "insert", "all"])
        )
        if at is None or change == "insert":
            events.insert(at or 0, draw(ODD))
        elif change == "drop":
            del events[at : at + draw(st.integers(1, 8))]
        elif change == "repeat":
            events[at:at] = [events[at]] * draw(st.integers(1, 3))
        elif change == "move":
            events.append(events.pop(at))
        elif isinstance(events[at], dict):
            spoil(draw, events, at, change)
    return events


def spoil(draw, events, at, change):
    one = dict(events[at])
    if change == "declared":
        key, odd = draw(st.sampled_from([*DECLARED, "Seq"])), draw(st.one_of(ODD_TEXT, ODD))
        for other in (other for other in events if isinstance(other, dict) and isinstance(other.get("args"), dict)):
            if key in other["args"] and draw(st.booleans()):
                other["args"][key] = odd
        return
    if change == "arg":
        args = one.get("args")
        one["args"] = {**(args if isinstance(args, dict) else {}), draw(ARGS): draw(ODD)}
    elif change == "category":
        one["cat"] = draw(CATEGORIES)
    elif change == "time":
        one[draw(st.sampled_from(["ts", "dur"]))] = draw(ODD_NUMBER)
    else:
        one[draw(FIELDS)] = draw(ODD)
    if change == "all":
        events[:] = [{**other, "cat": one.get("cat")} if isinstance(other, dict) else other for other in events]
    events[at] = one


@st.composite
def spoiled_document(draw, events, rank):
    document = document_of(draw(spoiled_events(events)), rank)
    if draw(st.integers(0, 3)) == 0:
        key = draw(st.sampled_from([*document, "schemaVersion", "displayTimeUnit"]))
        document[key] = draw(ODD)
    if draw(st.integers(0, 3)) == 0:
        key = draw(st.sampled_from(["rank", "world_size"]))
        document["distributedInfo"] = {"rank": rank, "world_size": 2, key: draw(ODD)}
    return json.dumps(document, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")


@fuzz
@given(st.data())
def test_events_of_any_type_and_time_are_answered_or_refused(data):
    ranks = data.draw(st.sampled_from(RANKS))
    texts = [data.draw(spoiled_document(ranks[0], 0))]
    if data.draw(st.booleans()):
        texts.append(json.dumps(document_of(ranks[1], 1)).encode())
    elif data.draw(st.booleans()):
        texts.append(data.draw(spoiled_document(ranks[1], 1)))
    require_answers(texts)


SPICE = [b"NaN", b"-1", b"null", b"]", b"[", b"{", b"}", b'"', b"\\", b"\x00", b"\xff", b"1e999", b"9" * 30, b","]
SPICE += [b"Infinity", b"[" * 2000, b'{"a":[{},' * 200, b"},{", b'"traceEvents": [', b" ", b"\n", b"\xef\xbb\xbf"]


@st.composite
def spoiled_bytes(draw, text):
    """The text with slices cut, doubled, moved, flipped or replaced, and perhaps the end missing."""
    spoiled = bytearray(text)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(spoiled)))
        length = draw(st.sampled_from([0, 1, 3, 40, 400]))
        piece = bytes(spoiled[at : at + length])
        change = draw(st.sampled_from(["cut", "repeat", "copy", "flip", "spice", "random", "end"]))
        if change == "cut":
            del spoiled[at : at + length]
        elif change == "repeat":
            spoiled[at:at] = piece * draw(st.integers(1, 3))
        elif change == "copy":
            to = draw(st.integers(0, len(spoiled)))
            spoiled[to : to + draw(st.sampled_from([0, length]))] = piece
        elif change == "flip" and piece:
            spoiled[at] ^= 1 << draw(st.integers(0, 7))
        elif change == "spice":
            spoiled[at : at + length] = draw(st.sampled_from(SPICE))
        elif change == "random":
            spoiled[at : at + length] = draw(st.binary(max_size=8))
        elif change == "end" and draw(st.booleans()):
            del spoiled[at:]
    return bytes(spoiled)


@cache
def real_texts():
    """Small real captures cut to their first events, and the drawn ones."""
    samples = Path(__file__).parents[2] / "traces" / "samples"
    texts = [json.dumps(document_of(events, 0)).encode() for events, _ in RANKS]
    for path in sorted(samples.glob("*/kineto/rank0.*")):
        document = json.loads(gzip.decompress(path.read_bytes()))
        chosen = document["traceEvents"][:: max(1, len(document["traceEvents"]) // 300)]
        texts.append(json.dumps({**document, "traceEvents": chosen}, indent=1).encode())
    return texts


@fuzz
@given(st.data())
def test_text_that_is_cut_flipped_and_doubled_is_answered_or_refused(data):
    text = data.draw(st.sampled_from(range(len(real_texts()))).map(lambda at: real_texts()[at]))
    is_packed = data.draw(st.booleans())
    if is_packed and data.draw(st.booleans()):
        require_answers([data.draw(spoiled_bytes(gzip.compress(text, mtime=0)))])
    else:
        spoiled = data.draw(spoiled_bytes(text))
        note(spoiled[:2000])
        require_answers([gzip.compress(spoiled) if is_packed else spoiled])


@fuzz
@given(st.binary(max_size=300))
def test_random_bytes_behind_any_beginning_are_answered_or_refused(text):
    for start in (b"", b'{"traceEvents": [', b'[{"ph": "X", "cat": "cpu_op", "ts": ', b"\x1f\x8b\x08\0\0\0\0\0\0\xff"):
        measured(start + text)
