"""preftune eval answers: a model's answers to the questions of AlpacaEval, MT-Bench or Arena-Hard, in their format.

    alpaca-eval   JSON list of {instruction, output, generator}
    mt-bench      lines of {question_id, answer_id, model_id, choices: [{index, turns}], tstamp}
    arena-hard    lines of {uid, ans_id, model, messages, tstamp, metadata}

The answers are sampled with the code of preftune sample, one file for each turn and temperature in `<out>.work`. Rerun
the same command to resume. The formats are those of alpaca_eval cd543a1, FastChat 0e6d3e4 and arena-hard-auto 196f6b8.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preftune.client import Client
from preftune.config.schema import DataConfig
from preftune.errors import ConfigError, DataError, IncompleteError, RunError, did_you_mean, require_writable
from preftune.files import write_json, write_rows
from preftune.model.generate import Sampling
from preftune.train.display import Display
from preftune.workflows import sample

#: Fields of a question: its id, and its text or the list of its turns.
FIELDS = {
    "alpaca-eval": ("instruction", "instruction"),
    "mt-bench": ("question_id", "turns"),
    "arena-hard": ("uid", "prompt"),
}
#: Temperature by category (FastChat, llm_judge/common.py). All other categories: 0.7.
MT_BENCH_TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "stem": 0.1,
    "humanities": 0.1,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "arena-hard-200": 0.0,
}
OTHER_TEMPERATURE = 0.7


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """The settings of a command.

    model         folder, run or Hub id; with `server`, the model's name on the server
    name          of the model in the answers
    temperature   None: that of the benchmark
    chat          chat settings of the section `data`, such as chat_template
    """

    model: str
    benchmark: str
    name: str
    temperature: float | None = None
    max_new_tokens: int = 1024
    max_questions: int | None = None
    seed: int = 0
    dtype: str = "auto"
    server: Client | None = None
    chat: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """A question: its row in the file, its turns, and the temperature of its answer."""

    row: Mapping[str, Any]
    turns: tuple[str, ...]
    temperature: float

    def prompt(self, replies: Sequence[str]) -> list[dict[str, str]]:
        """Return the messages of the next turn, after `replies` to the earlier ones."""
        messages: list[dict[str, str]] = []
        for turn, reply in zip(self.turns, replies, strict=False):
            messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": reply}]
        return [*messages, {"role": "user", "content": self.turns[len(replies)]}]


def run(options: AnswerOptions, questions: Path, out: Path, display: Display) -> Path:
    """Write `out`. Raises RunError if it exists, and IncompleteError if questions were dropped.

    The answers to the other questions are written.
    """
    if options.benchmark not in FIELDS:
        what = f"unknown benchmark {options.benchmark!r}; {did_you_mean(options.benchmark, FIELDS)}"
        raise ConfigError(what, where="--benchmark", fix=f"use {', '.join(FIELDS)}")
    if out.exists():
        fix = "choose a different --out, or delete the file"
        raise RunError("the file exists, and is not overwritten", where=str(out), fix=fix)
    require_writable(out)
    asking = read_questions(questions, options)[: options.max_questions]
    work = out.with_name(f"{out.name}.work")
    replies, tokens = ask(options, asking, work, display)
    complete = [number for number, question in enumerate(asking) if len(replies[number]) == len(question.turns)]
    rows = [answer_row(options, asking[number], replies[number], tokens[number]) for number in complete]
    if options.benchmark == "alpaca-eval":
        write_json(out, rows)
    else:
        write_rows(out, rows)
    if len(complete) < len(asking):
        raise IncompleteError(
            f"{len(asking) - len(complete)} of {len(asking)} questions have no answer",
            where=str(out),
            why="their prompts were dropped, see above",
            fix="lower --max-new-tokens, delete the file and rerun",
        )
    shutil.rmtree(work, ignore_errors=True)
    display.say(f"done: {out}: {len(rows)} answers of {options.name}. Next: {NEXT[options.benchmark]}")
    return out


def ask(
    options: AnswerOptions, asking: Sequence[Question], work: Path, display: Display
) -> tuple[list[list[str]], list[int]]:
    """Return the replies to the turns of each question, and their number of tokens. Dropped prompts have no reply."""
    replies: list[list[str]] = [[] for _ in asking]
    tokens = [0] * len(asking)
    temperatures = sorted({question.temperature for question in asking})
    for turn in range(max(len(question.turns) for question in asking)):
        for temperature in temperatures:
            open_questions = [
                number
                for number, question in enumerate(asking)
                if question.temperature == temperature and len(replies[number]) == turn < len(question.turns)
            ]
            prompts = [asking[number].prompt(replies[number]) for number in open_questions]
            if not prompts:
                continue
            path = work / f"turn-{turn + 1}-temperature-{temperature:g}"
            answers = _sample(options, prompts, path, temperature, display)
            for number, prompt in zip(open_questions, prompts, strict=True):
                if (key := json.dumps(prompt)) in answers:
                    text, length = answers[key]
                    replies[number].append(text)
                    tokens[number] += length
    return replies, tokens


NEXT = {
    "alpaca-eval": "alpaca_eval --model_outputs FILE",
    "mt-bench": "copy it to data/mt_bench/model_answer/ and run gen_judgment.py of FastChat",
    "arena-hard": "copy it to data/BENCHMARK/model_answer/ and run gen_judgment.py of arena-hard-auto",
}


def read_questions(path: Path, options: AnswerOptions) -> list[Question]:
    """Read a question file: a JSON list, or one object per line. Raises DataError with the line of a bad question."""
    identity, _ = FIELDS[options.benchmark]
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        fix = "name the question file of the benchmark"
        raise DataError(f"the file cannot be read: {error}", where=str(path), fix=fix) from error
    rows: list[tuple[str, Any]] = []
    try:
        if text.lstrip().startswith("["):
            rows = [(f"{path}[{index}]", row) for index, row in enumerate(json.loads(text))]
        else:
            for number, line in enumerate(text.splitlines(), start=1):
                if line.strip():
                    rows.append((f"{path}:{number}", json.loads(line)))
    except ValueError as error:
        fix = "name the question file of the benchmark"
        raise DataError(f"the file is not valid JSON: {error}", where=str(path), fix=fix) from error
    questions = [_question(row, where, options) for where, row in rows]
    names = [question.row[identity] for question in questions]
    if len(set(map(str, names))) < len(names) or not names:
        what = "the file has no questions" if not names else f"two questions have the same {identity}"
        raise DataError(what, where=str(path), fix="name the question file of the benchmark")
    return questions


def _question(row: Any, where: str, options: AnswerOptions) -> Question:
    identity, field = FIELDS[options.benchmark]
    texts = row.get(field) if isinstance(row, dict) else None
    turns: list[Any] = texts if isinstance(texts, list) else [texts]
    is_text = bool(turns) and all(isinstance(turn, str) and turn for turn in turns)
    if not isinstance(row, dict) or identity not in row or not is_text:
        raise DataError(
            f"the row is not a question of {options.benchmark}: it needs {identity!r} and {field!r}",
            where=where,
            fix="name the question file of the benchmark, or choose a different --benchmark",
        )
    if options.temperature is not None:
        temperature = options.temperature
    elif options.benchmark == "mt-bench":
        temperature = MT_BENCH_TEMPERATURES.get(str(row.get("category")), OTHER_TEMPERATURE)
    else:
        temperature = 0.0
    return Question(row, tuple(turns), temperature)


def _sample(
    options: AnswerOptions, prompts: Sequence[Any], path: Path, temperature: float, display: Display
) -> dict[str, tuple[str, int]]:
    """Return the answer to each prompt and its number of tokens, by the prompt's JSON. Dropped prompts are missing."""
    questions, answers = path.with_name(f"{path.name}.prompts.jsonl"), path.with_name(f"{path.name}.jsonl")
    write_rows(questions, [{"prompt": prompt} for prompt in prompts])
    data = DataConfig.model_validate({"train": str(questions), "max_dropped": 1.0, **(options.chat or {})})
    sampling = Sampling(1, options.max_new_tokens, temperature, seed=options.seed)
    settings = sample.SampleOptions(options.model, data, sampling, dtype=options.dtype, server=options.server)
    sample.run(settings, answers, display)
    rows = [json.loads(line) for line in answers.read_text(encoding="utf-8").split("\n") if line]
    return {json.dumps(row["prompt"]): (row["responses"][0], row["tokens"][0]) for row in rows}


