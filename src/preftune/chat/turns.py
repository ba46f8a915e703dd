"""Convert text prompts to chat messages (data.as_chat)."""

from __future__ import annotations

import re
from dataclasses import replace

from preftune.formats.values import BadRow
from preftune.types import Message, PreferenceGroup

#: HH-RLHF stores a dialogue as text; each turn begins with one of these names.
TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant|System):")
ROLE = {"Human": "user", "Assistant": "assistant", "System": "system"}


def text_to_chat(group: PreferenceGroup) -> PreferenceGroup:
    """Convert a text prompt to one user message, or an HH-RLHF transcript to its messages, and responses likewise.

    A group whose prompt is a chat is returned unchanged. Raises BadRow for an empty prompt.
    """
    if not isinstance(group.prompt, str):
        return group
    if not group.prompt.strip():
        raise BadRow("the prompt is empty, but data.as_chat needs a user message")
    messages = parse_transcript(group.prompt)
    answers = [str(response).strip() if messages else str(response) for response in group.responses]
    return replace(
        group,
        prompt=messages or (Message("user", group.prompt),),
        responses=tuple((Message("assistant", answer),) for answer in answers),
    )


def parse_transcript(prompt: str) -> tuple[Message, ...] | None:
    """Parse an HH-RLHF transcript that ends with "Assistant:". Return None for any other text."""
    marks = list(TURN.finditer(prompt))
    if len(marks) < 2 or marks[0].start() != 0:
        return None
    if marks[-1].group(1) != "Assistant" or prompt[marks[-1].end() :].strip():
        return None
    ends = [mark.start() for mark in marks[1:]]
    return tuple(
        Message(ROLE[mark.group(1)], prompt[mark.end() : end].strip()) for mark, end in zip(marks, ends, strict=False)
    )
