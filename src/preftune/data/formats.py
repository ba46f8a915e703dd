"""From a row of a data file to preference groups, one function a format.

A format is found from the rows themselves: the first of FORMATS whose `fits` accepts them. A parser raises

    BadRow   the row is not what its format says (missing column, null, wrong type)
    Drop     the row is well formed but there is nothing to learn from it (tie, empty response, ...)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any, Literal

from preftune.errors import DataError, did_you_mean
from preftune.types import Judgement, Message, PreferenceGroup, Text

Fields = dict[str, Any]
Pairing = Literal["all", "best-worst", "adjacent"]


class BadRow(Exception):
    """The row breaks its format."""


class Drop(Exception):
    """The row holds no usable judgement; the text is the reason it is counted under."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How rows are read, from the config."""

    pairs: Pairing = "all"
    margin_from_scores: bool = False


@dataclass(frozen=True, slots=True)
class Format:
    """`example` shows one row; `fits` looks at the columns and their shape only."""

    name: str
    example: str
    columns: tuple[str, ...]
    fits: Callable[[Fields], bool]
    parse: Callable[[Fields, Reading], Iterable[PreferenceGroup]]


# ---------------------------------------------------------------- values


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(m, dict) for m in value)


def _get(row: Fields, key: str) -> Any:
    if key not in row:
        raise BadRow(f"column {key!r} is missing; {did_you_mean(key, row)}")
    if row[key] is None:
        raise BadRow(f"column {key!r} is null")
    return row[key]


def _string(row: Fields, key: str) -> str:
    value = _get(row, key)
    if not isinstance(value, str):
        raise BadRow(f"column {key!r} must be text, not {_kind(value)}")
    return _clean(value, key)


def _clean(text: str, key: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRow(f"column {key!r} holds half a surrogate pair at character {error.start}") from None
    return text


def _kind(value: Any) -> str:
    names = {
        dict: "an object",
        list: "a list",
        bool: "true/false",
        int: "a number",
        float: "a number",
        str: "text",
    }
    return "null" if value is None else names.get(type(value), type(value).__name__)


def _number(row: Fields, key: str, default: float) -> float:
    value = row.get(key)
    if value is None or value == "":
        return default
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise BadRow(f"column {key!r} must be a number, not {value!r}") from None
    if isinstance(value, bool) or not math.isfinite(number):
        raise BadRow(f"column {key!r} must be a finite number, not {value!r}")
    return number


ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "tool": "tool",
}


def _message(value: Any, key: str) -> Message:
    """{"role", "content"} or ShareGPT's {"from", "value"}; content may be a list of text parts."""
    if not isinstance(value, dict):
        raise BadRow(f"{key} must be a message, not {_kind(value)}")
    role_key, content_key = ("from", "value") if "from" in value else ("role", "content")
    role, content = value.get(role_key), value.get(content_key)
    if not isinstance(role, str) or role not in ROLES:
        raise BadRow(f"{key} has unknown role {role!r}; known: {', '.join(ROLES)}")
    if value.get("tool_calls"):
        raise BadRow(f"{key} has tool calls, which are not supported")
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        if not all(isinstance(part, str) for part in parts):
            raise BadRow(f"{key} has content that is not text")
        content = "".join(str(part) for part in parts)
    if not isinstance(content, str):
        raise BadRow(f"{key} has content of the wrong type: {_kind(content)}")
    return Message(ROLES[role], _clean(content, key))


