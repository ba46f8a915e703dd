"""Tokenise groups exactly as RewardBench's own program does for a policy and its reference, including its errors.

Differences from `chat.render`:

- The prompt is rendered without the generation prompt, so the header of the assistant's turn is scored.
- Every occurrence of the rendered prompt is removed from the rendered dialogue, including inside the response.
- Roles alternate and begin with the user, regardless of the roles in the data: a system prompt becomes a user turn.
- BOS (EOS, for a tokenizer without BOS) is put before the rendered text, which may have BOS already, and EOS after it.
- A token that spans the end of the prompt goes to the response, so two responses may have different prompts.
- In a row of more than 2,048 tokens, the prompt is truncated to its last 128, without BOS.

Its default precision (8 bits, float16) is not reproduced.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from preftune.chat.bounded import bounded
from preftune.errors import ModelError
from preftune.formats.account import Account
from preftune.types import PreferenceGroup, TokenGroup, content

PROMPT = 128  # tokens of a truncated prompt
LENGTH = 2048  # maximum tokens of a row


@dataclass(frozen=True, slots=True)
class Ids:
    """The token ids of one response and of its prompt."""

    prompt: list[int]
    response: list[int]


def as_published(group: PreferenceGroup, tokenizer: Any, limit: int, account: Account) -> list[TokenGroup]:
    """Return one group per response, each with all judgements of `group`. Deviations are noted in the account.

    Raises ModelError without a chat template.
    """
    if not tokenizer.chat_template:
        raise ModelError(
            "the tokenizer has no chat template",
            where=str(tokenizer.name_or_path),
            why="the published program renders every prompt as a chat",
            fix="set --chat-template to dialogue or to a .jinja file",
        )
    contents = [group.prompt] if isinstance(group.prompt, str) else [message.content for message in group.prompt]
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
    apply = partial(tokenizer.apply_chat_template, tokenize=False)
    head = str(bounded(partial(apply, turns), tokenizer.name_or_path))
    opened = str(bounded(partial(apply, turns, add_generation_prompt=True), tokenizer.name_or_path))
    answers = []
    for response in group.responses:
        whole = [*turns, {"role": "assistant", "content": content(response)}]
        rendered = str(bounded(partial(apply, whole), tokenizer.name_or_path))
        _note(account, group.origin, rendered.count(head), head, opened)
        answers.append(rendered.replace(head, ""))
    rows = [_ids(head, answer, tokenizer) for answer in answers]
    longest = max(len(ids.response) for ids in rows)
    if any(len(ids.prompt) + longest > limit for ids in rows):
        account.note(f"published: longer than {limit} tokens; the prompt is cut to its last {PROMPT}", group.origin)
        rows = [_truncate(ids, longest, limit) for ids in rows]
    arrays = [(np.asarray(ids.prompt, dtype=np.int32), np.asarray(ids.response, dtype=np.int32)) for ids in rows]
    return [TokenGroup(prompt, (answer,), group.judgements, origin=group.origin) for prompt, answer in arrays]


def _note(account: Account, origin: str, times: int, head: str, opened: str) -> None:
    if times > 1:
        account.note("published: the prompt also occurs in a response and is removed there", origin)
    if times == 0:
        account.note("published: the dialogue does not contain the prompt as rendered, which is read twice", origin)
    if len(opened) > len(head):
        account.note("published: the header of the assistant's turn is scored", origin)


def _ids(head: str, answer: str, tokenizer: Any) -> Ids:
    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    prompt, joint = ids(head), ids(head + answer)
    start = len(prompt) - (joint[: len(prompt)] != prompt)
    first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return Ids([first, *joint[:start]], [*joint[start:], tokenizer.eos_token_id])


def _truncate(ids: Ids, longest: int, limit: int) -> Ids:
    prompt = ids.prompt[-PROMPT:] if len(ids.prompt) + longest > limit else ids.prompt
    return Ids(prompt, ids.response[: limit - PROMPT] if len(prompt) + longest > limit else ids.response)
