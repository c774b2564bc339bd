"""Triton kernels of softcap and cross entropy.

With s = sigmoid(logit / 7.5) the capped logit is z = 30 s, between 0 and 30: so a row's sum of exp(z) stays far within
fp32, needs no maximum first, and one pass suffices.

The forward pass would be bound by the special-function unit, at three of its results per logit (exp, reciprocal, exp;
it gives 16 a clock and processor, while memory delivers about 9 logits): so there the second exp is a polynomial.
"""

from __future__ import annotations

import triton
import triton.language as tl

CAP = tl.constexpr(30.0)
LOG2_E = tl.constexpr(1.4426950408889634)
CAP_LOG2_E = tl.constexpr(30 * 1.4426950408889634)
ROUNDER = tl.constexpr(12582912.0)  # 1.5 x 2^23: the last bits of x + ROUNDER are x as a whole number
LOG2_E_PER_SLOPE = tl.constexpr(1.4426950408889634 / 7.5)
SLOPE = tl.constexpr(30.0 / 7.5)  # dz / dlogit = SLOPE s (1 - s)
GRADIENT_SCALE = tl.constexpr(448.0)  # of gradients in e5m2


@triton.jit
def _sigmoid(logit):
    """sigmoid(logit / 7.5) in fp32. The root's square is a reciprocal for one special result; 1 / x costs more."""
    root = tl.rsqrt(1.0 + tl.exp2(logit * -LOG2_E_PER_SLOPE))
    return root * root


@triton.jit
def _exp_capped(logit):
    """exp(z), within 5e-7 of itself where z is exact, its last exponential without the special-function unit.

    z / ln 2 is split into a whole number, added to the exponent's bits, and a rest in +-1/2, of which 2^rest is the
    polynomial of degree 5 with the least relative error, 7.5e-8 (Remez's exchange in 40 digits).
    """
    share = _sigmoid(logit)
    shifted = share * CAP_LOG2_E + ROUNDER
    rest = share * CAP_LOG2_E - (shifted - ROUNDER)
    power = 1.3276472167819944e-3 * rest + 9.675541331021392e-3
    power = power * rest + 5.550713272875391e-2
    power = power * rest + 2.402211972396918e-1
    power = power * rest + 6.931469670652649e-1
    power = power * rest + 1.0000000716546416
    bits = power.to(tl.int32, bitcast=True) + (shifted.to(tl.int32, bitcast=True) << 23)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _slope(logit, lse, is_target):
    """d loss / d logit of a loss of weight 1: (softmax(z) - 1 at the target) dz / dlogit."""
    share = _sigmoid(logit)
    probability = tl.exp2(share * CAP_LOG2_E - lse * LOG2_E)
    return (probability - tl.where(is_target, 1.0, 0.0)) * SLOPE * share * (1.0 - share)


@triton.jit
def loss_kernel(
    logits,  # [T, vocabulary], contiguous columns
    targets,  # [T], negative: no loss
    losses,  # [T] fp32
    lses,  # [T] fp32: log of the sum of exp(z)
    row_stride,
    VOCABULARY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program reads one row once."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_stride
    columns = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, VOCABULARY // BLOCK * BLOCK, BLOCK):
        total += _exp_capped(tl.load(logits + start + columns).to(tl.float32))
    if VOCABULARY % BLOCK != 0:
        columns += VOCABULARY // BLOCK * BLOCK
        is_inside = columns < VOCABULARY
        terms = _exp_capped(tl.load(logits + columns, is_inside, 0.0).to(tl.float32))
        total += tl.where(is_inside, terms, 0.0)
    lse = tl.log(tl.sum(total))
    target = tl.load(targets + row)
    # A target outside the vocabulary must not go by unseen.
    logit = tl.load(logits + tl.maximum(target, 0), target < VOCABULARY, float("nan")).to(tl.float32)
    tl.store(losses + row, tl.where(target >= 0, lse - _sigmoid(logit) * CAP, 0.0))
    tl.store(lses + row, lse)


@triton.jit
def gradient_kernel(
    logits,  # [T, vocabulary], contiguous columns
    targets,  # [T]
    lses,  # [T] fp32
    weights,  # [T] fp32: gradient of each token's loss
    gradients,  # [T, vocabulary], contiguous columns; may be logits
    logits_stride,
    gradients_stride,
    weights_stride,
    VOCABULARY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program makes one row of d loss / d logits; every thread writes just what it has read."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * logits_stride
    gradients += row * gradients_stride
    target, lse = tl.load(targets + row), tl.load(lses + row)
    weight = tl.where(target >= 0, tl.load(weights + row * weights_stride), 0.0)
    columns = tl.arange(0, BLOCK)
    for start in range(0, VOCABULARY // BLOCK * BLOCK, BLOCK):
        logit = tl.load(logits + start + columns).to(tl.float32)
        gradient = weight * _slope(logit, lse, start + columns == target)
        tl.store(gradients + start + columns, gradient.to(gradients.dtype.element_ty))
    if VOCABULARY % BLOCK != 0:
        columns += VOCABULARY // BLOCK * BLOCK
        is_inside = columns < VOCABULARY
        logit = tl.load(logits + columns, is_inside, 0.0).to(tl.float32)
        gradient = weight * _slope(logit, lse, columns == target)
        tl.store(gradients + columns, gradient.to(gradients.dtype.element_ty), is_inside)


@triton.jit
def fp8_gradients_kernel(
    logits,  # [T, vocabulary], contiguous columns
    targets,  # [T]
    lses,  # [T] fp32
    by_token,  # [T, vocabulary] e5m2, contiguous
    by_word,  # [vocabulary, T] e5m2, contiguous: the same, transposed
    num_tokens,
    row_stride,
    VOCABULARY: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_WORDS: tl.constexpr,
):
    """448 d loss / d logits for losses of weight 1, in both layouts that the products of the backward pass read."""
    words = tl.program_id(0) * BLOCK_WORDS + tl.arange(0, BLOCK_WORDS)
    tokens = tl.program_id(1).to(tl.int64) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    has_token, has_word = tokens < num_tokens, words < VOCABULARY
    is_inside = has_token[:, None] & has_word[None, :]
    target = tl.load(targets + tokens, has_token, -1)
    lse = tl.load(lses + tokens, has_token, 0.0)
    logit = tl.load(logits + tokens[:, None] * row_stride + words[None, :], is_inside, 0.0).to(tl.float32)
    slope = _slope(logit, lse[:, None], words[None, :] == target[:, None])
    gradient = tl.where(target[:, None] >= 0, slope * GRADIENT_SCALE, 0.0).to(by_token.dtype.element_ty)
    tl.store(by_token + tokens[:, None] * VOCABULARY + words[None, :], gradient, is_inside)
    transposed = by_word + words[:, None].to(tl.int64) * num_tokens + tokens[None, :]
    tl.store(transposed, tl.trans(gradient), has_word[:, None] & has_token[None, :])
