"""One event of a Kineto file, decoded from JSON: fast where the text is sound, forgiving where it is not."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any

import msgspec
import numpy as np

from speedprof.trace.intervals import Int64s
from speedprof.units import NS_PER_US

# Stands for an absent number between decoding and the finished table, where it becomes null.
ABSENT = -(2**63)

# Up to this many µs the spacing of float64 is at most 2**-10 µs: a float is within 0.49 ns of the three decimals that
# were written. Kineto's base time keeps ts below it.
_EXACT_FLOAT_US = 2.0**43

Int64 = Annotated[int, msgspec.Meta(ge=ABSENT, le=2**63 - 1)]
ExactFloat = Annotated[float, msgspec.Meta(le=_EXACT_FLOAT_US)]


class Args(msgspec.Struct, gc=False, frozen=True):
    """The arguments of an event that tables are made of; all others are skipped while decoding."""

    correlation: Int64 = ABSENT
    stream: int | str | None = None
    device: int | str | None = None
    external_id: Int64 = msgspec.field(default=ABSENT, name="External id")
    collective: str | None = msgspec.field(default=None, name="Collective name")
    in_elements: Int64 = msgspec.field(default=ABSENT, name="In msg nelems")
    out_elements: Int64 = msgspec.field(default=ABSENT, name="Out msg nelems")
    group_size: Int64 = msgspec.field(default=ABSENT, name="Group size")
    dtype: str | None = None
    process_group: str | None = msgspec.field(default=None, name="Process Group Name")
    group_ranks: str | None = msgspec.field(default=None, name="Process Group Ranks")
    seq: Int64 = msgspec.field(default=ABSENT, name="Seq")


_NO_ARGS = Args()


class Event(msgspec.Struct, gc=False):
    """An event; `ts` and `dur` are µs after the file's base time, and text where a float would lose digits."""

    ph: str = ""
    cat: str | None = None
    name: str = ""
    tid: int | str = 0
    ts: int | ExactFloat | str | None = None
    dur: int | ExactFloat | str | None = None
    args: Args = msgspec.field(default_factory=lambda: _NO_ARGS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Salvage:
    """What a forgiving pass got out of a piece of an event array.

    `rest` is the text from which on nothing could be told yet; `closed` says that the array ended before it.
    `num_skipped` characters could not be read as JSON.
    """

    events: list[Event]
    num_broken: int
    num_skipped: int
    rest: bytes
    closed: bool


_decode_list = msgspec.json.Decoder(list[Event]).decode


def decode_events(piece: bytes | memoryview) -> list[Event] | None:
    """The events of `piece`, the whole elements of a JSON array, or None where it is not that or loses digits."""
    try:
        return _decode_list(b"".join((b"[", piece, b"]")))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def to_ns(values: Sequence[int | float | str | None]) -> tuple[Int64s, np.ndarray[Any, np.dtype[np.bool_]]]:
    """Times in µs as whole ns, and which of them are sound: neither absent, negative, infinite nor NaN nor absurd.

    Exact where the text has three decimals, as Kineto writes them. What is not sound is 0.
    """
    try:
        us = np.array(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        us = np.array([np.nan], dtype=np.float64)
    # Every whole number of µs below 2**53 is a float, but a thousand times it may not be.
    if len(us) != len(values) or not (np.abs(us) <= _EXACT_FLOAT_US).all():
        if all(type(value) is int and 0 <= value <= MAX_US for value in values):
            return np.array(values, dtype=np.int64) * NS_PER_US, np.ones(len(values), dtype=np.bool_)
        exact = [_exact_ns(value) for value in values]
        sound = np.array([ns is not None for ns in exact], dtype=np.bool_)
        return np.array([0 if ns is None else ns for ns in exact], dtype=np.int64), sound
    sound = us >= 0
    us = np.where(sound, us, 0)
    # A thousand times the whole would round away the last ns; the fraction is exact and small, and so rounds right.
    whole = np.floor(us)
    return whole.astype(np.int64) * NS_PER_US + np.rint((us - whole) * NS_PER_US).astype(np.int64), sound


# The year 2096 in µs since 1970: a time beyond it is an error, and a base time and a time below it add up in int64.
MAX_US = 4_000_000_000_000_000


def _exact_ns(value: int | float | str | None) -> int | None:
    if type(value) is int:
        return value * NS_PER_US if 0 <= value <= MAX_US else None
    if value is None:
        return None
    try:
        us = Decimal(value)
        return int((us * NS_PER_US).to_integral_value()) if 0 <= us <= MAX_US else None
    except ArithmeticError:
        return None


class _Literal(str):
    """A number of the text that is not whole, as written."""

    __slots__ = ()


_forgiving = json.JSONDecoder(strict=False, parse_float=_Literal, parse_constant=_Literal)
_GAP = re.compile(r"[\s,]*")
_NEXT_EVENT = re.compile(r",\s*(?=\{)")
# An event that fails to parse this close to the end of a piece may only be cut by it.
_LARGE_EVENT_CHARS = 1 << 16
# How many characters, for each one that there is, may be read in vain before the rest of a piece is given up: text
# made to be read again and again takes minutes a megabyte otherwise. What a failure itself takes counts as so many.
_MOST_VAIN_READING = 20
_FAILURE_CHARS = 500
_DEEP_NESTING_CHARS = 10_000


def salvage_events(piece: bytes, *, is_last: bool) -> Salvage:
    """The events of a damaged `piece` one by one: control characters, NaN and unknown types pass or cost one event.

    Far slower than decode_events, and used only for the piece of about a megabyte that is damaged. What is cut at
    the end is left as `rest`, unless the piece `is_last`.
    """
    text = piece.decode("utf-8", errors="replace")
    events: list[Event] = []
    num_broken = num_skipped = 0
    budget = _MOST_VAIN_READING * len(text)
    at = _skip_gap(text, 0)
    while at < len(text) and text[at] != "]":
        try:
            value, end = _forgiving.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            border = _NEXT_EVENT.search(text, at)
            if border is None or (not is_last and len(text) - at < _LARGE_EVENT_CHARS):
                break
            budget -= _chars_read(error, at)
            resume = border.end() if budget > 0 else len(text)
            num_broken += 1
            num_skipped += resume - at
            # An error counts the lines of all text before it, so what is done with goes.
            text, at = (text[resume:], 0) if resume > _LARGE_EVENT_CHARS else (text, resume)
            continue
        event = _to_event(value)
        if event is None:
            num_broken += 1
        else:
            events.append(event)
        at = _skip_gap(text, end)
    closed = at < len(text) and text[at] == "]"
    rest = text[at + closed :].encode()
    return Salvage(events=events, num_broken=num_broken, num_skipped=num_skipped, rest=rest, closed=closed)


def _chars_read(error: ValueError | RecursionError, at: int) -> int:
    """How many characters it took to fail at the event that begins at `at`."""
    return _FAILURE_CHARS + (error.pos - at if isinstance(error, json.JSONDecodeError) else _DEEP_NESTING_CHARS)


def _skip_gap(text: str, at: int) -> int:
    gap = _GAP.match(text, at)
    return at if gap is None else gap.end()


def _to_event(value: object) -> Event | None:
    if not isinstance(value, dict):
        return None
    args = value.get("args")
    if args is None:
        value.pop("args", None)
    elif isinstance(args, dict):
        value["args"] = {key: sound_text(one) if isinstance(one, str) else one for key, one in args.items()}
    event = _convert(value, Event)
    if event is None and "args" in value:
        # An argument of a wrong type costs itself, not the time of its event.
        event = _convert({**value, "args": _sound_args(args)}, Event)
    return event if isinstance(event, Event) else None


_ARG_TYPES = {field.encode_name: field.type for field in msgspec.structs.fields(Args)}


def _sound_args(args: object) -> dict[str, object]:
    """The arguments that make sense: numbers also as text, and lists as their text."""
    given = args if isinstance(args, dict) else {}
    kept = {}
    for name, kind in _ARG_TYPES.items():
        value = given.get(name)
        as_text = json.dumps(value) if isinstance(value, list) and kind == str | None else None
        for candidate in (value, as_text, _as_number(value)):
            sound = None if candidate is None else _convert(candidate, kind)
            if sound is not None:
                kept[name] = sound
                break
    return kept


def _as_number(value: object) -> int | None:
    try:
        number = Decimal(value) if isinstance(value, str) and len(value) < _LONGEST_NUMBER else None
        return int(number) if number is not None and number == number.to_integral_value() else None
    except ArithmeticError:
        return None


_LONGEST_NUMBER = 40


def _convert(value: object, kind: Any) -> object | None:
    try:
        converted: object = msgspec.convert(value, kind)
    except (msgspec.ValidationError, OverflowError, RecursionError, UnicodeError):
        return None
    return converted


def sound_text(text: str) -> str:
    """The text without lone surrogates, which no encoding can carry; control characters are data and stay."""
    return text.encode("utf-8", errors="replace").decode()
