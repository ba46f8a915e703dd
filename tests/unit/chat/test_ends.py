"""BOS, EOS and end-of-turn tokens that the text already has are not doubled, and nothing else is taken away."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import make_tokenizer

from preftune.chat.render import Renderer
from preftune.data.groups import Limits, tokenize
from preftune.formats.account import Account
from preftune.model.load import end_ids, locate
from preftune.types import Judgement, Message, PreferenceGroup

PAIR = (Judgement(0, 1),)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
REMOVED = "the content already ended with the template's end token; one was removed"
BEFORE = "the response holds its end token before its end"
ENDED = "the text already ended with EOS; none was added"


def with_markers(bos: str = "<s>", eos: str = "</s>") -> Any:
    tokenizer = make_tokenizer(bos=bos == "<s>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.bos_token, tokenizer.eos_token = bos, eos
    tokenizer.chat_template = CHATML
    return tokenizer


def encode(tokenizer: Any, prompt: Any, *responses: Any) -> tuple[str, list[str], tuple[str, ...]]:
    pair = PAIR if len(responses) > 1 else ()
    (found,) = Renderer.of(tokenizer).encode([PreferenceGroup(prompt, responses, pair)])
    assert not found.fault
    return (
        tokenizer.decode(found.prompt_ids),
        [tokenizer.decode(ids) for ids in found.response_ids],
        found.notes,
    )


def chat(prompt: str, *answers: str) -> tuple[Any, ...]:
    return (Message("user", prompt),), *((Message("assistant", text),) for text in answers)


def test_a_text_row_has_one_bos_and_one_eos(tokenizer: Any) -> None:
    account = Account("f", read=1)
    (group,) = tokenize([PreferenceGroup("", ("<s>the cat</s>",))], Renderer.of(tokenizer), Limits(), account)
    assert [*group.prompt_ids, *group.response_ids[0]] == [*tokenizer("the cat")["input_ids"], 2]
    assert list(account.noted) == ["the text began with BOS twice; one was removed", ENDED]


@pytest.mark.parametrize("start", ["<s>", "<s><s>", " <s>", "\n<s> <s>"])
def test_bos_is_removed_from_the_beginning_of_prompts_and_responses(tokenizer: Any, start: str) -> None:
    prompt, responses, notes = encode(tokenizer, f"{start}the cat", f"{start} sat", " ran")
    assert prompt == "<s>the cat"
    assert responses == [" sat</s>", " ran</s>"]
    assert notes == ("the prompt began with BOS twice; one was removed", "a response began with BOS; it was removed")


def test_a_text_that_was_decoded_has_its_ids_again(shared: Any) -> None:
    """SentencePiece decodes a space after BOS that is not part of the text."""
    from transformers import AutoTokenizer

    real = AutoTokenizer.from_pretrained(shared / "models" / "stories260k")
    ids = real("Once upon a time")["input_ids"]
    renderer = Renderer.of(real)
    (found,) = renderer.encode([PreferenceGroup(real.decode(ids), (" there", " was"), PAIR)])
    assert found.prompt_ids == ids
    (found,) = renderer.encode([PreferenceGroup("", (real.decode(ids),))])
    assert [*found.prompt_ids, *found.response_ids[0]] == [*ids, 2]


def test_bos_inside_of_a_response_is_noted(tokenizer: Any) -> None:
    _, responses, notes = encode(tokenizer, "the cat", " sat<s> on", " ran")
    assert responses[0] == " sat<s> on</s>"
    assert notes == ("a response holds BOS after its beginning",)


def test_a_bos_that_the_tokenizer_does_not_write_stays() -> None:
    """For SmolLM2, BOS is also the token that begins every turn."""
    tokenizer = with_markers(bos="<|im_start|>", eos="<|im_end|>")
    written = "<|im_start|>user\nhi<|im_end|>\n"
    prompt, responses, notes = encode(tokenizer, written, "<|im_start|>assistant\nyes<|im_end|>\n", "no")
    assert prompt == written
    assert responses == ["<|im_start|>assistant\nyes<|im_end|>", "no<|im_end|>"]
    assert notes == (ENDED,)
    messages = chat("hi", "yes", "no")
    prompt, responses, notes = encode(tokenizer, *messages)
    assert prompt == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert responses == ["yes<|im_end|>\n", "no<|im_end|>\n"]
    assert notes == ()


def test_bos_at_the_beginning_of_a_message_is_removed() -> None:
    tokenizer = with_markers(eos="<|im_end|>")
    tokenizer.chat_template = "{{ bos_token }}" + CHATML
    prompt, responses, notes = encode(tokenizer, *chat("<s>hi", "<s>yes", "no"))
    assert prompt.count("<s>") == 1
    assert not any("<s>" in text for text in responses)
    assert notes == ("a message began with BOS; it was removed",)


@pytest.mark.parametrize("end", ["</s>", "</s>\n", "</s> \n", "</s></s>", "</s>\n</s>\n"])
def test_eos_at_the_end_of_a_text_is_scored_once(tokenizer: Any, end: str) -> None:
    _, responses, notes = encode(tokenizer, "the cat", f" sat{end}", " ran")
    assert responses == [" sat</s>", " ran</s>"]
    assert notes == (ENDED,)


def test_eos_in_the_middle_is_noted_and_the_text_still_ends(tokenizer: Any) -> None:
    _, responses, notes = encode(tokenizer, "the cat", " sat</s> on", " ran")
    assert responses[0] == " sat</s> on</s>"
    assert notes == (BEFORE,)
    _, responses, notes = encode(with_markers(eos="<|im_end|>"), *chat("hi", "yes<|im_end|>no", "no"))
    assert responses[0] == "yes<|im_end|>no<|im_end|>\n"
    assert notes == (BEFORE,)


@pytest.mark.parametrize("end", ["<|im_end|>", "<|im_end|>\n", " <|im_end|>", "<|im_end|><|im_end|>"])
def test_the_end_of_turn_in_a_content_is_not_doubled(end: str) -> None:
    prompt, responses, notes = encode(with_markers(eos="<|im_end|>"), *chat(f"hi{end}", f"yes{end}", "no"))
    assert prompt.split("<|im_end|>")[0].strip() == "<|im_start|>user\nhi"
    assert prompt.count("<|im_end|>") == 1
    assert [text.replace(" ", "") for text in responses] == ["yes<|im_end|>\n", "no<|im_end|>\n"]
    assert notes == (REMOVED,)


def test_an_end_of_turn_that_no_config_names_is_not_doubled() -> None:
    """The template shows that a special token ends a turn; EOS is still added, since nothing says that it ends it."""
    prompt, responses, notes = encode(with_markers(), *chat("hi<|im_end|>", "yes<|im_end|>\n", "no"))
    assert prompt.count("<|im_end|>") == 1
    assert responses == ["yes<|im_end|>\n</s>", "no<|im_end|>\n</s>"]
    assert notes == (REMOVED, "the chat template ends no turn; EOS was added")


def test_turns_that_end_otherwise_than_the_last_are_not_closed_twice() -> None:
    """As in GPT-OSS: the last turn ends with a token of its own, and those before it with another."""
    tokenizer = with_markers()
    tokenizer.chat_template = CHATML.replace(
        "'<|im_end|>\n'", "(eos_token if loop.last and m.role == 'assistant' else '<|im_end|>')"
    )
    earlier = (Message("user", "hi<|im_end|>"), Message("assistant", "yes<|im_end|>"), Message("user", "why?"))
    answers = ((Message("assistant", "so<|im_end|>"),), (Message("assistant", "no"),))
    prompt, responses, notes = encode(tokenizer, earlier, *answers)
    assert prompt.count("<|im_end|>") == 3
    assert [text.strip() for text in responses] == ["so</s>", "no</s>"]
    assert notes == (REMOVED,)


@pytest.mark.parametrize("template_writes_it", [False, True])
def test_bos_in_a_message_of_the_response_is_noted(template_writes_it: bool) -> None:
    """Whether or not the tokenizer writes BOS at the beginning of a text."""
    tokenizer = with_markers(bos="<|im_start|>" if template_writes_it else "<s>", eos="<|im_end|>")
    _, _, notes = encode(tokenizer, *chat("hi", f"yes{tokenizer.bos_token}no", "no"))
    assert notes == ("a response holds BOS after its beginning",)


def test_an_end_of_turn_that_the_template_leaves_to_the_content_stays() -> None:
    tokenizer = with_markers(eos="<|im_end|>")
    tokenizer.chat_template = CHATML.replace("<|im_end|>\n", "\n")
    _, responses, notes = encode(tokenizer, *chat("hi", "yes<|im_end|>", "no<|im_end|>"))
    assert responses == ["yes<|im_end|>", "no<|im_end|>"]
    assert notes == (ENDED,)


def test_a_content_that_ends_with_another_end_token_is_noted() -> None:
    tokenizer = with_markers()
    renderer = Renderer.of(tokenizer, [tokenizer.convert_tokens_to_ids("<|im_end|>")])
    prompt, *answers = chat("hi", "yes</s> then", "no")
    (found,) = renderer.encode([PreferenceGroup(prompt, tuple(answers), PAIR)])
    assert found.notes == (BEFORE,)
    (found,) = renderer.encode([PreferenceGroup(prompt, ((Message("assistant", "a</s>b"),),), ended=(False,))])
    assert tokenizer.decode(found.response_ids[0]) == "a</s>b"


def test_a_text_cut_off_keeps_what_follows_an_eos(tokenizer: Any) -> None:
    group = PreferenceGroup("the cat", (" sat</s> on",), ended=(False,))
    (found,) = Renderer.of(tokenizer).encode([group])
    assert tokenizer.decode(found.response_ids[0]) == " sat</s> on"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["<s>", "</s>", " ", "\n", "the", " cat"]), max_size=6).map("".join))
def test_only_special_tokens_and_white_space_around_them_are_taken_away(text: str) -> None:
    """Whatever the mixture: exactly one end is scored at the end, and every word is there."""
    tokenizer = make_tokenizer()
    (found,) = Renderer.of(tokenizer).encode([PreferenceGroup("a", (text + "x",))])
    decoded = tokenizer.decode(found.response_ids[0])
    words = decoded.replace("<s>", " ").replace("</s>", " ").split()
    assert words == (text + "x").replace("<s>", " ").replace("</s>", " ").split()
    assert decoded.endswith("</s>")
    (found,) = Renderer.of(tokenizer).encode([PreferenceGroup("a", ("x" + text,))])
    decoded = tokenizer.decode(found.response_ids[0])
    assert decoded.endswith("</s>")
    assert not decoded.replace(" ", "").replace("\n", "").endswith("</s></s>")


def test_an_end_that_only_config_json_names_ends_a_turn(tmp_path: Any, model_folder: Any) -> None:
    """As a number or a list, and inside of text_config; an ordinary token that a default names does not count."""
    import json
    import shutil

    tokenizer = with_markers()
    (turn, word) = tokenizer.convert_tokens_to_ids(["<|im_end|>", "t"])
    for config in ({"eos_token_id": turn}, {"eos_token_id": [word, turn]}, {"text_config": {"eos_token_id": [turn]}}):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(model_folder, folder)
        (folder / "generation_config.json").unlink()
        (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
        ends = end_ids(locate(str(folder)), tokenizer)
        assert ends == [turn]
        prompt, *answers = chat("hi", "yes", "no")
        (found,) = Renderer.of(tokenizer, ends).encode([PreferenceGroup(prompt, tuple(answers), PAIR)])
        assert tokenizer.decode(found.response_ids[0]) == "yes<|im_end|>\n"
        assert found.notes == ()
