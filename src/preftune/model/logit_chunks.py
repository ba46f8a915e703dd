"""Chunks of tokens for which logits are computed together, so that the logits of all tokens are never in memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def chunk_tokens(weight_VH: Tensor) -> int:
    """Return the tokens per chunk: 16 MB of fp32 logits on a CPU (64 MB with a 16-bit head), and 512 MB on a GPU.

    At least 128 tokens, because each chunk is added to the gradient of the whole head. On a GPU a multiple of 128, for
    which its matrix products are fastest.
    """
    row_bytes = 4 * len(weight_VH)
    if weight_VH.device.type == "cuda":
        return max(1, 512_000_000 // (128 * row_bytes)) * 128
    # Small chunks avoid page faults; the products of 16-bit matrices need larger ones to be fast.
    return max(128, (16_000_000 if weight_VH.dtype == torch.float32 else 64_000_000) // row_bytes)


def chunks(n: int, weight_VH: Tensor) -> Iterator[slice]:
    """Yield the slices of n tokens, one per chunk."""
    size = chunk_tokens(weight_VH)
    return (slice(begin, begin + size) for begin in range(0, n, size))
