"""The pairs of responses that people compare."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from preftune.types import Message, Text, as_json


@dataclass(frozen=True, slots=True)
class Pair:
    """Two responses to a prompt. Their order here is that of the file; the page shows them in a random order.

    ended  whether each response ended before the token limit of sampling
    label  what the file says: 1 if the first is better, 0 if the second is, 1/2 for a tie, None without a label
    """

    prompt: Text
    first: Text
    second: Text
    ended: tuple[bool, bool] = (True, True)
    origin: str = ""
    label: float | None = None

    @property
    def key(self) -> str:
        """A hash of the prompt and the responses, which names the pair in the journal of verdicts."""
        return _hash([as_json(self.prompt), as_json(self.first), as_json(self.second)])[:16]


def fingerprint(pairs: Iterable[Pair]) -> str:
    """Return a hash of all pairs in their order."""
    return _hash([pair.key for pair in pairs])


def first_is_left(pair: str, annotator: str, seed: int) -> bool:
    """Return whether this annotator sees the first response of the pair with this key on the left: a fair coin."""
    return int(_hash([seed, annotator, pair])[:8], 16) % 2 == 0


def turns(text: Text) -> list[dict[str, Any]]:
    """Return a text or chat as turns for the page: the role ("" for plain text) and the text."""
    if isinstance(text, str):
        return [{"role": "", "text": text}]
    return [{"role": message.role, "text": _shown(message)} for message in text]


def _shown(message: Message) -> str:
    """Return the content of a message, followed by its other fields, such as tool calls."""
    fields = [(name, value, json.loads(value)) for name, value in message.extra]
    extra = [f"[{name}] {decoded if isinstance(decoded, str) else value}" for name, value, decoded in fields]
    return "\n".join([message.content, *extra] if message.content else extra)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
