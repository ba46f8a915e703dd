"""Attention over segments as one FlexAttention call: for CUDA, where a softcap or a sink rules flash attention out."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, create_block_mask, flex_attention

from preftune.types import Packed, to_device


def flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Packed,
    window: int | None,
    scale: float,
    softcap: float | None = None,
    sinks_H: Tensor | None = None,
) -> Tensor:
    """(1, H, T, D), (1, K, T, D) -> (1, T, H, D); the numbers are those of `segments.each`."""
    mask = block_mask(layout, window, query.device)
    attend: Any = _compiled() if query.device.type == "cuda" else flex_attention

    def cap(score: Tensor, *_: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap) if softcap else score

    out, aux = attend(
        query, key, value, score_mod=cap if softcap else None, block_mask=mask, scale=scale,
        enable_gqa=query.shape[1] != key.shape[1], return_aux=AuxRequest(lse=True),
    )  # fmt: skip
    if sinks_H is not None:  # a sink is one more score in the denominator, with no value
        out = out * torch.sigmoid(aux.lse - sinks_H.float()[None, :, None])[..., None].to(out.dtype)
    transposed: Tensor = out.transpose(1, 2)
    return transposed


@lru_cache(maxsize=1)
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=True)


@lru_cache(maxsize=4)
def block_mask(layout: Packed, window: int | None, device: torch.device) -> BlockMask:
    """Which slots see which; made once for a batch and kind of layer."""
    begin, prefix_begin, prefix_end = (
        to_device(torch.cat([torch.full((s.end - s.begin,), getattr(s, name)) for s in layout.segments]), device)
        for name in ("begin", "prefix_begin", "prefix_end")
    )
    slots = len(begin)
    position = torch.arange(slots, device=device) - begin + (prefix_end - prefix_begin)

    def sees(_batch: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        own = (k >= begin[q]) & (k <= q)
        prompt = (k >= prefix_begin[q]) & (k < prefix_end[q])
        seen = own | prompt
        return seen if window is None else seen & (position[q] - position[k] < window)

    return create_block_mask(sees, None, None, slots, slots, device=str(device), _compile=device.type == "cuda")
