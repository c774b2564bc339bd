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


@pytest.mark.parametrize(("long", "short"), [(1, 1), (3, 1), (7, 3), (11, 5), (13, 6)])
def test_the_short_window_is_half_of_the_long_one_in_whole_blocks(long: int, short: int) -> None:
    assert schedule.short_window_blocks(long) == short


def test_adam_steps_every_second_time_or_always() -> None:
    assert [schedule.is_adam_step(RECORD, step) for step in range(4)] == [False, True, False, True]
    assert all(schedule.is_adam_step(configs.RECORD_149, step) for step in range(4))


@pytest.mark.parametrize(
    ("config", "step", "factor"),
    [
        (configs.RECORD_140, 1259, 1.0),
        (configs.RECORD_140, 2290, 0.1),
        (configs.RECORD_149, 820, 1.0),
        (configs.RECORD_149, 1230, 0.55),
        (configs.RECORD_149, 1679, 0.1),
    ],
)
def test_the_earlier_records_cool_down_over_45_and_50_percent(
    config: configs.TrainConfig, step: int, factor: float
) -> None:
    assert schedule.learning_rate_factor(config, step) == pytest.approx(factor, abs=1e-12)


def test_the_earlier_records_keep_their_window_in_the_extension() -> None:
    assert [schedule.long_window_blocks(configs.RECORD_140, step) for step in (2289, 2290, 2329)] == [11, 11, 11]
    assert [schedule.long_window_blocks(configs.RECORD_149, step) for step in (0, 1639, 1679)] == [3, 11, 11]


def test_the_first_record_has_no_momentum_cooldown() -> None:
    assert schedule.muon_momentum(configs.RECORD_149, 1679) == 0.95
    assert schedule.muon_momentum(configs.RECORD_140, 2329) == pytest.approx(0.852)
