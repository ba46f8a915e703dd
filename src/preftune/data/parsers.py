"""Rows -> preference groups, one parser a format. Each is called with a row that its format fits, or was named for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, pairwise
from typing import Any, Literal

from preftune.data.values import (
    BadRow,
    Drop,
    Fields,
    answer_of,
    clean,
    flags_of,
    get,
    grades,
    kind_name,
    knowledge_of,
    message_of,
    messages_of,
    number,
    one_turn,
    required_number,
    string,
    text_of,
)
from preftune.errors import did_you_mean
from preftune.types import Judgement, Message, PreferenceGroup, Text, content

Pairing = Literal["all", "best-worst", "adjacent"]


@dataclass(frozen=True, slots=True)
class Reading:
    """How rows are read, from the config (sections `data` of config.schema and config.sampling)."""

    format: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    pairs: Pairing = "all"
    margin_from_scores: bool = False
    as_chat: bool = False
    allow_empty_prompts: bool = False
    bad_rows: Literal["error", "drop"] = "error"


def group_of(prompt: Text, responses: Sequence[Text], **more: Any) -> PreferenceGroup:
    """A group whose text and chat parts agree: a chat prompt has chat responses.

    One empty response of several may stay, it is left out later (values.without_empty), where it can be counted.
    """
    if not isinstance(prompt, str):
        responses = [(Message("assistant", r),) if isinstance(r, str) else r for r in responses]
    elif not all(isinstance(r, str) for r in responses):
        prompt = (Message("user", prompt),)
        responses = [(Message("assistant", r),) if isinstance(r, str) else r for r in responses]
    full = sum(bool(content(r).strip()) for r in responses)
    if full < min(2, len(responses)):
        raise Drop("empty response")
    return PreferenceGroup(prompt, tuple(responses), **more)


def _pair(row: Fields, prompt: Text, chosen: Text, rejected: Text, reading: Reading) -> list[PreferenceGroup]:
    better, worse = _scores(row)
    if better is not None and worse is not None:
        if better == worse:
            raise Drop("tied scores")
        if better < worse:
            raise BadRow("the rejected response has the higher score")
    weight, probability, margin = grades(row)
    if reading.margin_from_scores:
        if better is None or worse is None:
            raise BadRow("data.margin_from_scores needs score_chosen and score_rejected")
        margin = better - worse
    if weight == 0:
        raise Drop("weight is not above 0")
    group = group_of(prompt, (chosen, rejected), judgements=(Judgement(0, 1, weight, probability, margin),))
    if group.responses[0] == group.responses[1]:
        raise Drop("identical responses")
    return [group]


def _scores(row: Fields) -> tuple[float | None, float | None]:
    for better, worse in (("score_chosen", "score_rejected"), ("chosen-rating", "rejected-rating")):
        if row.get(better) is not None and row.get(worse) is not None:
            return number(row, better, 0.0), number(row, worse, 0.0)
    return None, None


def judge(scores: Sequence[float], reading: Reading) -> tuple[Judgement, ...]:
    """Judgements between responses with these scores (higher is better), by the pairing of `reading`; no ties."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    if reading.pairs == "best-worst":
        chosen = [(order[0], order[-1])]
    elif reading.pairs == "adjacent":
        chosen = list(pairwise(order))
    else:
        chosen = list(combinations(order, 2))
    return tuple(
        Judgement(b, w, margin=scores[b] - scores[w] if reading.margin_from_scores else 0.0)
        for b, w in chosen
        if scores[b] > scores[w]
    )


def preference(row: Fields, reading: Reading) -> list[PreferenceGroup]:
    """Prompt and two answers as text."""
    return _pair(row, string(row, "prompt"), string(row, "chosen"), string(row, "rejected"), reading)


def implicit(row: Fields, reading: Reading) -> list[PreferenceGroup]:
    """The prompt is what both texts begin with, up to a word boundary; white space there begins the responses."""
    chosen, rejected = string(row, "chosen"), string(row, "rejected")
    if chosen == rejected:
        raise Drop("identical responses")
    n = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    if n is None:
        raise Drop("one text is the beginning of the other")
    while n > 0 and (chosen[n - 1].isalnum() and (chosen[n].isalnum() or rejected[n].isalnum())):
        n -= 1
    n = len(chosen[:n].rstrip())
    return _pair(row, chosen[:n], chosen[n:], rejected[n:], reading)


HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