def _messages(value: Any, key: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise BadRow(f"column {key!r} must be a list of messages, not {_kind(value)}")
    return tuple(_message(m, f"{key}[{i}]") for i, m in enumerate(value))


def _text(row: Fields, key: str) -> Text:
    """Text, one message or a list of messages."""
    value = _get(row, key)
    if isinstance(value, str):
        return _clean(value, key)
    if isinstance(value, dict):
        return (_message(value, key),)
    return _messages(value, key)


def _answer(row: Fields, key: str) -> Text:
    """A response: text or exactly one assistant message."""
    value = _text(row, key)
    return value if isinstance(value, str) else _one_turn(value)


def _one_turn(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    if len(messages) != 1:
        raise Drop("several turns after the prompt")
    if messages[0].role != "assistant":
        raise Drop("response is not by the assistant")
    return messages


def content(text: Text) -> str:
    """The words of a text or of all its messages."""
    return text if isinstance(text, str) else "\n".join(m.content for m in text)


# ---------------------------------------------------------------- groups


def _group(prompt: Text, responses: Sequence[Text], **more: Any) -> PreferenceGroup:
    """A group whose text and chat parts agree: a chat prompt has chat responses."""
    if not isinstance(prompt, str):
        responses = [(Message("assistant", r),) if isinstance(r, str) else r for r in responses]
    elif not all(isinstance(r, str) for r in responses):
        prompt = (Message("user", prompt),)
        responses = [(Message("assistant", r),) if isinstance(r, str) else r for r in responses]
    if not all(content(r).strip() for r in responses):
        raise Drop("empty response")
    return PreferenceGroup(prompt, tuple(responses), **more)


def _pair(row: Fields, prompt: Text, chosen: Text, rejected: Text, reading: Reading) -> list[PreferenceGroup]:
    better, worse = _scores(row)
    if better is not None and worse is not None:
        if better == worse:
            raise Drop("tied scores")
        if better < worse:
            raise BadRow("the rejected response has the higher score")
    margin = _number(row, "margin", 0.0)
    if reading.margin_from_scores:
        if better is None or worse is None:
            raise BadRow("data.margin_from_scores needs score_chosen and score_rejected")
        margin = better - worse
    weight, probability = _number(row, "weight", 1.0), _number(row, "probability", 1.0)
    if weight <= 0:
        raise Drop("weight is not above 0")
    if not 0 <= probability <= 1:
        raise BadRow(f"column 'probability' must lie between 0 and 1, not {probability}")
    group = _group(prompt, (chosen, rejected), judgements=(Judgement(0, 1, weight, probability, margin),))
    if group.responses[0] == group.responses[1]:
        raise Drop("identical responses")
    return [group]


def _scores(row: Fields) -> tuple[float | None, float | None]:
    for better, worse in (("score_chosen", "score_rejected"), ("chosen-rating", "rejected-rating")):
        if row.get(better) is not None and row.get(worse) is not None:
            return _number(row, better, 0.0), _number(row, worse, 0.0)
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


# ---------------------------------------------------------------- formats


def _preference(row: Fields, reading: Reading) -> list[PreferenceGroup]:
    return _pair(row, _string(row, "prompt"), _string(row, "chosen"), _string(row, "rejected"), reading)


def _implicit(row: Fields, reading: Reading) -> list[PreferenceGroup]:
    """The prompt is what both texts begin with, up to a word boundary; white space there begins the responses."""
    chosen, rejected = _string(row, "chosen"), _string(row, "rejected")
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


def _hh(row: Fields, reading: Reading) -> list[PreferenceGroup]:
    """Transcripts; the prompt ends at the last Assistant turn, whose text is the response."""
    sides = []
    for key in ("chosen", "rejected"):
        head, marker, tail = _string(row, key).rpartition(ASSISTANT)
        if not marker:
            raise BadRow(f"column {key!r} has no {ASSISTANT.strip()!r} turn")
        if HUMAN in tail:
            raise Drop("transcript ends with a human turn")
        sides.append((head + marker, tail))
    if sides[0][0] != sides[1][0]:
        raise Drop("prompts of chosen and rejected differ")
    return _pair(row, sides[0][0], sides[0][1], sides[1][1], reading)


def _chat(row: Fields, reading: Reading) -> list[PreferenceGroup]:
    return _pair(row, _text(row, "prompt"), _answer(row, "chosen"), _answer(row, "rejected"), reading)


def _chat_implicit(row: Fields, reading: Reading) -> list[PreferenceGroup]:
    """The prompt is the longest common run of messages; one assistant turn follows on each side."""
    chosen, rejected = (_messages(_get(row, key), key) for key in ("chosen", "rejected"))
    if chosen == rejected:
        raise Drop("identical responses")
    n = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    if n is None:
        raise Drop("one dialogue is the beginning of the other")
    if n == 0:
        raise Drop("prompts of chosen and rejected differ")
    return _pair(row, chosen[:n], _one_turn(chosen[n:]), _one_turn(rejected[n:]), reading)


def _ultrafeedback(row: Fields, reading: Reading) -> list[PreferenceGroup]:
    """`prompt` is text, `chosen` and `rejected` hold the whole dialogue, or only the answer."""
    chosen = _messages(_get(row, "chosen"), "chosen")
    if len(chosen) > 1:
        return _chat_implicit(row, reading)
    prompt = (Message("user", _string(row, "prompt")),)
    return _pair(row, prompt, _answer(row, "chosen"), _answer(row, "rejected"), reading)


def _sharegpt(row: Fields, reading: Reading) -> list[PreferenceGroup]:
    prompt = _messages(_get(row, "conversations"), "conversations")
    if isinstance(row.get("system"), str) and row["system"]:
        prompt = (Message("system", row["system"]), *prompt)
    return _pair(row, prompt, _answer(row, "chosen"), _answer(row, "rejected"), reading)


def _openai(row: Fields, reading: Reading) -> list[PreferenceGroup]:
    given = _get(row, "input")
    if not isinstance(given, dict):
        raise BadRow(f"column 'input' must be an object with messages, not {_kind(given)}")
    if given.get("tools"):
        raise BadRow("column 'input' has tools, which are not supported")
    prompt = _messages(_get(given, "messages"), "input.messages")
    return _pair(row, prompt, _answer(row, "preferred_output"), _answer(row, "non_preferred_output"), reading)


LISTS = ("responses", "completions", "answers", "outputs")
PROMPTS = ("prompt", "instruction", "question", "context")
WORDS = ("text", "content", "response", "answer", "completion", "output")
SCORES = ("score", "overall_score", "rating", "reward", "pm_score")


def _ranked(row: Fields, reading: Reading) -> list[PreferenceGroup]:
    """n responses with a rank (lower is better) or a score (higher is better) each."""
    prompt = _text(row, next((key for key in PROMPTS if key in row), "prompt"))
    key = next(key for key in LISTS if key in row)
    items = _get(row, key)
    if not isinstance(items, list):
        raise BadRow(f"column {key!r} must be a list, not {_kind(items)}")
    if len(items) < 2:
        raise Drop("fewer than two responses")
    responses = [_response(item, f"{key}[{i}]") for i, item in enumerate(items)]
    scores = _item_scores(row, items, key)
    judgements = judge(scores, reading)
    distinct = tuple(j for j in judgements if responses[j.better] != responses[j.worse])
    if not judgements:
        raise Drop("tied scores")
    if not distinct:
        raise Drop("identical responses")
    ranks = tuple(1.0 + sum(other > score for other in scores) for score in scores)
    return [_group(prompt, responses, judgements=distinct, ranks=ranks)]


def _response(item: Any, where: str) -> Text:
    if isinstance(item, str):
        return _clean(item, where)
    if not isinstance(item, dict):
        raise BadRow(f"{where} must be text or an object, not {_kind(item)}")
    if "role" in item:
        return _one_turn((_message(item, where),))
    key = next((key for key in WORDS if key in item), None)
    if key is None:
        raise BadRow(f"{where} has none of the fields {', '.join(WORDS)}")
    return _answer(item, key)


def _item_scores(row: Fields, items: list[Any], key: str) -> list[float]:
    for name, sign in (("scores", 1.0), ("rewards", 1.0), ("ranks", -1.0)):
        if isinstance(row.get(name), list):
            values = row[name]
            if len(values) != len(items):
                raise BadRow(f"{name!r} has {len(values)} entries for {len(items)} {key}")
            return [sign * _required_number({name: v}, name, f"{name}[{i}]") for i, v in enumerate(values)]
    for name, sign in (("rank", -1.0), *((name, 1.0) for name in SCORES)):
        if all(isinstance(item, dict) and name in item for item in items):
            return [sign * _required_number(item, name, f"{key}[{i}].{name}") for i, item in enumerate(items)]
    raise BadRow(f"no rank or score for every one of the {key}: none is better than another")


def _required_number(fields: Fields, key: str, where: str) -> float:
    if fields[key] is None:
        raise BadRow(f"{where} is null")
    return _number(fields, key, 0.0)


def _groups(row: Fields, _reading: Reading) -> list[PreferenceGroup]:
    """The format that `data convert --to groups` writes."""
    responses = _get(row, "responses")
    if not isinstance(responses, list) or not responses:
        raise BadRow("column 'responses' must be a list that is not empty")
    texts = [_text({"responses": r}, "responses") for r in responses]
    judgements = []
    for i, item in enumerate(_get(row, "judgements")):
        try:
            judgement = Judgement(**item)
        except TypeError:
            raise BadRow(f"judgements[{i}] must be an object with better and worse, not {item!r}") from None
        if not all(type(k) is int and 0 <= k < len(texts) for k in (judgement.better, judgement.worse)):
            raise BadRow(f"judgements[{i}] names a response that does not exist")
        judgements.append(judgement)
    labels, ranks = row.get("labels") or (), row.get("ranks") or ()
    for name, values in (("labels", labels), ("ranks", ranks)):
        if values and len(values) != len(texts):
            raise BadRow(f"{name!r} has {len(values)} entries for {len(texts)} responses")
    return [
        _group(
            _text(row, "prompt"),
            texts,
            judgements=tuple(judgements),
            labels=tuple(labels),
            ranks=tuple(ranks),
        )
    ]


LABELS = {"true": 1, "1": 1, "false": -1, "0": -1, "-1": -1}


def _unpaired(row: Fields, _reading: Reading) -> list[PreferenceGroup]:
    label = LABELS.get(str(_get(row, "label")).lower())
    if label is None:
        raise BadRow(f"column 'label' must be true or false, not {row['label']!r}")
    return [_group(_text(row, "prompt"), (_answer(row, "completion"),), labels=(label,))]


def _sft_completion(row: Fields, _reading: Reading) -> list[PreferenceGroup]:
    return [_group(_text(row, "prompt"), (_answer(row, "completion"),))]


def _sft_text(row: Fields, _reading: Reading) -> list[PreferenceGroup]:
    return [_group("", (_string(row, "text"),))]


def _sft_messages(row: Fields, _reading: Reading) -> list[PreferenceGroup]:
    """One group for every assistant turn, each after the turns before it."""
    key = "messages" if "messages" in row else "conversations"
    messages = _messages(_get(row, key), key)
    turns = [i for i, m in enumerate(messages) if m.role == "assistant" and i > 0]
    if not turns:
        raise Drop("no assistant turn after another turn")
    return [_group(messages[:i], (messages[i : i + 1],)) for i in turns]


def _has(*columns: str) -> Callable[[Fields], bool]:
    return lambda row: all(column in row for column in columns)


def _fits_ranked(row: Fields) -> bool:
    lists = [key for key in LISTS if isinstance(row.get(key), list)]
    return len(lists) == 1 and any(key in row for key in PROMPTS)


def _two(row: Fields, kind: Callable[[Any], bool]) -> bool:
    return kind(row.get("chosen")) and kind(row.get("rejected"))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_transcript(value: Any) -> bool:
    return isinstance(value, str) and value.lstrip().startswith(HUMAN.strip()) and ASSISTANT in value


def _is_chat(value: Any) -> bool:
    return _is_messages(value) or isinstance(value, dict)


FORMATS: tuple[Format, ...] = (
    Format(
        "hh",
        '{"chosen": "\\n\\nHuman: ...\\n\\nAssistant: ...", "rejected": "..."}',
        ("chosen", "rejected"),
        lambda row: "prompt" not in row and _two(row, _is_transcript),
        _hh,
    ),
    Format(
        "preference",
        '{"prompt": "...", "chosen": "...", "rejected": "..."}',
        ("prompt", "chosen", "rejected"),
        lambda row: _is_text(row.get("prompt")) and _two(row, _is_text),
        _preference,
    ),
    Format(
        "ultrafeedback",
        '{"prompt": "...", "chosen": [message, ...], "rejected": [message, ...]}',
        ("prompt", "chosen", "rejected"),
        lambda row: _is_text(row.get("prompt")) and _two(row, _is_messages),
        _ultrafeedback,
    ),
    Format(
        "chat",
        '{"prompt": [message, ...], "chosen": [message] or message or "...", "rejected": ...}',
        ("prompt", "chosen", "rejected"),
        lambda row: _is_messages(row.get("prompt")) and "chosen" in row and "rejected" in row,
        _chat,
    ),
    Format(
        "sharegpt",
        '{"conversations": [{"from": "human", "value": "..."}, ...], "chosen": {...}, "rejected": {...}}',
        ("conversations", "chosen", "rejected"),
        _has("conversations", "chosen", "rejected"),
        _sharegpt,
    ),
    Format(
        "openai",
        '{"input": {"messages": [...]}, "preferred_output": [message], "non_preferred_output": [message]}',
        ("input", "preferred_output", "non_preferred_output"),
        _has("input", "preferred_output", "non_preferred_output"),
        _openai,
    ),
    Format(
        "groups",
        '{"prompt": "...", "responses": ["...", ...], "judgements": [{"better": 0, "worse": 1}, ...]}',
        ("prompt", "responses", "judgements"),
        _has("prompt", "responses", "judgements"),
        _groups,
    ),
    Format(
        "ranked",
        '{"prompt": "...", "responses": ["...", ...], "scores": [1.0, ...]}',
        ("prompt", "responses", "scores"),
        _fits_ranked,
        _ranked,
    ),
    Format(
        "unpaired",
        '{"prompt": "...", "completion": "...", "label": true}',
        ("prompt", "completion", "label"),
        _has("prompt", "completion", "label"),
        _unpaired,
    ),
    Format(
        "chat-implicit",
        '{"chosen": [message, ...], "rejected": [message, ...]}',
        ("chosen", "rejected"),
        lambda row: "prompt" not in row and _two(row, _is_messages),
        _chat_implicit,
    ),
    Format(
        "preference-implicit",
        '{"chosen": "prompt and answer", "rejected": "prompt and another answer"}',
        ("chosen", "rejected"),
        lambda row: "prompt" not in row and _two(row, _is_text),
        _implicit,
    ),
    Format(
        "sft-completion",
        '{"prompt": "...", "completion": "..."}',
        ("prompt", "completion"),
        _has("prompt", "completion"),
        _sft_completion,
    ),
    Format("sft-messages", '{"messages": [message, ...]}', ("messages",), _has("messages"), _sft_messages),
    Format(
        "sft-conversations",
        '{"conversations": [{"from": "human", "value": "..."}, ...]}',
        ("conversations",),
        _has("conversations"),
        _sft_messages,
    ),
    Format("sft-text", '{"text": "..."}', ("text",), _has("text"), _sft_text),
)
BY_NAME = {f.name: f for f in FORMATS}


def detect(rows: Sequence[Fields], where: str) -> Format:
    """The format of these rows: the first that fits all, else the first that fits any of them.

    Raises DataError naming the columns found and the nearest formats.
    """
    for enough in (all, any):
        for candidate in FORMATS:
            if enough(candidate.fits(row) for row in rows):
                return candidate
    found = set(rows[0]) if rows else set()
    for candidate in FORMATS:  # the right columns with wrong values: let the parser say what is wrong
        if set(candidate.columns) <= found:
            return candidate
    nearest = sorted(FORMATS, key=lambda f: -_likeness(f, found))[:3]
    hints = [f"{column!r}: {did_you_mean(column, found)}" for column in nearest[0].columns if column not in found]
    raise DataError(
        f"no known format has the columns {sorted(found)}",
        where=where,
        why=f"the nearest, {nearest[0].name!r}, also needs {'; '.join(hints)}",
        fix="; ".join(
            [
                "rename columns to one of",
                *(f"{f.name}: {f.example}" for f in nearest),
                "or set data.format=my_format.py:function",
            ]
        ),
    )


def _likeness(format: Format, found: set[str]) -> float:
    near = [column in found or did_you_mean(column, found).startswith("did") for column in format.columns]
    return sum(near) / len(near) + 0.01 * len(near)
