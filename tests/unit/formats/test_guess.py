"""The error for unknown columns suggests a setting with which the rows are read rightly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.unit.formats.examples import U, better_responses, chat, read_rows

from preftune.errors import DataError


def fix_of(tmp_path: Path, rows: list[dict[str, Any]], **reading: Any) -> str:
    with pytest.raises(DataError) as error:
        read_rows(tmp_path, rows, **reading)
    return error.value.fix


def settings_in(fix: str) -> dict[str, Any]:
    """Return the keyword arguments for the settings that are quoted in a fix."""
    parts = [part.removeprefix("data.").split("=", 1) for part in fix.split("'")[1::2] if part.startswith("data.")]
    return {name: yaml.safe_load(value) for name, value in parts}


GERMAN = {"Nr.": "1", "Frage": "p", "Antwort A": "x", "Antwort B": "y", "Notiz": "Bitte noch einmal lesen"}
NESTED = {
    "conversation": {"id": "7", "turns": chat(("user", "p"))},
    "responses": {"preferred": {"text": "x", "model": "m"}, "dispreferred": {"text": "y", "model": "n"}},
}


@pytest.mark.parametrize(
    ("rows", "better"),
    [
        ([{"質問": "p", "良い回答": "x", "悪い回答": "y"}], ["x"]),
        ([{"Pregunta": "p", "Respuesta preferida": "x", "Respuesta rechazada": "y"}], ["x"]),
        ([{"Вопрос": "p", "Лучший ответ": "x", "Худший ответ": "y"}], ["x"]),
        ([{**GERMAN, "Besser": side} for side in ("A", "B", "gleich")], ["x", "y"]),
        ([{"prompt": "p", "answer1": "x", "answer2": "y", "comparison": c} for c in ("left", "right")], ["x", "y"]),
        ([{"question": "p", "improved_answer": "x", "original_answer": "y"}], ["x"]),
        ([{"source": "one two three four", "lang": "de", "mt_better": "x", "mt_worse": "y"}], ["x"]),
        ([{"Prompt": "p", "Best answer": "x", "Second best": "z", "Worst answer": "y"}], ["x"]),
        ([{"user_input": "p", "positive": "x", "negatives": ["y", "z"]}], ["x"]),
        (
            [{"question": "p", "answer A": "x", "answer B": "y", "rated": f"Slightly prefer {s}"} for s in "AB"],
            ["x", "y"],
        ),
        (
            [{"Input.prompt": "p", "Input.reply_a": "x", "Input.reply_b": "y", "Out.choice": s} for s in "AB"],
            ["x", "y"],
        ),
        ([NESTED], None),
    ],
)
def test_the_suggested_settings_read_the_rows(tmp_path: Path, rows: list[dict[str, Any]], better: list[str]) -> None:
    groups, _ = read_rows(tmp_path, rows, **settings_in(fix_of(tmp_path, rows)))
    if better is None:
        assert groups[0].prompt == (U("p"),)
        assert groups[0].responses[0][0].content == "x"  # type: ignore[union-attr]
    else:
        assert better_responses(groups) == better


@pytest.mark.parametrize("label", [("👍", "👎"), ("thumbs_up", "thumbs_down"), (1, 0), (True, False)])
def test_rated_responses_are_suggested_with_their_label(tmp_path: Path, label: tuple[Any, Any]) -> None:
    rows = [{"user_message": "p", "bot_reply": "x", "feedback": value} for value in label]
    groups, _ = read_rows(tmp_path, rows, **settings_in(fix_of(tmp_path, rows)))
    assert [group.labels for group in groups] == [(1,), (-1,)]


def test_values_inside_objects_are_suggested(tmp_path: Path) -> None:
    rows = [
        {"input": {"messages": chat(("user", "p"))}, "output": {"role": "assistant", "content": "x"}, "scores": [score]}
        for score in ({"name": "user", "value": 1}, {"name": "user", "value": 0})
    ]
    groups, _ = read_rows(tmp_path, rows, **settings_in(fix_of(tmp_path, rows)))
    assert [group.labels for group in groups] == [(1,), (-1,)]


def test_without_a_clear_prompt_the_suggestion_asks_for_it(tmp_path: Path) -> None:
    fix = fix_of(tmp_path, [{"one": "p", "two": "q", "good": "x", "bad": "y"}])
    assert "{chosen: good, rejected: bad, prompt: COLUMN}" in fix
    assert "where COLUMN has the prompt" in fix


def test_verdicts_inside_lists_are_listed_and_their_majority_counts(tmp_path: Path) -> None:
    row = {"text": "p", "completion_a": "x", "completion_b": "y"}
    pref = lambda *sides: [{"id": i, "overall": f"{s}-is-clearly-better"} for i, s in enumerate(sides)]  # noqa: E731
    rows = [{**row, "experts": pref("A", "B", "A")}, {**row, "experts": pref("B", "B", "A")}]
    assert "{prompt: text, winner: COLUMN}', where COLUMN is one of experts.*.overall" in fix_of(tmp_path, rows)
    columns = {"prompt": "text", "winner": "experts.*.overall"}
    assert better_responses(read_rows(tmp_path, rows, columns=columns)[0]) == ["x", "y"]


def test_whole_responses_next_to_steps_are_suggested(tmp_path: Path) -> None:
    row = {"prompt": "p", "first_steps": "so", "chosen": "x", "rejected": "y", "full_chosen": "so x z"}
    rows = [{**row, "full_rejected": "so y z"}]
    groups, _ = read_rows(tmp_path, rows, **settings_in(fix_of(tmp_path, rows).partition("; to train")[0]))
    assert better_responses(groups) == ["so x z"]


def test_a_demonstration_with_a_rejected_answer_is_suggested_as_a_pair(tmp_path: Path) -> None:
    fix = fix_of(tmp_path, [{"instruction": "p", "output": "x", "rejected_answer": "y"}])
    assert fix.startswith("set 'data.columns={chosen: output, rejected: rejected_answer}'; to train without it")


def test_the_text_that_summaries_are_of_is_suggested_as_prompt(tmp_path: Path) -> None:
    rows = [{"document": "p", "summary_a": "x", "summary_b": "y", "winner": side} for side in "ab"]
    groups, _ = read_rows(tmp_path, rows, **settings_in(fix_of(tmp_path, rows).partition(";")[0]))
    assert {group.prompt for group in groups} == {"p"}


def test_texts_in_a_column_source_are_not_metadata_if_there_is_no_prompt(tmp_path: Path) -> None:
    row = {"source": "The train arrives at eight.", "chosen": "Der Zug kommt.", "rejected": "Der Bus geht."}
    with pytest.raises(DataError, match="column 'source' is not used"):  # not a pair with the prompt `Der`
        read_rows(tmp_path, [row])


def test_a_rating_inside_a_message_is_not_ignored(tmp_path: Path) -> None:
    turns = [chat(("user", "p"), ("assistant", "x")) for _ in range(2)]
    rows = [{"messages": [turn[0], {**turn[1], "rating": rating}]} for turn, rating in zip(turns, (1, -1), strict=True)]
    fix = fix_of(tmp_path, rows)
    groups, _ = read_rows(tmp_path, rows, **settings_in(fix))
    assert [group.labels for group in groups] == [(1,), (-1,)]


def test_a_field_of_a_response_can_be_named(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "chosen": {"text": "x", "score": 4}, "rejected": {"text": "y", "score": 2}}]
    assert "data.columns={chosen: chosen.text, ...}" in fix_of(tmp_path, rows)
    columns = {"chosen": "chosen.text", "rejected": "rejected.text"}
    assert better_responses(read_rows(tmp_path, rows, columns=columns)[0]) == ["x"]
    with pytest.raises(DataError, match="which the row already has"):  # a different column is not replaced
        read_rows(tmp_path, rows, columns={"chosen": "rejected.text"})


def test_numbers_of_the_responses_are_suggested_as_ratings(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "completions": [{"content": "x", "hearts": 1}, {"content": "y", "hearts": 3}]}]
    assert "data.aspect to one of hearts" in fix_of(tmp_path, rows)
    assert better_responses(read_rows(tmp_path, rows, aspect="hearts")[0]) == ["y"]


def test_rows_of_texts_are_most_similar_to_the_plain_format(tmp_path: Path) -> None:
    """Of formats with the same columns, the message names the one with the plainest rows."""
    with pytest.raises(DataError, match="the most similar format, 'preference', also needs 'rejected'"):
        read_rows(tmp_path, [{"prompt": "p", "chosen": "x", "loser": "y"}])
