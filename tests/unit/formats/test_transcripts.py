"""Transcripts of HH-RLHF become messages."""

from __future__ import annotations

import pytest

from preftune.formats.transcripts import parse_prompt, parse_response, parse_turns
from preftune.types import Message

U, A = "user", "assistant"


@pytest.mark.parametrize(
    ("text", "turns"),
    [
        ("\n\nHuman: a\n\nAssistant: b", [(U, "a"), (A, "b")]),
        ("Human: a\n\nb\n\nAssistant: Human: no\n\nHuman:", [(U, "a\n\nb"), (A, "Human: no"), (U, "")]),
        ("\n\nSystem: s\n\nHuman: a", [("system", "s"), (U, "a")]),
        # the human turn continues the line of the assistant turn, and the next turn is the assistant's
        ("\n\nHuman: a\n\nAssistant: b.  Human: c\n\nAssistant: d", [(U, "a"), (A, "b."), (U, "c"), (A, "d")]),
        ("\n\nHuman: a\n\nAssistant: b  Human: c  Human: d\n\nAssistant: e",
         [(U, "a"), (A, "b  Human: c"), (U, "d"), (A, "e")]),
        # without an assistant turn after it, or at the beginning, it is only text
        ("\n\nHuman: a\n\nAssistant: b.  Human: c", [(U, "a"), (A, "b.  Human: c")]),
        ("\n\nHuman: a\n\nAssistant:   Human: c\n\nAssistant: d", [(U, "a"), (A, "Human: c\n\nd")]),
        # two turns of one role
        ("\n\nHuman: a\n\nHuman: b\n\nAssistant: c\n\nAssistant: d", [(U, "a\n\nb"), (A, "c\n\nd")]),
        ("\n\nHuman: a\n\nAssistant: b\n\nAssistant:", [(U, "a"), (A, "b"), (A, "")]),
    ],
)  # fmt: skip
def test_turns(text: str, turns: list[tuple[str, str]]) -> None:
    assert parse_turns(text) == tuple(Message(role, content) for role, content in turns)


@pytest.mark.parametrize("text", ["", "a", "a\n\nHuman: b\n\nAssistant: c", "human: a"])
def test_a_text_that_does_not_begin_with_a_turn_is_not_a_transcript(text: str) -> None:
    assert parse_turns(text) is None


@pytest.mark.parametrize(
    "text", ["\n\nHuman: a", "\n\nHuman: a\n\nAssistant: b", "\n\nAssistant:", "Human: a Assistant:"]
)
def test_a_prompt_ends_where_the_assistant_answers(text: str) -> None:
    assert parse_prompt(text) is None
    assert parse_prompt("\n\nHuman: a\n\nAssistant: ") == (Message(U, "a"),)


def test_a_response_with_further_turns_becomes_several_messages() -> None:
    assert parse_response(" a\n\nHuman: b\n\nAssistant: c") == (Message(A, "a"), Message(U, "b"), Message(A, "c"))


@pytest.mark.parametrize(
    "text", ["a\n\nHuman: b", "a\n\nHuman: \n\nAssistant: c", "a\n\nSystem: b\n\nAssistant: c", "a: b"]
)
def test_any_other_response_is_one_message(text: str) -> None:
    assert parse_response(f" {text}\n") == (Message(A, text),)
