"""Who owns what: the groups of both optimizers at any world size, from shapes alone."""

import json

import pytest
import torch

from trainer.sharding import GroupPlan, ParameterShape, adam_plan, muon_plan

RECORD_MUON = [
    ParameterShape(label=label, shape=shape)
    for label, shape, count in [
        ("attn", (768, 3072), 10),
        ("mlp", (768, 3072), 22),
        ("attn_gate", (6, 12), 10),
        ("smear_gate", (1, 12), 1),
    ]
    for _ in range(count)
]
RECORD_ADAM = [
    ParameterShape(label=label, shape=(50304, 768), dtype=torch.bfloat16)
    for label in ("embed", "value_embed_0", "value_embed_1", "value_embed_2", "lm_head")
] + [ParameterShape(label="scalars", shape=(64,))]


def sizes(groups: tuple[GroupPlan, ...]) -> list[tuple[str, int, int]]:
    return [(group.name, group.num_filled, group.num_slots) for group in groups]


def test_eight_ranks_have_the_published_groups_and_paddings():
    groups = muon_plan(RECORD_MUON, 8)
    assert sizes(groups) == [
        ("muon.smear_gate", 1, 8),
        ("muon.attn_gate", 10, 16),
        ("muon.attn_mlp", 16, 16),
        ("muon.mlp", 16, 16),
    ]
    assert [group.padding for group in groups] == [7, 6, 0, 0]
    assert groups[2].labels == ("attn",) * 10 + ("mlp",) * 6
    assert groups[2].num_bytes == 150_994_944  # the published traces' reduce-scatter of 151 MB


def test_eight_ranks_never_mix_attention_and_mlp_in_a_shard():
    shared = muon_plan(RECORD_MUON, 8)[2]
    kinds = [{shared.labels[slot] for slot in shared.filled_slots(rank)} for rank in range(8)]
    assert kinds == [{"attn"}] * 5 + [{"mlp"}] * 3


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5, 7, 16])
def test_other_world_sizes_have_one_group_a_label(world_size):
    groups = muon_plan(RECORD_MUON, world_size)
    assert [(group.name, group.num_filled) for group in groups] == [
        ("muon.smear_gate", 1),
        ("muon.attn_gate", 10),
        ("muon.attn", 10),
        ("muon.mlp", 22),
    ]


@pytest.mark.parametrize("num_attn", [9, 11, 12])
def test_eight_ranks_fall_back_to_labels_where_sharing_cannot_be(num_attn):
    """12 leaves the groups unfilled; 9 and 11 fill them with 23 and 21, but mix both kinds on a rank."""
    num_mlp = 22 if num_attn == 12 else 32 - num_attn
    matrices = [ParameterShape(label="attn", shape=(4, 16))] * num_attn
    matrices += [ParameterShape(label="mlp", shape=(4, 16))] * num_mlp
    assert [group.name for group in muon_plan(matrices, 8)] == ["muon.attn", "muon.mlp"]


def test_groups_of_one_kind_have_names_of_their_own():
    matrices = [ParameterShape(label="mlp", shape=(4, 16))] * 32
    assert [group.name for group in muon_plan(matrices, 8)] == ["muon.mlp", "muon.mlp_2"]


@pytest.mark.parametrize("world_size", range(1, 18))
def test_every_slot_has_one_owner_and_padding_is_smaller_than_the_world(world_size):
    for group in muon_plan(RECORD_MUON, world_size) + adam_plan(RECORD_ADAM, world_size):
        owned = [slot for rank in range(world_size) for slot in group.filled_slots(rank)]
        assert owned == list(range(group.num_filled))
        assert 0 <= group.padding < world_size
        assert group.shard_slots * world_size == group.num_slots
        assert group.num_bytes == world_size * group.shard_bytes


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([ParameterShape(label="embed", shape=(4, 4))], "no label 'embed'"),
        ([ParameterShape(label="mlp", shape=(4, 16)), ParameterShape(label="mlp", shape=(16, 4))], "one shape"),
        ([ParameterShape(label="mlp", shape=(4,))], "takes matrices"),
        ([ParameterShape(label="attn", shape=(4, 6))], "do not divide by 4"),
    ],
)
def test_muon_refuses_what_it_cannot_shard(shapes, message):
    with pytest.raises(ValueError, match=message):
        muon_plan(shapes, 2)


def test_adam_waits_in_the_order_in_which_backward_ends():
    assert [group.name for group in adam_plan(RECORD_ADAM, 2)] == [
        "adam.lm_head",
        "adam.value_embed_2",
        "adam.value_embed_1",
        "adam.value_embed_0",
        "adam.scalars",
        "adam.embed",
    ]


@pytest.mark.parametrize(("world_size", "padding"), [(1, 0), (2, 0), (3, 0), (5, 1), (7, 5), (8, 0)])
def test_adam_pads_rows_that_do_not_divide(world_size, padding):
    table = adam_plan(RECORD_ADAM, world_size)[0]
    assert (table.num_filled, table.padding) == (50304, padding)
    assert table.padding_bytes == padding * 768 * 2


def test_adam_shards_a_vector_by_elements():
    (vector,) = adam_plan([ParameterShape(label="scalars", shape=(62,))], 3)
    assert (vector.num_slots, vector.shard_slots, vector.slot_shape, vector.slot_bytes) == (63, 21, (), 4)
    assert [len(vector.filled_slots(rank)) for rank in range(3)] == [21, 21, 20]


def test_a_plan_is_json_with_what_follows_from_it():
    document = json.loads(json.dumps([group.to_json() for group in muon_plan(RECORD_MUON, 8)]))
    gates = document[1]
    assert gates["optimizer"] == "muon"
    assert gates["dtype"] == "float32"
    assert (gates["num_params"], gates["num_slots"], gates["padding"], gates["padding_bytes"]) == (10, 16, 6, 1728)
    assert gates["filled_slots_per_rank"] == [2, 2, 2, 2, 2, 0, 0, 0]
