"""The texts of a group that are tokenised, and the resulting token ids."""

from __future__ import annotations

from dataclasses import dataclass, field

from preftune.chat.faults import Fault


@dataclass(frozen=True, slots=True)
class Encoded:
    """The token ids of one group. `notes` lists unexpected properties of the text and changes that were made to it.

    fault    why the chat template cannot render the group, which then has no ids
    dropped  whether the chat template leaves out part of a response
    """

    prompt_ids: list[int]
    response_ids: list[list[int]]
    notes: tuple[str, ...]
    fault: Fault | None = None
    dropped: bool = False


@dataclass(slots=True)
class Texts:
    """A group as the texts to tokenise.

    inner   for each chat response, the number of end tokens before the one that the template writes
    closes  for each chat response, whether the template writes an end token
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
