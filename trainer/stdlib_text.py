"""The default text: the source of the running Python's library, tokenised once, kept in the user's cache folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer.errors import ENVIRONMENT, TrainerError
from trainer.shards import Tokens, write_shard
from trainer.vocabulary import END_OF_TEXT, gpt2_encoding

_FORMAT = 1  # raise it when the shards' content changes for the same files
_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
_MIN_FILE_BYTES = 200  # smaller ones are empty packages
_DOCUMENTS_PER_VALIDATION_DOCUMENT = 20
_NUM_THREADS = 2
_WAIT_SECONDS = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TextShards:
    train: Path
    validation: Path


def stdlib_shards(*, is_builder: bool) -> TextShards:
    """The shards of the standard library's text; made now if `is_builder`, else waited for.

    Raises TrainerError (environment) where there is no source text, the cache folder cannot be written, or the
    builder does not finish within five minutes.
    """
    files = _source_files()
    folder = _cache_folder() / _key(files)
    if is_builder and not folder.is_dir():
        _build(files, folder)
    deadline = time.monotonic() + _WAIT_SECONDS
    while not folder.is_dir():
        if time.monotonic() > deadline:
            raise TrainerError(
                f"{folder} was not made in {_WAIT_SECONDS:.0f} s: see the log of local rank 0", ENVIRONMENT
            )
        time.sleep(0.1)
    return TextShards(train=folder / "train.bin", validation=folder / "val.bin")


def _source_files() -> list[Path]:
    """Every source file, in an order that mixes the packages and is the same on every machine."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [
        path
        for path in root.rglob("*.py")
        if not _SKIPPED_FOLDERS.intersection(path.relative_to(root).parts) and path.stat().st_size >= _MIN_FILE_BYTES
    ]
    if len(files) < 2 * _DOCUMENTS_PER_VALIDATION_DOCUMENT:
        raise TrainerError(f"{root} holds no Python source to train on: give --data a glob of .bin shards", ENVIRONMENT)
    return sorted(files, key=lambda path: hashlib.sha256(str(path.relative_to(root)).encode()).digest())


def _key(files: list[Path]) -> str:
    """A name for this text: another Python or another set of files gets another."""
    listing = "\n".join(f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files)
    digest = hashlib.sha256(f"{_FORMAT}\n{sys.version}\n{listing}".encode()).hexdigest()
    return f"stdlib-{sys.version_info.major}.{sys.version_info.minor}-{digest[:16]}"


def _cache_folder() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "speedprof" / "tokens"


def _build(files: list[Path], folder: Path) -> None:
    """Tokenise into a folder of another name, then rename it; the first of several builders wins, the others agree."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    except OSError as error:
        raise TrainerError(
            f"{folder.parent}: {error.strerror}; set XDG_CACHE_HOME to a folder that can be written", ENVIRONMENT
        ) from error
    try:
        documents = _tokenise(files)
        write_shard(np.concatenate(documents[1::_DOCUMENTS_PER_VALIDATION_DOCUMENT]), temporary / "val.bin")
        del documents[1::_DOCUMENTS_PER_VALIDATION_DOCUMENT]
        write_shard(np.concatenate(documents), temporary / "train.bin")
        _rename_unless_there(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _rename_unless_there(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError:
        if not target.is_dir():
            raise


def _tokenise(files: list[Path]) -> list[Tokens]:
    """Ids of every file, [num_tokens] uint16, each after <|endoftext|>."""
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in files]
    documents = gpt2_encoding().encode_ordinary_batch(texts, num_threads=_NUM_THREADS)
    return [np.array([END_OF_TEXT, *ids], dtype=np.uint16) for ids in documents]
