"""preftune eval answers: the formats of AlpacaEval, MT-Bench and Arena-Hard, turns, resuming, and bad questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import write_jsonl

from preftune.cli.main import run as preftune
from preftune.errors import ConfigError, DataError, IncompleteError, RunError
from preftune.train.display import Display
from preftune.workflows import answers
from preftune.workflows.answers import AnswerOptions

QUIET = Display(quiet=True)
ROWS: dict[str, list[dict[str, Any]]] = {
    "alpaca-eval": [
        {"instruction": "the cat", "output": "old", "generator": "davinci", "dataset": "helpful_base"},
        {"instruction": "a dog", "output": "old", "generator": "davinci", "dataset": "vicuna"},
    ],
    "mt-bench": [
        {"question_id": 81, "category": "writing", "turns": ["the cat", "a dog"]},
        {"question_id": 101, "category": "math", "turns": ["we can", "guess it"]},
        {"question_id": 102, "category": "math", "turns": ["a dog"]},
    ],
    "arena-hard": [
        {"uid": "b", "category": "hard_prompt", "prompt": "the cat"},
        {"uid": "a", "category": "hard_prompt", "prompt": "a dog"},
    ],
}


def options(folder: Path, benchmark: str, **changes: Any) -> AnswerOptions:
    settings = {"max_new_tokens": 6, "chat": {"chat_template": "dialogue"}, **changes}
    return AnswerOptions(str(folder), benchmark, "mine", **settings)


def ask(benchmark: str, model: Path, folder: Path, **changes: Any) -> list[Any]:
    """The answers to ROWS."""
    questions = write_jsonl(folder / "question.jsonl", ROWS[benchmark])
    out = answers.run(options(model, benchmark, **changes), questions, folder / "out.json", QUIET)
    text = out.read_text()
    return list(json.loads(text)) if benchmark == "alpaca-eval" else [json.loads(line) for line in text.splitlines()]


def test_alpaca_eval_gets_instruction_output_and_generator(model_folder: Path, tmp_path: Path) -> None:
    rows = ask("alpaca-eval", model_folder, tmp_path)
    assert [row["instruction"] for row in rows] == ["the cat", "a dog"]
    assert {row["generator"] for row in rows} == {"mine"}
    assert "old" not in {row["output"] for row in rows}
    assert [row["dataset"] for row in rows] == ["helpful_base", "vicuna"]
    assert not (tmp_path / "out.json.work").exists()


def test_arena_hard_gets_messages_and_style(model_folder: Path, tmp_path: Path) -> None:
    rows = ask("arena-hard", model_folder, tmp_path)
    assert [row["uid"] for row in rows] == ["b", "a"]
    for row in rows:
        assert row["model"] == "mine"
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        assert isinstance(row["messages"][-1]["content"]["answer"], str)
        assert set(row["metadata"]) == {"token_len", "header_count", "list_count", "bold_count"}
        assert row["metadata"]["token_len"] > 0
    assert len({row["ans_id"] for row in rows}) == 2


def test_the_second_turn_of_mt_bench_follows_the_first_answer(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, temperatures, original = [], [], answers.sample.run

    def spy(settings: Any, out: Path, display: Display) -> Path:
        lines = Path(settings.data.train).read_text().splitlines()
        prompts.extend(json.loads(line)["prompt"] for line in lines)
        temperatures.extend([settings.sampling.temperature] * len(lines))
        return original(settings, out, display)

    monkeypatch.setattr(answers.sample, "run", spy)
    rows = ask("mt-bench", model_folder, tmp_path)
    assert [(row["question_id"], len(row["choices"][0]["turns"])) for row in rows] == [(81, 2), (101, 2), (102, 1)]
    for row in rows[:2]:
        (second,) = [p for p in prompts if len(p) == 3 and p[1]["content"] == row["choices"][0]["turns"][0]]
        assert second[0]["content"] == ROWS["mt-bench"][rows.index(row)]["turns"][0]
        assert second[2]["content"] == ROWS["mt-bench"][rows.index(row)]["turns"][1]
    by_text = {prompt[0]["content"]: temperature for prompt, temperature in zip(prompts, temperatures, strict=True)}
    assert by_text == {"the cat": 0.7, "we can": 0.0, "a dog": 0.0}


def test_an_interrupted_command_does_not_sample_the_first_turn_again(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = answers.sample.run, 0

    def interrupt(*arguments: Any) -> Path:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(answers.sample, "run", interrupt)
    with pytest.raises(KeyboardInterrupt):
        ask("mt-bench", model_folder, tmp_path)
    first = sorted((tmp_path / "out.json.work").glob("turn-1*[0-9].jsonl"))
    assert len(first) == 2
    stamps = [path.stat().st_mtime_ns for path in first]
    monkeypatch.setattr(answers.shutil, "rmtree", lambda *_, **__: None)
    rows = ask("mt-bench", model_folder, tmp_path)
    assert len(rows) == 3
    assert [path.stat().st_mtime_ns for path in first] == stamps


def test_questions_without_room_for_an_answer_are_reported(model_folder: Path, tmp_path: Path) -> None:
    """The others are written."""
    rows = [*ROWS["arena-hard"], {"uid": "long", "prompt": "the cat sat " * 200}]
    questions = write_jsonl(tmp_path / "question.jsonl", rows)
    with pytest.raises(IncompleteError, match="1 of 3 questions"):
        answers.run(options(model_folder, "arena-hard"), questions, tmp_path / "out.jsonl", QUIET)
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question_id": 1, "turns": []}], "not a question of mt-bench"),
        ([{"question_id": 1, "turns": [3]}], "not a question of mt-bench"),
        ([{"turns": ["a"]}], "not a question of mt-bench"),
        ([["a"]], "not a question of mt-bench"),
        ([{"question_id": 1, "turns": ["a"]}] * 2, "two questions have the same question_id"),
        ([], "no questions"),
    ],
)
def test_a_bad_question_file_is_an_error(model_folder: Path, tmp_path: Path, rows: list[Any], message: str) -> None:
    questions = write_jsonl(tmp_path / "question.jsonl", rows)
    with pytest.raises(DataError, match=message):
        answers.run(options(model_folder, "mt-bench"), questions, tmp_path / "out.jsonl", QUIET)


def test_a_wrong_benchmark_a_missing_file_and_an_existing_result_are_errors(model_folder: Path, tmp_path: Path) -> None:
    questions = write_jsonl(tmp_path / "question.jsonl", ROWS["mt-bench"])
    with pytest.raises(ConfigError, match="did you mean 'mt-bench'"):
        answers.run(options(model_folder, "mtbench"), questions, tmp_path / "out.jsonl", QUIET)
    with pytest.raises(DataError, match="cannot be read"):
        answers.run(options(model_folder, "mt-bench"), tmp_path / "gone", tmp_path / "out.jsonl", QUIET)
    with pytest.raises(RunError, match="exists"):
        answers.run(options(model_folder, "mt-bench"), questions, questions, QUIET)


def test_the_command_line(model_folder: Path, tmp_path: Path) -> None:
    questions, out = write_jsonl(tmp_path / "q.jsonl", ROWS["alpaca-eval"]), tmp_path / "out.json"
    words = ["eval", "answers", "--model", str(model_folder), "--questions", str(questions), "--out", str(out)]
    words += ["--benchmark", "alpaca-eval", "--max-new-tokens", "4", "--max-questions", "1", "--name", "x"]
    assert preftune([*words, "--chat-template", "dialogue", "--quiet"]) == 0
    assert [row["generator"] for row in json.loads(out.read_text())] == ["x"]


def test_markdown_is_counted_outside_of_code() -> None:
    text = "# A\n## B\n\n1. x\n2. y\n- z\n**bold** and __also__\n```\n# no\n- no\n```\n"
    counts = answers.markdown_counts(text)
    assert counts["header_count"] == {"h1": 1, "h2": 1, "h3": 0, "h4": 0, "h5": 0, "h6": 0}
    assert counts["list_count"] == {"ordered": 2, "unordered": 1}
    assert counts["bold_count"] == {"**": 1, "__": 1}
