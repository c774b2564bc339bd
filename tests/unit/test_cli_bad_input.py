"""Input that is broken, odd or hostile, as a user names it: answered with a note, or refused in one line that says
what is wrong with which file and what to do."""

from __future__ import annotations

import gzip
import json
import os
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from commands import Answer, ask, require_one_line_error

from speedprof.cli import sources
from speedprof.errors import ExitCode

HOST = {"ph": "X", "pid": 1, "tid": 1}
STEP = {**HOST, "cat": "user_annotation", "name": "speedprof.step/4", "ts": 1_000.0, "dur": 100.0}
OP = {**HOST, "cat": "cpu_op", "name": "aten::mm", "ts": 1_010.0, "dur": 60.0}


def kineto(*more: Any, rank: int = 0, world_size: int = 2, **keys: Any) -> dict[str, Any]:
    """A step of 100 us with an operator of 60 us in it, and more events."""
    info = {"rank": rank, "world_size": world_size}
    return {"distributedInfo": info, **keys, "traceEvents": [STEP, OP, *more]}


def written(path: Path, document: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def analyzed(path: Path, *words: str | Path) -> dict[str, Any]:
    """The JSON document of an answer that is fine."""
    answer = ask("analyze", path, *words, "--json", folder=path.parent)
    assert (answer.code, answer.err) == (0, "")
    document: dict[str, Any] = json.loads(answer.out)
    return document


def refused(path: Path, *words: str | Path) -> Answer:
    return ask("analyze", path, *words, folder=path.parent)


# What is in a file


@pytest.mark.parametrize(
    "odd",
    [
        {"ts": float("nan")},
        {"ts": float("inf")},
        {"ts": -5},
        {"ts": 10**400},
        {"ts": "yesterday"},
        {"ts": [1]},
        {"dur": float("-inf")},
        {"dur": -1},
        {"dur": {}},
        {"name": {}},
        {"cat": ["cpu_op"]},
        {"ph": 7},
        {"tid": {}},
    ],
    ids=str,
)
def test_an_event_with_a_field_that_makes_no_sense_costs_itself_alone(tmp_path: Path, odd: dict[str, Any]) -> None:
    path = written(tmp_path / "rank0.json", kineto({**OP, **odd}))
    document = analyzed(path)
    assert document["notes"] == ["rank 0: 1 damaged events were skipped"]
    assert document["ranks"][0]["partition"]["compute_ns"] == 60_000


def test_a_time_beyond_the_others_is_told(tmp_path: Path) -> None:
    path = written(tmp_path / "rank0.json", kineto({**OP, "ts": 3.9e15}))
    assert "its events span 45,138.9 days: some of their times are wrong" in analyzed(path)["notes"][0]


def test_a_file_without_events_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "rank0.json", {**kineto(), "traceEvents": []})
    require_one_line_error(refused(path), ExitCode.UNREADABLE, "rank0.json", "holds no operator, range or kernel")


def test_a_file_cut_before_its_first_event_says_so(tmp_path: Path) -> None:
    path = written(tmp_path / "rank0.json", json.dumps(kineto()).partition('"cat"')[0])
    require_one_line_error(refused(path), ExitCode.UNREADABLE, "rank0.json", "ends in the midst", "capture again")


# Several files


def test_two_traces_of_one_rank_are_refused(tmp_path: Path) -> None:
    for folder in "ab":
        written(tmp_path / folder / "rank0.json", kineto())
    require_one_line_error(refused(tmp_path), ExitCode.UNREADABLE, "b/rank0.json is of rank 0, as ", "one run alone")


def test_traces_of_runs_of_different_size_are_refused(tmp_path: Path) -> None:
    first = written(tmp_path / "rank0.json", kineto())
    other = written(tmp_path / "rank1.json", kineto(rank=1, world_size=8))
    answer = refused(first, other)
    require_one_line_error(answer, ExitCode.UNREADABLE, "rank1.json is of a run of 8 ranks, ", "rank0.json of one of 2")


def test_a_thousand_files_of_which_one_is_a_trace(tmp_path: Path) -> None:
    for number in range(999):
        (tmp_path / f"{number}.json").write_text("{}")
    written(tmp_path / "rank5.json", kineto(rank=5))
    document = analyzed(tmp_path)
    assert [rank["rank"] for rank in document["ranks"]] == [5]
    assert document["notes"][0] == f"999 of 1000 JSON files in {tmp_path} are no Kineto traces and were skipped"
    assert len(document["notes"]) == 6


def test_folders_within_folders_that_are_named_too(tmp_path: Path) -> None:
    written(tmp_path / "a" / "rank0.json", kineto())
    assert [rank["rank"] for rank in analyzed(tmp_path, tmp_path / "a")["ranks"]] == [0]


