"""What the trainer's kernels take on this GPU, beside torch.compile's own and the limits of the machine.

    python -m benchmarks.trainer_kernels [--sweep] [--only newton_schulz cross_entropy head] [--json]

Every time is the median of `--repeats` calls, each measured by CUDA events after the L2 cache was overwritten, in ms.
Limits come from two probes in the same run: an 8192 x 8192 x 8192 bf16 product and a copy of 3.3 GB. Newton-Schulz is
counted with half of its two symmetric products; cross entropy with one read of the logits forward, and backward with
one read and the gradient's write; the head with its three products at the bf16 probe's rate.
`--sweep` also times what the kernels' fixed tilings and blocks were chosen from.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from trainer import head
from trainer.config import NewtonSchulzKernel
from trainer.kernels import cross_entropy, symmetric
from trainer.kernels.symmetric import LARGE, SMALL, Tiling
from trainer.orthogonalise import COEFFICIENTS, orthogonalise

SHAPES = ((2, 768, 3072), (8, 768, 768), (11, 768, 3072), (22, 768, 3072))
NUM_TOKENS, DIM, VOCABULARY = 32_768, 768, 50_304
PROBE_SIDE = 8192
FLUSH_BYTES = 256 << 20  # several times the 50 MB of an H100's L2 cache
PARTS = ("newton_schulz", "cross_entropy", "head")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measurement. limit_ms: what the machine's probes would take for the same arithmetic or bytes."""

    part: str
    case: str
    variant: str
    ms: float
    limit_ms: float | None = None
    peak_gb: float | None = None


