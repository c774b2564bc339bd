"""Which events of the host wait for the device, manage its memory, load data, compile or launch, by their names."""

from __future__ import annotations

import numpy as np
import polars as pl

from speedprof.trace.intervals import Bools
from speedprof.trace.model import Trace
from speedprof.trace.schema import to_numpy

# Functions of the runtimes and drivers of CUDA, HIP and Level Zero, with their suffixes (_v2, _ptsz, …).
SYNCHRONIZES = r"Synchronize|^urQueueFinish|^urEventWait"
ALLOCATES = (
    r"^(?:cuda|hip)(?:Ext)?(?:Malloc|Free|Host(?:Alloc|Malloc|Free|Register|Unregister))"
    r"|^(?:cuda|hip|cu)Mem(?:Alloc|Free|Create|Release|Map|Unmap|SetAccess|Address(?:Reserve|Free)|Host)"
    r"|^urUSM(?:Host|Device|Shared)?(?:Alloc|Free)|^zeMem(?:Alloc|Free)"
)
_COPIES = r"Memcpy"

# Operators and ranges. torch names its own loader's range enumerate(DataLoader)#…; Lightning and others say dataloader.
LOADS_DATA = r"(?i)data[ _.-]?(?:load|pipe)|^speedprof\.range/(?:data|input)$"
# torch.compile marks every phase of compiling with this suffix. What runs compiled code has other names (Torch-Compiled
# Region, CompiledFunction, TorchDynamo Cache Lookup), and is no evidence.
COMPILES = r" \(dynamo_timed\)$"
COLLECTS_GARBAGE = r"(?i)^gc(?: \(dynamo_timed\))?$|\bgc\.collect\b|garbage[ _]collect"


def find_named(names: pl.Series, pattern: str) -> Bools:
    """Which of the names the regular expression matches anywhere; costs little however often a name occurs."""
    distinct = names.unique().cast(pl.String)
    wanted = distinct.filter(distinct.str.contains(pattern)).to_list()
    if not wanted:
        return np.zeros(len(names), dtype=np.bool_)
    return np.asarray(names.is_in(wanted).to_numpy(), dtype=np.bool_)


def find_blocking_copies(trace: Trace) -> Bools:
    """For each launch whether it is a copy that the host sits through, as with memory that is not pinned.

        host     [cudaMemcpyAsync          ]
        device         [Memcpy HtoD          ]     the host is in the call for at least half of the copy

    An asynchronous copy may have begun before its call returns, but only just.
    """
    blocks = np.zeros(len(trace.launches), dtype=np.bool_)
    copying = find_named(trace.launches["name"], _COPIES)
    work = trace.kernels.filter("linked").select("launch_row", "start_ns", "end_ns")
    row = to_numpy(work["launch_row"])
    start, end = (to_numpy(work[name])[copying[row]] for name in ("start_ns", "end_ns"))
    row = row[copying[row]]
    beside = np.minimum(to_numpy(trace.launches["end_ns"])[row], end) - start
    # A copy of zero length shows nothing.
    blocks[row] = (beside >= end - start - beside) & (end > start)
    return blocks


def find_waiting_calls(trace: Trace) -> Bools:
    """For each launch whether it waits for the device: it synchronizes, or is a copy that blocks."""
    return find_named(trace.launches["name"], SYNCHRONIZES) | find_blocking_copies(trace)


def find_launching_calls(trace: Trace) -> Bools:
    """For each launch whether it gave the device work, and did not wait for that work as blocking copies do."""
    gives_work = np.zeros(len(trace.launches), dtype=np.bool_)
    gives_work[to_numpy(trace.kernels.filter("linked")["launch_row"])] = True
    return gives_work & ~find_blocking_copies(trace)
