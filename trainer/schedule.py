"""What changes from step to step: learning rate, Muon's momentum, the attention window, Adam's turns.

All are pure functions of the configuration and the step, counted from 0. Formulas: record of 134.9 s, 2025-11-18,
where none is named.
"""

from __future__ import annotations

from trainer.config import TrainConfig

WARMUP_RATIO = 0.1
FEWEST_WARMUP_STEPS = 2
WARMUP_LINEAR_FINAL_RATIO = 0.1


def learning_rate_factor(config: TrainConfig, step: int) -> float:
    """The share of the peak learning rate at a step, by the schedule that the configuration names."""
    if config.learning_rate_schedule == "warmup_linear":
        return warmup_linear_factor(config, step)
    return record_factor(config, step)


def record_factor(config: TrainConfig, step: int) -> float:
    """1 until the cooldown, then linear to `final_learning_rate_ratio`, which the extension steps keep."""
    remaining_ratio = 1 - min(step / config.num_scheduled_steps, 1.0)
    if remaining_ratio > config.cooldown_ratio:
        return 1.0
    weight = remaining_ratio / config.cooldown_ratio
    return weight + (1 - weight) * config.final_learning_rate_ratio


def warmup_linear_factor(config: TrainConfig, step: int) -> float:
    """Linear up to 1 at the last warm-up step, then linear down to a tenth at the run's last step.

    pytorch/torchtitan, pull request 23: 10% of all steps warm up, at least 2; the decay is one order of magnitude.
    """
    warmup_steps, last_step = num_warmup_steps(config), config.num_steps - 1
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    decayed_ratio = (min(step, last_step) - warmup_steps + 1) / (last_step - warmup_steps + 1)
    return 1 - (1 - WARMUP_LINEAR_FINAL_RATIO) * decayed_ratio


def num_warmup_steps(config: TrainConfig) -> int:
    """Steps of the linear warm-up of `warmup_linear`."""
    return max(int(config.num_steps * WARMUP_RATIO), FEWEST_WARMUP_STEPS)


def muon_momentum(config: TrainConfig, step: int) -> float:
    """Up from low to high over the warm-up, and back over the last steps of the whole run."""
    low, high = config.muon_momentum_low, config.muon_momentum_high
    steps_left = config.num_steps - step
    if step < config.muon_momentum_warmup_steps:
        return low + (high - low) * step / config.muon_momentum_warmup_steps
    if steps_left < config.muon_momentum_cooldown_steps:
        return low + (high - low) * steps_left / config.muon_momentum_cooldown_steps
    return high


def long_window_blocks(config: TrainConfig, step: int) -> int:
    """Long attention window of a training step, in blocks: equal parts of the schedule, then the extension's."""
    if step >= config.num_scheduled_steps:
        return config.extension_window_blocks
    return config.window_blocks[step * len(config.window_blocks) // config.num_scheduled_steps]


def short_window_blocks(long_blocks: int) -> int:
    """The short attention window beside a long one: half of it in whole blocks, rounded down, but at least one."""
    return max(long_blocks // 2, 1)


def is_adam_step(config: TrainConfig, step: int) -> bool:
    """Adam takes the last step of every interval; in between its gradients add up."""
    return step % config.adam_interval == config.adam_interval - 1
