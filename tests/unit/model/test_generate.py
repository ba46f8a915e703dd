"""Sampling: distribution, random numbers, memory limits, ends of responses."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import make_model
from tests.equal.test_architectures import SUPPORTED, UNSUPPORTED, make_scorer
from tests.worlds import WORLD, make_world_model, table
from transformers.cache_utils import DynamicLayer

from preftune.measures.frontier import tempered
from preftune.model import generate, growing_cache
from preftune.model.generate import Sampling, continuation, sample, truncate_distribution
from preftune.model.growing_cache import GrowingLayer
from preftune.model.logprobs import Scorer


class Ids:
    """A tokenizer that decodes ids to numbers."""

    eos_token_id = 0

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return " ".join(map(str, ids))


@pytest.mark.parametrize("temperature", [1.0, 0.6, 2.0])
def test_samples_have_the_distribution_of_the_model(temperature: float) -> None:
    """Chi-squared test of 10,000 samples per prompt against the exact probabilities of all responses."""
    from scipy.stats import chisquare

    model = make_world_model()
    log_pi = table(tempered(Scorer.of(model), temperature), WORLD)
    n = 10_000
    samples = sample(model, Ids(), WORLD.prompts, Sampling(n, WORLD.length, temperature), rows=5000)
    for sampled, log_p in zip(samples, log_pi, strict=True):
        counts = Counter(tuple(ids.tolist()) for ids in sampled.group.response_ids)
        assert sum(counts.values()) == n
        actual = [counts[response] for response in WORLD.responses]
        expected = (log_p.exp() / log_p.exp().sum() * n).numpy()
        assert chisquare(actual, expected).pvalue > 1e-3


def test_a_sample_depends_only_on_seed_prompt_and_index(tokenizer: Any) -> None:
    """It does not depend on batch size, order, other prompts, or the number of samples."""
    model = make_model()
    prompts = [tokenizer(text)["input_ids"] for text in ("the cat", "a", "once upon a time", "we can guess")]
    all_at_once = sample(model, tokenizer, prompts, Sampling(4, 12, seed=5))
    one_by_one = sample(model, tokenizer, prompts[::-1], Sampling(4, 12, seed=5), rows=1)[::-1]
    fewer = sample(model, tokenizer, prompts[1:3], Sampling(2, 12, seed=5), rows=3)
    assert [s.texts for s in all_at_once] == [s.texts for s in one_by_one]
    assert [s.texts for s in fewer] == [s.texts[:2] for s in all_at_once[1:3]]
    assert len({text for s in all_at_once for text in s.texts}) == 16


def test_temperature_0_is_greedy_decoding(tokenizer: Any) -> None:
    model = make_model()
    ids = tokenizer("the cat")["input_ids"]
    (actual,) = sample(model, tokenizer, [ids], Sampling(2, 10, temperature=0))
    expected = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=10, pad_token_id=0)[0, len(ids) :]
    for response in actual.group.response_ids:
        assert response.tolist() == expected.tolist()[: len(response)]


def test_top_k_and_top_p_set_other_probabilities_to_0() -> None:
    p = torch.tensor([[0.4, 0.3, 0.2, 0.1]], dtype=torch.float64)
    assert truncate_distribution(p, Sampling(top_k=2)).tolist() == [[0.4, 0.3, 0, 0]]
    assert truncate_distribution(p, Sampling(top_p=0.6)).tolist() == [[0.4, 0.3, 0, 0]]
    assert truncate_distribution(p, Sampling(top_p=0.75)).tolist() == [[0.4, 0.3, 0.2, 0]]
    assert truncate_distribution(p, Sampling(top_p=0.1)).tolist() == [[0.4, 0, 0, 0]]
    assert truncate_distribution(p, Sampling()).tolist() == p.tolist()


def test_generation_settings_of_the_model_are_ignored_and_restored(tokenizer: Any) -> None:
    model = make_model()
    prompts = [tokenizer("the cat")["input_ids"]]
    plain = sample(model, tokenizer, prompts, Sampling(6, 10))
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.temperature = 0.1
    assert sample(model, tokenizer, prompts, Sampling(6, 10))[0].texts == plain[0].texts
    assert model.generation_config.repetition_penalty == 5.0


def test_the_batch_is_halved_when_memory_runs_out(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, real, sizes = make_model(), generate._generate, []

    def generate_3_rows_at_most(model: Any, tokenizer: Any, jobs: Any, sampling: Sampling) -> Any:
        sizes.append(len(jobs))
        if len(jobs) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return real(model, tokenizer, jobs, sampling)

    prompts = [tokenizer(text)["input_ids"] for text in ("the cat", "a", "once")]
    expected = sample(model, tokenizer, prompts, Sampling(4, 8))
    monkeypatch.setattr(generate, "_generate", generate_3_rows_at_most)
    actual = sample(model, tokenizer, prompts, Sampling(4, 8))
    assert [s.texts for s in actual] == [s.texts for s in expected]
    assert sizes == [12, 6, 3, 3, 3, 3]


@pytest.mark.parametrize("architecture", sorted([*SUPPORTED, *UNSUPPORTED]))
def test_the_cache_for_a_gpu_does_not_change_samples(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With shared and different prompts, and more tokens than a layer reserves at once."""
    changes = SUPPORTED[architecture] if architecture in SUPPORTED else UNSUPPORTED[architecture][0]
    model = make_scorer(architecture, changes).model
    prompts = [[1, *range(5, 16)], [1, 7, 9]]
    expected = [sample(model, Ids(), prompts, Sampling(n, 12)) for n in (1, 3)]
    made: list[Any] = []
    monkeypatch.setattr(generate, "_wants_growing_cache", lambda _device: True)
    monkeypatch.setattr(growing_cache, "STEP", 8)
    monkeypatch.setattr(growing_cache, "GrowingLayer", lambda: made.append(GrowingLayer()) or made[-1])
    actual = [sample(model, Ids(), prompts, Sampling(n, 12)) for n in (1, 3)]
    assert [[s.texts for s in part] for part in actual] == [[s.texts for s in part] for part in expected]
    for layer in made:
        assert layer._reserved is None or layer._reserved[0].shape[-2] % 8 == 0
    if architecture == "llama":
        assert made
        assert all(layer.keys.data_ptr() == layer._reserved[0].data_ptr() for layer in made)


