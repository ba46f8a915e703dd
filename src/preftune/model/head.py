"""The language-model head, which turns hidden states into logits.

Some models scale their logits or apply a softcap. Instead of keeping a list of architectures, `find_head` runs the
model on hidden states of several magnitudes and fits  logits = softcap * tanh(scale * (W h + b) / softcap).  If the
fit does not reproduce the model's logits, there is no `Head`, and the model's code computes the logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from preftune.errors import ModelError


@dataclass(frozen=True, slots=True)
class Head:
    """logits = softcap * tanh(z / softcap), z = scale * (W h + b). With softcap 0, logits = z."""

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float = 0.0

    def logits(self, hidden_CH: Tensor, wide: bool = False) -> Tensor:
        """Return (C, V) logits in fp32. `wide` avoids rounding them to bf16 on a GPU."""
        if wide and self.weight.device.type == "cuda" and self.weight.dtype != torch.float32:
            z: Tensor = WideProduct.apply(hidden_CH, self.weight)  # type: ignore[no-untyped-call]
            z = z if self.bias is None else z + self.bias
        else:
            z = nn.functional.linear(hidden_CH, self.weight, self.bias).float()
        if self.scale != 1.0:
            z = z * self.scale
        return self.softcap * torch.tanh(z / self.softcap) if self.softcap else z


class WideProduct(torch.autograd.Function):
    """Implements h W^T for 16-bit matrices with a result in fp32. torch has this product on CUDA, without autograd."""

    @staticmethod
    def forward(ctx: Any, hidden_CH: Tensor, weight_VH: Tensor) -> Tensor:
        ctx.save_for_backward(hidden_CH, weight_VH)
        return torch.mm(hidden_CH, weight_VH.t(), out_dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_CH, weight_VH = ctx.saved_tensors
        d_z = grads[0].to(weight_VH.dtype)
        d_hidden = d_z @ weight_VH if ctx.needs_input_grad[0] else None
        return d_hidden, d_z.t() @ hidden_CH if ctx.needs_input_grad[1] else None


def output_layer(model: Any) -> nn.Module:
    """Return the module that a language model or classifier applies to its last hidden states."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    layer = base.get_output_embeddings()
    layer = getattr(base, "score", None) if layer is None else layer
    if layer is None:
        raise ModelError(
            f"{type(base).__name__} has neither an output embedding nor a head called `score`",
            where="model",
            why="the model is neither a causal language model nor a sequence classifier",
            fix="use a causal language model or a sequence classifier",
        )
    return layer  # type: ignore[no-any-return]


@contextmanager
def intercept(layer: nn.Module, change: Any) -> Iterator[None]:
    """Replace the input of `layer` with change(input) inside the block."""

    def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (change(args[0]), *args[1:])

    handle = layer.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def find_head(model: Any) -> Head | None:
    """Return the head of `model`, or None if no scale and softcap reproduce its logits."""
    layer = output_layer(model)
    weight = getattr(layer, "weight", None)
    if type(layer) is not nn.Linear or weight is None:
        return None  # for example, an adapter on the head
    device = weight.device
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, weight.shape[0], (2, 7), generator=generator).to(device)

    def probe(size: float) -> tuple[Tensor, Tensor]:
        """Return W h + b and the model's logits for hidden states scaled so that the largest |W h| is `size`."""
        scaled: list[Tensor] = []

        def resize(hidden: Tensor) -> Tensor:
            # Without the bias, which does not scale with the hidden states.
            factor = size / nn.functional.linear(hidden, weight).abs().max().clamp(min=1e-20)
            scaled.append(hidden * factor)
            return scaled[-1]

        with intercept(layer, resize):
            logits = model(input_ids=ids, use_cache=False).logits
        if not scaled:
            what = f"{type(model).__name__} does not call its output layer, so its logits cannot be computed"
            raise ModelError(what, where="model", fix="use a model whose forward calls get_output_embeddings()")
        return layer(scaled[-1]).cpu().double().reshape(-1), logits.cpu().double().reshape(-1)

    tolerance = 1e-5 if weight.dtype == torch.float32 else 2e-2
    small, large = probe(0.5), probe(3000.0)
    scale = _snap(float((small[0] * small[1]).sum() / (small[0] ** 2).sum()), model)
    largest = float(large[1].abs().max())
    has_softcap = abs(largest - abs(scale) * float(large[0].abs().max())) > 0.05 * largest
    head = Head(weight, getattr(layer, "bias", None), scale, _snap(largest, model) if has_softcap else 0.0)
    for raw, logits in (small, probe(30.0), large):
        z = raw * head.scale
        expected = head.softcap * torch.tanh(z / head.softcap) if head.softcap else z
        error = (expected - logits).abs().max() / logits.abs().max().clamp(min=1e-20)
        if not bool(error <= tolerance):
            return None
    return head


def _snap(value: float, model: Any) -> float:
    """Return the number in the model's config (or its inverse, or 1) closest to a fitted value, if close enough."""
    config = model.config.get_text_config()
    numbers = [float(v) for v in vars(config).values() if isinstance(v, int | float) and not isinstance(v, bool)]
    candidates = [1.0, *numbers, *(1 / v for v in numbers if v)]
    best = min(candidates, key=lambda c: abs(c - value))
    return best if abs(best - value) <= 5e-3 * abs(value) else value
