"""Tokenise responses apart from their prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

ANCHORS = ("\n", ".", ":", "a", "0", "-")  # after one of them, the tokenizer adds no leading space


def tokenize_separately(texts: Sequence[str], tokenize: Callable[[Sequence[str]], list[list[int]]]) -> list[list[int]]:
    """Tokenise texts as if different text came before them: some tokenizers add a space before the first word."""
    result: list[list[int]] = [[] for _ in texts]
    left = list(range(len(texts)))
    for anchor in ANCHORS:
        if not left:
            return result
        (head,), waiting = tokenize([anchor]), []
        for i, both in zip(left, tokenize([anchor + texts[i] for i in left]), strict=True):
            if both[: len(head)] == head:
                result[i] = both[len(head) :]
            else:
                waiting.append(i)
        left = waiting
    for i, ids in zip(left, tokenize([texts[i] for i in left]), strict=True):
        result[i] = ids
    return result
