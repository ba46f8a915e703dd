"""Attention for packed layouts, without patching transformers models.

transformers has a registry of mask functions, whose result it passes unchanged to every layer, and one of attention
functions. `use_segments` registers NAME in both. Inside `segmented`, the mask is a `Visible` record: it carries the
segments (and the window of layers with sliding-window attention) to the attention function of each layer, even when
gradient checkpointing recomputes the layer. Outside of it, the mask is an ordinary tensor, so the model can generate.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from preftune.model import segments
from preftune.types import Packed

SMALLEST_FLEX_HEAD = 16  # Triton multiplies matrices of 16 columns or more
NAME = "preftune_segments"  # must not contain a name that transformers dispatches on, such as sdpa
_layout: ContextVar[Packed | None] = ContextVar("layout", default=None)
_calls: ContextVar[list[AttentionCall] | None] = ContextVar("calls", default=None)
_fp32_kernels: ContextVar[bool] = ContextVar("fp32_kernels", default=True)
_original: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True, eq=False)
class Visible:
    """Replaces the mask: the segments, and the number of slots that a token sees, including itself (None: no limit)."""

    layout: Packed
    window: int | None


@dataclass(frozen=True, slots=True, eq=False)
class AttentionCall:
    """The arguments of one call of `segment_attention` with a packed batch."""

    query: Tensor
    key: Tensor
    value: Tensor
    visible: Visible
    scale: float
    softcap: float | None
    sinks_H: Tensor | None


@contextmanager
def segmented(layout: Packed) -> Iterator[None]:
    """Inside the block, models with segment attention use this layout."""
    token = _layout.set(layout)
    try:
        yield
    finally:
        _layout.reset(token)


@contextmanager
def record_attention_calls() -> Iterator[list[AttentionCall]]:
    """Record the arguments of each segment-attention call inside the block."""
    calls: list[AttentionCall] = []
    token = _calls.set(calls)
    try:
        yield calls
    finally:
        _calls.reset(token)


@contextmanager
def without_fp32_kernels() -> Iterator[None]:
    """Inside the block, attention in fp32 runs one segment at a time, so that nothing is compiled for it on a GPU."""
    token = _fp32_kernels.set(False)
    try:
        yield
    finally:
        _fp32_kernels.reset(token)


def use_segments(model: Any) -> bool:
    """Switch `model` to segment attention. Returns False if the model does not support it."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, torch.compiler.disable(segment_attention))  # calls fused kernels
    AttentionMaskInterface.register(NAME, visible_slots)
    base = base_of(model)
    original = base.config._attn_implementation
    if original != NAME:
        base.set_attn_implementation(NAME)
        _original[base] = original
    return uses_segments(base)


def uses_segments(model: Any) -> bool:
    """Return whether `model` uses segment attention."""
    return bool(base_of(model).config._attn_implementation == NAME)


def restore_attention(model: Any) -> None:
    """Restore the attention that `model` had before `use_segments`."""
    base = base_of(model)
    if base in _original:
        base.set_attn_implementation(_original.pop(base))


def base_of(model: Any) -> Any:
    """Return the transformers model, without its adapter."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def visible_slots(*args: Any, **kwargs: Any) -> Visible | Tensor:
    """The mask function for transformers. `local_size` is the window of layers with sliding-window attention."""
    from transformers.masking_utils import sdpa_mask

    layout = _layout.get()
    if layout is not None:
        return Visible(layout, kwargs.get("local_size"))
    mask: Tensor = sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False})
    return mask


def segment_attention(
    _module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Visible | Tensor,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function for transformers: (B, H, T, D), (B, K, T, D) -> (B, T, H, D); B = 1 if packed."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if isinstance(attention_mask, Tensor):  # not a packed batch
        return segments.attend(query, key, value, attention_mask, scale, softcap, s_aux), None
    calls = _calls.get()
    if calls is not None:
        tensors = (query.detach(), key.detach(), value.detach())
        calls.append(AttentionCall(*tensors, attention_mask, scale, softcap, s_aux))
    qkv, seen = (query, key, value), (attention_mask.layout, attention_mask.window, scale)
    plain = not softcap and s_aux is None and value.shape[-1] == query.shape[-1]
    if query.dtype == torch.float32 and not _fp32_kernels.get():
        return segments.one_by_one(*qkv, *seen, softcap, s_aux), None
    flash = query.dtype in (torch.float16, torch.bfloat16) and query.shape[-1] <= 256 and query.shape[-1] % 8 == 0
    match query.device.type:
        case "cuda" if plain and flash:
            return segments.varlen(*qkv, *seen), None
        case "cuda" if min(query.shape[-1], value.shape[-1]) >= SMALLEST_FLEX_HEAD:
            from preftune.model.flex import flex

            return flex(*qkv, *seen, softcap, s_aux), None
        case "cpu" if plain:
            return segments.fused(*qkv, *seen), None
    return segments.one_by_one(*qkv, *seen, softcap, s_aux), None
