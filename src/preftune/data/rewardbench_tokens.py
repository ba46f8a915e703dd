"""Groups in the token ids that RewardBench's own program gives to a policy and its reference, faults included.

What it does, beside `chat.render`, which does none of it:

- the prompt is rendered without the generation prompt, so the header of the assistant's turn is scored
- the rendered prompt is removed from the rendered dialogue wherever it stands, in the answer too
- roles alternate, user first, whatever the data say: a system prompt becomes the user's
- BOS is put before the rendered text, which may have one, and EOS after it; a tokenizer without BOS gets EOS there
- of a merge across the end of the prompt one token goes to the response, so two responses may have different prompts
- in a row of more than 2,048 tokens the prompt keeps its last 128, without BOS

Its default precision (8 bits, float16) is not imitated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from preftune.errors import ModelError
from preftune.formats.account import Account
from preftune.types import PreferenceGroup, TokenGroup, content

PROMPT = 128  # tokens that a cut prompt keeps
LENGTH = 2048


@dataclass(frozen=True, slots=True)
class Ids:
    """One response with its own prompt."""

    prompt: list[int]
    response: list[int]


def as_published(group: PreferenceGroup, tokenizer: Any, limit: int, account: Account) -> list[TokenGroup]:
    """One group a response, each with the judgements between all; what has been done to it is noted.

    Raises ModelError without a chat template.
    """
    if not tokenizer.chat_template:
        raise ModelError(
            "no chat template",
            where=str(tokenizer.name_or_path),
            why="the published program reads a prompt as a chat",
            fix="name one: --chat-template dialogue, or a .jinja file",
        )
    asked = [group.prompt] if isinstance(group.prompt, str) else [message.content for message in group.prompt]
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(asked)]
    head = str(tokenizer.apply_chat_template(turns, tokenize=False))
    opened = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    answers = []
    for response in group.responses:
        whole = [*turns, {"role": "assistant", "content": content(response)}]
        rendered = str(tokenizer.apply_chat_template(whole, tokenize=False))
        _note(account, group.origin, rendered.count(head), head, opened)
        answers.append(rendered.replace(head, ""))
    found = [_ids(head, answer, tokenizer) for answer in answers]
    longest = max(len(ids.response) for ids in found)
    if any(len(ids.prompt) + longest > limit for ids in found):
        account.note(f"published: longer than {limit} tokens, the prompt keeps its last {PROMPT}", group.origin)
        found = [_cut(ids, longest, limit) for ids in found]
    return [
        TokenGroup(_array(ids.prompt), (_array(ids.response),), group.judgements, origin=group.origin) for ids in found
    ]


def _note(account: Account, origin: str, times: int, head: str, opened: str) -> None:
    if times > 1:
        account.note("published: the prompt stands in an answer too and is removed there", origin)
    if times == 0:
        account.note("published: the prompt is not the beginning of the dialogue and is read twice", origin)
    if len(opened) > len(head):
        account.note("published: the header of the assistant's turn is scored", origin)


def _ids(head: str, answer: str, tokenizer: Any) -> Ids:
    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    prompt, joint = ids(head), ids(head + answer)
    start = len(prompt) - (joint[: len(prompt)] != prompt)
    first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return Ids([first, *joint[:start]], [*joint[start:], tokenizer.eos_token_id])


def _cut(ids: Ids, longest: int, limit: int) -> Ids:
    prompt = ids.prompt[-PROMPT:] if len(ids.prompt) + longest > limit else ids.prompt
    return Ids(prompt, ids.response[: limit - PROMPT] if len(prompt) + longest > limit else ids.response)


def _array(ids: Sequence[int]) -> Any:
    return np.asarray(ids, dtype=np.int32)
