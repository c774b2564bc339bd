"""On GPUs: a run goes on from a checkpoint, a NaN is found late but named right, a hang names its collective."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from trainer.checkpoint_file import checkpoint_path, read_checkpoint_file
from trainer.errors import COLLECTIVE_HUNG, NOT_FINITE
from trainer.finite import FiniteWatch, NotFiniteError
from trainer.shards import write_shard
from trainer.vocabulary import END_OF_TEXT

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
needs_two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")

ROOT = Path(__file__).parents[2]
SETTINGS = ("dim=128", "micro_batch_tokens=512", "max_document_tokens=512", "compile=off", "log_interval=1")


def _run(num_ranks: int, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    return subprocess.run(
        [*command, *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def _settings(shard: Path) -> list[str]:
    words = [word for setting in SETTINGS for word in ("--set", setting)]
    return ["--preset", "tiny_cpu", "--data", str(shard), *words]


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    random = np.random.default_rng(3)
    documents = [[END_OF_TEXT, *random.integers(10, 60, 99)] for _ in range(2000)]
    write_shard(np.array(documents, np.uint16).reshape(-1), tmp_path / "train_0.bin")
    return tmp_path / "train_0.bin"


@pytest.mark.parametrize("num_ranks", [1, pytest.param(2, marks=needs_two)])
def test_ten_steps_are_five_and_five(shard: Path, tmp_path: Path, num_ranks: int) -> None:
    def train(folder: str, *words: str) -> None:
        saving = ["--save-every", "5", "--checkpoints", str(tmp_path / folder)]
        done = _run(num_ranks, "-m", "trainer", *_settings(shard), "--steps", "10", *saving, *words)
        assert done.returncode == 0, done.stderr

    train("straight")
    train("again")
    train("resumed", "--resume", str(checkpoint_path(tmp_path / "straight", 5)))
    straight, again, resumed = (
        read_checkpoint_file(checkpoint_path(tmp_path / name, 10)) for name in ("straight", "again", "resumed")
    )
    # Where atomics make two runs of one seed differ, a resumed one may differ by about as much.
    assert _distance(straight, resumed) <= 10 * _distance(straight, again)
    assert resumed["num_rows_done"] == straight["num_rows_done"]
    assert resumed["adam_num_steps"] == straight["adam_num_steps"]


def _distance(first: dict[str, Any], second: dict[str, Any]) -> float:
    """The largest relative difference of any parameter."""
    pairs = ((value, second["parameters"][name]) for name, value in first["parameters"].items())
    return max(((one - other).norm() / one.norm().clamp_min(1e-12)).item() for one, other in pairs)


def test_a_gpu_is_looked_at_two_steps_later_and_nothing_waits() -> None:
    parameter = nn.Parameter(torch.ones(1000, device="cuda"))
    watch = FiniteWatch({"muon.mlp": [parameter]}, rank=0)
    for step in range(5):
        parameter.grad = torch.full_like(parameter, torch.nan if step == 2 else 1.0)
        if step < 4:
            watch.see(step, torch.tensor(1.0, device="cuda"))
    with pytest.raises(NotFiniteError, match=r"step 2, rank 0: the gradient of muon\.mlp went first"):
        watch.see(4, torch.tensor(1.0, device="cuda"))


@needs_two
def test_a_nan_on_one_gpu_ends_both(shard: Path) -> None:
    done = _run(
        2, "tests/programs/failing_trainer.py", "gradient:muon.attn", "1", "3", *_settings(shard), "--steps", "12"
    )
    assert "trainer: error: step 3, rank 1: the gradient of muon.attn went first" in done.stderr
    assert f"exitcode  : {NOT_FINITE}" in done.stderr


@needs_two
def test_a_hang_names_its_collective_from_the_flight_recorder(shard: Path) -> None:
    words = ["--steps", "12", "--collective-timeout", "5"]
    done = _run(2, "tests/programs/failing_trainer.py", "sleep", "1", "4", *_settings(shard), *words)
    assert "waits for nccl:" in done.stderr
    assert "over the 5 s of --collective-timeout" in done.stderr
    assert "rank 1 is at step 4, outside every stage" in done.stderr
    assert f"exitcode  : {COLLECTIVE_HUNG}" in done.stderr


@pytest.mark.parametrize("num_ranks", [1, pytest.param(2, marks=needs_two)])
def test_a_stage_alone_by_cuda_events(shard: Path, num_ranks: int) -> None:
    words = ["--preset", "tiny_cpu", "--set", "dim=128", "--set", "compile=off", "--repeat", "20", "--json"]
    done = _run(num_ranks, "-m", "trainer", "stage", "--stage", "reduce_scatter", "--group", "muon.mlp", *words)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["device"] != "cpu"
    assert [len(times) for times in document["times_ns"]] == [20] * num_ranks
    assert all(1_000 < time_ns < 100_000_000 for times in document["times_ns"] for time_ns in times)
    assert (document["bus_bytes_per_s"] is None) == (num_ranks == 1)
