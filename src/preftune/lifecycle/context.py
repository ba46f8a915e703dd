"""Default lengths that fit the model. A length that the user has set is never changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from preftune.config.sampling import IterateConfig, PPOConfig
from preftune.config.schema import DataConfig, RunConfig, TunedConfig
from preftune.model import load
from preftune.train.display import Display
from preftune.train.run import Run

C = TypeVar("C", bound=TunedConfig)


def within_context(config: C, display: Display | None = None, model: Any = None) -> C:
    """Return `config` with a default maximum length that is at most the model's context, and print a changed one.

    These are data.max_length, max_length in iterate, and data.max_prompt_length in ppo, where the context also holds
    the new tokens. A run that is resumed keeps the length that it started with. `model` is a model in memory.
    """
    section, name = _length_of(config)
    owner: Any = getattr(config, section) if section else config
    key = f"{section}.{name}" if section else name
    source = load.locate(config.model.path) if model is None else None
    if name in owner.model_fields_set:
        return config
    context, default = _context_of(source, model), int(getattr(owner, name))
    room = (context or default) - (config.rollout.max_new_tokens if isinstance(config, PPOConfig) else 0)
    if room >= default or room < 2 or _started_with(config, section, name) == default:
        return config
    if display:
        why = f"because the model's context has {context} tokens"
        display.say(f"{key}: {room} instead of the default {default}, {why}")
    changed = owner.model_copy(update={name: room})
    result: C = config.model_copy(update={section: changed}) if section else changed
    return result


def fitted(data: DataConfig, context: int | None) -> DataConfig:
    """Return the section `data` with a default data.max_length that is at most `context`."""
    if "max_length" in data.model_fields_set or not context or context >= data.max_length:
        return data
    return data.model_copy(update={"max_length": context})


def _context_of(source: load.Source | None, model: Any) -> int | None:
    """Return the context of a model in `source` or in memory; None without a limit, or if its config is damaged."""
    try:
        stored = load.stored_positions(source) if source else None
        return stored or load.max_positions(load.load_config(source) if source else model.config)
    except Exception:  # the run loads the tokenizer next, and then reports what is wrong with the model
        return None


def _length_of(config: TunedConfig) -> tuple[str, str]:
    """Return section and name of the key that limits the length of a sequence. A section "" is the config itself."""
    if isinstance(config, IterateConfig):
        return "", "max_length"
    if isinstance(config, PPOConfig):
        return "data", "max_prompt_length"
    assert isinstance(config, RunConfig)
    return "data", "max_length"


def _started_with(config: TunedConfig, section: str, name: str) -> Any:
    """Return the length in the run folder's manifest, or None if it holds no run."""
    recorded: Any = Run.manifest(Path(config.out)).get("identity", {}).get("config", {})
    return (recorded.get(section) or {}).get(name) if section else recorded.get(name)
