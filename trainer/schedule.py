"""What changes from step to step: learning rate, Muon's momentum, the attention window, Adam's turns.

All are pure functions of the configuration and the step, counted from 0. Formulas: record of 134.9 s, 2025-11-18.
"""

from __future__ import annotations

from trainer.config import TrainConfig


def learning_rate_factor(config: TrainConfig, step: int) -> float:
    """1 until the cooldown, then linear to `final_learning_rate_ratio`, which the extension steps keep."""
    remaining_ratio = 1 - min(step / config.num_scheduled_steps, 1.0)
    if remaining_ratio > config.cooldown_ratio:
        return 1.0
    weight = remaining_ratio / config.cooldown_ratio
    return weight + (1 - weight) * config.final_learning_rate_ratio


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


def is_adam_step(step: int) -> bool:
    """Adam steps every second time; in between its gradients add up."""
    return step % 2 == 1
