"""Learning-rate schedules, gradient clipping, fp32 masters, tallies and the clock."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from preftune.config.schema import OptimConfig
from preftune.errors import ConfigError
from preftune.train.clock import Clock
from preftune.train.metrics import Tally
from preftune.train.optim import Weights, build_optimizer, clip, lr_at, moment_bytes, warmup_steps


def test_warmup_is_a_share_or_a_number_of_steps() -> None:
    assert warmup_steps(0.1, 95) == 10
    assert warmup_steps(150, 1000) == 150
    assert warmup_steps(0, 10) == 0
    assert warmup_steps(1, 10) == 1


def test_the_warmup_is_that_of_the_dpo_paper() -> None:
    """min(1, (s + 1) / (w + 1)) for s = 0, 1, ..., then constant: the schedule of the paper's code."""
    for s in range(400):
        assert lr_at(s + 1, 1000, 1.0, "constant", 150) == pytest.approx(min(1, (s + 1) / 151))


def test_linear_and_cosine_reach_zero_one_step_after_the_last() -> None:
    linear = [lr_at(s, 10, 1.0, "linear", 2) for s in range(1, 12)]
    assert linear == pytest.approx([1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0])
    cosine = [lr_at(s, 10, 1.0, "cosine", 2) for s in range(3, 12)]
    assert cosine == pytest.approx([0.5 * (1 + math.cos(math.pi * k / 8)) for k in range(9)])


@given(st.integers(1, 500), st.floats(0, 600), st.sampled_from(["linear", "cosine", "constant"]))
def test_the_learning_rate_is_positive_and_at_most_the_peak(total: int, warmup: float, name: Any) -> None:
    steps = warmup_steps(warmup, total)
    rates = [lr_at(s, total, 2e-6, name, steps) for s in range(1, total + 1)]
    assert all(0 < r <= 2e-6 for r in rates)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_clipping_equals_that_of_torch() -> None:
    ours, theirs = [[torch.randn(5, generator=torch.Generator().manual_seed(s)) for s in range(3)] for _ in range(2)]
    parameters = [nn.Parameter(torch.zeros(5)) for _ in theirs]
    for parameter, gradient in zip(parameters, theirs, strict=True):
        parameter.grad = gradient
    expected = nn.utils.clip_grad_norm_(parameters, 0.5)
    assert torch.equal(clip(ours, 0.5), expected)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_bf16_moments_are_for_adamw() -> None:
    with pytest.raises(ConfigError, match="applies to adamw only"):
        OptimConfig(name="rmsprop", moments="bf16")


@pytest.mark.parametrize("settings", [("adamw", "fp32"), ("adamw", "bf16"), ("rmsprop", "fp32")])
def test_the_planned_bytes_are_those_of_the_optimizer_state(settings: tuple[Any, Any]) -> None:
    master = torch.zeros(1000)
    master.grad = torch.ones(1000)
    optimizer = build_optimizer([master], settings[0], 1e-3, 0.0, settings[1])
    optimizer.step()
    held = sum(v.numel() * v.element_size() for v in optimizer.state[master].values() if v.numel() > 1)
    assert held == 1000 * moment_bytes(*settings)


def test_small_gradients_are_not_scaled() -> None:
    gradient = torch.tensor([0.3, 0.4])
    assert clip([gradient], 1.0).item() == pytest.approx(0.5)
    assert gradient.tolist() == pytest.approx([0.3, 0.4])


def test_bf16_weights_learn_through_fp32_masters() -> None:
    """200 updates of 1e-5 change a weight of 1 by 2e-3; in bf16 alone each update would be rounded to 0."""
    model = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    nn.init.ones_(model.weight)
    weights = Weights(model)
    optimizer = build_optimizer(weights.masters, "adamw", 1e-5, 0.0)
    for _ in range(200):
        model(torch.ones(1, 1, dtype=torch.bfloat16)).sum().backward()
        assert model.weight.grad is None  # added to the master at once
        optimizer.step()
        weights.publish()
        weights.clear_gradients()
    assert weights.masters[0].item() == pytest.approx(1 - 2e-3, abs=1e-5)
    assert model.weight.item() == pytest.approx(1 - 2e-3, abs=4e-3)
    assert weights.masters[0].dtype == torch.float32


def test_bf16_gradients_of_micro_batches_add_up_in_fp32() -> None:
    """In bf16, 256 + 1 would be 256."""
    model = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    weights = Weights(model)
    for value in (256.0, 1.0):
        model(torch.full((1, 1), value, dtype=torch.bfloat16)).sum().backward()
    assert [g.item() for g in weights.gradients()] == [257.0]


def test_fp32_weights_are_their_own_masters() -> None:
    model = nn.Linear(2, 2)
    weights = Weights(model)
    assert all(m is p for m, p in zip(weights.masters, model.parameters(), strict=True))


def test_tied_weights_have_one_master() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    assert len(Weights(model).masters) == 1


def test_a_model_with_nothing_to_train_is_refused() -> None:
    model = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ConfigError, match="there is nothing to train"):
        build_optimizer(Weights(model).masters, "adamw", 1e-3, 0.0)


def test_rmsprop_has_the_defaults_of_torch() -> None:
    optimizer = build_optimizer(Weights(nn.Linear(2, 2)).masters, "rmsprop", 1e-3, 0.0)
    assert isinstance(optimizer, torch.optim.RMSprop)
    assert (optimizer.defaults["alpha"], optimizer.defaults["eps"], optimizer.defaults["momentum"]) == (0.99, 1e-8, 0)


def test_a_tally_is_the_mean_over_all_items() -> None:
    """Batches of 2 + 3 and 1 + 3 + 1 items give the mean over 5 items, not a mean of means."""
    values = torch.tensor([1.0, 2.0, 3.0, 10.0, 20.0])
    for split in ([2, 3], [1, 3, 1], [5]):
        tally = Tally()
        for part in values.split(split):
            tally.add({"x": (part.sum(), torch.tensor(float(len(part))))})
        assert tally.means() == {"x": pytest.approx(7.2)}


def test_a_tally_omits_metrics_with_a_count_of_0() -> None:
    tally = Tally()
    tally.add({"x": (torch.tensor(0.0), torch.tensor(0.0)), "y": (torch.tensor(1.0), torch.tensor(2.0))})
    assert tally.means() == {"y": 0.5}
    assert Tally().means() == {}


def test_the_clock_excludes_pauses() -> None:
    time = iter([0.0, 5.0, 105.0, 110.0, 110.0])
    clock = Clock(lambda: next(time))
    clock.add(20, 200)
    with clock.paused():
        pass
    assert clock.read() == {"pairs_per_s": 2.0, "tokens_per_s": 20.0}
