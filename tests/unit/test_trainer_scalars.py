"""Every learned scalar has a name, a place and the value that the records start it with."""

from __future__ import annotations

import pytest
import torch

from trainer.config import preset, with_settings
from trainer.errors import TrainerError
from trainer.scalars import ScalarLayout, packed_num_scalars

FIVE_PAIRS = [(1, 10), (2, 9), (3, 8), (4, 7), (5, 6)]
LAYERS = list(range(1, 12))


def _initial(name: str, *settings: str) -> dict[str, float]:
    layout = ScalarLayout(with_settings(preset(name), list(settings)))
    return dict(zip(layout.names, layout.initial, strict=True))


def test_the_record_of_134_has_one_skip_one_backout_and_blocks_that_start_at_1_1() -> None:
    initial = _initial("record_134")
    assert len(initial) == 1 + 22 + 15 + 1 + 1
    assert initial["skip_4_7"] == -1.5
    assert (initial["smear"], initial["backout_8"]) == (0.0, 0.5)
    assert [(initial[f"block_{layer}_x"], initial[f"block_{layer}_x0"]) for layer in LAYERS] == [(1.1, 0.0)] * 11
    own = [f"value_{layer}_own" for layer in LAYERS if layer != 7]
    table = [f"value_{layer}_table" for layer in (1, 2, 9, 10, 11)]
    assert {name: initial[name] for name in initial if name.startswith("value")} == dict.fromkeys(own + table, 0.5)


@pytest.mark.parametrize(("name", "backouts"), [("record_149", []), ("record_140", ["backout_8"])])
def test_the_earlier_records_have_five_skips_and_blocks_that_start_at_1(name: str, backouts: list[str]) -> None:
    initial = _initial(name)
    skips = {f"skip_{source}_{target}": -1.5 for source, target in FIVE_PAIRS}
    assert {entry: value for entry, value in initial.items() if entry.startswith("skip")} == skips
    assert {initial[f"block_{layer}_x"] for layer in LAYERS} == {1.0}
    assert [entry for entry in initial if entry.startswith("backout")] == backouts


def test_backout_per_layer_has_a_coefficient_a_layer_that_starts_at_nothing() -> None:
    initial = _initial("record_140", "backout=per_layer")
    assert {name: initial[name] for name in initial if name.startswith("backout")} == {
        f"backout_{layer}": 0.0 for layer in LAYERS
    }


@pytest.mark.parametrize("name", ["record_149", "record_140", "record_134", "tiny_cpu"])
@pytest.mark.parametrize("backout", ["none", "layer", "per_layer"])
def test_every_number_is_unpacked_from_its_own_place(name: str, backout: str) -> None:
    layout = ScalarLayout(with_settings(preset(name), [f"backout={backout}"]))
    packed = torch.arange(72.0)
    place = {entry: float(number) for number, entry in enumerate(layout.names)}
    scalars = layout.unpack(packed)
    found = {f"skip_{source}_{target}": weight.item() for (source, target), weight in scalars.skip.items()}
    for layer, pair in scalars.block.items():
        found |= dict(zip([f"block_{layer}_x", f"block_{layer}_x0"], pair.tolist(), strict=True))
    for layer, weights in scalars.value.items():
        found |= dict(zip([f"value_{layer}_own", f"value_{layer}_table"], weights.tolist(), strict=False))
    found["smear"] = scalars.smear.item()
    found |= {f"backout_{layer}": share.item() for layer, share in scalars.backout.items()}
    assert found == place


def test_padding_is_ones_behind_what_is_named() -> None:
    layout = ScalarLayout(preset("record_134"))
    packed = layout.pack(64)
    assert packed.dtype == torch.float32
    assert packed[:40].tolist() == pytest.approx(layout.initial)
    assert packed[40:].tolist() == [1.0] * 24


def test_number_of_scalars_follows_the_ranks_or_is_refused() -> None:
    record, tiny = preset("record_134"), preset("tiny_cpu")
    assert [packed_num_scalars(tiny, ranks) for ranks in (1, 2, 3, 8)] == [40, 40, 42, 40]
    assert [packed_num_scalars(record, ranks) for ranks in (1, 8)] == [64, 64]
    for length in (56, 64, 72):  # the lengths whose effect the record's note is about
        for name in ("record_149", "record_140", "record_134"):
            config = with_settings(preset(name), [f"num_scalars={length}", "backout=per_layer"])
            assert packed_num_scalars(config, 8) == length
    with pytest.raises(TrainerError, match=r"num_scalars=39 must be 40 or more .* --set num_scalars=40"):
        packed_num_scalars(with_settings(record, ["num_scalars=39"]), 8)
    with pytest.raises(TrainerError, match="multiple of the 8 ranks: --set num_scalars=40"):
        packed_num_scalars(with_settings(record, ["num_scalars=60"]), 8)
