"""Where this rank is, for the line that it says when it must end: kept by the loop, read by the watch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(slots=True, kw_only=True)
class Position:
    """step: of training, from 0; None before the first. place: the stage and group, or the collective, that the host
    is in, with the time.monotonic() at which it entered."""

    step: int | None = None
    place: str | None = None
    since_s: float = 0.0

    def enter(self, place: str) -> None:
        self.since_s = time.monotonic()
        self.place = place

    def leave(self) -> None:
        self.place = None

    def describe(self) -> str:
        step = "before the first step" if self.step is None else f"step {self.step}"
        return f"{step}, {self.place or 'outside every stage'}"


HERE = Position()
"""Of this process, which has one rank."""


@contextmanager
def collective(name: str) -> Iterator[None]:
    """A collective outside the optimizers' stages, which the annotations name."""
    HERE.enter(name)
    yield
    HERE.leave()
