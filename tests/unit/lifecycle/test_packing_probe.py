"""The packing probe accepts layouts that differ by rounding only, and finds planted faults, in fp32 and in bf16."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.equal.test_architectures import SUPPORTED, UNSUPPORTED, make_scorer
from torch import nn

from preftune.data.layout import batch_of
from preftune.errors import ModelError
from preftune.lifecycle import packing_probe, probe_groups
from preftune.lifecycle.packing_probe import choose_layout, why_rows
from preftune.model import segments
from preftune.model.adapter import add_lora
from preftune.model.attention import base_of, restore_attention, uses_segments
from preftune.model.head import output_layer
from preftune.model.logprobs import Scorer, logps
from preftune.model.scalar import scalar_scorer, scalar_twin
from preftune.types import Batch, Packed, Segment

VOCABULARY = 400
DTYPES = (torch.float32, torch.bfloat16)
CHANGE = "change the model's results|kernel for bfloat16 is less exact"


def spread_model(architecture: str, changes: dict[str, Any] | None = None) -> Any:
    """Return a model whose log-probs are spread as those of a pretrained model, so that bf16 changes them visibly."""
    changes = SUPPORTED[architecture] if changes is None else changes
    model = make_scorer(architecture, {**changes, "vocab_size": VOCABULARY}).model
    ids = torch.arange(3, 63)[None]
    head = output_layer(model)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
    weight = nn.Parameter(head.weight.detach().clone())  # type: ignore[operator]
    head.weight = weight  # not tied to the embeddings, so that only the logits grow
    with torch.no_grad():
        for _ in range(12):
            if entropy(model(input_ids=ids, use_cache=False).logits) < 3.5:
                break
            weight *= 1.5
    return model


def entropy(logits: torch.Tensor) -> float:
    logp = logits.detach().float().log_softmax(-1)
    return float(-(logp.exp() * logp).sum(-1).mean())


@pytest.mark.parametrize("architecture", sorted(SUPPORTED))
def test_rounding_does_not_refuse_shared_prompts(architecture: str) -> None:
    """In fp32 and bf16, although bf16 changes the log-probs of padded rows by a large amount."""
    model = spread_model(architecture)
    assert 1 < entropy(model(input_ids=torch.arange(3, 63)[None], use_cache=False).logits) < 5.5
    half = copy.deepcopy(model).to(torch.bfloat16)
    rows = batch_of(probe_groups.short_groups(VOCABULARY), "rows")
    with torch.no_grad():
        wide, rounded = (logps(Scorer.of(m), rows).token_N for m in (model, half))
    assert (wide - rounded).abs().max() > 0.02
    assert why_rows(Scorer.of(model)) == ""
    assert why_rows(Scorer.of(half)) == ""
    assert uses_segments(half)


def test_at_least_28_architectures_are_tested() -> None:
    assert len(SUPPORTED) >= 28


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("architecture", ["bloom", "llama4_text", "qwen3_next"])
def test_the_numbers_refuse_architectures_that_are_silently_wrong(
    architecture: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the checks of the layers' names, of the attention interface and of the number of its calls."""
    model = make_scorer(architecture, UNSUPPORTED[architecture][0]).model.to(dtype)
    assert why_rows(Scorer.of(model))
    monkeypatch.setattr(packing_probe, "LAYERS", {"chunked_attention", "linear_attention", *packing_probe.LAYERS})
    monkeypatch.setattr(packing_probe, "use_segments", switch)
    monkeypatch.setattr(packing_probe, "_number_of_calls", lambda _calls, _slots: 2)  # layers
    reason = why_rows(Scorer.of(model))
    assert "change the model's results" in reason or "a packed batch fails" in reason


def switch(model: Any) -> bool:
    from preftune.model import attention

    attention.use_segments(model)
    return True


Fault = Callable[[Packed, int | None, float], tuple[Packed, int | None, float]]


def with_prefixes(layout: Packed, change: Callable[[Segment], Segment]) -> Packed:
    return Packed(tuple(change(s) if s.prefix_end else s for s in layout.segments))


