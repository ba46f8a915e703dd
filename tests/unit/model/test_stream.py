"""Responses token by token: equal to transformers' generate, and reuse of the cache between prompts."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from tests.conftest import make_model
from tests.equal.test_architectures import SUPPORTED, UNSUPPORTED, make_scorer

from preftune.model import stream
from preftune.model.generate import Sampling, sample
from preftune.model.stream import Stream, text_so_far

GREEDY = Sampling(max_new_tokens=12, temperature=0)


def by_transformers(model: Any, prompt: list[int], tokens: int = 12) -> list[int]:
    """The greedy response of transformers' generate, up to and including EOS (id 2)."""
    ids = torch.tensor([prompt])
    settings = {"do_sample": False, "max_new_tokens": tokens, "eos_token_id": 2, "pad_token_id": 0}
    out = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
    return [int(token) for token in out[0, len(prompt) :]]


@pytest.mark.parametrize("architecture", sorted([*SUPPORTED, *UNSUPPORTED]))
def test_greedy_responses_equal_those_of_transformers(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a dialogue: the second prompt continues the first, the third changes the response, the fourth is shorter."""
    monkeypatch.setattr(stream, "CHUNK", 5)
    changes = SUPPORTED[architecture] if architecture in SUPPORTED else UNSUPPORTED[architecture][0]
    model = make_scorer(architecture, changes).model
    talk = Stream(model, frozenset([2]))
    first = [1, *range(5, 17)]
    response = list(talk.respond(first, GREEDY))
    assert response == by_transformers(model, first)
    assert len(response) > 3
    second = [*first, *response, 40, 41, 42]
    third = [*first, *response[:2], 50, 51]
    for prompt in (second, third, first[:6], second):
        assert list(talk.respond(prompt, GREEDY)) == by_transformers(model, prompt), prompt


def test_a_sampled_response_equals_that_of_sample(tokenizer: Any) -> None:
    model = make_model()
    prompt = tokenizer("once upon a time")["input_ids"]
    sampling = Sampling(3, 20, temperature=0.9, top_p=0.9, top_k=40, seed=4)
    (expected,) = sample(model, tokenizer, [prompt], sampling)
    talk = Stream(model, frozenset([2]))
    for k, ids in enumerate(expected.group.response_ids):
        assert list(talk.respond(prompt, sampling, k)) == ids.tolist()


def test_only_tokens_after_the_common_prefix_are_read() -> None:
    model, read = make_model(), []
    real = model.forward

    def forward(input_ids: Any, **others: Any) -> Any:
        read.append(input_ids.shape[1])
        return real(input_ids=input_ids, **others)

    model.forward = forward
    talk = Stream(model, frozenset())
    first = list(range(3, 103))
    response = list(talk.respond(first, Sampling(max_new_tokens=4, temperature=0)))
    assert read == [100, 1, 1, 1]
    read.clear()
    list(talk.respond([*first, *response, 7, 8], Sampling(max_new_tokens=1, temperature=0)))
    assert read == [3]  # the last token of the response, and the two new ones
    read.clear()
    list(talk.respond(first, Sampling(max_new_tokens=1, temperature=0)))  # as after /retry
    assert read == [1]


def test_a_response_stops_between_two_tokens_and_the_cache_remains_valid() -> None:
    model = make_model()
    prompt, taken = [1, *range(5, 30)], []
    talk = Stream(model, frozenset([2]))
    for token in talk.respond(prompt, GREEDY, stopped=lambda: len(taken) == 3):
        taken.append(token)
    assert taken == by_transformers(model, prompt)[:3]
    assert list(talk.respond([*prompt, *taken, 9], GREEDY)) == by_transformers(model, [*prompt, *taken, 9])


def test_a_long_prompt_can_be_stopped_before_the_first_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "CHUNK", 4)
    calls: list[int] = []
    talk = Stream(make_model(), frozenset([2]))
    assert list(talk.respond(list(range(3, 23)), GREEDY, stopped=lambda: calls.append(1) or len(calls) > 3)) == []
    assert talk.cached == list(range(3, 15))


def test_an_interrupted_forward_pass_empties_the_cache() -> None:
    """It may have stored a token in some layers only."""
    model = make_model()
    talk = Stream(model, frozenset([2]))
    list(talk.respond([1, 5, 6], GREEDY))
    layer = model.model.layers[1]
    real, layer.forward = layer.forward, lambda *_a, **_k: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        list(talk.respond([1, 5, 7], GREEDY))
    assert talk.cached == []
    layer.forward = real
    assert list(talk.respond([1, 5, 7], GREEDY)) == by_transformers(model, [1, 5, 7])


def test_the_text_so_far_has_no_incomplete_character(tokenizer: Any) -> None:
    prompt, text = tokenizer("the cat")["input_ids"], " sät on 猫"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    seen = [text_so_far(tokenizer, prompt, ids[:n]) for n in range(len(ids) + 1)]
    assert seen[-1] == text
    assert all(later.startswith(earlier) for earlier, later in pairwise(seen))
    assert not any("\N{REPLACEMENT CHARACTER}" in part for part in seen)
