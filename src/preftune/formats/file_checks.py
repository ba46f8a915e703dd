"""Checks that need all rows of a file: margins, mixed text and chat prompts, empty prompts, one-sided verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from preftune.errors import DataError
from preftune.formats.account import Account, format_origins
from preftune.formats.parsers import Reading
from preftune.formats.registry import BY_NAME
from preftune.formats.values import BadRow, is_empty
from preftune.types import Message, PreferenceGroup

#: Formats without a prompt. Empty prompts are allowed if the user names one of them.
WITHOUT_PROMPT = ("preference-implicit", "sft-text")
#: Formats whose groups keep the two responses in the order in which the judge saw them.
IN_SHOWN_ORDER = ("votes", "summaries")
FIX_FUNCTION = "repair the function or the row, or set data.bad_rows=drop"
MIN_ONE_SIDED = 6  # one-sided verdicts that are reported: six fair coin flips agree with probability 3 %


def check_margins(
    groups: list[PreferenceGroup], has_margin: dict[str, bool], reading: Reading, account: Account
) -> list[PreferenceGroup]:
    """If only some rows have a margin, treat the others as bad rows: their margin would silently be 0.

    has_margin   {origin of a row with judgements: whether it has a margin}
    """
    without = [origin for origin, has in has_margin.items() if not has]
    if len(without) in (0, len(has_margin)):
        return groups
    what = "the row has no margin, but other rows have one"
    if reading.bad_rows == "error":
        example = next(origin for origin, has in has_margin.items() if has)
        raise bad_row_error(BadRow(f"{what} ({example})"), without[0], account.format, reading)
    for origin in without:
        account.drop(what, origin)
    return [group for group in groups if has_margin.get(group.origin, True)]


def bad_row_error(fault: BadRow, origin: str, format: str, reading: Reading) -> DataError:
    """Return the error for one row that cannot be read."""
    renamed = ", ".join(f"{name!r} from {column!r}" for name, column in reading.columns.items())
    mapped = f"; data.columns reads {renamed}" if renamed else ""
    why, fix = f"the rows are read by {format}{mapped}", FIX_FUNCTION
    if format in BY_NAME:
        why = f"the rows were read as {format!r}{mapped}"
        fix = "repair or remove the row, set the right data.format, or set data.bad_rows=drop"
    return DataError(str(fault), where=origin, why=why, fix=fault.fix or fix)


def function_error(failed: dict[str, list[str]], account: Account) -> DataError:
    """Return the error for the most frequent failure of a user's function."""
    fault = max(failed, key=lambda fault: len(failed[fault]))
    rows, origins = sum(map(len, failed.values())), format_origins(failed[fault], account.source)
    why = f"{account.format} failed in {rows} of {account.read} rows ({origins})"
    return DataError(fault, where=failed[fault][0], why=why, fix=FIX_FUNCTION)


def text_prompts_to_chats(groups: list[PreferenceGroup], account: Account) -> list[PreferenceGroup]:
    """Convert text prompts to chats. Needed if a system text or a history made chats of other rows."""
    result = []
    for group in groups:
        if isinstance(group.prompt, str):
            note = "the text prompt was converted to a chat because other rows have a system text or a history"
            account.note(note, group.origin)
            responses = tuple((Message("assistant", str(r)),) for r in group.responses)
            group = replace(group, prompt=(Message("user", group.prompt),), responses=responses)
        result.append(group)
    return result


def note_repeated_prompts(groups: Sequence[PreferenceGroup], account: Account) -> None:
    """Note each row whose responses all begin with its text prompt, which the model would then read twice."""
    for group in groups:
        prompt = group.prompt.strip() if isinstance(group.prompt, str) else ""
        if len(prompt.split()) > 1 and all(str(response).lstrip().startswith(prompt) for response in group.responses):
            account.note(
                "the responses begin with the prompt, so the model reads it twice; if this is true of all rows, leave "
                "out the prompt column with data.ignore",
                group.origin,
            )


def require_prompts(groups: Sequence[PreferenceGroup], reading: Reading, account: Account) -> None:
    """Raise DataError if most rows have an empty prompt and the settings do not allow it; otherwise note the rows."""
    empty = [group.origin for group in groups if is_empty(group.prompt)]
    if reading.allow_empty_prompts or account.format == "sft-text" or reading.format in WITHOUT_PROMPT:
        return
    if 2 * len(empty) <= len(groups):
        for origin in empty:
            account.note("the prompt is empty", origin)
        return
    unused = [column for column, status in account.columns.items() if status in ("metadata", "ignored")]
    raise DataError(
        f"the prompt is empty in {len(empty)} of {len(groups)} rows",
        where=empty[0],
        why=f"the rows were read as {account.format!r}"
        + (f"; columns that are not used: {', '.join(map(repr, unused))}" if unused else ""),
        fix="set data.columns={prompt: COLUMN}, or allow empty prompts with data.allow_empty_prompts=true",
    )


def note_one_sided_verdicts(groups: Sequence[PreferenceGroup], account: Account) -> None:
    """Add a note if all verdicts of the file favour the first response, all favour the second, or all are ties."""
    if account.format not in IN_SHOWN_ORDER:
        return
    shares = [j.probability if j.better == 0 else 1 - j.probability for group in groups for j in group.judgements]
    first, second = sum(share > 0.5 for share in shares), sum(share < 0.5 for share in shares)
    ties = len(account.dropped.get("tie", ())) + len(shares) - first - second
    reason = uninformative_verdicts(first, second, ties)
    if reason:
        account.note(reason, account.source)


def uninformative_verdicts(first: int, second: int, ties: int) -> str:
    """Return why a judge's verdicts carry no information about the responses, or "" if they may carry some.

    first, second, ties   number of verdicts for the response shown first, for the one shown second, and of ties
    """
    if ties and not (first or second):
        return (
            f"all {ties} verdicts are ties, so they carry no information about the responses. "
            "Check that the responses differ, or use a different judge"
        )
    decided = first + second
    if (first and second) or decided < MIN_ONE_SIDED:
        return ""
    position, without_ties = "first" if first else "second", " that are not ties" if ties else ""
    return (
        f"all {decided} verdicts{without_ties} favour the response shown {position}, so they carry no information "
        "about the responses. Use a different judge, or show the responses in random order"
    )
