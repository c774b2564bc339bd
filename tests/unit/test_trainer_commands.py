"""Checkpoints, schedules and results as the command line has them, one process each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from speedprof import annotate
from trainer.__main__ import main
from trainer.shards import write_shard
from trainer.vocabulary import END_OF_TEXT

SETTINGS = ("dim=16", "micro_batch_tokens=48", "max_document_tokens=48", "compile=off", "log_interval=1")


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    random = np.random.default_rng(3)
    documents = [[END_OF_TEXT, *random.integers(10, 60, 40)] for _ in range(200)]
    for name in ("x_train_0.bin", "x_val_0.bin"):
        write_shard(np.array(documents, np.uint16).reshape(-1), tmp_path / name)
    return tmp_path / "x_train_0.bin"


@pytest.fixture(autouse=True)
def _one_group_at_a_time() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    annotate.listen(None)
    torch.set_num_threads(threads)
    if dist.is_initialized():
        dist.destroy_process_group()


def _train(shard: Path, *words: str) -> int:
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    return main(["--preset", "tiny_cpu", "--data", str(shard), *settings, *words])


def _losses(text: str) -> dict[int, str]:
    lines = [line.split() for line in text.splitlines() if "train loss" in line]
    return {int(line[1]): line[4] for line in lines}


def test_a_resumed_command_goes_on_with_the_same_losses(
    shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "saved"
    assert _train(shard, "--steps", "6", "--save-every", "2", "--checkpoints", str(folder)) == 0
    out = capsys.readouterr().out
    whole = _losses(out)
    names = ["step_000002.ckpt", "step_000004.ckpt", "step_000006.ckpt"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert f"step     4  checkpoint {folder / names[1]} (" in out
    assert _train(shard, "--steps", "6", "--resume", str(folder / names[0])) == 0
    resumed = _losses(capsys.readouterr().out)
    assert resumed == {step: whole[step] for step in (2, 3, 4, 5)}
    assert _train(shard, "--steps", "6", "--resume", str(folder)) == 2
    assert "has 6 steps done, and the run is to end after 6" in capsys.readouterr().err
    (folder / names[2]).write_bytes((folder / names[2]).read_bytes()[:-5])
    assert _train(shard, "--steps", "7", "--resume", str(folder)) == 4
    assert f"{folder / names[2]}: is truncated" in capsys.readouterr().err
    assert _train(shard, "--steps", "7", "--resume", str(folder / names[1]), "--seed", "3") == 2
    assert "has seed=0 (here 3); resume with --set seed=0" in capsys.readouterr().err


def test_the_last_step_is_saved_too(shard: Path, tmp_path: Path) -> None:
    assert _train(shard, "--steps", "3", "--save-every", "2", "--checkpoints", str(tmp_path / "saved")) == 0
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["step_000002.ckpt", "step_000003.ckpt"]


def test_the_schedule_is_logged_once_and_the_rate_every_step(shard: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schedule = ["--set", "num_scheduled_steps=4", "--set", "num_extension_steps=0", "--lr-schedule", "warmup_linear"]
    assert _train(shard, *schedule) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("learning rate: linear warm-up over 2 steps to 0.03") for line in lines) == 1
    rates = [line.split("lr ")[1].split()[0] for line in lines if "  lr " in line and "loss" not in line]
    assert rates == ["0.01500000", "0.03000000", "0.01650000", "0.00300000"]
    assert _train(shard, *schedule, "--no-log-lr") == 0
    silent = capsys.readouterr().out
    assert "learning rate:" not in silent
    assert "  adam " not in silent
    assert "lr 0.016500" in silent, "the line a step has the rate anyway"


def test_a_result_has_the_last_loss_and_the_times(
    shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _train(shard, "--steps", "2", "--result", str(tmp_path / "result.json"), "--seed", "5") == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["seed"], result["num_steps"], result["world_size"], result["preset"]) == (5, 2, 1, "tiny_cpu")
    assert f"validation loss {result['validation_loss']:.4f}" in capsys.readouterr().out
    assert 0 < result["first_step_s"] < result["train_s"]
    assert _train(shard, "--steps", "1", "--result", str(tmp_path)) == 6
    assert "name a file that can be written with --result" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says", "code"),
    [
        (["--save-every", "0"], "0 must be 1 or more", 2),
        (["--checkpoints", "x"], "--checkpoints needs --save-every", 2),
        (["--resume", "no/such.ckpt"], "no/such.ckpt: No such file or directory", 4),
        (["--lr-schedule", "cosine"], "invalid choice: 'cosine'", 2),
        (["--collective-timeout", "0"], "0 must be over 0 and finite", 2),
        (["--collective-timeout", "nan"], "nan must be over 0 and finite", 2),
        (["--steps", "1", "--save-every", "1", "--checkpoints", "/dev/null/x"], "/dev/null/x", 6),
    ],
)
def test_wrong_words_are_one_line(
    shard: Path, words: list[str], says: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _train(shard, *words) == code
    error = capsys.readouterr().err
    assert error.startswith("trainer: error: ")
    assert says in error
    assert error.count("\n") == 1
