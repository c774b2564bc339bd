"""The run directory: whole or marked, never half written, and found by any of its names."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from speedprof.cli.run_names import find_run
from speedprof.errors import ExitCode, UnreadableError, UsageError
from speedprof.run_dir import (
    FORMAT_VERSION,
    ArtifactKind,
    Manifest,
    RankRecord,
    RunDir,
    RunStatus,
    close_manifest,
    find_artifacts,
    find_damage,
    is_process_alive,
    overwrite_rank_record,
    read_manifest,
    read_or_rebuild_manifest,
    read_rank_records,
    write_atomically,
    write_manifest,
    write_rank_record,
)

# No process has this id: Linux gives none over 2**22.
DEAD_PID = 2**22 + 1


def manifest(**changes: object) -> Manifest:
    running = Manifest(
        format_version=FORMAT_VERSION,
        run_id="run",
        created="2026-11-21T22:15:02+00:00",
        status=RunStatus.RUNNING,
        launcher_host=socket.gethostname(),
        launcher_pid=os.getpid(),
        plan={"steps": 50},
        command=["speedprof", "capture"],
        environment={"git": {"commit": None}},
    )
    return replace(running, **changes)  # type: ignore[arg-type]


def record(rank: int, status: RunStatus = RunStatus.COMPLETE, **changes: object) -> RankRecord:
    return replace(RankRecord(rank=rank, host="host", pid=DEAD_PID, status=status), **changes)  # type: ignore[arg-type]


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    run_dir = RunDir(tmp_path / "run")
    for folder in ("steps", "kineto", "logs"):
        (run_dir.path / folder).mkdir(parents=True)
    return run_dir


@pytest.fixture
def filled(run_dir: RunDir) -> RunDir:
    """Two ranks' files, and what is no artifact beside them."""
    for rank in (0, 1):
        run_dir.steps_path(rank).write_bytes(b"steps")
        run_dir.kineto_path(rank, 7).write_bytes(b"trace")
        run_dir.log_path(rank).write_bytes(b"log")
        write_rank_record(run_dir, record(rank), durable=False)
    (run_dir.path / "events.out.tfevents.1.host").write_bytes(b"events")
    (run_dir.path / "kineto" / ".rank0.probe.json").write_bytes(b"unfinished")
    (run_dir.path / "derived").mkdir()
    (run_dir.path / "derived" / "rank0.json").write_bytes(b"for viewers")
    return run_dir


# Writing


