"""Choose whether each rank of a run holds all weights or a part of them."""

from __future__ import annotations

from typing import Any

import torch

from preftune.config.sampling import PPOConfig
from preftune.config.schema import TunedConfig
from preftune.errors import ConfigError
from preftune.model.memory import available
from preftune.ranks import group
from preftune.ranks.environment import place
from preftune.ranks.shard import choose_shards, require_blocks, require_shardable
from preftune.train.optim import moment_bytes


def choose_ranks(config: TunedConfig, model: Any, device: torch.device) -> tuple[int, str]:
    """Return the number of ranks that share one copy of the weights, and a line to print; 1 for a single process."""
    if group.world() == 1:
        return 1, ""
    sizes = [(p.numel(), p.element_size(), p.requires_grad) for p in model.parameters()]
    trained = sum(count for count, _, is_trained in sizes if is_trained)
    state = (4 if model.dtype == torch.float32 else 8) + moment_bytes(config.optim.name, config.optim.moments)
    needed = sum(count * size for count, size, _ in sizes) + trained * state
    sharing = place().local_world if device.type == "cpu" else 1
    shards, line = choose_shards(needed, available(device) / sharing)
    if shards > 1:
        if isinstance(config, PPOConfig):
            what, why = "ppo cannot split the weights among ranks", line.removeprefix("ranks: ")
            fix = "launch with --weights whole; if memory runs out, use lora or a smaller model"
            raise ConfigError(what, where="--weights", why=why, fix=fix)
        require_shardable(config)
        if config.model.quant:
            fix = "remove it, or launch with --weights whole"
            raise ConfigError("quantised weights cannot be split among ranks", where="model.quant", fix=fix)
        require_blocks(model)
    return shards, line
