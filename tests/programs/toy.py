"""A program that marks its steps: two stages, one all-reduce a step. The first argument says how it ends.

toy.py ok | raise | exit | kill | short | hang     (rank 1, step 5)
"""

import os
import signal
import sys
import time

import torch
import torch.distributed as dist

from speedprof import annotate


def misbehave(how: str) -> None:
    if how == "raise":
        raise ValueError("the loss is not a number")
    if how == "exit":
        sys.exit("toy: error: out of data")
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "hang":
        time.sleep(600)


def main(how: str = "ok") -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    num_steps = 6 if how == "short" else 10_000
    annotate.declare("preset", "toy")
    try:
        weights = torch.randn(64, 64, requires_grad=True)
        for step in range(num_steps):
            with annotate.step(step):
                if rank == 1 and step == 5:
                    misbehave(how)
                loss = (weights @ weights).square().mean()
                loss.backward()
                with annotate.stage("reduce_scatter", "toy.weights"):
                    dist.all_reduce(weights.grad)
                with annotate.stage("update", "toy.weights"), torch.no_grad():
                    weights -= 1e-3 * weights.grad
                    weights.grad = None
                annotate.metric("loss", loss)
                if rank == 0:
                    print(f"step {step} loss {loss.item():.3f}")
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
