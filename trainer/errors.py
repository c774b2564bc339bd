"""The one error that the trainer shows its user: a line that says what is wrong and what to do next."""

from __future__ import annotations

TARGET_MISSED = 1
WRONG_USAGE = 2
UNREADABLE_INPUT = 4
ENVIRONMENT = 6
NOT_FINITE = 7
RANK_LOST = 8
COLLECTIVE_HUNG = 9
TERMINATED = 143

MEANINGS = {
    0: "done",
    TARGET_MISSED: "repeat: the losses do not show that the target is met",
    WRONG_USAGE: "wrong usage, also a checkpoint of another configuration",
    UNREADABLE_INPUT: "a shard or checkpoint cannot be read",
    ENVIRONMENT: "this machine cannot do it",
    NOT_FINITE: "a loss or gradient is not finite",
    RANK_LOST: "another rank died",
    COLLECTIVE_HUNG: "a collective did not end in time",
    TERMINATED: "told to end from outside",
}
"""Exit code -> what it says; the help lists them."""


class TrainerError(Exception):
    """A failure that the user can act on.

    message: one line: what is wrong, with the file or field, and the next step.
    exit_code: one of MEANINGS.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code
