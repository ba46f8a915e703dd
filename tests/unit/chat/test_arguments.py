"""Tool-call arguments are converted, with a note, only if the chat template needs the other form."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.unit.chat.test_template import GENERATE, answer, renderer, texts

from preftune.chat.arguments import AS_OBJECTS, AS_TEXT, QUOTED
from preftune.chat.texts import Encoded
from preftune.types import Message, PreferenceGroup

START = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}{% for call in m.tool_calls %}"
END = "{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}" + GENERATE + "{{ '<|im_start|>assistant\n' }}{% endif %}"
OBJECTS = START + "{% for key, value in call.function.arguments.items() %}{{ key + '=' + value }}{% endfor %}" + END
TEXT = START + "{{ call.function.name + ' ' + call.function.arguments }}" + END
ANY = START + "{{ call.function | tojson }}" + END
ARGUMENTS = {"at": "the sea"}


def tool_call_group(arguments: Any, in_prompt: bool = False) -> PreferenceGroup:
    call = answer("", tool_calls=[{"function": {"name": "at", "arguments": arguments}}])
    prompt = (Message("user", "where?"), *(call if in_prompt else ()))
    return PreferenceGroup(prompt, (answer("there") if in_prompt else call, answer("no")), origin="f:1")


def encoded(template: str, arguments: Any, in_prompt: bool = False) -> Encoded:
    (result,) = renderer(template).encode([tool_call_group(arguments, in_prompt)])
    assert not result.fault, result.fault
    return result


@pytest.mark.parametrize("in_prompt", [False, True])
@pytest.mark.parametrize(
    ("template", "arguments", "other", "note"),
    [
        (OBJECTS, json.dumps(ARGUMENTS), ARGUMENTS, AS_OBJECTS),
        (TEXT, ARGUMENTS, json.dumps(ARGUMENTS), AS_TEXT),
    ],
)
def test_arguments_that_the_template_refuses_are_converted_with_a_note(
    template: str, arguments: Any, other: Any, note: str, in_prompt: bool
) -> None:
    converted, expected = encoded(template, arguments, in_prompt), encoded(template, other, in_prompt)
    assert (converted.prompt_ids, converted.response_ids) == (expected.prompt_ids, expected.response_ids)
    assert note in converted.notes
    assert note not in expected.notes


def test_arguments_that_fail_in_both_forms_report_the_first_error() -> None:
    (result,) = renderer(OBJECTS).encode([tool_call_group("not JSON")])
    assert result.fault
    assert "has no attribute 'items'" in result.fault.reason


def test_arguments_written_as_a_quoted_string_are_decoded_if_they_are_an_object() -> None:
    quoted, expected = encoded(ANY, json.dumps(ARGUMENTS)), encoded(ANY, ARGUMENTS)
    assert quoted.response_ids == expected.response_ids
    assert AS_OBJECTS in quoted.notes
    assert QUOTED not in quoted.notes
    assert QUOTED in encoded(ANY, '["at", "the sea"]').notes
    assert AS_OBJECTS in encoded(ANY, json.dumps(ARGUMENTS), in_prompt=True).notes


def test_arguments_written_as_python_code_are_encoded() -> None:
    template = TEXT.replace("call.function.arguments }}", "(call.function.arguments | string) }}")
    assert encoded(template, ARGUMENTS).response_ids == encoded(template, json.dumps(ARGUMENTS)).response_ids
    assert QUOTED not in encoded(ANY, ARGUMENTS).notes
    assert QUOTED not in encoded(TEXT, json.dumps(ARGUMENTS)).notes


def test_with_thinking_keep_the_template_writes_tool_calls_after_the_reasoning() -> None:
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
