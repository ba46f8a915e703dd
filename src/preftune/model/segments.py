"""Attention over the segments of a packed row.

The queries of a segment see its prefix (the shared prompt) and, causally, the segment itself. Both are contiguous, so
a segment is ordinary attention of q[begin:end] over k[prefix] ++ k[begin:end], with a mask aligned at the lower right.

    fused       CPU: the fused kernel of torch on each segment; one gradient buffer for the whole row
    varlen      CUDA: all segments in one flash-attention call
    one_by_one  any device, including with softcap and attention sinks, which the fused kernels lack
                (on CUDA, model.flex handles these for head sizes from 16)
"""

from __future__ import annotations

import inspect
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from preftune.types import Packed, Segment, to_device

KEPT_BYTES = (
    8 * 2**20
)  # the largest mask that is kept; to make a larger one takes a twentieth of the time of its attention
_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class SegmentAttention(torch.autograd.Function):
    """Apply the CPU kernel to each segment in turn. Shapes: (1, H, T, D), (1, K, T, D) -> (1, T, H, D)."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: Packed, window: int | None, scale: float
    ) -> Tensor:
        out = query.new_empty(1, query.shape[2], query.shape[1], query.shape[3])
        sums = []
        for s in layout.segments:
            causal, mask = _visible(s, window, query)
            piece, log_sum = _forward(
                query[:, :, s.begin : s.end], _keys(key, s), _keys(value, s), 0.0, causal, attn_mask=mask, scale=scale
            )
            out[:, s.begin : s.end] = piece.transpose(1, 2)
            sums.append(log_sum)
        ctx.save_for_backward(query, key, value, out, *sums)
        ctx.layout, ctx.window, ctx.scale = layout, window, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # In fp32 also for 16-bit tensors: the kernel is two to three times as fast, and the sums are exact.
        saved = ctx.saved_tensors  # with gradient checkpointing, they can be read only once
        query, key, value, out, d_out = (tensor.float() for tensor in (*saved[:4], grads[0]))
        d_query = torch.empty_like(query)
        d_key, d_value = torch.zeros_like(key), torch.zeros_like(value)
        for s, log_sum in zip(ctx.layout.segments, saved[4:], strict=True):
            causal, mask = _visible(s, ctx.window, query)
            own = slice(s.begin, s.end)
            d_piece, piece = d_out[:, own].transpose(1, 2), out[:, own].transpose(1, 2)
            tensors = (d_piece, query[:, :, own], _keys(key, s), _keys(value, s), piece, log_sum)
            dq, dk, dv = _backward(*tensors, 0.0, causal, attn_mask=mask, scale=ctx.scale)
            d_query[:, :, own] = dq
            prompt = s.prefix_end - s.prefix_begin
            for total, part in ((d_key, dk), (d_value, dv)):
                total[:, :, own] += part[:, :, prompt:]
                if prompt:
                    total[:, :, s.prefix_begin : s.prefix_end] += part[:, :, :prompt]
        return *(total.to(grads[0].dtype) for total in (d_query, d_key, d_value)), None, None, None


def fused(query: Tensor, key: Tensor, value: Tensor, layout: Packed, window: int | None, scale: float) -> Tensor:
    """Apply the fused CPU kernel to each segment."""
    out: Tensor = SegmentAttention.apply(query, key, value, layout, window, scale)  # type: ignore[no-untyped-call]
    return out


def _keys(tensor: Tensor, s: Segment) -> Tensor:
    own = tensor[:, :, s.begin : s.end]
    return own if s.prefix_begin == s.prefix_end else torch.cat([tensor[:, :, s.prefix_begin : s.prefix_end], own], 2)


def _visible(s: Segment, window: int | None, like: Tensor) -> tuple[bool, Tensor | None]:
    """Return (is_causal, additive mask) of a segment. The mask is None if the kernel's causal mode is sufficient."""
    queries, prompt = s.end - s.begin, s.prefix_end - s.prefix_begin
    exceeds_window = window is not None and prompt + queries > window
    if not prompt and not exceeds_window:
        return True, None
    return False, _additive(queries, prompt, window if exceeds_window else None, like.dtype, like.device)


