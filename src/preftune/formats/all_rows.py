"""What only all rows together can tell: margins in some rows only, chats beside text prompts, empty prompts, verdicts
that do not depend on the responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from preftune.errors import DataError
from preftune.formats.account import Account, places
from preftune.formats.parsers import Reading
from preftune.formats.table import BY_NAME
from preftune.formats.values import BadRow, is_empty
from preftune.types import Message, PreferenceGroup

#: Formats whose rows have no prompt by definition, where the user names them.
WITHOUT_PROMPT = ("preference-implicit", "sft-text")
#: Formats whose groups have the two responses in the order in which the judge saw them.
IN_SHOWN_ORDER = ("votes", "summaries")
FEW = 6  # verdicts on one side that may be chance: a coin does it in 3 % of the cases with six


def with_margins(
    groups: list[PreferenceGroup], judged: dict[str, bool], reading: Reading, account: Account
) -> list[PreferenceGroup]:
    """Where some rows state a margin, the others are bad: theirs would be 0 without a word."""
    silent = [origin for origin, stated in judged.items() if not stated]
    if len(silent) in (0, len(judged)):
        return groups
    what = "no margin, but other rows have one"
    if reading.bad_rows == "error":
        example = next(origin for origin, stated in judged.items() if stated)
        raise bad_row(BadRow(f"{what} ({example})"), silent[0], account.format, reading)
    for origin in silent:
        account.drop(what, origin)
    return [group for group in groups if judged.get(group.origin, True)]


def bad_row(fault: BadRow, origin: str, format: str, reading: Reading) -> DataError:
    """The error for one row that cannot be read."""
    renamed = ", ".join(f"{name!r} from {column!r}" for name, column in reading.columns.items())
    mapped = f"; data.columns reads {renamed}" if renamed else ""
    if format in BY_NAME:
        fix = "repair or remove the row, name the right data.format, or set data.bad_rows=drop"
        return DataError(
            str(fault), where=origin, why=f"the rows were read as {format!r}{mapped}", fix=fault.fix or fix
        )
    fix = "repair the function or the row, or set data.bad_rows=drop"
    return DataError(str(fault), where=origin, why=f"the rows are read by {format}{mapped}", fix=fault.fix or fix)


def function_failed(failed: dict[str, list[str]], account: Account) -> DataError:
    """The mistake that a user's function made in most rows."""
    fault = max(failed, key=lambda fault: len(failed[fault]))
    rows = sum(map(len, failed.values()))
    return DataError(
        fault,
        where=failed[fault][0],
        why=f"{account.format} failed in {rows} of {account.read} rows ({places(failed[fault], account.source)})",
        fix="repair the function or the row, or set data.bad_rows=drop",
    )


def all_chats(groups: list[PreferenceGroup], account: Account) -> list[PreferenceGroup]:
    """Where a system text or a history made chats of some rows, the other text prompts are chats too."""
    result = []
    for group in groups:
        if isinstance(group.prompt, str):
            account.note("the text prompt was made a chat, as other rows have a system text or a history", group.origin)
            responses = tuple((Message("assistant", str(r)),) for r in group.responses)
            group = replace(group, prompt=(Message("user", group.prompt),), responses=responses)
        result.append(group)
    return result


def note_prompts_twice(groups: Sequence[PreferenceGroup], account: Account) -> None:
    """A note for each row whose responses all begin with its text prompt: it is then read twice."""
    for group in groups:
        prompt = group.prompt.strip() if isinstance(group.prompt, str) else ""
        if len(prompt.split()) > 1 and all(str(response).lstrip().startswith(prompt) for response in group.responses):
            account.note(
                "the responses begin with the prompt, so that the model reads it twice; if all do, leave the column of "
                "the prompt out with data.ignore",
                group.origin,
            )


def require_prompts(groups: Sequence[PreferenceGroup], reading: Reading, account: Account) -> None:
    """Raises DataError if most rows have an empty prompt and nobody asked for that; notes each if they are few."""
    empty = [group.origin for group in groups if is_empty(group.prompt)]
    asked = account.format == "sft-text" or reading.format in WITHOUT_PROMPT
    if reading.allow_empty_prompts or asked:
        return
    if 2 * len(empty) <= len(groups):
        for origin in empty:
            account.note("the prompt is empty", origin)
        return
    unused = [column for column, became in account.columns.items() if became in ("metadata", "ignored")]
    raise DataError(
        f"the prompt is empty in {len(empty)} of {len(groups)} rows",
        where=empty[0],
        why=f"the rows were read as {account.format!r}"
        + (f"; columns that are not used: {', '.join(map(repr, unused))}" if unused else ""),
        fix="name the column of the prompt with data.columns={prompt: COLUMN}, or set data.allow_empty_prompts=true",
    )


def note_verdicts(groups: Sequence[PreferenceGroup], account: Account) -> None:
    """A note where all verdicts of the file are for the response shown first, or for the second, or all are ties."""
    if account.format not in IN_SHOWN_ORDER:
        return
    shares = [j.probability if j.better == 0 else 1 - j.probability for group in groups for j in group.judgements]
    first, second = sum(share > 0.5 for share in shares), sum(share < 0.5 for share in shares)
    ties = len(account.dropped.get("tie", ())) + len(shares) - first - second
    found = uninformative(first, second, ties)
    if found:
        account.note(found, account.source)


def uninformative(first: int, second: int, ties: int) -> str:
    """Why a judge's verdicts say nothing about the responses that were compared, or "" if they may say something.

    first, second, ties   verdicts for the response that was shown first, for the one shown second, and for neither
    """
    if ties and not (first or second):
        return (
            f"all {ties} verdicts are ties, so they say nothing about the responses. "
            "Check that the responses differ, or use another judge"
        )
    decided = first + second
    if (first and second) or decided < FEW:
        return ""
    place, but = "first" if first else "second", " that are not ties" if ties else ""
    return (
        f"all {decided} verdicts{but} are for the response that was shown {place}, so they say nothing about the "
        "responses. Use another judge, or show the responses in random order"
    )
