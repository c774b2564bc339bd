"""Names from traces as a reader wants them: kernels without their templates' tails, causes in words."""

from __future__ import annotations

import re
from collections.abc import Mapping

from speedprof.analyses.idle_gaps import GapCause
from speedprof.vocabulary import RANGE_PREFIX, STAGE_PREFIX, STEP_PREFIX

LONGEST_KERNEL = 60

# No name is looked at further than this: of a kernel's templates only the beginning tells anything.
_MOST_READ = 2_000
_NAMESPACES = re.compile(r"\b(?:[A-Za-z_]\w*::)+(?=[A-Za-z_~{])")
_COMPILED = "## Call CompiledFxGraph"
_SUFFIXES = re.compile(r"\b(\d+)[uU]?[lL]{1,2}\b")
_BRACKETS = re.compile(r"[<>()]")

CAUSE_LABELS: Mapping[GapCause, str] = {
    GapCause.LATE_LAUNCH: "late launch",
    GapCause.SYNC: "sync",
    GapCause.INPUT: "input",
    GapCause.ALLOCATOR: "allocator",
    GapCause.RECOMPILE: "recompile",
    GapCause.GARBAGE_COLLECTION: "gc",
    GapCause.QUEUED: "queued",
    GapCause.BELOW_LAUNCH_RESOLUTION: "short gaps",
    GapCause.UNLINKED: "unlinked",
}

CAUSE_MEANINGS: Mapping[GapCause, str] = {
    GapCause.LATE_LAUNCH: "the device ran dry before the host launched the next work, for no reason that shows",
    GapCause.SYNC: "the host was blocked in a call that synchronises",
    GapCause.INPUT: "the host was loading data",
    GapCause.ALLOCATOR: "the host was allocating or freeing device memory",
    GapCause.RECOMPILE: "the host was compiling",
    GapCause.GARBAGE_COLLECTION: "Python was collecting garbage",
    GapCause.QUEUED: "the next work is launched already, but waits for another stream or for the device",
    GapCause.BELOW_LAUNCH_RESOLUTION: "the next work is launched already, and begins within microseconds",
    GapCause.UNLINKED: "the launch of the next work was not recorded",
}


def shorten_kernel(name: str, limit: int = LONGEST_KERNEL) -> str:
    """The telling part of a kernel's name, in at most `limit` characters.

    `void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<float>, …>(int, …)` becomes
    `vectorized_elementwise_kernel<4, FillFunctor<float>, …`. A name without templates, such as Triton's, is cut in its
    middle, since its end tells it from its neighbours.
    """
    text = name[:_MOST_READ].removeprefix("void ").replace("(anonymous namespace)::", "")
    text = _SUFFIXES.sub(r"\1", _NAMESPACES.sub("", _without_arguments(text))).strip() or name[:_MOST_READ]
    if len(text) > limit and "<" in text[:limit]:
        return f"{text[: limit - 1].rstrip(' ,<(')}…"
    return shorten(text, limit)


def _without_arguments(text: str) -> str:
    """A C++ signature up to the brackets of its arguments, which are the first outside its templates."""
    depth = 0
    for found in _BRACKETS.finditer(text):
        sign = found[0]
        if sign == "(" and depth == 0 and found.start() > 0:
            return text[: found.start()]
        depth += {"<": 1, ">": -1, "(": 1, ")": -1}[sign]
    return text


def shorten_range(name: str) -> str:
    """A range as a reader knows it: `update of adam.scalars` for a stage, without our own prefixes, and without the
    hash of a compiled graph, which differs from rank to rank for the same graph."""
    if name.startswith(STAGE_PREFIX):
        stage, _, group = name.removeprefix(STAGE_PREFIX).partition("/")
        return format_stage(stage, group)
    if name.startswith(STEP_PREFIX):
        return f"step {name.removeprefix(STEP_PREFIX)}"
    if name.startswith(_COMPILED):
        return "compiled graphs"
    return name.removeprefix(RANGE_PREFIX)


def format_stage(stage: str | None, group: str | None) -> str:
    """`update of adam.scalars`; empty outside every stage."""
    return " of ".join(part for part in (stage, group) if part)


def shorten(name: str, limit: int) -> str:
    """A name whose beginning tells most, and whose end tells it from its neighbours."""
    if len(name) <= limit:
        return name
    num_last = limit // 4
    return f"{name[: limit - 1 - num_last]}…{name[-num_last:]}"
