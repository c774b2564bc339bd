"""The same with HolisticTraceAnalysis, under an interpreter that has it; one trace, or a folder that is only loaded.

Its analyses are called as its documentation shows, without drawing. Printed as JSON on the last line.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path


def main() -> None:
    # Here, since another interpreter's packages are meant.
    from hta.trace_analysis import TraceAnalysis  # type: ignore[import-not-found]

    path = Path(sys.argv[1])
    tool = f"HolisticTraceAnalysis {version('HolisticTraceAnalysis')}, pandas {version('pandas')}"
    said: dict[str, float] = {}
    if path.is_dir():
        files = sorted(path.glob("*.gz")) or sorted(path.glob("*.json"))
        TraceAnalysis(trace_files={rank: str(file) for rank, file in enumerate(files)})
    else:
        analysis = TraceAnalysis(trace_files={0: str(path)})
        parts = analysis.get_temporal_breakdown(visualize=False).iloc[0]
        overlap = analysis.get_comm_comp_overlap(visualize=False).iloc[0]
        analysis.get_idle_time_breakdown(ranks=[0], visualize=False)
        said = {
            "compute_ns": float(parts["compute_time(us)"]) * 1000,
            "idle_ns": float(parts["idle_time(us)"]) * 1000,
            "overlap_ratio": float(overlap["comp_comm_overlap_pctg"]) / 100,
        }
    print(json.dumps({"tool": tool, "said": said}))


if __name__ == "__main__":
    main()
