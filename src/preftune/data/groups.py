"""Rows -> preference groups -> token groups, with an account of every row."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

import numpy as np

from preftune.chat.faults import Fault, report_faults
from preftune.chat.render import Encoded, Renderer
from preftune.chat.turns import text_to_chat
from preftune.errors import DataError
from preftune.formats.account import Account
from preftune.formats.all_rows import (
    all_chats,
    bad_row,
    function_failed,
    note_prompts_twice,
    note_verdicts,
    require_prompts,
    with_margins,
)
from preftune.formats.cells import decoded
from preftune.formats.columns import Ledger, Tracked
from preftune.formats.names import Names, names_of, no_such_column
from preftune.formats.parsers import Reading
from preftune.formats.table import BY_NAME, FunctionFault, by_function, detect
from preftune.formats.values import BadRow, Drop, Fields, states_margin, without_empty
from preftune.resolve import require_one_argument, resolve
from preftune.sources.read import Row, read
from preftune.types import Judgement, PreferenceGroup, TokenGroup

DETECTION_ROWS = 20
CHUNK = 512  # groups tokenised in one call
DROPPED_ALONE = "the responses differ only in text that the chat template leaves out"

Parser = Callable[[Fields], Iterable[PreferenceGroup]]


def read_groups(source: str | Sequence[str], reading: Reading | None = None) -> tuple[list[PreferenceGroup], Account]:
    """All groups of `source` and the account of its rows and columns.

    Raises DataError for an unknown format, for columns that are neither used nor known (see data.columns), and, unless
    `reading.bad_rows` is "drop", for the first row that breaks its format.
    """
    reading = reading or Reading()
    name = source if isinstance(source, str) else ", ".join(source)
    account = Account(name)
    rows = decoded(read(source, account.note), reading, account.note)
    head = list(islice(rows, DETECTION_ROWS))
    names = names_of(reading.columns, reading.ignore)
    parse, rows = _parser(_sound(head, names), head, _chain(head, rows), names, reading, account)
    ledger = Ledger(name, account.format, names)
    groups, judged = _parsed(rows, parse, ledger, account, reading)
    _close(ledger, account, reading)
    if account.format in BY_NAME and account.format != "ranked":  # others take margins from elsewhere
        groups = with_margins(groups, judged, reading, account)
    if ledger.in_context:
        groups = all_chats(groups, account)
    require_prompts(groups, reading, account)
    note_prompts_twice(groups, account)
    note_verdicts(groups, account)
    return groups, account


def _parsed(
    rows: Iterable[Row], parse: Parser, ledger: Ledger, account: Account, reading: Reading
) -> tuple[list[PreferenceGroup], dict[str, bool]]:
    """The groups of all rows and, for the origin of each row with judgements, whether it states a margin."""
    strict = reading.bad_rows == "error"
    groups: list[PreferenceGroup] = []
    judged: dict[str, bool] = {}
    failed: dict[str, list[str]] = {}  # what the user's function did wrong, and in which rows
    for row in rows:
        account.read += 1
        try:
            found = _read_row(row, parse, ledger, account, not strict)
            groups.extend(map(text_to_chat, found) if reading.as_chat else found)
            if any(group.judgements for group in found):
                judged[row.origin] = states_margin(ledger.names.row(row.value))
        except Drop as reason:
            account.drop(str(reason), row.origin)
        except BadRow as fault:
            if strict and not isinstance(fault, FunctionFault):
                ledger.refuse(account.read)  # a column that earlier rows could not use may explain the fault
                raise bad_row(fault, row.origin, account.format, reading) from None
            account.drop(f"cannot be read: {fault}", row.origin)
            failed.setdefault(str(fault), []).append(row.origin)
        if account.read >= DETECTION_ROWS and strict:
            ledger.refuse(account.read)
    if failed and strict:  # all rows are read first: one mistake of a function fails in many of them
        raise function_failed(failed, account)
    return groups, judged


def _close(ledger: Ledger, account: Account, reading: Reading) -> None:
    """The account of the columns, or DataError for those that are refused or missing."""
    if reading.bad_rows == "error" or ledger.refuses_most_of(account.read):
        ledger.refuse(account.read, nothing_kept=account.kept == 0)
    if account.read:
        ledger.require_mapped()
    account.columns, account.unmatched = ledger.table(), ledger.unmatched() if account.read else []
    account.unread = ledger.unread()
    for what, origin in ledger.notes:
        account.note(what, origin)


def _sound(given: Sequence[Row], names: Names) -> list[Fields]:
    """Rows under preftune's names, without those that cannot be read."""
    rows = []
    for row in given:
        try:
            if not row.fault:
                rows.append(names.row(row.value))
        except BadRow:  # it is reported when the row is read
            continue
    return rows


def _first_fault(row: Row, names: Names) -> DataError:
    fault = BadRow(row.fault)
    try:
        if not row.fault:
            names.row(row.value)
    except BadRow as error:
        fault = error
    return DataError(str(fault), where=row.origin, fix=fault.fix or "repair or remove the row")


