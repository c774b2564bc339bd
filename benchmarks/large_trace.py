"""A large trace out of a real one: the same capture over and over in time, every copy with links of its own.

    python -m benchmarks.large_trace rank0.json.gz large.json --copies 60

    the real file       [head] events                     [tail]
    the large file      [head] events  events  events ... [tail]
    time                       |copy 0|copy 1|copy 2|             each begins where the one before it ends
    launch and kernel          7 -> 7  907->907                   ids count on, so that no copy links to another
    steps                      10..13  14..17  18..21             and so do the numbers of steps

A copy is shifted by whole microseconds, so that text with three decimals and text with none both stay exact.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isal import igzip

# Numbers that link events, by the key that holds them; those of one group come from one counter.
_ID_GROUPS = (
    ("correlation", "id"),  # a flow from a launch to its kernel bears their correlation id
    ("External id", "external id"),
    ("Ev Idx",),
    ("Sequence number",),  # links a backward operator to its forward one
    ("Python id", "Python parent id"),
    ("Seq",),  # of a collective in its process group
)
_GROUP_OF = {key: group for group in _ID_GROUPS for key in group}
# Numbers of steps in names: ProfilerStep#10, speedprof.step/7.
_STEP_NAMES = ("profiler_step", "step")
# Here 0 says that there is no link, so that no copy may make a number of it.
_ZERO_IS_NONE = frozenset({"correlation", "id", "External id", "external id"})
_NUMBER = re.compile(
    rf'(?<!\\)"(?P<key>ts|{"|".join(_GROUP_OF)})"\s*:\s*(?P<number>\d+)'
    r'|(?<!\\)"name"\s*:\s*"(?:ProfilerStep\s*#(?P<profiler_step>\d+)|speedprof\.step/(?P<step>\d+))'
)
_ARRAY_KEY = re.compile(r'(?<!\\)"traceEvents"\s*:\s*\[\s*')
_BETWEEN = re.compile(r"[\s,]*")
_FLOW_PHASES = frozenset("stf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A number of the text that each copy raises: `number`, by a `stride` a copy."""

    number: int
    stride: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceTemplate:
    """A trace's text, taken apart: `literals[0] slots[0] literals[1] ... literals[-1]` is one copy of its events.

    `once` are the events that name processes and threads, which belong to no time; `period_us` is how far apart the
    copies are, `num_events` how many events a copy has.
    """

    head: str
    once: str
    literals: tuple[str, ...]
    slots: tuple[Slot, ...]
    tail: str
    period_us: int
    num_events: int

    @property
    def num_chars(self) -> int:
        """How long one copy is, about."""
        return len(self.copy(0))

    def copy(self, number: int) -> str:
        """The text of the events of one copy."""
        shifted = (str(slot.number + number * slot.stride) for slot in self.slots)
        pieces = [piece for pair in zip(self.literals[:-1], shifted, strict=True) for piece in pair]
        return "".join((*pieces, self.literals[-1]))


def read_template(path: Path) -> TraceTemplate:
    """The template of a real file of Kineto's, plain or gzip."""
    packed = path.read_bytes()
    text = (gzip.decompress(packed) if packed.startswith(b"\x1f\x8b") else packed).decode()
    opening = _ARRAY_KEY.search(text)
    if opening is None:
        raise ValueError(f"{path} holds no traceEvents")
    events = list(_split_events(text, opening.end()))
    timed = [(start, end, event) for start, end, event in events if event.get("ph") != "M"]
    period_us = _span_us([event for _, _, event in timed])
    strides = _find_strides([event for _, _, event in timed]) | {"ts": period_us}
    literals: list[str] = [""]
    slots: list[Slot] = []
    for number, (start, end, event) in enumerate(timed):
        literals[-1] += ",\n  " if number else ""
        _take_apart(text[start:end], event, strides, literals, slots)
    return TraceTemplate(
        head=text[: opening.end()],
        once=",\n  ".join(text[start:end] for start, end, event in events if event.get("ph") == "M"),
        literals=tuple(literals),
        slots=tuple(slots),
        tail=text[events[-1][1] :],
        period_us=period_us,
        num_events=len(timed),
    )


