"""What reading and analysing a trace costs, by its size, beside HolisticTraceAnalysis (HTA) on the same file.

    python benchmarks/trace_reading.py --trace rank0.json.gz --folder eight-ranks --rival /path/to/venv/bin/python

Large traces are made of a real one by repeating it in time (benchmarks/large_trace.py) and deleted again. Each run is
a process of its own, interpreter start included; the file lies in the page cache. "speedprof" is `read_kineto` and
`measure_rank`: from the file to a finished partition, overlap and idle analysis, and what else a rank by itself tells.
"HTA" is TraceAnalysis with its temporal breakdown, its overlap of communication and its breakdown of idle time.

CPU seconds are user and system time of the process and its children, memory is the peak of the largest process. The
medians of `--repeats` runs are printed with least and most; the cost per GB is of the least, which other work on the
machine disturbs least. HTA runs `--rival-repeats` times, on the first size alone.
Before anything is believed, the numbers of the large trace must be those of the real one, times the copies.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
OURS: tuple[str | Path, ...] = (sys.executable, HERE / "measure_with_speedprof.py")
SAMPLES = HERE.parent / "traces" / "samples" / "h200-2ranks" / "kineto"
# What the parts of a step take in the real trace, they take in every copy.
REPEATED = (
    "compute_ns",
    "exposed_communication_ns",
    "exposed_copy_ns",
    "communication_ns",
    "overlapped_communication_ns",
    "device_events",
    "linked",
    "crossing",
    "launches",
    "ops",
    "steps",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """One run of a process: CPU and wall seconds, the peak of its largest process in bytes, and what it printed."""

    cpu_s: float
    wall_s: float
    peak_bytes: int
    output: str

    @property
    def result(self) -> dict[str, Any]:
        """The JSON of its last line."""
        found = json.loads(self.output.splitlines()[-1])
        assert isinstance(found, dict)
        return found


def run(command: Iterable[str | Path]) -> Cost:
    """Run a command to its end. Raises RuntimeError if it fails."""
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        started = time.perf_counter()
        child = subprocess.Popen([str(part) for part in command], stdout=output, stderr=errors, env=environment)
        _, status, usage = os.wait4(child.pid, 0)
        wall_s = time.perf_counter() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        errors.seek(0)
        if child.returncode:
            raise RuntimeError(f"{child.args!r} failed ({child.returncode}):\n{errors.read().decode()[-2000:]}")
        return Cost(
            cpu_s=usage.ru_utime + usage.ru_stime,
            wall_s=wall_s,
            peak_bytes=usage.ru_maxrss * 1024,
            output=output.read().decode(),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LargeTrace:
    """A trace of `num_copies` of the real one, each `period_ns` after the one before it."""

    path: Path
    num_copies: int
    num_events: int
    period_ns: int

    @property
    def num_bytes(self) -> int:
        return self.path.stat().st_size


def make_large_trace(trace: Path, path: Path, num_bytes: int) -> LargeTrace:
    """In another process, since a child's peak counts from what its parent held when it was started."""
    made = run([sys.executable, HERE / "large_trace.py", trace, path, "--bytes", str(num_bytes)]).result
    return LargeTrace(
        path=path, num_copies=made["copies"], num_events=made["events"], period_ns=made["period_us"] * 1000
    )


def check_repeated(large: LargeTrace, said: Mapping[str, int], of_real: Mapping[str, int]) -> None:
    """The large trace's numbers are the real one's times the copies; at each seam the device has nothing to do.

    Raises AssertionError where they are not.
    """
    for key in REPEATED:
        assert said[key] == large.num_copies * of_real[key], (key, said[key], large.num_copies, of_real[key])
    seam_ns = large.period_ns - of_real["segments_ns"]
    assert said["idle_ns"] == large.num_copies * of_real["idle_ns"] + (large.num_copies - 1) * seam_ns, said
    assert said["gaps_ns"] == said["idle_ns"], said
    parts = sum(said[key] for key in ("compute_ns", "exposed_communication_ns", "exposed_copy_ns", "idle_ns"))
    assert said["segments_ns"] == parts, said


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The median, and least to most where there are several."""
    text = f"{statistics.median(values):,.{digits}f}"
    return text if len(values) == 1 else f"{text} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def print_row(*cells: object) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def print_costs(what: str, size: str, costs: Sequence[Cost], num_bytes: int, ours: Sequence[Cost] = ()) -> None:
    """A row of the table; beside the rival's figures, how many times ours they are."""
    ratios = [
        f" = {statistics.median(theirs) / statistics.median(own):.1f}x" if ours else ""
        for theirs, own in (
            ([cost.cpu_s for cost in costs], [cost.cpu_s for cost in ours] or [1]),
            ([cost.peak_bytes for cost in costs], [cost.peak_bytes for cost in ours] or [1]),
        )
    ]
    least_s = min(cost.cpu_s for cost in costs)
    print_row(
        what,
        size,
        spread([cost.cpu_s for cost in costs]) + ratios[0],
        spread([cost.wall_s for cost in costs]),
        f"{max(cost.peak_bytes for cost in costs) / 1e6:,.0f}{ratios[1]}",
        f"{least_s / (num_bytes / 1e9):.2f}",
    )


