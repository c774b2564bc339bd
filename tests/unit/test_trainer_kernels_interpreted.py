"""The kernels themselves, on the CPU: the tests of test_trainer_kernels.py under Triton's interpreter."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton; torch's CPU builds have none")
def test_the_kernels_equal_their_references_under_the_interpreter() -> None:
    # A process of its own: Triton looks for the interpreter's switch when it is imported.
    tests = ROOT / "tests/unit/test_trainer_kernels.py"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(tests)],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "passed" in done.stdout
