"""Copies of a few layers of a model, and whole models in fp32, without the memory of a second model.

`excerpt` copies a few of a model's own layers, one of each kind, with everything around them except the output layer.
Its parameters are those of the model, or copies in fp32. `in_fp32` runs a whole model in fp32, one layer at a time.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from preftune.model.attention import base_of
from preftune.model.compile import blocks
from preftune.model.head import output_layer

HALF = (torch.bfloat16, torch.float16)
WINDOWS = ("sliding_window", "attention_chunk_size")
SHORT_WINDOW = 8
SMALL = 20_000_000  # parameters up to which layers are added to an excerpt that already has one of each kind
MOST = 3  # layers of an excerpt, unless the model has more kinds
MOST_KINDS = 6


def choose_layers(model: Any) -> list[int]:
    """Return the indices of the first layer of each kind, of the last layer, and of others while all are small."""
    layers = blocks(model)
    types = getattr(base_of(model).config.get_text_config(), "layer_types", None) or [""] * len(layers)
    first: dict[Any, int] = {}
    for index, layer in enumerate(layers):
        first.setdefault((types[index], _kind(layer)), index)
    chosen = sorted(first.values())[:MOST_KINDS]
    chosen = sorted({*chosen, len(layers) - 1}) if len(chosen) < 2 else chosen
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in layers]
    for index in range(len(layers)):
        if index not in chosen and len(chosen) < MOST and sum(sizes[i] for i in (*chosen, index)) <= SMALL:
            chosen.append(index)
    return sorted(chosen)


def _kind(layer: nn.Module) -> Any:
    """Return the classes, shapes and settings in a layer. They are equal for two layers that differ in weights only."""
    settings = [
        (name, type(module).__name__, key, value)
        for name, module in layer.named_modules()
        for key, value in sorted(vars(module).items())
        if isinstance(value, bool | int | str | None)
        and key != "training"
        and not re.search("id|idx|index|number", key)
    ]
    return (*settings, *((name, tuple(p.shape)) for name, p in layer.named_parameters()))


def excerpt(model: Any, layers: Sequence[int], dtype: torch.dtype) -> Any:
    """Return a copy of the base model with only `layers`, no trainable parameters and a stub as output layer.

    Weights in bf16 or fp16 are copied if `dtype` is fp32, except the token embeddings; all others are shared with the
    model. Windows are at most `SHORT_WINDOW` tokens long, so that short sequences exceed them.
    """
    base = base_of(model)
    every, head, embedding = blocks(base), output_layer(base), base.get_input_embeddings()
    held = next(module for module in base.modules() if isinstance(module, nn.ModuleList) and list(module) == every)
    dropped = {id(t) for i, block in enumerate(every) if i not in layers for t in _tensors(block)}
    shared = {id(t) for t in embedding.parameters()}
    memo: dict[int, Any] = {}
    if getattr(head, "out_features", 0) != 1:  # a language model: the excerpt is used for its hidden states only
        memo[id(head)] = nn.Identity()
        dropped |= {id(t) for t in _tensors(head)} - shared
    for tensor in _tensors(base):
        if id(tensor) not in dropped:
            new = tensor.detach() if id(tensor) in shared else widened(tensor, dtype)
            memo[id(tensor)] = nn.Parameter(new, requires_grad=False) if isinstance(tensor, nn.Parameter) else new
    memo[id(held)] = nn.ModuleList([copy.deepcopy(every[i], memo) for i in layers])
    small = copy.deepcopy(base, memo)
    _shorten(small, layers, len(every))
    return small


def widened(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `tensor`, cast if it is in bf16 or fp16. It shares the memory of `tensor` if nothing has to be cast."""
    return tensor.detach().to(dtype) if tensor.dtype in HALF else tensor.detach()


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _shorten(model: Any, layers: Sequence[int], count: int) -> None:
    """Adapt the config of an excerpt, and the windows in its modules."""
    config = model.config.get_text_config()
    for key, value in list(vars(config).items()):
        if isinstance(value, list | tuple) and len(value) == count:
            vars(config)[key] = [value[i] for i in layers]
    config.num_hidden_layers = len(layers)
    for owner in (config, *model.modules()):
        for name in WINDOWS:
            window = vars(owner).get(name)
            if isinstance(window, int) and window > SHORT_WINDOW:
                vars(owner)[name] = SHORT_WINDOW


@contextmanager
def in_fp32(model: Any) -> Iterator[None]:
    """Run a model in bf16 or fp16 in fp32 inside the block, without autograd.

    Each layer is cast before its forward pass and restored after it, so memory holds one layer in fp32. The token
    embeddings and the output layer keep their precision.
    """
    base = base_of(model)
    every = blocks(base)
    apart = {id(m) for part in (*every, base.get_input_embeddings(), output_layer(base)) for m in part.modules()}
    # every list of originals is registered before the first tensor is replaced: Ctrl-C may arrive at any moment
    around: list[_Stored] = []
    inside: dict[int, list[_Stored]] = {}

    def before(layer: nn.Module, _args: Any) -> None:
        _widen(layer.modules(), inside.setdefault(id(layer), []))

    def after(layer: nn.Module, _args: Any, _output: Any) -> None:
        _restore(inside[id(layer)])
        del inside[id(layer)]

    handles: list[Any] = []
    try:
        _widen((module for module in base.modules() if id(module) not in apart), around)
        for block in every:
            handles += [block.register_forward_pre_hook(before), block.register_forward_hook(after)]
        yield
    finally:
        for handle in handles:
            handle.remove()
        for stored in (around, *inside.values()):  # a layer is in `inside` only if its forward pass failed
            _restore(stored)


_Stored = tuple[dict[str, Any], str, Tensor]


def _widen(modules: Iterable[nn.Module], stored: list[_Stored]) -> None:
    """Replace bf16 and fp16 tensors of the modules with copies in fp32, and add the originals to `stored`."""
    for module in modules:
        for tensors in cast(list[dict[str, Any]], [module._parameters, module._buffers]):
            for name, tensor in tensors.items():
                if tensor is not None and tensor.dtype in HALF:
                    stored.append((tensors, name, tensor))
                    wide = tensor.detach().float()
                    tensors[name] = nn.Parameter(wide, False) if isinstance(tensor, nn.Parameter) else wide


def _restore(stored: Iterable[_Stored]) -> None:
    for tensors, name, tensor in stored:
        tensors[name] = tensor
