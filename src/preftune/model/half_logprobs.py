"""Compute the log-probs of tokens with a 16-bit head (bf16 or fp16), for model.token_logprobs.

The logits are in fp32: the products of 16-bit numbers are added up in fp32 and not rounded afterwards. In one pass over
the logits, the forward pass computes the log-probs and the slopes d logp / d (W h + b), and rounds the slopes to 16
bits. The gradients are then plain 16-bit products of the slopes, without another pass over (N, V) values:

    d hidden = grad * (slopes W)          d W = slopes^T (grad * hidden)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from preftune.model.head import Head
from preftune.model.logit_chunks import chunk_tokens, chunks

BLOCK_BYTES = 2_000_000  # logits that stay in a CPU's cache while they are turned into log-probs and slopes


class HalfLogprobs(torch.autograd.Function):
    """Return (N,) fp32 log-probs of the targets, in one of the modes of model.token_logprobs."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        target_N: Tensor,
        scale: float,
        softcap: float,
        mode: str,
    ) -> Tensor:
        head = Head(weight_VH, bias_V, scale, softcap)
        logp_N = hidden_NH.new_empty(len(target_N), dtype=torch.float32)
        stored_NV = weight_VH.new_empty(len(target_N), len(weight_VH)) if mode == "stored" else None
        slopes_NH = torch.empty_like(hidden_NH) if mode == "frozen" else None
        for part, logits_CV in _logits_in_chunks(hidden_NH, head):
            slope_CV = stored_NV[part] if stored_NV is not None else None
            if slopes_NH is not None:
                slope_CV = torch.empty_like(logits_CV, dtype=weight_VH.dtype)
            logp_N[part] = log_softmax_(logits_CV, target_N[part], head, slope_CV)
            if slopes_NH is not None:
                torch.mm(slope_CV, weight_VH, out=slopes_NH[part])  # type: ignore[arg-type]
        ctx.mode, ctx.scale, ctx.softcap, ctx.stored = mode, scale, softcap, stored_NV
        if mode != "none":
            states = hidden_NH if slopes_NH is None else slopes_NH
            ctx.save_for_backward(states, weight_VH, bias_V, target_N)
        return logp_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_N1 = grads[0][:, None]
        states, weight_VH, bias_V, target_N = ctx.saved_tensors
        if ctx.mode == "frozen":
            return (grad_N1 * states).to(states.dtype), *[None] * 6
        if ctx.mode == "stored" and ctx.stored is None:
            raise RuntimeError("the backward pass can run only once per forward pass: run the forward again")
        head = Head(weight_VH, bias_V, ctx.scale, ctx.softcap)
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        scaled_NH = (grad_N1 * states).to(states.dtype)
        d_hidden = torch.empty_like(states) if wants_hidden else None
        once = ctx.mode == "stored" or len(states) <= chunk_tokens(weight_VH)
        d_weight = d_bias = None
        for part, slope_CV in _stored(ctx) if ctx.mode == "stored" else _recomputed(states, target_N, head):
            if d_hidden is not None:
                torch.mm(slope_CV, weight_VH, out=d_hidden[part])
            if wants_weight:
                new = slope_CV.t(), scaled_NH[part]
                d_weight = torch.mm(*new) if once else _add_product(d_weight, *new)
            if wants_bias:
                d_bias = (grad_N1[part] * slope_CV).sum(0) + (0 if d_bias is None else d_bias)
        return (
            None if d_hidden is None else d_hidden.mul_(grad_N1),
            None if d_weight is None else d_weight.to(weight_VH.dtype),
            None if d_bias is None or bias_V is None else d_bias.to(bias_V.dtype),
            *[None] * 4,
        )


def _stored(ctx: Any) -> Iterator[tuple[slice, Tensor]]:
    """Yield all slopes at once, and release them."""
    slopes_NV, ctx.stored = ctx.stored, None
    yield slice(None), slopes_NV


