"""Chat templates: missing text, refused rows, reasoning, template arguments and the date."""

from __future__ import annotations

import json
from collections import Counter
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import make_tokenizer

from preftune.chat.lost_text import WORD, find_missing, missing_part
from preftune.chat.render import Renderer
from preftune.chat.template import ChatSettings, require_used
from preftune.config.schema import DataConfig
from preftune.data.prompts import encode_prompts
from preftune.data.tokenize_groups import Limits, tokenize
from preftune.errors import ConfigError, DataError, ModelError
from preftune.formats.account import Account
from preftune.types import Judgement, Message, PreferenceGroup, message_dict

PAIR = (Judgement(0, 1),)
GENERATE = "{% if add_generation_prompt %}"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    + GENERATE
    + "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}"
    "{{ m.content | trim }}{{ '</s>' }}{% endfor %}"
    + GENERATE
    + "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% set role = 'model' if m.role == 'assistant' else m.role %}"
    "{{ '<start_of_turn>' + role + '\n' + m.content | trim + '</s>\n' }}{% endfor %}"
    + GENERATE
    + "{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (  # no generation prompt: the answer follows the user's turn directly
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content | trim + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
QWEN3 = (  # writes the reasoning of the last turn and leaves out that of earlier turns
    "{% for m in messages %}{% set content = m.content %}{% set thought = '' %}"
    "{% if m.role == 'assistant' %}{% if m.reasoning_content %}{% set thought = m.reasoning_content %}"
    "{% elif '</think>' in content %}{% set thought = content.split('</think>')[0].split('<think>')[-1] %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.last %}"
    "{{ '<think>\n' + thought.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}"
    "{% else %}{{ content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}" + GENERATE + "{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
DEEPSEEK = (  # the generation prompt opens <think>, but turns are written without reasoning
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '<User>' + m.content }}"
    "{% elif m.role == 'assistant' %}{{ '<Assistant>' + m.content.split('</think>')[-1] + eos_token }}"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}" + GENERATE + "{{ '<Assistant><think>\n' }}{% endif %}"
)
DROPS = DEEPSEEK.replace("<Assistant><think>\n", "<Assistant>")
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}"
    + GENERATE
    + "{{ '<|assistant|>\n' }}{% endif %}"
)
TOOLS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
    "{% for call in m.tool_calls %}{{ '<tool>' + call.function | tojson + '</tool>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}" + GENERATE + "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
FAMILIES = {
    "chatml": CHATML,
    "llama3": LLAMA3,
    "gemma": GEMMA,
    "mistral": MISTRAL,
    "qwen3": QWEN3,
    "deepseek": DEEPSEEK,
    "drops": DROPS,
    "zephyr": ZEPHYR,
}


def chatty(template: str) -> Any:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template
    return tokenizer


def renderer(template: str, **chat: Any) -> Renderer:
    tokenizer = chatty(template)
    return Renderer.of(tokenizer, [tokenizer.convert_tokens_to_ids("<|im_end|>")], ChatSettings(**chat))


def answer(content: str, **extra: Any) -> tuple[Message, ...]:
    return (Message("assistant", content, tuple(sorted((k, json.dumps(v)) for k, v in extra.items()))),)


def group(prompt: str, *answers: tuple[Message, ...], origin: str = "f:1", system: str = "") -> PreferenceGroup:
    messages = (Message("system", system),) if system else ()
    return PreferenceGroup((*messages, Message("user", prompt)), answers, PAIR, origin=origin)


def texts(rendering: Renderer, one: PreferenceGroup) -> tuple[str, list[str]]:
    (encoded,) = rendering.encode([one])
    assert not encoded.fault, encoded.fault
    decode = rendering.tokenizer.decode
    return decode(encoded.prompt_ids), [decode(ids) for ids in encoded.response_ids]


