"""Rewrite the rows of label tools and other programs to the columns that the formats read.

A rewritten row has the same content under other names. The layout of a file is that of its first rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from preftune.formats.exchanges import alternating
from preftune.formats.parsers import RATINGS, RESPONSE_LISTS, SCORES, TEXT_FIELDS, Reading
from preftune.formats.values import Fields, is_blank, is_messages
from preftune.formats.verdicts import SIDE_NAME
from preftune.sources.rows import Row

TASK = ("data", "annotations")  # the columns of a task of Label Studio that are rewritten
LABELS_OF_OPTIONS = ("text", "body", "html", "title", "content", "value")
GRADED_LISTS = ("output", "completion", "response", "candidates", "generations", "candidate_responses", "samples")
SYSTEM = ("systemInstruction", "system_instruction")
GRADE_NAME = re.compile(r"(?P<kind>score|rating|reward|rank|ranking)s?[ _-]?(?P<side>[a-z]|[0-9])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Layout:
    """A way to write rows.

    fits      whether a row is written so
    rewrite   returns the row with other columns, and the column of the file that each new one was made from
    """

    fits: Callable[[Fields], bool]
    rewrite: Callable[[Fields], tuple[Fields, Mapping[str, str]]]


def may_rewrite(reading: Reading) -> bool:
    """Return whether rows may be rewritten: the user has not named a format, or fields inside columns."""
    return reading.format == "auto" and not any("." in column for column in reading.columns.values())


def layout_of(rows: Sequence[Fields]) -> Layout | None:
    """Return the layout of most of these rows, or None."""
    return next((layout for layout in LAYOUTS if 2 * sum(map(layout.fits, rows)) > len(rows)), None)


def rewritten(rows: Iterator[Row], reading: Reading, origin_of: dict[str, str], head_rows: int) -> Iterator[Row]:
    """Yield the rows in the columns that the formats read. The origins of new columns are added to `origin_of`."""
    head = list(islice(rows, head_rows))
    layout = layout_of([row.value for row in head if not row.fault]) if may_rewrite(reading) else None
    for row in chain(head, rows):
        yield rewrite(row, layout, origin_of)


def rewrite(row: Row, layout: Layout | None, origin_of: dict[str, str]) -> Row:
    """Return a row in the columns that the formats read, if it has this layout."""
    if layout is None or row.fault or not layout.fits(row.value):
        return row
    value, origins = layout.rewrite(row.value)
    origin_of |= origins
    return Row(value, row.origin)


def _is_task(row: Fields) -> bool:
    data, annotations = row.get("data"), row.get("annotations")
    return isinstance(data, dict) and is_messages(annotations) and all("result" in item for item in annotations or ())


def _task(row: Fields) -> tuple[Fields, Mapping[str, str]]:
    """Rewrite a task of Label Studio: the fields of its data, and what the annotators selected or how they ranked."""
    rest = {key: value for key, value in row.items() if key not in (*TASK, *row["data"])}
    results = [
        item
        for annotation in row["annotations"]
        if not annotation.get("was_cancelled")
        for item in annotation["result"] or ()
        if isinstance(item, dict) and isinstance(item.get("value"), dict)
    ]
    fields = {**rest, **row["data"]}
    rankings = [item["value"]["ranker"] for item in results if isinstance(item["value"].get("ranker"), list)]
    lists = [key for key, value in row["data"].items() if is_messages(value) and all("id" in item for item in value)]
    if rankings and len(lists) == 1:
        items = fields.pop(lists[0])
        fields["responses"] = [_label_of(item) for item in items]
        fields["ranks"] = [_mean_rank(item["id"], rankings) for item in items]
        return fields, {**dict.fromkeys(row["data"], "data"), "responses": "data", "ranks": "annotations"}
    selected = [item["value"]["selected"] for item in results if "selected" in item["value"]]
    selected = selected or [item["value"]["choices"][0] for item in results if item["value"].get("choices")]
    fields["preference"] = [{"value": value} for value in selected]
    return fields, {**dict.fromkeys(row["data"], "data"), "preference": "annotations"}


def _mean_rank(name: Any, rankings: Sequence[list[Any]]) -> float | None:
    """Return the mean rank of an item, or None if an annotator has not ranked it."""
    if not all(name in ranking for ranking in rankings):
        return None
    return sum(ranking.index(name) for ranking in rankings) / len(rankings)


def _label_of(item: Fields) -> Any:
    return next((item[key] for key in LABELS_OF_OPTIONS if item.get(key)), None)


def _is_choice(row: Fields) -> bool:
    options = row.get("options")
    return isinstance(row.get("accept"), list) and is_messages(options) and all("id" in item for item in options or ())


def _choice(row: Fields) -> tuple[Fields, Mapping[str, str]]:
    """Rewrite a task of Prodigy's interface `choice`: the options, and which of them the annotator accepted."""
    read = ("options", "accept", "answer", *(() if "prompt" in row else ("text",)))
    fields = {key: value for key, value in row.items() if key not in read}
    origins = {"prompt": "text", "response_1": "options", "response_2": "options", "preference": "accept"}
    if "prompt" not in fields and "text" in row:
        fields["prompt"] = row["text"]
    accepted = row["accept"] if row.get("answer", "accept") == "accept" else []
    sides = [[_label_of(o) for o in row["options"] if (o["id"] in accepted) is chosen] for chosen in (True, False)]
    if len(row["options"]) != 2:
        return {**fields, "chosen": sides[0], "rejected": sides[1]}, {
            **origins,
            "chosen": "options",
            "rejected": "options",
        }
    fields["response_1"], fields["response_2"] = map(_label_of, row["options"])
    names = [f"response_{i}" for i, option in enumerate(row["options"], start=1) if option["id"] in accepted]
    fields["preference"] = [{"value": "tie" if len(names) == 2 else name} for name in names[:1]]
    return fields, origins


