"""Asking the commands as a user does, in this process."""

from __future__ import annotations

import contextlib
import io
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from speedprof.cli import main
from speedprof.errors import ExitCode


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    code: int
    out: str
    err: str


def ask(*words: str | Path, folder: Path) -> Answer:
    """What `speedprof <words>` answers in `folder`."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.chdir(folder),
        mock.patch.object(sys, "argv", ["speedprof", *map(str, words)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Answer(code=code, out=out.getvalue(), err=err.getvalue())


def require_one_line_error(answer: Answer, code: ExitCode, *parts: str) -> None:
    """The command told what is wrong and what to do in one line on stderr, and nothing else."""
    assert answer.code == code
    assert answer.err.startswith("speedprof: error: ")
    assert answer.err.count("\n") == 1
    assert "; " in answer.err
    assert all(part in answer.err for part in parts), answer.err
    assert answer.out == ""
