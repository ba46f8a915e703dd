"""Text prompts through the chat template: data.as_chat, and the note where it is not set."""

from __future__ import annotations

from typing import Any

import pytest
from tests.conftest import make_tokenizer, write_jsonl

from preftune.chat.render import PLAIN, Renderer
from preftune.chat.template import ChatSettings
from preftune.chat.turns import in_turns
from preftune.config.sampling import PromptConfig
from preftune.config.schema import DataConfig
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
    (found,) = Renderer.of(chatty()).encode([group])
    assert chatty().decode(found.prompt_ids) == "<|user|>hello</s><|assistant|>"
    assert found.notes == ()


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
def test_other_texts_with_these_words_stay_whole(text: str) -> None:
    assert in_turns(PreferenceGroup(text, ("yes", "no"), PAIR)).prompt == (Message("user", text),)


def test_prompts_of_methods_that_sample_become_messages_too(tmp_path: Any) -> None:
    file = write_jsonl(tmp_path / "f.jsonl", [{"prompt": "hello"}, {"prompt": TRANSCRIPT}])
    first, second = read_prompt_data(PromptConfig(train=str(file), as_chat=True)).train
    assert first.prompt == (Message("user", "hello"),)
    assert len(second.prompt) == 3
    assert [g.prompt for g in read_prompt_data(PromptConfig(train=str(file))).train] == ["hello", TRANSCRIPT]


def test_a_row_without_a_prompt_cannot_become_chat(tmp_path: Any) -> None:
    file = write_jsonl(tmp_path / "f.jsonl", [{"text": "hello"}])
    with pytest.raises(DataError, match=r"f\.jsonl:1: the prompt is empty"):
        read_data(DataConfig(train=str(file), as_chat=True))


def test_chat_without_a_template_is_refused_as_for_messages() -> None:
    renderer = Renderer.of(make_tokenizer(), settings=ChatSettings(as_chat=True))
    with pytest.raises(ModelError, match="no chat template"):
        renderer.encode([PreferenceGroup("hello", ("yes", "no"), PAIR)])


def test_plain_prompts_on_a_chat_model_are_noted() -> None:
    """Not where the tokenizer has no template, the prompt is empty, or the text was rendered before."""
    group = PreferenceGroup("hello", ("yes", "no"), PAIR)
    (found,) = Renderer.of(chatty()).encode([group])
    assert PLAIN in found.notes
    assert "data.as_chat=true" in PLAIN
    for tokenizer, prompt in ((make_tokenizer(), "hello"), (chatty(), ""), (chatty(), "<|user|>hello</s>")):
        (found,) = Renderer.of(tokenizer).encode([PreferenceGroup(prompt, ("yes", "no"), PAIR)])
        assert PLAIN not in found.notes


def test_a_renderer_sends_text_through_the_template_for_evaluation() -> None:
    renderer = Renderer.of(chatty(), settings=ChatSettings(as_chat=True))
    (found,) = renderer.encode([PreferenceGroup("hello", ("yes", "no"), PAIR)])
    assert chatty().decode(found.prompt_ids) == "<|user|>hello</s><|assistant|>"
