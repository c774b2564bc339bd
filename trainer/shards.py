"""Token shards in the public speedrun's format.

256 int32: magic 20240520, version 1, number of tokens, zeros
then that many uint16 token ids, little-endian
"""

from __future__ import annotations

import glob
import os
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trainer.errors import UNREADABLE_INPUT, TrainerError
from trainer.vocabulary import VOCABULARY_SIZE

MAGIC = 20240520
VERSION = 1
HEADER_BYTES = 256 * 4
_TOKEN_BYTES = 2
_REMAKE = "download or tokenise the shard again"

Tokens = npt.NDArray[np.uint16]


def find_shards(pattern: str) -> list[Path]:
    """The files that `pattern` names, sorted. Raises TrainerError (unreadable input) where there is none."""
    names = sorted(glob.glob(pattern, recursive=True))
    paths = [Path(name) for name in names if os.path.isfile(name)]
    if not paths and names:
        raise TrainerError(
            f"{names[0]}: is a folder; give a quoted glob of the files in it: --data '{Path(names[0]) / '*.bin'}'",
            UNREADABLE_INPUT,
        )
    if not paths:
        raise TrainerError(
            f"{pattern}: no such file; give --data a path or quoted glob of .bin shards", UNREADABLE_INPUT
        )
    return paths


def read_shard(path: Path) -> Tokens:
    """All token ids of a shard, [num_tokens] uint16, mapped, not loaded.

    Raises TrainerError (unreadable input) for a file that cannot be read, is no shard, is cut short or holds ids
    that GPT-2's vocabulary does not have.
    """
    num_tokens = read_header(path)
    tokens: Tokens = np.memmap(path, dtype="<u2", mode="r", offset=HEADER_BYTES, shape=(num_tokens,))
    largest = int(tokens.max())
    if largest >= VOCABULARY_SIZE:
        raise _bad_shard(
            path, f"holds token id {largest}, GPT-2 has {VOCABULARY_SIZE} ids", "tokenise with GPT-2's encoding"
        )
    return tokens


def read_header(path: Path) -> int:
    """The number of tokens, checked against the file's size. Raises TrainerError as `read_shard` does."""
    header, num_bytes = _read_first_bytes(path)
    if len(header) < HEADER_BYTES:
        raise _bad_shard(path, f"is {len(header)} bytes long, shorter than a shard's header", _REMAKE)
    magic, version, num_tokens = (int(number) for number in np.frombuffer(header, dtype="<i4", count=3))
    if magic != MAGIC:
        raise _bad_shard(path, f"is no token shard (magic {magic}, expected {MAGIC})", "give --data .bin shards alone")
    if version != VERSION:
        raise _bad_shard(path, f"has shard version {version}, expected {VERSION}", _REMAKE)
    if num_tokens < 1:
        raise _bad_shard(path, f"holds {num_tokens} tokens", _REMAKE)
    present = (num_bytes - HEADER_BYTES) // _TOKEN_BYTES
    if present < num_tokens:
        raise _bad_shard(path, f"holds {present} of the {num_tokens} tokens that its header promises", _REMAKE)
    return num_tokens


def _read_first_bytes(path: Path) -> tuple[bytes, int]:
    """The header's bytes, as many as there are, and the size of the file."""
    try:
        with open(path, "rb") as file:
            return file.read(HEADER_BYTES), os.fstat(file.fileno()).st_size
    except OSError as error:
        raise _bad_shard(path, error.strerror or str(error), "check the path and its rights") from error


def _bad_shard(path: Path, problem: str, next_step: str) -> TrainerError:
    return TrainerError(f"{path}: {problem}; {next_step}", UNREADABLE_INPUT)


def write_shard(tokens: Tokens, path: Path) -> None:
    """Write `tokens` ([num_tokens] uint16) under a temporary name, then rename, so that no reader sees half a shard."""
    header = np.zeros(256, dtype="<i4")
    header[:3] = MAGIC, VERSION, len(tokens)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(header.tobytes())
            file.write(tokens.astype("<u2").tobytes())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
