"""Which columns describe a row, and which hold words that the model should see."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import write_jsonl

from preftune.data.groups import read_groups
from preftune.errors import DataError

PAIR: dict[str, Any] = {"prompt": "Say it.", "chosen": "good words", "rejected": "bad words"}
SHOWN = {"instruction": "Say it.", "output": "good words"}
LONG = "A long article about the sea. " * 9


def fates(folder: Path, row: dict[str, Any]) -> dict[str, str]:
    """What became of the columns of a row; those that are refused are in the error's text under "error"."""
    try:
        return read_groups(str(write_jsonl(folder / "rows.jsonl", [row])))[1].columns
    except DataError as error:
        return {"error": f"{error.what}; {error.fix}"}


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *[("generator_1", "m"), ("chosen-source", "m"), ("score_j", 1), ("quality", "high"), ("intent", "ask")],
        *[("chosen_reason", "shorter"), ("gen_input_configs", {"t": "x"}), ("annotator_comment", "fine")],
        *[("header", {"a": "b"}), ("source", "forum"), ("task", "open question answering"), ("rationale", LONG)],
        *[("temperature", "0.7"), ("upvotes", "12"), ("verified", "True"), ("share", "12.5%"), ("gap", "nan")],
        *[("subreddit", "AskReddit"), ("meta_origin", "a forum"), ("is_long", "yes"), ("judge_output", LONG)],
        *[("image_id", "x"), ("has_image", False), ("num_images", 0), ("metadata", LONG)],
    ],
)
def test_metadata(tmp_path: Path, column: str, value: Any) -> None:
    assert fates(tmp_path, {**PAIR, column: value}).get(column) == "metadata"


@pytest.mark.parametrize(
    "column",
    ["source", "task", "topic", "category", "domain", "article_source", "meta_prompt", "n_shot", "has_context"],
)
def test_long_text_is_not_a_label(tmp_path: Path, column: str) -> None:
    assert f"{column!r} is not used" in fates(tmp_path, {**PAIR, column: LONG})["error"]


@pytest.mark.parametrize(
    "row", [{"task": "Translate the text to French."}, {"topic": [{"role": "user", "content": "hi"}]}]
)
def test_sentences_and_dialogues_are_not_labels(tmp_path: Path, row: dict[str, Any]) -> None:
    assert f"{next(iter(row))!r} is not used" in fates(tmp_path, {**PAIR, **row})["error"]


@pytest.mark.parametrize("column", ["image_url", "image_paths", "Image", "video_path", "Tools", "audio_file"])
def test_media_and_tools_are_refused_under_all_their_names(tmp_path: Path, column: str) -> None:
    error = fates(tmp_path, {**PAIR, column: ["x.png"]})["error"]
    assert f"column {column!r} " in error
    assert f"data.ignore=[{column}]" in error


def test_a_task_is_the_prompt_of_a_pair_without_one(tmp_path: Path) -> None:
    row = {"task": "Tell me of the sea", "chosen": "The sea is wide", "rejected": "The moon"}
    assert "data.columns={prompt: task}" in fates(tmp_path, row)["error"]


def test_a_dialogue_beside_a_pair_without_a_prompt_is_the_prompt(tmp_path: Path) -> None:
    row = {"trajectory": [{"from": "user", "value": "Say it."}], "chosen": "The sea", "rejected": "The moon"}
    assert "data.columns={prompt: trajectory}" in fates(tmp_path, row)["error"]


@pytest.mark.parametrize(
    ("text", "repeats"),
    [
        ("### Instruction:\nSay it.\n\n### Response:\ngood words", True),
        ("Below is an instruction. ...", True),
        ("Say it. good words", True),
        ("An article that is to be shortened", False),
    ],
)
def test_a_text_beside_a_demonstration_must_be_the_row_again(tmp_path: Path, text: str, repeats: bool) -> None:
    found = fates(tmp_path, {**SHOWN, "text": text})
    assert ("error" not in found) == repeats
    assert repeats or "data.columns={input: text}" in found["error"]


@pytest.mark.parametrize("column", ["desirable", "correct", "liked", "is_good"])
@pytest.mark.parametrize("value", [False, "false", 0])
def test_a_response_that_is_called_bad_is_not_a_demonstration(tmp_path: Path, column: str, value: Any) -> None:
    assert f"data.columns={{label: {column}}}" in fates(tmp_path, {**SHOWN, column: value})["error"]
    assert fates(tmp_path, {**SHOWN, column: True})[column] == "metadata"
    assert fates(tmp_path, {**PAIR, column: value})[column] == "metadata"


