"""Two ranks that communicate in every way that a trace must be read in: NCCL beside matrix products, in two process
groups; symmetric memory's own kernels; all of it once more inside a CUDA graph. Rank 1 sleeps 3 ms in every step.

    python -m torch.distributed.run --nproc-per-node 2 tests/programs/graphed_collectives.py FOLDER

makes FOLDER/rank0.json.gz and FOLDER/rank1.json.gz on two GPUs that reach each other's memory.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed._symmetric_memory as symmetric_memory
from torch.profiler import ProfilerActivity, profile, record_function, schedule

SLEEP_S = 0.003
NUM_WARM = 3
NUM_TRACED = 10


def main(folder: Path) -> None:
    rank = int(os.environ["RANK"])
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device)
    second_group = dist.new_group([0, 1])
    square = torch.randn(4096, 4096, device=device, dtype=torch.bfloat16)
    vector = torch.randn(1 << 22, device=device, dtype=torch.bfloat16)
    gathered, scattered = vector.new_empty(2 * len(vector)), vector.new_empty(len(vector) // 2)
    shared = symmetric_memory.empty(1 << 16, dtype=torch.bfloat16, device=device)
    symmetric_memory.rendezvous(shared, dist.group.WORLD)

    def communicate_and_compute() -> None:
        gathering = dist.all_gather_into_tensor(gathered, vector, async_op=True)
        product = square @ square @ square
        gathering.wait()
        scattering = dist.reduce_scatter_tensor(scattered, vector, group=second_group, async_op=True)
        product @ square
        scattering.wait()

    def reduce_in_shared_memory() -> None:
        name = dist.group.WORLD.group_name
        torch.ops.symm_mem.one_shot_all_reduce(shared, "sum", name)
        torch.ops.symm_mem.two_shot_all_reduce_(shared, "sum", name)

    for _ in range(3):
        communicate_and_compute()
        reduce_in_shared_memory()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        communicate_and_compute()
    plan = schedule(wait=NUM_WARM - 1, warmup=1, active=NUM_TRACED)
    with profile(
        activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], record_shapes=True, schedule=plan
    ) as profiler:
        for _ in range(NUM_WARM + NUM_TRACED):
            communicate_and_compute()
            reduce_in_shared_memory()
            with record_function("graphed"):
                graph.replay()
            if rank == 1:
                time.sleep(SLEEP_S)
            (vector[:1000] * 2).sum().item()
            profiler.step()
    profiler.export_chrome_trace(str(folder / f"rank{rank}.json.gz"))
    del graph  # it holds the process group's communicator, which is to be destroyed
    torch.cuda.synchronize()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
