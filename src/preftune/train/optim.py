"""Trained weights, optimizer, gradient clipping and learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from preftune.errors import ConfigError
from preftune.ranks.shard import any_sharded, local, square_sum
from preftune.train.half_moments import HalfMomentAdamW

ScheduleName = Literal["linear", "cosine", "constant"]


class Weights:
    """The trained parameters and their fp32 masters. The optimizer updates the masters.

    An fp32 parameter is its own master. The master of a bf16 parameter is an fp32 copy: at the learning rates of
    preference training, most updates are smaller than the precision of bf16 and would be lost. The gradients of its
    micro-batches are added up in fp32, and each bf16 gradient is freed once it has been added.
    """

    def __init__(self, model: nn.Module, precise: Mapping[str, Tensor] | None = None) -> None:
        """Create the masters. `precise`: more precise values than the model's, by name, to start from."""
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.names = [name for name, _ in trained]
        self.parameters = [p for _, p in trained]
        self.masters: list[Tensor] = []
        self._hooks: list[Any] = []
        for name, parameter in trained:
            if parameter.dtype == torch.float32:
                self.masters.append(parameter)
                continue
            master = (precise or {}).get(name, parameter.detach()).float().clone().to(parameter.device)
            self.masters.append(master)
            self._hooks.append(parameter.register_post_accumulate_grad_hook(_adder(master)))

    def close(self) -> None:
        """Remove the gradients and hooks from the model."""
        self.clear_gradients()
        for hook in self._hooks:
            hook.remove()

    def gradients(self) -> list[Tensor]:
        """Return the fp32 gradients of all parameters that have one."""
        return [m.grad for m in self.masters if m.grad is not None]

    def clear_gradients(self) -> None:
        for master, parameter in zip(self.masters, self.parameters, strict=True):
            master.grad = None
            parameter.grad = None

    @torch.no_grad()
    def publish(self) -> None:
        """Copy the masters' values to the model, after an update."""
        pairs = [(p, master) for p, master in zip(self.parameters, self.masters, strict=True) if p is not master]
        if pairs:
            torch._foreach_copy_([p for p, _ in pairs], [master for _, master in pairs])

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return iter(zip(self.names, self.masters, strict=True))


def _adder(master: Tensor) -> Any:
    """Return a hook that adds a parameter's gradient to its master's and frees it."""

    def add(parameter: Tensor) -> None:
        assert parameter.grad is not None
        master.grad = parameter.grad.float() if master.grad is None else master.grad.add_(parameter.grad)
        parameter.grad = None

    return add


def moment_bytes(name: Literal["adamw", "rmsprop"], moments: Literal["fp32", "bf16"] = "fp32") -> int:
    """Return the bytes of optimizer state per trained parameter."""
    return (2 if name == "adamw" else 1) * (2 if moments == "bf16" else 4)


def build_optimizer(
    masters: list[Tensor],
    name: Literal["adamw", "rmsprop"],
    lr: float,
    weight_decay: float,
    moments: Literal["fp32", "bf16"] = "fp32",
) -> torch.optim.Optimizer:
    """Return AdamW (fused, or with bf16 moments), or RMSprop with torch's defaults, as in the DPO paper."""
    if not masters:
        why, fix = (
            "all parameters of the model are frozen",
            "train with lora, or pass a model with trainable parameters",
        )
        raise ConfigError("there is nothing to train", where="model", why=why, fix=fix)
    if moments == "bf16":
        return HalfMomentAdamW(masters, lr=lr, weight_decay=weight_decay)
    if name == "adamw":
        return torch.optim.AdamW(masters, lr=lr, weight_decay=weight_decay, fused=True)
    return torch.optim.RMSprop(masters, lr=lr, weight_decay=weight_decay)


def warmup_steps(warmup: float, total: int) -> int:
    """Return the number of warm-up steps. `warmup` is a share of all steps if it is below 1, else a number of steps."""
    return math.ceil(warmup * total) if warmup < 1 else round(warmup)


def lr_at(step: int, total: int, lr: float, schedule: ScheduleName, warmup: int) -> float:
    """Return the learning rate of optimizer step `step` (from 1) of `total`.

    It is lr * step / (warmup + 1) for the first `warmup` steps. Then it stays at `lr` (constant), or falls linearly or
    as a half cosine, to reach 0 one step after the last.
    """
    if step <= warmup:
        return lr * step / (warmup + 1)
    done = (step - warmup - 1) / max(1, total - warmup)
    match schedule:
        case "constant":
            return lr
        case "linear":
            return lr * (1 - done)
        case "cosine":
            return lr * 0.5 * (1 + math.cos(math.pi * done))


@torch.no_grad()
def clip(gradients: list[Tensor], max_norm: float) -> Tensor:
    """Scale all gradients in place so that their joint norm is at most `max_norm`. Return the norm before."""
    if not gradients:
        return torch.zeros(())
    if any_sharded(gradients):
        norm = square_sum(gradients).sqrt()
        gradients = [local(gradient) for gradient in gradients]
    else:
        norm = torch.nn.utils.get_total_norm(gradients)
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    if scale.device.type != "cpu" or scale < 1:  # on a GPU, the comparison would wait for the device
        torch._foreach_mul_(gradients, scale)
    return norm
