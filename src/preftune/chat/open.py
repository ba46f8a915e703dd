"""Create the renderer of a model, with the settings of the config (training) or of the saved model (evaluation)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from preftune.chat.render import Renderer
from preftune.chat.template import AsChat, ChatSettings, SystemMessage, Thinking, Turns, require_used, source_of
from preftune.chat.turns import text_to_chat
from preftune.config.sampling import PromptConfig
from preftune.config.schema import DataConfig
from preftune.errors import DataError
from preftune.formats.values import BadRow
from preftune.model import load
from preftune.model.generate import end_ids
from preftune.model.weights import note
from preftune.types import PreferenceGroup


def as_chat(prompts: Sequence[PreferenceGroup]) -> list[PreferenceGroup]:
    """Convert all text prompts to chat messages. Raises DataError for an empty prompt."""
    result = []
    for group in prompts:
        try:
            result.append(text_to_chat(group))
        except BadRow as fault:
            raise DataError(str(fault), where=group.origin, fix="remove the row, or set data.as_chat=false") from None
    return result


def chat_settings(config: DataConfig | PromptConfig, moment: str | None = None) -> ChatSettings:
    """Return the chat settings of a config. `moment` is the date for the template in ISO format; None: now."""
    when = datetime.fromisoformat(moment) if moment else None
    settings = ChatSettings(config.chat_template_kwargs, config.as_chat, moment=when)
    if isinstance(config, DataConfig):
        return replace(
            settings,
            thinking=config.thinking,
            allow_dropped_text=config.allow_dropped_text,
            scored_turns=config.scored_turns,
            system_message=config.system_message,
        )
    return replace(settings, system_message=config.system_message)


def load_renderer(
    config: DataConfig | PromptConfig,
    source: load.Source,
    tokenizer: Any = None,
    model: Any = None,
    moment: str | None = None,
) -> Renderer:
    """Create a renderer with the chat settings of `config`.

    Prints a note if the model was trained with different arguments of the chat template.
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
        note(f"{folder} was trained with data.chat_template_kwargs={before}; the chat template now uses {now}")
    require_used(source_of(tokenizer, settings), settings.arguments, "data.chat_template_kwargs")
    ends = load.end_ids(source, tokenizer) if model is None else end_ids(model, tokenizer)
    return Renderer.of(tokenizer, ends, settings)


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """Chat settings from the command line; they override the settings saved with the model.

    arguments           arguments of the chat template; None: as the model was trained
    as_chat             apply the template to text prompts (see ChatSettings); None: as the model was trained
    moment              the date for the template, in ISO format; None: as the model was trained, else now
    thinking            see ChatSettings, as are scored_turns and system_message; None: as the model was trained
    allow_dropped_text  the template may leave out part of a response
    """

    arguments: Mapping[str, Any] | None = None
    as_chat: AsChat | None = None
    moment: str | None = None
    thinking: Thinking | None = None
    allow_dropped_text: bool = False
    scored_turns: Turns | None = None
    system_message: SystemMessage | None = None

    def override(self, saved: ChatSettings) -> ChatSettings:
        """Return `saved`, the settings of a model, with these options applied."""
        return replace(
            saved,
            arguments=saved.arguments if self.arguments is None else self.arguments,
            as_chat=saved.as_chat if self.as_chat is None else self.as_chat,
            moment=datetime.fromisoformat(self.moment) if self.moment else saved.moment,
            thinking=self.thinking or saved.thinking,
            allow_dropped_text=self.allow_dropped_text or saved.allow_dropped_text,
            scored_turns=self.scored_turns or saved.scored_turns,
            system_message=self.system_message or saved.system_message,
        )


def renderer_of(
    source: load.Source,
    chat_template: str | None = None,
    options: ChatOptions | None = None,
    *,
    tokenizer: Any = None,
    record: Mapping[str, Any] | None = None,
) -> Renderer:
    """Create the renderer of a model with its saved chat settings, or with those in `record` if it is not empty.

    Raises ConfigError for an argument that the chat template does not read.
    """
    options = options or ChatOptions()
    tokenizer = tokenizer or load.load_tokenizer(source, chat_template)
    settings = options.override(ChatSettings.from_record(record or load.chat_record(source)))
    require_used(source_of(tokenizer, settings), options.arguments or {}, "--chat-template-kwargs")
    return Renderer.of(tokenizer, load.end_ids(source, tokenizer), settings)
