from __future__ import annotations

import pytest
from builders import build_traces

from speedprof.analyses.analysis import Analysis
from speedprof.analyses.measure import compare_ranks, measure_rank

NUM_STEPS = 12  # as many as it takes to tell a late rank from chance


def late_steps() -> str:
    """Rank 1 begins every collective 200 ns after rank 0."""
    rows = []
    for step in range(NUM_STEPS):
        at = 1_000 * step
        for rank, begin in ((0, at + 300), (1, at + 500)):
            rows += [
                f"{rank} | main   | speedprof.step/{step} | {at}    | {at + 1_000} |",
                f"{rank} | main   | aten::mm              | {at}    | {begin}      |",
                f"{rank} | gloo 0 | gloo:all_reduce       | {begin} | {at + 600}   |",
            ]
    return "\n".join(rows)


def compared(ranks_share_cores: bool | None) -> Analysis:
    measured = [measure_rank(trace) for trace in build_traces(late_steps()).values()]
    return compare_ranks(measured, ranks_share_cores=ranks_share_cores)


@pytest.mark.parametrize(("ranks_share_cores", "late"), [(False, [(1, 200)]), (True, []), (None, [])])
def test_only_cpu_ranks_with_cores_of_their_own_are_called_late(
    ranks_share_cores: bool | None, late: list[tuple[int, int]]
) -> None:
    analysis = compared(ranks_share_cores)
    assert analysis.can_tell_overlap is (ranks_share_cores is False)
    assert [(one.rank, one.cost_ns) for one in analysis.stragglers] == late
