"""Positions, flight records, findings: what a failing rank's line is made of."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainer.errors import NOT_FINITE
from trainer.finite import FiniteWatch, NotFinite, NotFiniteError
from trainer.flight_recorder import read_pending
from trainer.position import HERE, Position, collective


def _watch() -> tuple[FiniteWatch, dict[str, list[nn.Parameter]]]:
    groups = {
        name: [nn.Parameter(torch.ones(3)) for _ in range(2)] for name in ("adam.lm_head", "muon.mlp", "muon.attn")
    }
    for parameters in groups.values():
        for parameter in parameters:
            parameter.grad = torch.full((3,), 2.0)
    return FiniteWatch(groups, rank=5), groups


def test_norms_are_those_of_the_groups() -> None:
    watch, _ = _watch()
    norms = watch.see(0, torch.tensor(1.0))
    assert {name: norm.item() for name, norm in norms.items()} == dict.fromkeys(
        ("adam.lm_head", "muon.mlp", "muon.attn"), pytest.approx(24**0.5)
    )


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_bad_value_names_its_group_alone(bad: float, dtype: torch.dtype) -> None:
    watch, groups = _watch()
    groups["muon.mlp"][1].grad = None
    groups["muon.mlp"][1].data = torch.ones(3, dtype=dtype)
    groups["muon.mlp"][1].grad = torch.tensor([1.0, bad, 1.0], dtype=dtype)
    with pytest.raises(NotFiniteError) as stop:
        watch.see(7, torch.tensor(1.0))
    assert stop.value.found == NotFinite(step=7, rank=5, names=("muon.mlp",), num_groups=3)
    assert stop.value.exit_code == NOT_FINITE
    assert stop.value.message.startswith("step 7, rank 5: the gradient of muon.mlp went first;")


def test_of_several_groups_the_first_in_backward_is_named() -> None:
    watch, groups = _watch()
    for name in ("muon.attn", "muon.mlp"):
        groups[name][0].grad = torch.full((3,), torch.nan)
    with pytest.raises(NotFiniteError, match=r"the gradient of muon.mlp went first \(2 of 3 groups in all\)"):
        watch.see(0, torch.tensor(1.0))


def test_a_bad_loss_with_good_gradients() -> None:
    watch, _ = _watch()
    with pytest.raises(NotFiniteError, match="the loss is not finite, the gradients of all 3 groups are finite"):
        watch.see(0, torch.tensor(torch.inf))


def test_a_missing_gradient_is_an_error() -> None:
    watch, groups = _watch()
    groups["muon.mlp"][0].grad = None
    with pytest.raises(RuntimeError, match="1 parameters have no gradient"):
        watch.see(0, torch.tensor(1.0))


def test_a_finding_survives_the_way_to_another_rank() -> None:
    found = NotFinite(step=7, rank=5, names=("loss", "muon.mlp"), num_groups=3)
    assert NotFinite.from_json(found.to_json()) == found


def test_a_position_says_step_and_place() -> None:
    here = Position()
    assert here.describe() == "before the first step, outside every stage"
    here.step = 3
    here.enter("reduce_scatter_wait of muon.attn", is_collective=True)
    assert here.describe() == "step 3, reduce_scatter_wait of muon.attn"
    assert 0 <= here.seconds_in_collective() < 60
    here.leave()
    assert here.describe() == "step 3, outside every stage"
    assert here.seconds_in_collective() == 0


def test_an_error_leaves_the_position_where_it_was() -> None:
    try:
        with pytest.raises(LookupError), collective("gather of a checkpoint"):
            raise LookupError
        assert HERE.place == "gather of a checkpoint"
    finally:
        HERE.place, HERE.is_collective = None, False


def test_pending_collectives_of_a_flight_record() -> None:
    """The fields as torch's NCCL recorder writes them (version 2.x), and gloo's."""
    entry = {"input_sizes": [[16, 768, 3072]], "time_created_ns": 5_000_000_000}
    record = {
        "version": "2.10",
        "entries": [
            entry | {"profiling_name": "nccl:all_gather", "collective_seq_id": 12, "state": "scheduled"},
            entry | {"profiling_name": "nccl:_reduce_scatter_base", "collective_seq_id": 11, "state": "started"},
            entry | {"profiling_name": "nccl:all_reduce", "collective_seq_id": 10, "state": "completed"},
            entry
            | {"profiling_name": "gloo:all_reduce", "collective_seq_id": 9, "state": "scheduled", "retired": True},
        ],
    }
    pending = read_pending(record, now_ns=130_000_000_000)
    assert [collective.sequence for collective in pending] == [11, 12]
    assert pending[0].age_s == 125
    assert pending[0].describe() == (
        "nccl:_reduce_scatter_base number 11 of [[16, 768, 3072]] (started, queued 125 s ago)"
    )
    assert read_pending({}, now_ns=0) == []
