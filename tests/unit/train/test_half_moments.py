"""AdamW with bf16 moments: the same update as AdamW, unbiased rounding, and an exact resume."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from preftune.train import half_moments
from preftune.train.half_moments import HalfMomentAdamW, rounded


def gradients(steps: int, shape: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(shape, generator=generator) * 3
    return [torch.randn(shape, generator=generator) * scale + 0.3 for _ in range(steps)]


def trained(kind: type[torch.optim.Optimizer], grads: list[Tensor], decay: float = 0.1) -> tuple[Tensor, Tensor]:
    parameter = torch.nn.Parameter(torch.ones_like(grads[0]))
    optimizer = kind([parameter], lr=1e-3, weight_decay=decay)  # type: ignore[call-arg]
    for gradient in grads:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach(), optimizer.state[parameter]["exp_avg_sq"]


def test_the_first_step_is_that_of_adamw() -> None:
    grads = gradients(1, (40, 30))
    expected, _ = trained(torch.optim.AdamW, grads)
    actual, _ = trained(HalfMomentAdamW, grads)
    assert torch.allclose(actual, expected, rtol=0, atol=1e-7)


def test_many_steps_stay_near_those_of_adamw() -> None:
    grads = gradients(300, (40, 30))
    expected, squares = trained(torch.optim.AdamW, grads)
    actual, half_squares = trained(HalfMomentAdamW, grads)
    moved = (expected - 1).norm()
    assert (actual - expected).norm() < 0.01 * moved
    assert float((half_squares.float() / squares).mean()) == pytest.approx(1, abs=0.01)
    assert half_squares.dtype == torch.bfloat16


def test_rounding_to_the_nearest_value_would_stop_the_second_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason for stochastic rounding: 0.1 % of a value is less than half of the distance between bf16 values."""
    grads = [torch.ones(100) for _ in range(2000)]
    _, squares = trained(HalfMomentAdamW, grads)
    assert float(squares.float().mean()) == pytest.approx(1 - 0.999**2000, rel=0.02)
    monkeypatch.setattr(half_moments, "rounded", lambda values, noise: values.bfloat16())
    _, stuck = trained(HalfMomentAdamW, grads)
    assert float(stuck.float().mean()) < 0.5


@settings(max_examples=50)
@given(st.floats(-(2.0**99), 2.0**99, width=32, allow_subnormal=False), st.integers(0, 100))
def test_rounding_is_unbiased_and_to_a_neighbour(value: float, seed: int) -> None:
    noise = torch.arange(1 << 16, dtype=torch.int32)  # every value of the noise once
    values = torch.full((1 << 16,), value)
    results = rounded(values, noise).double()
    if abs(value) > 1e-30:
        assert float(results.mean()) == pytest.approx(value, rel=1e-6)
        assert math.isclose(float(results.max()), float(results.min()), rel_tol=2**-7) or value == 0
    exact = torch.tensor([value]).bfloat16().float()
    assert torch.equal(rounded(exact, noise[seed : seed + 1]).float(), exact)  # what fits into bf16 does not change


@pytest.mark.parametrize("value", [math.inf, -math.inf, 0.0])
def test_special_values_stay(value: float) -> None:
    assert float(rounded(torch.tensor([value]), torch.tensor([65535], dtype=torch.int32))) == value


def test_chunks_and_layouts_do_not_change_the_update(monkeypatch: pytest.MonkeyPatch) -> None:
    grads = gradients(1, (30, 40))
    whole, _ = trained(HalfMomentAdamW, grads)
    monkeypatch.setattr(half_moments, "CHUNK", 7)
    assert torch.allclose(trained(HalfMomentAdamW, grads)[0], whole, rtol=0, atol=1e-7)
    parameter = torch.nn.Parameter(torch.ones(40, 30).t())
    parameter.grad = grads[0]
    HalfMomentAdamW([parameter], lr=1e-3, weight_decay=0.1).step()
    assert torch.allclose(parameter.detach(), whole, rtol=0, atol=1e-7)


def test_a_loaded_state_continues_with_the_same_numbers() -> None:
    grads = gradients(20, (40, 30))
    whole, _ = trained(HalfMomentAdamW, grads)
    parameter = torch.nn.Parameter(torch.ones(40, 30))
    first = HalfMomentAdamW([parameter], lr=1e-3, weight_decay=0.1)
    for gradient in grads[:10]:
        parameter.grad = gradient
        first.step()
    second = HalfMomentAdamW([parameter], lr=1e-3, weight_decay=0.1)
    second.load_state_dict(first.state_dict())
    assert second.state[parameter]["exp_avg"].dtype == torch.bfloat16
    for gradient in grads[10:]:
        parameter.grad = gradient
        second.step()
    assert torch.equal(parameter.detach(), whole)
