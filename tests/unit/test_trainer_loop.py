"""One process trains: the loss falls, marks only grow, and the program ends as it was asked to."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from speedprof import annotate
from trainer.__main__ import main
from trainer.adam import DistAdam
from trainer.config import TrainConfig, preset, spell_value, with_settings
from trainer.loop import Training, TrainingData, declare, write_header
from trainer.ranks import Ranks, process_group
from trainer.shards import write_shard
from trainer.vocabulary import END_OF_TEXT

ALONE = Ranks(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))
SMALL = [
    "dim=32",
    "vocab_size=50257",
    "micro_batch_tokens=64",
    "max_document_tokens=64",
    "compile=off",
    "validation_micro_batches=2",
    "log_interval=4",
]


class Heard:
    """A listener that keeps what it hears."""

    def __init__(self, *, stop_at: int | None = None) -> None:
        self.marks: list[tuple[int, str]] = []
        self.metrics: dict[str, list[Any]] = {}
        self.phases: list[str] = []
        self.facts: dict[str, Any] = {}
        self._stop_at = stop_at

    def step_began(self, step: int, kind: annotate.StepKind) -> None:
        if step == self._stop_at:
            raise SystemExit(0)
        self.marks.append((step, kind))

    def step_ended(self, step: int) -> None: ...
    def stage_began(self, stage: str, group: str) -> None: ...
    def stage_ended(self, stage: str, group: str) -> None: ...

    def metric_seen(self, name: str, value: float | torch.Tensor) -> None:
        self.metrics.setdefault(name, []).append(float(value))

    def phase_began(self, name: str) -> None:
        self.phases.append(name)

    def declared(self, name: str, value: Any) -> None:
        self.facts[name] = value


@pytest.fixture
def shards(tmp_path: Path) -> TrainingData:
    """Text that repeats, so that a few steps learn something of it."""
    document = [END_OF_TEXT, *([11, 12, 13, 14] * 20)]
    for name in ("x_train_0.bin", "x_val_0.bin"):
        write_shard(np.array(document * 8, dtype=np.uint16), tmp_path / name)
    return TrainingData(train=[tmp_path / "x_train_0.bin"], validation=[tmp_path / "x_val_0.bin"])


@pytest.fixture(autouse=True)
def _one_group_at_a_time() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    annotate.listen(None)
    torch.set_num_threads(threads)
    if dist.is_initialized():
        dist.destroy_process_group()


def _config(*settings: str) -> TrainConfig:
    return with_settings(preset("tiny_cpu"), [*SMALL, *settings])


def _run(config: TrainConfig, data: TrainingData, heard: Heard, num_steps: int) -> None:
    annotate.listen(heard)
    with process_group(ALONE):
        training = Training(config, data, ALONE)
        declare(training)
        write_header(training, data)
        training.run(num_steps)


def test_the_loss_falls_and_all_is_said(shards: TrainingData, capsys: pytest.CaptureFixture[str]) -> None:
    heard = Heard()
    _run(_config("validation_interval=4"), shards, heard, 10)
    assert heard.metrics["loss"][0] == pytest.approx(10.825, abs=0.01)
    assert heard.metrics["loss"][-1] < 9.8
    assert [kind for _, kind in heard.marks] == ["train"] * 4 + ["validation"] + ["train"] * 4 + ["validation"] + [
        "train"
    ] * 2 + ["validation"]
    assert [number for number, _ in heard.marks] == list(range(13))
    assert heard.facts["tokens_per_step"] == 64
    assert heard.facts["attention"] == "reference"
    assert len(json.loads(json.dumps(heard.facts["optimizer_plan"]))) == 4 + 6
    details = {name for name in heard.metrics if "/" in name}
    assert set(heard.metrics) - details == {"loss", "lr", "adam_lr", "muon_momentum", "validation_loss"}
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("preset tiny_cpu  ranks 1  device cpu  attention reference  compile off")
    assert [line for line in lines if "train loss" in line][-1].startswith("step     9  train loss")
    assert sum("validation loss" in line for line in lines) == 3


def test_lambdas_and_gradient_norms_are_said_by_name_at_every_tenth_step(
    shards: TrainingData, capsys: pytest.CaptureFixture[str]
) -> None:
    heard = Heard()
    _run(_config("validation_interval=none", "log_interval=10"), shards, heard, 11)
    said = {name: values for name, values in heard.metrics.items() if "/" in name}
    assert {len(values) for values in said.values()} == {2}
    groups = [
        "muon.smear_gate",
        "muon.attn_gate",
        "muon.attn",
        "muon.mlp",
        "adam.lm_head",
        "adam.scalars",
        "adam.embed",
    ]
    values = [f"adam.value_embed_{number}" for number in range(3)]
    assert {name for name in said if name.startswith("gradient_norm/")} == {
        f"gradient_norm/{group}" for group in groups + values
    }
    assert sum(name.startswith("lambda/") for name in said) == 40
    assert said["lambda/block_1_x"][0] == pytest.approx(1.1)  # Adam's first step is the second one
    assert said["lambda/block_1_x"][1] != said["lambda/block_1_x"][0]
    assert said["gradient_norm/adam.lm_head"][0] > 0
    table = capsys.readouterr().out.split("learned lambdas")[1].splitlines()
    assert [line.split()[0] for line in table[1:13]] == ["layer", *map(str, range(1, 12))]


@pytest.mark.parametrize("name", ["record_149", "record_140", "record_134", "speedrun"])
def test_a_small_model_trains_by_every_record(name: str, shards: TrainingData) -> None:
    """Every feature and hyperparameter of the preset, at the tiny model's sizes: the loss falls."""
    heard = Heard()
    tiny = preset("tiny_cpu")
    sizes = ["num_heads", "precision", "attention", "window_block_tokens", "micro_batches_per_step", "max_documents"]
    as_tiny = [f"{field}={spell_value(getattr(tiny, field))}" for field in sizes]
    steps = ["num_scheduled_steps=10", "num_extension_steps=2", "validation_interval=none"]
    config = with_settings(preset(name), [*as_tiny, *SMALL, *steps])
    _run(config, shards, heard, 12)
    assert heard.metrics["loss"][0] == pytest.approx(10.825, abs=0.02)  # bf16 logits round by 0.3%
    assert heard.metrics["loss"][-1] < 9.5
    assert heard.phases == ["window 3", "window 7", "window 11", "window 13", "window 20"]


