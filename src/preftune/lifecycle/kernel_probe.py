"""Test the attention kernels of bf16 and fp16 on the model's own queries, keys and values.

Errors in a log-prob grow from layer to layer, so that a small fault of a kernel disappears in them. Here they do not:
each recorded call runs in the model's precision, with the kernel that training uses and with plain attention, one
sequence at a time. Both are compared with the same call in fp32, which the packing probe has compared with padded rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from preftune.lifecycle.probe_errors import noisier, relative_errors, summary
from preftune.model import segments
from preftune.model.attention import AttentionCall, segment_attention

Attention = Callable[[AttentionCall], Tensor]
NAMES = ("output", "gradients of the queries", "gradients of the keys", "gradients of the values")


def kernel_difference(calls: Sequence[AttentionCall]) -> str:
    """Return which results of the kernel are less exact than those of plain attention, and by how much, else ""."""
    for call in calls:
        wide = replace(call, **{name: getattr(call, name).float() for name in ("query", "key", "value")})
        exact = results(wide, _kernel)
        compared = zip(NAMES, exact, results(call, _kernel), results(call, _plain), strict=True)
        for name, expected, actual, plain in compared:
            errors, noise = relative_errors(actual, expected), relative_errors(plain, expected)
            if noisier(errors, noise):
                return (
                    f"the attention kernel for {str(call.query.dtype).removeprefix('torch.')} is less exact than plain "
                    f"attention: compared with fp32, the relative error of its {name} is {summary(errors)}, that of "
                    f"plain attention is {summary(noise)}"
                )
    return ""


def results(call: AttentionCall, attention: Attention) -> list[Tensor]:
    """Return the (T, H*D) output and the gradients of queries, keys and values, for a fixed gradient of the output."""
    inputs = [tensor.detach().requires_grad_() for tensor in (call.query, call.key, call.value)]
    with torch.enable_grad():
        out = attention(replace(call, query=inputs[0], key=inputs[1], value=inputs[2]))
        random = torch.randn(out.shape, generator=torch.Generator().manual_seed(0))
        gradients = torch.autograd.grad(out, inputs, random.bfloat16().to(out))  # exact in every precision
    return [out.detach().flatten(2)[0], *(gradient[0].transpose(0, 1).flatten(1) for gradient in gradients)]


def _kernel(call: AttentionCall) -> Tensor:
    arguments = (call.query, call.key, call.value, call.visible, call.scale, call.softcap, call.sinks_H)
    return segment_attention(None, *arguments)[0]


def _plain(call: AttentionCall) -> Tensor:
    layout, window = call.visible.layout, call.visible.window
    return segments.one_by_one(call.query, call.key, call.value, layout, window, call.scale, call.softcap, call.sinks_H)
