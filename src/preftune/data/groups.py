"""Convert rows to preference groups and these to token groups, and record what happens to every row."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Literal

import numpy as np

from preftune.chat.faults import Fault, report_faults
from preftune.chat.render import Encoded, Renderer
from preftune.chat.turns import text_to_chat
from preftune.errors import DataError
from preftune.formats import file_checks
from preftune.formats.account import Account
from preftune.formats.cells import decode_cells
from preftune.formats.columns import ColumnLedger, TrackedRow
from preftune.formats.names import ColumnNames, column_names, missing_column_error
from preftune.formats.parsers import Reading
from preftune.formats.table import BY_NAME, FunctionFault, detect, parse_with_function
from preftune.formats.values import BadRow, Drop, Fields, drop_empty_responses, has_margin
from preftune.resolve import require_one_argument, resolve
from preftune.sources.read import read
from preftune.sources.rows import Row
from preftune.types import Judgement, PreferenceGroup, TokenGroup

DETECTION_ROWS = 20  # rows from which the format is detected
CHUNK = 512  # groups to tokenise in one call
DIFFER_IN_DROPPED_TEXT = "the responses differ only in text that the chat template leaves out"

Parser = Callable[[Fields], Iterable[PreferenceGroup]]


def read_groups(source: str | Sequence[str], reading: Reading | None = None) -> tuple[list[PreferenceGroup], Account]:
    """Read all groups of `source`. Return them with the account of its rows and columns.

    Raises DataError for an unknown format, for unknown columns that are not used (see data.columns), and, unless
    `reading.bad_rows` is "drop", for the first row that does not fit the format.
    """
    reading = reading or Reading()
    name = source if isinstance(source, str) else ", ".join(source)
    account = Account(name)
    rows = decode_cells(read(source, account.note), reading, account.note)
    head = list(islice(rows, DETECTION_ROWS))
    names = column_names(reading.columns, reading.ignore)
    parse, rows = _parser(_readable(head, names), head, chain(head, rows), names, reading, account)
    ledger = ColumnLedger(name, account.format, names)
    groups, judged = _parse_rows(rows, parse, ledger, account, reading)
    _finish_account(ledger, account, reading)
    if account.format in BY_NAME and account.format != "ranked":  # others do not read margins from a column
        groups = file_checks.check_margins(groups, judged, reading, account)
    if ledger.has_context:
        groups = file_checks.text_prompts_to_chats(groups, account)
    file_checks.require_prompts(groups, reading, account)
    file_checks.note_repeated_prompts(groups, account)
    file_checks.note_one_sided_verdicts(groups, account)
    return groups, account


def _parse_rows(
    rows: Iterable[Row], parse: Parser, ledger: ColumnLedger, account: Account, reading: Reading
) -> tuple[list[PreferenceGroup], dict[str, bool]]:
    """Parse all rows. Return their groups and, by origin of each row with judgements, whether it has a margin."""
    strict = reading.bad_rows == "error"
    groups: list[PreferenceGroup] = []
    judged: dict[str, bool] = {}
    failed: dict[str, list[str]] = {}  # error message -> origins of the rows
    for row in rows:
        account.read += 1
        try:
            row_groups = _read_row(row, parse, ledger, account, not strict)
            groups.extend(map(text_to_chat, row_groups) if reading.as_chat else row_groups)
            if any(group.judgements for group in row_groups):
                judged[row.origin] = has_margin(ledger.names.rename(row.value))
        except Drop as reason:
            account.drop(str(reason), row.origin)
        except BadRow as fault:
            if strict and not isinstance(fault, FunctionFault):
                ledger.refuse(account.read)  # an unused column may explain the fault
                raise file_checks.bad_row_error(fault, row.origin, account.format, reading) from None
            account.drop(f"cannot be read: {fault}", row.origin)
            failed.setdefault(str(fault), []).append(row.origin)
        if account.read >= DETECTION_ROWS and strict:
            ledger.refuse(account.read)
    if failed and strict:  # reported together: one mistake in a function usually affects many rows
        raise file_checks.function_error(failed, account)
    return groups, judged


def _finish_account(ledger: ColumnLedger, account: Account, reading: Reading) -> None:
    """Record the columns in the account. Raises DataError for refused and for missing columns."""
    if reading.bad_rows == "error" or ledger.refuses_most_of(account.read):
        ledger.refuse(account.read, nothing_kept=account.kept == 0)
    if account.read:
        ledger.require_mapped()
    account.columns, account.unmatched = ledger.statuses(), ledger.unmatched() if account.read else []
    account.unread = ledger.unread()
    for note, origin in ledger.notes:
        account.note(note, origin)


def _readable(rows: Sequence[Row], names: ColumnNames) -> list[Fields]:
    """Return the rows that can be read, with preftune's column names."""
    readable = []
    for row in rows:
        with suppress(BadRow):  # reported when the row is parsed
            if not row.fault:
                readable.append(names.rename(row.value))
    return readable