def answer_row(options: AnswerOptions, question: Question, replies: Sequence[str], tokens: int) -> dict[str, Any]:
    """Return an answer in the format of the benchmark."""
    row = question.row
    if options.benchmark == "alpaca-eval":
        return {**row, "instruction": row["instruction"], "output": replies[0], "generator": options.name}
    identity = FIELDS[options.benchmark][0]
    text = json.dumps([options.name, row[identity], list(replies)])
    answer_id = hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:22]
    if options.benchmark == "mt-bench":
        return {
            "question_id": row["question_id"],
            "answer_id": answer_id,
            "model_id": options.name,
            "choices": [{"index": 0, "turns": list(replies)}],
            "tstamp": time.time(),
        }
    messages = [*question.prompt([]), {"role": "assistant", "content": {"answer": replies[0]}}]
    return {
        "uid": row["uid"],
        "ans_id": answer_id,
        "model": options.name,
        "messages": messages,
        "tstamp": time.time(),
        "metadata": {"token_len": token_count(replies[0], tokens), **markdown_counts(replies[0])},
    }


def token_count(text: str, tokens: int) -> int:
    """Return the number of GPT-4o tokens, which Arena-Hard's style control uses; without tiktoken, `tokens`."""
    try:
        import tiktoken

        return len(tiktoken.encoding_for_model("gpt-4o").encode(text, disallowed_special=()))
    except Exception:  # not installed, or its vocabulary cannot be downloaded
        return tokens


def markdown_counts(text: str) -> dict[str, dict[str, int]]:
    """Return the numbers of headers, list items and bold texts outside of code blocks, for Arena-Hard."""
    for block in re.findall(r"```([^`]*)```", text):
        text = text.replace(block, "")

    def count(pattern: str) -> int:
        return len(re.findall(pattern, text, re.MULTILINE))

    return {
        "header_count": {f"h{level}": count(rf"^#{{{level}}}\s") for level in range(1, 7)},
        "list_count": {"ordered": count(r"^\s*\d+\.\s"), "unordered": count(r"^\s*[-*+]\s")},
        "bold_count": {"**": count(r"\*\*[^*\n]+\*\*"), "__": count(r"__[^_\n]+__")},
    }
