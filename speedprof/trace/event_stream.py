"""From a file's blocks of text to lists of events, a megabyte at a time, without ever holding the whole text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speedprof.errors import UnreadableError
from speedprof.trace.events import Event, decode_events, salvage_events

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

    Damage costs the events that it touches: `num_broken` counts them, `note` hears of a file that ends early.
    """

    path: Path
    blocks: Iterator[bytes]
    note: Callable[[str], None]
    metadata: dict[str, Any] = field(default_factory=dict)
    num_broken: int = 0

    def __iter__(self) -> Iterator[list[Event]]:
        carry = self._open_array()
        for block in self.blocks:
            border, pieces = _last_border(block), carry + block
            if border is None and len(pieces) < _MAX_CARRY_BYTES:
                carry = pieces
                continue
            cut = len(carry) + (len(block) if border is None else border)
            events, rest = self._decode(pieces[:cut])
            if events:
                yield events
            if rest is None:
                carry = pieces[cut:]
                continue
            text, closed = rest
            if closed:
                self._close(text + pieces[cut:])
                return
            carry = text + pieces[cut:] if len(text) < _MAX_CARRY_BYTES else self._give_up(pieces[cut:])
        events = self._decode_last(carry)
        if events:
            yield events

    def _open_array(self) -> bytes:
        """Read up to the array of events; gives what was read of it already."""
        head = b""
        for block in self.blocks:
            head += block
            text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
            if text[:1] == b"[":
                return text[1:]
            if text[:1] not in (b"{", b""):
                break
            match = _ARRAY_KEY.search(head)
            if match:
                self._take_metadata(head[len(head) - len(text) : match.end()] + b"]}")
                return head[match.end() :]
            if len(head) > _MAX_HEADER_BYTES:
                break
        raise self._not_a_trace(head)

    def _not_a_trace(self, head: bytes) -> UnreadableError:
        text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
        if not text:
            return UnreadableError(f"{self.path} is empty", next_step="capture again")
        if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
            return UnreadableError(f"{self.path} is UTF-16 text", next_step="convert it to UTF-8")
        if text[:1] != b"{":
            return UnreadableError(f"{self.path} is not JSON", next_step=_NOT_KINETO)
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            return UnreadableError(
                f"{self.path} is not sound JSON and ends before any event", next_step="capture again, or " + _NOT_KINETO
            )
        return UnreadableError(f"{self.path} is JSON but holds no traceEvents", next_step=_NOT_KINETO)

    def _decode(self, piece: bytes) -> tuple[list[Event], tuple[bytes, bool] | None]:
        """The events of a piece that ends at a border, and what a forgiving pass left over, if one was needed."""
        events = decode_events(piece.rstrip().removesuffix(b","))
        if events is not None:
            return events, None
        salvage = salvage_events(piece)
        self.num_broken += salvage.num_broken
        return salvage.events, (salvage.rest, salvage.closed)

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
        salvage = salvage_events(carry)
        self.num_broken += salvage.num_broken
        if salvage.closed:
            self._close(salvage.rest)
        else:
            self.note("the file ends in the midst of its events: what follows the break is missing")
        return salvage.events

    def _close(self, text: bytes) -> None:
        """Take the keys that follow the array; a few megabytes of them at most."""
        for block in self.blocks:
            text += block
            if len(text) > _MAX_TRAILER_BYTES:
                self.note("more than 64 MB follow the events and were not read")
                return
        tail = text.strip().removeprefix(b",")
        if tail not in (b"", b"}"):
            self._take_metadata(b"{" + tail)

    def _take_metadata(self, text: bytes) -> None:
        try:
            found = json.loads(text.decode("utf-8", errors="replace"), strict=False)
        except (ValueError, RecursionError):
            self.note("the keys beside the events are damaged and were not read")
            return
        if isinstance(found, dict):
            self.metadata |= {key: value for key, value in found.items() if key != "traceEvents"}

    def _give_up(self, following: bytes) -> bytes:
        self.num_broken += 1
        return following


def _last_border(block: bytes) -> int | None:
    """Where in `block` its last whole event ends: behind a `},` that another `{` follows."""
    end = len(block)
    while True:
        end = block.rfind(b"{", 0, end)
        if end <= 0:
            return None
        before = block[max(end - 256, 0) : end].rstrip()
        if before.endswith(b",") and before[:-1].rstrip().endswith(b"}"):
            return end
