"""BOS, EOS and end-of-turn tokens that a text already has: one is kept, the others are removed with a note."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

TWICE = "began with BOS twice; one was removed"
ENDED = "the text already ended with EOS; none was added"
BEFORE = "the response holds its end token before its end"
CLOSED = "the content already ended with the template's end token; one was removed"
INSIDE = "a response holds BOS after its beginning"


def special_texts(tokenizer: Any) -> tuple[str, ...]:
    """The texts of all tokens that only a template or a tokenizer should write."""
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return tuple(dict.fromkeys([*map(str, tokenizer.all_special_tokens), *added]))


@dataclass(frozen=True, slots=True)
class Ends:
    """The tokens that begin and end texts.

    bos      text of BOS where the tokenizer writes it at the beginning of every text, so that a text must not have it
    gap      what the tokenizer decodes between BOS and the first word: white space that is not part of the text
    bos_id   its id; None for a tokenizer without BOS
    end_ids  all tokens that end a response: EOS and the model's own ends of a generation
    ends     the texts of those that are special tokens
    """

    tokenizer: Any
    bos: str
    gap: str
    bos_id: int | None
    end_ids: frozenset[int]
    ends: tuple[str, ...]

    @staticmethod
    def of(tokenizer: Any, end_ids: Sequence[int], writes_bos: bool) -> Ends:
        every = frozenset([tokenizer.eos_token_id, *end_ids])
        special = every.intersection([*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids])
        texts = tuple(str(tokenizer.convert_ids_to_tokens(i)) for i in sorted(special))
        bos, gap = tokenizer.bos_token if writes_bos else "", ""
        if bos:
            between, found, _ = tokenizer.decode(tokenizer("a")["input_ids"]).removeprefix(bos).partition("a")
            gap = between if found and not between.strip() else ""
        return Ends(tokenizer, bos, gap, tokenizer.bos_token_id, every, texts)

    def without_bos(self, text: str, first: bool = True) -> tuple[str, bool]:
        """The text without BOS at its beginning, and whether there was one. The tokenizer writes its own.

        `first`: the text stands at the beginning of what is tokenised.
        """
        rest = text
        while self.bos and rest.lstrip().startswith(self.bos):
            rest = rest.lstrip().removeprefix(self.bos)
            rest = rest.removeprefix(self.gap) if first else rest
        return rest, rest is not text

    def has_bos(self, content: str) -> bool:
        """Whether a message's content holds BOS, which no message does that a template has not written."""
        bos = str(self.tokenizer.bos_token or "")
        return bool(bos) and bos in content and bos not in self.ends

    def closed(self, ids: list[int]) -> tuple[list[int], bool]:
        """The ids up to their end token, if only white space and further end tokens follow it; whether it is there."""
        if not self.end_ids.intersection(ids):
            return ids, False
        last = None
        for place in range(len(ids) - 1, -1, -1):
            if ids[place] in self.end_ids:
                last = place
            elif self.tokenizer.decode(ids[place : place + 1]).strip():
                break
        return (ids, False) if last is None else (ids[: last + 1], True)

    def count(self, text: str) -> int:
        """How many end tokens a text holds."""
        return sum(text.count(end) for end in self.ends)

    def beyond(self, tail: str) -> str:
        """What a template writes after its end tokens, if it is more than white space."""
        any_end = "|".join(map(re.escape, self.ends))
        found = re.search(rf"(?:{any_end})(?:\s|{any_end})*", tail)
        return tail[found.end() :] if found else ""

    def content(self, text: str, rendered: str, turn: Sequence[str] = ()) -> str:
        """A message's content without the end tokens at its end that the template writes after it anyway.

        `rendered` is the dialogue as the template writes it with that content, and `turn` are special tokens with which
        the template ends a turn, besides those that end a response.
        """
        ends = [*self.ends, *turn]
        rest = text
        while True:
            end = next((e for e in ends if rest.rstrip().endswith(e)), None)
            if end is None:
                break
            rest = rest.rstrip().removesuffix(end)
        if rest is text or not rest.strip():
            return text
        any_end = "|".join(map(re.escape, ends))
        removed = text[len(rest) :].strip()
        # the content's own end tokens, and right after them the template's
        again = re.search(re.escape(rest.strip() + removed) + rf"\s*(?:{any_end})", rendered) or re.search(
            re.escape(rest.strip()) + rf"\s*(?:(?:{any_end})\s*){{{len(re.findall(any_end, removed)) + 1},}}", rendered
        )
        return rest if again else text
