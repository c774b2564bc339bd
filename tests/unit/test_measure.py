from __future__ import annotations

import pytest
from builders import build_traces

from speedprof.analyses.analysis import Analysis
from speedprof.analyses.measure import compare_ranks, measure_rank

# Rank 1 begins every collective 200 ns after rank 0.
TWO_LATE_STEPS = """
0 | main   | speedprof.step/1 | 0    | 1000 |
0 | main   | aten::mm         | 0    | 300  |
0 | gloo 0 | gloo:all_reduce  | 300  | 600  |
0 | main   | speedprof.step/2 | 1000 | 2000 |
0 | main   | aten::mm         | 1000 | 1300 |
0 | gloo 0 | gloo:all_reduce  | 1300 | 1600 |
1 | main   | speedprof.step/1 | 0    | 1000 |
1 | main   | aten::mm         | 0    | 500  |
1 | gloo 0 | gloo:all_reduce  | 500  | 600  |
1 | main   | speedprof.step/2 | 1000 | 2000 |
1 | main   | aten::mm         | 1000 | 1500 |
1 | gloo 0 | gloo:all_reduce  | 1500 | 1600 |
"""


def compared(ranks_share_cores: bool | None) -> Analysis:
    measured = [measure_rank(trace) for trace in build_traces(TWO_LATE_STEPS).values()]
    return compare_ranks(measured, ranks_share_cores=ranks_share_cores)


@pytest.mark.parametrize(("ranks_share_cores", "late"), [(False, [(1, 200)]), (True, []), (None, [])])
def test_only_cpu_ranks_with_cores_of_their_own_are_called_late(
    ranks_share_cores: bool | None, late: list[tuple[int, int]]
) -> None:
    analysis = compared(ranks_share_cores)
    assert analysis.can_tell_overlap is (ranks_share_cores is False)
    assert [(one.rank, one.cost_ns) for one in analysis.stragglers] == late
