"""A file's text in blocks, unpacked where it is gzip. Damage ends the text early; it does not lose what came before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from isal import isal_zlib

from speedprof.errors import UnreadableError
from speedprof.units import format_bytes

BLOCK_BYTES = 1 << 20
# The package's stubs call this class an instance.
_DAMAGED = cast("type[Exception]", isal_zlib.error)
_GZIP_MAGIC = b"\x1f\x8b"
# A ratio means nothing yet in the first megabytes: headers and padding compress well.
_RATIO_FROM_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadLimits:
    """How far a file may unfold. Real traces unpack 10 to 20 times; what goes far beyond is a trap or a mistake."""

    max_bytes: int = 64 << 30
    max_ratio: int = 100


def read_blocks(path: Path, limits: ReadLimits, note: Callable[[str], None]) -> Iterator[bytes]:
    """The text of `path` in blocks of about a megabyte; gzip is known by its first bytes, not by the name.

    Raises UnreadableError for what is no readable file or unfolds beyond `limits`; tells `note` of damage.
    """
    try:
        with path.open("rb") as file:
            packed = iter(lambda: file.read(BLOCK_BYTES), b"")
            first = next(packed, b"")
            blocks = _with_first(first, packed)
            yield from _unzip(path, blocks, limits, note) if first[:2] == _GZIP_MAGIC else _limit(path, blocks, limits)
    except IsADirectoryError:
        raise UnreadableError(f"{path} is a folder", next_step="name a trace file") from None
    except FileNotFoundError:
        raise UnreadableError(f"{path} does not exist", next_step="check the path") from None
    except OSError as error:
        raise UnreadableError(
            f"{path} cannot be read ({error.strerror or error})", next_step="check its permissions and the disk"
        ) from None


def _with_first(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    if first:
        yield first
    yield from rest


def _limit(path: Path, blocks: Iterator[bytes], limits: ReadLimits) -> Iterator[bytes]:
    num_bytes = 0
    for block in blocks:
        num_bytes += len(block)
        _refuse_beyond(path, limits, num_bytes, num_bytes)
        yield block


def _unzip(path: Path, blocks: Iterator[bytes], limits: ReadLimits, note: Callable[[str], None]) -> Iterator[bytes]:
    """The members of a gzip file, one after the other, in blocks no larger than BLOCK_BYTES."""
    member = isal_zlib.decompressobj(wbits=31)
    num_packed = num_bytes = 0
    fresh = True
    try:
        for block in blocks:
            num_packed += len(block)
            pending = block
            while pending:
                text = member.decompress(pending, BLOCK_BYTES)
                num_bytes += len(text)
                _refuse_beyond(path, limits, num_bytes, num_packed)
                if text:
                    yield text
                pending = member.unconsumed_tail
                if member.eof:
                    # Some tools append members; bytes of zero after the last one are padding.
                    pending = member.unused_data.lstrip(b"\0")
                    member = isal_zlib.decompressobj(wbits=31)
                    fresh = True
                else:
                    fresh = False
        if num_packed and not fresh:
            tail = member.flush()
            if tail:
                yield tail
            if not member.eof:
                note("the gzip stream ends early: what follows the break is missing")
    except _DAMAGED as error:
        note(f"the gzip stream is damaged after {format_bytes(num_bytes)} of text ({error}): the rest is missing")


def _refuse_beyond(path: Path, limits: ReadLimits, num_bytes: int, num_packed: int) -> None:
    if num_bytes > limits.max_bytes:
        raise UnreadableError(
            f"{path} holds more than {format_bytes(limits.max_bytes)} of text", next_step="trace fewer steps"
        )
    if num_bytes > _RATIO_FROM_BYTES and num_bytes > limits.max_ratio * num_packed:
        raise UnreadableError(
            f"{path} unpacks to more than {limits.max_ratio} times its size",
            next_step="check where it comes from, or unpack it yourself",
        )