def test_a_growing_cache_is_copied_only_when_its_memory_is_full() -> None:
    layer = GrowingLayer()
    plain = DynamicLayer()
    reserved: list[torch.Tensor] = []
    generator = torch.Generator().manual_seed(0)
    for tokens in (250, 1, 5, 1, 300, 1):  # 256 are reserved, then 512, then 768
        new = torch.randn(2, 3, tokens, 4, generator=generator), torch.randn(2, 3, tokens, 5, generator=generator)
        for actual, expected in zip(layer.update(*new), plain.update(*new), strict=True):
            assert actual.equal(expected)
        assert layer._reserved is not None
        reserved.append(layer._reserved[0])
    assert len(set(map(id, reserved))) == 3
    for part in (layer, plain):
        part.batch_select_indices(torch.tensor([1, 0, 1]))
        part.update(torch.ones(3, 3, 1, 4), torch.ones(3, 3, 1, 5))
    assert layer.keys.equal(plain.keys)
    assert layer.values.equal(plain.values)
    assert layer.get_seq_length() == plain.get_seq_length()


@given(st.lists(st.floats(-40, 40), min_size=1, max_size=50), st.integers(0, 2**53))
def test_a_drawn_token_is_the_first_whose_cumulative_probability_exceeds_the_number(
    values: list[float], numerator: int
) -> None:
    """Also for numbers so close to 1 that their product with the total rounds to the total."""
    logits = torch.tensor([values], dtype=torch.float64)
    number = min(numerator / 2**53, 1 - 2**-53)
    draw = generate._DrawToken(Sampling(), torch.tensor([[number]], dtype=torch.float64), 0)
    token = int(draw(torch.zeros(1, 0, dtype=torch.long), logits).argmax())
    probability = torch.softmax(logits, -1)[0]
    total = probability.cumsum(0)
    reached = [i for i, sum_to_i in enumerate(total.tolist()) if sum_to_i > number * float(total[-1])]
    assert token == (reached[0] if reached else total.tolist().index(float(total[-1])))
    assert probability[token] > 0


