"""A checkpoint on disk: one file with a checksum, written whole or not at all, and refused where it is damaged.

8 bytes   the magic        8 bytes   length of the payload, little endian        32 bytes   its SHA-256
payload   what torch.save writes; it is read with weights_only, so a file from elsewhere runs no code
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import tempfile
from pathlib import Path
from typing import IO, Any, cast

import torch

from trainer.errors import ENVIRONMENT, UNREADABLE_INPUT, TrainerError

_MAGIC = b"TRNRCKP1"
_HEADER_BYTES = len(_MAGIC) + 8 + 32
_CHUNK_BYTES = 1 << 22
_NAME = re.compile(r"step_(\d+)\.ckpt")


def checkpoint_path(folder: Path, num_steps: int) -> Path:
    """Where the checkpoint after so many steps lies."""
    return folder / f"step_{num_steps:06d}.ckpt"


def find_checkpoint(path: Path) -> Path:
    """`path` itself, or the newest checkpoint of that folder. Raises TrainerError (unreadable input)."""
    if not path.is_dir():
        return path
    steps = {int(match[1]): entry for entry in path.iterdir() if (match := _NAME.fullmatch(entry.name))}
    if not steps:
        raise _refuse(path, "holds no checkpoint", "name the folder that --checkpoints named, or a step_*.ckpt file")
    return steps[max(steps)]


class _Hashing(io.RawIOBase):
    """Passes on what is written, and keeps its hash and length."""

    def __init__(self, file: io.BufferedWriter) -> None:
        super().__init__()
        self._file = file
        self.sha256 = hashlib.sha256()
        self.num_bytes = 0

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        self.sha256.update(content)
        self._file.write(content)
        self.num_bytes += len(content)
        return len(content)


def write_checkpoint_file(document: dict[str, Any], path: Path) -> int:
    """Write under a temporary name, then rename; the number of bytes. Raises TrainerError (environment)."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return _write(document, path)
    except OSError as error:
        raise TrainerError(
            f"{path}: {error.strerror or error}; free space there, or name another folder with --checkpoints",
            ENVIRONMENT,
        ) from error


def _write(document: dict[str, Any], path: Path) -> int:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(bytes(_HEADER_BYTES))
            hashing = _Hashing(file)
            torch.save(document, cast("IO[bytes]", hashing))
            file.seek(0)
            file.write(_MAGIC + hashing.num_bytes.to_bytes(8, "little") + hashing.sha256.digest())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # or the name may be gone after a power cut
    finally:
        os.close(folder)
    return _HEADER_BYTES + hashing.num_bytes


class _Payload(io.RawIOBase):
    """The part of a file behind its header, as a file of its own."""

    def __init__(self, file: io.BufferedReader) -> None:
        super().__init__()
        self._file = file
        self.seek(0)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset + (_HEADER_BYTES if whence == os.SEEK_SET else 0), whence) - _HEADER_BYTES

    def tell(self) -> int:
        return self._file.tell() - _HEADER_BYTES

    def readinto(self, buffer: Any) -> int:
        return self._file.readinto(buffer)


def read_checkpoint_file(path: Path) -> dict[str, Any]:
    """What was written, tensors on the CPU. Raises TrainerError (unreadable input): one line with file and problem."""
    try:
        with open(path, "rb") as file:
            _check(path, file)
            document = torch.load(io.BufferedReader(_Payload(file)), map_location="cpu", weights_only=True)
    except OSError as error:
        raise _refuse(path, error.strerror or str(error), "check the path and its rights") from error
    except TrainerError:
        raise
    except Exception as error:  # its checksum is right, so whoever wrote it wrote something else
        raise _refuse(path, f"cannot be read ({type(error).__name__})", "take a checkpoint of this trainer") from error
    if not isinstance(document, dict):
        raise _refuse(path, f"holds a {type(document).__name__}", "take a checkpoint of this trainer")
    return document


def _check(path: Path, file: io.BufferedReader) -> None:
    """Read the whole file once. Raises TrainerError where it is not what was written."""
    earlier = "resume from an earlier checkpoint"
    header = file.read(_HEADER_BYTES)
    if not header or not header.startswith(_MAGIC[: len(header)]):
        raise _refuse(path, "is no checkpoint", "name a step_*.ckpt file, or the folder that holds them")
    if len(header) < _HEADER_BYTES:
        raise _refuse(path, f"is truncated: {len(header)} bytes", earlier)
    promised, present = int.from_bytes(header[8:16], "little"), os.fstat(file.fileno()).st_size - _HEADER_BYTES
    if present != promised:
        problem = "is truncated" if present < promised else "is too long"
        raise _refuse(path, f"{problem}: {present:,} of {promised:,} bytes behind the header", earlier)
    sha256 = hashlib.sha256()
    while chunk := file.read(_CHUNK_BYTES):
        sha256.update(chunk)
    if sha256.digest() != header[16:]:
        raise _refuse(path, "is damaged: its SHA-256 is not the one in its header", earlier)


def _refuse(path: Path, problem: str, next_step: str) -> TrainerError:
    return TrainerError(f"{path}: {problem}; {next_step}", UNREADABLE_INPUT)
