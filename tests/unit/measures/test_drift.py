"""The monitor's figures against closed forms, and its advice at the thresholds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from preftune.measures import advice as thresholds
from preftune.measures.advice import advice
from preftune.measures.drift import divergence, likelihood

FIRST = {
    "step": 0,
    "drift/gap": 3.0,
    "drift/kl": 0.0,
    "drift/kl_se": 0.0,
    "drift/displaced": 0.0,
    "drift/tokens": 40.0,
    "drift/ended": 0.9,
    "drift/repetition": 0.05,
    "drift/diversity": 0.8,
}


def test_the_gap_compares_equal_lengths() -> None:
    """A policy that writes twice as long as the data, at the same log-prob a token, is not away from them."""
    tokens = np.array([10.0, 20.0])
    same = likelihood(-2 * 2 * tokens, 2 * tokens, -2 * tokens, tokens)
    assert same["drift/own_logps"] == 2 * same["drift/data_logps"] == -60
    assert same["drift/gap"] == 0
    found = likelihood(-1.5 * 2 * tokens, 2 * tokens, np.array([-30.0, -30.0]), tokens)
    assert found["drift/own_per_token"] == -1.5
    assert found["drift/data_per_token"] == -2.0
    assert found["drift/gap"] == pytest.approx(0.5 * 15)


def test_kl_of_gaussians() -> None:
    """Samples of N(m, 1) against N(0, 1): KL = m^2 / 2, and its error is that of the mean over prompts."""
    m, generator = 2.0, np.random.default_rng(0)
    x = generator.normal(m, 1.0, (2000, 4))
    found = divergence(-((x - m) ** 2) / 2, -(x**2) / 2)
    assert found["drift/kl_se"] == pytest.approx(m / np.sqrt(2000 * 4), rel=0.1)
    assert abs(found["drift/kl"] - m**2 / 2) < 3 * found["drift/kl_se"]


def test_no_advice_for_a_policy_that_stands_still() -> None:
    assert advice(FIRST, FIRST) == {}
    assert advice({**FIRST, "step": 9}, FIRST) == {}
    assert advice({"step": 9}, {"step": 0}) == {}


# what has changed, which advice, what it says; and what is just not enough for it
PASSED: list[tuple[dict[str, float], str, str, dict[str, float]]] = [
    (
        {"drift/gap": 40.0},
        "gap",
        "the data is 40 nats from what the policy now writes (3 at step 0, advice from 20 on): "
        "refresh it with preftune iterate",
        {"drift/gap": 20.0},
    ),
    (
        {"drift/kl": 14.21, "drift/kl_se": 0.93},
        "kl",
        "the policy is 14.2 +- 0.9 nats a response from the reference (advice from 10 on): lower optim.lr or raise "
        "loss.beta",
        {"drift/kl": 10.0, "drift/kl_se": 0.9},
    ),
    (
        {"drift/displaced": 0.62, "drift/chosen": -0.02},
        "displaced",
        "in 62% of the pairs both responses are less likely",
        {"drift/displaced": 0.62, "drift/chosen": -0.001},
    ),
    ({"drift/tokens": 61.0}, "length", "have 61 tokens (40 at step 0", {"drift/tokens": 60.0}),
    ({"drift/ended": 0.6}, "ended", "only 60% of the policy's responses end (90% at step 0", {"drift/ended": 0.75}),
    ({"drift/repetition": 0.3}, "repetition", "30% of a response's word pairs are repeated", {"drift/repetition": 0.2}),
    ({"drift/diversity": 0.5}, "diversity", "only 50% of the word pairs in all responses", {"drift/diversity": 0.57}),
]


@pytest.mark.parametrize(("change", "subject", "said", "enough"), PASSED, ids=[row[1] for row in PASSED])
def test_advice_names_figure_threshold_and_remedy(
    change: dict[str, float], subject: str, said: str, enough: dict[str, float]
) -> None:
    now: dict[str, Any] = {**FIRST, "step": 9}
    found = advice({**now, **change}, FIRST)
    assert list(found) == [subject]
    assert said in found[subject]
    assert "advice" in found[subject]
    assert advice({**now, **enough}, FIRST) == {}


def test_data_that_were_far_at_once_are_another_matter() -> None:
    """They are reported at the first evaluation; later only if the policy has moved as far again."""
    far = {**FIRST, "drift/gap": 60.0}
    assert "preftune sft" in advice(far, far)["start"]
    assert advice({**far, "step": 9, "drift/gap": 60.0 + thresholds.GAP}, far) == {}
    found = advice({**far, "step": 9, "drift/gap": 85.0}, far)
    assert list(found) == ["gap"]
    assert "85 nats" in found["gap"]
    assert "60 at step 0" in found["gap"]
    late = {**far, "step": 9}  # the monitor was switched on later: nothing is known of step 0
    assert "start" not in advice(late, late)


def evaluation(step: int, loss: float, error: float | None = None) -> dict[str, float]:
    return {"step": step, "loss": loss, **({} if error is None else {"loss_se": error})}


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            [evaluation(0, 0.6931, 0.0), evaluation(10, 0.65, 0.01), evaluation(20, 0.87, 0.08)],
            "the held-out loss rose by 0.22 +- 0.081: it is 0.87 at step 20, and was 0.65 at step 10. So the model of "
            "step 10 was better on these rows (train.save_every keeps it): use fewer epochs (train.epochs, "
            "train.max_steps) or a lower optim.lr",
        ),
        (
            [evaluation(0, 0.6931, 0.0), evaluation(20, 0.8, 0.05)],
            "the held-out loss rose by 0.107 +- 0.05: it is 0.8 at step 20, and was 0.6931 at step 0. So the model "
            "before training was better on these rows",
        ),
        ([evaluation(0, 3.1), evaluation(5, 2.2), evaluation(9, 2.3)], "the held-out loss rose by 0.1: it is 2.3 at"),
        (
            [evaluation(i, loss, 0.2) for i, loss in enumerate((0.5, 0.52, 0.55, 0.6))],
            "the held-out loss rose by 0.1 +- 0.28: it is 0.6 at step 3, and was 0.5 at step 0",
        ),
        ([evaluation(i, loss, 0.2) for i, loss in enumerate((0.5, 0.55, 0.54, 0.6))], ""),
        ([evaluation(i, loss, 0.2) for i, loss in enumerate((0.5, 0.501, 0.502, 0.503))], ""),  # has settled
        ([evaluation(i, loss) for i, loss in enumerate((2.2, 2.2001, 2.2002, 2.2003))], ""),
        ([evaluation(0, 0.6931, 0.0), evaluation(10, 0.65, 0.05), evaluation(20, 0.7, 0.05)], ""),  # noise
        ([evaluation(0, 3.1), evaluation(5, 2.2), evaluation(9, 2.21)], ""),
        ([evaluation(0, 0.7, 0.0), evaluation(9, 0.6, 0.01)], ""),
        ([evaluation(0, 0.7, 0.0)], ""),
        ([], ""),
    ],
)
def test_a_held_out_loss_that_rose_is_reported(lines: list[dict[str, float]], said: str) -> None:
    """At the end of a run: the last evaluation against the lowest one."""
    found = thresholds.held_out_rose(lines)
    assert found.startswith(said) if said else found == ""