def test_a_write_that_fails_leaves_the_old_content_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "manifest.json"
    path.write_bytes(b"old")

    def fail(file: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["manifest.json"]


def test_a_write_replaces_the_whole_content(tmp_path: Path) -> None:
    for content in (b"a longer one", b"new"):
        write_atomically(tmp_path / "file", content)
    assert (tmp_path / "file").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


def test_only_a_durable_write_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    write_atomically(tmp_path / "file", b"1", durable=False)
    assert synced == []
    write_atomically(tmp_path / "file", b"2", durable=True)
    assert len(synced) == 2  # the file and its folder


# Reading


def test_a_manifest_reads_back_as_it_was_written(filled: RunDir) -> None:
    closed = close_manifest(filled, manifest(), status=RunStatus.PARTIAL, failure="rank 1 died")
    assert read_manifest(filled) == closed
    assert json.loads(filled.manifest_path.read_text())["status"] == "partial"


@pytest.mark.parametrize("version", [2, 0, "1", None])
def test_a_version_that_is_not_known_is_refused_by_name(run_dir: RunDir, version: object) -> None:
    run_dir.manifest_path.write_text(json.dumps({"format_version": version}))
    with pytest.raises(UnreadableError, match=f"format version {version!r} is not known") as refused:
        read_manifest(run_dir)
    assert refused.value.exit_code is ExitCode.UNREADABLE


def test_a_run_of_a_version_that_is_not_known_is_never_rebuilt_over(filled: RunDir) -> None:
    text = json.dumps({"format_version": 2, "precious": True})
    filled.manifest_path.write_text(text)
    with pytest.raises(UnreadableError, match="format version 2"):
        read_or_rebuild_manifest(filled)
    assert filled.manifest_path.read_text() == text


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"7", b"\xff\xfe", b"[" * 100_000, b'{"format_version": 1}', b'{"format_version": 1, "new": 2}'],
)
def test_a_damaged_manifest_is_refused_in_one_line_that_says_how_to_rebuild_it(run_dir: RunDir, content: bytes) -> None:
    run_dir.manifest_path.write_bytes(content)
    with pytest.raises(UnreadableError, match="speedprof check") as refused:
        read_manifest(run_dir)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "damage",
    [
        {"status": "unheard of"},
        {"ranks": 7},
        {"ranks": [{"status": "complete"}]},
        {"ranks": ["rank 0"]},
        {"artifacts": [{"kind": "steps"}]},
        {"artifacts": None},
    ],
)
def test_a_manifest_whose_parts_are_wrong_is_refused(run_dir: RunDir, damage: dict[str, object]) -> None:
    write_manifest(run_dir, manifest())
    document = json.loads(run_dir.manifest_path.read_text())
    run_dir.manifest_path.write_text(json.dumps({**document, **damage}))
    with pytest.raises(UnreadableError, match="not a manifest"):
        read_manifest(run_dir)


def test_a_manifest_that_has_gained_keys_still_reads(filled: RunDir) -> None:
    closed = close_manifest(filled, manifest(), status=RunStatus.COMPLETE, failure=None)
    document = json.loads(filled.manifest_path.read_text())
    for part in (document, document["ranks"][0], document["artifacts"][0]):
        part["of_later_days"] = 7
    filled.manifest_path.write_text(json.dumps(document))
    assert read_manifest(filled) == closed


def test_running_reads_as_running_only_while_its_launcher_lives(run_dir: RunDir) -> None:
    write_manifest(run_dir, manifest())
    assert read_manifest(run_dir).status is RunStatus.RUNNING
    write_manifest(run_dir, manifest(launcher_pid=DEAD_PID))
    assert read_manifest(run_dir).status is RunStatus.INTERRUPTED


def test_a_launcher_on_another_host_is_believed_to_live(run_dir: RunDir) -> None:
    write_manifest(run_dir, manifest(launcher_host="elsewhere.invalid", launcher_pid=DEAD_PID))
    assert read_manifest(run_dir).status is RunStatus.RUNNING


def test_a_process_that_ended_but_was_not_waited_for_is_not_alive() -> None:
    assert is_process_alive(os.getpid())
    assert not is_process_alive(DEAD_PID)
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert not is_process_alive(child)
    os.waitpid(child, 0)


def test_rank_records_come_in_the_order_of_ranks_without_the_unreadable(run_dir: RunDir) -> None:
    for rank in (10, 2, 0):
        write_rank_record(run_dir, record(rank), durable=False)
    run_dir.rank_path(1).write_bytes(b"{")
    run_dir.rank_path(3).write_text('{"rank": 3, "status": "unheard of"}')
    assert [one.rank for one in read_rank_records(run_dir)] == [0, 2, 10]


# Closing


def test_artifacts_are_all_files_but_hidden_and_derived_ones(filled: RunDir) -> None:
    write_manifest(filled, manifest())
    found = {artifact.path: (artifact.kind, artifact.rank, artifact.num_bytes) for artifact in find_artifacts(filled)}
    of_rank = {
        f"{path.format(rank)}": (kind, rank, size)
        for rank in (0, 1)
        for path, kind, size in (
            ("steps/rank{}.steps", ArtifactKind.STEPS, 5),
            ("kineto/rank{}.7.pt.trace.json.gz", ArtifactKind.KINETO, 5),
            ("logs/rank{}.log", ArtifactKind.LOG, 3),
        )
    }
    assert {path: one for path, one in found.items() if not path.startswith(("rank", "events"))} == of_rank
    assert found["rank1.json"][:2] == (ArtifactKind.RANK, 1)
    assert found["events.out.tfevents.1.host"] == (ArtifactKind.TENSORBOARD, None, 6)
    assert len(found) == 9


