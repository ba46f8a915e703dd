"""Segment attention with FlexAttention: for CUDA, with a softcap or attention sinks, which flash attention lacks.

The kernel is compiled for the first batch, and once more for all other lengths. With dynamic=True it would be compiled
once, but the head size and the scale would become symbols, which the templates of the kernel need as constants. Numbers
of the masks and softcaps are tensors on the device, so that other windows and softcaps use the same kernel. Slots are
rounded up to whole blocks, and the block mask is built from the bounds of the segments.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention
from torch.nn.functional import pad

from preftune.model.compiler import compiler_settings
from preftune.types import Packed, Segment, to_device

BLOCK = 128  # the size of blocks in a BlockMask, unless another is set


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
    """(1, H, T, D), (1, K, T, D) -> (1, T, H, D). Computes the same function as `segments.one_by_one`."""
    slots = query.shape[2]
    if slots % BLOCK:
        query, key, value = (pad(x, (0, 0, 0, -slots % BLOCK)) for x in (query, key, value))
    cap = scalar(softcap, query.device) if softcap else None

    def capped(score: Tensor, *_: Tensor) -> Tensor:
        assert cap is not None
        return cap * torch.tanh(score / cap)

    attend: Any = _compiled() if query.device.type == "cuda" else flex_attention
    out, aux = attend(
        query, key, value, score_mod=capped if softcap else None, block_mask=block_mask(layout, window, query.device),
        scale=scale, enable_gqa=query.shape[1] != key.shape[1], return_aux=AuxRequest(lse=True),
    )  # fmt: skip
    if sinks_H is not None:  # a sink adds a score to the denominator of the softmax, without a value
        out = out * torch.sigmoid(aux.lse - sinks_H.float()[None, :, None])[..., None].to(out.dtype)
    transposed: Tensor = out.transpose(1, 2)[:, :slots]
    return transposed


@lru_cache(maxsize=1)
def _compiled() -> Any:
    return torch.compile(flex_attention, **compiler_settings(dynamic=None))


@lru_cache(maxsize=8, typed=True)
def scalar(value: float, device: torch.device) -> Tensor:
    """Return a number as a tensor without dimensions. Cached, because each copy to a GPU takes time."""
    return to_device(torch.tensor(value, dtype=torch.int32 if isinstance(value, int) else torch.float32), device)


@lru_cache(maxsize=4)
def block_mask(layout: Packed, window: int | None, device: torch.device) -> BlockMask:
    """Return the mask of which slots see which, on whole blocks: slots after the last segment see only themselves.

    Cached, because all layers of one kind need the same mask.
    """
    used = layout.segments[-1].end
    segments = [*layout.segments, *(Segment(slot, slot + 1) for slot in range(used, used - used % -BLOCK))]
    bounds = np.repeat(np.array(segments, dtype=np.int32), [s.end - s.begin for s in segments], 0).T
    begin, _, prefix_begin, prefix_end = bounds
    place = np.arange(len(begin), dtype=np.int32) - begin + prefix_end - prefix_begin
    names = (begin, prefix_begin, prefix_end, place)
    begin_T, prefix_begin_T, prefix_end_T, place_T = (to_device(torch.from_numpy(x.copy()), device) for x in names)
    limit = None if window is None else scalar(window, device)

    def sees(_batch: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        own = (k >= begin_T[q]) & (k <= q)
        prompt = (k >= prefix_begin_T[q]) & (k < prefix_end_T[q])
        seen = own | prompt
        return seen if limit is None else seen & (place_T[q] - place_T[k] < limit)

    visible = visible_blocks(segments, window)
    (kv_counts, kv_indices), (q_counts, q_indices) = _lists(visible, device), _lists(visible.T, device)
    none = (None, None)  # no block is marked as wholly visible: few are, and the function also holds for them
    return BlockMask((len(begin), len(begin)), kv_counts, kv_indices, *none, q_counts, q_indices, *none, mask_mod=sees)


def _lists(visible: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return how many blocks are visible in each row, and their numbers, ascending, followed by all others."""
    order = np.argsort(~visible, axis=1, kind="stable")
    counts, indices = (
        to_device(torch.from_numpy(x.astype(np.int32)[None, None]), device) for x in (visible.sum(1), order)
    )
    return counts, indices


def visible_blocks(segments: list[Segment], window: int | None) -> np.ndarray:
    """Return which blocks of slots (rows) see at least one slot of which blocks (columns).

    The queries [first, end) of a segment see the slots from the oldest that `first` sees to `end`, and the end of the
    prompt from the oldest position that `first` sees.
    """
    blocks = segments[-1].end // BLOCK
    visible = np.zeros((blocks, blocks), dtype=bool)
    for s in segments:
        prompt = s.prefix_end - s.prefix_begin
        for block in range(s.begin // BLOCK, (s.end - 1) // BLOCK + 1):
            first, end = max(s.begin, block * BLOCK), min(s.end, (block + 1) * BLOCK)
            oldest = 0 if window is None else max(0, first - s.begin + prompt - window + 1)  # position in the sequence
            own = s.begin + max(0, oldest - prompt)
            visible[block, own // BLOCK : (end - 1) // BLOCK + 1] = True
            if oldest < prompt:
                visible[block, (s.prefix_begin + oldest) // BLOCK : (s.prefix_end - 1) // BLOCK + 1] = True
    return visible