def test_a_file_that_goes_between_listing_and_reading_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank in (0, 1):
        written(tmp_path / f"rank{rank}.json", kineto(rank=rank))
    find = sources.find_trace_files

    def find_and_delete(*arguments: Any) -> Any:
        found = find(*arguments)
        (tmp_path / "rank1.json").unlink()
        return found

    monkeypatch.setattr(sources, "find_trace_files", find_and_delete)
    document = analyzed(tmp_path)
    assert [rank["rank"] for rank in document["ranks"]] == [0]
    assert f"{tmp_path}/rank1.json does not exist" in document["notes"]


def test_a_trace_that_goes_before_it_is_drawn_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "rank0.json", kineto())
    report = sources.report_on_traces

    def report_and_delete(*arguments: Any) -> Any:
        found = report(*arguments)
        path.unlink()
        return found

    monkeypatch.setattr(sources, "report_on_traces", report_and_delete)
    answer = ask("report", path, "--format", "perfetto", folder=tmp_path)
    require_one_line_error(answer, ExitCode.UNREADABLE, "rank0.json does not exist")
    assert list((tmp_path / "reports" / "rank0").iterdir()) == []


# What is no plain file


def test_a_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rank0.json")
    require_one_line_error(refused(tmp_path / "rank0.json"), ExitCode.UNREADABLE, "rank0.json is a pipe or a device")
    require_one_line_error(refused(Path("/dev/zero")), ExitCode.UNREADABLE, "/dev/zero is a pipe or a device")


def test_a_folder_with_pipes_and_loops_of_links_in_it(tmp_path: Path) -> None:
    written(tmp_path / "rank0.json", kineto())
    written(tmp_path / "x.json" / "rank1.json", kineto(rank=1))
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "x.json" / "up").symlink_to(tmp_path)
    (tmp_path / "self.json").symlink_to("self.json")
    (tmp_path / "gone.json").symlink_to("nowhere.json")
    document = analyzed(tmp_path)
    assert [rank["rank"] for rank in document["ranks"]] == [0, 1]
    assert document["notes"] == []
    assert [rank["rank"] for rank in analyzed(tmp_path / "x.json")["ranks"]] == [1]
    require_one_line_error(refused(tmp_path / "self.json"), ExitCode.UNREADABLE, "self.json cannot be read (Too many")