def test_a_checksum_is_sha256(run_dir: RunDir) -> None:
    run_dir.steps_path(0).write_bytes(b"abc")
    (artifact,) = find_artifacts(run_dir)
    assert artifact.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_closing_marks_a_rank_that_never_said_otherwise_as_failed(run_dir: RunDir) -> None:
    write_rank_record(run_dir, record(0, declared={"preset": "toy"}, notes=["a", "b"]), durable=False)
    write_rank_record(run_dir, record(1, RunStatus.RUNNING, notes=["b"]), durable=False)
    closed = close_manifest(run_dir, manifest(), status=RunStatus.FAILED, failure="rank 1 died")
    assert [one.status for one in closed.ranks] == [RunStatus.COMPLETE, RunStatus.FAILED]
    assert (closed.declared, closed.failure) == ({"preset": "toy"}, "rank 1 died")
    assert [one.notes for one in closed.ranks] == [["a", "b"], ["b"]]


def test_a_run_that_nobody_touched_has_no_damage(filled: RunDir) -> None:
    closed = close_manifest(filled, manifest(), status=RunStatus.COMPLETE, failure=None)
    (filled.path / "derived" / "more.json").write_bytes(b"")
    (filled.path / ".hidden").write_bytes(b"")
    assert find_damage(filled, closed) == []


def test_damage_names_what_is_missing_changed_and_new(filled: RunDir) -> None:
    closed = close_manifest(filled, manifest(), status=RunStatus.COMPLETE, failure=None)
    filled.steps_path(0).unlink()
    filled.log_path(1).write_bytes(b"LOG")
    filled.steps_path(2).write_bytes(b"")
    assert find_damage(filled, closed) == [
        "logs/rank1.log has changed since the run was closed",
        "steps/rank0.steps is missing",
        "steps/rank2.steps is not in the manifest",
    ]


# Rebuilding


def test_a_manifest_that_its_launcher_never_closed_is_closed_once(filled: RunDir) -> None:
    write_manifest(filled, manifest(launcher_pid=DEAD_PID))
    rebuilt, was_rebuilt = read_or_rebuild_manifest(filled)
    assert (rebuilt.status, was_rebuilt, len(rebuilt.artifacts)) == (RunStatus.COMPLETE, True, 9)
    assert rebuilt.plan == {"steps": 50}
    assert find_damage(filled, rebuilt) == []
    assert read_or_rebuild_manifest(filled) == (rebuilt, False)


def test_a_run_whose_ranks_had_not_ended_is_closed_as_interrupted(filled: RunDir) -> None:
    write_manifest(filled, manifest(launcher_pid=DEAD_PID))
    write_rank_record(filled, record(1, RunStatus.RUNNING), durable=False)
    assert read_or_rebuild_manifest(filled)[0].status is RunStatus.INTERRUPTED


@pytest.mark.parametrize("content", [None, b"", b"{"])
def test_a_lost_manifest_is_rebuilt_from_what_the_ranks_left(filled: RunDir, content: bytes | None) -> None:
    if content is not None:
        filled.manifest_path.write_bytes(content)
    rebuilt, was_rebuilt = read_or_rebuild_manifest(filled)
    assert (rebuilt.run_id, rebuilt.status, was_rebuilt) == ("run", RunStatus.INTERRUPTED, True)
    assert [one.rank for one in rebuilt.ranks] == [0, 1]
    assert read_manifest(filled) == rebuilt


