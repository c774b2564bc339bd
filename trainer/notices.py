"""What ranks tell each other when a run fails, through the store that they met in: it works while collectives hang."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

from torch.distributed import distributed_c10d

from trainer.ranks import Ranks

_FAILURE = "trainer/failure"


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """Why `rank` ends: its line and its exit code."""

    rank: int
    exit_code: int
    message: str


class StoreGoneError(Exception):
    """The process that keeps the store has ended."""


class Notices:
    """The store's keys that a failing run uses. Each call may raise StoreGoneError; none waits for a rank."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        store = distributed_c10d._get_default_store()
        # A connection of its own: another thread may be waiting in the first one.
        self._store = store.clone() if hasattr(store, "clone") and ranks.world_size > 1 else store

    def post(self, notice: Notice) -> None:
        """Say why this rank ends; the first rank that says so is the one that counts."""
        text = json.dumps({"rank": notice.rank, "exit_code": notice.exit_code, "message": notice.message})
        with _reachable():
            self._store.compare_set(_FAILURE, "", text)

    def first(self) -> Notice | None:
        """What the first failing rank said; None while none has."""
        text = self._read(_FAILURE)
        return None if text is None else Notice(**json.loads(text))

    def post_own(self, topic: str, text: str) -> None:
        """Leave a text of this rank under a topic."""
        with _reachable():
            self._store.set(f"trainer/{topic}/{self._ranks.rank}", text)

    def of_others(self, topic: str) -> dict[int, str]:
        """The texts of the other ranks under a topic, as far as they have come."""
        others = (rank for rank in range(self._ranks.world_size) if rank != self._ranks.rank)
        texts = ((rank, self._read(f"trainer/{topic}/{rank}")) for rank in others)
        return {rank: text for rank, text in texts if text is not None}

    def _read(self, key: str) -> str | None:
        with _reachable():
            return self._store.get(key).decode() if self._store.check([key]) else None


@contextlib.contextmanager
def _reachable() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # of torch: DistNetworkError, DistStoreError
        raise StoreGoneError(str(error)) from error
