"""Read the last line of a chat model's reply, and estimate the tokens of requests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from preftune.types import Message

# allowed around the parts of the last line; no lone quotation mark, which may end a quotation of a response
MARKUP = r"[\s*_`#()\[\]{}<]*"
MARKUP_AT_END = r"[\s*_`()\[\]{}>.!]*"
MAX_TOKENS = 300  # of a reply


def last_line(text: str) -> str:
    """Return the last non-empty line. Only a newline ends a line; other separators may be part of a quotation."""
    return text.strip().rpartition("\n")[2]


def end_of(reply: str) -> str:
    """Return the quoted end of a reply, where its verdict should be."""
    return repr(reply if len(reply) <= 300 else f"... {reply[-300:]}")


def estimate_tokens(requests: Iterable[Sequence[Message]]) -> int:
    """Estimate the prompt tokens of requests at four characters per token."""
    return sum(len(message.content) for messages in requests for message in messages) // 4
