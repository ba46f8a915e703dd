"""Convert groups of text to groups of token ids, within the length limits. Every dropped row is counted."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from preftune.chat.faults import Fault, report_faults
from preftune.chat.render import Renderer
from preftune.chat.texts import Encoded
from preftune.data.shapes import stored_shapes
from preftune.errors import DataError
from preftune.formats.account import Account
from preftune.formats.values import Drop
from preftune.types import Judgement, PreferenceGroup, TokenGroup

DIFFER_IN_DROPPED_TEXT = "the responses differ only in text that the chat template removes"


@dataclass(frozen=True, slots=True)
class Limits:
    """Maximum lengths in tokens, and what to do with longer rows and with rows that cannot be rendered."""

    max_length: int = 1024
    max_prompt_length: int | None = None
    overlong: Literal["truncate", "drop", "error"] = "truncate"
    bad_rows: Literal["error", "drop"] = "error"


def tokenize(
    groups: Sequence[PreferenceGroup], renderer: Renderer, limits: Limits, account: Account
) -> list[TokenGroup]:
    """Tokenise the groups. Groups over the limits are truncated or dropped, which is recorded in the account.

    Raises one DataError for all rows that the chat template cannot render, unless `limits.bad_rows` is "drop".
    """
    return list(tokenized(groups, renderer, limits, account))


def tokenized(
    groups: Sequence[PreferenceGroup], renderer: Renderer, limits: Limits, account: Account
) -> Iterator[TokenGroup]:
    """Yield the groups of `tokenize` one at a time. The account is complete after the last one."""
    reasons: dict[str, str] = {}
    faults: list[tuple[str, Fault]] = []
    kept = bytearray(len(groups))
    needed = None if limits.overlong == "error" else limits.max_length  # the error reports the length
    for index, (group, encoded) in enumerate(renderer.encode_all(groups, needed)):
        if encoded.fault:
            faults.append((group.origin, encoded.fault))
            continue
        for note in encoded.notes:
            account.note(note, group.origin)
        try:
            tokens = _fit(group, encoded, limits, account, renderer.tokenizer.bos_token_id)
        except Drop as drop:
            reasons[group.origin] = sys.intern(str(drop))
            continue
        kept[index] = 1
        yield tokens
    reasons |= report_faults(faults, len(groups), limits.bad_rows, account)
    if not reasons:
        return
    used = {group.origin for group, is_kept in zip(groups, kept, strict=True) if is_kept and group.origin in reasons}
    for origin, reason in reasons.items():
        if origin in used:  # the row has other turns that are used
            account.note(f"one turn of the row was dropped: {reason}", origin)
        else:
            account.drop(reason, origin)


def _fit(group: PreferenceGroup, encoded: Encoded, limits: Limits, account: Account, bos: int | None) -> TokenGroup:
    prompt, responses, masks = encoded.prompt_ids, encoded.response_ids, encoded.masks
    if not prompt:  # nothing predicts the first token, so it becomes the prompt
        if len({r[0] for r in responses}) > 1 or min(map(len, responses)) < 2:
            raise Drop("the prompt is empty, and the tokenizer has no BOS")
        prompt, responses, masks = responses[0][:1], [r[1:] for r in responses], tuple(m[1:] for m in masks)
    longest = max(map(len, responses))
    if len(prompt) + longest > limits.max_length:
        if limits.overlong == "drop":
            raise Drop(f"longer than max_length {limits.max_length}")
        if limits.overlong == "error":
            raise DataError(
                f"{len(prompt) + longest} tokens (prompt {len(prompt)}, longest response {longest}), "
                f"more than data.max_length {limits.max_length}",
                where=group.origin,
                fix="raise data.max_length, or set data.overlong to truncate or drop",
            )
        prompt, responses = _truncate(group, prompt, responses, limits, account, bos)
        responses, masks = _up_to_scored(responses, masks)
    judgements = _distinct(group.judgements, responses)
    if group.judgements and not judgements:
        if _distinct(group.judgements, encoded.response_ids):
            raise Drop("the responses are identical after truncation")
        raise Drop(DIFFER_IN_DROPPED_TEXT if encoded.dropped else "the responses have identical token ids")
    if len(judgements) < len(group.judgements):
        account.note("judgements between responses with identical token ids were dropped", group.origin)
    return TokenGroup(
        np.asarray(prompt, dtype=np.int32),
        tuple(np.asarray(r, dtype=np.int32) for r in responses),
        judgements,
        group.labels,
        group.ranks,
        group.origin,
        tuple(np.asarray(mask, dtype=np.bool_) for mask in masks),
        group.source,
    )


def _up_to_scored(
    responses: list[list[int]], masks: tuple[list[bool], ...]
) -> tuple[list[list[int]], tuple[list[bool], ...]]:
    """Cut truncated responses after their last scored token. Raises Drop if a response has none."""
    if not masks:
        return responses, masks
    cut = [mask[: len(ids)] for ids, mask in zip(responses, masks, strict=True)]
    if not all(map(any, cut)):
        raise Drop("no scored token of a response is left after truncation")
    sizes = [len(mask) - mask[::-1].index(True) for mask in cut]
    return (
        [ids[:size] for ids, size in zip(responses, sizes, strict=True)],
        tuple(mask[:size] for mask, size in zip(cut, sizes, strict=True)),
    )


def _distinct(judgements: tuple[Judgement, ...], ids: list[list[int]]) -> tuple[Judgement, ...]:
    return tuple(j for j in judgements if ids[j.better] != ids[j.worse])


def _truncate(
    group: PreferenceGroup,
    prompt: list[int],
    responses: list[list[int]],
    limits: Limits,
    account: Account,
    bos: int | None,
) -> tuple[list[int], list[list[int]]]:
    """Truncate the beginning of the prompt (but not its BOS), then the end of responses that are still too long."""
    room = limits.max_length - max(map(len, responses))
    length = min(limits.max_prompt_length or max(room, limits.max_length // 2), limits.max_length - 1)
    if len(prompt) > length:
        head = prompt[:1] if bos is not None and prompt[0] == bos and length > 1 else []
        prompt = head + prompt[len(prompt) - (length - len(head)) :]
        account.note(f"the beginning of the prompt was truncated (max_length {limits.max_length})", group.origin)
    room = limits.max_length - len(prompt)
    if any(len(r) > room for r in responses):
        account.note(f"a response was truncated, so it has no EOS (max_length {limits.max_length})", group.origin)
        responses = [r[:room] for r in responses]
    return prompt, responses


def require_vocabulary(groups: Sequence[TokenGroup], rows: int, where: str) -> None:
    """Raise DataError if a token id is not in the model's embedding."""
    if largest_id(groups) < rows:
        return
    group, top = next((group, top) for group in groups if (top := _largest(group)) >= rows)
    raise DataError(
        f"token id {top} is out of range: the model's embedding has {rows} rows",
        where=group.origin,
        why=f"the tokenizer does not belong to the model {where}",
        fix="use the model's own tokenizer, or resize the model's embedding",
    )


def largest_id(groups: Sequence[TokenGroup]) -> int:
    """Return the largest token id, -1 without groups."""
    shapes = stored_shapes(groups)
    if shapes is not None:
        return int(shapes.top_G.max(initial=-1))
    return max(map(_largest, groups), default=-1)


def _largest(group: TokenGroup) -> int:
    return max(int(ids.max()) for ids in (group.prompt_ids, *group.response_ids))
