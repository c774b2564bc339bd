"""The model of the published records of 149.6, 140.7 and 134.9 s (2025), at any size.

Which layer has what is in trainer/pattern.py, which scalars are learned in trainer/scalars.py. Suffixes of names are
shapes:

    T tokens of a packed row    D channels of the model    H heads    C channels of a head    V vocabulary

The layers are plain functions of tensors, so that layers of one structure share one compiled graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.attention import Sight, attend
from trainer.config import TrainConfig
from trainer.data import MicroBatch
from trainer.head import choose_matmul, head_loss
from trainer.pattern import (
    ATTENTION_LAYERS,
    LONG_WINDOW_LAYERS,
    MLP_LAYERS,
    NUM_VALUE_TABLES,
    VALUE_TABLE_OF_LAYER,
)
from trainer.scalars import ScalarLayout, Scalars
from trainer.vocabulary import END_OF_TEXT

NUM_GATE_CHANNELS = 12
MLP_RATIO = 4
TABLE_LEARNING_RATE_SCALE = 75.0  # of the embedding tables, against Adam's own rate
SCALARS_LEARNING_RATE_SCALE = 5.0


class Rotary(nn.Module):
    """Half-truncated RoPE: a quarter of the head's channel pairs turn, the others keep still.

    Tables are [T, C/2] in the activations' dtype. `widen` follows YaRN (arXiv 2309.00071) when the window grows.
    """

    def __init__(self, config: TrainConfig, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        quarter, half = config.head_dim // 4, config.head_dim // 2
        turning = (1 / 1024) ** torch.linspace(0, 1, quarter, dtype=torch.float32)
        self.frequencies = torch.cat([turning, torch.zeros(half - quarter)])  # radians a token, on the host
        self.cos_TC: Tensor
        self.sin_TC: Tensor
        self.scale: Tensor
        for name in ("cos_TC", "sin_TC"):
            table = torch.empty(config.micro_batch_tokens, half, dtype=dtype, device=device)
            self.register_buffer(name, table, persistent=False)
        # A tensor, so that a window's new scale compiles nothing again. The record's start for normed q and k.
        self.register_buffer("scale", torch.tensor(0.1, device=device), persistent=False)
        self._fill()

    def _fill(self) -> None:
        angles_TC = torch.outer(torch.arange(len(self.cos_TC), dtype=torch.float32), self.frequencies)
        self.cos_TC.copy_(angles_TC.cos())
        self.sin_TC.copy_(angles_TC.sin())

    @torch.no_grad()
    def widen(self, old_tokens: int, new_tokens: int) -> None:
        """Stretch the slow turns for a window grown from old to new, and sharpen the softmax by 1 + 0.2 ln(new/old).

        Channels that turn more than 32 times in the old window stay, those under 1 stretch whole, linear between.
        """
        turns = old_tokens * self.frequencies / (2 * math.pi)
        kept_ratio = ((turns - 1) / (32 - 1)).clamp(0, 1)
        stretch = old_tokens / new_tokens
        self.frequencies = self.frequencies * (stretch + kept_ratio * (1 - stretch))
        self._fill()
        self.scale.mul_(1 + 0.2 * math.log(new_tokens / old_tokens))

    @torch.no_grad()
    def restore(self, frequencies: Tensor, scale: Tensor) -> None:
        """Come back to the window whose `frequencies` and `scale` these were."""
        self.frequencies = frequencies.clone()
        self._fill()
        self.scale.copy_(scale)


def rms_norm(x: Tensor) -> Tensor:
    return functional.rms_norm(x, (x.size(-1),))


def rotate(x_THC: Tensor, cos_TC: Tensor, sin_TC: Tensor) -> Tensor:
    first, second = x_THC.chunk(2, dim=-1)
    cos, sin = cos_TC[:, None], sin_TC[:, None]
    return torch.cat([first * cos + second * sin, second * cos - first * sin], dim=-1)


def gate(x_TD: Tensor, weight: Tensor) -> Tensor:
    """sigmoid of a linear map of the first channels: [T, outputs of weight]."""
    return torch.sigmoid(functional.linear(x_TD[:, :NUM_GATE_CHANNELS], weight.type_as(x_TD)))


def embed(tokens_T: Tensor, table_VD: Tensor, smear_gate: Tensor, smear: Tensor) -> Tensor:
    """Embedding, to which each token but a document's first adds a gated share of the one before it; then normed.

    The records let a document's first token add the last one of the document before it too; here none sees another.
    """
    x_TD = functional.embedding(tokens_T, table_VD)
    is_inner = (tokens_T[1:] != END_OF_TEXT)[:, None]
    share = smear * gate(x_TD[1:], smear_gate) * is_inner
    return rms_norm(torch.cat([x_TD[:1], x_TD[1:] + (share * x_TD[:-1]).type_as(x_TD)]))


def mix(x_TD: Tensor, x0_TD: Tensor, weights: Tensor) -> Tensor:
    return weights[0].type_as(x_TD) * x_TD + weights[1].type_as(x_TD) * x0_TD


def attention_layer(
    x_TD: Tensor,
    x0_TD: Tensor,
    block_weights: Tensor,
    qkvo: Tensor,
    head_gate: Tensor,
    value_weights: Tensor,
    value_TD: Tensor | None,
    cos_TC: Tensor,
    sin_TC: Tensor,
    scale: Tensor,
    sight: Sight,
) -> Tensor:
    """Mix in the embedding, then add gated attention. qkvo: [D, 4 D], viewed flat as [4, D, D]: Q, K, V, O."""
    x_TD = mix(x_TD, x0_TD, block_weights)
    normed_TD = rms_norm(x_TD)
    num_tokens, dim = x_TD.shape
    weights = qkvo.type_as(x_TD).view(4, dim, dim)
    q, k, v = (
        functional.linear(normed_TD, weights[:3].flatten(end_dim=1)).view(num_tokens, 3, len(head_gate), -1).unbind(1)
    )
    q, k = rotate(rms_norm(q), cos_TC, sin_TC), rotate(rms_norm(k), cos_TC, sin_TC)
    v = value_weights[0].type_as(v) * v
    if value_TD is not None:
        v = v + value_weights[1].type_as(v) * value_TD.view_as(v)
    y_THC = attend(q * scale.type_as(q), k, v, sight)
    y_THC = y_THC * gate(normed_TD, head_gate)[:, :, None]
    return x_TD + functional.linear(y_THC.reshape(num_tokens, dim), weights[3])


def mlp_layer(x_TD: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Add the MLP with squared ReLU. Both weights are stored [D, 4 D], the shape that attention has."""
    hidden = functional.relu(functional.linear(rms_norm(x_TD), up.type_as(x_TD).T)).square()
    return x_TD + functional.linear(hidden, down.type_as(x_TD))


