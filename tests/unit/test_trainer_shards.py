"""The shard format keeps tokens exactly, and every kind of bad file gets one line with its name."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from trainer.errors import UNREADABLE_INPUT, TrainerError
from trainer.shards import HEADER_BYTES, find_shards, read_shard, write_shard


def _shard(folder: Path, *, header: tuple[int, ...] = (20240520, 1, 3), ids: tuple[int, ...] = (50256, 1, 2)) -> Path:
    words = np.zeros(256, dtype="<i4")
    words[: len(header)] = header
    path = folder / "shard.bin"
    path.write_bytes(words.tobytes() + np.array(ids, dtype="<u2").tobytes())
    return path


def test_round_trip(tmp_path: Path) -> None:
    tokens = np.array([50256, 0, 7, 50255], dtype=np.uint16)
    write_shard(tokens, tmp_path / "a.bin")
    np.testing.assert_array_equal(read_shard(tmp_path / "a.bin"), tokens)
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_a_shard_is_written_as_published(tmp_path: Path) -> None:
    write_shard(np.array([50256, 1, 2], dtype=np.uint16), tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == _shard(tmp_path).read_bytes()


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.bin").mkdir()
    with pytest.raises(OSError):  # noqa: PT011  # which one depends on the system
        write_shard(np.array([1], dtype=np.uint16), tmp_path / "a.bin")
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


@pytest.mark.parametrize(
    ("header", "ids", "says"),
    [
        ((20240521, 1, 3), (50256, 1, 2), "is no token shard (magic 20240521"),
        ((20240520, 2, 3), (50256, 1, 2), "has shard version 2, expected 1"),
        ((20240520, 1, 4), (50256, 1, 2), "holds 3 of the 4 tokens"),
        ((20240520, 1, 0), (), "holds 0 tokens"),
        ((20240520, 1, -5), (), "holds -5 tokens"),
        ((20240520, 1, 3), (50256, 50257, 2), "holds token id 50257"),
    ],
)
def test_a_bad_shard_is_named(tmp_path: Path, header: tuple[int, ...], ids: tuple[int, ...], says: str) -> None:
    path = _shard(tmp_path, header=header, ids=ids)
    _assert_refused(path, says)


def test_a_file_shorter_than_a_header_is_named(tmp_path: Path) -> None:
    path = tmp_path / "short.bin"
    path.write_bytes(bytes(HEADER_BYTES - 1))
    _assert_refused(path, "is 1023 bytes long")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    _assert_refused(tmp_path / "gone.bin", "No such file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    path = _shard(tmp_path)
    path.chmod(0)
    _assert_refused(path, "Permission denied")


def _assert_refused(path: Path, says: str) -> None:
    with pytest.raises(TrainerError) as caught:
        read_shard(path)
    assert str(path) in caught.value.message
    assert says in caught.value.message
    assert ";" in caught.value.message, "no next step"
    assert "\n" not in caught.value.message
    assert caught.value.exit_code == UNREADABLE_INPUT


def test_shards_are_found_in_order(tmp_path: Path) -> None:
    for name in ("b_2.bin", "b_1.bin"):
        (tmp_path / name).touch()
    assert [path.name for path in find_shards(str(tmp_path / "b_*.bin"))] == ["b_1.bin", "b_2.bin"]


def test_a_glob_of_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match="no such file") as caught:
        find_shards(str(tmp_path / "*.bin"))
    assert caught.value.exit_code == UNREADABLE_INPUT


@pytest.mark.parametrize("pattern", ["", "?????"])
def test_a_folder_is_named_with_the_glob_to_give(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "cards").mkdir()
    folder = tmp_path / "cards"
    with pytest.raises(TrainerError) as caught:
        find_shards(str(tmp_path / pattern) if pattern else str(folder))
    assert caught.value.message.startswith(f"{folder}: is a folder; ")
    assert caught.value.message.endswith(f"--data '{folder / '*.bin'}'")
    assert caught.value.exit_code == UNREADABLE_INPUT