def _additive(queries: int, prompt: int, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return what is added to the scores. Small masks are kept for the next layers: at most 32 times KEPT_BYTES."""
    small = queries * (prompt + queries) * dtype.itemsize <= KEPT_BYTES
    return (_kept if small else _kept.__wrapped__)(queries, prompt, window, dtype, device)


@lru_cache(maxsize=32)
def _kept(queries: int, prompt: int, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    mask = torch.zeros(queries, prompt + queries, dtype=dtype, device=device)
    return mask.masked_fill_(~_seen(queries, prompt, window, device), -torch.inf)


def _seen(queries: int, prompt: int, window: int | None, device: torch.device) -> Tensor:
    """Return a (queries, prompt + queries) mask that is True where a query sees a key."""
    seen = torch.ones(queries, prompt + queries, dtype=torch.bool, device=device).tril(prompt)
    return seen if window is None else seen.triu(prompt - window + 1)


def one_by_one(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Packed,
    window: int | None,
    scale: float,
    softcap: float | None = None,
    sinks_H: Tensor | None = None,
) -> Tensor:
    """Apply `attend` to each segment in turn."""
    out = []
    for s in layout.segments:
        seen = _seen(s.end - s.begin, s.prefix_end - s.prefix_begin, window, query.device)
        own = query[:, :, s.begin : s.end]
        out.append(attend(own, _keys(key, s), _keys(value, s), seen, scale, softcap, sinks_H))
    return torch.cat(out, 1)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seen: Tensor,
    scale: float,
    softcap: float | None = None,
    sinks_H: Tensor | None = None,
) -> Tensor:
    """Return attention with a softmax over [scores | sink] where `seen` is True. A sink has no value.

    scores = softcap * tanh(scale * q k / softcap).  Shapes: (B, H, Q, D) and (B, K, S, D) -> (B, Q, H, D)
    """
    if not softcap and sinks_H is None:
        if query.device.type == "cuda":
            return attend_grouped(query, key, value, seen, scale)
        out = scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scale, enable_gqa=True)
        return out.transpose(1, 2)
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = (query @ key.transpose(2, 3)).float() * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)  # -inf would make rows of padding nan
    if sinks_H is not None:
        sinks = sinks_H.float()[None, :, None, None].expand(len(scores), -1, scores.shape[2], 1)
        scores = torch.cat([scores, sinks], -1)
    weights = scores.softmax(-1)[..., : key.shape[2]]
    return (weights.to(value.dtype) @ value).transpose(1, 2)


def attend_grouped(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scale: float) -> Tensor:
    """Return the result of `attend`, with the H/K query heads of each key head as more queries of that head.

    On CUDA, the memory-efficient kernel takes a mask, but needs as many key heads as query heads. Without it, torch
    uses a kernel that stores all scores in fp32, or cuDNN, which makes a plan for every new length. Repeating the keys
    would copy the whole cache for each sampled token; repeating the mask copies far less.
    """
    rows, heads, queries, size = query.shape
    repeats = heads // key.shape[1]
    folded = query.reshape(rows, key.shape[1], repeats * queries, size)
    mask = seen.repeat(*[1] * (seen.dim() - 2), repeats, 1)
    out = scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scale)
    return out.reshape(rows, heads, queries, value.shape[-1]).transpose(1, 2)


def varlen(query: Tensor, key: Tensor, value: Tensor, layout: Packed, window: int | None, scale: float) -> Tensor:
    """Apply flash attention to all segments at once. Gathers the keys of a shared prompt once per segment."""
    from torch.nn.attention.varlen import varlen_attn

    gather, starts_q, starts_k, longest_q, longest_k = _ragged(layout, query.device)
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    if len(gather) != k.shape[0]:
        k, v = k[gather], v[gather]
    settings: dict[str, Any] = {"scale": scale, "window_size": (-1 if window is None else window - 1, 0)}
    if q.shape[1] != k.shape[1] and _takes_enable_gqa(varlen_attn):
        settings["enable_gqa"] = True
    ragged = (starts_q, starts_k, longest_q, longest_k)
    out: Tensor = varlen_attn(q.contiguous(), k.contiguous(), v.contiguous(), *ragged, **settings)  # type: ignore[assignment]
    return out[None]


@lru_cache(maxsize=1)
def _takes_enable_gqa(function: Any) -> bool:
    """Return whether the kernel has to be told that there are fewer key heads. torch 2.11 takes them as they are."""
    return "enable_gqa" in inspect.signature(function).parameters


@lru_cache(maxsize=4)
def _ragged(layout: Packed, device: torch.device) -> tuple[Tensor, Tensor, Tensor, int, int]:
    """Return the key slots in the order of segments, cumulative lengths of queries and keys, and both maximum lengths.

    Cached, because all layers use the same layout.
    """
    begin, end, prefix_begin, prefix_end = np.array(layout.segments, dtype=np.int64).T
    queries, prompts = end - begin, prefix_end - prefix_begin
    keys = prompts + queries
    starts = np.cumsum(keys) - keys
    offset = np.arange(keys.sum()) - np.repeat(starts, keys)  # of each key in its segment: prompt first
    slot = offset + np.repeat(prefix_begin, keys)
    own = offset - np.repeat(prompts, keys)
    gather = np.where(own < 0, slot, own + np.repeat(begin, keys))
    ends = (np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32) for lengths in (queries, keys))
    slots, starts_q, starts_k = (to_device(torch.from_numpy(x), device) for x in (gather, *ends))
    return slots, starts_q, starts_k, int(queries.max()), int(keys.max())