def _recomputed(hidden_NH: Tensor, target_N: Tensor, head: Head) -> Iterator[tuple[slice, Tensor]]:
    for part, logits_CV in _logits_in_chunks(hidden_NH, head):
        slope_CV = torch.empty_like(logits_CV, dtype=head.weight.dtype)
        log_softmax_(logits_CV, target_N[part], head, slope_CV)
        yield part, slope_CV


def _logits_in_chunks(hidden_NH: Tensor, head: Head) -> Iterator[tuple[slice, Tensor]]:
    """Yield the (C, V) fp32 logits of each chunk of tokens. All chunks use the same memory."""
    size = min(chunk_tokens(head.weight), len(hidden_NH))
    buffer_CV = head.weight.new_empty(size, len(head.weight), dtype=torch.float32)
    product = fp32_product(head.weight)
    for part in chunks(len(hidden_NH), head.weight):
        logits_CV = product(hidden_NH[part], buffer_CV[: len(hidden_NH[part])])
        if head.bias is not None:
            logits_CV += head.bias
        if head.scale != 1.0:
            logits_CV *= head.scale
        if head.softcap:
            logits_CV.div_(head.softcap).tanh_().mul_(head.softcap)
        yield part, logits_CV


def fp32_product(weight_VH: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the function (h, out) -> h W^T, with its sums and its result in fp32.

    torch has such a product of 16-bit matrices on CUDA only. On a CPU, W and h become fp32 matrices, and the processor
    may multiply them as bf16, which is exact because they hold bf16 values, and as fast as in bf16.
    """
    if weight_VH.device.type != "cpu":
        return lambda hidden_CH, out_CV: torch.mm(hidden_CH, weight_VH.t(), out_dtype=torch.float32, out=out_CV)
    wide_HV = weight_VH.float().t()

    def product(hidden_CH: Tensor, out_CV: Tensor) -> Tensor:
        with multiplied_as_bf16(weight_VH.dtype == torch.bfloat16):
            return torch.mm(hidden_CH.float(), wide_HV, out=out_CV)

    return product


@contextmanager
def multiplied_as_bf16(allowed: bool) -> Iterator[None]:
    """Let the CPU round the inputs of fp32 matrix products to bf16 inside the block. Sums and results stay fp32."""
    settings: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = settings.fp32_precision
    try:
        if allowed:
            settings.fp32_precision = "bf16"
        yield
    finally:
        settings.fp32_precision = before


def log_softmax_(logits_CV: Tensor, target_C: Tensor, head: Head, slope_CV: Tensor | None) -> Tensor:
    """Return the (C,) log-probs of the targets, and write d logp / d (W h + b) to `slope_CV`; overwrites the logits.

    d logp / d z = (onehot - softmax) * d logits / d z * scale, with d logits / d z = 1 - (logits / softcap)^2.
    """
    logp_C = logits_CV.new_empty(len(target_C))
    size = max(1, BLOCK_BYTES // (4 * logits_CV.shape[1])) if logits_CV.device.type == "cpu" else len(target_C)
    for begin in range(0, len(target_C), size):
        rows = slice(begin, begin + size)
        values, target_1 = logits_CV[rows], target_C[rows, None]
        chosen = values.gather(1, target_1)
        squared = (values / head.softcap).square_() if head.softcap and slope_CV is not None else None
        largest = values.amax(1, keepdim=True)
        values.sub_(largest).exp_()
        total = values.sum(1, keepdim=True)
        logp_C[rows] = (chosen - largest - total.log()).squeeze(1)
        if slope_CV is None:
            continue
        values.mul_(total.reciprocal_().neg_())
        values.scatter_add_(1, target_1, torch.ones_like(chosen))
        if squared is not None:
            values.mul_(squared.neg_().add_(1))
        slope_CV[rows] = values if head.scale == 1.0 else values.mul_(head.scale)
    return logp_C


def _add_product(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    """Return total + left @ right in fp32, for the sum over several chunks."""
    if total is None:
        total = left.new_zeros(left.shape[0], right.shape[1], dtype=torch.float32)
    if left.device.type != "cpu":
        return torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
    with multiplied_as_bf16(left.dtype == torch.bfloat16):
        return total.addmm_(left.float(), right.float())
