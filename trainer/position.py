"""Where this rank is, for the line that it says when it must end: kept by the loop, read by the watch."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(slots=True, kw_only=True)
class Position:
    """step: of training, from 0; None before the first. place: the stage and group, or the collective, that the host
    is in; is_collective: whether other ranks are waited for there; since_s: time.monotonic() of entering it."""

    step: int | None = None
    place: str | None = None
    is_collective: bool = False
    since_s: float = 0.0

    def enter(self, place: str, *, is_collective: bool) -> None:
        self.since_s = time.monotonic()
        self.place = place
        self.is_collective = is_collective

    def leave(self) -> None:
        """Left as it is where an error ends it: then this is where the error was."""
        if sys.exc_info()[0] is None:
            self.place = None
            self.is_collective = False

    def seconds_in_collective(self) -> float:
        return time.monotonic() - self.since_s if self.is_collective else 0.0

    def describe(self) -> str:
        step = "before the first step" if self.step is None else f"step {self.step}"
        return f"{step}, {self.place or 'outside every stage'}"


HERE = Position()
"""Of this process, which has one rank."""


@contextmanager
def collective(name: str) -> Iterator[None]:
    """A collective outside the optimizers' stages, which the annotations name."""
    HERE.enter(name, is_collective=True)
    yield
    HERE.leave()
