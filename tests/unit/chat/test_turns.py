"""data.as_chat: text prompts become chat messages; without it, a note suggests it."""

from __future__ import annotations

from typing import Any

import pytest
from tests.conftest import make_tokenizer, write_jsonl

from preftune.chat.open import ChatOptions
from preftune.chat.render import PLAIN, Renderer
from preftune.chat.template import ChatSettings
from preftune.chat.turns import CONVERTED, text_to_chat
from preftune.config.sampling import PromptConfig
from preftune.config.schema import DataConfig
from preftune.data.read_groups import SEVERAL_MESSAGES
from preftune.errors import DataError, ModelError
from preftune.lifecycle.data import read_data, read_prompt_data
from preftune.types import Judgement, Message, PreferenceGroup

PAIR = (Judgement(0, 1),)
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TRANSCRIPT = "\n\nHuman: hello\n\nAssistant: hi: there\n\nHuman: a\n\nb\n\nAssistant:"


def chatty() -> Any:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def test_text_becomes_one_user_and_one_assistant_message(tmp_path: Any) -> None:
    file = write_jsonl(tmp_path / "f.jsonl", [{"prompt": "hello", "chosen": "yes", "rejected": "no"}])
    (group,) = read_data(DataConfig(train=str(file), as_chat=True)).train
    assert group.prompt == (Message("user", "hello"),)
    assert group.responses == ((Message("assistant", "yes"),), (Message("assistant", "no"),))
    (encoded,) = Renderer.of(chatty()).encode([group])
    assert chatty().decode(encoded.prompt_ids) == "<|user|>hello</s><|assistant|>"
    assert encoded.notes == ()


def test_a_transcript_becomes_its_messages(tmp_path: Any) -> None:
    rows = [{"chosen": TRANSCRIPT + " yes", "rejected": TRANSCRIPT + " no"}]
    (group,) = read_data(DataConfig(train=str(write_jsonl(tmp_path / "f.jsonl", rows)), as_chat=True)).train
    assert group.prompt == (
        Message("user", "hello"),
        Message("assistant", "hi: there"),
        Message("user", "a\n\nb"),
    )
    assert group.responses == ((Message("assistant", "yes"),), (Message("assistant", "no"),))


@pytest.mark.parametrize("text", ["Human: what is the Assistant:", "a\n\nHuman: b\n\nAssistant:", "\n\nHuman: b"])
def test_other_texts_with_these_words_become_one_message(text: str) -> None:
    assert text_to_chat(PreferenceGroup(text, ("yes", "no"), PAIR)).prompt == (Message("user", text),)


def test_as_chat_also_converts_prompts_to_sample_from(tmp_path: Any) -> None:
    file = write_jsonl(tmp_path / "f.jsonl", [{"prompt": "hello"}, {"prompt": TRANSCRIPT}])
    first, second = read_prompt_data(PromptConfig(train=str(file), as_chat=True)).train
    assert first.prompt == (Message("user", "hello"),)
    assert len(second.prompt) == 3
    assert [g.prompt for g in read_prompt_data(PromptConfig(train=str(file))).train] == ["hello", TRANSCRIPT]


def test_as_chat_refuses_a_row_with_an_empty_prompt(tmp_path: Any) -> None:
    file = write_jsonl(tmp_path / "f.jsonl", [{"text": "hello"}])
    with pytest.raises(DataError, match=r"f\.jsonl:1: the prompt is empty"):
        read_data(DataConfig(train=str(file), as_chat=True))


def test_as_chat_without_a_template_is_refused() -> None:
    renderer = Renderer.of(make_tokenizer(), settings=ChatSettings(as_chat=True))
    with pytest.raises(ModelError, match="no chat template"):
        renderer.encode([PreferenceGroup("hello", ("yes", "no"), PAIR)])


def test_plain_prompts_for_a_chat_model_are_noted() -> None:
    """There is no note without a template, for an empty prompt, and for text with special tokens."""
    group = PreferenceGroup("hello", ("yes", "no"), PAIR)
    (encoded,) = Renderer.of(chatty()).encode([group])
    assert PLAIN in encoded.notes
    assert "data.as_chat=true" in PLAIN
    for tokenizer, prompt in ((make_tokenizer(), "hello"), (chatty(), ""), (chatty(), "<|user|>hello</s>")):
        (encoded,) = Renderer.of(tokenizer).encode([PreferenceGroup(prompt, ("yes", "no"), PAIR)])
        assert PLAIN not in encoded.notes


