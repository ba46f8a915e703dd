"""Excerpts of models: which layers they have, what they share with the model, and whole models in fp32."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.conftest import make_model, random_groups
from tests.equal.test_architectures import SUPPORTED, make_scorer

from preftune.data.layout import batch_of
from preftune.model import excerpt as module
from preftune.model.compile import blocks
from preftune.model.excerpt import SHORT_WINDOW, choose_layers, excerpt, in_fp32
from preftune.model.logprobs import hidden_states


def test_an_excerpt_has_a_layer_of_each_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of layers that are not small, it has no others."""
    monkeypatch.setattr(module, "SMALL", 0)
    kinds = ["sliding_attention"] * 3 + ["full_attention", "sliding_attention", "full_attention"]
    gemma = make_scorer("gemma3_text", {"num_hidden_layers": 6, "sliding_window": 6, "layer_types": kinds}).model
    assert choose_layers(gemma) == [0, 3]
    deepseek = {**SUPPORTED["deepseek_v3"], "num_hidden_layers": 5, "first_k_dense_replace": 3}
    assert choose_layers(make_scorer("deepseek_v3", deepseek).model) == [0, 3]
    smollm = make_scorer("smollm3", {"num_hidden_layers": 5, "no_rope_layers": [1, 1, 0, 1, 1]}).model
    assert choose_layers(smollm) == [0, 2]
    assert choose_layers(make_model(num_hidden_layers=5)) == [0, 4]


def test_small_layers_are_added() -> None:
    assert choose_layers(make_model(num_hidden_layers=5)) == [0, 1, 4]


def test_an_excerpt_shares_the_memory_of_fp32_weights_and_of_half_precision_embeddings() -> None:
    model = make_model(num_hidden_layers=4)
    own = {tensor.data_ptr() for tensor in model.parameters()}
    assert {p.data_ptr() for p in excerpt(model, [0, 3], torch.float32).parameters()} <= own
    assert len(blocks(model)) == 4
    half = copy.deepcopy(model).to(torch.bfloat16)
    small = excerpt(half, [0, 3], torch.float32)
    assert small.config.num_hidden_layers == len(blocks(small)) == 2
    new = [name for name, p in small.named_parameters() if p.dtype == torch.float32]
    assert all(name.startswith(("model.layers.", "model.norm")) for name in new)
    assert small.get_input_embeddings().weight.data_ptr() == half.get_input_embeddings().weight.data_ptr()
    assert "lm_head.weight" not in dict(small.named_parameters())
    assert not any(p.requires_grad for p in small.parameters())


def test_an_excerpt_with_all_layers_computes_the_hidden_states_of_the_model() -> None:
    """With alternating windows, experts and latent attention."""
    batch = batch_of(random_groups(3, vocabulary=96), "rows")
    for architecture in ("gemma2", "deepseek_v3", "gpt2", "opt"):
        model = make_scorer(architecture, SUPPORTED[architecture]).model
        with torch.no_grad():
            expected = hidden_states(model, batch)
            assert torch.equal(hidden_states(excerpt(model, [0, 1], torch.float32), batch), expected)


def test_an_excerpt_has_short_windows() -> None:
    model = make_scorer("mistral", {"sliding_window": 4096}).model
    small = excerpt(model, [0, 1], torch.float32)
    assert small.config.sliding_window == SHORT_WINDOW
    assert model.config.sliding_window == 4096
    assert {getattr(layer.self_attn, "sliding_window", SHORT_WINDOW) for layer in blocks(small)} == {SHORT_WINDOW}


def test_an_interruption_while_weights_are_converted_restores_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model().to(torch.bfloat16)
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    for allowed in range(0, 12, 3):
        count, convert = 0, torch.Tensor.float

        def interrupted(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal count
            count += 1
            if count > allowed:  # noqa: B023
                raise KeyboardInterrupt
            return convert(tensor)  # noqa: B023

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012
            patch.setattr(torch.Tensor, "float", interrupted)
            with torch.no_grad(), in_fp32(model):
                model(input_ids=torch.ones((1, 4), dtype=torch.long))
        assert {name: id(parameter) for name, parameter in model.named_parameters()} == before


def test_a_model_inside_in_fp32_computes_in_fp32_and_is_restored() -> None:
    """Also after an exception in the middle of a layer."""
    model = make_model().to(torch.bfloat16)
    batch = batch_of(random_groups(3), "rows")
    with torch.no_grad():
        expected = hidden_states(copy.deepcopy(model).float(), batch)
    before = {name: (id(p), p.dtype) for name, p in model.named_parameters()}

    def as_fp32(_module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
        return output.float()

    handle = model.get_input_embeddings().register_forward_hook(as_fp32)
    with torch.no_grad(), in_fp32(model):
        actual = hidden_states(model, batch)
    assert torch.allclose(actual, expected, atol=1e-5)
    handle.remove()

    def failing(*_: Any) -> None:
        raise ValueError

    handle = model.model.layers[1].mlp.register_forward_hook(failing)
    with torch.no_grad(), in_fp32(model), pytest.raises(ValueError):  # noqa: PT011
        hidden_states(model, batch)
    handle.remove()
    assert {name: (id(p), p.dtype) for name, p in model.named_parameters()} == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
