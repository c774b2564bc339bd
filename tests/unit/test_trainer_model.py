"""The model is the record's: its parameters, what its queries see, and gradients that compiling does not change."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from trainer import attention
from trainer import model as models
from trainer.attention import Sight, attend, document_ids, make_sight
from trainer.config import TrainConfig, preset, with_settings
from trainer.data import MicroBatch
from trainer.model import GPT, Regions, compiled_regions
from trainer.scalars import packed_num_scalars
from trainer.vocabulary import END_OF_TEXT

CPU = torch.device("cpu")
NUM_TOKENS = 24

# Dynamo itself looks at .grad of the views that it is given, and hides the warning; pytest makes it an error first.
quiet_dynamo = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
STARTS = [0, 5, 6, 17]


def _config(*settings: str) -> TrainConfig:
    sizes = ["dim=32", "micro_batch_tokens=24", "max_document_tokens=24", "max_documents=6", "vocab_size=50257"]
    return with_settings(preset("tiny_cpu"), [*sizes, *settings])


def _batch(seed: int = 0) -> MicroBatch:
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 50_000, (NUM_TOKENS + 1,), generator=random)
    ids[STARTS] = END_OF_TEXT
    cu_seqlens = torch.tensor(STARTS + [NUM_TOKENS] * (7 - len(STARTS)), dtype=torch.int32)
    return MicroBatch(tokens_T=ids[:-1].int(), targets_T=ids[1:], cu_seqlens=cu_seqlens)


def _model(config: TrainConfig, regions: Regions | None = None, *, is_trained: bool = True) -> GPT:
    model = GPT(config, num_scalars=packed_num_scalars(config, 1), device=CPU, regions=regions)
    model.initialise(0)
    if is_trained:  # away from the zeros that hide whole branches
        random = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=random))
    return model


def _sights(config: TrainConfig, batch: MicroBatch) -> tuple[Sight, Sight]:
    return make_sight(config, batch.cu_seqlens, 4, torch.float32), make_sight(
        config, batch.cu_seqlens, 8, torch.float32
    )


def _loss(config: TrainConfig, model: GPT, batch: MicroBatch) -> Tensor:
    loss: Tensor = model(batch, *_sights(config, batch))
    return loss


@pytest.fixture(scope="module")
def model() -> GPT:
    return _model(_config())


def test_labels_and_counts(model: GPT) -> None:
    labels = Counter(parameter.label for parameter in model.muon_parameters())
    assert labels == {"smear_gate": 1, "attn_gate": 10, "attn": 10, "mlp": 22}
    tables = ["embed", "value_embed_0", "value_embed_1", "value_embed_2", "lm_head"]
    assert [parameter.label for parameter in model.adam_parameters()] == [*tables, "scalars"]
    assert len(list(model.parameters())) == 43 + 6
    shapes = {tuple(parameter.shape) for parameter in model.muon_parameters() if parameter.label in ("attn", "mlp")}
    assert shapes == {(32, 128)}


def test_record_has_its_published_size() -> None:
    record = GPT(preset("record_134"), num_scalars=64, device=torch.device("meta"))
    matrices = sum(p.numel() for p in record.muon_parameters() if p.label in ("attn", "mlp"))
    assert matrices == 32 * 768 * 3072
    assert models.num_parameters(record.parameters()) == pytest.approx(268.7e6, rel=1e-3)
    assert {p.dtype for p in record.muon_parameters() if p.label in ("attn", "mlp")} == {torch.float32}
    assert {p.dtype for p in record.adam_parameters() if p.label != "scalars"} == {torch.bfloat16}


def test_first_loss_is_that_of_guessing() -> None:
    config, batch = _config(), _batch()
    loss = _loss(config, _model(config, is_trained=False), batch)
    assert loss.item() / NUM_TOKENS == pytest.approx(math.log(50_257), abs=1e-3)


def test_every_parameter_gets_a_finite_gradient(model: GPT) -> None:
    config = _config()
    _loss(config, model, _batch()).backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
    model.zero_grad()


def test_the_rate_of_mlp_up_is_what_the_preset_says() -> None:
    scales = {}
    for name in ("record_134", "record_140"):
        model = GPT(preset(name), num_scalars=64, device=torch.device("meta"))
        scales[name] = {p.learning_rate_scale for p in model.mlp_up}, {p.learning_rate_scale for p in model.mlp_down}
    assert scales == {"record_134": ({2.0}, {1.0}), "record_140": ({1.0}, {1.0})}


def test_tables_and_scalars_learn_at_the_records_rates(model: GPT) -> None:
    rates = {parameter.label: parameter.learning_rate_scale for parameter in model.adam_parameters()}
    tables = dict.fromkeys(["embed", "value_embed_0", "value_embed_1", "value_embed_2"], 75.0)
    assert rates == tables | {"lm_head": 1.0, "scalars": 5.0}


@pytest.mark.parametrize(("precision", "is_coarse"), [("fp32", False), ("bf16", True)])
def test_logits_are_rounded_as_the_configuration_says(precision: str, is_coarse: bool) -> None:
    """A token's loss has the type of the logits: from 2 up bf16 knows multiples of 1/64 alone, so their sum is one."""
    config = _config(f"logits_precision={precision}", "backout=none")
    loss = _loss(config, _model(config), _batch()).item()
    assert (loss % (1 / 64) == 0) == is_coarse


