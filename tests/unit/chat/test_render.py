"""Text to token ids: one BOS, shared prompt ids, a scored EOS, merges, chat templates, truncation."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.conftest import make_tokenizer

from preftune.chat.render import Renderer
from preftune.data.split import hold_out
from preftune.data.tokenize_groups import Limits, require_vocabulary, tokenize
from preftune.errors import DataError, ModelError
from preftune.formats.account import Account
from preftune.model.load import TEMPLATES
from preftune.types import Judgement, Message, PreferenceGroup

PAIR = (Judgement(0, 1),)
CHAT = (Message("user", "hello"),)
ANSWERS = ((Message("assistant", "the cat"),), (Message("assistant", "a dog"),))
CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def encode(group: PreferenceGroup, tokenizer: Any) -> Any:
    return Renderer.of(tokenizer).encode([group])[0]


def tokens(groups: list[PreferenceGroup], tokenizer: Any) -> Any:
    return tokenize(groups, Renderer.of(tokenizer), Limits(), Account("f", read=len(groups)))


def test_plain_text_has_one_bos_and_a_scored_eos(tokenizer: Any) -> None:
    encoded = encode(PreferenceGroup("the cat", (" sat", " ran over"), PAIR), tokenizer)
    assert encoded.prompt_ids == tokenizer("the cat")["input_ids"]
    assert encoded.prompt_ids[0] == 1
    for text, ids in zip((" sat", " ran over"), encoded.response_ids, strict=True):
        assert encoded.prompt_ids + ids == [*tokenizer("the cat" + text)["input_ids"], 2]
    assert encoded.notes == ()


def plain(min_size: int) -> st.SearchStrategy[str]:
    """Texts without special tokens, which have separate tests."""
    special = make_tokenizer().all_special_tokens
    return st.text(min_size=min_size, max_size=12).filter(lambda text: not any(token in text for token in special))


@settings(max_examples=150, deadline=None)
@given(plain(0), plain(1), plain(1))
def test_responses_share_the_prompt_ids_and_decode_to_the_text(prompt: str, one: str, two: str) -> None:
    tokenizer = make_tokenizer()
    assume(not any(token in prompt + text for token in tokenizer.all_special_tokens for text in (one, two)))
    encoded = encode(PreferenceGroup(prompt, (one, two), PAIR), tokenizer)
    assert encoded.prompt_ids == tokenizer(prompt)["input_ids"]
    for text, ids in zip((one, two), encoded.response_ids, strict=True):
        assert ids[-1] == 2
        assert tokenizer.decode(encoded.prompt_ids[1:] + ids[:-1]) == prompt + text


def test_a_response_that_merges_with_the_prompt_is_tokenised_separately_and_noted(tokenizer: Any) -> None:
    """ "the" is one token, so "th" + "e cat" would change the prompt's ids."""
    prompt_ids = tokenizer("th")["input_ids"]
    assert tokenizer("the cat")["input_ids"][: len(prompt_ids)] != prompt_ids
    encoded = encode(PreferenceGroup("th", ("e cat", "ey"), PAIR), tokenizer)
    assert encoded.prompt_ids == prompt_ids
    assert tokenizer.decode(encoded.response_ids[0][:-1]) == "e cat"
    assert "a token spans the end of the prompt; the response was tokenised separately" in encoded.notes


def test_a_separately_tokenised_response_has_no_artificial_leading_space(shared: Any) -> None:
    """SentencePiece adds a space before the first word of a text, but a response follows the prompt."""
    from transformers import AutoTokenizer

    real = AutoTokenizer.from_pretrained(shared / "models" / "stories260k")
    encoded = encode(PreferenceGroup("Once upon a ti", ("me there was", "p"), PAIR), real)
    for text, ids in zip(("me there was", "p"), encoded.response_ids, strict=True):
        assert real.decode(encoded.prompt_ids + ids, skip_special_tokens=True) == "Once upon a ti" + text


def test_a_tokenizer_without_bos_adds_no_special_token_to_the_prompt() -> None:
    plain = make_tokenizer(bos=False)
    encoded = encode(PreferenceGroup("the cat", (" sat", " ran"), PAIR), plain)
    assert encoded.prompt_ids == plain("the cat", add_special_tokens=False)["input_ids"]


