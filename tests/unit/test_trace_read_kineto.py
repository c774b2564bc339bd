"""What the reader takes, mends and refuses."""

import gzip
import json

import pytest
from builders import build_trace, kineto_text, read_events, read_text, rows_to_events

from speedprof.errors import UnreadableError
from speedprof.trace.kernels import choose_patterns
from speedprof.trace.read_kineto import read_kineto
from speedprof.trace.schema import TABLES
from speedprof.trace.unpack import ReadLimits

ROWS = """
    2 | main      | speedprof.step/1                |  0 | 90 |
    2 | main      | aten::mm                        |  5 | 20 |
    2 | stream 7  | gemm                            | 10 | 40 | main 6
    2 | stream 23 | ncclDevKernel_AllGather_RING()  | 30 | 60 | main 8
    2 | stream 7  | Memset (Device)                 | 40 | 41 | main 9
"""
(EVENTS,) = rows_to_events(ROWS).values()
TEXT = kineto_text(EVENTS, rank=2)
KERNEL = {"ph": "X", "cat": "kernel", "name": "k", "tid": 7, "ts": 0, "dur": 1, "args": {"stream": 7, "device": 0}}


def kernel_text(**fields: str) -> str:
    """A file with a sound kernel and one whose fields are this JSON."""
    spoiled = {key: json.dumps(value) for key, value in KERNEL.items()} | fields
    body = ", ".join(f'"{key}": {value}' for key, value in spoiled.items())
    return f'{{"traceEvents": [{json.dumps(KERNEL)}, {{{body}}}, {json.dumps(KERNEL)}]}}'


def test_every_column_of_the_schema_is_there():
    trace = build_trace(ROWS)
    for table, columns in TABLES.items():
        frame = getattr(trace, table)
        assert dict(frame.schema) == {name: column.dtype for name, column in columns.items()}, table
    assert trace.rank == 2
    assert trace.kernels["name"].to_list() == ["gemm", "ncclDevKernel_AllGather_RING()", "Memset (Device)"]
    assert trace.kernels["kind"].to_list() == ["compute", "communication", "memset"]


def test_gzip_is_known_by_its_first_bytes_not_by_name():
    expected = read_text(TEXT, "trace.json")
    for name in ("trace.json", "trace.json.gz", "trace"):
        assert read_text(gzip.compress(TEXT.encode()), name).kernels.equals(expected.kernels)
    assert read_text(TEXT, "trace.json.gz").kernels.equals(expected.kernels)


def test_members_of_a_gzip_file_are_read_on():
    packed = gzip.compress(TEXT[:700].encode()) + gzip.compress(TEXT[700:].encode()) + b"\0" * 100
    assert read_text(packed).kernels.equals(read_text(TEXT).kernels)


@pytest.mark.parametrize(
    ("base_ns", "ts", "expected"),
    [
        # The largest times that Kineto writes after its base of three months: all three decimals survive.
        (1759300074000000000, "6322354292846.145", 1759300074000000000 + 6322354292846145),
        (1759300074000000000, "7999999999999.999", 1759300074000000000 + 7999999999999999),
        # A thousand times this one rounds to an ns too many.
        (1790857026000000000, "4449596391390.221", 1790857026000000000 + 4449596391390221),
        # No base: µs since the epoch. Whole ones in old files, decimals that no float holds in some.
        (0, "1694128201426674", 1694128201426674000),
        (0, "1694128201426674.123", 1694128201426674123),
        (0, "1694128201426674.0", 1694128201426674000),
        (0, "1.5e3", 1500000),
    ],
)
def test_no_digit_of_a_time_is_lost(base_ns, ts, expected):
    text = kernel_text(ts=ts, dur="0.001").replace("{", f'{{"baseTimeNanoseconds": {base_ns}, ', 1)
    kernel = read_text(text).kernels.row(-1, named=True)
    assert (kernel["start_ns"], kernel["end_ns"]) == (expected, expected + 1)


def test_a_time_that_makes_the_trace_span_days_is_told():
    trace = read_text(kernel_text(ts="3900000000000000"), "rank0.json")
    assert trace.notes == ("its events span 45,138.9 days: some of their times are wrong",)
    assert read_text(kernel_text(ts="86399999999"), "rank0.json").notes == ()


def test_an_end_beyond_all_time_spoils_its_event():
    trace = read_text(kernel_text(ts="3900000000000000", dur="3900000000000000"), "rank0.json")
    assert (len(trace.kernels), trace.notes) == (2, ("1 damaged events were skipped",))


