"""How the last line of a chat model's reply is read: with or without markdown and brackets around it."""

from __future__ import annotations

#: What may stand around the parts of a line: markdown and brackets, but no lone quotation mark, which ends a quotation.
AROUND = r"[\s*_`#()\[\]{}<]*"
AFTER = r"[\s*_`()\[\]{}>.!]*"


def last_line(text: str) -> str:
    """The last line that is not empty. Lines end with a newline alone: other separators may stand in a quotation."""
    return text.strip().rpartition("\n")[2]


def shortened(said: str, most: int = 300) -> str:
    """The end of a judge's reply, where its verdict should be."""
    return repr(said if len(said) <= most else f"... {said[-most:]}")