def _is_sorted(row: Fields) -> bool:
    values, order = row.get("response"), row.get("sort")
    return "src" in row and isinstance(values, list) and isinstance(order, list) and len(values) == len(order)


def _sorted(row: Fields) -> tuple[Fields, Mapping[str, str]]:
    """Rewrite a row of PaddleNLP: turns of the user (src) and the assistant (tgt), and responses with their order."""
    turns = [[value] if isinstance(value, str) else list(value or ()) for value in (row["src"], row.get("tgt"))]
    single = [item[0] if isinstance(item, list) and len(item) == 1 else item for item in row["response"]]
    texts = [text for i in range(len(turns[0])) for side in turns for text in side[i : i + 1]]
    if len(turns[0]) != len(turns[1]) + 1 or not all(isinstance(text, str) for text in (*texts, *single)):
        return row, {}
    rest = {key: value for key, value in row.items() if key not in ("src", "tgt", "response", "sort")}
    prompt = texts[0] if len(texts) == 1 else alternating(texts)
    fields = {**rest, "prompt": prompt, "responses": single, "scores": row["sort"]}
    return fields, {"prompt": "src", "responses": "response", "scores": "sort"}


def _is_wrapped(row: Fields) -> bool:
    return all(
        isinstance(row.get(key), dict) and is_messages(row[key].get("messages")) for key in ("chosen", "rejected")
    )


def _wrapped(row: Fields) -> tuple[Fields, Mapping[str, str]]:
    """Rewrite a row of LMFlow, whose responses are objects with a dialogue and its system text."""
    fields = dict(row)
    for key in ("chosen", "rejected"):
        value = row[key]
        if not is_blank(value.get("tools")):
            return row, {}
        system = [{"role": "system", "content": value["system"]}] if value.get("system") else []
        fields[key] = [*system, *value["messages"]]
    return fields, {}


def _wide_columns(row: Fields) -> tuple[list[str], list[str], bool]:
    """Return three or more columns with a response each, those with their scores, and whether these are ranks."""
    stems: dict[str, dict[str, str]] = {}
    grades: dict[str, dict[str, str]] = {}
    for key in row:
        if match := SIDE_NAME.fullmatch(key):
            stems.setdefault(match["stem"].lower(), {})[match["side"].lower()] = key
        elif match := GRADE_NAME.fullmatch(key):
            grades.setdefault(match["kind"].lower(), {})[match["side"].lower()] = key
    groups = [sides for sides in stems.values() if len(sides) > 2]
    if len(groups) != 1:
        return [], [], False
    fitting = [kind for kind, sides in grades.items() if sides.keys() >= groups[0].keys()]
    if len(fitting) != 1:
        return [], [], False
    return list(groups[0].values()), [grades[fitting[0]][side] for side in groups[0]], fitting[0].startswith("rank")


def _wide(row: Fields) -> tuple[Fields, Mapping[str, str]]:
    """Rewrite a row with a column for each of several responses, and one for each of their scores or ranks."""
    responses, grades, are_ranks = _wide_columns(row)
    kept = [(row[text], row[grade]) for text, grade in zip(responses, grades, strict=True) if not is_blank(row[text])]
    name = "ranks" if are_ranks else "scores"
    rest = {key: value for key, value in row.items() if key not in (*responses, *grades)}
    fields = {**rest, "responses": [text for text, _ in kept], name: [grade for _, grade in kept]}
    return fields, {"responses": responses[0], name: grades[0]} if responses else {}


def _graded_list(row: Fields) -> str | None:
    """Return the only column with a list of responses that have a score or a rank each, or None."""
    names = [
        key
        for key in GRADED_LISTS
        if is_messages(row.get(key)) and len(row[key]) > 1 and all(map(_is_graded, row[key]))
    ]
    return names[0] if len(names) == 1 and not any(key in row for key in RESPONSE_LISTS) else None


def _is_graded(item: Fields) -> bool:
    return any(key in item for key in TEXT_FIELDS) and any(key in item for key in ("rank", *SCORES, *RATINGS))


def _graded(row: Fields) -> tuple[Fields, Mapping[str, str]]:
    """Rewrite a row whose list of responses with scores has another name."""
    name = _graded_list(row)
    return {("responses" if key == name else key): value for key, value in row.items()}, {"responses": name or ""}


def _has_instruction(row: Fields) -> bool:
    return any(isinstance(row.get(key), dict) and is_messages(row[key].get("parts")) for key in SYSTEM)


def _instruction(row: Fields) -> tuple[Fields, Mapping[str, str]]:
    """Rewrite a row of Gemini, whose system text is a message without a meaning of its role."""
    name = next((key for key in SYSTEM if isinstance(row.get(key), dict)), SYSTEM[0])
    parts = row.get(name, {}).get("parts") or []
    if not all(isinstance(part.get("text"), str) for part in parts):
        return row, {}
    rest = {key: value for key, value in row.items() if key != name}
    return {"system": "".join(part["text"] for part in parts), **rest}, {"system": name}


LAYOUTS = (
    Layout(_is_task, _task),
    Layout(_is_choice, _choice),
    Layout(_is_sorted, _sorted),
    Layout(_is_wrapped, _wrapped),
    Layout(lambda row: bool(_wide_columns(row)[0]), _wide),
    Layout(lambda row: _graded_list(row) is not None, _graded),
    Layout(_has_instruction, _instruction),
)