FAULTS: dict[str, Fault] = {
    "the scale is 1/1000 too large": lambda layout, window, scale: (layout, window, scale * 1.001),
    "one prompt token is not seen": lambda layout, window, scale: (
        with_prefixes(layout, lambda s: s._replace(prefix_begin=s.prefix_begin + 1)),
        window,
        scale,
    ),
    "the first token of another response is seen": lambda layout, window, scale: (
        with_prefixes(layout, lambda s: s._replace(prefix_end=s.prefix_end + 1)),
        window,
        scale,
    ),
    "the window is one token too long": lambda layout, window, scale: (layout, window and window + 1, scale),
    "the window is one token too short": lambda layout, window, scale: (layout, window and window - 1, scale),
}
STRUCTURAL = sorted(set(FAULTS) - {"the scale is 1/1000 too large"})


def plant(
    fault: Fault,
    monkeypatch: pytest.MonkeyPatch,
    only: torch.dtype | None = None,
    names: tuple[str, ...] = ("fused", "one_by_one"),
) -> None:
    """Change the arguments of attention functions of the CPU, for queries of one precision or of all."""
    for name in names:
        real = getattr(segments, name)

        def changed(q: Any, k: Any, v: Any, layout: Any, window: Any, scale: Any, *more: Any, real: Any = real) -> Any:
            if only in (None, q.dtype):
                layout, window, scale = fault(layout, window, scale)
            return real(q, k, v, layout, window, scale, *more)

        monkeypatch.setattr(segments, name, changed)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fault", sorted(FAULTS))
