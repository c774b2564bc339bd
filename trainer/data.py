"""Micro-batches: rows of whole documents, each from its first token on, cut to a length, packed without gaps.

Every rank walks the same plan of rows and copies only its own, so ranks never share a row, and the rows of a step
are the same whatever the number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from trainer.config import TrainConfig
from trainer.errors import UNREADABLE_INPUT, WRONG_USAGE, TrainerError
from trainer.shards import Tokens, read_shard
from trainer.vocabulary import END_OF_TEXT

Offsets = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """One packed row of T tokens.

    tokens_T: int32, inputs. targets_T: int64, the token after each input.
    cu_seqlens: int32, [max_documents + 1], starts of the documents, then T in every slot left (empty documents).
    """

    tokens_T: torch.Tensor  # noqa: N815  # shapes are suffixes
    targets_T: torch.Tensor  # noqa: N815
    cu_seqlens: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """Where a row lies in its shard: documents' first tokens and lengths, enough for T + 1 tokens."""

    tokens: Tokens
    starts: Offsets
    lengths: Offsets


def micro_batches(
    shards: list[Path], config: TrainConfig, *, rank: int, world_size: int, device: torch.device, first_row: int = 0
) -> Iterator[MicroBatch]:
    """Rows number rank, rank + world_size, ... of the plan, without end (the shards start over, in another order).

    first_row: the plan's rows before it are passed over, as a run that goes on has had them; counting starts there.

    Raises TrainerError (unreadable input) for a bad shard, or shards that cannot fill one row; (wrong usage) where a
    row has more documents than `max_documents`.
    """
    for number, row in enumerate(_plan_rows(shards, config)):
        if number >= first_row and (number - first_row) % world_size == rank:
            yield _read_row(row, config, device)


def _plan_rows(shards: list[Path], config: TrainConfig) -> Iterator[_Row]:
    epoch = 0
    while True:
        num_rows = 0
        for number, path in enumerate(shards):
            order = np.random.default_rng((config.seed, epoch, number))
            for row in _plan_shard(path, config, order):
                num_rows += 1
                yield row
        if num_rows == 0:
            raise TrainerError(
                f"{shards[0]} and {len(shards) - 1} more shards cannot fill one row of "
                f"{config.micro_batch_tokens} tokens: give --data more text, or --set micro_batch_tokens=N",
                UNREADABLE_INPUT,
            )
        epoch += 1


def _plan_shard(path: Path, config: TrainConfig, order: np.random.Generator) -> Iterator[_Row]:
    """Rows of one shard, its documents shuffled; what is left of a row's last document is skipped, as in the record."""
    tokens = read_shard(path)
    starts, lengths = find_documents(tokens, config.max_document_tokens)
    if len(starts) == 0:
        raise TrainerError(
            f"{path}: no document starts in it (id {END_OF_TEXT}); put that id before every document", UNREADABLE_INPUT
        )
    shuffled = order.permutation(len(starts))
    starts, lengths = starts[shuffled], lengths[shuffled]
    for first, end in pack_documents(lengths, config.micro_batch_tokens + 1):
        yield _Row(tokens=tokens, starts=starts[first:end], lengths=lengths[first:end])


def find_documents(tokens: Tokens, max_tokens: int) -> tuple[Offsets, Offsets]:
    """First token and length, at most `max_tokens`, of every document; what comes before the first is left out."""
    starts = np.flatnonzero(tokens == END_OF_TEXT)
    lengths = np.diff(starts, append=len(tokens))
    return starts, np.minimum(lengths, max_tokens)


def pack_documents(lengths: Offsets, num_tokens: int) -> Iterator[tuple[int, int]]:
    """Ranges [first, end) of consecutive documents that hold `num_tokens` or more; a remainder too small is dropped."""
    ends = np.cumsum(lengths)
    first, taken = 0, 0
    while True:
        end = int(np.searchsorted(ends, taken + num_tokens)) + 1
        if end > len(lengths):
            return
        yield first, end
        first, taken = end, int(ends[end - 1])


def _read_row(row: _Row, config: TrainConfig, device: torch.device) -> MicroBatch:
    num_tokens = config.micro_batch_tokens
    pieces = [row.tokens[start : start + length] for start, length in zip(row.starts, row.lengths, strict=True)]
    ids = np.concatenate(pieces)[: num_tokens + 1].astype(np.int64)
    return MicroBatch(
        tokens_T=_to_device(ids[:-1].astype(np.int32), device),
        targets_T=_to_device(ids[1:], device),
        cu_seqlens=_to_device(_cu_seqlens(row.lengths, config), device),
    )


def _cu_seqlens(lengths: Offsets, config: TrainConfig) -> npt.NDArray[np.int32]:
    starts = np.cumsum(lengths) - lengths
    starts = starts[starts < config.micro_batch_tokens]
    if len(starts) > config.max_documents:
        raise TrainerError(
            f"a row of {config.micro_batch_tokens} tokens holds {len(starts)} documents, over max_documents="
            f"{config.max_documents}: --set max_documents={len(starts) * 2}",
            WRONG_USAGE,
        )
    filled = np.full(config.max_documents + 1, config.micro_batch_tokens, dtype=np.int32)
    filled[: len(starts)] = starts
    return filled


def _to_device(values: npt.NDArray[np.int32] | npt.NDArray[np.int64], device: torch.device) -> torch.Tensor:
    """A copy that the host does not wait for, where the device is a GPU."""
    tensor = torch.from_numpy(values)
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)
