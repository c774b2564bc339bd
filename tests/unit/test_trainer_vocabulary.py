"""GPT-2's ids, from files on this machine, with the network out of reach."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer import vocabulary
from trainer.errors import ENVIRONMENT, TrainerError
from trainer.vocabulary import gpt2_encoding


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse(*_: object) -> None:
        raise AssertionError("the vocabulary touched the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR", raising=False)
    gpt2_encoding.cache_clear()
    yield
    gpt2_encoding.cache_clear()


def test_known_ids() -> None:
    encoding = gpt2_encoding()
    assert encoding.encode_ordinary("Hello world") == [15496, 995]
    assert encoding.encode_ordinary("    return x\n") == [220, 220, 220, 1441, 2124, 198]
    assert encoding.encode("<|endoftext|>", allowed_special="all") == [50256]
    assert encoding.n_vocab == 50257
    text = "def f(x):\n\treturn 'ä€😀'  # tab\r\n"
    assert encoding.decode(encoding.encode_ordinary(text)) == text


def test_no_package_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "_PACKAGE", "no_such_package_here")
    with pytest.raises(TrainerError, match="not on this machine: pip install") as caught:
        gpt2_encoding()
    assert caught.value.exit_code == ENVIRONMENT
    assert "\n" not in caught.value.message


def test_a_file_with_another_hash_is_named_and_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    damaged = tmp_path / "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6"
    damaged.write_text("{}")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    assert gpt2_encoding().n_vocab == 50257, "the package's file should serve"
    gpt2_encoding.cache_clear()
    monkeypatch.setattr(vocabulary, "_PACKAGE", "no_such_package_here")
    with pytest.raises(TrainerError, match=r"6c7ea1a7e38e3a7f062df639a5b80947f075ffe6 has the wrong SHA-256"):
        gpt2_encoding()


def test_tiktokens_own_cache_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    content = vocabulary._read_encoder_file()
    (tmp_path / "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6").write_bytes(content)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(vocabulary, "_PACKAGE", "no_such_package_here")
    assert gpt2_encoding().encode_ordinary("Hello world") == [15496, 995]