def test_extra_fields_of_a_message_are_passed_to_the_template() -> None:
    rendering = renderer(QWEN3)
    one = group("how many?", answer("2", reasoning_content="I count."), answer("9", reasoning_content="I guess."))
    prompt, responses = texts(rendering, one)
    whole = rendering.tokenizer.apply_chat_template(
        [message_dict(m) for m in (*one.prompt, *one.responses[0])], tokenize=False
    )  # type: ignore[arg-type]
    assert prompt + responses[0] == whole
    assert "I count." in responses[0]


def test_responses_that_differ_only_in_their_reasoning_are_a_pair() -> None:
    one = group("how many?", answer("2", reasoning_content="I count."), answer("2", reasoning_content="I guess."))
    account = Account("f", read=1)
    assert len(tokenize([one], renderer(QWEN3), Limits(), account)) == 1
    groups = tokenize([one], renderer(CHATML, allow_dropped_text=True), Limits(), account)
    assert groups == []
    assert list(account.dropped) == ["the responses differ only in text that the chat template removes"]


def test_text_that_the_template_leaves_out_is_an_error_with_all_rows_and_a_fix() -> None:
    rows = [group("p", answer(f"<think>the sea has {i}</think>2"), answer("9"), origin=f"f:{i}") for i in range(2, 12)]
    with pytest.raises(DataError) as error:
        tokenize(rows, renderer(DROPS), Limits(), Account("f", read=10))
    assert error.value.what == (
        "the chat template removes part of the response: '<think>the sea has 2</think>' (10 rows)"
    )
    for name in (
        "data.allow_dropped_text=true",
        "data.chat_template_kwargs",
        "data.chat_template",
        "data.thinking=keep",
    ):
        assert name in error.value.fix
    account = Account("f", read=10)
    assert tokenize(rows, renderer(DROPS), Limits(bad_rows="drop"), account) == []
    assert [len(rows) for rows in account.dropped.values()] == [10]
    with pytest.raises(DataError, match=r"data\.allow_dropped_text=true"):
        account.check(1.0)
    account = Account("f", read=10)
    assert len(tokenize(rows, renderer(DROPS, allow_dropped_text=True), Limits(), account)) == 10
    assert account.noted["the chat template removes part of the response"] == [row.origin for row in rows]


def test_text_left_out_of_the_prompt_is_noted() -> None:
    """Templates of reasoning models leave out the reasoning of earlier turns intentionally."""
    before = (Message("user", "a"), Message("assistant", "<think>hm</think>b"), Message("user", "c"))
    one = PreferenceGroup(before, (answer("yes"), answer("no")), PAIR)
    (encoded,) = renderer(QWEN3).encode([one])
    assert "the chat template removes part of the prompt" in encoded.notes
    silent = renderer("{% for m in messages if m.role != 'system' %}" + CHATML.partition("%}")[2])
    (encoded,) = silent.encode([group("hello", answer("yes"), answer("no"), system="Be kind.")])
    assert "the chat template removes part of the prompt" in encoded.notes


def test_tool_calls_written_as_json_are_complete_and_missing_ids_are_noted() -> None:
    call = {"id": "call_7", "type": "function", "function": {"name": "look", "arguments": {"at": 'the "sea"\nnow'}}}
    one = group("p", answer("yes", tool_calls=[call]), answer("no", tool_calls=[]))
    (encoded,) = renderer(TOOLS).encode([one])
    assert not encoded.fault
    assert "the chat template does not write tool_calls.id, tool_calls.type of the response" in encoded.notes
    (encoded,) = renderer(CHATML).encode([one])
    assert encoded.fault
    assert encoded.fault.reason == (
        "the chat template removes part of the response: 'look' of the field 'tool_calls.function.name'"
    )


@pytest.mark.parametrize("content", ["<think>\nI count.\n</think>\n\n2", "I count.\n</think>\n\n2"])
def test_kept_reasoning_does_not_open_think_a_second_time(content: str) -> None:
    """The generation prompt opens `<think>`; the data may repeat it or not."""
    prompt, responses = texts(renderer(DEEPSEEK, thinking="keep"), group("p", answer(content), answer("9")))
    assert prompt == "<s><User>p<Assistant><think>\n"
    assert responses == ["I count.\n</think>\n\n2</s>", "\n</think>\n\n9</s>"]


