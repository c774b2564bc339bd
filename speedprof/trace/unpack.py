"""A file's text in blocks, unpacked where it is gzip. Damage ends the text early; it does not lose what came before."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import cast

from isal import isal_zlib

from speedprof.errors import BeyondLimitError, UnreadableError
from speedprof.trace.read_log import ReadLog
from speedprof.units import format_bytes, format_percent

BLOCK_BYTES = 1 << 20
# Small, since it is how well a damaged place can be told; it unpacks to about as much as a block.
PACKED_BYTES = 1 << 16
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


def read_blocks(path: Path, limits: ReadLimits, log: ReadLog) -> Iterator[bytes]:
    """The text of `path` in blocks of about a megabyte; gzip is known by its first bytes, not by the name.

    Raises UnreadableError for what is no readable file or unfolds beyond `limits`; tells `log` of damage.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            _require_file(path, file.fileno())
            first = file.read(len(_GZIP_MAGIC))
            is_gzip = first == _GZIP_MAGIC
            rest = iter(lambda: file.read(PACKED_BYTES if is_gzip else BLOCK_BYTES), b"")
            blocks = chain([first] if first else [], rest)
            size = os.fstat(file.fileno()).st_size
            text = _unzip(path, blocks, size, limits, log) if is_gzip else _limit(path, blocks, limits)
            for block in text:
                log.num_text_bytes += len(block)
                yield block
    except IsADirectoryError:
        raise UnreadableError(f"{path} is a folder", next_step="name a trace file") from None
    except FileNotFoundError:
        raise UnreadableError(f"{path} does not exist", next_step="check the path") from None
    except OSError as error:
        raise UnreadableError(
            f"{path} cannot be read ({error.strerror or error})", next_step="check its permissions and the disk"
        ) from None


def _open_at_once(path: str, flags: int) -> int:
    """Open without waiting: a named pipe that nobody writes to would keep us for ever."""
    return os.open(path, flags | os.O_NONBLOCK)


def _require_file(path: Path, number: int) -> None:
    if not stat.S_ISREG(os.fstat(number).st_mode):
        raise UnreadableError(f"{path} is a pipe or a device", next_step="write the trace to a file and name that")


def _limit(path: Path, blocks: Iterator[bytes], limits: ReadLimits) -> Iterator[bytes]:
    num_bytes = 0
    for block in blocks:
        num_bytes += len(block)
        _refuse_beyond(path, limits, num_bytes, num_bytes)
        yield block


def _unzip(path: Path, blocks: Iterator[bytes], size: int, limits: ReadLimits, log: ReadLog) -> Iterator[bytes]:
    """The members of a gzip file of `size` bytes, one after the other, in blocks no larger than BLOCK_BYTES."""
    member = isal_zlib.decompressobj(wbits=31)
    num_packed = num_bytes = 0
    pending = b""
    is_fresh = True
    try:
        for block in blocks:
            num_packed += len(block)
            pending += block
            while pending:
                if is_fresh:
                    # Some tools append members; bytes of zero after the last one are padding.
                    pending = pending.lstrip(b"\0")
                    if len(pending) < len(_GZIP_MAGIC):
                        break
                    if not pending.startswith(_GZIP_MAGIC):
                        _note_trailing(len(pending) + sum(map(len, blocks)), log)
                        return
                text = member.decompress(pending, BLOCK_BYTES)
                num_bytes += len(text)
                _refuse_beyond(path, limits, num_bytes, num_packed)
                if text:
                    yield text
                is_fresh = member.eof
                pending = member.unused_data if is_fresh else member.unconsumed_tail
                if is_fresh:
                    member = isal_zlib.decompressobj(wbits=31)
        if is_fresh:
            _note_trailing(len(pending), log)
            return
        if tail := member.flush():
            yield tail
        if not member.eof:
            log.lose(
                f"the gzip stream ends early, after {format_bytes(num_bytes)} of text: "
                "what follows the break is missing, and nothing says how much that is"
            )
    except _DAMAGED as error:
        log.lose(_describe_damage(str(error), num_packed - len(pending), size))


def _note_trailing(num_bytes: int, log: ReadLog) -> None:
    if num_bytes:
        log.note(f"{format_bytes(num_bytes)} that are not gzip follow the trace in its file and were not read")


def _describe_damage(error: str, at: int, size: int) -> str:
    if "checksum" in error:
        return "the gzip stream is damaged: its text is not what was written, as the checksum shows"
    share = format_percent((size - at) / size)
    return f"the gzip stream is damaged {format_bytes(at)} into the file: the rest, {share} of the file, is missing"


def _refuse_beyond(path: Path, limits: ReadLimits, num_bytes: int, num_packed: int) -> None:
    if num_bytes > limits.max_bytes:
        raise BeyondLimitError(
            f"{path} holds more than {format_bytes(limits.max_bytes)} of text",
            next_step="allow more with --max-bytes, or trace fewer steps",
        )
    if num_bytes > _RATIO_FROM_BYTES and num_bytes > limits.max_ratio * num_packed:
        raise BeyondLimitError(
            f"{path} unpacks to more than {limits.max_ratio} times its size",
            next_step="check where it comes from, or unpack it yourself",
        )
