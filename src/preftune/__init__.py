"""preftune tunes language models on preferences.

    preftune.dpo(...)       any preference loss          preftune.sft(...)       supervised fine-tuning
    preftune.reward(...)    a reward model               preftune.ppo(...)       PPO against a reward
    preftune.iterate(...)   rounds of sampling and DPO   preftune.sample(...)    responses to prompts
    preftune.pairs(...)     samples -> preference data   preftune.score(...)     rewards of preference data
    preftune.winrate(...)   a judge compares policies    preftune.frontier(...)  reward and KL of policies
    preftune.check_data(...)  what data are read as      preftune.losses         the losses as functions

docs/python.md has an example of each. The command line (`preftune --help`) does the same.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from preftune import losses
    from preftune.api.checking import check_data
    from preftune.api.measuring import frontier, pairs, sample, score, winrate
    from preftune.api.results import (
        DataReport,
        FrontierResult,
        PairsResult,
        SampleResult,
        ScoreResult,
        Table,
        TrainResult,
        WinrateResult,
    )
    from preftune.api.training import dpo, iterate, ppo, reward, sft
    from preftune.config.load import load as load_config
    from preftune.config.sampling import IterateConfig, PPOConfig
    from preftune.config.schema import DPOConfig, RewardConfig, SFTConfig
    from preftune.errors import (
        ConfigError,
        DataError,
        IncompleteError,
        ModelError,
        NumericError,
        PreftuneError,
        RunError,
        Stopped,
        StorageError,
    )
    from preftune.types import Judgement, Logps, Message, Pair, PairLogps, PreferenceGroup

    __version__: str

# The module of each public name. load_config is called `load` there.
_MODULES = {
    "preftune.api.checking": "check_data",
    "preftune.api.measuring": "frontier pairs sample score winrate",
    "preftune.api.results": "DataReport FrontierResult PairsResult SampleResult ScoreResult Table TrainResult "
    "WinrateResult",
    "preftune.api.training": "dpo iterate ppo reward sft",
    "preftune.config.load": "load_config:load",
    "preftune.config.sampling": "IterateConfig PPOConfig",
    "preftune.config.schema": "DPOConfig RewardConfig SFTConfig",
    "preftune.errors": "ConfigError DataError IncompleteError ModelError NumericError PreftuneError RunError Stopped "
    "StorageError",
    "preftune.types": "Judgement Logps Message Pair PairLogps PreferenceGroup",
}
_PLACES = {
    entry.partition(":")[0]: (module, entry.partition(":")[2] or entry)
    for module, entries in _MODULES.items()
    for entry in entries.split()
}

__all__ = [
    "ConfigError",
    "DPOConfig",
    "DataError",
    "DataReport",
    "FrontierResult",
    "IncompleteError",
    "IterateConfig",
    "Judgement",
    "Logps",
    "Message",
    "ModelError",
    "NumericError",
    "PPOConfig",
    "Pair",
    "PairLogps",
    "PairsResult",
    "PreferenceGroup",
    "PreftuneError",
    "RewardConfig",
    "RunError",
    "SFTConfig",
    "SampleResult",
    "ScoreResult",
    "Stopped",
    "StorageError",
    "Table",
    "TrainResult",
    "WinrateResult",
    "__version__",
    "check_data",
    "dpo",
    "frontier",
    "iterate",
    "load_config",
    "losses",
    "pairs",
    "ppo",
    "reward",
    "sample",
    "score",
    "sft",
    "winrate",
]


def __getattr__(name: str) -> Any:
    """Public names are imported when they are first used: `import preftune` does not import torch."""
    if name == "losses":
        return import_module("preftune.losses")
    if name == "__version__":  # importlib.metadata takes longer than all of this module
        return import_module("importlib.metadata").version("preftune")
    if name not in _PLACES:
        raise AttributeError(f"module 'preftune' has no attribute {name!r}")
    module, attribute = _PLACES[name]
    found = globals()[name] = getattr(import_module(module), attribute)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
