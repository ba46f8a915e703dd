"""Rows -> preference groups -> token groups, with an account of every row."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

import numpy as np

from preftune.data.account import Account
from preftune.data.formats import BY_NAME, by_function, detect
from preftune.data.parsers import Reading
from preftune.data.read import Row, read
from preftune.data.render import Encoded, Renderer
from preftune.data.values import BadRow, Drop, Fields, states_margin, without_empty
from preftune.errors import DataError
from preftune.resolve import resolve
from preftune.types import Judgement, PreferenceGroup, TokenGroup

DETECTION_ROWS = 20
CHUNK = 512  # groups tokenised in one call

Parser = Callable[[Fields], Iterable[PreferenceGroup]]


def read_groups(source: str | Sequence[str], reading: Reading | None = None) -> tuple[list[PreferenceGroup], Account]:
    """All groups of `source` and the account of its rows.

    Raises DataError for an unknown format and, unless `reading.bad_rows` is "drop", for the first row that breaks it.
    """
    reading = reading or Reading()
    ignore, bad_rows = reading.ignore, reading.bad_rows
    name = source if isinstance(source, str) else ", ".join(source)
    account = Account(name)
    rows = read(source)
    head = list(islice(rows, DETECTION_ROWS))
    sound = [_without(row.value, ignore) for row in head if not row.fault]
    parse = _parser(reading.format, sound, head, reading, account)
    judged: dict[str, bool] = {}  # origin of each row with judgements: does it state a margin?
    groups: list[PreferenceGroup] = []
    for row in _chain(head, rows):
        account.read += 1
        try:
            if row.fault:
                raise BadRow(row.fault)
            value = _without(row.value, ignore)
            found = _groups_of(row.origin, parse(value), account)
            groups.extend(found)
            if any(group.judgements for group in found):
                judged[row.origin] = states_margin(value)
        except Drop as reason:
            account.drop(str(reason), row.origin)
        except BadRow as fault:
            if bad_rows == "error":
                raise _bad(str(fault), row.origin, account.format) from None
            account.drop(f"cannot be read: {fault}", row.origin)
    if account.format in BY_NAME and account.format != "ranked":  # others take margins from elsewhere
        groups = _with_margins(groups, judged, bad_rows, account)
    return groups, account


def _groups_of(origin: str, parsed: Iterable[PreferenceGroup], account: Account) -> list[PreferenceGroup]:
    """The groups of one row, without empty responses."""
    found = [replace(group, origin=origin) for group in parsed if group.responses]
    if not found:
        raise Drop("no response in the row")
    full = [without_empty(group) for group in found]
    if full != found:
        account.note("an empty response was left out, with its judgements", origin)
    return full


def _with_margins(
    groups: list[PreferenceGroup], judged: dict[str, bool], bad_rows: str, account: Account
) -> list[PreferenceGroup]:
    """Where some rows state a margin, the others are bad: theirs would be 0 without a word."""
    silent = [origin for origin, stated in judged.items() if not stated]
    if len(silent) in (0, len(judged)):
        return groups
    what = "no margin, but other rows have one"
    if bad_rows == "error":
        example = next(origin for origin, stated in judged.items() if stated)
        raise _bad(f"{what} ({example})", silent[0], account.format)
    for origin in silent:
        account.drop(what, origin)
    return [group for group in groups if judged.get(group.origin, True)]


def _bad(fault: str, origin: str, format: str) -> DataError:
    if format in BY_NAME:
        fix = "repair or remove the row, name the right data.format, or set data.bad_rows=drop"
        return DataError(fault, where=origin, why=f"the rows were read as {format!r}", fix=fix)
    fix = "repair the function or the row, or set data.bad_rows=drop"
    return DataError(fault, where=origin, why=f"the rows are read by {format}", fix=fix)


def _chain(head: list[Row], rest: Iterator[Row]) -> Iterator[Row]:
    yield from head
    yield from rest


def _without(value: Fields, ignore: Sequence[str]) -> Fields:
    """The row without the columns of these names, and its judgements without the fields of these names."""
    if not ignore:
        return value
    kept = {key: item for key, item in value.items() if key not in ignore}
    if isinstance(kept.get("judgements"), list):
        kept["judgements"] = [_without(j, ignore) if isinstance(j, dict) else j for j in kept["judgements"]]
    return kept


def _parser(format: str, sound: list[Fields], head: list[Row], reading: Reading, account: Account) -> Parser:
    if format != "auto" and format not in BY_NAME:
        function = resolve(format, dict.fromkeys(BY_NAME, by_function), "data.format")
        account.format = format
        return lambda row: by_function(function, row, format)
    if format == "auto":
        if head and not sound:  # not one row could be read: say why instead of guessing a format
            raise DataError(head[0].fault, where=head[0].origin, fix="repair or remove the row")
        if not head:
            return lambda row: ()
        chosen = detect(sound, head[0].origin.rpartition(":")[0] or head[0].origin)
    else:
        chosen = BY_NAME[format]
    account.format = chosen.name
    return lambda row: chosen.parse(row, reading)


def hold_out(groups: Sequence[PreferenceGroup], share: float) -> tuple[list[PreferenceGroup], list[PreferenceGroup]]:
    """(train, held out): about `share` of the prompts, chosen by their hash.

    No prompt and no row is on both sides: the turns of one dialogue stay together, for each holds those before it.
    """
    keys = [prompt_key(group) for group in groups]
    families = _families(keys, [group.origin for group in groups])
    wanted, held = max(1, round(share * len(set(keys)))), set[str]()
    for family in families:
        if len(held) + len(family) <= wanted:
            held.update(family)
    held = held or set(min(families, key=len, default=()))
    if len(held) == len(set(keys)):
        raise DataError(
            f"cannot hold out a share of {len(held)} distinct prompt(s)",
            where=groups[0].origin.rpartition(":")[0] or groups[0].origin if groups else "",
            why="prompts that share a row stay together" if len(held) > 1 else "",
            fix="give an evaluation file as data.eval",
        )
    sides = [(group, key in held) for group, key in zip(groups, keys, strict=True)]
    return [group for group, out in sides if not out], [group for group, out in sides if out]


def folds(groups: Sequence[PreferenceGroup], number: int) -> list[list[PreferenceGroup]]:
    """The groups in `number` parts of about the same size, by prompt as in `hold_out`. Raises DataError for too few."""
    keys = [prompt_key(group) for group in groups]
    counts = Counter(keys)
    part_of: dict[str, int] = {}
    sizes = [0] * number
    for family in _families(keys, [group.origin for group in groups]):
        smallest = sizes.index(min(sizes))
        sizes[smallest] += sum(counts[key] for key in family)
        part_of |= dict.fromkeys(family, smallest)
    if min(sizes) == 0:
        raise DataError(
            f"{len(counts)} distinct prompts cannot be parted into {number}",
            where=groups[0].origin.rpartition(":")[0] or groups[0].origin if groups else "",
            fix="lower `folds`",
        )
    return [[g for g, key in zip(groups, keys, strict=True) if part_of[key] == part] for part in range(number)]


def _families(keys: Sequence[str], origins: Sequence[str]) -> list[list[str]]:
    """Prompts that are bound to each other by common rows, in an order that only depends on the prompts."""
    parent = {key: key for key in keys}

    def root(key: str) -> str:
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    of_row: dict[str, str] = {}
    for key, origin in zip(keys, origins, strict=True):
        parent[root(key)] = root(of_row.setdefault(origin, key) if origin else key)
    families: dict[str, list[str]] = {}
    for key in sorted(parent):
        families.setdefault(root(key), []).append(key)
    # the smallest hash of a family would favour large ones; that of all its hashes does not
    return sorted(families.values(), key=lambda f: f[0] if len(f) == 1 else _hash("".join(f)))


def prompt_key(group: PreferenceGroup) -> str:
    return _hash(repr(group.prompt))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


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
