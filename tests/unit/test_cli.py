"""The commands as a user meets them: help, exit codes, and one line on stderr for what can be mended."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from commands import Answer, require_one_line_error
from commands import ask as ask_in

from speedprof.errors import ExitCode, SpeedprofError
from speedprof.run_dir import FORMAT_VERSION, Manifest, RunDir, RunStatus, close_manifest

_ROOT = Path(__file__).parents[2]
COMMANDS = ("capture", "analyze", "report", "check")


Ask = Callable[..., Answer]


@pytest.fixture
def ask(tmp_path: Path) -> Ask:
    """Runs a command in an empty folder."""
    return partial(ask_in, folder=tmp_path)


def kineto(rank: int = 0) -> dict[str, Any]:
    """A trace of one step of 100 us with one operator of 60 us in it."""
    both = {"ph": "X", "pid": 1, "tid": 1}
    return {
        "distributedInfo": {"rank": rank, "world_size": 2},
        "traceEvents": [
            {**both, "cat": "user_annotation", "name": "speedprof.step/4", "ts": 1_000.0, "dur": 100.0, "args": {}},
            {**both, "cat": "cpu_op", "name": "aten::mm", "ts": 1_010.0, "dur": 60.0, "args": {"External id": 1}},
        ],
    }


def written(path: Path, document: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path


def make_run(root: Path, status: RunStatus = RunStatus.COMPLETE, run_id: str = "20261121_run") -> RunDir:
    """A closed run of one rank without steps or traces."""
    run_dir = RunDir(root / "traces" / run_id)
    run_dir.path.mkdir(parents=True)
    written(run_dir.rank_path(0), {"rank": 0, "host": "host", "pid": 1, "status": status})
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        run_id=run_id,
        created="2026-11-21T22:15:02+00:00",
        status=RunStatus.RUNNING,
        launcher_host="",
        launcher_pid=0,
        plan={},
        command=[],
        environment={},
    )
    close_manifest(run_dir, manifest, status=status, failure=None)
    return run_dir


# Help


@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_with_two_examples_of_the_command(ask: Ask, command: str) -> None:
    answer = ask(command, "--help")
    assert (answer.code, answer.err) == (0, "")
    lines = [line.strip() for line in answer.out.strip().splitlines()]
    assert [line.startswith(f"python -m speedprof {command}") for line in lines[-2:]] == [True, True]
    assert lines[-3] == "Examples:"


def test_the_first_help_names_every_command_and_every_exit_code(ask: Ask) -> None:
    answer = ask("--help")
    assert answer.code == 0
    assert all(re.search(rf"^\s+{command}\b", answer.out, re.MULTILINE) for command in COMMANDS)
    text = " ".join(answer.out.split())
    assert all(f"{code.value} " in text for code in ExitCode if code < ExitCode.INTERRUPTED)
    assert "130 and 143 interrupted" in text


@pytest.mark.parametrize("words", [(), *((command,) for command in COMMANDS)])
def test_help_imports_neither_torch_nor_polars(words: Sequence[str]) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "speedprof", *words, "--help"]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert done.returncode == 0
    assert "typer" in imported
    assert not imported & {"torch", "polars", "numpy", "scipy", "tensorboard", "jinja2"}


@pytest.mark.parametrize("source", ["cpu-2ranks", "cpu-2ranks/kineto"])
def test_reading_imports_nothing_that_takes_long_to_import(source: str) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "speedprof", "analyze", f"traces/samples/{source}", "--json"]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert done.returncode == 0
    assert "polars" in imported
    assert not imported & {"torch", "scipy.stats", "tensorboard", "pandas", "pyarrow", "jinja2"}


@pytest.mark.parametrize("words", [("analyse",), ("capture", "--steps", "many"), ("check", "--no-such-option"), ()])
def test_words_that_are_no_command_or_option_are_wrong_usage(ask: Ask, words: Sequence[str]) -> None:
    answer = ask(*words)
    assert answer.code == ExitCode.WRONG_USAGE
    assert "Traceback" not in answer.err


# Numbers that make no sense


@pytest.mark.parametrize(
    "words",
    [
        ("--steps", "0"),
        ("--steps", "-1"),
        ("--warmup", "-1"),
        ("--trace-steps", "-1"),
        ("--max-trace-mb", "0"),
        ("--nproc", "0"),
    ],
)
def test_capture_refuses_a_number_that_makes_no_sense_and_makes_nothing(
    ask: Ask, words: Sequence[str], tmp_path: Path
) -> None:
    require_one_line_error(ask("capture", *words), ExitCode.WRONG_USAGE, words[0])
    assert list(tmp_path.iterdir()) == []


def test_capture_refuses_a_run_that_exists_and_leaves_it_as_it_is(ask: Ask, tmp_path: Path) -> None:
    run_dir = make_run(tmp_path)
    before = run_dir.manifest_path.read_bytes()
    answer = ask("capture", "--run-id", "20261121_run")
    require_one_line_error(answer, ExitCode.WRONG_USAGE, "exists already", "--run-id")
    assert run_dir.manifest_path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [tmp_path / "traces"]


def test_capture_refuses_shards_that_are_not_there_before_it_makes_a_run(ask: Ask, tmp_path: Path) -> None:
    answer = ask("capture", "--data", "missing/train_*.bin")
    require_one_line_error(answer, ExitCode.UNREADABLE, "missing/train_*.bin", "--data")
    assert list(tmp_path.iterdir()) == []


# Runs by name


@pytest.mark.parametrize("command", ["analyze", "report", "check"])
def test_where_there_is_no_run_the_commands_say_how_to_make_one(ask: Ask, command: str) -> None:
    require_one_line_error(ask(command, "latest"), ExitCode.WRONG_USAGE, "holds no run", "speedprof capture")


@pytest.mark.parametrize("command", ["analyze", "report", "check"])
def test_a_run_that_is_not_there_is_named(ask: Ask, command: str, tmp_path: Path) -> None:
    make_run(tmp_path)
    require_one_line_error(ask(command, "2025"), ExitCode.WRONG_USAGE, "2025", "no run fits", "20261121_run")


@pytest.mark.parametrize("command", ["analyze", "report", "check"])
def test_a_run_of_another_version_is_refused_by_name(ask: Ask, command: str, tmp_path: Path) -> None:
    run_dir = make_run(tmp_path)
    document = json.loads(run_dir.manifest_path.read_text())
    written(run_dir.manifest_path, {**document, "format_version": 9})
    require_one_line_error(ask(command, "latest"), ExitCode.UNREADABLE, "version 9")


def test_check_says_fit_or_what_is_wrong_by_its_exit_code(ask: Ask, tmp_path: Path) -> None:
    run_dir = make_run(tmp_path)
    answer = ask("check", "latest", "--json")
    assert (answer.code, json.loads(answer.out)["fit"]) == (0, True)
    run_dir.rank_path(0).write_text("changed")
    answer = ask("check", "latest", "--json")
    assert (answer.code, answer.err) == (ExitCode.INCONCLUSIVE, "")
    assert json.loads(answer.out)["problems"] == ["rank0.json has changed since the run was closed"]
    answer = ask("check")
    assert answer.code == ExitCode.INCONCLUSIVE
    assert "rank0.json has changed" in answer.out


def test_check_closes_a_run_whose_launcher_died_and_calls_it_unfit(ask: Ask, tmp_path: Path) -> None:
    run_dir = make_run(tmp_path)
    run_dir.manifest_path.unlink()
    answer = ask("check", run_dir.path)
    assert answer.code == ExitCode.INCONCLUSIVE
    assert "the run is interrupted" in answer.out
    assert "its manifest was rebuilt" in answer.out
    assert json.loads(run_dir.manifest_path.read_text())["status"] == "interrupted"


def test_report_overwrites_nothing_unless_forced(ask: Ask, tmp_path: Path) -> None:
    make_run(tmp_path)
    page = tmp_path / "reports" / "20261121_run" / "report.md"
    page.parent.mkdir(parents=True)
    page.write_text("mine")
    require_one_line_error(ask("report", "--format", "md"), ExitCode.WRONG_USAGE, "exists already", "--force")
    assert page.read_text() == "mine"
    answer = ask("report", "--format", "md", "--force")
    assert (answer.code, answer.out) == (0, "")
    assert page.read_text() != "mine"


def test_report_refuses_a_format_that_it_does_not_write(ask: Ask, tmp_path: Path) -> None:
    make_run(tmp_path)
    require_one_line_error(ask("report", "--format", "pdf"), ExitCode.WRONG_USAGE, "pdf", "html,json,md")


# Foreign traces


def test_analyze_prints_one_json_document_and_nothing_else(ask: Ask, tmp_path: Path) -> None:
    paths = [written(tmp_path / f"rank{rank}.json", kineto(rank)) for rank in (1, 0)]
    answer = ask("analyze", *paths, "--json")
    assert (answer.code, answer.err) == (0, "")
    document = json.loads(answer.out)
    assert document["schema_version"] >= 1
    assert [rank["rank"] for rank in document["ranks"]] == [0, 1]
    assert [rank["partition"]["compute_ns"] for rank in document["ranks"]] == [60_000, 60_000]
    assert [rank["timeline"] for rank in document["ranks"]] == ["host", "host"]


def test_analyze_prints_tables_for_people(ask: Ask, tmp_path: Path) -> None:
    answer = ask("analyze", written(tmp_path / "rank0.json", kineto()))
    assert (answer.code, answer.err) == (0, "")
    assert "0.060" in answer.out


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.json", b""),
        ("empty.json.gz", b""),
        ("garbage.json", bytes(range(256)) * 8),
        ("garbage.json.gz", b"\x1f\x8b\x08garbage"),
        ("list.json", b"[1, 2, 3]"),
        ("other.json", b'{"name": "not a trace", "version": 1}'),
        ("chrome.json", b'{"traceEvents": [{"ph": "X", "cat": "toplevel", "name": "a", "ts": 1, "dur": 2}]}'),
        ("text.txt", b"hello\n"),
    ],
)
def test_a_file_that_is_no_trace_is_unreadable_in_one_line(ask: Ask, tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    require_one_line_error(ask("analyze", path), ExitCode.UNREADABLE, name)


@pytest.mark.parametrize("name", ["missing.json", "missing.json.gz", "folder/missing.json", "folder/missing"])
def test_a_file_that_is_missing_is_unreadable_in_one_line(ask: Ask, name: str) -> None:
    require_one_line_error(ask("analyze", name), ExitCode.UNREADABLE, name)


def test_one_missing_file_among_others_is_named(ask: Ask, tmp_path: Path) -> None:
    path = written(tmp_path / "rank0.json", kineto())
    require_one_line_error(ask("analyze", path, "rank1.json"), ExitCode.UNREADABLE, "rank1.json")


@pytest.mark.parametrize("name", ["rank0.json", "rank0.json.gz"])
def test_a_truncated_trace_is_read_up_to_the_cut_and_says_so(ask: Ask, tmp_path: Path, name: str) -> None:
    text = json.dumps(kineto()).encode()[:-20]
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    answer = ask("analyze", tmp_path / name, "--json")
    assert (answer.code, answer.err) == (0, "")
    assert json.loads(answer.out)["notes"]


def test_in_a_folder_what_is_no_trace_is_skipped_and_counted(ask: Ask, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    written(folder / "rank0.json", kineto(0))
    written(folder / "deeper" / "rank1.json", kineto(1))
    written(folder / "settings.json", {"name": "not a trace"})
    (folder / "empty.json").touch()
    (folder / "notes.txt").write_text("not looked at")
    answer = ask("analyze", folder, "--json")
    assert (answer.code, answer.err) == (0, "")
    document = json.loads(answer.out)
    assert [rank["rank"] for rank in document["ranks"]] == [0, 1]
    assert any("2 of 4 JSON files" in note for note in document["notes"])


def test_a_folder_without_any_trace_is_unreadable_in_one_line(ask: Ask, tmp_path: Path) -> None:
    written(tmp_path / "folder" / "settings.json", {})
    require_one_line_error(ask("analyze", tmp_path / "folder"), ExitCode.UNREADABLE, "none of its 1 JSON files")
    (tmp_path / "nothing").mkdir()
    require_one_line_error(ask("analyze", tmp_path / "nothing"), ExitCode.UNREADABLE, "none of its 0 JSON files")


# Leaving


def test_what_a_user_can_mend_is_one_line_with_its_exit_code(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    class UnfitError(SpeedprofError):
        exit_code = ExitCode.ENVIRONMENT

    def fail() -> None:
        raise UnfitError("no GPU", next_step="find one")

    monkeypatch.setattr("speedprof.cli.app", fail)
    answer = ask("check")
    assert (answer.code, answer.err) == (6, "speedprof: error: no GPU; find one\n")


def test_ctrl_c_leaves_with_130_and_without_a_traceback(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("speedprof.cli.app", interrupt)
    answer = ask("check")
    assert (answer.code, "Traceback" in answer.err) == (130, False)


def test_a_reader_that_has_had_enough_is_no_failure() -> None:
    command = f"{sys.executable} -m speedprof analyze traces/samples/h200-2ranks | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1:] == ["0"]
    assert done.stderr == ""
