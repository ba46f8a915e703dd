"""The language-model head: how hidden states become logits, found by asking the model.

Some models scale their logits, some bend them with a softcap, and new ones appear every month. So the head is
not read from a list of architectures: `find_head` runs the model's own code on hidden states of several sizes
and fits  logits = softcap * tanh(scale * (W h + b) / softcap).  If that does not reproduce the model's logits,
there is no `Head` and the model's own code computes the logits of the scored positions.
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
    """logits = softcap * tanh(z / softcap), z = scale * (W h + b); softcap 0 means none."""

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float = 0.0

    def logits(self, hidden_CH: Tensor, wide: bool = False) -> Tensor:
        """(C, V) logits in fp32; `wide`: on a GPU not rounded to bf16 on the way, which autograd cannot follow."""
        if wide and self.weight.device.type == "cuda" and self.weight.dtype != torch.float32:
            z = torch.mm(hidden_CH, self.weight.t(), out_dtype=torch.float32)
            z = z if self.bias is None else z.add_(self.bias)
        else:
            z = nn.functional.linear(hidden_CH, self.weight, self.bias).float()
        if self.scale != 1.0:
            z = z * self.scale
        return self.softcap * torch.tanh(z / self.softcap) if self.softcap else z


def output_layer(model: Any) -> nn.Module:
    """The module that the model calls on its last hidden states: of a language model, or of a classifier."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    layer = base.get_output_embeddings()
    layer = getattr(base, "score", None) if layer is None else layer
    if layer is None:
        raise ModelError(
            f"{type(base).__name__} has neither an output embedding nor a head called `score`",
            why="it is no causal language model and no classifier on one",
        )
    return layer  # type: ignore[no-any-return]


@contextmanager
def intercept(layer: nn.Module, change: Any) -> Iterator[None]:
    """While open, `layer` sees change(hidden) in place of its input."""

    def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (change(args[0]), *args[1:])

    handle = layer.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def find_head(model: Any) -> Head | None:
    """The head of `model`, or None if no scale and softcap reproduce its logits."""
    layer = output_layer(model)
    weight = getattr(layer, "weight", None)
    if type(layer) is not nn.Linear or weight is None:
        return None  # e.g. an adapter on the head
    device = weight.device
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, weight.shape[0], (2, 7), generator=generator).to(device)

    def ask(size: float) -> tuple[Tensor, Tensor]:
        """W h + b and the model's logits for hidden states scaled so that the largest |W h| is `size`."""
        seen: list[Tensor] = []

        def resize(hidden: Tensor) -> Tensor:
            # only the product with W is sized: a bias is part of the layer and stays as it is
            factor = size / nn.functional.linear(hidden, weight).abs().max().clamp(min=1e-20)
            seen.append(hidden * factor)
            return seen[-1]

        with intercept(layer, resize):
            logits = model(input_ids=ids, use_cache=False).logits
        if not seen:
            raise ModelError(f"{type(model).__name__} does not call its output layer; its logits cannot be followed")
        return layer(seen[-1]).cpu().double().reshape(-1), logits.cpu().double().reshape(-1)

    tolerance = 1e-5 if weight.dtype == torch.float32 else 2e-2
    small, large = ask(0.5), ask(3000.0)
    scale = _snap(float((small[0] * small[1]).sum() / (small[0] ** 2).sum()), model)
    capped = float(large[1].abs().max())
    bent = abs(capped - abs(scale) * float(large[0].abs().max())) > 0.05 * capped
    head = Head(weight, getattr(layer, "bias", None), scale, _snap(capped, model) if bent else 0.0)
    for raw, logits in (small, ask(30.0), large):
        z = raw * head.scale
        expected = head.softcap * torch.tanh(z / head.softcap) if head.softcap else z
        error = (expected - logits).abs().max() / logits.abs().max().clamp(min=1e-20)
        if not bool(error <= tolerance):
            return None
    return head


def _snap(value: float, model: Any) -> float:
    """The number of the model's config (or its inverse) that a fitted value means; 1 or the value itself if none."""
    config = model.config.get_text_config()
    known = [float(v) for v in vars(config).values() if isinstance(v, int | float) and not isinstance(v, bool)]
    candidates = [1.0, *known, *(1 / v for v in known if v)]
    best = min(candidates, key=lambda c: abs(c - value))
    return best if abs(best - value) <= 5e-3 * abs(value) else value
