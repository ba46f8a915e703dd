"""The texts of a group that are tokenised, and the resulting token ids."""

from __future__ import annotations

from dataclasses import dataclass, field

from preftune.chat.faults import Fault


@dataclass(frozen=True, slots=True)
class Encoded:
    """The token ids of one group. `notes` lists unexpected properties of the text and changes that were made to it.

    masks    for each response, which of its tokens are scored; empty: all
    fault    why the chat template cannot render the group, which then has no ids
    dropped  whether the chat template leaves out part of a response
    """

    prompt_ids: list[int]
    response_ids: list[list[int]]
    notes: tuple[str, ...]
    fault: Fault | None = None
    dropped: bool = False
    masks: tuple[list[bool], ...] = ()


@dataclass(frozen=True, slots=True)
class Conversation:
    """A rendered conversation of prompt and response, of which only the characters in `spans` are scored.

    closes  whether the last span ends with an end token of the template
    inner   number of end tokens in the last span before that one
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    closes: bool
    inner: int = 0


@dataclass(slots=True)
class Texts:
    """A group as the texts to tokenise.

    inner   for each chat response, the number of end tokens before the one that the template writes
    closes  for each chat response, whether the template writes an end token
    conversations  instead of `responses`, for responses that are only scored in part
    repeated_from  where the part of the prompt begins that is tokenised with each response; -1: at its beginning
    """

    prompt: str
    responses: list[str]
    chat: bool = False
    inner: list[int] = field(default_factory=list)
    closes: list[bool] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    fault: Fault | None = None
    dropped: bool = False
    repeated_from: int = -1
    conversations: list[Conversation] = field(default_factory=list)
