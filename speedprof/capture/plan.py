"""What a capture is asked to do: how many steps to clock, how many to trace, and what to trace of them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from speedprof.errors import UsageError

# What a rank says of its place in the plan while it stops the profiler and writes; that may take a minute.
WRITING_TRACE = "writing the trace"


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturePlan:
    """The steps of a capture, in the order in which they pass:

        warmup | steps: clean, no profiler | 1 to 3 in transition | trace steps: under torch.profiler

    `trace_steps` None means as many as `steps`, or as `max_trace_bytes` of JSON a rank holds, whichever is fewer,
    estimated from the first traced steps. Shapes, memory and stacks are torch.profiler's options of these names.

    Raises UsageError where a number makes no sense.
    """

    steps: int = 50
    warmup: int = 10
    trace_steps: int | None = None
    max_trace_bytes: int = 256_000_000
    shapes: bool = True
    memory: bool = False
    stacks: bool = False

    def __post_init__(self) -> None:
        _require(self.steps >= 1, f"--steps {self.steps}: there is nothing to clock", "ask for 1 step or more")
        _require(self.warmup >= 0, f"--warmup {self.warmup}: is negative", "ask for 0 steps or more")
        _require((self.trace_steps or 0) >= 0, f"--trace-steps {self.trace_steps}: is negative", "0 means no trace")
        _require(self.max_trace_bytes >= 1, "--max-trace-mb: leaves no room for a trace", "ask for 1 MB or more")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_json(self) -> str:
        return json.dumps(self.as_dict())

    @classmethod
    def from_json(cls, text: str) -> CapturePlan:
        return cls(**json.loads(text))


def _require(condition: bool, problem: str, next_step: str) -> None:
    if not condition:
        raise UsageError(problem, next_step=next_step)
