"""Check what can be checked before torch is imported, which takes seconds. `lifecycle.start` checks the rest."""

from __future__ import annotations

from preftune.config.sampling import IterateConfig, PPOConfig
from preftune.config.schema import DPOConfig, RunConfig, TunedConfig
from preftune.lifecycle.sources import source_paths
from preftune.model.locate import locate
from preftune.sources.read import require_sources
from preftune.train.track import require_packages


def check_config(config: TunedConfig, model_in_memory: bool = False) -> None:
    """Raise the error of a package, model folder or data file that is missing."""
    assert isinstance(config, RunConfig | PPOConfig | IterateConfig)
    require_packages(list(config.track))
    if not model_in_memory:
        locate(config.model.path)
    if isinstance(config, DPOConfig) and config.reference.path:
        locate(config.reference.path, "reference.path")
    if isinstance(config, RunConfig):
        require_sources(source_paths(config.data))
        return
    require_sources(config.data.train)
    if isinstance(config.data.eval, str):
        require_sources(config.data.eval)