def measure_sizes(arguments: argparse.Namespace, scratch: Path) -> None:
    real = run([*OURS, arguments.trace]).result
    on_device = real["timeline"] == "device"
    print_row("what", "trace", "CPU s", "wall s", "peak MB", "least CPU s per GB of JSON")
    print_row(*["---"] * 6)
    remarks: list[str] = []
    for at, wanted in enumerate(arguments.sizes):
        large = make_large_trace(arguments.trace, scratch / "large.json", wanted)
        size = f"{large.num_bytes / 1e6:,.0f} MB, {large.num_events / 1e6:.2f} M events"
        costs = [run([*OURS, large.path]) for _ in range(arguments.repeats)]
        said = costs[0].result["said"]
        if on_device:
            check_repeated(large, said, real["said"])
            remarks.append(f"{size}: every number is {large.num_copies} times that of the real trace, up to the seams")
        print_costs("speedprof", size, costs, large.num_bytes)
        if at == 0:
            remarks += measure_variants(arguments, scratch, large, size, costs)
        large.path.unlink()
    print("\n" + "\n".join(remarks))


def measure_variants(
    arguments: argparse.Namespace, scratch: Path, large: LargeTrace, size: str, ours: Sequence[Cost]
) -> list[str]:
    """The same trace packed, and the rival on it; what there is to remark on their numbers."""
    packed = make_large_trace(arguments.trace, scratch / "large.json.gz", arguments.sizes[0])
    costs = [run([*OURS, packed.path]) for _ in range(arguments.repeats)]
    said = ours[0].result["said"]
    assert costs[0].result["said"] == said, "a packed trace says what the plain one says"
    print_costs("speedprof, .gz", f"the same, {packed.num_bytes / 1e6:,.0f} MB packed", costs, large.num_bytes)
    packed.path.unlink()
    if not arguments.rival:
        return []
    theirs = [run([arguments.rival, HERE / "measure_with_hta.py", large.path]) for _ in range(arguments.rival_repeats)]
    print_costs("HTA", size, theirs, large.num_bytes, ours)
    result = theirs[0].result
    found = result["said"]
    communication_ns = said["communication_ns"]
    overlap = f"{said['overlapped_communication_ns'] / communication_ns:.1%}" if communication_ns else "none"
    return [
        f"{ours[0].result['tool']}; {result['tool']}",
        f"compute, idle, overlap: speedprof {said['compute_ns'] / 1e6:,.1f} ms, {said['idle_ns'] / 1e6:,.1f} ms, "
        f"{overlap}; HTA {found['compute_ns'] / 1e6:,.1f} ms, {found['idle_ns'] / 1e6:,.1f} ms, "
        f"{found['overlap_ratio']:.1%} (it leaves the last step out, rounds to µs, and takes operators with a stream "
        "among their arguments for kernels)",
    ]


def measure_folder(arguments: argparse.Namespace, scratch: Path) -> None:
    """All ranks of a folder: ours to a whole report, HTA's only loaded."""
    folder = arguments.folder
    print()
    print_row(f"all ranks of {folder.name}", "CPU s", "wall s", "peak MB of the largest process")
    print_row(*["---"] * 4)
    ours: tuple[str | Path, ...] = (sys.executable, "-m", "speedprof")
    commands: list[tuple[str, list[str | Path]]] = [
        ("speedprof analyze --json", [*ours, "analyze", folder, "--json"]),
        ("speedprof report: page, JSON, Markdown", [*ours, "report", folder, "--out", scratch, "--force"]),
    ]
    if arguments.rival:
        commands.append(("HTA, loading alone", [arguments.rival, HERE / "measure_with_hta.py", folder]))
    for name, command in commands:
        costs = [run(command) for _ in range(arguments.repeats)]
        print_row(
            name,
            spread([cost.cpu_s for cost in costs]),
            spread([cost.wall_s for cost in costs]),
            f"{max(cost.peak_bytes for cost in costs) / 1e6:,.0f}",
        )


def describe_machine() -> str:
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    return f"{os.cpu_count()} cores ({cpu.partition(':')[2].strip()}), {memory:.0f} GB, load averages {load}"


def parse_size(text: str) -> int:
    """Bytes: `530MB`, `3GB`."""
    units = {"KB": 1_000, "MB": 1_000_000, "GB": 1_000_000_000}
    if text[-2:] not in units:
        raise argparse.ArgumentTypeError(f"{text} is no size such as 530MB or 3GB")
    return int(float(text[:-2]) * units[text[-2:]])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What reading and analysing a trace costs, by its size.")
    parser.add_argument("--trace", type=Path, help="the real trace to repeat (default: the committed sample of 2 H200)")
    sizes = [530_000_000, 1_500_000_000, 3_000_000_000]
    parser.add_argument("--sizes", type=lambda text: [parse_size(one) for one in text.split(",")], default=sizes)
    parser.add_argument("--folder", type=Path, help="a folder with the traces of all ranks, for the whole report")
    parser.add_argument("--rival", type=Path, help="a Python interpreter that has HolisticTraceAnalysis")
    parser.add_argument("--repeats", type=int, default=5, help="runs of speedprof on each file")
    parser.add_argument("--rival-repeats", type=int, default=1, help="runs of HTA on the first file")
    parser.add_argument("--scratch", type=Path, help="where to write the large traces")
    arguments = parser.parse_args()
    arguments.trace = arguments.trace or min(SAMPLES.glob("rank0.*.json.gz"))
    return arguments


def main() -> None:
    arguments = parse_arguments()
    print(f"Python {sys.version.split()[0]}, {describe_machine()}; {arguments.trace.name}, {arguments.repeats} runs\n")
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        measure_sizes(arguments, Path(scratch))
        if arguments.folder:
            measure_folder(arguments, Path(scratch))
    print(f"\nload averages at the end {', '.join(f'{one:.1f}' for one in os.getloadavg())}")


if __name__ == "__main__":
    main()
