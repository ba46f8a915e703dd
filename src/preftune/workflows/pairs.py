"""preftune pairs: make preference data of samples and their scores, and count what is left out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any

from preftune.data.prompts import text_prompt
from preftune.data.select import SelectionOptions, select_responses
from preftune.errors import ConfigError, DataError, require_writable
from preftune.files import write_rows
from preftune.formats.account import Account
from preftune.formats.json_cells import decode_cells
from preftune.formats.parsers import Reading
from preftune.formats.values import BadRow, Drop, Fields, ended_flags, number, response_of
from preftune.rewards import chat_grades
from preftune.rewards.reward import Reward, responses_to, rewards_by_group, why_missing
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


def run(samples: str, out: Path, selection: SelectionOptions, reward: Reward | None, display: Display) -> Account:
    """Write one group per prompt to `out`. Return the account. Without a reward, the samples must have scores."""
    require_writable(out)
    account = Account(samples, "samples")
    rows = score(read_samples(samples, account), reward, display)
    groups, judgements, left_out = [], 0, Counter[str]()
    for row in rows:
        try:
            selected = select_responses(row.texts, row.scores, selection, repr(row.prompt))
        except Drop as reason:
            account.drop(str(reason), row.origin)
            continue
        left_out.update(selected.left_out)
        judgements += len(selected.judgements)
        groups.append(
            {
                "prompt": as_json(row.prompt),
                "responses": [row.texts[i] for i in selected.members],
                "ended": [row.ended[i] for i in selected.members],
                "judgements": [without_defaults(j) for j in map(asdict, selected.judgements)],
                "scores": [row.scores[i] for i in selected.members],
            }
        )
    display.say("\n".join(account.lines()))
    if not groups:
        account.check(0.999999, "check the reward, or sample more responses per prompt")
        raise DataError("no prompt is left", where=samples, fix="sample more responses per prompt, or lower --gap")
    write_rows(out, groups)
    responses = sum(len(group["responses"]) for group in groups)
    display.say(
        f"done: {out}: {len(groups)} groups, {responses} responses, {judgements} judgements. "
        f"Next: preftune dpo data.train={quote(str(out))}"
    )
    if any(left_out.values()):
        counts = ", ".join(f"{number:,} {what}" for what, number in left_out.items() if number)
        display.say(f"  not used in these groups: {counts}")
    if why_missing(reward):
        display.say(f"  missing rewards: {why_missing(reward)}")
    return account


def without_defaults(judgement: dict[str, Any]) -> dict[str, Any]:
    """Return a judgement without default values, because some losses accept no weight, probability or margin."""
    defaults = {"weight": 1.0, "probability": 1.0, "margin": 0.0}
    return {key: value for key, value in judgement.items() if defaults.get(key) != value}


def score(rows: Sequence[Samples], reward: Reward | None, display: Display) -> list[Samples]:
    """Return the rows with the rewards of their responses as scores; without a reward, the rows as they are."""
    if reward is None:
        unscored = next((row for row in rows if len(row.scores) != len(row.texts)), None)
        if unscored:
            raise ConfigError("the samples have no scores", where=unscored.origin, fix="set --reward")
        return list(rows)
    responses = [responses_to(row.prompt, row.texts, row.ended, row.origin) for row in rows]
    estimate = chat_grades.estimate(reward, (response for group in responses for response in group))
    if estimate:
        display.say(f"reward: {estimate.describe()}")
    with display.stage("reward", len(rows)) as stage:
        rewards = rewards_by_group(reward, responses, "rewards", stage.advance)
    return [replace(row, scores=tuple(values)) for row, values in zip(rows, rewards, strict=True)]


def read_samples(source: str, account: Account) -> list[Samples]:
    """Read samples.jsonl. Raises DataError for a row that is not a sample."""
    rows = []
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
            rows.append(Samples(text_prompt(row.value), texts, ended, values, row.origin))
        except BadRow as fault:
            fix = "use a file that preftune sample wrote"
            raise DataError(str(fault), where=row.origin, fix=fix) from None
    return rows


def texts_of(fields: Fields) -> tuple[str, ...]:
    """Return the texts of the responses, which can also be messages as `data convert --to groups` writes them."""
    values = fields.get("responses")
    if not isinstance(values, list) or not values:
        raise BadRow("column 'responses' must be a list of texts")
    try:
        responses = [response_of({"response": one}, "response") for one in values]
    except Drop as reason:
        raise BadRow(str(reason)) from None
    for response in responses:
        extra = [name for message in response if isinstance(message, Message) for name, _ in message.extra]
        if extra:
            raise BadRow(f"a response has the field {extra[0]!r}, but samples hold text only")
    return tuple(map(content, responses))
