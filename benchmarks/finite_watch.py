"""What it costs each step to look whether loss and gradients are finite, on the record's shapes.

    python -m benchmarks.finite_watch

Printed: device time of a look (CUDA events; the host's clock on a CPU), host time of the call, and the bytes that it
reads, with the bandwidth that follows. On a CPU the model is that of tiny_cpu.
"""

from __future__ import annotations

import statistics
import time

import torch

from trainer.config import preset
from trainer.finite import FiniteWatch
from trainer.loop import build_model
from trainer.ranks import Ranks

NUM_REPETITIONS = 100


def main() -> None:
    is_cuda = torch.cuda.is_available()
    device = torch.device("cuda" if is_cuda else "cpu")
    ranks = Ranks(rank=0, local_rank=0, world_size=1, device=device)
    model, _ = build_model(preset("record_134" if is_cuda else "tiny_cpu"), ranks)
    parameters = [*model.muon_parameters(), *model.adam_parameters()]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    labels = dict.fromkeys(parameter.label for parameter in parameters)  # type: ignore[attr-defined]
    groups = {
        label: [parameter for parameter in parameters if parameter.label == label]  # type: ignore[attr-defined]
        for label in labels
    }
    watch, loss = FiniteWatch(groups, rank=0), torch.zeros((), device=device)
    num_bytes = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    device_us, host_us = [], []
    for step in range(NUM_REPETITIONS + 10):
        began_s = time.perf_counter()
        if is_cuda:
            torch.cuda.synchronize()
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            began_s = time.perf_counter()
            began.record()
        watch.see(step, loss)
        if is_cuda:
            ended.record()
        host_us.append((time.perf_counter() - began_s) * 1e6)
        if is_cuda:
            ended.synchronize()
        device_us.append(began.elapsed_time(ended) * 1e3 if is_cuda else host_us[-1])
    name = torch.cuda.get_device_name() if is_cuda else "CPU"
    median_us, host = statistics.median(device_us[10:]), statistics.median(host_us[10:])
    print(f"{name}, torch {torch.__version__}: {num_bytes / 1e6:,.0f} MB of gradients in {len(groups)} groups")
    print(f"a look: {median_us:.1f} us, {num_bytes / median_us / 1e3:,.0f} GB/s; host {host:.1f} us")


if __name__ == "__main__":
    main()
