"""Change the messages of a group before they are rendered: text to chat, system messages, and reasoning to drop."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from preftune.chat.template import REASONING, Template
from preftune.chat.turns import text_to_chat, transcript_to_chat
from preftune.types import ARGUMENTS, TOOLS, Message, PreferenceGroup, Text

SYSTEM = ("system", "developer")
#: The reasoning at the beginning of a content. The generation prompt may have opened it.
THOUGHT = re.compile(r"\A\s*(?:<think>)?(?:(?!<think>).)*?</think>\s*", re.DOTALL)


def prepared(group: PreferenceGroup, template: Template) -> PreferenceGroup:
    """Return the group as it is rendered under the settings of `template`. Raises BadRow for an empty prompt."""
    settings = template.settings
    if settings.as_chat == "auto":
        group = transcript_to_chat(group) if template.source else group
    elif settings.as_chat:
        group = text_to_chat(group)
    if isinstance(group.prompt, str):
        return group
    if settings.system_message == "merge":
        group = replace(group, prompt=_merged(group.prompt), responses=tuple(map(_merged, group.responses)))
    if settings.thinking == "drop":
        responses = tuple(map(_without_reasoning, group.responses))
        group = replace(group, prompt=_without_reasoning(group.prompt), responses=responses)
    return group


def merge_system(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Put the text of each system message before the next user message, after an empty line.

    A system message without a later user message becomes a user message.
    """
    result: list[Message] = []
    waiting: list[Message] = []
    for message in messages:
        if message.role in SYSTEM:
            waiting.append(message)
        elif message.role == "user" and waiting:
            result.append(_joined([*waiting, message]))
            waiting = []
        else:
            result.append(message)
    return (*result, *([_joined(waiting)] if waiting else []))


def _joined(messages: Sequence[Message]) -> Message:
    content = "\n\n".join(message.content for message in messages if message.content)
    extra = dict(entry for message in messages for entry in message.extra if entry[0] in (ARGUMENTS, TOOLS))
    return Message("user", content, tuple(sorted((extra | dict(messages[-1].extra)).items())))


def _merged(response: Text) -> Text:
    return response if isinstance(response, str) else merge_system(response)


def _without_reasoning(text: Text) -> Text:
    return text if isinstance(text, str) else tuple(map(without_reasoning, text))


def without_reasoning(message: Message) -> Message:
    """Remove the reasoning of an assistant message: its fields, and a <think> block at the beginning of its content."""
    if message.role != "assistant":
        return message
    extra = tuple(entry for entry in message.extra if entry[0] not in REASONING)
    return replace(message, content=THOUGHT.sub("", message.content, count=1), extra=extra)
