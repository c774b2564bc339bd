"""A program that validates every few steps. Its arguments: steps between validations, operators in one.

validating.py EVERY NUM_OPERATORS
"""

import sys

import torch
import torch.distributed as dist

from speedprof import annotate


def main(every: int, num_operators: int) -> None:
    dist.init_process_group("gloo")
    x = torch.ones(4)
    mark = 0
    try:
        for step in range(10_000):
            with annotate.step(mark):
                x = x * 1.0
            mark += 1
            if (step + 1) % every == 0:
                with annotate.step(mark, kind="validation"):
                    for _ in range(num_operators):
                        x = x + 0.0
                mark += 1
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:]))
