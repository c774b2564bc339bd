"""Rows hold whole documents from their first token on, cut to a length; ranks never share a row."""

from __future__ import annotations

import errno
import itertools
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from trainer import stdlib_text
from trainer.config import TrainConfig, preset, with_settings
from trainer.data import MicroBatch, find_documents, micro_batches, pack_documents
from trainer.errors import ENVIRONMENT, UNREADABLE_INPUT, WRONG_USAGE, TrainerError
from trainer.shards import Tokens, read_shard, write_shard
from trainer.vocabulary import END_OF_TEXT

CPU = torch.device("cpu")


def _config(*settings: str) -> TrainConfig:
    sizes = ["micro_batch_tokens=32", "max_document_tokens=12", "max_documents=16"]
    return with_settings(preset("tiny_cpu"), [*sizes, *settings])


def _write(path: Path, lengths: list[int]) -> Path:
    """Documents whose tokens tell the document (hundreds) and the position (ones), after the first."""
    documents = [
        [END_OF_TEXT, *(100 * number + position for position in range(1, length))]
        for number, length in enumerate(lengths, start=1)
    ]
    write_shard(np.array(list(itertools.chain(*documents)), dtype=np.uint16), path)
    return path


def _rows(path: Path, config: TrainConfig, count: int, *, rank: int = 0, world_size: int = 1) -> list[MicroBatch]:
    rows = micro_batches([path], config, rank=rank, world_size=world_size, device=CPU)
    return list(itertools.islice(rows, count))


def test_documents_are_found_and_cut() -> None:
    tokens = np.array([5, END_OF_TEXT, 1, END_OF_TEXT, END_OF_TEXT, 1, 2, 3], dtype=np.uint16)
    starts, lengths = find_documents(tokens, 3)
    assert starts.tolist() == [1, 3, 4]
    assert lengths.tolist() == [2, 1, 3]


def test_packing_drops_the_remainder() -> None:
    lengths = np.array([3, 3, 3, 5, 1, 4])
    assert list(pack_documents(lengths, 5)) == [(0, 2), (2, 4), (4, 6)]
    assert list(pack_documents(lengths, 6)) == [(0, 2), (2, 4)]
    assert list(pack_documents(lengths, 100)) == []


