"""The parts of prompts and responses that the detectors look at."""

from __future__ import annotations

import re
import unicodedata

from preftune.types import Text, content

_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):[ \t]?")
_FENCE = re.compile(r"[ \t]*(?:[-*+>][ \t]+|\d+[.)][ \t]+)*(`{3,}|~{3,})([^\n]*)$")
_INLINE_CODE = re.compile(r"(?<!`)(`+)(?!`)[^\n]{1,500}?(?<!`)\1(?!`)")


def normalised(text: str) -> str:
    """Return the text in one case, with compatible characters unified and each run of white space as one space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def prompt_text(prompt: Text) -> str:
    """Return the words of a prompt, which are the same for a text, a transcript and a chat.

    System messages are left out, and so are the markers "Human:" and "Assistant:" of a transcript.
    """
    if isinstance(prompt, str):
        return _TURN.sub("\n", prompt).strip()
    return "\n".join(m.content for m in prompt if m.role != "system").strip()


def last_turn(prompt: Text) -> str:
    """Return the last message of the user; of a text that is not a transcript, the whole text."""
    if not isinstance(prompt, str):
        return next((m.content for m in reversed(prompt) if m.role == "user"), "")
    turns = _TURN.split(prompt)  # text before the first marker, then marker and text in turn
    human = [text for marker, text in zip(turns[1::2], turns[2::2], strict=True) if marker == "Human"]
    return human[-1] if human else prompt


def answer_text(response: Text) -> str:
    """Return what the assistant writes in a response."""
    if isinstance(response, str):
        return response
    return "\n".join(m.content for m in response if m.role == "assistant") or content(response)


def split_code(text: str) -> tuple[str, bool]:
    """Return the text without its code, and whether its last code fence is unclosed.

    A fence is a line of at least three backticks or tildes, which a line of at least as many of them closes. The code
    of an unclosed fence extends to the end.
    """
    if "```" not in text and "~~~" not in text:
        return _INLINE_CODE.sub(" ", text) if "`" in text else text, False
    kept: list[str] = []
    fence = ""
    for line in text.splitlines():
        match = _FENCE.match(line)
        if not match or (match[1][0] == "`" and "`" in match[2]):  # ```code``` on one line is not a fence
            if not fence:
                kept.append(line)
        elif not fence:
            fence = match[1]
        elif match[1].startswith(fence) and not match[2].strip():
            fence = ""
    return _INLINE_CODE.sub(" ", "\n".join(kept)), bool(fence)