def test_a_bos_in_the_text_is_not_duplicated(tokenizer: Any) -> None:
    encoded = encode(PreferenceGroup("<s>the cat", (" sat", " ran"), PAIR), tokenizer)
    assert encoded.prompt_ids == tokenizer("the cat")["input_ids"]
    assert "the prompt began with BOS twice; one was removed" in encoded.notes


def test_an_eos_in_the_text_is_not_duplicated(tokenizer: Any) -> None:
    encoded = encode(PreferenceGroup("the cat", (" sat</s>", " ran"), PAIR), tokenizer)
    assert encoded.response_ids[0].count(2) == 1
    assert "the text already ended with EOS; none was added" in encoded.notes


def test_a_response_that_was_cut_off_gets_no_eos(tokenizer: Any) -> None:
    """EOS there would train the policy to stop in the middle of a response."""
    encoded = encode(PreferenceGroup("the cat", (" sat", " ran"), PAIR, ended=(True, False)), tokenizer)
    assert [ids[-1] == 2 for ids in encoded.response_ids] == [True, False]
    assert encoded.notes == ("a response was cut off during sampling; no EOS was added",)
    chatty = make_tokenizer()
    chatty.chat_template = CHATML
    encoded = encode(PreferenceGroup(CHAT, ANSWERS, PAIR, ended=(True, False)), chatty)
    assert [chatty.decode(ids) for ids in encoded.response_ids] == ["the cat</s>", "a dog"]


def test_a_tokenizer_that_adds_eos_to_every_text_gives_one_eos_per_response() -> None:
    from tokenizers import processors

    both = make_tokenizer()
    both.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    encoded = encode(PreferenceGroup("the cat", (" sat", " ran"), PAIR), both)
    assert encoded.prompt_ids == make_tokenizer()("the cat")["input_ids"]
    assert all(ids.count(2) == 1 and ids[-1] == 2 for ids in encoded.response_ids)


def test_a_tokenizer_without_eos_is_refused() -> None:
    plain = make_tokenizer()
    plain.eos_token = None
    with pytest.raises(ModelError, match="no EOS token"):
        Renderer.of(plain)


def test_chat_is_rendered_by_the_template() -> None:
    chatty = make_tokenizer()
    chatty.chat_template = CHATML
    encoded = encode(PreferenceGroup(CHAT, ANSWERS, PAIR), chatty)
    assert chatty.decode(encoded.prompt_ids) == "<|user|>hello</s><|assistant|>"
    assert [chatty.decode(ids) for ids in encoded.response_ids] == ["the cat</s>", "a dog</s>"]
    full = chatty.apply_chat_template([{"role": "user", "content": "hello"}, {"role": "assistant", "content": "a dog"}])
    assert encoded.prompt_ids + encoded.response_ids[1] == full["input_ids"]


def test_eos_is_added_if_the_template_writes_no_end_token() -> None:
    chatty = make_tokenizer()
    chatty.chat_template = CHATML.replace("{{ eos_token }}", "\n")
    encoded = encode(PreferenceGroup(CHAT, ANSWERS, PAIR), chatty)
    assert all(ids[-1] == 2 for ids in encoded.response_ids)
    assert encoded.notes == ("the chat template does not write an end token after the response; EOS was added",)


def test_another_end_token_of_the_model_counts_as_eos() -> None:
    chatty = make_tokenizer()
    chatty.chat_template = CHATML.replace("{{ eos_token }}", "<pad>")
    encoded = Renderer.of(chatty, [0]).encode([PreferenceGroup(CHAT, ANSWERS, PAIR)])[0]
    assert all(ids[-1] == 0 for ids in encoded.response_ids)


def test_chat_data_without_a_template_are_refused(tokenizer: Any) -> None:
    with pytest.raises(ModelError, match="no chat template"):
        encode(PreferenceGroup(CHAT, ANSWERS, PAIR), tokenizer)


