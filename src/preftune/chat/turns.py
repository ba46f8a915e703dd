"""Convert text prompts to chat messages (data.as_chat)."""

from __future__ import annotations

from dataclasses import replace

from preftune.formats.transcripts import parse_prompt, parse_response
from preftune.formats.values import BadRow
from preftune.types import Message, PreferenceGroup

CONVERTED = "the HH-RLHF transcript was converted to chat messages (data.as_chat=false keeps it as text)"


def text_to_chat(group: PreferenceGroup) -> PreferenceGroup:
    """Convert a text prompt to one user message, or an HH-RLHF transcript to its messages, and responses likewise.

    A group whose prompt is a chat is returned unchanged. Raises BadRow for an empty prompt.
    """
    if not isinstance(group.prompt, str):
        return group
    if not group.prompt.strip():
        raise BadRow("the prompt is empty, but data.as_chat needs a user message")
    converted = transcript_to_chat(group)
    if converted is not group:
        return converted
    answers = tuple((Message("assistant", str(response)),) for response in group.responses)
    return replace(group, prompt=(Message("user", group.prompt),), responses=answers)


def transcript_to_chat(group: PreferenceGroup) -> PreferenceGroup:
    """Convert an HH-RLHF transcript to its messages. A group with any other prompt is returned unchanged."""
    messages = parse_prompt(group.prompt) if isinstance(group.prompt, str) else None
    if messages is None:
        return group
    return replace(group, prompt=messages, responses=tuple(parse_response(str(text)) for text in group.responses))
