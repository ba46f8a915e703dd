"""Checks that need all rows of a file: margins, mixed text and chat prompts, empty prompts, one-sided verdicts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from preftune.errors import DataError
from preftune.formats.account import Account, format_origins
from preftune.formats.origins import Origins
from preftune.formats.parsers import Reading
from preftune.formats.registry import BY_NAME
from preftune.formats.values import BadRow, is_empty
from preftune.types import Message, PreferenceGroup

#: Formats without a prompt. Empty prompts are allowed if the user names one of them.
WITHOUT_PROMPT = ("preference-implicit", "sft-text")
#: Formats that do not read margins from a column.
WITHOUT_MARGIN_COLUMN = ("ranked", "ordered", "tree")
#: Formats whose groups keep the two responses in the order in which the judge saw them.
IN_SHOWN_ORDER = ("votes", "summaries")
FIX_FUNCTION = "repair the function or the row, or set data.bad_rows=drop"
MIN_ONE_SIDED = 6  # one-sided verdicts that are reported: six fair coin flips agree with probability 3 %


@dataclass(slots=True)
class Margins:
    """The rows with judgements that have a margin, and those that have none."""

    having: Origins = field(default_factory=Origins)
    lacking: Origins = field(default_factory=Origins)

    def add(self, origin: str, has_margin: bool) -> None:
        (self.having if has_margin else self.lacking).append(origin)


def rows_without_margin(margins: Margins, reading: Reading, account: Account) -> set[str]:
    """If only some rows have a margin, treat the others as bad rows: their margin would silently be 0.

    Return the origins of these rows, which are dropped.
    """
    if not margins.having or not margins.lacking:
        return set()
    what = "the row has no margin, but other rows have one"
    if reading.bad_rows == "error":
        where, example = margins.lacking[0], margins.having[0]
        raise bad_row_error(BadRow(f"{what} ({example})"), where, account.format, reading)
    for origin in margins.lacking:
        account.drop(what, origin)
    return set(margins.lacking)


def bad_row_error(fault: BadRow, origin: str, format: str, reading: Reading) -> DataError:
    """Return the error for one row that cannot be read."""
    renamed = ", ".join(f"{name!r} from {column!r}" for name, column in reading.columns.items())
    mapped = f"; data.columns reads {renamed}" if renamed else ""
    why, fix = f"the rows are read by {format}{mapped}", FIX_FUNCTION
    if format in BY_NAME:
        why = f"the rows were read as {format!r}{mapped}"
        fix = "repair or remove the row, set the right data.format, or set data.bad_rows=drop"
    return DataError(str(fault), where=origin, why=why, fix=fault.fix or fix)


def function_error(failed: Mapping[str, Sequence[str]], account: Account) -> DataError:
    """Return the error for the most frequent failure of a user's function."""
    fault = max(failed, key=lambda fault: len(failed[fault]))
    rows, origins = sum(map(len, failed.values())), format_origins(failed[fault], account.source)
    why = f"{account.format} failed in {rows} of {account.read} rows ({origins})"
    return DataError(fault, where=failed[fault][0], why=why, fix=FIX_FUNCTION)


def text_prompts_to_chats(groups: Iterable[PreferenceGroup], account: Account) -> Iterator[PreferenceGroup]:
    """Convert text prompts to chats. Needed if a system text or a history made chats of other rows."""
    for group in groups:
        if isinstance(group.prompt, str):
            note = (
                "the text prompt was converted to a chat because other rows have messages, a system text or a history"
            )
            account.note(note, group.origin)
            responses = tuple((Message("assistant", str(r)),) for r in group.responses)
            group = replace(group, prompt=(Message("user", group.prompt),), responses=responses)
        yield group


@dataclass(slots=True)
class FileChecks:
    """What the groups of a file have in common; a note or an error in `finish`.

    groups          number of groups
    empty           groups with an empty prompt
    repeated        groups whose responses all begin with the text prompt, which the model would then read twice
    first, second   number of judgements that favour the first response, and the second
    equal           number of judgements that favour neither
    texts           number of groups with a text prompt
    """

    groups: int = 0
    texts: int = 0
    empty: Origins = field(default_factory=Origins)
    repeated: Origins = field(default_factory=Origins)
    first: int = 0
    second: int = 0
    equal: int = 0

    def add(self, group: PreferenceGroup) -> None:
        self.groups += 1
        self.texts += isinstance(group.prompt, str)
        if is_empty(group.prompt):
            self.empty.append(group.origin)
        if isinstance(group.prompt, str) and _repeats_prompt(group):
            self.repeated.append(group.origin)
        for j in group.judgements:
            share = j.probability if j.better == 0 else 1 - j.probability
            self.first += share > 0.5
            self.second += share < 0.5
            self.equal += share == 0.5

    @property
    def is_mixed(self) -> bool:
        """Whether some prompts are text and others are chats."""
        return 0 < self.texts < self.groups

    def finish(self, reading: Reading, account: Account) -> None:
        """Add notes about the file to the account. Raises DataError if most prompts are empty."""
        self._require_prompts(reading, account)
        for origin in self.repeated:
            account.note(
                "the responses begin with the prompt, so the model reads it twice; if this is true of all rows, leave "
                "out the prompt column with data.ignore",
                origin,
            )
        if account.format in IN_SHOWN_ORDER:  # else all judgements may favour the first one
            ties = len(account.dropped.get("tie", ())) + self.equal
            reason = uninformative_verdicts(self.first, self.second, ties)
            if reason:
                account.note(reason, account.source)

    def _require_prompts(self, reading: Reading, account: Account) -> None:
        """Note the rows with an empty prompt. Raises DataError if most rows have one, unless the settings allow it."""
        if reading.allow_empty_prompts or account.format == "sft-text" or reading.format in WITHOUT_PROMPT:
            return
        if 2 * len(self.empty) <= self.groups:
            for origin in self.empty:
                account.note("the prompt is empty", origin)
            return
        unused = [column for column, status in account.columns.items() if status in ("metadata", "ignored")]
        raise DataError(
            f"the prompt is empty in {len(self.empty)} of {self.groups} rows",
            where=self.empty[0],
            why=f"the rows were read as {account.format!r}"
            + (f"; columns that are not used: {', '.join(map(repr, unused))}" if unused else ""),
            fix="set data.columns={prompt: COLUMN}, or allow empty prompts with data.allow_empty_prompts=true",
        )


def _repeats_prompt(group: PreferenceGroup) -> bool:
    """Return whether all responses begin with the prompt, which has at least two words."""
    prompt = str(group.prompt).strip()
    begins = all(str(response).lstrip().startswith(prompt) for response in group.responses)
    return begins and len(prompt.split(None, 2)) > 1


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