def test_a_manifest_with_nothing_left_around_it_cannot_be_rebuilt(run_dir: RunDir) -> None:
    with pytest.raises(UnreadableError, match="no such file"):
        read_or_rebuild_manifest(run_dir)


def test_a_closed_or_running_manifest_is_left_alone(filled: RunDir) -> None:
    write_manifest(filled, manifest())
    before = filled.manifest_path.read_bytes()
    assert read_or_rebuild_manifest(filled)[1] is False
    assert filled.manifest_path.read_bytes() == before


# Finding


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three runs: the newest has a name of its own that sorts first."""
    runs = {
        "20261120-100000_aaaaaaa_tiny_cpu_2xcpu": ("2026-11-20T10:00:00+00:00", "a" * 40),
        "20261121-100000_bbbbbbb-dirty_tiny_cpu_2xcpu": ("2026-11-21T10:00:00+02:00", "b" * 40),
        "0-mine": ("2026-11-21T09:00:00+00:00", "a" * 40),
    }
    for name, (created, commit) in runs.items():
        (tmp_path / "traces" / name).mkdir(parents=True)
        of_run = manifest(run_id=name, created=created, environment={"git": {"commit": commit}})
        write_manifest(RunDir(tmp_path / "traces" / name), of_run)
    return tmp_path / "traces"


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("latest", "0-mine"),
        ("latest~0", "0-mine"),
        ("latest~1", "20261121"),
        ("latest~2", "20261120"),
        ("20261121", "20261121"),
        ("20261120-1", "20261120"),
        ("0", "0-mine"),
        ("@aaaaaaa", "0-mine"),  # the latest of that commit
        ("@bbb", "20261121"),
        (f"@{'b' * 40}", "20261121"),
    ],
)
def test_a_run_is_found_by_age_start_of_name_and_commit(root: Path, name: str, start: str) -> None:
    assert find_run(name, root).path.parent == root
    assert find_run(name, root).path.name.startswith(start)


def test_a_run_is_found_by_its_path(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_run(str(root / "0-mine"), Path("elsewhere")).path == root / "0-mine"
    monkeypatch.chdir(root)
    assert find_run("0-mine", Path("elsewhere")).path == Path("0-mine")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("2026112", "2 runs fit"),
        ("@fffffff", "no run fits"),
        ("nothing", "no run fits"),
        ("latest~3", "there are 3 runs"),
        ("latest~x", "there are 3 runs"),
    ],
)
def test_a_name_that_fits_none_or_several_is_refused(root: Path, name: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        find_run(name, root)


def test_where_there_is_no_run_it_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="python -m speedprof capture"):
        find_run("latest", tmp_path)


def test_a_key_that_is_new_within_the_version_is_no_obstacle(run_dir: RunDir) -> None:
    write_manifest(run_dir, manifest(status=RunStatus.COMPLETE))
    document = json.loads(run_dir.manifest_path.read_text())
    run_dir.manifest_path.write_text(json.dumps({**document, "weather": "fine"}))
    assert read_manifest(run_dir) == manifest(status=RunStatus.COMPLETE)


@pytest.mark.parametrize("name", ["plan", "environment", "command"])
def test_a_container_of_the_wrong_type_is_refused_by_name(run_dir: RunDir, name: str) -> None:
    write_manifest(run_dir, manifest())
    document = json.loads(run_dir.manifest_path.read_text())
    run_dir.manifest_path.write_text(json.dumps({**document, name: 3}))
    with pytest.raises(UnreadableError, match=f"{name} is no"):
        read_manifest(run_dir)


def test_a_record_written_over_an_older_one_leaves_nothing_of_it(run_dir: RunDir) -> None:
    write_rank_record(run_dir, record(0, notes=["a long note " * 20]), durable=False)
    overwrite_rank_record(run_dir, record(0, notes=["short"]))
    assert [one.notes for one in read_rank_records(run_dir)] == [["short"]]