def test_reasoning_in_a_field_is_rendered_like_reasoning_in_the_content() -> None:
    one = group("p", answer("2", reasoning_content="I count."), answer("9"))
    assert texts(renderer(DEEPSEEK, thinking="keep"), one)[1] == ["I count.\n</think>\n\n2</s>", "\n</think>\n\n9</s>"]
    assert texts(renderer(CHATML, thinking="keep"), one)[1][0] == "<think>\nI count.\n</think>\n\n2<|im_end|>\n"


def test_a_response_cut_off_in_its_reasoning_does_not_close_think() -> None:
    one = PreferenceGroup((Message("user", "p"),), (answer("I count and"),), ended=(False,))
    assert texts(renderer(DEEPSEEK, thinking="keep"), one)[1] == ["I count and"]


def test_a_generation_prompt_that_opens_think_suggests_thinking_keep() -> None:
    rows = [group("p", answer("good"), answer("bad"), origin=f"f:{i}") for i in range(3)]
    with pytest.raises(ModelError, match=r"data\.thinking=keep"):
        tokenize(rows, renderer(DEEPSEEK), Limits(), Account("f", read=3))


def test_all_rows_that_the_template_refuses_are_in_one_error() -> None:
    rows = [
        group("p", answer("yes"), answer("no"), origin=f"f:{i}", system="s" if i in (2, 4) else "") for i in range(5)
    ]
    with pytest.raises(DataError) as error:
        tokenize(rows, renderer(GEMMA), Limits(), Account("f", read=5))
    assert error.value.where == "f"
    assert error.value.what == "the chat template refuses these messages: System role not supported (2 rows)"
    assert error.value.why == "lines 2, 4"
    assert "data.bad_rows=drop" in error.value.fix
    account = Account("f", read=5)
    groups = tokenize(rows, renderer(GEMMA), Limits(bad_rows="drop"), account)
    assert [g.origin for g in groups] == ["f:0", "f:1", "f:3"]
    assert account.dropped == {"the chat template refuses these messages: System role not supported": ["f:2", "f:4"]}


def test_single_rows_that_do_not_begin_with_their_prompt_are_bad_rows() -> None:
    odd = CHATML.replace("{% for", "{% if messages[-1].content == 'odd' %}!{% endif %}{% for", 1)
    rows = [group("p", answer(text), answer("no"), origin=f"f:{text}") for text in ("yes", "odd")]
    account = Account("f", read=2)
    assert len(tokenize(rows, renderer(odd), Limits(bad_rows="drop"), account)) == 1
    assert [rows for reason, rows in account.dropped.items() if "does not begin with" in reason] == [["f:odd"]]


def test_prompts_that_the_template_refuses_are_dropped_and_counted() -> None:
    account = Account("f", read=2)
    prompts = [
        PreferenceGroup(m, (), origin=f"f:{i}")
        for i, m in enumerate([(Message("user", "a"),), (Message("system", "b"),)])
    ]
    assert [p.origin for p in encode_prompts(prompts, renderer(GEMMA), 99, account)] == ["f:0"]
    assert account.dropped == {"the chat template refuses these messages: System role not supported": ["f:1"]}


def test_chat_template_kwargs_are_passed_to_the_template() -> None:
    one = group("p", answer("yes"), answer("no"))
    assert texts(renderer(QWEN3, arguments={"enable_thinking": False}), one)[0].endswith("<think>\n\n</think>\n\n")
    assert texts(renderer(QWEN3), one)[0].endswith("assistant\n")


def test_template_arguments_of_a_row_replace_those_of_the_run() -> None:
    def with_arguments(arguments: dict[str, Any]) -> PreferenceGroup:
        extra = (("chat_template_kwargs", json.dumps(arguments)),)
        return PreferenceGroup((Message("user", "p", extra),), (answer("yes"), answer("no")), PAIR)

    thinks = renderer(QWEN3, arguments={"enable_thinking": True})
    closed = "<think>\n\n</think>\n\n"
    assert texts(thinks, with_arguments({"enable_thinking": False}))[0].endswith(closed)
    assert texts(thinks, with_arguments({}))[0].endswith("assistant\n")
    [encoded] = thinks.encode([with_arguments({"enable_thinking": False})])
    assert not encoded.fault
    assert not any("part of the prompt" in note for note in encoded.notes)
    for name, message in (("enable_thinkng", "does not read 'enable_thinkng'"), ("messages", "is set by preftune")):
        [encoded] = thinks.encode([with_arguments({name: False})])
        assert message in str(encoded.fault)


