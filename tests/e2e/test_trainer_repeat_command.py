"""`python -m trainer repeat` as a user runs it: once with a target that it meets, once with one that it does not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SETTINGS = ("dim=32", "micro_batch_tokens=64", "max_document_tokens=64", "compile=off", "validation_micro_batches=4")

pytestmark = pytest.mark.e2e


def _repeat(*words: str) -> subprocess.CompletedProcess[str]:
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    return subprocess.run(
        [sys.executable, "-m", "trainer", "repeat", *words, "--", "--preset", "tiny_cpu", "--steps", "12", *settings],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )


def test_a_target_that_is_met_and_then_a_baseline(tmp_path: Path) -> None:
    """An untrained model has a loss of ln 50,304 = 10.83; twelve steps bring it well under 10.7."""
    done = _repeat("--runs", "3", "--target-loss", "10.7", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["is_met"]
    assert document["p"] < 0.01
    assert [run["seed"] for run in document["runs"]] == [0, 1, 2]
    assert len(set(document["losses"]["values"])) == 3
    assert all(run["first_step_s"] < run["train_s"] for run in document["runs"])
    (tmp_path / "before.json").write_text(done.stdout)

    missed = _repeat("--runs", "2", "--target-loss", "3.28", "--baseline", str(tmp_path / "before.json"))
    assert missed.returncode == 1, missed.stderr
    assert "target  3.28: not shown, p = " in missed.stdout
    assert "  retimed  " in missed.stdout
    assert [line.split()[0] for line in missed.stdout.splitlines()[1:3]] == ["0", "1"]


def test_two_ranks_a_run() -> None:
    done = _repeat("--runs", "2", "--target-loss", "10.8", "--nproc-per-node", "2")
    assert done.returncode in (0, 1), done.stderr
    assert "target  10.8: " in done.stdout
    assert "ranks 2" in done.stderr, "the runs' own log"
