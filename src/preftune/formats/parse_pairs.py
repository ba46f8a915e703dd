"""Parse rows with a better and a worse response into preference groups, with one parser per format."""

from __future__ import annotations

from collections.abc import Sequence

from preftune.formats.column_roles import DIALOGUES, add_context, pair_columns, prompt_column, prompt_of, scores_of
from preftune.formats.parsers import Reading, group_of
from preftune.formats.tools import read_tools, with_tools
from preftune.formats.transcripts import ASSISTANT, HUMAN, parse_turns
from preftune.formats.values import (
    BadRow,
    Drop,
    Fields,
    comparable,
    get,
    is_blank,
    is_dialogue,
    judgement_numbers,
    kind_name,
    messages_of,
    peek,
    require_utf8,
    response_turns,
    string,
    text_of,
)
from preftune.types import Judgement, Message, PreferenceGroup, Text


def pair_group(row: Fields, prompt: Text, chosen: Text, rejected: Text, reading: Reading) -> list[PreferenceGroup]:
    """Return one group with one judgement, which uses the columns `weight`, `probability`, `margin` and the scores."""
    tie = str(row.get("status")).lower() == "tie"  # argilla/distilabel-intel-orca-dpo-pairs
    scores = scores_of(row)
    tied_scores = scores is not None and scores[0] == scores[1]
    if reading.ties == "drop" and (tie or tied_scores):
        raise Drop("tie" if tie else "tied scores")
    weight, probability, margin = judgement_numbers(row)
    probability = 0.5 if tie or tied_scores else probability
    if reading.margin_from_scores:
        if scores is None:
            raise BadRow("data.margin_from_scores needs the columns score_chosen and score_rejected")
        margin = scores[0] - scores[1]
    return two_response_group(prompt, (chosen, rejected), Judgement(0, 1, weight, probability, margin))


def two_response_group(prompt: Text, responses: tuple[Text, Text], judgement: Judgement) -> list[PreferenceGroup]:
    """Return a group of two responses. Raises Drop if it cannot be trained on."""
    if judgement.weight == 0:
        raise Drop("weight is not above 0")
    group = group_of(prompt, responses, judgements=(judgement,))
    if comparable(group.responses[0]) == comparable(group.responses[1]):
        raise Drop("identical responses")
    return [group]


def columns_of(row: Fields) -> tuple[str, str]:
    """Return the columns of the two responses, by default `chosen` and `rejected`."""
    return pair_columns(row) or ("chosen", "rejected")


def preference(row: Fields, reading: Reading) -> list[PreferenceGroup]:
    """Parse a text prompt and two text responses."""
    better, worse = columns_of(row)
    return pair_group(row, prompt_of(row, text_only=True), string(row, better), string(row, worse), reading)


def implicit(row: Fields, reading: Reading) -> list[PreferenceGroup]:
    """Parse two texts. Their common beginning up to a word boundary, without trailing space, is the prompt."""
    better, worse = columns_of(row)
    chosen, rejected = string(row, better), string(row, worse)
    n = common_prefix_length(chosen, rejected)
    return pair_group(row, add_context(row, chosen[:n]), chosen[n:], rejected[n:], reading)


def common_prefix_length(chosen: str, rejected: str) -> int:
    """Return the length of the common beginning of two texts, without trailing white space."""
    if chosen == rejected:
        raise Drop("identical responses")
    n = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    if n is None:
        raise Drop("one text is the beginning of the other")
    while n > 0 and (chosen[n - 1].isalnum() and (chosen[n].isalnum() or rejected[n].isalnum())):
        n -= 1
    return len(chosen[:n].rstrip())


