"""The options that analyze and report share, and where reports of traces go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import ask, require_one_line_error

from speedprof.cli.outputs import Format
from speedprof.cli.trace_files import name_after
from speedprof.cli.trace_options import SECTIONS, choose_reading, choose_sections, parse_size
from speedprof.errors import ExitCode, UsageError
from speedprof.report.sections import Section
from speedprof.trace.unpack import ReadLimits

KERNEL = {"ph": "X", "cat": "kernel", "pid": 0, "tid": 7, "dur": 10, "args": {"device": 0, "stream": 7}}


def traced(path: Path, *names: str, rank: int = 0) -> Path:
    """Kernels of 10 us each, one after the other."""
    events = [{**KERNEL, "name": name, "ts": 1_000 + 10 * number} for number, name in enumerate(names)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"distributedInfo": {"rank": rank}, "traceEvents": events}))
    return path


def partition(path: Path, *words: str) -> dict[str, int]:
    answer = ask("analyze", path, "--json", *words, folder=path.parent)
    assert (answer.code, answer.err) == (0, "")
    found: dict[str, Any] = json.loads(answer.out)["ranks"][0]
    return {"compute": found["partition"]["compute_ns"], "communication": found["communication_ns"]}


def test_help_names_the_parts_that_there_are() -> None:
    assert tuple(Section) == SECTIONS
    assert choose_sections(None) == frozenset(Section)
    assert choose_sections("partition, idle") == {Section.PARTITION, Section.IDLE}


@pytest.mark.parametrize("command", ["analyze", "report"])
@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--only", "gaps"), ("--only gaps", "step_time,partition,overlap,")),
        (("--only", ""), ("--only", "choose from")),
        (("--collective-pattern", "("), ("'('", "no regular expression", "unterminated")),
        (("--collective-pattern", "all_gather="), ("'all_gather='", "matches every name")),
        (("--collective-pattern-only", "x*"), ("--collective-pattern-only 'x*'", "matches every name")),
        (("--max-bytes", "much"), ("--max-bytes much", "500MB or 64GiB")),
        (("--max-bytes", "0"), ("--max-bytes 0", "is no size")),
        (("--max-bytes", "-1"), ("--max-bytes -1", "is no size")),
        (("--max-bytes", "9" * 400), ("is no size",)),
        (("--jobs", "0"), ("--jobs 0", "1 or more")),
    ],
    ids=str,
)
def test_what_an_option_cannot_mean_is_wrong_usage_in_one_line(
    tmp_path: Path, command: str, words: tuple[str, str], parts: tuple[str, ...]
) -> None:
    path = traced(tmp_path / "rank0.json", "gemm")
    require_one_line_error(ask(command, path, *words, folder=tmp_path), ExitCode.WRONG_USAGE, *parts)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("1", 1),
        ("4096", 4_096),
        ("500MB", 500_000_000),
        ("500 mb", 500_000_000),
        ("64GiB", 64 << 30),
        ("64gib", 64 << 30),
        ("1.5k", 1_500),
        ("2T", 2 * 10**12),
        ("7B", 7),
    ],
)
def test_sizes_are_read_with_and_without_units(text: str, num_bytes: int) -> None:
    assert parse_size(text) == num_bytes


@pytest.mark.parametrize("text", ["", "GB", "1.5.2", "5 parsecs", "1e9", "0.1", "inf", "nan"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no size"):
        parse_size(text)


def test_without_options_files_are_read_as_the_reader_does_by_itself() -> None:
    assert choose_reading().limits == ReadLimits()
    assert choose_reading().num_jobs is None


def test_patterns_add_to_the_table_or_take_its_place(tmp_path: Path) -> None:
    path = traced(tmp_path / "rank0.json", "gemm", "ncclDevKernel_AllGather_RING_LL", "my_exchange", "my_gather")
    assert partition(path) == {"compute": 30_000, "communication": 10_000}
    own = ("--collective-pattern", "^my_exchange", "--collective-pattern", "all_gather=my_g.*r")
    assert partition(path, *own) == {"compute": 10_000, "communication": 30_000}
    assert partition(path, "--collective-pattern-only", "my_") == {"compute": 20_000, "communication": 20_000}
    assert partition(path, "--collective-pattern-only", "my_g", "--collective-pattern-only", "nccl|rccl") == {
        "compute": 20_000,
        "communication": 20_000,
    }
    assert partition(path, "--collective-pattern-only", "no_such") == {"compute": 40_000, "communication": 0}


def test_parts_that_were_not_asked_for_are_left_out(tmp_path: Path) -> None:
    path = traced(tmp_path / "rank0.json", "gemm")
    everything, part = ask("analyze", path, folder=tmp_path), ask("analyze", path, "--only", "idle", folder=tmp_path)
    assert (everything.code, part.code) == (0, 0)
    assert 0 < len(part.out) < len(everything.out)
    answer = ask("analyze", path, "--only", "partition,idle", "--json", folder=tmp_path)
    assert json.loads(answer.out)["sections"] == ["partition", "idle"]


def test_reports_of_traces_are_named_after_what_was_read(tmp_path: Path) -> None:
    traced(tmp_path / "a" / "rank0.pt.trace.json", "gemm")
    traced(tmp_path / "a" / "rank1.json", "gemm", rank=1)
    every = ",".join(Format)
    assert ask("report", "a", "--format", every, folder=tmp_path).code == 0
    assert ask("report", "a/rank0.pt.trace.json", "--format", "md", folder=tmp_path).code == 0
    answer = ask("report", "a/rank0.pt.trace.json", "a/rank1.json", "--format", "md", folder=tmp_path)
    require_one_line_error(answer, ExitCode.WRONG_USAGE, "reports/a/report.md: exists already")
    found = {str(path.relative_to(tmp_path / "reports")) for path in (tmp_path / "reports").glob("*/*")}
    assert found == {"a/index.html", "a/report.json", "a/report.md", "a/perfetto.json.gz", "rank0/report.md"}


@pytest.mark.parametrize(
    ("paths", "name"),
    [
        (["/x/run"], "run"),
        (["/x/run/"], "run"),
        (["/x/run/rank0.json.gz"], "rank0"),
        (["/x/run/worker0.17.pt.trace.json"], "worker0.17"),
        (["/x/run/rank0.json", "/x/run/rank1.json"], "run"),
        (["/x/run/a/rank0.json", "/x/run/b/rank1.json"], "run"),
        (["/x/../y/z"], "z"),
        (["/"], "traces"),
        (["/rank0.json", "/rank1.json"], "traces"),
        (["/x/.json"], "traces"),
    ],
)
def test_a_name_for_reports_comes_from_the_paths(paths: list[str], name: str) -> None:
    assert name_after([Path(path) for path in paths]) == name
