"""How a run ended, and which rank was the first to fail.

When a rank dies the others fail in turn: their connections break, or torch.distributed.run ends them. What a user must
see is the first one's own error.
"""

from __future__ import annotations

import re
import shutil
import signal
from dataclasses import dataclass

from speedprof.errors import ExitCode
from speedprof.run_dir import RankRecord, RunDir, RunStatus, read_rank_records

# Of torch.distributed.run's own report, the end says why a rank never came to say anything itself.
_NUM_LAUNCHER_LINES = 30

# A disk with less than this is full: a rank's record or a flush of its step log no longer fits.
_FULL_BYTES = 64_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended. `failure` says in one line which rank failed and how, `error` is what that rank printed last."""

    status: RunStatus
    exit_code: int
    failure: str | None = None
    error: str | None = None


def judge(run_dir: RunDir, *, returncode: int, num_ranks: int, received: list[int]) -> Outcome:
    """The outcome of a run whose processes have all ended.

    `returncode` is that of torch.distributed.run, `received` the signals that the launcher was sent.
    """
    if received:
        return Outcome(status=RunStatus.INTERRUPTED, exit_code=128 + received[0])
    records = read_rank_records(run_dir)
    if all(record.status is RunStatus.COMPLETE for record in records) and len(records) == num_ranks:
        return Outcome(status=RunStatus.COMPLETE, exit_code=ExitCode.FINE)
    launcher_log = run_dir.launcher_log_path.read_text(errors="replace")
    culprit = find_culprit(records, launcher_log)
    if returncode < 0:  # it is killed from outside or not at all, and takes its ranks with it
        name = signal.Signals(-returncode).name
        return _failed(f"torch.distributed.run was killed by {name}; ask who sends signals on this machine")
    if len(records) < num_ranks:
        end = "\n".join(launcher_log.strip().splitlines()[-_NUM_LAUNCHER_LINES:])
        return _failed(_describe_missing(len(records), num_ranks, launcher_log), end)
    if culprit is not None:
        failure = _describe(culprit, records, launcher_log)
        if culprit.status is RunStatus.RUNNING:
            failure += _last_words(run_dir, culprit.rank)
        return _failed(failure, culprit.error)
    if returncode:
        return _failed(f"torch.distributed.run exited with {returncode}", launcher_log)
    return Outcome(status=RunStatus.PARTIAL, exit_code=ExitCode.FINE)


def find_culprit(records: list[RankRecord], launcher_log: str) -> RankRecord | None:
    """The rank that failed first: one that a signal killed, one that died without a word, the first to write down an
    error of its own, one that was told to end though nobody told the launcher, or one whose connections broke.
    """
    failed = [record for record in records if record.status not in {RunStatus.COMPLETE, RunStatus.PARTIAL}]

    def order(record: RankRecord) -> tuple[bool, int, int, int]:
        was_killed = _killing_signal(record, launcher_log) is not None
        return not was_killed, _remoteness(record), record.failed_at_ns or 0, record.rank

    return min(failed, key=order, default=None)


def _remoteness(record: RankRecord) -> int:
    """0 for a failure of the rank's own, more for one that may be another's."""
    if record.status is RunStatus.INTERRUPTED:
        return 1
    broken = r"Connection (closed|reset|refused)|Broken pipe|ncclRemoteError|remote process exited"
    return 2 if re.search(broken, record.error or "") else 0


def _failed(failure: str, error: str | None = None) -> Outcome:
    return Outcome(status=RunStatus.FAILED, exit_code=ExitCode.PROGRAM_FAILED, failure=failure, error=error)


def _describe(culprit: RankRecord, records: list[RankRecord], launcher_log: str) -> str:
    last_step = max((record.last_step for record in records if record.last_step is not None), default=None)
    where = "before its first step" if last_step is None else f"about step {last_step}"
    killer = _killing_signal(culprit, launcher_log)
    if culprit.status is RunStatus.RUNNING:
        cause = f"killed by {killer}" if killer else "killed from outside, crashed, or left by os._exit"
        return f"rank {culprit.rank} died {where} without a word: {cause}"
    if culprit.status is RunStatus.INTERRUPTED:
        return f"rank {culprit.rank} was ended by SIGTERM {where}, from outside this capture"
    last_line = (culprit.error or "").rstrip().rpartition("\n")[2]
    return f"rank {culprit.rank} failed {where} with exit code {culprit.exit_code}: {last_line}"


def _describe_missing(num_started: int, num_ranks: int, launcher_log: str) -> str:
    first = re.search(r"Root Cause.*?rank\s*:\s*(\d+).*?exitcode\s*:\s*(-?\d+)", launcher_log, re.DOTALL)
    if first is None:
        return f"{num_started} of {num_ranks} ranks started; torch.distributed.run says why above"
    how = f"killed by {signal.Signals(-int(first[2])).name}" if int(first[2]) < 0 else f"exit code {first[2]}"
    return f"rank {first[1]} ended before it could start: {how}"


def _last_words(run_dir: RunDir, rank: int) -> str:
    """What may have ended the rank: a full disk, on which it could not even say so, or what it printed last."""
    if shutil.disk_usage(run_dir.path).free < _FULL_BYTES:
        return "; no space is left on the device: free some, or choose another --out"
    try:
        lines = run_dir.log_path(rank).read_text(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return f"; its log ends with: {lines[-1]}" if lines else ""


def _killing_signal(record: RankRecord, launcher_log: str) -> str | None:
    """The signal that ended the rank, as torch.distributed.run reports it; None where it ended by itself."""
    found = re.search(rf"Signal \d+ \((\w+)\) received by PID {record.pid}\b", launcher_log)
    return found and found[1]
