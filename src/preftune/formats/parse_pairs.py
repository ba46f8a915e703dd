"""Rows with a better and a worse response -> preference groups, one parser a format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from preftune.formats.parsers import Reading, group_of
from preftune.formats.slots import pair_columns, prompt_column, prompt_of, scores_of, with_context
from preftune.formats.values import (
    BadRow,
    Drop,
    Fields,
    clean,
    get,
    grades,
    is_dialogue,
    kind_name,
    messages_of,
    one_turn,
    peek,
    string,
    text_of,
    words_of,
)
from preftune.types import Judgement, Message, PreferenceGroup, Text

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


def pair(row: Fields, prompt: Text, chosen: Text, rejected: Text, reading: Reading) -> list[PreferenceGroup]:
    """One group with one judgement, with what the columns `weight`, `probability`, `margin` and the scores say."""
    if str(row.get("status")).lower() == "tie":  # argilla/distilabel-intel-orca-dpo-pairs
        raise Drop("tie")
    scores = scores_of(row)
    if scores and scores[0] == scores[1]:
        raise Drop("tied scores")
    weight, probability, margin = grades(row)
    if reading.margin_from_scores:
        if scores is None:
            raise BadRow("data.margin_from_scores needs score_chosen and score_rejected")
        margin = scores[0] - scores[1]
    return judged(prompt, (chosen, rejected), Judgement(0, 1, weight, probability, margin))


def judged(prompt: Text, responses: tuple[Text, Text], judgement: Judgement) -> list[PreferenceGroup]:
    """A group of two responses. Raises Drop where there is nothing to learn."""
    if judgement.weight == 0:
        raise Drop("weight is not above 0")
    group = group_of(prompt, responses, judgements=(judgement,))
    if words_of(group.responses[0]) == words_of(group.responses[1]):
        raise Drop("identical responses")
    return [group]


def columns_of(row: Fields) -> tuple[str, str]:
    """The two columns of the responses; the canonical names where the row has neither."""
    return pair_columns(row) or ("chosen", "rejected")


def preference(row: Fields, reading: Reading) -> list[PreferenceGroup]:
    """Prompt and two answers as text."""
    better, worse = columns_of(row)
    return pair(row, prompt_of(row, text_only=True), string(row, better), string(row, worse), reading)


def implicit(row: Fields, reading: Reading) -> list[PreferenceGroup]:
    """The prompt is what both texts begin with, up to a word boundary; white space there begins the responses."""
    better, worse = columns_of(row)
    chosen, rejected = string(row, better), string(row, worse)
    n = common_text(chosen, rejected)
    return pair(row, with_context(row, chosen[:n]), chosen[n:], rejected[n:], reading)


def common_text(chosen: str, rejected: str) -> int:
    """How many characters two texts have in common at their beginning, white space at the end of them not counted."""
    if chosen == rejected:
        raise Drop("identical responses")
    n = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    if n is None:
        raise Drop("one text is the beginning of the other")
    while n > 0 and (chosen[n - 1].isalnum() and (chosen[n].isalnum() or rejected[n].isalnum())):
        n -= 1
    return len(chosen[:n].rstrip())


def hh(row: Fields, reading: Reading) -> list[PreferenceGroup]:
    """Transcripts; the prompt ends at the last Assistant turn, whose text is the response."""
    sides = []
    for key in columns_of(row):
        head, marker, tail = string(row, key).rpartition(ASSISTANT)
        if not marker:
            raise BadRow(f"column {key!r} has no {ASSISTANT.strip()!r} turn")
        if HUMAN in tail:
            raise Drop("transcript ends with a human turn")
        sides.append((head + marker, tail))
    if sides[0][0] != sides[1][0]:
        raise Drop("prompts of chosen and rejected differ")
    return pair(row, sides[0][0], sides[0][1], sides[1][1], reading)


def chat(row: Fields, reading: Reading) -> list[PreferenceGroup]:
    """The prompt is messages or one message; each answer is text, a message, or messages that may repeat the prompt."""
    better, worse = columns_of(row)
    key = prompt_column(row) or "prompt"
    asked = get(row, key)
    if not isinstance(asked, list | dict):
        raise BadRow(f"column {key!r} must be a list of messages, not {kind_name(asked)}")
    sides = [text_of(row, better), text_of(row, worse)]
    turns = _asked(text_of(row, key), sides[0], key)
    chosen, rejected = (after(turns, side) for side in sides)
    return pair(row, with_context(row, turns, key), chosen, rejected, reading)


def _asked(turns: Text, chosen: Text, key: str) -> tuple[Message, ...]:
    """The prompt of a dialogue that may end with the chosen response."""
    assert not isinstance(turns, str)
    if turns[-1].role != "assistant" or key == "prompt":
        return turns
    answer = (Message("assistant", chosen),) if isinstance(chosen, str) else chosen[-1:]
    if len(turns) < 2 or words_of(turns[-1:]) != words_of(answer):
        raise BadRow(
            f"column {key!r} ends with an assistant turn that is not the chosen response",
            fix=f"remove that turn, or leave the column out with data.ignore=[{key}]",
        )
    return turns[:-1]


def after(prompt: Sequence[Message], side: Text) -> Text:
    """The response: text, one assistant message, or what a dialogue adds to the prompt that it repeats."""
    if isinstance(side, str) or len(side) == 1:
        return side if isinstance(side, str) else one_turn(side)
    for start in {0, int(prompt[0].role == "system")}:  # the system message may stand in front of the prompt only
        asked = tuple(prompt[start:])
        if asked and words_of(side[: len(asked)]) == words_of(asked):
            return one_turn(side[len(asked) :])
    if side[0].role == "assistant":
        raise Drop("several turns after the prompt")
    raise Drop("the dialogue does not begin with the prompt")


def chat_implicit(row: Fields, reading: Reading) -> list[PreferenceGroup]:
    """The prompt is the longest common run of messages; one assistant turn follows on each side."""
    sides = [get(row, key) for key in columns_of(row)]
    chosen, rejected = (
        messages_of([side] if isinstance(side, dict) else side, key)
        for key, side in zip(columns_of(row), sides, strict=True)
    )
    return _dialogues(row, chosen, rejected, reading)


def _dialogues(
    row: Fields, chosen: tuple[Message, ...], rejected: tuple[Message, ...], reading: Reading
) -> list[PreferenceGroup]:
    if len(chosen) == len(rejected) == 1 and chosen[0].role == rejected[0].role == "assistant":
        others = [key for key in row if key not in columns_of(row) and is_dialogue(peek(row, key))]
        raise BadRow(
            "no prompt: the responses are one assistant message each, and no known column holds what they answer",
            fix=f"name the column of the prompt: data.columns={{prompt: {others[0] if others else 'COLUMN'}}}",
        )
    n = common_turns(chosen, rejected)
    return pair(row, with_context(row, chosen[:n]), one_turn(chosen[n:]), one_turn(rejected[n:]), reading)


def common_turns(chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> int:
    """How many turns two dialogues have in common at their beginning."""
    sides = words_of(chosen), words_of(rejected)
    if sides[0] == sides[1]:
        raise Drop("identical responses")
    n = next((i for i, (a, b) in enumerate(zip(*sides, strict=False)) if a != b), None)
    if n is None:
        raise Drop("one dialogue is the beginning of the other")
    if n == 0:
        raise Drop("prompts of chosen and rejected differ")
    return n


def ultrafeedback(row: Fields, reading: Reading) -> list[PreferenceGroup]:
    """The prompt is text; the answers are messages: the whole dialogue, which is then used alone, or the answer."""
    better, worse = columns_of(row)
    chosen, rejected = text_of(row, better), text_of(row, worse)
    if not isinstance(chosen, str) and not isinstance(rejected, str) and min(len(chosen), len(rejected)) > 1:
        return _dialogues(row, chosen, rejected, reading)
    prompt = prompt_of(row, text_only=True)
    turns = (Message("user", prompt),) if isinstance(prompt, str) else prompt
    return pair(row, turns, after(turns, chosen), after(turns, rejected), reading)


def lists(row: Fields, _reading: Reading) -> list[PreferenceGroup]:
    """Several right answers and several wrong ones; each right one is better than each wrong one."""
    sides = [_texts(row, key) for key in columns_of(row)]
    responses = [*sides[0], *sides[1]]
    judgements = tuple(
        Judgement(b, w)
        for b, better in enumerate(sides[0])
        for w, worse in enumerate(sides[1], start=len(sides[0]))
        if better != worse
    )
    if not judgements:
        raise Drop("identical responses")
    return [group_of(prompt_of(row), responses, judgements=judgements)]


def _texts(row: Fields, key: str) -> list[str]:
    values = [row[key]] if isinstance(get(row, key), str) else row[key]
    if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
        raise BadRow(f"column {key!r} must be a list of texts")
    return [clean(value, f"{key}[{i}]") for i, value in enumerate(values)]


OPENAI_SETTINGS = {"messages", "tools", "parallel_tool_calls", "tool_choice", "model", "temperature", "store"}


def openai(row: Fields, reading: Reading) -> list[PreferenceGroup]:
    """The fine-tuning form of OpenAI: the dialogue in `input`, the answers as lists of one message."""
    asked = get(row, "input")
    if not isinstance(asked, dict):
        raise BadRow(f"column 'input' must be an object with messages, not {kind_name(asked)}")
    for key in asked:
        if asked[key] and (key == "tools" or key not in OPENAI_SETTINGS):
            what = (
                "has tools, which are not supported" if key == "tools" else f"has the field {key!r}, which is not used"
            )
            raise BadRow(f"column 'input' {what}", fix=f"leave it out with data.ignore=[{key}]")
    prompt = messages_of(get(asked, "messages"), "input.messages")
    chosen, rejected = (after(prompt, text_of(row, key)) for key in ("preferred_output", "non_preferred_output"))
    return pair(row, with_context(row, prompt), chosen, rejected, reading)


def last_turn(row: Fields, reading: Reading) -> list[PreferenceGroup]:
    """A dialogue that ends with the better response, and beside it the worse one, or a list of worse texts."""
    messages = messages_of(get(row, "messages"), "messages")
    key = "rejected_response" if peek(row, "rejected_response") is not None else "rejected_messages"
    if len(messages) < 2 or messages[-1].role != "assistant":
        raise BadRow("column 'messages' must end with the assistant turn that is the better response")
    asked = messages[:-1]
    prompt = with_context(row, asked)
    worse = get(row, key)
    if not isinstance(worse, list) or not worse or not all(isinstance(text, str) for text in worse):
        return pair(row, prompt, messages[-1:], after(asked, text_of(row, key)), reading)
    texts = [clean(text, f"{key}[{i}]") for i, text in enumerate(worse)]
    judgements = tuple(Judgement(0, i) for i, text in enumerate(texts, start=1) if text != messages[-1].content)
    if not judgements:
        raise Drop("identical responses")
    return [group_of(prompt, [messages[-1:], *texts], judgements=judgements)]


def is_transcript(value: Any) -> bool:
    """Whether a value is a dialogue in the form of HH-RLHF."""
    return isinstance(value, str) and value.lstrip().startswith(HUMAN.strip()) and ASSISTANT in value