def test_an_argument_that_the_template_does_not_read_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'enable_thinking'"):
        require_used(QWEN3, ["enable_thinkng"], "data.chat_template_kwargs")
    with pytest.raises(ConfigError, match="no chat template"):
        require_used("", ["enable_thinking"], "data.chat_template_kwargs")
    require_used(QWEN3, ["enable_thinking"], "data.chat_template_kwargs")
    for name in ("messages", "add_generation_prompt", "tokenize", "strftime_now"):
        with pytest.raises(ValueError, match=f"{name} is set by preftune"):
            DataConfig(train="f", chat_template_kwargs={name: True})


DATED = "{{ strftime_now('%d %b %Y %H:%M:%S') }}" + CHATML


def test_the_template_writes_the_date_of_the_settings() -> None:
    """Also for date formats that a template computes, and inside its macros."""
    moment = datetime(2024, 7, 26, 13, 14, 15)
    one = group("p", answer("yes"), answer("no"))
    rendering = renderer(DATED, moment=moment)
    assert texts(rendering, one)[0].startswith("26 Jul 2024 13:14:15")
    assert (
        "the chat template writes the date; the whole run uses 2024-07-26 13:14:15" in rendering.encode([one])[0].notes
    )
    assert rendering.settings.moment == moment
    inside = "{% macro day(f) %}{{ strftime_now('%' ~ f) }}{% endmacro %}"
    inside += "{% if strftime_now is defined %}{{ day('Y') }}{% endif %}"
    assert texts(renderer(inside + CHATML, moment=moment), one)[0].startswith("2024")
    assert ChatSettings.from_record(rendering.settings.record()) == rendering.settings


def test_a_template_with_a_date_is_otherwise_rendered_as_by_transformers() -> None:
    """Jinja treats white space at the beginning of a template specially."""
    for start in ("", "\n", "\n\n", "  ", "{# note #}\n", "{%- if true %}\n  x\n{%- endif %}\n"):
        template = start + CHATML + "{% if false %}{{ strftime_now('%Y') }}{% endif %}"
        tokenizer = chatty(template)
        plain = tokenizer.apply_chat_template([{"role": "user", "content": "p"}], tokenize=False)
        assert Renderer.of(tokenizer).template.render((Message("user", "p"),), generation=False) == plain


def test_one_renderer_always_writes_the_same_date() -> None:
    rendering = renderer("{{ strftime_now('%f') }}" + CHATML)
    one = group("p", answer("yes"), answer("no"))
    assert texts(rendering, one) == texts(rendering, one)
    assert renderer(CHATML).settings.moment is None


def test_a_template_without_a_generation_prompt_is_noted() -> None:
    silent = CHATML.partition(GENERATE)[0]
    (encoded,) = renderer(silent).encode([group("p", answer("yes"), answer("no"))])
    assert any("no generation prompt" in note and "assistant" in note for note in encoded.notes)
    (encoded,) = renderer(MISTRAL).encode([group("p", answer("yes"), answer("no"))])
    assert not any("generation prompt" in note for note in encoded.notes)


def test_a_generation_prompt_after_the_response_is_not_scored() -> None:
    always = CHATML.replace(GENERATE, "{% if true %}")
    (encoded,) = renderer(always).encode([group("p", answer("yes"), answer("no"))])
    assert chatty(always).decode(encoded.response_ids[0]) == "yes<|im_end|>\n"
    assert any("after the end of the response; it is not scored" in note for note in encoded.notes)