def test_rows_are_made_of_document_beginnings(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.bin", [3, 40, 9, 5, 17, 8, 12, 6, 30, 7] * 3)
    for row in _rows(path, _config(), 4):
        tokens, starts = row.tokens_T.tolist(), row.cu_seqlens.tolist()
        assert (len(tokens), len(starts)) == (32, 17)
        assert row.tokens_T.dtype == row.cu_seqlens.dtype == torch.int32
        assert row.targets_T.dtype == torch.int64
        assert row.targets_T.tolist()[:-1] == tokens[1:]
        assert [n for n, token in enumerate(tokens) if token == END_OF_TEXT] == [s for s in starts if s < 32]
        for start, end in itertools.pairwise(s for s in dict.fromkeys(starts)):
            assert end - start <= 12
            assert [token % 100 for token in tokens[start + 1 : end]] == list(range(1, end - start))


def test_ranks_share_the_rows_of_one_process(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.bin", [9, 14, 5, 20] * 20)
    alone = _rows(path, _config(), 6)
    shared = [_rows(path, _config(), 2, rank=rank, world_size=3) for rank in range(3)]
    for number, row in enumerate(alone):
        assert torch.equal(row.tokens_T, shared[number % 3][number // 3].tokens_T)


def test_rows_go_on_from_any_place_on_any_number_of_ranks(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.bin", [9, 14, 5, 20] * 20)
    alone = _rows(path, _config(), 9)
    for rank in range(2):
        rows = micro_batches([path], _config(), rank=rank, world_size=2, device=CPU, first_row=3)
        for number in range(3):
            assert torch.equal(next(rows).tokens_T, alone[3 + 2 * number + rank].tokens_T)


def test_the_seed_sets_the_order(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.bin", [9, 14, 5, 20] * 20)
    first, again, other = (_rows(path, _config(f"seed={seed}"), 3) for seed in (1, 1, 2))
    assert all(torch.equal(a.tokens_T, b.tokens_T) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0].tokens_T, other[0].tokens_T)


def test_shards_start_over_in_another_order(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.bin", [11] * 4)  # one row an epoch
    rows = _rows(path, _config(), 4)
    assert any(not torch.equal(rows[0].tokens_T, row.tokens_T) for row in rows[1:])


@pytest.mark.parametrize(
    ("tokens", "settings", "says", "code"),
    [
        ([END_OF_TEXT, 1, 2], [], "cannot fill one row of 32 tokens", UNREADABLE_INPUT),
        ([1, 2, 3], [], "no document starts in it", UNREADABLE_INPUT),
        ([END_OF_TEXT] * 40, [], "holds 32 documents, over max_documents=16: --set max_documents=64", WRONG_USAGE),
    ],
)
def test_unusable_text_is_named(tmp_path: Path, tokens: list[int], settings: list[str], says: str, code: int) -> None:
    write_shard(np.array(tokens, dtype=np.uint16), tmp_path / "a.bin")
    with pytest.raises(TrainerError) as caught:
        _rows(tmp_path / "a.bin", _config(*settings), 1)
    assert says in caught.value.message
    assert caught.value.exit_code == code


@pytest.fixture
def _few_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A standard library of 60 files, and a cache folder of its own."""
    library = tmp_path / "library"
    (library / "test").mkdir(parents=True)
    for number in range(60):
        (library / f"m{number}.py").write_text(f"x = {number}\n" * 40)
    (library / "test" / "left_out.py").write_text("y = 1\n" * 90)
    (library / "nowhere.py").symlink_to(library / "gone.py")
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(library)})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return library


def test_the_default_text_is_tokenised_once(_few_sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: PT019
    shards = stdlib_text.stdlib_shards(is_builder=True)
    train, validation = read_shard(shards.train), read_shard(shards.validation)
    assert (int((train == END_OF_TEXT).sum()), int((validation == END_OF_TEXT).sum())) == (57, 3)
    assert train[0] == END_OF_TEXT
    monkeypatch.setattr(stdlib_text, "_tokenise", lambda _: pytest.fail("tokenised again"))
    assert stdlib_text.stdlib_shards(is_builder=True) == shards
    assert stdlib_text.stdlib_shards(is_builder=False) == shards
    assert [path.name for path in shards.train.parent.parent.iterdir()] == [shards.train.parent.name]


def test_the_first_of_several_builders_wins(_few_sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: PT019
    tokenise = stdlib_text._tokenise

    def tokenise_while_another_builds(files: list[Path]) -> list[Tokens]:
        monkeypatch.setattr(stdlib_text, "_tokenise", tokenise)
        stdlib_text.stdlib_shards(is_builder=True)
        return tokenise(files)

    monkeypatch.setattr(stdlib_text, "_tokenise", tokenise_while_another_builds)
    shards = stdlib_text.stdlib_shards(is_builder=True)
    assert len(read_shard(shards.train)) > 0
    assert len(list(shards.train.parent.parent.iterdir())) == 1, "the loser's folder is left behind"


def test_another_library_gets_other_shards(_few_sources: Path) -> None:  # noqa: PT019
    before = stdlib_text.stdlib_shards(is_builder=True)
    (_few_sources / "m7.py").write_text("changed = 1\n" * 70)
    assert stdlib_text.stdlib_shards(is_builder=True) != before


def test_waiting_for_the_builder_ends(_few_sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: PT019
    monkeypatch.setattr(stdlib_text, "_WAIT_SECONDS", 0.0)
    with pytest.raises(TrainerError, match="see the log of local rank 0") as caught:
        stdlib_text.stdlib_shards(is_builder=False)
    assert caught.value.exit_code == ENVIRONMENT


def test_a_cache_that_cannot_be_written_is_named(
    _few_sources: Path,  # noqa: PT019
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(TrainerError, match="set XDG_CACHE_HOME"):
        stdlib_text.stdlib_shards(is_builder=True)


@pytest.mark.parametrize("name", ["train.bin", "val.bin"])
@pytest.mark.parametrize("harm", ["cut", "removed", "overwritten"])
def test_a_damaged_cache_is_made_again(
    _few_sources: Path,  # noqa: PT019
    name: str,
    harm: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = stdlib_text.stdlib_shards(is_builder=True).train.parent
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert capsys.readouterr().out == ""
    if harm == "cut":
        os.truncate(folder / name, 1500)
    elif harm == "removed":
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(b"not a shard" * 200)
    shards = stdlib_text.stdlib_shards(is_builder=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole
    assert stdlib_text.stdlib_shards(is_builder=False) == shards
    assert capsys.readouterr().out == f"{folder} is damaged or not whole: tokenising the text again\n"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_nobody_waits_for_a_damaged_cache_as_if_it_were_whole(
    _few_sources: Path,  # noqa: PT019
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    os.truncate(stdlib_text.stdlib_shards(is_builder=True).validation, 1100)
    monkeypatch.setattr(stdlib_text, "_WAIT_SECONDS", 0.0)
    with pytest.raises(TrainerError, match="see the log of local rank 0"):
        stdlib_text.stdlib_shards(is_builder=False)


def test_only_what_killed_builders_left_is_removed(_few_sources: Path) -> None:  # noqa: PT019
    parent = stdlib_text.stdlib_shards(is_builder=True).train.parent.parent
    host, gone = socket.gethostname(), _pid_that_is_gone()
    abandoned = [f".stdlib-3.11-aa.{host}.{gone}.x_1", f".stdlib-3.11-aa.elsewhere.{os.getpid()}.old", ".stdlib-old"]
    kept = [f".stdlib-3.11-aa.{host}.{os.getpid()}.x_2", f".stdlib-3.11-aa.elsewhere.{gone}.x_3", "stdlib-other"]
    for name in (*abandoned, *kept):
        (parent / name).mkdir()
        (parent / name / "train.bin").touch()
        if name.endswith("old"):
            os.utime(parent / name, (0, 0))
    stdlib_text.stdlib_shards(is_builder=False)
    assert all((parent / name).exists() for name in abandoned), "only the builder cleans up"
    current = stdlib_text.stdlib_shards(is_builder=True).train.parent.name
    assert sorted(path.name for path in parent.iterdir()) == sorted([*kept, current])


def _pid_that_is_gone() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_builders_folder_tells_whose_it_is(
    _few_sources: Path,  # noqa: PT019
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left = []

    def look(_: list[Path]) -> list[Tokens]:
        left.extend(path.name for path in (_few_sources.parent / "cache/speedprof/tokens").iterdir())
        return []

    monkeypatch.setattr(stdlib_text, "_tokenise", look)
    with pytest.raises(ValueError, match="at least one array"):
        stdlib_text.stdlib_shards(is_builder=True)
    assert len(left) == 1
    assert f".{socket.gethostname()}.{os.getpid()}." in left[0]
    assert left[0].startswith(".stdlib-")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_takes_no_more_is_named(
    _few_sources: Path,  # noqa: PT019
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    def refuse(tokens: Tokens, path: Path) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(stdlib_text, "write_shard", refuse)
    with pytest.raises(TrainerError, match=os.strerror(number)) as caught:
        stdlib_text.stdlib_shards(is_builder=True)
    assert caught.value.exit_code == ENVIRONMENT
    assert "set XDG_CACHE_HOME" in caught.value.message
    assert "give --data" in caught.value.message
    assert "\n" not in caught.value.message
    assert list((_few_sources.parent / "cache/speedprof/tokens").iterdir()) == []


def test_a_user_without_a_home_is_told_what_to_set(
    _few_sources: Path,  # noqa: PT019
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", refuse)
    with pytest.raises(TrainerError, match="set XDG_CACHE_HOME"):
        stdlib_text.stdlib_shards(is_builder=True)


def test_a_library_without_source_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(TrainerError, match="give --data"):
        stdlib_text.stdlib_shards(is_builder=True)
