"""What goes wrong on one rank ends all of them, soon, each with one line that says where and why."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from trainer.errors import COLLECTIVE_HUNG, NOT_FINITE, RANK_LOST, TERMINATED
from trainer.shards import write_shard
from trainer.vocabulary import END_OF_TEXT

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "tests/programs/failing_trainer.py"
SETTINGS = ("dim=16", "micro_batch_tokens=48", "max_document_tokens=48", "compile=off", "log_interval=1")
LIMIT_S = 240
"""Of a whole run, for a machine that is busy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """One that has ended."""

    code: int
    line: str
    """What it said on stderr, which is to be one line."""


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    random = np.random.default_rng(3)
    documents = [[END_OF_TEXT, *random.integers(10, 60, 40)] for _ in range(200)]
    write_shard(np.array(documents, np.uint16).reshape(-1), tmp_path / "train_0.bin")
    return tmp_path / "train_0.bin"


def _start(shard: Path, how: str, *more: str, world_size: int = 2, at_step: int = 3) -> list[subprocess.Popen[str]]:
    """Ranks without a launcher that would end the others; the last one fails."""
    words = [
        how,
        str(world_size - 1),
        str(at_step),
        "--preset",
        "tiny_cpu",
        "--data",
        str(shard),
        "--steps",
        "8",
        *more,
    ]
    words += [word for setting in SETTINGS for word in ("--set", setting)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world_size)}
    common = os.environ | meeting | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    return [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), *words],
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]


def _end(processes: list[subprocess.Popen[str]]) -> list[Rank]:
    try:
        errors = [process.communicate(timeout=LIMIT_S)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [Rank(code=process.returncode, line=error.strip()) for process, error in zip(processes, errors, strict=True)]


def _assert_one_line(rank: Rank) -> None:
    assert rank.line.startswith("trainer: error: "), rank.line
    assert rank.line.count("\n") == 0, rank.line


def test_a_rank_that_dies_ends_the_other_which_says_where_it_waited(shard: Path) -> None:
    first, second = _end(_start(shard, "exit"))
    assert (first.code, second.code) == (RANK_LOST, 3)
    _assert_one_line(first)
    assert "rank 0, step 3, " in first.line
    assert "_wait of adam." in first.line
    assert "lost another rank there" in first.line


def test_a_rank_that_hangs_ends_all_in_the_time_that_was_given(shard: Path) -> None:
    processes = _start(shard, "sleep", "--collective-timeout", "3")
    assert processes[0].stdout is not None
    while not processes[0].stdout.readline().startswith("step     2"):
        pass
    began_s = time.monotonic()
    first, second = _end(processes)
    assert time.monotonic() - began_s < 3 + 30  # 3 s, 2 s of grace twice, and a busy machine
    assert first.code == second.code == COLLECTIVE_HUNG
    for rank in (first, second):
        _assert_one_line(rank)
    # From gloo's own flight recorder, where this torch has one.
    waited = (
        r"rank 0, step 3, reduce_scatter_wait of adam\.lm_head: waits for (it since [3-9] s|gloo:\w+ number \d+ of )"
    )
    assert re.search(waited, first.line), first.line
    assert "rank 1 is at step 3, outside every stage" in first.line
    assert "rank 1, step 3, outside every stage: ended with rank 0" in second.line


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("gradient:muon.attn", "step 3, rank 1: the gradient of muon.attn went first;"),
        ("gradient:adam.embed", "step 3, rank 1: the gradient of adam.embed went first;"),
        ("loss", "step 3, rank 1: the loss is not finite, the gradient of adam.lm_head went first (10 of 10 groups"),
    ],
)
def test_what_is_not_finite_is_named_by_step_rank_and_group(shard: Path, how: str, says: str) -> None:
    first, second = _end(_start(shard, how))
    assert first.code == second.code == NOT_FINITE
    for rank in (first, second):
        _assert_one_line(rank)
        assert says in rank.line
    assert second.line.startswith(f"trainer: error: {says}")
    assert "ended with rank 1, which said: " in first.line


def test_an_error_of_one_rank_is_what_the_other_says(shard: Path) -> None:
    first, second = _end(_start(shard, "raise"))
    assert (first.code, second.code) == (1, 1)
    _assert_one_line(first)
    assert "ended with rank 1, which said: LookupError: lost on purpose" in first.line
    assert "Traceback" in second.line


def test_one_rank_alone_stops_at_a_nan_too(shard: Path) -> None:
    (only,) = _end(_start(shard, "gradient:adam.scalars", world_size=1, at_step=2))
    assert only.code == NOT_FINITE
    _assert_one_line(only)
    assert "step 2, rank 0: the gradient of adam.scalars went first;" in only.line


def test_sigterm_while_another_hangs_is_answered_with_the_place(shard: Path) -> None:
    processes = _start(shard, "sleep")
    assert processes[0].stdout is not None
    while not processes[0].stdout.readline().startswith("step     2"):
        pass
    time.sleep(2)  # into the collective of step 3
    processes[0].send_signal(signal.SIGTERM)
    first, second = _end(processes)
    assert first.code == TERMINATED
    _assert_one_line(first)
    assert "rank 0, step 3, " in first.line
    assert "told to end (SIGTERM)" in first.line
    assert second.code in (TERMINATED, RANK_LOST)