class Timer:
    """Median device time of a function's calls, each on a cold L2 cache."""

    def __init__(self, repeats: int) -> None:
        self._repeats = repeats
        self._flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")

    def ms(self, function: Callable[[], object]) -> float:
        for _ in range(3):  # compile, and warm up
            function()
        times: list[float] = []
        for _ in range(self._repeats):
            self._flush.zero_()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            function()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end))
        return statistics.median(times)

    def row(
        self, part: str, case: str, variant: str, function: Callable[[], object], limit_ms: float | None = None
    ) -> Row:
        """Raises nothing: a variant that a GPU cannot run, for its shared memory, say, is a row without a time."""
        torch.cuda.reset_peak_memory_stats()
        try:
            ms = self.ms(function)
        except Exception as error:
            print(f"{part} {case} {variant}: {type(error).__name__}: {str(error)[:120]}", file=sys.stderr)
            ms = float("nan")
        peak_gb = torch.cuda.max_memory_allocated() / 1e9
        return Row(part=part, case=case, variant=variant, ms=ms, limit_ms=limit_ms, peak_gb=peak_gb)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Rates that the probes reached."""

    flops_per_ms: float
    bytes_per_ms: float


def probe(timer: Timer) -> Machine:
    a, b = (torch.randn(PROBE_SIDE, PROBE_SIDE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    flops_per_ms = 2 * PROBE_SIDE**3 / timer.ms(lambda: a @ b)
    source = torch.empty(NUM_TOKENS, VOCABULARY, device="cuda", dtype=torch.bfloat16)
    target = torch.empty_like(source)
    bytes_per_ms = 2 * source.nbytes / timer.ms(lambda: target.copy_(source))
    return Machine(flops_per_ms=flops_per_ms, bytes_per_ms=bytes_per_ms)


def newton_schulz(timer: Timer, machine: Machine, *, is_sweep: bool) -> Iterator[Row]:
    for batch, rows, columns in SHAPES:
        case = f"{batch}x{rows}x{columns}"
        x = torch.randn(batch, rows, columns, device="cuda", dtype=torch.bfloat16)
        gram_flops, square_flops = 2 * batch * rows**2 * columns, 2 * batch * rows**3
        rounds = len(COEFFICIENTS["polar_express"])
        limit_ms = rounds * (1.5 * gram_flops + 0.5 * square_flops) / machine.flops_per_ms
        torch._dynamo.reset()  # it gives up on a function that it has compiled for eight cases
        compiled = torch.compile(orthogonalise, dynamic=False, fullgraph=True)
        kernels: tuple[NewtonSchulzKernel, ...] = ("torch", "triton")
        for kernel in kernels:
            function = partial(compiled, x, "polar_express", kernel)
            yield timer.row("newton_schulz", case, f"{kernel} compiled", function, limit_ms)
        yield timer.row("newton_schulz", case, "triton eager", partial(orthogonalise, x), limit_ms)
        if is_sweep:
            x /= torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
            yield from _sweep_tilings(timer, case, x, gram_flops / 2, square_flops / 2, machine)


def _sweep_tilings(
    timer: Timer, case: str, x: Tensor, gram_flops: float, square_flops: float, machine: Machine
) -> Iterator[Row]:
    a = symmetric.gram(x)
    products = (
        ("X X^T", x, None, gram_flops, lambda: torch.bmm(x, x.mT)),
        ("polynomial", a, (8.2, -22.5, 15.9), square_flops, lambda: torch.baddbmm(a, a, a, beta=-22.5, alpha=15.9)),
    )
    for name, source, weights, flops, plain in products:
        limit_ms = flops / machine.flops_per_ms
        yield timer.row("newton_schulz", f"{case} {name}", "torch", plain, limit_ms)
        for block, block_columns, num_warps, num_stages in (
            (128, 64, 4, 3),
            (128, 64, 4, 4),
            (128, 64, 8, 3),
            (128, 64, 8, 4),
            (128, 128, 8, 2),
            (64, 64, 4, 3),
            (64, 64, 4, 4),
            (64, 128, 4, 3),
        ):
            tiling = Tiling(block=block, block_columns=block_columns, num_warps=num_warps, num_stages=num_stages)
            mark = {LARGE: " = LARGE", SMALL: " = SMALL"}.get(tiling, "")
            variant = f"{block}x{block_columns} warps {num_warps} stages {num_stages}{mark}"
            function = partial(symmetric._product, source, weights, tiling)
            yield timer.row("newton_schulz", f"{case} {name}", variant, function, limit_ms)
    third_ms = 2 * gram_flops / machine.flops_per_ms
    yield timer.row("newton_schulz", f"{case} A X", "torch bmm", lambda: torch.bmm(a, x), third_ms)
    yield timer.row("newton_schulz", f"{case} A X", "torch baddbmm", lambda: torch.baddbmm(x, a, x, beta=4.0), third_ms)


def _formula(logits_TV: Tensor, targets_T: Tensor) -> Tensor:
    """Softcap and cross entropy as torch.compile is given them."""
    capped_TV = 30 * torch.sigmoid(logits_TV / 7.5)
    return functional.cross_entropy(capped_TV, targets_T, reduction="none").float().sum()


def cross_entropies(timer: Timer, machine: Machine, *, is_sweep: bool) -> Iterator[Row]:
    case = f"{NUM_TOKENS}x{VOCABULARY}"
    logits_TV = (2 * torch.randn(NUM_TOKENS, VOCABULARY, device="cuda")).bfloat16()
    targets_T = torch.randint(0, VOCABULARY, (NUM_TOKENS,), device="cuda")
    weights_T = torch.ones(NUM_TOKENS, device="cuda")
    _, lse_T = cross_entropy.cross_entropy_op(logits_TV, targets_T)
    read_ms = logits_TV.nbytes / machine.bytes_per_ms
    forward = partial(cross_entropy.cross_entropy_op, logits_TV, targets_T)
    backward = partial(cross_entropy.gradient_op, logits_TV, targets_T, lse_T, weights_T)
    fp8 = partial(cross_entropy.fp8_gradients_op, logits_TV, targets_T, lse_T, weights_T[0])

    yield from _compiled_cross_entropy(timer, case, logits_TV.requires_grad_(), targets_T, read_ms)
    logits_TV.requires_grad_(False)
    yield timer.row("cross_entropy", case, "forward ours", forward, read_ms)
    yield timer.row("cross_entropy", case, "backward ours, new tensor", backward, 2 * read_ms)
    yield timer.row("cross_entropy", case, "backward ours, e5m2 in both layouts", fp8, 2 * read_ms)
    if is_sweep:
        for names, values, what, function, limit_ms in _block_sweep(forward, backward, fp8, read_ms):
            for name, value in zip(names, values, strict=True):
                setattr(cross_entropy, name, value)
            yield timer.row("cross_entropy", case, f"{what} block {values[0]} warps {values[1]}", function, limit_ms)
    in_place = partial(cross_entropy.gradient_in_place_op, logits_TV, targets_T, lse_T, weights_T)
    yield timer.row("cross_entropy", case, "backward ours, in place", in_place, 2 * read_ms)


def _compiled_cross_entropy(
    timer: Timer, case: str, leaf_TV: Tensor, targets_T: Tensor, read_ms: float
) -> Iterator[Row]:
    compiled = torch.compile(_formula, dynamic=False, fullgraph=True)

    def forward_backward() -> None:
        torch.autograd.grad(compiled(leaf_TV, targets_T), leaf_TV)

    forward = partial(compiled, leaf_TV, targets_T)
    yield timer.row("cross_entropy", case, "forward torch.compile", forward, read_ms)
    yield timer.row("cross_entropy", case, "forward + backward torch.compile", forward_backward, 3 * read_ms)


def _block_sweep(
    forward: Callable[[], object], backward: Callable[[], object], fp8: Callable[[], object], read_ms: float
) -> Iterator[tuple[tuple[str, str], tuple[object, int], str, Callable[[], object], float]]:
    """Names of the settings, their values, what they are of; the chosen ones come last and stay set."""
    for prefix, what, function, limit_ms in (
        ("LOSS", "forward", forward, read_ms),
        ("GRADIENT", "backward", backward, 2 * read_ms),
    ):
        names = f"{prefix}_BLOCK", f"{prefix}_WARPS"
        chosen = getattr(cross_entropy, names[0]), getattr(cross_entropy, names[1])
        for values in ((1024, 4), (2048, 4), (2048, 8), (4096, 4), (4096, 8), (8192, 8), chosen):
            yield names, values, what, function, limit_ms
    chosen_tile = cross_entropy.FP8_TILE, cross_entropy.FP8_WARPS
    tiles = (((64, 128), 4), ((64, 128), 8), ((128, 64), 4), ((128, 64), 8), ((128, 128), 8), ((64, 256), 8))
    for tile, warps in (*tiles, chosen_tile):
        yield ("FP8_TILE", "FP8_WARPS"), (tile, warps), "e5m2", fp8, 2 * read_ms


def heads(timer: Timer, machine: Machine, *, is_sweep: bool) -> Iterator[Row]:
    """The whole head, compiled; there is nothing to sweep."""
    x_TD = torch.randn(NUM_TOKENS, DIM, device="cuda", dtype=torch.bfloat16).requires_grad_()
    head_VD = (0.05 * torch.randn(VOCABULARY, DIM, device="cuda")).bfloat16().requires_grad_()
    targets_T = torch.randint(0, VOCABULARY, (NUM_TOKENS,), device="cuda")
    products_ms = 3 * 2 * NUM_TOKENS * DIM * VOCABULARY / machine.flops_per_ms
    case = f"{NUM_TOKENS}x{DIM}x{VOCABULARY}"

    def plain(x_TD: Tensor, head_VD: Tensor, targets_T: Tensor) -> Tensor:
        normed_TD = functional.rms_norm(x_TD, (DIM,))
        return _formula(functional.linear(normed_TD, head_VD), targets_T)

    def fused(matmul: head.Matmul) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        return lambda x_TD, head_VD, targets_T: head.head_loss(x_TD, None, None, head_VD, targets_T, None, matmul)

    variants = {"bf16 torch.compile": plain, "bf16 fused": fused("bf16"), "fp8 fused": fused("fp8")}
    for variant, function in variants.items():
        compiled = torch.compile(function, dynamic=False, fullgraph=True)
        forward = partial(compiled, x_TD, head_VD, targets_T)
        both = partial(_forward_backward, compiled, x_TD, head_VD, targets_T)
        yield timer.row("head", case, f"forward {variant}", forward, products_ms / 3)
        yield timer.row("head", case, f"forward + backward {variant}", both, products_ms)


def _forward_backward(loss: Callable[..., Tensor], x_TD: Tensor, head_VD: Tensor, targets_T: Tensor) -> None:
    torch.autograd.grad(loss(x_TD, head_VD, targets_T), (x_TD, head_VD))


def print_table(machine: Machine, rows: Iterable[Row]) -> None:
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}: 8192^3 bf16 product "
        f"{machine.flops_per_ms / 1e9:.0f} TFLOP/s, copy {machine.bytes_per_ms / 1e9:.2f} TB/s"
    )
    print(f"{'part':<14} {'case':<26} {'variant':<42} {'ms':>8} {'limit':>8} {'of limit':>9} {'peak GB':>8}")
    for row in rows:
        ratio = "" if row.limit_ms is None else f"{row.limit_ms / row.ms:9.0%}"
        limit = "" if row.limit_ms is None else f"{row.limit_ms:8.4f}"
        print(
            f"{row.part:<14} {row.case:<26} {row.variant:<42} {row.ms:8.4f} {limit:>8} {ratio:>9} {row.peak_gb:8.2f}",
            flush=True,
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to measure")
    parser.add_argument("--sweep", action="store_true", help="also time the tilings and blocks that were not chosen")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("trainer_kernels: error: no CUDA device: run this where a GPU is", file=sys.stderr)
        return 6
    timer = Timer(arguments.repeats)
    machine = probe(timer)
    measures = dict(zip(PARTS, (newton_schulz, cross_entropies, heads), strict=True))
    rows = (row for part in arguments.only for row in measures[part](timer, machine, is_sweep=arguments.sweep))
    if arguments.json:
        print(json.dumps({"machine": asdict(machine), "rows": [asdict(row) for row in rows]}, indent=2))
    else:
        print_table(machine, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