def test_a_dialogue_that_does_not_begin_with_the_rendered_prompt_is_refused() -> None:
    """Templates of reasoning models may render the prompt differently once there is an answer."""
    chatty = make_tokenizer()
    chatty.chat_template = CHATML.replace("<|assistant|>{% endif %}", "<|assistant|><think>{% endif %}")
    with pytest.raises(ModelError, match=r"the prompt has '<think>', but the dialogue has 'the cat</s>'"):
        tokens([PreferenceGroup(CHAT, ANSWERS, PAIR, origin="f:3")], chatty)


def test_an_error_raised_by_a_template_names_the_row() -> None:
    chatty = make_tokenizer()
    chatty.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError, match=r"f:3: the chat template refuses these messages: roles must alternate"):
        tokens([PreferenceGroup(CHAT, ANSWERS, PAIR, origin="f:3")], chatty)


def test_a_template_cannot_run_code(tmp_path: Any) -> None:
    chatty = make_tokenizer()
    chatty.chat_template = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(DataError, match="refuses"):
        tokens([PreferenceGroup(CHAT, ANSWERS, PAIR, origin="f:1")], chatty)


def test_the_dialogue_template_extends_the_prompt_and_ends_the_response(tokenizer: Any) -> None:
    chatty = make_tokenizer()
    chatty.chat_template = TEMPLATES["dialogue"]
    group = PreferenceGroup((Message("system", "s"), *CHAT, *ANSWERS[0], Message("user", "again")), ANSWERS, PAIR)
    encoded = encode(group, chatty)
    assert chatty.decode(encoded.prompt_ids) == (
        "<s>\n\nSystem: s\n\nHuman: hello\n\nAssistant: the cat</s>\n\nHuman: again\n\nAssistant: "
    )
    assert chatty.decode(encoded.response_ids[1]) == "a dog</s>"


def fit(prompt: str, responses: tuple[str, ...], limits: Limits, tokenizer: Any) -> Any:
    account = Account("f")
    account.read = 1
    group = PreferenceGroup(prompt, responses, PAIR if len(responses) > 1 else (), origin="f:1")
    return tokenize([group], Renderer.of(tokenizer), limits, account), account


def test_a_long_prompt_is_truncated_at_its_beginning_but_keeps_its_bos(tokenizer: Any) -> None:
    whole = tokenizer("abcdefghijklmnop")["input_ids"]
    [group], account = fit("abcdefghijklmnop", ("q", "r"), Limits(max_length=10), tokenizer)
    assert group.prompt_ids.tolist() == [1, *whole[-7:]]  # the longest response leaves 8
    assert [r.tolist()[-1] for r in group.response_ids] == [2, 2]
    assert list(account.noted) == ["the beginning of the prompt was truncated (max_length 10)"]


def test_max_prompt_length_limits_the_prompt(tokenizer: Any) -> None:
    [group], _ = fit("a b c d e f g h", ("q", "r"), Limits(max_length=8, max_prompt_length=3), tokenizer)
    assert len(group.prompt_ids) == 3


def test_a_long_response_is_truncated_at_its_end_and_counted(tokenizer: Any) -> None:
    [group], account = fit("ab", ("0123456789", "x"), Limits(max_length=9), tokenizer)
    assert len(group.prompt_ids) + len(group.response_ids[0]) == 9
    assert 2 not in group.response_ids[0].tolist()
    assert group.response_ids[1].tolist()[-1] == 2
    assert list(account.noted) == ["a response was truncated, so it has no EOS (max_length 9)"]


def test_responses_that_differ_only_after_truncation_are_dropped(tokenizer: Any) -> None:
    groups, account = fit("ab", ("01234567", "01234568"), Limits(max_length=8), tokenizer)
    assert groups == []
    assert account.dropped == {"the responses are identical after truncation": ["f:1"]}


def test_overlong_can_be_dropped_or_refused(tokenizer: Any) -> None:
    groups, account = fit("ab", ("0123456789", "x"), Limits(8, overlong="drop"), tokenizer)
    assert groups == []
    assert list(account.dropped) == ["longer than max_length 8"]
    with pytest.raises(DataError, match=r"f:1: 14 tokens \(prompt 3, longest response 11\)"):
        fit("ab", ("0123456789", "x"), Limits(8, overlong="error"), tokenizer)


