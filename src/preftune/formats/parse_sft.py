"""Parse rows with one response into groups: demonstrations, and responses labelled good or bad."""

from __future__ import annotations

from typing import Any

from preftune.formats.column_roles import DIALOGUES, add_context, completion_column, prompt_of
from preftune.formats.exchanges import alternating
from preftune.formats.parse_pairs import response_after
from preftune.formats.parsers import Reading, group_of
from preftune.formats.values import BadRow, Drop, Fields, get, messages_of, peek, string, text_of
from preftune.types import Message, PreferenceGroup, Text

LABEL_COLUMNS = ("label", "kto_tag")
LABELS = {"true": 1, "1": 1, "1.0": 1, "false": -1, "0": -1, "0.0": -1, "-1": -1, "-1.0": -1} | {
    word: sign
    for good, bad in (
        ("good", "bad"),
        ("yes", "no"),
        ("desirable", "undesirable"),
        ("positive", "negative"),
        ("chosen", "rejected"),
        ("accepted", "rejected"),
        ("like", "dislike"),
        ("up", "down"),
        ("thumbs_up", "thumbs_down"),
        ("thumbs up", "thumbs down"),
        ("thumbsup", "thumbsdown"),
        ("upvote", "downvote"),
        ("liked", "disliked"),
        ("👍", "👎"),
        ("+1", "-1"),
    )
    for word, sign in ((good, 1), (bad, -1))
}
#: Fields of an assistant turn that say whether it is trained on: OpenAI, ms-swift, axolotl.
TRAINED = ("weight", "loss", "train", "training")
#: Fields of an assistant turn in which people rated it.
TURN_GRADES = ("rating", "feedback", "thumbs", "thumb", "vote", "reaction", "liked", "score", "label", "annotation")
PARTLY_TRAINED = ("train_detail", "training_detail")  # axolotl: ranges of characters


def label_column(row: Fields) -> str | None:
    """Return the column with the label of the response, or None."""
    return next((key for key in LABEL_COLUMNS if key in row), None)


def is_label(value: Any) -> bool:
    """Return whether a value can be a label: true, false, 1, 0, -1 also as a float or as text, or a word of LABELS."""
    return str(value).strip().lower() in LABELS


def _label_of(row: Fields) -> int:
    key = label_column(row) or "label"
    value = get(row, key)
    if not is_label(value):
        raise BadRow(f"column {key!r} must be true or false, not {value!r}")
    return LABELS[str(value).strip().lower()]


def unpaired(row: Fields, _reading: Reading) -> list[PreferenceGroup]:
    """Parse a response labelled good or bad."""
    label = _label_of(row)
    prompt, response = _prompt_and_response(row)
    return [group_of(prompt, (response,), labels=(label,))]


def unpaired_messages(row: Fields, _reading: Reading) -> list[PreferenceGroup]:
    """Parse a dialogue whose last turn is labelled good or bad."""
    label = _label_of(row)
    messages = _dialogue(row)
    if len(messages) < 2 or messages[-1].role != "assistant":
        raise Drop("the dialogue does not end with an assistant turn after another turn")
    return [group_of(messages[:-1], (messages[-1:],), labels=(label,))]


def sft_completion(row: Fields, _reading: Reading) -> list[PreferenceGroup]:
    """Parse a demonstration with a prompt."""
    prompt, response = _prompt_and_response(row)
    return [group_of(prompt, (response,))]


def _prompt_and_response(row: Fields) -> tuple[Text, Text]:
    """Return prompt and response. A response in messages may repeat the prompt."""
    prompt, response = prompt_of(row), text_of(row, completion_column(row) or "completion")
    if isinstance(response, str):
        return prompt, response
    turns = (Message("user", prompt),) if isinstance(prompt, str) else prompt
    return turns, response_after(turns, response)


def sft_text(row: Fields, _reading: Reading) -> list[PreferenceGroup]:
    """Parse a demonstration without a prompt."""
    return [group_of("", (string(row, "text"),))]


def sft_messages(row: Fields, reading: Reading) -> list[PreferenceGroup]:
    """Return one group per assistant turn, with the earlier turns as prompt. Turns of weight 0 are left out.

    data.scored_turns=last: only the group of the last assistant turn.
    """
    messages = _dialogue(row)
    turns = [i for i, m in enumerate(messages) if m.role == "assistant" and i > 0]
    if not turns:
        raise Drop("no assistant turn after another turn")
    _require_no_grade(messages)
    turns = turns[-1:] if reading.scored_turns == "last" else turns
    turns = [i for i in turns if _weight_of(messages[i])]
    if not turns:
        raise Drop("all assistant turns have weight 0")
    return [group_of(messages[:i], (messages[i : i + 1],)) for i in turns]


def _require_no_grade(messages: tuple[Message, ...]) -> None:
    """Raise BadRow for an assistant turn that people rated, because demonstrations must be good."""
    for message in messages:
        grades = [name for name, _ in message.extra if name in TURN_GRADES] if message.role == "assistant" else []
        if grades:
            raise BadRow(
                f"an assistant turn has the field {grades[0]!r}, which rates it, and a demonstration must be good",
                fix=f"to train on good and bad responses, set data.columns={{label: messages.-1.{grades[0]}}}; "
                "to train on all of them as good ones, remove the field",
            )


def _weight_of(message: Message) -> bool:
    """Return whether a turn is trained on, from the first field of TRAINED that it has."""
    fields = dict(message.extra)
    for name in PARTLY_TRAINED:
        if name in fields:
            what = f"an assistant turn has the field {name!r}, and preftune cannot train on parts of a turn"
            raise BadRow(what, fix=f"remove the field {name!r} to train on whole turns")
    name = next((name for name in TRAINED if name in fields), "weight")
    weight = fields.get(name, "1")
    if weight not in ("0", "1", "0.0", "1.0", "true", "false"):
        raise BadRow(f"the {name} of an assistant turn must be 0 or 1, not {weight}")
    return weight in ("1", "1.0", "true")


def _dialogue(row: Fields) -> tuple[Message, ...]:
    """Return the messages of a row, preceded by its system text and history."""
    key = next((key for key in DIALOGUES if peek(row, key) is not None), "messages")
    value = get(row, key)
    if isinstance(value, list) and len(value) > 1 and all(isinstance(text, str) for text in value):
        value = alternating(value)
    prompt = add_context(row, messages_of(value, key), key)
    assert not isinstance(prompt, str)
    return prompt
