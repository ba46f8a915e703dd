"""A chat is tokenised in parts: the parts have the same ids as the whole text."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import make_tokenizer
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from preftune.chat.render import Renderer
from preftune.chat.response_ends import splitting_tokens
from preftune.types import Message, PreferenceGroup

CONTENT = st.text(st.sampled_from("the cat\n 12.é▁<|im_>"), min_size=1, max_size=12).filter(str.strip)


def whole(rendered: Renderer) -> Renderer:
    """The same renderer, which tokenises the whole prompt with each response."""
    return replace(rendered, splitting={})


SPLIT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("pieces", ["byte level", "metaspace", "metaspace first", "prepend", "unigram"])
@given(st.lists(st.tuples(CONTENT, CONTENT), min_size=1, max_size=4))
def test_the_ids_of_a_chat_do_not_depend_on_where_it_is_split(pieces: str, turns: list[tuple[str, str]]) -> None:
    rendered = split_renderer(pieces)
    assert set(rendered.splitting) == {"<|im_start|>", "<|im_end|>"}
    groups = [
        PreferenceGroup((Message("user", ask),), ((Message("assistant", answer),), (Message("assistant", "b"),)))
        for ask, answer in turns
    ]
    assert rendered.encode(groups) == whole(rendered).encode(groups)


@cache
def split_renderer(pieces: str) -> Renderer:
    texts = ["the cat sat on the mat", "assistant user yes no", "a  b\n\nc 12"]
    if pieces == "unigram":
        backend = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(vocab_size=60, unk_token="<unk>", show_progress=False)
    else:
        backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
        alphabet = pre_tokenizers.ByteLevel.alphabet() if pieces == "byte level" else []
        trainer = trainers.BpeTrainer(
            vocab_size=330, special_tokens=["<unk>"], initial_alphabet=alphabet, show_progress=False
        )
    match pieces:
        case "byte level":
            backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        case "prepend":
            backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        case _:
            scheme = "first" if pieces.endswith("first") else "always"
            backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    backend.train_from_iterator(texts, trainer)
    backend.add_special_tokens([AddedToken(text, special=True) for text in ("<|im_start|>", "<|im_end|>")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", unk_token="<unk>")
    tokenizer.chat_template = SPLIT_TEMPLATE
    return Renderer.of(tokenizer)


def test_a_token_that_could_overlap_with_another_one_does_not_split() -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([AddedToken(text, special=True) for text in ("<a>", "x<", "<b>y", "<b>", "c", "dc")])
    tokenizer.add_tokens([AddedToken("[e]", special=True, lstrip=True), AddedToken("[f]", special=False), "[g]"])
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("[h]", special=True)]})
    written = "<a> x< <b>y <b> c dc [e] [f] [g] [h] </s>"
    assert set(splitting_tokens(tokenizer, written)) == {"x<", "dc", "[h]"}
    assert set(splitting_tokens(tokenizer, "[h]")) == {"[h]"}
