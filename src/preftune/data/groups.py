"""Rows -> preference groups -> token groups, with an account of every row."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

import numpy as np

from preftune.data.account import Account
from preftune.data.formats import BY_NAME, detect
from preftune.data.parsers import Reading
from preftune.data.read import Row, read
from preftune.data.render import Encoded, Renderer
from preftune.data.values import BadRow, Drop, Fields
from preftune.errors import DataError
from preftune.resolve import resolve
from preftune.types import Judgement, PreferenceGroup, TokenGroup

DETECTION_ROWS = 20
CHUNK = 512  # groups tokenised in one call

Parser = Callable[[Fields], Iterable[PreferenceGroup]]


def read_groups(
    source: str | Sequence[str],
    *,
    format: str = "auto",
    reading: Reading | None = None,
    ignore: Sequence[str] = (),
    bad_rows: Literal["error", "drop"] = "error",
) -> tuple[list[PreferenceGroup], Account]:
    """All groups of `source` and the account of its rows.

    Raises DataError for an unknown format and, unless `bad_rows` is "drop", for the first row that breaks it.
    """
    name = source if isinstance(source, str) else ", ".join(source)
    account = Account(name)
    rows = read(source)
    head = list(islice(rows, DETECTION_ROWS))
    sound = [_without(row.value, ignore) for row in head if not row.fault]
    parse = _parser(format, sound, head, reading or Reading(), account)
    groups: list[PreferenceGroup] = []
    for row in _chain(head, rows):
        account.read += 1
        try:
            if row.fault:
                raise BadRow(row.fault)
            found = [
                replace(group, origin=row.origin) for group in parse(_without(row.value, ignore)) if group.responses
            ]
            groups.extend(found)
            if not found:
                account.drop("no response in the row", row.origin)
        except Drop as reason:
            account.drop(str(reason), row.origin)
        except BadRow as fault:
            if bad_rows == "error":
                raise DataError(
                    str(fault),
                    where=row.origin,
                    why=f"the rows were read as {account.format!r}",
                    fix="repair or remove the row, name the right data.format, or set data.bad_rows=drop",
                ) from None
            account.drop("cannot be read", row.origin)
    return groups, account


def _chain(head: list[Row], rest: Iterator[Row]) -> Iterator[Row]:
    yield from head
    yield from rest


def _without(value: Fields, ignore: Sequence[str]) -> Fields:
    return {key: item for key, item in value.items() if key not in ignore} if ignore else value


def _parser(format: str, sound: list[Fields], head: list[Row], reading: Reading, account: Account) -> Parser:
    if format != "auto" and format not in BY_NAME:
        function = resolve(format, {}, "data.format")
        account.format = format
        return lambda row: _checked(function, row, format)
    if format == "auto":
        if head and not sound:  # not one row could be read: say why instead of guessing a format
            raise DataError(head[0].fault, where=head[0].origin, fix="repair or remove the row")
        if not head:
            return lambda row: ()
        chosen = detect(sound, head[0].origin.rpartition(":")[0])
    else:
        chosen = BY_NAME[format]
    account.format = chosen.name
    return lambda row: chosen.parse(row, reading)


def _checked(function: Callable[..., Any], row: Fields, name: str) -> list[PreferenceGroup]:
    """Groups from a user's function; anything else it returns or raises is a bad row."""
    try:
        result = function(row)
        groups = [result] if isinstance(result, PreferenceGroup) else list(result)
    except (BadRow, Drop):
        raise
    except Exception as error:
        raise BadRow(f"{name} raised {type(error).__name__}: {error}") from error
    for group in groups:
        if not isinstance(group, PreferenceGroup):
            raise BadRow(f"{name} returned {type(group).__name__}, not PreferenceGroup")
    return groups


def hold_out(groups: Sequence[PreferenceGroup], share: float) -> tuple[list[PreferenceGroup], list[PreferenceGroup]]:
    """(train, held out): about `share` of the prompts, chosen by their hash, so that no prompt is on both sides."""
    prompts = sorted({prompt_key(g) for g in groups})
    held = set(prompts[: max(1, round(share * len(prompts)))])
    if len(held) == len(prompts):
        raise DataError(
            f"cannot hold out a share of {len(prompts)} distinct prompt(s)",
            where=groups[0].origin.rpartition(":")[0],
            fix="give an evaluation file as data.eval",
        )
    return [g for g in groups if prompt_key(g) not in held], [g for g in groups if prompt_key(g) in held]


def prompt_key(group: PreferenceGroup) -> str:
    return hashlib.sha256(repr(group.prompt).encode("utf-8", "surrogatepass")).hexdigest()


