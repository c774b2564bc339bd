"""A run goes on from a checkpoint to the bit, and on another number of ranks as if it had always had that number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import checkpoint_program as program
import pytest
import torch
from gloo import run_ranks

from trainer.checkpoint_file import checkpoint_path, read_checkpoint_file


@pytest.mark.parametrize("world_size", [1, 2])
def test_ten_steps_are_five_and_five_to_the_bit(tmp_path: Path, world_size: int) -> None:
    data = program.make_data(tmp_path)
    for straight, resumed in run_ranks(program.straight_and_in_halves, world_size, data, tmp_path / "saved"):
        for name, parameter in straight.parameters.items():
            assert torch.equal(parameter, resumed.parameters[name]), name
        assert resumed.window_blocks == straight.window_blocks > 1
        assert resumed.rotary_scale == straight.rotary_scale
        assert torch.equal(resumed.random, straight.random)
    saved = read_checkpoint_file(checkpoint_path(tmp_path / "saved", program.HALF))
    assert len(saved["gradients"]) == len(saved["random"]) == saved["world_size"] == world_size
    assert any(gradient.any() for gradient in saved["gradients"][0].values()), "no gradient was waiting for Adam"


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 3)])
def test_another_number_of_ranks_goes_on_as_one_process_does(tmp_path: Path, before: int, after: int) -> None:
    """State is shared anew without a change; ten steps then end where those of one process do.

    The tolerance is what ranks differ by that never saw a checkpoint: fp32 sums in another order, which the
    orthogonalisation of the gates' small, nearly singular matrices magnifies to 0.012 after ten steps; all else stays
    under 0.002.
    """
    data = program.make_data(tmp_path)
    run_ranks(program.save_straight_and_halfway, 1, data, tmp_path / "one")
    if before > 1:
        run_ranks(program.save_straight_and_halfway, before, data, tmp_path / "before")
    source = tmp_path / ("before" if before > 1 else "one")
    run_ranks(program.resume_and_save, after, data, source, tmp_path / "after")
    _check_shared_anew(_read(source, program.HALF), _read(tmp_path / "after", program.HALF))
    one, resumed = (_read(folder, program.NUM_STEPS) for folder in (tmp_path / "one", tmp_path / "after"))
    assert resumed["num_rows_done"] == one["num_rows_done"] == 6 * program.NUM_STEPS
    assert resumed["adam_num_steps"] == one["adam_num_steps"] == program.NUM_STEPS // 2
    scale = one["rows_per_rank"] / resumed["rows_per_rank"]
    for key in ("parameters", "muon", "adam"):
        for name, first, second in _pairs(one[key], resumed[key]):
            difference = (first - second * scale ** _power(key, name)).norm() / first.norm().clamp_min(1e-12)
            assert difference < (0.03 if "gate" in name else 0.004), (key, name, difference)


def _check_shared_anew(saved: dict[str, Any], again: dict[str, Any]) -> None:
    """All values are the saved ones, scaled where they are of gradients."""
    assert (again["num_steps_done"], again["num_rows_done"]) == (saved["num_steps_done"], saved["num_rows_done"])
    scale = again["rows_per_rank"] / saved["rows_per_rank"]
    for key in ("parameters", "muon", "adam"):
        for name, first, second in _pairs(saved[key], again[key]):
            assert torch.equal(first * scale ** _power(key, name), second), (key, name)
    means = {
        name: torch.stack([own[name] for own in saved["gradients"]]).mean(0) * scale for name in saved["gradients"][0]
    }
    assert means.keys() >= {"embed", "lm_head", "scalars"}
    for own in again["gradients"]:
        for name, mean, gradient in _pairs(means, own):
            assert torch.equal(mean, gradient), name


def _read(folder: Path, num_steps: int) -> dict[str, Any]:
    return read_checkpoint_file(checkpoint_path(folder, num_steps))


def _power(key: str, name: str) -> int:
    """With which power of a gradient's size a saved value grows."""
    state = name.rpartition("/")[2]
    return {"momentum": 1, "mean": 1, "mean_square": 2 if key == "adam" else 0}.get(state, 0)


def _pairs(first: Any, second: Any, name: str = "") -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    """Tensors of one name; the padding of the packed scalars, which follows the number of ranks, is cut off."""
    if isinstance(first, torch.Tensor):
        num_shared = min(len(first), len(second)) if first.dim() == 1 else len(first)
        return [(name, first[:num_shared], second[:num_shared])]
    assert first.keys() == second.keys()
    return [pair for key in first for pair in _pairs(first[key], second[key], f"{name}/{key}")]
