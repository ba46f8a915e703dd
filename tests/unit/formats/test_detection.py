"""The format of a file is detected from its rows. The error for unknown columns suggests a mapping."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import write_jsonl
from tests.unit.formats.examples import chat, read_rows

from preftune.data.read_groups import read_groups
from preftune.errors import DataError
from preftune.formats import column_roles, verdicts
from preftune.formats.registry import BY_NAME, FORMATS


def test_the_docs_list_every_format_and_column_name() -> None:
    page = (Path(__file__).parents[3] / "docs" / "lookup" / "formats.md").read_text()
    names = [
        *BY_NAME,
        *column_roles.COMPLETIONS,
        *column_roles.SYSTEMS,
        *column_roles.KINDS_OF_SCORE,
        *verdicts.STRENGTHS,
    ]
    assert [name for name in (*names, *column_roles.PROMPTS) if f"`{name}`" not in page] == []


def test_the_example_of_every_format_is_json_with_its_columns() -> None:
    for form in FORMATS:
        text = form.example
        for shorthand in ("[message, ...]", '[message] or message or "..."', "[message]"):
            text = text.replace(shorthand, "[]")
        text = text.replace("[...]", "[]").replace("{...}", "{}").replace(": ...", ": null").replace(", ...", "")
        assert set(form.columns) == set(json.loads(text)), form.name


def test_the_error_for_a_misspelt_column_suggests_its_name(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "p", "chosen": "a", "rejecetd": "b"}])
    with pytest.raises(DataError, match=r"'rejected' \(did you mean 'rejecetd'\?\)"):
        read_groups(str(path))


def test_a_row_of_another_format_is_named(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        {"prompt": chat(("user", "x")), "chosen": ["a"], "rejected": ["b"]},
    ]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match=r"a.jsonl:2: column 'prompt' must be text, not a list"):
        read_groups(str(path))


GUESSED: list[tuple[dict[str, Any], str]] = [
    ({"q": "x", "answer_good": "a", "answer_bad": "b", "question": "y"}, "{chosen: answer_good, rejected: answer_bad}"),
    ({"user_text": "x", "better": "a", "worse": "b"}, "{chosen: better, rejected: worse, prompt: user_text}"),
    ({"prompt": "p", "chosen": "a", "rejecetd": "b"}, "{rejected: rejecetd}"),
    ({"prompt": "p", "generations": ["a", "b"], "ratings": [1, 2]}, "{responses: generations, scores: ratings}"),
    (
        {"prompt": "p", "ans1": "a", "ans2": "b", "verdict": "1"},
        "{response_a: ans1, response_b: ans2, winner: verdict}",
    ),
    ({"ask": "p", "left": "a", "right": "b", "vote": "l"}, "{prompt: ask, response_a: left, response_b: right, winner"),
    ({"promt": "p", "completion": "a"}, "{prompt: promt}"),
    ({"problem": "p", "solution": "a"}, "{completion: solution, prompt: problem}"),
    ({"Prompt": "p", "Chosen": "a", "Rejected": "b"}, "{chosen: Chosen, rejected: Rejected, prompt: Prompt}"),
    ({"prompt": "p", "response_a": "a", "response_b": "b"}, "{winner: COLUMN}"),
    ({"prompt": "p", "positive": "a", "negative": "b"}, "{chosen: positive, rejected: negative}"),
    (
        {"prompt": "p", "generations": ["a", "b"], "ratings": [1, 2], "rationales": ["c", "d"]},
        "{responses: generations, scores: ratings}",
    ),
    ({"prompt": "p", "foo": "a", "bar": "b"}, "{prompt: COLUMN, chosen: COLUMN, rejected: COLUMN}"),
]


@pytest.mark.parametrize(("row", "mapping"), GUESSED)
def test_the_error_for_unknown_columns_suggests_a_mapping(tmp_path: Path, row: dict[str, Any], mapping: str) -> None:
    with pytest.raises(DataError) as caught:
        read_rows(tmp_path, [row])
    assert f"data.columns={mapping}" in caught.value.fix


def test_the_error_for_prompts_without_responses_suggests_sampling(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the rows have a prompt but no response(.|\n)*preftune sample"):
        read_rows(tmp_path, [{"prompt": "p", "id": 1}])