def test_what_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read everything, so that the refusal is made up here."""
    path, folder = written(tmp_path / "a" / "rank0.json", kineto()), tmp_path / "a"
    written(tmp_path / "rank1.json", kineto(rank=1))
    real_open, real_list = os.open, os.scandir

    def refuse_file(name: Any, *arguments: Any, **options: Any) -> Any:
        if os.fspath(name) == str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return real_open(name, *arguments, **options)

    def refuse_folder(name: Any) -> Any:
        if os.fspath(name) == str(folder):
            raise PermissionError(13, "Permission denied", str(folder))
        return real_list(name)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse_file)
        require_one_line_error(refused(path), ExitCode.UNREADABLE, "rank0.json cannot be read (Permission denied)")
    monkeypatch.setattr(os, "scandir", refuse_folder)
    require_one_line_error(refused(folder), ExitCode.UNREADABLE, "a: cannot be listed (Permission denied)")
    assert analyzed(tmp_path)["notes"] == [f"{folder}: cannot be listed (Permission denied)"]


@pytest.mark.parametrize("name", ["a" * 300, "a" * 300 + ".json", "a" * 300 + "/rank0.json"])
def test_a_name_longer_than_any_file_has(tmp_path: Path, name: str) -> None:
    answer = ask("analyze", name, folder=tmp_path)
    require_one_line_error(answer, ExitCode.WRONG_USAGE if name == "a" * 300 else ExitCode.UNREADABLE, "aaa")


# What unfolds


def packed(path: Path, start: bytes, piece: bytes, times: int) -> Path:
    with gzip.open(path, "wb", compresslevel=9) as file:
        file.write(start)
        for _ in range(times):
            file.write(piece)
    return path


def test_gzip_that_unfolds_a_hundred_times_is_refused(tmp_path: Path) -> None:
    many = ((json.dumps(OP) + ",").encode()) * 10_000
    bomb = packed(tmp_path / "bomb.json.gz", b'{"traceEvents": [', many, 80)
    require_one_line_error(refused(bomb), ExitCode.UNREADABLE, "bomb.json.gz unpacks to more than 100 times its size")
    blank = packed(tmp_path / "blank.json.gz", b"", b" " * 1_000_000, 80)
    require_one_line_error(refused(blank), ExitCode.UNREADABLE, "blank.json.gz unpacks to more than 100 times")
    zeros = packed(tmp_path / "zeros.json.gz", b"", bytes(1_000_000), 80)
    require_one_line_error(refused(zeros), ExitCode.UNREADABLE, "zeros.json.gz is not JSON")


@pytest.mark.parametrize("name", ["rank0.json", "rank0.json.gz"])
def test_more_text_than_is_allowed_is_refused_and_says_how_to_allow_it(tmp_path: Path, name: str) -> None:
    text = json.dumps(kineto(note="x" * 5_000))
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    answer = refused(path, "--max-bytes", "5kB")
    require_one_line_error(answer, ExitCode.UNREADABLE, name, "more than 5.00 kB of text", "--max-bytes")
    assert analyzed(path, "--max-bytes", "6KiB")["ranks"]


# Names

HOSTILE = (
    "\x1b[31mred\x1b[0m \x07bell \x9b31m",
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "\u202egnp.exe\u2066\u200b",
    "two\nlines\r\ttabs \u2028",
    "[bold]x[/bold] `md` | **x** [l](javascript:1)",
    "\ud800lone",
    "x" * 5_000,
)


def hostile_trace(path: Path) -> Path:
    """Every name is an operator's, a range's, a stage's group, a kernel's, a collective's and a process group's."""
    events = []
    for number, name in enumerate(HOSTILE):
        at = 1_001 + 10 * number
        launch = {
            **HOST,
            "cat": "cuda_runtime",
            "name": name,
            "ts": at,
            "dur": 0.5,
            "args": {"correlation": number + 1},
        }
        args = {"device": 0, "stream": 7, "correlation": number + 1, "Collective name": name, "dtype": name}
        args |= {"Process Group Name": name, "In msg nelems": 8, "Out msg nelems": 8, "Group size": 2, "Seq": number}
        kernel = {"ph": "X", "cat": "kernel", "pid": 0, "tid": 7, "ts": at + 4, "dur": 3, "args": args}
        events += [launch, {**kernel, "name": f"ncclX{name}" if number % 2 else name}]
        events += [{**HOST, "cat": "cpu_op", "name": name, "ts": at - 0.5, "dur": 0.9}]
        stage = {"name": f"speedprof.stage/all_gather/{name}", "ts": at - 0.6, "dur": 0.99}
        events += [{**HOST, "cat": "user_annotation", **stage}]
    return written(path, kineto(*events))


def unsafe(text: str) -> list[str]:
    """Characters that act on a terminal or on the direction of text."""
    return sorted({hex(ord(one)) for one in text if unicodedata.category(one) in ("Cc", "Cf", "Cs") and one != "\n"})


def test_names_reach_no_terminal_and_no_page_but_as_text(tmp_path: Path) -> None:
    path = hostile_trace(tmp_path / f"rank0\x1b[31m\n{HOSTILE[2]}<b>.json")
    (tmp_path / "folder").mkdir()
    written(tmp_path / "folder" / "\x1b[31mno trace\n.json", "{}")
    answer = ask("analyze", path, tmp_path / "folder", folder=tmp_path)
    require_one_line_error(answer, ExitCode.UNREADABLE)
    path.rename(tmp_path / "folder" / path.name)
    answer = ask("analyze", "folder", folder=tmp_path)
    assert (answer.code, unsafe(answer.out), answer.err) == (0, [], "")
    answer = ask("report", "folder", "--format", "html,json,md,perfetto", folder=tmp_path)
    assert (answer.code, unsafe(answer.err)) == (0, [])
    folder = tmp_path / "reports" / "folder"
    texts = {path.name: path.read_text() for path in folder.iterdir() if path.suffix != ".gz"}
    texts["perfetto"] = gzip.decompress((folder / "perfetto.json.gz").read_bytes()).decode()
    assert {name: unsafe(text) for name, text in texts.items()} == {name: [] for name in texts}
    assert "<script>alert" not in texts["index.html"]
    assert "<img src=x" not in texts["index.html"]
    assert json.loads(texts["report.json"])["ranks"]
    assert json.loads(texts["perfetto"])["traceEvents"]


def test_a_file_whose_name_is_no_unicode(tmp_path: Path) -> None:
    path = written(tmp_path / os.fsdecode(b"rank0\xff.json"), kineto())
    answer = ask("report", path, "--format", "html,json,md,perfetto", folder=tmp_path)
    assert (answer.code, answer.err.count("\n")) == (0, 4)
    assert len(list((tmp_path / "reports" / os.fsdecode(b"rank0\xff")).iterdir())) == 4
