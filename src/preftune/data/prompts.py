"""Prompts from a file: rows that have one, or data of any other format, of which only the prompts are taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING

import numpy as np

from preftune.data.account import Account
from preftune.data.groups import read_groups
from preftune.data.parsers import Reading
from preftune.data.read import read
from preftune.data.render import Renderer
from preftune.data.values import BadRow, Fields, text_of
from preftune.errors import DataError
from preftune.types import PreferenceGroup, Text

if TYPE_CHECKING:
    from preftune.types import Ids

LOOKED_AT = 20
#: Columns of formats in which a `prompt` may be part of a chat, so that their parsers have to say what it is.
ANSWERS = {"chosen", "rejected", "completion", "messages", "conversations", "judgements"}


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """What is asked, its token ids, and where it stands."""

    text: Text
    ids: Ids
    origin: str


@dataclass(frozen=True, slots=True)
class Prompts:
    """The prompts of a run."""

    train: list[Prompt]
    held_out: list[Prompt]


def read_prompts(source: str | Sequence[str], reading: Reading | None = None) -> tuple[list[PreferenceGroup], Account]:
    """The distinct prompts of `source`, in order, as groups without responses. Raises DataError for a row without."""
    rows = read(source)
    head = list(islice(rows, LOOKED_AT))
    known = reading is None or reading.format == "auto"
    if known and any("prompt" in row.value for row in head) and not any(ANSWERS & set(row.value) for row in head):
        account = Account(source if isinstance(source, str) else ", ".join(source), "prompts")
        found = []
        for row in chain(head, rows):
            account.read += 1
            try:
                if row.fault:
                    raise BadRow(row.fault)
                found.append(PreferenceGroup(text_prompt(row.value), (), origin=row.origin))
            except BadRow as fault:
                raise DataError(str(fault), where=row.origin, fix="repair or remove the row") from None
    else:
        groups, account = read_groups(source, reading)
        found = [PreferenceGroup(group.prompt, (), origin=group.origin) for group in groups]
    distinct: dict[Text, PreferenceGroup] = {}
    for group in found:
        if group.prompt in distinct:
            account.note("the prompt of an earlier row; it is used once", group.origin)
        distinct.setdefault(group.prompt, group)
    return list(distinct.values()), account


def text_prompt(row: Fields) -> Text:
    """The prompt of a row."""
    return text_of(row, "prompt")


def encode_prompts(
    groups: Sequence[PreferenceGroup], renderer: Renderer, longest: int, account: Account
) -> list[Prompt]:
    """Their token ids; those that are too long are dropped and counted."""
    result = []
    for group, encoded in zip(groups, renderer.encode(groups), strict=True):
        for note in encoded.notes:
            account.note(note, group.origin)
        if len(encoded.prompt_ids) > longest:
            account.drop(f"a prompt of more than {longest} tokens", group.origin)
        elif not encoded.prompt_ids:
            account.drop("a prompt without a token", group.origin)
        else:
            result.append(Prompt(group.prompt, np.asarray(encoded.prompt_ids, dtype=np.int32), group.origin))
    return result
