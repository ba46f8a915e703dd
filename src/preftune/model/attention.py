"""Attention for packed layouts, on unpatched transformers models.

transformers asks two registries: one for the mask, whose value it hands to every layer without looking at it, and one
for the attention function. Both get an entry NAME with the first model that is switched. While `laid_out` is open, the
mask is a `Visible` record, which carries the segments (and, for layers with a sliding window, the window) to the
attention function of each layer, and survives the recomputation of gradient checkpointing. Otherwise the mask is a
plain one: a model that was switched still generates.
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

NAME = "preftune_segments"  # no part of it may be a name that transformers dispatches on, such as sdpa
_layout: ContextVar[Packed | None] = ContextVar("layout", default=None)
_calls: ContextVar[list[int] | None] = ContextVar("calls", default=None)
_own: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True, eq=False)
class Visible:
    """In place of a mask: which slots see which. A token sees at most `window` slots back, itself included."""

    layout: Packed
    window: int | None


@contextmanager
def segmented(layout: Packed) -> Iterator[None]:
    """While open, a forward pass of a model whose attention is NAME runs on this layout."""
    token = _layout.set(layout)
    try:
        yield
    finally:
        _layout.reset(token)


@contextmanager
def record_attention_calls() -> Iterator[list[int]]:
    """The number of slots of each attention call that is made while open."""
    calls: list[int] = []
    token = _calls.set(calls)
    try:
        yield calls
    finally:
        _calls.reset(token)


def use_segments(model: Any) -> bool:
    """Let `model` attend by segments from now on; False if it cannot be switched and keeps its own attention."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, torch.compiler.disable(segment_attention))  # it has kernels of its own
    AttentionMaskInterface.register(NAME, visible_slots)
    base = base_of(model)
    before = base.config._attn_implementation
    if before != NAME:
        base.set_attn_implementation(NAME)
        _own[base] = before
    return uses_segments(base)


def uses_segments(model: Any) -> bool:
    """Whether `model` attends by segments."""
    return bool(base_of(model).config._attn_implementation == NAME)


def restore_attention(model: Any) -> None:
    """Give `model` back the attention that it came with."""
    base = base_of(model)
    if base in _own:
        base.set_attn_implementation(_own.pop(base))


def base_of(model: Any) -> Any:
    """The transformers model, also below an adapter."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def visible_slots(*args: Any, **kwargs: Any) -> Visible | Tensor:
    """The mask function: what the layers see; `local_size` is the window of layers that have one."""
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
    """(B, H, T, D) query and (B, K, T, D) key and value -> (B, T, H, D), as transformers wants it; B = 1 if packed."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if isinstance(attention_mask, Tensor):  # not a packed batch
        return segments.attend(query, key, value, attention_mask, scale, softcap, s_aux), None
    calls = _calls.get()
    if calls is not None:
        calls.append(query.shape[2])
    qkv, seen = (query, key, value), (attention_mask.layout, attention_mask.window, scale)
    plain = not softcap and s_aux is None and value.shape[-1] == query.shape[-1]
    flash = query.dtype in (torch.float16, torch.bfloat16) and query.shape[-1] <= 256 and query.shape[-1] % 8 == 0
    match query.device.type:
        case "cuda" if plain and flash and segments.has_varlen():
            return segments.varlen(*qkv, *seen), None
        case "cuda":
            from preftune.model.flex import flex

            return flex(*qkv, *seen, softcap, s_aux), None
        case "cpu" if plain:
            return segments.fused(*qkv, *seen), None
    return segments.one_by_one(*qkv, *seen, softcap, s_aux), None
