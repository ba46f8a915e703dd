"""The renderer of a run, from the `data` section of its config."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from preftune.config.sampling import PromptConfig
from preftune.config.schema import DataConfig
from preftune.data.groups import Limits
from preftune.data.render import Renderer
from preftune.data.template import ChatSettings, require_used, source_of
from preftune.data.turns import in_turns
from preftune.data.values import BadRow
from preftune.errors import DataError
from preftune.model import load
from preftune.model.generate import end_ids
from preftune.model.weights import note
from preftune.types import PreferenceGroup


def limits_of(config: DataConfig) -> Limits:
    """How long sequences may be, and what happens to rows that cannot be rendered."""
    return Limits(config.max_length, config.max_prompt_length, config.overlong, config.bad_rows)


def as_chat(prompts: Sequence[PreferenceGroup]) -> list[PreferenceGroup]:
    """Text prompts as chat messages. Raises DataError for an empty one."""
    result = []
    for group in prompts:
        try:
            result.append(in_turns(group))
        except BadRow as fault:
            raise DataError(str(fault), where=group.origin, fix="remove the row, or set data.as_chat=false") from None
    return result


def chat_settings(config: DataConfig | PromptConfig, moment: str | None = None) -> ChatSettings:
    """How chat messages are rendered. `moment` is what the template writes as the date; None: now."""
    when = datetime.fromisoformat(moment) if moment else None
    settings = ChatSettings(config.chat_template_kwargs, config.as_chat, moment=when)
    if isinstance(config, DataConfig):
        return replace(settings, thinking=config.thinking, allow_dropped_text=config.allow_dropped_text)
    return settings


def load_renderer(
    config: DataConfig | PromptConfig,
    source: load.Source,
    tokenizer: Any = None,
    model: Any = None,
    moment: str | None = None,
) -> Renderer:
    """The tokenizer with its chat template, its special tokens and the tokens that end a response.

    Template arguments are those of `config`; a note tells if the model was trained with others.
    """
    if tokenizer is None:
        tokenizer = load.load_tokenizer(source, config.chat_template)
    elif config.chat_template is not None:
        tokenizer.chat_template = load.template(config.chat_template)
    settings = chat_settings(config, moment)
    trained = {} if model is not None else load.chat_record(source).get("chat_template_kwargs") or {}
    if trained and trained != settings.arguments:
        before, now = (json.dumps(arguments, sort_keys=True) for arguments in (trained, settings.arguments))
        folder = source.adapter or source.run or source.base
        note(f"{folder} was trained with data.chat_template_kwargs={before}; the chat template now gets {now}")
    require_used(source_of(tokenizer, settings), settings.arguments, "data.chat_template_kwargs")
    ends = load.end_ids(source, tokenizer) if model is None else end_ids(model, tokenizer)
    return Renderer.of(tokenizer, ends, settings)
