"""What reaches the prediction of each layer is what the model itself lets through; choices are those of the notes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trainer.attention import Sight
from trainer.config import TrainConfig, preset, with_settings
from trainer.data import MicroBatch
from trainer.lambdas import chosen_layer, describe_choice, lambda_table
from trainer.model import GPT, Regions, mix
from trainer.pattern import MLP_LAYERS
from trainer.scalars import ScalarLayout, packed_num_scalars

NOTE_OF_140 = [0.5400, 0.4613, 0.4364, 0.3429, 0.2675, 0.3030, 0.2023, 0.3761, -0.0741, -0.2164, -0.2905]


def _config(name: str, *settings: str) -> TrainConfig:
    record = preset(name)
    features = [f"{field}={getattr(record, field)}" for field in ("backout", "block_initial", "skip_gate")]
    skips = ",".join(f"{source}-{target}" for source, target in record.skips)
    small = ["dim=32", "vocab_size=64", *features, f"skips={skips}"]
    return with_settings(preset("tiny_cpu"), [*small, *settings])


def _values(config: TrainConfig) -> dict[str, float]:
    layout = ScalarLayout(config)
    random = torch.Generator().manual_seed(3)
    return dict(zip(layout.names, torch.randn(len(layout.names), generator=random).tolist(), strict=True))


def _measured(config: TrainConfig, values: dict[str, float]) -> list[float]:
    """How much of x_0 and of each layer's own part ends in front of the head: the model's own forward, in numbers.

    Number i of the channels belongs to layer i, which adds 1 to it and nothing else; x_0 is 1 in channel 0.
    """
    numbers = iter(MLP_LAYERS)

    def add_own(x_TD: Tensor, *_: object) -> Tensor:
        return x_TD + torch.eye(32)[next(numbers)]

    def keep_what_enters(x_TD: Tensor, backout_TD: Tensor | None, backout: Tensor | None, *_: object) -> Tensor:
        return x_TD if backout_TD is None or backout is None else x_TD - backout * backout_TD

    regions = Regions(
        embed=lambda *_: torch.eye(32)[:1],
        attention_layer=lambda x_TD, x0_TD, weights, *_: mix(x_TD, x0_TD, weights),
        mlp_layer=add_own,
        head_loss=keep_what_enters,
    )
    model = GPT(config, num_scalars=packed_num_scalars(config, 1), device=torch.device("cpu"), regions=regions)
    model.initialise(0)
    with torch.no_grad():
        model.scalars[: len(values)] = torch.tensor(list(values.values()))
        batch = MicroBatch(tokens_T=torch.zeros(1).int(), targets_T=torch.zeros(1).long(), cu_seqlens=torch.zeros(2))
        end_TD: Tensor = model(batch, Sight("reference"), Sight("reference"))
    return end_TD[0, :12].tolist()


@pytest.mark.parametrize("name", ["record_149", "record_140", "record_134"])
@pytest.mark.parametrize("settings", [[], ["backout=per_layer"], ["skip_gate=plain", "skips=2-4,3-4,4-5"]])
def test_what_reaches_the_prediction_is_what_the_model_lets_through(name: str, settings: list[str]) -> None:
    config = _config(name, *settings)
    values = _values(config)
    table = lambda_table(config, values)
    reaching = [table.embedding, *(share.reaching for share in table.layers)]
    # Products of eleven fp32 numbers around 1, against the same in float64; they grow to some hundreds.
    assert _measured(config, values) == pytest.approx(reaching, rel=1e-4, abs=1e-4)


def test_block_lambdas_of_1_1_favour_the_first_layers_as_the_note_says() -> None:
    """The note of the record of 134.9 s: 1.1^10 R_1 + 1.1^9 R_2 + ... = 2.59 R_1 + 2.35 R_2 + 2.14 R_3 + ... R_11."""
    config = _config("record_134")
    layout = ScalarLayout(config)
    table = lambda_table(config, dict(zip(layout.names, layout.initial, strict=True)))
    assert [round(share.carried, 2) for share in table.layers[:3]] == [2.59, 2.36, 2.14]
    assert [share.carried for share in table.layers] == pytest.approx([1.1 ** (11 - layer) for layer in range(1, 12)])
    assert table.layers[-1].reaching == 1
    assert table.skips == {"4-7": pytest.approx(0.1824, abs=1e-4)}


def test_layer_8_is_chosen_from_the_coefficients_of_the_note() -> None:
    assert chosen_layer(NOTE_OF_140) == 8
    assert describe_choice(NOTE_OF_140).endswith("--set backout=layer --set backout_layer=8")
    assert chosen_layer([-0.1, 0.2, 0.1, -0.2]) == 3
    assert chosen_layer([-0.3, 0.2, -0.1]) == 0
    assert "nothing to back out" in describe_choice([-0.3, 0.2, -0.1])


def test_the_table_has_a_row_a_layer_and_the_choice_where_each_has_a_coefficient() -> None:
    config = _config("record_140", "backout=per_layer")
    values = _values(config) | {f"backout_{layer}": number for layer, number in enumerate(NOTE_OF_140, 1)}
    lines = lambda_table(config, values).describe().splitlines()
    rows = [line.split() for line in lines]
    assert [row[0] for row in rows[2:13]] == [str(layer) for layer in range(1, 12)]
    assert [float(row[-1]) for row in rows[2:13]] == NOTE_OF_140
    assert lines[-1].endswith("backout_layer=8")
    single = lambda_table(_config("record_140"), _values(_config("record_140"))).describe()
    assert "--set" not in single
