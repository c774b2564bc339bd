"""Runs a function on a few ranks of this machine, each in a process of its own: gloo on the CPU, or NCCL."""

import contextlib
import multiprocessing
import pickle
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


class RankFailedError(AssertionError):
    """A rank raised, died or did not finish; says which, with its own traceback."""


def run_ranks(
    function: Callable[..., Any], world_size: int, *args: Any, time_limit_s: float = 120.0, backend: str = "gloo"
) -> list[Any]:
    """What `function(*args)` returns on each rank of a fresh process group, in rank order; with nccl, a GPU each.

    The function must be importable by name (pickled), and so must what it returns. Raises RankFailedError.
    """
    # A fork server imports torch once for all ranks of all tests; spawning would pay 3 seconds for each.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch.distributed"])
    processes: dict[int, BaseProcess] = {}
    results: dict[int, Connection] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        rendezvous = (Path(folder) / "rendezvous").as_uri()
        for rank in range(world_size):
            results[rank], sender = context.Pipe(duplex=False)
            call = (function, rank, world_size, rendezvous, args, time_limit_s, backend, sender)
            processes[rank] = context.Process(target=_run_rank, args=call, daemon=True)
            processes[rank].start()
            stack.callback(_end, processes[rank])
            sender.close()
        try:
            return _collect(results, time_limit_s)
        except RankFailedError:
            for process in processes.values():  # the others may wait for the one that failed
                process.kill()
            raise


def _collect(results: dict[int, Connection], time_limit_s: float) -> list[Any]:
    deadline = time.monotonic() + time_limit_s
    values: dict[int, Any] = {}
    while pending := {connection: rank for rank, connection in results.items() if rank not in values}:
        ready = wait(list(pending), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            raise RankFailedError(f"ranks {sorted(pending.values())} did not finish in {time_limit_s:g} s")
        for connection in ready:
            rank = pending[connection]
            try:
                is_fine, values[rank] = pickle.loads(connection.recv_bytes())
            except EOFError:
                raise RankFailedError(f"rank {rank} of {len(results)} died without a word") from None
            if not is_fine:
                raise RankFailedError(f"rank {rank} of {len(results)} failed:\n{values[rank]}")
    return [values[rank] for rank in sorted(values)]


def _end(process: BaseProcess) -> None:
    process.join(timeout=5)
    if process.is_alive():
        process.kill()
        process.join()


def _run_rank(
    function: Callable[..., Any],
    rank: int,
    world_size: int,
    rendezvous: str,
    args: tuple[Any, ...],
    time_limit_s: float,
    backend: str,
    sender: Connection,
) -> None:
    warnings.simplefilter("error")  # as pytest's settings do in its own process, with the same exception:
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")  # torch's own use of old parts
    torch.set_num_threads(1)
    try:
        if backend == "nccl":
            torch.cuda.set_device(rank)
        dist.init_process_group(
            backend, init_method=rendezvous, rank=rank, world_size=world_size, timeout=timedelta(seconds=time_limit_s)
        )
        outcome = (True, function(*args))
    except BaseException:  # whatever ended this rank, its traceback is what the test needs
        outcome = (False, traceback.format_exc())
    # Sent before the group closes: the other ranks' errors about the lost connection come second.
    sender.send_bytes(pickle.dumps(outcome))
    if dist.is_initialized():
        dist.destroy_process_group()
