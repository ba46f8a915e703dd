"""Text prompts as chat messages, for data.as_chat."""

from __future__ import annotations

import re
from dataclasses import replace

from preftune.formats.values import BadRow
from preftune.types import Message, PreferenceGroup, Text

#: HH-RLHF writes dialogues as text, with these names at the beginning of each turn.
TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant|System):")
ROLE = {"Human": "user", "Assistant": "assistant", "System": "system"}


def in_turns(group: PreferenceGroup) -> PreferenceGroup:
    """The group as chat: a text prompt becomes one user message, a transcript of HH-RLHF the messages it is made of.

    Raises BadRow for an empty prompt. A group that is chat already is returned as it is.
    """
    if not isinstance(group.prompt, str):
        return group
    if not group.prompt.strip():
        raise BadRow("the prompt is empty, and data.as_chat needs a user message")
    prompt = turns_of(group.prompt)
    transcript = prompt is not None
    answers = [str(response).strip() if transcript else str(response) for response in group.responses]
    return replace(
        group,
        prompt=prompt if prompt is not None else (Message("user", group.prompt),),
        responses=tuple((Message("assistant", answer),) for answer in answers),
    )


def turns_of(prompt: Text) -> tuple[Message, ...] | None:
    """The messages of a transcript that ends where the assistant has to answer; None for any other text."""
    if not isinstance(prompt, str):
        return None
    marks = list(TURN.finditer(prompt))
    if (
        len(marks) < 2
        or marks[0].start() != 0
        or marks[-1].group(1) != "Assistant"
        or prompt[marks[-1].end() :].strip()
    ):
        return None
    ends = [mark.start() for mark in marks[1:]]
    return tuple(
        Message(ROLE[mark.group(1)], prompt[mark.end() : end].strip()) for mark, end in zip(marks, ends, strict=False)
    )
