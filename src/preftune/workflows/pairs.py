"""preftune pairs: samples and their scores become groups to train on, with an account of what was left out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from preftune.data.prompts import text_prompt
from preftune.data.select import SelectionOptions, select_responses
from preftune.errors import ConfigError, DataError, require_writable
from preftune.files import write_rows
from preftune.formats.account import Account
from preftune.formats.cells import decode_cells
from preftune.formats.parsers import Reading
from preftune.formats.values import BadRow, Drop, Fields, ended_flags, number, response_of
from preftune.rewards import chat_grades
from preftune.rewards.reward import PromptResponse, Reward, rewards_by_group, why_missing
from preftune.sources.read import read
from preftune.train.display import Display
from preftune.types import Message, Text, as_json, content


@dataclass(frozen=True, slots=True)
class Samples:
    """A line of samples.jsonl."""

    prompt: Text
    texts: tuple[str, ...]
    ended: tuple[bool, ...]
    scores: tuple[float, ...]
    origin: str


def run(samples: str, out: Path, how: SelectionOptions, reward: Reward | None, display: Display) -> Account:
    """Write `out`, one group a prompt, and return the account. Without a reward the samples must have scores."""
    require_writable(out)
    account = Account(samples, "samples")
    rows = read_samples(samples, account)
    scored = score(rows, reward, display)
    written, judgements, left_out = [], 0, Counter[str]()
    for row in scored:
        try:
            chosen = select_responses(row.texts, row.scores, how, repr(row.prompt))
        except Drop as reason:
            account.drop(str(reason), row.origin)
            continue
        left_out.update(chosen.left_out)
        judgements += len(chosen.judgements)
        written.append(
            {
                "prompt": as_json(row.prompt),
                "responses": [row.texts[i] for i in chosen.members],
                "ended": [row.ended[i] for i in chosen.members],
                "judgements": [without_defaults(j) for j in map(asdict, chosen.judgements)],
                "scores": [row.scores[i] for i in chosen.members],
            }
        )
    for line in account.lines():
        display.say(line)
    if not written:
        account.check(0.999999, "look at the reward, or sample more responses a prompt")
        raise DataError("no prompt is left", where=samples)
    write_rows(out, written)
    kept = sum(len(row["responses"]) for row in written)
    display.say(f"done: {out}: {len(written)} groups, {kept} responses, {judgements} judgements")
    if any(left_out.values()):
        said = ", ".join(f"{number:,} {what}" for what, number in left_out.items() if number)
        display.say(f"  of the prompts that are kept, left out: {said}")
    if why_missing(reward):
        display.say(f"  without a reward: {why_missing(reward)}")
    return account


def without_defaults(found: dict[str, Any]) -> dict[str, Any]:
    """A judgement without what is as usual, so that losses which have no place for it are not troubled."""
    usual = {"weight": 1.0, "probability": 1.0, "margin": 0.0}
    return {key: value for key, value in found.items() if usual.get(key) != value}


def score(rows: Sequence[Samples], reward: Reward | None, display: Display) -> list[Samples]:
    """The rows with the rewards of their responses, or with the scores that they came with."""
    if reward is None:
        lacking = next((row for row in rows if len(row.scores) != len(row.texts)), None)
        if lacking:
            raise ConfigError("the samples have no scores", where=lacking.origin, fix="name a reward: --reward")
        return list(rows)
    answers = [[PromptResponse(r.prompt, *pair, r.origin) for pair in zip(r.texts, r.ended, strict=True)] for r in rows]
    wanted = chat_grades.estimate(reward, (answer for group in answers for answer in group))
    if wanted:
        display.say(f"reward: {wanted.describe()}")
    with display.stage("reward", len(rows)) as stage:
        found = rewards_by_group(reward, answers, "rewards", stage.advance)
    return [replace(row, scores=tuple(scores)) for row, scores in zip(rows, found, strict=True)]


def read_samples(source: str, account: Account) -> list[Samples]:
    """The rows of samples.jsonl. Raises DataError for a row that is none."""
    found = []
    for row in decode_cells(read(source, account.note), Reading()):
        account.read += 1
        try:
            if row.fault:
                raise BadRow(row.fault)
            texts = texts_of(row.value)
            scores = row.value.get("scores") or []
            if scores and (not isinstance(scores, list) or len(scores) != len(texts)):
                raise BadRow(f"'scores' must be a list of {len(texts)} numbers")
            values = tuple(number({"score": s}, "score", math.nan, f"scores[{i}]") for i, s in enumerate(scores))
            ended = ended_flags(row.value, len(texts)) or (True,) * len(texts)
            found.append(Samples(text_prompt(row.value), texts, ended, values, row.origin))
        except BadRow as fault:
            raise DataError(str(fault), where=row.origin, fix="samples are what preftune sample writes") from None
    return found


def texts_of(fields: Fields) -> tuple[str, ...]:
    """The responses: texts, or the assistant's messages as `data convert --to groups` writes them."""
    responses = fields.get("responses")
    if not isinstance(responses, list) or not responses:
        raise BadRow("column 'responses' must be a list of texts")
    try:
        answers = [response_of({"response": one}, "response") for one in responses]
    except Drop as reason:
        raise BadRow(str(reason)) from None
    for answer in answers:
        extra = [name for message in answer if isinstance(message, Message) for name, _ in message.extra]
        if extra:
            raise BadRow(f"a response has the field {extra[0]!r}, and samples are text")
    return tuple(map(content, answers))
