"""From a file's blocks of text to lists of events, a megabyte at a time, without ever holding the whole text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from speedprof.errors import UnreadableError
from speedprof.trace.events import Event, Salvage, decode_events, salvage_events
from speedprof.trace.read_log import ReadLog
from speedprof.units import format_bytes

# `"traceEvents": [` that is a key, not the inside of a string with escaped quotes.
_ARRAY_KEY = re.compile(rb'(?<!\\)"traceEvents"\s*:\s*\[')
_MAX_HEADER_BYTES = 64 << 20
_MAX_TRAILER_BYTES = 64 << 20
# No event is larger; what cannot be told apart for longer than this is no event.
_MAX_CARRY_BYTES = 16 << 20
_NOT_KINETO = "name a file that torch.profiler exported"


@dataclass(slots=True)
class EventStream:
    """Iterate it once for the lists of events; then `metadata` holds the file's other keys.

    Damage costs the events that it touches; `log` counts them, and hears of a file that ends early.
    """

    path: Path
    blocks: Iterator[bytes]
    log: ReadLog
    metadata: dict[str, Any] = field(default_factory=dict)
    _is_closed: bool = False

    def __iter__(self) -> Iterator[list[Event]]:
        carry = self._open_array()
        for block in self.blocks:
            text = carry + block
            border, events = self._decode_to_border(text, len(carry))
            if events is None:
                salvage = self._salvage(text, is_last=False)
                events, carry = salvage.events, salvage.rest
                if len(carry) > _MAX_CARRY_BYTES:
                    self.log.num_broken_events += 1
                    self.log.num_skipped_bytes += len(carry)
                    carry = b""
            else:
                carry = text[border:]
            if events:
                yield events
            if self._is_closed:
                self._close(carry)
                return
        events = self._decode_last(carry)
        if events:
            yield events

    def _open_array(self) -> bytes:
        """Read up to the array of events; gives what was read of it already."""
        head = b""
        for piece in _doubling(self.blocks):
            head += piece
            text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
            if text[:1] == b"[":
                return text[1:]
            if text[:1] not in (b"{", b""):
                break
            match = _ARRAY_KEY.search(head)
            if match:
                if not self._take_metadata(head[len(head) - len(text) : match.end()] + b"]}"):
                    self.log.note("the keys before the events are damaged and were not read")
                return head[match.end() :]
            if len(head) > _MAX_HEADER_BYTES:
                break
        raise self._not_a_trace(head)

    def _not_a_trace(self, head: bytes) -> UnreadableError:
        text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
        if not text and self.log.lost:
            return UnreadableError(f"{self.path} gave no text: {self.log.lost}", next_step="capture again")
        if not text:
            return UnreadableError(f"{self.path} is {'blank' if head else 'empty'}", next_step="capture again")
        if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
            return UnreadableError(f"{self.path} is UTF-16 text", next_step="convert it to UTF-8")
        if text[:1] != b"{":
            return UnreadableError(f"{self.path} is not JSON", next_step=_NOT_KINETO)
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            return UnreadableError(
                f"{self.path} ends before any event, or is not sound JSON", next_step="capture again, or " + _NOT_KINETO
            )
        return UnreadableError(f"{self.path} is JSON but holds no traceEvents", next_step=_NOT_KINETO)

    def _decode_to_border(self, text: bytes, start: int) -> tuple[int, list[Event] | None]:
        """The events up to one of the last borders behind `start`, or None where no border makes sense.

        What looks like a border may lie in a string or a list within an event. Then the text before it is no whole
        list of values and does not decode, so a border that decodes is one.
        """
        for comma, border in islice(_borders(text, start), 4):
            events = decode_events(memoryview(text)[:comma])
            if events is not None:
                return border, events
        return 0, None

    def _salvage(self, text: bytes, *, is_last: bool) -> Salvage:
        salvage = salvage_events(text, is_last=is_last)
        self.log.num_broken_events += salvage.num_broken
        self.log.num_skipped_bytes += salvage.num_skipped
        self._is_closed = salvage.closed
        return salvage

    def _decode_last(self, carry: bytes) -> list[Event]:
        """The events of the end of the file, where the array should close."""
        end = len(carry)
        for _ in range(8):
            end = carry.rfind(b"]", 0, end)
            if end < 0:
                break
            # Where the text up to a bracket is a whole list of values, that bracket closes the array.
            events = decode_events(carry[:end])
            if events is not None:
                self._close(carry[end + 1 :])
                return events
        salvage = self._salvage(carry, is_last=True)
        if salvage.closed:
            self._close(salvage.rest)
        else:
            self.log.lose("the file ends in the midst of its events: what follows the break is missing")
        return salvage.events

    def _close(self, text: bytes) -> None:
        """Take the keys that follow the array; a few megabytes of them at most."""
        for block in self.blocks:
            text += block
            if len(text) > _MAX_TRAILER_BYTES:
                self.log.lose("more than 64 MB follow the events and were not read")
                return
        tail = text.strip().removeprefix(b",")
        if tail in (b"", b"}") or self._take_metadata(b"{" + tail):
            return
        if self.log.num_skipped_bytes:
            # Garbage may hold a bracket that seems to close the array.
            self.log.lose(f"{format_bytes(len(tail))} that follow a damaged event are damaged too and were not read")
        else:
            self.log.note("the keys beside the events are damaged and were not read")

    def _take_metadata(self, text: bytes) -> bool:
        """Keep the keys of this text; whether it is sound."""
        try:
            found = json.loads(text.decode("utf-8", errors="replace"), strict=False)
        except (ValueError, RecursionError):
            return False
        if isinstance(found, dict):
            self.metadata |= {key: value for key, value in found.items() if key != "traceEvents"}
        return True


def _doubling(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The blocks, joined to pieces as long as all before them: so looking at the whole again after each is cheap."""
    pending: list[bytes] = []
    num_given = num_pending = 0
    for block in blocks:
        pending.append(block)
        num_pending += len(block)
        if num_pending >= num_given:
            yield b"".join(pending)
            num_given, num_pending = num_given + num_pending, 0
            pending.clear()
    if pending:
        yield b"".join(pending)


def _borders(text: bytes, start: int) -> Iterator[tuple[int, int]]:
    """The commas behind which events seem to begin, and where, the last first: at a `{` that `},` precedes."""
    end = len(text)
    while (end := text.rfind(b"{", start, end)) > 0:
        first = max(end - 256, 0)
        before = text[first:end].rstrip()
        if before.endswith(b",") and before[:-1].rstrip().endswith(b"}"):
            yield first + len(before) - 1, end
