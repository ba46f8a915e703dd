"""Shorten very long texts before they are tokenised, to the parts that truncation can keep.

Of a prompt, truncation keeps the end; of a response, the beginning. Both are tokenised from two excerpts, one twice as
long as the other. The shorter one is used if the tokens that can be kept are the same, else longer ones are tried, up
to the whole text. So the ids differ from those of the whole text only if a tokenizer reads a token differently because
of text that is further away than all that was compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from preftune.chat.response_ends import Ends
from preftune.chat.texts import Texts

CHARACTERS = 32  # per token that can be kept, of the shortest excerpt
LEAST = 4096  # characters of the shortest excerpt
MARGIN = 64  # tokens beyond those that can be kept
TAIL = 256  # characters at the end of a response, which may have an end token

Tokenize = Callable[[Sequence[str]], list[list[int]]]


def shorten(one: Texts, max_tokens: int, ends: Ends, tokenizer: Any) -> None:
    """Shorten very long texts of a group to what truncation to `max_tokens` can keep."""
    if not any(is_long(text, max_tokens) for text in (one.prompt, *one.responses)):
        return

    def tokenize(texts: Sequence[str]) -> list[list[int]]:
        output = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
        ids: list[list[int]] = output["input_ids"]
        return ids

    if is_long(one.prompt, max_tokens):
        bos = str(tokenizer.bos_token or "") if one.chat else ""  # else the tokenizer adds it
        start = bos if bos and one.prompt.startswith(bos) else ""
        short = end_of(one.prompt, max_tokens, tokenize)
        one.prompt = short if short is one.prompt else start + short
    shorter = [beginning_of(r, max_tokens, tokenize) if is_long(r, max_tokens) else r for r in one.responses]
    same_ends = all(ends.count(a) == ends.count(b) for a, b in zip(shorter, one.responses, strict=True))
    if same_ends and len(set(shorter)) == len(set(one.responses)):
        one.responses = shorter


def is_long(text: str, tokens: int) -> bool:
    """Return whether a text is so long that it is shortened, if `tokens` of its tokens can be kept."""
    return len(text) > 3 * _excerpt(tokens)


def end_of(text: str, tokens: int, tokenize: Tokenize) -> str:
    """Return the end of a long text, with the same last `tokens` token ids."""
    size = _excerpt(tokens)
    while 2 * size < len(text):
        short, long = tokenize([text[-size:], text[-2 * size :]])
        if len(short) > tokens + MARGIN and short[-tokens:] == long[-tokens:]:
            return text[-size:]
        size *= 2
    return text


def beginning_of(text: str, tokens: int, tokenize: Tokenize) -> str:
    """Return the beginning of a long text with its last characters, with the same first `tokens` token ids."""
    size = _excerpt(tokens)
    while 2 * size + TAIL < len(text):
        excerpt = text[:size] + text[-TAIL:]
        short, long = tokenize([excerpt, text[: 2 * size]])
        if len(short) > tokens + MARGIN and short[:tokens] == long[:tokens]:
            return excerpt
        size *= 2
    return text


def _excerpt(tokens: int) -> int:
    return CHARACTERS * tokens + LEAST
