"""The renderer of a model folder for evaluation: with the chat settings of the run that made the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from preftune.data.render import Renderer
from preftune.data.template import ChatSettings, Thinking, require_used, source_of
from preftune.model import load


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """Chat settings that a command was given; they come before those that are saved with the model.

    arguments  arguments of the chat template; None: as the model was trained
    as_chat    text prompts are sent through the template
    moment     what the template writes as the date, in ISO format; None: as the model was trained, else now
    thinking   who writes the reasoning of a response, the template or "keep"; None: as the model was trained
    allow_dropped_text  the template may leave out part of a response
    """

    arguments: Mapping[str, Any] | None = None
    as_chat: bool = False
    moment: str | None = None
    thinking: Thinking | None = None
    allow_dropped_text: bool = False

    def over(self, saved: ChatSettings) -> ChatSettings:
        """The settings to use for a model that was saved with `saved`."""
        return replace(
            saved,
            arguments=saved.arguments if self.arguments is None else self.arguments,
            as_chat=self.as_chat or saved.as_chat,
            moment=datetime.fromisoformat(self.moment) if self.moment else saved.moment,
            thinking=self.thinking or saved.thinking,
            allow_dropped_text=self.allow_dropped_text or saved.allow_dropped_text,
        )


def renderer_of(
    source: load.Source,
    chat_template: str | None = None,
    options: ChatOptions | None = None,
    *,
    tokenizer: Any = None,
    record: Mapping[str, Any] | None = None,
) -> Renderer:
    """The renderer of a model folder, or of another model's chat settings if their `record` is not empty.

    Raises ConfigError for an argument that the chat template does not read.
    """
    options = options or ChatOptions()
    tokenizer = tokenizer or load.load_tokenizer(source, chat_template)
    settings = options.over(ChatSettings.of_record(record or load.chat_record(source)))
    require_used(source_of(tokenizer, settings), options.arguments or {}, "--chat-template-kwargs")
    return Renderer.of(tokenizer, load.end_ids(source, tokenizer), settings)
