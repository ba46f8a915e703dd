"""Pairwise losses: hand-computed values, gradients, finiteness, documentation.

All values are for one pair:  log pi = -10, -14;  log ref = -11, -12;  lengths 4, 8.
So lr_w = 1, lr_l = -2, h = 3; with beta = 0.5, z = beta h = 1.5.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from preftune.losses import PREFERENCE_LOSSES, pairwise, reference_free, tokenwise
from preftune.losses.reward import bradley_terry
from preftune.losses.supervised import sft
from preftune.resolve import inputs_of, parameters_of
from preftune.types import Pair, PairLogps

TABLE = {**pairwise.TABLE, **reference_free.TABLE, **tokenwise.TABLE}
# name, parameters, probability of the label, value computed by hand
VALUES = [
    ("sigmoid", {"beta": 0.5}, 1.0, 0.201413278),  # log(1 + e^-1.5)
    ("sigmoid", {"beta": 0.5, "label_smoothing": 0.1}, 1.0, 0.351413278),  # 0.9 * 0.2014 + 0.1 * 1.7014
    ("sigmoid", {"beta": 0.5}, 0.7, 0.651413278),
    ("sigmoid", {"beta": 0.5, "label_smoothing": 0.1}, 0.7, 0.711413278),  # q = 0.7 * 0.9 + 0.3 * 0.1
    ("sigmoid_norm", {"beta": 5.0}, 1.0, 0.078889734),  # h' = 1/4 + 2/8: log(1 + e^-2.5)
    ("sigmoid_norm", {"beta": 5.0}, 0.7, 0.828889734),  # 0.7 * 0.0789 + 0.3 * 2.5789
    ("robust", {"beta": 0.5, "label_smoothing": 0.1}, 1.0, 0.013913278),  # (0.9 * 0.2014 - 0.1 * 1.7014) / 0.8
    ("ipo", {"beta": 0.5}, 1.0, 0.25),  # (1/4 + 2/8 - 1)^2
    ("ipo", {"beta": 0.5, "average": False}, 1.0, 4.0),  # (3 - 1)^2
    ("ipo", {"beta": 0.5, "average": False}, 0.7, 7.6),  # 0.7 * 4 + 0.3 * 16
    ("hinge", {"beta": 0.5}, 1.0, 0.0),
    ("hinge", {"beta": 0.1}, 1.0, 0.7),
    ("hinge", {"beta": 0.1}, 0.7, 0.88),
    ("exo_pair", {"beta": 0.5, "label_smoothing": 0.1}, 1.0, 0.031138796),
    ("nca_pair", {"beta": 0.5}, 1.0, 1.117746320),
    ("bco_pair", {"beta": 0.5}, 1.0, 0.773742012),  # d = (0.5 - 1) / 2, so 2 log(1 + e^-0.75)
    ("bco_pair", {"beta": 0.5, "threshold": False}, 1.0, 0.787338672),  # log(1 + e^-0.5) + log(1 + e^-1)
    ("sppo", {"beta": 0.5}, 1.0, 1.0),  # (1 - 1)^2 + (-2 + 1)^2
    ("sppo", {"beta": 0.5}, 0.7, 2.92),  # target 0.4
    ("aot", {"beta": 0.5}, 1.0, 0.201413278),  # with one pair, sorting changes nothing
    ("aot_unpaired", {"beta": 0.5}, 1.0, 0.201413278),
    ("apo_zero", {"beta": 0.5}, 1.0, 0.646482090),
    ("apo_down", {"beta": 0.5}, 1.0, 0.804884855),
    ("discopop", {"beta": 0.5}, 1.0, 0.223130160),  # m is nearly 1: e^-1.5
    ("discopop", {"beta": 0.5, "tau": 1.0}, 1.0, 0.219168447),
    ("forward_kl", {"beta": 0.5}, 1.0, 0.029441640),  # f' = -1/u: -e^-1 + e^2
    ("jensen_shannon", {"beta": 0.5}, 1.0, 0.339183539),
    ("alpha_divergence", {"beta": 0.5, "alpha": 0.5}, 1.0, 0.114244198),
    ("simpo", {"beta": 2.0, "gamma": 1.0}, 1.0, 2.578889734),  # 2 (-2.5 + 1.75) - 1 = -2.5
    ("simpo", {"beta": 2.0, "gamma": 0.5}, 1.0, 2.126928011),
    ("cpo", {"beta": 0.5, "alpha": 1.0}, 1.0, 2.626928011),  # log(1 + e^-2) + 2.5
    ("orpo", {"beta": 0.5}, 1.0, 3.104768190),
    ("dpop", {"beta": 0.5}, 1.0, 0.201413278),  # no penalty: the chosen response is above the reference
    ("r_dpo", {"beta": 0.5, "alpha": 0.01}, 1.0, 0.208830628),  # z = 1.5 + 0.01 (4 - 8)
    ("r_dpo", {"beta": 0.5, "alpha": 0.5}, 1.0, 0.974076984),
    ("ld_dpo", {"beta": 0.5, "alpha": 0.5}, 1.0, 0.225412652),  # rejected: -1.5 + 0.5 (-0.5)
    ("wpo", {"beta": 0.5}, 1.0, 0.703001416),  # collision -12, -20: weight e^(2/4 + 6/8)
    ("wpo", {"beta": 0.5, "clamp": True}, 1.0, 0.201413278),  # weight 1
    ("odpo", {"beta": 0.5}, 1.0, 0.474076984),  # margin 1: log(1 + e^-0.5)
    ("cal_dpo", {"beta": 0.5}, 1.0, 1.048587352),  # log(1 + e^-3) + 0 + 1
    ("cal_dpo", {"beta": 0.5, "calibration": 0.5}, 1.0, 0.548587352),  # the weight in the authors' code
    ("tdpo1", {"beta": 0.5}, 1.0, 0.251929081),  # kl 0.3, 0.8: z = 1.5 - 0.25
    ("tdpo2", {"beta": 0.5, "alpha": 0.5}, 1.0, 0.225412652),
    ("nll", {}, 1.0, 2.5),
    ("unlikelihood", {"alpha": 1.0}, 1.0, -4.0),
    ("unlikelihood", {"alpha": 0.5}, 1.0, 3.0),
]


def inputs_of_pair(probability: float = 1.0, n: int = 1) -> dict[str, Any]:
    """Return all inputs for the pair above, repeated n times, in fp64."""

    def column(value: float) -> torch.Tensor:
        return torch.full((n,), value, dtype=torch.float64)

    chosen_tokens = torch.full((n, 8), 0.0, dtype=torch.float64)
    chosen_tokens[:, :4] = 0.25
    rejected_tokens = torch.tensor([[-1, -0.5, 0, 0, -0.2, -0.1, -0.1, -0.1]] * n, dtype=torch.float64)
    zero = torch.zeros_like(chosen_tokens)
    return {
        "policy": PairLogps(column(-10), column(-14), column(4), column(8)),
        "reference": PairLogps(column(-11), column(-12), column(4), column(8)),
        "policy_tokens": Pair(chosen_tokens, rejected_tokens),
        "reference_tokens": Pair(zero, zero),
        "probability": column(probability),
        "margin": column(1.0),
        "kl": Pair(column(0.3), column(0.8)),
        "collision": Pair(column(-12), column(-20)),
    }


def call(name: str, inputs: dict[str, Any], **parameters: Any) -> torch.Tensor:
    function = TABLE[name]
    return function(**{key: inputs[key] for key in inputs_of(function)}, **parameters)


@pytest.mark.parametrize(("name", "parameters", "probability", "value"), VALUES)
def test_value_equals_the_hand_computed_one(
    name: str, parameters: dict[str, Any], probability: float, value: float
) -> None:
    assert call(name, inputs_of_pair(probability), **parameters).item() == pytest.approx(value, abs=1e-8)


def test_every_pairwise_loss_has_a_hand_computed_value() -> None:
    assert {row[0] for row in VALUES} == set(TABLE)


def test_odpo_with_log_uses_the_logarithm_of_the_margin() -> None:
    inputs = inputs_of_pair() | {"margin": torch.tensor([2.0], dtype=torch.float64)}
    assert call("odpo", inputs, beta=0.5, log=True).item() == pytest.approx(0.368981135, abs=1e-8)


def test_dpop_penalises_a_chosen_response_below_the_reference() -> None:
    inputs = inputs_of_pair()
    inputs["policy"] = inputs["policy"]._replace(chosen=torch.tensor([-12.0], dtype=torch.float64))  # lr_w = -1
    # 0.5 (1 - 2 * 1) = -0.5
    assert call("dpop", inputs, beta=0.5, penalty=2.0).item() == pytest.approx(0.974076984, abs=1e-8)


def test_dpo_at_the_reference_is_ln_2() -> None:
    inputs = inputs_of_pair()
    inputs["policy"] = inputs["reference"]
    assert call("sigmoid", inputs, beta=0.1).item() == pytest.approx(math.log(2), abs=1e-15)


def test_aot_sorts_the_margins_of_all_pairs() -> None:
    """Policy margins 1, 5 and reference margins 4, 0 are compared as 1, 5 and 0, 4."""
    zero, length = torch.zeros(2), torch.ones(2)
    policy = PairLogps(torch.tensor([1.0, 5.0]), zero, length, length)
    reference = PairLogps(torch.tensor([4.0, 0.0]), zero, length, length)
    expected = math.log1p(math.exp(-1))
    assert TABLE["aot"](policy, reference, beta=1.0).tolist() == pytest.approx([expected, expected])


@pytest.mark.parametrize("name", sorted(TABLE))
def test_gradient_matches_finite_differences(name: str) -> None:
    """In fp64, with respect to both log-probs, at points where the loss is differentiable."""
    if name in ("wpo", "tdpo2", "bco_pair"):
        pytest.skip("has a stop-gradient: see test_detached_quantities_have_no_gradient")
    generator = torch.Generator().manual_seed(0)
    points = [torch.rand(5, dtype=torch.float64, generator=generator) * 6 - 12 for _ in range(2)]
    inputs = inputs_of_pair(0.8, n=5)

    def loss(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
        moved = dict(inputs)
        moved["policy"] = inputs["policy"]._replace(chosen=chosen, rejected=rejected)
        moved["policy_tokens"] = Pair((chosen / 8)[:, None].expand(5, 8), (rejected / 8)[:, None].expand(5, 8))
        return call(name, moved)

    assert torch.autograd.gradcheck(loss, [p.requires_grad_() for p in points], atol=1e-7)


def test_detached_quantities_have_no_gradient() -> None:
    """WPO's weight, TDPO2's KL of the chosen response and BCO's threshold are detached."""
    inputs = inputs_of_pair()
    collision = Pair(*(t.clone().requires_grad_() for t in inputs["collision"]))
    policy = PairLogps(*(t.clone().requires_grad_() for t in inputs["policy"]))
    loss = call("wpo", inputs | {"collision": collision, "policy": policy}, beta=0.5)
    loss.sum().backward()
    assert collision.chosen.grad is None
    weight = math.exp(2 / 4 + 6 / 8)
    slope = -0.5 / (1 + math.exp(1.5))
    assert policy.chosen.grad is not None
    assert policy.chosen.grad.item() == pytest.approx(weight * slope)

    kl = Pair(*(t.clone().requires_grad_() for t in inputs["kl"]))
    call("tdpo2", inputs | {"kl": kl}).sum().backward()
    assert kl.chosen.grad is None
    assert kl.rejected.grad is not None

    chosen = torch.tensor([-10.0], requires_grad=True, dtype=torch.float64)
    call("bco_pair", inputs | {"policy": inputs["policy"]._replace(chosen=chosen)}, beta=0.5).sum().backward()
    assert chosen.grad is not None
    assert chosen.grad.item() == pytest.approx(-0.5 / (1 + math.exp(0.75)))


