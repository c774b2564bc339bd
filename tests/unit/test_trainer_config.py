"""The configuration refuses what contradicts itself, in one line that says what to do."""

from __future__ import annotations

import pytest

from trainer import config as configs
from trainer.errors import WRONG_USAGE, TrainerError


def test_record_has_the_published_sizes() -> None:
    record = configs.preset("record_134")
    assert record.num_steps == 2225
    assert [record.tokens_per_step(ranks) for ranks in (1, 2, 4, 8)] == [262_144] * 4
    assert [record.accumulation_steps(ranks) for ranks in (1, 2, 4, 8)] == [8, 4, 2, 1]
    assert record.head_dim == 128


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "record_149",
            "num_scheduled_steps=1640 num_extension_steps=40 cooldown_ratio=0.5 micro_batch_tokens=49152 "
            "orthogonalisation=newton_schulz muon_variant=plain muon_learning_rate=0.05 muon_weight_decay=0.0 "
            "adam_learning_rate=0.008 adam_epsilon=1e-08 adam_beta1=0.8 adam_beta2=0.95 adam_interval=1 "
            "adam_reduces_in=step muon_momentum_low=0.85 muon_momentum_high=0.95 muon_momentum_warmup_steps=300 "
            "muon_momentum_cooldown_steps=0 window_blocks=3,7,11 extension_window_blocks=11 "
            "final_validation_window_blocks=20 logits_precision=fp32 skips=1-10,2-9,3-8,4-7,5-6 backout=none "
            "block_initial=1.0 num_scalars=72",
        ),
        (
            "record_140",
            "num_scheduled_steps=2290 num_extension_steps=40 cooldown_ratio=0.45 micro_batch_tokens=32768 "
            "orthogonalisation=polar_express muon_variant=plain muon_learning_rate=0.06 muon_weight_decay=0.0 "
            "adam_learning_rate=0.008 adam_epsilon=1e-08 adam_beta1=0.65 adam_beta2=0.95 adam_interval=2 "
            "adam_reduces_in=step muon_momentum_low=0.85 muon_momentum_high=0.95 muon_momentum_warmup_steps=300 "
            "muon_momentum_cooldown_steps=50 window_blocks=3,7,11 extension_window_blocks=11 "
            "final_validation_window_blocks=20 logits_precision=bf16 skips=1-10,2-9,3-8,4-7,5-6 backout=layer "
            "backout_layer=8 backout_initial=0.5 block_initial=1.0 num_scalars=64",
        ),
        (
            "record_134",
            "num_scheduled_steps=2185 num_extension_steps=40 cooldown_ratio=0.5 micro_batch_tokens=32768 "
            "orthogonalisation=polar_express muon_variant=normuon muon_learning_rate=0.03 muon_weight_decay=1.2 "
            "muon_beta2=0.95 adam_learning_rate=0.008 adam_epsilon=1e-08 adam_beta1=0.65 adam_beta2=0.95 "
            "adam_interval=2 adam_reduces_in=backward muon_momentum_low=0.85 muon_momentum_high=0.95 "
            "muon_momentum_warmup_steps=300 muon_momentum_cooldown_steps=50 window_blocks=3,7,11 "
            "extension_window_blocks=13 final_validation_window_blocks=20 logits_precision=bf16 skips=4-7 "
            "skip_gate=sigmoid skip_initial=-1.5 backout=layer backout_layer=8 backout_initial=0.5 block_initial=1.1 "
            "num_scalars=64",
        ),
    ],
)
def test_presets_have_the_figures_of_their_records(name: str, expected: str) -> None:
    """The table of what distinguishes them, as published."""
    config = configs.preset(name)
    assert configs.with_settings(config, expected.split()) == config
    assert (config.dim, config.num_heads) == (768, 6)


def test_tokens_per_step_of_the_records_on_8_ranks() -> None:
    tokens = {name: configs.preset(name).tokens_per_step(8) for name in configs.PRESETS if name != "tiny_cpu"}
    assert tokens == {"record_149": 393_216, "record_140": 262_144, "record_134": 262_144, "speedrun": 262_144}


def test_skips_are_spelled_as_pairs_of_layers() -> None:
    tiny = configs.preset("tiny_cpu")
    assert configs.with_settings(tiny, ["skips=1-10,4-7"]).skips == ((1, 10), (4, 7))
    assert configs.with_settings(tiny, ["skips=none"]).skips == ()
    assert configs.spell_value(()) == "none"


