"""Running a program as if it were alone, and what it says in the end."""

from __future__ import annotations

import contextlib
import os
import runpy
import sys
import traceback
from pathlib import Path


def run_as_main(program: str) -> None:
    if program.endswith(".py"):
        sys.path.insert(0, str(Path(program).resolve().parent))
        runpy.run_path(program, run_name="__main__")
    else:
        sys.path.insert(0, os.getcwd())
        runpy.run_module(program, run_name="__main__", alter_sys=True)


def own_traceback(error: BaseException, *, caller: str) -> str:
    """The traceback as the program alone would have printed it, without our frames above it.

    `caller` is the file that ran it through `run_as_main`.
    """
    ours = {__file__, caller, "<frozen runpy>"}
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename in ours and trace.tb_next is not None:
        trace = trace.tb_next
    return "".join(traceback.format_exception(type(error), error, trace)).rstrip()


def code_of(stop: SystemExit) -> int:
    if stop.code is None or isinstance(stop.code, int):
        return stop.code or 0
    print(stop.code, file=sys.stderr)  # as the interpreter would
    return 1


def last_line(log_path: Path) -> str:
    sys.stderr.flush()
    with contextlib.suppress(OSError):
        lines = log_path.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it printed nothing"
    return "its log cannot be read"


def redirect_output(log_path: Path) -> None:
    """Send what this process and its children print to the rank's own log, line by line."""
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(line_buffering=True)