@pytest.mark.parametrize("name", sorted(TABLE))
@pytest.mark.parametrize("chosen", [-1e4, 0.0, 1e4])
@pytest.mark.parametrize("rejected", [-1e4, 0.0, 1e4])
def test_value_and_gradient_are_finite_for_extreme_log_ratios(name: str, chosen: float, rejected: float) -> None:
    """In fp32, with log-ratios of -1e4, 0 and 1e4."""

    def column(value: float) -> torch.Tensor:
        return torch.tensor([value])

    length = column(4.0)
    base = -1.0 - 1e4
    policy = PairLogps(column(base + chosen).requires_grad_(), column(base + rejected).requires_grad_(), length, length)
    tokens = Pair((policy.chosen / 4)[:, None].expand(1, 4), (policy.rejected / 4)[:, None].expand(1, 4))
    flat = torch.full((1, 4), base / 4)
    inputs = {
        "policy": policy,
        "reference": PairLogps(column(base), column(base), length, length),
        "policy_tokens": tokens,
        "reference_tokens": Pair(flat, flat),
        "probability": column(0.9),
        "margin": column(2.0),
        "kl": Pair(column(1e4), column(0.0)),
        "collision": Pair(column(-4.0), column(-4.0)),
    }
    loss = call(name, inputs)
    loss.sum().backward()
    assert loss.dtype == torch.float32
    assert bool(torch.isfinite(loss).all())
    for log_prob in (policy.chosen, policy.rejected):
        assert log_prob.grad is None or bool(torch.isfinite(log_prob.grad).all())


@pytest.mark.parametrize("loss", [*PREFERENCE_LOSSES.values(), sft, bradley_terry])
def test_docstring_has_formula_source_and_parameters_with_defaults(loss: Callable[..., Any]) -> None:
    text = inspect.getdoc(loss) or ""
    assert "loss        " in text
    assert "source      " in text
    for name, parameter in parameters_of(loss).items():
        assert f"{name} ({str(parameter.default).lower()})" in text


@pytest.mark.parametrize("name", ["sigmoid", "robust", "ipo", "hinge", "dpop", "cal_dpo", "simpo", "orpo", "apo_zero"])
def test_gradient_descent_raises_the_chosen_and_lowers_the_rejected_response(name: str) -> None:
    """Checked at the reference."""
    inputs = inputs_of_pair()
    start = inputs["reference"]
    chosen, rejected = start.chosen.clone().requires_grad_(), start.rejected.clone().requires_grad_()
    call(name, inputs | {"policy": start._replace(chosen=chosen, rejected=rejected)}).sum().backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert chosen.grad.item() < 0 < rejected.grad.item()
