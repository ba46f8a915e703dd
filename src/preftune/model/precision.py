"""Numeric precision: which dtypes hold which values exactly, and how to load and save weights without rounding."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

CONTAINS = {
    torch.float64: {torch.float64, torch.float32, torch.float16, torch.bfloat16},
    torch.float32: {torch.float32, torch.float16, torch.bfloat16},
    torch.float16: {torch.float16},
    torch.bfloat16: {torch.bfloat16},
}
"""The dtypes whose values each dtype represents exactly."""


def exact_in(dtypes: Iterable[torch.dtype], dtype: torch.dtype) -> bool:
    """Return whether `dtype` represents the values of all `dtypes` exactly."""
    return set(dtypes) <= CONTAINS[dtype]


def smallest_exact_dtype(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """Return the smallest dtype that represents the values of all `dtypes` exactly; fp32 if there are none."""
    order = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
    return next(dtype for dtype in order if exact_in(dtypes, dtype)) if dtypes else torch.float32


def note_compute_dtype(model: Any, dtype: torch.dtype) -> None:
    """Note that a model computes in `dtype`, although its weights are stored in fp32."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    base.preftune_compute_dtype = dtype


def compute_dtype_of(model: Any) -> torch.dtype:
    """Return the precision in which a model computes: that of its weights, unless a different one was noted."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    dtype: torch.dtype = getattr(base, "preftune_compute_dtype", base.dtype)
    return dtype


def exact_state(model: Any) -> dict[str, Tensor]:
    """Return the parameters and saved buffers of a model by name. Tied tensors appear once."""
    saved = model.state_dict(keep_vars=True)
    buffers = {name: tensor for name, tensor in model.named_buffers() if name in saved}
    return {name: tensor.detach() for name, tensor in [*model.named_parameters(), *buffers.items()]}


def cast_like(model: Any, plain: Any, dtype: torch.dtype) -> Any:
    """Cast the tensors of `model` in place to the dtypes of `plain`, the same architecture loaded in `dtype`.

    `model.to(dtype)` would also round buffers that transformers keeps in fp32, such as rotary frequencies.
    """
    dtypes = {name: parameter.dtype for name, parameter in plain.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(dtypes.get(name, dtype))
    modules = dict(model.named_modules())
    for name, module in plain.named_modules():
        for key, buffer in module._buffers.items():
            buffers = modules[name]._buffers if name in modules else {}
            if buffer is not None and buffers.get(key) is not None:
                buffers[key] = buffer
    model.config.dtype = plain.config.dtype
    return model


def save_dtype_of(model: Any, stored: Mapping[str, torch.dtype]) -> torch.dtype:
    """Return the dtype in which to save tensors whose names are not in the source's files.

    Such tensors can have other names in the files, for example experts that transformers stacks. The dtype represents
    the values of all stored tensors whose names are not in the model.
    """
    state = exact_state(model)
    others = [dtype for name, dtype in stored.items() if name not in state]
    return smallest_exact_dtype(others if others and any(name not in stored for name in state) else stored.values())


def base_name(name: str) -> str:
    """Convert the name of a tensor in a PEFT model to its name in the base model."""
    return name.replace("base_model.model.", "").replace(".base_layer", "")


def restore_base(model: Any, precise: Mapping[str, Tensor]) -> Any:
    """Set the base weights of a PEFT model to fp32, from the exact values in `precise` where it has them."""
    for name, parameter in model.named_parameters():
        if ".lora_" not in name:
            parameter.data = precise.get(base_name(name), parameter.data).to(parameter.device, torch.float32)
    return model


def cast_to(model: Any, dtypes: Mapping[str, torch.dtype], default: torch.dtype, precise: Mapping[str, Tensor]) -> Any:
    """Cast every parameter of `model` in place to its dtype in `dtypes`, or to `default`.

    Saved buffers with a dtype in `dtypes` are also cast, from their exact value in `precise` if there is one.
    """
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        parameter.data = parameter.data.to(dtypes.get(name, default))
    for name, buffer in exact_state(model).items():
        if name not in parameters and name in dtypes:
            module, _, key = name.rpartition(".")
            exact = precise.get(name, buffer)
            model.get_submodule(module)._buffers[key] = exact.to(buffer.device, dtypes[name])
    return model