def hh(row: Fields, reading: Reading) -> list[PreferenceGroup]:
    """Parse two transcripts. The prompt ends at the last Assistant turn, whose text is the response.

    For a chat model, transcripts that differ before their last turn become responses of several messages.
    """
    sides = []
    for key in columns_of(row):
        head, marker, tail = string(row, key).rpartition(ASSISTANT)
        if not marker:
            raise BadRow(f"column {key!r} has no {ASSISTANT.strip()!r} turn")
        if HUMAN in tail:
            raise Drop("transcript ends with a human turn")
        sides.append((head + marker, tail))
    if sides[0][0] != sides[1][0]:
        dialogues = [parse_turns(head + tail) for head, tail in sides] if reading.as_chat else []
        if not (dialogues and dialogues[0] and dialogues[1]):
            raise Drop("prompts of chosen and rejected differ")
        return _dialogues(row, dialogues[0], dialogues[1], reading)
    return pair_group(row, sides[0][0], sides[0][1], sides[1][1], reading)


def chat(row: Fields, reading: Reading) -> list[PreferenceGroup]:
    """Parse a prompt of messages and two responses: text, a message, or messages that may repeat the prompt."""
    better, worse = columns_of(row)
    key = prompt_column(row) or "prompt"
    prompt = get(row, key)
    if not isinstance(prompt, list | dict):
        raise BadRow(f"column {key!r} must be a list of messages, not {kind_name(prompt)}")
    sides = [text_of(row, better), text_of(row, worse)]
    turns = _prompt_turns(text_of(row, key), sides[0], key)
    chosen, rejected = (response_after(turns, side) for side in sides)
    return pair_group(row, add_context(row, turns, key), chosen, rejected, reading)


def _prompt_turns(turns: Text, chosen: Text, key: str) -> tuple[Message, ...]:
    """Return the prompt of a dialogue, which may end with the chosen response."""
    assert not isinstance(turns, str)
    if turns[-1].role != "assistant" or key == "prompt":
        return turns
    response = (Message("assistant", chosen),) if isinstance(chosen, str) else chosen[-1:]
    if len(turns) < 2 or comparable(turns[-1:]) != comparable(response):
        raise BadRow(
            f"column {key!r} ends with an assistant turn that is not the chosen response",
            fix=f"remove that turn, or omit the column with data.ignore=[{key}]",
        )
    return turns[:-1]


def response_after(prompt: Sequence[Message], side: Text) -> Text:
    """Return the response in `side`: text, the messages after the prompt, or a dialogue that begins with the prompt."""
    if isinstance(side, str):
        return side
    if len(side) == 1 or side[0].role == "assistant":
        return response_turns(side)
    for start in {0, int(prompt[0].role == "system")}:  # the dialogue may omit the system message of the prompt
        turns = tuple(prompt[start:])
        if turns and comparable(side[: len(turns)]) == comparable(turns):
            return response_turns(side[len(turns) :])
    raise Drop("the dialogue does not begin with the prompt")


def chat_implicit(row: Fields, reading: Reading) -> list[PreferenceGroup]:
    """Parse two dialogues whose common beginning, up to an assistant turn, is the prompt."""
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
            "the row has no prompt: each response is a single assistant message, and no known column has the prompt",
            fix=f"set data.columns={{prompt: {others[0] if others else 'COLUMN'}}}",
        )
    n = prompt_turn_count(chosen, rejected)
    sides = response_turns(chosen[n:]), response_turns(rejected[n:])
    return pair_group(row, add_context(row, chosen[:n]), *sides, reading)