def test_times_keep_their_ns_over_a_million_values():
    step = 7_919_003
    times = [6_322_354_292_846_145 + step * at for at in range(3000)]
    trace = read_events([{**KERNEL, "ts": ns, "dur": 1} for ns in times])
    assert trace.kernels["start_ns"].to_list() == times


@pytest.mark.parametrize(
    ("name", "metadata", "rank"),
    [
        ("rank5.json", {}, 5),
        ("worker3.pt.trace.json", {}, 3),
        ("rank5.json", {"distributedInfo": {"rank": 1}}, 1),
        ("rank5.json", {"distributedInfo": {"rank": "one"}}, 5),
    ],
)
def test_the_rank_is_the_files_word_else_its_name(name, metadata, rank):
    text = json.dumps({**metadata, "traceEvents": [KERNEL]})
    assert read_text(text, name).rank == rank


def test_a_file_that_does_not_say_its_rank_is_rank_0_and_says_so():
    trace = read_text(json.dumps({"traceEvents": [KERNEL]}))
    assert (trace.rank, trace.notes) == (0, ("neither the file nor its name says its rank: taken as rank 0",))


def test_the_event_array_alone_is_legal_and_so_is_a_byte_order_mark():
    array = json.dumps(EVENTS)
    assert len(read_text(array).kernels) == 3
    assert len(read_text("\ufeff" + TEXT).kernels) == 3


def test_keys_after_the_events_count_too():
    text = json.dumps({"traceEvents": [KERNEL], "distributedInfo": {"rank": 6}, "x": [{"a": 1}, {"b": 2}]})
    assert read_text(text).rank == 6


def test_old_kineto_and_rocm_name_their_categories_otherwise():
    def event(cat, name, tid, ts, **args):
        return {"ph": "X", "cat": cat, "name": name, "tid": tid, "ts": ts, "dur": 1000, "args": args}

    old = [
        event("Operator", "ProfilerStep#5", "77", 0, **{"External id": 1}),
        event("Runtime", "cudaLaunchKernel", "77", 0, correlation=9),
        event("Kernel", "gemm", "stream 7", 500, correlation=9, stream=7, device=0),
        event("Memcpy", "Memcpy HtoD", "stream 7", 600, correlation=8, device=0),
    ]
    trace = read_events(old)
    assert trace.kernels["stream"].to_list() == [7, 7]
    assert trace.kernels["host_step"].to_list() == [5, 5]
    assert trace.kernels["linked"].to_list() == [True, False]
    assert trace.ranges["kind"].to_list() == ["profiler_step"]
    rocm = [event("hip_runtime", "hipLaunchKernel", 1, 0, correlation=4), {**KERNEL, "args": {"correlation": 4}}]
    assert read_events(rocm).kernels["linked"].to_list() == [True]


def test_collectives_carry_what_the_file_says_of_them():
    args = {
        "stream": 23,
        "Collective name": "_allgather_base",
        "In msg nelems": 10,
        "Out msg nelems": 80,
        "Group size": 8,
        "dtype": "BFloat16",
        "Process Group Name": "0",
        "Seq": 41,
    }
    said = {**KERNEL, "name": "ncclDevKernel_AllGather_RING_LL()", "args": args}
    trace = read_events([{**said, "ts": 5, "args": {"stream": 23}}, said])
    columns = ("name", "declared_name", "process_group", "seq", "dtype", "in_elements", "out_elements", "group_size")
    assert trace.collectives.select(columns).rows() == [
        ("all_gather", "_allgather_base", "0", 41, "BFloat16", 10, 80, 8),
        ("all_gather", None, None, None, None, None, None, None),
    ]


def test_a_users_pattern_makes_a_kernel_a_collective(tmp_path):
    path = tmp_path / "rank0.json"
    path.write_text(json.dumps({"traceEvents": [{**KERNEL, "name": "my_exchange<3>"}]}))
    assert len(read_kineto(path).collectives) == 0
    assert read_kineto(path, patterns=choose_patterns(["^my_"])).collectives["name"].to_list() == ["other"]


@pytest.mark.parametrize(
    "fields",
    [
        {"ts": "NaN"},
        {"ts": "-Infinity"},
        {"ts": "-5"},
        {"ts": "1e300"},
        {"ts": "123456789012345678901234567890"},
        {"ts": '"soon"'},
        {"ts": "null"},
        {"ts": "[1]"},
        {"dur": "-1"},
        {"dur": '"long"'},
        {"dur": "Infinity"},
        {"name": "7"},
        {"cat": "3"},
        {"tid": "{}"},
    ],
)
def test_a_spoiled_event_costs_itself_alone_and_is_counted(fields):
    trace = read_text(kernel_text(**fields), "rank0.json")
    assert len(trace.kernels) == 2
    assert (trace.is_damaged, trace.notes) == (False, ("1 damaged events were skipped",))


