"""Choose whether each rank of a run holds all weights or a part of them."""

from __future__ import annotations

import os
from typing import Any

import torch

from preftune.config.sampling import PPOConfig
from preftune.config.schema import TunedConfig
from preftune.errors import ConfigError
from preftune.model.memory import available
from preftune.ranks import group
from preftune.ranks.environment import WEIGHTS, place
from preftune.ranks.shard import choose_shards, require_blocks
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
        require_divisible(config, line.removeprefix("ranks: "))
        require_blocks(model)
    return shards, line


def require_divisible(config: Any, why: str = "") -> None:
    """Raise ConfigError for settings that do not work with split weights."""
    fix = "launch with --weights whole if the model fits on each rank"
    if isinstance(config, PPOConfig):
        raise ConfigError("ppo cannot split the weights among ranks", where="--weights", why=why, fix=fix)
    if config.model.compile is True:
        what, fix = "compiled blocks cannot be split among ranks", f"set model.compile=false, or {fix}"
        raise ConfigError(what, where="model.compile", why=why, fix=fix)
    if config.model.quant:
        what, fix = "quantised weights cannot be split among ranks", f"remove it, or {fix}"
        raise ConfigError(what, where="model.quant", why=why, fix=fix)


def require_joined(config: Any) -> None:
    """Raise ConfigError for a run that cannot work on the ranks, before anything is read.

    One of several processes that have not joined is refused, too: all would write the same folder.
    """
    if place().world > 1 and group.world() == 1:
        raise ConfigError(
            f"WORLD_SIZE is {place().world}, but this process does not know the others",
            where="environment",
            why="each process would train alone and write the same run folder",
            fix="use the command line: preftune launch --ranks N COMMAND, or torchrun -m preftune COMMAND",
        )
    if group.world() > 1 and os.environ.get(WEIGHTS) in ("sharded", "node"):
        require_divisible(config)