def _first_fault(row: Row, names: ColumnNames) -> DataError:
    fault = BadRow(row.fault)
    try:
        if not row.fault:
            names.rename(row.value)
    except BadRow as error:
        fault = error
    return DataError(str(fault), where=row.origin, fix=fault.fix or "repair or remove the row")


def _read_row(row: Row, parse: Parser, ledger: ColumnLedger, account: Account, drop: bool) -> list[PreferenceGroup]:
    """Parse one row and record its columns in the ledger."""
    if row.fault:
        raise BadRow(row.fault)
    ledger.seen.update(row.value)
    value = TrackedRow(ledger.names.rename(row.value))
    try:
        groups = _without_empty(row.origin, parse(value), account)
    except Drop:
        ledger.record(row.value, value, None, row.origin)
        raise
    refused = ledger.record(row.value, value, groups, row.origin)
    if refused and drop:
        raise BadRow(f"column {refused[0]!r} {ledger.refused[refused[0]][0]}")
    return groups


def _without_empty(origin: str, parsed: Iterable[PreferenceGroup], account: Account) -> list[PreferenceGroup]:
    """Return the groups of one row without empty responses."""
    groups = [replace(group, origin=origin) for group in parsed if group.responses]
    if not groups:
        raise Drop("the row has no response")
    result = [drop_empty_responses(group) for group in groups]
    if result != groups:
        account.note("an empty response was left out, with its judgements", origin)
    return result


def _parser(
    readable: list[Fields], head: list[Row], rows: Iterator[Row], names: ColumnNames, reading: Reading, account: Account
) -> tuple[Parser, Iterator[Row]]:
    """Return the parser and the rows. Some formats must look at all rows before the first one is parsed."""
    if reading.format != "auto" and reading.format not in BY_NAME:
        function = resolve(reading.format, dict.fromkeys(BY_NAME, parse_with_function), "data.format")
        require_one_argument(function, reading.format)
        account.format = reading.format
        return lambda row: parse_with_function(function, dict(row.items()), reading.format), rows
    if not head:
        account.format = account.format if reading.format == "auto" else reading.format
        return lambda row: (), rows
    if reading.format == "auto":
        if not readable:  # report why, instead of guessing a format
            raise _first_fault(head[0], names)
        where = head[0].origin.rpartition(":")[0] or head[0].origin
        for column, name in names.new_name.items():
            if readable and not any(name in row for row in readable):
                raise missing_column_error(column, name, dict.fromkeys(key for row in readable for key in row), where)
        row_format = detect(readable, where)
    else:
        row_format = BY_NAME[reading.format]
    account.format = row_format.name
    if row_format.adjust:
        all_rows = list(rows)
        reading = row_format.adjust(_readable(all_rows, names), reading, account.source)
        rows = iter(all_rows)
    return lambda row: row_format.parse(row, reading), rows


def hold_out(groups: Sequence[PreferenceGroup], share: float) -> tuple[list[PreferenceGroup], list[PreferenceGroup]]:
    """Split the groups by prompt and return (train, held out), with about `share` of the prompts held out.

    The hash of a prompt decides. No prompt and no row is on both sides, so all turns of a dialogue stay together.
    """
    keys = [prompt_key(group) for group in groups]
    components = _components(keys, [group.origin for group in groups])
    target, held = max(1, round(share * len(set(keys)))), set[str]()
    for component in components:
        if len(held) + len(component) <= target:
            held.update(component)
    held = held or set(min(components, key=len, default=()))
    if len(held) == len(set(keys)):
        same = f"all {len(groups)} groups have the same {'' if groups and groups[0].prompt else '(empty) '}prompt"
        raise DataError(
            "cannot hold out a share of the prompts",
            where=groups[0].origin.rpartition(":")[0] or groups[0].origin if groups else "",
            why="prompts that share a row stay together" if len(held) > 1 else same,
            fix="set data.eval to an evaluation file",
        )
    sides = [(group, key in held) for group, key in zip(groups, keys, strict=True)]
    return [group for group, out in sides if not out], [group for group, out in sides if out]


