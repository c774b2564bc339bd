"""The log's line a step, and a clock that leaves out what is no training."""

from __future__ import annotations

import pytest
import torch

from trainer import progress
from trainer.progress import Progress
from trainer.ranks import Ranks


class _Clock:
    def __init__(self) -> None:
        self.now_ns = 1_000

    def perf_counter_ns(self) -> int:
        return self.now_ns

    def pass_ms(self, milliseconds: float) -> None:
        self.now_ns += round(milliseconds * 1e6)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    clock = _Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def _ranks(rank: int = 0) -> Ranks:
    return Ranks(rank=rank, local_rank=rank, world_size=2, device=torch.device("cpu"))


def test_a_line_has_loss_rate_time_and_tokens(clock: _Clock, capsys: pytest.CaptureFixture[str]) -> None:
    log = Progress(_ranks(), tokens_per_step=500)
    clock.pass_ms(77)  # setting up
    log.start(0)
    for step in range(6):
        clock.pass_ms(10)
        log.step_ended(step, torch.tensor(3.0 + step), 0.03, is_due=step % 5 == 0)
    assert capsys.readouterr().out.splitlines() == [
        "step     0  train loss 3.0000  lr 0.030000  10.0 ms/step  50,000 tokens/s",
        "step     5  train loss 8.0000  lr 0.030000  10.0 ms/step  50,000 tokens/s",
    ]


def test_a_resumed_run_counts_its_own_steps(clock: _Clock, capsys: pytest.CaptureFixture[str]) -> None:
    log = Progress(_ranks(), tokens_per_step=500)
    log.start(100)
    clock.pass_ms(20)
    log.step_ended(100, torch.tensor(1.0), 0.03, is_due=False)
    clock.pass_ms(30)
    log.step_ended(101, torch.tensor(1.0), 0.03, is_due=True)
    assert "25.0 ms/step  20,000 tokens/s" in capsys.readouterr().out
    assert log.first_step_s == 0.02


def test_validation_and_checkpoints_are_left_out(clock: _Clock, capsys: pytest.CaptureFixture[str]) -> None:
    log = Progress(_ranks(), tokens_per_step=500)
    log.start(0)
    clock.pass_ms(10)
    with log.left_out():
        clock.pass_ms(5000)
    clock.pass_ms(10)
    log.step_ended(0, torch.tensor(1.0), 0.03, is_due=True)
    assert "20.0 ms/step" in capsys.readouterr().out
    assert log.train_s() == 0.02


def test_the_other_ranks_say_nothing(clock: _Clock, capsys: pytest.CaptureFixture[str]) -> None:
    log = Progress(_ranks(1), tokens_per_step=500)
    log.start(0)
    clock.pass_ms(10)
    log.step_ended(0, torch.tensor(1.0), 0.03, is_due=True)
    log.flush()
    assert capsys.readouterr().out == ""
    assert log.train_s() == 0.01