def refuse_overlap(train: Sequence[PreferenceGroup], held_out: Sequence[PreferenceGroup]) -> None:
    """Raises DataError if a prompt is in both: evaluation would measure memory."""
    seen = {prompt_key(g): g.origin for g in train}
    leaks = [g for g in held_out if prompt_key(g) in seen]
    if leaks:
        raise DataError(
            f"{len(leaks)} of {len(held_out)} evaluation prompts are also in the training data",
            where=leaks[0].origin,
            why=f"the first one is the prompt of {seen[prompt_key(leaks[0])]}",
            fix="remove them, hold out a share instead (data.eval=0.05), or set data.allow_overlap=true",
        )


@dataclass(frozen=True, slots=True)
class Limits:
    """How long sequences may be, from the config."""

    max_length: int = 1024
    max_prompt_length: int | None = None
    overlong: Literal["truncate", "drop", "error"] = "truncate"


def tokenize(
    groups: Sequence[PreferenceGroup], renderer: Renderer, limits: Limits, account: Account
) -> list[TokenGroup]:
    """Token ids of every group that fits the limits; what does not is dropped or cut, and accounted for."""
    result: list[TokenGroup] = []
    reasons: dict[str, str] = {}
    for begin in range(0, len(groups), CHUNK):
        chunk = groups[begin : begin + CHUNK]
        for group, encoded in zip(chunk, renderer.encode(chunk), strict=True):
            for note in encoded.notes:
                account.note(note, group.origin)
            try:
                result.append(_fit(group, encoded, limits, account, renderer.tokenizer.bos_token_id))
            except Drop as drop:
                reasons[group.origin] = str(drop)
    kept = {group.origin for group in result}
    for origin, reason in reasons.items():
        if origin in kept:  # another turn of the same row is trained on
            account.note(f"one of its turns was dropped: {reason}", origin)
        else:
            account.drop(reason, origin)
    return result


def _fit(group: PreferenceGroup, encoded: Encoded, limits: Limits, account: Account, bos: int | None) -> TokenGroup:
    prompt, responses = encoded.prompt_ids, encoded.response_ids
    if not prompt:  # without BOS nothing predicts the first token: it becomes the context of the rest
        if len({r[0] for r in responses}) > 1 or min(map(len, responses)) < 2:
            raise Drop("empty prompt, and the tokenizer has no BOS to start from")
        prompt, responses = responses[0][:1], [r[1:] for r in responses]
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
        prompt, responses = _cut(group, prompt, responses, limits, account, bos)
    judgements = _distinct(group.judgements, responses)
    if group.judgements and not judgements:
        same = _distinct(group.judgements, encoded.response_ids)
        raise Drop("identical after truncation" if same else "identical token ids")
    if len(judgements) < len(group.judgements):
        account.note("judgements between responses with identical ids were left out", group.origin)
    return TokenGroup(
        np.asarray(prompt, dtype=np.int32),
        tuple(np.asarray(r, dtype=np.int32) for r in responses),
        judgements,
        group.labels,
        group.ranks,
        group.origin,
    )


def _distinct(judgements: tuple[Judgement, ...], ids: list[list[int]]) -> tuple[Judgement, ...]:
    return tuple(j for j in judgements if ids[j.better] != ids[j.worse])


def _cut(
    group: PreferenceGroup,
    prompt: list[int],
    responses: list[list[int]],
    limits: Limits,
    account: Account,
    bos: int | None,
) -> tuple[list[int], list[list[int]]]:
    """The prompt loses its beginning (never its BOS), then responses lose their end."""
    room = limits.max_length - max(map(len, responses))
    keep = limits.max_prompt_length or max(room, limits.max_length // 2)
    keep = min(keep, limits.max_length - 1)
    if len(prompt) > keep:
        head = prompt[:1] if bos is not None and prompt[0] == bos and keep > 1 else []
        prompt = head + prompt[len(prompt) - (keep - len(head)) :]
        account.note(f"the prompt lost its beginning (max_length {limits.max_length})", group.origin)
    room = limits.max_length - len(prompt)
    if any(len(r) > room for r in responses):
        account.note(f"a response lost its end and its EOS (max_length {limits.max_length})", group.origin)
        responses = [r[:room] for r in responses]
    return prompt, responses


def require_vocabulary(groups: Iterable[TokenGroup], rows: int, where: str) -> None:
    """Raises DataError if a token id has no row in the model's embedding."""
    for group in groups:
        top = max(int(ids.max()) for ids in (group.prompt_ids, *group.response_ids))
        if top >= rows:
            raise DataError(
                f"token id {top}, but the model's embedding has {rows} rows",
                where=group.origin,
                why=f"the tokenizer does not belong to the model {where}",
                fix="use the model's own tokenizer, or resize the model's embedding",
            )
