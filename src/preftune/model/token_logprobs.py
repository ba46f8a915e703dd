"""Compute log pi(target | context) of N scored tokens from their hidden states, with the head in one of three modes.

The log-prob of a token depends only on its own hidden state. So its gradient is known in the forward pass, except for
one factor per token: the derivative of the loss with respect to the log-prob. The modes differ in what they store for
the backward pass, and in the number of matrix products with the head:

    frozen      2 products: the head is not trained; stores d logp / d hidden, (N, H) like the hidden states
    stored      3 products: stores the log-probs of all N tokens over the vocabulary, if they fit `max_stored_bytes`
    recomputed  4 products: stores nothing that grows with the vocabulary, and computes the logits a second time

Logits are computed in chunks of `chunk_tokens`. For all dtypes, the log-softmax and the sum of the head's gradient over
the chunks are in fp32.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from preftune.model.head import Head

Mode = Literal["none", "frozen", "stored", "recomputed"]


def token_logprobs(hidden_NH: Tensor, head: Head, target_N: Tensor) -> Tensor:
    """Return the (N,) fp32 log-probs of the targets, differentiable in the hidden states and the head.

    Holds an (N, V) tensor in memory only if it fits `max_stored_bytes`.
    """
    out: Tensor = TokenLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden_NH, head.weight, head.bias, target_N, head.scale, head.softcap, mode_of(hidden_NH, head)
    )
    return out


def mode_of(hidden_NH: Tensor, head: Head) -> Mode:
    """Return the cheapest mode that is possible for these hidden states."""
    trained = head.weight.requires_grad or (head.bias is not None and head.bias.requires_grad)
    if not torch.is_grad_enabled() or not (trained or hidden_NH.requires_grad):
        return "none"
    if not trained:
        return "frozen"
    return "stored" if 4 * len(hidden_NH) * len(head.weight) <= max_stored_bytes(hidden_NH.device) else "recomputed"


def max_stored_bytes(device: torch.device) -> int:
    """Return the memory limit of the mode `stored`: 5 % of the device's total memory, on a CPU at most 1 GB.

    The limit must not depend on the free memory: the mode affects the last digits, and a resumed run must repeat them.
    """
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory) // 20
    if not hasattr(os, "sysconf"):
        return 256_000_000
    return min(1_000_000_000, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 20)


class TokenLogprobs(torch.autograd.Function):
    """Implements `token_logprobs` with z = scale * (W h + b), logits = softcap * tanh(z / softcap)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        target_N: Tensor,
        scale: float,
        softcap: float,
        mode: Mode,
    ) -> Tensor:
        head = Head(weight_VH, bias_V, scale, softcap)
        out_N = hidden_NH.new_empty(len(target_N), dtype=torch.float32)
        sum_N = torch.empty_like(out_N)  # log-sum-exp of each token's logits
        stored, slopes_NH = [], torch.empty_like(hidden_NH) if mode == "frozen" else None
        for part in chunks(len(target_N), len(weight_VH), hidden_NH.device):
            logits = head.logits(hidden_NH[part], wide=True)
            chosen = logits.gather(1, target_N[part, None]).squeeze(1)
            logp = torch.log_softmax(logits, 1)
            out_N[part] = logp.gather(1, target_N[part, None]).squeeze(1)
            sum_N[part] = chosen - out_N[part]
            if slopes_NH is not None:
                slope = _slope(logp, sum_N[part], target_N[part], head)
                torch.mm(slope.to(weight_VH.dtype), weight_VH, out=slopes_NH[part])
            if mode == "stored":
                stored.append(logp)
            del logits, logp
        ctx.mode, ctx.scale, ctx.softcap, ctx.stored = mode, scale, softcap, stored
        states = slopes_NH if mode == "frozen" else hidden_NH
        if mode != "none":
            ctx.save_for_backward(states, weight_VH, bias_V, target_N, sum_N)
        return out_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_N = grads[0]
        states, weight_VH, bias_V, target_N, sum_N = ctx.saved_tensors
        if ctx.mode == "frozen":
            return (grad_N[:, None] * states).to(states.dtype), *[None] * 6
        hidden_NH, head = states, Head(weight_VH, bias_V, ctx.scale, ctx.softcap)
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        d_hidden = torch.empty_like(hidden_NH) if wants_hidden else None
        d_weight = torch.zeros_like(weight_VH, dtype=torch.float32) if wants_weight else None
        d_bias = torch.zeros_like(bias_V, dtype=torch.float32) if wants_bias else None
        for number, part in enumerate(chunks(len(target_N), len(weight_VH), hidden_NH.device)):
            if ctx.mode == "stored":
                if ctx.stored[number] is None:
                    raise RuntimeError("the backward pass can run only once per forward pass: run the forward again")
                logp, ctx.stored[number] = ctx.stored[number], None
            else:
                logp = head.logits(hidden_NH[part], wide=True).sub_(sum_N[part, None])
            d_z = _slope(logp, sum_N[part], target_N[part], head).mul_(grad_N[part, None])
            if d_bias is not None:
                d_bias += d_z.sum(0)
            d_z = d_z.to(weight_VH.dtype)
            if d_hidden is not None:
                torch.mm(d_z, weight_VH, out=d_hidden[part])
            if d_weight is not None:
                _add_product(d_weight, d_z.t(), hidden_NH[part])
            del logp, d_z
        return (
            d_hidden,
            None if d_weight is None else d_weight.to(weight_VH.dtype),
            None if d_bias is None or bias_V is None else d_bias.to(bias_V.dtype),
            *[None] * 4,
        )


def chunk_tokens(vocabulary: int, device: torch.device) -> int:
    """Return the tokens per chunk: 16 MB of logits on a CPU, which avoids page faults, and 512 MB on a GPU.

    At least 128 tokens, because each chunk is added to the gradient of the whole head. On a GPU a multiple of 128,
    which its matrix products are fastest for.
    """
    if device.type == "cuda":
        return max(1, 512_000_000 // (4 * vocabulary * 128)) * 128
    return max(128, 16_000_000 // (4 * vocabulary))


def chunks(n: int, vocabulary: int, device: torch.device) -> Iterator[slice]:
    """Yield the slices of n tokens, one per chunk."""
    size = chunk_tokens(vocabulary, device)
    return (slice(begin, begin + size) for begin in range(0, n, size))


def _slope(logp_CV: Tensor, sum_C: Tensor, target_C: Tensor, head: Head) -> Tensor:
    """d logp(target) / d (W h + b) = (onehot - softmax) * d logits / d z * scale; overwrites `logp_CV`."""
    softcap_slope_CV = None
    if head.softcap:  # d logits / d z = 1 - (logits / softcap)^2
        softcap_slope_CV = 1 - ((logp_CV + sum_C[:, None]) / head.softcap).square_()
    slope_CV = logp_CV.exp_().neg_()
    slope_CV.scatter_add_(1, target_C[:, None], torch.ones_like(sum_C)[:, None])
    if softcap_slope_CV is not None:
        slope_CV *= softcap_slope_CV
    return slope_CV if head.scale == 1.0 else slope_CV.mul_(head.scale)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Compute total += left @ right, with the addition in fp32."""
    if left.dtype == torch.float32:
        total.addmm_(left, right)
    elif left.device.type == "cuda":
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
    else:
        total += left @ right
