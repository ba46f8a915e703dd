"""Log-probs and gradients of 16-bit heads, compared with fp64."""

from __future__ import annotations

import pytest
import torch
from tests.unit.model.test_logprobs import dense
from torch import Tensor

from preftune.model import half_logprobs, logit_chunks, token_logprobs
from preftune.model.head import Head
from preftune.model.token_logprobs import mode_of

V, H, N = 400, 64, 60
VARIANTS = [(False, 1.0, 0.0), (True, 0.3, 0.0), (True, 2.0, 6.0)]


def inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return hidden states, weight and bias of a head with peaked distributions, and targets."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(*shape, generator=generator).to(dtype) for shape in ((N, H), (V, H), (V,)))
    return hidden, weight, bias, torch.randint(0, V, (N,), generator=generator)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", ["frozen", "stored", "recomputed"])
@pytest.mark.parametrize("chunk", [7, 1000])
@pytest.mark.parametrize(("has_bias", "scale", "softcap"), VARIANTS)
def test_values_are_exact_and_gradients_are_rounded_once(
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    mode: str,
    chunk: int,
    has_bias: bool,
    scale: float,
    softcap: float,
) -> None:
    """The logits are not rounded to 16 bits: that would change log-probs by up to 0.1 nats here."""
    monkeypatch.setattr(logit_chunks, "chunk_tokens", lambda _weight: chunk)
    monkeypatch.setattr(half_logprobs, "chunk_tokens", lambda _weight: chunk)
    monkeypatch.setattr(half_logprobs, "BLOCK_BYTES", 4 * V * 3)
    monkeypatch.setattr(token_logprobs, "max_stored_bytes", lambda _device: 0 if mode == "recomputed" else 1 << 30)
    hidden, weight, bias, target = inputs(dtype)
    results = []
    for exact in (True, False):
        h, w, b = (t.to(torch.float64 if exact else dtype).requires_grad_() for t in (hidden, weight, bias))
        if mode == "frozen":
            w, b = w.detach(), b.detach()
        head = Head(w, b if has_bias else None, scale, softcap)
        assert exact or mode_of(h, head) == mode
        values = dense(h, head, target) if exact else token_logprobs.token_logprobs(h, head, target)
        ((values.reshape(6, 10).sum(1) / 50).tanh() ** 2).sum().backward()
        results.append([values.detach(), *(t.grad for t in (h, w, b) if t.grad is not None)])
    (exact_values, *exact_gradients), (values, *gradients) = results
    assert values.dtype == torch.float32
    assert torch.allclose(values.double(), exact_values, atol=2e-4, rtol=1e-5)
    assert len(gradients) == (1 if mode == "frozen" else 2 + has_bias)
    for gradient, expected in zip(gradients, exact_gradients, strict=True):
        error = (gradient.double() - expected).norm() / expected.norm()
        assert error < (1e-2 if dtype == torch.bfloat16 else 2e-3)


def test_values_are_the_same_with_and_without_gradient() -> None:
    """So that policy and reference are equal before the first update."""
    hidden, weight, _, target = inputs(torch.bfloat16)
    with torch.no_grad():
        reference = token_logprobs.token_logprobs(hidden, Head(weight), target)
    for head in (Head(weight), Head(weight.clone().requires_grad_())):
        assert torch.equal(token_logprobs.token_logprobs(hidden.clone().requires_grad_(), head, target), reference)


def test_a_second_backward_pass_raises() -> None:
    hidden, weight, _, target = inputs(torch.bfloat16)
    total = token_logprobs.token_logprobs(hidden.requires_grad_(), Head(weight.requires_grad_()), target).sum()
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="only once"):
        total.backward()


def test_fp32_products_outside_are_not_rounded() -> None:
    """The setting that lets the CPU multiply in bf16 is restored, also after an exception."""
    before = torch.backends.mkldnn.matmul.fp32_precision

    def fail() -> None:
        with half_logprobs.multiplied_as_bf16(True):
            assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail()
    assert torch.backends.mkldnn.matmul.fp32_precision == before
