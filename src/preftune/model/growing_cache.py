"""A key-value cache for sampling on a GPU, which does not copy all keys and values for every token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

STEP = 256  # tokens for which a layer reserves memory at once


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """A cache layer that writes new tokens into reserved memory. A DynamicLayer copies its whole cache instead."""

    keys: Tensor
    values: Tensor
    _reserved: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append the keys and values (B, K, T, D) of T tokens. Return those of all tokens."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        old = self.get_seq_length()
        new = old + key_states.shape[-2]
        if self._reserved is None or new > self._reserved[0].shape[-2] or self._was_replaced():
            room = -(-new // STEP) * STEP
            self._reserved = _reserve(key_states, room), _reserve(value_states, room)
            if old:
                self._reserved[0][:, :, :old] = self.keys
                self._reserved[1][:, :, :old] = self.values
        keys, values = self._reserved
        keys[:, :, old:new] = key_states
        values[:, :, old:new] = value_states
        self.keys, self.values = keys[:, :, :new], values[:, :, :new]
        return self.keys, self.values

    def _was_replaced(self) -> bool:
        """Return whether the cache is no longer in the reserved memory, because rows were selected or repeated."""
        assert self._reserved is not None
        return bool(self.keys.data_ptr() != self._reserved[0].data_ptr())


def _reserve(states: Tensor, room: int) -> Tensor:
    rows, heads, _, size = states.shape
    return torch.empty(rows, heads, room, size, dtype=states.dtype, device=states.device)


def to_growing(cache: DynamicCache) -> DynamicCache:
    """Replace the layers that would copy themselves. Layers with sliding windows are short and stay as they are."""
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