def prompt_turn_count(chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> int:
    """Return the number of turns of the prompt of two dialogues: those before the first different assistant turn.

    If the first different turn is of a user or a tool, both responses begin with the assistant turn before it.
    """
    n = common_turn_count(chosen, rejected)
    if chosen[n].role == rejected[n].role == "assistant":
        return n
    earlier = [i for i in range(1, n) if chosen[i].role == "assistant"]
    if not earlier:
        raise Drop("prompts of chosen and rejected differ")
    return earlier[-1]


def common_turn_count(chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> int:
    """Return the number of turns in the common beginning of two dialogues."""
    sides = comparable(chosen), comparable(rejected)
    if sides[0] == sides[1]:
        raise Drop("identical responses")
    n = next((i for i, (a, b) in enumerate(zip(*sides, strict=False)) if a != b), None)
    if n is None:
        raise Drop("one dialogue is the beginning of the other")
    if n == 0:
        raise Drop("prompts of chosen and rejected differ")
    return n


def ultrafeedback(row: Fields, reading: Reading) -> list[PreferenceGroup]:
    """Parse a text prompt and two responses in messages. If both are whole dialogues, the prompt is not used."""
    better, worse = columns_of(row)
    chosen, rejected = text_of(row, better), text_of(row, worse)
    if all(not isinstance(side, str) and len(side) > 1 and side[0].role != "assistant" for side in (chosen, rejected)):
        return _dialogues(row, tuple(chosen), tuple(rejected), reading)  # type: ignore[arg-type]
    prompt = prompt_of(row, text_only=True)
    turns = (Message("user", prompt),) if isinstance(prompt, str) else prompt
    return pair_group(row, turns, response_after(turns, chosen), response_after(turns, rejected), reading)


def lists(row: Fields, _reading: Reading) -> list[PreferenceGroup]:
    """Parse lists of chosen and rejected responses. Each chosen response is better than each rejected one."""
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
        raise BadRow(f"column {key!r} must be a non-empty list of texts")
    return [require_utf8(value, f"{key}[{i}]") for i, value in enumerate(values)]


OPENAI_SETTINGS = {"messages", "tools", "parallel_tool_calls", "tool_choice", "model", "temperature", "store"}


def openai(row: Fields, reading: Reading) -> list[PreferenceGroup]:
    """Parse OpenAI's fine-tuning format: the dialogue in `input`, each response as a list of one message."""
    settings = get(row, "input")
    if not isinstance(settings, dict):
        raise BadRow(f"column 'input' must be an object with messages, not {kind_name(settings)}")
    for key in settings:
        if settings[key] and key not in OPENAI_SETTINGS:
            raise BadRow(f"column 'input' has the field {key!r}, which is not used", fix=f"set data.ignore=[{key}]")
    prompt = messages_of(get(settings, "messages"), "input.messages")
    sides = [text_of(row, key) for key in ("preferred_output", "non_preferred_output")]
    chosen, rejected = (response_after(prompt, side) for side in sides)
    tools = [] if is_blank(settings.get("tools")) else read_tools(settings["tools"], "input.tools")
    return with_tools(pair_group(row, add_context(row, prompt), chosen, rejected, reading), tools)


def last_turn(row: Fields, reading: Reading) -> list[PreferenceGroup]:
    """Parse a dialogue that ends with the better response, and a column with one or several worse responses."""
    dialogue = next((key for key in DIALOGUES if peek(row, key) is not None), "messages")
    messages = messages_of(get(row, dialogue), dialogue)
    key = "rejected_response" if peek(row, "rejected_response") is not None else "rejected_messages"
    if len(messages) < 2 or messages[-1].role != "assistant":
        raise BadRow(f"column {dialogue!r} must end with the assistant turn that is the better response")
    turns = messages[:-1]
    prompt = add_context(row, turns)
    worse = get(row, key)
    if not isinstance(worse, list) or not worse or not all(isinstance(text, str) for text in worse):
        side = text_of(row, key)
        whole = not isinstance(side, str) and len(side) > 1 and side[0].role != "assistant"
        if whole and comparable(side[: len(turns)]) != comparable(turns):  # they diverge before the last turn
            return _dialogues(row, messages, tuple(side), reading)  # type: ignore[arg-type]
        return pair_group(row, prompt, messages[-1:], response_after(turns, side), reading)
    texts = [require_utf8(text, f"{key}[{i}]") for i, text in enumerate(worse)]
    judgements = tuple(Judgement(0, i) for i, text in enumerate(texts, start=1) if text != messages[-1].content)
    if not judgements:
        raise Drop("identical responses")
    return [group_of(prompt, [messages[-1:], *texts], judgements=judgements)]
