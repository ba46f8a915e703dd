"""The records of a dialogue: turns, the answers of one or two models, and the answer that the dialogue continues with.

With a chat template, a dialogue is a list of messages. Without one it is a text that the model continues: each new text
of the user begins on a new line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from preftune.types import Message, Text

SIDES = ("left", "right")


@dataclass(frozen=True, slots=True)
class Answer:
    """A response of one model: its text, its number of tokens, and the seconds that it took.

    ended   the model ended it; otherwise it was stopped, or reached the limit
    """

    text: str = ""
    tokens: int = 0
    ended: bool = False
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Turn:
    """A text of the user, the prompt that the models received, and their answers.

    chosen    index of the answer that the dialogue continues with
    verdict   left, right or tie, or "" if no answer was marked
    attempt   0, or the number of times that the answers were drawn again
    """

    text: str
    prompt: Text
    answers: tuple[Answer, ...]
    chosen: int = 0
    verdict: str = ""
    attempt: int = 0

    @property
    def answer(self) -> str:
        return self.answers[self.chosen].text


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A system message ("" for none) and the turns. `plain`: a text that the model continues, without messages."""

    plain: bool = False
    system: str = ""
    turns: tuple[Turn, ...] = ()

    def with_turn(self, turn: Turn) -> Dialogue:
        return replace(self, turns=(*self.turns, turn))

    def without_last(self) -> Dialogue:
        return replace(self, turns=self.turns[:-1])

    def with_last(self, turn: Turn) -> Dialogue:
        return self.without_last().with_turn(turn)

    def prompt(self, text: str, first: int = 0) -> Text:
        """Return the prompt for a new text of the user, without the turns before index `first`."""
        turns = self.turns[first:]
        if self.plain:
            return "\n".join([*(turn.text + turn.answer for turn in turns), text])
        return (*self.messages(first), Message("user", text))

    def messages(self, first: int = 0) -> tuple[Message, ...]:
        """Return the system message and the turns from index `first` on as messages."""
        head = (Message("system", self.system),) if self.system else ()
        return head + tuple(message for turn in self.turns[first:] for message in _messages_of(turn))

    def text(self) -> str:
        """Return the whole text of a plain dialogue."""
        return "\n".join(turn.text + turn.answer for turn in self.turns)


def _messages_of(turn: Turn) -> Sequence[Message]:
    return Message("user", turn.text), Message("assistant", turn.answer)
