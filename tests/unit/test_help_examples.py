"""The examples that each --help ends with do what they say."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.config import preset, with_settings

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "traces" / "samples" / "cpu-2ranks"


def examples(command: str) -> list[list[str]]:
    """The words of a command's examples, without `python -m speedprof`."""
    said = subprocess.run(
        [sys.executable, "-m", "speedprof", command, "--help"], cwd=ROOT, capture_output=True, text=True
    )
    lines = said.stdout.partition("Examples:")[2].strip().splitlines()
    return [shlex.split(line)[3:] for line in lines]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a run in traces/ and its traces under the names that the examples use."""
    shutil.copytree(SAMPLE, tmp_path / "traces" / SAMPLE.name)
    for rank in (0, 1):
        (path,) = SAMPLE.glob(f"kineto/rank{rank}.*")
        shutil.copy(path, tmp_path / f"rank{rank}.json.gz")
    return tmp_path


@pytest.mark.parametrize("command", ["analyze", "report", "check"])
def test_examples_of_reading_commands_run(folder: Path, command: str) -> None:
    for words in examples(command):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-m", "speedprof", *words], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, (words, done.stderr)


def test_examples_of_capture_pass_on_what_the_trainer_takes() -> None:
    first, second = examples("capture")
    assert first == ["capture", "--steps", "50"]
    (setting,) = re.findall(r"-- --set (\S+)", " ".join(second))
    assert with_settings(preset("tiny_cpu"), [setting]).muon_learning_rate == 0.02
