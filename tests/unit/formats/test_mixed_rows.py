"""Pairs in several forms in one file, lists in order, turns that are not trained on, template arguments of rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.unit.formats.examples import PAIR_ROW, A, U, chat, read_rows

from preftune.errors import DataError
from preftune.types import split_arguments

CHAT = {"prompt": "Say it.", "chosen": chat(("user", "Say it."), ("assistant", "good words"))}
CHAT["rejected"] = chat(("user", "Say it."), ("assistant", "bad words"))
MESSAGES = {"prompt": chat(("user", "Say it.")), "chosen": "good words", "rejected": chat(("assistant", "bad words"))}


def test_text_and_chat_rows_of_one_file_become_chats(tmp_path: Path) -> None:
    groups, account = read_rows(tmp_path, [PAIR_ROW, CHAT, MESSAGES, PAIR_ROW])
    assert [group.prompt for group in groups] == [(U("Say it."),)] * 4
    assert [group.responses for group in groups] == [((A("good words"),), (A("bad words"),))] * 4
    [(note, origins)] = account.noted.items()
    assert note.startswith("the text prompt was converted to a chat")
    assert len(origins) == 2


def test_a_row_of_a_named_format_is_not_read_in_another_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rows.jsonl:2: column 'chosen' must be text"):
        read_rows(tmp_path, [PAIR_ROW, CHAT], format="preference")


def test_a_null_in_a_mixed_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rows.jsonl:3: column 'prompt' is null"):
        read_rows(tmp_path, [PAIR_ROW, CHAT, {**PAIR_ROW, "prompt": None}])


def test_a_list_in_order_is_read_with_the_format_ordered(tmp_path: Path) -> None:
    row = {"prompt": "p", "output": ["best", "middle", "worst"]}
    [group], account = read_rows(tmp_path, [row], format="ordered")
    assert [(j.better, j.worse) for j in group.judgements] == [(0, 1), (0, 2), (1, 2)]
    assert group.ranks == (1, 2, 3)
    assert account.columns == {"prompt": "used", "output": "used"}


@pytest.mark.parametrize("field", ["weight", "loss", "train", "training"])
def test_turns_that_are_not_trained_on_are_only_context(tmp_path: Path, field: str) -> None:
    turns = chat(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    turns[1][field] = False  # type: ignore[assignment]
    turns[3][field] = True  # type: ignore[assignment]
    groups, _ = read_rows(tmp_path, [{"messages": turns}])
    assert [group.responses[0][0].content for group in groups] == ["d"]  # type: ignore[union-attr]


def test_template_arguments_of_a_row_are_in_its_prompt(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {**PAIR_ROW, "chat_template_kwargs": {"enable_thinking": False, "style": None}},
        {**MESSAGES, "chat_template_kwargs": '{"enable_thinking": true}'},
        {**MESSAGES, "chat_template_kwargs": {}},
    ]
    groups, account = read_rows(tmp_path, rows)
    assert account.columns["chat_template_kwargs"] == "used"
    prompts = [split_arguments(group.prompt) for group in groups]  # type: ignore[arg-type]
    assert [arguments for _, arguments in prompts] == [{"enable_thinking": False}, {"enable_thinking": True}, {}]
    assert {messages for messages, _ in prompts} == {(U("Say it."),)}
    with pytest.raises(DataError, match="must be an object with arguments"):
        read_rows(tmp_path, [{**PAIR_ROW, "chat_template_kwargs": ["a"]}])
    assert read_rows(tmp_path, rows[:1], ignore=("chat_template_kwargs",))[0][0].prompt == "Say it."


def test_columns_may_be_fields_inside_columns(tmp_path: Path) -> None:
    row = {
        "fields": {"prompt": "p", "first": "a", "second": "b"},
        "marks": [{"result": {"value": "second", "by": "an annotator"}}],
        "id": 1,
    }
    columns = {"prompt": "fields.prompt", "response_a": "fields.first", "response_b": "fields.second"}
    columns["winner"] = "marks.0.result.value"
    [group], account = read_rows(tmp_path, [row], columns=columns)
    assert (group.prompt, group.responses, group.judgements[0].better) == ("p", ("a", "b"), 1)
    assert account.columns["marks"] == account.columns["fields"] == "repeated from used columns"
    assert account.columns["fields.first"] == "used as response_a"
    with pytest.raises(DataError, match=r"'fields' is not used"):  # another text
        read_rows(tmp_path, [{**row, "fields": {**row["fields"], "context": "a b c d"}}], columns=columns)  # type: ignore[dict-item]
    with pytest.raises(DataError, match=r"'fields.promt', which no row has"):
        read_rows(tmp_path, [row], columns={**columns, "prompt": "fields.promt"})
    with pytest.raises(DataError, match="which the row already has"):
        read_rows(tmp_path, [{**row, "prompt": "q"}], columns=columns)


@pytest.mark.parametrize(
    ("row", "fix"),
    [
        ({"messages": chat(("user", "a"), ("assistant", "b")), "feedback": "thumbs_down"}, "label: feedback"),
        ({"prompt": "p", "completion": "b", "user_feedback": "dislike"}, "user_feedback != dislike"),
        ({"prompt": "p", "completion": "b", "stars": 1}, "data.aspect=stars"),
        ({"conversations": chat(("user", "a"), ("assistant", "b")), "rejected": "c"}, "rejected_response: rejected"),
        (
            {"prompt": "p", "replies": [{"text": "a", "score": 1}, {"text": "b", "score": 2}]},
            "responses: replies",
        ),
        ({"prompt": "p", "replies": [{"text": t, "scores": {"fun": 1}} for t in "ab"]}, "responses: replies"),
        ({"prompt": "p", "outputs": [{"text": t, "scores": {"fun": 1}} for t in "ab"]}, "data.aspect to one of fun"),
        ({"prompt": "p", "completions": ["a", "b"], "labels": [True, False]}, "one row for each"),
        ({"prompt": "p", "output": ["a", "b"]}, "data.format=ordered"),
        ({"query": "p", "pos": ["a"], "neg": ["b", "c"]}, "chosen: pos, rejected: neg"),
        ({"user": "p", "assistant": "a", "label": True}, "completion: assistant, prompt: user"),
        ({"dialogue": "p", "best": "a", "worst": "b"}, "chosen: best, rejected: worst, prompt: dialogue"),
    ],
)
def test_the_error_names_the_setting_that_reads_the_rows(tmp_path: Path, row: dict[str, Any], fix: str) -> None:
    with pytest.raises(DataError) as error:
        read_rows(tmp_path, [row])
    assert fix in error.value.fix


def test_messages_of_gemini_and_worse_responses_to_other_dialogues_are_read(tmp_path: Path) -> None:
    def turn(role: str, text: str) -> dict[str, Any]:
        return {"role": role, "parts": [{"text": text}]}

    completions = [{"score": s, "completion": turn("model", t)} for s, t in ((0, "bad"), (1, "good"))]
    [group], _ = read_rows(tmp_path, [{"contents": [turn("user", "p")], "completions": completions}])
    assert (group.prompt, group.judgements[0].better) == ((U("p"),), 1)
    row = {"conversations": [turn("user", "p"), turn("model", "good")], "rejected_response": "bad"}
    [group], account = read_rows(tmp_path, [row])
    assert (group.prompt, group.responses) == ((U("p"),), ((A("good"),), (A("bad"),)))
    assert account.format == "last-turn"


def test_a_rating_of_responses_with_several_is_an_aspect(tmp_path: Path) -> None:
    outputs = [{"text": "a", "scores": {"fun": 1, "use": 2}}, {"text": "b", "scores": {"fun": 2, "use": 1}}]
    for aspect, better in (("fun", 1), ("use", 0)):
        [group], _ = read_rows(tmp_path, [{"prompt": "p", "outputs": outputs}], aspect=aspect)
        assert group.judgements[0].better == better