@pytest.mark.parametrize("architecture", ["mistral", "gemma2", "gpt_oss"])
def test_faults_of_attention_are_found(
    architecture: str, fault: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the fused kernel and without; the window is longer than every sequence of the probe."""
    changes = {**SUPPORTED[architecture], "sliding_window": 64}
    model = spread_model(architecture, changes).to(dtype)
    plant(FAULTS[fault], monkeypatch)
    assert "change the model's results" in why_rows(Scorer.of(model))


@pytest.mark.parametrize("fault", STRUCTURAL)
def test_faults_of_a_bf16_kernel_are_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = spread_model("mistral", {"sliding_window": 64})
    plant(FAULTS[fault], monkeypatch, only=torch.bfloat16, names=("fused",))
    assert why_rows(Scorer.of(model)) == ""
    restore_attention(model)
    assert "the attention kernel for bfloat16 is less exact" in why_rows(Scorer.of(model.to(torch.bfloat16)))


def test_a_fault_of_bf16_outside_of_attention_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The states of a packed batch are rounded to 4 bits: the kernels are right, but the layers lose precision."""
    model = spread_model("llama").to(torch.bfloat16)
    for layer in base_of(model).model.layers:

        def rounded(_layer: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
            if output.dtype != torch.bfloat16 or output.shape[0] > 1:
                return output
            return (output.float() * 33).to(torch.bfloat16) - (output.float() * 32).to(torch.bfloat16)

        layer.register_forward_hook(rounded)
    assert "layers in bfloat16" in why_rows(Scorer.of(model))


@pytest.mark.parametrize("dtype", DTYPES)
def test_wrong_positions_are_found(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """All responses but the first begin one position too late."""
    from preftune.model import logprobs

    model, forward = spread_model("llama").to(dtype), logprobs._forward

    def shifted(model: Any, batch: Batch) -> torch.Tensor:
        positions_T = batch.positions_T.clone()
        for segment in batch.layout.segments if isinstance(batch.layout, Packed) else ():
            positions_T[segment.begin : segment.end] += int(segment.prefix_end > 0)
        return forward(model, replace(batch, positions_T=positions_T))

    monkeypatch.setattr(logprobs, "_forward", shifted)
    assert "change the model's results" in why_rows(Scorer.of(model))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_shared_prompt_token_that_is_attended_twice_is_found(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice(query: Any, key: Any, value: Any, layout: Packed, window: int | None, scale: float) -> torch.Tensor:
        assert window is None
        out = []
        for s in layout.segments:
            extra = slice(s.prefix_begin, s.prefix_begin + int(s.prefix_end > 0))
            keys = [torch.cat([t[:, :, extra], segments._keys(t, s)], 2) for t in (key, value)]
            prompt = s.prefix_end - s.prefix_begin + int(s.prefix_end > 0)
            seen = segments._seen(s.end - s.begin, prompt, None, query.device)
            out.append(segments.attend(query[:, :, s.begin : s.end], *keys, seen, scale))
        return torch.cat(out, 1)

    model = spread_model("llama").to(dtype)
    monkeypatch.setattr(segments, "fused", twice)
    assert "change the model's results" in why_rows(Scorer.of(model))


def test_the_probe_accepts_adapters_scalar_heads_and_unknown_heads() -> None:
    for dtype in DTYPES:
        model = spread_model("llama").to(dtype)
        assert why_rows(Scorer(copy.deepcopy(model), None)) == ""
        assert choose_layout(scalar_scorer(scalar_twin(model)), "auto") == ("shared", "")
        adapted = add_lora(copy.deepcopy(model), 4, 8, "all-linear", "CAUSAL_LM")
        assert choose_layout(Scorer.of(adapted), "auto") == ("shared", "")
        assert sum(parameter.requires_grad for parameter in adapted.parameters()) > 0


def state(model: Any) -> Any:
    parameters = {name: (id(p), p.dtype, p.requires_grad, p.grad) for name, p in model.named_parameters()}
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    modes = [module.training for module in model.modules()]
    config = (base_of(model).config._attn_implementation, base_of(model).config.num_hidden_layers)
    return parameters, hooks, modes, config, torch.random.get_rng_state().tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_refused_model_is_as_before(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a difference and after an exception in the middle of the test, with some modules in training mode."""
    model = make_scorer("llama", {}).model.to(dtype)
    base_of(model).model.layers[1].train()
    before = state(model)
    with monkeypatch.context() as patch:
        plant(FAULTS["one prompt token is not seen"], patch)
        assert choose_layout(Scorer.of(model), "auto")[0] == "rows"
        assert state(model) == before
        with pytest.raises(ModelError, match=CHANGE):
            choose_layout(Scorer.of(model), "shared")
        assert state(model) == before

    def interrupted(*_: Any) -> str:
        raise KeyboardInterrupt

    comparison = "_noise_difference" if dtype == torch.bfloat16 else "_fp32_difference"
    with monkeypatch.context() as patch:
        patch.setattr(packing_probe, comparison, interrupted)
        with pytest.raises(KeyboardInterrupt):
            choose_layout(Scorer.of(model), "auto")
    assert state(model) == before
    assert choose_layout(Scorer.of(model), "auto")[0] == "shared"
    assert state(model)[:3] == before[:3]
    assert state(model)[4] == before[4]


def test_a_refusal_says_what_was_compared_and_the_measured_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_scorer("llama", {}).model
    plant(FAULTS["the scale is 1/1000 too large"], monkeypatch)
    layout, note = choose_layout(Scorer.of(model), "auto")
    assert layout == "rows"
    for part in ("attention: rows, because", "in fp32", "hidden states", "gradients", "by rounding alone"):
        assert part in note


def test_embeddings_may_be_narrower_than_hidden_states() -> None:
    """As in OPT-350m."""
    model = make_scorer("opt", {"ffn_dim": 48, "word_embed_proj_dim": 16}).model
    for dtype in DTYPES:
        assert choose_layout(Scorer(copy.deepcopy(model).to(dtype), None), "auto") == ("shared", "")


def test_layers_that_cannot_be_listed_are_refused() -> None:
    model = make_scorer("llama", {}).model
    model.config.num_hidden_layers = 1
    assert "not in one list" in why_rows(Scorer(model, None))


def test_the_reference_of_a_half_precision_model_can_do_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where the kernel for fp32 is compiled. Faults of the kernel for bf16 are still found."""
    from preftune.model.attention import without_fp32_kernels

    model = spread_model("llama").to(torch.bfloat16)
    with without_fp32_kernels():
        assert why_rows(Scorer.of(model)) == ""
        restore_attention(model)
        plant(FAULTS["one prompt token is not seen"], monkeypatch, names=("fused",))
        assert "the attention kernel for bfloat16 is less exact" in why_rows(Scorer.of(model))