class Regions(NamedTuple):
    """The functions that the model calls: plain, or compiled one by one."""

    embed: Callable[..., Tensor] = embed
    attention_layer: Callable[..., Tensor] = attention_layer
    mlp_layer: Callable[..., Tensor] = mlp_layer
    head_loss: Callable[..., Tensor] = head_loss


def compiled_regions(backend: str | Callable[..., Any] = "inductor") -> Regions:
    """Every region compiled by itself: five graphs and their backwards, as layers of one structure share theirs."""
    return Regions(*(torch.compile(region, dynamic=False, fullgraph=True, backend=backend) for region in Regions()))


class GPT(nn.Module):
    """The whole model; `forward` gives the summed loss of one packed row.

    Tables are in the activations' dtype, Muon's matrices and the scalars in fp32; every parameter has a `label`.
    """

    def __init__(
        self, config: TrainConfig, *, num_scalars: int, device: torch.device, regions: Regions | None = None
    ) -> None:
        super().__init__()
        dim, vocab_size = config.dim, config.vocab_size
        dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        self.dtype = dtype
        self.logits_dtype = torch.bfloat16 if config.logits_precision == "bf16" else torch.float32
        self.head_matmul = choose_matmul(config.head_matmul, device, dtype, dim, vocab_size, config.micro_batch_tokens)
        self.layout = ScalarLayout(config)
        self.skip_sources = {source for source, _ in config.skips}
        self.has_sigmoid_skips = config.skip_gate == "sigmoid"
        self.backs_out_per_layer = config.backout == "per_layer"
        self.regions = regions or Regions()
        self.rotary = Rotary(config, dtype, device)

        def table(label: str, scale: float) -> nn.Parameter:
            return _parameter(label, vocab_size, dim, dtype=dtype, device=device, learning_rate_scale=scale)

        def matrices(
            label: str, count: int, *shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0
        ) -> nn.ParameterList:
            return nn.ParameterList(
                _parameter(label, *shape, dtype=dtype, device=device, learning_rate_scale=scale) for _ in range(count)
            )

        self.embed = table("embed", TABLE_LEARNING_RATE_SCALE)
        self.value_embeds = nn.ParameterList(
            table(f"value_embed_{number}", TABLE_LEARNING_RATE_SCALE) for number in range(NUM_VALUE_TABLES)
        )
        self.lm_head = table("lm_head", 1.0)
        self.scalars = _parameter(
            "scalars", num_scalars, device=device, learning_rate_scale=SCALARS_LEARNING_RATE_SCALE
        )
        self.smear_gate = _parameter("smear_gate", 1, NUM_GATE_CHANNELS, dtype=dtype, device=device)
        num_attention, num_mlp = len(ATTENTION_LAYERS), len(MLP_LAYERS)
        self.attn_gates = matrices("attn_gate", num_attention, config.num_heads, NUM_GATE_CHANNELS, dtype=dtype)
        self.attn = matrices("attn", num_attention, dim, MLP_RATIO * dim)
        up_scale = config.mlp_up_learning_rate_scale
        self.mlp_up = matrices("mlp", num_mlp, dim, MLP_RATIO * dim, scale=up_scale)
        self.mlp_down = matrices("mlp", num_mlp, dim, MLP_RATIO * dim)

    def muon_parameters(self) -> list[nn.Parameter]:
        mlp = (weight for pair in zip(self.mlp_up, self.mlp_down, strict=True) for weight in pair)
        return [self.smear_gate, *self.attn_gates, *self.attn, *mlp]

    def adam_parameters(self) -> list[nn.Parameter]:
        return [self.embed, *self.value_embeds, self.lm_head, self.scalars]

    def lambdas(self) -> dict[str, Tensor]:
        """Every learned scalar by its name: views, scalars on the device."""
        return dict(zip(self.layout.names, self.scalars.detach(), strict=False))

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """The same values on every rank of one device type: embeddings normal, matrices uniform, what ends a branch 0.

        Q, K, V and MLP-up: standard deviation 0.5 / sqrt(D). O, MLP-down, gates and head start at 0, so the first
        loss is ln(V).
        """
        random = torch.Generator(self.scalars.device).manual_seed(seed)
        dim = self.embed.shape[1]
        bound = math.sqrt(3) * 0.5 / math.sqrt(dim)
        for table in (self.embed, *self.value_embeds):
            table.normal_(generator=random)
        for qkvo in self.attn:
            matrices = qkvo.view(4, dim, dim)
            matrices[:3].uniform_(-bound, bound, generator=random)
            matrices[3].zero_()
        for up in self.mlp_up:
            up.uniform_(-bound, bound, generator=random)
        for parameter in (*self.mlp_down, self.smear_gate, *self.attn_gates, self.lm_head):
            parameter.zero_()
        self.scalars.copy_(self.layout.pack(len(self.scalars)))

    def forward(self, batch: MicroBatch, short: Sight, long: Sight) -> Tensor:
        """Summed loss of a row, fp32 scalar. `short`, `long`: what queries see through either window."""
        regions, scalars = self.regions, self.layout.unpack(self.scalars)
        values_TD = [functional.embedding(batch.tokens_T, table) for table in self.value_embeds]
        x0_TD = regions.embed(batch.tokens_T, self.embed, self.smear_gate, scalars.smear)
        # A view, because Dynamo compiles a layer once more for a call whose x and x0 are one object.
        x_TD = x0_TD.view_as(x0_TD)
        kept_TD: dict[int, Tensor] = {}  # by layer, what it put out
        backout_TD, backout = None, None
        for layer in MLP_LAYERS:
            entered_TD = x_TD = self._add_skips(layer, x_TD, kept_TD, scalars)
            if layer in ATTENTION_LAYERS:
                sight = long if layer in LONG_WINDOW_LAYERS else short
                x_TD = self._attend(layer, x_TD, x0_TD, values_TD, scalars, sight)
            else:
                x_TD = mix(x_TD, x0_TD, scalars.block[layer])
            number = MLP_LAYERS.index(layer)
            x_TD = regions.mlp_layer(x_TD, self.mlp_up[number], self.mlp_down[number])
            if layer in self.skip_sources:
                kept_TD[layer] = x_TD
            if self.backs_out_per_layer:
                share_TD = scalars.backout[layer].type_as(x_TD) * (x_TD - entered_TD)
                backout_TD = share_TD if backout_TD is None else backout_TD + share_TD
            elif layer in scalars.backout:
                backout_TD, backout = x_TD, scalars.backout[layer]
        if backout_TD is not None and backout is None:  # the shares are weighed already
            x_TD, backout_TD = x_TD - backout_TD, None
        matmul = self.head_matmul if self.training else "bf16"
        return regions.head_loss(x_TD, backout_TD, backout, self.lm_head, batch.targets_T, self.logits_dtype, matmul)

    def _add_skips(self, layer: int, x_TD: Tensor, kept_TD: dict[int, Tensor], scalars: Scalars) -> Tensor:
        for (source, target), weight in scalars.skip.items():
            if target == layer:
                weight = torch.sigmoid(weight) if self.has_sigmoid_skips else weight
                x_TD = x_TD + weight.type_as(x_TD) * kept_TD[source]
        return x_TD

    def _attend(
        self, layer: int, x_TD: Tensor, x0_TD: Tensor, values_TD: list[Tensor], scalars: Scalars, sight: Sight
    ) -> Tensor:
        number = ATTENTION_LAYERS.index(layer)
        table = VALUE_TABLE_OF_LAYER.get(layer)
        return self.regions.attention_layer(
            x_TD,
            x0_TD,
            scalars.block[layer],
            self.attn[number],
            self.attn_gates[number],
            scalars.value[layer],
            None if table is None else values_TD[table],
            self.rotary.cos_TC,
            self.rotary.sin_TC,
            self.rotary.scale,
            sight,
        )


def num_parameters(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _parameter(
    label: str,
    *shape: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device,
    learning_rate_scale: float = 1.0,
) -> nn.Parameter:
    """An unfilled parameter with what the optimizers read of it."""
    parameter = nn.Parameter(torch.empty(shape, dtype=dtype, device=device))
    parameter.label = label  # type: ignore[attr-defined]
    parameter.learning_rate_scale = learning_rate_scale  # type: ignore[attr-defined]
    return parameter