def test_numbers_in_a_column_with_a_misspelt_name_are_not_metadata(tmp_path: Path) -> None:
    assert "{prompt: promt}" in fates(tmp_path, {"promt": "12", "chosen": "a", "rejected": "b"})["error"]


def test_no_number_is_suggested_for_words(tmp_path: Path) -> None:
    assert "probability" not in fates(tmp_path, {**PAIR, "probabilty": "so so"})["error"]
    assert fates(tmp_path, {**PAIR, "ability": "math"})["ability"] == "metadata"


def test_empty_prompts_of_few_rows_are_noted(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [PAIR, {**PAIR, "prompt": ""}])
    assert read_groups(str(path))[1].noted == {"the prompt is empty": [f"{path}:2"]}


def test_numbers_of_csv_cells_are_metadata(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt,chosen,rejected,temperature\nSay it.,good words,bad words,0.7\n")
    assert read_groups(str(path))[1].columns["temperature"] == "metadata"


def test_structs_of_nulls_are_empty(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    row = {**PAIR, "input": {"messages": None}, "system": {"text": None}, "history": [{"q": None}], "tools": [None]}
    pa.parquet.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    groups, account = read_groups(str(tmp_path / "a.parquet"))
    assert groups[0].prompt == "Say it."
    assert {account.columns[name] for name in ("input", "system", "history", "tools")} == {"empty"}


def test_columns_of_rows_without_anything_to_learn_are_named(tmp_path: Path) -> None:
    ask, good = {"role": "user", "content": "Say it."}, {"role": "assistant", "content": "good words"}
    path = write_jsonl(tmp_path / "rows.jsonl", [{"messages": [ask], "positive_messages": [good]}])
    _, account = read_groups(str(path))
    with pytest.raises(DataError, match=r"none of the 1 rows(.|\n)*not used: 'positive_messages'"):
        account.check(1.0)


def test_responses_that_repeat_the_prompt_are_noted(tmp_path: Path) -> None:
    rows = [{"prompt": "Say it.", "chosen": "Say it. Good", "rejected": "Say it. Bad"}, PAIR]
    _, account = read_groups(str(write_jsonl(tmp_path / "rows.jsonl", rows)))
    assert [origins for what, origins in account.noted.items() if "begin with the prompt" in what] == [
        [f"{tmp_path / 'rows.jsonl'}:1"]
    ]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ("chosen_armorm_score", "rejected_armorm_score"),
        ("chosen_quality", "rejected_quality"),
        ("rm_score_chosen",) * 2,
    ],
)
def test_scores_of_other_names_that_contradict_are_refused(tmp_path: Path, better: str, worse: str, kind: str) -> None:
    worse = better.replace("chosen", "rejected")

    def read_pair(high: float, low: float) -> None:
        row = {**PAIR, better: high, worse: low}
        path = tmp_path / f"rows.{kind}"
        path.write_text(
            json.dumps(row) + "\n" if kind == "jsonl" else f"{','.join(row)}\n{','.join(map(str, row.values()))}\n"
        )
        assert read_groups(str(path))[1].kept == 1

    with pytest.raises(DataError, match=rf"higher score: {better} 1 and {worse} 2"):
        read_pair(1, 2)
    read_pair(2, 1)
    read_pair(2, 2)


def test_one_aspect_of_several_may_be_better_in_the_rejected_response(tmp_path: Path) -> None:
    scores = {"chosen_style_score": 1, "rejected_style_score": 2, "chosen_truth_score": 5, "rejected_truth_score": 1}
    assert fates(tmp_path, {**PAIR, **scores})["chosen_style_score"] == "metadata"


@pytest.mark.parametrize("row", [{"query": "q"}, {"messages": [{"role": "user", "content": "q"}]}])
def test_ms_swift_pairs(tmp_path: Path, row: dict[str, Any]) -> None:
    """The chosen response is `response`, or the last message; there may be several rejected ones."""
    if "query" in row:
        row = {**row, "response": "good", "rejected_response": "bad"}
    else:
        row = {
            "messages": [*row["messages"], {"role": "assistant", "content": "good"}],
            "rejected_response": ["b", "c"],
        }
    [group], _ = read_groups(str(write_jsonl(tmp_path / "rows.jsonl", [row])))
    assert "good" in str(group.responses[0])
    assert [(j.better, j.worse) for j in group.judgements] == [(0, i) for i in range(1, len(group.responses))]


def test_one_chosen_text_and_several_rejected_ones(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "p", "chosen": "a", "rejected": ["b", "c"]}])
    [group], account = read_groups(str(path))
    assert (account.format, group.responses, len(group.judgements)) == ("lists", ("a", "b", "c"), 2)
