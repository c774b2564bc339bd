"""The learning rates through LambdaLR, at the borders of the schedules, and what the log says of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from trainer import schedule
from trainer.config import TrainConfig, preset, with_settings
from trainer.learning_rate import LearningRates


def _config(num_steps: int, learning_rate_schedule: str = "warmup_linear") -> TrainConfig:
    settings = [f"num_scheduled_steps={num_steps}", "num_extension_steps=0", "muon_learning_rate=0.5"]
    return with_settings(preset("tiny_cpu"), [*settings, f"learning_rate_schedule={learning_rate_schedule}"])


@pytest.mark.parametrize(
    ("num_steps", "warmup_steps"), [(1, 2), (2, 2), (10, 2), (20, 2), (29, 2), (30, 3), (100, 10), (109, 10)]
)
def test_a_tenth_of_the_steps_warms_up_and_at_least_two(num_steps: int, warmup_steps: int) -> None:
    assert schedule.num_warmup_steps(_config(num_steps)) == warmup_steps


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (0, 0.1),
        (1, 0.2),
        (8, 0.9),
        (9, 1.0),  # the last step of the warm-up
        (10, 1 - 0.9 / 90),
        (54, 1 - 0.9 * 45 / 90),
        (98, 0.1 + 0.9 / 90),
        (99, 0.1),  # the last step of the run
        (100, 0.1),
    ],
)
def test_linear_up_then_linear_down_to_a_tenth(step: int, factor: float) -> None:
    assert schedule.warmup_linear_factor(_config(100), step) == pytest.approx(factor, abs=1e-12)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 21])
def test_short_runs_never_leave_the_bounds(num_steps: int) -> None:
    factors = [schedule.learning_rate_factor(_config(num_steps), step) for step in range(num_steps)]
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[0] == 0.5
    if num_steps > 2:
        assert factors[1] == 1
        assert factors[-1] == pytest.approx(0.1, abs=1e-12)
        assert factors[1:] == sorted(factors[1:], reverse=True)


def test_extension_steps_belong_to_all_steps() -> None:
    config = with_settings(_config(80), ["num_extension_steps=20"])
    assert schedule.num_warmup_steps(config) == 10
    assert schedule.learning_rate_factor(config, 99) == pytest.approx(0.1, abs=1e-12)


@pytest.mark.parametrize("name", ["record", "warmup_linear"])
def test_rates_are_those_of_a_plain_lambda_scheduler(name: str) -> None:
    config = _config(30, name)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.muon_learning_rate)
    scheduler = LambdaLR(optimizer, lambda step: schedule.learning_rate_factor(config, step))
    rates = LearningRates(config)
    for step in range(30):
        muon, adam = rates.at(step)
        assert muon == scheduler.get_last_lr()[0]
        assert adam == config.adam_learning_rate * schedule.learning_rate_factor(config, step)
        optimizer.step()
        scheduler.step()


def test_the_record_stays_the_default() -> None:
    assert preset("tiny_cpu").learning_rate_schedule == preset("record_134").learning_rate_schedule == "record"


@pytest.mark.parametrize("first_step", [1, 7, 29])
def test_rates_from_the_middle_are_those_of_the_whole(first_step: int) -> None:
    whole, resumed = LearningRates(_config(30)), LearningRates(_config(30), first_step)
    assert [resumed.at(step) for step in range(first_step, 30)] == [whole.at(step) for step in range(first_step, 30)]


def test_rates_never_go_back() -> None:
    rates = LearningRates(_config(30))
    rates.at(5)
    with pytest.raises(ValueError, match="step 4 lies before step 5"):
        rates.at(4)


def test_the_schedule_in_one_line() -> None:
    assert LearningRates(_config(100)).describe() == (
        "learning rate: linear warm-up over 10 steps to 0.5 (Adam 0.008), "
        "linear decay over 90 steps to 0.05 (Adam 0.0008)"
    )