def test_a_renderer_with_as_chat_applies_the_template_to_text() -> None:
    renderer = Renderer.of(chatty(), settings=ChatSettings(as_chat=True))
    (encoded,) = renderer.encode([PreferenceGroup("hello", ("yes", "no"), PAIR)])
    assert chatty().decode(encoded.prompt_ids) == "<|user|>hello</s><|assistant|>"


DIVERGED = {
    "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
    "rejected": "\n\nHuman: a\n\nAssistant: e",
}
ROWS = [{"chosen": TRANSCRIPT + " yes", "rejected": TRANSCRIPT + " no"}, DIVERGED]
LATER = {
    "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
    "rejected": "\n\nHuman: a\n\nAssistant: b\n\nHuman: C\n\nAssistant: d",
}


def test_transcripts_become_messages_for_a_chat_model_without_a_setting(tmp_path: Any) -> None:
    data = read_data(DataConfig(train=str(write_jsonl(tmp_path / "f.jsonl", ROWS))), has_template=True)
    assert [len(group.prompt) for group in data.train] == [3, 1]
    assert data.train[0].responses == ((Message("assistant", "yes"),), (Message("assistant", "no"),))
    assert data.accounts[0].noted[CONVERTED] == [f"{tmp_path}/f.jsonl:1", f"{tmp_path}/f.jsonl:2"]


def test_transcripts_that_differ_in_the_middle_become_responses_of_several_messages(tmp_path: Any) -> None:
    data = read_data(DataConfig(train=str(write_jsonl(tmp_path / "f.jsonl", [*ROWS, LATER]))), has_template=True)
    _, group, later = data.train
    assert group.prompt == (Message("user", "a"),)
    assert group.responses == (
        (Message("assistant", "b"), Message("user", "c"), Message("assistant", "d")),
        (Message("assistant", "e"),),
    )
    assert later.prompt == (Message("user", "a"),), "a user turn cannot be scored, so the turn before it begins"
    assert [text[1].content for text in later.responses] == ["c", "C"]
    assert data.accounts[0].noted[SEVERAL_MESSAGES] == [f"{tmp_path}/f.jsonl:{line}" for line in (2, 3)]
    (_, encoded, _) = Renderer.of(chatty()).encode(data.train)
    scored = [i for i, is_scored in zip(encoded.response_ids[0], encoded.masks[0], strict=True) if is_scored]
    assert chatty().decode(scored) == "b</s>d</s>"


@pytest.mark.parametrize(("setting", "has_template"), [(False, True), ("auto", False)])
def test_transcripts_stay_text_without_a_template_or_with_as_chat_false(
    setting: Any, has_template: bool, tmp_path: Any
) -> None:
    config = DataConfig(train=str(write_jsonl(tmp_path / "f.jsonl", ROWS)), as_chat=setting, max_dropped=0.5)
    data = read_data(config, has_template)
    assert [group.prompt for group in data.train] == [TRANSCRIPT]
    assert data.accounts[0].dropped["prompts of chosen and rejected differ"] == [f"{tmp_path}/f.jsonl:2"]
    assert CONVERTED not in data.accounts[0].noted


def test_a_renderer_converts_transcripts_and_counts_them() -> None:
    group = PreferenceGroup(TRANSCRIPT, (" yes", " no"), PAIR)
    (encoded,) = Renderer.of(chatty()).encode([group])
    assert encoded.notes == (CONVERTED,)
    text = "<|user|>hello</s><|assistant|>hi: there</s><|user|>a\n\nb</s><|assistant|>"
    assert chatty().decode(encoded.prompt_ids) == text
    for renderer in (Renderer.of(make_tokenizer()), Renderer.of(chatty(), settings=ChatSettings(as_chat=False))):
        (encoded,) = renderer.encode([group])
        assert renderer.tokenizer.decode(encoded.prompt_ids).endswith(TRANSCRIPT)


def test_a_model_is_evaluated_as_it_was_trained() -> None:
    assert ChatSettings.from_record({}).as_chat == "auto"
    for trained in (True, False, "auto"):
        saved = ChatSettings.from_record(ChatSettings(as_chat=trained).record())
        assert ChatOptions().override(saved).as_chat == trained
        assert ChatOptions(as_chat=False).override(saved).as_chat is False
