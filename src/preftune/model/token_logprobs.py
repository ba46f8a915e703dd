"""Compute log pi(target | context) of N scored tokens from their hidden states, with the head in one of three modes.

The log-prob of a token depends only on its own hidden state. So its gradient is known in the forward pass, except for
one factor per token: the derivative of the loss with respect to the log-prob. The modes differ in what they store for
the backward pass, and in the number of matrix products with the head:

    frozen      2 products: the head is not trained; stores d logp / d hidden, (N, H) like the hidden states
    stored      3 products: stores (N, V) values, if they fit `max_stored_bytes`
    recomputed  4 products: stores nothing that grows with the vocabulary, and computes the logits a second time

Logits are computed in chunks of `chunk_tokens`. For all dtypes, the logits, the log-softmax and the sum of the head's
gradient over the chunks are in fp32. Mode `stored` stores the log-probs for an fp32 head. For a 16-bit head it stores
the slopes d logp / d logits in the dtype of the head, in which the backward products need them anyway.
"""

from __future__ import annotations

import os
from typing import Any, Literal

import torch
from torch import Tensor

from preftune.model.half_logprobs import HalfLogprobs
from preftune.model.head import Head
from preftune.model.logit_chunks import chunks

Mode = Literal["none", "frozen", "stored", "recomputed"]


def token_logprobs(hidden_NH: Tensor, head: Head, target_N: Tensor) -> Tensor:
    """Return the (N,) fp32 log-probs of the targets, differentiable in the hidden states and the head.

    Holds an (N, V) tensor in memory only if it fits `max_stored_bytes`.
    """
    function = HalfLogprobs if head.weight.element_size() == 2 else TokenLogprobs
    out: Tensor = function.apply(  # type: ignore[no-untyped-call]
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
    size = head.weight.element_size() * len(hidden_NH) * len(head.weight)
    return "stored" if size <= max_stored_bytes(hidden_NH.device) else "recomputed"


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
    """Implements `token_logprobs` for an fp32 head.

    z = scale * (W h + b), logits = softcap * tanh(z / softcap)
    """

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
        for part in chunks(len(target_N), weight_VH):
            logits = head.logits(hidden_NH[part])
            chosen = logits.gather(1, target_N[part, None]).squeeze(1)
            logp = torch.log_softmax(logits, 1)
            out_N[part] = logp.gather(1, target_N[part, None]).squeeze(1)
            sum_N[part] = chosen - out_N[part]
            if slopes_NH is not None:
                slope = _slope(logp, sum_N[part], target_N[part], head)
                torch.mm(slope, weight_VH, out=slopes_NH[part])
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
        d_weight = torch.zeros_like(weight_VH) if wants_weight else None
        d_bias = torch.zeros_like(bias_V) if wants_bias and bias_V is not None else None
        for number, part in enumerate(chunks(len(target_N), weight_VH)):
            if ctx.mode == "stored":
                if ctx.stored[number] is None:
                    raise RuntimeError("the backward pass can run only once per forward pass: run the forward again")
                logp, ctx.stored[number] = ctx.stored[number], None
            else:
                logp = head.logits(hidden_NH[part]).sub_(sum_N[part, None])
            d_z = _slope(logp, sum_N[part], target_N[part], head).mul_(grad_N[part, None])
            if d_bias is not None:
                d_bias += d_z.sum(0)
            if d_hidden is not None:
                torch.mm(d_z, weight_VH, out=d_hidden[part])
            if d_weight is not None:
                d_weight.addmm_(d_z.t(), hidden_NH[part])
            del logp, d_z
        return d_hidden, d_weight, d_bias, *[None] * 4


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
