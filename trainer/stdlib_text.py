"""The default text: the source of the running Python's library, tokenised once, kept in the user's cache folder."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer.errors import ENVIRONMENT, TrainerError
from trainer.shards import Tokens, read_header, write_shard
from trainer.vocabulary import END_OF_TEXT, gpt2_encoding

_FORMAT = 1  # raise it when the shards' content changes for the same files
_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
_MIN_FILE_BYTES = 200  # smaller ones are empty packages
_DOCUMENTS_PER_VALIDATION_DOCUMENT = 20
_NUM_THREADS = 2
_WAIT_SECONDS = 300.0
_ABANDONED_SECONDS = 3600.0  # far longer than any build takes
_NEXT_STEP = "set XDG_CACHE_HOME to a folder with room that can be written, or give --data a glob of .bin shards"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextShards:
    train: Path
    validation: Path

    def is_whole(self) -> bool:
        """Whether both are there with a good header and all the tokens that it promises."""
        try:
            return all(read_header(path) > 0 for path in (self.train, self.validation))
        except TrainerError:
            return False


def stdlib_shards(*, is_builder: bool) -> TextShards:
    """The shards of the standard library's text; made now, where missing or damaged, if `is_builder`, else waited for.

    Raises TrainerError (environment) where there is no source text, the cache folder cannot be written, or the
    builder does not finish within five minutes.
    """
    files = _source_files()
    folder = _cache_folder() / _key(files)
    shards = TextShards(train=folder / "train.bin", validation=folder / "val.bin")
    if is_builder:
        _remove_abandoned(folder.parent)
        if not shards.is_whole():
            _build(files, folder)
    deadline = time.monotonic() + _WAIT_SECONDS
    while not shards.is_whole():
        if time.monotonic() > deadline:
            raise TrainerError(
                f"{folder} was not made in {_WAIT_SECONDS:.0f} s: see the log of local rank 0", ENVIRONMENT
            )
        time.sleep(0.1)
    return shards


def _source_files() -> list[Path]:
    """Every source file, in an order that mixes the packages and is the same on every machine."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [
        path
        for path in root.rglob("*.py")
        if not _SKIPPED_FOLDERS.intersection(path.relative_to(root).parts)
        and path.is_file()  # no link to nowhere
        and path.stat().st_size >= _MIN_FILE_BYTES
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
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError as error:  # neither HOME nor an entry for this user
        raise TrainerError(f"{error}; {_NEXT_STEP}", ENVIRONMENT) from error
    return Path(home) / "speedprof" / "tokens"


def _build(files: list[Path], folder: Path) -> None:
    """Tokenise into a folder of another name, then put it in place; several builders at once agree on every byte."""
    if os.path.exists(folder):
        print(f"{folder} is damaged or not whole: tokenising the text again", flush=True)
    with _explaining_failures(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        owner = f"{socket.gethostname()}.{os.getpid()}"
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.{owner}."))
    try:
        documents = _tokenise(files)
        with _explaining_failures(folder.parent):
            write_shard(np.concatenate(documents[1::_DOCUMENTS_PER_VALIDATION_DOCUMENT]), temporary / "val.bin")
            del documents[1::_DOCUMENTS_PER_VALIDATION_DOCUMENT]
            write_shard(np.concatenate(documents), temporary / "train.bin")
            _put_in_place(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _explaining_failures(folder: Path) -> Iterator[None]:
    """A full disk, a read-only one, a folder of somebody else: one line that says what to do."""
    try:
        yield
    except OSError as error:
        problem = error.strerror or str(error)
        raise TrainerError(f"{folder}: cannot be written ({problem}); {_NEXT_STEP}", ENVIRONMENT) from error


def _put_in_place(temporary: Path, folder: Path) -> None:
    """Rename the folder; where one is there already, damaged or another builder's, its files one by one."""
    try:
        temporary.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        for path in temporary.iterdir():
            path.replace(folder / path.name)


def _remove_abandoned(parent: Path) -> None:
    """Remove what killed builders left behind, as far as this user may."""
    with suppress(OSError):
        for folder in parent.glob(".stdlib-*"):
            if _is_abandoned(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _is_abandoned(folder: Path) -> bool:
    """Whether its builder is gone: known by its pid on this host, and by the folder's age on another."""
    owner = re.search(rf"\.{re.escape(socket.gethostname())}\.(\d{{1,9}})\.\w+$", folder.name)
    try:
        if owner is not None:
            os.kill(int(owner[1]), 0)
        return time.time() - folder.stat().st_mtime > _ABANDONED_SECONDS
    except ProcessLookupError:
        return True
    except OSError:  # somebody else's live process, or a folder that has just gone
        return False


def _tokenise(files: list[Path]) -> list[Tokens]:
    """Ids of every file, [num_tokens] uint16, each after <|endoftext|>."""
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in files]
    documents = gpt2_encoding().encode_ordinary_batch(texts, num_threads=_NUM_THREADS)
    return [np.array([END_OF_TEXT, *ids], dtype=np.uint16) for ids in documents]
