"""Responses of several messages: the ids of plain transformers, and a mask of what the assistant writes."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import numpy as np
import pytest
from tests.unit.chat.families import FAMILIES, family_renderer, family_tokenizer
from tokenizers import processors

from preftune.chat.faults import NO_EXTENSION
from preftune.chat.render import Renderer
from preftune.chat.texts import Encoded
from preftune.formats.tools import with_tools
from preftune.types import Judgement, Message, PreferenceGroup, message_dict, split_tools

TOOLS = [
    {"type": "function", "function": {"name": "tide", "description": "Tides", "parameters": {"type": "object"}}},
]
CALLS = [{"type": "function", "function": {"name": "tide", "arguments": {"at": "Brest"}}}]
WITH_TOOLS = ("llama-3.1", "qwen-2.5", "qwen-3", "mistral", "smollm-3", "hermes")
PAIR = (Judgement(0, 1),)


def turn(role: str, content: str, **extra: Any) -> Message:
    return Message(role, content, tuple(sorted((name, json.dumps(value)) for name, value in extra.items())))


USER = turn("user", "Guess it.")
CHOSEN = (turn("assistant", "Is it big?"), turn("user", "No. user"), turn("assistant", "Then the sea é"))
REJECTED = (turn("assistant", "Is it big?"), turn("user", "No. user"), turn("assistant", "I give up"))
EARLY = (turn("assistant", "A cat?"), turn("user", "Why?"), turn("assistant", "It purrs."))
AGENT = (turn("assistant", "", tool_calls=CALLS), turn("tool", '{"high": 7}', name="tide"), turn("assistant", "At 7."))
GUESS = (turn("assistant", "I do not know."),)


def group(*responses: tuple[Message, ...], prompt: tuple[Message, ...] = (USER,), tools: Any = ()) -> PreferenceGroup:
    one = PreferenceGroup(prompt, responses, PAIR if len(responses) == 2 else (), origin="f:1")
    return with_tools([one], list(tools))[0]


def encoded(renderer: Renderer, one: PreferenceGroup) -> Encoded:
    (result,) = renderer.encode([one])
    assert not result.fault, result.fault.reason
    return result


def scored_texts(renderer: Renderer, result: Encoded) -> list[list[str]]:
    """Return the text of each run of scored tokens, for each response."""
    out = []
    masks = result.masks or [[True] * len(ids) for ids in result.response_ids]
    for ids, mask in zip(result.response_ids, masks, strict=True):
        edges = np.flatnonzero(np.diff(np.array([0, *mask, 0], dtype=int)))
        out.append([renderer.tokenizer.decode(ids[a:b]) for a, b in edges.reshape(-1, 2)])
    return out


def whole_ids(name: str, one: PreferenceGroup, response: int, **arguments: Any) -> list[int]:
    """Return the ids of plain transformers."""
    messages, tools = split_tools((*one.prompt, *one.responses[response]))  # type: ignore[misc]
    plain = [message_dict(message) for message in messages]
    options = {**arguments, **({"tools": tools} if tools else {})}
    return list(family_tokenizer(name).apply_chat_template(plain, return_dict=False, **options))


def require_whole(name: str, one: PreferenceGroup, result: Encoded, **arguments: Any) -> None:
    """Check that prompt and response are the ids of plain transformers, up to the last scored token."""
    for place, ids in enumerate(result.response_ids):
        expected = whole_ids(name, one, place, **arguments)
        ours = [*result.prompt_ids, *ids]
        assert ours == expected[: len(ours)]
        assert not family_tokenizer(name).decode(expected[len(ours) :]).strip()


def last(name: str, text: str) -> str:
    """Return the text of the last turn."""
    text = "<think>\n\n</think>\n\n" + text if name == "qwen-3" else text
    lead = " " if name == "mistral" else ""
    return lead + text + FAMILIES[name][2] + ("</s>" if name == "phi-3" else "")


def inner(name: str, text: str) -> str:
    return (" " if name == "mistral" else "") + text + FAMILIES[name][2]


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "deepseek-r1"])
def test_all_assistant_turns_are_scored_and_no_other_text(name: str) -> None:
    renderer, one = family_renderer(name), group(CHOSEN, REJECTED)
    result = encoded(renderer, one)
    require_whole(name, one, result)
    assert scored_texts(renderer, result) == [
        [inner(name, "Is it big?"), last(name, "Then the sea é")],
        [inner(name, "Is it big?"), last(name, "I give up")],
    ]


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "deepseek-r1"])
def test_only_the_last_turn_is_scored_and_the_common_turns_are_shared(name: str) -> None:
    renderer, one = family_renderer(name, scored_turns="last"), group(CHOSEN, REJECTED)
    result = encoded(renderer, one)
    require_whole(name, one, result)
    assert scored_texts(renderer, result) == [[last(name, "Then the sea é")], [last(name, "I give up")]]
    assert "Is it big?" in renderer.tokenizer.decode(result.prompt_ids)
    assert not result.masks  # all of the response is scored, as the context is part of the prompt


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "deepseek-r1"])
def test_last_turns_after_different_turns_have_their_own_context(name: str) -> None:
    renderer, one = family_renderer(name, scored_turns="last"), group(CHOSEN, EARLY)
    result = encoded(renderer, one)
    require_whole(name, one, result)
    assert scored_texts(renderer, result) == [[last(name, "Then the sea é")], [last(name, "It purrs.")]]
    assert result.response_ids[0][0] != result.response_ids[1][0]
    assert not any(mask[0] for mask in result.masks)


@pytest.mark.parametrize("name", WITH_TOOLS)
@pytest.mark.parametrize("as_text", [False, True])
def test_tool_calls_are_scored_and_results_are_not(name: str, as_text: bool) -> None:
    calls = json.loads(json.dumps(CALLS))
    if as_text:
        calls[0]["function"]["arguments"] = json.dumps(calls[0]["function"]["arguments"])
    agent = (turn("assistant", "", tool_calls=calls), *AGENT[1:])
    renderer = family_renderer(name)
    result = encoded(renderer, group(agent, GUESS, tools=TOOLS))
    require_whole(name, group(AGENT, GUESS, tools=TOOLS), result)
    (call, final), (guess,) = scored_texts(renderer, result)
    assert '"tide"' in call
    assert "Brest" in call
    assert call.endswith(FAMILIES[name][2])
    assert "high" not in call + final
    assert final == last(name, "At 7.")
    assert guess == last(name, "I do not know.")
    assert '"Tides"' in renderer.tokenizer.decode(result.prompt_ids)


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_a_later_user_turn_keeps_tools_and_calls_exact(name: str) -> None:
    """Mistral writes the tools before the last user message, so the text of the prompt changes."""
    one = group((*AGENT, turn("user", "And tomorrow?"), turn("assistant", "At 8.")), tools=TOOLS)
    renderer = family_renderer(name)
    result = encoded(renderer, one)
    require_whole(name, one, result)
    assert scored_texts(renderer, result)[0][-2:] == [inner(name, "At 7."), last(name, "At 8.")]


def test_the_mask_is_that_of_transformers_for_a_template_with_generation_markers() -> None:
    renderer = family_renderer("smollm-3")
    for response in (CHOSEN, AGENT, EARLY):
        one = group(response, tools=TOOLS)
        result = encoded(renderer, one)
        messages, tools = split_tools((*one.prompt, *response))  # type: ignore[misc]
        plain = renderer.tokenizer.apply_chat_template(
            [message_dict(m) for m in messages], tools=tools, return_dict=True, return_assistant_tokens_mask=True
        )
        mask = [False] * len(result.prompt_ids) + list((result.masks or ([True] * len(result.response_ids[0]),))[0])
        expected = [bool(value) for value in plain["assistant_masks"]]
        assert mask == expected[: len(mask)]
        assert not any(expected[len(mask) :])


PREFIX = ("llama-3.1", "qwen-2.5", "gemma-2", "gemma-3", "phi-4", "zephyr", "command-r", "hermes")


@pytest.mark.parametrize("name", PREFIX)
@pytest.mark.parametrize("response", [CHOSEN, EARLY])
def test_the_mask_is_the_difference_of_prefixes(name: str, response: tuple[Message, ...]) -> None:
    one = group(response)
    result = encoded(family_renderer(name), one)
    messages, tokenizer = [message_dict(m) for m in (*one.prompt, *response)], family_tokenizer(name)  # type: ignore[arg-type]

    def size(messages: Any, generation: bool) -> int:
        return len(tokenizer.apply_chat_template(messages, return_dict=False, add_generation_prompt=generation))

    expected = np.zeros(size(messages, False), dtype=bool)
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            expected[size(messages[:index], True) : size(messages[: index + 1], False)] = True
    assert [*([False] * len(result.prompt_ids)), *result.masks[0]] == expected.tolist()


THOUGHT = (
    turn("assistant", "Is it big?", reasoning_content="hm one"),
    turn("user", "No."),
    turn("assistant", "The sea", reasoning_content="hm two"),
)
OPEN = {"qwen-3": "<think>\n", "deepseek-r1": ""}


@pytest.mark.parametrize("name", ["qwen-3", "deepseek-r1"])
def test_reasoning_is_kept_unscored_or_dropped(name: str) -> None:
    end, one = FAMILIES[name][2], group(THOUGHT)
    kept = [f"{OPEN[name]}hm one\n</think>\n\nIs it big?{end}", f"{OPEN[name]}hm two\n</think>\n\nThe sea{end}"]
    renderer = family_renderer(name, thinking="keep")
    assert scored_texts(renderer, encoded(renderer, one)) == [kept]
    renderer = family_renderer(name, thinking="unscored")
    result = encoded(renderer, one)
    assert scored_texts(renderer, result) == [[f"Is it big?{end}", f"The sea{end}"]]
    assert "hm two" in renderer.tokenizer.decode(result.response_ids[0])
    renderer = family_renderer(name, thinking="drop")
    result = encoded(renderer, one)
    assert "hm" not in renderer.tokenizer.decode([*result.prompt_ids, *result.response_ids[0]])


def test_a_single_response_with_unscored_reasoning_has_the_reasoning_as_context() -> None:
    renderer = family_renderer("deepseek-r1", thinking="unscored")
    one = group((turn("assistant", "<think>\nI count.\n</think>\n\n2"),), (turn("assistant", "9"),))
    result = encoded(renderer, one)
    assert scored_texts(renderer, result) == [["2</s>"], ["9</s>"]]
    text = renderer.tokenizer.decode([*result.prompt_ids, *result.response_ids[0]])
    assert text == "<s><｜User｜>Guess it.<｜Assistant｜><think>\nI count.\n</think>\n\n2</s>"


def test_a_template_that_drops_earlier_reasoning_is_noted() -> None:
    result = encoded(family_renderer("qwen-3"), group(THOUGHT))
    assert "the chat template removes the reasoning from earlier turns of a response" in result.notes
    require_whole("qwen-3", group(THOUGHT), result)


@pytest.mark.parametrize("name", ["gemma-2", "mistral"])
def test_a_system_message_is_merged_into_the_user_turn_with_the_setting(name: str) -> None:
    system = (turn("system", "Be kind."), USER)
    (refused,) = family_renderer(name).encode([group(CHOSEN, REJECTED, prompt=system)])
    assert refused.fault
    merged = encoded(family_renderer(name, system_message="merge"), group(CHOSEN, REJECTED, prompt=system))
    by_hand = (turn("user", "Be kind.\n\nGuess it."),)
    plain = encoded(family_renderer(name), group(CHOSEN, REJECTED, prompt=by_hand))
    assert (merged.prompt_ids, merged.response_ids, merged.masks) == (
        plain.prompt_ids,
        plain.response_ids,
        plain.masks,
    )


def test_tools_that_the_template_does_not_write_are_a_fault() -> None:
    (result,) = family_renderer("zephyr").encode([group(GUESS, CHOSEN, tools=TOOLS)])
    assert result.fault
    assert "does not write the tools" in result.fault.reason


def test_tool_results_that_the_template_does_not_write_are_a_fault() -> None:
    (result,) = family_renderer("deepseek-r1", thinking="keep").encode([group(AGENT, GUESS)])
    assert result.fault


def test_turns_with_weight_0_are_context() -> None:
    renderer = family_renderer("qwen-2.5")
    result = encoded(renderer, group((turn("assistant", "Is it big?", weight=0), *CHOSEN[1:])))
    assert scored_texts(renderer, result) == [["Then the sea é<|im_end|>\n"]]


def test_a_last_turn_without_the_think_that_the_prompt_opens_is_a_fault() -> None:
    (result,) = family_renderer("deepseek-r1").encode([group(CHOSEN, REJECTED)])
    assert result.fault
    assert result.fault.what == NO_EXTENSION


def test_turns_are_found_after_white_space_if_the_template_moves_the_tools() -> None:
    before = turn("user", "And tomorrow? \n")
    one = group((*GUESS, before, *AGENT, turn("user", "Thanks."), turn("assistant", "Bye.")), tools=TOOLS)
    result = encoded(family_renderer("mistral"), one)
    require_whole("mistral", one, result)
    assert len(scored_texts(family_renderer("mistral"), result)[0]) == 4


def test_white_space_tokens_without_offsets_are_scored() -> None:
    tokenizer = copy.deepcopy(family_tokenizer("qwen-2.5"))
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    renderer = Renderer.of(tokenizer, [tokenizer.convert_tokens_to_ids("<|im_end|>")])
    assert scored_texts(renderer, encoded(renderer, group(CHOSEN))) == [
        ["Is it big?<|im_end|>\n", "Then the sea é<|im_end|>\n"]
    ]


def random_dialogue(random: Any, calls: bool) -> tuple[Message, ...]:
    """Return one to three assistant turns and others between. Texts of users and tools have a U, reasoning has a T."""

    def text(kind: str) -> str:
        word = f"{kind}{random.integers(1000)}q"
        forms = [word, f"{word} \n", f"  {word}", f"\n{word}", f"{word}\n\n<b>{word} é", f"<{word}"]
        return str(random.choice(forms))

    turns: list[Message] = []
    for _ in range(random.integers(0, 3)):
        thought = {"reasoning_content": text("T")} if random.random() < 0.3 else {}
        inline = f"<think>\n{text('T')}\n</think>\n\n" if not thought and random.random() < 0.3 else ""
        call = {"tool_calls": CALLS} if calls and random.random() < 0.3 else {}
        turns.append(turn("assistant", inline + text("A"), **thought, **call))
        turns.append(turn("tool" if call else "user", text("U")))
    return (*turns, turn("assistant", text("A")))


@pytest.mark.parametrize("thinking", ["template", "keep", "unscored", "drop"])
@pytest.mark.parametrize("name", FAMILIES)
def test_random_dialogues_score_every_assistant_text_and_nothing_else(name: str, thinking: Any) -> None:
    random = np.random.default_rng(0)
    renderer = family_renderer(name, thinking=thinking, allow_dropped_text=True)
    rendered = 0
    for _ in range(12):
        one = group(*(random_dialogue(random, name in ("qwen-2.5", "qwen-3", "hermes")) for _ in range(2)))
        (result,) = renderer.encode([one])
        if result.fault:  # the generation prompt opens <think>, which the template does not write
            assert (name, thinking) == ("deepseek-r1", "template"), result.fault.reason
            continue
        rendered += 1
        for runs, response in zip(scored_texts(renderer, result), one.responses, strict=True):
            written = [m for m in response if m.role == "assistant"]  # type: ignore[union-attr]
            assert len(runs) == len(written)
            for run, message in zip(runs, written, strict=True):
                assert message.content.rpartition("</think>")[2].strip() in run
                kinds = {word[0] for word in re.findall(r"[ATU]\d+q", run)}
                assert kinds <= ({"A", "T"} if thinking in ("template", "keep") else {"A"})
        if thinking == "template":
            require_whole(name, one, result)
    assert rendered or name == "deepseek-r1"
