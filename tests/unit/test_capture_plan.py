"""A plan checks its own numbers and survives the way to the ranks."""

import pytest

from speedprof.capture.plan import CapturePlan
from speedprof.errors import ExitCode, UsageError


@pytest.mark.parametrize(
    ("numbers", "option"),
    [
        ({"steps": 0}, "--steps 0"),
        ({"steps": -3}, "--steps -3"),
        ({"warmup": -1}, "--warmup -1"),
        ({"trace_steps": -1}, "--trace-steps -1"),
        ({"max_trace_bytes": 0}, "--max-trace-mb"),
    ],
)
def test_a_number_that_makes_no_sense_is_refused_by_its_option(numbers: dict[str, int], option: str) -> None:
    with pytest.raises(UsageError) as refused:
        CapturePlan(**numbers)  # type: ignore[arg-type]
    assert refused.value.problem.startswith(option)
    assert refused.value.next_step
    assert refused.value.exit_code is ExitCode.WRONG_USAGE


def test_a_plan_may_ask_for_no_warm_up_and_no_trace() -> None:
    assert CapturePlan(steps=1, warmup=0, trace_steps=0).trace_steps == 0


@pytest.mark.parametrize("plan", [CapturePlan(), CapturePlan(steps=7, trace_steps=2, shapes=False, stacks=True)])
def test_a_plan_reads_back_from_its_json(plan: CapturePlan) -> None:
    assert CapturePlan.from_json(plan.to_json()) == plan
