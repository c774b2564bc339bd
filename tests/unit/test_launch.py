"""What a launch decides before and after its ranks run: the command, how many, who is to blame, what is kept."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from speedprof.capture import launch as launching
from speedprof.capture.launch import Launch, Watcher, build_command, choose_num_ranks, create_run, interrupts
from speedprof.capture.outcome import Outcome, find_culprit, judge
from speedprof.capture.plan import CapturePlan
from speedprof.errors import EnvironmentUnfitError, ExitCode, UsageError
from speedprof.run_dir import RankRecord, RunDir, RunStatus, read_manifest, write_rank_record

LAUNCH = Launch(
    plan=CapturePlan(steps=3), program="toy.py", arguments=("ok", "--deep"), num_ranks=4, name="toy", device="cpu"
)
BROKEN = "RuntimeError: [gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234"
KILLED = "Signal 9 (SIGKILL) received by PID {pid}"


def failed(rank: int, error: str, at_ns: int, *, pid: int | None = None) -> RankRecord:
    return RankRecord(
        rank=rank,
        host="host",
        pid=100 + rank if pid is None else pid,
        status=RunStatus.FAILED,
        exit_code=1,
        error=error,
        failed_at_ns=at_ns,
    )


def silent(rank: int) -> RankRecord:
    """A rank that never said how it ended."""
    return RankRecord(rank=rank, host="host", pid=100 + rank, status=RunStatus.RUNNING)


def whole(rank: int) -> RankRecord:
    return RankRecord(rank=rank, host="host", pid=100 + rank, status=RunStatus.COMPLETE)


def culprit(records: list[RankRecord], log: str = "") -> int | None:
    found = find_culprit(records, log)
    return None if found is None else found.rank


# The command


def test_the_command_starts_a_session_on_every_rank_and_passes_the_programs_words_on() -> None:
    command = build_command(LAUNCH, RunDir(Path("traces/run")))
    assert command[:5] == [sys.executable, "-m", "speedprof.capture.elastic", "--standalone", "--nproc-per-node=4"]
    assert command[5:9] == ["-m", "speedprof.capture.session", "--run-dir", "traces/run"]
    assert command[9] == "--plan"
    assert CapturePlan.from_json(command[10]) == LAUNCH.plan
    assert command[11:] == ["toy.py", "ok", "--deep"]


def test_ranks_share_the_cores_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [launching._environment(ranks)["OMP_NUM_THREADS"] for ranks in (2, 3, 16)] == ["4", "2", "1"]
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert launching._environment(2)["OMP_NUM_THREADS"] == "7"


# How many ranks


@pytest.mark.parametrize(
    ("gpus", "asked", "chosen"), [(0, None, 2), (0, 1, 1), (0, 5, 5), (1, None, 1), (8, None, 8), (8, 3, 3), (8, 8, 8)]
)
def test_ranks_are_one_a_gpu_or_two_or_as_asked(
    monkeypatch: pytest.MonkeyPatch, gpus: int, asked: int | None, chosen: int
) -> None:
    monkeypatch.setattr(launching, "count_gpus", lambda: gpus)
    assert choose_num_ranks(asked) == chosen


@pytest.mark.parametrize("asked", [0, -1])
def test_fewer_than_one_rank_is_wrong_usage(asked: int) -> None:
    with pytest.raises(UsageError, match=f"--nproc {asked}"):
        choose_num_ranks(asked)


def test_more_ranks_than_gpus_is_not_possible_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "count_gpus", lambda: 2)
    with pytest.raises(EnvironmentUnfitError, match="this machine has 2 GPUs; ask for at most 2") as refused:
        choose_num_ranks(3)
    assert refused.value.exit_code is ExitCode.ENVIRONMENT == 6


# Who is to blame


def test_a_rank_that_a_signal_killed_is_to_blame_before_any_that_wrote_down_an_error() -> None:
    records = [failed(0, BROKEN, 1), silent(1), failed(2, "ValueError: mine", 2)]
    assert culprit(records, KILLED.format(pid=101)) == 1


def test_of_two_silent_ranks_the_killed_one_is_to_blame() -> None:
    assert culprit([silent(0), silent(1)], KILLED.format(pid=101)) == 1
    assert culprit([silent(0), silent(1)], KILLED.format(pid=1011)) == 0


def test_a_rank_with_an_error_of_its_own_is_to_blame_however_late_it_wrote_it_down() -> None:
    assert culprit([failed(0, BROKEN, 1), failed(1, "ValueError: the loss is not a number", 2), whole(2)]) == 1


@pytest.mark.parametrize(
    "broken",
    [
        BROKEN,
        "RuntimeError: Connection reset by peer",
        "ConnectionRefusedError: [Errno 111] Connection refused",
        "BrokenPipeError: [Errno 32] Broken pipe",
        "torch.distributed.DistBackendError: ncclRemoteError: A call failed possibly due to a network error or a "
        "remote process exiting",
    ],
)
def test_a_broken_connection_is_never_blamed_beside_another_error(broken: str) -> None:
    assert culprit([failed(0, broken, 1), failed(1, "torch.OutOfMemoryError: CUDA out of memory", 9)]) == 1


def test_of_two_errors_the_first_is_to_blame_and_of_equal_ones_the_lower_rank() -> None:
    assert culprit([failed(0, "ValueError", 5), failed(1, "KeyError", 4)]) == 1
    assert culprit([failed(0, BROKEN, 5), failed(1, BROKEN, 4)]) == 1
    assert culprit([failed(1, "ValueError", 5), failed(0, "ValueError", 5)]) == 0


def test_nobody_is_to_blame_where_every_rank_ended_well() -> None:
    assert culprit([whole(0), whole(1)]) is None
    assert culprit([]) is None


def test_a_rank_that_was_told_to_end_from_outside_is_to_blame_before_those_it_cut_off() -> None:
    told = RankRecord(rank=1, host="host", pid=101, status=RunStatus.INTERRUPTED, exit_code=143)
    assert culprit([failed(0, BROKEN, 1), told]) == 1
    assert culprit([failed(0, "ValueError: mine", 1), told]) == 0


def ended(tmp_path: Path, *records: RankRecord, log: str = "", returncode: int = 1, num_ranks: int = 2) -> Outcome:
    run_dir, _ = create_run(LAUNCH, tmp_path, run_id="run", command=[])
    run_dir.launcher_log_path.write_text(log)
    for record in records:
        write_rank_record(run_dir, record, durable=False)
    return judge(run_dir, returncode=returncode, num_ranks=num_ranks, received=[])


def test_ranks_that_all_fulfilled_the_plan_make_a_complete_run(tmp_path: Path) -> None:
    assert ended(tmp_path, whole(0), whole(1)) == Outcome(status=RunStatus.COMPLETE, exit_code=0)


def test_a_launcher_that_was_killed_is_named_and_not_its_ranks(tmp_path: Path) -> None:
    outcome = ended(tmp_path, silent(0), silent(1), returncode=-9)
    assert (outcome.status, outcome.exit_code) == (RunStatus.FAILED, 3)
    assert outcome.failure is not None
    assert outcome.failure.startswith("torch.distributed.run was killed by SIGKILL")


def test_a_rank_that_died_silently_is_told_with_a_full_disk_or_the_last_words_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, _ = create_run(LAUNCH, tmp_path, run_id="run", command=[])
    run_dir.launcher_log_path.touch()
    for rank in (0, 1):
        write_rank_record(run_dir, silent(rank), durable=False)
    run_dir.log_path(0).write_text("step 3\nFatal Python error: Segmentation fault\n")
    ended_so = judge(run_dir, returncode=1, num_ranks=2, received=[]).failure
    assert ended_so is not None
    assert ended_so.endswith("left by os._exit; its log ends with: Fatal Python error: Segmentation fault")
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=4_096))
    full = judge(run_dir, returncode=1, num_ranks=2, received=[]).failure
    assert full is not None
    assert full.endswith("no space is left on the device: free some, or choose another --out")


def test_a_signal_that_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupts() as received:
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGINT)
        assert received == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_rank_that_died_before_it_could_say_anything_is_found_in_the_launchers_report(tmp_path: Path) -> None:
    log = "Root Cause (first observed failure):\n[0]:\n  rank      : 1 (local_rank: 1)\n  exitcode  : -9 (pid: 7)\n"
    outcome = ended(tmp_path, silent(0), log=log)
    assert outcome.failure == "rank 1 ended before it could start: killed by SIGKILL"
    assert outcome.error == log.strip()


# What is kept


def test_two_runs_of_one_second_get_names_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "_make_run_id", lambda launch, created, git: "now")
    names = [create_run(LAUNCH, tmp_path, run_id=None, command=[])[0].path.name for _ in range(3)]
    assert names == ["now", "now-2", "now-3"]


def test_a_run_is_named_and_not_placed_by_its_id(tmp_path: Path) -> None:
    for run_id in ("../x", "/x", "a/b", ".."):
        with pytest.raises(UsageError, match="is no plain name"):
            create_run(LAUNCH, tmp_path / "traces", run_id=run_id, command=[])
    assert list(tmp_path.iterdir()) == []


def test_a_run_begins_with_its_folders_and_a_manifest_that_says_running(tmp_path: Path) -> None:
    run_dir, manifest = create_run(LAUNCH, tmp_path / "traces", run_id="mine", command=["speedprof", "capture"])
    assert run_dir.path == tmp_path / "traces" / "mine"
    assert sorted(path.name for path in run_dir.path.iterdir()) == ["kineto", "logs", "manifest.json", "steps"]
    assert read_manifest(run_dir) == manifest
    assert (manifest.status, manifest.plan) == (RunStatus.RUNNING, LAUNCH.plan.as_dict())


def test_a_run_is_named_by_time_commit_program_and_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git = {"commit": "0123456789", "dirty": True}
    monkeypatch.setattr(launching, "read_environment", lambda folder: {"git": git})
    dirty, _ = create_run(LAUNCH, tmp_path, run_id=None, command=[])
    assert dirty.path.name[15:] == "_0123456-dirty_toy_4xcpu"
    git.update(commit=None, dirty=None)
    outside, _ = create_run(LAUNCH, tmp_path, run_id=None, command=[])
    assert outside.path.name[15:] == "_nogit_toy_4xcpu"


def test_a_run_that_exists_is_refused_and_not_touched(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").write_text("kept")
    with pytest.raises(UsageError, match="exists already") as refused:
        create_run(LAUNCH, tmp_path, run_id="mine", command=[])
    assert refused.value.exit_code is ExitCode.WRONG_USAGE == 2
    assert [(path.name, path.read_text()) for path in (tmp_path / "mine").iterdir()] == [("precious", "kept")]


def test_a_folder_that_cannot_be_made_is_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="choose another --out"):
        create_run(LAUNCH, tmp_path / "file", run_id="mine", command=[])


def test_no_secret_of_the_command_or_the_environment_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "GITHUB_TOKEN", "PASSWORD", "TORCHX_KEY")
    for name in planted:
        monkeypatch.setenv(name, "planted")
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    command = ["speedprof", "capture", "--data", "https://me:planted@data.invalid/*.bin"]
    run_dir, manifest = create_run(LAUNCH, tmp_path, run_id="mine", command=command)
    text = run_dir.manifest_path.read_text()
    assert "planted" not in text
    assert not any(name in text for name in planted)
    assert manifest.command[-1] == "https://data.invalid/*.bin"
    assert manifest.environment["variables"]["NCCL_DEBUG"] == "INFO"


# What is told meanwhile


def test_a_growing_log_is_told_line_by_line_and_its_unfinished_end_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "rank0.log"
    tail = launching._Tail(path)
    assert tail.new_lines() == []
    with open(path, "wb", buffering=0) as log:
        log.write(b"one\ntw")
        assert tail.new_lines() == ["one"]
        log.write(b"o\n\xff\nthr")
        assert tail.new_lines() == ["two", "�"]
        assert tail.new_lines() == []
        assert tail.new_lines(at_end=True) == ["thr"]
    tail.close()


def test_a_watcher_tells_nobody_by_default() -> None:
    Watcher().line_printed("line")
    Watcher().rank_moved(whole(0))