def test_an_empty_prompt_starts_from_bos(tokenizer: Any) -> None:
    [group], _ = fit("", ("the cat",), Limits(), tokenizer)
    assert group.prompt_ids.tolist() == [1]


def test_an_empty_prompt_without_bos_starts_from_the_first_token() -> None:
    plain = make_tokenizer(bos=False)
    [group], _ = fit("", ("the cat",), Limits(), plain)
    ids = plain("the cat")["input_ids"]
    assert group.prompt_ids.tolist() + group.response_ids[0].tolist() == [*ids, 2]
    groups, account = fit("", ("the cat", "a dog"), Limits(), plain)
    assert groups == []
    assert list(account.dropped) == ["the prompt is empty, and the tokenizer has no BOS"]


@settings(max_examples=100, deadline=None)
@given(
    st.text(alphabet="abcdefgh ", min_size=0, max_size=40),
    st.text(alphabet="0123456789", min_size=1, max_size=40),
    st.text(alphabet="0123456789", min_size=1, max_size=40),
    st.integers(2, 40),
    st.one_of(st.none(), st.integers(1, 40)),
)
def test_no_group_exceeds_the_limit_or_loses_all_scored_tokens(
    prompt: str, one: str, two: str, length: int, prompt_length: int | None
) -> None:
    groups, account = fit(prompt, (one, two), Limits(length, prompt_length), make_tokenizer())
    assert len(groups) + sum(map(len, account.dropped.values())) == 1
    for group in groups:
        assert len(group.prompt_ids) >= 1
        assert all(1 <= len(r) <= length - len(group.prompt_ids) for r in group.response_ids)


def test_token_ids_outside_the_embedding_are_refused(make_groups: Any) -> None:
    groups = make_groups(2, vocabulary=300)
    with pytest.raises(DataError, match="embedding has 50 rows"):
        require_vocabulary(groups, 50, "m")
    require_vocabulary(groups, 300, "m")


def test_a_row_with_several_turns_is_counted_once(tokenizer: Any) -> None:
    """Each row has two turns, some too long, and some rows are held out; each row is kept or dropped exactly once."""
    chatty = make_tokenizer()
    chatty.chat_template = TEMPLATES["dialogue"]
    account = Account("f", "sft-messages", read=12)
    groups = []
    for number in range(1, 13):
        first = (Message("user", f"question {number}"),)
        second = (*first, Message("assistant", "yes"), Message("user", "again " * 20 * number))
        groups += [PreferenceGroup(p, ((Message("assistant", "yes"),),), origin=f"f:{number}") for p in (first, second)]
    train, held = hold_out(groups, 0.25)
    limits = Limits(8, overlong="drop")  # no turn fits
    assert tokenize(train, Renderer.of(chatty), limits, account) == []
    assert tokenize(held, Renderer.of(chatty), limits, account) == []
    assert account.kept == 0
    assert account.dropped == {"longer than max_length 8": [g.origin for g in [*train, *held][::2]]}
    account = Account("f", "sft-messages", read=12)
    groups = tokenize(train, Renderer.of(chatty), Limits(60, overlong="drop"), account)
    groups += tokenize(held, Renderer.of(chatty), Limits(60, overlong="drop"), account)
    assert len(groups) == 12  # the first turns
    assert account.kept == 12
    assert account.noted == {
        "one turn of the row was dropped: longer than max_length 60": [g.origin for g in [*train, *held][::2]]
    }
    account.check(0.0)


def test_a_row_dropped_twice_counts_as_one_row() -> None:
    account = Account("f", read=2)
    for reason in ("one", "two", "one"):
        account.drop(reason, "f:1")
        account.note(reason, "f:2")
        account.note(reason, "f:2")
    assert account.kept == 1
    assert account.noted == {"one": ["f:2"], "two": ["f:2"]}
    with pytest.raises(DataError, match=r"1 of 2 rows were dropped \(50%\)"):
        account.check(0.4)
