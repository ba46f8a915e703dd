"""Arguments of tool calls in the form that the chat template needs, with a note; the form of the data otherwise."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.unit.chat.test_template import GENERATE, answer, renderer, texts

from preftune.chat.arguments import AS_OBJECTS, AS_TEXT, QUOTED
from preftune.chat.render import Encoded
from preftune.types import Message, PreferenceGroup

START = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}{% for call in m.tool_calls %}"
END = "{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}" + GENERATE + "{{ '<|im_start|>assistant\n' }}{% endif %}"
OBJECTS = START + "{% for key, value in call.function.arguments.items() %}{{ key + '=' + value }}{% endfor %}" + END
TEXT = START + "{{ call.function.name + ' ' + call.function.arguments }}" + END
ANY = START + "{{ call.function | tojson }}" + END
ARGUMENTS = {"at": "the sea"}


def asked(arguments: Any, in_prompt: bool = False) -> PreferenceGroup:
    call = answer("", tool_calls=[{"function": {"name": "at", "arguments": arguments}}])
    prompt = (Message("user", "where?"), *(call if in_prompt else ()))
    return PreferenceGroup(prompt, (answer("there") if in_prompt else call, answer("no")), origin="f:1")


def encoded(template: str, arguments: Any, in_prompt: bool = False) -> Encoded:
    (found,) = renderer(template).encode([asked(arguments, in_prompt)])
    assert not found.fault, found.fault
    return found


@pytest.mark.parametrize("in_prompt", [False, True])
@pytest.mark.parametrize(
    ("template", "arguments", "other", "note"),
    [
        (OBJECTS, json.dumps(ARGUMENTS), ARGUMENTS, AS_OBJECTS),
        (TEXT, ARGUMENTS, json.dumps(ARGUMENTS), AS_TEXT),
    ],
)
def test_arguments_that_the_template_refuses_are_given_in_the_other_form(
    template: str, arguments: Any, other: Any, note: str, in_prompt: bool
) -> None:
    found, wanted = encoded(template, arguments, in_prompt), encoded(template, other, in_prompt)
    assert (found.prompt_ids, found.response_ids) == (wanted.prompt_ids, wanted.response_ids)
    assert note in found.notes
    assert note not in wanted.notes


def test_arguments_that_no_form_helps_are_refused_with_the_first_reason() -> None:
    (found,) = renderer(OBJECTS).encode([asked("not JSON")])
    assert found.fault
    assert "has no attribute 'items'" in found.fault.reason


def test_arguments_in_quotes_are_noted() -> None:
    assert QUOTED in encoded(ANY, json.dumps(ARGUMENTS)).notes
    assert QUOTED not in encoded(ANY, ARGUMENTS).notes
    assert QUOTED not in encoded(TEXT, json.dumps(ARGUMENTS)).notes


def test_tool_calls_follow_reasoning_that_is_kept() -> None:
    """With data.thinking=keep, the template writes the tool calls and preftune the reasoning before them."""
    template = TEXT.replace("'<|im_start|>assistant\n' }}{% endif", "'<|im_start|>assistant\n<think>\n' }}{% endif")
    calls = [{"function": {"name": "look", "arguments": "{}"}}]
    one = PreferenceGroup(
        (Message("user", "where?"),),
        (answer("", reasoning_content="hm", tool_calls=calls), answer("Wait.", tool_calls=calls)),
    )
    assert texts(renderer(template, thinking="keep"), one)[1] == [
        "hm\n</think>\n\nlook {}<|im_end|>\n",
        "\n</think>\n\nWait.look {}<|im_end|>\n",
    ]