@pytest.mark.parametrize("element", ["null", "7", '"x"', "[]", "[[[]]]"])
def test_an_element_that_is_no_event_is_skipped_and_counted(element):
    text = f'{{"traceEvents": [{json.dumps(KERNEL)}, {element}, {json.dumps(KERNEL)}]}}'
    trace = read_text(text, "rank0.json")
    assert len(trace.kernels) == 2
    assert (trace.is_damaged, trace.notes) == (False, ("1 damaged events were skipped",))


@pytest.mark.parametrize(("written", "name"), [("a\x01\x1b[31mb", "a\x01\x1b[31mb"), ("a\\u0007<b>", "a\a<b>")])
def test_names_with_control_characters_are_kept_as_data(written, name):
    assert read_text(kernel_text(name=f'"{written}"')).kernels["name"].to_list().count(name) == 1


def test_a_lone_surrogate_does_not_spoil_the_names():
    assert len(read_text(kernel_text(name='"a\\ud800b"')).kernels) == 3


def test_a_lone_surrogate_in_a_key_costs_one_event():
    assert len(read_text(kernel_text(**{"a\\ud800": "1"})).kernels) == 2


def test_invalid_utf8_is_replaced():
    assert len(read_text(kernel_text(name='"a@b"').encode().replace(b"@", b"\xff")).kernels) == 3


def test_args_that_are_null_are_absent():
    assert len(read_text(kernel_text(args="null")).kernels) == 3


def test_event_borders_inside_strings_and_lists_do_not_split_events():
    tricky = {**KERNEL, "args": {"stream": 7, "x": "}, {", "y": [{"a": 1}, {"b": "]"}], "z": '"traceEvents": ['}}
    text = json.dumps({"note": '"traceEvents": [', "traceEvents": [tricky] * 20_000})
    trace = read_text(text, "rank0.json")
    assert (len(trace.kernels), trace.notes) == (20_000, ())


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b" \n", "is blank"),
        (b"hello", "is not JSON"),
        (b"\x00\x01\x02garbage", "is not JSON"),
        (b"\x1f\x8b\x08\x00garbage", "gave no text: the gzip stream ends early, after 0 B of text"),
        (gzip.compress(b"", mtime=0)[:10], "gave no text: the gzip stream ends early, after 0 B of text"),
        (gzip.compress(b"", mtime=0), "is empty"),
        (
            gzip.compress(TEXT.encode(), mtime=0)[:12] + b"\xff" * 50,
            "gave no text: the gzip stream is damaged 2 B into the file",
        ),
        (b"{", "ends before any event"),
        (TEXT.encode("utf-16"), "is UTF-16 text"),
        (b'{"a": 1}', "is JSON but holds no traceEvents"),
        (b'{"a": 1', "ends before any event"),
        (b'{"traceEvents": []}', "holds no operator, range or kernel"),
        (b'{"traceEvents": [', "holds no operator, range or kernel"),
        (b'[{"ph": "X", "cat": "toplevel", "name": "x", "ts": 1}]', "holds no operator, range or kernel"),
        (b"[1, 2, 3]", "holds no operator, range or kernel"),
        (b"[" * 100_000, "holds no operator, range or kernel"),
        (b'{"a":' * 100_000, "ends before any event"),
        (b'{"traceEvents": {"a": 1}}', "is JSON but holds no traceEvents"),
    ],
)
def test_what_is_no_trace_is_refused_in_one_line(tmp_path, content, problem):
    path = tmp_path / "rank0.json"
    path.write_bytes(content)
    with pytest.raises(UnreadableError) as caught:
        read_kineto(path)
    assert str(path) in caught.value.problem
    assert problem in caught.value.problem
    assert caught.value.next_step
    assert "\n" not in str(caught.value)


def test_missing_files_and_folders_are_refused(tmp_path):
    with pytest.raises(UnreadableError, match="does not exist"):
        read_kineto(tmp_path / "nothing.json")
    with pytest.raises(UnreadableError, match="is a folder"):
        read_kineto(tmp_path)


def test_a_file_that_unfolds_too_far_is_refused(tmp_path):
    path = tmp_path / "rank0.json.gz"
    path.write_bytes(gzip.compress(b'{"traceEvents": [' + b" " * (80 << 20)))
    with pytest.raises(UnreadableError, match="more than 100 times its size"):
        read_kineto(path)
    with pytest.raises(UnreadableError, match=r"holds more than 1\.00 MB"):
        read_kineto(path, limits=ReadLimits(max_bytes=1_000_000))