@pytest.mark.parametrize("architecture", sorted([*SUPPORTED, *UNSUPPORTED]))
def test_a_shared_prompt_cache_does_not_change_samples(architecture: str) -> None:
    """Sliding windows are shorter than the prompts."""
    changes = SUPPORTED[architecture] if architecture in SUPPORTED else UNSUPPORTED[architecture][0]
    model = make_scorer(architecture, changes).model
    prompts = [[1, *range(5, 16)], [1, 7, 9], [1, 30, 31, 32, 33]]
    together = sample(model, Ids(), prompts, Sampling(3, 6))
    alone = sample(model, Ids(), prompts, Sampling(3, 6), rows=1)
    assert [s.texts for s in together] == [s.texts for s in alone]


def test_all_end_tokens_of_the_model_end_a_response(tokenizer: Any) -> None:
    """Chat models end a turn with a token other than the tokenizer's EOS."""
    model = make_model()
    prompts = [tokenizer("the cat")["input_ids"]]
    (plain,) = sample(model, tokenizer, prompts, Sampling(4, 12))
    ids = next(r for r in plain.group.response_ids if len(r) == 12)
    model.generation_config.eos_token_id = [2, int(ids[5])]
    (actual,) = sample(model, tokenizer, prompts, Sampling(4, 12))
    index = [r.tolist() for r in plain.group.response_ids].index(ids.tolist())
    length = ids.tolist().index(int(ids[5])) + 1
    assert actual.group.response_ids[index].tolist() == ids.tolist()[:length]
    assert actual.ended[index]


def test_gradient_checkpointing_does_not_change_samples(tokenizer: Any) -> None:
    from preftune.model.load import checkpoint_activations

    model = make_model()
    prompts = [tokenizer("the cat")["input_ids"], tokenizer("a dog ran")["input_ids"]]
    plain = sample(model, tokenizer, prompts, Sampling(2, 8))
    checkpoint_activations(model)
    assert [s.texts for s in sample(model, tokenizer, prompts, Sampling(2, 8))] == [s.texts for s in plain]
    assert model.training


def test_a_response_keeps_its_leading_space() -> None:
    """SentencePiece decodes the first word of a text without its leading space."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["</s>", "▁the", "▁cat", "▁sat", "s"]
    metaspace = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="</s>"))
    metaspace.pre_tokenizer = pre_tokenizers.Metaspace()
    metaspace.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=metaspace, eos_token="</s>")
    assert tokenizer.decode([3, 0], skip_special_tokens=True) == "sat"
    assert continuation(tokenizer, [1, 2], "the cat", [3, 0]) == " sat"
    assert continuation(tokenizer, [1, 2], "the cat", [4]) == "s"
    assert continuation(tokenizer, [1, 2], "the cat", [0]) == ""


def test_texts_sampled_from_a_real_model_are_tokenised_to_the_sampled_ids(shared: Any) -> None:
    """With few exceptions: a model can sample a word in pieces other than those of the tokenizer."""
    from preftune.chat.render import Renderer
    from preftune.model.load import load_model, load_tokenizer, locate
    from preftune.types import PreferenceGroup

    source = locate(str(shared / "models" / "stories260k"))
    tokenizer, model = load_tokenizer(source), load_model(source, torch.float32)
    prompt = "Once upon a time, there was a little girl named Lily."
    (samples,) = sample(model, tokenizer, [tokenizer(prompt)["input_ids"]], Sampling(40, 24))
    group = PreferenceGroup(prompt, samples.texts, ended=samples.ended)
    (encoded,) = Renderer.of(tokenizer).encode([group])
    same = sum(a.tolist() == b for a, b in zip(samples.group.response_ids, encoded.response_ids, strict=True))
    assert same >= 36
