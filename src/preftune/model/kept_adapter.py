"""Two LoRA adapters on one base model: an earlier one, which is kept, and a new one on top of it, which is trained.

    output = W x + s1 B1 A1 x + s2 B2 A2 x = W x + [s1 B1, s2 B2] [A1; A2] x

So both can be saved as one adapter, whose rank is the sum of their ranks, for the original base model.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from preftune.errors import writing

KEPT, NEW = "kept", "default"
"""Names of the two adapters in peft."""


def stack(tuned: Any, config: Any) -> Any:
    """Add a new adapter to a peft model with the adapter KEPT, and make both active. Only the new one is trained."""
    tuned.add_adapter(NEW, config, autocast_adapter_dtype=False)
    tuned.base_model.set_adapter([KEPT, NEW])
    for name, parameter in tuned.named_parameters():
        parameter.requires_grad_(f".{NEW}" in name and ".lora_" in name)
    return tuned.eval()


def has_kept(model: Any) -> bool:
    """Return whether the model has an adapter that is kept below the trained one."""
    return KEPT in getattr(model, "peft_config", {})


def save_joined(model: Any, folder: Path) -> None:
    """Write both adapters as one: tensors in fp32, with the scaling in B, and a config that matches each module."""
    from peft.tuners.lora import LoraLayer
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for name, layer in model.get_base_model().named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        parts = {key: _joined(layer, *key) for key in (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B"))}
        for (first, second), pair in parts.items():
            if pair is not None:
                suffix = "" if "embedding" in first else ".weight"
                tensors[f"base_model.model.{name}.{first}{suffix}"] = pair[0]
                tensors[f"base_model.model.{name}.{second}{suffix}"] = pair[1]
                ranks[name] = pair[0].shape[0]
    config = copy.deepcopy(model.peft_config[NEW])
    config.target_modules = sorted(ranks)
    config.use_rslora, config.init_lora_weights, config.inference_mode = False, True, True
    config.r = config.lora_alpha = max(ranks.values())  # the scaling, alpha / rank, is 1
    config.rank_pattern = {name: rank for name, rank in ranks.items() if rank != config.r}
    config.alpha_pattern = dict(config.rank_pattern)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(str(folder))


def _joined(layer: Any, first: str, second: str) -> tuple[Tensor, Tensor] | None:
    """Return ([A1; A2], [s1 B1, s2 B2]) in fp32; None if the layer has no such matrices."""
    tops, sides = getattr(layer, first), getattr(layer, second)
    names = [name for name in (KEPT, NEW) if name in tops]
    if not names:
        return None

    def matrix(holder: Any, name: str) -> Tensor:
        value: Tensor = getattr(holder[name], "weight", holder[name])
        return value.detach().float().cpu()

    a = torch.cat([matrix(tops, name) for name in names], dim=0)
    b = torch.cat([matrix(sides, name) * layer.scaling[name] for name in names], dim=1)
    return a.contiguous(), b.contiguous()
