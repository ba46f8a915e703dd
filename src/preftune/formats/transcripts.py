"""Dialogues stored as one text, as in HH-RLHF: each turn begins with "Human:", "Assistant:" or "System:"."""

from __future__ import annotations

import re
from typing import Any

from preftune.types import Message

#: Each turn of a transcript begins with one of these names.
TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant|System):")
INLINE = re.compile(r"[ \t]{2,}Human:")
ROLE = {"Human": "user", "Assistant": "assistant", "System": "system"}
HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


def is_transcript(value: Any) -> bool:
    """Return whether a value is a dialogue in the format of HH-RLHF."""
    return isinstance(value, str) and value.lstrip().startswith(HUMAN.strip()) and ASSISTANT in value


def parse_prompt(text: str) -> tuple[Message, ...] | None:
    """Parse a transcript that ends with "Assistant:". Return None for any other text."""
    turns = parse_turns(text)
    if turns is None or len(turns) < 2 or turns[-1] != Message("assistant", ""):
        return None
    return turns[:-1]


def parse_response(text: str) -> tuple[Message, ...]:
    """Parse what follows "Assistant:". Text that continues with a human turn and an assistant turn becomes messages.

    Any other text is one assistant message.
    """
    turns = parse_turns(f"Assistant:{text}")
    roles = [turn.role for turn in turns or ()]
    alternate = roles[::2] == ["assistant"] * len(roles[::2]) and roles[1::2] == ["user"] * len(roles[1::2])
    if turns and len(turns) > 1 and alternate and roles[-1] == "assistant" and all(turn.content for turn in turns):
        return turns
    return (Message("assistant", text.strip()),)


def parse_turns(text: str) -> tuple[Message, ...] | None:
    """Parse a transcript. Return None for a text that does not begin with a turn.

    Some transcripts of HH-RLHF have two assistant turns in a row, because the human turn between them continues the
    line of the first one after two spaces. It becomes a separate turn. Other turns of one role in a row are joined,
    with an empty line between them, because many chat templates refuse them.
    """
    marks = list(TURN.finditer(text))
    if not marks or marks[0].start() != 0:
        return None
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    turns: list[Message] = []
    for mark, end in zip(marks, ends, strict=True):
        turn = Message(ROLE[mark.group(1)], text[mark.end() : end].strip())
        if turns and turn.role == turns[-1].role == "assistant":
            turns[-1:] = _separated(turns[-1])
        if turns and turn.content and turn.role == turns[-1].role:
            turn = Message(turn.role, f"{turns.pop().content}\n\n{turn.content}".strip())
        turns.append(turn)
    return tuple(turns)


def _separated(turn: Message) -> list[Message]:
    """Split an assistant turn before its last "  Human:"; return it unchanged without one."""
    marks = list(INLINE.finditer(turn.content))
    if not marks:
        return [turn]
    before, after = turn.content[: marks[-1].start()].strip(), turn.content[marks[-1].end() :].strip()
    return [Message("assistant", before), Message("user", after)] if before and after else [turn]