def test_several_templates_without_a_default_are_refused() -> None:
    tokenizer = chatty(CHATML)
    tokenizer.chat_template = {"default": CHATML, "rag": ZEPHYR}
    assert Renderer.of(tokenizer).template.source == CHATML
    tokenizer.chat_template = {"rag": ZEPHYR, "tool": ZEPHYR}
    with pytest.raises(ModelError, match="several chat templates and no default"):
        Renderer.of(tokenizer)


WORDS = st.lists(
    st.sampled_from(["the", "sea", "2", "2", "end", "assistant", "<think>", "</think>", "\n", "it's", "é", "x"]),
    max_size=8,
).map(" ".join)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(FAMILIES)), WORDS, WORDS, WORDS, st.booleans(), st.sampled_from(["template", "keep"]))
def test_every_word_of_a_response_is_scored_or_reported(
    family: str, words: str, reasoning: str, prompt: str, system: bool, thinking: Any
) -> None:
    """The scored tokens contain all words of content and reasoning, for the templates of several model families."""
    extra = {"reasoning_content": reasoning} if reasoning.strip() else {}
    one = group(prompt, answer(words + " yes", **extra), answer("no"), system="be kind" if system else "")
    rendering = renderer(FAMILIES[family], thinking=thinking)
    (encoded,) = rendering.encode([one])
    if encoded.fault:
        assert encoded.fault.what
        return
    scored = Counter(WORD.findall(rendering.tokenizer.decode(encoded.response_ids[0])))
    opened = Counter(WORD.findall("<think>")) if "<think>" in words or extra else Counter()
    expected = Counter(WORD.findall(words + " yes")) + Counter(WORD.findall(reasoning))
    assert not expected - scored - opened
    assert rendering.tokenizer.decode(encoded.prompt_ids + encoded.response_ids[0]).count("yes") >= 1


@settings(max_examples=200, deadline=None)
@given(WORDS, st.integers(0, 7))
def test_a_rendering_without_one_word_of_a_message_is_detected(words: str, place: int) -> None:
    listed = [*words.split(), "yes"]
    place %= len(listed)
    assert find_missing((Message("assistant", words + " yes"),), "header " + words + " yes<|im_end|>") is None
    without = " ".join(listed[:place] + listed[place + 1 :]) + "<|im_end|>"
    assert find_missing((Message("assistant", words + " yes"),), without) is not None


@pytest.mark.parametrize("text", ["end", "im", "im_start"])
def test_a_word_inside_a_special_token_does_not_count_as_a_word_of_a_message(text: str) -> None:
    assert find_missing((Message("assistant", text),), "<|im_end|>") is not None


def test_names_of_prompt_messages_that_the_template_does_not_write_are_noted() -> None:
    named = (Message("user", "hello", (("name", '"Ann"'),)),)
    note = "the chat template does not write the names of the prompt's messages"
    (encoded,) = renderer(CHATML).encode([PreferenceGroup(named, (answer("yes"), answer("no")), PAIR)])
    assert note in encoded.notes
    (encoded,) = renderer(CHATML.replace("m.role", "(m.name or m.role)")).encode(
        [PreferenceGroup(named, (answer("yes"), answer("no")), PAIR)]
    )
    assert note not in encoded.notes


def test_tool_call_arguments_may_be_json_text_and_other_numbers_are_ignored() -> None:
    call = {"function": {"name": "look", "arguments": json.dumps({"at": "the caf\u00e9", "n": 2})}}
    (message,) = answer("yes", tool_calls=[call], weight=1)
    for written in ("look the caf\u00e9 2", "look " + json.dumps("the caf\u00e9") + " 2"):
        assert find_missing((message,), "yes " + written) is None
    missing = find_missing((message,), "yes look the 2")
    assert missing
    assert missing.field == "tool_calls.function.arguments.at"


def test_missing_part_returns_the_shortest_missing_text() -> None:
    assert missing_part("<think>a b</think>2", "2<|im_end|>") == "<think>a b</think>"
    assert missing_part("yes <note>x</note>", "yes<|im_end|>") == "<note>x</note>"
    assert missing_part("all", "none") == "all"
    assert len(missing_part("long " * 5000, "")) == 60