def test_document_ids_skip_empty_documents() -> None:
    assert document_ids(torch.tensor([0, 2, 3, 5, 5, 5], dtype=torch.int32), 5).tolist() == [0, 0, 1, 2, 2]


def test_reference_attention_is_the_sum_written_out() -> None:
    config, batch, window = _config(), _batch(), 4
    q, k, v = (torch.randn(NUM_TOKENS, 2, 8, generator=torch.Generator().manual_seed(n)) for n in range(3))
    y = attend(q, k, v, make_sight(config, batch.cu_seqlens, window, torch.float32))
    documents = document_ids(batch.cu_seqlens, NUM_TOKENS).tolist()
    for t in range(NUM_TOKENS):
        seen = [s for s in range(t + 1) if t - s <= window and documents[s] == documents[t]]
        for head in range(2):
            weights = torch.softmax(k[seen, head] @ q[t, head], dim=0)
            torch.testing.assert_close(y[t, head], weights @ v[seen, head])


def test_the_block_mask_sees_what_the_dense_one_sees() -> None:
    batch = _batch()
    documents = document_ids(batch.cu_seqlens, NUM_TOKENS)
    dense = attention._dense_mask(documents, 4, torch.float32)
    is_seen = attention._seen(documents, torch.tensor(4))
    positions = torch.arange(NUM_TOKENS)
    seen = is_seen(torch.tensor(0), torch.tensor(0), positions[:, None], positions[None, :])
    assert torch.equal(seen, dense == 0)


def _embedding_gradient(model: GPT, config: TrainConfig, batch: MicroBatch, query: int) -> Tensor:
    """Which tokens' embeddings the loss at one position depends on: [T] bool."""
    alone = torch.full_like(batch.targets_T, -100)
    alone[query] = batch.targets_T[query]
    _loss(config, model, MicroBatch(tokens_T=batch.tokens_T, targets_T=alone, cu_seqlens=batch.cu_seqlens)).backward()  # type: ignore[no-untyped-call]
    gradients = [table.grad for table in (model.embed, *model.value_embeds)]
    touched = sum(gradient.abs().sum(1) for gradient in gradients if gradient is not None)
    model.zero_grad()
    assert isinstance(touched, Tensor)
    return touched[batch.tokens_T.long()] > 0


@pytest.mark.parametrize(("query", "first"), [(4, 0), (5, 5), (9, 6), (16, 6), (20, 17)])
def test_no_token_sees_the_future_or_another_document(model: GPT, query: int, first: int) -> None:
    batch = _batch()
    seen = _embedding_gradient(model, _config(), batch, query)
    is_start = batch.tokens_T == END_OF_TEXT  # all documents start with one token, so it says nothing of them
    allowed = torch.zeros(NUM_TOKENS, dtype=torch.bool)
    allowed[first : query + 1] = True
    assert torch.equal(seen | is_start, allowed | is_start)


