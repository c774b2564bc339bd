"""On a GPU every record's features train, compiled as a whole, with the record's kernels and types."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from speedprof import annotate
from trainer.config import preset, with_settings
from trainer.loop import Training, TrainingData
from trainer.ranks import Ranks, process_group
from trainer.shards import write_shard
from trainer.vocabulary import END_OF_TEXT

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

SMALL = [
    "dim=256",
    "num_heads=2",
    "micro_batch_tokens=2048",
    "micro_batches_per_step=2",
    "max_document_tokens=512",
    "num_scheduled_steps=18",
    "num_extension_steps=2",
    "validation_micro_batches=2",
    "validation_interval=none",
]


class _Losses:
    """A listener that keeps the losses, which stay on the device."""

    def __init__(self) -> None:
        self.losses: list[torch.Tensor] = []
        self.names: set[str] = set()

    def __getattr__(self, _: str) -> object:
        return lambda *arguments, **named: None

    def metric_seen(self, name: str, value: float | torch.Tensor) -> None:
        self.names.add(name)
        if name == "loss":
            assert isinstance(value, torch.Tensor)
            self.losses.append(value.detach().clone())


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    yield
    annotate.listen(None)
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.parametrize("name", ["record_149", "record_140", "record_134", "speedrun"])
@pytest.mark.parametrize("settings", [[], ["backout=per_layer"]], ids=["as_it_is", "per_layer"])
def test_a_record_trains(name: str, settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = [END_OF_TEXT, *([11, 12, 13, 14] * 100)]
    write_shard(np.array(document * 64, dtype=np.uint16), tmp_path / "x.bin")
    data = TrainingData(train=[tmp_path / "x.bin"], validation=[tmp_path / "x.bin"])
    ranks = Ranks(rank=0, local_rank=0, world_size=1, device=torch.device("cuda", 0))
    heard = _Losses()
    annotate.listen(heard)  # type: ignore[arg-type]  # it answers to every name
    config = with_settings(preset(name), [*SMALL, *settings])
    with process_group(ranks):
        Training(config, data, ranks).run(config.num_steps)
    losses = torch.stack(heard.losses).tolist()
    assert losses[0] == pytest.approx(math.log(50_304), abs=0.05)
    assert losses[-1] < losses[0] - 1
    assert {"gradient_norm/muon.mlp", "lambda/block_11_x0"} <= heard.names
    assert ("backout:" in capsys.readouterr().out) == bool(settings)
