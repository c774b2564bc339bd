"""The help says all that the commands take, and an error's exit code reaches the process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from speedprof.capture.plan import CapturePlan
from trainer import config as configs
from trainer.__main__ import main
from trainer.arguments import parse

FAILURES = [(["--seed", "-1"], 2), (["--data", "no/such/*.bin"], 4), ([], 6)]


def _help(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_the_help_shows_what_training_takes(capsys: pytest.CaptureFixture[str]) -> None:
    text = _help(capsys)
    assert text == _help(capsys, "train")
    for word in ("--data GLOB", "--val-data GLOB", "--steps N", "--seed S", "--preset NAME", "--set FIELD=VALUE"):
        assert word in text
    assert "python -m trainer plan" in text


def test_the_help_lists_presets_and_every_field_of_each(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line.split() for line in _help(capsys).splitlines()]
    assert list(configs.PRESETS) in lines
    for name, config in configs.PRESETS.items():
        assert any(line[:2] == [name, "width"] for line in lines)
        column = list(configs.PRESETS).index(name) + 1
        shown = {line[0]: line[column] for line in lines if len(line) > column}
        for field in configs.settable_fields():
            assert shown[field] == configs.spell_value(getattr(config, field)), field


@pytest.mark.parametrize("command", [[], ["train"], ["plan"]])
def test_every_help_ends_with_two_examples_that_parse(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    text = _help(capsys, *command)
    heading, *examples = text.rstrip().splitlines()[-3:]
    assert heading == "examples:"
    for example in examples:
        parsed = parse(example.split("trainer ")[1].split())
        configs.with_settings(configs.preset(parsed.preset or "tiny_cpu"), parsed.settings)


@pytest.mark.parametrize(("arguments", "code"), FAILURES)
def test_the_exit_code_of_an_error_is_that_of_the_process(tmp_path: Path, arguments: list[str], code: int) -> None:
    done = _run(tmp_path, ["-m", "trainer", *arguments])
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("trainer: error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("arguments", "code"), FAILURES)
def test_the_exit_code_of_an_error_is_that_of_a_captured_rank(tmp_path: Path, arguments: list[str], code: int) -> None:
    for folder in ("steps", "logs", "kineto"):
        (tmp_path / "run" / folder).mkdir(parents=True)
    session = ["-m", "speedprof.capture.session", "--run-dir", str(tmp_path / "run"), "--plan", CapturePlan().to_json()]
    done = _run(tmp_path, [*session, "trainer", *arguments])
    log = (tmp_path / "run/logs/rank0.log").read_text()
    assert done.returncode == code, log
    assert log.startswith("trainer: error: ")
    assert log.count("\n") == 1


def _run(tmp_path: Path, words: list[str]) -> subprocess.CompletedProcess[str]:
    """Python with these words, alone, without a GPU, its cache folder where none can be made."""
    (tmp_path / "file").touch()
    left_out = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        env=environment | {"CUDA_VISIBLE_DEVICES": "", "XDG_CACHE_HOME": str(tmp_path / "file")},
        timeout=120,
        check=False,
    )
