"""log pi(target | context) of N scored tokens from their hidden states: the head's three modes.

A token's log-prob depends on its own hidden state alone, so its gradient is known up to one factor per token before
any loss is: that of the output with respect to the loss. With H multiply-adds a token for one product with the head:

    frozen     the head is not trained: d logp / d hidden is kept, (N, H) like the states; 2 products, nothing again
    kept       log-probs of all tokens over the vocabulary are kept, if they fit `max_stored_bytes`; 3 products
    recomputed only what does not grow with the vocabulary is kept, logits are made a second time; 4 products

Logits live in chunks of `chunk_tokens`. Log-softmax and log-probs are fp32 for every dtype, and the head's gradient is
added up over the chunks in fp32.
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
    """(N,) fp32 log-probs of the targets, differentiable in the states and the head; never (N, V) in memory at once,
    unless that fits `max_stored_bytes`."""
    out: Tensor = TokenLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden_NH, head.weight, head.bias, target_N, head.scale, head.softcap, mode_of(hidden_NH, head)
    )
    return out


def mode_of(hidden_NH: Tensor, head: Head) -> Mode:
    """The cheapest mode that is possible for these states."""
    trained = head.weight.requires_grad or (head.bias is not None and head.bias.requires_grad)
    if not torch.is_grad_enabled() or not (trained or hidden_NH.requires_grad):
        return "none"
    if not trained:
        return "frozen"
    return "stored" if 4 * len(hidden_NH) * len(head.weight) <= max_stored_bytes(hidden_NH.device) else "recomputed"


def max_stored_bytes(device: torch.device) -> int:
    """Most bytes of the mode `stored`: a twentieth of the device's memory, on a CPU at most 1 GB.

    Of all its memory, not of what is free: the mode decides about last digits, and a resumed run must have the same.
    """
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory) // 20
    if not hasattr(os, "sysconf"):
        return 256_000_000
    return min(1_000_000_000, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 20)


class TokenLogprobs(torch.autograd.Function):
    """See `token_logprobs`; z = scale * (W h + b), logits = softcap * tanh(z / softcap)."""

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
        kept, slopes_NH = [], torch.empty_like(hidden_NH) if mode == "frozen" else None
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
                kept.append(logp)
            del logits, logp
        ctx.mode, ctx.scale, ctx.softcap, ctx.kept = mode, scale, softcap, kept
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
                if ctx.kept[number] is None:
                    raise RuntimeError("the log-probs of a batch have one backward pass: run the forward pass again")
                logp, ctx.kept[number] = ctx.kept[number], None
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
    """Tokens of a chunk: on a CPU 16 MB of logits, which are reused without page faults, on a GPU 512 MB.

    At least 128 tokens, since each chunk adds to the whole gradient of the head.
    """
    return max(128, (512_000_000 if device.type == "cuda" else 16_000_000) // (4 * vocabulary))


def chunks(n: int, vocabulary: int, device: torch.device) -> Iterator[slice]:
    """Slices of n tokens."""
    size = chunk_tokens(vocabulary, device)
    return (slice(begin, begin + size) for begin in range(0, n, size))


def _slope(logp_CV: Tensor, sum_C: Tensor, target_C: Tensor, head: Head) -> Tensor:
    """d logp(target) / d (W h + b) = (onehot - softmax) * d logits / d z * scale; overwrites `logp_CV`."""
    bend_CV = None
    if head.softcap:  # d logits / d z = 1 - (logits / softcap)^2
        bend_CV = 1 - ((logp_CV + sum_C[:, None]) / head.softcap).square_()
    slope_CV = logp_CV.exp_().neg_()
    slope_CV.scatter_add_(1, target_C[:, None], torch.ones_like(sum_C)[:, None])
    if bend_CV is not None:
        slope_CV *= bend_CV
    return slope_CV if head.scale == 1.0 else slope_CV.mul_(head.scale)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, added in fp32."""
    if left.dtype == torch.float32:
        total.addmm_(left, right)
    elif left.device.type == "cuda":
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
    else:
        total += left @ right
