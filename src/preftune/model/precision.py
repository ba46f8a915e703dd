"""Precisions: what rounds what, and how a model keeps the digits of its source from its files to its files."""

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
"""Which precisions each precision holds without rounding."""


def exact_in(dtypes: Iterable[torch.dtype], dtype: torch.dtype) -> bool:
    """Whether `dtype` holds numbers of all `dtypes` without rounding."""
    return set(dtypes) <= CONTAINS[dtype]


def smallest_exact_dtype(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """The smallest precision that holds numbers of all `dtypes` without rounding; fp32 for none."""
    order = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
    return next(one for one in order if exact_in(dtypes, one)) if dtypes else torch.float32


def exact_state(model: Any) -> dict[str, Tensor]:
    """Parameters and saved buffers of a model by name; a tied tensor once, as in `named_parameters`."""
    saved = model.state_dict(keep_vars=True)
    buffers = {name: tensor for name, tensor in model.named_buffers() if name in saved}
    return {name: tensor.detach() for name, tensor in [*model.named_parameters(), *buffers.items()]}


def cast_like(model: Any, plain: Any, dtype: torch.dtype) -> Any:
    """`model` in the precisions of `plain`, the same architecture read in `dtype`; its tensors are changed in place.

    `model.to(dtype)` would round buffers that transformers keeps in fp32, such as rotary frequencies.
    """
    known = {name: parameter.dtype for name, parameter in plain.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(known.get(name, dtype))
    modules = dict(model.named_modules())
    for name, module in plain.named_modules():
        for key, buffer in module._buffers.items():
            own = modules[name]._buffers if name in modules else {}
            if buffer is not None and own.get(key) is not None:
                own[key] = buffer
    model.config.dtype = plain.config.dtype
    return model


def save_dtype_of(model: Any, stored: Mapping[str, torch.dtype]) -> torch.dtype:
    """The precision for tensors that the source's files have under other names or not at all.

    It holds all numbers of those that the model has under other names, such as experts that transformers stacks.
    """
    own = exact_state(model)
    others = [dtype for name, dtype in stored.items() if name not in own]
    return smallest_exact_dtype(others if others and any(name not in stored for name in own) else stored.values())


def base_name(name: str) -> str:
    """The name of a tensor below an adapter, as its base has it."""
    return name.replace("base_model.model.", "").replace(".base_layer", "")


def restore_base(model: Any, precise: Mapping[str, Tensor]) -> Any:
    """`model` with the weights below its adapter in fp32, with all digits of their source."""
    for name, parameter in model.named_parameters():
        if ".lora_" not in name:
            parameter.data = precise.get(base_name(name), parameter.data).to(parameter.device, torch.float32)
    return model


def cast_to(model: Any, dtypes: Mapping[str, torch.dtype], default: torch.dtype, precise: Mapping[str, Tensor]) -> Any:
    """`model` with every parameter in the precision that `dtypes` or `default` names; in place.

    Saved buffers that have a precision there take it, from `precise` where that has more digits. Others stay.
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
