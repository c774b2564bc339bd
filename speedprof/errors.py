"""What can go wrong for a user, and the exit code that says so."""

from __future__ import annotations

from enum import IntEnum
from functools import partial
from typing import Any


class ExitCode(IntEnum):
    """Exit codes, the same for every command."""

    FINE = 0
    GATE_FAILED = 1
    WRONG_USAGE = 2
    PROGRAM_FAILED = 3
    UNREADABLE = 4
    INCONCLUSIVE = 5
    ENVIRONMENT = 6
    INTERRUPTED = 130
    TERMINATED = 143


class SpeedprofError(Exception):
    """A failure to tell a user in one line: what is wrong with what, and what to do next."""

    exit_code = ExitCode.UNREADABLE

    def __init__(self, problem: str, *, next_step: str) -> None:
        super().__init__(f"{problem}; {next_step}")
        self.problem = problem
        self.next_step = next_step

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process hears of it with both its parts."""
        return partial(type(self), next_step=self.next_step), (self.problem,)


class UsageError(SpeedprofError):
    """The command's words do not make sense."""

    exit_code = ExitCode.WRONG_USAGE


class UnreadableError(SpeedprofError):
    """An input cannot be read."""


class BeyondLimitError(UnreadableError):
    """An input is larger than the user allowed; what is asked of it cannot be answered without it."""


class UnknownVersionError(UnreadableError):
    """An input was written by a version that this one does not know; it may be whole, so nothing may repair it."""


class EnvironmentUnfitError(SpeedprofError):
    """This machine or installation cannot do it."""

    exit_code = ExitCode.ENVIRONMENT
