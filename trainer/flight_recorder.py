"""Collectives that have not ended, from torch's flight recorder, which NCCL keeps, and newer versions of gloo."""

from __future__ import annotations

import os
import pickle
import time
from dataclasses import dataclass
from typing import Any

import torch

_BUFFER_ENTRIES = "2000"


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingCollective:
    """A collective that was queued `age_s` ago and has not ended. sizes: of its inputs, as torch lists them."""

    name: str
    sequence: int
    sizes: str
    age_s: float
    state: str

    def describe(self) -> str:
        return f"{self.name} number {self.sequence} of {self.sizes} ({self.state}, queued {self.age_s:.0f} s ago)"


def turn_on() -> None:
    """Have the backend record its collectives; before the process group is made. What the user has set stays."""
    if "TORCH_NCCL_TRACE_BUFFER_SIZE" not in os.environ:  # the old name, of which torch warns
        os.environ.setdefault("TORCH_FR_BUFFER_SIZE", _BUFFER_ENTRIES)


def pending_collectives(device: torch.device) -> list[PendingCollective]:
    """In the order of their launch, NCCL's or gloo's by the device; empty where no recorder runs."""
    module: Any = torch._C._distributed_c10d
    dump = getattr(module, "_dump_nccl_trace" if device.type == "cuda" else "_dump_fr_trace", None)
    if dump is None:
        return []
    record = pickle.loads(dump(includeCollectives=True, includeStackTraces=False, onlyActive=True))
    return read_pending(record, time.time_ns())


def read_pending(record: dict[str, Any], now_ns: int) -> list[PendingCollective]:
    """The entries of a flight record that have not completed, at `now_ns`, nanoseconds since 1970 as in the record."""
    pending = [
        PendingCollective(
            name=entry.get("profiling_name", "a collective"),
            sequence=entry.get("collective_seq_id", -1),
            sizes=str(entry.get("input_sizes", "unknown size")),
            age_s=(now_ns - entry.get("time_created_ns", now_ns)) / 1e9,
            state=entry.get("state", "pending"),
        )
        for entry in record.get("entries", [])
        if entry.get("state") != "completed" and not entry.get("retired", False)  # gloo only retires them
    ]
    return sorted(pending, key=lambda collective: collective.sequence)
