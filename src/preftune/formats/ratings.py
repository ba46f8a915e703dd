"""Join rated responses to the same prompt, one per row (HelpSteer, HelpSteer2), into rows of the format `ranked`."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from preftune.errors import DataError
from preftune.formats import metadata
from preftune.formats.account import Account
from preftune.formats.column_roles import PROMPTS, completion_column, pair_columns, prompt_column
from preftune.formats.names import ColumnNames, quoted
from preftune.formats.parse_votes import BETTER, SAFER, text_to_summarise
from preftune.formats.tools import FOR_TEMPLATE
from preftune.formats.values import BadRow, Fields, as_number, is_blank, peek
from preftune.sources.rows import Row

RESPONSES, SCORES = "responses", "scores"  # the columns of a joined row
SUMMARY = ("info", "summary")  # the columns of a rated summary, see `flat`
#: Columns that are always compared, also if they contain only numbers.
COMPARED = {*PROMPTS, *FOR_TEMPLATE, *metadata.CONTEXT, *metadata.UNUSABLE}
ALONE = "no adjacent row has a different response to the same prompt; sort the file by prompt"


def are_ratings(rows: Sequence[Fields], aspect: str) -> bool:
    """Return whether most rows have a prompt, one response and a number in the column `aspect`."""
    return bool(aspect) and 2 * sum(_is_rated(row, aspect) for row in rows) > len(rows)


def _is_rated(row: Fields, aspect: str) -> bool:
    row = flat(row)
    return (
        prompt_column(row) is not None
        and completion_column(row) not in (None, aspect)
        and pair_columns(row) is None
        and as_number(row.get(aspect)) is not None
        and not {RESPONSES, SCORES} & row.keys() - {aspect}
    )


def flat(row: Fields) -> Fields:
    """Return a row with prompt, response and ratings as columns (openai/summarize_from_feedback, config `axis`)."""
    info, summary = peek(row, "info"), peek(row, "summary")
    if not isinstance(info, dict) or not isinstance(summary, dict) or not isinstance(summary.get("axes"), dict):
        return row
    if not (info.get("post") or info.get("article")):
        return row
    rest = {name: value for name, value in row.items() if name not in SUMMARY}
    return {**rest, "prompt": text_to_summarise(info), "response": summary.get("text"), **summary["axes"]}


def require_aspect(rows: Sequence[Fields], aspect: str, where: str) -> None:
    """Raise DataError for rated summaries (see `flat`) without data.aspect."""
    axes = [row["summary"]["axes"] for row in rows if flat(row) is not row]
    if axes and not aspect:
        names = [name for name in axes[0] if as_number(axes[0][name]) is not None] or list(axes[0])
        raise DataError(
            "each row has one summary with ratings",
            where=where,
            why="pairs are made from summaries of the same text, so preftune must know which rating to compare",
            fix=f"set data.aspect to one of {', '.join(names)}",
        )


def reads_aspect(format: str, columns: Collection[str]) -> bool:
    """Return whether the parser of this format used data.aspect."""
    return (format == "votes" and {BETTER, SAFER} <= set(columns)) or (format == "ranked" and SCORES not in columns)


def no_aspect(aspect: str, source: str) -> DataError:
    """Return the error for a data.aspect that nothing in the data uses."""
    return DataError(
        f"data.aspect is {aspect!r}, but the rows have no judgements to choose from",
        where=source,
        why="it applies to PKU-SafeRLHF, to responses with annotations, and to rows with one rated response",
        fix="remove data.aspect, or name a rating column of the file",
    )


@dataclass(slots=True)
class Joiner:
    """Joins each run of adjacent rows with the same prompt into one row with their `responses` and `scores`.

    adjacent    whether only adjacent rows are joined. Rated summaries of a text are joined wherever they are.
    origin_of   {column of a joined row: the column of the file that it was made from}
    """

    aspect: str
    names: ColumnNames
    account: Account
    adjacent: bool = True
    origin_of: dict[str, str] = field(default_factory=dict)
    _run: list[tuple[Row, Any, Any]] = field(default_factory=list)  # row, its response and its rating
    _prompt: Any = None
    _others: Fields = field(default_factory=dict)  # what the rows of the run have in common besides the prompt
    _differing: list[str] = field(default_factory=list)  # columns in which the run differs from the one before it

    def rows(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Yield the joined rows. A row that cannot be read is yielded with its fault.

        The first row of a run gives the other columns and the origin. A response without a rating is dropped.
        """
        which = "adjacent rows with the same prompt" if self.adjacent else "rows with the same text"
        self.account.note(f"{which} were joined and compared by {self.aspect!r}", self.account.source)
        for row in rows if self.adjacent else _by_text(rows):
            try:
                value = {} if row.fault else flat(self.names.rename(row.value))
                fault = row.fault or self._fault(value)
            except BadRow:  # reported when the row is parsed
                yield row
                continue
            if fault:
                yield Row({}, row.origin, fault)
            elif _is_missing(value.get(self.aspect)):
                self.account.read += 1
                self.account.drop(f"the response has no rating {self.aspect!r}", row.origin)
            else:
                yield from self._add(row, value)
        yield from self._closed(())

    def _fault(self, value: Fields) -> str:
        rating = value.get(self.aspect)
        if prompt_column(value) is None:
            return "the row has no prompt"
        if completion_column(value) is None:
            return "the row has no response"
        if _is_missing(rating) or as_number(rating) is not None:
            return ""
        return f"column {self.names.original(self.aspect)!r} must be a number, not {rating!r:.40}"

    def _add(self, row: Row, value: Fields) -> Iterator[Row]:
        prompt, completion = prompt_column(value) or "", completion_column(value) or ""
        others = {
            name: item
            for name, item in value.items()
            if name not in (prompt, completion, self.aspect) and _is_compared(name, item, value)
        }
        if self._run:
            differing: list[str] = []
            if value[prompt] == self._prompt:
                names = dict.fromkeys((*self._others, *others))
                differing = [name for name in names if self._others.get(name) != others.get(name)]
            if differing or value[prompt] != self._prompt:
                yield from self._closed(differing)
        self._prompt, self._others = value[prompt], others
        replaced = (completion, self.aspect)
        if self.adjacent:
            rest = {k: v for k, v in row.value.items() if self.names.new_name.get(k, k) not in replaced}
            self.origin_of |= {RESPONSES: self.names.original(completion), SCORES: self.names.original(self.aspect)}
        else:
            rest = {k: v for k, v in row.value.items() if k not in SUMMARY} | {"prompt": value[prompt]}
            self.origin_of |= {"prompt": SUMMARY[0], RESPONSES: SUMMARY[1], SCORES: SUMMARY[1]}
        self._run.append((Row(rest, row.origin), value[completion], value[self.aspect]))

    def _closed(self, differing: Sequence[str]) -> Iterator[Row]:
        """End the run. `differing` are the columns in which the next row, with the same prompt, differs from it."""
        before, self._differing = self._differing, list(differing)
        if not self._run:
            return
        (first, _, _), *others = self._run
        responses, scores = [response for _, response, _ in self._run], [score for _, _, score in self._run]
        self._run = []
        if others:
            value = {**first.value, RESPONSES: responses, SCORES: scores}
            yield Row(value, first.origin, others=tuple(row.origin for row, _, _ in others))
            return
        columns = list(map(self.names.original, dict.fromkeys((*before, *differing))))
        self.account.read += 1
        what = f"the adjacent rows with the same prompt differ in {', '.join(map(repr, columns))}"
        self.account.drop(what if columns else ALONE, first.origin)
        if columns:
            remedy = f"join them with data.ignore=[{', '.join(map(quoted, columns))}]"
            self.account.remedies = list(dict.fromkeys((*self.account.remedies, remedy)))


def _by_text(rows: Iterable[Row]) -> list[Row]:
    """Return the rows with those of the same text next to each other, in the order of the first row of each text."""
    places: dict[str, list[Row]] = {}
    for row in rows:
        info = row.value.get("info")
        places.setdefault(repr(info) if isinstance(info, dict) else row.origin, []).append(row)
    return [row for place in places.values() for row in place]


def _is_missing(rating: Any) -> bool:
    return is_blank(rating) or (isinstance(rating, float) and math.isnan(rating))


def _is_compared(name: str, value: Any, row: Fields) -> bool:
    """Return whether two rows with different values in a column have different prompts."""
    if is_blank(value):
        return False
    if name.lower() in COMPARED:
        return True
    return not (name in metadata.RATINGS or metadata.is_number(value) or metadata.is_metadata(name, row))
