"""Make the kept captures anew, as far as this machine can, and rewrite the reports of all of them.

    python -m tests.gold.remake [--reports-only]

Read the difference like code before committing it: it is what users will see.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from speedprof.capture.launch import count_gpus
from tests.gold.samples import REPORTS, ROOT, SAMPLES, TRACES, Sample, write_gold

_SCRATCH = Path(".gold")


def capture(sample: Sample) -> None:
    """Capture the sample into a scratch folder and, if the run is whole, put it in the place of the old one."""
    shutil.rmtree(_SCRATCH, ignore_errors=True)
    command = ["-m", "speedprof", "capture", *sample.capture_arguments, "--run-id", sample.name, "--out", str(_SCRATCH)]
    subprocess.run([sys.executable, *command, *os.environ.get("GOLD_ARGS", "").split()], check=True)
    shutil.rmtree(sample.run_dir.path, ignore_errors=True)
    shutil.move(_SCRATCH / "traces" / sample.name, sample.run_dir.path)
    shutil.rmtree(_SCRATCH)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.gold.remake")
    parser.add_argument("--reports-only", action="store_true", help="keep the captures")
    options = parser.parse_args()
    os.chdir(ROOT)
    TRACES.mkdir(parents=True, exist_ok=True)
    num_gpus = count_gpus()
    for sample in SAMPLES:
        if not options.reports_only and sample.num_gpus == num_gpus:
            capture(sample)
        elif not options.reports_only:
            print(
                f"{sample.name} needs {sample.num_gpus} GPUs, here are {num_gpus}: its capture stays", file=sys.stderr
            )
        if sample.run_dir.path.exists():
            write_gold(sample, REPORTS / sample.name)


if __name__ == "__main__":
    main()