def hh(row: Fields, reading: Reading) -> list[PreferenceGroup]:
    """Transcripts; the prompt ends at the last Assistant turn, whose text is the response."""
    sides = []
    for key in ("chosen", "rejected"):
        head, marker, tail = string(row, key).rpartition(ASSISTANT)
        if not marker:
            raise BadRow(f"column {key!r} has no {ASSISTANT.strip()!r} turn")
        if HUMAN in tail:
            raise Drop("transcript ends with a human turn")
        sides.append((head + marker, tail))
    if sides[0][0] != sides[1][0]:
        raise Drop("prompts of chosen and rejected differ")
    return _pair(row, sides[0][0], sides[0][1], sides[1][1], reading)


def chat(row: Fields, reading: Reading) -> list[PreferenceGroup]:
    """The prompt is a list of messages; each answer is text, a message or a list of one."""
    return _pair(row, text_of(row, "prompt"), answer_of(row, "chosen"), answer_of(row, "rejected"), reading)


def chat_implicit(row: Fields, reading: Reading) -> list[PreferenceGroup]:
    """The prompt is the longest common run of messages; one assistant turn follows on each side."""
    chosen, rejected = (messages_of(get(row, key), key) for key in ("chosen", "rejected"))
    if chosen == rejected:
        raise Drop("identical responses")
    n = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    if n is None:
        raise Drop("one dialogue is the beginning of the other")
    if n == 0:
        raise Drop("prompts of chosen and rejected differ")
    return _pair(row, chosen[:n], one_turn(chosen[n:]), one_turn(rejected[n:]), reading)


def lists(row: Fields, _reading: Reading) -> list[PreferenceGroup]:
    """Several right answers and several wrong ones; each right one is better than each wrong one."""
    sides = [_texts(row, "chosen"), _texts(row, "rejected")]
    responses = [*sides[0], *sides[1]]
    judgements = tuple(
        Judgement(b, w)
        for b, better in enumerate(sides[0])
        for w, worse in enumerate(sides[1], start=len(sides[0]))
        if better != worse
    )
    if not judgements:
        raise Drop("identical responses")
    return [group_of(text_of(row, "prompt"), responses, judgements=judgements)]


def _texts(row: Fields, key: str) -> list[str]:
    values = get(row, key)
    if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
        raise BadRow(f"column {key!r} must be a list of texts")
    return [clean(value, f"{key}[{i}]") for i, value in enumerate(values)]


def ultrafeedback(row: Fields, reading: Reading) -> list[PreferenceGroup]:
    """`prompt` is text, `chosen` and `rejected` hold the whole dialogue, or only the answer."""
    chosen = messages_of(get(row, "chosen"), "chosen")
    if len(chosen) > 1:
        return chat_implicit(row, reading)
    prompt = (Message("user", string(row, "prompt")),)
    return _pair(row, prompt, answer_of(row, "chosen"), answer_of(row, "rejected"), reading)


def sharegpt(row: Fields, reading: Reading) -> list[PreferenceGroup]:
    """Messages are {"from", "value"}; the answers stand beside the dialogue."""
    prompt = messages_of(get(row, "conversations"), "conversations")
    if isinstance(row.get("system"), str) and row["system"]:
        prompt = (Message("system", clean(row["system"], "system")), *prompt)
    return _pair(row, prompt, answer_of(row, "chosen"), answer_of(row, "rejected"), reading)


def openai(row: Fields, reading: Reading) -> list[PreferenceGroup]:
    """The fine-tuning form of OpenAI: the dialogue in `input`, the answers as lists of one message."""
    given = get(row, "input")
    if not isinstance(given, dict):
        raise BadRow(f"column 'input' must be an object with messages, not {kind_name(given)}")
    if given.get("tools"):
        raise BadRow("column 'input' has tools, which are not supported")
    prompt = messages_of(get(given, "messages"), "input.messages")
    return _pair(row, prompt, answer_of(row, "preferred_output"), answer_of(row, "non_preferred_output"), reading)


LISTS = ("responses", "completions", "answers", "outputs")
PROMPTS = ("prompt", "instruction", "question", "context")
WORDS = ("text", "content", "response", "answer", "completion", "output")
SCORES = ("score", "overall_score", "rating", "reward", "pm_score")


