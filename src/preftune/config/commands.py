"""The config class of each training command."""

from __future__ import annotations

from preftune.config.sampling import IterateConfig, PPOConfig
from preftune.config.schema import DPOConfig, NoiseConfig, RewardConfig, SFTConfig, TunedConfig

#: `data check --config` takes the first of these that has all sections of the file.
CONFIGS: dict[str, type[TunedConfig]] = {
    "dpo": DPOConfig,
    "sft": SFTConfig,
    "reward": RewardConfig,
    "noise": NoiseConfig,
    "ppo": PPOConfig,
    "iterate": IterateConfig,
}
