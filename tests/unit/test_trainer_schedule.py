"""The schedule has the published values at the published steps."""

from __future__ import annotations

import pytest

from trainer import config as configs
from trainer import schedule

RECORD = configs.RECORD_134


@pytest.mark.parametrize(
    ("step", "factor"), [(0, 1.0), (1092, 1.0), (2185, 0.1), (2224, 0.1), (1639, 0.1 + 0.9 * (2185 - 1639) / 1092.5)]
)
def test_learning_rate_stays_then_falls_to_a_tenth(step: int, factor: float) -> None:
    assert schedule.learning_rate_factor(RECORD, step) == pytest.approx(factor, abs=1e-12)


@pytest.mark.parametrize(
    ("step", "momentum"), [(0, 0.85), (150, 0.90), (300, 0.95), (2175, 0.95), (2200, 0.90), (2224, 0.852)]
)
def test_momentum_warms_up_over_300_steps_and_back_over_the_last_50(step: int, momentum: float) -> None:
    assert schedule.muon_momentum(RECORD, step) == pytest.approx(momentum, abs=1e-12)


@pytest.mark.parametrize(
    ("step", "blocks"), [(0, 3), (728, 3), (729, 7), (1456, 7), (1457, 11), (2184, 11), (2185, 13), (2224, 13)]
)
def test_window_grows_by_thirds_and_once_more_in_the_extension(step: int, blocks: int) -> None:
    assert schedule.long_window_blocks(RECORD, step) == blocks


def test_adam_steps_every_second_time() -> None:
    assert [schedule.is_adam_step(step) for step in range(4)] == [False, True, False, True]
