"""The options that `analyze` and `report` share: which parts of a report, and how trace files are read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from speedprof.errors import UsageError

if TYPE_CHECKING:
    from speedprof.report.sections import Section
    from speedprof.trace.kernels import CollectivePattern
    from speedprof.trace.unpack import ReadLimits

# Written out, since a help text must not wait for the modules that it speaks of; a test compares them.
SECTIONS = ("step_time", "partition", "overlap", "stragglers", "idle", "launches", "kernels", "certainty")

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?", re.IGNORECASE)
_FACTORS = {
    "": 1,
    **{unit: 1_000**power for power, unit in enumerate("kmgt", start=1)},
    **{unit + "i": 1_024**power for power, unit in enumerate("kmgt", start=1)},
}

Only = Annotated[
    str | None,
    typer.Option(
        "--only",
        metavar="PARTS",
        help=f"Only these parts, with commas between: {', '.join(SECTIONS)}.",
        show_default="all",
    ),
]
Patterns = Annotated[
    list[str] | None,
    typer.Option(
        "--collective-pattern",
        metavar="[NAME=]REGEX",
        help="Kernels whose names this matches are communication too. NAME says which collective, such as all_gather. "
        "May be given more than once.",
    ),
]
PatternsOnly = Annotated[
    list[str] | None,
    typer.Option(
        "--collective-pattern-only",
        metavar="[NAME=]REGEX",
        help="Only kernels that this matches are communication: it replaces the table of known libraries. "
        "May be given more than once.",
    ),
]
MaxBytes = Annotated[
    str, typer.Option("--max-bytes", metavar="SIZE", help="The most text that a trace may unpack to: 500MB, 64GiB.")
]
Jobs = Annotated[
    int | None,
    typer.Option("--jobs", help="Traces to read at a time, each in a process.", show_default="by their size and cores"),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How trace files are read. `num_jobs` is how many at a time; None leaves it to their size and the cores."""

    limits: ReadLimits
    patterns: tuple[CollectivePattern, ...]
    num_jobs: int | None


def choose_reading(
    *,
    patterns: Sequence[str] | None = None,
    patterns_only: Sequence[str] | None = None,
    max_bytes: str = "64GiB",
    jobs: int | None = None,
) -> Reading:
    """What the words of these options mean. Raises UsageError where they mean nothing."""
    from speedprof.trace.kernels import choose_patterns, parse_pattern
    from speedprof.trace.unpack import ReadLimits

    for option, texts in (("--collective-pattern", patterns), ("--collective-pattern-only", patterns_only)):
        for text in texts or ():
            try:
                parse_pattern(text)
            except ValueError as error:
                raise UsageError(f"{option} {text!r}: {error}", next_step="give a regular expression") from None
    if jobs is not None and jobs < 1:
        raise UsageError(f"--jobs {jobs}: must be 1 or more", next_step="leave it out to have it chosen")
    return Reading(
        limits=ReadLimits(max_bytes=parse_size(max_bytes)),
        patterns=choose_patterns(patterns or (), patterns_only or ()),
        num_jobs=jobs,
    )


def parse_size(text: str) -> int:
    """Bytes: `1000`, `500MB`, `64GiB`, `1.5g`. Raises UsageError for what is no size."""
    size = _SIZE.fullmatch(text.strip())
    num_bytes = int(float(size[1]) * _FACTORS[(size[2] or "").lower()]) if size and len(size[1]) < 20 else 0
    if num_bytes < 1:
        raise UsageError(f"--max-bytes {text}: is no size", next_step="give one such as 500MB or 64GiB")
    return num_bytes


def choose_sections(only: str | None) -> frozenset[Section]:
    """The parts of a report that `--only` names, all without it. Raises UsageError for what is no part."""
    from speedprof.report.sections import Section

    if only is None:
        return frozenset(Section)
    try:
        return frozenset(Section(name.strip()) for name in only.split(","))
    except ValueError:
        raise UsageError(f"--only {only}: is no list of parts", next_step=f"choose from {','.join(Section)}") from None
