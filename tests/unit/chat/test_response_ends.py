"""BOS, EOS and end-of-turn tokens that the text already has are not duplicated; no other text is removed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import make_tokenizer

from preftune.chat.render import Renderer
from preftune.data.tokenize_groups import Limits, tokenize
from preftune.formats.account import Account
from preftune.model.load import end_ids, locate
from preftune.types import Judgement, Message, PreferenceGroup

PAIR = (Judgement(0, 1),)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HAD_END = "the message already ended with the template's end token; one was removed"
END_INSIDE = "the response contains its end token before its end"
HAD_EOS = "the text already ended with EOS; none was added"


def with_markers(bos: str = "<s>", eos: str = "</s>") -> Any:
    tokenizer = make_tokenizer(bos=bos == "<s>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.bos_token, tokenizer.eos_token = bos, eos
    tokenizer.chat_template = CHATML
    return tokenizer


def encode(tokenizer: Any, prompt: Any, *responses: Any) -> tuple[str, list[str], tuple[str, ...]]:
    pair = PAIR if len(responses) > 1 else ()
    (encoded,) = Renderer.of(tokenizer).encode([PreferenceGroup(prompt, responses, pair)])
    assert not encoded.fault
    return (
        tokenizer.decode(encoded.prompt_ids),
        [tokenizer.decode(ids) for ids in encoded.response_ids],
        encoded.notes,
    )


def chat(prompt: str, *answers: str) -> tuple[Any, ...]:
    return (Message("user", prompt),), *((Message("assistant", text),) for text in answers)


def test_a_text_row_has_one_bos_and_one_eos(tokenizer: Any) -> None:
    account = Account("f", read=1)
    (group,) = tokenize([PreferenceGroup("", ("<s>the cat</s>",))], Renderer.of(tokenizer), Limits(), account)
    assert [*group.prompt_ids, *group.response_ids[0]] == [*tokenizer("the cat")["input_ids"], 2]
    assert list(account.noted) == ["the text began with BOS twice; one was removed", HAD_EOS]


@pytest.mark.parametrize("start", ["<s>", "<s><s>", " <s>", "\n<s> <s>"])
def test_bos_is_removed_from_the_beginning_of_prompts_and_responses(tokenizer: Any, start: str) -> None:
    prompt, responses, notes = encode(tokenizer, f"{start}the cat", f"{start} sat", " ran")
    assert prompt == "<s>the cat"
    assert responses == [" sat</s>", " ran</s>"]
    assert notes == ("the prompt began with BOS twice; one was removed", "a response began with BOS; it was removed")


def test_decoded_ids_are_encoded_to_the_same_ids(shared: Any) -> None:
    """SentencePiece decodes a space after BOS that is not part of the text."""
    from transformers import AutoTokenizer

    real = AutoTokenizer.from_pretrained(shared / "models" / "stories260k")
    ids = real("Once upon a time")["input_ids"]
    renderer = Renderer.of(real)
    (encoded,) = renderer.encode([PreferenceGroup(real.decode(ids), (" there", " was"), PAIR)])
    assert encoded.prompt_ids == ids
    (encoded,) = renderer.encode([PreferenceGroup("", (real.decode(ids),))])
    assert [*encoded.prompt_ids, *encoded.response_ids[0]] == [*ids, 2]


def test_bos_inside_a_response_is_noted(tokenizer: Any) -> None:
    _, responses, notes = encode(tokenizer, "the cat", " sat<s> on", " ran")
    assert responses[0] == " sat<s> on</s>"
    assert notes == ("a response contains BOS after its beginning",)


def test_bos_is_not_removed_if_the_tokenizer_does_not_add_it() -> None:
    """The BOS of SmolLM2 is also the token that begins every turn."""
    tokenizer = with_markers(bos="<|im_start|>", eos="<|im_end|>")
    written = "<|im_start|>user\nhi<|im_end|>\n"
    prompt, responses, notes = encode(tokenizer, written, "<|im_start|>assistant\nyes<|im_end|>\n", "no")
    assert prompt == written
    assert responses == ["<|im_start|>assistant\nyes<|im_end|>", "no<|im_end|>"]
    assert notes == (HAD_EOS,)
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
    assert notes == (HAD_EOS,)


def test_eos_inside_a_response_is_noted_and_eos_is_still_added(tokenizer: Any) -> None:
    _, responses, notes = encode(tokenizer, "the cat", " sat</s> on", " ran")
    assert responses[0] == " sat</s> on</s>"
    assert notes == (END_INSIDE,)
    _, responses, notes = encode(with_markers(eos="<|im_end|>"), *chat("hi", "yes<|im_end|>no", "no"))
    assert responses[0] == "yes<|im_end|>no<|im_end|>\n"
    assert notes == (END_INSIDE,)


@pytest.mark.parametrize("end", ["<|im_end|>", "<|im_end|>\n", " <|im_end|>", "<|im_end|><|im_end|>"])
def test_an_end_of_turn_token_in_the_content_is_not_duplicated(end: str) -> None:
    prompt, responses, notes = encode(with_markers(eos="<|im_end|>"), *chat(f"hi{end}", f"yes{end}", "no"))
    assert prompt.split("<|im_end|>")[0].strip() == "<|im_start|>user\nhi"
    assert prompt.count("<|im_end|>") == 1
    assert [text.replace(" ", "") for text in responses] == ["yes<|im_end|>\n", "no<|im_end|>\n"]
    assert notes == (HAD_END,)


def test_an_end_of_turn_token_that_no_config_names_is_not_duplicated() -> None:
    """The template shows that the token ends a turn, but no config says that it ends a text, so EOS is added too."""
    prompt, responses, notes = encode(with_markers(), *chat("hi<|im_end|>", "yes<|im_end|>\n", "no"))
    assert prompt.count("<|im_end|>") == 1
    assert responses == ["yes<|im_end|>\n</s>", "no<|im_end|>\n</s>"]
    assert notes == (HAD_END, "the chat template does not write an end token after the response; EOS was added")


def test_end_tokens_are_not_duplicated_if_the_last_turn_ends_with_a_different_token() -> None:
    """In GPT-OSS, the last turn and the earlier turns end with different tokens."""
    tokenizer = with_markers()
    tokenizer.chat_template = CHATML.replace(
        "'<|im_end|>\n'", "(eos_token if loop.last and m.role == 'assistant' else '<|im_end|>')"
    )
    earlier = (Message("user", "hi<|im_end|>"), Message("assistant", "yes<|im_end|>"), Message("user", "why?"))
    answers = ((Message("assistant", "so<|im_end|>"),), (Message("assistant", "no"),))
    prompt, responses, notes = encode(tokenizer, earlier, *answers)
    assert prompt.count("<|im_end|>") == 3
    assert [text.strip() for text in responses] == ["so</s>", "no</s>"]
    assert notes == (HAD_END,)


@pytest.mark.parametrize("template_writes_it", [False, True])
def test_bos_in_a_message_of_the_response_is_noted(template_writes_it: bool) -> None:
    tokenizer = with_markers(bos="<|im_start|>" if template_writes_it else "<s>", eos="<|im_end|>")
    _, _, notes = encode(tokenizer, *chat("hi", f"yes{tokenizer.bos_token}no", "no"))
    assert notes == ("a response contains BOS after its beginning",)


def test_an_end_of_turn_token_that_the_template_does_not_write_is_not_removed() -> None:
    tokenizer = with_markers(eos="<|im_end|>")
    tokenizer.chat_template = CHATML.replace("<|im_end|>\n", "\n")
    _, responses, notes = encode(tokenizer, *chat("hi", "yes<|im_end|>", "no<|im_end|>"))
    assert responses == ["yes<|im_end|>", "no<|im_end|>"]
    assert notes == (HAD_EOS,)


def test_eos_inside_a_content_is_noted_if_the_model_has_another_end_token() -> None:
    tokenizer = with_markers()
    renderer = Renderer.of(tokenizer, [tokenizer.convert_tokens_to_ids("<|im_end|>")])
    prompt, *answers = chat("hi", "yes</s> then", "no")
    (encoded,) = renderer.encode([PreferenceGroup(prompt, tuple(answers), PAIR)])
    assert encoded.notes == (END_INSIDE,)
    (encoded,) = renderer.encode([PreferenceGroup(prompt, ((Message("assistant", "a</s>b"),),), ended=(False,))])
    assert tokenizer.decode(encoded.response_ids[0]) == "a</s>b"


def test_a_cut_off_response_keeps_the_text_after_an_eos(tokenizer: Any) -> None:
    group = PreferenceGroup("the cat", (" sat</s> on",), ended=(False,))
    (encoded,) = Renderer.of(tokenizer).encode([group])
    assert tokenizer.decode(encoded.response_ids[0]) == " sat</s> on"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["<s>", "</s>", " ", "\n", "the", " cat"]), max_size=6).map("".join))
def test_only_special_tokens_and_surrounding_white_space_are_removed(text: str) -> None:
    """For any mixture, the response ends with exactly one EOS and contains every word."""
    tokenizer = make_tokenizer()
    (encoded,) = Renderer.of(tokenizer).encode([PreferenceGroup("a", (text + "x",))])
    decoded = tokenizer.decode(encoded.response_ids[0])
    words = decoded.replace("<s>", " ").replace("</s>", " ").split()
    assert words == (text + "x").replace("<s>", " ").replace("</s>", " ").split()
    assert decoded.endswith("</s>")
    (encoded,) = Renderer.of(tokenizer).encode([PreferenceGroup("a", ("x" + text,))])
    decoded = tokenizer.decode(encoded.response_ids[0])
    assert decoded.endswith("</s>")
    assert not decoded.replace(" ", "").replace("\n", "").endswith("</s></s>")


def test_an_end_token_named_only_in_config_json_ends_a_turn(tmp_path: Any, model_folder: Any) -> None:
    """It may be a number or a list, also inside text_config. A token that is not special is ignored."""
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
        (encoded,) = Renderer.of(tokenizer, ends).encode([PreferenceGroup(prompt, tuple(answers), PAIR)])
        assert tokenizer.decode(encoded.response_ids[0]) == "yes<|im_end|>\n"
        assert encoded.notes == ()
