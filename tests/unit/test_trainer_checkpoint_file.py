"""A checkpoint is written whole or not at all, and every kind of bad one is refused with one line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer import checkpoint_file
from trainer.checkpoint import _KEYS, FORMAT, _spell, read_checkpoint
from trainer.checkpoint_file import checkpoint_path, find_checkpoint, read_checkpoint_file, write_checkpoint_file
from trainer.config import preset, with_settings
from trainer.errors import ENVIRONMENT, UNREADABLE_INPUT, WRONG_USAGE, TrainerError

CONFIG = preset("tiny_cpu")
SHARDS = [Path("a/train_0.bin")]


def _document(**changes: Any) -> dict[str, Any]:
    """What passes for a checkpoint until it is restored."""
    document: dict[str, Any] = {key: kind() for key, kind in _KEYS.items()}
    return document | {"format": FORMAT, "config": _spell(CONFIG), "shards": ["train_0.bin"]} | changes


def _refused(path: Path, **config: str) -> TrainerError:
    settings = [f"{field}={value}" for field, value in config.items()]
    with pytest.raises(TrainerError) as refusal:
        read_checkpoint(path, with_settings(CONFIG, settings), SHARDS)
    assert refusal.value.message.startswith(f"{path}")
    assert "\n" not in refusal.value.message
    assert "; " in refusal.value.message, "no next step"
    return refusal.value


def test_tensors_come_back_to_the_bit(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 5), "b": torch.randn(7).bfloat16(), "c": torch.arange(3, dtype=torch.uint8)}
    num_bytes = write_checkpoint_file({"tensors": tensors, "steps": 5}, tmp_path / "new" / "x.ckpt")
    assert num_bytes == (tmp_path / "new/x.ckpt").stat().st_size
    document = read_checkpoint_file(tmp_path / "new/x.ckpt")
    assert document["steps"] == 5
    for name, tensor in tensors.items():
        assert document["tensors"][name].dtype == tensor.dtype
        assert torch.equal(document["tensors"][name], tensor)


def test_the_newest_of_a_folder_is_taken(tmp_path: Path) -> None:
    for steps in (9, 10, 1_000_000):
        checkpoint_path(tmp_path, steps).touch()
    (tmp_path / ".step_2000000.ckpt.x1").touch()  # half written when the power went
    assert find_checkpoint(tmp_path) == checkpoint_path(tmp_path, 1_000_000)
    assert find_checkpoint(checkpoint_path(tmp_path, 9)) == checkpoint_path(tmp_path, 9)


def test_a_folder_without_checkpoints_is_refused(tmp_path: Path) -> None:
    error = _refused(tmp_path)
    assert (error.exit_code, "holds no checkpoint" in error.message) == (UNREADABLE_INPUT, True)


DAMAGES: list[tuple[Callable[[bytes], bytes], str]] = [
    (lambda content: content[:-1], "is truncated"),
    (lambda content: content[: len(content) // 2], "is truncated"),
    (lambda content: content[:20], "is truncated: 20 bytes"),
    (lambda content: content[:4], "is truncated: 4 bytes"),
    (lambda content: b"", "is no checkpoint"),
    (lambda content: content + b"x", "is too long"),
    (lambda content: content[:200] + bytes([content[200] ^ 1]) + content[201:], "is damaged"),
    (lambda content: content[:-1] + bytes([content[-1] ^ 128]), "is damaged"),
    (lambda content: content[:20] + bytes([content[20] ^ 1]) + content[21:], "is damaged"),
    (lambda content: b"PK" + content[2:], "is no checkpoint"),
]


@pytest.mark.parametrize(("damage", "says"), DAMAGES)
def test_a_damaged_file_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes], says: str) -> None:
    path = tmp_path / "x.ckpt"
    write_checkpoint_file(_document(), path)
    path.write_bytes(damage(path.read_bytes()))
    error = _refused(path)
    assert says in error.message
    assert error.exit_code == UNREADABLE_INPUT


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "No such file" in _refused(tmp_path / "none.ckpt").message


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("evil",)


def test_a_file_with_code_runs_none_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_checkpoint_file({"x": _Evil()}, tmp_path / "x.ckpt")
    assert "cannot be read (UnpicklingError)" in _refused(tmp_path / "x.ckpt").message
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    ("changes", "says", "code"),
    [
        ({"format": 2}, "has checkpoint format 2, this trainer reads 1", UNREADABLE_INPUT),
        ({"muon": None}, "lacks muon", UNREADABLE_INPUT),
        ({"shards": ["train_1.bin"]}, "was trained on train_1.bin and 0 more, not train_0.bin", WRONG_USAGE),
        (
            {"config": {**_spell(CONFIG), "preset": "record_134"}},
            "is of preset record_134, not tiny_cpu; resume with --preset record_134",
            WRONG_USAGE,
        ),
        ({"config": {**_spell(CONFIG), "dim": "32"}}, "has dim=32 (here 64); resume with --set dim=32", WRONG_USAGE),
    ],
)
def test_another_format_or_configuration_is_refused(
    tmp_path: Path, changes: dict[str, Any], says: str, code: int
) -> None:
    write_checkpoint_file(_document(**changes), tmp_path / "x.ckpt")
    error = _refused(tmp_path / "x.ckpt")
    assert says in error.message
    assert error.exit_code == code


def test_what_only_concerns_reports_may_differ(tmp_path: Path) -> None:
    write_checkpoint_file(_document(num_steps_done=7), tmp_path / "x.ckpt")
    config = with_settings(CONFIG, ["log_interval=3", "validation_interval=none", "compile=off"])
    checkpoint = read_checkpoint(tmp_path / "x.ckpt", config, SHARDS)
    checkpoint.check_steps_left(8)
    with pytest.raises(TrainerError, match="has 7 steps done, and the run is to end after 7"):
        checkpoint.check_steps_left(7)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.ckpt"
    write_checkpoint_file({"steps": 1}, path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_file.os, "fsync", full)
    with pytest.raises(TrainerError, match="No space left on device; free space") as refusal:
        write_checkpoint_file({"steps": 2}, path)
    assert refusal.value.exit_code == ENVIRONMENT
    assert read_checkpoint_file(path) == {"steps": 1}
    assert list(tmp_path.iterdir()) == [path]
