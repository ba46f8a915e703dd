"""preftune trains language models on preferences.

    preftune.dpo(...)       any preference loss          preftune.sft(...)       supervised fine-tuning
    preftune.reward(...)    a reward model               preftune.ppo(...)       PPO against a reward
    preftune.iterate(...)   rounds of sampling and DPO   preftune.sample(...)    responses to prompts
    preftune.pairs(...)     samples -> preference data   preftune.score(...)     rewards of preference data
    preftune.winrate(...)   a judge compares policies    preftune.frontier(...)  reward and KL of policies
    preftune.check_data(...)  how data are read          preftune.losses         the losses as functions

docs/do/python.md has an example of each function. The command line offers the same (`preftune --help`).
"""

from __future__ import annotations

import os
import sys
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

# Public names by module
_MODULES = {
    "preftune.api.checking": "check_data",
    "preftune.api.measuring": "frontier pairs sample score winrate",
    "preftune.api.results": "DataReport FrontierResult PairsResult SampleResult ScoreResult Table TrainResult "
    "WinrateResult",
    "preftune.api.training": "dpo iterate ppo reward sft",
    "preftune.config.load": "load_config",
    "preftune.config.sampling": "IterateConfig PPOConfig",
    "preftune.config.schema": "DPOConfig RewardConfig SFTConfig",
    "preftune.errors": "ConfigError DataError IncompleteError ModelError NumericError PreftuneError RunError Stopped "
    "StorageError",
    "preftune.types": "Judgement Logps Message Pair PairLogps PreferenceGroup",
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names.split()}

__all__ = [
    "ConfigError", "DPOConfig", "DataError", "DataReport", "FrontierResult", "IncompleteError", "IterateConfig",
    "Judgement", "Logps", "Message", "ModelError", "NumericError", "PPOConfig", "Pair", "PairLogps", "PairsResult",
    "PreferenceGroup", "PreftuneError", "RewardConfig", "RunError", "SFTConfig", "SampleResult", "ScoreResult",
    "Stopped", "StorageError", "Table", "TrainResult", "WinrateResult", "__version__", "check_data", "dpo",
    "frontier", "iterate", "load_config", "losses", "pairs", "ppo", "reward", "sample", "score", "sft", "winrate",
]  # fmt: skip


def _set_gpu_defaults() -> None:
    """Set the environment variables of torch for GPUs that the user has not set. torch reads them when it is imported.

    Micro-batches have ever new lengths. With expandable segments, they do not fragment the GPU memory. cuDNN makes a
    plan for every new length, which takes up to half a second, so torch must prefer its own attention kernels.
    """
    os.environ.setdefault("TORCH_CUDNN_SDPA_DEPRIORITIZED", "1")
    allocator = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
    if sys.platform == "linux" and not any(name in os.environ for name in allocator):
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"


_set_gpu_defaults()


def __getattr__(name: str) -> Any:
    """Import public names on first use, so that `import preftune` does not import torch."""
    if name == "losses":
        return import_module("preftune.losses")
    if name == "__version__":  # imported late, because importlib.metadata is slow
        metadata = import_module("importlib.metadata")
        try:
            return metadata.version("preftune")
        except metadata.PackageNotFoundError:  # the sources are on the path, but not installed
            return "0"
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'preftune' has no attribute {name!r}")
    name_in_module = "load" if name == "load_config" else name
    value = globals()[name] = getattr(import_module(_MODULE_OF[name]), name_in_module)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