def _read_row(row: Row, parse: Parser, ledger: Ledger, account: Account, drop: bool) -> list[PreferenceGroup]:
    """The groups of one row, its columns entered into the ledger."""
    if row.fault:
        raise BadRow(row.fault)
    ledger.seen.update(row.value)
    value = Tracked(ledger.names.row(row.value))
    try:
        found = _groups_of(row.origin, parse(value), account)
    except Drop:
        ledger.file(row.value, value, None, row.origin)
        raise
    refused = ledger.file(row.value, value, found, row.origin)
    if refused and drop:
        raise BadRow(f"column {refused[0]!r} {ledger.refused[refused[0]][0]}")
    return found


def _groups_of(origin: str, parsed: Iterable[PreferenceGroup], account: Account) -> list[PreferenceGroup]:
    """The groups of one row, without empty responses."""
    found = [replace(group, origin=origin) for group in parsed if group.responses]
    if not found:
        raise Drop("no response in the row")
    full = [without_empty(group) for group in found]
    if full != found:
        account.note("an empty response was left out, with its judgements", origin)
    return full


def _chain(head: list[Row], rest: Iterator[Row]) -> Iterator[Row]:
    yield from head
    yield from rest


def _parser(
    sound: list[Fields], head: list[Row], rows: Iterator[Row], names: Names, reading: Reading, account: Account
) -> tuple[Parser, Iterator[Row]]:
    """The parser of these rows, and the rows: a format may have to see all of them before the first is parsed."""
    if reading.format != "auto" and reading.format not in BY_NAME:
        function = resolve(reading.format, dict.fromkeys(BY_NAME, by_function), "data.format")
        require_one_argument(function, reading.format)
        account.format = reading.format
        return lambda row: by_function(function, dict(row.items()), reading.format), rows
    if not head:
        account.format = account.format if reading.format == "auto" else reading.format
        return lambda row: (), rows
    if reading.format == "auto":
        if not sound:  # not one row could be read: say why instead of guessing a format
            raise _first_fault(head[0], names)
        where = head[0].origin.rpartition(":")[0] or head[0].origin
        for column, name in names.new_name.items():
            if sound and not any(name in row for row in sound):
                raise no_such_column(column, name, dict.fromkeys(key for row in sound for key in row), where)
        chosen = detect(sound, where)
    else:
        chosen = BY_NAME[reading.format]
    account.format = chosen.name
    if chosen.settle:
        every = list(rows)
        reading = chosen.settle(_sound(every, names), reading, account.source)
        rows = iter(every)
    return lambda row: chosen.parse(row, reading), rows


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


def asked(group: PreferenceGroup) -> str:
    """A hash of what is asked: the same for a text and for that text as the only message of a user."""
    prompt = group.prompt
    if not isinstance(prompt, str) and len(prompt) == 1 and prompt[0].role == "user" and not prompt[0].extra:
        prompt = prompt[0].content
    return _hash(repr(prompt))


def refuse_overlap(train: Sequence[PreferenceGroup], held_out: Sequence[PreferenceGroup]) -> None:
    """Raises DataError if a prompt is in both: evaluation would measure memory."""
    seen = {asked(g): g.origin for g in train}
    leaks = [g for g in held_out if asked(g) in seen]
    if leaks:
        raise DataError(
            f"{len(leaks)} of {len(held_out)} evaluation prompts are also in the training data",
            where=leaks[0].origin,
            why=f"the first one is the prompt of {seen[asked(leaks[0])]}",
            fix="remove them, hold out a share instead (data.eval=0.05), or set data.allow_overlap=true",
        )


@dataclass(frozen=True, slots=True)
class Limits:
    """How long sequences may be, and what happens to rows that cannot be rendered, from the config."""

    max_length: int = 1024
    max_prompt_length: int | None = None
    overlong: Literal["truncate", "drop", "error"] = "truncate"
    bad_rows: Literal["error", "drop"] = "error"


def tokenize(
    groups: Sequence[PreferenceGroup], renderer: Renderer, limits: Limits, account: Account
) -> list[TokenGroup]:
    """Token ids of every group that fits the limits; what does not is dropped or cut, and accounted for.

    Raises DataError for all rows that the chat template cannot render, unless `limits.bad_rows` is "drop".
    """
    result: list[TokenGroup] = []
    reasons: dict[str, str] = {}
    faults: list[tuple[str, Fault]] = []
    for begin in range(0, len(groups), CHUNK):
        chunk = groups[begin : begin + CHUNK]
        for group, encoded in zip(chunk, renderer.encode(chunk), strict=True):
            if encoded.fault:
                faults.append((group.origin, encoded.fault))
                continue
            for note in encoded.notes:
                account.note(note, group.origin)
            try:
                result.append(_fit(group, encoded, limits, account, renderer.tokenizer.bos_token_id))
            except Drop as drop:
                reasons[group.origin] = str(drop)
    reasons |= report_faults(faults, len(groups), limits.bad_rows, account)
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
        if _distinct(group.judgements, encoded.response_ids):
            raise Drop("identical after truncation")
        raise Drop(DROPPED_ALONE if encoded.dropped else "identical token ids")
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