def test_widening_sharpens_and_slows_the_slow_turns_alone() -> None:
    rotary = models.Rotary(preset("record_134"), torch.float32, CPU)
    before = rotary.frequencies.clone()
    rotary.widen(384, 896)
    assert rotary.scale.item() == pytest.approx(0.1 * (1 + 0.2 * math.log(896 / 384)))
    assert rotary.frequencies[0] == before[0]  # 61 turns in the old window
    assert rotary.frequencies[31] == pytest.approx(before[31].item() * 384 / 896)  # 0.06 turns
    assert not rotary.frequencies[32:].any()
    torch.testing.assert_close(rotary.cos_TC[7], (7 * rotary.frequencies).cos())


@quiet_dynamo
@pytest.mark.parametrize(
    ("mode", "features"),
    [
        ("blocks", []),
        ("model", []),
        ("blocks", ["backout=none", "skips=1-10,2-9,3-8,4-7,5-6"]),
        ("model", ["backout=per_layer", "skips=1-10,2-9,3-8,4-7,5-6", "skip_gate=plain"]),
    ],
)
def test_compiling_keeps_loss_and_gradients(mode: str, features: list[str]) -> None:
    config, batch = _config(*features), _batch()
    plain = _model(config)
    compiled = _model(config, compiled_regions("aot_eager") if mode == "blocks" else None)
    forward = compiled if mode == "blocks" else torch.compile(compiled, fullgraph=True, backend="aot_eager")
    expected, loss = _loss(config, plain, batch), forward(batch, *_sights(config, batch))
    torch.testing.assert_close(loss, expected)
    expected.backward()  # type: ignore[no-untyped-call]
    loss.backward()
    for (name, one), other in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, msg=lambda text, name=name: f"{name}: {text}")


@quiet_dynamo
def test_layers_of_one_structure_share_a_graph_and_a_wider_window_compiles_nothing() -> None:
    config, batch = _config(), _batch()
    graphs: list[object] = []

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    model = _model(config, compiled_regions(count))
    _loss(config, model, batch)
    assert len(graphs) == 5  # embed, attention with and without value embedding, MLP, head
    model.rotary.widen(8, 12)
    wide = make_sight(config, batch.cu_seqlens, 12, torch.float32)
    model(_batch(1), wide, wide)
    assert len(graphs) == 5


def test_the_varlen_kernel_is_called_as_torch_has_it() -> None:
    """Shapes alone, no GPU: our operator promises what torch's own kernels say that they return."""
    q, k, v = (torch.empty(NUM_TOKENS, 2, 16, dtype=torch.bfloat16, device="meta") for _ in range(3))
    cu_seqlens = torch.empty(7, dtype=torch.int32, device="meta")
    promised = attention.varlen_attention(q, k, v, cu_seqlens, 24, 4)
    returned = attention.varlen_attention._init_fn(q, k, v, cu_seqlens, 24, 4)
    assert [(x.shape, x.dtype, x.stride()) for x in promised] == [(x.shape, x.dtype, x.stride()) for x in returned]
    gradients = attention._varlen_attention_backward._init_fn(q, q, k, v, *returned, cu_seqlens, 24, 4)
    assert [x.shape for x in gradients] == [q.shape, k.shape, v.shape]


@pytest.mark.parametrize("settings", [[], ["backout=per_layer"]])
@pytest.mark.parametrize("name", ["record_149", "record_140", "record_134"])
def test_the_records_pass_forward_and_backward_in_shapes(name: str, settings: list[str]) -> None:
    meta = torch.device("meta")
    config = with_settings(preset(name), settings)
    model = GPT(config, num_scalars=packed_num_scalars(config, 8), device=meta)
    ids = torch.zeros(config.micro_batch_tokens, dtype=torch.int64, device=meta)
    batch = MicroBatch(
        tokens_T=ids.int(),
        targets_T=ids,
        cu_seqlens=torch.empty(config.max_documents + 1, dtype=torch.int32, device=meta),
    )
    short, long = (make_sight(config, batch.cu_seqlens, window, model.dtype) for window in (192, 384))
    loss = model(batch, short, long)
    assert (loss.shape, loss.dtype) == ((), torch.float32)
    loss.backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.shape == parameter.shape
        assert parameter.grad.dtype == parameter.dtype
