"""Unpaired, list-wise, supervised and reward losses, and `Objective`: weighted sums and inputs by name."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import random_groups

from preftune.config.schema import LossTerm
from preftune.data.layout import collate_judgements
from preftune.errors import ConfigError
from preftune.losses import PREFERENCE_LOSSES, Objective
from preftune.losses.listwise import plackett_luce
from preftune.losses.reward import bradley_terry
from preftune.losses.supervised import sft
from preftune.losses.unpaired import bco, kto
from preftune.methods.objective import bind_objective
from preftune.types import Judged, Logps, Pair


def logps(*values: float) -> Logps:
    total = torch.tensor(values, dtype=torch.float64)
    length = torch.ones(len(values), dtype=torch.int64)
    return Logps(total, total, length)


def test_kto_equals_the_hand_computed_value() -> None:
    """Log-ratios: desirable 1, undesirable -2, mismatched 0.4. So z = 0.4."""
    label = torch.tensor([1, -1, 0])
    value = kto(logps(1, -2, 0.4), logps(0, 0, 0), label, label == 0, beta=0.5)
    assert value.tolist() == pytest.approx([0.425557483, 0.231475217, 0.0], abs=1e-8)
    doubled = kto(logps(1, -2, 0.4), logps(0, 0, 0), label, label == 0, beta=0.5, desirable=2.0)
    assert doubled.tolist() == pytest.approx([2 * 0.425557483, 0.231475217, 0.0], abs=1e-8)


def test_kto_clamps_a_negative_baseline_to_0() -> None:
    label = torch.tensor([1, 0])
    value = kto(logps(1, -3), logps(0, 0), label, label == 0, beta=1.0)
    assert value[0].item() == pytest.approx(1 / (1 + math.e))


def test_bco_equals_the_hand_computed_value() -> None:
    """Rewards 0.5 and -1 have the threshold -0.25. Both are 0.75 away from it, on the correct side."""
    value = bco(logps(1, -2), logps(0, 0), torch.tensor([1, -1]), beta=0.5)
    assert value.tolist() == pytest.approx([0.386871006, 0.386871006], abs=1e-8)


def test_plackett_luce_equals_the_hand_computed_value() -> None:
    """One group has the scores 0.5, 0, -0.5 in order of rank. The rows are not sorted by rank."""
    rank, group = torch.tensor([2.0, 1.0, 3.0, 2.0, 1.0]), torch.tensor([0, 0, 0, 1, 1])
    value = plackett_luce(logps(0, 1, -1, -2, 1), logps(0, 0, 0, 0, 0), rank, group, beta=0.5)
    assert value.tolist() == pytest.approx([1.154346655, 0.201413278], abs=1e-8)


def test_plackett_luce_of_two_responses_is_dpo() -> None:
    value = plackett_luce(logps(-10, -14), logps(-11, -12), torch.tensor([1.0, 2.0]), torch.zeros(2).long(), beta=0.5)
    assert value.item() == pytest.approx(0.201413278, abs=1e-8)


@given(st.lists(st.floats(-1e4, 1e4), min_size=2, max_size=6))
def test_plackett_luce_gradient_is_finite_and_sums_to_zero(scores: list[float]) -> None:
    policy = logps(*scores)
    leaf = policy.sum_S.clone().requires_grad_()
    rank = torch.arange(1.0, len(scores) + 1)
    value = plackett_luce(
        Logps(leaf, leaf, policy.length_S), logps(*[0.0] * len(scores)), rank, torch.zeros(len(scores)).long(), beta=0.1
    )
    value.sum().backward()
    assert leaf.grad is not None
    assert bool(torch.isfinite(leaf.grad).all())
    assert leaf.grad.sum().item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("extreme", [-1e4, 0.0, 1e4])
def test_unpaired_losses_are_finite_for_extreme_log_ratios(extreme: float) -> None:
    leaf = torch.tensor([extreme, -extreme, 1.0], requires_grad=True)
    policy = Logps(leaf, leaf, torch.ones(3).long())
    zero = Logps(torch.zeros(3), torch.zeros(3), torch.ones(3).long())
    label = torch.tensor([1, -1, 0])
    for value in (kto(policy, zero, label, label == 0), bco(policy, zero, torch.tensor([1, -1, 1]))):
        leaf.grad = None
        value.sum().backward(retain_graph=True)
        assert bool(torch.isfinite(value).all())
        assert leaf.grad is not None
        assert bool(torch.isfinite(leaf.grad).all())


def test_unpaired_gradients_match_their_formulas() -> None:
    label = torch.tensor([1, -1, 1, -1])

    def bco_of(values: torch.Tensor) -> torch.Tensor:
        policy = Logps(values, values, torch.ones(4).long())
        return bco(policy, logps(0, 0, 0, 0), label, beta=0.3)

    point = torch.tensor([1.0, -2.0, 0.5, 0.1], dtype=torch.float64, requires_grad=True)
    bco_of(point).sum().backward()
    r = 0.3 * point.detach()
    threshold = (r[[0, 2]].mean() + r[[1, 3]].mean()) / 2
    expected = -0.3 * label * torch.sigmoid(-label * (r - threshold))
    assert point.grad is not None
    assert point.grad.tolist() == pytest.approx(expected.tolist())

    point = torch.tensor([1.0, -2.0, 0.4], dtype=torch.float64, requires_grad=True)
    kinds = torch.tensor([1, -1, 0])
    kto(Logps(point, point, torch.ones(3).long()), logps(0, 0, 0), kinds, kinds == 0, beta=0.5).sum().backward()
    good, bad = torch.sigmoid(torch.tensor(0.5 * (0.4 - 1))), torch.sigmoid(torch.tensor(0.5 * (-2 - 0.4)))
    assert point.grad is not None
    assert point.grad.tolist() == pytest.approx(
        [-0.5 * float(good * (1 - good)), 0.5 * float(bad * (1 - bad)), 0.0], abs=1e-7
    )


def test_bradley_terry_equals_the_hand_computed_value() -> None:
    pair = Pair(torch.tensor([2.0]), torch.tensor([0.5]))
    one, margin = torch.ones(1), torch.tensor([0.3])
    assert bradley_terry(pair, one, margin).item() == pytest.approx(0.263282467, abs=1e-7)
    assert bradley_terry(pair, one, margin, centre=0.01).item() == pytest.approx(0.325782467, abs=1e-7)
    soft = bradley_terry(pair, torch.tensor([0.8]), torch.zeros(1))
    assert soft.item() == pytest.approx(0.501413278, abs=1e-7)


@pytest.mark.parametrize("gap", [-1e4, 0.0, 1e4])
def test_bradley_terry_gradient_matches_its_formula(gap: float) -> None:
    reward = torch.tensor([gap], dtype=torch.float64, requires_grad=True)
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    loss = bradley_terry(Pair(reward, zero), one, zero)
    loss.sum().backward()
    assert bool(torch.isfinite(loss).all())
    assert reward.grad is not None
    assert reward.grad.item() == pytest.approx(-1 / (1 + math.exp(min(gap, 700))))


def test_sft_is_the_negative_log_likelihood() -> None:
    assert sft(logps(-3, -5)).tolist() == [3, 5]


def objective(*terms: dict[str, object]) -> Objective:
    return bind_objective(
        [
            LossTerm(
                name=str(t.pop("name")),
                weight=float(t.pop("weight", 1.0)),
                parameters=dict(t),  # type: ignore[arg-type]
            )
            for t in terms
        ]
    )


def data() -> tuple[Logps, Logps, Judged]:
    groups = random_groups(3, responses=3)
    length = torch.tensor([len(r) for g in groups for r in g.response_ids])
    generator = torch.Generator().manual_seed(1)

    def random() -> Logps:
        token = -torch.rand(int(length.sum()), generator=generator)
        return Logps(token, torch.stack([p.sum() for p in token.split(length.tolist())]), length)

    return random(), random(), collate_judgements(groups)


def test_a_judgement_of_weight_2_counts_twice_in_sum_and_count() -> None:
    policy, reference, judgements = data()
    plain = objective({"name": "sigmoid"})(policy, reference, judgements)
    assert plain.count == 9
    heavy = Judged(
        **{**{f: getattr(judgements, f) for f in Judged.__dataclass_fields__}, "weight_P": judgements.weight_P.clone()}
    )
    heavy.weight_P[0] = 2.0
    out = objective({"name": "sigmoid"})(policy, reference, heavy)
    log_ratio_S = policy.sum_S - reference.sum_S
    margin = log_ratio_S[judgements.better_P[0]] - log_ratio_S[judgements.worse_P[0]]
    first = torch.nn.functional.softplus(-0.1 * margin)
    assert out.count == 10
    assert out.loss_sum.item() == pytest.approx(plain.loss_sum.item() + first.item(), rel=1e-6)


def test_several_losses_add_up_with_their_weights() -> None:
    policy, reference, judgements = data()
    mixed = objective({"name": "sigmoid", "beta": 0.2}, {"name": "nll", "weight": 0.3})
    both = mixed(policy, reference, judgements)
    alone = [
        objective({"name": "sigmoid", "beta": 0.2})(policy, reference, judgements).loss_sum,
        objective({"name": "nll"})(policy, reference, judgements).loss_sum,
    ]
    assert both.loss_sum.item() == pytest.approx((alone[0] + 0.3 * alone[1]).item(), rel=1e-6)
    assert set(both.metrics) == {"loss/sigmoid", "loss/nll"}
    assert mixed.beta == 0.2


def test_without_a_reference_its_log_probs_are_0() -> None:
    policy, _, judgements = data()
    free = objective({"name": "sigmoid", "beta": 0.5})(policy, None, judgements).loss_sum
    cpo = objective({"name": "cpo", "beta": 0.5, "alpha": 0.0})(policy, None, judgements).loss_sum
    assert free.item() == pytest.approx(cpo.item(), rel=1e-6)


def test_losses_on_pairs_and_on_responses_cannot_be_combined() -> None:
    with pytest.raises(ConfigError, match="pairs and responses"):
        objective({"name": "sigmoid"}, {"name": "kto"})


@pytest.mark.parametrize(
    ("term", "message"),
    [
        ({"name": "sigmoyd"}, "did you mean 'sigmoid'"),
        ({"name": "ipo", "label_smoothing": 0.1}, "'ipo' has no parameter 'label_smoothing'"),
        ({"name": "simpo", "gama": 1}, "did you mean 'gamma'"),
        ({"name": "sigmoid", "beta": -1}, "must be above 0"),
        ({"name": "sigmoid", "label_smoothing": 0.5}, "must be below 0.5"),
        ({"name": "sigmoid", "beta": "much"}, "must be a number"),
        ({"name": "sft"}, "unknown name 'sft'"),
    ],
)
def test_an_invalid_loss_name_or_parameter_is_an_error(term: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        objective(term)


def test_a_loss_in_a_users_file_gets_its_inputs_by_name(tmp_path: object) -> None:
    from pathlib import Path

    file = Path(str(tmp_path)) / "mine.py"
    file.write_text(
        "from torch.nn.functional import relu\n"
        "def squared(policy, margin, *, scale: float = 2.0):\n"
        "    return relu(scale * margin - policy.chosen + policy.rejected) ** 2\n"
        "def strange(policy, colour):\n"
        "    return policy.chosen\n"
    )
    policy, _, judgements = data()
    loss = objective({"name": f"{file}:squared", "scale": 3.0})
    assert loss.inputs == {"policy", "margin"}
    assert not loss.uses_reference
    gap = policy.sum_S[judgements.better_P] - policy.sum_S[judgements.worse_P]
    expected = (torch.relu(-gap) ** 2).sum().item()
    assert loss(policy, None, judgements).loss_sum.item() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ConfigError, match="'colour'"):
        objective({"name": f"{file}:strange"})
    with pytest.raises(ConfigError, match="no function 'squarde'; did you mean 'squared'"):
        objective({"name": f"{file}:squarde"})


def test_no_loss_name_is_overwritten_by_another_loss() -> None:
    assert len(PREFERENCE_LOSSES) == 33


@pytest.mark.parametrize("name", sorted(set(PREFERENCE_LOSSES) - {"kto"}))
def test_sums_and_counts_by_group_add_up_to_those_of_the_batch(name: str) -> None:
    objective = bind_objective([LossTerm(name=name)])
    groups = random_groups(5, responses=3)
    statistics = {key: torch.rand(15) for key in objective.statistics}
    token_N = -torch.rand(15)
    policy = Logps(token_N, token_N.clone(), torch.ones(15, dtype=torch.int64), statistics)
    reference = Logps(-torch.rand(15), -torch.rand(15), torch.ones(15, dtype=torch.int64))
    judgements = with_labels_and_ranks(collate_judgements(groups))
    sums, counts = objective.by_group(policy, reference, judgements)
    out = objective(policy, reference, judgements)
    assert len(sums) == 5
    assert float(sums.sum()) == pytest.approx(float(out.loss_sum), rel=1e-5)
    assert float(counts.sum()) == pytest.approx(float(out.count))


def with_labels_and_ranks(judgements: Judged) -> Judged:
    """Add a label and a rank to every response."""
    place = torch.arange(len(judgements.group_S)) % 3
    label_S, rank_S = torch.where(place == 0, 1, -1), place.float() + 1
    return replace(judgements, label_S=label_S, rank_S=rank_S, margin_P=judgements.margin_P + 1)