def write_large_trace(template: TraceTemplate, path: Path, num_copies: int) -> None:
    """Write copy after copy; packed if the name ends in .gz. Never more than one copy is in memory."""
    packs = path.suffix == ".gz"
    with igzip.open(path, "wb", compresslevel=2) if packs else path.open("wb") as file:  # type: ignore[no-untyped-call]
        file.write(template.head.encode())
        between = template.once and f"{template.once},\n  "
        for number in range(num_copies):
            file.write(f"{between}{template.copy(number)}".encode())
            between = ",\n  "
        file.write(template.tail.encode())


def _split_events(text: str, at: int) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Start, end and value of each event of the array whose first value begins at `at`."""
    decoder = json.JSONDecoder()
    while text[at] != "]":
        event, end = decoder.raw_decode(text, at)
        yield at, end, event
        between = _BETWEEN.match(text, end)
        at = end if between is None else between.end()


def _span_us(events: list[dict[str, Any]]) -> int:
    """From the first start to the last end, in whole µs and a little more."""
    starts = [float(event["ts"]) for event in events if "ts" in event]
    ends = [float(event["ts"]) + float(event.get("dur", 0)) for event in events if "ts" in event]
    return int(max(ends) - min(starts)) + 2


def _find_strides(events: list[dict[str, Any]]) -> dict[str, int]:
    """For each key how far its numbers must be raised so that a copy's are above those of the copy before it."""
    highest = dict.fromkeys(_ID_GROUPS, 0)
    steps: dict[str, set[int]] = {name: set() for name in _STEP_NAMES}
    for event in events:
        for key, value in _numbers_of(event).items():
            highest[_GROUP_OF[key]] = max(highest[_GROUP_OF[key]], value)
        named = _NUMBER.match(f'"name": {json.dumps(event.get("name", ""))}')
        if named is not None and named.lastgroup is not None:
            steps[named.lastgroup].add(int(named[named.lastgroup]))
    strides = {key: highest[group] + 1 for key, group in _GROUP_OF.items()}
    return strides | {name: max(found) - min(found) + 1 for name, found in steps.items() if found}


def _numbers_of(event: Mapping[str, Any]) -> dict[str, int]:
    args = event.get("args") or {}
    found = {key: args[key] for key in _GROUP_OF if type(args.get(key)) is int and key != "id"}
    return found | ({"id": int(event["id"])} if event.get("ph") in _FLOW_PHASES and "id" in event else {})


def _take_apart(
    text: str, event: Mapping[str, Any], strides: Mapping[str, int], literals: list[str], slots: list[Slot]
) -> None:
    """Add the pieces of one event's text; the last literal stays open for what follows."""
    ids = _numbers_of(event)
    at = 0
    for match in _NUMBER.finditer(text):
        place = match.lastgroup or ""
        key, number = match["key"] or place, int(match[place])
        is_link = ids.get(key) == number and not (number == 0 and key in _ZERO_IS_NONE)
        if key not in ("ts", *_STEP_NAMES) and not is_link:
            continue
        start, end = match.span(place)
        literals[-1] += text[at:start]
        slots.append(Slot(number=number, stride=strides[key]))
        literals.append("")
        at = end
    literals[-1] += text[at:]


def main() -> None:
    parser = argparse.ArgumentParser(description="Repeat a real trace in time, with links of its own in every copy.")
    parser.add_argument("trace", type=Path, help="a file that torch.profiler wrote")
    parser.add_argument("large", type=Path, help="what to write; packed if it ends in .gz")
    parser.add_argument("--copies", type=int, help="how many copies")
    parser.add_argument("--bytes", type=int, help="or how much JSON, in bytes")
    arguments = parser.parse_args()
    template = read_template(arguments.trace)
    num_copies = arguments.copies or max(round(arguments.bytes / template.num_chars), 1)
    write_large_trace(template, arguments.large, num_copies)
    events = num_copies * template.num_events
    print(json.dumps({"copies": num_copies, "events": events, "period_us": template.period_us}))


if __name__ == "__main__":
    main()
