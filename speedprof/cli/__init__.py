"""The commands. Each lives in a module of its own, whose function's docstring is its help."""

from __future__ import annotations

import errno
import functools
import inspect
import io
import os
import sys
from collections.abc import Callable
from typing import Any

import typer

from speedprof.cli.analyze import analyze
from speedprof.cli.capture import capture
from speedprof.cli.check import check
from speedprof.cli.report import report
from speedprof.errors import ExitCode, SpeedprofError
from speedprof.report.text import make_plain

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}

app = typer.Typer(
    name="speedprof",
    help=(
        "Finds the milliseconds of a distributed training step, and proves them.\n\n"
        "Exit codes: 0 fine; 1 a gate failed; 2 wrong usage; 3 the captured program failed; 4 unreadable input; "
        "5 inconclusive; 6 this environment cannot do it; 130 and 143 interrupted."
    ),
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _register(command: Callable[..., None]) -> None:
    """Add a command whose docstring is its help; the examples in it go last, below the options."""
    text, _, examples = inspect.getdoc(command).partition("Examples:\n")  # type: ignore[union-attr]
    app.command(help=text, epilog=f"\b\nExamples:\n{examples}")(_quiet_about_pipes(command))


def _quiet_about_pipes(command: Callable[..., None]) -> Callable[..., None]:
    """The command, ending well when whoever reads its output (`| head`) has had enough."""

    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        try:
            try:
                command(*arguments, **options)
            finally:
                sys.stdout.flush()
        except (BrokenPipeError, SystemExit):  # rich makes the second of the first; no command of ours raises it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(ExitCode.FINE) from None

    return run


for _command in (capture, analyze, report, check):
    _register(_command)


def main() -> None:
    """Run a command and leave with its exit code; what a user can mend is told in one line."""
    if sys.stdout is None:  # closed by the shell (>&-): what is printed goes nowhere
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without Unicode shows ? instead of ending us
    try:
        app()
    except SpeedprofError as error:
        print(f"speedprof: error: {make_plain(str(error), limit=2_000)}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or leaving would try to write again
        where = f"{make_plain(str(error.filename))}: " if error.filename else ""
        print(f"speedprof: error: {where}{error.strerror}; free some space, then try again", file=sys.stderr)
        sys.exit(ExitCode.ENVIRONMENT)
