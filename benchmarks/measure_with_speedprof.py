"""Read one trace and measure it by itself; print what it says as JSON. Run in a process of its own by trace_reading."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version

from speedprof.analyses.measure import measure_rank
from speedprof.trace.read_kineto import read_kineto


def main() -> None:
    trace = read_kineto(sys.argv[1])
    measured = measure_rank(trace).analysis
    breakdown = measured.breakdown
    budget = measured.error_budget
    said = {
        "compute_ns": breakdown.partition.compute_ns,
        "exposed_communication_ns": breakdown.partition.exposed_communication_ns,
        "exposed_copy_ns": breakdown.partition.exposed_copy_ns,
        "idle_ns": breakdown.partition.idle_ns,
        "communication_ns": breakdown.communication_ns,
        "overlapped_communication_ns": breakdown.overlapped_communication_ns,
        "gaps_ns": int((measured.idle.table["end_ns"] - measured.idle.table["start_ns"]).sum()),
        "segments_ns": sum(segment.partition.window_ns for segment in breakdown.segments),
        "device_events": budget.device_events,
        "linked": budget.device_events - budget.unlinked,
        "crossing": budget.crossing,
        "launches": len(trace.launches),
        "ops": len(trace.ops),
        "steps": len(trace.steps),
    }
    print(json.dumps({"tool": f"speedprof, polars {version('polars')}", "timeline": breakdown.timeline, "said": said}))


if __name__ == "__main__":
    main()