def test_backout_per_layer_ends_with_the_choice_of_a_layer(
    shards: TrainingData, capsys: pytest.CaptureFixture[str]
) -> None:
    heard = Heard()
    _run(_config("backout=per_layer", "log_interval=2"), shards, heard, 6)
    assert [name for name in heard.metrics if name.startswith("lambda/backout")] == [
        f"lambda/backout_{layer}" for layer in range(1, 12)
    ]
    assert heard.metrics["lambda/backout_8"][0] == 0
    assert all(heard.metrics[f"lambda/backout_{layer}"][-1] != 0 for layer in range(1, 12))
    assert capsys.readouterr().out.splitlines()[-1].startswith("backout: ")


def test_adam_reduces_where_the_preset_says(shards: TrainingData, monkeypatch: pytest.MonkeyPatch) -> None:
    armed: list[bool] = []
    monkeypatch.setattr(DistAdam, "reduce_in_backward", lambda _, is_armed: armed.append(is_armed))
    _run(_config("adam_reduces_in=step"), shards, Heard(), 2)
    assert armed == []
    _run(_config("adam_reduces_in=backward"), shards, Heard(), 2)
    assert armed == [True]


def test_the_last_validation_looks_farther_through_the_long_window_alone(shards: TrainingData) -> None:
    """As in the records: RoPE and the short window follow 13 blocks, the long window is 20."""
    with process_group(ALONE):
        training = Training(_config("num_scheduled_steps=2", "num_extension_steps=1"), shards, ALONE)
        training.run(3)
    assert (training.window_blocks, training.short_window_blocks) == (20, 6)
    scale = 0.1 * math.prod(1 + 0.2 * math.log(new / old) for old, new in [(3, 7), (7, 13)])
    assert training.model.rotary.scale.item() == pytest.approx(scale)


