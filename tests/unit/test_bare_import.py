"""On a bare cluster image, with torch and numpy alone, the capture half works."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import speedprof.capture

_ROOT = Path(__file__).parents[2]
_ABSENT = ("polars", "msgspec", "rich", "typer", "click", "jinja2", "isal", "scipy", "tensorboard", "nvtx", "trainer")
_CAPTURE = [
    "speedprof.annotate",
    *(f"speedprof.capture.{one.name}" for one in pkgutil.iter_modules(speedprof.capture.__path__)),
]

# Put before every other finder, so that the packages are absent for torch too.
_BLOCKER = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""


def run_bare(code: str, *, absent: tuple[str, ...] = _ABSENT) -> str:
    """What `code` prints in a process in which the packages `absent` cannot be imported."""
    done = subprocess.run(
        [sys.executable, "-c", _BLOCKER.format(absent=absent) + code], cwd=_ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_annotations_and_capture_import_without_the_analysis_packages() -> None:
    code = f"import importlib, json\nfor name in {_CAPTURE!r}: importlib.import_module(name)\n"
    loaded = json.loads(run_bare(code + "print(json.dumps(sorted(sys.modules)))"))
    assert set(loaded) >= set(_CAPTURE)
    assert not {name.partition(".")[0] for name in loaded} & set(_ABSENT)


def test_annotations_work_without_nvtx_and_without_cuda() -> None:
    code = """
from speedprof import annotate
with annotate.step(0), annotate.stage("update", "adam.head"), annotate.range("mine"):
    annotate.metric("loss", 1.0)
    annotate.phase("long")
annotate.declare("preset", "none")
print(annotate._nvtx)
"""
    assert run_bare(code).strip() == "None"


def test_a_step_is_clocked_without_the_analysis_packages(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from speedprof.capture.step_clock import StepClock
from speedprof.step_records import Mark, RecordWriter, read_records
path = Path({str(tmp_path / "rank0.steps")!r})
with RecordWriter(path, {{"rank": 0}}) as writer:
    clock = StepClock(writer, has_device=False)
    clock.step_began(3, "train", Mark.CLEAN)
    clock.step_ended()
    clock.close(is_last_whole=True)
print(read_records(path)[0][0].rows["step"].tolist())
"""
    assert run_bare(code).strip() == "[3]"