def ranked(row: Fields, reading: Reading) -> list[PreferenceGroup]:
    """n responses with a rank (lower is better) or a score (higher is better) each."""
    prompt = text_of(row, next((key for key in PROMPTS if key in row), "prompt"))
    key = next((key for key in LISTS if key in row), None)
    if key is None:
        raise BadRow(f"no column with a list of responses ({', '.join(LISTS)}); {did_you_mean(LISTS[0], row)}")
    items = get(row, key)
    if not isinstance(items, list):
        raise BadRow(f"column {key!r} must be a list, not {kind_name(items)}")
    if len(items) < 2:
        raise Drop("fewer than two responses")
    responses = [_response(item, f"{key}[{i}]") for i, item in enumerate(items)]
    scores = _item_scores(row, items, key)
    full = [i for i, response in enumerate(responses) if content(response).strip()]
    if len(full) < 2:
        raise Drop("empty response")
    found = judge([scores[i] for i in full], reading)
    judgements = [replace(j, better=full[j.better], worse=full[j.worse]) for j in found]
    distinct = tuple(j for j in judgements if responses[j.better] != responses[j.worse])
    if not judgements:
        raise Drop("tied scores")
    if not distinct:
        raise Drop("identical responses")
    ranks = tuple(1.0 + sum(other > score for other in scores) for score in scores)
    return [group_of(prompt, responses, judgements=distinct, ranks=ranks, ended=flags_of(row, len(items)))]


def _response(item: Any, where: str) -> Text:
    if isinstance(item, str):
        return clean(item, where)
    if not isinstance(item, dict):
        raise BadRow(f"{where} must be text or an object, not {kind_name(item)}")
    if "role" in item:
        return one_turn((message_of(item, where),))
    key = next((key for key in WORDS if key in item), None)
    if key is None:
        raise BadRow(f"{where} has none of the fields {', '.join(WORDS)}")
    return answer_of(item, key)


def _item_scores(row: Fields, items: list[Any], key: str) -> list[float]:
    for name, sign in (("scores", 1.0), ("rewards", 1.0), ("ranks", -1.0)):
        if isinstance(row.get(name), list):
            values = row[name]
            if len(values) != len(items):
                raise BadRow(f"{name!r} has {len(values)} entries for {len(items)} {key}")
            return [sign * required_number({name: v}, name, f"{name}[{i}]") for i, v in enumerate(values)]
    for name, sign in (("rank", -1.0), *((name, 1.0) for name in SCORES)):
        if all(isinstance(item, dict) and name in item for item in items):
            return [sign * required_number(item, name, f"{key}[{i}].{name}") for i, item in enumerate(items)]
    raise BadRow(f"no rank or score for every one of the {key}: none is better than another")


def groups(row: Fields, _reading: Reading) -> list[PreferenceGroup]:
    """The format that `data convert --to groups` writes."""
    responses = get(row, "responses")
    if not isinstance(responses, list) or not responses:
        raise BadRow("column 'responses' must be a list that is not empty")
    names = [f"responses[{i}]" for i in range(len(responses))]
    texts = [text_of({name: response}, name) for name, response in zip(names, responses, strict=True)]
    get(row, "judgements")
    return [group_of(text_of(row, "prompt"), texts, **knowledge_of(row, len(texts)))]


LABELS = {"true": 1, "1": 1, "false": -1, "0": -1, "-1": -1}


def unpaired(row: Fields, _reading: Reading) -> list[PreferenceGroup]:
    """One answer, labelled good or bad."""
    label = LABELS.get(str(get(row, "label")).lower())
    if label is None:
        raise BadRow(f"column 'label' must be true or false, not {row['label']!r}")
    return [group_of(text_of(row, "prompt"), (answer_of(row, "completion"),), labels=(label,))]


def sft_completion(row: Fields, _reading: Reading) -> list[PreferenceGroup]:
    """A demonstration."""
    return [group_of(text_of(row, "prompt"), (answer_of(row, "completion"),))]


def sft_text(row: Fields, _reading: Reading) -> list[PreferenceGroup]:
    """A demonstration without a prompt."""
    return [group_of("", (string(row, "text"),))]


def sft_messages(row: Fields, _reading: Reading) -> list[PreferenceGroup]:
    """One group for every assistant turn, each after the turns before it."""
    key = "messages" if "messages" in row else "conversations"
    messages = messages_of(get(row, key), key)
    turns = [i for i, m in enumerate(messages) if m.role == "assistant" and i > 0]
    if not turns:
        raise Drop("no assistant turn after another turn")
    return [group_of(messages[:i], (messages[i : i + 1],)) for i in turns]
