"""The launcher of the distributed tests tells the truth about its ranks."""

import os
import time

import pytest
import torch
import torch.distributed as dist
from gloo import RankFailedError, run_ranks


def _sum_of_ranks(offset: float) -> float:
    value = torch.tensor(dist.get_rank() + offset)
    dist.all_reduce(value)
    return value.item()


def _fail_on_rank_1() -> None:
    if dist.get_rank() == 1:
        raise LookupError("lost on purpose")
    dist.barrier()


def _die_on_rank_0() -> None:
    if dist.get_rank() == 0:
        os._exit(3)


def _hang() -> None:
    time.sleep(60)


def test_ranks_meet_and_answer_in_order():
    assert run_ranks(_sum_of_ranks, 2, 0.5) == [2.0, 2.0]


def test_a_failing_rank_is_named_with_its_own_traceback():
    with pytest.raises(RankFailedError, match=r"(?s)rank 1 of 2 failed.*_fail_on_rank_1.*lost on purpose"):
        run_ranks(_fail_on_rank_1, 2)


def test_a_rank_that_dies_is_named():
    with pytest.raises(RankFailedError, match="rank 0 of 1 died"):
        run_ranks(_die_on_rank_0, 1)


def test_a_rank_that_hangs_is_ended():
    with pytest.raises(RankFailedError, match=r"ranks \[0\] did not finish"):
        run_ranks(_hang, 1, time_limit_s=1)
