"""The one error that the trainer shows its user: a line that says what is wrong and what to do next."""

from __future__ import annotations

WRONG_USAGE = 2
UNREADABLE_INPUT = 4
ENVIRONMENT = 6


class TrainerError(Exception):
    """A failure that the user can act on.

    message: one line: what is wrong, with the file or field, and the next step.
    exit_code: WRONG_USAGE, UNREADABLE_INPUT or ENVIRONMENT.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code