def test_tiny_takes_one_row_per_rank_whatever_their_number() -> None:
    tiny = configs.preset("tiny_cpu")
    assert [tiny.accumulation_steps(ranks) for ranks in (1, 3, 5)] == [1, 1, 1]
    assert tiny.tokens_per_step(3) == 3 * tiny.micro_batch_tokens


def test_ranks_that_do_not_divide_the_step_are_refused() -> None:
    with pytest.raises(TrainerError, match="3 ranks do not divide the 8 micro-batches") as caught:
        configs.preset("record_134").accumulation_steps(3)
    assert caught.value.exit_code == WRONG_USAGE


def test_settings_take_every_type() -> None:
    changed = configs.with_settings(
        configs.preset("tiny_cpu"),
        [
            "dim=32",
            "cooldown_ratio=0.25",
            "compile=off",
            "window_blocks=1,2",
            "num_scalars=56",
            "validation_interval=none",
        ],
    )
    assert (changed.dim, changed.cooldown_ratio, changed.compile) == (32, 0.25, "off")
    assert (changed.window_blocks, changed.num_scalars, changed.validation_interval) == ((1, 2), 56, None)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("dimm=3", "no field 'dimm'; the fields are seed, dim,"),
        ("preset=x", "no field 'preset'"),
        ("dim=wide", "dim takes a whole number"),
        ("dim", "dim takes a whole number"),
        ("compile=always", "compile takes model or blocks or off"),
        ("num_scalars=few", "num_scalars takes a whole number or none"),
        ("dim=65", "dim=65 must be"),
        ("max_documents=0", "max_documents=0 must be 1 or more"),
        ("max_document_tokens=1000", "is over micro_batch_tokens"),
        ("attention=flex", "works with attention=reference"),
        ("cooldown_ratio=0", "must be over 0"),
        ("num_scheduled_steps=0", "must be 1 or more"),
        ("num_extension_steps=-1", "must not be negative"),
        ("window_blocks=0,1", "numbers of 1 or more"),
        ("vocab_size=1", "must be 2 or more"),
        ("seed=-1", "seed=-1 must be 0 or more"),
        ("seed=9223372036854775808", "under 2**63"),
        ("extension_window_blocks=0", "must be 1 or more"),
        ("final_validation_window_blocks=-1", "must be 1 or more"),
        ("adam_beta2=1", "must be 0 or more and under 1"),
        ("muon_beta2=-0.1", "must be 0 or more and under 1"),
        ("adam_epsilon=0", "must be over 0"),
        ("skips=7-4", "skips=7-4 must be pairs of layers from 1 to 11"),
        ("skips=4-12", "must be pairs of layers from 1 to 11"),
        ("skips=4-7,4-7", "names a pair twice"),
        ("skips=4", "skips takes pairs of layers as in 3-8,4-7, or none"),
        ("skips=1-2-3", "skips takes pairs of layers"),
        ("backout=all", "backout takes none or layer or per_layer"),
        ("backout_layer=12", "must be a layer from 1 to 11"),
        ("adam_interval=0", "must be 1 or more"),
        ("muon_momentum_cooldown_steps=-1", "must not be negative"),
    ],
)
def test_a_wrong_setting_is_named(setting: str, says: str) -> None:
    with pytest.raises(TrainerError) as caught:
        configs.with_settings(configs.preset("tiny_cpu"), [setting])
    assert says in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.exit_code == WRONG_USAGE


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999"])
@pytest.mark.parametrize(
    "field", [field for field, annotation in configs.settable_fields().items() if annotation is float]
)
def test_what_is_no_finite_number_is_refused(field: str, value: str) -> None:
    with pytest.raises(TrainerError, match=rf"^{field}=-?(nan|inf) is no finite number: --set {field}=") as caught:
        configs.with_settings(configs.preset("tiny_cpu"), [f"{field}={value}"])
    assert caught.value.exit_code == WRONG_USAGE


@pytest.mark.parametrize("name", configs.PRESETS)
def test_a_value_is_spelled_as_a_setting_takes_it(name: str) -> None:
    config = configs.preset(name)
    settings = [f"{field}={configs.spell_value(getattr(config, field))}" for field in configs.settable_fields()]
    assert configs.with_settings(config, settings) == config


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(TrainerError, match="tiny_cpu, record_149, record_140, record_134, speedrun"):
        configs.preset("huge")
