"""Find and remove duplicate BOS, EOS and end-of-turn tokens that the text of the data already contains."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

BOS_TWICE = "began with BOS twice; one was removed"
HAD_EOS = "the text already ended with EOS; none was added"
HAD_END = "the message already ended with the template's end token; one was removed"
END_INSIDE = "the response contains its end token before its end"
BOS_INSIDE = "a response contains BOS after its beginning"


def special_texts(tokenizer: Any) -> tuple[str, ...]:
    """Return the texts of all special tokens, which only a template or a tokenizer should write."""
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return tuple(dict.fromkeys([*map(str, tokenizer.all_special_tokens), *added]))


def splitting_tokens(tokenizer: Any, written: str) -> dict[str, int]:
    """Return {text: id} of the special tokens in `written` that are tokenised independently of the text around them.

    A tokenizer of the library `tokenizers` finds added tokens before anything else, and tokenises the text between them
    piece by piece. So the ids of `a + token + b` are those of `a`, then those of `token + b`, unless the token also
    takes white space from its surroundings, is searched in normalised text, or can overlap with another added token.
    Tokenizers that are written in Python have no such tokens.
    """
    if not getattr(tokenizer, "is_fast", False) or getattr(tokenizer, "split_special_tokens", False):
        return {}
    added = tokenizer.added_tokens_decoder.items()
    texts = [token.content for _, token in added]
    endings = {text[-size:] for text in texts for size in range(1, len(text))}  # where another token may begin
    return {
        token.content: number
        for number, token in added
        if token.special
        and token.content in written
        and not (token.normalized or token.lstrip or token.rstrip or token.single_word)
        and not any(token.content[:size] in endings for size in range(1, len(token.content) + 1))
        and not any(token.content in text for text in texts if text != token.content)
    }


@dataclass(frozen=True, slots=True)
class Ends:
    """The BOS and end tokens of a tokenizer and its model.

    bos      text of BOS if the tokenizer adds it to every text; "" otherwise
    gap      white space that the tokenizer decodes between BOS and the first word; it is not part of the text
    bos_id   id of BOS; None for a tokenizer without BOS
    end_ids  ids of all tokens that end a response: EOS and the end tokens of the model's generation config
    ends     texts of those end tokens that are special tokens
    """

    tokenizer: Any
    bos: str
    gap: str
    bos_id: int | None
    end_ids: frozenset[int]
    ends: tuple[str, ...]

    @staticmethod
    def of(tokenizer: Any, end_ids: Sequence[int], writes_bos: bool) -> Ends:
        all_ids = frozenset([tokenizer.eos_token_id, *end_ids])
        special = all_ids.intersection([*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids])
        texts = tuple(str(tokenizer.convert_ids_to_tokens(i)) for i in sorted(special))
        bos, gap = tokenizer.bos_token if writes_bos else "", ""
        if bos:
            between, word, _ = tokenizer.decode(tokenizer("a")["input_ids"]).removeprefix(bos).partition("a")
            gap = between if word and not between.strip() else ""
        return Ends(tokenizer, bos, gap, tokenizer.bos_token_id, all_ids, texts)

    def without_bos(self, text: str, first: bool = True) -> tuple[str, bool]:
        """Return the text without BOS at its beginning, and whether there was one. The tokenizer adds BOS itself.

        `first`: the text is at the beginning of the tokenised string.
        """
        rest = text
        while self.bos and rest.lstrip().startswith(self.bos):
            rest = rest.lstrip().removeprefix(self.bos)
            rest = rest.removeprefix(self.gap) if first else rest
        return rest, rest is not text

    def has_bos(self, content: str) -> bool:
        """Return whether the content of a message contains BOS (unless BOS is also an end token)."""
        bos = str(self.tokenizer.bos_token or "")
        return bool(bos) and bos in content and bos not in self.ends

    def cut_after_end(self, ids: list[int]) -> tuple[list[int], bool]:
        """Cut `ids` after the first end token that only white space and end tokens follow; return whether it exists."""
        if not self.end_ids.intersection(ids):
            return ids, False
        end = None
        for place in range(len(ids) - 1, -1, -1):
            if ids[place] in self.end_ids:
                end = place
            elif self.tokenizer.decode(ids[place : place + 1]).strip():
                break
        return (ids, False) if end is None else (ids[: end + 1], True)

    def count(self, text: str) -> int:
        """Return the number of end tokens in a text."""
        return sum(text.count(end) for end in self.ends)

    def split_after_content(self, text: str, content: str) -> tuple[str, str]:
        """Split the rendered response into the text up to the end of its content and the text after it."""
        at = text.find(content) + len(content) if content and content in text else -1
        if at < 0:  # only tool calls, or the template does not write the content: split at the last end token
            at = max((text.rfind(end) for end in self.ends), default=-1)
        return (text[:at], text[at:]) if at >= 0 else (text, "")

    def text_after_end(self, tail: str) -> str:
        """Return the text after the first run of end tokens and white space in `tail`, or "" without an end token."""
        any_end = "|".join(map(re.escape, self.ends))
        match = re.search(rf"(?:{any_end})(?:\s|{any_end})*", tail)
        return tail[match.end() :] if match else ""

    def without_end(self, text: str, rendered: str, turn: Sequence[str] = ()) -> str:
        """Return the content `text` of a message without end tokens at its end that the template also writes.

        `rendered` is the rendered dialogue with that content. `turn` holds special tokens with which the template ends
        a turn, in addition to the end tokens of a response.
        """
        ends = [*self.ends, *turn]
        rest = text
        while end := next((e for e in ends if rest.rstrip().endswith(e)), ""):
            rest = rest.rstrip().removesuffix(end)
        if rest is text or not rest.strip():
            return text
        any_end = "|".join(map(re.escape, ends))
        removed = text[len(rest) :].strip()
        # the template's end token follows those of the content
        duplicate = re.search(re.escape(rest.strip() + removed) + rf"\s*(?:{any_end})", rendered) or re.search(
            re.escape(rest.strip()) + rf"\s*(?:(?:{any_end})\s*){{{len(re.findall(any_end, removed)) + 1},}}", rendered
        )
        return rest if duplicate else text