def folds(groups: Sequence[PreferenceGroup], number: int) -> list[list[PreferenceGroup]]:
    """Split the groups into `number` parts of similar size, by prompt as in `hold_out`. Raises DataError."""
    keys = [prompt_key(group) for group in groups]
    counts = Counter(keys)
    part_of: dict[str, int] = {}
    sizes = [0] * number
    for component in _components(keys, [group.origin for group in groups]):
        smallest = sizes.index(min(sizes))
        sizes[smallest] += sum(counts[key] for key in component)
        part_of |= dict.fromkeys(component, smallest)
    if min(sizes) == 0:
        raise DataError(
            f"cannot split {len(counts)} distinct prompts into {number} folds",
            where=groups[0].origin.rpartition(":")[0] or groups[0].origin if groups else "",
            fix="use fewer folds",
        )
    return [[g for g, key in zip(groups, keys, strict=True) if part_of[key] == part] for part in range(number)]


def _components(keys: Sequence[str], origins: Sequence[str]) -> list[list[str]]:
    """Return the sets of prompts that are connected by common rows, in an order that depends only on the prompts."""
    parent = {key: key for key in keys}

    def root(key: str) -> str:
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    of_row: dict[str, str] = {}
    for key, origin in zip(keys, origins, strict=True):
        parent[root(key)] = root(of_row.setdefault(origin, key) if origin else key)
    components: dict[str, list[str]] = {}
    for key in sorted(parent):
        components.setdefault(root(key), []).append(key)
    # sorted by a hash of all its hashes: the smallest hash of a component would put large ones first
    return sorted(components.values(), key=lambda c: c[0] if len(c) == 1 else _hash("".join(c)))


def prompt_key(group: PreferenceGroup) -> str:
    """Return a hash of the prompt."""
    return _hash(repr(group.prompt))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def normalised_prompt_key(group: PreferenceGroup) -> str:
    """Return a hash of the prompt that is the same for a text and for that text as a single user message."""
    prompt = group.prompt
    if not isinstance(prompt, str) and len(prompt) == 1 and prompt[0].role == "user" and not prompt[0].extra:
        prompt = prompt[0].content
    return _hash(repr(prompt))


def refuse_overlap(train: Sequence[PreferenceGroup], held_out: Sequence[PreferenceGroup]) -> None:
    """Raise DataError if a prompt is in both, as the evaluation would then measure memorisation."""
    trained = {normalised_prompt_key(g): g.origin for g in train}
    leaks = [g for g in held_out if normalised_prompt_key(g) in trained]
    if leaks:
        raise DataError(
            f"{len(leaks)} of {len(held_out)} evaluation prompts are also in the training data",
            where=leaks[0].origin,
            why=f"the first one is also the prompt of {trained[normalised_prompt_key(leaks[0])]}",
            fix="remove them, hold out a share of the training data (data.eval=0.05), or set data.allow_overlap=true",
        )


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
    used = {group.origin for group in result}
    for origin, reason in reasons.items():
        if origin in used:  # the row has other turns that are used
            account.note(f"one turn of the row was dropped: {reason}", origin)
        else:
            account.drop(reason, origin)
    return result


def _fit(group: PreferenceGroup, encoded: Encoded, limits: Limits, account: Account, bos: int | None) -> TokenGroup:
    prompt, responses = encoded.prompt_ids, encoded.response_ids
    if not prompt:  # nothing predicts the first token, so it becomes the prompt
        if len({r[0] for r in responses}) > 1 or min(map(len, responses)) < 2:
            raise Drop("the prompt is empty, and the tokenizer has no BOS")
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
        prompt, responses = _truncate(group, prompt, responses, limits, account, bos)
    judgements = _distinct(group.judgements, responses)
    if group.judgements and not judgements:
        if _distinct(group.judgements, encoded.response_ids):
            raise Drop("the responses are identical after truncation")
        raise Drop(DIFFER_IN_DROPPED_TEXT if encoded.dropped else "the responses have identical token ids")
    if len(judgements) < len(group.judgements):
        account.note("judgements between responses with identical token ids were left out", group.origin)
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


def require_vocabulary(groups: Iterable[TokenGroup], rows: int, where: str) -> None:
    """Raise DataError if a token id is not in the model's embedding."""
    for group in groups:
        top = max(int(ids.max()) for ids in (group.prompt_ids, *group.response_ids))
        if top >= rows:
            raise DataError(
                f"token id {top} is out of range: the model's embedding has {rows} rows",
                where=group.origin,
                why=f"the tokenizer does not belong to the model {where}",
                fix="use the model's own tokenizer, or resize the model's embedding",
            )
