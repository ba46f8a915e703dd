"""Packed batches on unpatched models: exact for supported architectures, padded rows for all others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.conftest import random_groups
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from preftune.data.layout import batch_of, to_constant_length
from preftune.errors import ModelError
from preftune.lifecycle.packing_probe import choose_layout, why_rows
from preftune.model.attention import NAME, base_of, restore_attention, use_segments
from preftune.model.logprobs import Scorer, logps
from preftune.types import Batch

WINDOW = {"sliding_window": 6}
MIXED = {**WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
OLD = {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 128, "n_inner": 48}

SUPPORTED: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": WINDOW,
    "gemma": {},
    "gemma2": {**MIXED, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8},
    "gemma3_text": {**MIXED, "query_pre_attn_scalar": 8},
    "gpt_neox": {},
    "gpt2": OLD,
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "phi": {},
    "phi3": WINDOW,
    "cohere": {"logit_scale": 0.5},
    "cohere2": MIXED,
    "granite": {"logits_scaling": 4.0},
    "olmo2": {},
    "smollm3": {},
    "stablelm": {},
    "starcoder2": WINDOW,
    "exaone4": MIXED,
    "glm4": {},
    "ministral": WINDOW,
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 4, **EXPERTS},
    "qwen2_moe": {"num_experts": 4, **EXPERTS, "shared_expert_intermediate_size": 16},
    "phimoe": {"num_local_experts": 4, "num_experts_per_tok": 2, **WINDOW},
    "gpt_oss": {**MIXED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": {
        "n_routed_experts": 4,
        **EXPERTS,
        "n_group": 2,
        "topk_group": 1,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 12,
        "first_k_dense_replace": 1,
        "n_shared_experts": 1,
        "num_key_value_heads": 4,
    },
}

UNSUPPORTED: dict[str, tuple[dict[str, Any], str]] = {
    "bloom": ({"n_layer": 2, "n_head": 4}, "cannot be replaced"),
    "gptj": ({"n_embd": 32, "n_head": 4, "n_layer": 2, "rotary_dim": 8}, "cannot be replaced"),
    "llama4_text": (
        {"attention_chunk_size": 6, "num_local_experts": 2, "num_experts_per_tok": 1, "no_rope_layers": [1, 0]},
        "chunked_attention",
    ),
    "qwen3_next": (
        {
            "num_experts": 4,
            **EXPERTS,
            "shared_expert_intermediate_size": 16,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"],
        },
        "linear_attention",
    ),
    "lfm2": ({"layer_types": ["conv", "full_attention"]}, "conv"),
    "diffllama": ({}, "4 calls"),
}


def make_scorer(architecture: str, changes: dict[str, Any]) -> Scorer:
    torch.manual_seed(0)
    settings = {
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        **changes,
    }
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **settings)).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.2)
    return Scorer.of(model)


def measure(scorer: Scorer, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the log-probs and the gradient of a weighted sum of them at the embeddings, by token id and position."""
    inputs: list[torch.Tensor] = []

    def capture(_module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
        inputs.append(output.detach().requires_grad_())
        return inputs[-1]

    handle = base_of(scorer.model).get_input_embeddings().register_forward_hook(capture)
    token_N = logps(scorer, batch).token_N
    handle.remove()
    (gradient,) = torch.autograd.grad((torch.linspace(-1, 1, len(token_N)) * token_N).sum(), inputs[-1])
    flat = gradient.reshape(-1, gradient.shape[-1])
    keys, at_T = (batch.ids_T * 10_000 + batch.positions_T).unique(return_inverse=True)
    total = torch.zeros(len(keys), flat.shape[-1]).index_add_(0, at_T, flat)
    return token_N.detach(), total[keys >= 10_000]  # without padding, which is token 0


@pytest.mark.parametrize("architecture", sorted(SUPPORTED))
def test_packed_batches_equal_padded_rows(architecture: str) -> None:
    """Log-probs and gradients of packed and shared layouts, with and without padding, equal those of padded rows."""
    scorer = make_scorer(architecture, SUPPORTED[architecture])
    assert why_rows(scorer) == ""
    groups = random_groups(3, responses=3, seed=5, vocabulary=96)
    restore_attention(scorer.model)
    values, gradient = measure(scorer, batch_of(groups, "rows"))
    assert use_segments(scorer.model)
    batches = [batch_of(groups, "packed"), batch_of(groups, "shared")]
    batches.append(to_constant_length(batches[-1], 4 * 100))  # longer than both batches
    assert len(batches[-1].ids_T) > len(batches[-2].ids_T)
    for batch in batches:
        actual, actual_gradient = measure(scorer, batch)
        assert (values - actual).abs().max() < 1e-5
        assert (gradient - actual_gradient).abs().max() < 1e-5 * gradient.abs().max()


@pytest.mark.parametrize(
    "architecture", sorted(name for name, changes in SUPPORTED.items() if "sliding_window" in changes)
)
def test_sliding_windows_are_shorter_than_the_sequences(architecture: str) -> None:
    """Otherwise, test_packed_batches_equal_padded_rows would not test windows."""
    groups = random_groups(3, responses=3, seed=5, vocabulary=96)
    with_window = measure(make_scorer(architecture, SUPPORTED[architecture]), batch_of(groups, "rows"))[0]
    without_window = measure(
        make_scorer(architecture, {**SUPPORTED[architecture], "sliding_window": 100}), batch_of(groups, "rows")
    )[0]
    assert (with_window - without_window).abs().max() > 1e-3


@pytest.mark.parametrize("architecture", sorted(UNSUPPORTED))
def test_unsupported_architectures_use_padded_rows(architecture: str) -> None:
    """They keep their own attention, and asking for a packed layout is an error."""
    changes, why = UNSUPPORTED[architecture]
    scorer = make_scorer(architecture, changes)
    before = base_of(scorer.model).config._attn_implementation
    layout, note = choose_layout(scorer, "auto")
    assert layout == "rows"
    assert note.startswith("attention: rows, because")
    assert why in note
    assert base_of(scorer.model).config._attn_implementation == before
    for packed_layout in ("shared", "packed"):
        with pytest.raises(ModelError, match=why):
            choose_layout(scorer, packed_layout)
    assert choose_layout(scorer, "rows") == ("rows", "")


def test_the_probe_detects_attention_between_responses(monkeypatch: pytest.MonkeyPatch) -> None:

    from preftune.model import segments

    def leaky(query: Any, key: Any, value: Any, _layout: Any, _window: Any, scale: float) -> Any:
        everything = torch.ones(query.shape[2], query.shape[2], dtype=torch.bool).tril()
        return segments.attend(query, key, value, everything, scale)

    monkeypatch.setattr(segments, "fused", leaky)
    assert "change the model's results" in why_rows(make_scorer("llama", {}))


def test_the_probe_accepts_bf16_models() -> None:
    scorer = make_scorer("llama", {})
    assert why_rows(Scorer.of(scorer.model.to(torch.bfloat16))) == ""


def test_a_model_with_segment_attention_generates_as_before() -> None:
    """With a cache and with padding."""
    for architecture in ("llama", "gemma2", "gpt_oss"):
        scorer = make_scorer(architecture, SUPPORTED[architecture])
        ids = torch.tensor([[0, 5, 6, 7], [9, 8, 7, 6]])
        mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])

        def generate(scorer: Scorer = scorer, ids: Any = ids, mask: Any = mask) -> list[list[int]]:
            out = scorer.model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False)
            return out.tolist()  # type: ignore[no-any-return]

        before = generate()
        assert why_rows(scorer) == ""
        assert base_of(scorer.model).config._attn_implementation == NAME
        assert generate() == before