def test_two_runs_are_the_same_run(shards: TrainingData) -> None:
    first, second = Heard(), Heard()
    for heard in (first, second):
        _run(_config(), shards, heard, 3)
    assert first.metrics == second.metrics


def test_windows_grow_through_the_whole_schedule(shards: TrainingData) -> None:
    heard = Heard()
    _run(_config("num_scheduled_steps=6", "num_extension_steps=1"), shards, heard, 7)
    assert heard.phases == ["window 3", "window 7", "window 11", "window 13", "window 20"]


def test_gradients_add_up_over_micro_batches(shards: TrainingData) -> None:
    heard = Heard()
    _run(_config("micro_batches_per_step=2"), shards, heard, 2)
    assert heard.facts["tokens_per_step"] == 128
    assert heard.metrics["loss"][0] == pytest.approx(10.825, abs=0.01)


def test_a_stop_at_a_mark_leaves_no_group_behind(shards: TrainingData) -> None:
    heard = Heard(stop_at=2)
    with pytest.raises(SystemExit):
        _run(_config(), shards, heard, 9)
    assert not dist.is_initialized()
    assert len(heard.marks) == 2


@pytest.mark.parametrize(
    ("arguments", "says", "code"),
    [
        (["--steps", "0"], "--steps 0: must be 1 or more", 2),
        (["--stepz", "1"], "unrecognized arguments: --stepz", 2),
        (["--steps", "many"], "invalid int value", 2),
        (["--preset", "huge"], "no preset 'huge'", 2),
        (["--set", "size=3"], "no field 'size'; the fields are", 2),
        (["--preset", "tiny_cpu", "--val-data", "*.bin"], "--val-data needs --data", 2),
        (["fly"], "invalid choice: 'fly'", 2),
        (["--preset", "tiny_cpu", "--data", "no/such/*.bin"], "no/such/*.bin: no such file", 4),
        (["--preset", "tiny_cpu", "--seed", "-1"], "seed=-1 must be 0 or more", 2),
        (["--preset", "tiny_cpu", "--set", "muon_learning_rate=nan"], "muon_learning_rate=nan is no finite number", 2),
        (["--preset", "tiny_cpu", "--data", os.path.dirname(__file__)], "is a folder; give a quoted glob", 4),
        (["plan", "--world-size", "0"], "--world-size 0", 2),
        (["plan", "--preset", "record_134", "--world-size", "3"], "3 ranks do not divide", 2),
    ],
)
def test_wrong_usage_is_one_line(
    arguments: list[str], says: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == code
    error = capsys.readouterr().err
    assert error.startswith("trainer: error: ")
    assert says in error
    assert error.count("\n") == 1


def test_a_bad_shard_is_named_before_anything_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.bin").write_bytes(b"not a shard" * 200)
    assert main(["--preset", "tiny_cpu", "--data", str(tmp_path / "*.bin")]) == 4
    assert f"{tmp_path / 'bad.bin'}: is no token shard" in capsys.readouterr().err


def test_plan_lists_the_records_groups(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--preset", "record_134", "--world-size", "8", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    muon = [group for group in document["groups"] if group["optimizer"] == "muon"]
    assert [(group["num_params"], group["padding"]) for group in muon] == [(1, 7), (10, 6), (16, 0), (16, 0)]
    assert main(["plan", "--preset", "record_134"]) == 0
    assert "adam.scalars" in capsys.readouterr().out


def test_the_program_runs_alone_on_the_users_shards(shards: TrainingData) -> None:
    pattern = str(shards.train[0].with_name("x_train_*.bin"))
    settings = [word for setting in SMALL for word in ("--set", setting)]
    environment = {
        name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "MASTER_ADDR")
    }
    done = subprocess.run(
        [sys.executable, "-m", "trainer", "--preset", "tiny_cpu", "--data", pattern, "--steps", "2", *settings],
        capture_output=True,
        text=True,
        env=environment | {"CUDA_VISIBLE_DEVICES": ""},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "validation loss" in done.stdout, "x_val_0.bin was not found beside x_train_0.bin"
